"""Pairs of localizations, and how well they agree once a drift is subtracted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.spatial import cKDTree

__all__ = ["Localizations", "Pairs", "pairs_within"]

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]

CROWD = 4
"""times as many are looked for, as those of neighbouring frames are left out"""
REACH = 2.5
"""standard deviations up to which two localizations are a pair"""
TINY = 1e-300
NEIGHBOURS = 16
"""nearest localizations that tell the local direction of a structure"""


@final
@dataclass(frozen=True, kw_only=True)
class Localizations:
    """Positions at their frames, in nm, along the axes in which they drift."""

    frame: Integers
    """(n,)"""
    place: Floats
    """(n, d)"""
    sigma: Floats
    """(n, d) standard deviations"""

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, rows: npt.NDArray[np.bool_] | Integers) -> Localizations:
        return Localizations(frame=self.frame[rows], place=self.place[rows], sigma=self.sigma[rows])

    @property
    def typical_sigma(self) -> Floats:
        """(d,) medians."""
        return np.asarray(np.median(self.sigma, axis=0))


@final
@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs of localizations that may show one structure."""

    members: Integers
    """(2, n) numbers of the localizations"""
    frames: Integers
    """(2, n) their frames"""
    difference: Floats
    """(n, d) nm, first less second, with the drift in it"""
    precision: Floats
    """(d, d, n) nm^-2: inverse covariance of their Gaussian"""
    weight: Floats
    """(n,) height of their Gaussian, 1 on the average"""

    def __len__(self) -> int:
        return len(self.weight)

    def agreement(self, drift: Floats) -> tuple[float, Floats]:
        """Sum of the heights of the pairs' Gaussians for a drift (frames, d), and its gradient."""
        height, force = self.forces(drift)
        first, second = self.frames
        n = len(drift)
        gradient = [np.bincount(first, f, n) - np.bincount(second, f, n) for f in force]
        return float(height.sum()), np.stack(gradient, 1)

    def curvature(self, drift: Floats, basis: sparse.csr_array) -> Floats:
        """(d k, d k) negative second derivatives of the sum of heights by the coefficients of a
        basis (frames, k), axis by axis."""
        height, force = self.forces(drift)
        slope = self._slope(basis)
        (d, _), k = force.shape, basis.shape[1]
        blocks = np.zeros((d, k, d, k))
        for a in range(d):
            for b in range(a, d):
                factor = height * self.precision[a, b] - force[a] * force[b] / (height + TINY)
                block = slope.T @ slope.multiply(factor[:, None])
                blocks[a, :, b] = blocks[b, :, a] = block.toarray()
        return blocks.reshape(d * k, d * k)

    def scatter(self, drift: Floats, basis: sparse.csr_array) -> Floats:
        """(d k, d k) covariance of the gradient of the sum of heights, over other data.

        The sum is a U-statistic (Hoeffding, Ann. Math. Stat. 19, 293, 1948): the gradients g_i over
        the pairs of each localization vary independently, and each pair is in two of them, so the
        covariance is sum_i g_i g_i^T less sum_pairs g g^T.
        """
        _, force = self.forces(drift)
        slope = self._slope(basis)
        own = sparse.hstack([slope.multiply(f[:, None]) for f in force]).tocsr()
        n = int(self.members.max()) + 1
        pairs = np.tile(np.arange(len(self)), 2)
        entries = (np.ones(2 * len(self)), (self.members.ravel(), pairs))
        of_each = sparse.csr_array(entries, shape=(n, len(self))) @ own
        return np.asarray((of_each.T @ of_each - own.T @ own).toarray())

    def forces(self, drift: Floats) -> tuple[Floats, Floats]:
        """(n,) heights, and (d, n) their derivatives by the drift of the first."""
        first, second = self.frames
        left = (self.difference - drift[first] + drift[second]).T
        pull = np.zeros_like(left)
        for a, row in enumerate(self.precision):
            for b, value in enumerate(row):
                pull[a] += value * left[b]
        height = self.weight * np.exp(-0.5 * (pull * left).sum(0))
        return height, height * pull

    def _slope(self, basis: sparse.csr_array) -> sparse.csr_array:
        """(n, k) derivatives of the first one's drift less the second one's."""
        first, second = self.frames
        return sparse.csr_array(basis[first] - basis[second])


def pairs_within(
    seen: Localizations,
    drift: Floats,
    *,
    kernel_nm: float,
    apart_frames: int,
    most: int,
    rng: np.random.Generator,
    along: bool = False,
) -> Pairs:
    """Pairs that lie near each other once a drift is subtracted.

    Args:
        seen: localizations.
        drift: (frames, d) nm.
        kernel_nm: standard deviation of the kernel, besides those of the localizations.
        apart_frames: fewest frames between both; nearer ones may show the same blink.
        most: largest number of pairs.
        rng: chooses them where there are more.
        along: kernels are longer along the structure that the nearest localizations form, as in
            manifold Parzen windows (Vincent and Bengio, NeurIPS 2002).
    """
    place = seen.place - drift[seen.frame]
    d = place.shape[1]
    kernel = np.broadcast_to(kernel_nm**2 * np.eye(d), (len(seen), d, d))
    longest = kernel_nm
    if along and len(seen) > NEIGHBOURS:
        kernel = _structure(place, seen.sigma, kernel_nm)
        longest = float(np.sqrt(np.median(np.trace(kernel, axis1=1, axis2=2))))
    spread = np.hypot(longest, np.sqrt(2) * seen.typical_sigma)
    scaled = place / spread
    tree = cKDTree(scaled)
    expected = (tree.count_neighbors(tree, REACH) - len(seen)) / 2
    chosen = np.arange(len(seen))
    if expected > CROWD * most:
        share = np.sqrt(CROWD * most / expected)
        chosen = np.flatnonzero(rng.random(len(seen)) < share)
        tree = cKDTree(scaled[chosen])
    found = chosen[tree.query_pairs(REACH, output_type="ndarray")]
    between = np.abs(seen.frame[found[:, 0]] - seen.frame[found[:, 1]])
    found = found[between > apart_frames]
    if len(found) > most:
        found = found[rng.choice(len(found), most, replace=False)]
    first, second = found.T
    covariance = (kernel[first] + kernel[second]) / 2
    noise = seen.sigma[first] ** 2 + seen.sigma[second] ** 2
    covariance[:, np.arange(d), np.arange(d)] += noise
    weight = 1 / np.sqrt(np.linalg.det(covariance))
    return Pairs(
        members=found.T,
        frames=seen.frame[found.T],
        difference=seen.place[first] - seen.place[second],
        precision=np.ascontiguousarray(np.linalg.inv(covariance).transpose(1, 2, 0)),
        weight=weight / weight.mean() if len(weight) else weight,
    )


def _structure(place: Floats, sigma: Floats, kernel_nm: float) -> Floats:
    """(n, d, d) nm^2 covariances of the nearest localizations beyond their noise."""
    d = place.shape[1]
    _, rows = cKDTree(place).query(place, NEIGHBOURS)
    around = place[rows] - place[rows].mean(1, keepdims=True)
    covariance = np.einsum("nka,nkb->nab", around, around) / (NEIGHBOURS - 1)
    covariance[:, np.arange(d), np.arange(d)] -= (sigma[rows] ** 2).mean(1)
    value, vector = np.linalg.eigh(covariance)
    value = np.maximum(value, kernel_nm**2)
    return np.asarray(np.einsum("nab,nb,ncb->nac", vector, value, vector))
