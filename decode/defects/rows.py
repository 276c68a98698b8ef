"""Row noise: an offset that a camera adds to all pixels of a row, different in each frame."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple, Self, final

import numpy as np
from scipy import ndimage

from decode.defects.counts import Array, Frames

__all__ = ["RowNoise", "row_noise_in"]

AROUND_ROWS = 11
"""number of rows whose median estimates the light of a row"""
FEWEST_ROWS, FEWEST_COLUMNS = 16, 32
"""smallest frames in which row noise is estimated"""
LOOKED_AT_PX = 128
"""rows, and columns, in the middle of a frame from which row noise is estimated"""
NOTABLE = 0.15
"""standard deviation of row noise, over that of the noise of a pixel, from which it is
subtracted"""
SURE = 10.0
"""significance from which it is subtracted"""


@final
class RowNoise(NamedTuple):
    """Row noise of a movie, and its subtraction."""

    spread: float
    """standard deviation, ADU"""
    weight: float
    """expected share of row noise in the difference of a row from those around"""
    usual: Array
    """(y,) mean difference of rows from those around, over all frames, ADU"""

    @classmethod
    def of(cls, windows: Iterable[Frames], spread: float) -> Self:
        """Row noise from whole frames of a movie.

        Args:
            windows: (frame, y, x) ADU, each.
            spread: from `row_noise_in`.
        """
        rows = np.concatenate([_against_those_around(np.median(w, 2)) for w in windows])
        usual = np.median(rows, 0)
        total = _square(rows - usual)
        return cls(spread, min(1.0, spread**2 / max(total, 1e-12)), usual)

    def removed(self, frames: Frames) -> Frames:
        """Frames without the row noise: (frame, y, x) ADU, which need be no whole numbers."""
        rows = _against_those_around(np.median(frames, 2)) - self.usual
        levelled: Frames = frames - (self.weight * rows[:, :, None]).astype(frames.dtype)
        return levelled

    @property
    def remark(self) -> str:
        """A sentence on the row noise that was subtracted."""
        return (
            "the rows of pixels go up and down from frame to frame, each as a whole by "
            f"{self.spread:.2g} ADU: this row noise of the camera was subtracted as well as each "
            "frame shows it"
        )


def row_noise_in(windows: Iterable[Frames], noise: float) -> float:
    """Standard deviation of the row noise, ADU; 0 where it is not significant, or harmless.

    The left and the right half of a row share the row noise, but no light of molecules.  The
    covariance of their medians over time is therefore its variance; changes of light that both
    halves share also appear in the rows around.

    Args:
        windows: (frame, y, x) ADU of consecutive frames, each.
        noise: noise of a pixel, ADU.
    """
    products = []
    for window in windows:
        height, width = window.shape[1:]
        if height < FEWEST_ROWS or width < FEWEST_COLUMNS or len(window) < 3:
            return 0.0
        rows, columns = (
            slice((side - seen) // 2, (side - seen) // 2 + seen)
            for side in (height, width)
            for seen in (min(side, LOOKED_AT_PX),)
        )
        middle = window[:, rows, columns].astype(np.float64)
        halves = np.array_split(middle, 2, axis=2)
        left, right = (_against_those_around(np.median(half, 2)) for half in halves)
        products.append((left - np.median(left, 0)) * (right - np.median(right, 0)))
    product = np.concatenate(products).ravel()
    limit = 4 * noise**2
    product = product.clip(-limit, limit)
    variance = float(product.mean())
    error = float(product.std()) / math.sqrt(product.size)
    if variance <= max(SURE * error, (NOTABLE * noise) ** 2):
        return 0.0
    return math.sqrt(variance)


def _against_those_around(rows: Array) -> Array:
    """Difference of (frame, y) medians of rows from those of the rows around."""
    around = ndimage.median_filter(rows, (1, AROUND_ROWS), mode="mirror")
    difference: Array = rows - around
    return difference


def _square(values: Array) -> float:
    """Variance, robust against outliers."""
    return float((1.4826 * np.median(np.abs(values))) ** 2)
