"""The shipped models keep what the README says of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from decode.cli import app
from decode.config import TrainConfig, from_mapping, load_config
from decode.emitters import EmitterSet
from decode.io.cameras import read_camera
from decode.io.movies import open_movie
from decode.io.tables import read_table
from decode.metrics import match, normalized_errors, score
from decode.models import load_model, shipped_models
from decode.network.localizer import Localizer
from decode.optics.camera import Camera
from decode.optics.gaussian import GaussianPSF
from decode.training.validation import localize_isolated, posterior_of
from decode.verbs.sweep import sweep

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "sample_data"
EMCCD = Camera(
    baseline=100.0, e_per_adu=45.0, read_noise_e=74.4, qe=0.9, em_gain=300.0, spurious_e=0.002
)
SCMOS = Camera(baseline=100.0, e_per_adu=0.46, read_noise_e=1.3, qe=0.8)


@pytest.fixture(scope="module")
def model() -> Localizer:
    return load_model("gaussian-2d")


@pytest.mark.parametrize("name", list(shipped_models()))
def test_the_record_names_the_recipe_that_is_in_configs(name: str) -> None:
    model = load_model(name)
    record = json.loads(shipped_models()[name].with_suffix(".json").read_text())
    assert record == model.record.to_json()
    # settings that have come since have their defaults
    assert from_mapping(TrainConfig, record["config"], name) == load_config(
        ROOT / "configs" / f"{name}.yaml"
    )
    assert {"seed", "training"} <= set(record["config"])
    assert len(record["figures"]) >= 5
    assert record["hardware"]
    assert record["minutes"] > 0


def sample(model: Localizer) -> tuple[EmitterSet, EmitterSet]:
    """Found and true molecules of the sample movie."""
    camera = read_camera(SAMPLE / "camera.yaml")
    with open_movie(SAMPLE / "blinking_2d.tif") as movie:
        context = {"psf_sigma_px": 0.95}
        chunks = sweep(
            movie, model, camera.camera, pixel_size_nm=camera.pixel_size_nm, context=context
        )
        return EmitterSet.cat(chunk.molecules for chunk in chunks), read_table(
            SAMPLE / "blinking_2d_truth.csv"
        )


def test_the_sample_movie_is_localized_without_any_offset(model: Localizer) -> None:
    found, truth = sample(model)
    figures = {
        shift: score(
            truth, found, two_d=True, min_photons=300, field_nm=(6400, 6400), remove_shift=shift
        )
        for shift in (False, True)
    }
    assert figures[False].jaccard >= 0.8
    assert figures[False].rmse_lateral_nm <= 26
    assert figures[False].efficiency_lateral == pytest.approx(
        figures[True].efficiency_lateral, abs=1
    )
    # crowded as the molecules are, the stated sigmas are of the size of the errors
    errors = normalized_errors(truth, found, match(truth, found, two_d=True))[:, :2]
    assert 0.6 < float(errors.abs().median()) / 0.6745 < 1.4


@pytest.mark.parametrize("camera", [EMCCD, SCMOS], ids=["EMCCD", "sCMOS"])
@pytest.mark.parametrize("sigma_px", [0.9, 1.3, 1.8])
def test_isolated_molecules_are_near_the_bound_and_their_sigmas_honest(
    model: Localizer, camera: Camera, sigma_px: float
) -> None:
    psf = GaussianPSF(100 * sigma_px, pixel_size_nm=100.0)
    context = {"psf_sigma_px": sigma_px}
    results = [
        localize_isolated(
            model, camera, psf, photons=photons, background=30.0, context=context, n=200
        )
        for photons in (1000.0, 3000.0)
    ]
    rmse = math.hypot(*(e for r in results for e in r.rmse_nm[:2]))
    bound = math.hypot(*(e for r in results for e in r.bound_nm[:2]))
    assert rmse / bound < 1.25
    assert all(r.found > 0.97 for r in results)
    for r in results:
        # of 200 molecules; the y of one camera scatters by 1.22 times the bound
        assert all(0.8 < spread < 1.32 for spread in r.error_over_sigma[:2])


@pytest.mark.slow  # an example of the README runs the commands
def test_beads_are_all_that_the_model_for_astigmatic_pupils_is_told(tmp_path: Path) -> None:
    """The commands of the README, scored without removing any offset."""
    psf = tmp_path / "psf.h5"
    camera = ("--camera", str(SAMPLE / "camera.yaml"))
    commands = (
        ("calibrate", "psf", str(SAMPLE / "beads_3d.tif"), *camera, "-o", str(psf)),
        (
            *(
                "localize",
                str(SAMPLE / "blinking_3d.tif"),
                "--model",
                "astigmatic-3d",
                "--psf",
                str(psf),
                *camera,
            ),
            *("--polish", "--format", "hdf5", "-o", str(tmp_path)),
        ),
    )
    for command in commands:
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    found, truth = (
        read_table(tmp_path / "blinking_3d.hdf5"),
        read_table(SAMPLE / "blinking_3d_truth.csv"),
    )
    figures = score(truth, found, min_photons=300, field_nm=(6400, 6400))
    # with its context in another order it has 0.62 and 39
    assert figures.jaccard >= 0.66
    assert figures.efficiency_3d >= 50


@torch.no_grad()
def test_empty_movies_hold_hardly_a_molecule(model: Localizer) -> None:
    rng, context = torch.Generator().manual_seed(1), model.context_map({"psf_sigma_px": 1.2})
    found = []
    for camera in (EMCCD, SCMOS):
        for _ in range(4):
            adu = camera.sample(torch.full((1, 20, 64, 64), 40.0), rng)
            found.append(len(model(adu, camera, context, 100.0).point_estimate()))
    # a few in 100 000 pixels, each of which may be one
    assert sum(found) / len(found) <= 2


@torch.no_grad()
def test_as_many_molecules_are_expected_as_there_are_also_where_none_is_seen(
    model: Localizer,
) -> None:
    recipe = load_config(ROOT / "configs" / "gaussian-2d.yaml")
    forward = recipe.forward_model()
    rng = torch.Generator().manual_seed(11)
    true, expected, listed = [], [], []
    for _ in range(40):
        batch = forward.sample(8, 4, (32, 32), rng)
        posterior = posterior_of(model, batch)
        bright = batch.emitters[batch.emitters.photons >= recipe.training.min_photons]
        n = len(posterior)
        true.append(torch.bincount(posterior.thin(bright).frame, minlength=n))
        expected.append(posterior.probability.sum((1, 2)))
        listed.append(torch.bincount(posterior.point_estimate().frame, minlength=n))
    counts = torch.cat(true).double()
    means, found = torch.cat(expected).double(), torch.cat(listed)
    assert float(means.mean()) == pytest.approx(float(counts.mean()), rel=0.03)
    # molecules too dim to be seen are there all the same, and frames where none is listed are no
    # exception
    dark = found == 0
    # the four frames of a movie share its molecules: movies are what is independent
    difference = ((means - counts) * dark).view(-1, 4).sum(1)
    assert int(dark.sum()) > 100
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / math.sqrt(len(difference))
