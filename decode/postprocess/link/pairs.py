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

    def __getitem__(self, rows: Integers | Booleans) -> Pairs:
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

    Args:
        difference: (m, 3) nm.
        covariance: (m, 3, 3) nm^2.
        axial: (m,) whether z counts; otherwise the density is that of x and y.

    Returns:
        (m,) logarithm, of nm^-3 or nm^-2, and (m,).
    """
    flat = ~axial
    covariance = covariance.copy()
    covariance[flat, 2, :] = covariance[flat, :, 2] = 0.0
    covariance[flat, 2, 2] = 1 / (2 * np.pi)
    difference = np.where(np.stack([axial | True, axial | True, axial], 1), difference, 0.0)
    root: Floats = np.linalg.cholesky(covariance).astype(np.float64)
    white = _forward(root, difference)
    square = (white**2).sum(1)
    log_volume = np.log(np.diagonal(root, axis1=1, axis2=2)).sum(1)
    return -0.5 * square - log_volume - 1.5 * np.log(2 * np.pi), square


def _forward(root: Floats, right: Floats) -> Floats:
    """Solutions (m, 3) of lower triangular systems (m, 3, 3), by hand: NumPy has none."""
    x = right[:, 0] / root[:, 0, 0]
    y = (right[:, 1] - root[:, 1, 0] * x) / root[:, 1, 1]
    z = (right[:, 2] - root[:, 2, 0] * x - root[:, 2, 1] * y) / root[:, 2, 2]
    return np.stack([x, y, z], 1)


def _tree(points: Floats) -> cKDTree:
    # a balanced tree of points that share a coordinate takes long
    return cKDTree(points, balanced_tree=False)
