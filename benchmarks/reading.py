"""Reading movies of every format against reading as many bytes of a plain file, and how soon a TIFF
file of many pages opens.

    python benchmarks/reading.py [--frames 512] [--side 128] [--pages 120000 1000000]

Files are made in a temporary folder and lie in the system's cache; each is read in chunks of 64
frames, in turns with a plain file.  Ratios are of the least processor times of one run.
"""

from __future__ import annotations

import argparse
import runpy
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

from decode.io.movies import open_movie, write_movie

WRITERS = runpy.run_path(
    str(Path(__file__).parents[1] / "tests" / "io" / "movies" / "microscopes.py")
)["WRITERS"]
CHUNK = 64


def least(work: Callable[[], object], turns: int) -> tuple[float, float]:
    """Least processor and wall time of several turns, s."""
    times = []
    for _ in range(turns):
        wall, processor = time.perf_counter(), time.process_time()
        work()
        times.append((time.process_time() - processor, time.perf_counter() - wall))
    return min(cpu for cpu, _ in times), min(wall for _, wall in times)


def read_all(path: Path) -> None:
    with open_movie(path) as movie:
        for start in range(0, len(movie), CHUNK):
            movie.read(start, min(len(movie), start + CHUNK))


def read_plain(path: Path, chunk_bytes: int) -> None:
    for start in range(0, path.stat().st_size, chunk_bytes):
        np.fromfile(path, np.uint8, chunk_bytes, offset=start)


def write_pages(folder: Path, counts: npt.NDArray[np.uint16], **options: str) -> Path:
    path = folder / "pages.tif"
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for frame in counts[:, 0, 0]:
            tiff.write(frame, contiguous=False, metadata=None, **options)
    return path


def write_imagej(folder: Path, counts: npt.NDArray[np.uint16]) -> Path:
    write_movie(folder / "movie.tif", counts[:, 0, 0])
    return folder / "movie.tif"


def formats(frames: int, side: int, turns: int) -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(100, (frames, 1, 1, side, side)).astype(np.uint16)
    writers = {
        "imagej": write_imagej,
        "tiff pages": write_pages,
        "tiff pages, zlib": lambda *given: write_pages(*given, compression="zlib"),
        **WRITERS,
    }
    print(f"{frames} frames of {side} x {side}, {counts.nbytes / 2**20:.0f} MiB")
    print("| format | frames/s | plain file | share of the plain rate |\n|---|---|---|---|")
    for name, write in writers.items():
        with tempfile.TemporaryDirectory() as folder:
            path = write(Path(folder), counts)
            plain = Path(folder) / "plain.bin"
            plain.write_bytes(counts.tobytes())
            chunk = CHUNK * side * side * 2
            read_all(path)  # what is imported for it
            of_movie, of_plain = [], []
            for _ in range(turns):
                of_movie.append(least(partial(read_all, path), 1)[0])
                of_plain.append(least(partial(read_plain, plain, chunk), 1)[0])
        own, bare = min(of_movie), min(of_plain)
        print(f"| {name} | {frames / own:.0f} | {frames / bare:.0f} | {bare / own:.2f} |")


def pages(n: int, side: int = 16) -> None:
    """Open a file of `n` pages at its end."""
    frame = np.zeros((side, side), np.uint16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pages.tif"
        with tifffile.TiffWriter(path, bigtiff=True) as tiff:
            for i in range(n):
                frame[0, :2] = i % 65536, i // 65536
                tiff.write(frame, contiguous=False, metadata=None)

        def last() -> None:
            with open_movie(path, frames=slice(-100, None)) as movie:
                low, high = movie.read(99, 100)[0, 0, :2].tolist()
            assert low + 65536 * high == n - 1

        cpu, wall = least(last, 3)
    print(f"{n} pages: the last frame after {cpu:.2f} s of processor, {wall:.2f} s by the clock")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=512)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--pages", type=int, nargs="*", default=[120_000])
    args = parser.parse_args()
    formats(args.frames, args.side, args.turns)
    for n in args.pages:
        pages(n)


if __name__ == "__main__":
    main()
