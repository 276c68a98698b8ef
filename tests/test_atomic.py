"""Files appear whole or not at all, and what dead processes left is swept away."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from decode.atomic import PREFIX, atomic, check_writable, sweep

HOLD = """
import sys, time
from decode.atomic import atomic
with atomic(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("begun", flush=True)
    time.sleep(60)
"""


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text(f"new {1 / 0}")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_blocks_within_each_other_are_one(tmp_path: Path) -> None:
    with atomic(tmp_path / "a.txt") as outer:
        with atomic(outer) as inner:
            inner.write_text("new")
        sweep(tmp_path)
        assert outer.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def write_array(path: Path) -> None:
    with path.open("wb") as file:
        np.ones(100_000).tofile(file)


def write_image(path: Path) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (300, 300), np.uint8)).save(
        path, format="PNG"
    )


@pytest.mark.parametrize("write", [write_array, write_image])
def test_the_cause_is_said_even_where_a_library_does_not(
    tmp_path: Path,
    write: Callable[[Path], None],
    limited_files: Callable[[int], AbstractContextManager[None]],
) -> None:
    with (
        limited_files(20_000),
        pytest.raises(
            OSError, match=r"cannot write .*a\.bin: the limit on the size of a file is reached"
        ),
        atomic(tmp_path / "a.bin") as temporary,
    ):
        write(temporary)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere/a.txt", "the folder .*nowhere does not exist, make it first"),
        ("folder", "a folder of that name is in the way"),
        ("file/a.txt", "is a file, not a folder"),
        ("x" * 300 + ".csv", "File name too long"),
    ],
)
def test_what_cannot_be_written_is_said(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("a file")
    with pytest.raises(OSError, match=f"cannot write .*{sentence}"):
        check_writable(tmp_path / name)
    check_writable(tmp_path / ("y" * 250 + ".csv"))
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "file"}


@pytest.mark.skipif(sys.platform == "win32", reason="no locks to tell the living by")
def test_the_dead_are_swept_and_the_living_are_not(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "a.txt"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        sweep(tmp_path)
        (living,) = tmp_path.iterdir()
        assert living.name.startswith(PREFIX)
        process.send_signal(signal.SIGKILL)
    (tmp_path / ".unfinished-of-another-machine").write_text("half")
    assert living.exists()
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".unfinished-of-another-machine"]
