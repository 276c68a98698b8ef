"""Photons are all that a molecule sent, also where the PSF is known by its width alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from decode.config import TrainConfig
from decode.emitters import EmitterSet
from decode.forward import Simulation
from decode.io.cameras import CameraFile
from decode.io.psfs import PSFFile
from decode.io.tables import write_table
from decode.metrics import match
from decode.models import load_model
from decode.network.localizer import Localizer
from decode.optics.camera import Camera
from decode.priors.camera import FixedCamera
from decode.priors.psf import PSFPrior
from decode.priors.scene import Scene
from decode.verbs.localize import localize

CAMERA = Camera(baseline=100.0, e_per_adu=0.46, read_noise_e=1.4, qe=0.8)
SCENE = Scene(
    density_per_um2=(0.4, 0.4),
    flux_photons=(3000.0, 3000.0),
    flux_variation=(0.3, 0.3),
    on_time_frames=(2.0, 2.0),
    background_photons=(20.0, 20.0),
    filaments=0.0,
)


@pytest.fixture(scope="module")
def movie() -> Simulation:
    """Of an objective, whose rings hold a part of the light."""
    psf = PSFPrior(sigma_px=(1.1, 1.3), told_error=0.0, pupil_fraction=1.0)
    recipe = TrainConfig(scene=SCENE, psf=psf)
    model = replace(recipe.forward_model(), cameras=FixedCamera(CAMERA))
    return model.sample(1, 60, (48, 48), torch.Generator().manual_seed(4))


def model_that_counts(light: str) -> Localizer:
    model = load_model("gaussian-2d")
    training = {**model.record.config["training"], "photons": light}
    model.record = replace(model.record, config={**model.record.config, "training": training})
    return model


def found_in(
    movie: Simulation, *, counts: str = "core", polish: bool = False, psf: PSFFile | None = None
) -> EmitterSet:
    width = torch.as_tensor(movie.conditioning.values["psf_sigma_px"])
    return localize(
        movie.frames[0],
        model=model_that_counts(counts),
        camera=CameraFile(camera=CAMERA, pixel_size_nm=100.0),
        psf_sigma_nm=100 * float(width),
        polish=polish,
        psf=psf,
    )


def test_the_correction_is_said_kept_in_tables_and_multiplies_the_photons(
    movie: Simulation, tmp_path: Path
) -> None:
    core, plain = found_in(movie), found_in(movie, counts="total")
    factor = core.facts.aperture_correction
    assert factor is not None
    assert plain.facts.aperture_correction is None
    torch.testing.assert_close(core.photons, factor * plain.photons)
    assert core.photons_sigma is not None
    assert plain.photons_sigma is not None
    assert bool((core.photons_sigma > factor * plain.photons_sigma).all())
    share = f"photons include {100 * (1 - 1 / factor):.0f} % of light outside the Gaussian core"
    assert any(share in sentence for sentence in core.facts.estimates)
    write_table(core, tmp_path / "molecules.hdf5")
    *_, facts = yaml.safe_load_all((tmp_path / "molecules.yaml").read_text())
    assert facts["aperture_correction"] == factor


def test_photons_of_polished_molecules_are_all_that_they_sent(movie: Simulation) -> None:
    found, truth = found_in(movie, polish=True), movie.emitters
    pairs = match(truth, found, two_d=True)
    bright = truth.photons[pairs[:, 0]] > 1000
    true, stated = truth.photons[pairs[bright, 0]], found.photons[pairs[bright, 1]]
    assert found.facts.aperture_correction is not None
    assert float(movie.core[0]) < 0.9
    assert 0.95 < float(stated.sum() / true.sum()) < 1.05


def test_a_measured_psf_holds_all_light(movie: Simulation) -> None:
    psf = PSFFile(psf=movie.psfs[0], z_range_nm=(-50.0, 50.0))
    found = found_in(movie, polish=True, psf=psf)
    assert found.facts.aperture_correction is None
    assert not any("core" in sentence for sentence in found.facts.estimates)


def test_a_few_frames_are_said_to_tell_nothing(movie: Simulation) -> None:
    found = found_in(movie._replace(frames=movie.frames[:, :4]))
    assert found.facts.aperture_correction is None
    assert any("too few bright lone molecules" in sentence for sentence in found.facts.estimates)


def test_a_movie_without_molecules_has_no_correction(movie: Simulation) -> None:
    dark = CAMERA.sample(torch.full((1, 20, 48, 48), 20.0), torch.Generator().manual_seed(1))
    found = found_in(movie._replace(frames=dark), polish=True)
    assert len(found) <= 2
    assert found.facts.aperture_correction is None
