"""Row noise: what a camera adds to all pixels of a row, anew in each frame."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple, Self, final

import numpy as np
from scipy import ndimage

from decode.defects.counts import Array, Frames

__all__ = ["RowNoise", "row_noise_in"]

AROUND_ROWS = 11
"""rows whose median is what light does to a row"""
FEWEST_ROWS, FEWEST_COLUMNS = 16, 32
"""of smaller frames no row noise is judged"""
LOOKED_AT_PX = 128
"""rows, and columns, of the middle of a frame by which it is judged whether there is row noise"""
NOTABLE = 0.15
"""standard deviation of row noise over that of the noise of a pixel, from which it is taken off"""
SURE = 10.0
"""significance from which it is"""


@final
class RowNoise(NamedTuple):
    """Row noise of a movie, and how to take it off."""

    spread: float
    """standard deviation, ADU"""
    weight: float
    """expected share of it in what a row differs by from those around"""
    usual: Array
    """(y,) what rows differ by from those around, whatever the frame, ADU"""

    @classmethod
    def of(cls, windows: Iterable[Frames], spread: float) -> Self:
        """Look at whole frames of a movie.

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
        """A sentence on what was taken off."""
        return (
            "the rows of pixels go up and down from frame to frame, each as a whole by "
            f"{self.spread:.2g} ADU: this row noise of the camera was taken off as well as each "
            "frame shows it"
        )


def row_noise_in(windows: Iterable[Frames], noise: float) -> float:
    """Standard deviation of the row noise, ADU; 0 where none is certain, or it does no harm.

    Of a row the left half and the right half share what the camera adds to it, and nothing that
    molecules do.  So the covariance of their medians over time is its variance; what light does to
    both halves it does to the rows around, too.

    Args:
        windows: (frame, y, x) ADU of consecutive frames, each.
        noise: of a pixel, ADU.
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
    """What (frame, y) medians of rows differ by from the rows around."""
    around = ndimage.median_filter(rows, (1, AROUND_ROWS), mode="mirror")
    difference: Array = rows - around
    return difference


def _square(values: Array) -> float:
    """Variance, robust against outliers."""
    return float((1.4826 * np.median(np.abs(values))) ** 2)
