"""Laws of the Gaussian blur."""

from __future__ import annotations

import pytest
import torch

from decode.optics.blur import BlurredPSF, blur_kernel, blur_reach
from decode.optics.gaussian import GaussianPSF


def test_no_light_is_lost_and_none_moves() -> None:
    widths_px = torch.tensor([0.0, 0.1, 0.23, 0.5, 0.9, 2.0], dtype=torch.float64)
    kernel = blur_kernel(widths_px, blur_reach(2.0))
    torch.testing.assert_close(kernel.sum(1), torch.ones_like(widths_px))
    torch.testing.assert_close(kernel, kernel.flip(1))
    assert float(kernel.min()) > -0.04


@pytest.mark.parametrize("sigma_nm", [90.0, 130.0])
@pytest.mark.parametrize("blur_nm", [5.0, 20.0, 50.0, 80.0])
def test_a_blurred_gaussian_is_a_wider_one(blur_nm: float, sigma_nm: float) -> None:
    xyz = torch.tensor([[1050.0, 1050.0, 0.0], [1080.0, 1031.0, 0.0]])
    widths = (sigma_nm, (sigma_nm**2 + blur_nm**2) ** 0.5)
    sharp, wide = (GaussianPSF(width, pixel_size_nm=100.0, patch_px=21) for width in widths)
    expected = wide.integrate_pixels(xyz)
    change = float((expected - sharp.integrate_pixels(xyz)).detach().abs().max())
    torch.testing.assert_close(
        BlurredPSF(sharp, blur_nm).integrate_pixels(xyz), expected, atol=0.02 * change, rtol=0
    )
