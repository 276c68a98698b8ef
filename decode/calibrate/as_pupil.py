"""as_pupil: the pupil whose images are closest to those of any PSF."""

from __future__ import annotations

from dataclasses import replace

import torch

from decode.calibrate.pupil import PupilFit, fit_pupil
from decode.optics.psf import PSF
from decode.optics.pupil import PupilPSF

__all__ = ["as_pupil"]

PHOTONS, BACKGROUND = 5000.0, 20.0
"""of the images that are compared: they say how much a pixel counts"""


@torch.no_grad()
def as_pupil(
    psf: PSF,
    z_range_nm: tuple[float, float],
    *,
    numerical_aperture: float = 1.45,
    wavelength_nm: float = 670.0,
    n_planes: int = 25,
) -> PupilFit:
    """Describe a PSF by aperture, aberrations and blur, as a network for many PSFs is told it.

    Aperture, blur and apodization are fitted too, and make up for a wavelength that is not quite right.

    Args:
        psf: any PSF of one place in the field.
        z_range_nm: depths to compare at.
        numerical_aperture, wavelength_nm: in oil, where the fit starts.
        n_planes: depths.

    Returns:
        The fit; its `misfit` is the mean squared difference over the noise of 5000 photons on 20 of background, and
        0 if the PSF is a pupil's.  Its PSF has an `offset_nm` that places it as `psf`, and its `photons` at each depth
        are those of the pupil for one of `psf`: above 1, as its rings reach beyond the patch of a spline.
    """
    side = min(psf.patch_px, 31)
    margin = (psf.patch_px - side) // 2
    middle = psf.patch_px * psf.pixel_size_nm / 2
    z = torch.linspace(*z_range_nm, n_planes)
    images = psf.integrate_pixels(torch.stack([torch.full_like(z, middle), torch.full_like(z, middle), z], 1))
    images = images[:, margin : margin + side, margin : margin + side].clamp_min(0)
    start = PupilPSF(
        numerical_aperture=numerical_aperture,
        wavelength_nm=wavelength_nm,
        pixel_size_nm=psf.pixel_size_nm,
        patch_px=side,
        scan="stage",
    )
    with torch.enable_grad():
        fit = fit_pupil(
            (PHOTONS * images + BACKGROUND)[None],
            z_nm=z,
            psf=start,
            free=[*start.parameter_names, "numerical_aperture"],
            max_images=n_planes,
        )
    # where the fit finds the one source is where the pupil's images are for an emitter in the middle
    found = fit.xyz_nm[0] - torch.tensor([side * psf.pixel_size_nm / 2] * 2 + [0.0])
    fit.psf.offset_nm += found
    return replace(fit, xyz_nm=fit.xyz_nm - found, photons=fit.photons / PHOTONS)
