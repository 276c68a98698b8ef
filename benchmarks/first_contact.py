"""First contact: how long `decode --help` and the first frame take, and how large a wheel is.

    python benchmarks/first_contact.py [--rounds 5]

Each is the least of some rounds: seconds of the processor, user and system, with the ratio to what
Python and `import torch` take in the same rounds, which no program can be faster than.  The first
frame is the whole of `decode localize` on one frame of the sample movie: start, reading, network,
fits, checks and three files.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "sample_data"
CASES = {
    "python": ("-c", "pass"),
    "decode --help": ("-m", "decode", "--help"),
    "import torch": ("-c", "import torch"),
    "first frame": (
        *("-m", "decode", "localize", str(SAMPLE / "blinking_2d.tif")),
        *("--model", "gaussian-2d", "--camera", str(SAMPLE / "camera.yaml")),
        *("--psf-sigma", "95", "--frames", "0:1", "-o", "out"),
    ),
}


def seconds(arguments: tuple[str, ...], folder: str) -> tuple[float, float]:
    """Of the processor, and of the clock."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    python = [sys.executable, *arguments]
    subprocess.run(python, cwd=folder, check=True, capture_output=True)
    after, ended = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    busy = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return busy, ended - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    load, cores = os.getloadavg()[0], os.cpu_count()
    print(f"load {load:.1f} on {cores} cores at the start, least of {rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        taken = [
            {name: seconds(arguments, folder) for name, arguments in CASES.items()}
            for _ in range(rounds)
        ]
    least = {name: tuple(map(min, zip(*(r[name] for r in taken), strict=True))) for name in CASES}
    for name, bare in (("decode --help", "python"), ("first frame", "import torch")):
        (busy, clock), (alone, _) = least[name], least[bare]
        print(
            f"{name}: {busy:.2f} s of the processor, {clock:.2f} s by the clock; "
            f"{busy / alone:.1f} times {bare}"
        )


if __name__ == "__main__":
    main()
