"""The Cramer-Rao bound against closed forms, the exact likelihood, and the spread of
maximum-likelihood fits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from decode.optics.camera import Camera
from decode.optics.fisher import AXES, cramer_rao_bound, fisher_information
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import PSF
from decode.optics.spline import SplinePSF

IDEAL = Camera(baseline=0.0, e_per_adu=1e-6, read_noise_e=0.0)
SCMOS = Camera(baseline=100.0, e_per_adu=0.48, read_noise_e=1.6, qe=0.8, saturation_adu=65535)
EMCCD = Camera(
    baseline=100.0,
    e_per_adu=45.0,
    read_noise_e=74.4,
    qe=0.9,
    em_gain=300.0,
    spurious_e=0.002,
    saturation_adu=65535,
)


def astigmatic() -> GaussianPSF:
    return GaussianPSF(
        130.0, pixel_size_nm=100.0, depth_nm=400.0, gap_nm=200.0, patch_px=17
    ).double()


def spline() -> SplinePSF:
    psf = astigmatic()
    z = torch.arange(-600.0, 601.0, 100.0, dtype=torch.float64)
    middle = torch.full_like(z, psf.patch_px * 50.0)
    stack = psf.integrate_pixels(torch.stack([middle, middle, z], 1)).detach()
    return SplinePSF.from_stack(
        stack, z_start_nm=-600, z_step_nm=100, pixel_size_nm=100, patch_px=17
    ).double()


def double(value: list[float] | list[list[float]]) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def places(n: int, rng: torch.Generator) -> Tensor:
    unit = torch.rand(n, 3, generator=rng, dtype=torch.float64)
    return double([0.0, 0.0, -400.0]) + unit * double([6400.0, 3200.0, 800.0])


def test_without_background_a_gaussian_is_found_to_sigma_over_root_n() -> None:
    """sqrt(sigma^2 + a^2 / 12) / sqrt(N) with pixels of side a much smaller than sigma (Thompson
    et al., 2002)."""
    psf = GaussianPSF(200.0, pixel_size_nm=50.0, patch_px=41).double()
    photons = double([100.0, 1000.0, 10000.0])
    bound = cramer_rao_bound(
        psf, IDEAL, double([[1010.0, 1033.0, 0.0]] * 3), photons, double([1e-9] * 3)
    )
    expected = ((200**2 + 50**2 / 12) / photons).sqrt()
    torch.testing.assert_close(bound[:, 0], expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(bound[:, 1], expected, rtol=1e-3, atol=0)
    assert bound[:, 2].isnan().all()


def test_without_background_photons_are_counted_to_their_root() -> None:
    psf = GaussianPSF(200.0, pixel_size_nm=50.0, patch_px=41).double()
    information = fisher_information(
        psf,
        IDEAL,
        double([[1010.0, 1033.0, 0.0]]),
        double([400.0]),
        double([1e-9]),
        axes=("photons",),
    )
    assert information.shape == (1, 1, 1)
    assert information.item() == pytest.approx(1 / 400, rel=1e-3)


@pytest.mark.parametrize(("camera", "excess"), [(IDEAL, 1), (replace(IDEAL, em_gain=300.0), 2)])
@pytest.mark.parametrize("background", [1.0, 10.0, 60.0])
def test_with_background_it_is_the_bound_of_mortensen(
    camera: Camera, excess: int, background: float
) -> None:
    """Mortensen et al., Nature Methods 7, 377 (2010), for maximum likelihood; an EMCCD doubles
    the variance."""
    photons, sigma, pixel = 800.0, 120.0, 40.0
    widened = sigma**2 + pixel**2 / 12
    ratio = 2 * np.pi * widened * background / (photons * pixel**2)
    integral, _ = quad(lambda t: np.log(t) / (1 + t / ratio), 0, 1)
    expected = (excess * widened / photons / (1 + integral)) ** 0.5
    psf = GaussianPSF(sigma, pixel_size_nm=pixel, patch_px=41).double()
    bound = cramer_rao_bound(
        psf, camera, double([[830.0, 815.0, 0.0]]), double([photons]), double([background])
    )
    assert bound[0, :2].tolist() == pytest.approx([expected, expected], rel=2e-3)


@pytest.mark.parametrize(
    ("camera", "photons"), [(SCMOS, 5.0), (SCMOS, 30.0), (EMCCD, 10.0), (EMCCD, 80.0)]
)
def test_a_pixel_informs_as_its_exact_likelihood_does(camera: Camera, photons: float) -> None:
    """The mean squared score, summed over all counts, of a pixel that is all background."""
    counts = torch.arange(
        100 + 40 * (photons + 20) / float(camera.photons_per_adu) ** 0.99, dtype=torch.float64
    )
    mean = torch.full_like(counts, photons, requires_grad=True)
    log_p = camera.log_prob(counts, mean)
    (score,) = torch.autograd.grad(log_p.sum(), mean)
    exact = (log_p.exp() * score**2).sum().item()
    psf = GaussianPSF(100.0, pixel_size_nm=100.0, patch_px=1).double()
    information = fisher_information(
        psf,
        camera,
        double([[1e6, 1e6, 0.0]]),
        double([0.0]),
        double([photons]),
        axes=("background",),
    )
    assert information.item() == pytest.approx(exact, rel=0.035)
    assert information.item() <= exact


@pytest.mark.parametrize("psf", [astigmatic(), spline()], ids=["gaussian", "spline"])
def test_slopes_are_those_of_finite_differences(psf: PSF, rng: torch.Generator) -> None:
    xyz, photons, background = places(5, rng), double([500.0] * 5), double([8.0] * 5)
    found = fisher_information(psf, SCMOS, xyz, photons, background)
    inside = xyz.clone()
    inside[:, :2] = xyz[:, :2] % 100 + psf.patch_px // 2 * 100
    theta = torch.cat([inside, photons[:, None], background[:, None]], 1)

    def mean(theta: Tensor) -> Tensor:
        return (
            theta[:, 3, None, None] * psf.integrate_pixels(theta[:, :3]).detach()
            + theta[:, 4, None, None]
        )

    steps = torch.eye(5, dtype=torch.float64) * 1e-2
    slope = torch.stack([(mean(theta + step) - mean(theta - step)) / 2e-2 for step in steps], 1)
    variance = mean(theta) / SCMOS.qe + SCMOS.noise_floor
    torch.testing.assert_close(
        found,
        torch.einsum("niyx,njyx->nij", slope, slope / variance[:, None]),
        rtol=1e-4,
        atol=1e-9,
    )


@pytest.mark.parametrize("camera", [SCMOS, EMCCD], ids=["scmos", "emccd"])
def test_maximum_likelihood_reaches_the_bound(camera: Camera, rng: torch.Generator) -> None:
    """Fits under the exact likelihood of simulated images spread as the bound says, in all five
    parameters."""
    psf, n = astigmatic(), 200
    truth = double([860.0, 830.0, 60.0, 3000.0, 20.0])
    bound = cramer_rao_bound(psf, camera, truth[None, :3], truth[3:4], truth[4:])[0]

    def mean(theta: Tensor) -> Tensor:
        return (
            theta[:, 3, None, None] * psf.integrate_pixels(theta[:, :3]) + theta[:, 4, None, None]
        )

    information = fisher_information(psf, camera, truth[None, :3], truth[3:4], truth[4:])[0]
    adu = camera.sample(mean(truth[None]).detach().expand(n, -1, -1), rng)
    theta = truth.expand(n, 5).clone()
    for _ in range(2):  # Fisher scoring
        theta.requires_grad_()
        (score,) = torch.autograd.grad(camera.log_prob(adu, mean(theta)).sum(), theta)
        theta = theta.detach() + score @ torch.linalg.inv(information)
    spread = theta.std(0)
    assert (spread / bound).tolist() == pytest.approx([1.0] * 5, abs=0.17)
    assert (
        (theta.mean(0) - truth).abs() < 4 * bound / n**0.5 + double([0.5, 0.5, 1.5, 15.0, 0.1])
    ).all()


def test_emitters_are_independent_and_chunks_leave_no_trace(rng: torch.Generator) -> None:
    psf, xyz = astigmatic(), places(23, rng)
    photons = 200 + 2000 * torch.rand(23, generator=rng, dtype=torch.float64)
    background = 1 + 20 * torch.rand(23, generator=rng, dtype=torch.float64)
    whole = fisher_information(psf, EMCCD, xyz, photons, background)
    torch.testing.assert_close(
        whole, fisher_information(psf, EMCCD, xyz, photons, background, chunk=5)
    )
    torch.testing.assert_close(
        whole[7:8], fisher_information(psf, EMCCD, xyz[7:8], photons[7:8], background[7:8])
    )
    torch.testing.assert_close(whole, whole.mT)


def test_the_bound_repeats_from_pixel_to_pixel(rng: torch.Generator) -> None:
    psf, xyz = astigmatic(), places(10, rng)
    photons, background = double([900.0] * 10), double([5.0] * 10)
    moved = xyz + double([700.0, -1300.0, 0.0])
    torch.testing.assert_close(
        cramer_rao_bound(psf, SCMOS, xyz, photons, background),
        cramer_rao_bound(psf, SCMOS, moved, photons, background),
    )


def test_a_noisy_pixel_is_felt_only_where_it_is(rng: torch.Generator) -> None:
    noise = torch.full((32, 64), 1.6, dtype=torch.float64)
    noise[10, 40] = 60.0
    camera = replace(SCMOS, read_noise_e=noise)
    xyz = double(
        [[4160.0, 1050.0, 0.0], [1050.0, 4050.0, 0.0], [4050.0, 2550.0, 0.0], [-80.0, 40.0, 0.0]]
    )
    photons, background = double([900.0] * 4), double([5.0] * 4)
    psf = GaussianPSF(110.0, pixel_size_nm=100.0, patch_px=13).double()
    quiet = cramer_rao_bound(psf, SCMOS, xyz, photons, background)[:, :2]
    found = cramer_rao_bound(psf, camera, xyz, photons, background)[:, :2]
    assert found[0, 0] > quiet[0, 0] * 1.03  # one sigma from the emitter
    torch.testing.assert_close(found[1:], quiet[1:])


def test_known_depth_never_hurts(rng: torch.Generator) -> None:
    psf, xyz = astigmatic(), places(50, rng)
    photons, background = double([900.0] * 50), double([5.0] * 50)
    free = cramer_rao_bound(psf, SCMOS, xyz, photons, background)
    known = cramer_rao_bound(psf, SCMOS, xyz, photons, background, two_d=True)
    assert known[:, 2].isnan().all()
    assert free.isfinite().all()
    kept = [0, 1, 3, 4]
    assert (known[:, kept] <= free[:, kept] * (1 + 1e-9)).all()


def test_single_precision_agrees_with_double(rng: torch.Generator) -> None:
    xyz = places(50, rng)
    photons, background = double([900.0] * 50), double([5.0] * 50)
    exact = cramer_rao_bound(astigmatic(), EMCCD, xyz, photons, background)
    single = cramer_rao_bound(
        astigmatic().float(), EMCCD, xyz.float(), photons.float(), background.float()
    )
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-3, atol=0)


def test_no_emitters_no_bound() -> None:
    none = torch.zeros(0)
    assert cramer_rao_bound(astigmatic(), SCMOS, none.reshape(0, 3), none, none).shape == (
        0,
        len(AXES),
    )


def test_an_unknown_axis_is_refused() -> None:
    with pytest.raises(ValueError, match="choose from"):
        fisher_information(
            astigmatic(),
            SCMOS,
            double([[0.0, 0.0, 0.0]]),
            double([1.0]),
            double([1.0]),
            axes=("width",),
        )
