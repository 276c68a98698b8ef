"""The forward model: frames have the light, the noise and the order of their emitters."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from decode.conditioning import GaussianWidth
from decode.forward import ForwardModel, Simulation
from decode.optics.camera import Camera
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import render
from decode.priors.camera import CameraPrior
from decode.priors.psf import PSFPrior
from decode.priors.scene import Scene

SCENE = Scene(background_contrast=(0.0, 0.0), background_drift=(0.0, 0.0))


def drawn_from(scene: Scene, psf: PSFPrior, camera: CameraPrior) -> ForwardModel:
    return ForwardModel(scene, psf.at(100.0, scene.z_nm), camera)


def width_px(movies: Simulation) -> torch.Tensor:
    assert isinstance(movies.conditioning, GaussianWidth)
    return torch.as_tensor(movies.conditioning.sigma_px)


@pytest.mark.parametrize("emccd_fraction", [0.0, 1.0])
def test_counts_become_the_photons_that_were_simulated(
    rng: torch.Generator, emccd_fraction: float
) -> None:
    prior = CameraPrior(emccd_fraction=emccd_fraction, hot_pixels=(0.0, 0.0))
    scene = replace(
        SCENE,
        density_per_um2=(0.5, 0.5),
        background_photons=(20.0, 20.0),
        flux_photons=(500.0, 500.0),
    )
    model = drawn_from(scene, PSFPrior(), prior)
    simulation = model.sample(40, 4, (32, 32), rng)
    photons = simulation.camera.to_photons(simulation.frames)
    # 0.5 molecules of 500 photons on 100 pixels, and the background
    assert float(photons.mean()) == pytest.approx(20 + 0.5 * 500 / 100, rel=0.05)
    assert (simulation.frames == simulation.frames.round()).all()


def test_noise_is_what_the_camera_states(rng: torch.Generator) -> None:
    dark = replace(SCENE, density_per_um2=(0.0, 0.0), background_photons=(30.0, 30.0))
    for fraction in (0.0, 1.0):
        model = drawn_from(dark, PSFPrior(), CameraPrior(emccd_fraction=fraction))
        s = model.sample(4, 400, (16, 16), rng)
        photons = s.camera.to_photons(s.frames)
        variance = photons.var(1, keepdim=True)
        stated = s.camera.excess_factor * 30 / torch.as_tensor(s.camera.qe) + s.camera.noise_floor
        ratio = (variance / stated).mean((1, 2, 3))
        torch.testing.assert_close(ratio, torch.ones(4), atol=0.03, rtol=0)


def test_pixels_of_an_scmos_differ_in_their_noise_as_much_as_the_prior_says(
    rng: torch.Generator,
) -> None:
    prior = CameraPrior(emccd_fraction=0.0, hot_pixels=(0.0, 0.0), scmos_noise_spread=(0.6, 0.6))
    noise = torch.as_tensor(prior.sample(4, (64, 64), rng).read_noise_e)
    torch.testing.assert_close(
        noise.log().flatten(1).std(1), torch.full((4,), 0.6), atol=0.02, rtol=0
    )


def test_the_same_seed_gives_the_same_movie() -> None:
    model = drawn_from(Scene(), PSFPrior(), CameraPrior())
    one, two = (model.sample(3, 4, (24, 24), torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one.frames, two.frames)
    assert torch.equal(one.emitters.xyz, two.emitters.xyz)
    other = model.sample(3, 4, (24, 24), torch.Generator().manual_seed(6))
    assert not torch.equal(one.frames, other.frames)


def test_a_fixed_psf_and_camera_are_used_as_they_are(rng: torch.Generator) -> None:
    camera = Camera(baseline=0.0, e_per_adu=1.0, read_noise_e=0.1)
    bright = replace(
        SCENE, flux_photons=(1e4, 1e4), background_photons=(1.0, 1.0), density_per_um2=(0.3, 0.3)
    )
    psf = GaussianPSF(130.0, pixel_size_nm=100.0)
    model = ForwardModel.of(bright, psf, camera)
    s = model.sample(1, 3, (40, 40), rng)
    assert s.camera is camera
    assert s.psfs == [psf]
    brightest = s.emitters[s.emitters.photons > 5000]
    for frame, (x, y, _) in zip(brightest.frame.tolist(), brightest.xyz.tolist(), strict=True):
        if 300 < x < 3700 and 300 < y < 3700:
            around = s.frames[
                0,
                frame,
                int(y // 100) - 1 : int(y // 100) + 2,
                int(x // 100) - 1 : int(x // 100) + 2,
            ]
            assert float(around.max()) > 200, "the light lies at (row, column) = (y, x)"


def test_each_movie_says_which_blur_its_psf_has(rng: torch.Generator) -> None:
    scene = replace(SCENE, density_per_um2=(1.0, 1.0), background_photons=(1.0, 1.0), filaments=0.0)
    sharp, camera = (
        GaussianPSF(110.0, pixel_size_nm=100.0),
        Camera(baseline=100.0, e_per_adu=1.0, read_noise_e=0.0),
    )
    simulation = ForwardModel.of(scene, sharp, camera, blur_nm=(20.0, 60.0)).sample(
        6, 20, (32, 32), rng
    )
    assert len(simulation.psfs) == 6
    for movie, psf in enumerate(simulation.psfs):
        of = simulation.emitters[simulation.emitters.frame // 20 == movie]
        place = {"frame": of.frame - 20 * movie, "xyz": of.xyz, "photons": of.photons}
        seen = camera.to_photons(simulation.frames[movie])
        # what the right blur leaves is less than what none does, and of the size of Poisson noise
        left = [
            float((seen - 1 - render(p, **place, n_frames=20, shape=(32, 32))).square().mean())
            for p in (psf, sharp)
        ]
        assert left[0] < left[1]
        assert left[0] == pytest.approx(float(seen.mean()), rel=0.1)


def test_the_width_that_users_know_scatters_about_the_truth(rng: torch.Generator) -> None:
    model = drawn_from(Scene(), PSFPrior(told_error=0.05), CameraPrior())
    s = model.sample(400, 1, (8, 8), rng)
    error = (100 * width_px(s) / s.psf_parameters[:, 0]).log()
    assert 0.03 < float(error.std()) < 0.06
    assert float(width_px(s).min()) >= 0.8
    assert float(width_px(s).max()) <= 2.00001


def test_a_share_of_the_movies_has_the_psf_of_an_objective(rng: torch.Generator) -> None:
    prior = PSFPrior(sigma_px=(1.0, 1.4), pupil_fraction=0.5)
    model = drawn_from(Scene(density_per_um2=(0.1, 0.2)), prior, CameraPrior())
    movies = [model.sample(2, 1, (12, 12), rng) for _ in range(12)]
    by_pupils = [movie for movie in movies if movie.psf_parameters.shape[1] == 0]
    assert 0 < len(by_pupils) < len(movies)
    for movie in movies:
        assert width_px(movie).shape == (2,)
        assert ((width_px(movie) >= 1.0) & (width_px(movie) <= 1.4)).all()


def test_a_camera_stated_without_its_maps_still_records_with_them(rng: torch.Generator) -> None:
    prior = CameraPrior(emccd_fraction=0.0, unmapped=1.0, fixed_pattern_e=(2.0, 2.0))
    dark = Scene(
        density_per_um2=(0.0, 0.0), background_photons=(20.0, 20.0), background_drift=(0.0, 0.0)
    )
    simulation = drawn_from(dark, PSFPrior(), prior).sample(2, 200, (24, 24), rng)
    assert simulation.camera.shape is None, "what is stated are numbers"
    photons = simulation.camera.to_photons(simulation.frames)
    excess = photons.mean(1) - simulation.background.mean(1)
    qe = torch.as_tensor(simulation.camera.qe)
    assert (excess.flatten(1).std(1) * qe.flatten() > 1.5).all(), (
        "the pattern of 2 electrons stays in the mean"
    )
    mapped = replace(prior, unmapped=0.0)
    simulation = drawn_from(dark, PSFPrior(), mapped).sample(2, 200, (24, 24), rng)
    assert simulation.camera.shape == (24, 24)
    excess = simulation.camera.to_photons(simulation.frames).mean(1) - simulation.background.mean(1)
    assert (excess.flatten(1).std(1) < 0.8).all()


def test_bad_pixels_come_in_the_share_that_is_asked_for_and_in_columns(
    rng: torch.Generator,
) -> None:
    prior = CameraPrior(bad_pixels=(0.05, 0.05))
    cameras = [prior.sample(10, (32, 32), rng) for _ in range(20)]
    bad = torch.cat([camera.bad for camera in cameras if camera.bad is not None])
    columns = bad.all(2).any(2)[:, 0]
    assert 0.03 < columns.float().mean() < 0.2
    assert bad[~columns].float().mean() == pytest.approx(0.05, abs=0.005)
