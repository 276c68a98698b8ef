"""Run the benchmarks one after the other, and write their output to docs/benchmarks.md.

    python benchmarks/report.py [DATA] [--model gaussian-2d my-3d.safetensors] [--only picasso] [-o
    docs/benchmarks.md]

Those that need the movies of DATA end with a sentence where it is absent.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch
from data import add_data

from decode import __version__
from decode.models import load_model, shipped_models

ROOT = Path(__file__).parents[1]


def machine() -> str:
    """The machine on which the figures were measured."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        names = [
            line.partition(":")[2].strip()
            for line in info.read_text().splitlines()
            if "model name" in line
        ]
        cpu = names[0] if names else cpu
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    text = (
        f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {gpu}; "
        f"{platform.system()}, "
        f"Python {platform.python_version()}, PyTorch {torch.__version__}, decode {__version__}, "
        f"{date.today()}"
    )
    if hasattr(os, "getloadavg"):
        load = os.getloadavg()[0]
        text += f"; load {load:.1f} at the start"
        if load > 0.5:
            text += (
                " (not idle: seconds and frames a second are worth little, ratios within one "
                "run more)"
            )
    return text


def has_psf(model: str) -> bool:
    """Whether a model determines the PSF to polish with: its own, or a Gaussian."""
    loaded = load_model(model)
    return loaded.psf is not None or not loaded.network.axial


def run(script: str, arguments: list[str]) -> tuple[str, bool]:
    """The output of a benchmark, shown as it comes, and whether it succeeded."""
    command = [sys.executable, "-u", str(ROOT / "benchmarks" / script), *arguments]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return "".join(lines).strip(), process.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser()
    add_data(parser)
    parser.add_argument("--model", nargs="+", default=list(shipped_models()), help="names or files")
    parser.add_argument("--only", nargs="+", help="names of benchmarks")
    parser.add_argument("--out", "-o", type=Path, default=ROOT / "docs" / "benchmarks.md")
    arguments = parser.parse_args()
    data, models = str(arguments.data), arguments.model
    images = arguments.out.parent / "images"
    # accuracy first: it does not mind company; what is timed, last
    plan = [
        (f"Accuracy of {Path(m).stem}", "accuracy.py", ["--model", m, "-o", str(images)])
        for m in models
    ]
    plan += [
        ("Beside Picasso", "picasso.py", [data, "--model", *models]),
        ("Real movies", "real_movies.py", [data, "-o", str(images)]),
        *(
            (f"Polishing after {Path(m).stem}", "polish.py", ["--model", m])
            for m in models
            if has_psf(m)
        ),
        ("A training step beside DECODE's", "decode_step.py", []),
        ("Cost of the network", "network.py", []),
        ("Long movies", "throughput.py", []),
        ("Reading movies", "reading.py", []),
    ]
    old = arguments.out.read_text() if arguments.out.is_file() else ""
    # what is not run now keeps its place
    sections = {part.partition("\n")[0]: part.strip() for part in old.split("\n## ")[1:]}
    failed, where = [], machine()
    for title, script, more in plan:
        name = script.removesuffix(".py")
        if arguments.only and name not in arguments.only:
            continue
        print(f"\n== {title}", flush=True)
        text, succeeded = run(script, more)
        if not succeeded:
            failed.append(name)
            text += "\nFailed."
        text = text.replace(f"{ROOT}/", "").replace(f"{ROOT.parent}/", "")
        parts = [title, f"`benchmarks/{script}` on {where}", f"```text\n{text}\n```"]
        picture = images / f"accuracy_{title.removeprefix('Accuracy of ')}.png"
        if name == "accuracy" and picture.is_file():
            parts.append(
                f"![{title}](images/{picture.name})\n\nThe paler a line, the dimmer the molecules."
            )
        sections[title] = "\n\n".join(parts)
    order = [title for title, *_ in plan]
    kept = sorted(sections, key=lambda title: order.index(title) if title in order else -1)
    head = (
        "# Benchmarks\n\nWritten by `make bench`; their docstrings say what the scripts do and how."
    )
    arguments.out.write_text("\n\n## ".join([head, *(sections[title] for title in kept)]) + "\n")
    print(f"\nwritten: {arguments.out}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
