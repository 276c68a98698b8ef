"""The width of a roughly Gaussian PSF, from the movie alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from decode.defects import screened
from decode.estimate.frames import Estimate, blur, gaussian_kernel, middle, read_frames, shape_of
from decode.io.movies.tiff import Movie
from decode.optics.camera import Camera, Noise
from decode.optics.gaussian import GaussianPSF

__all__ = ["estimate_psf_sigma"]

FEWEST_MOLECULES = 20
"""a mode of fewer widths is not worth its name"""
MODEL_ERROR = 0.02
"""standard deviation of what noise does not explain, as neighbours that were not seen: spread of
the relative error of the width over simulated movies (up to one molecule a um^2) once its share of
noise is taken away"""


@torch.no_grad()
def estimate_psf_sigma(
    movie: Movie | Tensor | npt.NDArray[Any],
    camera: Camera,
    pixel_size_nm: float,
    *,
    n_frames: int | None = None,
    max_molecules: int = 1000,
) -> Estimate:
    """In-focus width of a round Gaussian PSF, from a raw movie of blinking molecules.

    Bright spots without a visible neighbour are fitted by a Gaussian integrated over pixels.
    Neighbours that were not seen and defocus can only widen a spot, so the mode of the fitted
    widths is taken and not their mean.

    Args:
        movie: (frame, y, x) ADU.
        camera: gives light and noise; its maps cover the movie's frames.
        pixel_size_nm: side of a pixel in object space.
        n_frames: number of frames to look at, spread over the movie; None takes 100, and more of a
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
    # what is always there, in the darkest tenth of the frames, where molecules shine least; scaled
    # to the light of each frame, which bleaches (a photon keeps the ratio of dark frames finite)
    structure = light.kthvalue(min(n_frames, max(3, n_frames // 10)), 0).values.clamp_min(0) * (n_frames >= 5)
    level = light.flatten(1).median(1).values.clamp_min(0) + 1
    still = structure * (level / (structure.median() + 1))[:, None, None]

    sigma_px = 1.3
    for n_most in (min(300, max_molecules), max_molecules):
        half = math.ceil(2.5 * sigma_px)
        spots = _isolated_spots(light - still, still, camera, sigma_px, clearance=half + math.ceil(sigma_px))
        spots = spots[torch.linspace(0, len(spots) - 1, min(len(spots), n_most)).round().long()]
        widths = _fit_widths(light, still, camera, spots, sigma_px, half) if len(spots) else torch.empty(0, 2)
        if len(widths) < FEWEST_MOLECULES:
            raise ValueError(
                f"only {len(widths)} molecules are bright and alone enough to measure the PSF's width "
                f"({FEWEST_MOLECULES} are needed); give --psf-sigma"
            )
        sigma_px, spread = _mode(widths)
    margin = math.exp(1.96 * math.hypot(spread, MODEL_ERROR))
    value = sigma_px * pixel_size_nm
    return Estimate(value, value / margin, value * margin, len(widths))


def _noise_map(camera: Camera, shape: tuple[int, ...]) -> Noise:
    """(y, x) maps of the camera's noise, whose own are numbers or (..., y, x)."""
    excess, floor = (torch.as_tensor(value).float() for value in (camera.noise.excess, camera.noise.floor))
    excess, floor = (value.reshape(value.shape[-2:]).expand(shape) for value in (excess, floor))
    return Noise(excess, floor)


def _isolated_spots(light: Tensor, still: Tensor, camera: Camera, sigma_px: float, clearance: int) -> Tensor:
    """Pixels of bright local maxima that have no other within `clearance`.

    Args:
        light: (frame, y, x) photons without what is always there.
        still: (frame, y, x) what was taken away; it made noise.

    Returns:
        (n, 3) frame, y, x.
    """
    shape = light.shape[1:]
    noise = _noise_map(camera, shape)
    narrow, wide = gaussian_kernel(sigma_px), gaussian_kernel(3 * sigma_px)
    border = math.ceil(sigma_px) + 1
    found = []
    for i, (frame, background) in enumerate(zip(light[:, None], still[:, None], strict=True)):
        weight = 1 / noise.variance(blur(frame, wide) + background)
        # weighted by 1 / variance, a hot pixel counts little: the best a linear filter can do
        norm = blur(weight, narrow)
        contrast = blur(weight * frame, narrow) / norm - blur(weight * frame, wide) / blur(weight, wide)
        snr = contrast * norm / blur(weight, narrow**2).sqrt()
        peak = (snr == F.max_pool2d(snr, 3, 1, 1)) & (snr > 4)
        window = 2 * clearance + 1
        alone = F.avg_pool2d(peak.float(), window, 1, clearance) * window**2 < 1.5
        use = (peak & alone & (snr > 8))[0]
        use[:border] = use[-border:] = use[:, :border] = use[:, -border:] = False
        y, x = use.nonzero(as_tuple=True)
        found.append(torch.stack([torch.full_like(y, i), y, x], 1))
    return torch.cat(found)


def _fit_widths(
    light: Tensor, still: Tensor, camera: Camera, spots: Tensor, sigma_px: float, half: int, n_steps: int = 20
) -> Tensor:
    """Fit x, y, log sigma, photons and background of single spots, and keep the good fits.

    Fisher scoring of the quasi-likelihood (Wedderburn, Biometrika 61, 439, 1974): the score depends
    on the noise only through its variance, so an EMCCD's excess noise leaves it unbiased, and for a
    camera without read noise it is Poisson maximum likelihood.

    Args:
        light, still: (frame, y, x) photons; what is always there is part of `light`.
        spots: (n, 3) frame, y, x of the patches' middles.
        sigma_px: where the fit starts.
        half: patches are 2 half + 1 wide.

    Returns:
        (m, 2) logarithm of sigma in pixels, and its standard deviation.
    """
    shape = light.shape[1:]
    steps = torch.arange(-half, half + 1)
    y, x = spots[:, 1, None] + steps, spots[:, 2, None] + steps
    inside = ((y >= 0) & (y < shape[0]))[:, :, None] & ((x >= 0) & (x < shape[1]))[:, None, :]
    y, x = y.clamp(0, shape[0] - 1)[:, :, None], x.clamp(0, shape[1] - 1)[:, None, :]
    frame = spots[:, 0, None, None]
    fixed, data = still[frame, y, x].double(), light[frame, y, x].double()
    noise = _noise_map(camera, shape)[y, x]
    psf = GaussianPSF(1.0, pixel_size_nm=1.0, patch_px=2 * half + 1)

    def share(shape_parameters: Tensor) -> Tensor:
        position = F.pad(shape_parameters[:, :2], (0, 1))
        return psf.integrate_pixels(position, shape_parameters[:, 2:].exp())

    residual = data - fixed
    background = residual.flatten(1).quantile(0.25, dim=1)
    photons = ((residual - background[:, None, None]) * inside).sum((1, 2)).clamp_min(50)
    where = torch.tensor([half + 0.5, half + 0.5, math.log(sigma_px)], dtype=torch.float64).expand(len(spots), 3)
    p = torch.cat([where, photons[:, None], background[:, None]], 1)
    longest = torch.tensor([0.5, 0.5, 0.25, torch.inf, torch.inf], dtype=torch.float64)
    axes = torch.eye(3, dtype=torch.float64)
    for _ in range(n_steps):
        # spots are independent, so one forward-mode pass per axis differentiates all of them
        slopes = [torch.func.jvp(share, (p[:, :3],), (axis.expand(len(p), 3).contiguous(),))[1] for axis in axes]
        fraction = share(p[:, :3])
        bright = p[:, 3, None, None]
        mean = bright * fraction + p[:, 4, None, None] + fixed
        weight = inside / noise.variance(mean)
        slope = torch.stack([*(bright * s for s in slopes), fraction, torch.ones_like(fraction)], 1).flatten(2)
        information = torch.einsum("nik,njk,nk->nij", slope, slope, weight.flatten(1))
        score = torch.einsum("nik,nk->ni", slope, (weight * (data - mean)).flatten(1))
        # correlations are inverted: units of pixels and photons differ by orders of magnitude
        scale = information.diagonal(dim1=1, dim2=2).clamp_min(1e-12).sqrt()
        correlation = information / (scale[:, :, None] * scale[:, None, :]) + 1e-4 * torch.eye(5)
        covariance = torch.linalg.inv(correlation) / (scale[:, :, None] * scale[:, None, :])
        step = torch.einsum("nij,nj->ni", covariance, score).clamp(-longest, longest)
        p = p + step
        p[:, :2] = p[:, :2].clamp(half - 1.5, half + 2.5)
        p[:, 2] = p[:, 2].clamp(math.log(0.3), math.log(half))
        p[:, 3] = p[:, 3].clamp_min(1)
    error = covariance[:, 2, 2].sqrt()
    freedom = inside.sum((1, 2)) - 5
    misfit = (weight * (data - mean) ** 2).sum((1, 2)) / freedom
    # a spot is a molecule if noise explains what is left; where the PSF is no Gaussian or the
    # camera is only roughly known noise explains no spot, and the best fifth is taken
    good = misfit <= (1 + 3 * (2 / freedom).sqrt()).clamp_min(float(misfit.quantile(0.2)))
    settled = (step[:, :3].abs() < 0.02).all(1) & ((p[:, :2] - half - 0.5).abs() < 1.5).all(1)
    keep = good & settled & (error < 0.2) & (p[:, 2] > math.log(0.35)) & (p[:, 2] < math.log(0.8 * half))
    return torch.stack([p[keep, 2], error[keep]], 1)


def _mode(widths: Tensor, n_draws: int = 200) -> tuple[float, float]:
    """Mode of the widths, each blurred by its error, and the standard deviation of its logarithm by
    bootstrap."""
    log_sigma, error = widths.T
    grid = torch.arange(float(log_sigma.min()), float(log_sigma.max()) + 2e-3, 2e-3, dtype=widths.dtype)
    blur = torch.hypot(error, torch.tensor(0.03))
    density = torch.exp(-(((grid[:, None] - log_sigma) / blur) ** 2) / 2) / blur
    n = len(widths)
    drawn = torch.randint(n, (n_draws, n), generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(n_draws, n, dtype=widths.dtype).scatter_add_(1, drawn, torch.ones(n_draws, n).double())
    modes = grid[(density @ counts.T).argmax(0)]
    return float(grid[density.sum(1).argmax()].exp()), float(modes.std())
