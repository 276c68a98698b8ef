"""A movie that several processes share has the molecules that one process finds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from decode.emitters import EmitterSet
from decode.verbs import pieces, polish
from decode.verbs.crew import Crew, Ended, _tasks, done_by, find_together
from decode.verbs.localize import localize_file
from decode.verbs.merge import merge, unfinished_in
from decode.verbs.pieces import Pieces

MOVIE = Path("sample_data/blinking_2d.tif")
OPTIONS: dict[str, Any] = {
    "camera": "sample_data/camera.yaml",
    "psf_sigma_nm": 95.0,
    "frames": slice(0, 136),
    "roi": (slice(8, 24), slice(0, 16)),
    "formats": ("csv", "png"),
    "device": "cpu",
}


CUT = """
import sys
from decode.verbs import pieces, polish
polish.BLOCK_FRAMES = pieces.PIECE_FRAMES = 64
from decode.__main__ import main
main()
"""


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pieces, of 64 frames and 8."""
    monkeypatch.setattr(polish, "BLOCK_FRAMES", 64)
    monkeypatch.setattr(pieces, "PIECE_FRAMES", 64)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that one process writes."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        localize_file(MOVIE, "gaussian-2d", out, **OPTIONS)
    return out


def assert_same_files(one: Path, two: Path) -> None:
    names = sorted(file.name for file in one.iterdir())
    assert (
        names
        == sorted(file.name for file in two.iterdir())
        == [
            "blinking_2d.csv",
            "blinking_2d.png",
        ]
    )
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def workers_of(parent: int) -> list[int]:
    """Processes that a process has spawned to localize."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_text()
        except OSError:
            continue
        if int(stat[1]) == parent and "multiprocessing.spawn" in command:
            found.append(int(folder.name))
    return found


def test_shares_that_are_merged_are_the_whole_movie(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for i in (2, 1):
        with pytest.raises(ValueError, match="holds no shares"):
            unfinished_in(tmp_path)
        share = localize_file(MOVIE, "gaussian-2d", out, shard=(i, 2), **OPTIONS)
        assert share.files == ()
        (folder,) = unfinished_in(out)
        if i == 2:
            with pytest.raises(ValueError, match=r"frames 0 to 63 .* are not localized yet"):
                merge(folder)
    with pytest.raises(ValueError, match="threshold changed; delete it, or finish it"):
        localize_file(MOVIE, "gaussian-2d", out, shard=(1, 2), threshold=0.7, **OPTIONS)
    merge(folder)
    assert_same_files(whole, out)


@pytest.mark.slow
def test_shares_of_processes_that_begin_together_are_merged(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = f"localize {MOVIE} --model gaussian-2d -o {out} --camera {OPTIONS['camera']}"
    stated = " --psf-sigma 95 --roi 8:24,0:16 --frames 0:136 --format csv --format png"
    shares = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                CUT,
                *(command + stated).split(),
                "--device",
                "cpu",
                "--shard",
                f"{i}/2",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in (1, 2)
    ]
    for share in shares:
        _, said = share.communicate(timeout=200)
        assert share.returncode == 0, said
    assert [file.name for file in out.iterdir()] == ["blinking_2d.parts"]
    (folder,) = unfinished_in(out)
    done = merge(folder)
    assert sorted(file.name for file in done.files) == [
        "blinking_2d.csv",
        "blinking_2d.png",
    ]
    assert_same_files(whole, out)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="workers are found in /proc")
def test_a_worker_that_is_killed_costs_nothing(whole: Path, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill() -> None:
        while not killed:
            time.sleep(0.2)
            some = workers_of(os.getpid())
            if len(some) == 2 and (tmp_path / "blinking_2d.parts" / "00000000.parquet").exists():
                os.kill(some[0], signal.SIGKILL)
                killed.append(some[0])

    Thread(target=kill, daemon=True).start()
    localize_file(MOVIE, "gaussian-2d", tmp_path, workers=2, **OPTIONS)
    assert killed
    assert_same_files(whole, tmp_path)
    assert workers_of(os.getpid()) == []


@contextmanager
def dask(n_workers: int) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and workers as users start them; the address, and the workers' nannies."""
    distributed = pytest.importorskip("distributed")
    assert distributed
    module = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    with subprocess.Popen(
        [*module, "--host", "127.0.0.1", "--port", "0", "--no-dashboard"],
        stderr=subprocess.PIPE,
        text=True,
    ) as scheduler:
        assert scheduler.stderr is not None
        address = ""
        for line in scheduler.stderr:
            if "Scheduler at:" in line:
                address = line.split()[-1]
                break
        Thread(target=scheduler.stderr.read, daemon=True).start()
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1"]
        workers = [
            subprocess.Popen([*worker, "--no-dashboard"], stderr=subprocess.DEVNULL)
            for _ in range(n_workers)
        ]
        try:
            yield address, workers
        finally:
            for process in (*workers, scheduler):
                process.terminate()
            for process in workers:
                process.wait()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="workers are found in /proc")
def test_dask_workers_of_which_one_is_killed(whole: Path, tmp_path: Path) -> None:
    killed: list[int] = []
    with dask(2) as (address, nannies):

        def kill() -> None:
            while not killed:
                time.sleep(0.2)
                if (tmp_path / "blinking_2d.parts" / "00000000.parquet").exists():
                    some = workers_of(nannies[0].pid)
                    os.kill(some[0], signal.SIGKILL)
                    killed.append(some[0])

        Thread(target=kill, daemon=True).start()
        localize_file(MOVIE, "gaussian-2d", tmp_path, scheduler=address, **OPTIONS)
    assert killed
    assert_same_files(whole, tmp_path)


def test_a_scheduler_that_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("decode.verbs.crew.CONNECTING_S", 1)
    pytest.importorskip("distributed")
    with pytest.raises(OSError, match="there is no Dask scheduler at tcp://127"):
        localize_file(
            MOVIE,
            "gaussian-2d",
            tmp_path,
            scheduler="tcp://127.0.0.1:9",
            **OPTIONS,
        )
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"pip install 'decode-smlm\[distributed\]'"):
        localize_file(MOVIE, "gaussian-2d", tmp_path, scheduler="tcp://x", **OPTIONS)
    assert not [*tmp_path.iterdir()]


def test_a_process_that_takes_other_work_in_the_same_folder_notices(tmp_path: Path) -> None:
    folder = tmp_path / "blinking_2d.parts"
    counts = []
    for threshold in (0.5, 0.9):
        options = OPTIONS | {"frames": slice(0, 80), "threshold": threshold}
        localize_file(MOVIE, "gaussian-2d", tmp_path, shard=(1, 2), **options)
        assert done_by(str(folder), 0, 80) == ""
        some = Pieces.of(folder)
        assert some.missing() == []
        counts.append(some.count([range(64, 80)]))
        some.remove()
    assert counts[0] > counts[1] > 0
    assert "manifest.json" in done_by(str(folder), 0, 80)


class Doomed(Crew):
    """Workers of a play, which die at some pieces, as where memory runs out."""

    def __init__(self, some: Pieces, size: int, deadly: dict[int, int]) -> None:
        self.pieces, self._size, self.deadly = some, size, deadly
        self.running: list[range] = []
        self.most = 0

    @property
    def size(self) -> int:
        return self._size

    @property
    def n_busy(self) -> int:
        return len(self.running)

    def begin(self, frames: range) -> None:
        self.running.append(frames)
        assert len(self.running) <= self._size

    def ended(self) -> list[Ended]:
        frames = self.running.pop(0)
        for piece in self.pieces.within(frames):
            if self.deadly.get(piece.start, 0) > 0:
                self.deadly[piece.start] -= 1
                return [Ended(frames, deaths=1)]
            if self.pieces.missing([piece]):
                self.pieces.write(piece, EmitterSet.empty())
        return [Ended(frames)]

    def close(self) -> None:
        self.running.clear()


def test_a_piece_that_kills_is_given_up_and_the_others_go_on(tmp_path: Path) -> None:
    some = Pieces.begin(tmp_path / "movie.parts", {}, n_frames=95, size=10)
    crew = Doomed(some, 2, {30: 99, 70: 2})
    with pytest.raises(RuntimeError, match=r"frames 30 to 39 .* ended 3 times"):
        for _ in find_together(some, crew):
            pass
    assert crew.deadly == {30: 99 - 3, 70: 0}
    assert some.missing() == [range(30, 40)]


def test_tasks_are_of_successive_pieces_and_about_as_many_as_asked_for() -> None:
    some = [range(i, i + 10) for i in (0, 10, 20, 30, 50, 60, 70)]
    assert _tasks(some, 3) == [range(30), range(30, 40), range(50, 80)]
    assert _tasks(some, 99) == some
    assert _tasks(some, 1) == [range(40), range(50, 80)]
    assert _tasks([], 4) == []
