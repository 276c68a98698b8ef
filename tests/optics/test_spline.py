"""SplinePSF goes through its stack, and between its voxels as light does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from decode.optics.gaussian import GaussianPSF
from decode.optics.spline import SplineBank, SplinePSF

STEP_NM = 50.0
DEPTHS = torch.arange(-400.0, 401.0, STEP_NM, dtype=torch.float64)


def gaussian(pixel_size_nm: float = 100.0, patch_px: int = 25) -> GaussianPSF:
    return GaussianPSF(
        150.0, pixel_size_nm=pixel_size_nm, depth_nm=450.0, gap_nm=150.0, patch_px=patch_px
    ).double()  # fmt: skip


def sampled(oversampling: int) -> Tensor:
    """A (z, y, x) stack of a Gaussian: each voxel the light of a whole 100 nm pixel centred
    there."""
    psf = gaussian()
    centre = psf.patch_px / 2 * 100
    side = psf.patch_px * oversampling
    stack = torch.zeros(len(DEPTHS), side, side, dtype=torch.float64)
    for i in range(oversampling):
        for j in range(oversampling):
            # the emitter moves one way as the voxel grid moves the other
            dx, dy = ((oversampling - 1) / 2 - k for k in (i, j))
            xyz = torch.tensor(
                [centre + dx * 100 / oversampling, centre + dy * 100 / oversampling, 0.0]
            )
            positions = xyz.double().repeat(len(DEPTHS), 1)
            positions[:, 2] = DEPTHS
            stack[:, j::oversampling, i::oversampling] = psf.integrate_pixels(positions).detach()
    return stack


def spline(oversampling: int = 1) -> SplinePSF:
    return SplinePSF.from_stack(
        sampled(oversampling),
        z_start_nm=-400,
        z_step_nm=STEP_NM,
        pixel_size_nm=100,
        oversampling=oversampling,
        patch_px=25,
    ).double()


def positions(n: int, rng: torch.Generator) -> Tensor:
    unit = torch.rand(n, 3, generator=rng, dtype=torch.float64)
    return torch.tensor([1200.0, 1200.0, -250.0]) + unit * torch.tensor([100.0, 100.0, 500.0])


@pytest.mark.parametrize(("oversampling", "limit"), [(1, 3e-3), (2, 3e-4), (3, 3e-4)])
def test_a_sampled_gaussian_comes_back_between_the_voxels(
    oversampling: int, limit: float, rng: torch.Generator
) -> None:
    """With voxels of 0.67 sigma to 0.3 % of the peak; the error goes with the fourth power of
    their side."""
    xyz = positions(100, rng)
    expected, found = gaussian().integrate_pixels(xyz), spline(oversampling).integrate_pixels(xyz)
    peak = expected.amax((1, 2), keepdim=True)
    assert ((found - expected).abs() / peak).max() < limit


def test_at_its_voxels_it_is_the_stack() -> None:
    rng = np.random.default_rng(5)
    stack = rng.random((6, 9, 9))
    stack[:, [0, -1]] = stack[:, :, [0, -1]] = 0
    stack[:, [1, -2], 1:-1] = stack[:, 1:-1, [1, -2]] = 0
    stack /= 81
    psf = SplinePSF.from_stack(
        stack, z_start_nm=100, z_step_nm=25, pixel_size_nm=80, patch_px=9
    ).double()
    centre = 4.5 * 80
    xyz = torch.tensor([[centre, centre, 100 + 25.0 * i] for i in range(6)], dtype=torch.float64)
    np.testing.assert_allclose(
        psf.integrate_pixels(xyz).detach()[:, 1:-1, 1:-1], stack[:, 1:-1, 1:-1], atol=1e-8
    )


def test_the_emitter_is_where_the_centre_says(rng: torch.Generator) -> None:
    """A stack whose emitter sits at another place, and says so, gives the same images."""
    light = np.random.default_rng(1).random((4, 5, 5)) / 30
    stack, moved = np.zeros((4, 20, 20)), np.zeros((4, 20, 20))
    stack[:, 7:12, 7:12] = moved[:, 8:13, 6:11] = light
    depth = {"z_start_nm": -100.0, "z_step_nm": 50.0, "pixel_size_nm": 100.0, "patch_px": 21}
    one = SplinePSF.from_stack(stack, centre_px=(10.0, 10.0), **depth)
    other = SplinePSF.from_stack(moved, centre_px=(9.0, 11.0), **depth)
    xyz = positions(10, rng) - torch.tensor([200.0, 200.0, 0.0])
    # the stack's sides are felt with 0.27 to the power of their distance
    torch.testing.assert_close(
        one.double().integrate_pixels(xyz), other.double().integrate_pixels(xyz), atol=5e-5, rtol=0
    )


def test_the_light_does_not_depend_on_where_in_the_pixel_the_emitter_sits(
    rng: torch.Generator,
) -> None:
    psf = SplinePSF.from_stack(
        np.random.default_rng(2).random((1, 8, 8)) / 64,
        z_start_nm=0,
        z_step_nm=1,
        pixel_size_nm=100,
    ).double()
    corner = psf.patch_px // 2 * 100
    xyz = corner + 100 * torch.rand(100, 3, generator=rng, dtype=torch.float64)
    light = psf.integrate_pixels(xyz).sum((1, 2))
    torch.testing.assert_close(light, psf.coefficients.sum().expand(100), rtol=1e-12, atol=0)


def test_light_ends_smoothly_beyond_the_sides() -> None:
    """Of a uniform stack, value and slope pass through no jump, and far out there is nothing."""
    psf = SplinePSF(
        torch.full((1, 4, 4), 1 / 16, dtype=torch.float64),
        z_start_nm=0,
        z_step_nm=1,
        pixel_size_nm=100,
        patch_px=1,
    )
    x = torch.arange(-600.0, 700.0, 0.1, dtype=torch.float64)
    xyz = torch.stack([x, torch.full_like(x, 50.0), torch.zeros_like(x)], 1)
    light = psf.integrate_pixels(xyz)[:, 0, 0].detach()
    slope = light.diff() / 0.1
    curvature = slope.diff() / 0.1
    assert light.max() == pytest.approx(1 / 16)
    assert light[0] == light[-1] == 0
    assert (
        curvature.abs().max() < 2 / 16 / 100**2
    )  # a B-spline's second derivative is at most 2 per voxel^2


def test_beyond_its_planes_it_stays_as_at_the_last() -> None:
    psf = spline()
    xyz = torch.tensor(
        [[1250.0, 1250.0, z] for z in (-400.0, -5000.0, 400.0, 5000.0)], dtype=torch.float64
    )
    images = psf.integrate_pixels(xyz)
    torch.testing.assert_close(images[0], images[1])
    torch.testing.assert_close(images[2], images[3])
    assert not torch.allclose(images[0], images[2])


def test_a_single_plane_does_not_depend_on_z() -> None:
    psf = SplinePSF.from_stack(
        sampled(1)[8:9], z_start_nm=0, z_step_nm=1, pixel_size_nm=100
    ).double()
    start = psf.patch_px / 2 * 100
    xyz = torch.tensor(
        [[start, start, z] for z in (-300.0, 0.0, 20.0)], dtype=torch.float64
    ).requires_grad_()
    images = psf.integrate_pixels(xyz)
    images.square().sum().backward()
    torch.testing.assert_close(images[0], images[2])
    assert xyz.grad is not None
    assert not xyz.grad[:, 2].any()


def test_gradient_descent_finds_a_stack(rng: torch.Generator) -> None:
    """Calibration: from images at known positions the coefficients that made them come back."""
    truth = spline()
    psf = SplinePSF(
        truth.coefficients.detach() * 0 + 1e-3,
        z_start_nm=-400,
        z_step_nm=STEP_NM,
        pixel_size_nm=100,
        patch_px=25,
    )
    xyz = positions(150, rng)
    images = truth.integrate_pixels(xyz).detach()
    optimizer = torch.optim.LBFGS(psf.parameters(), max_iter=30, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = 1e4 * (psf.integrate_pixels(xyz) - images).square().sum()
        value.backward()
        return value.detach()

    before = float(loss())
    optimizer.step(loss)  # type: ignore[no-untyped-call, arg-type]
    assert float(loss()) < 1e-3 * before


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        (np.ones((4, 5)), "expected"),
        (np.ones((3, 5, 5)), "divide the stack by this"),
        (np.full((3, 5, 5), np.nan), "not finite"),
        (np.ones((0, 5, 5)), "expected"),
    ],
)
def test_what_is_no_stack_of_fractions_is_refused(stack: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplinePSF.from_stack(stack, z_start_nm=0, z_step_nm=50, pixel_size_nm=100)


def test_a_step_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        SplinePSF.from_stack(
            np.ones((3, 5, 5)) / 25, z_start_nm=0, z_step_nm=-50, pixel_size_nm=100
        )


def test_splines_of_a_bank_draw_as_each_alone(rng: torch.Generator) -> None:
    stack = torch.rand(3, 5, 9, 9, generator=rng, dtype=torch.float64) / 81
    splines = [SplinePSF(s, z_start_nm=-200.0, z_step_nm=100.0, pixel_size_nm=100.0) for s in stack]
    bank = SplineBank(splines)
    number = torch.tensor([2, 0, 1, 2, 0])
    xyz = torch.rand(5, 3, generator=rng, dtype=torch.float64) * 100 + bank.patch_px * 50
    xyz[:, 2] -= bank.patch_px * 50 + 50
    alone = [splines[i].integrate_pixels(at[None])[0] for i, at in zip(number, xyz, strict=True)]
    torch.testing.assert_close(bank.integrate_pixels(xyz, number[:, None]), torch.stack(alone))
    torch.testing.assert_close(bank.integrate_pixels(xyz), splines[0].integrate_pixels(xyz))


@pytest.mark.parametrize("oversampling", [1, 2])
def test_positions_near_to_one_another_are_drawn_as_each_alone(
    oversampling: int, rng: torch.Generator
) -> None:
    """Also beyond the first and the last plane, and where the patch reaches beyond the voxels."""
    coefficients = torch.rand(9, 14, 16, generator=rng, dtype=torch.float64) / 1e3
    psf = SplinePSF(
        coefficients,
        z_start_nm=-200.0,
        z_step_nm=50.0,
        pixel_size_nm=100.0,
        oversampling=oversampling,
        patch_px=13,
    )
    middle = torch.tensor([[650.0, 650.0, 0.0], [630.0, 690.0, -190.0], [200.0, 1200.0, 230.0]])
    around = 60 * torch.randn(3, 40, 3, generator=rng, dtype=torch.float64)
    places = middle.double()[:, None] + around
    drawn = psf.integrate_pixels_around(places)
    each = psf.integrate_pixels(places.flatten(0, 1)).view_as(drawn)
    assert (drawn - each).abs().max() < 1e-12
