"""SplinePSF: a cubic spline through a measured or computed z-stack."""

from __future__ import annotations

from math import ceil
from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from scipy.ndimage import spline_filter
from torch import Tensor, nn

from decode.optics.psf import PSF

__all__ = ["SplinePSF", "spline_weights"]


@final
class SplinePSF(PSF):
    """A cubic B-spline in x, y and z, as in Babcock and Zhuang, Sci. Rep. 7, 552 (2017); twice differentiable.

    Beyond its sides the spline goes on with coefficients of 0, so that light falls smoothly to nothing within two
    voxels; a patch then holds the same light wherever in its pixel the emitter sits.  Beyond its first and last plane
    it stays as it is there; the mirror assumed there makes it level off, which is felt for two planes inward.

    Args:
        coefficients: (z, y, x) of the spline; `from_stack` computes them.
        z_start_nm: z of the first plane.
        z_step_nm: distance between planes.
        pixel_size_nm: side of a camera pixel, nm.
        centre_px: x, y of the emitter in voxels, from the outer corner of voxel (0, 0); None: the middle.
        oversampling: voxels along the side of a camera pixel.
        patch_px: side of the patch drawn around an emitter; None: large enough for all the light.

    Raises:
        ValueError: if the coefficients are no stack, or a size is not positive.
    """

    def __init__(
        self,
        coefficients: Tensor,
        *,
        z_start_nm: float,
        z_step_nm: float,
        pixel_size_nm: float,
        centre_px: tuple[float, float] | None = None,
        oversampling: int = 1,
        patch_px: int | None = None,
    ) -> None:
        if coefficients.ndim != 3 or not coefficients.numel():
            raise ValueError(f"the PSF stack has shape {tuple(coefficients.shape)}, expected (z, y, x)")
        if not (z_step_nm > 0 and oversampling >= 1):
            raise ValueError(f"z_step_nm ({z_step_nm}) and oversampling ({oversampling}) must be positive")
        height, width = coefficients.shape[1:]
        x, y = centre_px or (width / 2, height / 2)
        reach = max(x, width - x, y, height - y) + 1.5
        super().__init__(pixel_size_nm, patch_px or 2 * ceil(reach / oversampling - 0.5) + 1)
        self.coefficients = nn.Parameter(coefficients)
        self.z_start_nm = z_start_nm
        self.z_step_nm = z_step_nm
        self.centre_px = (x, y)
        self.oversampling = oversampling

    @staticmethod
    def from_stack(
        stack: ArrayLike,
        *,
        z_start_nm: float,
        z_step_nm: float,
        pixel_size_nm: float,
        centre_px: tuple[float, float] | None = None,
        oversampling: int = 1,
        patch_px: int | None = None,
    ) -> SplinePSF:
        """The spline through a stack.

        Args:
            stack: (z, y, x) the fraction of the photons that a camera pixel centred on this voxel catches.
            z_start_nm, z_step_nm, pixel_size_nm, centre_px, oversampling, patch_px: as for `SplinePSF`.

        Raises:
            ValueError: if a plane holds more than all light, or anything is not finite.
        """
        values = np.asarray(stack, dtype=np.float64)
        if values.ndim != 3 or not values.size:
            raise ValueError(f"the PSF stack has shape {values.shape}, expected (z, y, x)")
        if not np.isfinite(values).all():
            raise ValueError("the PSF stack holds values that are not finite")
        light = values.sum((1, 2)).max() / oversampling**2
        if light > 1.001:
            raise ValueError(f"a plane of the PSF stack holds {light:.4g} of the light; divide the stack by this")
        return SplinePSF(
            torch.as_tensor(spline_filter(values, order=3, mode="mirror"), dtype=torch.get_default_dtype()),
            z_start_nm=z_start_nm,
            z_step_nm=z_step_nm,
            pixel_size_nm=pixel_size_nm,
            centre_px=centre_px,
            oversampling=oversampling,
            patch_px=patch_px,
        )

    def integrate_pixels(self, xyz: Tensor, parameters: Tensor | None = None) -> Tensor:
        # all pixels of an emitter lie alike between the voxels, so that one set of four weights an axis does for them
        plane, weight_z = self.planes(xyz[:, 2])
        (column, row), weight = self._voxels(xyz[:, :2])
        # a product with all planes, most of whose weights are 0, is faster than picking four
        mixing = weight_z.new_zeros(len(plane), len(self.coefficients)).scatter_add(1, plane, weight_z)
        padded = F.pad(self.coefficients, (1, 1, 1, 1)).to(mixing.dtype)
        image = (mixing @ padded.flatten(1)).view(-1, *padded.shape[1:])
        image = image.gather(1, row[:, :, None].expand(-1, -1, image.shape[2]))
        image = image.gather(2, column[:, None, :].expand(-1, image.shape[1], -1))
        image = torch.einsum("nyxj,nj->nyx", image.unfold(1, 4, self.oversampling), weight[:, 1])
        return torch.einsum("nyxj,nj->nyx", image.unfold(2, 4, self.oversampling), weight[:, 0])

    def moved(self, centre_px: tuple[float, float]) -> SplinePSF:
        """The same image, with the emitter at another place of it (as `centre_px` of the class)."""
        return SplinePSF(
            self.coefficients.detach(),
            z_start_nm=self.z_start_nm,
            z_step_nm=self.z_step_nm,
            pixel_size_nm=self.pixel_size_nm,
            centre_px=centre_px,
            oversampling=self.oversampling,
            patch_px=self.patch_px,
        )

    def planes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The planes around each depth (n, 4), and their weights (n, 4)."""
        planes = len(self.coefficients)
        z = (z - self.z_start_nm) / self.z_step_nm if planes > 1 else torch.zeros_like(z)
        plane, weight = spline_weights(z.clamp(0, planes - 1), limit=max(planes - 2, 0))
        # mirrored, as the coefficients were made
        return (planes - 1 - (planes - 1 - plane.abs()).abs()).clamp_min(0), weight

    def _voxels(self, xy: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Columns and rows of the padded coefficients that each patch reads (n, m), and weights (n, axis, 4)."""
        height, width = self.coefficients.shape[1:]
        corner = xy.new_tensor(self.centre_px) + self.oversampling / 2 - 0.5
        first, weight = spline_weights(corner - xy * (self.oversampling / self.pixel_size_nm))
        reach = torch.arange(self.oversampling * (self.patch_px - 1) + 4, device=xy.device)
        # a border of zeros stands for everything outside
        voxel = (first[..., :1] + reach).clamp_min(-1) + 1
        return (voxel[:, 0].clamp_max(width + 1), voxel[:, 1].clamp_max(height + 1)), weight


def spline_weights(position: Tensor, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """The four coefficients a cubic B-spline takes at a position: their indices (..., 4) and weights (..., 4)."""
    below = torch.floor(position.detach())
    below = below if limit is None else below.clamp_max(limit)
    t = position - below
    s = 1 - t
    weights = torch.stack([s**3, 4 - 6 * t**2 + 3 * t**3, 4 - 6 * s**2 + 3 * s**3, t**3], -1) / 6
    return below.long()[..., None] + torch.arange(-1, 3, device=position.device), weights
