"""Audit: repeated localizations of one molecule against the standard deviations that they state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from decode.emitters import EmitterSet
from decode.errors import Undetermined

__all__ = ["Audit", "audit_of"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

HONEST = 0.1
"""share by which scatter and stated deviation may differ, beyond two standard errors"""
INPUT_FRAMES = 3
"""frames that a network looks at: results of frames so far apart have no light in common"""
GAPS = (2, 3)
"""frames from a sighting to the next one, with dark ones between"""
DARK = 1.5
"""scatter within which a row of the frame between shows that the molecule was not dark"""
LONG_BEFORE = (10, 60)
"""fewest and most frames between chance pairs"""
LAGS = 8
"""numbers of frames between those of chance pairs"""
PRECISE = 0.9
"""share of the rows that are compared, the most precise: pairs of these are complete"""
WITHIN = 4.0
"""scatter within which pairs are of one molecule, along each axis"""
WIDEST, NARROWEST = 2.5, 0.2
"""scatter over the stated one with which the search begins, and below which it ends"""
ROUNDS = 20
FEWEST, SURE = 50.0, 5.0
"""fewest pairs of one molecule, and by how many standard deviations they exceed chance"""
MOST_ROWS = 300_000
"""rows that are compared; of more, those of a stripe of the field"""
CLASSES = 3
"""of photons, with as many pairs each"""


@final
@dataclass(frozen=True, kw_only=True)
class Audit:
    """Scatter of molecules that were localized twice, over the standard deviation they state."""

    n_pairs: float
    """expected number of pairs that show one molecule"""
    photons: float
    """mean over the pairs near to one another"""
    ratio: tuple[float, float, float]
    """along x, y and z: 1 where the stated one is honest, 2 where it is half of the true one; NaN
    along axes that were not estimated"""
    error: tuple[float, float, float]
    """standard error of the ratio"""
    pairs: str
    """which rows were compared"""
    by_photons: tuple[Audit, ...] = ()
    """the same by thirds of the photons, from dim to bright; empty where they are too few"""

    @property
    def columns(self) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]]:
        """Ratios and errors of each class of photons, or of all where there are no classes."""
        parts = self.by_photons or (self,)
        return tuple(part.ratio for part in parts), tuple(part.error for part in parts)

    @property
    def too_small(self) -> tuple[str, ...]:
        """Axes along which molecules scatter by more than they state."""
        return self._axes(1)

    @property
    def too_large(self) -> tuple[str, ...]:
        """Axes along which they scatter by less."""
        return self._axes(-1)

    @property
    def figures(self) -> str:
        """The ratio along each axis, with its error."""
        return ", ".join(
            f"{axis} {ratio:.2f} ± {error:.2f}"
            for axis, ratio, error in zip("xyz", self.ratio, self.error, strict=True)
            if math.isfinite(ratio)
        )

    @property
    def sentence(self) -> str:
        """The ratios, and what follows."""
        said = f"scatter over stated uncertainty: {self.figures} ({self.pairs})"
        if self.too_small:
            return f"{said}: uncertainties are too small along {', '.join(self.too_small)}"
        if self.too_large:
            return f"{said}: uncertainties are too large along {', '.join(self.too_large)}"
        return said

    def _axes(self, sign: int) -> tuple[str, ...]:
        return tuple(
            axis
            for axis, ratio, error in zip("xyz", self.ratio, self.error, strict=True)
            if sign * (ratio - 1) > HONEST + 2 * error
        )


def audit_of(molecules: EmitterSet) -> Audit:
    """Compare the scatter of repeated localizations with the standard deviations they state.

    Two localizations of one molecule, each with its own noise, differ by the root of the sum of
    both variances.  Pairs of different molecules that happen to be near each other are counted in
    frames further apart and subtracted, so that filaments do no harm.  A ratio is the root of the
    mean square of what is left within four standard deviations.

    Only rows whose errors are independent are compared.  A network sees the light of the frames
    before and after: its rows are compared three frames apart.  Rows of a polished molecule in
    successive frames were fitted to one position: molecules are compared that were dark for a
    frame or two in between.  Other tables are taken to be fitted frame by frame.  Errors that both
    localizations share, as of a wrong PSF or a fixed background, are not seen.

    Args:
        molecules: localizations with `xyz_sigma`, of any order, not merged.

    Returns:
        Ratios, by axis and by photons.

    Raises:
        Undetermined: in a sentence, where the table does not tell.

    Example:
        >>> import torch
        >>> rng = torch.Generator().manual_seed(0)
        >>> truth = 40_000 * torch.rand(3000, 3, generator=rng)
        >>> noise = 15 * torch.randn(2, 3000, 3, generator=rng)
        >>> twice = EmitterSet(
        ...     frame=torch.arange(2).repeat_interleave(3000),
        ...     xyz=(truth + noise).flatten(0, 1),
        ...     photons=torch.full((6000,), 1000.0),
        ...     xyz_sigma=torch.full((6000, 3), 10.0),
        ... )
        >>> [round(k, 1) for k in audit_of(twice).ratio]
        [1.5, 1.5, 1.5]
    """
    if molecules.xyz_sigma is None:
        raise Undetermined("the table states no uncertainties")
    lags: tuple[int, ...]
    gap = molecules.polished is not None and bool(molecules.polished.any())
    if gap:
        lags, said = GAPS, "before and after one or two dark frames"
    elif molecules.facts.model is not None:
        lags, said = (INPUT_FRAMES,), f"{INPUT_FRAMES} frames apart"
    else:
        lags, said = (1,), "in successive frames"
    near, chance, weight = _pairs(molecules, lags, gap=gap)
    found = _fitted(near, chance, weight)
    if found is None:
        raise Undetermined(f"too few molecules are seen {said}, which would tell their scatter")
    n, ratio, error, photons = found
    whole = _audit(n, ratio, error, photons, said)
    edges = np.quantile(near.photons, np.linspace(0, 1, CLASSES + 1)[1:-1])
    classes = []
    for k in range(CLASSES):
        own, other = (some[np.digitize(some.photons, edges) == k] for some in (near, chance))
        part = _fitted(own, other, weight, 1.3 * ratio)
        if part is not None:
            classes.append(_audit(*part, said))
    by_photons = tuple(classes) if len(classes) == CLASSES else ()
    return Audit(
        n_pairs=n,
        photons=photons,
        ratio=whole.ratio,
        error=whole.error,
        pairs=whole.pairs,
        by_photons=by_photons,
    )


def _audit(n: float, ratio: Floats, error: Floats, photons: float, said: str) -> Audit:
    x, y, z = ratio.tolist()
    ex, ey, ez = error.tolist()
    return Audit(
        n_pairs=n,
        photons=photons,
        ratio=(x, y, z),
        error=(ex, ey, ez),
        pairs=f"{n:,.0f} pairs {said}",
    )


@final
@dataclass(frozen=True, kw_only=True)
class _Pairs:
    over: Floats
    """(n, 3) differences over their stated standard deviations; NaN where not estimated"""
    photons: Floats
    """(n,) harmonic mean of both, as variances add"""

    def __getitem__(self, rows: npt.NDArray[np.bool_]) -> _Pairs:
        return _Pairs(over=self.over[rows], photons=self.photons[rows])


def _pairs(
    molecules: EmitterSet, lags: tuple[int, ...], *, gap: bool
) -> tuple[_Pairs, _Pairs, float]:
    """Pairs of rows that may show one molecule, pairs of frames far apart, and how many of the
    former each of the latter stands for."""
    if len(molecules) > MOST_ROWS:
        y = molecules.xyz[:, 1].cpu().double()
        inside = (y - y.median()).abs()
        molecules = molecules[inside <= inside.kthvalue(MOST_ROWS).values]
    frame = molecules.frame.cpu().numpy().astype(np.int64)
    xyz = molecules.xyz.double().cpu().numpy()
    photons = molecules.photons.double().cpu().numpy()
    assert molecules.xyz_sigma is not None
    sigma = molecules.xyz_sigma.double().cpu().numpy()
    lateral = np.nan_to_num(sigma[:, :2], nan=np.inf).max(1)
    known = np.isfinite(lateral) & (lateral > 0)
    if known.sum() < 2:
        return _Pairs(over=np.zeros((0, 3)), photons=np.zeros(0)), _none(), 0.0
    most = float(np.quantile(lateral[known], PRECISE))
    usable = known & (lateral <= most)
    # of pairs of the least precise, along both axes
    reach = 2 * (WITHIN + 1) * WIDEST * most
    far = 10 * reach + 1.0
    tree = cKDTree(np.column_stack([xyz[:, :2], frame * far]))

    def within(lag: int) -> tuple[Integers, Integers]:
        later = cKDTree(np.column_stack([xyz[:, :2], (frame - lag) * far]))
        found = tree.sparse_distance_matrix(later, reach, output_type="ndarray")
        a, b = found["i"].astype(np.int64), found["j"].astype(np.int64)
        return a, b

    followed, preceded = np.zeros((2, len(frame)), dtype=bool)
    if gap:
        a, b = within(1)
        apart = np.hypot(*(xyz[a, :2] - xyz[b, :2]).T)
        near = apart < WITHIN * DARK * np.hypot(lateral[a], lateral[b])
        followed[a[near]] = preceded[b[near]] = True

    def described(lag: int) -> _Pairs:
        a, b = within(lag)
        # rows of one position are one measurement
        kept = usable[a] & usable[b] & ~followed[a] & ~preceded[b] & (xyz[a] != xyz[b]).any(1)
        a, b = a[kept], b[kept]
        with np.errstate(all="ignore"):
            over = (xyz[b] - xyz[a]) / np.hypot(sigma[a], sigma[b])
            mean = 2 / (1 / np.maximum(photons[a], 1e-9) + 1 / np.maximum(photons[b], 1e-9))
        return _Pairs(over=over, photons=mean)

    frames = int(np.ptp(frame)) + 1
    first, last = LONG_BEFORE
    distant = np.unique(np.linspace(first, max(first, min(last, frames // 4)), LAGS).astype(int))
    distant = distant[distant < frames]
    pairs_of_frames = float(sum(max(frames - lag, 0) for lag in lags))
    weight = pairs_of_frames / float((frames - distant).sum()) if len(distant) else 0.0
    near_pairs = _joined([described(lag) for lag in lags])
    return near_pairs, _joined([described(int(lag)) for lag in distant]), weight


def _none() -> _Pairs:
    return _Pairs(over=np.zeros((0, 3)), photons=np.zeros(0))


def _joined(parts: list[_Pairs]) -> _Pairs:
    parts = [_none(), *parts]
    return _Pairs(
        over=np.concatenate([part.over for part in parts]),
        photons=np.concatenate([part.photons for part in parts]),
    )


def _fitted(
    near: _Pairs, chance: _Pairs, weight: float, start: Floats | None = None
) -> tuple[float, Floats, Floats, float] | None:
    """Number of pairs of one molecule, ratio and its error along each axis, and photons."""
    if not len(near.photons):
        return None
    axes = np.flatnonzero(np.isfinite(near.over).mean(0) > 0.5)
    z, z_far = near.over[:, axes] ** 2, chance.over[:, axes] ** 2
    begin = np.full(3, WIDEST) if start is None else start
    square, ratio, n = begin[axes] ** 2, np.full(3, math.nan), 0.0
    error, photons, enough = np.full(3, math.nan), math.nan, False
    for _ in range(ROUNDS):
        # the ellipsoid of all axes: of a Gaussian nearly nothing is outside
        own, far = (
            np.nan_to_num((s / square).sum(1), nan=np.inf) < WITHIN**2 + len(axes)
            for s in (z, z_far)
        )
        n_near, n_far = float(own.sum()), weight * float(far.sum())
        n = n_near - n_far
        enough = n >= max(FEWEST, SURE * math.sqrt(n_near + weight * n_far))
        if not enough:
            # in less room there are fewer by chance
            square = square / 2
            if square.max() < NARROWEST**2:
                return None
            continue
        left = z[own].sum(0) - weight * z_far[far].sum(0)
        before, square = square, np.maximum(left / n, 1e-6)
        spread = ((z[own] - square) ** 2).sum(0) + weight**2 * ((z_far[far] - square) ** 2).sum(0)
        ratio[axes] = np.sqrt(square)
        error[axes] = np.sqrt(spread) / (2 * np.sqrt(square) * n)
        photons = float(near.photons[own].mean())
        if np.abs(square / before - 1).max() < 1e-3:
            break
    return (n, ratio, error, photons) if enough else None
