"""Repeated localizations: the scatter of one molecule in successive frames against its stated
standard deviations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from decode.emitters import EmitterSet

__all__ = ["Repeats", "repeats"]

REACH = 10.0
"""standard deviations of a difference up to which two localizations may show one molecule"""
PRECISE = 0.9
"""share of the molecules that are paired, the most precise: the others would widen the reach"""
ROUNDS = 200
FEWEST = 30.0
"""fewest pairs of which a ratio is given"""
PARTS = 3
"""parts of equally many pairs, from dim to bright"""

Floats = npt.NDArray[np.float64]


@final
@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Scatter of molecules that were localized in two successive frames."""

    n_pairs: float
    """expected number of pairs that show one molecule"""
    photons: float
    """mean over these pairs"""
    ratio: tuple[float, float, float]
    """scatter over the stated standard deviation along x, y and z: 1 where it is honest, 2 where
    the stated one is half of the true one; NaN where too little is known"""
    error: tuple[float, float, float]
    """standard error of the ratio"""
    by_photons: tuple[Repeats, ...] = ()
    """the same by thirds of the photons, from dim to bright"""


def repeats(molecules: EmitterSet) -> Repeats:
    """Compare the scatter of repeated localizations with their stated standard deviations.

    A molecule that is on in two successive frames is localized twice, with independent noise: the
    difference of its positions scatters by the square root of the sum of both variances.  Pairs of
    different molecules that happen to be near each other are spread evenly.  The density of pairs
    at a difference d is modelled as both, n N(d; 0, k^2 (s1^2 + s2^2)) + c, with one k an axis, and
    fitted by expectation and maximization, as the distances of nearest neighbours are in NeNA
    (Endesfelder et al., Histochem. Cell Biol. 141, 629, 2014), whose law has the precision itself
    for unknown.

    Polished rows were fitted to several frames together, and rows that share one position are one
    measurement: they say nothing of their scatter, and are left out.  Errors that both
    localizations share, as of a wrong PSF, are not seen.

    Args:
        molecules: localizations with `xyz_sigma`, of any order.

    Returns:
        Ratios, by axis and by photons; NaN where fewer than 30 pairs are found.

    Example:
        >>> import torch
        >>> rng = torch.Generator().manual_seed(0)
        >>> truth = 40_000 * torch.rand(3000, 3, generator=rng)
        >>> noise = 20 * torch.randn(2, 3000, 3, generator=rng)
        >>> twice = EmitterSet(
        ...     frame=torch.arange(2).repeat_interleave(3000),
        ...     xyz=(truth + noise).flatten(0, 1),
        ...     photons=torch.full((6000,), 1000.0),
        ...     xyz_sigma=torch.full((6000, 3), 10.0),
        ... )
        >>> [round(k, 1) for k in repeats(twice).ratio]
        [2.0, 2.0, 2.0]
    """
    pairs = _pairs(molecules)
    whole = _fitted(pairs)
    order = np.argsort(pairs.photons, kind="stable")
    thirds = tuple(_fitted(pairs[rows]) for rows in np.array_split(order, PARTS))
    return Repeats(
        n_pairs=whole.n_pairs,
        photons=whole.photons,
        ratio=whole.ratio,
        error=whole.error,
        by_photons=thirds,
    )


@final
@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """Pairs of localizations of successive frames that lie near each other."""

    difference: Floats
    """(n, 3) nm; NaN along axes that are not estimated"""
    sigma: Floats
    """(n, 3) standard deviation of the difference, as stated"""
    photons: Floats
    """(n,) mean of both"""

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> _Pairs:
        return _Pairs(
            difference=self.difference[rows], sigma=self.sigma[rows], photons=self.photons[rows]
        )

    def __len__(self) -> int:
        return len(self.photons)


def _pairs(molecules: EmitterSet) -> _Pairs:
    if molecules.xyz_sigma is None or len(molecules) < 2:
        nothing = np.zeros((0, 3))
        return _Pairs(difference=nothing, sigma=nothing, photons=np.zeros(0))
    frame = molecules.frame.cpu().numpy()
    xyz = molecules.xyz.double().cpu().numpy()
    sigma = molecules.xyz_sigma.double().cpu().numpy()
    photons = molecules.photons.double().cpu().numpy()
    lateral = np.nan_to_num(sigma[:, :2].max(1), nan=np.inf)
    usable = (lateral > 0) & (lateral <= np.quantile(lateral, PRECISE))
    if not usable.any():
        usable[:] = False
        reach = 0.0
    else:
        reach = REACH * math.sqrt(2) * float(np.median(lateral[usable]))
        usable &= lateral <= reach / (2 * math.sqrt(2))
    rows = np.flatnonzero(usable)
    # frames lie apart along a third axis: only successive ones are within reach
    far = 10 * reach + 1.0
    first = cKDTree(np.column_stack([xyz[rows, :2], frame[rows] * far]))
    second = cKDTree(np.column_stack([xyz[rows, :2], (frame[rows] - 1) * far]))
    found = first.sparse_distance_matrix(second, reach, output_type="ndarray")
    a, b = rows[found["i"]], rows[found["j"]]
    apart = (xyz[a] != xyz[b]).any(1)
    if molecules.polished is not None:
        # frames of one molecule were fitted jointly: their errors are the same
        polished = molecules.polished.cpu().numpy().astype(bool)
        apart &= ~(polished[a] & polished[b])
    a, b = a[apart], b[apart]
    return _Pairs(
        difference=xyz[b] - xyz[a],
        sigma=np.hypot(sigma[a], sigma[b]),
        photons=(photons[a] + photons[b]) / 2,
    )


def _fitted(pairs: _Pairs) -> Repeats:
    """Ratios, by expectation and maximization."""
    unknown = (math.nan, math.nan, math.nan)
    if len(pairs) < FEWEST:
        return Repeats(n_pairs=0.0, photons=math.nan, ratio=unknown, error=unknown)
    known = np.isfinite(pairs.difference) & np.isfinite(pairs.sigma) & (pairs.sigma > 0)
    axes = np.flatnonzero(known.mean(0) > 0.5)
    d, s = pairs.difference[:, axes], pairs.sigma[:, axes]
    # chance pairs spread evenly over the disc of x and y, and along z over what is seen
    volume = math.pi * float(np.hypot(*d[:, :2].T).max()) ** 2
    if 2 in axes:
        volume *= max(float(np.ptp(d[:, 2])), 1.0)
    share, k = 0.5, np.ones(len(axes))
    own = np.full(len(d), share)
    for _ in range(ROUNDS):
        z = d / (k * s)
        density = np.exp(-0.5 * (z**2).sum(1)) / (np.sqrt(2 * np.pi) * k * s).prod(1)
        own = share * density / (share * density + (1 - share) / volume)
        before, n = k, own.sum()
        share = float(np.clip(own.mean(), 1e-6, 1 - 1e-6))
        k = np.sqrt((own[:, None] * (d / s) ** 2).sum(0) / max(n, 1e-9)).clip(1e-3)
        if np.abs(k / before - 1).max() < 1e-5:
            break
    n = float(own.sum())
    ratio, error = np.full(3, np.nan), np.full(3, np.nan)
    if n >= FEWEST:
        ratio[axes], error[axes] = k, k / math.sqrt(2 * n)
    x, y, z_ratio = ratio.tolist()
    ex, ey, ez = error.tolist()
    return Repeats(
        n_pairs=n,
        photons=float(own @ pairs.photons / max(n, 1e-9)),
        ratio=(x, y, z_ratio),
        error=(ex, ey, ez),
    )
