"""adapt: a model for the movie's own PSF and scene, trained once, kept, and trained on."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import decode
from decode.cli import app
from decode.cli.localize import _with_minutes
from decode.config import load_config
from decode.forward import ForwardModel
from decode.io.cameras import CameraFile, write_camera
from decode.io.movies import open_movie, write_movie
from decode.io.psfs import PSFFile, write_psf
from decode.io.tables import read_table
from decode.optics.camera import Camera
from decode.optics.gaussian import GaussianPSF
from decode.optics.spline import SplinePSF
from decode.priors.scene import Scene
from decode.verbs.adapt import Adapted, _awaited, adapt
from decode.verbs.batch import Options
from decode.verbs.minutes import MINUTES, usual_minutes
from decode.verbs.stages import Made

CAMERA = CameraFile(
    camera=Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.5, qe=0.9), pixel_size_nm=100.0
)
SCENE = Scene(
    density_per_um2=(0.6, 0.6),
    flux_photons=(3000.0, 3000.0),
    on_time_frames=(2.0, 2.0),
    z_nm=(-300.0, 300.0),
    background_photons=(20.0, 20.0),
    background_contrast=(0.0, 0.0),
    background_drift=(0.0, 0.0),
    filaments=0.0,
)
TINY_NETWORK = ("  frame_widths: [4]", "  sequence_widths: [4]", "  head_width: 4")
TINY_TRAINING = (
    "  movies: 1",
    "  frames: 2",
    "  validate_every: 50",
    "  steps: 100",
)


def double_helix() -> SplinePSF:
    """Two spots that turn with z, which no pupil with a cylindrical lens makes."""
    z = torch.arange(-400.0, 401.0, 50.0)
    angle = z / 400 * torch.pi / 3
    arm = 250.0 * torch.stack([angle.cos(), angle.sin(), torch.zeros(len(z))], 1)
    middle = torch.tensor([1050.0, 1050.0, 0.0])
    spot = GaussianPSF(110.0, pixel_size_nm=100.0, patch_px=21)
    images = (spot.integrate_pixels(middle + arm) + spot.integrate_pixels(middle - arm)) / 2
    return SplinePSF.from_stack(
        images.detach().numpy(), z_start_nm=-400.0, z_step_nm=50.0, pixel_size_nm=100.0
    )


def write_frames(path: Path, scene: Scene, seed: int) -> Path:
    """A movie of the double helix."""
    rng = torch.Generator().manual_seed(seed)
    forward = ForwardModel.of(scene, double_helix(), CAMERA.camera)
    frames = forward.sample(1, 250, (40, 40), rng).frames[0]
    write_movie(path, frames.numpy().astype(np.uint16), pixel_size_nm=100.0)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A movie with its PSF and its camera."""
    write_frames(tmp_path / "movie.tif", SCENE, seed=4)
    write_psf(tmp_path / "psf.h5", PSFFile(psf=double_helix(), z_range_nm=(-400.0, 400.0)))
    write_camera(tmp_path / "camera.yaml", CAMERA)
    return tmp_path


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimated recipes are of a network that learns in seconds."""
    monkeypatch.setattr("decode.estimation.recipe.NETWORK", TINY_NETWORK)
    monkeypatch.setattr("decode.estimation.recipe.TRAINING", TINY_TRAINING)


def adapted(
    folder: Path, movie: str = "movie.tif", *, out: Path | None = None, stop_after: str = ""
) -> Adapted | None:
    """What `adapt` returns; None if it is stopped at a message that holds these words."""
    with open_movie(folder / movie) as frames:
        steps = adapt.steps(
            frames, psf=folder / "psf.h5", camera=CAMERA, minutes=1.0, folder=out, device="cpu"
        )
        while True:
            try:
                progress = next(steps)
            except StopIteration as end:
                return cast("Adapted", end.value)
            if stop_after and stop_after in progress.message:
                steps.close()
                return None


def models(folder: Path) -> list[Path]:
    return sorted((folder / "psf-models").iterdir())


def test_one_process_trains_while_another_waits_for_its_model(tmp_path: Path) -> None:
    folders = [tmp_path / "psf-models"]
    code = (
        "import sys, pathlib, contextlib; from decode.verbs.adapt import _awaited\n"
        "turn = contextlib.ExitStack(); folders = [pathlib.Path(sys.argv[1])]\n"
        "print(len(list(_awaited(folders, turn))), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folders[0])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"0\n"  # it is its turn
        with ExitStack() as turn:
            waiting = _awaited(folders, turn)
            assert "another process trains" in next(waiting).message
            assert "another process trains" in next(waiting).message
            other.kill()
            other.wait()
            assert len(list(waiting)) <= 1
    with ExitStack() as turn:
        assert not list(_awaited(folders, turn))


@pytest.mark.usefixtures("tiny")
@pytest.mark.slow
def test_a_psf_that_no_shipped_model_takes_is_served_by_one_that_is_trained_for_it(
    folder: Path,
) -> None:
    """The refusal names the option by which the same movie is localized, and then the next one."""
    inputs = ["--psf", folder / "psf.h5", "--camera", folder / "camera.yaml", "-o", folder / "out"]

    def localize(*words: object) -> Any:
        arguments = [str(word) for word in ("localize", folder / "movie.tif", *inputs, *words)]
        return CliRunner().invoke(app, arguments)

    refused = localize("--model", "astigmatic-3d")
    assert refused.exit_code == 2
    assert "--adapt" in refused.output
    first = localize("--adapt")
    assert first.exit_code == 0, first.output
    assert "was trained for this PSF" in first.output
    read_table(folder / "out" / "movie.csv")
    made = Made(models(folder)[0])
    assert decode.load_model(made.model).network.axial
    written = made.model.stat().st_mtime_ns
    again = localize()
    assert "had been trained for this PSF" in again.output
    assert made.model.stat().st_mtime_ns == written


@pytest.mark.usefixtures("tiny")
def test_a_model_serves_movies_within_the_ranges_of_its_recipe(folder: Path) -> None:
    first = adapted(folder)
    assert first is not None
    write_frames(folder / "alike.tif", SCENE, seed=5)
    served = adapted(folder, "alike.tif")
    assert served is not None
    assert served.file == first.file
    assert "had been trained" in served.remark
    brighter = replace(SCENE, flux_photons=(15000.0, 15000.0))
    write_frames(folder / "brighter.tif", brighter, seed=6)
    adapted(folder, "brighter.tif", stop_after="training")
    assert len(models(folder)) == 2
    other = GaussianPSF(150.0, pixel_size_nm=100.0, depth_nm=400.0, gap_nm=250.0, patch_px=21)
    write_psf(folder / "psf.h5", PSFFile(psf=other, z_range_nm=(-400.0, 400.0)))
    adapted(folder, stop_after="training")
    assert len(models(folder)) == 3


@pytest.mark.usefixtures("tiny")
def test_a_training_that_was_stopped_goes_on_from_its_checkpoint(folder: Path) -> None:
    adapted(folder, stop_after="training")
    made = Made(models(folder)[0])
    assert not any(".decode" in path.name for path in made.folder.iterdir())
    assert made.checkpoint.is_file()
    stopped = read_steps(made.record)
    assert 0 < stopped < 100
    done = adapted(folder)
    assert done is not None
    assert done.model.record.steps == 100
    assert done.model.record.validation[0]["step"] == stopped
    assert len(models(folder)) == 1


def read_steps(record: Path) -> int:
    return int(json.loads(record.read_text())["steps"])


@pytest.mark.usefixtures("tiny")
def test_a_model_is_kept_in_the_output_folder_where_that_of_the_psf_cannot_be_written(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "psf-models").write_text("in the way")
    out = tmp_path / "out"
    adapted(folder, out=out, stop_after="training")
    assert load_config(Made(models(out)[0]).recipe).scene.z_nm[0] < 0
    with pytest.raises(OSError, match="can be kept nowhere"):
        adapted(folder)


def test_a_model_and_one_that_is_adapted_are_one_of_two(folder: Path) -> None:
    movie, psf = folder / "movie.tif", folder / "psf.h5"
    with pytest.raises(ValueError, match="--adapt"):
        decode.localize(movie)
    with pytest.raises(ValueError, match="leave out --model"):
        decode.localize(movie, model="astigmatic-3d", adapt=1.0)
    with pytest.raises(ValueError, match="--camera"):
        decode.localize(movie, psf=psf, adapt=1.0)
    with pytest.raises(ValueError, match="positive"):
        decode.localize(movie, psf=psf, camera=CAMERA, adapt=0.0)


def test_where_psf_and_camera_are_known_a_model_is_trained_unless_one_is_named() -> None:
    files: dict[str, Any] = {"psf": "psf.h5", "camera": "camera.yaml"}
    assert usual_minutes(None, model=None, **files) == MINUTES
    assert usual_minutes(2.0, model=None, **files) == 2.0
    assert usual_minutes(None, model="astigmatic-3d", **files) is None
    assert usual_minutes(None, model=None, psf="psf.h5", camera=None) is None
    assert usual_minutes(None, model=None, psf=None, camera="camera.yaml") is None
    assert Options(**files).trains
    assert not Options(model="astigmatic-3d", **files).trains


def test_minutes_may_be_left_out_wherever_adapt_stands() -> None:
    with_minutes = ["a.tif", "--adapt", "7", "-o", "out"]
    assert _with_minutes(["a.tif", "--adapt", "-o", "out"]) == with_minutes
    assert _with_minutes(["--adapt", "a.tif"]) == ["--adapt", "7", "a.tif"]
    assert _with_minutes(["a.tif", "--adapt"]) == with_minutes[:3]
    assert _with_minutes(["a.tif", "--adapt", "0.5"]) == ["a.tif", "--adapt", "0.5"]
    assert _with_minutes(["a.tif", "-o", "out"]) == ["a.tif", "-o", "out"]
