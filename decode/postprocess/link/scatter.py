"""Scatter: how often a molecule is seen again after some frames, and how far from where it was."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np

from decode.postprocess.link.pairs import Pairs, pairs_within
from decode.postprocess.link.sightings import Booleans, Floats, Integers, Sightings

__all__ = ["Depths", "Scatter", "scatter_of"]

LAGS = 32
"""most frames after which a molecule is looked for again"""
REACH = 10.0
"""standard deviations of a difference up to which pairs are counted, so that those of unrelated
molecules show"""
TYPICAL_NM = 20.0
"""standard deviation of localizations without one, to start from"""
LEAST_NM = 0.5
"""of any difference"""
MOST = 100_000
"""rows whose pairs are counted"""
ROUNDS = 80
LATER = 8
"""times `LAGS` after which a molecule is taken for another one: such pairs show how unrelated
molecules lie"""
SURE = 8.0
"""standard deviations by which molecules must be seen to return; on simulated filaments where none
returns there were up to 6.7, as the density of neighbours is told from others, and 14 to 30 where a
fifth returns"""
OFF = 0.02
"""share of the molecules on in the next frame that stay on so long that hardly one does"""
EDGES = np.array([0.0, 0.125, 0.25, 0.5, 1.0])
"""of the parts of the reach in which unrelated pairs are counted"""


@final
@dataclass(frozen=True, kw_only=True)
class Depths:
    """Distribution of z."""

    edges: Floats
    density: Floats
    """per nm, between the edges"""

    @classmethod
    def of(cls, z: Floats) -> Depths:
        """Of some molecules, in bins of a quarter of the standard deviation or wider."""
        if not len(z) or np.ptp(z) == 0:
            return cls(edges=np.array([-1.0, 1.0]), density=np.array([0.5]))
        n = int(np.clip(math.ceil(4 * np.ptp(z) / np.std(z)), 4, 32))
        count, edges = np.histogram(z, n)
        return cls(edges=edges, density=(count + 1) / (count + 1).sum() / np.diff(edges))

    def __call__(self, z: Floats, axial: Booleans) -> Floats:
        """(n,) density per nm; 1 where z is not known."""
        bins = np.clip(np.searchsorted(self.edges, z) - 1, 0, len(self.density) - 1)
        values: Floats = np.where(axial, self.density[bins], 1.0)
        return values


@final
@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Pairs that show one molecule, told from those that do not by their differences."""

    same: Floats
    """(lags,) expected number of pairs that show one molecule, after 1, 2, ... frames"""
    rows: Floats
    """(lags,) localizations that have such a frame"""
    jitter: tuple[float, float]
    """standard deviation of a localization along x or y, and along z, nm, beyond the stated one"""
    crowding: float
    """density of unrelated molecules near a molecule, over that within the reach: above 1 on thin
    structures"""
    reach_nm: float
    surplus: Floats
    """(lags,) the same number as `same`, without bias where it is small: it may be negative"""
    surplus_sigma: Floats
    """(lags,) its standard deviation by the chance pairs"""
    chance_sigma: Floats
    """(lags,) the part of it that all lags share: how dense unrelated molecules are is not known
    better"""

    @property
    def returns(self) -> bool:
        """Whether molecules are seen again after dark frames, by `SURE` standard deviations.

        In dense structures neighbours pass for molecules that return.  Seen are more than stay on,
        where on-times are those of a constant rate, or else some after so long that hardly a
        molecule stays on.
        """
        lags = np.arange(1, len(self.same) + 1)
        on = (self.same[0] / max(self.rows[0], 1.0)) ** lags
        return self._exceed(self.rows * on, lags > 1) or self._exceed(0 * on, on < OFF * on[0])

    def _exceed(self, expected: Floats, at: Booleans) -> bool:
        """Whether the surplus up to any of these lags exceeds an expected number of pairs."""
        more = np.cumsum((self.surplus - expected)[at])
        variance = np.cumsum((self.surplus_sigma**2 + expected)[at])
        variance += np.cumsum(self.chance_sigma[at]) ** 2
        return bool((more > SURE * np.sqrt(variance)).any())


def scatter_of(rows: Sightings, depths: Depths, *, n_frames: int, seed: int) -> Scatter:
    """Estimate them by expectation and maximization.

    The density of pairs at a difference d after a lag is n(lag) N(d; 0, C1 + C2 + 2 j^2) + u(d): a
    part that shows one molecule, as wide as both are stated to be uncertain and by a jitter j, and
    a part that does not, whose shape is that of pairs many frames apart.

    Args:
        rows: localizations, each by itself.
        depths: distribution of z.
        n_frames: of the movie.
        seed: of the choice of rows where there are many.
    """
    chosen = np.flatnonzero(rows.usable)
    if len(chosen) > MOST:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, MOST, replace=False))
    some = rows[chosen]
    sigma = rows.lateral[rows.usable]
    typical = float(np.median(sigma)) if len(sigma) and sigma.any() else TYPICAL_NM
    reach = REACH * math.sqrt(2) * typical
    n_lags = int(np.clip(n_frames // (2 * LATER), 1, LAGS))
    pairs = pairs_within(some, rows, reach_nm=reach, lags=(1, n_lags))
    unrelated = _Unrelated.of(some, rows, reach_nm=reach, n_lags=n_lags, n_frames=n_frames)
    told = _told_apart(some, rows, pairs, unrelated=unrelated, depths=depths, n_lags=n_lags)
    lags = np.arange(1, n_lags + 1)
    return Scatter(
        same=told.same,
        rows=(some.first[:, None] + lags < n_frames).sum(0).astype(float),
        jitter=told.jitter,
        crowding=unrelated.crowding,
        reach_nm=reach,
        surplus=told.surplus,
        surplus_sigma=told.surplus_sigma,
        chance_sigma=told.by_chance * unrelated.error,
    )


@final
@dataclass(frozen=True, kw_only=True)
class _Unrelated:
    """Density of pairs of different molecules at differences within the reach, per nm^2."""

    density: Floats
    """between `EDGES` times the reach, of the larger of the differences along x and y"""
    reach_nm: float
    error: float
    """relative standard deviation of the density at the smallest differences"""

    @classmethod
    def of(
        cls, some: Sightings, rows: Sightings, *, reach_nm: float, n_lags: int, n_frames: int
    ) -> _Unrelated:
        """From pairs many frames apart, where the movie is long enough; else even."""
        start = LATER * n_lags
        area = (2 * reach_nm * EDGES) ** 2
        ring = np.diff(area)
        count = np.zeros(len(ring))
        if n_frames >= 2 * start:
            pairs = pairs_within(
                some, rows, reach_nm=reach_nm, lags=(start, start + max(1, n_lags // 2))
            )
            apart = np.abs(rows.place[pairs.second] - some.place[pairs.first])[:, :2].max(1)
            count = np.histogram(apart, EDGES * reach_nm)[0].astype(float)
        error = 1 / math.sqrt(max(count[0], 1.0))
        # a few pairs that are even keep a part without pairs from having none
        count += 20 * ring / area[-1]
        return cls(density=count / count.sum() / ring, reach_nm=reach_nm, error=error)

    def __call__(self, difference: Floats) -> Floats:
        """(m,) per nm^2, of differences (m, 3)."""
        apart = np.abs(difference[:, :2]).max(1) / self.reach_nm
        bins = np.clip(np.searchsorted(EDGES, apart) - 1, 0, len(self.density) - 1)
        values: Floats = self.density[bins]
        return values

    @property
    def crowding(self) -> float:
        inner = self.density[:2] @ np.diff(EDGES**2)[:2] / EDGES[2] ** 2
        return float(inner * (2 * self.reach_nm) ** 2)


class _Told(NamedTuple):
    """Pairs of one molecule by lag, and the jitter, as in `Scatter`."""

    same: Floats
    jitter: tuple[float, float]
    surplus: Floats
    surplus_sigma: Floats
    by_chance: Floats
    """number of pairs over which chance is averaged, in molecules"""


def _told_apart(
    some: Sightings,
    rows: Sightings,
    pairs: Pairs,
    *,
    unrelated: _Unrelated,
    depths: Depths,
    n_lags: int,
) -> _Told:
    """Pairs of one molecule by lag, and the jitter.

    The surplus is the score of the number of pairs of one molecule where there is none (Rao, Proc.
    Camb. Phil. Soc. 44, 50, 1948): the sum over pairs of the ratio of both densities, less 1, in
    units of what a pair of one molecule adds to it.
    """
    difference = rows.place[pairs.second] - some.place[pairs.first]
    lag = pairs.lag - 1
    # polished rows share one position: they are one molecule, and say nothing of its scatter
    shared = (difference == 0).all(1)
    same = np.bincount(lag[shared], minlength=n_lags).astype(float)
    pairs, difference, lag = pairs[~shared], difference[~shared], lag[~shared]
    axial = some.axial[pairs.first] & rows.axial[pairs.second]
    stated = np.diagonal(
        some.covariance[pairs.first] + rows.covariance[pairs.second], axis1=1, axis2=2
    )
    by_chance = unrelated(difference) * depths(rows.place[pairs.second, 2], axial)
    square = difference**2
    known = np.stack([np.ones_like(axial), np.ones_like(axial), axial], 1)
    start = (unrelated.reach_nm / REACH) ** 2
    width = np.array([start, start, 4 * start]) * (0.1 if stated.any() else 1.0)
    share = np.full(n_lags, 0.5)
    count = np.bincount(lag, minlength=n_lags)
    own, density = np.zeros((2, len(lag)))
    for _ in range(ROUNDS if len(lag) else 0):
        variance = np.maximum(stated + width, LEAST_NM**2)
        exponent = -0.5 * (square / variance + np.log(2 * np.pi * variance))
        density = np.exp(np.where(known, exponent, 0.0).sum(1))
        one, other = share[lag] * density, (1 - share[lag]) * by_chance
        own = one / (one + other)
        share = np.clip(_per(lag, own, n_lags) / np.maximum(count, 1), 1e-6, 1 - 1e-6)
        before, width = width, _wider(own, square, stated, known, variance)
        if np.abs(np.sqrt(width) - np.sqrt(before)).max() < 1e-3:
            break
    score = density / by_chance - 1
    of_one = max(float((own * score).sum() / max(own.sum(), 1e-9)), 1.0)
    lateral, _, depth = np.sqrt(width / 2).tolist()
    return _Told(
        same=same + _per(lag, own, n_lags),
        jitter=(lateral, depth if bool(axial.any()) else 0.0),
        surplus=same + _per(lag, score, n_lags) / of_one,
        surplus_sigma=np.sqrt(_per(lag, (1 - own) * score**2, n_lags)) / of_one,
        by_chance=_per(lag, 1 - own, n_lags) / of_one,
    )


def _wider(
    own: Floats, square: Floats, stated: Floats, known: Booleans, variance: Floats
) -> Floats:
    """(3,) variance of differences beyond the stated one, by a step of Fisher scoring; x and y have
    the same."""
    weight = own[:, None] * known / variance**2
    excess, total = (weight * (square - stated)).sum(0), weight.sum(0)
    excess[:2], total[:2] = excess[:2].sum(), total[:2].sum()
    values: Floats = np.maximum(excess / np.maximum(total, 1e-300), 0.0)
    return values


def _per(lag: Integers, values: Floats, n: int) -> Floats:
    return np.bincount(lag, values, minlength=n).astype(np.float64)
