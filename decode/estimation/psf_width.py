"""The width of a roughly Gaussian PSF, from the movie alone."""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from decode.defects import Counts, screened
from decode.estimation.frames import Estimate, blur, gaussian_kernel, middle, read_frames, shape_of
from decode.optics.camera import Camera, Noise
from decode.optics.gaussian import GaussianPSF

__all__ = ["estimate_psf_sigma"]

START_PX = 1.3
"""sigma that the first search for spots assumes"""
FEWEST_MOLECULES = 20
"""fewest widths of which a mode is computed"""
FIRST_MOLECULES = 300
"""most molecules that are fitted before the search is repeated with the width found"""
CANDIDATE_SNR, SPOT_SNR = 4.0, 8.0
"""signal-to-noise ratios from which a maximum counts as a neighbour, and as a spot to fit"""
SCORING_STEPS = 20
"""number of scoring steps of a fit"""
GRID_STEP, LEAST_BLUR = 2e-3, 0.03
"""grid step and least blur of the density of the log widths, whose mode is taken"""
MODEL_ERROR = 0.02
"""relative standard deviation that noise does not explain, as from unseen neighbours: spread of the
error of the width over simulated movies (up to one molecule a um^2) less the part of the noise"""


@torch.no_grad()
def estimate_psf_sigma(
    movie: Counts,
    camera: Camera,
    pixel_size_nm: float,
    *,
    n_frames: int | None = None,
    max_molecules: int = 1000,
) -> Estimate:
    """In-focus width of a round Gaussian PSF, from a raw movie of blinking molecules.

    Bright spots without a visible neighbour are fitted by a Gaussian integrated over pixels.
    Unseen neighbours and defocus can only widen a spot, so the mode of the fitted widths is taken
    instead of their mean.

    Args:
        movie: (frame, y, x) ADU.
        camera: gives light and noise; its maps cover the movie's frames.
        pixel_size_nm: side of a pixel in object space.
        n_frames: number of frames to use, spread over the movie; None takes 100, and more of a
            small field.
        max_molecules: largest number of spots to fit.

    Returns:
        Standard deviation of the Gaussian in nm.

    Raises:
        ValueError: in one sentence, if too few molecules are bright and alone enough.
    """
    shape_of(movie)
    movie, camera, _ = screened(movie, camera)
    shape, total = shape_of(movie), len(movie)
    rows, columns = (middle(side) for side in shape[1:])
    pixels = (rows.stop - rows.start) * (columns.stop - columns.start)
    n_frames = min(total, n_frames or max(100, 2**22 // pixels))
    chosen = np.linspace(0, total - 1, n_frames).round().astype(int)
    camera = camera.crop(rows, columns)
    adu = torch.cat([read_frames(movie, i, i + 1, rows, columns).float() for i in chosen])
    light = camera.without_bad(camera.to_photons(adu))
    still = _what_lasts(light)
    sigma_px = START_PX
    for n_most in (min(FIRST_MOLECULES, max_molecules), max_molecules):
        spots = _isolated_spots(light - still, still, camera, sigma_px)
        chosen_spots = torch.linspace(0, len(spots) - 1, min(len(spots), n_most)).round().long()
        widths = torch.empty(0, 2)
        if len(spots):
            patches = _Patches.at(spots[chosen_spots], light, still, camera, _half(sigma_px))
            widths = _fit_widths(patches, sigma_px)
        if len(widths) < FEWEST_MOLECULES:
            raise ValueError(
                f"only {len(widths)} molecules are bright and alone enough to measure the PSF's "
                f"width ({FEWEST_MOLECULES} are needed); give --psf-sigma"
            )
        sigma_px, spread = _mode(widths)
    margin = math.exp(1.96 * math.hypot(spread, MODEL_ERROR))
    value = sigma_px * pixel_size_nm
    return Estimate(value, value / margin, value * margin, len(widths))


def _half(sigma_px: float) -> int:
    """Half the width of the patch of a spot, without the middle, pixels."""
    return math.ceil(2.5 * sigma_px)


def _what_lasts(light: Tensor) -> Tensor:
    """(frame, y, x) photons of steady light, scaled to the light of each frame.

    It is the mean of the darkest tenth of the frames, in which fewest molecules are on; its level
    bleaches.

    Args:
        light: (frame, y, x) photons.
    """
    n_frames = len(light)
    structure = torch.zeros_like(light[0])
    if n_frames >= 5:
        darkest = min(n_frames, max(3, n_frames // 10))
        structure = light.kthvalue(darkest, 0).values.clamp_min(0)
    # a photon keeps the ratio of dark frames finite
    level = light.flatten(1).median(1).values.clamp_min(0) + 1
    return structure * (level / (structure.median() + 1))[:, None, None]


def _noise_map(camera: Camera, shape: tuple[int, ...]) -> Noise:
    """(y, x) maps of the camera's noise, from numbers or (..., y, x) maps."""
    own = (torch.as_tensor(camera.noise.excess), torch.as_tensor(camera.noise.floor))
    excess, floor = (value.float().reshape(value.shape[-2:]).expand(shape) for value in own)
    return Noise(excess, floor)


def _isolated_spots(light: Tensor, still: Tensor, camera: Camera, sigma_px: float) -> Tensor:
    """Pixels of bright local maxima without another within the width of two patches.

    Args:
        light: (frame, y, x) photons without the steady light.
        still: (frame, y, x) steady light that was subtracted; its noise is left.
        camera: gives the noise.
        sigma_px: approximate width of a spot.

    Returns:
        (n, 3) frame, y, x.
    """
    noise = _noise_map(camera, light.shape[1:])
    narrow, wide = gaussian_kernel(sigma_px), gaussian_kernel(3 * sigma_px)
    border = math.ceil(sigma_px) + 1
    clearance = _half(sigma_px) + math.ceil(sigma_px)
    window = 2 * clearance + 1
    found = []
    for i, (frame, background) in enumerate(zip(light[:, None], still[:, None], strict=True)):
        weight = 1 / noise.variance(blur(frame, wide) + background)
        # weighted by 1 / variance, a hot pixel counts little: the best a linear filter can do
        norm = blur(weight, narrow)
        around = blur(weight * frame, wide) / blur(weight, wide)
        contrast = blur(weight * frame, narrow) / norm - around
        snr = contrast * norm / blur(weight, narrow**2).sqrt()
        peak = (snr == F.max_pool2d(snr, 3, 1, 1)) & (snr > CANDIDATE_SNR)
        alone = F.avg_pool2d(peak.float(), window, 1, clearance) * window**2 < 1.5
        use = (peak & alone & (snr > SPOT_SNR))[0]
        use[:border] = use[-border:] = use[:, :border] = use[:, -border:] = False
        y, x = use.nonzero(as_tuple=True)
        found.append(torch.stack([torch.full_like(y, i), y, x], 1))
    return torch.cat(found)


class _Patches(NamedTuple):
    """Images of single spots, (spot, y, x) each; 2 half + 1 pixels wide."""

    data: Tensor
    """photons"""
    still: Tensor
    """photons of steady light, which are part of the data"""
    inside: Tensor
    """whether a pixel lies in the field"""
    noise: Noise
    half: int

    @classmethod
    def at(cls, spots: Tensor, light: Tensor, still: Tensor, camera: Camera, half: int) -> Self:
        """Cut out of (frame, y, x) photons, around (spot, 3) frame, y, x."""
        height, width = light.shape[1:]
        steps = torch.arange(-half, half + 1)
        y = (spots[:, 1, None] + steps)[:, :, None]
        x = (spots[:, 2, None] + steps)[:, None, :]
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
        frame = spots[:, 0, None, None]
        return cls(
            data=light[frame, y, x].double(),
            still=still[frame, y, x].double(),
            inside=inside,
            noise=_noise_map(camera, light.shape[1:])[y, x],
            half=half,
        )


class _Spots(NamedTuple):
    """Parameters of single spots."""

    shape: Tensor
    """(spot, 3) x and y in pixels from the patch's corner, and the logarithm of sigma in pixels"""
    photons: Tensor
    """(spot,)"""
    background: Tensor
    """(spot,) photons per pixel"""

    @classmethod
    def start(cls, patches: _Patches, sigma_px: float) -> Self:
        residual = patches.data - patches.still
        background = residual.flatten(1).quantile(0.25, dim=1)
        excess = (residual - background[:, None, None]) * patches.inside
        middle = patches.half + 0.5
        shape = torch.tensor([middle, middle, math.log(sigma_px)], dtype=torch.float64)
        return cls(
            shape=shape.repeat(len(residual), 1),
            photons=excess.sum((1, 2)).clamp_min(50),
            background=background,
        )

    def moved(self, step: Tensor, half: int) -> _Spots:
        """The spots after a (spot, 5) step, kept within physical limits."""
        shape = self.shape + step[:, :3]
        position = shape[:, :2].clamp(half - 1.5, half + 2.5)
        log_sigma = shape[:, 2:].clamp(math.log(0.3), math.log(half))
        return _Spots(
            shape=torch.cat([position, log_sigma], 1),
            photons=(self.photons + step[:, 3]).clamp_min(1),
            background=self.background + step[:, 4],
        )


class _Scoring(NamedTuple):
    """A step of Fisher scoring."""

    step: Tensor
    """(spot, 5) by which x, y, log sigma, photons and background should change"""
    covariance: Tensor
    """(spot, 5, 5) covariance of their errors"""
    deviance: Tensor
    """(spot,) sum of the squared residuals over their variances"""


def _fit_widths(patches: _Patches, sigma_px: float) -> Tensor:
    """Fit x, y, log sigma, photons and background of single spots, and keep the good fits.

    Fisher scoring of the quasi-likelihood (Wedderburn, Biometrika 61, 439, 1974): the score depends
    on the noise only through its variance, so an EMCCD's excess noise leaves it unbiased, and for a
    camera without read noise it is Poisson maximum likelihood.

    Args:
        patches: patches of the spots.
        sigma_px: width at which the fit starts.

    Returns:
        (m, 2) logarithm of sigma in pixels, and its standard deviation.
    """
    half = patches.half
    spots = _Spots.start(patches, sigma_px)
    longest = torch.tensor([0.5, 0.5, 0.25, torch.inf, torch.inf], dtype=torch.float64)
    for _ in range(SCORING_STEPS):
        scoring = _score(spots, patches)
        step = scoring.step.clamp(-longest, longest)
        spots = spots.moved(step, half)
    freedom = patches.inside.sum((1, 2)) - scoring.step.shape[1]
    misfit = scoring.deviance / freedom
    # a spot is a molecule if noise explains what is left; where the PSF is no Gaussian or the
    # camera is only roughly known noise explains no spot, and the best fifth is taken
    good = misfit <= (1 + 3 * (2 / freedom).sqrt()).clamp_min(float(misfit.quantile(0.2)))
    still = (step[:, :3].abs() < 0.02).all(1)
    central = ((spots.shape[:, :2] - half - 0.5).abs() < 1.5).all(1)
    log_sigma, error = spots.shape[:, 2], scoring.covariance[:, 2, 2].sqrt()
    certain = (error < 0.2) & (log_sigma > math.log(0.35)) & (log_sigma < math.log(0.8 * half))
    keep = good & still & central & certain
    return torch.stack([log_sigma[keep], error[keep]], 1)


def _score(spots: _Spots, patches: _Patches) -> _Scoring:
    psf = GaussianPSF(1.0, pixel_size_nm=1.0, patch_px=2 * patches.half + 1)

    def share(shape: Tensor) -> Tensor:
        position = F.pad(shape[:, :2], (0, 1))
        return psf.integrate_pixels(position, shape[:, 2:].exp())

    # spots are independent, so one forward-mode pass per axis differentiates all of them
    axes = torch.eye(3, dtype=torch.float64)
    along = [axis.expand(len(spots.shape), 3).contiguous() for axis in axes]
    slopes = [torch.func.jvp(share, (spots.shape,), (axis,))[1] for axis in along]
    fraction, photons = share(spots.shape), spots.photons[:, None, None]
    mean = photons * fraction + spots.background[:, None, None] + patches.still
    weight = patches.inside / patches.noise.variance(mean)
    residual = patches.data - mean
    of_shape = [photons * slope for slope in slopes]
    slope = torch.stack([*of_shape, fraction, torch.ones_like(fraction)], 1).flatten(2)
    information = torch.einsum("nik,njk,nk->nij", slope, slope, weight.flatten(1))
    score = torch.einsum("nik,nk->ni", slope, (weight * residual).flatten(1))
    # correlations are inverted: units of pixels and photons differ by orders of magnitude
    scale = information.diagonal(dim1=1, dim2=2).clamp_min(1e-12).sqrt()
    scales = scale[:, :, None] * scale[:, None, :]
    correlation = information / scales + 1e-4 * torch.eye(len(scale[0]))
    covariance = torch.linalg.inv(correlation) / scales
    return _Scoring(
        step=torch.einsum("nij,nj->ni", covariance, score),
        covariance=covariance,
        deviance=(weight * residual**2).sum((1, 2)),
    )


def _mode(widths: Tensor, n_draws: int = 200) -> tuple[float, float]:
    """Mode of the widths, and the standard deviation of its logarithm by bootstrap.

    Args:
        widths: (n, 2) logarithm of sigma, and the error by which each is blurred.
        n_draws: draws of the bootstrap.
    """
    log_sigma, error = widths.T
    low, high = float(log_sigma.min()), float(log_sigma.max())
    grid = torch.arange(low, high + GRID_STEP, GRID_STEP, dtype=widths.dtype)
    blurred = torch.hypot(error, torch.tensor(LEAST_BLUR))
    density = torch.exp(-(((grid[:, None] - log_sigma) / blurred) ** 2) / 2) / blurred
    n = len(widths)
    drawn = torch.randint(n, (n_draws, n), generator=torch.Generator().manual_seed(0))
    ones = torch.ones(n_draws, n, dtype=torch.float64)
    counts = torch.zeros(n_draws, n, dtype=widths.dtype).scatter_add_(1, drawn, ones)
    modes = grid[(density @ counts.T).argmax(0)]
    return float(grid[density.sum(1).argmax()].exp()), float(modes.std())
