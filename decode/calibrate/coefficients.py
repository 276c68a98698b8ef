"""Coefficients of splines by penalized least squares on images of beads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from decode.calibrate.bead_fit import BeadFit
from decode.calibrate.bead_view import BeadView, images_of, mix
from decode.optics.camera import Noise
from decode.optics.spline import SplinePSF
from decode.progress import Progress, Steps, Stepwise

__all__ = ["LeastSquares", "Penalty", "conjugate_gradients", "local_size"]

KNOT_NM = 30.0
"""distance of the spline's planes; measured PSFs change over some 100 nm of depth"""


def local_size(coefficients: Tensor, fit: BeadFit[SplinePSF], noise: Noise) -> Tensor:
    """Local size of the coefficients, at least the noise of a dark pixel.

    Args:
        coefficients: (z, y, x).
        fit: gives photons and background.
        noise: noise of the beads.
    """
    dark = noise.typical.variance(fit.background.mean())
    faintest = (dark / fit.photons.square().mean()).sqrt()
    smooth = gaussian_filter(coefficients.numpy(), (1, 3, 3))
    return torch.from_numpy(smooth).clamp_min(0) + float(faintest)


@final
class Penalty:
    """Half the sum of squared third differences along z, y and x, each over its expected size.

    Args:
        expected: (z, y, x) size of the differences along x and y.
        depth: size of the differences along z over `expected`.
        largest: (z, y, x) size of the coefficients themselves, whose squares are penalized, too;
            None: they are free.
    """

    def __init__(
        self, expected: Tensor, *, depth: float = 1.0, largest: Tensor | None = None
    ) -> None:
        self.differences = [
            torch.eye(size).diff(n=min(3, size - 1), dim=0) for size in expected.shape
        ]
        sizes = (depth * expected, expected, expected)
        self.weights = []
        for axis, (difference, size) in enumerate(zip(self.differences, sizes, strict=True)):
            mean = difference.abs() / difference.abs().sum(1, keepdim=True)
            self.weights.append(_along(axis, mean, size) ** -2)
        self.ridge = torch.zeros_like(expected) if largest is None else largest**-2
        squares = [difference.T**2 for difference in self.differences]
        parts = [_along(i, squares[i], weight) for i, weight in enumerate(self.weights)]
        self.diagonal = torch.stack(parts).sum(0) + self.ridge

    @classmethod
    def of(
        cls,
        size: Tensor,
        *,
        smoothness: float,
        depth_smoothness: float,
        z_step_nm: float,
        largest: Tensor | None = None,
    ) -> Penalty:
        """The penalty for a given smoothness.

        Args:
            size: (z, y, x) local size of the coefficients.
            smoothness: standard deviation of the third differences over `size`.
            depth_smoothness: the same along z, for planes `KNOT_NM` apart.
            z_step_nm: distance of the planes.
            largest: as for the class.
        """
        # a function whose third derivative is white noise has third differences that grow so with
        # their distance
        depth = depth_smoothness / smoothness * (z_step_nm / KNOT_NM) ** 2.5
        return cls(smoothness * size, depth=depth, largest=largest)

    def gradient(self, c: Tensor) -> Tensor:
        total = self.ridge * c
        for axis, difference in enumerate(self.differences):
            weighted = self.weights[axis] * _along(axis, difference, c)
            total = total + _along(axis, difference.T, weighted)
        return total


def _along(axis: int, matrix: Tensor, stack: Tensor) -> Tensor:
    """A matrix applied along an axis of a (z, y, x) stack."""
    if axis == 0:
        return mix(matrix, stack)
    return matrix @ stack if axis == 1 else stack @ matrix.T


@final
@dataclass(frozen=True, kw_only=True)
class LeastSquares:
    """Weighted squared residuals of images of beads, and the penalties of the coefficients.

    The coefficients (terms, z, y, x) of each bead are a weighted sum over the terms.
    """

    views: Sequence[BeadView]
    basis: Tensor
    """(n, terms) weight of each term in each bead"""
    photons: Tensor
    """(n, z) photons of each bead in each plane"""
    weight: Tensor
    """(n, z, y, x) inverse variance of each pixel"""
    penalties: Sequence[Penalty]
    """penalty of each term"""

    def diagonal(self, variance: Tensor, voxels_per_pixel: int) -> Tensor:
        """(terms, z, y, x) approximate diagonal of the normal equations.

        Args:
            variance: (z, y, x) approximate variance of the photons.
            voxels_per_pixel: number of the spline's voxels per pixel.
        """
        squares = (self.basis**2).T @ self.photons.square().sum(1)
        each = squares / len(variance) / voxels_per_pixel
        penalties = torch.stack([penalty.diagonal for penalty in self.penalties])
        return each[:, None, None, None] / variance + penalties

    def solve(
        self, signal: Tensor, *, start: Tensor, diagonal: Tensor, n_steps: int
    ) -> Steps[Tensor]:
        """(terms, z, y, x) coefficients by conjugate gradients.

        Args:
            signal: (n, z, y, x) photons without background.
            start: coefficients to start from.
            diagonal: about that of the normal equations.
            n_steps: most steps.
        """
        light = self.photons[..., None, None]
        right = self._adjoint(self.weight * light * signal)
        return conjugate_gradients.steps(
            self._normal, right, start=start, diagonal=diagonal, n_steps=n_steps
        )

    def _normal(self, c: Tensor) -> Tensor:
        """The matrix of the normal equations times coefficients."""
        light = self.photons[..., None, None]
        gradients = [penalty.gradient(own) for penalty, own in zip(self.penalties, c, strict=True)]
        images = images_of(self.views, self.basis, c)
        return torch.stack(gradients) + self._adjoint(self.weight * light**2 * images)

    def _adjoint(self, images: Tensor) -> Tensor:
        """The transpose of `images_of`."""
        total = torch.zeros(())
        for view, weights, image in zip(self.views, self.basis, images, strict=True):
            total = total + weights[:, None, None, None] * view.adjoint(image)
        return total


@Stepwise
def conjugate_gradients(
    normal: Callable[[Tensor], Tensor],
    right: Tensor,
    *,
    start: Tensor,
    diagonal: Tensor,
    n_steps: int,
) -> Steps[Tensor]:
    """Solve normal(x) = right from a start (Hestenes and Stiefel, J. Res. Natl. Bur. Stand. 49,
    409, 1952).

    Args:
        normal: a symmetric positive definite matrix, as the function that multiplies by it.
        right: the right-hand side.
        start: start value of x.
        diagonal: approximate diagonal of `normal`, by which directions are scaled.
        n_steps: most steps.
    """
    x = start
    residual = right - normal(x)
    scaled = residual / diagonal
    direction, square = scaled, (residual * scaled).sum()
    first = square
    for step in range(n_steps):
        yield Progress(step / n_steps)
        if square <= 1e-8 * first:
            break
        image = normal(direction)
        length = square / (direction * image).sum()
        x = x + length * direction
        residual = residual - length * image
        scaled = residual / diagonal
        square, last = (residual * scaled).sum(), square
        direction = scaled + square / last * direction
    return x
