"""Laws that hold for every PSF, and for frames rendered with it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from torch import Tensor

from decode.optics.blur import BlurredPSF
from decode.optics.description import PSFDescription, describe, rebuild
from decode.optics.field import FieldSplinePSF
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import PSF, render
from decode.optics.spline import SplinePSF

PIXEL_NM = 100.0


def round_gaussian() -> PSF:
    return GaussianPSF(130.0, pixel_size_nm=PIXEL_NM, depth_nm=450.0, patch_px=19)


def flat_gaussian() -> PSF:
    return GaussianPSF(110.0, pixel_size_nm=PIXEL_NM, patch_px=13)


def astigmatic_gaussian() -> PSF:
    return GaussianPSF(
        130.0,
        pixel_size_nm=PIXEL_NM,
        depth_nm=400.0,
        gap_nm=200.0,
        third=0.05,
        fourth=0.1,
        patch_px=23,
    )


def spline() -> PSF:
    """A lopsided stack, with an emitter that is not in its middle."""
    z, y, x = np.meshgrid(
        np.arange(7) - 3.0, np.arange(12) - 5.2, np.arange(14) - 6.1, indexing="ij"
    )
    stack = np.exp(-(x**2) / (3 + 0.3 * z) - y**2 / (3 - 0.4 * z)) * (1 + 0.2 * np.tanh(x + z))
    return SplinePSF.from_stack(
        stack / stack.sum((1, 2), keepdims=True) * 0.98,
        z_start_nm=-600,
        z_step_nm=200,
        pixel_size_nm=PIXEL_NM,
        centre_px=(6.6, 5.7),
    )


def oversampled_spline() -> PSF:
    z, y, x = np.meshgrid(
        np.arange(5) - 2.0, np.arange(20) - 9.5, np.arange(20) - 9.5, indexing="ij"
    )
    stack = np.exp(-(x**2) / (16 + z) - y**2 / (16 - z))
    stack *= 3.9 / stack.sum((1, 2), keepdims=True)  # 2 x 2 voxels a pixel
    return SplinePSF.from_stack(
        stack, z_start_nm=-500, z_step_nm=250, pixel_size_nm=PIXEL_NM, oversampling=2
    )


def field_spline() -> PSF:
    """Without a place in the field, emitters are in its middle."""
    middle = oversampled_spline()
    assert isinstance(middle, SplinePSF)
    change = middle.coefficients.detach().roll(1, 1) - middle.coefficients.detach()
    field = ((0.0, 1e4), (0.0, 5e3))
    return FieldSplinePSF(
        middle, 0.2 * torch.stack([change, -change.mT]), shifts_nm=torch.ones(2, 2), field_nm=field
    )


def blurred() -> PSF:
    return BlurredPSF(GaussianPSF(110.0, pixel_size_nm=PIXEL_NM, depth_nm=450.0, patch_px=21), 40.0)


@pytest.fixture(
    params=[
        round_gaussian,
        flat_gaussian,
        astigmatic_gaussian,
        spline,
        oversampled_spline,
        field_spline,
        blurred,
    ]
)
def psf(request: pytest.FixtureRequest) -> PSF:
    made: PSF = request.param()
    return made.double()


def draw(n: int, rng: torch.Generator, *, low: float, high: float) -> Tensor:
    """Positions (n, 3) nm between two bounds in x and y, and within 450 nm of focus."""
    unit = torch.rand(n, 3, generator=rng, dtype=torch.float64)
    bottom = torch.tensor([low, low, -450.0], dtype=torch.float64)
    top = torch.tensor([high, high, 450.0], dtype=torch.float64)
    return bottom + unit * (top - bottom)


def in_central_pixel(psf: PSF, n: int, rng: torch.Generator) -> Tensor:
    start = psf.patch_px // 2 * PIXEL_NM
    return draw(n, rng, low=start, high=start + PIXEL_NM)


def test_a_patch_holds_nearly_all_the_light_and_never_more(psf: PSF, rng: torch.Generator) -> None:
    light = psf.integrate_pixels(in_central_pixel(psf, 200, rng)).sum((1, 2))
    assert light.max() <= 1 + 1e-12
    assert light.min() > 0.95


def test_fractions_are_not_negative(psf: PSF, rng: torch.Generator) -> None:
    fractions = psf.integrate_pixels(in_central_pixel(psf, 200, rng))
    assert fractions.min() >= -1e-3 * fractions.max()  # a spline may undershoot by a trace


@pytest.mark.parametrize("axis", [0, 1])
def test_moving_an_emitter_one_pixel_moves_its_image_one_pixel(
    psf: PSF, axis: int, rng: torch.Generator
) -> None:
    xyz = in_central_pixel(psf, 20, rng)
    step = PIXEL_NM * torch.eye(3, dtype=torch.float64)[axis]
    here, there = psf.integrate_pixels(xyz), psf.integrate_pixels(xyz + step)
    side = psf.patch_px - 1
    dim = 2 - axis
    torch.testing.assert_close(
        there.narrow(dim, 1, side), here.narrow(dim, 0, side), atol=1e-12, rtol=0
    )


def test_gradient_in_the_position(psf: PSF, rng: torch.Generator) -> None:
    xyz = in_central_pixel(psf, 3, rng).requires_grad_()
    assert torch.autograd.gradcheck(psf.integrate_pixels, (xyz,), eps=1e-4, atol=1e-8, rtol=1e-4)


@torch.no_grad()
def test_slopes_are_the_derivatives_of_the_image(psf: PSF, rng: torch.Generator) -> None:
    xyz = in_central_pixel(psf, 50, rng)
    parameters = None
    if psf.parameter_names == ("field_x", "field_y"):
        parameters = torch.rand(50, 2, generator=rng, dtype=torch.float64) * 5000
    found = psf.integrate_pixels_with_slopes(xyz, parameters)
    torch.testing.assert_close(
        found[:, 0], psf.integrate_pixels(xyz, parameters), atol=1e-12, rtol=0
    )
    for axis in range(3):
        step = 0.01 * torch.eye(3, dtype=torch.float64)[axis]
        above, below = (psf.integrate_pixels(xyz + sign * step, parameters) for sign in (1, -1))
        torch.testing.assert_close(found[:, 1 + axis], (above - below) / 0.02, atol=1e-9, rtol=0)


@torch.no_grad()
def test_another_patch_is_cut_from_the_same_image(psf: PSF, rng: torch.Generator) -> None:
    xyz = in_central_pixel(psf, 20, rng)
    small = psf.with_patch(psf.patch_px - 2)
    inner = xyz - torch.tensor([PIXEL_NM, PIXEL_NM, 0])
    torch.testing.assert_close(
        small.integrate_pixels(inner), psf.integrate_pixels(xyz)[:, 1:-1, 1:-1]
    )
    assert psf.integrate_pixels(xyz).shape[1] == small.patch_px + 2  # the original is as it was


def test_gradient_in_the_parameters(psf: PSF, rng: torch.Generator) -> None:
    xyz = in_central_pixel(psf, 3, rng)
    own = tuple(psf.parameters())
    assert torch.autograd.gradcheck(lambda *_: psf.integrate_pixels(xyz), own, fast_mode=True)


def test_gradient_through_a_frame(psf: PSF, rng: torch.Generator) -> None:
    xyz = draw(3, rng, low=-100, high=700).requires_grad_()
    photons = torch.tensor([100.0, 50.0, 20.0], dtype=torch.float64, requires_grad=True)
    frame = torch.tensor([0, 1, 1])

    def frames(xyz: Tensor, photons: Tensor) -> Tensor:
        return render(psf, frame=frame, xyz=xyz, photons=photons, n_frames=2, shape=(5, 6))

    assert torch.autograd.gradcheck(frames, (xyz, photons), eps=1e-4, atol=1e-6, rtol=1e-4)


def test_a_frame_is_the_sum_of_its_patches(psf: PSF, rng: torch.Generator) -> None:
    n, n_frames, height, width = 60, 4, 17, 26
    xyz = draw(n, rng, low=-1500, high=3500)
    photons = torch.rand(n, generator=rng, dtype=torch.float64) * 1000
    frame = torch.randint(n_frames, (n,), generator=rng)
    expected = np.zeros((n_frames, height, width))
    for i in range(n):
        column, row = (int(np.floor(v / PIXEL_NM)) - psf.patch_px // 2 for v in xyz[i, :2].tolist())
        own = xyz[i : i + 1] - torch.tensor([column, row, 0]) * PIXEL_NM
        patch = psf.integrate_pixels(own)[0].detach().numpy()
        for y in range(psf.patch_px):
            for x in range(psf.patch_px):
                if 0 <= row + y < height and 0 <= column + x < width:
                    expected[frame[i], row + y, column + x] += float(photons[i]) * patch[y, x]
    rendered = render(
        psf, frame=frame, xyz=xyz, photons=photons, n_frames=n_frames, shape=(height, width)
    )
    np.testing.assert_allclose(rendered.detach().numpy(), expected, atol=1e-9)


def test_a_frame_equals_the_region_of_a_larger_frame(psf: PSF, rng: torch.Generator) -> None:
    """So emitters outside shine in, and those at a border lose what falls beyond it."""
    xyz = draw(50, rng, low=-800, high=2400)
    photons = torch.full((50,), 500.0, dtype=torch.float64)
    frame = torch.zeros(50, dtype=torch.int64)
    margin = 20
    small = render(psf, frame=frame, xyz=xyz, photons=photons, n_frames=1, shape=(12, 16))
    shift = torch.tensor([margin, margin, 0]) * PIXEL_NM
    large = render(
        psf,
        frame=frame,
        xyz=xyz + shift,
        photons=photons,
        n_frames=1,
        shape=(12 + 2 * margin, 16 + 2 * margin),
    )
    torch.testing.assert_close(small, large[:, margin:-margin, margin:-margin], atol=1e-9, rtol=0)


def test_an_emitter_outside_shines_in(psf: PSF) -> None:
    def light(x: float) -> float:
        xyz = torch.tensor([[x, 1000.0, 0.0]], dtype=torch.float64)
        one = torch.ones(1, dtype=torch.float64)
        frame = torch.zeros(1, dtype=torch.int64)
        return (
            render(psf, frame=frame, xyz=xyz, photons=one, n_frames=1, shape=(20, 20)).sum().item()
        )

    assert light(1000.0) > 0.95
    assert 0.01 < light(-60.0) < 0.5
    assert light(-1e5) == 0


def test_photons_of_a_frame_are_those_of_its_emitters(psf: PSF, rng: torch.Generator) -> None:
    n = 40
    xyz = draw(n, rng, low=1500, high=3500)
    photons = torch.rand(n, generator=rng, dtype=torch.float64) * 1000
    frame = torch.arange(n) % 2
    light = render(psf, frame=frame, xyz=xyz, photons=photons, n_frames=3, shape=(50, 50)).sum(
        (1, 2)
    )
    for i in range(2):
        assert light[i].item() == pytest.approx(photons[frame == i].sum().item(), rel=0.03)
    assert light[2] == 0


def test_what_is_tabulated_draws_the_same_images(psf: PSF, rng: torch.Generator) -> None:
    same = psf.tabulated((-450.0, 450.0))
    xyz = in_central_pixel(psf, 5, rng)
    with torch.no_grad():
        drawn, expected = same.integrate_pixels(xyz), psf.integrate_pixels(xyz)
    torch.testing.assert_close(drawn, expected, atol=0.01 * float(expected.max()), rtol=0)


def test_parameters_at_a_place_are_a_row_for_each_emitter_or_none_at_all(
    psf: PSF, rng: torch.Generator
) -> None:
    xyz = in_central_pixel(psf, 5, rng)
    rows = psf.parameters_at(xyz)
    if rows is not None:
        assert rows.shape == (5, len(psf.parameter_names))
        assert psf.integrate_pixels(xyz, rows).shape == (5, psf.patch_px, psf.patch_px)


def test_outside_its_depths_a_free_form_levels_off_and_a_psf_without_any_is_the_same(
    psf: PSF,
) -> None:
    depths = psf.z_range_nm
    if depths is not None and not psf.free_form:
        return
    low, high = depths or (0.0, 0.0)
    middle = psf.patch_px * PIXEL_NM / 2
    z = torch.tensor([low - 300.0, low, high, high + 300.0])
    images = psf.integrate_pixels(torch.stack([torch.full_like(z, middle)] * 2 + [z], 1))
    torch.testing.assert_close(images[0], images[1])
    torch.testing.assert_close(images[2], images[3])


def test_what_a_file_holds_of_a_psf_makes_it_again(psf: PSF, rng: torch.Generator) -> None:
    if not psf.kind:
        return
    kind, settings, arrays = describe(psf)
    again = rebuild(PSFDescription(kind, json.loads(json.dumps(settings)), arrays))
    xyz = in_central_pixel(psf, 5, rng)
    torch.testing.assert_close(again.integrate_pixels(xyz), psf.integrate_pixels(xyz))
    assert again.z_range_nm == psf.z_range_nm


def test_a_frame_without_emitters_is_dark(psf: PSF) -> None:
    none = torch.zeros(0, dtype=torch.float64)
    frame = torch.zeros(0, dtype=torch.int64)
    frames = render(
        psf, frame=frame, xyz=none.reshape(0, 3), photons=none, n_frames=2, shape=(8, 9)
    )
    assert frames.shape == (2, 8, 9)
    assert not frames.any()


def test_a_gaussian_frame_equals_the_integral_over_every_pixel(rng: torch.Generator) -> None:
    psf = astigmatic_gaussian().double()
    assert isinstance(psf, GaussianPSF)
    xyz = draw(30, rng, low=-300, high=3300)
    photons = 1000 * torch.rand(30, generator=rng, dtype=torch.float64)
    width_x, width_y = psf.widths(xyz[:, 2]).detach().numpy().T
    edges = np.arange(33) * PIXEL_NM
    x, y = xyz[:, 0].numpy(), xyz[:, 1].numpy()
    in_x = np.diff(ndtr((edges - x[:, None]) / width_x[:, None]))
    in_y = np.diff(ndtr((edges - y[:, None]) / width_y[:, None]))
    expected = np.einsum("n,ny,nx->yx", photons.numpy(), in_y, in_x)
    frame = torch.zeros(30, dtype=torch.int64)
    rendered = render(psf, frame=frame, xyz=xyz, photons=photons, n_frames=1, shape=(32, 32))
    np.testing.assert_allclose(rendered[0].detach().numpy(), expected, atol=1e-3 * expected.max())


def test_one_batch_holds_gaussians_of_many_widths(rng: torch.Generator) -> None:
    psf = round_gaussian().double()
    xyz = in_central_pixel(psf, 3, rng)
    widths = torch.tensor([[100.0], [130.0], [170.0]], dtype=torch.float64)
    together = psf.integrate_pixels(xyz, widths)
    for i, width in enumerate(widths[:, 0].tolist()):
        alone = GaussianPSF(width, pixel_size_nm=PIXEL_NM, depth_nm=450.0, patch_px=19).double()
        torch.testing.assert_close(together[i : i + 1], alone.integrate_pixels(xyz[i : i + 1]))


def test_a_gaussian_has_its_widths() -> None:
    """Standard deviations measured from a finely sampled image; focus of x is at +gap."""
    psf = GaussianPSF(
        150.0, pixel_size_nm=20.0, depth_nm=400.0, gap_nm=250.0, patch_px=151
    ).double()
    xyz = torch.tensor([[1510.0, 1510.0, 250.0]], dtype=torch.float64)
    image = psf.integrate_pixels(xyz)[0].detach()
    at = (torch.arange(151, dtype=torch.float64) + 0.5) * 20 - 1510
    spread = [
        float((image.sum(dim) * at**2).sum() / image.sum() - 20**2 / 12) ** 0.5 for dim in (0, 1)
    ]
    assert spread == pytest.approx([150.0, 150 * (1 + (500 / 400) ** 2) ** 0.5], rel=2e-3)


@pytest.mark.parametrize("wrong", [{"sigma_nm": 0.0}, {"depth_nm": -1.0}, {"pixel_size_nm": 0.0}])
def test_a_gaussian_without_a_width_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        GaussianPSF(**({"sigma_nm": 130.0, "pixel_size_nm": 100.0} | wrong))
