"""The examples of README and docs run, in order, in a folder with copies of the sample data and
the recipes."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tifffile
from typer.testing import CliRunner

from decode.cli import app
from decode.io.movies import write_movie
from decode.models import shipped_models

ROOT = Path(__file__).resolve().parents[1]

BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>.*?) -->\s*\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$",
    re.M | re.S,
)

TINY_TRAINING = (
    "training.steps=2",
    "training.size_px=16",
    "training.movies=1",
    "network.frame_widths=[4]",
    "network.sequence_widths=[4]",
    "network.head_width=4",
)


class Example(NamedTuple):
    page: str
    line: int
    language: str
    code: str
    reason: str | None
    """why it is not run"""


def examples() -> list[Example]:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [
        Example(
            page.name, text.count("\n", 0, m.start("code")), m["language"], m["code"], m["reason"]
        )
        for page in pages
        for text in [page.read_text(encoding="utf-8")]
        for m in BLOCK.finditer(text)
        if m["language"] in ("python", "console")
    ]


def commands(console: str) -> list[list[str]]:
    """The `$ decode ...` lines, without `$`; a backslash at the end of a line joins it with the
    next."""
    lines = console.replace("\\\n", " ").splitlines()
    return [shlex.split(line[2:], comments=True) for line in lines if line.startswith("$ decode ")]


def shorten(samples: Path) -> None:
    """Less of the sample data: 60 frames of the movies, every fourth plane of two beads."""
    for name in ("blinking_2d.tif", "blinking_3d.tif"):
        frames = tifffile.imread(samples / name)[:60]
        write_movie(samples / name, frames, pixel_size_nm=100.0)
    planes = tifffile.imread(samples / "beads_3d.tif")[::4, 8:58, 4:90]
    stated = {"axes": "ZYX", "unit": "um", "spacing": 0.08}
    tifffile.imwrite(
        samples / "beads_3d.tif", planes, imagej=True, resolution=(10, 10), metadata=stated
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    for name in ("sample_data", "configs"):
        shutil.copytree(ROOT / name, folder / name)
    shorten(folder / "sample_data")
    return folder


@pytest.fixture(scope="module")
def namespace() -> dict[str, Any]:
    """What one Python example defines, the next may use."""
    return {}


def test_there_are_examples_of_both_kinds() -> None:
    assert {"python", "console"} <= {example.language for example in examples()}


@pytest.mark.parametrize(
    "example", examples(), ids=lambda example: f"{example.page} line {example.line}"
)
def test_example(
    example: Example, folder: Path, namespace: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if example.reason:
        pytest.skip(f"marked in the README: {example.reason}")
    if "gaussian-2d" not in shipped_models():
        pytest.skip("the examples build on the model gaussian-2d, which is not shipped")
    monkeypatch.chdir(folder)
    if example.language == "python":
        exec(compile(example.code, f"{example.page}, line {example.line}", "exec"), namespace)
        return
    for _, verb, *arguments in commands(example.code):
        if verb == "train":
            arguments += [word for setting in TINY_TRAINING for word in ("--set", setting)]
        result = CliRunner().invoke(app, [verb, *arguments])
        assert result.exit_code == 0, f"decode {verb} {shlex.join(arguments)}: {result.output}"
