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

    They lie beyond the largest values of movies that fit, drawn by the recipes of the shipped
    models (`benchmarks/checks.py --cases matched`: seeds 0 to 26, and 10000 to 10059 in 40 frames),
    and below those of the same movies with a PSF that is wrong by 20 % in width or by 0.06 waves, a
    focus that drifts, or a cylindrical lens.
    """

    noise: tuple[float, float]
    pixel_offset: float
    density: float
    """molecules per square micrometre: in 2D as far as the shipped model was trained, in 3D half of
    that, from where it misses every other one"""
    turned: float
    """another PSF may by chance be nearer when it is turned: by up to 0.23 in 18 of 20 draws, by
    0.46 in two; transposed movies have 0.36 to 0.84"""
    elongation: float
    drift: float
    """in 2D of the logarithm of the height of images, in 3D nm"""
    width: tuple[float, float]
    misfit: float
    spherical: float
    """waves rms"""
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
        turned=0.3,
        elongation=0.15,
        drift=0.2,
        width=(0.95, 1.10),
        misfit=0.12,
        spherical=0.02,
        goodness=(0.78, 1.6),
        missed=0.4,
        empty=0.35,
        flicker=0.3,
        at_ends=0.05,
    ),
    "measured": Limits(
        noise=(0.88, 1.12),
        pixel_offset=0.15,
        density=1.0,
        turned=0.3,
        elongation=0.4,
        drift=100.0,
        width=(0.95, 1.06),
        misfit=0.042,
        spherical=0.02,
        goodness=(0.82, 1.35),
        missed=0.5,
        empty=0.2,
        flicker=0.3,
        at_ends=0.05,
    ),
}
