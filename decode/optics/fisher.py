"""Cramer-Rao bound: the smallest spread any unbiased estimate of an isolated emitter can have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from decode.optics.camera import Camera, Noise
from decode.optics.psf import PSF

__all__ = ["AXES", "cramer_rao_bound", "fisher_information"]

AXES = ("x", "y", "z", "photons", "background")
"""unknowns of an emitter, in the order of rows and columns"""


@torch.no_grad()
def fisher_information(
    psf: PSF,
    camera: Camera,
    xyz: Tensor,
    photons: Tensor,
    background: Tensor,
    *,
    parameters: Tensor | None = None,
    axes: Sequence[str] = AXES,
    chunk: int = 1024,
) -> Tensor:
    """Fisher information of emitters that are each alone in one frame, on a flat background.

    A pixel of mean mu (photons) contributes (d mu)(d mu)^T / (excess_factor * mu / qe +
    noise_floor): shot noise plus a Gaussian floor (sCMOS: Huang et al., Nature Methods 10, 653,
    2013; EMCCD with twice the shot noise: Mortensen et al., Nature Methods 7, 377, 2010).  The
    information in dim pixels is in truth higher: at 2 photons a pixel by 4 % (read noise 1.6 e-)
    and 13 % (EMCCD), as single electrons can be distinguished from none.

    The whole patch counts, also where it extends beyond the frame.  Camera maps (..., y, x) are
    read at the patch's pixels; beyond the sensor the nearest pixel is taken.

    Args:
        psf: the point spread function.
        camera: gives the noise; its maps cover the frame that `xyz` refers to.
        xyz: (n, 3) nm, from the outer corner of pixel (0, 0).
        photons: (n,) photons before quantum efficiency.
        background: (n,) photons per pixel, or one number for all.
        parameters: (n, p) PSF parameters per emitter, or None.
        axes: the unknowns, of `AXES`; the others are taken as known.
        chunk: emitters worked on at a time.

    Returns:
        (n, p, p) float64 in the order of `axes`, units 1 / (nm or photons)^2.

    Raises:
        ValueError: if an axis is not one of `AXES`.
    """
    if unknown := set(axes) - set(AXES):
        raise ValueError(f"axes {sorted(unknown)} are not known, choose from {', '.join(AXES)}")
    background = torch.as_tensor(background, dtype=xyz.dtype, device=xyz.device).expand(len(xyz))
    rows = [AXES.index(axis) for axis in axes]
    information = [torch.zeros(0, len(rows), len(rows), dtype=torch.float64, device=xyz.device)]
    for i in range(0, len(xyz), chunk):
        part = slice(i, i + chunk)
        own = None if parameters is None else parameters[part]
        mean, slope, corner = _mean_and_slope(psf, xyz[part], photons[part], background[part], own)
        variance = _at_patches(camera.noise, corner, psf.patch_px).variance(mean, darkest=0.0)
        slope = slope[:, rows].flatten(2).double()
        information.append(
            torch.einsum("nik,njk,nk->nij", slope, slope, 1 / variance.flatten(1).double())
        )
    return torch.cat(information)


def cramer_rao_bound(
    psf: PSF,
    camera: Camera,
    xyz: Tensor,
    photons: Tensor,
    background: Tensor,
    *,
    parameters: Tensor | None = None,
    two_d: bool = False,
) -> Tensor:
    """Square root of the Cramer-Rao bound of isolated emitters, every parameter of which is
    unknown.

    Arguments are those of `fisher_information`; `two_d` takes z as known.

    Returns:
        (n, 5) standard deviations of x, y, z [nm], photons and background [photons per pixel],
        dtype of `xyz`; NaN for z where `two_d`, and for whatever the image does not depend on (z of
        a PSF that is the same at every z); infinite where parameters cannot be distinguished.

    Example:
        >>> from decode import Camera, GaussianPSF
        >>> bound = cramer_rao_bound(
        ...     GaussianPSF(130.0, pixel_size_nm=100.0),
        ...     Camera(baseline=100.0, e_per_adu=1.0, read_noise_e=1.0),
        ...     xyz=torch.tensor([[1600.0, 1600.0, 0.0]]),
        ...     photons=torch.tensor([1000.0]),
        ...     background=torch.tensor([10.0]),
        ... )
        >>> 130 / 1000**0.5 < float(bound[0, 0]) < 8  # nm; above sigma / sqrt(photons)
        True
    """
    information = fisher_information(psf, camera, xyz, photons, background, parameters=parameters)
    if two_d:
        information[:, 2, :] = information[:, :, 2] = 0
    own = information.diagonal(dim1=1, dim2=2)
    known = own == 0
    scale = torch.where(known, 1.0, own.sqrt())
    # correlations, not information, are inverted: units of nm and photons differ by orders of
    # magnitude
    correlation = information / (scale[:, :, None] * scale[:, None, :]) + torch.diag_embed(
        known.double()
    )
    inverse, singular = torch.linalg.inv_ex(correlation)
    bound = inverse.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt() / scale
    bound = torch.where(singular[:, None] > 0, torch.inf, bound)
    return torch.where(known, torch.nan, bound).to(xyz.dtype)


def _mean_and_slope(
    psf: PSF, xyz: Tensor, photons: Tensor, background: Tensor, parameters: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean photons (n, k, k), their derivatives (n, 5, k, k) in the order of `AXES`, and patch
    corners (n, 2)."""
    corner = torch.floor(xyz[:, :2] / psf.pixel_size_nm).long() - psf.patch_px // 2
    inside = xyz.clone()
    inside[:, :2] -= corner * psf.pixel_size_nm
    image = psf.integrate_pixels_with_slopes(inside, parameters)
    share, slopes = image[:, :1], image[:, 1:]
    light = photons[:, None, None, None]
    mean = (light * share)[:, 0] + background[:, None, None]
    return mean, torch.cat([light * slopes, share, torch.ones_like(share)], 1), corner


def _at_patches(noise: Noise, corner: Tensor, patch_px: int) -> Noise:
    """The noise at the pixels of each patch: (n, patch_px, patch_px) of a map, one number of
    one."""
    pixels = corner[:, :, None] + torch.arange(patch_px, device=corner.device)

    def at_patches(value: Tensor) -> Tensor:
        value = value.to(corner.device)
        if value.numel() == 1:
            return value.reshape(1, 1, 1)
        height, width = value.shape[-2:]
        column, row = pixels[:, 0].clamp(0, width - 1), pixels[:, 1].clamp(0, height - 1)
        return value.reshape(height, width)[row[:, :, None], column[:, None, :]]

    return noise.map(at_patches)
