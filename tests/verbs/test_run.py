"""run: from beads and a movie to molecules, stage by stage, and on from where it was stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from decode.cli import app
from decode.emitters import EmitterSet
from decode.forward import ForwardModel
from decode.io.cameras import CameraFile, write_camera
from decode.io.movies import open_movie, write_movie
from decode.io.psfs import read_psf
from decode.io.tables import read_table
from decode.network.localizer import Localizer
from decode.optics.camera import Camera
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import render
from decode.priors.scene import Scene
from decode.progress import DetailedSteps, Stepwise
from decode.verbs.localize import Localized, LocalizeReport
from decode.verbs.run import _marks, run
from decode.verbs.stages import Done, Stage

CAMERA = CameraFile(
    camera=Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.5, qe=0.9), pixel_size_nm=100.0
)
TINY = (
    "training.size_px=16",
    "training.movies=1",
    "training.steps=6",
    "training.validate_every=3",
    "network.frame_widths=[4]",
    "network.sequence_widths=[4]",
    "network.head_width=4",
)


@pytest.fixture(scope="module")
def acquisition(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A movie and a bead stack of an astigmatic microscope."""
    folder = tmp_path_factory.mktemp("acquisition")
    rng = torch.Generator().manual_seed(4)
    psf = GaussianPSF(120.0, pixel_size_nm=100.0, depth_nm=400.0, gap_nm=250.0, patch_px=21)
    scene = Scene(
        density_per_um2=(0.3, 0.3),
        flux_photons=(3000.0, 3000.0),
        on_time_frames=(2.0, 2.0),
        z_nm=(-300.0, 300.0),
        background_photons=(20.0, 20.0),
        background_contrast=(0.0, 0.0),
        background_drift=(0.0, 0.0),
        filaments=0.0,
    )
    movie = ForwardModel.of(scene, psf, CAMERA.camera).sample(1, 120, (40, 40), rng).frames[0]
    write_movie(folder / "movie.tif", movie.numpy().astype(np.uint16), pixel_size_nm=100.0)
    z = torch.arange(-400.0, 401.0, 50.0)
    places = torch.tensor([[1830.0, 1810.0], [5580.0, 1860.0], [1890.0, 5540.0], [5520.0, 5510.0]])
    xyz = torch.cat([torch.cat([p.expand(len(z), 2), z[:, None]], 1) for p in places])
    light = render(
        psf,
        frame=torch.arange(len(z)).repeat(4),
        xyz=xyz,
        photons=torch.full((len(xyz),), 30000.0),
        n_frames=len(z),
        shape=(74, 74),
    )
    beads = CAMERA.camera.sample(light + 5, rng).numpy().astype(np.uint16)
    write_movie(folder / "beads.tif", beads, pixel_size_nm=100.0)
    write_camera(folder / "camera.yaml", CAMERA)
    return folder / "movie.tif", folder / "beads.tif"


Stages = Callable[..., DetailedSteps[Stage, EmitterSet]]


def stages_into(out: Path, acquisition: tuple[Path, Path]) -> Stages:
    """A run of the acquisition, of which more is stated."""
    movie, beads = acquisition

    def steps(
        movie: Path = movie, *, polish: bool = False, **more: Any
    ) -> DetailedSteps[Stage, EmitterSet]:
        known: dict[str, Any] = {"z_step_nm": 50.0, "minutes": 1.0, "settings": TINY}
        known |= {"device": "cpu"}
        return run.steps(movie, [beads], CAMERA, out, polish=polish, **known | more)

    return steps


def said(steps: DetailedSteps[Stage, EmitterSet], *, last: str = "localize") -> dict[str, str]:
    """What is said at the end of each stage, up to some stage."""
    ends = {}
    for p in steps:
        if p.fraction == 1.0:
            ends[str(p.detail.name)] = p.message
        if last in ends:
            break
    steps.close()
    return ends


@pytest.fixture(scope="module")
def estimated(
    acquisition: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str]]:
    """A folder in which all is ready for a training, and what was said before."""
    out = tmp_path_factory.mktemp("estimated") / "out"
    return out, said(stages_into(out, acquisition)(), last="estimate")


@pytest.fixture
def out(estimated: tuple[Path, dict[str, str]], tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(estimated[0], tmp_path / "out"))


@pytest.fixture
def stages(out: Path, acquisition: tuple[Path, Path]) -> Stages:
    """Runs that go on in `out`."""
    return stages_into(out, acquisition)


def test_one_command_leads_from_beads_and_movie_to_molecules(
    acquisition: tuple[Path, Path], tmp_path: Path
) -> None:
    movie, beads = acquisition
    out = tmp_path / "out"
    settings = [word for setting in TINY for word in ("--set", setting)]
    arguments = [
        str(movie),
        "--beads",
        str(beads),
        "--z-step",
        "50",
        "--camera",
        str(movie.with_name("camera.yaml")),
    ]
    result = CliRunner().invoke(
        app, ["run", *arguments, "-o", str(out), "--minutes", "0.02", *settings]
    )
    assert result.exit_code == 0, result.output
    made = {path.name for path in out.iterdir()}
    assert {
        "psf.h5",
        "psf.html",
        "camera.yaml",
        "train.yaml",
        "train.png",
        "model.safetensors",
    } <= made
    assert {"movie.csv", "movie.hdf5", "movie.yaml", "movie.png"} <= made
    assert read_psf(out / "psf.h5").n_beads == 4
    model = Localizer.load(out / "model.safetensors")
    assert model.context == {}
    assert model.network.axial
    read_table(out / "movie.csv")


def test_molecules_are_polished_unless_told_otherwise(
    out: Path, acquisition: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    @Stepwise
    def localize_file(
        *_: object, polish: bool, **__: object
    ) -> DetailedSteps[LocalizeReport, Localized]:
        asked.append(polish)
        raise RuntimeError("that is all")
        yield

    monkeypatch.setattr("decode.verbs.run.localize_file", localize_file)
    movie, beads = acquisition
    known: dict[str, Any] = {"z_step_nm": 50.0, "minutes": 0.02, "settings": TINY}
    for polish in ({}, {"polish": False}):
        with pytest.raises(RuntimeError, match="that is all"):
            run(movie, [beads], CAMERA, out, **known, **polish)
    assert asked == [True, False]


def test_a_folder_of_one_file_a_frame_is_a_movie_of_the_folders_name(
    acquisition: tuple[Path, Path], out: Path, stages: Stages
) -> None:
    """With one frame more it is another movie."""
    folder = out / "2026.11.30"
    folder.mkdir()
    with open_movie(acquisition[0]) as frames:
        pixels = frames.read(0, len(frames))
    for i, frame in enumerate(pixels):
        write_movie(folder / f"img_{i}.tif", frame[None], pixel_size_nm=100.0)

    said(stages(folder))
    facts = read_table(out / "2026.11.30.hdf5").metadata
    assert (facts["n_frames"], facts["height_px"], facts["width_px"]) == pixels.shape
    assert (out / "2026.11.30.png").is_file()

    assert set(said(stages(folder), last="train").values()) == {"as it was"}
    write_movie(folder / f"img_{len(pixels)}.tif", pixels[:1], pixel_size_nm=100.0)
    longer = said(stages(folder), last="estimate")
    assert longer["calibrate"] == "as it was"
    assert longer["estimate"] != "as it was"


def test_stages_are_not_redone_and_a_stopped_training_goes_on(
    estimated: tuple[Path, dict[str, str]], out: Path, stages: Stages
) -> None:
    assert "as it was" not in estimated[1].values()
    for p in stages():
        if p.detail.name == "train" and p.fraction:
            break
    recipe = (out / "train.yaml").read_text()
    again = said(stages(), last="train")
    done = {"calibrate": "as it was", "estimate": "as it was"}
    assert again == done | {"train": again["train"]}
    assert again["train"] != "as it was"
    assert said(stages(), last="train") == done | {"train": "as it was"}
    (out / "train.yaml").write_text(recipe + "# the user's own word\n")
    edited = said(stages(), last="train")
    assert edited["estimate"] == "as it was"
    assert edited["train"] != "as it was"


def seed_of_the_model(out: Path) -> int:
    return int(Localizer.load(out / "model.safetensors").record.config["seed"])


def test_a_training_that_was_killed_before_its_first_checkpoint_begins_anew(
    out: Path, stages: Stages
) -> None:
    """After a finished run with another seed, whose checkpoint lies there."""

    def train(seed: int) -> int:
        said(stages(settings=(*TINY, f"seed={seed}")), last="train")
        return seed_of_the_model(out)

    train(1)
    first = (out / "model.checkpoint").read_bytes()
    killed = json.loads((out / "run.json").read_text())
    assert train(5) == 5
    assert (out / "model-before.checkpoint").read_bytes() == first
    # as a kill just after the second training was noted leaves it
    second = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(killed | {"training": second["training"]}))
    (out / "model.checkpoint").write_bytes(first)
    assert train(5) == 5
    (out / "model.checkpoint").write_bytes(b"damaged")
    (out / "run.json").write_text(json.dumps(killed | {"training": second["training"]}))
    assert train(5) == 5


def test_a_model_that_another_training_has_begun_to_replace_is_not_taken_for_the_old_one(
    out: Path, stages: Stages
) -> None:
    said(stages(settings=(*TINY, "seed=1")), last="train")
    for p in stages(settings=(*TINY, "seed=5")):
        if p.detail.name == "train" and p.message:
            break
    said(stages(settings=(*TINY, "seed=1")), last="train")
    assert seed_of_the_model(out) == 1


def test_a_table_in_the_folder_of_a_movie_does_not_make_it_another_movie(tmp_path: Path) -> None:
    (tmp_path / "0.tif").write_bytes(b"a frame")
    before = _marks([tmp_path])
    (tmp_path / "molecules.csv").write_text("a table")
    assert _marks([tmp_path]) == before
    (tmp_path / "1.tif").write_bytes(b"a frame")
    assert _marks([tmp_path]) != before


DAMAGED = [
    "",
    "{",
    "[]",
    "[1, 2]",
    "[[[], 1]]",
    "3",
    '"text"',
    "null",
    '{"train": [1]}',
    '{"train": {}}',
    "[" * 10**5,
]


@pytest.mark.parametrize(
    "note", [*(text.encode() for text in DAMAGED), b"\xff\xfe\x00", bytes(100)]
)
def test_a_damaged_note_of_what_was_done_costs_time_only(note: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(note)
    done = Done(tmp_path / "run.json")
    assert not done.has("train", "a key")
    done.note("train", "a key")
    assert Done(tmp_path / "run.json").has("train", "a key")


def test_a_missing_file_is_named_before_anything_is_done(
    acquisition: tuple[Path, Path], tmp_path: Path
) -> None:
    movie, beads = acquisition
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tif: there is no such file"):
        next(run.steps(movie.with_name("nowhere.tif"), [beads], CAMERA, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
