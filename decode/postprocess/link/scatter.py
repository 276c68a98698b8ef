"""Scatter: how often a molecule is seen again after some frames, and how far from where it was."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, final

import numpy as np

from decode.postprocess.link.pairs import Pairs, pairs_within
from decode.postprocess.link.sightings import Booleans, Floats, Integers, Sightings

__all__ = ["Depths", "Scatter", "Unrelated", "scatter_of"]

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
"""of the rings of `REACH` in which unrelated pairs are counted"""
CLASSES, FEWEST_OF_CLASS = 6, 500
"""most classes of the widths of such pairs, and fewest pairs of one"""
AXIAL, DEPTHS = 2.5, 20
"""width along z over that along x and y, as for an astigmatic PSF; parts of the range of z within
which two molecules share a depth"""
FEW = 20.0
"""pairs from anywhere that are added to those that are counted"""


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
    unrelated: Unrelated
    reach_nm: float
    surplus: Floats
    """(lags,) the same number without bias where it is small, so that it may be negative; of rows
    that a fit has joined already, only pairs with a dark frame between count"""
    surplus_sigma: Floats
    """(lags,) its standard deviation by the chance pairs"""
    chance_sigma: Floats
    """(lags,) the part of it that all lags share: how dense unrelated molecules are is not known
    better"""
    on: Floats
    """(lags,) share of the molecules that stay on so long, where on-times are those of a constant
    rate; 0 where a fit has joined the rows of those that do"""

    @property
    def returns(self) -> bool:
        """Whether molecules are seen again after dark frames, by `SURE` standard deviations.

        In dense structures neighbours pass for molecules that return.  Seen are more than stay on,
        or else some after so long that hardly a molecule stays on.
        """
        lags = np.arange(1, len(self.same) + 1)
        off = self.on <= OFF * self.on[0]
        return self._exceed(self.rows * self.on, lags > 1) or self._exceed(0 * self.on, off)

    def _exceed(self, expected: Floats, at: Booleans) -> bool:
        """Whether the surplus up to any of these lags exceeds an expected number of pairs."""
        more = np.cumsum((self.surplus - expected)[at])
        variance = np.cumsum((self.surplus_sigma**2 + expected)[at])
        variance += np.cumsum(self.chance_sigma[at]) ** 2
        return bool((more > SURE * np.sqrt(variance)).any())


def scatter_of(rows: Sightings, sighting: Integers, *, n_frames: int, seed: int) -> Scatter:
    """Estimate them by expectation and maximization.

    The density of pairs at a difference d after a lag is n(lag) N(d; 0, C1 + C2 + 2 j^2) + u(d): a
    part that shows one molecule, as wide as both are stated to be uncertain and by a jitter j, and
    a part that does not, whose shape is that of pairs many frames apart that are as uncertain.  Of
    such pairs the ratio of both densities has the mean 1, so that neighbours alone pass for no
    molecule.

    Args:
        rows: localizations, each by itself.
        sighting: (rows,) the number of each one's sighting, as of `Sightings.grouped`.
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
    unrelated = Unrelated.of(some, rows, reach_nm=reach, n_lags=n_lags, n_frames=n_frames)
    kinds = _kinds(rows, sighting, pairs, chosen)
    told = _told_apart(some, rows, pairs, kinds, unrelated=unrelated, n_lags=n_lags)
    lags = np.arange(1, n_lags + 1)
    n_rows = (some.first[:, None] + lags < n_frames).sum(0).astype(float)
    on = (told.same[0] / max(n_rows[0], 1.0)) ** lags
    return Scatter(
        same=told.same,
        rows=n_rows,
        jitter=told.jitter,
        unrelated=told.unrelated,
        reach_nm=reach,
        surplus=told.surplus,
        surplus_sigma=told.surplus_sigma,
        chance_sigma=told.chance_sigma,
        on=0 * on if kinds.joined else on,
    )


@final
@dataclass(frozen=True, kw_only=True)
class _Differences:
    """Of pairs of localizations."""

    apart: Floats
    """(m, 3) nm, absolute"""
    stated: Floats
    """(m, 3) their variances as stated, nm^2"""
    axial: Booleans
    """(m,) whether z is known"""

    @classmethod
    def of(cls, some: Sightings, rows: Sightings, pairs: Pairs) -> _Differences:
        first, second = pairs.first, pairs.second
        covariance = some.covariance[first] + rows.covariance[second]
        return cls(
            apart=np.abs(rows.place[second] - some.place[first]),
            stated=np.diagonal(covariance, axis1=1, axis2=2),
            axial=some.axial[first] & rows.axial[second],
        )

    def __len__(self) -> int:
        return len(self.apart)

    @property
    def width(self) -> Floats:
        """(m,) standard deviations along x or y, nm."""
        values: Floats = np.sqrt(self.stated[:, :2].mean(1))
        return values

    @property
    def known(self) -> Booleans:
        """(m, 3) which axes count."""
        both = np.ones_like(self.axial)
        return np.stack([both, both, self.axial], 1)

    def variance(self, extra: Floats) -> Floats:
        """(m, 3) nm^2, with (3,) what is not stated."""
        values: Floats = np.maximum(self.stated + extra, LEAST_NM**2)
        return values

    def density(self, extra: Floats) -> Floats:
        """(m,) of such a difference if both show one molecule, per nm^3, or per nm^2 where z is not
        known."""
        variance = self.variance(extra)
        exponent = -0.5 * (self.apart**2 / variance + np.log(2 * np.pi * variance))
        values: Floats = np.exp(np.where(self.known, exponent, 0.0).sum(1))
        return values


class _Rings(NamedTuple):
    """Differences of pairs of different molecules that are about as uncertain."""

    lateral_nm: Floats
    """edges of the larger of the differences along x and y, from 0"""
    axial_nm: Floats
    """edges of the difference along z, from 0"""
    lateral: Floats
    """(rings,) density per nm^2"""
    axial: Floats
    """(rings, bins) density per nm, as on structures neighbours lie at like depths"""

    @classmethod
    def of(cls, count: Floats, flat: Floats, lateral_nm: Floats, axial_nm: Floats) -> _Rings:
        """Of numbers of pairs (rings, bins), and (rings,) of those whose z is not known, too."""
        share = count / count.sum(1, keepdims=True)
        return cls(
            lateral_nm=lateral_nm,
            axial_nm=axial_nm,
            lateral=flat / flat.sum() / np.diff((2 * lateral_nm) ** 2),
            axial=share / (2 * np.diff(axial_nm)),
        )

    def __call__(self, apart: Floats, axial: Booleans) -> Floats:
        """(m,) per nm^3, or per nm^2 where z is not known, of distances (m, 3)."""
        ring = _bins(apart[:, :2].max(1), self.lateral_nm)
        depth = self.axial[ring, _bins(apart[:, 2], self.axial_nm)]
        values: Floats = self.lateral[ring] * np.where(axial, depth, 1.0)
        return values


@final
@dataclass(frozen=True, kw_only=True)
class Unrelated:
    """Density of pairs of different molecules at differences within the reach.

    The less uncertain two localizations are, the thinner a structure looks by their difference:
    pairs are classed by their width, the standard deviation of a difference along x or y.
    """

    classes: tuple[_Rings, ...]
    width_nm: Floats
    """(classes - 1,) limits of the classes"""
    reach_nm: float
    spread: float
    """density per nm at which two molecules from anywhere share a depth"""
    pairs: _Differences
    """pairs that do not show one molecule"""

    @classmethod
    def of(
        cls, some: Sightings, rows: Sightings, *, reach_nm: float, n_lags: int, n_frames: int
    ) -> Unrelated:
        """From pairs many frames apart, where the movie is long enough; else even."""
        start = LATER * n_lags
        lags = (start, start + max(1, n_lags // 2))
        pairs = pairs_within(some, rows, reach_nm=reach_nm, lags=lags)
        if n_frames < 2 * start:
            pairs = pairs[:0]
        found = _Differences.of(some, rows, pairs)
        apart, width, axial = found.apart, found.width, found.axial
        n_classes = int(np.clip(len(pairs) // FEWEST_OF_CLASS, 1, CLASSES))
        limits = np.zeros(0)
        if n_classes > 1:
            limits = np.quantile(width, np.arange(1, n_classes) / n_classes)
        anywhere = _depth_differences(rows)
        far = max(float(anywhere.max(initial=0.0)), 1.0)
        label = np.searchsorted(limits, width)
        classes = []
        for k in range(n_classes):
            own, both = apart[label == k], axial[label == k]
            lateral_nm = _edges(width[label == k] * REACH, reach_nm)
            # along z they are wider, by as much as is typical
            axial_nm = _edges(np.array([AXIAL * lateral_nm[-2]]), far)
            share = np.histogram(anywhere, axial_nm)[0] + np.diff(axial_nm) / far
            count = np.histogram2d(own[both, :2].max(1), own[both, 2], (lateral_nm, axial_nm))[0]
            flat = np.histogram(own[:, :2].max(1), lateral_nm)[0].astype(float)
            # a few pairs that are even keep a part without pairs from having none
            count += FEW * share / share.sum()
            flat += FEW * np.diff(lateral_nm**2) / reach_nm**2
            classes.append(_Rings.of(count, flat, lateral_nm, axial_nm))
        near = np.count_nonzero(anywhere < far / DEPTHS) + 1
        return cls(
            classes=tuple(classes),
            width_nm=limits,
            reach_nm=reach_nm,
            spread=near / (len(anywhere) + 1) * DEPTHS / (2 * far),
            pairs=found,
        )

    def __call__(self, found: _Differences) -> Floats:
        """(m,) per nm^3, or per nm^2 where z is not known."""
        values = np.empty(len(found))
        label = self.classed(found.width)
        for k, rings in enumerate(self.classes):
            values[label == k] = rings(found.apart[label == k], found.axial[label == k])
        return values

    def classed(self, width: Floats) -> Integers:
        """(m,) number of the class of pairs of such widths, nm."""
        return np.searchsorted(self.width_nm, width)

    def bias(self, extra: Floats) -> tuple[Floats, float]:
        """Mean of the ratio of the density of one molecule to this one, which is 1 but for what
        rings and classes are too coarse for.

        Returns:
            (classes,) means, and the relative standard deviation of the mean of all.
        """
        n = len(self.classes)
        if not len(self.pairs):
            return np.ones(n), 1.0
        label, by_chance = self._of_pairs
        ratio = self.pairs.density(extra) / by_chance
        count = np.bincount(label, minlength=n)
        mean = (np.bincount(label, ratio, minlength=n) + FEW) / (count + FEW)
        error = math.sqrt((ratio**2).mean() / len(ratio)) / max(float(ratio.mean()), 1e-9)
        return mean, error

    @cached_property
    def _of_pairs(self) -> tuple[Integers, Floats]:
        """Classes and densities of `pairs`."""
        return self.classed(self.pairs.width), self(self.pairs)

    def scaled(self, by: Floats) -> Unrelated:
        """With the density of each class times a number."""
        classes = zip(self.classes, by, strict=True)
        return replace(self, classes=tuple(c._replace(lateral=c.lateral * k) for c, k in classes))

    def crowding(self, width: Floats, axial: Booleans) -> Floats:
        """(m,) density of unrelated molecules near a molecule, over that within the reach, and
        along z over that of all depths: above 1 on thin structures."""
        lateral, along_z = np.empty((2, len(self.classes)))
        for k, rings in enumerate(self.classes):
            weight = rings.lateral[:2] * np.diff(rings.lateral_nm**2)[:2]
            area = (2 * rings.lateral_nm[2]) ** 2
            lateral[k] = 4 * weight.sum() / area * (2 * self.reach_nm) ** 2
            along_z[k] = weight @ rings.axial[:2, 0] / weight.sum() / self.spread
        label = self.classed(width)
        values: Floats = lateral[label] * np.where(axial, along_z[label], 1.0)
        return values


def _edges(sizes: Floats, last: float) -> Floats:
    """Edges of rings: up to the median of some sizes, and one more up to the last."""
    reach = float(np.median(sizes)) if sizes.any() else last
    return np.append(EDGES * min(reach, last / 1.01), last)


def _bins(values: Floats, edges: Floats) -> Integers:
    found: Integers = np.clip(np.searchsorted(edges, values) - 1, 0, len(edges) - 2)
    return found


def _depth_differences(rows: Sightings) -> Floats:
    """Differences along z of rows from anywhere, as in a shuffled table."""
    z = rows.place[rows.axial & rows.usable, 2]
    step = max(1, len(z) // 7)
    apart = [np.abs(z - np.roll(z, step * k + 1)) for k in range(min(7, len(z)))]
    return np.concatenate([np.zeros(0), *apart])


class _Kinds(NamedTuple):
    """What pairs of rows are."""

    shared: Booleans
    """(m,) rows of one sighting: they show one molecule, and say nothing of its scatter"""
    telling: Booleans
    """(m,) whether the difference says how repeats scatter"""
    joined: bool
    """whether a fit has joined successive rows"""

    @property
    def seen_again(self) -> Booleans:
        """(m,) pairs that say whether molecules return."""
        return self.telling if self.joined else np.ones_like(self.telling)


def _kinds(rows: Sightings, sighting: Integers, pairs: Pairs, chosen: Integers) -> _Kinds:
    """Each pair of sightings tells the scatter once: by the last row of one and the first of the
    other.

    Where a fit has joined successive rows already, those that it left apart are far from each
    other: they tell nothing, and a dark frame must lie between.
    """
    n = int(sighting.max()) + 1 if len(sighting) else 0
    first = np.full(n, np.iinfo(np.int64).max)
    last = np.full(n, -1)
    np.minimum.at(first, sighting, rows.first)
    np.maximum.at(last, sighting, rows.last)
    one, other = chosen[pairs.first], pairs.second
    ends = rows.last[one] == last[sighting[one]]
    starts = rows.first[other] == first[sighting[other]]
    joined = n < len(rows)
    return _Kinds(
        shared=sighting[one] == sighting[other],
        telling=ends & starts & ((pairs.lag > 1) | (not joined)),
        joined=joined,
    )


class _Told(NamedTuple):
    """Pairs of one molecule by lag, and the jitter, as in `Scatter`."""

    same: Floats
    jitter: tuple[float, float]
    unrelated: Unrelated
    surplus: Floats
    surplus_sigma: Floats
    chance_sigma: Floats


def _told_apart(
    some: Sightings,
    rows: Sightings,
    pairs: Pairs,
    kinds: _Kinds,
    *,
    unrelated: Unrelated,
    n_lags: int,
) -> _Told:
    """Pairs of one molecule by lag, and the jitter.

    The surplus is the score of the number of pairs of one molecule where there is none (Rao, Proc.
    Camb. Phil. Soc. 44, 50, 1948): the sum over pairs of the ratio of both densities, less 1, in
    units of what a pair of one molecule adds to it.
    """
    lag = pairs.lag - 1
    same = np.bincount(lag[kinds.shared], minlength=n_lags).astype(float)
    apart = ~kinds.shared
    lag, telling, again = lag[apart], kinds.telling[apart], kinds.seen_again[apart]
    found = _Differences.of(some, rows, pairs[apart])
    label, at_random = unrelated.classed(found.width), unrelated(found)
    start = (unrelated.reach_nm / REACH) ** 2
    extra = np.array([start, start, 4 * start]) * (0.1 if found.stated.any() else 1.0)
    share = np.full(n_lags, 0.5)
    count = np.bincount(lag, minlength=n_lags)
    own, density, by_chance = np.zeros((3, len(lag)))
    bias, error = unrelated.bias(extra)
    for _ in range(ROUNDS if len(lag) else 0):
        density, by_chance = found.density(extra), at_random * bias[label]
        one = share[lag] * density
        own = one / (one + (1 - share[lag]) * by_chance)
        share = np.clip(_per(lag, own, n_lags) / np.maximum(count, 1), 1e-6, 1 - 1e-6)
        before, extra = extra, _wider(own * telling, found, extra)
        bias, error = unrelated.bias(extra)
        if np.abs(np.sqrt(extra) - np.sqrt(before)).max() < 1e-3:
            break
    score = density / np.maximum(by_chance, 1e-300) - 1
    of_one = max(float((own * score).sum() / max(own.sum(), 1e-9)), 1.0)
    lateral, _, depth = np.sqrt(extra / 2).tolist()
    other = again * (1 - own)
    alike = 0.0 if kinds.joined else same
    return _Told(
        same=same + _per(lag, own, n_lags),
        jitter=(lateral, depth if bool(found.axial.any()) else 0.0),
        unrelated=unrelated.scaled(bias),
        surplus=alike + _per(lag, again * score, n_lags) / of_one,
        surplus_sigma=np.sqrt(_per(lag, other * score**2, n_lags)) / of_one,
        chance_sigma=_per(lag, other, n_lags) / of_one * error,
    )


def _wider(own: Floats, found: _Differences, extra: Floats) -> Floats:
    """(3,) variance of differences beyond the stated one, by a step of Fisher scoring; x and y have
    the same.  It is shrunk to 0, as by `FEW` pairs without such excess."""
    weight = own[:, None] * found.known / found.variance(extra) ** 2
    excess, total = (weight * (found.apart**2 - found.stated)).sum(0), weight.sum(0)
    total *= 1 + FEW / max(float(own.sum()), 1e-9)
    excess[:2], total[:2] = excess[:2].sum(), total[:2].sum()
    values: Floats = np.maximum(excess / np.maximum(total, 1e-300), 0.0)
    return values


def _per(lag: Integers, values: Floats, n: int) -> Floats:
    return np.bincount(lag, values, minlength=n).astype(np.float64)
