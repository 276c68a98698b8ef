"""The images of a molecule, as far as the moments of a movie depend on them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch
from scipy.fft import next_fast_len
from torch import Tensor
from torch.nn import functional as F

from decode.estimation.moments import OFFSETS, REACH_PX
from decode.optics.psf import PSF

__all__ = ["LEVELS", "ImageMoments", "Images", "Start", "images_of"]

Array = npt.NDArray[np.float64]

SUBPIXELS = 2
"""positions within a pixel along each axis that the PSF is drawn at"""
MARGIN_PX = 4
"""margin around a patch, into which a blur spreads its light, pixels"""
LEVELS = np.geomspace(1e-7, 1.0, 200)
"""fractions of a molecule's light in a pixel"""


class Start(NamedTuple):
    """Prior value and standard deviation of a parameter, in the optimizer's unit."""

    value: float
    error: float
    """prior standard deviation of the value"""
    least: float
    most: float


class ImageMoments(NamedTuple):
    """Moments of the images of a molecule, averaged over positions within a pixel."""

    pixels: Array
    """(..., level) number of pixels that catch each of LEVELS of the light of a molecule"""
    below_zero: Array
    """(...,) sum of the negative values, which the noise of a measured PSF makes"""
    autocorrelation: Array
    """(..., offset) autocorrelation of the image at each of OFFSETS"""

    def averaged(self, share: Array) -> ImageMoments:
        """The mean over depths, by the (plane,) share of the molecules at each."""
        return ImageMoments(*(share @ values for values in self))


class Images(ABC):
    """A PSF at some depths, with one free parameter for the width of its images."""

    start: Start
    """prior of the width"""

    def __init__(self, psf: PSF, planes_nm: Array) -> None:
        self.psf = psf
        self.n_planes = len(planes_nm)
        self.xyz = _positions(psf, planes_nm)
        # a slope goes back and forth between two widths
        self.moments = lru_cache(maxsize=2)(self._moments)

    @abstractmethod
    def _patches(self, width: float) -> tuple[Tensor, float]:
        """(n, y, x) patches, and the variance in px^2 of a Gaussian that is still to blur them."""

    @torch.no_grad()
    def _moments(self, width: float) -> ImageMoments:
        """(plane, ...) for each field."""
        patches, variance = self._patches(width)
        size = self.psf.patch_px + 2 * MARGIN_PX
        side = next_fast_len(size + REACH_PX, real=True)
        padded = F.pad(patches.double(), (MARGIN_PX,) * 4)
        spectrum = torch.fft.rfft2(padded, s=(side, side)) * _blur(side, variance)
        blurred = torch.fft.irfft2(spectrum, s=(side, side))[:, :size, :size]
        power = spectrum.abs().square().unflatten(0, (self.n_planes, -1)).mean(1)
        pixels, below_zero = _levels(blurred.reshape(self.n_planes, -1).numpy())
        return ImageMoments(pixels, below_zero, _autocorrelation(power, side))


@final
class GaussianImages(Images):
    """The width is the logarithm of the sigma in focus, nm, which is the parameter of the PSF."""

    def __init__(self, psf: PSF, planes_nm: Array) -> None:
        super().__init__(psf, planes_nm)
        log_sigma = math.log(psf.settings()["sigma_nm"])
        self.start = Start(log_sigma, 0.5, log_sigma - 1, log_sigma + 1)

    def _patches(self, width: float) -> tuple[Tensor, float]:
        sigma_nm = torch.full((len(self.xyz), 1), math.exp(width))
        return self.psf.integrate_pixels(self.xyz, sigma_nm), 0.0


@final
class BlurredImages(Images):
    """The width is the variance in px^2 of a Gaussian that blurs the PSF; below 0 it sharpens."""

    start = Start(0.0, 1.0, -0.3, 9.0)

    def __init__(self, psf: PSF, planes_nm: Array) -> None:
        super().__init__(psf, planes_nm)
        with torch.no_grad():
            self.sharp = psf.integrate_pixels(self.xyz)

    def _patches(self, width: float) -> tuple[Tensor, float]:
        return self.sharp, width


def images_of(psf: PSF, planes_nm: Array) -> Images:
    """Images of a PSF at depths, whose free width is its own or that of a blur."""
    family = GaussianImages if psf.free_width else BlurredImages
    return family(psf, planes_nm)


def _positions(psf: PSF, planes_nm: Array) -> Tensor:
    """(n, 3) nm, for each depth all positions within the middle pixel of a patch."""
    within = (torch.arange(SUBPIXELS) + 0.5) / SUBPIXELS
    grid = psf.pixel_size_nm * (within + psf.patch_px // 2)
    depths = torch.as_tensor(planes_nm, dtype=torch.float32)
    z, y, x = torch.meshgrid(depths, grid, grid, indexing="ij")
    return torch.stack([x, y, z], -1).reshape(-1, 3)


def _blur(side: int, variance: float) -> Tensor:
    """Transfer function of a Gaussian, for `rfft2` of a square."""
    rows, columns = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)
    q2 = (2 * math.pi) ** 2 * (rows**2 + columns**2)
    return torch.exp(-variance * q2.double() / 2)


def _autocorrelation(power: Tensor, side: int) -> Array:
    """(plane, offset) autocorrelation from a power spectrum; opposite offsets are averaged."""
    auto = torch.fft.irfft2(power, s=(side, side)).numpy()
    below, right = OFFSETS.T
    both: Array = (auto[:, below, right] + auto[:, -below, -right]) / 2
    return both


def _levels(fraction: Array) -> tuple[Array, Array]:
    """Number of pixels at each of LEVELS, and the sum of values below them.

    Args:
        fraction: (plane, pixel) fraction of the light, at all positions within a pixel.

    Returns:
        (plane, level) and (plane,).
    """
    n_planes, n_levels = len(fraction), len(LEVELS)
    clipped = fraction.clip(LEVELS[0])
    below_zero: Array = (fraction - clipped).sum(1) / SUBPIXELS**2
    # a pixel between two levels counts for both, so that the light is kept
    level = np.searchsorted(LEVELS, clipped, side="right").clip(1, n_levels - 1) - 1
    upper = (clipped - LEVELS[level]) / (LEVELS[level + 1] - LEVELS[level])
    cell = level + n_levels * np.arange(n_planes)[:, None]
    pixels = np.bincount(cell.ravel(), (1 - upper).ravel(), n_planes * n_levels)
    pixels[1:] += np.bincount(cell.ravel(), upper.ravel(), n_planes * n_levels)[:-1]
    return pixels.reshape(n_planes, -1) / SUBPIXELS**2, below_zero
