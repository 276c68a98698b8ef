"""Lengths and times as the metadata of movies state them, and which of them are plausible."""

from __future__ import annotations

import math

__all__ = [
    "MS_PER",
    "credible_pixel",
    "credible_step",
    "length_nm",
    "positive",
    "require_pixel_size",
]

NM_PER = {
    "nm": 1.0,
    "um": 1e3,
    "µm": 1e3,
    "μm": 1e3,
    "micron": 1e3,
    "microns": 1e3,
    r"\u00b5m": 1e3,
    "mm": 1e6,
}
MS_PER = {"s": 1e3, "ms": 1.0, "us": 1e-3, "µs": 1e-3, "μs": 1e-3}
PIXEL_SIZES_NM = (10.0, 1000.0)
"""range of pixel sizes of microscopes; values beyond are in another unit, or meaningless"""
Z_STEPS_NM = (1.0, 1000.0)
"""range of distances between planes of a stack"""


def require_pixel_size(nm: float) -> None:
    """Raise a ValueError unless a number may be the side of a microscope's pixel in nm."""
    if not nm > 0:
        raise ValueError(f"pixel_size_nm is {nm:g}, must be positive")
    low, high = PIXEL_SIZES_NM
    if not low <= nm <= high:
        meant = f": {1000 * nm:g}, if it was in um" if low <= 1000 * nm <= high else ""
        raise ValueError(
            f"a pixel size of {nm:g} nm is no microscope's ({low:g} to {high:g}); state it in "
            f"nm{meant}"
        )


def credible_pixel(width_nm: float | None, height_nm: float | None) -> tuple[float, float] | None:
    """(x, y) sides of a pixel, None unless both are a microscope's."""
    low, high = PIXEL_SIZES_NM
    if width_nm is None or height_nm is None:
        return None
    credible = low <= width_nm <= high and low <= height_nm <= high
    return (width_nm, height_nm) if credible else None


def credible_step(nm: float | None) -> float | None:
    """The distance of planes, None unless it is that of a stack."""
    low, high = Z_STEPS_NM
    return nm if nm is not None and low <= nm <= high else None


def length_nm(length: object, unit: str) -> float | None:
    """A length in nm; None if it is no positive number, or the unit is unknown.

    >>> length_nm("0.1", "µm"), length_nm(1, "pixel")
    (100.0, None)
    """
    number, scale = positive(length), NM_PER.get(unit)
    return number * scale if number and scale else None


def positive(value: object) -> float | None:
    """The number that a value states, None unless it is positive and finite."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if 0 < number < math.inf else None
