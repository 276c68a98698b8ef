"""Precision: the scatter of molecules that are seen in successive frames."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from decode.emitters import EmitterSet

__all__ = ["PhotonLaw", "Precision", "precision_of"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

FEWEST = 50.0
"""pairs of which a precision is given"""
SURE = 5.0
"""standard deviations by which there are more pairs in successive frames than in distant ones"""
CLASSES = 6
"""of photons, with as many pairs each"""
LAGS = 8
"""numbers of frames between those of chance pairs"""
SHORTEST_LAG = 10
"""frames: most blinks end before"""
ROUNDS = 200
REACH = 8.0
"""standard deviations up to which pairs are fitted"""
FIRST_SIGMA_NM = 20.0
"""of the first fit"""
BINS = 48
"""of the density of chance pairs"""
NEAR = 5.0
"""scatter within which z is compared"""


@final
@dataclass(frozen=True, kw_only=True)
class PhotonLaw:
    """Precision against photons: sigma = scale / (photons / 1000) ** exponent."""

    photons: tuple[float, ...]
    """mean of each class"""
    sigma_nm: tuple[float, ...]
    error_nm: tuple[float, ...]
    scale_nm: float
    """precision at 1000 photons"""
    exponent: float
    """0.5 where shot noise rules, up to 1 where background does, below 0.5 where something else
    than light limits bright molecules"""
    exponent_error: float


@final
@dataclass(frozen=True, kw_only=True)
class Precision:
    """Experimental precision along x and y (NeNA), and the scatter over the stated one."""

    sigma_nm: float
    error_nm: float
    """standard error"""
    n_pairs: float
    """expected number of pairs of one molecule"""
    ratio: float
    """scatter over the stated standard deviation of each pair; NaN where none are stated"""
    ratio_error: float
    ratio_z: float
    """the same along z; NaN in 2D"""
    ratio_z_error: float
    law: PhotonLaw | None
    """None where too few pairs tell it"""

    @property
    def stated_nm(self) -> float:
        """The stated precision that is compared."""
        return self.sigma_nm / self.ratio


def precision_of(molecules: EmitterSet) -> Precision | None:
    """Experimental precision from pairs of localizations of successive frames.

    The distance d of two localizations of one molecule has the density d / (2 s^2)
    exp(-d^2 / (4 s^2)): nearest-neighbour-based analysis (NeNA; Endesfelder et al., Histochem. Cell
    Biol. 141, 629, 2014).  There, the density of chance pairs rises as d; on filaments it does not.
    Here it is that of pairs in frames further apart, 10 and more, whose number is known, too, and
    all pairs within a reach are taken, not only nearest ones.  The precision is fitted by
    expectation and maximization.

    Rows that share one position are left out, as for `decode.repeats.repeats`, which compares with
    evenly spread chance pairs; so are pairs of polished rows, which were fitted jointly.

    Returns:
        The precision; None with fewer than 50 pairs of one molecule, or where they do not stand out
        from chance pairs by five standard deviations.

    Example:
        >>> import torch
        >>> rng = np.random.default_rng(0)
        >>> truth = rng.uniform(0, 20_000, (2000, 2))
        >>> seen = np.concatenate([truth, truth]) + 12 * rng.normal(size=(4000, 2))
        >>> twice = EmitterSet(
        ...     frame=torch.arange(2).repeat_interleave(2000),
        ...     xyz=torch.from_numpy(np.column_stack([seen, np.zeros(4000)])),
        ...     photons=torch.full((4000,), 1000.0),
        ... )
        >>> abs(precision_of(twice).sigma_nm - 12) < 0.5
        True
    """
    sigma, n_pairs = FIRST_SIGMA_NM, 0.0
    for _ in range(6):
        reach = REACH * sigma
        pairs, chance, weight = _pairs(molecules, reach)
        found = _fitted(pairs.distance, chance.distance, weight, reach)
        if found is None:
            return None
        last = sigma
        sigma, n_pairs = found
        if abs(sigma / last - 1) < 0.1:
            break
    ratio, ratio_error = _ratio(pairs, chance, weight)
    ratio_z, ratio_z_error = _ratio_z(pairs, chance, weight, ratio)
    return Precision(
        sigma_nm=sigma,
        error_nm=sigma / (2 * math.sqrt(n_pairs)),
        n_pairs=n_pairs,
        ratio=ratio,
        ratio_error=ratio_error,
        ratio_z=ratio_z,
        ratio_z_error=ratio_z_error,
        law=_law(pairs, chance, weight, reach),
    )


@final
@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """Pairs of localizations."""

    distance: Floats
    """(n,) nm, in x and y"""
    stated: Floats
    """(n,) root mean square of the stated standard deviations of both along x and y, nm"""
    depth: Floats
    """(n,) difference of z over its stated standard deviation"""
    photons: Floats
    """(n,) harmonic mean of both, as variances add"""

    def __getitem__(self, rows: npt.NDArray[np.bool_]) -> _Pairs:
        return _Pairs(
            distance=self.distance[rows],
            stated=self.stated[rows],
            depth=self.depth[rows],
            photons=self.photons[rows],
        )


def _pairs(molecules: EmitterSet, reach: float) -> tuple[_Pairs, _Pairs, float]:
    """Pairs of successive frames, pairs of distant ones, and how many of the former each of the
    latter stands for."""
    frame = molecules.frame.cpu().numpy().astype(np.int64)
    place = molecules.xyz[:, :2].double().cpu().numpy()
    frames = int(np.ptp(frame)) + 1
    far = 10 * reach + 1.0
    tree = cKDTree(np.column_stack([place, frame * far]))

    def within(lag: int) -> tuple[Integers, Integers]:
        later = cKDTree(np.column_stack([place, (frame - lag) * far]))
        found = tree.sparse_distance_matrix(later, reach, output_type="ndarray")
        return found["i"].astype(np.int64), found["j"].astype(np.int64)

    a, b = within(1)
    apart = (place[a] != place[b]).any(1)
    if molecules.polished is not None:
        # frames of one molecule were fitted jointly: their errors are the same
        polished = molecules.polished.cpu().numpy()
        apart &= ~(polished[a] & polished[b])
    near = _described(molecules, a[apart], b[apart])
    lags = np.unique(np.linspace(SHORTEST_LAG, max(frames // 4, SHORTEST_LAG), LAGS).astype(int))
    lags = lags[lags < frames]
    distant = [within(int(lag)) for lag in lags] or [(a[:0], b[:0])]
    chosen = [np.concatenate(column) for column in zip(*distant, strict=True)]
    # pairs of frames that are so far apart; 0 where there are none
    weight = (frames - 1) / float((frames - lags).sum()) if len(lags) else 0.0
    return near, _described(molecules, chosen[0], chosen[1]), weight


def _described(molecules: EmitterSet, a: Integers, b: Integers) -> _Pairs:
    xyz = molecules.xyz.double().cpu().numpy()
    photons = molecules.photons.double().cpu().numpy()
    stated, depth = np.full(len(a), np.nan), np.full(len(a), np.nan)
    if molecules.xyz_sigma is not None:
        variance = molecules.xyz_sigma.double().cpu().numpy() ** 2
        stated = np.sqrt((variance[a, :2] + variance[b, :2]).mean(1) / 2)
        with np.errstate(all="ignore"):
            depth = (xyz[b, 2] - xyz[a, 2]) / np.sqrt(variance[a, 2] + variance[b, 2])
    return _Pairs(
        distance=np.hypot(*(xyz[a, :2] - xyz[b, :2]).T),
        stated=stated,
        depth=depth,
        photons=2 / (1 / np.maximum(photons[a], 1e-9) + 1 / np.maximum(photons[b], 1e-9)),
    )


def _fitted(
    distance: Floats, chance: Floats, weight: float, reach: float
) -> tuple[float, float] | None:
    """Precision, and the number of pairs of one molecule.

    Args:
        distance: of pairs in successive frames.
        chance: of pairs in distant ones.
        weight: of each of the latter; 0 where the movie is too short for them: their share is
            fitted, too, and they are spread evenly.
        reach: up to which both are complete.
    """
    n_chance = weight * len(chance)
    n_own = len(distance) - n_chance
    if n_own < max(FEWEST, SURE * math.sqrt(len(distance) + weight * n_chance)):
        return None
    share = n_own / len(distance) if weight else 0.5
    edges = np.linspace(0, reach, BINS + 1)
    bins = np.clip(np.digitize(distance, edges) - 1, 0, BINS - 1)
    # few chance pairs are smoothed by one that is spread evenly
    counts = np.histogram(chance, edges)[0] + np.diff(edges**2) / reach**2
    density = counts / counts.sum() / (reach / BINS)
    sigma = reach / REACH
    for _ in range(ROUNDS):
        near = share * distance / (2 * sigma**2) * np.exp(-(distance**2) / (4 * sigma**2))
        own = near / np.maximum(near + (1 - share) * density[bins], 1e-300)
        share = share if weight else float(own.mean())
        before = sigma
        sigma = math.sqrt(max(float(own @ distance**2) / max(4 * own.sum(), 1e-9), 1e-6))
        if abs(sigma / before - 1) < 1e-6:
            break
    return sigma, float(own.sum())


def _ratio(pairs: _Pairs, chance: _Pairs, weight: float) -> tuple[float, float]:
    """Scatter over the stated standard deviations along x and y, and its standard error."""
    known, known_too = pairs.stated > 0, chance.stated > 0
    if known.mean() < 0.5:
        return math.nan, math.nan
    over = pairs.distance[known] / pairs.stated[known]
    over_too = chance.distance[known_too] / chance.stated[known_too]
    # complete up to the reach of the least precise: a few are left out
    reach, ratio, n_pairs = 4 * REACH, math.nan, 0.0
    for _ in range(8):
        found = _fitted(over[over < reach], over_too[over_too < reach], weight, reach)
        if found is None:
            return math.nan, math.nan
        ratio, n_pairs = found
        before, reach = reach, REACH * ratio
        if abs(reach / before - 1) < 0.1:
            break
    return ratio, ratio / (2 * math.sqrt(n_pairs))


def _ratio_z(pairs: _Pairs, chance: _Pairs, weight: float, ratio: float) -> tuple[float, float]:
    """Scatter over the stated standard deviation along z: of all near pairs less chance pairs."""
    if not (math.isfinite(ratio) and np.isfinite(pairs.depth).mean() > 0.5):
        return math.nan, math.nan
    value, n, reach = math.nan, 0.0, NEAR * 4

    def sums(some: _Pairs) -> tuple[float, float]:
        near = (some.distance < NEAR * ratio * some.stated) & (np.abs(some.depth) < reach)
        return float(near.sum()), float((some.depth[near] ** 2).sum())

    for _ in range(6):
        (n_near, square), (n_far, square_far) = sums(pairs), sums(chance)
        n, left = n_near - weight * n_far, square - weight * square_far
        if n < FEWEST or left <= 0:
            return math.nan, math.nan
        value = math.sqrt(left / n)
        reach = NEAR * value
    return value, value / math.sqrt(2 * n)


def _law(pairs: _Pairs, chance: _Pairs, weight: float, reach: float) -> PhotonLaw | None:
    """The precision in classes of the photons, and the power that fits them best."""
    edges = np.quantile(pairs.photons, np.linspace(0, 1, CLASSES + 1))
    edges[-1] = np.inf
    rows = []
    for low, high in pairwise(edges.tolist()):
        own, other = (p[(p.photons >= low) & (p.photons < high)] for p in (pairs, chance))
        found = _fitted(own.distance, other.distance, weight, reach)
        if found is not None and low > 0:
            rows.append((float(own.photons.mean()), *found))
    if len(rows) < 3 or rows[-1][0] < 1.2 * rows[0][0]:
        return None
    n, s, number = (np.array(column) for column in zip(*rows, strict=True))
    x, y, certainty = np.log(n / 1000), np.log(s), np.sqrt(4 * number)
    (slope, offset), covariance = np.polyfit(x, y, 1, w=certainty, cov="unscaled")
    return PhotonLaw(
        photons=tuple(n.tolist()),
        sigma_nm=tuple(s.tolist()),
        error_nm=tuple((s / (2 * np.sqrt(number))).tolist()),
        scale_nm=math.exp(float(offset)),
        exponent=-float(slope),
        exponent_error=math.sqrt(float(covariance[0, 0])),
    )
