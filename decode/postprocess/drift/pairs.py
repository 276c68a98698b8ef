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
NEIGHBOURS = 32
"""nearest localizations that tell the local direction of a structure"""
AT_ONCE = 2**12
"""localizations whose neighbours are compared at once, 20 MB"""


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
        across = force[:, None] * force[None] / (height + TINY)
        return self._squares(height * self.precision - across, basis)

    def scatter(self, drift: Floats, basis: sparse.csr_array) -> Floats:
        """(d k, d k) covariance of the gradient of the sum of heights, over other data.

        The sum is a U-statistic (Hoeffding, Ann. Math. Stat. 19, 293, 1948): the gradients g_i over
        the pairs of each localization vary independently, and each pair is in two of them, so the
        covariance is sum_i g_i g_i^T less sum_pairs g g^T.
        """
        _, force = self.forces(drift)
        of_each = np.concatenate([self._of_each(f, basis) for f in force], 1)
        return of_each.T @ of_each - self._squares(force[:, None] * force[None], basis)

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

    def _of_each(self, force: Floats, basis: sparse.csr_array) -> Floats:
        """(localizations, k) sums over the pairs of each of a force times the derivatives of the
        first one's drift less the second one's."""
        first, second = self.frames
        rows = np.tile(self.members.ravel(), 2)
        columns = np.concatenate([first, first, second, second])
        entries = np.concatenate([force, force, -force, -force])
        shape = (int(self.members.max()) + 1, basis.shape[0])
        return np.asarray(
            (sparse.csr_array((entries, (rows, columns)), shape=shape) @ basis).toarray()
        )

    def _squares(self, factor: Floats, basis: sparse.csr_array) -> Floats:
        """(d k, d k) sums over pairs of a factor (d, d, n) times the products of the derivatives of
        the first one's drift less the second one's.

        Pairs of the same two frames are summed first: there are fewer of these.
        """
        d, k = len(factor), basis.shape[1]
        frames, n = self.frames, basis.shape[0]
        blocks = np.zeros((d, k, d, k))
        for a in range(d):
            for b in range(a, d):
                own = factor[a, b]
                alone = np.bincount(frames[0], own, n) + np.bincount(frames[1], own, n)
                crossed = sparse.csr_array((own, (frames[0], frames[1])), shape=(n, n))
                whole = sparse.diags_array(alone) - crossed - crossed.T
                blocks[a, :, b] = (basis.T @ (whole @ basis)).toarray()
                blocks[b, :, a] = blocks[a, :, b].T
        return blocks.reshape(d * k, d * k)


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
    precision, determinant = _inverses(covariance)
    weight = 1 / np.sqrt(determinant)
    return Pairs(
        members=found.T,
        frames=seen.frame[found.T],
        difference=seen.place[first] - seen.place[second],
        precision=precision,
        weight=weight / weight.mean() if len(weight) else weight,
    )


def _structure(place: Floats, sigma: Floats, kernel_nm: float) -> Floats:
    """(n, d, d) nm^2 covariances of the nearest localizations on the same line, beyond their noise.

    Of the lines through a localization and one of its neighbours, the one along which most
    neighbours lie: those of structures that cross it are left out.
    """
    d = place.shape[1]
    tree = cKDTree(place)
    covariance = np.empty((len(place), d, d))
    for start in range(0, len(place), AT_ONCE):
        own = slice(start, start + AT_ONCE)
        _, rows = tree.query(place[own], NEIGHBOURS + 1)
        rows = rows[:, 1:]
        arms = place[rows] - place[own, None]
        noise = sigma[own, None] ** 2 + sigma[rows] ** 2
        wide = kernel_nm**2 + noise.mean(2)
        near = _on_line(arms.astype(np.float32), wide.astype(np.float32))
        total = near.sum(1)
        covariance[own] = np.einsum("nk,nka,nkb->nab", near, arms, arms) / total[:, None, None]
        excess = np.einsum("nk,nka->na", near, noise) / total[:, None]
        covariance[own, np.arange(d), np.arange(d)] -= excess
    value, vector = np.linalg.eigh(covariance)
    value = np.maximum(value, kernel_nm**2)
    return np.asarray(np.einsum("nab,nb,ncb->nac", vector, value, vector))


def _inverses(matrices: Floats) -> tuple[Floats, Floats]:
    """(d, d, n) inverses of symmetric matrices (n, d, d), and (n,) determinants, by cofactors; one
    by one, as numpy does it, takes three times as long."""
    count, d, _ = matrices.shape
    whole = np.zeros((3, 3, count))
    whole[range(3), range(3)] = 1.0
    whole[:d, :d] = matrices.transpose(1, 2, 0)
    turns = ((1, 2), (2, 0), (0, 1))
    cofactors = np.stack(
        [
            np.stack([whole[i, m] * whole[j, n] - whole[i, n] * whole[j, m] for m, n in turns])
            for i, j in turns
        ]
    )
    determinant = (whole[0] * cofactors[0]).sum(0)
    return cofactors[:d, :d] / determinant, determinant


def _on_line(arms: npt.NDArray[np.float32], wide: npt.NDArray[np.float32]) -> Floats:
    """(n, k) how near each neighbour is to the best of the lines, 1 on it.

    Args:
        arms: (n, k, d) nm from a localization to its neighbours.
        wide: (n, k) nm^2 within which a neighbour lies on a line.
    """
    square = (arms**2).sum(2)
    along = arms @ arms.transpose(0, 2, 1)
    across = square[:, None] - along**2 / np.maximum(square, 1e-6)[:, :, None]
    near = np.exp(-0.5 * across / wide[:, None])
    best = near.sum(2).argmax(1)
    return near[np.arange(len(near)), best].astype(np.float64)
