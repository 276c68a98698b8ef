"""The light outside the Gaussian core is found from the movie, and only where there is some."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from decode.config import TrainConfig
from decode.emitters import EmitterSet
from decode.estimation import ApertureCorrection, aperture_correction
from decode.forward import Simulation
from decode.optics.camera import Camera
from decode.priors.camera import FixedCamera
from decode.priors.psf import PSFPrior
from decode.priors.scene import Scene

CAMERA = Camera(baseline=100.0, e_per_adu=0.46, read_noise_e=1.4, qe=0.8)
SIGMA_PX = 1.2
SCENE = Scene(
    density_per_um2=(0.6, 0.6),
    flux_photons=(2000.0, 2000.0),
    on_time_frames=(2.0, 2.0),
    background_photons=(30.0, 30.0),
    background_contrast=(0.4, 0.4),
    filaments=0.0,
)


def movie(rng: torch.Generator, halo: float, scene: Scene = SCENE, n: int = 80) -> Simulation:
    width, no_error = (SIGMA_PX, SIGMA_PX), 0.0
    psf = PSFPrior(sigma_px=width, told_error=no_error, halo_fraction=(halo, halo))
    model = replace(TrainConfig(scene=scene, psf=psf).forward_model(), cameras=FixedCamera(CAMERA))
    return model.sample(1, n, (64, 64), rng)


def all_light(simulation: Simulation, halo: float) -> float:
    """Over the light of the core; a halo is cut at the border of the patch."""
    psf, width_nm = simulation.psfs[0], simulation.psf_parameters
    middle = torch.tensor([[50.0 * psf.patch_px, 50.0 * psf.patch_px, 0.0]])
    wide = psf.integrate_pixels(middle, PSFPrior().halo_width * width_nm)
    return (1 - halo + halo * float(wide.sum())) / float(simulation.core[0])


def counted(simulation: Simulation, rng: torch.Generator) -> EmitterSet:
    """The molecules as by a Gaussian: photons of the core, with an error that is stated."""
    truth = simulation.emitters[simulation.emitters.photons > 100]
    core = float(simulation.core[0]) * truth.photons
    sigma = 2 * core.sqrt()
    noise = torch.randn(len(core), generator=rng)
    return replace(
        truth,
        photons=core + sigma * noise,
        photons_sigma=sigma,
        probability=torch.ones(len(core)),
    )


def correction_of(
    simulation: Simulation, molecules: EmitterSet, usable: Tensor | None = None
) -> ApertureCorrection:
    found = aperture_correction(
        CAMERA.to_photons(simulation.frames[0]),
        molecules,
        usable=torch.ones(64, 64, dtype=torch.bool) if usable is None else usable,
        sigma_px=SIGMA_PX,
        pixel_size_nm=100.0,
    )
    assert found is not None
    return found


@pytest.mark.parametrize("flicker", [0.0, 1.0], ids=["steady", "on filaments, flickering"])
def test_light_of_a_halo_is_found_within_the_stated_error(
    rng: torch.Generator, flicker: float
) -> None:
    scene = replace(SCENE, flicker=flicker, flicker_factor=(1.5, 1.5), filaments=flicker)
    simulation = movie(rng, 0.25, scene)
    correction = correction_of(simulation, counted(simulation, rng))
    assert correction.certain
    expected = all_light(simulation, 0.25)
    assert correction.factor == pytest.approx(expected, abs=3 * correction.sigma)
    assert correction.sigma < 0.03
    assert correction.n > 100


def test_no_light_is_found_outside_a_gaussian(rng: torch.Generator) -> None:
    simulation = movie(rng, 0.0)
    correction = correction_of(simulation, counted(simulation, rng))
    assert not correction.certain
    assert correction.factor == pytest.approx(1, abs=0.02)


def test_molecules_that_were_not_found_cost_little(rng: torch.Generator) -> None:
    simulation = movie(rng, 0.25)
    found = counted(simulation, rng)
    found = found[torch.rand(len(found), generator=rng) < 0.9]
    correction = correction_of(simulation, found)
    assert correction.factor == pytest.approx(all_light(simulation, 0.25), rel=0.05)


def test_pixels_that_hold_no_image_do_not_count(rng: torch.Generator) -> None:
    simulation = movie(rng, 0.25)
    found = counted(simulation, rng)
    usable = torch.rand(64, 64, generator=rng) > 0.02
    spoilt = torch.where(usable, simulation.frames, 4000 * torch.rand(80, 1, 1, generator=rng))
    correction = correction_of(simulation._replace(frames=spoilt), found, usable)
    assert correction.factor == pytest.approx(all_light(simulation, 0.25), rel=0.04)


def test_few_molecules_or_frames_tell_nothing(rng: torch.Generator) -> None:
    simulation = movie(rng, 0.25)
    found = counted(simulation, rng)
    light = CAMERA.to_photons(simulation.frames[0])
    for n_frames, some in ((80, found[:20]), (5, found[found.frame < 5]), (80, EmitterSet.empty())):
        few = aperture_correction(
            light[:n_frames],
            some,
            usable=torch.ones(64, 64, dtype=torch.bool),
            sigma_px=SIGMA_PX,
            pixel_size_nm=100.0,
        )
        assert few is None


def test_photons_and_their_sigmas_are_multiplied_and_the_error_of_the_factor_adds() -> None:
    molecules = EmitterSet(
        frame=torch.tensor([0]),
        xyz=torch.zeros(1, 3),
        photons=torch.tensor([1000.0]),
        photons_sigma=torch.tensor([30.0]),
    )
    whole = ApertureCorrection(factor=1.25, sigma=0.05, radius_px=8, n=100).applied(molecules)
    assert whole.photons.tolist() == [1250.0]
    assert whole.photons_sigma is not None
    assert whole.photons_sigma.item() == pytest.approx((37.5**2 + 50**2) ** 0.5)
