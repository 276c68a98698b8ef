"""A movie is localized while it is written: no frame is lost or done twice, whatever happens."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch
import yaml

from decode.emitters import EmitterSet
from decode.io.tables import read_table
from decode.network.localizer import Localizer, NetworkConfig
from decode.network.record import ModelRecord
from decode.progress import Progress, followed
from decode.verbs.batch import Options
from decode.verbs.localize import localize_file
from decode.verbs.watch import Update, watch
from decode.verbs.watch.blocks import Blocks
from decode.verbs.watch.figures import RECENT_FRAMES, Figures
from decode.verbs.watch.growing import POLL_S, Ended, Growing, movies_in

CAMERA = {"pixel_size_nm": 100, "baseline": 100, "e_per_adu": 0.5, "qe": 0.8, "read_noise_e": 1.5}
Frames = npt.NDArray[np.uint16]


def frames_of(n: int, side: int = 32) -> Frames:
    return (np.random.default_rng(0).poisson(60.0, (n, side, side)) + 100).astype(np.uint16)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """A camera, and an untrained model that sees many molecules."""
    folder = tmp_path_factory.mktemp("bench")
    torch.manual_seed(5)
    network = NetworkConfig(frame_widths=(8, 8), sequence_widths=(8, 8), head_width=8)
    model = Localizer(network, {"psf_sigma_px": (0.8, 2.0)})
    with torch.no_grad():
        assert model.out.bias is not None
        model.out.weight[0] *= 20
        model.out.bias[0] = -1
    model.record = ModelRecord(config={"description": "untrained"})
    model.save(folder / "model.safetensors")
    (folder / "camera.yaml").write_text(yaml.safe_dump(CAMERA))
    return Options(
        model=str(folder / "model.safetensors"),
        camera=str(folder / "camera.yaml"),
        psf_sigma_nm=130.0,
        formats=("parquet", "png"),
        report=False,
    )


def write_pages(path: Path, frames: Frames) -> None:
    with tifffile.TiffWriter(path) as writer:
        for frame in frames:
            writer.write(frame, contiguous=False, metadata=None)


def by_frame(table: EmitterSet) -> list[int]:
    return torch.bincount(table.frame).tolist()


def whole(movie: Path, options: Options, out: Path) -> EmitterSet:
    """What `decode localize` finds in the finished movie."""
    arguments = options.arguments() | {"formats": ("parquet",)}
    localize_file(movie, options.model, out, **arguments)
    return read_table(out / f"{movie.stem}.parquet")


def grows(write: Callable[[], Iterator[Any]], pause_s: float) -> threading.Thread:
    """Writes step by step in a thread, as a microscope does."""

    def work() -> None:
        for _ in write():
            time.sleep(pause_s)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.parametrize("again", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_growing_movie_has_the_molecules_of_the_finished_one(
    options: Options, tmp_path: Path, again: bool
) -> None:
    frames, movie = frames_of(70), tmp_path / "movie.tif"
    (tmp_path / "other.tif").touch()  # is not the next one

    def write() -> Iterator[None]:
        with tifffile.TiffWriter(movie) as writer:
            for frame in frames:
                writer.write(frame, contiguous=False, metadata=None)
                writer._fh.flush()
                yield

    writing = grows(write, 0.02)
    updates: list[Update] = []
    steps = watch.steps(movie, tmp_path / "out", options, idle_s=2.0, again=again)

    def note(progress: Progress[Update | None]) -> None:
        if progress.detail is not None:
            updates.append(progress.detail)

    done = followed(steps, note)
    writing.join()
    seen = [update.frames for update in updates]
    assert seen == sorted(seen)
    assert seen[-1] == 70
    assert len(seen) > 2
    assert {path.suffix for path in done.files} == {".parquet", ".png"}
    live = read_table(tmp_path / "out" / "movie.parquet")
    finished = whole(movie, options, tmp_path / "whole")
    assert len(live) == len(finished) == updates[-1].molecules
    # blocks differ from chunks by the rounding of single precision, the movie as a whole by nothing
    torch.testing.assert_close(live.frame, finished.frame)
    torch.testing.assert_close(live.xyz, finished.xyz, rtol=0, atol=0 if again else 2e-3)
    assert any("network alone" in warning for warning in live.facts.warnings) is not again
    assert not (tmp_path / "out" / "movie.live").exists()


def test_who_stops_keeps_all_and_goes_on_where_he_was(options: Options, tmp_path: Path) -> None:
    frames, movie, out = frames_of(96), tmp_path / "movie.tif", tmp_path / "out"
    write_pages(movie, frames[:60])
    for progress in watch.steps(movie, out, options, idle_s=60.0):
        if progress.detail is not None and progress.detail.frames >= 32:
            break
    kept = read_table(out / "movie.parquet")
    assert len(set(kept.frame.tolist())) in (32, 58)
    blocks = {path.name: path.stat().st_mtime_ns for path in (out / "movie.live").iterdir()}
    tail = sorted(blocks)[-2]
    (out / "movie.live" / tail).with_name("000000999-000001010.parquet").write_bytes(b"gap")
    write_pages(movie, frames)
    watch(movie, out, options, idle_s=0.1, again=False)
    torch.testing.assert_close(
        read_table(out / "movie.parquet").frame,
        whole(movie, options, tmp_path / "whole").frame,
    )


def test_other_options_and_other_movies_begin_anew(tmp_path: Path) -> None:
    molecules = EmitterSet(frame=torch.zeros(1).long(), xyz=torch.ones(1, 3), photons=torch.ones(1))
    Blocks(tmp_path / "a.live", "one").append(range(16), molecules)
    assert Blocks(tmp_path / "a.live", "one").stop == 16
    assert Blocks(tmp_path / "a.live", "other").stop == 0
    (tmp_path / "b.live").mkdir()
    (tmp_path / "b.live" / "thesis.txt").write_text("")
    with pytest.raises(OSError, match=r"b\.live"):
        Blocks(tmp_path / "b.live", "one")
    assert (tmp_path / "b.live" / "thesis.txt").exists()


def test_frames_in_files_of_their_own_are_one_movie(options: Options, tmp_path: Path) -> None:
    frames, folder = frames_of(40), tmp_path / "frames"
    folder.mkdir()

    def write() -> Iterator[None]:
        for i, frame in enumerate(frames):
            tifffile.imwrite(folder / f"{i}.tif", frame)
            yield

    writing = grows(write, 0.01)
    done = watch(folder, tmp_path / "out", options, idle_s=2.0, again=False)
    writing.join()
    assert done.movies == (folder,)
    found = read_table(tmp_path / "out" / "frames.parquet")
    assert len(found) == len(whole(folder, options, tmp_path / "whole"))


def test_movies_that_appear_are_localized_one_after_the_other(
    options: Options, tmp_path: Path
) -> None:
    folder, out, marker = tmp_path / "raw", tmp_path / "out", tmp_path / "done.txt"
    folder.mkdir()

    def write() -> Iterator[None]:
        write_pages(folder / "1.tif", frames_of(20))
        yield
        (folder / "2.tif").write_text("no movie")
        yield
        write_pages(folder / "3.tif", frames_of(34))
        yield
        marker.touch()

    writing = grows(write, 0.7)
    done = watch(folder, out, options, until=marker, again=False)
    writing.join()
    assert [path.name for path in done.movies] == ["1.tif", "3.tif"]
    assert len(set(read_table(out / "1.parquet").frame.tolist())) == 20
    assert len(set(read_table(out / "3.parquet").frame.tolist())) == 34
    assert len(done.problems) == 1
    assert "2.tif" in done.problems[0]


def test_a_page_on_this_machine_shows_figures_and_picture(options: Options, tmp_path: Path) -> None:
    movie = tmp_path / "movie.tif"
    write_pages(movie, frames_of(40))
    steps = watch.steps(movie, tmp_path / "out", options, idle_s=60.0, port=0)
    address = next(steps).message
    shown = next(progress.detail for progress in steps if progress.detail is not None)

    def got(name: str) -> bytes:
        with urllib.request.urlopen(address + name) as answer:
            content: bytes = answer.read()
        return content

    assert address.startswith("http://127.0.0.1:")
    (update,) = json.loads(got("updates.json"))
    assert update["frames"] == shown.frames
    assert update["density_per_um2"] > 0
    assert got("picture.png?1").startswith(b"\x89PNG")
    assert "http" not in got("").decode()  # nothing from a network
    with pytest.raises(urllib.error.HTTPError):
        got("etc/passwd")
    steps.close()
    with pytest.raises(urllib.error.URLError):
        got("")


def test_nothing_that_appears_and_no_movie_are_said(options: Options, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        watch(tmp_path / "never.tif", tmp_path / "out", options, idle_s=0.1)
    (tmp_path / "text.tif").write_text("no movie")
    with pytest.raises(ValueError, match="is not a TIFF file"):
        watch(tmp_path / "text.tif", tmp_path / "out", options, idle_s=0.1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no movie appeared"):
        watch(tmp_path / "empty", tmp_path / "out", options, idle_s=0.1)
    with pytest.raises(ValueError, match="choose another folder"):
        watch(tmp_path, tmp_path, options)


def in_pages(folder: Path, frames: Frames) -> Iterator[Path]:
    path = folder / "movie.tif"
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for frame in frames:
            writer.write(frame, contiguous=False, metadata=None)
            writer._fh.flush()
            yield path


def in_one_piece(folder: Path, frames: Frames) -> Iterator[Path]:
    path = folder / "movie.tif"
    with tifffile.TiffWriter(path) as writer:
        for frame in frames:
            writer.write(frame, contiguous=True)
            writer._fh.flush()
            yield path


def in_files(folder: Path, frames: Frames) -> Iterator[Path]:
    for i, frame in enumerate(frames):
        tifffile.imwrite(folder / f"{i}.tif", frame)
        yield folder


def in_ndtiff(folder: Path, frames: Frames) -> Iterator[Path]:
    storage = pytest.importorskip("ndstorage")
    data = storage.NDTiffDataset(str(folder), name="m", summary_metadata={}, writable=True)
    data.initialize({})
    for time_point, frame in enumerate(frames):
        data.put_image({"time": time_point}, frame, {})
        data._index_file.flush()  # as Micro-Manager does
        yield Path(data.path)
    data.finish()
    data.close()


@pytest.mark.parametrize("write", [in_pages, in_one_piece, in_files, in_ndtiff])
def test_frames_are_seen_as_they_are_written(
    tmp_path: Path, write: Callable[[Path, Frames], Iterator[Path]]
) -> None:
    frames, seen = frames_of(12), []
    for n_written, path in enumerate(write(tmp_path, frames), start=1):
        movie = Growing(path, Ended(idle_s=60.0)).look()
        if movie is not None:
            with movie:
                seen.append(len(movie))
                assert len(movie) <= n_written
                whole = len(movie) - 1
                np.testing.assert_array_equal(movie.read(0, whole), frames[:whole])
    assert seen[-1] >= 11
    assert len(set(seen)) > 8
    with Growing(path, Ended(idle_s=60.0)).look() as movie:  # type: ignore[union-attr]
        np.testing.assert_array_equal(movie.read(0, 12), frames)


def test_the_last_frame_and_what_is_announced_are_not_believed(tmp_path: Path) -> None:
    movie = tmp_path / "movie.tif"
    write_pages(movie, frames_of(8))
    content = movie.read_bytes()
    growing = Growing(movie, Ended(idle_s=60.0))
    movie.write_bytes(content[:5])
    assert growing.look() is None
    movie.write_bytes(content[:-100])
    with growing.look() as seen:  # type: ignore[union-attr]
        assert 0 < len(seen) <= 8
    assert growing.changed
    assert not growing.changed


def test_an_acquisition_ends_when_idle_or_by_a_marker(tmp_path: Path) -> None:
    assert not Ended(idle_s=60.0)()
    ended = Ended(idle_s=0.05)
    time.sleep(0.06)
    assert ended()
    ended.written()
    assert not ended()
    assert Ended(idle_s=60.0, marker=tmp_path)()
    assert list(movies_in(tmp_path, lambda: True, lambda: None)) == []


def test_work_on_frames_is_no_time_to_rest_but_looks_that_take_long_are(tmp_path: Path) -> None:
    movie = tmp_path / "movie.tif"
    write_pages(movie, frames_of(8))
    growing = Growing(movie, Ended(idle_s=60.0))
    assert growing.changed
    assert 0 < growing.rest_s <= POLL_S
    time.sleep(1.1 * POLL_S)  # a block
    assert growing.rest_s == 0
    growing._took_s = 1.0
    assert growing.rest_s > 1.0


def test_checks_wait_until_no_frame_does(options: Options, tmp_path: Path) -> None:
    movie = tmp_path / "movie.tif"
    write_pages(movie, frames_of(300))
    steps = watch.steps(movie, tmp_path / "out", options, idle_s=30.0, again=False)
    updates: list[Update] = []
    for progress in steps:
        if progress.detail is not None:
            updates.append(progress.detail)
            if progress.detail.checks_frames:
                break
    steps.close()
    assert updates[-2].frames == updates[-1].frames == 298  # all that are whole
    assert updates[-1].checks_frames == 256


def test_figures_are_those_of_the_last_frames() -> None:
    figures = Figures("m", field_nm=(10_000.0, 5_000.0), area_um2=50.0)

    def molecules(n: int, span: range, photons: float) -> EmitterSet:
        return EmitterSet(
            frame=torch.full((n,), span.start),
            xyz=torch.tensor([[9_990.0, 4_990.0, 0.0]]).repeat(n, 1),
            photons=torch.full((n,), photons),
        )

    early, late = range(100), range(100, 100 + RECENT_FRAMES)
    figures.see(early, molecules(7, early, 9.0))
    figures.see(late, molecules(1000, late, 300.0))
    update = figures.update(frames_written=400)
    assert (update.frames, update.molecules, update.photons) == (late.stop, 1007, 300.0)
    assert update.density_per_um2 == pytest.approx(1000 / RECENT_FRAMES / 50.0)
    assert figures._counts[-1, -1] == 1007


WRITER = """
import sys, time, numpy as np, tifffile
path, n = sys.argv[1], int(sys.argv[2])
frames = (np.random.default_rng(0).poisson(60.0, (n, 128, 128)) + 100).astype("u2")
begun = time.time()
with tifffile.TiffWriter(path) as writer:
    for i, frame in enumerate(frames):
        time.sleep(max(0.0, begun + i / 20 - time.time()))
        writer.write(frame, contiguous=False, metadata=None)
        writer._fh.flush()
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_watcher_that_is_killed_loses_no_frame(options: Options, tmp_path: Path) -> None:
    movie, out = tmp_path / "movie.tif", tmp_path / "out"
    few = replace(options, threshold=0.7)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(movie), "600"])
    command = [
        *(sys.executable, "-m", "decode", "watch", str(movie), "-o", str(out), "--json"),
        *("--model", str(options.model), "--camera", str(options.camera), "--psf-sigma", "130"),
        *("--format", "parquet", "--idle", "5", "--no-again", "--no-page", "--no-report"),
        *("--threshold", "0.7"),
    ]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    for line in first.stdout:
        if json.loads(line)["frames"] >= 200:
            first.send_signal(signal.SIGKILL)
            break
    first.wait()
    before = {path.name: path.stat().st_mtime_ns for path in (out / "movie.live").iterdir()}
    second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert second.stdout is not None
    for line in second.stdout:
        if json.loads(line)["frames"] < 600:
            now = {path.name: path.stat().st_mtime_ns for path in (out / "movie.live").iterdir()}
            assert before.items() <= now.items()  # nothing is done twice
    assert second.wait() == 0
    assert writer.wait() == 0
    found = by_frame(read_table(out / "movie.parquet"))
    assert found == by_frame(whole(movie, few, tmp_path / "whole"))
