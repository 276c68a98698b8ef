"""The command line: what each command writes, and one clear sentence for whatever is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import yaml
from torch import Tensor
from typer.testing import CliRunner, Result

import decode.verbs.assemble
from decode.cli import app
from decode.io.cameras import CameraFile, read_camera, write_camera
from decode.io.movies import open_movie, write_movie
from decode.io.psfs import PSFFile, read_psf, write_psf
from decode.io.tables import read_table, write_table
from decode.models import shipped_models
from decode.network.localizer import Localizer, NetworkConfig
from decode.network.record import ModelRecord
from decode.optics.camera import Camera
from decode.optics.gaussian import GaussianPSF
from decode.outputs import unfinished_folder
from decode.progress import Steps
from decode.rendering import Spool

SAMPLE = Path(__file__).parents[1] / "sample_data" / "blinking_3d.tif"

CAMERA = {"pixel_size_nm": 100, "baseline": 100, "e_per_adu": 0.5, "qe": 0.8, "read_noise_e": 1.5}
N_FRAMES, HEIGHT, WIDTH = 9, 20, 28


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def files_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def finished_in(folder: Path) -> list[str]:
    """Without molecules that wait for the end."""
    return [name for name in files_in(folder) if ".parts" not in name]


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a movie, its camera, and an untrained model that sees a molecule in every
    other pixel."""
    folder = tmp_path_factory.mktemp("bench")
    torch.manual_seed(5)
    network = NetworkConfig(frame_widths=(8, 8), sequence_widths=(8, 8), head_width=8)
    model = Localizer(network, {"psf_sigma_px": (0.8, 2.0)})
    with torch.no_grad():
        assert model.out.bias is not None
        model.out.weight[0] *= 20
        model.out.bias[0] = 0
    model.record = ModelRecord(config={"description": "untrained"})
    model.save(folder / "model.safetensors")
    counts = np.random.default_rng(5).poisson(60.0, (N_FRAMES, HEIGHT, WIDTH)) + 100
    write_movie(folder / "movie.tif", counts)
    (folder / "camera.yaml").write_text(yaml.safe_dump(CAMERA))
    return folder


@pytest.fixture
def place(bench: Path, tmp_path: Path) -> Path:
    """A copy of `bench` to spoil, as the working folder."""
    shutil.copytree(bench, tmp_path / "place")
    return tmp_path / "place"


def localize(place: Path, *more: object, movie: str = "movie.tif") -> Result:
    known = (
        "--model",
        place / "model.safetensors",
        "--camera",
        place / "camera.yaml",
        "--psf-sigma",
        130,
    )
    return run("localize", place / movie, *known, "-o", place / "out", *more)


# -- what the commands do
# ---------------------------------------------------------------------------------------


def test_help_needs_no_pytorch() -> None:
    code = (
        "import sys, decode.cli, decode; decode.__all__; sys.exit('torch' in sys.modules or "
        "'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert "localize" in run("--help").output


def test_every_public_name_exists() -> None:
    assert sorted(decode._HOME) == sorted(decode.__all__)
    for name in decode.__all__:
        assert getattr(decode, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        decode.nothing  # noqa: B018


def test_localize_writes_the_same_molecules_to_both_tables_and_a_picture(place: Path) -> None:
    result = localize(place)
    assert result.exit_code == 0, result.output
    assert files_in(place / "out") == ["movie.csv", "movie.hdf5", "movie.png", "movie.yaml"]
    csv, picasso = read_table(place / "out" / "movie.csv"), read_table(place / "out" / "movie.hdf5")
    assert len(csv) > 100
    torch.testing.assert_close(csv.frame, picasso.frame)
    torch.testing.assert_close(csv.xyz[:, :2], picasso.xyz[:, :2], atol=0.02, rtol=0)
    assert csv.xyz_sigma is not None
    assert bool((csv.xyz_sigma[:, :2] > 0).all())
    assert bool((csv.frame.diff() >= 0).all())
    facts = picasso.metadata
    assert (facts["n_frames"], facts["height_px"], facts["width_px"]) == (N_FRAMES, HEIGHT, WIDTH)
    assert f"{len(csv)} molecules in {N_FRAMES} frames" in result.stdout


def warnings_of(result: Result) -> list[str]:
    return [line for line in result.stderr.splitlines() if "warning: " in line]


def write_maps(folder: Path, offset: Tensor, gain: Tensor, variance: Tensor) -> Path:
    """A camera file with maps: ADU, ADU per electron, ADU^2."""
    camera = Camera(
        baseline=offset, e_per_adu=1 / gain, read_noise_e=variance.sqrt() / gain, qe=0.8
    )
    folder.mkdir()
    write_camera(folder / "camera.yaml", CameraFile(camera=camera, pixel_size_nm=100.0))
    return folder / "camera.yaml"


def test_maps_that_do_not_fit_the_movie_are_said_once(place: Path, rng: torch.Generator) -> None:
    hot = torch.where(torch.rand(64, 64, generator=rng) < 0.05, 100.0, 1.0)
    maps = (100 + torch.randn(64, 64, generator=rng), torch.full((64, 64), 2.0), 6 * hot)
    right = write_maps(place / "right", *maps)
    wrong = write_maps(place / "wrong", *(m.T for m in maps))
    counts = read_camera(right).camera.sample(torch.full((12, 64, 64), 20.0), rng)
    movie, psf = place / "movie.tif", place / "psf.h5"
    write_movie(movie, counts.numpy())
    write_psf(psf, PSFFile(psf=GaussianPSF(130.0, pixel_size_nm=100.0), z_range_nm=(0.0, 0.0)))
    sentence = (
        "warning: the camera's maps fit the movie only when they are transposed: save them so"
    )
    for camera, expected in ((right, []), (wrong, [f"movie.tif: {sentence}"])):
        # the network is untrained: none of its molecules, so that the checks find no fault in them
        result = localize(place, "--camera", camera, "--json", "--threshold", 1.0)
        assert result.exit_code == 0, result.output
        assert warnings_of(result) == expected
        assert json.loads(result.stdout)[0]["warnings"] == [
            line.partition("warning: ")[2] for line in expected
        ]
        # the others say the same, whatever else they think of a movie without molecules
        estimate = run(
            "estimate", movie, "--psf", psf, "--camera", camera, "-o", place / "train.yaml"
        )
        assert warnings_of(estimate) == expected
        beads = ("--beads", movie, "--z-step", 20)
        assert (
            warnings_of(run("run", movie, *beads, "--camera", camera, "-o", place / "all"))
            == expected
        )

    small = write_maps(place / "small", *(m[:40] for m in maps))
    result = localize(place, "--camera", small)
    assert result.exit_code == 2
    assert (
        "the camera's maps are 40 x 64 pixels, the movie's frames 64 x 64: cut them"
        in result.stderr
    )


def test_the_recipe_of_a_common_camera_has_a_camera_file_of_its_own(place: Path) -> None:
    astigmatic = GaussianPSF(130.0, pixel_size_nm=100.0, depth_nm=400.0, gap_nm=300.0)
    write_psf(place / "psf.h5", PSFFile(psf=astigmatic, z_range_nm=(-500.0, 500.0)))
    known = (
        "--psf",
        place / "psf.h5",
        "--camera",
        "andor-ixon-ultra-897",
        "-o",
        place / "train.yaml",
    )
    without = run("estimate", SAMPLE, *known)
    assert without.exit_code == 2
    assert "has an EM gain that its user sets; state it with --em-gain" in without.stderr
    assert not (place / "train.yaml").exists()
    result = run("estimate", SAMPLE, *known, "--em-gain", 300)
    assert result.exit_code == 0, result.output
    recipe = yaml.safe_load((place / "train.yaml").read_text())
    written = read_camera(place / recipe["camera"]["file"])
    assert (written.camera.em_gain, written.pixel_size_nm) == (300, 100)
    before = (place / "train_camera.yaml").read_text()
    again = (
        "--camera",
        place / "train_camera.yaml",
        "--pixel-size",
        101,
        "-o",
        place / "train.yaml",
    )
    result = run("estimate", SAMPLE, "--psf", place / "psf.h5", *again)
    assert result.exit_code == 2
    assert "train_camera.yaml, which is read" in result.stderr
    assert (place / "train_camera.yaml").read_text() == before


def test_a_background_beyond_the_training_is_said(place: Path) -> None:
    camera = place / "camera.yaml"
    for e_per_adu, expected in ((45.0, False), (45e2, True)):
        camera.write_text(
            f"pixel_size_nm: 100\nbaseline: 100\ne_per_adu: {e_per_adu}\nqe: 0.9\nread_noise_e: "
            "74.4\nem_gain: 300\n"
        )
        result = localize(place, "--camera", camera, "--model", "gaussian-2d")
        assert result.exit_code == 0, result.output
        assert ("the model was trained on 1 to 300" in result.stderr) == expected


def test_maps_of_a_real_camera_that_lie_transposed_are_said(place: Path, shared_data: Path) -> None:
    folder = shared_data / "storm_scmos_real"
    names = ("offset_adu", "gain_adu_per_electron", "variance_adu2")
    maps = [
        torch.from_numpy(tifffile.imread(folder / f"camera_{n}.tif").astype(np.float32))
        for n in names
    ]
    shutil.copy(folder / "frames.tif", place / "movie.tif")
    for name, each, expected in (("right", maps, 0), ("wrong", [m.T for m in maps], 1)):
        result = localize(place, "--camera", write_maps(place / name, *each), "--roi", "0:9,0:9")
        assert result.exit_code == 0, result.output
        assert sum("transposed" in warning for warning in warnings_of(result)) == expected
        assert not any("pixels are dead" in warning for warning in warnings_of(result))


def test_a_part_of_the_movie_keeps_its_frames_and_coordinates(place: Path) -> None:
    result = localize(place, "--frames", "2:7", "--roi", "4:12,8:20", "--format", "csv", "--json")
    assert result.exit_code == 0, result.output
    assert files_in(place / "out") == ["movie.csv"]
    table = read_table(place / "out" / "movie.csv")
    (summary,) = json.loads(result.stdout)
    assert summary["molecules"] == len(table) > 0
    assert set(table.frame.tolist()) == set(range(2, 7))
    x, y = table.xyz[:, 0], table.xyz[:, 1]
    assert bool(((x >= 800) & (x <= 2000) & (y >= 400) & (y <= 1200)).all())


def test_several_movies_come_out_one_by_one(place: Path) -> None:
    shutil.copy(place / "movie.tif", place / "second.tif")
    result = localize(place, place / "second.tif", "--format", "csv")
    assert result.exit_code == 0, result.output
    assert files_in(place / "out") == ["movie.csv", "second.csv"]
    assert (place / "out" / "movie.csv").read_text() == (place / "out" / "second.csv").read_text()


@pytest.mark.parametrize("stored", ["parts", "folder"])
def test_a_movie_in_many_files_gives_the_molecules_of_one(place: Path, stored: str) -> None:
    with tifffile.TiffFile(place / "movie.tif") as tiff:
        counts = tiff.asarray()
    if stored == "parts":
        # natural order: part 9 comes before part 10
        write_movie(place / "part_9.tif", counts[:4])
        write_movie(place / "part_10.tif", counts[4:])
        result = localize(place, place / "part_9.tif", "--join", movie="part_10.tif")
        written = place / "out" / "part_9.csv"
    else:
        (place / "frames").mkdir()
        for number, frame in enumerate(counts):
            tifffile.imwrite(place / "frames" / f"{number}.tif", frame)
        result = localize(place, movie="frames")
        written = place / "out" / "frames.csv"
    assert result.exit_code == 0, result.output
    assert localize(place).exit_code == 0
    assert written.read_text() == (place / "out" / "movie.csv").read_text()


def test_a_channel_is_chosen_and_skipped_frames_leave_gaps(place: Path) -> None:
    with tifffile.TiffFile(place / "movie.tif") as tiff:
        counts = tiff.asarray()
    both = np.stack([counts[::-1], counts], 1)
    (place / "raw").mkdir()
    named = {"axes": "TCYX", "Channel": {"Name": ["561", "647"]}}
    two = place / "raw" / "movie.ome.tif"
    tifffile.imwrite(two, both, photometric="minisblack", metadata=named)
    refused = localize(place, movie="raw/movie.ome.tif")
    assert refused.exit_code == 2
    assert "2 channels (0: 561, 1: 647); choose by --channel, a number or a name" in refused.stderr
    assert files_in(place / "out") == []
    chosen = ("--channel", "647", "--skip", "0::4,1", "--format", "csv", "--pixel-size", 100)
    assert localize(place, *chosen, movie="raw/movie.ome.tif").exit_code == 0
    found = read_table(place / "out" / "movie.ome.csv")
    kept = {i for i in range(len(counts)) if i % 4 and i != 1}
    assert {*found.frame.tolist()} <= kept
    assert len({*found.frame.tolist()}) > len(kept) // 2
    text = (place / "out" / "movie.ome.csv").read_text()
    assert localize(place, *chosen, "--recursive", movie="raw").exit_code == 0
    assert (place / "out" / "movie.ome.csv").read_text() == text


def test_the_description_beside_a_raw_movie_is_not_overwritten(place: Path) -> None:
    with tifffile.TiffFile(place / "movie.tif") as tiff:
        counts = tiff.asarray()
    n_frames, height, width = counts.shape
    (place / "movie.raw").write_bytes(counts.astype("<u2").tobytes())
    stated = {"Byte Order": "<", "Data Type": "uint16", "Frames": n_frames}
    beside = place / "movie.yaml"
    beside.write_text(yaml.safe_dump(stated | {"Height": height, "Width": width}))
    before = beside.read_text()
    result = localize(place, "-o", place, movie="movie.raw")
    assert result.exit_code == 2
    assert "movie.yaml" in result.stderr
    assert beside.read_text() == before


def test_a_bad_movie_does_not_stop_the_others(place: Path) -> None:
    shutil.copy(place / "movie.tif", place / "third.tif")
    (place / "bad.tif").write_text("these are no pixels")
    result = localize(place, place / "bad.tif", place / "third.tif", "--format", "csv", "--json")
    assert result.exit_code == 2
    assert files_in(place / "out") == ["movie.csv", "third.csv"]
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("decode: ")]
    assert line.startswith("decode: bad.tif: ")
    assert "not a TIFF file" in line
    first, second, third = json.loads(result.stdout)
    assert first["molecules"] == third["molecules"] > 0
    assert "not a TIFF file" in second["error"]


def test_movies_before_a_ctrl_c_are_done_and_said(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(place / "movie.tif", place / "second.tif")
    draw = decode.verbs.assemble._drawn

    def interrupted(spool: Spool, picture: Path) -> Steps[list[str]]:
        if picture.stem == "second":
            raise KeyboardInterrupt
        return draw(spool, picture)

    monkeypatch.setattr("decode.verbs.assemble._drawn", interrupted)
    result = localize(place, place / "second.tif", "--format", "csv", "--format", "png", "--json")
    assert result.exit_code == 130
    (done,) = json.loads(result.stdout)
    assert Path(done["movie"]).name == "movie.tif"
    assert finished_in(place / "out") == ["movie.csv", "movie.png", "second.csv"]
    assert unfinished_folder(place / "second.tif", place / "out").is_dir()


def test_shares_are_merged_and_what_follows_is_of_the_table_and_not_of_its_draws(
    place: Path,
) -> None:
    chosen = ("--format", "csv", "--samples", "1")
    result = localize(place, *chosen, "--shard", "1/1")
    assert result.exit_code == 0, result.stderr
    assert finished_in(place / "out") == []
    result = CliRunner().invoke(app, ["merge", str(place / "out"), "--report", "--json"])
    assert result.exit_code == 0, result.stderr
    names = ["movie.csv", "movie.html", "movie.json", "movie.sample-01.csv"]
    assert files_in(place / "out") == names
    (done,) = json.loads(result.stdout)
    assert sorted(Path(file).name for file in done["files"]) == names
    again = CliRunner().invoke(app, ["merge", str(place / "out")])
    assert again.exit_code == 2
    assert "holds no shares of a movie" in again.stderr


def test_tables_are_kept_when_the_picture_cannot_be_drawn(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawing(*_: object, **__: object) -> None:
        assert finished_in(place / "out") == ["movie.csv", "movie.hdf5", "movie.yaml"]
        raise MemoryError

    monkeypatch.setattr("decode.rendering.Spool.layout", drawing)
    result = localize(place)
    assert result.exit_code == 1
    assert "movie.png: there is not enough memory; written: " in result.stderr
    assert finished_in(place / "out") == ["movie.csv", "movie.hdf5", "movie.yaml"]
    assert (
        len(read_table(place / "out" / "movie.hdf5"))
        == len(read_table(place / "out" / "movie.csv"))
        > 0
    )


def test_what_is_estimated_is_said(place: Path) -> None:
    """A bright, sparse movie of known width and gain, of which nothing is stated but the pixel
    size."""
    recipe = {
        "scene": {
            "density_per_um2": [0.3, 0.3],
            "flux_photons": [4000, 4000],
            "background_photons": [30, 30],
            "background_contrast": [0, 0],
        },
        "psf": {"sigma_px": [1.2, 1.2], "halo_fraction": [0, 0]},
        "camera": {"emccd_fraction": 0},
    }
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    made = run(
        "simulate",
        place / "recipe.yaml",
        "--frames",
        60,
        "-o",
        place / "m.tif",
        "--truth",
        place / "t.csv",
    )
    assert made.exit_code == 0, made.output
    known = (
        "--model",
        place / "model.safetensors",
        "-o",
        place / "out",
        "--frames",
        "0:60",
        "--json",
    )
    result = run("localize", place / "m.tif", *known)
    assert result.exit_code == 0, result.output
    (summary,) = json.loads(result.stdout)
    assert summary["psf_sigma_nm"] == pytest.approx(120, rel=0.1)
    assert len(summary["estimates"]) >= 2
    assert all(estimate in result.stderr for estimate in summary["estimates"])


def test_evaluate_gives_a_perfect_score_to_the_truth(place: Path) -> None:
    localize(place)
    found = read_table(place / "out" / "movie.hdf5")
    write_table(found, place / "truth.csv", dialect="challenge")
    # the field of view is read from the Picasso table beside the CSV
    result = run("evaluate", place / "out" / "movie.csv", place / "truth.csv", "--two-d", "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["jaccard"] == 1
    assert figures["rmse_lateral_nm"] < 0.01
    assert figures["efficiency_3d"] is None
    moved = run("evaluate", place / "out" / "movie.csv", place / "truth.csv", "--two-d", "--shift")
    assert "Jaccard 1.000" in moved.stdout
    assert "shift subtracted" in moved.stdout


def test_evaluate_asks_for_the_field_of_view_where_nothing_states_it(place: Path) -> None:
    localize(place, "--format", "csv")
    table = place / "out" / "movie.csv"
    refused = run("evaluate", table, table, "--two-d")
    assert refused.exit_code == 2
    assert "--field" in refused.stderr
    assert (
        run(
            "evaluate", table, table, "--two-d", "--field", f"{WIDTH * 100},{HEIGHT * 100}"
        ).exit_code
        == 0
    )
    for unfit in ("nan,100", "100,inf", "0,100", "-1,100"):
        refused = run("evaluate", table, table, "--field", unfit)
        assert refused.exit_code == 2
        assert f"--field {unfit}: both sides must be positive" in refused.stderr


def test_render_draws_a_table(place: Path) -> None:
    localize(place, "--format", "hdf5")
    result = run("render", place / "out" / "movie.hdf5", "-o", place / "picture.png")
    assert result.exit_code == 0, result.output
    assert (place / "picture.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_simulate_is_repeatable_and_its_files_fit_together(place: Path) -> None:
    (place / "recipe.yaml").write_text("scene: {density_per_um2: [1, 1]}\n")

    def simulate(name: str, seed: int) -> tuple[bytes, str, str]:
        out, truth = place / f"{name}.tif", place / f"{name}.csv"
        known = ("--frames", 6, "-o", out, "--truth", truth, "--size", 24, "--seed", seed)
        result = run("simulate", place / "recipe.yaml", *known, "--set", "psf.sigma_px=[1.5, 1.5]")
        assert result.exit_code == 0, result.output
        assert "PSF sigma 150.0 nm" in result.stdout
        return out.read_bytes(), truth.read_text(), (place / f"{name}_camera.yaml").read_text()

    assert simulate("a", 1) == simulate("a", 1)
    assert simulate("a", 1)[1] != simulate("a", 2)[1]
    assert tifffile.imread(place / "a.tif").shape == (6, 24, 24)
    truth = read_table(place / "a.csv")
    assert len(truth) > 0
    assert bool(((truth.xyz[:, :2] >= 0) & (truth.xyz[:, :2] <= 2400)).all())
    known = (
        "--model",
        place / "model.safetensors",
        "--camera",
        place / "a_camera.yaml",
        "--psf-sigma",
        150,
    )
    assert run("localize", place / "a.tif", *known, "-o", place / "out").exit_code == 0


TINY = (
    "network.frame_widths=[4]",
    "network.sequence_widths=[4]",
    "network.head_width=4",
    "training.size_px=16",
)


def train(place: Path, *more: object) -> Result:
    """Two steps of a tiny network, to place/new.safetensors."""
    (place / "recipe.yaml").write_text(
        "training: {steps: 2, movies: 1, frames: 3, validate_every: 1}\n"
    )
    settings = [word for setting in TINY for word in ("--set", setting)]
    return run(
        "train",
        place / "recipe.yaml",
        "-o",
        place / "new.safetensors",
        "--device",
        "cpu",
        *settings,
        *more,
    )


def test_train_writes_a_model_that_localize_takes(place: Path) -> None:
    result = train(place)
    assert result.exit_code == 0, result.output
    assert "2 steps" in result.stdout
    known = ("--camera", place / "camera.yaml", "--psf-sigma", 130, "-o", place / "out")
    assert (
        run("localize", place / "movie.tif", "--model", place / "new.safetensors", *known).exit_code
        == 0
    )


def test_resuming_a_training_that_has_ended_says_so(place: Path) -> None:
    assert train(place).exit_code == 0
    again = train(place, "--resume")
    assert again.exit_code == 0, again.output
    assert "2 steps" in again.stdout
    assert "the training had ended before; nothing was added to it" in again.stdout


def test_train_starts_from_a_model_and_says_so(place: Path) -> None:
    assert train(place).exit_code == 0
    first = Localizer.load(place / "new.safetensors")
    again = train(place, "--start", place / "new.safetensors", "-o", place / "second.safetensors")
    assert again.exit_code == 0, again.output
    second = Localizer.load(place / "second.safetensors")
    assert second.record.start is not None
    assert second.record.start.steps == first.record.steps
    other = train(place, "--start", place / "second.safetensors", "--set", "network.head_width=12")
    assert "has another network" in other.stderr


def test_cameras_lists_names_that_stand_for_a_file(place: Path) -> None:
    presets = json.loads(run("cameras", "--json").stdout)
    assert len(presets) >= 5
    (place / "camera.yaml").unlink()
    name = next(
        name
        for name in presets
        if "scmos" in name.lower() or "flash" in name.lower() or "prime" in name.lower()
    )
    known = (
        "--model",
        place / "model.safetensors",
        "--camera",
        name,
        "--pixel-size",
        100,
        "--psf-sigma",
        130,
    )
    result = run("localize", place / "movie.tif", *known, "-o", place / "out")
    assert result.exit_code == 0, result.output


def test_schema_is_json() -> None:
    assert json.loads(run("schema").stdout)["properties"]["training"]


def test_models_lists_what_is_shipped_and_how_good_it_is(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(place)
    monkeypatch.setattr("decode.models.shipped_models", lambda: {"tiny": place / "new.safetensors"})
    told = run("models")
    assert told.exit_code == 0, told.output
    assert "psf_sigma_px from 0.8 to 2" in told.stdout
    record = json.loads(run("models", "--json").stdout)["tiny"]
    assert record["steps"] == 2
    assert told.stdout.count(" nm\n") == len(record["figures"]) > 0
    refused = run("models", "--picture", place / "calibration.png")
    assert refused.exit_code == 2
    assert "name the model" in refused.stderr
    refused = run("models", place / "new.safetensors", "--picture", place / "calibration.png")
    assert refused.exit_code == 2
    assert "decode calibrate model" in refused.stderr


def test_a_model_is_calibrated_and_shows_it(place: Path) -> None:
    out = place / "calibrated.safetensors"
    made = run("calibrate", "model", "gaussian-2d", "-o", out, "--movies", 8, "--device", "cpu")
    assert made.exit_code == 0, made.output
    assert "errors within 68 % / 95 %" in made.stdout
    assert str(out) in made.stdout
    told = run("models", out, "--picture", place / "calibration.png")
    assert told.exit_code == 0, told.output
    assert "of frames within the 95 % interval" in told.stdout
    assert (place / "calibration.png").stat().st_size > 10_000


def test_doctor_tells_a_model_that_finds_nothing_true(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("verbs.doctor", "models"):
        monkeypatch.setattr(
            f"decode.{module}.shipped_models", lambda: {"untrained": place / "model.safetensors"}
        )
    result = run("doctor")
    assert result.exit_code == 1
    *others, last = result.stdout.splitlines()
    assert all(line.startswith("ok ") for line in others)
    assert last.startswith("FAILED movie with untrained: Jaccard 0.")


def test_doctor_is_content_with_what_is_shipped() -> None:
    if not shipped_models():
        pytest.skip("no model is shipped")
    result = run("doctor")
    assert result.exit_code == 0, result.output


# -- what is wrong is said in one sentence
# ----------------------------------------------------------------------


def wrong_file(place: Path) -> Result:
    (place / "notes.tif").write_text("these are no pixels")
    return localize(place, movie="notes.tif")


def absent_file(place: Path) -> Result:
    return localize(place, movie="absent.tif")


def truncated(place: Path) -> Result:
    whole = (place / "movie.tif").read_bytes()
    (place / "cut.tif").write_bytes(whole[: len(whole) * 2 // 3])
    return localize(place, movie="cut.tif")


def colour(place: Path) -> Result:
    tifffile.imwrite(
        place / "rgb.tif", np.zeros((4, HEIGHT, WIDTH, 3), np.uint8), photometric="rgb"
    )
    return localize(place, movie="rgb.tif")


def not_a_number(place: Path) -> Result:
    counts = np.full((N_FRAMES, HEIGHT, WIDTH), 150, np.float32)
    counts[-1, 3, 3] = np.nan  # shows only when molecules of other frames are already written
    tifffile.imwrite(place / "nan.tif", counts)
    return localize(place, movie="nan.tif")


def maps_of_another_shape(place: Path) -> Result:
    tifffile.imwrite(place / "offset.tif", np.full((HEIGHT, HEIGHT), 100, np.float32))
    camera = {name: value for name, value in CAMERA.items() if name != "baseline"} | {
        "offset_map": "offset.tif"
    }
    (place / "camera.yaml").write_text(yaml.safe_dump(camera))
    return localize(place)


def zero_gain(place: Path) -> Result:
    (place / "camera.yaml").write_text(yaml.safe_dump(CAMERA | {"e_per_adu": 0}))
    return localize(place)


def zero_gain_in_a_map(place: Path) -> Result:
    gain = np.full((HEIGHT, WIDTH), 2, np.float32)
    gain[5, 5] = 0
    tifffile.imwrite(place / "gain.tif", gain)
    camera = {name: value for name, value in CAMERA.items() if name != "e_per_adu"} | {
        "gain_map": "gain.tif"
    }
    (place / "camera.yaml").write_text(yaml.safe_dump(camera))
    return localize(place)


def missing_key(place: Path) -> Result:
    (place / "camera.yaml").write_text(
        yaml.safe_dump({k: v for k, v in CAMERA.items() if k != "baseline"})
    )
    return localize(place)


def unknown_key(place: Path) -> Result:
    (place / "camera.yaml").write_text(yaml.safe_dump(CAMERA | {"base_line": 100}))
    return localize(place)


def no_camera_file(place: Path) -> Result:
    (place / "camera.yaml").unlink()
    return localize(place)


def no_gpu(place: Path) -> Result:
    return localize(place, "--device", "cuda")


def unknown_device(place: Path) -> Result:
    return localize(place, "--device", "tpu")


def tampered_model(place: Path) -> Result:
    content = bytearray((place / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (place / "model.safetensors").write_bytes(content)
    return localize(place)


def truncated_model(place: Path) -> Result:
    content = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(content[:-40])
    return localize(place)


def unknown_model(place: Path) -> Result:
    return run("localize", place / "movie.tif", "--model", "gaussian-2", "-o", place / "out")


def psf_beyond_the_model(place: Path) -> Result:
    return localize(place, "--psf-sigma", 400)


def no_pixel_size(place: Path) -> Result:
    known = ("--model", place / "model.safetensors", "--psf-sigma", 130, "-o", place / "out")
    return run("localize", place / "movie.tif", *known)


def region_outside(place: Path) -> Result:
    return localize(place, "--roi", "0:10,20:90")


def bad_region(place: Path) -> Result:
    return localize(place, "--roi", "0-10")


def frames_outside(place: Path) -> Result:
    return localize(place, "--frames", "100:200")


def bad_frames(place: Path) -> Result:
    return localize(place, "--frames", "ten:20")


def unknown_format(place: Path) -> Result:
    return localize(place, "--format", "xlsx")


def same_name_twice(place: Path) -> Result:
    (place / "other").mkdir()
    shutil.copy(place / "movie.tif", place / "other")
    return localize(place, place / "other" / "movie.tif")


def file_in_place_of_the_folder(place: Path) -> Result:
    (place / "out").write_text("in the way")
    return localize(place)


def unwritable_folder(place: Path) -> Result:
    if os.geteuid() == 0:
        pytest.skip("the superuser writes everywhere")
    (place / "out").mkdir(mode=0o500)
    return localize(place)


def table_that_is_none(place: Path) -> Result:
    (place / "table.csv").write_text("some,other,table\n1,2,3\n")
    return run("render", place / "table.csv", "-o", place / "out.png")


def recipe_with_an_unknown_key(place: Path) -> Result:
    return train(place, "--set", "scene.densty=[0, 1]")


def recipe_with_a_wrong_type(place: Path) -> Result:
    return train(place, "--set", "training.steps=many")


def nothing_to_resume(place: Path) -> Result:
    return train(place, "--resume")


def train_without_gpu(place: Path) -> Result:
    return train(place, "--device", "cuda")


def model_folder_absent(place: Path) -> Result:
    return train(place, "-o", place / "nowhere" / "model.safetensors")


def simulate_into_nowhere(place: Path) -> Result:
    (place / "recipe.yaml").write_text("seed: 1\n")
    known = ("-o", place / "m.tif", "--truth", place / "nowhere" / "t.csv")
    return run("simulate", place / "recipe.yaml", "--frames", 2, *known)


def movie_larger_than_memory(place: Path) -> Result:
    (place / "recipe.yaml").write_text("scene: {density_per_um2: [0, 0]}\n")
    known = ("--size", 10**6, "-o", place / "m.tif", "--truth", place / "t.csv")
    return run("simulate", place / "recipe.yaml", "--frames", 10, *known)


def calibrate_psf(place: Path, *more: object) -> Result:
    known = ("--camera", place / "camera.yaml", "-o", place / "psf.h5", "--patch", 11)
    return run("calibrate", "psf", place / "movie.tif", *known, *more)


def beads_without_a_step(place: Path) -> Result:
    return calibrate_psf(place)


def beads_with_a_step_downwards(place: Path) -> Result:
    return calibrate_psf(place, "--z-step", -20)


def beads_that_are_none(place: Path) -> Result:
    return calibrate_psf(place, "--z-step", 50)


def unknown_psf_model(place: Path) -> Result:
    return calibrate_psf(place, "--z-step", 50, "--model", "airy")


def estimate_without_a_psf(place: Path) -> Result:
    known = ("--camera", place / "camera.yaml", "-o", place / "train.yaml")
    return run("estimate", place / "movie.tif", "--psf", place / "psf.h5", *known)


def refine_what_is_no_pupil(place: Path) -> Result:
    write_psf(
        place / "start.psf",
        PSFFile(psf=GaussianPSF(120.0, pixel_size_nm=100.0), z_range_nm=(0.0, 0.0)),
    )
    known = (
        "--camera",
        place / "camera.yaml",
        "--psf",
        place / "start.psf",
        "-o",
        place / "psf.h5",
    )
    return run("calibrate", "in-situ", place / "movie.tif", *known)


def camera_of_nothing(place: Path) -> Result:
    return run("calibrate", "camera", "-o", place / "measured.yaml")


def model_of_other_pixels(place: Path) -> Result:
    model = Localizer(NetworkConfig(frame_widths=(4,), sequence_widths=(4,), head_width=4), {})
    model.record = ModelRecord(config={"pixel_size_nm": 160.0})
    model.save(place / "model.safetensors")
    return localize(place)


def recipe_whose_psf_is_absent(place: Path) -> Result:
    (place / "recipe.yaml").write_text("psf: {file: nowhere.h5}\n")
    return run("train", place / "recipe.yaml", "-o", place / "m.safetensors")


BAD: list[tuple[Callable[[Path], Result], str]] = [
    (wrong_file, "not a TIFF file"),
    (absent_file, "there is no file"),
    (truncated, "is cut short"),
    (colour, "colour image"),
    (not_a_number, f"frame {N_FRAMES - 1} (from 0) holds NaN"),
    (
        maps_of_another_shape,
        "camera's maps are 20 x 20 pixels, the movie's frames 20 x 28: cut them",
    ),
    (zero_gain, "e_per_adu must be positive"),
    (zero_gain_in_a_map, "gain_map"),
    (missing_key, "baseline is missing"),
    (unknown_key, "unknown key 'base_line'; is it baseline?"),
    (no_camera_file, "there is no camera file"),
    (no_gpu, "sees no GPU"),
    (unknown_device, "tpu"),
    (tampered_model, "was changed after it was written"),
    (truncated_model, "is not a model file, or it is damaged"),
    (unknown_model, "there is no model gaussian-2"),
    (psf_beyond_the_model, "psf_sigma_px"),
    (no_pixel_size, "--pixel-size"),
    (region_outside, "not within the frame"),
    (bad_region, "--roi 0-10"),
    (frames_outside, "frames 100:200"),
    (bad_frames, "--frames ten:20"),
    (unknown_format, "xlsx"),
    (same_name_twice, "would overwrite each other"),
    (file_in_place_of_the_folder, "out"),
    (unwritable_folder, "cannot write"),
    (table_that_is_none, "not a table of molecules"),
    (recipe_with_an_unknown_key, "unknown key 'scene.densty'"),
    (recipe_with_a_wrong_type, "training.steps"),
    (nothing_to_resume, "--resume"),
    (train_without_gpu, "sees no GPU"),
    (model_folder_absent, "nowhere"),
    (simulate_into_nowhere, "nowhere"),
    (movie_larger_than_memory, "not enough memory"),
    (beads_without_a_step, "state it with --z-step"),
    (beads_with_a_step_downwards, "must be positive"),
    (beads_that_are_none, "no bead was found"),
    (unknown_psf_model, "spline, pupil, gaussian"),
    (estimate_without_a_psf, "there is no such PSF file"),
    (refine_what_is_no_pupil, "only a pupil can be refined"),
    (camera_of_nothing, "give series of dark frames, or --movie"),
    (model_of_other_pixels, "trained for pixels of 160 nm, the movie's are 100 nm"),
    (recipe_whose_psf_is_absent, "there is no such PSF file"),
]


@pytest.mark.parametrize(("attempt", "sentence"), BAD, ids=[attempt.__name__ for attempt, _ in BAD])
def test_bad_input_gets_one_sentence_and_leaves_no_file(
    place: Path, monkeypatch: pytest.MonkeyPatch, attempt: Callable[[Path], Result], sentence: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = attempt(place)
    assert result.exit_code in (1, 2)
    lines = [line for line in result.stderr.splitlines() if line.startswith("decode: ")]
    assert len(lines) == 1
    assert sentence in lines[0]
    assert "Traceback" not in result.stderr
    made = (".csv", ".hdf5", ".png", ".h5", ".html")
    left = [p.name for p in place.rglob("*") if p.suffix in made or p.name.startswith(".")]
    assert left == ["table.csv"] * (attempt is table_that_is_none)
    assert not (place / "out").is_dir() or files_in(place / "out") == []


@pytest.mark.parametrize("what", ["localize", "simulate"])
def test_a_full_disk_is_said_and_leaves_no_file(place: Path, what: str) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("a small disk needs unshare, which is not here")
    (place / "disk").mkdir()
    (place / "recipe.yaml").write_text("seed: 1\n")
    arguments = {
        "localize": "movie.tif --model model.safetensors --camera camera.yaml "
        "--psf-sigma 130 -o disk",
        "simulate": "recipe.yaml --frames 40 -o disk/m.tif --truth disk/t.csv",
    }[what]
    command = f"{sys.executable} -m decode {what} {arguments}"
    script = (
        f"mount -t tmpfs -o size=32k tmpfs disk || exit 77; {command}; code=$?; ls -A disk; exit "
        "$code"
    )
    result = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode == 77 or "unshare" in result.stderr:
        pytest.skip("a small disk cannot be mounted here")
    assert result.returncode == 1, result.stderr
    assert "the disk is full" in result.stderr
    # the molecules that were found wait for room
    assert result.stdout == {"localize": "movie.parts\n", "simulate": ""}[what]


def test_a_table_that_cannot_be_written_does_not_cost_the_others(place: Path) -> None:
    """Picasso's table is the longest; the limit is the shell's, in a process of its own, which
    must not crash."""
    localize(place)
    kept, too_long = (
        (place / "out" / "movie.csv").stat().st_size,
        (place / "out" / "movie.hdf5").stat().st_size,
    )
    assert kept + 2**16 < too_long
    shutil.rmtree(place / "out")
    known = (
        "movie.tif --model model.safetensors --camera camera.yaml --psf-sigma 130 -o out "
        "--format csv --format hdf5"
    )
    script = f"ulimit -f {(kept + 2**16) // 1024}; exec {sys.executable} -m decode localize {known}"
    result = subprocess.run(
        ["bash", "-c", script], cwd=place, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1, result.stderr
    line = result.stderr.splitlines()[-1]
    assert line.startswith(
        "decode: cannot write out/movie.hdf5: the limit on the size of a file is reached"
    )
    assert line.endswith("written: out/movie.csv")
    assert finished_in(place / "out") == ["movie.csv"]
    assert (place / "out" / "movie.csv").stat().st_size == kept
    # the molecules are kept for a disk with more room
    again = localize(place, "--format", "csv", "--format", "hdf5")
    assert again.exit_code == 0
    assert files_in(place / "out") == ["movie.csv", "movie.hdf5", "movie.yaml"]


def test_debug_shows_where_an_error_comes_from(place: Path) -> None:
    result = run("--debug", "evaluate", place / "a.csv", place / "b.csv")
    assert isinstance(result.exception, FileNotFoundError)


def test_ctrl_c_leaves_no_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("decode.network.posterior.SetPosterior.point_estimate", interrupted)
    result = localize(place)
    assert result.exit_code == 130
    assert files_in(place / "out") == []


def started(command: list[str], **pipes: Any) -> subprocess.Popen[str]:
    """A program that hears Ctrl-C, also where the tests run in the background of a shell, which
    takes it from them."""

    def hear() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(command, text=True, preexec_fn=hear, **pipes)


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_work_and_leaves_no_half_file(
    place: Path, number: int, code: int
) -> None:
    known = (
        "--model",
        "gaussian-2d",
        "--camera",
        place / "camera.yaml",
        "--psf-sigma",
        130,
        "-o",
        place / "out",
    )
    command = [sys.executable, "-m", "decode", "localize", *map(str, (SAMPLE, *known))]
    with started(command, stderr=subprocess.PIPE) as process:
        while not list(place.glob("out/.unfinished-*")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        _, told = process.communicate()
    assert process.returncode == code
    assert told.splitlines()[-1] == "decode: stopped"
    assert "Traceback" not in told
    assert finished_in(place / "out") == []


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize("seconds", [0.05, 0.1, 0.2, 0.3, 0.5, 0.8])
def test_ctrl_c_while_the_program_starts_is_no_traceback(place: Path, seconds: float) -> None:
    """From its entry point on: before, Python itself is starting."""
    code = "from decode.__main__ import main; print('begun', flush=True); main()"
    words = ("localize", place / "movie.tif", "--model", place / "model.safetensors", "-o", place)
    command = [sys.executable, "-c", code, *map(str, words)]
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
    # the shell calls both 130
    assert process.returncode in (130, -signal.SIGINT)
    assert told in ("", "decode: stopped\n")


@pytest.mark.parametrize(
    ("answer", "direction", "asked"),
    [("y", "stated", True), ("y", "assumed", False)],
)
@pytest.mark.usefixtures("no_pupil")
def test_at_a_terminal_the_direction_of_z_is_asked_for_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, answer: str, direction: str, asked: bool
) -> None:
    with open_movie(SAMPLE.with_name("beads_3d.tif")) as stack:
        write_movie(place / "beads.tif", stack.read(0, 81)[::8, 8:58, 4:90])
    monkeypatch.setattr("decode.cli.calibrate.is_asked", lambda: asked)
    stated = ("--camera", SAMPLE.with_name("camera.yaml"), "--z-step", 160, "--model", "gaussian")
    words = ["calibrate", "psf", place / "beads.tif", *stated, "-o", place / "psf.h5"]
    result = CliRunner().invoke(app, [str(word) for word in words], input=f"{answer}\n")
    assert result.exit_code == 0
    assert result.stdout.count("Did the stage go up") == asked
    assert read_psf(place / "psf.h5").z_direction == direction


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ((), ""),
        (("--model", "pupil"), ""),
        (("--pixel-size", 300), "wavelength_px = 2.23"),
        (("--model", "pupil", "--wavelength", 1200), "wavelength_px = 12"),
        (("--model", "pupil", "--phase-mask"), "phase masks"),
    ],
)
def test_that_no_shipped_model_will_take_a_psf_is_said_before_it_is_calibrated(
    place: Path, options: tuple[object, ...], why: str
) -> None:
    """The stack has three planes and is refused at once."""
    write_movie(place / "beads.tif", np.full((3, 64, 64), 100, np.uint16))
    camera = SAMPLE.with_name("camera.yaml")
    stated = ("--camera", camera, "--z-step", 50, "-o", place / "psf.h5", *options)
    result = run("calibrate", "psf", place / "beads.tif", *stated)
    assert result.exit_code == 2
    warned, *refused = result.stderr.splitlines()
    assert bool(refused) == bool(why)
    if why:
        assert warned.startswith("beads.tif: warning: no shipped model will take this PSF in 3D (")
        assert why in warned
