"""Pairs of sightings that may show one molecule: near each other, and few frames apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.spatial import cKDTree

from decode.postprocess.link.sightings import Booleans, Floats, Integers, Sightings

__all__ = ["Pairs", "log_normal", "pairs_within"]


@final
@dataclass(frozen=True, kw_only=True)
class Pairs:
    """A sighting, and a later one that may follow it."""

    first: Integers
    """(m,) number of the earlier sighting"""
    second: Integers
    """(m,) number of the later one"""
    lag: Integers
    """(m,) frames from the last of the earlier to the first of the later: 1 has no dark frame"""

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, rows: Integers | Booleans | slice) -> Pairs:
        return Pairs(first=self.first[rows], second=self.second[rows], lag=self.lag[rows])


def pairs_within(
    earlier: Sightings, later: Sightings, *, reach_nm: float, lags: tuple[int, int]
) -> Pairs:
    """All pairs that differ along x and along y by at most a reach, and by some frames.

    One tree over x, y and time finds them; its cost grows with the number of pairs.

    Args:
        earlier, later: sightings of which the first and the second of a pair are.
        reach_nm: largest difference along x and along y.
        lags: least and most frames from the end of the earlier to the start of the later.
    """
    low, high = lags
    # frames are as long as makes the box of all lags a cube
    length = reach_nm / ((high - low) / 2 + 0.25)
    shifted = (earlier.last + (low + high) / 2) * length
    tree = _tree(np.column_stack([earlier.place[:, :2], shifted]))
    other = _tree(np.column_stack([later.place[:, :2], later.first * length]))
    found = tree.sparse_distance_matrix(other, reach_nm, p=np.inf, output_type="ndarray")
    first, second = found["i"].astype(np.int64), found["j"].astype(np.int64)
    usable = earlier.usable[first] & later.usable[second]
    first, second = first[usable], second[usable]
    return Pairs(first=first, second=second, lag=later.first[second] - earlier.last[first])


def log_normal(difference: Floats, covariance: Floats, axial: Booleans) -> tuple[Floats, Floats]:
    """Log density of differences at covariances, and their squared Mahalanobis distances.

    By hand, as the Cholesky factor of a million small matrices takes a library ten times as long.

    Args:
        difference: (m, 3) nm.
        covariance: (m, 3, 3) nm^2.
        axial: (m,) whether z counts; otherwise the density is that of x and y.

    Returns:
        (m,) logarithm, of nm^-3 or nm^-2, and (m,).
    """
    xx, yy, zz = (covariance[:, i, i] for i in range(3))
    a = np.sqrt(xx)
    b = covariance[:, 1, 0] / a
    c = covariance[:, 2, 0] / a
    e = np.sqrt(yy - b**2)
    f = (covariance[:, 2, 1] - b * c) / e
    g = np.sqrt(np.where(axial, zz - c**2 - f**2, 1.0))
    x = difference[:, 0] / a
    y = (difference[:, 1] - b * x) / e
    z = np.where(axial, (difference[:, 2] - c * x - f * y) / g, 0.0)
    square = x**2 + y**2 + z**2
    constant = np.where(axial, 1.5, 1.0) * np.log(2 * np.pi)
    return -0.5 * square - np.log(a * e * g) - constant, square


def _tree(points: Floats) -> cKDTree:
    # a balanced tree of points that share a coordinate takes long
    return cKDTree(points, balanced_tree=False)
