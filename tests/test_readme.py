"""The examples of README and docs run, in order, in a folder with copies of the sample data, the
recipes, and the table of the first tutorial."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tifffile
import yaml
from typer.testing import CliRunner

from decode.cli import app
from decode.io.movies import write_movie
from decode.models import shipped_models

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
MADE = ("reference", "models")
"""folders of pages that are made from the code"""

BLOCK = re.compile(
    r"(?:<!-- (?P<note>[^>]*?) -->\s*\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$",
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

FIRST = (
    "localize sample_data/blinking_2d.tif --model gaussian-2d --camera sample_data/camera.yaml "
    "-o out"
)


class Example(NamedTuple):
    page: str
    line: int
    language: str
    code: str
    note: str
    """why it is not run, or ends with another exit code than 0"""

    @property
    def exit_code(self) -> int:
        said = re.match(r"exit code (\d+): .", self.note)
        return int(said[1]) if said else 0


def pages() -> list[Path]:
    """README and tutorials first, as a reader does."""
    written = [page for page in DOCS.rglob("*.md") if page.relative_to(DOCS).parts[0] not in MADE]
    notebooks = [page for page in written if page.read_text().startswith("---\nfile_format")]
    rest = sorted(
        set(written) - set(notebooks),
        key=lambda page: (page.parent.name != "tutorials", page.name != "first.md", page),
    )
    return [ROOT / "README.md", *rest]


def examples() -> list[Example]:
    return [
        Example(
            str(page.relative_to(ROOT)),
            text.count("\n", 0, m.start("code")),
            m["language"],
            m["code"],
            m["note"] or "",
        )
        for page in pages()
        for text in [page.read_text(encoding="utf-8")]
        for m in BLOCK.finditer(text)
        if m["language"] in ("python", "console", "yaml")
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
def done(folder: Path) -> set[str]:
    """Commands that ended well, which other pages need not run again; the first tutorial's did."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        result = CliRunner().invoke(app, shlex.split(FIRST))
        assert result.exit_code == 0, result.output
    return {FIRST}


@pytest.fixture(scope="module")
def namespaces() -> dict[str, dict[str, Any]]:
    """What one Python example of a page defines, the next may use."""
    return {}


def test_there_are_examples_of_all_kinds() -> None:
    assert {"python", "console", "yaml"} <= {example.language for example in examples()}


def test_no_command_hides_from_the_tests() -> None:
    hidden = {
        str(page.relative_to(ROOT)): found
        for page in pages()
        for rest in [BLOCK.sub(lambda m: m[0] if m["language"] == "text" else "", page.read_text())]
        if (found := re.findall(r"^ *(?:\$ )?decode [a-z-]+ .* -o .*", rest, re.M))
    }
    assert hidden == {}


def test_an_example_that_is_not_run_says_why() -> None:
    notes = {example.note for example in examples()} - {""}
    assert all(re.match(r"(not run|exit code \d+): .{10}", note) for note in notes), notes


@pytest.mark.parametrize(
    "example", examples(), ids=lambda example: f"{example.page} line {example.line}"
)
def test_example(
    example: Example,
    folder: Path,
    done: set[str],
    namespaces: dict[str, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if example.note.startswith("not run"):
        pytest.skip(f"marked on the page: {example.note}")
    if "gaussian-2d" not in shipped_models():
        pytest.skip("the examples build on the model gaussian-2d, which is not shipped")
    monkeypatch.chdir(folder)
    if example.language == "yaml":
        assert yaml.safe_load(example.code)
        return
    if example.language == "python":
        where = f"{example.page}, line {example.line}"
        exec(compile(example.code, where, "exec"), namespaces.setdefault(example.page, {}))
        return
    for _, *arguments in commands(example.code):
        if arguments[0] == "train":
            arguments += [word for setting in TINY_TRAINING for word in ("--set", setting)]
        command = shlex.join(arguments)
        if command not in done:
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == example.exit_code, f"decode {command}: {result.output}"
            done.add(command)
