"""How long after a frame is written its molecules are known: a writer adds frames, `decode watch`
follows.

    python benchmarks/watch.py --model gaussian-2d --fps 20 --frames 600

prints the time from the writing of the oldest frame of each block to its line, in the order of the
blocks, and the computing time of the watcher a frame, from its first line to its last, which is set
against that of the bare network, measured before and after: a machine follows where it is below
what its cores have between frames.  Linux alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from decode.io.movies import open_movie
from decode.models import load_model
from decode.optics.camera import Camera

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "sample_data" / "blinking_2d.tif"
CAMERA = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.5, qe=0.8)
WRITER = """
import sys, time, numpy as np, tifffile
path, n, fps, side, told = *sys.argv[1:2], *map(int, sys.argv[2:5]), open(sys.argv[5], "w")
sample = tifffile.imread(sys.argv[6])
times = -(-side // sample.shape[1])
frames = np.tile(sample, (1, times, times))[:, :side, :side]
begun = time.time()
with tifffile.TiffWriter(path) as writer:
    for i in range(n):
        time.sleep(max(0.0, begun + i / fps - time.time()))
        writer.write(frames[i % len(frames)], contiguous=False, metadata=None)
        writer._fh.flush()
        print(time.time(), file=told, flush=True)
"""


def used_s(pid: int) -> float:
    """Computing time of a process."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def bare_ms(model: str, side: int, n: int = 16, repeats: int = 2) -> float:
    """Computing time of the network alone a frame, ms."""
    network = load_model(model).eval()
    with open_movie(SAMPLE) as movie:
        some = torch.from_numpy(movie.read(0, n).astype("float32"))
    times = -(-side // some.shape[1])
    adu = some.repeat(1, times, times)[None, :, :side, :side]
    context = network.context_map({name: sum(ends) / 2 for name, ends in network.context.items()})
    with torch.inference_mode():
        network(adu, CAMERA, context, 100.0)
        start = time.process_time()
        for _ in range(repeats):
            network(adu, CAMERA, context, 100.0)
    return 1000 * (time.process_time() - start) / n / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="gaussian-2d")
    parser.add_argument("--fps", type=int, default=20)
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--side", type=int, default=128, help="of a frame, pixels")
    asked = parser.parse_args()
    before = bare_ms(asked.model, asked.side)
    with tempfile.TemporaryDirectory() as folder:
        movie, told = Path(folder, "movie.tif"), Path(folder, "told")
        watching = [
            *(sys.executable, "-m", "decode", "watch", movie, "-o", Path(folder, "out")),
            *("--model", asked.model, "--camera", ROOT / "sample_data" / "camera.yaml"),
            *("--psf-sigma", "95", "--idle", "15", "--no-again", "--no-page", "--json"),
        ]
        watcher = subprocess.Popen(watching, stdout=subprocess.PIPE, text=True)
        time.sleep(8)  # until it is up
        numbers = map(str, (asked.frames, asked.fps, asked.side))
        writer = subprocess.Popen([sys.executable, "-c", WRITER, movie, *numbers, told, SAMPLE])
        assert watcher.stdout is not None
        seen = []
        for line in watcher.stdout:
            seen.append((time.time(), used_s(watcher.pid), json.loads(line)))
        writer.wait()
        watcher.wait()
        written = [float(line) for line in told.read_text().split()]
    after = bare_ms(asked.model, asked.side)
    done, latency = 0, []
    for when, _, update in seen:
        if update["frames"] > done:
            latency.append(when - written[done])
            done = update["frames"]
    (_, begun_s, first), *_, (_, ended_s, last) = seen
    each = 1000 * (ended_s - begun_s) / (last["frames"] - first["frames"])
    print("latency of each block, s:", " ".join(f"{seconds:.1f}" for seconds in latency))
    print(f"median {np.median(latency):.1f} s, largest {max(latency):.1f} s, {done} frames")
    print(
        f"computing of the watcher: {each:.0f} ms a frame with {last['molecules'] / done:.0f} "
        f"molecules; bare network {before:.0f} and {after:.0f} ms"
    )


if __name__ == "__main__":
    main()
