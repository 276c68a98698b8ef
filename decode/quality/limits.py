"""Limits of the checks, by the kind of PSF."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from decode.quality.evidence import Kind

__all__ = ["LIMITS", "Limits"]


@final
@dataclass(frozen=True, kw_only=True)
class Limits:
    """Largest values that pass; lowest and highest where there are two.

    They were chosen on matched movies of `benchmarks/checks.py`: about 36 of the seeds from 0, with
    a margin of about half the spread of their values; some were widened after 8 movies of the seeds
    from 1000 and the movies of docs/checks.md.
    """

    noise: tuple[float, float]
    pixel_offset: float
    density: float
    """molecules per square micrometre: in 2D as far as the shipped model was trained, in 3D half of
    that, from where it misses every other one"""
    turned: float
    """half of what is left: another PSF may by chance be nearer when it is turned"""
    elongation: float
    drift: float
    width: tuple[float, float]
    misfit: float
    goodness: tuple[float, float]
    missed: float
    empty: float
    flicker: float
    at_ends: float


LIMITS: Mapping[Kind, Limits] = {
    "gaussian": Limits(
        noise=(0.88, 1.12),
        pixel_offset=0.15,
        density=3.0,
        turned=0.5,
        elongation=0.06,
        drift=10.0,
        width=(0.86, 1.13),
        misfit=0.12,
        goodness=(0.85, 1.3),
        missed=0.4,
        empty=0.35,
        flicker=0.3,
        at_ends=0.05,
    ),
    "measured": Limits(
        noise=(0.88, 1.12),
        pixel_offset=0.15,
        density=1.2,
        turned=0.5,
        elongation=0.4,
        drift=14.0,
        width=(0.92, 1.12),
        misfit=0.12,
        goodness=(0.85, 1.35),
        missed=0.6,
        empty=0.2,
        flicker=0.3,
        at_ends=0.05,
    ),
}
