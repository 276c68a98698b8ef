"""Molecules and background of a movie, from the moments of its light: no molecule is localized."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import final

import torch

from decode.defects import Counts, screened
from decode.estimation.background import background_contrast, background_drift
from decode.estimation.fit import Fit
from decode.estimation.frames import Estimate
from decode.estimation.model import Model
from decode.estimation.moments import Moments, measure
from decode.optics.camera import Camera
from decode.optics.psf import PSF
from decode.priors.scene import Scene
from decode.progress import Progress, Steps, Stepwise, part
from decode.ranges import Range

__all__ = ["SceneEstimate", "estimate_scene"]

ON_TIME_ERROR = 0.03
"""relative error of the on-time beyond that of the moments, over simulated movies of 400 frames"""
WIDTH_ERROR = 0.01
"""as `ON_TIME_ERROR`, for the width of a PSF"""
DEPTH_ERROR = 0.07
"""as `ON_TIME_ERROR`, for the ends of the depth, relative to half of the PSF's range; over 88
movies of 300 frames"""
SHORTEST_ON_TIME = 0.2
"""mean on-time, in frames, below which no light is seen to return in the next frame: movies of 100
frames of 96 x 96 pixels with 0.2 molecules a square micrometre and frame show it down to 0.2
frames"""


@final
@dataclass(frozen=True, kw_only=True)
class SceneEstimate:
    """Estimates of a movie's molecules and background, each with its 95 % interval."""

    background_photons: Estimate
    """mean background per pixel, photons"""
    background_contrast: Estimate
    """standard deviation of the logarithm of the background over the field"""
    background_drift: Estimate
    """relative change of the background from frame to frame"""
    density_per_um2: Estimate
    """molecules on at once, per square micrometre, mean over field and time"""
    flux_photons: Estimate
    """mean photons of a molecule in a frame during which it is on throughout"""
    flux_variation: Estimate
    """standard deviation of the flux over its mean, between molecules"""
    on_time_frames: Estimate
    """mean time a molecule stays on"""
    psf_blur_nm: Estimate | None
    """standard deviation of the Gaussian that widens the given PSF to the movie's; None for a
    `GaussianPSF`"""
    psf_sigma_nm: Estimate | None
    """width in focus; None for any other PSF"""
    z_low_nm: Estimate | None
    """lowest depth of molecules; None for a PSF that is the same at every z"""
    z_high_nm: Estimate | None
    """upper end"""
    misfit: float
    """root mean square of the residual moments over their standard errors; about 1 where the model
    is right"""

    def scene(self) -> Scene:
        """The scene of these numbers, without their intervals; molecules lie anywhere."""

        def fixed(estimate: Estimate) -> Range:
            return (estimate.value, estimate.value)

        depth = (0.0, 0.0)
        if self.z_low_nm is not None and self.z_high_nm is not None:
            depth = (self.z_low_nm.value, max(self.z_low_nm.value, self.z_high_nm.value))
        return Scene(
            density_per_um2=fixed(self.density_per_um2),
            flux_photons=fixed(self.flux_photons),
            flux_variation=fixed(self.flux_variation),
            on_time_frames=fixed(self.on_time_frames),
            z_nm=depth,
            filaments=0.0,
            background_photons=fixed(self.background_photons),
            background_contrast=fixed(self.background_contrast),
            background_drift=fixed(self.background_drift),
        )

    def __str__(self) -> str:
        stated = {field.name: getattr(self, field.name) for field in fields(self)}
        estimates = {name: value for name, value in stated.items() if isinstance(value, Estimate)}
        return "\n".join(f"{name}: {value}" for name, value in estimates.items())


@Stepwise
@torch.no_grad()
def estimate_scene(
    movie: Counts,
    camera: Camera,
    psf: PSF,
    *,
    z_range_nm: tuple[float, float] | None = None,
) -> Steps[SceneEstimate]:
    """Molecules and background of a raw movie, by the generalized method of moments.

    The method is Hansen's (Econometrica 50, 1982).  Cumulants of molecules that blink independently
    add up, so that each of these means over pixels and time is linear in the density, however
    unevenly molecules lie (the reasoning of fluorescence fluctuation spectroscopy: Magde, Elson and
    Webb, Phys. Rev. Lett. 29, 705, 1972):

    - the mean light: background + density * flux;
    - the covariance of light at two pixels and frames, density * E[flux^2] * (on-time's part) *
      (PSF's autocorrelation): it holds no noise, and decays with the frames between as exp(-frames
      / on-time), and with the pixels between by the PSF's width and depth;
    - the logarithm of the mean of exp(-s light), which a photon counting histogram (Chen, Mueller,
      So and Gratton, Biophys. J. 77, 553, 1999) holds too: at large s all molecules count alike,
      and the darkest times count most, which separates background, many dim molecules and few
      bright ones.

    Molecules whose light does not return in the next frame are taken to be on for one frame:
        density and flux are then those of a frame.

    Where molecules crowd so much that pixels are hardly ever dark (some ten on at once per square
    micrometre), light that never goes off counts as background, which then comes out too high
    and the density too low.

    Args:
        movie: (frame, y, x) ADU.
        camera: gives light and noise; its maps cover the movie's frames.
        psf: the calibrated PSF; its pixel size is the movie's.
        z_range_nm: depths at which molecules may lie; None takes those that the PSF covers.

    Raises:
        ValueError: in one sentence, if the movie is too short or too small, or no molecules blink
            in it.
    """
    movie, camera, numbers = screened(movie, camera)
    moments = yield from part(measure.steps(movie, camera, numbers), 0.0, 0.7)
    if moments.lag is None:
        raise ValueError(
            "no molecules are seen to blink in this movie: the light of neighbouring pixels does "
            "not rise and fall together; check the camera file, or take a part of the movie in "
            "which molecules blink"
        )
    limits = psf.z_range_nm
    if limits is not None and z_range_nm is not None:
        limits = z_range_nm
    model = Model.of(moments, psf, limits)
    yield Progress(0.7, "estimating molecules and background from these moments")
    fit = Fit.of(moments, model)
    yield Progress(1.0, "writing down what was found")
    return _scene(fit, model, moments)


def _scene(fit: Fit, model: Model, moments: Moments) -> SceneEstimate:
    found = fit.parameters
    n = _number_of_molecules(fit, model, moments)
    on_time = Estimate(1.0, SHORTEST_ON_TIME, 1.0, n)
    if moments.lag:
        on_time = fit.positive(lambda p: p.on_time, n, model_error=ON_TIME_ERROR)
    free_width = model.psf.free_width
    return SceneEstimate(
        background_photons=fit.positive(lambda p: p.background, moments.n),
        background_contrast=background_contrast(moments, model, found),
        background_drift=background_drift(moments, model, found),
        density_per_um2=fit.positive(lambda p: p.density, n),
        flux_photons=fit.positive(lambda p: p.flux, n),
        flux_variation=fit.positive(lambda p: p.flux_variation, n),
        on_time_frames=on_time,
        psf_blur_nm=None if free_width else _blur_nm(fit, model, n),
        psf_sigma_nm=_sigma_nm(fit, n) if free_width else None,
        z_low_nm=_end_of_depth(fit, model, n, end=0),
        z_high_nm=_end_of_depth(fit, model, n, end=1),
        misfit=fit.misfit,
    )


def _number_of_molecules(fit: Fit, model: Model, moments: Moments) -> int:
    """Number of molecules that were on in the frames and pixels used."""
    area_um2 = moments.n / moments.frames * model.pixel_um2
    switchings = 1 + moments.frames / model.on_time(fit.parameters)
    return round(fit.parameters.density * area_um2 * switchings)


def _sigma_nm(fit: Fit, n: int) -> Estimate:
    """Width in focus of a Gaussian PSF."""
    return fit.positive(lambda p: math.exp(p.width), n, model_error=WIDTH_ERROR)


def _blur_nm(fit: Fit, model: Model, n: int) -> Estimate:
    """Standard deviation of the Gaussian that blurs any other PSF."""
    # the Gaussian whose square has the same sum, 1 / (4 pi sigma^2)
    sigma2_px = 1 / (4 * math.pi * float(model.image(fit.parameters).autocorrelation[0]))
    variance = fit.bounded(
        lambda p: p.width,
        n,
        model_error=2 * WIDTH_ERROR * sigma2_px,
        bounds=(0.0, math.inf),
    )
    ends = (variance.value, variance.low, variance.high)
    value, low, high = (model.psf.pixel_size_nm * math.sqrt(end) for end in ends)
    return Estimate(value, low, high, n)


def _end_of_depth(fit: Fit, model: Model, n: int, *, end: int) -> Estimate | None:
    """Lowest (0) or highest (1) z of molecules."""
    if model.z_range_nm is None:
        return None
    low, high = model.z_range_nm
    return fit.bounded(
        lambda p: model.z_nm(p)[end],
        n,
        model_error=DEPTH_ERROR * (high - low) / 2,
        bounds=model.z_range_nm,
    )
