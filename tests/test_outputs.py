"""What a verb writes is never what it reads, and can be written, before it works."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import typer
import yaml
from typer.models import OptionInfo
from typer.testing import CliRunner, Result

from decode.atomic import PREFIX
from decode.cli import app
from decode.outputs import check_outputs, localize_files, run_files

CAMERA = {"pixel_size_nm": 100, "baseline": 100, "e_per_adu": 0.5, "qe": 0.8, "read_noise_e": 1.5}
FILES = (
    "m.tif",
    "b.tif",
    "t.csv",
    "t.hdf5",
    "t.yaml",
    "data.csv",
    "table.png",
    "quality.json",
    "psf.h5",
    "r.json",
    "m.safetensors",
)
CAMERAS = ("c.yaml", "m.yaml", "train_camera.yaml", "all/camera.yaml")
RECIPES = ("r.yaml", "s_camera.yaml")

LOCALIZE = "--model gaussian-2d --camera c.yaml -o"
RUN = "--z-step 20 --camera"
COLLISIONS = {
    "localize": [
        "data.csv --model gaussian-2d -o .",
        "m.tif --model gaussian-2d --camera m.yaml -o .",
        "m.tif --model gaussian-2d --camera c.yaml -o .",  # m.yaml belongs to no table
        "m.tif other/m.tif --model gaussian-2d -o out",
        "m.tif other/M.tif --model gaussian-2d -o out",
    ],
    "watch": ["data.csv --model gaussian-2d -o .", "m.tif --model gaussian-2d -o ."],
    "render": ["table.png -o table.png", "t.csv -o t.csv"],
    "convert": [
        "t.csv t.csv",
        "t.csv c.hdf5",
        "t.csv m.tif",
        "t.csv t.hdf5 --to thunderstorm",
    ],
    "link": ["t.csv -o t.csv", "t.hdf5 -o t.hdf5", "t.csv -o psf.h5 --psf psf.h5"],
    "drift": ["t.csv -o t.csv", "t.csv -o data.csv --apply data.csv"],
    "filter": [
        "t.csv -o t.csv --keep frame=1:",
        "t.hdf5 -o t.hdf5 --keep frame=1:",
        "t.csv -o linked.csv --keep frame=1:",
        "t.csv -o hard.csv --keep frame=1:",
        "t.csv -o c.hdf5 --keep frame=1:",
        "t.csv -o t.txt --keep frame=1:",
    ],
    "quality": ["quality.json -o ."],
    "report": ["r.json -o r.html", "t.csv -o t.csv"],
    "simulate": [
        "r.yaml --frames 2 -o s.tif --truth s.tif",
        "s_camera.yaml --frames 2 -o s.tif --truth s.csv",
        "measured.yaml --frames 2 -o offset.tif --truth s.csv",
        "r.yaml --frames 2 -o s.csv --truth t.csv",
    ],
    "train": [
        "r.yaml -o r.json",
        "r.yaml -o r.yaml",
        "r.yaml -o new.checkpoint",
        "r.json -o r.safetensors",
        "r.yaml --start m.safetensors -o m.safetensors",
    ],
    "run": [
        "train.tif --beads b.tif --z-step 20 --camera c.yaml -o all",
        "camera.tif --beads b.tif --z-step 20 --camera c.yaml -o all",
        "m.tif --beads b.tif --z-step 20 --camera all/camera.yaml -o all",
        "frames --beads b.tif --z-step 20 --camera c.yaml -o frames",
        "m.tif --beads all/camera_offset_map.tif --z-step 20 --camera c.yaml -o all",
    ],
    "calibrate psf": [
        "b.tif --camera c.yaml -o b.tif",
        "b.tif --camera c.yaml -o b.html",
        "psf.h5 --camera c.yaml -o psf.h5",
    ],
    "calibrate import": ["psf.h5 -o psf.h5", "psf.h5 -o psf.csv"],
    "calibrate model": ["m.safetensors -o r.json"],
    "calibrate checks": ["m.safetensors -o r.json"],
    "calibrate in-situ": [
        "m.tif --camera c.yaml --psf psf.h5 -o psf.h5",
        "m.tif --camera c.yaml -o m.tif",
    ],
    "calibrate camera": ["d_offset_map.tif -o d.yaml", "b.tif -o b.tif", "--movie m.tif -o m.tif"],
    "estimate": [
        "m.tif --psf psf.h5 --camera c.yaml -o c.yaml",
        "m.tif --psf psf.h5 --camera train_camera.yaml --pixel-size 90 -o train.yaml",
        "table.png --psf psf.h5 --camera c.yaml -o table.yaml",
        "m.tif --psf psf.h5 --camera c.yaml -o psf.h5",
    ],
}
"""of each verb that writes files, what would lose some"""

ELSEWHERE = {
    "render": "t.csv -o nowhere/t.png",
    "convert": "t.csv nowhere/t.csv",
    "link": "t.csv -o nowhere/t.csv",
    "drift": "t.csv -o nowhere/t.csv",
    "filter": "t.csv -o nowhere/t.csv --keep frame=1:",
    "quality": "t.csv -o t.csv/nowhere",
    "report": "t.csv -o nowhere/r.html",
    "simulate": "r.yaml --frames 2 -o nowhere/s.tif --truth s.csv",
    "train": "r.yaml -o nowhere/m.safetensors",
    "calibrate psf": "b.tif --camera c.yaml -o nowhere/psf.h5",
    "calibrate import": "psf.h5 -o nowhere/psf.h5",
    "calibrate model": "gaussian-2d -o nowhere/m.safetensors",
    "calibrate checks": "gaussian-2d -o nowhere/m.safetensors",
    "calibrate in-situ": "m.tif --camera c.yaml -o nowhere/psf.h5",
    "calibrate camera": "b.tif -o nowhere/c.yaml",
    "estimate": "m.tif --psf psf.h5 --camera c.yaml -o nowhere/train.yaml",
    "localize": "m.tif --model gaussian-2d -o t.csv/nowhere",
    "watch": "m.tif --model gaussian-2d -o t.csv/nowhere",
    "run": "m.tif --beads b.tif --z-step 20 --camera c.yaml -o t.csv/nowhere",
}
"""of each verb, a folder that is not there, or cannot be made"""


VICTIMS = {
    "localize": ("m.tif --model gaussian-2d -o out", "out/m.csv"),
    "watch": ("m.tif --model gaussian-2d -o out", "out/m.csv"),
    "run": ("m.tif --beads b.tif --camera c.yaml -o all", "all/train.yaml"),
    "link": ("t.csv -o new.csv", "new.csv"),
    "drift": ("t.csv -o new.csv", "new.csv"),
    "calibrate psf": ("b.tif --camera c.yaml -o new.h5", "new.h5"),
    "calibrate in-situ": ("m.tif --camera c.yaml -o new.h5", "new.h5"),
    "calibrate camera": ("b.tif -o new.yaml", "new.yaml"),
    "estimate": ("m.tif --psf psf.h5 --camera c.yaml -o new.yaml", "new.yaml"),
}
"""of each verb with options that name files, a call and a file that it writes"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of all kinds, by their names: none of them is ever read."""
    monkeypatch.chdir(tmp_path)
    for name in ("all", "other", "frames", "out"):
        Path(name).mkdir()
    more = (
        "other/m.tif",
        "other/M.tif",
        "train.tif",
        "camera.tif",
        "all/camera_offset_map.tif",
        "d_offset_map.tif",
    )
    for name in (*FILES, *more, "offset.tif"):
        Path(name).write_bytes(name.encode())
    for name in CAMERAS:
        Path(name).write_text(yaml.safe_dump(CAMERA))
    maps = {name: value for name, value in CAMERA.items() if name != "baseline"} | {
        "offset_map": "offset.tif"
    }
    Path("maps.yaml").write_text(yaml.safe_dump(maps))
    Path("measured.yaml").write_text("camera: {file: maps.yaml}\n")
    for name in RECIPES:
        Path(name).write_text("seed: 1\n")
    Path("linked.csv").symlink_to("t.csv")
    os.link("t.csv", "hard.csv")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def call(verb: str, arguments: str) -> Result:
    return CliRunner().invoke(app, [*verb.split(), *arguments.split()])


def verbs(group: typer.Typer, *names: str) -> dict[str, Callable[..., None]]:
    """The functions behind all commands, by what a user types."""
    found = {}
    for command in group.registered_commands:
        assert command.callback is not None
        found[" ".join((*names, command.name or command.callback.__name__))] = command.callback
    for within in group.registered_groups:
        assert within.typer_instance is not None
        found |= verbs(within.typer_instance, *names, str(within.name))
    return found


def options_that_name_files() -> list[tuple[str, str]]:
    named = []
    for verb, function in verbs(app).items():
        for name, hint in get_type_hints(function, include_extras=True).items():
            kind, *about = get_args(hint) or (hint,)
            takes_path = Path in (
                kind,
                *get_args(kind),
                *(a for k in get_args(kind) for a in get_args(k)),
            )
            if (
                takes_path
                and isinstance(about[0], OptionInfo)
                and name not in ("out", "truth", "log", "picture")
            ):
                named.append((verb, f"--{name.replace('_', '-')}"))
    return named


def test_every_verb_that_writes_files_is_here() -> None:
    writing = {
        verb
        for verb, function in verbs(app).items()
        if "out" in inspect.signature(function).parameters
    }
    assert writing == set(COLLISIONS) == set(ELSEWHERE)
    assert {verb for verb, _ in options_that_name_files()} == set(VICTIMS)


@pytest.mark.parametrize(
    ("verb", "arguments"), [(verb, words) for verb, all_ in COLLISIONS.items() for words in all_]
)
def test_nothing_that_is_read_is_overwritten(place: Path, verb: str, arguments: str) -> None:
    before = contents(place)
    result = call(verb, arguments)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("decode: ")]
    assert "written" in line or "overwrit" in line
    assert contents(place) == before


@pytest.mark.parametrize(("verb", "option"), options_that_name_files())
def test_no_file_that_an_option_names_is_overwritten(place: Path, verb: str, option: str) -> None:
    """Whatever options a verb is given later on."""
    arguments, victim = VICTIMS[verb]
    Path(victim).write_text(yaml.safe_dump(CAMERA))
    before = contents(place)
    result = call(verb, f"{arguments} {option} {victim}")
    assert result.exit_code == 2, result.output
    assert f"{victim} would be written over {victim}, which is read" in result.stderr
    assert contents(place) == before


@pytest.mark.parametrize("verb", ELSEWHERE)
def test_a_folder_that_is_not_there_is_said_before_the_work(place: Path, verb: str) -> None:
    before = contents(place)
    result = call(verb, ELSEWHERE[verb])
    assert result.exit_code == 2, result.output
    assert "nowhere" in result.stderr
    assert "folder" in result.stderr
    assert contents(place) == before


def test_a_folder_in_the_way_of_one_file_is_said_before_the_others_are_touched(place: Path) -> None:
    Path("out/m.png").mkdir()
    Path("out/m.csv").write_text("old")
    result = call("localize", "m.tif --model gaussian-2d -o out")
    assert result.exit_code == 2
    assert "m.png: a folder of that name is in the way" in result.stderr
    assert contents(place / "out") == {"m.csv": b"old"}


def test_a_table_written_again_takes_its_sidecar_along(place: Path) -> None:
    """The YAML of an older table of that name is no user's file."""
    check_outputs(localize_files(place / "t.tif", place), inputs=[place / "m.tif"])


def test_what_a_killed_process_left_is_swept_before_the_work(place: Path) -> None:
    (place / f"{PREFIX}-0123abcd.csv").write_text("half a table")
    check_outputs(localize_files(Path("fresh.tif"), place))
    assert not list(place.glob(".unfinished*"))


def test_a_folder_that_can_be_made_is_not_made_by_the_check(place: Path) -> None:
    fresh = place / "fresh" / "folder"
    (place / "folder").mkdir()
    check_outputs(run_files(Path("m.tif"), fresh), inputs=["m.tif"], folder=fresh)
    assert not (place / "fresh").exists()


def test_a_movie_that_is_the_working_folder_gives_its_name(place: Path) -> None:
    names = [path.name for path in localize_files(Path("."), Path("out"), ["csv", "png"])]
    assert names == [f"{place.name}.csv", f"{place.name}.png"]
