"""BeadView: the z-stack of one bead as a linear function of the coefficients of a spline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from decode.calibrate.bead_fit import BeadFit
from decode.calibrate.beads import BeadSet
from decode.optics.spline import SplinePSF

__all__ = ["BeadView", "expected_photons", "images_of", "views_of"]


@final
class BeadView:
    """The linear map from the coefficients of a spline to the z-stack of one bead: weights along z,
    y and x.

    The lateral jitter of the stage is small and enters to first order, by the slopes.

    Args:
        psf: gives the voxels; its coefficients do not matter.
        xyz: (3,) nm, from the outer corner of the crop.
        jitter: (z, 3) nm between actual and nominal position of the stage.
        z_nm: (z,) nominal depth of the planes.
        side: side of the crop, pixels.
    """

    def __init__(
        self, psf: SplinePSF, *, xyz: Tensor, jitter: Tensor, z_nm: Tensor, side: int
    ) -> None:
        z = z_nm + xyz[2] + jitter[:, 2]
        self.z, self.dz = psf.along_z(z), psf.slopes_along_z(z)
        (self.x, self.dx), (self.y, self.dy) = psf.across(xyz[:2], side)
        self.jitter = jitter
        self.steady = not bool(jitter[:, :2].any())

    def image(self, c: Tensor) -> Tensor:
        """(z, y, x) fraction of light in each pixel."""
        rows = self.y @ c
        image = mix(self.z, rows @ self.x.T)
        if self.steady:
            return image
        by_x = mix(self.z, rows @ self.dx.T)
        by_y = mix(self.z, self.dy @ c @ self.x.T)
        return image + self.jitter[:, 0, None, None] * by_x + self.jitter[:, 1, None, None] * by_y

    def adjoint(self, image: Tensor) -> Tensor:
        """The transpose of `image`: (z, y, x) pixels to (z, y, x) coefficients."""
        plain = mix(self.z.T, image)
        if self.steady:
            return self.y.T @ (plain @ self.x)
        by_x = mix(self.z.T, self.jitter[:, 0, None, None] * image)
        by_y = mix(self.z.T, self.jitter[:, 1, None, None] * image)
        return self.y.T @ (plain @ self.x + by_x @ self.dx) + self.dy.T @ (by_y @ self.x)

    def slopes(self, c: Tensor) -> Tensor:
        """(3, z, y, x) derivatives of `image` along x, y and z, per nm."""
        rows = self.y @ c
        by_x = mix(self.z, rows @ self.dx.T)
        by_y = mix(self.z, self.dy @ c @ self.x.T)
        by_z = mix(self.dz, rows @ self.x.T)
        return torch.stack([by_x, by_y, by_z])


def mix(weights: Tensor, planes: Tensor) -> Tensor:
    """Weighted sums of planes: (m, n) and (n, y, x) to (m, y, x)."""
    return (weights @ planes.flatten(1)).view(len(weights), *planes.shape[1:])


def views_of(fit: BeadFit[SplinePSF], beads: BeadSet) -> list[BeadView]:
    """A view of each bead at its fitted position."""
    return [
        BeadView(fit.psf, xyz=xyz, jitter=jitter, z_nm=beads.z_nm, side=beads.side_px)
        for xyz, jitter in zip(fit.xyz, fit.jitter, strict=True)
    ]


def images_of(views: Sequence[BeadView], basis: Tensor, coefficients: Tensor) -> Tensor:
    """Images of beads whose coefficients are weighted sums of a few stacks.

    Args:
        views: views of n beads.
        basis: (n, terms) weight of each stack in each bead.
        coefficients: (terms, z, y, x).

    Returns:
        (n, z, y, x) fraction of light in each pixel.
    """
    own = (torch.tensordot(weights, coefficients, 1) for weights in basis)
    return torch.stack([view.image(c) for view, c in zip(views, own, strict=True)])


def expected_photons(fit: BeadFit[SplinePSF], images: Tensor) -> Tensor:
    """(n, z, y, x) expected photons of beads with these images, by the fit's photons and
    background."""
    return fit.photons[..., None, None] * images + fit.background[:, None, None, None]
