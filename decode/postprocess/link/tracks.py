"""Tracks: the rows of a table that show one molecule."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import numpy as np
from scipy.ndimage import uniform_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import chi2

from decode.emitters import EmitterSet
from decode.errors import Undetermined
from decode.postprocess.link.assignment import best_links, link_probabilities
from decode.postprocess.link.kinetics import (
    Kinetics,
    kinetics_of_links,
    kinetics_of_pairs,
)
from decode.postprocess.link.pairs import Pairs, log_normal, pairs_within
from decode.postprocess.link.scatter import LAGS, LEAST_NM, Depths, Scatter, Unrelated, scatter_of
from decode.postprocess.link.sightings import (
    Booleans,
    Floats,
    Integers,
    Sightings,
    inverse,
    rows_of,
)

__all__ = ["STEP", "Linking", "linked"]

STEP = "link"
"""entry of a table's metadata that says how its rows were linked"""
GATE = 0.9999
"""share of the differences of one molecule that may be links"""
PRECISE = 0.99
"""share of the molecules that set the reach of the search: few wide ones would widen it for all"""
FEWEST = 10.0
"""fewest pairs of one molecule of which its kinetics are told"""
COMPETING = -8.0
"""log-likelihood ratio below which a pair is no alternative"""
ROUNDS = 4
"""most rounds of linking; in each, positions are those of the tracks of the round before"""
LEAST_GAP, OPEN = 5, 0.1
"""dark frames that are bridged at first, and the probability of the shortest, whatever the kinetics
of pairs: links then tell it better"""
WIDER = 1.5
"""times the gate up to which a pair may be a link once positions are those of tracks"""
PAIRS_AT_ONCE = 2**18
MOST_CELLS = 4_000_000
"""of the map of the density"""


@final
@dataclass(frozen=True, kw_only=True)
class Linking:
    """Which rows of a table show one molecule, and what that was told from."""

    track: Integers
    """(rows,) number of the molecule, in the order of their first frames"""
    sighting: Integers
    """(rows,) number of the sighting: rows that share one position have the same"""
    probability: Floats
    """(molecules,) probability that all rows of the molecule are one: the product over its links"""
    sightings: Sightings
    """as stated, without the jitter"""
    kinetics: Kinetics
    gap: int
    """most dark frames that were bridged"""
    jitter: tuple[float, float]
    """standard deviation of a position along x or y, and along z, nm, beyond the stated one"""
    excess: tuple[float, float, float]
    """scatter within molecules over the stated standard deviation along x, y and z; NaN where
    unknown"""
    density_per_um2: float
    """rows per frame and square micrometre: molecules that are on at once"""
    rate_per_um2: float
    """new molecules per frame and square micrometre"""

    @property
    def n_molecules(self) -> int:
        """Number of molecules."""
        return len(self.probability)

    def record(self) -> dict[str, object]:
        """What it was told from, for metadata and JSON."""
        n_dark = np.count_nonzero(self.dark_frames)
        return {
            "rows": len(self.track),
            "molecules": self.n_molecules,
            "bridging_dark_frames": int(n_dark),
            "gap": self.gap,
            "gate": GATE,
            "k_on_per_frame": round(self.kinetics.k_on, 4),
            "k_off_per_frame": round(self.kinetics.k_off, 4),
            "k_bleach_per_frame": round(self.kinetics.k_bleach, 4),
            "density_per_um2": float(f"{self.density_per_um2:.4g}"),
            "new_per_um2_and_frame": float(f"{self.rate_per_um2:.4g}"),
            "jitter_nm": [round(value, 2) for value in self.jitter],
            "excess_of_sigma": [
                None if math.isnan(value) else round(value, 3) for value in self.excess
            ],
            "expected_false_merges": round(float((1 - self.probability).sum()), 1),
        }

    @property
    def sentences(self) -> tuple[str, ...]:
        """Counts, kinetics and scatter in words."""
        kinetics = self.kinetics
        scatter = zip("xyz", self.excess, strict=True)
        known = [f"{axis} {ratio:.2f}" for axis, ratio in scatter if not math.isnan(ratio)]
        again = "no dark frame bridged: none are told from neighbours"
        if self.gap:
            again = (
                f"{kinetics.returns:.0%} return, after {1 / kinetics.k_on:.2f} frames; "
                f"up to {self.gap} dark frames bridged"
            )
        return (
            f"{len(self.track)} localizations of {self.n_molecules} molecules",
            f"on for {kinetics.on_time_frames:.2f} frames; {again}",
            *([f"scatter over stated sigma: {', '.join(known)}"] if known else []),
        )

    @property
    def track_of_sighting(self) -> Integers:
        """(sightings,) number of the molecule of each."""
        track = np.empty(len(self.sightings), np.int64)
        track[self.sighting] = self.track
        return track

    @property
    def dark_frames(self) -> Integers:
        """(molecules,) frames between the first and the last in which the molecule was dark."""
        track, n = self.track_of_sighting, self.n_molecules
        first = np.full(n, np.iinfo(np.int64).max)
        last = np.full(n, -1)
        np.minimum.at(first, track, self.sightings.first)
        np.maximum.at(last, track, self.sightings.last)
        dark: Integers = last - first + 1 - np.bincount(self.track, minlength=n)
        return dark


def linked(molecules: EmitterSet, *, gap: int | None = None, seed: int = 0) -> Linking:
    """Find the rows that show one molecule: blinks over frames, dark ones bridged.

    The log-likelihood ratio of a link from i to a later j, after g dark frames, is

        log p(g) N(xi - xj; Ci + Cj) - log e(i) r(xj),

    p(g) the probability of the gap by the kinetics, N the Gaussian of the difference by both
    covariances (and the jitter), e the probability that i is seen no more, and r the rate of new
    molecules at xj.  Jitter (`scatter_of`), rates and kinetics are those of the table: kinetics
    first by pairs (`kinetics_of_pairs`), then by links (`kinetics_of_links`).  Differences beyond a
    share `GATE` of the chi-squared distribution are no links.  Of the links the set of largest
    total is taken (`best_links`), first with the positions of the rows, then with those of the
    tracks so far: of a track up to i, and of a track from j on.  The sum is then the exact
    log-likelihood of a track with one position, relative to its parts.

    Args:
        molecules: rows of any order; z counts where it and its standard deviation are stated.
            Without `xyz_sigma` all rows are as uncertain as repeats scatter.
        gap: most dark frames to bridge; None: as many as hardly a molecule exceeds
            (`Kinetics.enough`), but none at which links would be chance, and none at all where no
            more molecules return than neighbours pass for (`Scatter.returns`).
        seed: of the choice of rows for estimates where there are many.

    Raises:
        ValueError: if the gap is negative, or the table was linked already.
        Undetermined: if hardly a molecule is seen twice, so that nothing tells its kinetics.

    Example:
        >>> import torch
        >>> rng = torch.Generator().manual_seed(0)
        >>> place = 20_000 * torch.rand(300, 3, generator=rng) * torch.tensor([1, 1, 0.0])
        >>> seen = place.repeat_interleave(4, 0) + 10 * torch.randn(1200, 3, generator=rng)
        >>> start = torch.randint(0, 500, (300,), generator=rng)
        >>> rows = EmitterSet(
        ...     frame=(start[:, None] + torch.tensor([0, 1, 3, 4])).flatten(),
        ...     xyz=seen * torch.tensor([1, 1, 0.0]),
        ...     photons=torch.full((1200,), 900.0),
        ...     xyz_sigma=torch.tensor([10.0, 10.0, torch.nan]).repeat(1200, 1),
        ... )
        >>> 300 <= linked(rows).n_molecules < 304
        True
    """
    if gap is not None and gap < 0:
        raise ValueError(f"the gap is {gap} dark frames, must not be negative")
    if STEP in molecules.metadata or "n_frames" in molecules.others:
        raise ValueError("the table was linked already; begin with the table before")
    if not len(molecules):
        raise Undetermined("the table has no molecules: there is nothing to link")
    rows = rows_of(molecules)
    n_frames = max(int(rows.last.max()) + 1, molecules.facts.n_frames or 0)
    depths = Depths.of(rows.place[rows.axial & rows.usable, 2])
    sightings, number = rows.grouped()
    scatter = scatter_of(rows, number, n_frames=n_frames, seed=seed)
    if scatter.same.sum() < FEWEST:
        raise Undetermined(
            "hardly a molecule is seen in a second frame: there is nothing to link, and the "
            "table is one of molecules already"
        )
    certain = _with_jitter(sightings, scatter)
    field = _Field.of(molecules, rows, n_frames=n_frames, scatter=scatter)
    model = _Model(sightings=certain, depths=depths, field=field)
    kinetics = kinetics_of_pairs(scatter.same, scatter.rows)
    if gap is None and not scatter.returns:
        gap = 0
    shared = len(rows) - len(sightings)
    if gap is None:
        # of longer dark times than were looked at nothing is known
        most = max(len(scatter.same) - 1, LEAST_GAP)
        law = _open(kinetics.gaps(int(np.clip(kinetics.enough, LEAST_GAP, most)) + 1))
    else:
        law = _open(kinetics.gaps(gap + 1))
    links = model.linked(law, rounds=2)
    kinetics = kinetics_of_links(*model.counts(links, n_gaps=len(law), shared=shared))
    if gap is None:
        gap = min(model.enough(kinetics), len(law) - 1)
    links = model.linked(kinetics.gaps(gap + 1))
    track, probability = model.tracks(links)
    order = np.argsort(_first_frames(sightings, track), kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    track = rank[track]
    n_tracks = len(order)
    return Linking(
        track=track[number],
        sighting=number,
        probability=probability[order],
        sightings=sightings,
        kinetics=kinetics,
        gap=gap,
        jitter=scatter.jitter,
        excess=_excess(sightings, track, n_tracks),
        density_per_um2=1e6 * len(rows) / (field.area_nm2 * n_frames),
        rate_per_um2=1e6 * n_tracks / (field.area_nm2 * n_frames),
    )


def _first_frames(sightings: Sightings, track: Integers) -> Integers:
    first = np.full(int(track.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, track, sightings.first)
    return first


def _with_jitter(sightings: Sightings, scatter: Scatter) -> Sightings:
    """Covariances as wide as they are by the scatter of repeats."""
    lateral, axial = scatter.jitter
    wider = np.diag([lateral**2, lateral**2, axial**2]) + LEAST_NM**2 / 2 * np.eye(3)
    known = np.stack([np.ones_like(sightings.axial)] * 2 + [sightings.axial], 1)
    covariance = sightings.covariance + wider * known[:, :, None]
    return replace(sightings, covariance=covariance)


def _excess(sightings: Sightings, track: Integers, n: int) -> tuple[float, float, float]:
    """Root of the chi-squared of positions around that of their molecule, per degree of freedom."""
    found = []
    for axis in range(3):
        variance = sightings.covariance[:, axis, axis]
        known = sightings.usable & (variance > 0)
        of, place, weight = track[known], sightings.place[known, axis], 1 / variance[known]
        total = np.bincount(of, weight, minlength=n)
        middle = np.bincount(of, weight * place, minlength=n) / np.maximum(total, 1e-300)
        square = (weight * (place - middle[of]) ** 2).sum()
        freedom = len(of) - np.count_nonzero(total)
        found.append(math.sqrt(square / freedom) if freedom >= FEWEST else math.nan)
    x, y, z = found
    return x, y, z


@final
@dataclass(frozen=True, kw_only=True)
class _Field:
    """Where new molecules appear, and how often."""

    area_nm2: float
    n_frames: int
    side_nm: float
    """of the square over which they are counted"""
    unrelated: Unrelated

    @classmethod
    def of(
        cls, molecules: EmitterSet, rows: Sightings, *, n_frames: int, scatter: Scatter
    ) -> _Field:
        field = molecules.facts.field_nm
        width, height = np.ptp(rows.place[:, :2], axis=0) if field is None else field
        least = 2 * scatter.reach_nm
        area = max(float(width), least) * max(float(height), least)
        cells = MOST_CELLS / 9
        return cls(
            area_nm2=area,
            n_frames=n_frames,
            side_nm=max(least, math.sqrt(area / cells)),
            unrelated=scatter.unrelated,
        )

    def rates(self, starts: Floats, number: Floats) -> Floats:
        """(n,) new molecules per frame and nm^2 at places, other than those themselves.

        Args:
            starts: (n, 2) x and y, nm.
            number: (n,) of molecules that start there: 1 or 0, or its expectation.
        """
        cell = self.side_nm / 3
        corner = starts.min(0)
        column, row = np.floor((starts - corner) / cell).astype(np.int64).T
        counts = np.zeros((int(row.max()) + 1, int(column.max()) + 1))
        np.add.at(counts, (row, column), number)
        near = 9 * uniform_filter(counts, 3, mode="constant")
        others = np.maximum(near[row, column] - number, 0.0)
        # few are shrunk to the mean, as by one molecule more
        mean = number.sum() / (self.area_nm2 * self.n_frames)
        exposure = self.side_nm**2 * self.n_frames
        values: Floats = (others + 1) / (exposure + 1 / mean)
        return values


class _Links(NamedTuple):
    """Pairs that were compared, and those of them that are links."""

    pairs: Pairs
    gain: Floats
    """(m,) log-likelihood ratio of each"""
    chosen: Booleans
    """(m,)"""


@final
@dataclass(frozen=True, kw_only=True)
class _Model:
    """How likely a sighting follows another."""

    sightings: Sightings
    """with the jitter"""
    depths: Depths
    field: _Field

    def linked(self, gaps: Floats, *, rounds: int = ROUNDS) -> _Links:
        """The most likely links where the probabilities of dark times are these."""
        n = len(self.sightings)
        pairs = self._candidates(len(gaps))
        head = tail = self.sightings
        starts = np.full(n, 1 - gaps.sum())
        gain, links = np.full(len(pairs), -np.inf), np.zeros(len(pairs), np.bool_)
        for _ in range(rounds):
            gain = self._gain(pairs, head, tail, starts=starts, gaps=gaps)
            before, links = links, best_links(pairs, gain, n)
            if (links == before).all():
                break
            head, tail = _pooled(self.sightings, pairs[links])
            starts = np.ones(n)
            starts[pairs.second[links]] = 0
        return _Links(pairs, gain, links)

    def tracks(self, links: _Links) -> tuple[Integers, Floats]:
        """(n,) number of the molecule of each sighting, and (molecules,) its probability."""
        n = len(self.sightings)
        near = links.gain > COMPETING
        chance = np.zeros(len(links.pairs))
        chance[near] = link_probabilities(links.pairs[near], links.gain[near], n)
        made = links.pairs[links.chosen]
        track, n_tracks = _joined(made, n)
        logs = np.log(np.maximum(chance[links.chosen], 1e-300))
        total = np.bincount(track[made.first], logs, minlength=n_tracks)
        return track, np.exp(total)

    def counts(self, links: _Links, *, n_gaps: int, shared: int) -> tuple[Floats, Floats]:
        """Links by their dark frames, and ends by the frames after them, as `kinetics_of_links`
        takes them.

        Args:
            shared: links within sightings, which have no dark frame.
        """
        made = links.pairs[links.chosen]
        gaps = np.bincount(made.lag - 1, minlength=n_gaps).astype(float)
        gaps[0] += shared
        ended = np.ones(len(self.sightings), np.bool_)
        ended[made.first] = False
        left = self._frames_left(self.sightings, n_gaps)[ended]
        return gaps, np.bincount(left, minlength=n_gaps + 1).astype(float)

    def enough(self, kinetics: Kinetics) -> int:
        """Dark frames to bridge: as many as hardly a molecule exceeds, but fewer where a typical
        link over so many would rather be chance."""
        seen, field = self.sightings[np.flatnonzero(self.sightings.usable)], self.field
        variance = np.median(np.diagonal(seen.covariance, axis1=1, axis2=2), axis=0)
        axes = 3 if seen.axial.mean() > 0.5 else 2
        log_peak = -0.5 * np.log(4 * np.pi * variance[:axes]).sum() - axes / 2
        gaps = kinetics.gaps(min(kinetics.enough, LAGS - 1) + 1)
        end = max(1 - gaps.sum(), 1e-6)
        width = np.sqrt(2 * variance[:1])
        crowding = float(field.unrelated.crowding(width, np.array([axes == 3]))[0])
        rate = crowding * end * len(self.sightings) / (field.area_nm2 * field.n_frames)
        depth = float(self.depths.density.max()) if axes == 3 else 1.0
        likely = np.log(gaps + 1e-300) + log_peak > math.log(end * rate * depth)
        return int(np.flatnonzero(likely).max()) if likely.any() else 0

    def _candidates(self, n_gaps: int) -> Pairs:
        seen = self.sightings
        sigma = seen.lateral[seen.usable]
        widest = float(np.quantile(sigma, PRECISE)) if len(sigma) else 1.0
        reach = math.sqrt(2 * chi2.ppf(GATE, 2)) * widest
        pairs = pairs_within(seen, seen, reach_nm=reach, lags=(1, n_gaps))
        # tracks move positions within their uncertainties: what is far off stays so
        near = [
            _compared(pairs[part], seen, seen)[1] < WIDER * chi2.ppf(GATE, 3)
            for part in _parts(len(pairs))
        ]
        return pairs[np.concatenate([np.zeros(0, np.bool_), *near])]

    def _frames_left(self, seen: Sightings, n_gaps: int) -> Integers:
        """(n,) frames after each that are looked at: fewer near the end of the movie."""
        left: Integers = np.clip(self.field.n_frames - 1 - seen.last, 0, n_gaps)
        return left

    def _gain(
        self, pairs: Pairs, head: Sightings, tail: Sightings, *, starts: Floats, gaps: Floats
    ) -> Floats:
        """(m,) log-likelihood ratios; -inf beyond the gate.

        Args:
            head: of each sighting, with its track before it.
            tail: of each sighting, with its track after it.
            starts: (n,) whether a molecule starts there.
            gaps: probabilities of dark times.
        """
        gain = np.full(len(pairs), -np.inf)
        ends = 1 - np.concatenate([[0.0], np.cumsum(gaps)])[self._frames_left(head, len(gaps))]
        flat = self.field.rates(tail.place[:, :2], starts)
        rates = flat * self.depths(tail.place[:, 2], tail.axial)
        log_gaps, log_ends = np.log(gaps), np.log(ends)
        for part in _parts(len(pairs)):
            some = pairs[part]
            density, square, axial = _compared(some, head, tail)
            chance = np.where(axial, rates[some.second], flat[some.second])
            width = np.hypot(head.lateral[some.first], tail.lateral[some.second])
            chance *= self.field.unrelated.crowding(width, axial)
            whole = density + log_gaps[some.lag - 1] - log_ends[some.first] - np.log(chance)
            within = square < np.where(axial, chi2.ppf(GATE, 3), chi2.ppf(GATE, 2))
            gain[part] = np.where(within, whole, -np.inf)
        return gain


def _compared(pairs: Pairs, head: Sightings, tail: Sightings) -> tuple[Floats, Floats, Booleans]:
    """(m,) log densities and squared distances as of `log_normal`, and whether z counts."""
    first, second = pairs.first, pairs.second
    axial = head.axial[first] & tail.axial[second]
    density, square = log_normal(
        tail.place[second] - head.place[first],
        head.covariance[first] + tail.covariance[second],
        axial,
    )
    return density, square, axial


def _parts(n: int) -> list[slice]:
    """Parts of many pairs, whose matrices would fill the memory."""
    return [slice(start, start + PAIRS_AT_ONCE) for start in range(0, n, PAIRS_AT_ONCE)]


def _open(gaps: Floats) -> Floats:
    """Probabilities of dark times that rule no short one out, whatever pairs said."""
    dark = np.arange(len(gaps))
    least = np.maximum(gaps, np.where(dark > 0, OPEN * 0.5**dark, 0.0))
    values: Floats = least / max(1.0, least.sum() / 0.98)
    return values


def _joined(links: Pairs, n: int) -> tuple[Integers, int]:
    graph = coo_array((np.ones(len(links)), (links.first, links.second)), shape=(n, n))
    n_tracks, track = connected_components(graph, directed=False)
    return track.astype(np.int64), int(n_tracks)


def _pooled(sightings: Sightings, links: Pairs) -> tuple[Sightings, Sightings]:
    """Each sighting with those of its track before it, and with those after it: the means that
    their covariances give."""
    n = len(sightings)
    track, _ = _joined(links, n)
    order = np.lexsort((sightings.first, track))
    information = _inverse(sightings)
    weighted = (information @ sightings.place[:, :, None])[:, :, 0]
    forward = _pooled_along(sightings, order, track, information, weighted)
    return forward, _pooled_along(sightings, order[::-1], track, information, weighted)


def _pooled_along(
    sightings: Sightings, order: Integers, track: Integers, information: Floats, weighted: Floats
) -> Sightings:
    """Sums along the tracks, in an order in which they are whole."""
    of = track[order]
    begins = np.flatnonzero(np.concatenate([[True], of[1:] != of[:-1]]))
    begin = np.repeat(begins, np.diff(np.append(begins, len(of))))

    def summed(values: Floats) -> Floats:
        # relative to the start of the track, so that long tables lose no digits
        running = np.cumsum(values[order], 0)
        total = running - running[begin] + values[order][begin]
        back = np.empty_like(total)
        back[order] = total
        return back

    total = summed(information)
    axial = total[:, 2, 2] > 0
    covariance = inverse(total, axial)
    place = (covariance @ summed(weighted)[:, :, None])[:, :, 0]
    alone = ~sightings.usable
    place[alone], covariance[alone] = sightings.place[alone], sightings.covariance[alone]
    return replace(sightings, place=place, covariance=covariance, axial=axial)


def _inverse(sightings: Sightings) -> Floats:
    """(n, 3, 3) information; 0 of what is not known."""
    values: Floats = inverse(sightings.covariance, sightings.axial)
    values[~sightings.usable] = 0
    return values
