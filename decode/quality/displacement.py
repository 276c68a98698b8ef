"""Displacement: how the pictures of some molecules lie against those of others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import final

import numpy as np
import numpy.typing as npt
from scipy import fft
from scipy.interpolate import RectBivariateSpline
from scipy.optimize import minimize

from decode.quality.spectrum import Localizations, Tiling

__all__ = ["Displacement", "displacement_of"]

Floats = npt.NDArray[np.float64]

PIXELS = 256
"""longest side of a tile"""
KERNELS = (8.0, 4.0, 2.0, 1.0)
"""standard deviations of a localization: widths of the peaks that are looked for, in turn"""
SURROUND = 3.0
"""kernels of the wider Gaussian that is subtracted: correlation of dense regions is wide"""
REACH = 20.0
"""standard deviations of a localization over which displacements are looked for"""
LOST = 3.0
"""standard deviations of a localization: where both halves of the field differ by more, there is no
structure that tells the displacement"""


@final
@dataclass(frozen=True, kw_only=True)
class Displacement:
    """Displacement of each part of the localizations, by two halves of the field.

    The errors of both halves are independent: the mean of their product is the square of the
    displacement without that of its error.
    """

    first: Floats
    """(parts, 2) nm, by one half of the tiles, 0 on the average"""
    second: Floats
    """(parts, 2) nm, by the other"""
    weight: Floats
    """(parts,) share of the localizations"""
    told: bool
    """whether structure tells it"""

    @property
    def path(self) -> Floats:
        """(parts, 2) nm, the mean of both, shrunk so that its variance is `variance`."""
        mean = (self.first + self.second) / 2
        own = self.weight @ mean**2
        shrunk = np.sqrt(np.clip(self._products().sum(0), 0, None) / np.maximum(own, 1e-12))
        return np.asarray(mean * np.minimum(shrunk, 1.0))

    @property
    def variance(self) -> float:
        """nm^2, mean of x and y; may be negative by chance."""
        return float(self._products().sum() / 2)

    @property
    def error(self) -> float:
        """Standard error of `variance`, nm^2."""
        difference = self.weight @ (self.first - self.second) ** 2 / 2
        own = np.clip(self._products().sum(0), 0, None)
        # of n parts, each the product of two numbers with the error of a half of the field
        each = difference**2 + 2 * own * difference
        return float(np.sqrt(each.sum() * (self.weight**2).sum()) / 2)

    def _products(self) -> Floats:
        return np.asarray(self.weight[:, None] * self.first * self.second)


def displacement_of(seen: Localizations, sigma_nm: float) -> Displacement:
    """Displacements of parts of the localizations (`seen.block`) against each other.

    Pictures of all parts are correlated with each other in tiles; the displacements are those for
    which the sum of all correlations is largest, looked for with wide kernels first.  Tiles are
    taken as the fields of a chess board, white and black ones for themselves.

    Args:
        seen: in x and y.
        sigma_nm: standard deviation of a localization.
    """
    tiling = Tiling.over(
        seen.place,
        pixel=np.full(2, sigma_nm),
        longest=np.full(2, PIXELS * sigma_nm),
        fewest=4,
    )
    halves = [_sharpest(images, tiling, seen.n_blocks, sigma_nm) for images in _cross(seen, tiling)]
    weight = np.bincount(seen.block, minlength=seen.n_blocks) / len(seen)
    first, second = (found - weight @ found for found in halves)
    apart = math.sqrt(float((weight @ (first - second) ** 2).mean()) / 2)
    return Displacement(first=first, second=second, weight=weight, told=apart < LOST * sigma_nm)


def _cross(seen: Localizations, tiling: Tiling) -> list[dict[tuple[int, int], Floats]]:
    """Cross-spectra of each pair of parts, summed over white and over black tiles."""
    shape, parts = tiling.shape, range(seen.n_blocks)
    inside, weight = tiling.within(seen.place)
    sums: list[dict[tuple[int, int], Floats]] = [{}, {}]
    for rows in tiling.tiles(seen.place):
        square = np.floor((seen.place[rows[0]] - tiling.origin) / tiling.side).astype(int)
        half = sums[int(square.sum()) % 2]
        pixel = np.minimum((inside[rows] / tiling.pixel).astype(int), np.array(shape) - 1)
        flat = np.ravel_multi_index(tuple(pixel.T), shape)
        block = seen.block[rows]
        waves = [
            fft.rfft2(
                np.bincount(
                    flat[block == b], weight[rows][block == b], int(np.prod(shape))
                ).reshape(shape)
            )
            for b in parts
        ]
        for b, c in combinations(parts, 2):
            product = waves[c] * waves[b].conj()
            half[b, c] = half[b, c] + product if (b, c) in half else product
    return sums


def _sharpest(
    cross: dict[tuple[int, int], Floats], tiling: Tiling, n_parts: int, sigma_nm: float
) -> Floats:
    """(parts, 2) nm, the displacements with the largest sum of correlations."""
    found = np.zeros((n_parts, 2))
    if not cross:
        return found
    x, y = tiling.frequencies()
    square = (2 * np.pi) ** 2 * (x**2 + y**2)
    reach = int(REACH * sigma_nm / tiling.pixel[0])
    reach = min(reach, min(tiling.shape) // 2 - 1)
    axis = np.arange(-reach, reach + 1) * tiling.pixel[0]
    for kernel in KERNELS:
        width = kernel * sigma_nm
        band = np.exp(-0.5 * square * width**2) - np.exp(-0.5 * square * (SURROUND * width) ** 2)
        peaks = {}
        for pair, product in cross.items():
            image = fft.fftshift(fft.irfft2(product * band, s=tiling.shape))
            row, column = (n // 2 for n in tiling.shape)
            near = image[row - reach : row + reach + 1, column - reach : column + reach + 1]
            peaks[pair] = RectBivariateSpline(axis, axis, near, kx=3, ky=3)
        limit = float(axis[-1])
        found = _highest(peaks, found, limit)
    return found


def _highest(
    peaks: dict[tuple[int, int], RectBivariateSpline], start: Floats, limit: float
) -> Floats:
    pairs = np.array(list(peaks))

    def loss(flat: Floats) -> tuple[float, Floats]:
        at = flat.reshape(-1, 2)
        step = np.clip(at[pairs[:, 1]] - at[pairs[:, 0]], -limit, limit)
        value, slope = 0.0, np.zeros_like(at)
        for (b, c), (dx, dy) in zip(pairs, step, strict=True):
            spline = peaks[b, c]
            value -= float(spline.ev(dx, dy))
            pull = np.array([spline.ev(dx, dy, dx=1), spline.ev(dx, dy, dy=1)])
            slope[c] -= pull
            slope[b] += pull
        return value / scale, slope.ravel() / scale

    scale = 1.0
    scale = max(abs(loss(start.ravel())[0]), 1e-9)
    best = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 60})
    return np.asarray(best.x.reshape(-1, 2))
