"""Emitters fitted one by one: unbiased, as precise as the Cramer-Rao bound, and honest about it,
on every camera."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from decode.likelihood import Fit, fit_emitters, scaled_deviance
from decode.optics.camera import Camera, Noise
from decode.optics.fisher import cramer_rao_bound
from decode.optics.gaussian import GaussianPSF

PIXEL_NM = 110.0
SIDE = 15
N = 400
PHOTONS, BACKGROUND = 1500.0, 5.0
CAMERAS = {
    "shot noise alone": Camera(baseline=0.0, e_per_adu=1.0, read_noise_e=0.0),
    "CCD": Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=2.5, qe=0.8),
    "EMCCD": Camera(
        baseline=100.0, e_per_adu=45.0, read_noise_e=74.4, qe=0.9, em_gain=300.0, spurious_e=0.002
    ),
}


def astigmatic(patch_px: int = SIDE) -> GaussianPSF:
    return GaussianPSF(
        140.0, pixel_size_nm=PIXEL_NM, depth_nm=400.0, gap_nm=200.0, patch_px=patch_px
    )


def emitters(n: int, rng: torch.Generator) -> Tensor:
    """(n, 3) nm, anywhere in the middle pixel of a crop and within 400 nm of focus."""
    return torch.tensor([770.0, 770.0, -400.0]) + torch.rand(n, 3, generator=rng) * torch.tensor(
        [110.0, 110.0, 800.0]
    )


def recorded(
    camera: Camera,
    xyz: Tensor,
    rng: torch.Generator,
    photons: float = PHOTONS,
    background: float = BACKGROUND,
) -> Tensor:
    mean = photons * astigmatic().integrate_pixels(xyz).detach() + background
    return camera.to_photons(camera.sample(mean, rng))


def fitted(camera: Camera, images: Tensor, noise_floor: Tensor | None = None) -> Fit:
    """Started in the middle of the crop, in focus."""
    start = torch.tensor([825.0, 825.0, 0.0]).repeat(len(images), 1)
    return fit_emitters(
        astigmatic(), camera, images, start, z_range=(-600.0, 600.0), noise_floor=noise_floor
    )


def errors(fit: Fit, xyz: Tensor) -> Tensor:
    """(n, 5) of x, y, z, photons and background."""
    others = torch.stack([fit.photons - PHOTONS, fit.background - BACKGROUND], 1)
    return torch.cat([fit.xyz - xyz, others], 1)


def bound(camera: Camera, xyz: Tensor) -> Tensor:
    light = torch.full((len(xyz),), PHOTONS)
    return cramer_rao_bound(astigmatic(), camera, xyz, light, torch.full_like(light, BACKGROUND))


@pytest.mark.parametrize("camera", CAMERAS.values(), ids=CAMERAS.keys())
def test_errors_are_as_large_as_the_bound_and_as_large_as_stated(
    camera: Camera, rng: torch.Generator
) -> None:
    """Ratios of 400 errors scatter by 3.5 %; their mean over sigma by 0.05."""
    xyz = emitters(N, rng)
    fit = fitted(camera, recorded(camera, xyz, rng))
    error, sigma = errors(fit, xyz), fit.covariance.diagonal(dim1=1, dim2=2).sqrt()
    rmse_over_bound = error.square().mean(0).sqrt() / bound(camera, xyz).square().mean(0).sqrt()
    pull = error / sigma
    assert ((rmse_over_bound > 0.88) & (rmse_over_bound < 1.12)).all(), rmse_over_bound
    assert ((pull.std(0) > 0.88) & (pull.std(0) < 1.12)).all(), pull.std(0)
    assert (pull.mean(0).abs() < 0.2).all(), pull.mean(0)
    assert fit.converged.float().mean() > 0.99
    assert float(fit.deviance.mean()) == pytest.approx(1.0, abs=0.05)
    torch.testing.assert_close(fit.xyz_sigma, sigma[:, :3])


def test_noisy_pixels_are_given_less_weight(rng: torch.Generator) -> None:
    """A tenth of the pixels reads with 25 electrons of noise: with the map the bound is met,
    without it far from."""
    hot = torch.rand(SIDE, SIDE, generator=rng) < 0.1
    camera = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=torch.where(hot, 25.0, 1.6), qe=0.8)
    xyz = emitters(N, rng)
    images = recorded(camera, xyz, rng)
    limit = bound(camera, xyz).square().mean(0).sqrt()
    floor = camera.noise_floor.expand(N, SIDE, SIDE)
    fit = fitted(camera, images, floor)
    ratio = errors(fit, xyz).square().mean(0).sqrt() / limit
    pull = errors(fit, xyz) / fit.covariance.diagonal(dim1=1, dim2=2).sqrt()
    blind = errors(fitted(camera, images), xyz).square().mean(0).sqrt() / limit
    assert ((ratio > 0.88) & (ratio < 1.12)).all(), ratio
    assert ((pull.std(0) > 0.88) & (pull.std(0) < 1.12)).all(), pull.std(0)
    assert (blind[:3] > 1.3).all(), blind


def test_the_covariance_is_the_inverse_of_the_fisher_information(rng: torch.Generator) -> None:
    """That of `decode.optics.fisher`, which differentiates on its own, at the place found."""
    camera = CAMERAS["EMCCD"]
    fit = fitted(camera, recorded(camera, emitters(20, rng), rng))
    expected = cramer_rao_bound(astigmatic(), camera, fit.xyz, fit.photons, fit.background)
    torch.testing.assert_close(
        fit.covariance.diagonal(dim1=1, dim2=2).sqrt(), expected, rtol=2e-3, atol=0
    )


def test_without_noise_the_fit_is_exact() -> None:
    """Also of a crop wider than the patch, with the emitter off its middle, and in double
    precision."""
    psf = astigmatic(patch_px=11).double()
    xyz = torch.tensor([[1215.0, 712.0, 215.0], [690.0, 1240.0, -330.0]], dtype=torch.float64)
    corner = torch.floor(xyz[:, :2] / PIXEL_NM) - 5
    inside = torch.cat([xyz[:, :2] - corner * PIXEL_NM, xyz[:, 2:]], 1)
    images = torch.full((2, 19, 17), 4.0, dtype=torch.float64)
    for image, patch, (x, y) in zip(
        images, psf.integrate_pixels(inside).detach(), corner.long().tolist(), strict=True
    ):
        image[y : y + 11, x : x + 11] += 3000 * patch
    start = xyz + torch.tensor([20.0, -15.0, 0.0])
    fit = fit_emitters(
        psf, CAMERAS["shot noise alone"], images, start, z_range=(-600, 600), n_steps=60
    )
    torch.testing.assert_close(fit.xyz, xyz, atol=0.5, rtol=0)
    torch.testing.assert_close(fit.photons, torch.full_like(fit.photons, 3000), rtol=1e-3, atol=0)
    assert fit.xyz.dtype == torch.float64


def test_one_start_keeps_the_depth_it_is_given(rng: torch.Generator) -> None:
    """Each of its own: a Gaussian that is nearly round has an optimum on either side of focus."""
    psf = GaussianPSF(140.0, pixel_size_nm=PIXEL_NM, depth_nm=400.0, gap_nm=2.0, patch_px=SIDE)
    depth = torch.tensor([300.0, -300.0, 300.0, -300.0])
    place = torch.tensor([825.0, 825.0]).repeat(4, 1)
    truth = torch.cat([place, torch.full((4, 1), 300.0)], 1)
    images = torch.poisson(4000 * psf.integrate_pixels(truth).detach() + 5, generator=rng)
    fit = fit_emitters(
        psf,
        CAMERAS["shot noise alone"],
        images,
        torch.cat([place, depth[:, None]], 1),
        z_range=(-600, 600),
        z_starts=1,
    )
    assert (fit.xyz[:, 2].sign() == depth.sign()).all()
    torch.testing.assert_close(fit.xyz[:, 2].abs(), depth.abs(), atol=60.0, rtol=0)


def test_depth_stays_in_its_range(rng: torch.Generator) -> None:
    camera = CAMERAS["CCD"]
    images = recorded(camera, torch.tensor([[820.0, 830.0, 380.0]]), rng)
    fit = fit_emitters(
        astigmatic(), camera, images, torch.tensor([[825.0, 825.0, 0.0]]), z_range=(-200.0, 250.0)
    )
    assert float(fit.xyz[0, 2]) == 250.0


def test_parameters_are_of_each_emitter(rng: torch.Generator) -> None:
    """Two widths in one batch: each found where it is, and with the deviance of a right model."""
    psf, camera = astigmatic(), CAMERAS["shot noise alone"]
    xyz = emitters(40, rng)
    widths = torch.tensor([120.0, 190.0]).repeat(20)[:, None]
    images = torch.poisson(
        3000 * psf.integrate_pixels(xyz, widths).detach() + BACKGROUND, generator=rng
    )
    start = torch.tensor([825.0, 825.0, 0.0]).repeat(40, 1)
    right, wrong = (
        fit_emitters(psf, camera, images, start, z_range=(-600, 600), parameters=p).deviance
        for p in (widths, widths.flip(0))
    )
    assert float(right.mean()) == pytest.approx(1.0, abs=0.06)
    assert (wrong > right).all()
    assert float(wrong.mean()) > 2


@pytest.mark.parametrize("camera", CAMERAS.values(), ids=CAMERAS.keys())
@pytest.mark.parametrize("level", [8.0, 60.0])
def test_the_deviance_of_a_right_model_is_1_a_pixel(
    camera: Camera, level: float, rng: torch.Generator
) -> None:
    expected = torch.full((40000,), level)
    measured = camera.to_photons(camera.sample(expected, rng))
    right, dark, bright = (
        float(scaled_deviance(measured, m * expected, camera.noise).mean())
        for m in (1.0, 0.95, 1.05)
    )
    assert right == pytest.approx(1.0, abs=0.05)
    assert right < min(dark, bright)
    assert float(scaled_deviance(expected, expected, camera.noise).abs().max()) < 1e-4


def test_for_a_camera_without_noise_it_is_the_deviance_of_poisson() -> None:
    counts, mean = torch.tensor([0.0, 1.0, 7.0]), torch.tensor([0.5, 2.0, 4.0])
    best = torch.distributions.Poisson(counts.clamp_min(1e-30)).log_prob(counts)
    expected = 2 * (best - torch.distributions.Poisson(mean).log_prob(counts))
    torch.testing.assert_close(scaled_deviance(counts, mean, Noise(1.0, 0.0)), expected)
