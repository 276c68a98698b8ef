"""Profile: how wide a structure is across a line."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from decode.emitters import EmitterSet
from decode.errors import Undetermined

__all__ = ["Profile", "profile_of"]

Floats = npt.NDArray[np.float64]

BAND_NM = 200.0
"""width of the band around a line, from which molecules are taken"""
FEWEST = 20
"""molecules"""
NARROWEST = 0.3
"""stated standard deviations: least width of a peak"""
FWHM = 2 * math.sqrt(2 * math.log(2))
BINS = 50


@final
@dataclass(frozen=True, kw_only=True)
class Profile:
    """Molecules along a line, and the one or two Gaussian peaks that they form."""

    line_nm: tuple[float, float, float, float]
    """x and y of both ends"""
    band_nm: float
    n: int
    fwhm_nm: float
    """full width of a peak at half of its height"""
    fwhm_error_nm: float
    peaks_nm: tuple[float, ...]
    """place of each peak along the line"""
    peaks_error_nm: tuple[float, ...]
    distance_nm: float | None
    """of two peaks"""
    distance_error_nm: float | None
    intrinsic_nm: float | None
    """full width without that of the molecules' stated uncertainty; None where it is not larger, or
    none is stated"""
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    """histogram along the line"""
    model: tuple[float, ...]
    """expected counts of the fit"""

    def __str__(self) -> str:
        width = f"{self.fwhm_nm:.1f} +- {self.fwhm_error_nm:.1f} nm wide"
        alone = "" if self.intrinsic_nm is None else f" ({self.intrinsic_nm:.1f} nm without sigma)"
        if self.distance_nm is None:
            return f"one peak, {width}{alone}, {self.n} molecules"
        apart = f"{self.distance_nm:.1f} +- {self.distance_error_nm:.1f} nm apart"
        return f"two peaks {apart}, each {width}{alone}, {self.n} molecules"


def profile_of(
    molecules: EmitterSet, line_nm: tuple[float, float, float, float], *, band_nm: float = BAND_NM
) -> Profile:
    """The profile of the molecules along a line.

    One and two Gaussians of equal width on an even background are fitted to the places by maximum
    likelihood, without bins; two are taken where the Bayesian information criterion says so.
    Standard errors are those of the observed Fisher information.

    Args:
        molecules: a table.
        line_nm: x and y of the beginning, x and y of the end.
        band_nm: molecules so far apart across the line, at most, are taken.

    Raises:
        ValueError: if the line has no length.
        Undetermined: with fewer than 20 molecules.

    Example:
        >>> import torch
        >>> rng = np.random.default_rng(0)
        >>> x = 500 + rng.choice([-40.0, 40.0], 2000) + 12 * rng.normal(size=2000)
        >>> xyz = np.stack([x, rng.uniform(-90, 90, 2000), 0 * x], 1)
        >>> walls = EmitterSet(
        ...     frame=torch.zeros(2000, dtype=torch.int64),
        ...     xyz=torch.from_numpy(xyz),
        ...     photons=torch.ones(2000),
        ... )
        >>> found = profile_of(walls, (250.0, 0.0, 750.0, 0.0))
        >>> abs(found.distance_nm - 80) < 3 * found.distance_error_nm
        True
    """
    start, end = np.array(line_nm[:2]), np.array(line_nm[2:])
    length = float(np.hypot(*(end - start)))
    if not length > 0:
        raise ValueError("a line has two ends: --line X0,Y0,X1,Y1 in nm")
    along_line = (end - start) / length
    offset = molecules.xyz[:, :2].double().cpu().numpy() - start
    along, across = offset @ along_line, offset @ np.array([-along_line[1], along_line[0]])
    taken = (along >= 0) & (along <= length) & (np.abs(across) <= band_nm / 2)
    if taken.sum() < FEWEST:
        raise Undetermined(f"{int(taken.sum())} molecules lie on the line, {FEWEST} are needed")
    t = along[taken]
    narrowest = max(NARROWEST * _typical(molecules, taken), length / 500)
    one, two = (_fit(t, length, peaks, narrowest) for peaks in (1, 2))
    best = two if two.criterion < one.criterion else one
    counts, edges = np.histogram(t, BINS, (0, length))
    middles = (edges[1:] + edges[:-1]) / 2
    return Profile(
        line_nm=line_nm,
        band_nm=band_nm,
        n=len(t),
        fwhm_nm=FWHM * best.sigma,
        fwhm_error_nm=FWHM * best.sigma_error,
        peaks_nm=tuple(best.centres.tolist()),
        peaks_error_nm=tuple(best.centre_errors.tolist()),
        distance_nm=best.distance,
        distance_error_nm=best.distance_error,
        intrinsic_nm=_intrinsic(molecules, taken, along_line, best.sigma),
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
        model=tuple((best.density(middles) * len(t) * length / BINS).tolist()),
    )


@final
@dataclass(frozen=True, kw_only=True)
class _Fit:
    """Gaussians of equal width on an even background over a length."""

    centres: Floats
    sigma: float
    shares: Floats
    """of each Gaussian, and of the background"""
    length: float
    criterion: float
    """Bayesian information criterion"""
    covariance: Floats
    """of centres and the logarithm of the width"""

    @property
    def sigma_error(self) -> float:
        return self.sigma * math.sqrt(max(float(self.covariance[-1, -1]), 0.0))

    @property
    def centre_errors(self) -> Floats:
        return np.sqrt(np.maximum(np.diag(self.covariance)[:-1], 0))

    @property
    def distance(self) -> float | None:
        return float(abs(np.diff(self.centres)[0])) if len(self.centres) == 2 else None

    @property
    def distance_error(self) -> float | None:
        if len(self.centres) != 2:
            return None
        c = self.covariance
        return math.sqrt(max(float(c[0, 0] + c[1, 1] - 2 * c[0, 1]), 0.0))

    def density(self, t: Floats) -> Floats:
        return _density(t, self.centres, self.sigma, self.shares, self.length)


def _density(t: Floats, centres: Floats, sigma: float, shares: Floats, length: float) -> Floats:
    z = (t[:, None] - centres) / sigma
    peaks = np.exp(-0.5 * z**2) / (math.sqrt(2 * math.pi) * sigma)
    return np.asarray(peaks @ shares[:-1] + shares[-1] / length)


def _fit(t: Floats, length: float, peaks: int, narrowest: float) -> _Fit:
    """The most likely Gaussians, from starts at quantiles of the places."""

    def parts(v: Floats) -> tuple[Floats, float, Floats]:
        logits = np.concatenate([v[peaks + 1 :], [0.0]])
        shares = np.exp(logits - logits.max())
        return v[:peaks], math.exp(v[peaks]), shares / shares.sum()

    def loss(v: Floats) -> float:
        return -float(np.log(np.maximum(_density(t, *parts(v), length), 1e-300)).sum())

    starts = ([0.5], [0.3], [0.7]) if peaks == 1 else ([0.25, 0.75], [0.1, 0.6], [0.4, 0.9])
    width = math.log(max(float(t.std()) / 3, narrowest))
    # without a least width, a peak on one molecule would be infinitely likely
    bounds = [(0.0, length)] * peaks + [(math.log(narrowest), math.log(length))]
    bounds += [(-15.0, 15.0)] * peaks
    tried = [
        minimize(loss, [*np.quantile(t, at), width, *[1.0] * peaks], bounds=bounds) for at in starts
    ]
    best = min(tried, key=lambda found: found.fun)
    centres, sigma, shares = parts(best.x)
    return _Fit(
        centres=centres,
        sigma=sigma,
        shares=shares,
        length=length,
        criterion=2 * float(best.fun) + len(best.x) * math.log(len(t)),
        covariance=_covariance(loss, best.x)[: peaks + 1, : peaks + 1],
    )


def _covariance(loss: object, at: Floats) -> Floats:
    """Inverse of the curvature, by central differences."""
    assert callable(loss)
    n = len(at)
    step = np.full(n, 1e-2)
    step[: (n - 1) // 2] = 0.05 * math.exp(float(at[(n - 1) // 2]))
    moves = np.diag(step)
    curvature = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            corners = [
                s * u * float(loss(at + s * moves[i] + u * moves[j]))
                for s in (-1, 1)
                for u in (-1, 1)
            ]
            curvature[i, j] = sum(corners) / (4 * step[i] * step[j])
    return np.asarray(np.linalg.pinv(curvature, rcond=1e-10))


def _typical(molecules: EmitterSet, taken: npt.NDArray[np.bool_]) -> float:
    """Median stated standard deviation, nm; 0 where none is stated."""
    if molecules.xyz_sigma is None:
        return 0.0
    return float(np.nan_to_num(np.nanmedian(molecules.xyz_sigma[:, :2].cpu().numpy()[taken])))


def _intrinsic(
    molecules: EmitterSet, taken: npt.NDArray[np.bool_], along: Floats, sigma: float
) -> float | None:
    if molecules.xyz_sigma is None:
        return None
    stated = molecules.xyz_sigma[:, :2].double().cpu().numpy()[taken]
    variance = float(np.nanmean((stated * along) ** 2 @ np.ones(2)))
    left = sigma**2 - variance
    return FWHM * math.sqrt(left) if np.isfinite(left) and left > 0 else None
