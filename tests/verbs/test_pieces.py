"""Work that was stopped goes on where it was, and its files are those of work that was not."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from decode.emitters import EmitterSet
from decode.io.psfs import PSFFile
from decode.io.tables import read_table
from decode.optics.gaussian import GaussianPSF
from decode.verbs import localize, pieces, polish, sweep
from decode.verbs.localize import localize_file
from decode.verbs.pieces import Pieces

MOVIE = Path("sample_data/blinking_2d.tif")
PSF = PSFFile(psf=GaussianPSF(95.0, pixel_size_nm=100.0), z_range_nm=(0.0, 0.0))
OPTIONS: dict[str, Any] = {
    "camera": "sample_data/camera.yaml",
    "psf_sigma_nm": 95.0,
    "frames": slice(5, 85),
    "roi": (slice(8, 32), slice(0, 24)),
    "formats": ("csv", "parquet", "png"),
    "polish": False,
    "device": "cpu",
}
"""three pieces of at most 32 frames"""

KILLED = """
import os, signal, sys
from decode.verbs import assemble, pieces, polish, sweep
from decode.verbs.localize import localize_file
from decode.io.tables.together import TableWriters

sweep.CHUNK_FRAMES["cpu"] = (8, 16)
polish.BLOCK_FRAMES = pieces.PIECE_FRAMES = 32
where, at = sys.argv[3].split(":")
owner = {"write": pieces.Pieces, "picture": assemble, "table": TableWriters}[where]
name = {"write": "write", "picture": "_drawn", "table": "write"}[where]
work, calls = getattr(owner, name), []

def killing(*arguments, **options):
    calls.append(work(*arguments, **options))
    if len(calls) == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
    return calls[-1]

setattr(owner, name, killing)
localize_file(sys.argv[1], "gaussian-2d", sys.argv[2], **eval(sys.argv[4]))
"""
"""a real process that gets SIGKILL just after one of its calls"""


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 32 frames."""
    monkeypatch.setitem(sweep.CHUNK_FRAMES, "cpu", (8, 16))
    monkeypatch.setattr(polish, "BLOCK_FRAMES", 32)
    monkeypatch.setattr(pieces, "PIECE_FRAMES", 32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of work that nothing stopped."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        assert work(out) == ("", 80)
    return out


def work(out: Path, **options: Any) -> tuple[str, int]:
    """Localize to the end; what it says of earlier work, and the frames it does."""
    begun, done = "", []
    for progress in localize_file.steps(MOVIE, "gaussian-2d", out, **OPTIONS | options):
        if progress.detail is not None:
            begun, done = progress.detail.begun, [*done, progress.detail.frames_done]
    return begun, done[-1] - done[0]


def stopped(out: Path, frames: int, **options: Any) -> None:
    """Localize until a number of frames is done, and leave."""
    steps = localize_file.steps(MOVIE, "gaussian-2d", out, **OPTIONS | options)
    for progress in steps:
        if progress.detail is not None and progress.detail.frames_done >= frames:
            break
    steps.close()


def assert_same_files(one: Path, two: Path) -> None:
    """The same files to the last value, but for their own paths."""
    names = sorted(file.name for file in one.iterdir())
    assert names == sorted(file.name for file in two.iterdir())
    assert names[0] == "blinking_2d.csv"
    for name in names:
        if not name.endswith(".parquet"):
            assert (one / name).read_bytes() == (two / name).read_bytes(), name
            continue
        table, other = read_table(one / name), read_table(two / name)
        assert len(table) > 100
        assert table.metadata == other.metadata
        for column, values in table.columns().items():
            torch.testing.assert_close(
                values, other.columns()[column], rtol=0, atol=0, equal_nan=True
            )


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"polish": True}, marks=pytest.mark.slow),
        {"polish": True, "psf": PSF},
        pytest.param(
            {"samples": 2, "seed": 3, "formats": ("csv", "parquet")}, marks=pytest.mark.slow
        ),
    ],
    ids=["network", "refined", "decided", "draws"],
)
def test_stopped_work_goes_on_and_its_files_are_the_same(
    tmp_path: Path, options: Mapping[str, Any]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert work(whole, **options) == ("", 80)
    stopped(parts, 64, **options)
    assert sorted(parts.iterdir()) == [parts / "blinking_2d.parts"]
    # one more piece is missing than the last
    (parts / "blinking_2d.parts" / "00000000.parquet").unlink()
    begun, frames = work(parts, **options)
    assert begun == "goes on from frame 32 of 80"
    assert frames == 48
    assert_same_files(whole, parts)


@pytest.mark.parametrize(
    "moment",
    [
        "write:2",
        pytest.param("write:1", marks=pytest.mark.slow),
        pytest.param("write:3", marks=pytest.mark.slow),
        pytest.param("table:3", marks=pytest.mark.slow),
        pytest.param("picture:1", marks=pytest.mark.slow),
    ],
)
def test_after_sigkill_the_same_call_goes_on(tmp_path: Path, whole: Path, moment: str) -> None:
    parts = tmp_path / "parts"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(MOVIE), str(parts), moment, repr(OPTIONS)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    where, number = moment.split(":")
    assert not (parts / "blinking_2d.png").exists()
    begun, frames = work(parts)
    there = 32 * int(number) if where == "write" else 80
    assert begun == f"goes on from frame {min(there, 80)} of 80"
    assert frames == max(80 - there, 0)
    assert_same_files(whole, parts)


def test_a_full_disk_costs_nothing_that_was_done(tmp_path: Path, whole: Path) -> None:
    """The limit on the size of a file is below that of a piece's table, then that of the CSV."""
    parts = tmp_path / "parts"
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit, tables in ((5_000, 0), (30_000, 3)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(OSError, match=r"cannot write .*reached .*run again"):
                work(parts)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert len([*tmp_path.rglob("0*.parquet")]) == tables
        assert not [*tmp_path.rglob(".unfinished*")]
    begun, frames = work(parts)
    assert begun == "goes on from frame 80 of 80"
    assert frames == 0
    assert_same_files(whole, parts)


def begun(folder: Path, fresh: bool = False, **deciding: str) -> Pieces:
    return Pieces.begin(folder / "movie.parts", deciding, n_frames=80, size=32, fresh=fresh)


def some(frame: int) -> EmitterSet:
    return EmitterSet(
        frame=torch.tensor([frame]), xyz=torch.rand(1, 3), photons=torch.tensor([100.1])
    )


def test_what_decides_the_molecules_begins_anew_and_says_what_changed(tmp_path: Path) -> None:
    begun(tmp_path, model="a", threshold="0.5").write(range(32, 64), some(40))
    same = begun(tmp_path, model="a", threshold="0.5")
    assert (same.begun, same.missing()) == (
        "goes on from frame 32 of 80",
        [range(32), range(64, 80)],
    )
    other = begun(tmp_path, model="b", threshold="0.5")
    assert other.begun == "begins anew: unlike in the unfinished work, model changed"
    assert other.missing() == [range(80)]
    other.write(range(64, 80), some(70))
    anew = begun(tmp_path, fresh=True, model="b", threshold="0.5")
    assert (anew.begun, anew.missing()) == ("begins anew", [range(80)])


def test_pieces_are_exact_and_damaged_ones_are_found_again(tmp_path: Path) -> None:
    pieces, first = begun(tmp_path, model="a"), some(3)
    pieces.write(range(32), first)
    pieces.write(range(32, 64), EmitterSet.empty())
    (_, found), (piece, nothing) = pieces.read()
    assert torch.equal(found.xyz, first.xyz)
    assert found.photons.dtype == torch.float32
    assert torch.equal(found.photons, first.photons)
    assert (piece, len(nothing)) == (range(32, 64), 0)
    os.truncate(pieces.folder / "00000000.parquet", 100)
    assert begun(tmp_path, model="a").missing() == [range(32), range(64, 80)]


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    own = tmp_path / "blinking_2d.parts" / "thesis.txt"
    own.parent.mkdir()
    own.write_text("years")
    with pytest.raises(ValueError, match=r"blinking_2d\.parts is needed for unfinished work"):
        work(tmp_path)
    assert own.read_text() == "years"


def test_work_without_a_piece_leaves_nothing(tmp_path: Path) -> None:
    stopped(tmp_path, 8)
    assert not [*tmp_path.iterdir()]


def test_the_manifest_says_what_the_pieces_are_of(tmp_path: Path) -> None:
    stopped(tmp_path, 64)
    manifest = json.loads((tmp_path / "blinking_2d.parts" / "manifest.json").read_text())
    assert manifest["frames"] == [80, 32]
    assert manifest["deciding"].keys() >= {"movie", "model", "camera", "PSF", "version"}


def test_pieces_are_whole_blocks_of_whole_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for side in (16, 64, 128, 300, 512, 700, 2048):
        for where in (torch.device("cpu"), torch.device("cuda")):
            shape = side, side
            chunk = sweep.chunk_frames(shape, where)
            block = polish.block_frames(shape, chunk)
            piece = pieces.piece_frames(shape, where)
            assert chunk % 2 == block % chunk == piece % block == 0
            assert 8 <= piece <= 1024
    assert localize.piece_frames((128, 128), torch.device("cpu")) == 1024
