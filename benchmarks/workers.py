"""Several processes in one movie: what two gain over one, what Dask adds, and how far it reaches.

    python benchmarks/workers.py [--frames 8192] [--side 64] [--workers 256] [--seconds 10]

A long movie is localized by one process of one thread, by two of one thread each (`--workers 2`),
and by one worker of a Dask scheduler.  Wall times are of the machine as it is; CPU times tell what
two idle cores would gain: those of the one process over those of the busiest worker and of what is
done by one alone (tables, checks, picture).

How far Dask reaches is simulated: the CPU time a task of a real scheduler and of the caller is
measured, with workers whose tasks sleep, and many workers wait for one scheduler that takes as long
a task, one after the other.
"""

from __future__ import annotations

import argparse
import heapq
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory import FILE, SIGMA_NM, dense_frames

from decode.io.movies import write_movie
from decode.verbs import crew
from decode.verbs.localize import localize_file
from decode.verbs.pieces import Pieces

TICK = os.sysconf("SC_CLK_TCK")
SLEEP_S = 0.2


def cpu_s(pid: int) -> float:
    """CPU seconds of a process that is alive."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


@contextmanager
def seen(times: list[float]) -> Iterator[None]:
    """Within it, crews tell the CPU seconds of their processes before they end."""
    close = crew.Processes.close

    def closing(self: crew.Processes) -> None:
        times.extend(cpu_s(pid) for pid in self.pids if pid is not None)
        close(self)

    crew.Processes.close = closing  # type: ignore[method-assign]
    try:
        yield
    finally:
        crew.Processes.close = close  # type: ignore[method-assign]


def localized(path: Path, out: Path, **options: Any) -> tuple[float, float]:
    """Wall and CPU seconds of this process."""
    shutil.rmtree(out, ignore_errors=True)
    start, cpu = time.perf_counter(), time.process_time()
    localize_file(
        path, "gaussian-2d", out, camera=FILE, psf_sigma_nm=SIGMA_NM, device="cpu", **options
    )
    return time.perf_counter() - start, time.process_time() - cpu


def of_movie(frames: int, side: int) -> None:
    from distributed import Client, LocalCluster

    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "movie.tif"), Path(folder, "out")
        write_movie(path, dense_frames(side).numpy()[np.arange(frames) % 32])
        torch.set_num_threads(1)
        localized(path, out, frames=slice(0, 16))  # what is slow the first time
        wall, one = localized(path, out)
        print(f"one process: {wall:.1f} s, {one:.1f} CPU s", flush=True)
        workers: list[float] = []
        with seen(workers):
            wall_2, alone = localized(path, out, workers=2)
        print(
            f"two: {wall_2:.1f} s ({wall / wall_2:.2f} x), CPU s of the workers "
            f"{', '.join(f'{each:.1f}' for each in workers)}, of the caller {alone:.1f}: on idle "
            f"cores {one / (max(workers) + alone):.2f} x",
            flush=True,
        )
        with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
            address = cluster.scheduler_address
            localized(path, out, frames=slice(0, 16), scheduler=address)
            with Client(address) as client:
                (pid,) = client.run(os.getpid).values()
                before = cpu_s(pid)
                wall_d, own = localized(path, out, scheduler=address)
                worker = cpu_s(pid) - before
        print(
            f"one worker of Dask: {wall_d:.1f} s, {worker:.1f} CPU s, and {own:.1f} of scheduler "
            f"and caller: {(worker + own) / one - 1:+.1%} CPU, {wall_d / wall - 1:+.1%} time",
            flush=True,
        )


def asleep(folder: str, start: int, stop: int) -> str:
    """Stands for a piece."""
    time.sleep(SLEEP_S)
    Path(folder, f"{start}.done").touch()
    return ""


def cost_of_a_task(workers: int, rounds: int) -> float:
    """CPU seconds a task of scheduler, caller and the workers' own talk, all in this process."""
    from distributed import LocalCluster

    crew.done_by_dask, crew.PER_WORKER = asleep, rounds
    Pieces._is_there = lambda self, piece: (  # type: ignore[method-assign]
        self.folder / f"{piece.start}.done"
    ).exists()
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
    ):
        n = workers * rounds
        pieces = Pieces.begin(Path(folder, "movie.parts"), {}, n_frames=64 * n, size=64)
        with crew.Cluster(pieces.folder, cluster.scheduler_address) as team:
            cpu = time.process_time()
            for _ in crew.find_together(pieces, team):
                pass
            cpu = time.process_time() - cpu
    return cpu / n


def of_many(workers: int, seconds: float, rounds: int) -> None:
    """Workers that all wait for one scheduler, which takes the measured time a task, one after the
    other; pieces take 20 % more or less."""
    cost = cost_of_a_task(16, 12)
    rng = np.random.default_rng(0)
    lengths = rng.normal(seconds, seconds / 5, (workers * rounds,)).clip(0.1)
    free = [0.0] * workers  # when each worker asks for its next task
    heapq.heapify(free)
    scheduler = end = 0.0
    for length in lengths:
        asked = heapq.heappop(free)
        scheduler = max(asked, scheduler) + cost
        end = max(end, scheduler + length)
        heapq.heappush(free, scheduler + length)
    alone = [0.0] * workers
    for length in lengths:
        heapq.heapreplace(alone, alone[0] + length)
    print(
        f"{1000 * cost:.1f} CPU ms a task of scheduler and caller, measured; {workers} workers "
        f"with {len(lengths)} tasks of {seconds:g} s, simulated: {end / max(alone) - 1:+.1%} time",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=8192)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--workers", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    if arguments.frames:
        of_movie(arguments.frames, arguments.side)
    if arguments.workers:
        of_many(arguments.workers, arguments.seconds, arguments.rounds)


if __name__ == "__main__":
    main()
