"""A picture of more molecules than memory holds: they wait on the disk, stripe by stripe."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import final

import numpy as np
import numpy.typing as npt
import torch

from decode.emitters import EmitterSet
from decode.rendering.canvas import Canvas
from decode.rendering.colours import colouring_by_depth
from decode.rendering.picture import Layout, Picture, Tile
from decode.rendering.settings import Rendering
from decode.rendering.spots import CUT

__all__ = ["Spool"]

STRIPES = 256
"""files that the rows of a picture are shared out among"""
WAITING = 2**18
"""molecules in memory before they are shared out"""
AT_ONCE = 2**20
"""molecules that are drawn together, of some stripes; each takes up to 500 bytes meanwhile"""
PERCENTILES = 0.01, 0.99
"""of the depths, as `depth_range` has them"""
SIGN, HALF = np.uint32(2**31), np.uint32(16)

Rows = npt.NDArray[np.float32]
"""(n, 6) x, y, z and their sigmas, nm"""


@final
class Spool:
    """Molecules of a field of view on their way to a picture, which `layout` draws.

    Memory does not grow with their number.  The picture has the settings that nobody chose
    (`Rendering()`), and is to the last bit that of the whole table.

    Args:
        folder: an empty folder for files of 24 bytes a molecule.
        field_nm: (x, y) size of the field of view.
    """

    def __init__(self, folder: Path, *, field_nm: tuple[float, float]) -> None:
        self._folder, self._rendering = folder, Rendering()
        self._canvas = Canvas.around(None, self._rendering, field_nm=field_nm)
        self._height = math.ceil(self._canvas.shape[0] / STRIPES)
        self._counts = np.zeros(math.ceil(self._canvas.shape[0] / self._height), np.int64)
        self._depths = np.zeros(2**16, np.int64)
        self._waiting: list[Rows] = []

    def add(self, molecules: EmitterSet) -> None:
        """Add molecules.

        Raises:
            OSError: if they cannot be written.
        """
        xyz = molecules.xyz.float()
        sigma = torch.full_like(xyz, torch.nan)
        if molecules.xyz_sigma is not None:
            sigma = molecules.xyz_sigma.float()
        self._depths += np.bincount(_keys(xyz[:, 2].numpy()) >> HALF, minlength=2**16)
        self._waiting.append(torch.cat([xyz, sigma], 1).numpy())
        if sum(map(len, self._waiting)) >= WAITING:
            self._share_out()

    def layout(self) -> Layout:
        """The picture of all molecules that were added.

        Raises:
            OSError: if they cannot be written or read.
        """
        self._share_out()
        files = tuple(self._file(stripe) for stripe in range(len(self._counts)))
        reach = math.ceil(CUT * self._rendering.max_sigma_nm / self._canvas.pixel_nm)
        return _Striped(
            canvas=self._canvas,
            colouring=colouring_by_depth(self._percentiles()),
            rendering=self._rendering,
            files=files,
            counts=tuple(self._counts.tolist()),
            height=self._height,
            margin=math.ceil((reach + 1) / self._height),
        )

    def _file(self, stripe: int) -> Path:
        return self._folder / f"{stripe:03d}.rows"

    def _share_out(self) -> None:
        if not self._waiting:
            return
        rows = np.concatenate(self._waiting)
        self._waiting.clear()
        # as `Spots` computes the pixel, so that no molecule is on the wrong side of an edge
        y = (rows[:, 1].astype(np.float64) - self._canvas.corner_nm[1]) / self._canvas.pixel_nm
        stripe = (np.floor(y / self._height)).clip(0, len(self._counts) - 1).astype(np.int64)
        order = np.argsort(stripe, kind="stable")
        counts = np.bincount(stripe, minlength=len(self._counts))
        ends = np.cumsum([0, *counts]).tolist()
        for number, (start, stop) in enumerate(pairwise(ends)):
            if start < stop:
                with self._file(number).open("ab") as file:
                    file.write(rows[order[start:stop]].tobytes())
        self._counts += counts

    def _percentiles(self) -> tuple[float, float] | None:
        """Percentiles of z as NumPy computes them, from counts of the upper and the lower halves
        of the numbers."""
        n = int(self._depths.sum())
        if not n:
            return None
        at = [share * (n - 1) for share in PERCENTILES]
        ranks = {whole(position) for position in at for whole in (math.floor, math.ceil)}
        below = np.cumsum(self._depths)
        upper = {rank: int(np.searchsorted(below, rank, side="right")) for rank in ranks}
        lower = {half: np.zeros(2**16, np.int64) for half in upper.values()}
        for number, count in enumerate(self._counts):
            if count:
                keys = _keys(_read(self._file(number))[:, 2])
                for half, counts in lower.items():
                    inside = keys[keys >> HALF == half] & np.uint32(0xFFFF)
                    counts += np.bincount(inside, minlength=2**16)
        values = {}
        for rank, half in upper.items():
            before = int(below[half - 1]) if half else 0
            digits = int(np.searchsorted(np.cumsum(lower[half]), rank - before, side="right"))
            values[rank] = _number(half << 16 | digits)
        low, high = (
            float(np.quantile([values[math.floor(p)], values[math.ceil(p)]], p - math.floor(p)))
            for p in at
        )
        return low, high


@final
@dataclass(frozen=True, kw_only=True)
class _Striped(Layout):
    """Molecules in files, each of some rows of the canvas."""

    files: tuple[Path, ...]
    counts: tuple[int, ...]
    """molecules in each"""
    height: int
    """rows of a file"""
    margin: int
    """files on either side whose molecules reach a row"""

    def tiles(self) -> Iterator[Tile]:
        for stripes in self._together():
            some = range(
                max(0, stripes.start - self.margin),
                min(len(self.files), stripes.stop + self.margin),
            )
            bottom = min(stripes.stop * self.height, self.canvas.shape[0])
            own = range(stripes.start * self.height, bottom)
            rows = [self._reaching(own, stripe) for stripe in some]
            found = torch.from_numpy(np.concatenate(rows))
            picture = Picture(
                emitters=EmitterSet(
                    frame=torch.zeros(len(found), dtype=torch.int64),
                    xyz=found[:, :3],
                    photons=torch.ones(len(found)),
                    xyz_sigma=found[:, 3:],
                ),
                canvas=self.canvas,
                colouring=self.colouring,
                rendering=self.rendering,
            )
            yield from picture.tiles(own)

    def _reaching(self, rows: range, stripe: int) -> Rows:
        """Molecules of a stripe, but for most that reach none of some rows of the canvas."""
        if not self.counts[stripe]:
            return np.zeros((0, 6), np.float32)
        found = _read(self.files[stripe])
        low, high = self.rendering.min_sigma_nm, self.rendering.max_sigma_nm
        widest = np.nan_to_num(found[:, 3:5].max(1), nan=high).clip(low, high)
        y = (found[:, 1] - self.canvas.corner_nm[1]) / self.canvas.pixel_nm
        reach = CUT * widest / self.canvas.pixel_nm + 2
        return found[(y >= rows.start - reach) & (y < rows.stop + reach)]

    def _together(self) -> Iterator[range]:
        """Stripes that are drawn together."""
        start = 0
        for stop in range(1, len(self.counts) + 1):
            full = sum(self.counts[start : stop + 1]) > AT_ONCE
            if full or stop == len(self.counts):
                yield range(start, stop)
                start = stop


def _read(file: Path) -> Rows:
    return np.fromfile(file, np.float32).reshape(-1, 6)


def _keys(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Whole numbers in the order of the values."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def _number(key: int) -> float:
    """The inverse of `_keys`."""
    bits = key ^ 2**31 if key & 2**31 else key ^ (2**32 - 1)
    return float(np.array(bits, np.uint32).view(np.float32))
