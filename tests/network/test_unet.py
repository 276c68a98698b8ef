"""The U-Net sees exactly as far as it says."""

from __future__ import annotations

import pytest
import torch

from decode.network.unet import UNet


@pytest.mark.parametrize("widths", [(3,), (3, 4), (3, 4, 5)])
def test_a_pixel_depends_on_pixels_within_the_radius_and_no_further(
    widths: tuple[int, ...],
) -> None:
    torch.manual_seed(0)
    net = UNet(1, widths).double()
    middle = 48
    furthest = 0
    for pixel in range(middle, middle + net.stride):
        x = torch.randn(1, 1, 96, 96, dtype=torch.float64, requires_grad=True)
        net(x)[0, :, pixel, pixel].sum().backward()
        assert x.grad is not None
        furthest = max(furthest, int((torch.nonzero(x.grad[0, 0]) - pixel).abs().max()))
    assert furthest == net.radius_px


def test_it_commutes_with_shifts_by_its_stride() -> None:
    torch.manual_seed(1)
    net = UNet(2, (4, 5, 6)).double()
    x = torch.randn(1, 2, 96, 96, dtype=torch.float64)
    r, s = net.radius_px, net.stride
    shifted = net(x.roll((s, 2 * s), (2, 3))).roll((-s, -2 * s), (2, 3))
    inner = slice(r + 2 * s, 96 - r - 2 * s)
    torch.testing.assert_close(net(x)[..., inner, inner], shifted[..., inner, inner])
