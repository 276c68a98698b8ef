"""`decode localize` on long movies: frames a second compared with the bare network, and peak
memory.

    python benchmarks/throughput.py [--frames 2000 4000] [--side 256] [--threads N]

The movie is simulated from configs/gaussian-2d.yaml (32 distinct frames, repeated) in a temporary
folder.  The bare network runs on frames that lie in memory, before and after each movie, in the
same process.  Ratios are by the clock, and by the time of the processor, which counts on a machine
that others share; the first ones of both are of the whole work, the second without what is found
out of the movie beforehand.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from decode.config import load_config
from decode.devices import keep_freed_memory
from decode.io.cameras import CameraFile
from decode.io.movies import write_movie
from decode.models import load_model
from decode.optics.camera import Camera
from decode.priors.camera import FixedCamera
from decode.progress import Progress, followed
from decode.verbs.localize import LocalizeReport, localize_file

CAMERA = Camera(baseline=100.0, e_per_adu=45.0, read_noise_e=74.4, qe=0.9, em_gain=300.0)
RECIPE = Path(__file__).parents[1] / "configs" / "gaussian-2d.yaml"


def bare_network(side: int, n: int = 4, repeats: int = 6) -> np.ndarray:
    """Frames a second of the network alone, by the clock and by the processor's time."""
    model = load_model("gaussian-2d")
    adu = CAMERA.sample(torch.full((1, n, side, side), 30.0))
    context = model.context_map({"psf_sigma_px": 1.3})
    with torch.inference_mode():
        for _ in range(2):
            model(adu, CAMERA, context, 100.0)
        start = now()
        for _ in range(repeats):
            model(adu, CAMERA, context, 100.0)
    return n * repeats / (now() - start)


def now() -> np.ndarray:
    """The clock, and the time of the processor."""
    return np.array([time.perf_counter(), time.process_time()])


def measure(frames: int, side: int, threads: int | None) -> None:
    """One movie, in this process."""
    if threads:
        torch.set_num_threads(threads)
    keep_freed_memory()
    recipe = load_config(RECIPE)
    scene = replace(
        recipe.scene,
        density_per_um2=(0.5, 0.5),
        flux_photons=(2000.0, 2000.0),
        background_photons=(30.0, 30.0),
    )
    forward = replace(recipe, scene=scene).forward_model()
    forward = replace(forward, cameras=FixedCamera(CAMERA))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "movie.tif"
        some = (
            forward.sample(1, 32, (side, side), torch.Generator().manual_seed(0))
            .frames[0]
            .to(torch.uint16)
            .numpy()
        )
        write_movie(path, some[torch.arange(frames).numpy() % 32])
        del some
        before = bare_network(side)
        start = begun = now()
        steps = localize_file.steps(
            path,
            load_model("gaussian-2d"),
            Path(folder) / "out",
            camera=CameraFile(camera=CAMERA, pixel_size_nm=100.0),
            psf_sigma_nm=130.0,
        )

        def seen(progress: Progress[LocalizeReport | None]) -> None:
            nonlocal begun
            if progress.detail is not None and progress.detail.frames_done == 0:
                begun = now()

        done = followed(steps, seen)
        end = now()
        after = bare_network(side)
    bare = (before + after) / 2
    whole, later = (frames / (end - each) for each in (start, begun))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{frames} x {side} x {side}: {(end - start)[0]:.0f} s, {whole[0]:.2f} frames/s, bare "
        f"network {bare[0]:.2f} frames/s ({before[0]:.2f} before, {after[0]:.2f} after), ratio "
        f"{whole[0] / bare[0]:.2f} ({later[0] / bare[0]:.2f}); by the processor's time "
        f"{whole[1]:.2f} and {bare[1]:.2f} frames/s ({before[1]:.2f} before, {after[1]:.2f} "
        f"after), ratio {whole[1] / bare[1]:.2f} ({later[1] / bare[1]:.2f}); peak memory "
        f"{peak:.2f} GiB, {done.n_molecules} molecules"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, nargs="+", default=[2000, 4000])
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--one",
        action="store_true",
        help="measure in this process (the peak memory is a process's)",
    )
    arguments = parser.parse_args()
    if arguments.one:
        measure(arguments.frames[0], arguments.side, arguments.threads)
        return
    for frames in arguments.frames:
        command = [
            sys.executable,
            __file__,
            "--one",
            "--frames",
            str(frames),
            "--side",
            str(arguments.side),
        ]
        command += ["--threads", str(arguments.threads)] if arguments.threads else []
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
