"""PupilPSF against diffraction theory, and the laws any image of an emitter follows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad_vec
from scipy.special import j0, j1, jv
from torch import Tensor

from decode.optics.pupil import PupilPSF, noll, zernike
from decode.optics.spline import SplinePSF

WAVELENGTH_NM = 660.0
PIXEL_NM = 100.0


def pupil(**changes: object) -> PupilPSF:
    options: dict[str, object] = {
        "numerical_aperture": 1.45,
        "wavelength_nm": WAVELENGTH_NM,
        "pixel_size_nm": PIXEL_NM,
        "grid": 48,
    }
    return PupilPSF(**(options | changes)).double()  # type: ignore[arg-type]


def at_middle(psf: PupilPSF, z: list[float]) -> Tensor:
    middle = psf.patch_px * psf.pixel_size_nm / 2
    return torch.tensor([[middle, middle, depth] for depth in z], dtype=torch.float64)


def widths(psf: PupilPSF, z: float) -> tuple[float, float]:
    """Standard deviations along x and y [px] of the part of the image above a tenth of its peak."""
    image = psf.integrate_pixels(at_middle(psf, [z]))[0].detach()
    image = (image - 0.1 * image.max()).clamp_min(0)
    at = torch.arange(psf.patch_px) - (psf.patch_px - 1) / 2
    x, y = (float((image.sum(dim) * at**2).sum() / image.sum()) ** 0.5 for dim in (0, 1))
    return x, y


def test_a_low_aperture_in_focus_is_airys_disc() -> None:
    """Airy (1835): (2 J1(v) / v)^2 with v = 2 pi NA r / wavelength, pi (NA / wavelength)^2 at
    the peak."""
    psf = pupil(
        numerical_aperture=0.05, immersion_index=1.0, pixel_size_nm=300.0, patch_px=81, grid=128
    )
    image = psf.integrate_pixels(at_middle(psf, [0.0]))[0].detach().numpy()
    # the disc is 8,000 nm wide, so a pixel of 300 nm is a point up to its curvature; 3-point Gauss
    # does the rest
    nodes, weights = np.polynomial.legendre.leggauss(3)
    x = ((np.arange(81) - 40)[:, None] + nodes / 2).ravel() * 300
    v = 2 * np.pi * 0.05 * np.maximum(np.hypot(x, x[:, None]), 1e-9) / WAVELENGTH_NM
    density = np.pi * (0.05 / WAVELENGTH_NM) ** 2 * (2 * j1(v) / v) ** 2
    expected = (
        np.einsum("iajb,a,b->ij", density.reshape(81, 3, 81, 3), weights / 2, weights / 2) * 300**2
    )
    np.testing.assert_allclose(image, expected, atol=1e-3 * expected.max())


def dipole_image(radius: np.ndarray, z: float, aperture: float, index: float) -> np.ndarray:
    """Intensity of a rotating dipole in a uniform medium by radial integrals, peak 1 in focus.

    Richards and Wolf, Proc. R. Soc. A 253, 358 (1959), eq. 2.30 to 2.32, for emission: 1 /
    sqrt(cos) in place of sqrt(cos), and I0^2 + I2^2 + 2 I1^2 summed over the three dipoles.
    """
    k = 2 * np.pi * index / WAVELENGTH_NM

    def integrand(angle: float) -> np.ndarray:
        r = k * radius * np.sin(angle)
        common = np.sqrt(np.cos(angle)) * np.sin(angle) * np.exp(1j * k * z * np.cos(angle))
        kinds = [(1 + np.cos(angle)) * j0(r), np.sin(angle) * j1(r), (1 - np.cos(angle)) * jv(2, r)]
        return common * np.stack(kinds)

    i0, i1, i2 = quad_vec(integrand, 0, np.arcsin(aperture / index), epsrel=1e-10)[0]
    return np.abs(i0) ** 2 + 2 * np.abs(i1) ** 2 + np.abs(i2) ** 2


@pytest.mark.parametrize("z", [0.0, 300.0])
@pytest.mark.parametrize("aperture", [1.2, 1.45])
def test_a_high_aperture_is_the_sum_of_richards_and_wolfs_integrals(
    aperture: float, z: float
) -> None:
    psf = pupil(numerical_aperture=aperture, pixel_size_nm=20.0, patch_px=81, grid=160)
    image = psf.integrate_pixels(at_middle(psf, [z]))[0].detach().numpy()
    radius = np.arange(38) * 20.0
    density = dipole_image(np.append(radius, np.linspace(0, 40000, 2)), z, aperture, 1.518)[
        : len(radius)
    ]
    peak = dipole_image(np.zeros(1), 0.0, aperture, 1.518)[0]
    best = pupil(numerical_aperture=aperture, pixel_size_nm=20.0, patch_px=81, grid=160)
    scale = best.integrate_pixels(at_middle(best, [0.0]))[0].max().item() / peak
    # 4e-3: a pixel of 20 nm averages over what the density has at its middle
    np.testing.assert_allclose(
        image[40, 40 : 40 + len(radius)], density * scale, atol=4e-3 * image.max()
    )
    # and so the width at half the maximum
    fine = np.linspace(0, 740, 7401)
    found, expected = (
        np.interp(fine, radius, profile / profile[0]) for profile in (image[40, 40:78], density)
    )
    if z == 0:
        assert fine[found < 0.5][0] == pytest.approx(fine[expected < 0.5][0], rel=5e-3)


@pytest.mark.parametrize("sample_index", [1.33, None])
def test_all_light_is_there_at_every_depth(sample_index: float | None) -> None:
    """In one period of the field; the rim's cells lose 2 / grid at most, with or without
    evanescent light."""
    psf = pupil(
        sample_index=sample_index,
        depth_nm=500.0,
        zernike_nm={(2, 2): 60.0},
        blur_nm=30.0,
        patch_px=5,
        grid=44,
    )
    period = psf.grid * WAVELENGTH_NM / (2 * 1.45)
    wide = pupil(
        sample_index=sample_index, depth_nm=500.0, zernike_nm={(2, 2): 60.0}, blur_nm=30.0,
        pixel_size_nm=period / 100, patch_px=100, grid=44,
    )  # fmt: skip
    light = (
        wide.integrate_pixels(at_middle(wide, [-900.0, -300.0, 0.0, 300.0, 900.0]))
        .sum((1, 2))
        .detach()
    )
    if sample_index is None:
        torch.testing.assert_close(light, light[2].expand(5), atol=1e-9, rtol=0)
    assert ((light > 1 - 2 / psf.grid) & (light < 1)).all()
    inside = psf.integrate_pixels(at_middle(psf, [-900.0, 0.0, 900.0])).sum((1, 2))
    assert ((inside > 0) & (inside < 1)).all()


def test_moving_one_pixel_moves_the_image_one_pixel() -> None:
    psf = pupil(zernike_nm={(2, 2): 50.0, (3, 1): 30.0}, patch_px=25)
    xyz = at_middle(psf, [-400.0, 0.0, 400.0]) + torch.tensor([23.0, -31.0, 0.0])
    image = psf.integrate_pixels(xyz)
    right = psf.integrate_pixels(xyz + torch.tensor([PIXEL_NM, 0.0, 0.0]))
    down = psf.integrate_pixels(xyz + torch.tensor([0.0, PIXEL_NM, 0.0]))
    torch.testing.assert_close(right[:, :, 1:], image[:, :, :-1], rtol=0, atol=1e-12)
    torch.testing.assert_close(down[:, 1:], image[:, :-1], rtol=0, atol=1e-12)


def test_slopes_are_finite_differences() -> None:
    """Of position, coefficients, blur, aperture and mask, with mismatch and light beyond the
    critical angle."""
    mask = torch.randn(16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 20
    psf = pupil(
        sample_index=1.33,
        depth_nm=300.0,
        blur_nm=40.0,
        bead_diameter_nm=100.0,
        patch_px=11,
        grid=16,
        zernike_nm={(2, 2): 40.0, (2, -2): -20.0, (3, 1): 15.0, (4, 0): 30.0},
        phase_mask_nm=mask,
    )
    xyz = at_middle(psf, [-350.0, 120.0]) + torch.tensor([31.0, -12.0, 0.0], dtype=torch.float64)
    weight = torch.randn(2, 11, 11, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    psf.numerical_aperture.requires_grad_(True)
    inputs = [xyz.requires_grad_(True), *psf.parameters()]

    def value() -> Tensor:
        return (psf.integrate_pixels(xyz) * weight).sum()

    slopes = torch.autograd.grad(value(), inputs)
    for tensor, slope in zip(inputs, slopes, strict=True):
        flat = tensor.data.view(-1)
        step = 1e-6 if tensor is psf.numerical_aperture else 1e-3
        found = slope.reshape(-1)
        for i in range(0, len(flat), 17 if len(flat) > 20 else 1):
            before = float(flat[i])
            flat[i] = before + step
            above = value().item()
            flat[i] = before - step
            below = value().item()
            flat[i] = before
            expected = (above - below) / (2 * step)
            assert float(found[i]) == pytest.approx(
                expected, rel=1e-4, abs=1e-4 * float(found.abs().max())
            )


def test_a_row_of_parameters_stands_for_the_psfs_own() -> None:
    psf = pupil(zernike_nm={(2, 2): 50.0, (3, -1): 10.0}, blur_nm=25.0)
    other = pupil(zernike_nm={(2, 2): -30.0, (3, -1): 0.0}, blur_nm=60.0, apodization=0.2)
    xyz = at_middle(psf, [100.0, 100.0])
    assert psf.parameter_names == ("zernike_2_2_nm", "zernike_3_-1_nm", "blur_nm", "apodization")
    rows = torch.tensor([[50.0, 10.0, 25.0, 0.0], [-30.0, 0.0, 60.0, 0.2]], dtype=torch.float64)
    image = psf.integrate_pixels(xyz, rows)
    torch.testing.assert_close(image[:1], psf.integrate_pixels(xyz[:1]))
    torch.testing.assert_close(image[1:], other.integrate_pixels(xyz[:1]))


def test_astigmatism_swaps_the_widths_and_says_which_way() -> None:
    psf = pupil(zernike_nm={(2, 2): 60.0})
    above, below = widths(psf, 400.0), widths(psf, -400.0)
    assert above[1] > 1.2 * above[0]
    assert above == pytest.approx(below[::-1], rel=1e-9)
    mirrored = pupil(zernike_nm={(2, 2): -60.0})
    assert widths(mirrored, 400.0) == pytest.approx(below, rel=1e-9)


def test_without_mismatch_a_stack_counted_backwards_is_a_mirrored_pupil() -> None:
    """E(-z, W(rho)) is the conjugate of E(z, -W(-rho)): what no stack can tell, and fits must
    not claim to."""
    psf = pupil(zernike_nm={(2, -2): 40.0, (3, 1): 25.0, (4, 0): 20.0})
    twin = pupil(zernike_nm={(2, -2): -40.0, (3, 1): 25.0, (4, 0): -20.0})
    xyz = at_middle(psf, [-500.0, -100.0, 300.0])
    torch.testing.assert_close(
        psf.integrate_pixels(xyz),
        twin.integrate_pixels(xyz * torch.tensor([1, 1, -1])),
        rtol=0,
        atol=1e-12,
    )


def test_looking_deep_into_water_with_oil_is_a_spherical_aberration_of_known_sign() -> None:
    """The best focus lies near z = 0 and the two sides of focus differ, the other way round as
    for c40 < 0."""
    z = torch.arange(-1500.0, 1501.0, 50.0).tolist()

    def sharpness(psf: PupilPSF) -> Tensor:
        return psf.integrate_pixels(at_middle(psf, z)).amax((1, 2)).detach()

    deep = sharpness(pupil(numerical_aperture=1.3, sample_index=1.33, depth_nm=5000.0, grid=96))
    assert abs(z[int(deep.argmax())]) <= 400
    lopsided = [
        float(curve[:30].sum() - curve[31:].sum())
        for curve in (
            deep,
            sharpness(
                pupil(numerical_aperture=1.3, sample_index=1.33, zernike_nm={(4, 0): 40.0}, grid=96)
            ),
            sharpness(
                pupil(
                    numerical_aperture=1.3, sample_index=1.33, zernike_nm={(4, 0): -40.0}, grid=96
                )
            ),
        )
    ]
    assert lopsided[1] * lopsided[2] < 0
    assert abs(lopsided[0]) > 0.01
    assert lopsided[0] * lopsided[1] < 0


def test_scanning_the_stage_shifts_focus_less_than_the_emitters_own_height() -> None:
    """Between water and oil an emitter's height counts n_sample / n_immersion of a stage's way
    for paraxial rays."""
    shared = {
        "numerical_aperture": 0.3,
        "sample_index": 1.33,
        "patch_px": 41,
        "pixel_size_nm": 200.0,
        "grid": 64,
    }
    emitter, stage = pupil(**shared), pupil(**shared, scan="stage")
    a = emitter.integrate_pixels(at_middle(emitter, [20000.0 * 1.33 / 1.518]))
    b = stage.integrate_pixels(at_middle(stage, [20000.0]))
    torch.testing.assert_close(a, b, rtol=0, atol=0.02 * float(a.max()))
    assert float(
        (emitter.integrate_pixels(at_middle(emitter, [20000.0])) - b).abs().max()
    ) > 0.05 * float(b.max())


def test_an_offset_is_added_to_positions() -> None:
    plain, offset = (
        pupil(zernike_nm={(2, 2): 40.0}),
        pupil(zernike_nm={(2, 2): 40.0}, offset_nm=(20.0, -45.0, 100.0)),
    )
    xyz = at_middle(plain, [0.0, 250.0])
    torch.testing.assert_close(
        offset.integrate_pixels(xyz), plain.integrate_pixels(xyz + offset.offset_nm)
    )


def test_blur_and_bead_add_their_variances() -> None:
    """Of a ball of diameter D the shadow has variance D^2 / 20 along an axis.  The spectrum
    tells the variance."""

    def log_transfer(psf: PupilPSF) -> float:
        image = psf.integrate_pixels(at_middle(psf, [0.0]))[0].detach()
        at = (torch.arange(psf.patch_px) - (psf.patch_px - 1) / 2) * psf.pixel_size_nm
        return float(torch.log((image.sum(0) * torch.cos(2 * torch.pi * at / 2000)).sum()))

    wide: dict[str, object] = {
        "numerical_aperture": 0.8,
        "immersion_index": 1.0,
        "patch_px": 199,
        "grid": 500,
    }
    per_variance = -((2 * torch.pi / 2000) ** 2) / 2
    sharp = log_transfer(pupil(**wide))
    blurred = log_transfer(pupil(**wide, blur_nm=80.0))
    ball = log_transfer(pupil(**wide, bead_diameter_nm=300.0))
    assert (blurred - sharp) / per_variance == pytest.approx(80.0**2, rel=0.02)
    assert (ball - sharp) / per_variance == pytest.approx(300.0**2 / 20, rel=0.04)


def test_a_baked_spline_draws_the_same() -> None:
    psf = pupil(zernike_nm={(2, 2): 60.0, (3, 1): 20.0}, blur_nm=30.0, patch_px=25)
    spline = psf.to_spline(z_range_nm=(-500.0, 500.0), z_step_nm=25.0, oversampling=3).double()
    assert spline.pixel_size_nm == PIXEL_NM
    rng = torch.Generator().manual_seed(3)
    shift = torch.rand(40, 3, generator=rng, dtype=torch.float64) * torch.tensor(
        [100.0, 100.0, 800.0]
    )
    middle = psf.patch_px * PIXEL_NM / 2
    xyz = torch.tensor([middle - 50, middle - 50, -400.0]) + shift
    expected = psf.integrate_pixels(xyz)
    grown = (spline.patch_px - psf.patch_px) // 2
    found = spline.integrate_pixels(xyz + torch.tensor([grown * PIXEL_NM, grown * PIXEL_NM, 0.0]))
    inner = slice(2, -2)
    found = found[:, grown:-grown, grown:-grown] if grown else found
    error = (found - expected).abs()[:, inner, inner].amax((1, 2)) / expected.amax((1, 2))
    assert error.max() < 3e-3


def test_a_pupil_is_tabulated_as_a_spline_that_draws_the_same_over_the_whole_range() -> None:
    psf = PupilPSF(
        numerical_aperture=1.4,
        wavelength_nm=670.0,
        pixel_size_nm=100.0,
        zernike_nm={(2, 2): 70.0, (3, 1): 20.0},
    )
    spline = psf.tabulated((-600.0, 600.0))
    assert isinstance(spline, SplinePSF)
    for z in (-600.0, -310.0, 0.0, 600.0):
        at = torch.tensor([[spline.patch_px * 50.0 + 21.0, spline.patch_px * 50.0 - 37.0, z]])
        with torch.no_grad():
            drawn, expected = (
                spline.integrate_pixels(at),
                psf.with_patch(spline.patch_px).integrate_pixels(at),
            )
        inner = slice(2, -2)
        assert (drawn - expected)[:, inner, inner].abs().max() < 0.01 * expected.max()


def test_zernikes_are_orthonormal_over_the_disc() -> None:
    at = (torch.arange(400, dtype=torch.float64) + 0.5) / 200 - 1
    rho, azimuth = (
        torch.hypot(at, at[:, None]),
        torch.atan2(at[:, None].expand(400, 400), at.expand(400, 400)),
    )
    inside = rho <= 1
    basis = torch.stack([zernike(*noll(j), rho, azimuth)[inside] for j in range(1, 22)])
    gram = basis @ basis.T / inside.sum()
    torch.testing.assert_close(gram, torch.eye(21, dtype=torch.float64), atol=0.02, rtol=0)


def test_nolls_table() -> None:
    """Noll (1976), table I."""
    found = [noll(j) for j in range(1, 16)]
    assert found == [
        (0, 0), (1, 1), (1, -1), (2, 0), (2, -2), (2, 2), (3, -1), (3, 1), (3, -3), (3, 3),
        (4, 0), (4, 2), (4, -2), (4, 4), (4, -4),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"numerical_aperture": 1.6}, "at most the immersion"),
        ({"wavelength_nm": -1.0}, "wavelength"),
        ({"depth_nm": -5.0}, "negative"),
        ({"scan": "objective"}, "emitter"),
        ({"grid": 7}, "even"),
        ({"phase_mask_nm": torch.zeros(8, 8)}, "phase mask"),
        ({"zernike_nm": {(3, 2): 1.0}}, "no Zernike"),
    ],
)
def test_an_impossible_microscope_is_refused(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pupil(**wrong)
