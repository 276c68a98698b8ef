"""as_pupil: the pupil whose images are closest to those of any PSF."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from decode.calibrate.pupil import PupilFit, fit_pupil
from decode.conditioning import AstigmaticPupil, CalibratedPupil, KnownOptics
from decode.io.psfs import PSFFile
from decode.models import load_model, shipped_models
from decode.optics.psf import PSF
from decode.optics.pupil import PupilPSF

__all__ = ["WAVELENGTH_NM", "as_pupil", "calibrated_pupil", "unserved_psf", "with_pupil"]

PHOTONS, BACKGROUND = 5000.0, 20.0
"""photons of the compared images, and their background per pixel, which weight the pixels"""
WAVELENGTH_NM = 670.0
"""wavelength in oil for a PSF that states none; it is not fitted"""
MAX_MISFIT = 0.3
"""largest misfit of a PSF that counts as a pupil's: splines from astigmatic beads have 0.02 to
0.06, a vortex 1.5"""


def calibrated_pupil(file: PSFFile) -> CalibratedPupil:
    """The pupil with the same images as a calibrated PSF; takes seconds, unless the file holds it.

    Raises:
        ValueError: if no pupil with a cylindrical lens has such images.
    """
    if file.pupil is not None:
        return file.pupil
    if isinstance(file.psf, PupilPSF):
        return CalibratedPupil(psf=file.psf)
    fit = as_pupil(file.psf, file.z_range_nm)
    if fit.misfit > MAX_MISFIT:
        raise ValueError(
            "this model serves pupils with a cylindrical lens, which the PSF is not (its images "
            f"differ by {fit.misfit:.2g} times the variance of noise at 5000 photons)"
        )
    z = torch.linspace(*file.z_range_nm, len(fit.photons))
    return CalibratedPupil(psf=fit.psf, z_nm=tuple(z.tolist()), light=tuple(fit.photons.tolist()))


def with_pupil(file: PSFFile) -> PSFFile:
    """The calibration with the pupil that has the same images, if one has: what every localization
    in 3D asks for."""
    if file.z_range_nm[0] == file.z_range_nm[1] or isinstance(file.psf, PupilPSF):
        return file
    try:
        return replace(file, pupil=calibrated_pupil(file))
    except ValueError:
        return file


def unserved_psf(file: PSFFile) -> str:
    """Why no shipped model takes a calibrated PSF in 3D, in a sentence; "" where one does.

    Takes seconds for a PSF that is no pupil, unless the file holds the pupil with its images.
    """
    why = []
    optics = KnownOptics(
        pixel_size_nm=file.psf.pixel_size_nm,
        psf_pixel_size_nm=file.psf.pixel_size_nm,
        pupil=partial(calibrated_pupil, file),
    )
    for name in shipped_models():
        domain = load_model(name).domain
        if domain.kind is not AstigmaticPupil:
            continue
        try:
            domain.conditioning(optics)
        except ValueError as error:
            why.append(f"{name}: {error}")
        else:
            return ""
    return f"no shipped model takes this PSF in 3D ({'; '.join(why)})"


@torch.no_grad()
def as_pupil(
    psf: PSF,
    z_range_nm: tuple[float, float],
    *,
    numerical_aperture: float = 1.45,
    wavelength_nm: float = WAVELENGTH_NM,
    n_planes: int = 25,
) -> PupilFit:
    """Describe a PSF by aperture, aberrations and blur, on which a network for many PSFs is
    conditioned.

    Aperture, blur and apodization are fitted too, which compensates for small errors of the
    wavelength.

    Args:
        psf: any PSF of one place in the field.
        z_range_nm: depths at which images are compared.
        numerical_aperture, wavelength_nm: values in oil at which the fit starts.
        n_planes: number of depths.

    Returns:
        The fit; its `misfit` is the mean squared difference over the noise of 5000 photons on 20 of
        background, and 0 if the PSF is a pupil's.  Its PSF has an `offset_nm` that places it as
        `psf`, and its `photons` at each depth are those of the pupil per photon of `psf`; they
        exceed 1, as a pupil's rings extend beyond the patch of a spline.
    """
    side = min(psf.patch_px, 31)
    margin = (psf.patch_px - side) // 2
    middle = psf.patch_px * psf.pixel_size_nm / 2
    z = torch.linspace(*z_range_nm, n_planes)
    images = psf.integrate_pixels(
        torch.stack([torch.full_like(z, middle), torch.full_like(z, middle), z], 1)
    )
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
    # where the fit finds the one source is where the pupil's images are for an emitter in the
    # middle
    found = fit.xyz_nm[0] - torch.tensor([side * psf.pixel_size_nm / 2] * 2 + [0.0])
    fit.psf.offset_nm += found
    return replace(fit, xyz_nm=fit.xyz_nm - found, photons=fit.photons / PHOTONS)
