"""Spots: isolated spots of light, each of one molecule of a table or of several close together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

__all__ = ["Spots", "tree_of"]

MOST = 4
"""most molecules of a spot"""
BETWEEN_FRAMES = 1e6
"""pixels, as far as no molecule of a frame is from another"""
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@final
@dataclass(frozen=True)
class Spots:
    """Isolated spots: of one molecule, or of several that a model makes of one image that it does
    not know."""

    frame: Integers
    """(n,)"""
    place: Floats
    """(n, 2) mean x and y by light, pixels"""
    alone: npt.NDArray[np.bool_]
    """(n,) whether it is of one molecule"""
    spot: Integers
    """(m,) number of the spot of each molecule; -1: of none"""

    @staticmethod
    def of(frame: Integers, place: Floats, light: Floats, apart: float) -> Spots:
        """The spots of a table.

        Args:
            frame, place, light: (m,) frames, (m, 2) positions in pixels, (m,) photons.
            apart: least distance, pixels, of a spot to a molecule of another one; up to half of it
                molecules are of one spot.
        """
        tree = tree_of(frame, place)
        pairs = tree.query_pairs(apart / 2, output_type="ndarray")
        graph = coo_array((np.ones(len(pairs)), tuple(pairs.T)), shape=(len(frame), len(frame)))
        n, spot = connected_components(graph, directed=False)
        size, total = np.bincount(spot, minlength=n), np.bincount(spot, light, minlength=n)
        sums = [np.bincount(spot, light * place[:, axis], minlength=n) for axis in (0, 1)]
        middle = np.stack(sums, 1) / total[:, None]
        of_spot = np.zeros(n, np.int64)
        of_spot[spot] = frame
        # of the molecules that are nearest, one more than a spot holds
        distance, near = tree.query(np.column_stack([middle, of_spot * BETWEEN_FRAMES]), k=MOST + 1)
        other = np.append(spot, -1)[near] != np.arange(n)[:, None]
        free = np.where(other, distance, np.inf).min(1, initial=np.inf) > apart
        far = np.zeros(n)
        np.maximum.at(far, spot, np.linalg.norm(place - middle[spot], axis=1))
        kept = free & (size <= MOST) & (far < apart / 2)
        number = np.where(kept, np.cumsum(kept) - 1, -1)
        return Spots(of_spot[kept], middle[kept], size[kept] == 1, number[spot])

    def __getitem__(self, rows: Integers) -> Spots:
        number = np.full(len(self.frame) + 1, -1)
        number[rows] = np.arange(len(rows))
        return Spots(self.frame[rows], self.place[rows], self.alone[rows], number[self.spot])


def tree_of(frame: Integers, place: Floats) -> cKDTree:
    """A search tree of molecules, whose distance is infinite between frames."""
    return cKDTree(np.column_stack([place, frame * BETWEEN_FRAMES]))
