"""Families of PSFs that can be fitted to beads; each has a file, and a line here."""

from __future__ import annotations

from typing import Any

from decode.calibrate.families.family import Family, FamilyFit, Optics
from decode.calibrate.families.gaussian import GaussianFamily
from decode.calibrate.families.pupil import PupilFamily
from decode.calibrate.families.spline import SplineFamily

__all__ = ["FAMILIES", "Family", "FamilyFit", "Optics"]

FAMILIES: dict[str, type[Family[Any]]] = {
    "spline": SplineFamily,
    "pupil": PupilFamily,
    "gaussian": GaussianFamily,
}
"""family by the name that `--model` takes"""
