"""Blinks: localizations of successive frames that show one molecule."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

__all__ = ["blinks"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

GATE = 4.0
"""standard deviations of their difference up to which two localizations may show one molecule"""


def blinks(frame: Integers, place: Floats, sigma: Floats) -> Integers:
    """Number the molecules of successive frames.

    Localizations of successive frames are one blink where each is the other's nearest, and both
    agree along every axis.

    Args:
        frame: (n,).
        place: (n, d) nm.
        sigma: (n, d) standard deviations.

    Returns:
        (n,) number of the blink, from 0.

    Example:
        >>> frame = np.array([0, 1, 1, 5])
        >>> place = np.array([[100.0, 50.0], [104.0, 52.0], [900.0, 50.0], [101.0, 50.0]])
        >>> blinks(frame, place, np.full((4, 2), 10.0)).tolist()
        [0, 0, 1, 2]
    """
    n = len(frame)
    if n < 2:
        return np.arange(n)
    # a third axis keeps frames apart that do not follow each other
    reach = GATE * math.sqrt(2) * float(np.quantile(sigma[:, :2].max(1), 0.9)) + 1e-9
    rank = frame * (2 * reach)
    points = np.column_stack([place[:, :2], rank])
    ahead, behind = (np.array([0.0, 0.0, step * 2 * reach]) for step in (1, -1))
    tree = cKDTree(points)
    _, after = tree.query(points + ahead, distance_upper_bound=reach)
    _, before = tree.query(points + behind, distance_upper_bound=reach)
    first = np.flatnonzero(after < n)
    second = after[first]
    mutual = before[second] == first
    first, second = first[mutual], second[mutual]
    apart = np.abs(place[first] - place[second]) / np.hypot(sigma[first], sigma[second])
    same = (apart < GATE).all(1)
    first, second = first[same], second[same]
    links = sparse.coo_array((np.ones(len(first)), (first, second)), shape=(n, n))
    _, number = connected_components(links, directed=False)
    return np.asarray(number, dtype=np.int64)
