"""Memory of `decode localize` by the length of a movie and the number of its molecules, and what
keeping unfinished work on the disk costs.

    python benchmarks/memory.py [--frames 500 2000 8000] [--side 128] [--molecules 5e7]

Each figure is of a process of its own.  Memory is the peak over that after the imports and the
model.  The movies are simulated from configs/gaussian-2d.yaml (32 distinct frames, repeated), with
a molecule on a square micrometre.  The molecules of the last figure are drawn at random and given
piece by piece to all that follows the network: pieces, checks, tables (CSV, HDF5) and picture.
Costs are CPU seconds.  "Plain" is what writing took before there were pieces: the same tables as
they are found, and the picture from memory.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from decode.acquisition import acquisition_for
from decode.config import load_config
from decode.devices import keep_freed_memory
from decode.emitters import EmitterSet
from decode.io.cameras import CameraFile
from decode.io.movies import open_array, open_movie, write_movie
from decode.io.tables import read_table
from decode.io.tables.together import TableWriters
from decode.models import load_model
from decode.optics.camera import Camera
from decode.priors.camera import FixedCamera
from decode.rendering import save_picture
from decode.verbs import localize
from decode.verbs.assemble import assemble
from decode.verbs.checking import Checking
from decode.verbs.pieces import Pieces

CAMERA = Camera(baseline=100.0, e_per_adu=45.0, read_noise_e=74.4, qe=0.9, em_gain=300.0)
FILE = CameraFile(camera=CAMERA, pixel_size_nm=100.0)
RECIPE = Path(__file__).parents[1] / "configs" / "gaussian-2d.yaml"
SIGMA_NM = 130.0


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def dense_frames(side: int) -> torch.Tensor:
    """(32, side, side) counts."""
    recipe = load_config(RECIPE)
    scene = replace(
        recipe.scene,
        density_per_um2=(1.0, 1.0),
        flux_photons=(2000.0, 2000.0),
        background_photons=(30.0, 30.0),
    )
    forward = replace(recipe, scene=scene).forward_model()
    forward = replace(forward, cameras=FixedCamera(CAMERA))
    drawn = forward.sample(1, 32, (side, side), torch.Generator().manual_seed(0))
    return drawn.frames[0].to(torch.uint16)


def timed(seconds: list[float], work: Callable[..., Any]) -> Callable[..., Any]:
    def measured(*arguments: Any, **options: Any) -> Any:
        start = time.process_time()
        try:
            return work(*arguments, **options)
        finally:
            seconds.append(time.process_time() - start)

    return measured


def of_movie(path: Path, out: Path) -> None:
    """A movie, in this process."""
    keep_freed_memory()
    model = load_model("gaussian-2d")
    save_picture(EmitterSet.empty(), out / "empty.png")  # its libraries, which all have in common
    before = peak_mb()
    writing: list[float] = []
    Pieces.write = timed(writing, Pieces.write)  # type: ignore[method-assign]
    assembling: list[float] = []

    def steps(*arguments: Any, **options: Any) -> Any:
        work = assemble(*arguments, **options)
        while True:
            start = time.process_time()
            try:
                progress = next(work)
            except StopIteration as end:
                return end.value
            finally:
                assembling.append(time.process_time() - start)
            yield progress

    localize.assemble = steps  # type: ignore[attr-defined]
    checking: list[float] = []
    Checking.see = timed(checking, Checking.see)  # type: ignore[method-assign]
    evidence = timed(checking, Checking.evidence.fget)  # type: ignore[attr-defined]
    Checking.evidence = property(evidence)  # type: ignore[assignment,method-assign]
    begun, start = time.process_time(), time.perf_counter()
    done = localize.localize_file(
        path,
        model,
        out,
        camera=FILE,
        psf_sigma_nm=SIGMA_NM,
        formats=("csv", "hdf5", "png", "parquet"),
    )
    seconds, wall = time.process_time() - begun, time.perf_counter() - start
    peak = peak_mb() - before
    table = read_table(out / f"{path.stem}.parquet")
    begun = time.process_time()
    with TableWriters(
        [out / f"plain.{suffix}" for suffix in ("csv", "hdf5", "parquet")], table.metadata
    ) as tables:
        for rows in torch.arange(len(table)).tensor_split(max(1, done.n_frames // 64)):
            tables.write(table[rows])
    save_picture(table, out / "plain.png")
    plain = time.process_time() - begun
    own = sum(writing) + sum(assembling) - sum(checking)
    print(
        f"{done.n_frames} frames, {done.n_molecules} molecules: peak {peak:.0f} MB over imports "
        f"and model; {seconds:.1f} CPU s ({wall:.1f} s), pieces {sum(writing):.2f}, tables "
        f"and picture from them {sum(assembling) - sum(checking):.2f}, plain writing {plain:.2f}: "
        f"{(own - plain) / seconds:+.1%} of all",
        flush=True,
    )


def of_molecules(n: int, out: Path) -> None:
    """Molecules at random, in this process."""
    keep_freed_memory()
    model = load_model("gaussian-2d")
    before = peak_mb()
    per_piece, frames = 100_000, 1024
    n_frames = frames * (n // per_piece)
    noise = CAMERA.sample(torch.full((64, 128, 128), 30.0), torch.Generator().manual_seed(0))
    with open_array(noise.numpy()) as short:
        acquisition = acquisition_for(short, model, camera=FILE, psf_sigma_nm=SIGMA_NM)
    with open_array(np.broadcast_to(noise[:1].numpy(), (n_frames, 128, 128))) as movie:
        pieces = Pieces.begin(out / "movie.parts", {}, n_frames=n_frames, size=frames)
        rng = np.random.default_rng(0)
        begun = time.process_time()

        def told(stage: str) -> None:
            nonlocal begun
            now = time.process_time()
            print(
                f"{n:.2g} molecules, {stage}: {now - begun:.0f} CPU s, peak "
                f"{peak_mb() - before:.0f} MB over imports and model",
                flush=True,
            )
            begun = now

        for piece in pieces.all:
            pieces.write(piece, at_random(piece, per_piece, rng))
        told("pieces")
        facts = acquisition.facts(movie, threshold=0.5)
        checking = Checking(movie, model, acquisition)
        files = [out / name for name in ("movie.csv", "movie.hdf5", "movie.yaml", "movie.png")]
        stage = ""
        for progress in assemble(pieces, files, [], facts, checking, lambda same: same):
            if stage and progress.message != stage:
                told(stage)
            stage = progress.message
        told(stage)


def at_random(frames: range, n: int, rng: np.random.Generator) -> EmitterSet:
    def drawn(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(low, high, (n, *shape)).astype(np.float32))

    return EmitterSet(
        frame=torch.from_numpy(np.sort(rng.integers(frames.start, frames.stop, n))),
        xyz=torch.cat([drawn(0, 12800, 2), torch.zeros(n, 1)], 1),
        photons=drawn(500, 5000),
        background=drawn(20, 40),
        probability=drawn(0.5, 1),
        xyz_sigma=drawn(5, 20, 3),
        photons_sigma=drawn(50, 200),
        xyz_95=drawn(10, 80, 3),
        photons_95=drawn(100, 400),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, nargs="*", default=[500, 2000, 8000])
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--molecules", type=float, default=5e7)
    parser.add_argument("--one", nargs=2, help="what a process of its own measures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        out.mkdir()
        if arguments.one:
            kind, value = arguments.one
            work = {"movie": lambda: of_movie(Path(value), out)}
            work["molecules"] = lambda: of_molecules(int(value), out)
            work[kind]()
            return
        some = dense_frames(arguments.side).numpy()
        again = [sys.executable, __file__, "--one"]
        for n in arguments.frames:
            path = Path(folder, f"movie{n}.tif")
            write_movie(path, some[np.arange(n) % 32])
            with open_movie(path) as movie:
                assert len(movie) == n
            subprocess.run([*again, "movie", str(path)], check=True)
            path.unlink()
        if arguments.molecules:
            subprocess.run([*again, "molecules", str(int(arguments.molecules))], check=True)


if __name__ == "__main__":
    main()
