"""From density to brightness."""

from __future__ import annotations

from typing import final

import numpy as np
import numpy.typing as npt

from decode.rendering.settings import Contrast

__all__ = ["Levels", "Limits", "brightness"]

Limits = tuple[tuple[float, float], ...]
"""of each light, the densities per pixel that are black and at full brightness"""

DROPPED_BITS = 14
"""of a single-precision number; steps of the rest are 1/512 of an octave's start"""
FAINT = 1e-3
"""share of the largest density below which are no molecules, but far tails of their Gaussians"""


@final
class Levels:
    """Percentiles of densities that pass by once and are not kept.

    Positive floats are in the order of their bits, so that their first 18 bits are a histogram of
    even relative width, 0.2 %.

    Example:
        >>> levels = Levels(1)
        >>> levels.add(np.array([[[0.0, 1.0], [2.0, 3.0]]], np.float32))
        >>> levels.add(np.array([[[4.0]]], np.float32))
        >>> levels.percentile(50), levels.percentile(100)
        (2.0, 4.0)
    """

    def __init__(self, n_lights: int) -> None:
        self._counts = np.zeros((n_lights, 2 ** (31 - DROPPED_BITS)), np.int64)

    def add(self, lights: npt.NDArray[np.float32]) -> None:
        """Count the pixels with molecules, of each of (lights, y, x)."""
        for counts, light in zip(self._counts, lights, strict=True):
            more = np.bincount(light[light > 0].view(np.int32) >> DROPPED_BITS)
            counts[: len(more)] += more

    def percentile(self, share: float, *, light: int = 0) -> float:
        """The least density that a share of the pixels with molecules, percent, does not exceed; 1
        where there are none."""
        occupied = np.flatnonzero(self._counts[light])
        if not len(occupied):
            return 1.0
        values = (occupied.astype(np.int32) << DROPPED_BITS).view(np.float32).astype(np.float64)
        below = np.cumsum(self._counts[light][occupied] * (values > FAINT * values[-1]))
        return float(values[np.searchsorted(below, max(1, share / 100 * below[-1]))])

    def limits(self, contrast: Contrast, *, pixel_um2: float) -> Limits:
        """The densities per pixel that are black and at full brightness, of each light."""
        if contrast.unit != "%":
            ends = contrast.low * pixel_um2, contrast.high * pixel_um2
            return (ends,) * len(self._counts)
        return tuple(self._ends(contrast, light) for light in range(len(self._counts)))

    def _ends(self, contrast: Contrast, light: int) -> tuple[float, float]:
        low, high = (self.percentile(share, light=light) for share in (contrast.low, contrast.high))
        # where all pixels are alike, they are bright
        return low * (contrast.low > 0 and low < high), high


def brightness(
    density: npt.NDArray[np.float32], limits: tuple[float, float], gamma: float
) -> npt.NDArray[np.float32]:
    """0 to 1: density within its limits, to the power gamma."""
    low, high = limits
    shown = np.clip((density - low) / (high - low), 0, 1) ** gamma
    return shown.astype(np.float32, copy=False)
