"""A PSF that changes over the field: what holds at one place, and from place to place."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from decode.optics.description import describe, rebuild
from decode.optics.field import FieldSplinePSF, polynomials
from decode.optics.psf import render
from decode.optics.spline import SplinePSF

FIELD_NM = ((1000.0, 13000.0), (-2000.0, 6000.0))


def made(terms: int = 6) -> FieldSplinePSF:
    """Light that grows wider along x and leans along y, in changes that hold no light."""
    z, y, x = np.meshgrid(
        np.arange(5) - 2.0, np.arange(20) - 9.5, np.arange(22) - 10.5, indexing="ij"
    )
    stack = np.exp(-(x**2) / (16 + z) - y**2 / (16 - z))
    stack *= 3.9 / stack.sum((1, 2), keepdims=True)
    middle = SplinePSF.from_stack(
        stack,
        z_start_nm=-500,
        z_step_nm=250,
        pixel_size_nm=100,
        oversampling=2,
        centre_px=(11.3, 9.8),
    ).double()
    c = middle.coefficients.detach()
    rng = torch.Generator().manual_seed(4)
    noise = torch.randn(terms - 1, *c.shape, generator=rng, dtype=torch.float64).numpy()
    changes = 5 * c * torch.from_numpy(gaussian_filter(noise, (0, 0, 3, 3)))
    changes = 0.1 * (changes - c * changes.sum((2, 3), keepdim=True) / c.sum((1, 2), keepdim=True))
    shifts = 15 * torch.randn(terms - 1, 2, generator=rng, dtype=torch.float64)
    return FieldSplinePSF(middle, changes, shifts_nm=shifts, field_nm=FIELD_NM).double()


def places(n: int, rng: torch.Generator) -> Tensor:
    low, high = torch.tensor(FIELD_NM, dtype=torch.float64).T
    return low + (high - low) * torch.rand(n, 2, generator=rng, dtype=torch.float64)


def near_the_middle(psf: FieldSplinePSF, n: int, rng: torch.Generator) -> Tensor:
    corner = psf.patch_px // 2 * psf.pixel_size_nm
    unit = torch.rand(n, 3, generator=rng, dtype=torch.float64)
    return unit * torch.tensor([100.0, 100.0, 900.0]) + torch.tensor([corner, corner, -450.0])


@pytest.mark.parametrize("terms", [3, 6])
def test_one_batch_holds_emitters_all_over_the_field(terms: int, rng: torch.Generator) -> None:
    """Each as the spline of its own place has it."""
    psf = made(terms)
    xyz, where = near_the_middle(psf, 12, rng), places(12, rng)
    together = psf.integrate_pixels(xyz, where).detach()
    for i, (x, y) in enumerate(where.tolist()):
        alone = psf.at(x, y).integrate_pixels(xyz[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone.detach(), atol=1e-12, rtol=0)


def test_the_image_is_the_polynomial_of_the_place(rng: torch.Generator) -> None:
    """By the definition, term for term, with images of splines that hold one change each."""
    psf = made()
    xyz, where = near_the_middle(psf, 5, rng), places(5, rng)
    x = (where[:, 0] - 7000) / 6000
    y = (where[:, 1] - 2000) / 4000
    weights = torch.stack([x, y, x**2, x * y, y**2], 1)
    moved = xyz.clone()
    moved[:, :2] -= weights @ psf.shifts_nm.detach()
    expected = psf.middle.integrate_pixels(moved)
    for weight, change in zip(weights.T, psf.changes.detach(), strict=True):
        expected = expected + weight[:, None, None] * psf.middle.with_coefficients(
            change
        ).integrate_pixels(moved)
    torch.testing.assert_close(psf.integrate_pixels(xyz, where), expected)


def test_the_light_is_the_same_all_over_the_field_and_never_more_than_all(
    rng: torch.Generator,
) -> None:
    psf = made()
    light = (
        psf.integrate_pixels(near_the_middle(psf, 200, rng), places(200, rng)).sum((1, 2)).detach()
    )
    assert float(light.max()) <= 1
    torch.testing.assert_close(light, torch.full_like(light, 0.975), atol=2e-3, rtol=0)


def test_without_a_place_an_emitter_is_in_the_middle_of_the_field(rng: torch.Generator) -> None:
    psf = made()
    xyz = near_the_middle(psf, 3, rng)
    middle = torch.tensor([[7000.0, 2000.0]], dtype=torch.float64).expand(3, 2)
    torch.testing.assert_close(psf.integrate_pixels(xyz), psf.integrate_pixels(xyz, middle))


def test_beyond_the_field_it_is_as_at_the_nearest_place(rng: torch.Generator) -> None:
    psf = made()
    xyz = near_the_middle(psf, 1, rng)
    outside = torch.tensor([[2e4, 1e3]], dtype=torch.float64)
    border = torch.tensor([[13000.0, 1e3]], dtype=torch.float64)
    torch.testing.assert_close(
        psf.integrate_pixels(xyz, outside), psf.integrate_pixels(xyz, border)
    )


def test_gradients_in_position_place_and_coefficients(rng: torch.Generator) -> None:
    psf = made()
    xyz = near_the_middle(psf, 2, rng).requires_grad_()
    where = places(2, rng).requires_grad_()
    assert torch.autograd.gradcheck(
        psf.integrate_pixels, (xyz, where), eps=1e-3, atol=1e-8, rtol=1e-4
    )
    own = tuple(psf.parameters())
    assert torch.autograd.gradcheck(
        lambda *_: psf.integrate_pixels(xyz.detach(), where.detach()), own, fast_mode=True
    )


def test_a_frame_is_drawn_with_each_emitters_own_psf(rng: torch.Generator) -> None:
    psf = made()
    xyz = near_the_middle(psf, 4, rng)
    where = places(4, rng)
    frame = torch.arange(4)
    light = torch.full((4,), 100.0, dtype=torch.float64)
    shape = (psf.patch_px, psf.patch_px)
    drawn = render(
        psf, frame=frame, xyz=xyz, photons=light, n_frames=4, shape=shape, parameters=where
    )
    torch.testing.assert_close(drawn, 100 * psf.integrate_pixels(xyz, where))


def test_the_polynomials_span_the_field() -> None:
    corners = torch.tensor(list(itertools.product(*FIELD_NM)))
    values = polynomials(corners, FIELD_NM, 6)
    assert values[:, 1:3].tolist() == [[-1, -1], [-1, 1], [1, -1], [1, 1]]
    torch.testing.assert_close(values[:, 4], values[:, 1] * values[:, 2])


def test_a_description_makes_the_same_psf_again(rng: torch.Generator) -> None:
    psf = made(3)
    again = rebuild(describe(psf))
    xyz, where = near_the_middle(psf, 3, rng), places(3, rng)
    torch.testing.assert_close(again.integrate_pixels(xyz, where), psf.integrate_pixels(xyz, where))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"changes": torch.zeros(3, 5, 20, 22)}, "expected 0, 2 or 5"),
        ({"changes": torch.zeros(2, 5, 20, 20)}, "expected 0, 2 or 5"),
        ({"shifts_nm": torch.zeros(5, 2)}, "expected"),
        ({"field_nm": ((0.0, 0.0), (0.0, 1.0))}, "first"),
    ],
)
def test_what_does_not_fit_is_refused(wrong: dict[str, object], message: str) -> None:
    psf = made(3)
    given = {
        "changes": psf.changes.detach(),
        "shifts_nm": psf.shifts_nm.detach(),
        "field_nm": FIELD_NM,
    } | wrong
    with pytest.raises(ValueError, match=message):
        FieldSplinePSF(psf.middle, **given)  # type: ignore[arg-type]
