"""Molecules under a filter, as fast as a slider moves: which ones pass, and which are in view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import numpy as np
import numpy.typing as npt
import torch

from decode.emitters import EmitterSet
from decode.postprocess.filter import COLUMNS, Column, Range, columns_of, recorded, within

__all__ = ["QUANTITIES", "Filter", "filtered"]

QUANTITIES = {
    name: COLUMNS[name]
    for name in ("photons", "sigma", "sigma_z", "probability", "z", "frame", "goodness")
}
"""quantities by which the window filters and colours molecules, and their labels"""


@final
class Filter:
    """Ranges of a table's quantities, and the molecules within all of them.

    A molecule with an unknown quantity passes any range of it.
    """

    def __init__(self, emitters: EmitterSet) -> None:
        self.emitters = emitters
        self.columns = _columns(emitters)
        """the quantities that this table has"""
        self._bounds = {quantity: _bounds(column) for quantity, column in self.columns.items()}
        self.ranges: dict[str, Range] = {}
        """ranges of the restricted quantities, as for `decode.postprocess.filter.keep`"""
        self._within: dict[str, npt.NDArray[np.bool_]] = {}
        self.mask: npt.NDArray[np.bool_] = np.ones(len(emitters), np.bool_)
        """(n,) which molecules pass"""
        self.n_passing = len(emitters)
        # frames in order make those of one frame a slice
        self._order: npt.NDArray[np.int64] | None = None
        frame = emitters.frame.cpu().numpy()
        if (np.diff(frame) < 0).any():
            self._order = np.argsort(frame, kind="stable")
            frame = frame[self._order]
        self._frame = frame

    def bounds(self, quantity: str) -> tuple[float, float]:
        """Lowest and highest value; (0, 1) where there is none."""
        return self._bounds[quantity]

    def restrict(self, quantity: str, low: float, high: float) -> None:
        """Pass only molecules within a range, its ends included; the whole range removes the
        restriction."""
        if quantity not in self.columns:
            return
        lowest, highest = self.bounds(quantity)
        if low <= lowest and high >= highest:
            self.ranges.pop(quantity, None)
            self._within.pop(quantity, None)
        else:
            self.ranges[quantity] = (
                None if low <= lowest else low,
                None if high >= highest else high,
            )
            self._within[quantity] = within(self.columns[quantity], *self.ranges[quantity])
        self.mask = np.ones(len(self.emitters), np.bool_)
        for passing in self._within.values():
            self.mask &= passing
        self.n_passing = int(np.count_nonzero(self.mask))

    def passing(self) -> EmitterSet:
        """The table of the molecules that pass, with a note of the ranges; the table itself where
        nothing is restricted."""
        if not self.ranges:
            return self.emitters
        return recorded(self.emitters[torch.from_numpy(self.mask)], self.ranges)

    def rows_in_frame(self, frame: int) -> npt.NDArray[np.int64]:
        """Numbers of the molecules that pass in a frame, in the order of the table."""
        rows = self.all_in_frame(frame)
        passing: npt.NDArray[np.int64] = rows[self.mask[rows]]
        return passing

    def all_in_frame(self, frame: int) -> npt.NDArray[np.int64]:
        """Numbers of all molecules in a frame, whether they pass or not."""
        first, last = np.searchsorted(self._frame, (frame, frame + 1)).tolist()
        return np.arange(first, last) if self._order is None else self._order[first:last]

    def first_and_last(self) -> npt.NDArray[np.int64]:
        """The number of a molecule in the first frame, and of one in the last; none for an empty
        table."""
        n = len(self.emitters)
        ends = np.array([0, n - 1])[:n]
        return ends if self._order is None else self._order[ends]

    def rows_in_view(
        self, left: float, top: float, right: float, bottom: float, *, at_most: int
    ) -> npt.NDArray[np.int64] | None:
        """Numbers of the molecules that pass in a rectangle (nm), whatever their frame; None if
        there are too many."""
        x, y = self.emitters.xyz[:, 0].numpy(), self.emitters.xyz[:, 1].numpy()
        rows = np.flatnonzero(self.mask & (x >= left) & (x < right) & (y >= top) & (y < bottom))
        return rows if len(rows) <= at_most else None


def filtered(emitters: EmitterSet, ranges: Mapping[str, Range]) -> Filter:
    """Molecules within ranges; those of quantities that the table lacks say nothing."""
    made = Filter(emitters)
    for quantity, (low, high) in ranges.items():
        if quantity in made.columns:
            lowest, highest = made.bounds(quantity)
            made.restrict(
                quantity, lowest if low is None else low, highest if high is None else high
            )
    return made


def _columns(emitters: EmitterSet) -> dict[str, Column]:
    columns = columns_of(emitters)
    if "z" in columns and not columns["z"].any():  # a table in 2D
        del columns["z"]
    return {quantity: columns[quantity] for quantity in QUANTITIES if quantity in columns}


def _bounds(column: Column) -> tuple[float, float]:
    known = column[np.isfinite(column)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    return (low, high) if high > low else (low, low + 1.0)
