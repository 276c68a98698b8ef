"""How long after a frame is written its molecules are known: a writer adds frames, `decode watch`
follows.

    python benchmarks/watch.py --model gaussian-2d --fps 20 --frames 600

prints the time from the writing of the oldest frame of each block to its line, in the order of the
blocks, and the computing time of the watcher a frame: a machine follows where this is below the
time between frames.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "sample_data" / "blinking_2d.tif"
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="gaussian-2d")
    parser.add_argument("--fps", type=int, default=20)
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--side", type=int, default=128, help="of a frame, pixels")
    asked = parser.parse_args()
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
        lines = [(time.time(), json.loads(line)) for line in watcher.stdout]
        writer.wait()
        watcher.wait()
        written = [float(line) for line in told.read_text().split()]
    done, latency = 0, []
    for when, update in lines:
        if update["frames"] > done:
            latency.append(when - written[done])
            done = update["frames"]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print("latency of each block, s:", " ".join(f"{seconds:.1f}" for seconds in latency))
    print(f"median {np.median(latency):.1f} s, largest {max(latency):.1f} s, {done} frames")
    print(f"computing of watcher and writer: {1000 * used.ru_utime / done:.0f} ms a frame")


if __name__ == "__main__":
    main()
