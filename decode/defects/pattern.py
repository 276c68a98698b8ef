"""The fixed pattern of a camera: offsets of single pixels, as a movie shows them."""

from __future__ import annotations

import math
from typing import NamedTuple, Self, final

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

from decode.defects.counts import Array

__all__ = ["FixedPattern"]

SHARP = np.outer([1.0, -2.0, 1.0], [1.0, -2.0, 1.0]) / 6
"""mask that cancels light: it leaves a hundredth of the power of a spot of sigma 0.8 px, and keeps
the variance of white noise (Immerkaer, Comput. Vis. Image Underst. 64, 300, 1996)"""
SHARED = 3.78
"""number of pixels with the information of one independent pixel, as neighbours share most of the
mask: the sum of the squared autocorrelations of `SHARP`"""
OUTLIER = 4.0
"""standard deviations above which a pixel is left out; bad pixels are judged elsewhere"""
BANDS = 32
"""number of bands of spatial frequency in which the power of the light is estimated"""
NARROWEST_PX = 8
"""smallest side of frames in which a pattern is measured"""


@final
class FixedPattern(NamedTuple):
    """Offsets that pixels add to any light."""

    offsets: Array
    """(y, x) in the unit of the images: the expected pattern given the images"""
    spread: float
    """standard deviation of the pattern over the pixels"""
    significance: float
    """variance of the pattern over its standard error"""

    @classmethod
    def of(cls, first: Array, second: Array, good: npt.NDArray[np.bool_]) -> Self:
        """The pattern that two images of the same light share.

        Light is blurred by the optics and holds no high spatial frequencies, while a pattern that
        is independent from pixel to pixel holds all.  The covariance of two images with independent
        noise at the highest frequencies is therefore the variance of the pattern.  The pattern
        itself is the Wiener estimate (Wiener, Extrapolation, Interpolation and Smoothing of
        Stationary Time Series, 1949), which attributes little to it at frequencies where the light
        has power.

        Args:
            first, second: (y, x) median of half of the frames, each.
            good: (y, x) pixels that show the light.
        """
        if min(first.shape) < NARROWEST_PX:
            return cls(np.zeros(first.shape), 0.0, 0.0)
        halves = [_filled(image, good) for image in (first, second)]
        sharp = [ndimage.convolve(image, SHARP, mode="mirror") for image in halves]
        inside = ndimage.minimum_filter(good, 3, mode="constant", cval=False)
        if not inside.any():
            return cls(np.zeros(first.shape), 0.0, 0.0)
        a, b = (_clipped(image[inside]) for image in sharp)
        variance = float((a * b).mean())
        error = float((a * b).std()) * math.sqrt(SHARED / a.size)
        if variance <= 0 or error == 0:
            return cls(np.zeros(first.shape), 0.0, 0.0)
        of_chance = float(((a - b) ** 2).mean()) / 4
        mean = (halves[0] + halves[1]) / 2
        offsets = _wiener(mean, variance, variance + of_chance)
        return cls(np.where(good, offsets, 0.0), math.sqrt(variance), variance / error)


def _filled(image: Array, good: npt.NDArray[np.bool_]) -> Array:
    """The image with bad pixels replaced by the median of those around."""
    filled: Array = np.where(good, image, ndimage.median_filter(image, 5, mode="mirror"))
    return filled


def _clipped(values: Array) -> Array:
    limit = OUTLIER * 1.4826 * float(np.median(np.abs(values)))
    clipped: Array = values.clip(-limit, limit)
    return clipped


def _wiener(image: Array, of_pattern: float, of_white: float) -> Array:
    """The expected white pattern in an image.

    Args:
        image: (y, x)
        of_pattern: variance of the pattern.
        of_white: variance of pattern and noise.
    """
    spectrum = fft.dctn(image, norm="ortho")
    y, x = (np.arange(side) / side for side in image.shape)
    band = (np.hypot(y[:, None], x) / math.sqrt(2) * BANDS).astype(int)
    members = np.bincount(band.ravel(), minlength=BANDS).clip(1)
    power = np.bincount(band.ravel(), (spectrum**2).ravel(), BANDS) / members
    gain = of_pattern / np.maximum(power, of_white)
    pattern: Array = fft.idctn(spectrum * gain[band], norm="ortho")
    return pattern
