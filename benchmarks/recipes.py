"""Ablation of the training recipe: variants trained for the same time on one thread each, on the
same PSF.

    python benchmarks/recipes.py RECIPE --minutes 8 [--only NAME ...] [--at-once 2]

RECIPE is that of a 3D specialist, as `decode estimate` writes it.  All variants but one start from
random weights, by the same seed, and all are scored on the same simulated movies
(`decode.training.validation.Validation`).  Losses and optimizers that are not the package's own are
in recipes_losses.py and recipes_optimizers.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from recipes_losses import (
    Clock,
    Unowned,
    belief_propagation,
    best_association,
    count_and_mixture,
    distilled,
    loss_with,
    soft_association,
    then_owned,
)
from recipes_optimizers import ScheduleFree, soap

from decode.config import TrainConfig, load_config
from decode.emitters import EmitterSet
from decode.models import load_model
from decode.network.localizer import Localizer
from decode.network.posterior import SetPosterior
from decode.training.learner import Loss, OptimizerChoice, choose_optimizers, loss_of
from decode.training.loop import train
from decode.training.validation import Validation

WIDE = (
    "network.frame_widths=[24, 48, 64]",
    "network.sequence_widths=[48, 72, 96]",
    "network.head_width=48",
)
NARROW = (
    "network.frame_widths=[12, 24, 32]",
    "network.sequence_widths=[24, 32, 48]",
    "network.head_width=24",
)
CLOCK = Clock()
SCHEDULE_FREE = ScheduleFree()


def unowned(posterior: SetPosterior) -> EmitterSet:
    return Unowned(posterior).point_estimate()


class Variant(NamedTuple):
    """Differences from the recipe."""

    settings: tuple[str, ...] = ()
    loss: Loss = loss_of
    optimizers: OptimizerChoice = choose_optimizers
    finish: Callable[[Localizer], None] | None = None
    """applied to the trained model"""
    start: str | None = None
    second: Callable[[TrainConfig, Localizer], Loss] | None = None
    """the loss of a second network, given a first one; each is trained for half of the time"""
    first: tuple[str, ...] = ()
    """settings of that first network"""
    read_out: Callable[[SetPosterior], EmitterSet] = SetPosterior.point_estimate


VARIANTS = {
    "as shipped": Variant(),
    "from gaussian-2d": Variant(start="gaussian-2d"),
    "AdamW": Variant(("training.optimizer=adamw",)),
    "learning rate 3e-3": Variant(("training.learning_rate=3.0e-3",)),
    "learning rate 7e-4": Variant(("training.learning_rate=7.0e-4",)),
    "falling from the start": Variant(("training.decay_share=1.0",)),
    "average over 300 steps": Variant(("training.average_decay=0.9967",)),
    "2 movies a step": Variant(("training.movies=2",)),
    "8 movies a step": Variant(("training.movies=8",)),
    "frames of 48 px": Variant(("training.size_px=48", "training.movies=2")),
    "narrow network": Variant(NARROW),
    "wide network": Variant(WIDE),
    "two levels": Variant(("network.frame_widths=[16, 32]", "network.sequence_widths=[32, 48]")),
    "soft association": Variant(loss=loss_with(soft_association), read_out=unowned),
    "best association": Variant(loss=loss_with(best_association), read_out=unowned),
    "belief propagation": Variant(loss=loss_with(belief_propagation), read_out=unowned),
    "DECODE's count and mixture": Variant(loss=loss_with(count_and_mixture), read_out=unowned),
    "soft, then owned": Variant(loss=then_owned(soft_association, CLOCK)),
    "mixture, then owned": Variant(loss=then_owned(count_and_mixture, CLOCK)),
    # a fall over no time at all leaves the learning rate constant
    "schedule-free": Variant(
        ("training.decay_share=1.0e-9",), optimizers=SCHEDULE_FREE, finish=SCHEDULE_FREE.finish
    ),
    "SOAP": Variant(optimizers=soap),
    "distilled": Variant(second=distilled, first=WIDE),
}


def train_one(recipe: Path, name: str, minutes: float, out: Path) -> dict[str, Any]:
    """Train a variant and score it."""
    variant = VARIANTS[name]
    config = load_config(recipe, list(variant.settings))
    loss = variant.loss
    if variant.second is not None:
        minutes /= 2
        # other movies than those that the second network learns from
        settings = (*variant.first, f"seed={config.seed + 1}")
        first, _ = trained(variant, recipe, settings, minutes, out / "first.safetensors", loss)
        loss = variant.second(config, first)
    file = out / "model.safetensors"
    model, steps = trained(variant, recipe, variant.settings, minutes, file, loss)
    validation = Validation(config, torch.device("cpu"), n_movies=48, read_out=variant.read_out)
    return {"steps": steps, **validation(model).row()}


def trained(
    variant: Variant,
    recipe: Path,
    settings: tuple[str, ...],
    minutes: float,
    file: Path,
    loss: Loss,
) -> tuple[Localizer, int]:
    """A model trained for some minutes of the processor, and its number of steps."""
    only_at_the_end = ("training.validate_every=1000000", "training.patience=0")
    CLOCK.start(minutes)
    *_, last = train(
        load_config(recipe, [*settings, *only_at_the_end]),
        file,
        minutes=minutes,
        device="cpu",
        start=None if variant.start is None else load_model(variant.start),
        loss=loss,
        optimizers=variant.optimizers,
        clock=CLOCK,
    )
    model = Localizer.load(file)
    if variant.finish is not None:
        variant.finish(model)
    return model, last.detail.step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument(
        "--at-once", type=int, default=2, help="variants trained side by side, a thread each"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(train_one(given.recipe, given.one, given.minutes, Path(folder))))
        return
    waiting, running = list(given.only), dict[str, subprocess.Popen[str]]()
    print(
        f"{given.minutes:g} minutes of one processor core each; {given.recipe.name}\n", flush=True
    )
    print(
        "| variant | Jaccard | lateral / axial RMSE (nm) | 3D efficiency | error/bound | "
        "error/sigma | steps |"
    )
    print("|---|---|---|---|---|---|---|")
    while waiting or running:
        while waiting and len(running) < given.at_once:
            name = waiting.pop(0)
            command = [
                sys.executable,
                __file__,
                str(given.recipe),
                "--minutes",
                str(given.minutes),
                "--one",
                name,
            ]
            running[name] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for name, process in list(running.items()):
            if process.poll() is None:
                continue
            running.pop(name)
            assert process.stdout is not None
            text = process.stdout.read()
            if process.returncode:
                print(f"| {name} | failed | | | | | |")
                continue
            f = json.loads(text.splitlines()[-1])
            print(
                f"| {name} | {f['jaccard']:.3f} | {f['rmse_lateral_nm']:.1f} / "
                f"{f['rmse_axial_nm']:.1f} "
                f"| {f['efficiency']:.1f} | {f['isolated_error_over_bound']:.2f} "
                f"| {f['isolated_error_over_sigma']:.2f} | {f['steps']} |",
                flush=True,
            )
        time.sleep(1)


if __name__ == "__main__":
    main()
