"""Spectrum: how much of a picture's structure is in both halves of a movie, by frequency."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import numpy.typing as npt
from scipy import fft

from decode.errors import Undetermined

__all__ = ["Localizations", "Spectrum", "Tiling", "blocks_of", "spectra_of", "spectrum_of"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

TAPER = 0.25
"""share of a tile's side over which its border fades (Tukey window)"""
MOST_TILES, MOST_TILES_3D = 36, 16
"""of more, those with the most localizations are used"""
FEWEST = 10
"""localizations of a tile that is used"""
FEWEST_RINGS = 6


@final
@dataclass(frozen=True, kw_only=True)
class Localizations:
    """Places of molecules, and the block of frames in which each was seen."""

    place: Floats
    """(n, d) nm"""
    block: Integers
    """(n,) from 0"""
    n_blocks: int

    def __len__(self) -> int:
        return len(self.block)


def blocks_of(frame: Integers, n_blocks: int) -> Integers:
    """(n,) number of the block of successive frames, each with about equally many localizations.

    >>> blocks_of(np.array([0, 0, 1, 2, 2, 9]), 2).tolist()
    [0, 0, 0, 1, 1, 1]
    """
    before = np.searchsorted(np.sort(frame), frame, side="left")
    return np.minimum(before * n_blocks // max(len(frame), 1), n_blocks - 1)


@final
@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Tiles of a field, all of one size."""

    origin: Floats
    """(d,) nm, the corner of the first tile"""
    side: Floats
    """(d,) nm"""
    number: tuple[int, ...]
    """of tiles along each axis"""
    pixel: Floats
    """(d,) nm"""

    @staticmethod
    def over(place: Floats, *, pixel: Floats, longest: Floats, fewest: int) -> Tiling:
        """Tiles over all places.

        Args:
            place: (n, d) nm.
            pixel: (d,) nm.
            longest: (d,) nm, longest side of a tile.
            fewest: tiles along x and along y.
        """
        low, high = place.min(0), place.max(0)
        extent = np.maximum(high - low, 4 * pixel) * (1 + 1e-9)
        number = np.ceil(extent / longest).astype(int)
        number[:2] = np.maximum(number[:2], fewest)
        return Tiling(origin=low, side=extent / number, number=tuple(number.tolist()), pixel=pixel)

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels of a tile along each axis, in which Fourier transforms are fast."""
        need = np.ceil(self.side / self.pixel).astype(int)
        return tuple(fft.next_fast_len(int(n), real=True) for n in need)

    def tiles(self, place: Floats) -> Iterator[Integers]:
        """The rows in each tile, most rows first."""
        column = np.floor((place - self.origin) / self.side).astype(int)
        column = np.clip(column, 0, np.array(self.number) - 1)
        flat = np.ravel_multi_index(tuple(column.T), self.number)
        order = np.argsort(flat, kind="stable")
        _, starts = np.unique(flat[order], return_index=True)
        parts = sorted(np.split(order, starts[1:]), key=len, reverse=True)
        most = MOST_TILES if len(self.number) == 2 else MOST_TILES_3D
        yield from (rows for rows in parts[:most] if len(rows) >= FEWEST)

    def within(self, place: Floats) -> tuple[Floats, Floats]:
        """(n, d) places from the corner of their tile, and (n,) weights of the Tukey window."""
        inside = (place - self.origin) % self.side
        return inside, _tukey(inside, self.side).prod(1)

    def window(self) -> Floats:
        """The Tukey window at the middles of the pixels of a tile."""
        window = np.ones(())
        for n, p, side in zip(self.shape, self.pixel, self.side, strict=True):
            place = (np.arange(n) + 0.5) * p
            window = np.multiply.outer(window, _tukey(place, side) * (place < side))
        return window

    def frequencies(self) -> list[Floats]:
        """Along each axis, 1/nm, as an array that broadcasts to the transform of a tile."""
        axes = [fft.fftfreq(n, p) for n, p in zip(self.shape, self.pixel, strict=True)]
        axes[-1] = fft.rfftfreq(self.shape[-1], self.pixel[-1])
        return [axis.reshape([-1 if i == a else 1 for i in range(len(axes))])
                for a, axis in enumerate(axes)]  # fmt: skip


def _tukey(place: Floats, side: Floats | float) -> Floats:
    edge = np.clip(np.minimum(place, side - place) / (TAPER / 2 * side), 0, 1)
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * edge))


@final
@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Power of a picture by frequency and tile, of pairs of localizations in different blocks of
    frames and of pairs in one block.

    The first shows structure, the second also what is seen more than once while it is on.
    """

    frequency: Floats
    """(r,) 1/nm, of rings or shells"""
    waves: Floats
    """(r,) number of waves in each"""
    between: Floats
    """(tiles, r) pairs of different blocks, without those that follow each other"""
    within: Floats
    """(tiles, r) pairs of one block, each localization with itself left out"""
    own: Floats
    """(tiles,) localizations, weighted by the square of the window"""
    share_between: float
    share_within: float
    """share of all pairs of localizations that are such pairs"""

    @property
    def n_tiles(self) -> int:
        return len(self.own)

    def structure(self, weight: Floats | None = None) -> Floats:
        """(r,) power of the structure per wave: that of all pairs.

        Args:
            weight: (tiles,) of each tile; None: 1.
        """
        return self._sum(self.between, weight) / self.share_between / self.waves

    def noise(self, weight: Floats | None = None) -> Floats:
        """(r,) power without structure per wave: of each localization with itself, and with others
        of the same blink."""
        own = self._sum(self.own[:, None], weight)
        within = self._sum(self.within, weight) / self.waves
        return own + within - self.share_within * self.structure(weight)

    def without_repeats(self, repeats: float, sigma_nm: float) -> Spectrum:
        """The spectrum without so many localizations of the same molecule in other blocks.

        Args:
            repeats: of each localization.
            sigma_nm: standard deviation of a localization.
        """
        left = np.exp(-4 * (np.pi * sigma_nm * self.frequency) ** 2)
        power = repeats * left * self.waves * self.own[:, None]
        # those in the same block remain as the noise of blinks
        between = self.between - power * self.share_between
        return replace(self, between=between, within=self.within - power * self.share_within)

    def _sum(self, values: Floats, weight: Floats | None) -> Floats:
        return values.sum(0) if weight is None else weight @ values


def spectrum_of(seen: Localizations, tiling: Tiling) -> Spectrum:
    """The spectrum of localizations, in rings (2D) or shells (3D).

    Localizations are counted in pixels; what pixels blur is undone by their sinc.

    Args:
        seen: d axes.
        tiling: of d axes.

    Raises:
        Undetermined: if no tile has ten localizations, or all lie on a line.
    """
    (spectrum,) = spectra_of(seen, tiling, [""])
    return spectrum


def spectra_of(seen: Localizations, tiling: Tiling, sectors: Sequence[str]) -> list[Spectrum]:
    """As `spectrum_of`, of waves within 30 degrees of the xy plane ("lateral"), of z ("axial"), or
    of all ("")."""
    rings = [_rings(tiling, sector) for sector in sectors]
    if min(len(rung.frequency) for rung in rings) < FEWEST_RINGS:
        raise Undetermined("the localizations lie on one place or line")
    between: list[list[Floats]] = [[] for _ in sectors]
    within: list[list[Floats]] = [[] for _ in sectors]
    own = []
    inside, weight = tiling.within(seen.place)
    for rows in tiling.tiles(seen.place):
        apart, same = _powers(seen, rows, inside, weight, tiling)
        alone = float((weight[rows] ** 2).sum())
        own.append(alone)
        for rung, some, others in zip(rings, between, within, strict=True):
            some.append(rung.sums(apart))
            others.append(rung.sums(same - alone))
    if not own:
        raise Undetermined(f"no tile of the field has {FEWEST} localizations")
    counts = np.bincount(seen.block, minlength=seen.n_blocks) / len(seen)
    same_share = float((counts**2).sum())
    next_share = 2 * float((counts[1:] * counts[:-1]).sum())
    return [
        Spectrum(
            frequency=rung.frequency,
            waves=rung.waves,
            between=np.array(some),
            within=np.array(others),
            own=np.array(own),
            share_between=1 - same_share - next_share,
            share_within=same_share,
        )
        for rung, some, others in zip(rings, between, within, strict=True)
    ]


@final
@dataclass(frozen=True, kw_only=True)
class _Rings:
    """Rings or shells of waves."""

    ring: Integers
    """of each wave; the last one holds those of no ring"""
    times: Floats
    """how often each wave counts"""
    gain: Floats
    """that undoes the pixels"""
    step: float
    """distance of rings, 1/nm"""

    @property
    def frequency(self) -> Floats:
        return np.asarray(np.arange(1, int(self.ring.max())) * self.step, dtype=np.float64)

    @property
    def waves(self) -> Floats:
        return np.maximum(np.bincount(self.ring, self.times)[1:-1], 1e-9)

    def sums(self, power: Floats) -> Floats:
        """Over each ring, without the mean and the last."""
        summed = np.bincount(self.ring, power * self.gain * self.times)
        return np.asarray(summed[1:-1], dtype=np.float64)


def _rings(tiling: Tiling, sector: str) -> _Rings:
    axes = tiling.frequencies()
    size = np.sqrt(sum(axis**2 for axis in axes))
    # rings are as wide as the coarsest axis resolves, and end where the first axis does
    axial = sector == "axial"
    relevant = [2] if axial else [0, 1]
    lengths = [tiling.shape[a] * tiling.pixel[a] for a in relevant]
    step = 1 / min(lengths)
    end = math.floor(min(0.5 / tiling.pixel[a] for a in relevant) / step)
    ring = np.minimum(np.rint(size / step).astype(np.int64), end)
    if sector:
        steep = np.abs(axes[2]) > size * (math.cos(math.pi / 6) if axial else 0.5)
        ring = np.where(steep == axial, ring, end)
    times = np.full(size.shape, 2.0)
    times[..., 0] = 1.0
    if tiling.shape[-1] % 2 == 0:
        times[..., -1] = 1.0
    blurred = [np.sinc(axis * p) ** 2 for axis, p in zip(axes, tiling.pixel, strict=True)]
    gain = 1 / np.prod(np.broadcast_arrays(*blurred), axis=0)
    return _Rings(ring=ring.ravel(), times=times.ravel(), gain=gain.ravel(), step=step)


def _powers(
    seen: Localizations, rows: Integers, inside: Floats, weight: Floats, tiling: Tiling
) -> tuple[Floats, Floats]:
    """Power of all pairs in blocks that are apart, and of all in one block, by wave."""
    shape = tiling.shape
    pixel = np.floor(inside[rows] / tiling.pixel).astype(int)
    flat = np.ravel_multi_index(tuple(np.minimum(pixel, np.array(shape) - 1).T), shape)
    number, block = int(np.prod(shape)), seen.block[rows]
    window = tiling.window()
    total: npt.NDArray[np.complex128] | None = None
    last: npt.NDArray[np.complex128] | None = None
    same = next_to = 0.0
    for b in range(seen.n_blocks):
        own = block == b
        image = np.bincount(flat[own], weight[rows][own], number).reshape(shape)
        # an even density is no structure, though the window makes it one
        wave = fft.rfftn(image - window * (image.sum() / window.sum()))
        same = same + (wave.real**2 + wave.imag**2)
        if last is not None:
            next_to = next_to + 2 * (wave.real * last.real + wave.imag * last.imag)
        total = wave if total is None else total + wave
        last = wave
    assert total is not None
    whole = total.real**2 + total.imag**2
    return np.ravel(whole - same - next_to), np.ravel(same)
