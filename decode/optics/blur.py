"""A Gaussian blur of pictures whose pixels may be wider than it."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, pi
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from decode.optics.psf import PSF

__all__ = ["Blur", "BlurredPSF", "blur_kernel", "blur_reach"]


def blur_reach(sigma_px: float) -> int:
    """Pixels to either side that a kernel needs."""
    return 3 + ceil(4 * sigma_px)


def blur_kernel(sigma_px: Tensor, reach: int) -> Tensor:
    """The kernel whose spectrum is that of the Gaussian up to half a cycle per pixel, exp(-(sigma
    omega)^2 / 2).

    It is exact for pictures without detail beyond that frequency, as a PSF integrated over pixels
    nearly is.  A Gaussian that is sampled, or integrated over pixels, blurs too little where it is
    narrower than a pixel: one of 0.23 pixels blurs like one of 0.17.

    Args:
        sigma_px: (n,) standard deviations, pixels.
        reach: pixels to either side, see `blur_reach`.

    Returns:
        (n, 2 reach + 1); rows sum to 1; single weights may lie a little below 0.
    """
    side = 2 * reach + 1
    frequency = (
        2 * pi * torch.arange(reach + 1, dtype=sigma_px.dtype, device=sigma_px.device) / side
    )
    return torch.fft.irfft(torch.exp(-0.5 * (sigma_px[:, None] * frequency) ** 2), n=side).roll(
        reach, 1
    )


@final
class BlurredPSF(PSF):
    """A PSF with the Gaussian blur that `ForwardModel` puts on top of it.

    Args:
        sharp: the PSF.
        blur_nm: standard deviation of the blur.
    """

    def __init__(self, sharp: PSF, blur_nm: float) -> None:
        super().__init__(sharp.pixel_size_nm, sharp.patch_px)
        self.sharp = sharp
        self.parameter_names = sharp.parameter_names
        sigma_px = blur_nm / sharp.pixel_size_nm
        kernel = blur_kernel(torch.tensor([sigma_px]), blur_reach(sigma_px))[0]
        self.register_buffer("kernel", kernel[:, None] * kernel)

    @property
    def z_range_nm(self) -> tuple[float, float] | None:
        return self.sharp.z_range_nm

    def integrate_pixels(self, xyz: Tensor, parameters: Tensor | None = None) -> Tensor:
        # drawn with a margin, so that light which comes in over the border of the patch is there
        kernel = self.get_buffer("kernel").to(xyz.dtype)
        reach = len(kernel) // 2
        margin = xyz.new_tensor([reach * self.pixel_size_nm] * 2 + [0.0])
        image = self.sharp.with_patch(self.patch_px + 2 * reach).integrate_pixels(
            xyz + margin, parameters
        )
        return conv2d(image[:, None], kernel[None, None])[:, 0].clamp_min(0)


@final
@dataclass(frozen=True)
class Blur:
    """A Gaussian blur of movies, each by its own width.

    Args:
        sigma_px: (n_movies,) standard deviations, pixels.
        reach: pixels to either side that the widest kernel needs, see `blur_reach`.
    """

    sigma_px: Tensor
    reach: int

    def of(self, light: Tensor) -> Tensor:
        """Light (n_movies, n_frames, y, x) drawn with a margin of `reach`, blurred, without the
        margin."""
        kernel = blur_kernel(self.sigma_px, self.reach)
        rows = conv2d(light.transpose(0, 1), kernel[:, None, None, :], groups=len(light))
        blurred = conv2d(rows, kernel[:, None, :, None], groups=len(light)).transpose(0, 1)
        return blurred.clamp_min(0)
