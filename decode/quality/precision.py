"""Precision: the scatter of molecules that are seen in successive frames."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from decode.emitters import EmitterSet

__all__ = ["PhotonLaw", "Precision", "precision_of"]

Floats = npt.NDArray[np.float64]

FEWEST = 50.0
"""pairs of which a precision is given"""
CLASSES = 6
"""of photons, with as many pairs each"""
ROUNDS = 300
REACH = 6.0
"""standard deviations of a distance, up to which pairs are fitted"""
FIRST_REACH_NM = 150.0
"""reach of the first fit"""


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
    """Experimental precision along x and y (NeNA)."""

    sigma_nm: float
    error_nm: float
    """standard error"""
    n_pairs: float
    """expected number of pairs of one molecule"""
    stated_nm: float
    """root mean square of the stated standard deviations of these; NaN where none are stated"""
    law: PhotonLaw | None
    """None where too few pairs tell it"""

    @property
    def ratio(self) -> float:
        """Over the stated one."""
        return self.sigma_nm / self.stated_nm

    @property
    def ratio_error(self) -> float:
        return self.error_nm / self.stated_nm


def precision_of(molecules: EmitterSet) -> Precision | None:
    """Experimental precision from pairs of localizations of successive frames.

    The distance d of two localizations of one molecule has the density d / (2 s^2)
    exp(-d^2 / (4 s^2)), that of chance pairs rises as d: nearest-neighbour-based analysis
    (Endesfelder et al., Histochem. Cell Biol. 141, 629, 2014), here of all pairs within a reach and
    not only of nearest ones, so that the second density is exact.  Both are fitted by expectation
    and maximization.

    Rows that share one position are left out, as for `decode.repeats.repeats`.

    Returns:
        The precision; None with fewer than 50 pairs of one molecule.

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
    reach, found = FIRST_REACH_NM, None
    for _ in range(3):
        a, b, distance = _pairs(molecules, reach)
        own, sigma = _fitted(distance, reach)
        if own.sum() < FEWEST:
            return found
        photons = molecules.photons.double().cpu().numpy()
        found = Precision(
            sigma_nm=sigma,
            error_nm=sigma / (2 * math.sqrt(float(own.sum()))),
            n_pairs=float(own.sum()),
            stated_nm=_stated(molecules, a, b, own),
            law=_law((photons[a] + photons[b]) / 2, distance, reach),
        )
        reach = REACH * math.sqrt(2) * sigma
    return found


def _pairs(
    molecules: EmitterSet, reach: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
    """Rows of both localizations of each pair, and their distance."""
    frame = molecules.frame.cpu().numpy()
    place = molecules.xyz[:, :2].double().cpu().numpy()
    far = 10 * reach + 1.0
    first = cKDTree(np.column_stack([place, frame * far]))
    second = cKDTree(np.column_stack([place, (frame - 1) * far]))
    found = first.sparse_distance_matrix(second, reach, output_type="ndarray")
    a, b = found["i"].astype(np.int64), found["j"].astype(np.int64)
    apart = (place[a] != place[b]).any(1)
    return a[apart], b[apart], np.hypot(*(place[a[apart]] - place[b[apart]]).T)


def _fitted(distance: Floats, reach: float) -> tuple[Floats, float]:
    """Probability of each pair to show one molecule, and the precision."""
    sigma, share = reach / 6, 0.5
    own = np.full(len(distance), share)
    for _ in range(ROUNDS if len(distance) else 0):
        near = distance / (2 * sigma**2) * np.exp(-(distance**2) / (4 * sigma**2))
        chance = 2 * distance / reach**2
        own = share * near / np.maximum(share * near + (1 - share) * chance, 1e-300)
        share = float(np.clip(own.mean(), 1e-6, 1 - 1e-6))
        before = sigma
        sigma = math.sqrt(max(float(own @ distance**2) / max(4 * own.sum(), 1e-9), 1e-6))
        if abs(sigma / before - 1) < 1e-6:
            break
    return own, sigma


def _stated(
    molecules: EmitterSet, a: npt.NDArray[np.int64], b: npt.NDArray[np.int64], own: Floats
) -> float:
    if molecules.xyz_sigma is None:
        return math.nan
    variance = (molecules.xyz_sigma[:, :2].double().cpu().numpy() ** 2).mean(1)
    both = (variance[a] + variance[b]) / 2
    known = np.isfinite(both)
    return math.sqrt(float(own[known] @ both[known]) / max(float(own[known].sum()), 1e-9))


def _law(photons: Floats, distance: Floats, reach: float) -> PhotonLaw | None:
    """The precision in classes of the photons, and the power that fits them best."""
    rows = np.array_split(np.argsort(photons, kind="stable"), CLASSES)
    fits = [(_fitted(distance[r], reach), float(photons[r].mean())) for r in rows if len(r)]
    kept = [(n, s, float(own.sum())) for (own, s), n in fits if own.sum() >= FEWEST and n > 0]
    if len(kept) < 3 or kept[-1][0] < 1.2 * kept[0][0]:
        return None
    n, s, pairs = (np.array(column) for column in zip(*kept, strict=True))
    x, y, weight = np.log(n / 1000), np.log(s), np.sqrt(4 * pairs)
    (slope, offset), covariance = np.polyfit(x, y, 1, w=weight, cov="unscaled")
    return PhotonLaw(
        photons=tuple(n.tolist()),
        sigma_nm=tuple(s.tolist()),
        error_nm=tuple((s / (2 * np.sqrt(pairs))).tolist()),
        scale_nm=math.exp(float(offset)),
        exponent=-float(slope),
        exponent_error=math.sqrt(float(covariance[0, 0])),
    )
