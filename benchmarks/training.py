"""A training step: frames a second, and the share of the simulation in it.

python benchmarks/training.py [configs/gaussian-2d.yaml] [--steps 200] [--device auto]
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from decode.config import load_config
from decode.train import train


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", nargs="?", default=str(Path(__file__).parents[1] / "configs" / "gaussian-2d.yaml"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    plan = replace(config.training, steps=arguments.steps, validate_every=10 * arguments.steps)
    half = arguments.steps // 2
    with tempfile.TemporaryDirectory() as folder:
        reports = train(
            replace(config, training=plan), Path(folder) / "m.safetensors", device=arguments.device, report_every=half
        )
        next(reports)  # warm-up
        report = next(reports)
    print(
        f"{torch.get_num_threads()} threads: {report.frames_per_second:.0f} frames of {plan.size_px} x {plan.size_px} "
        f"a second ({report.frames_per_second * plan.size_px**2 / 1e3:.0f} thousand pixels), "
        f"simulation {100 * report.simulation_share:.1f} % of a step"
    )


if __name__ == "__main__":
    main()
