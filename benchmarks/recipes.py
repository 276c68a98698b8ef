"""Ablation of the training recipe: variants trained for the same time on one thread each, on the same PSF.

    python benchmarks/recipes.py RECIPE --minutes 8 [--only NAME ...] [--at-once 2]

RECIPE is that of a 3D specialist, as `decode estimate` writes it.  All variants but one start from random
weights, by the same seed, and all are scored on the same simulated movies (`decode.validation.Validation`).  Losses
that are not the package's own are written here, with the read-out that goes with each.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, max_pool2d, pad

import decode.train
import decode.validation
from decode.config import TrainConfig, load_config
from decode.emitters import EmitterSet
from decode.forward import Simulation
from decode.models import load_model
from decode.network.localizer import Localizer
from decode.network.posterior import SetPosterior

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
Density = Callable[[SetPosterior, EmitterSet], Tensor]


class Variant(NamedTuple):
    """What differs from the recipe."""

    settings: tuple[str, ...] = ()
    loss: str = "owned pixels"
    start: str | None = None


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
    "narrow network": Variant(
        ("network.frame_widths=[12, 24, 32]", "network.sequence_widths=[24, 32, 48]", "network.head_width=24")
    ),
    "wide network": Variant(
        ("network.frame_widths=[24, 48, 64]", "network.sequence_widths=[48, 72, 96]", "network.head_width=48")
    ),
    "two levels": Variant(("network.frame_widths=[16, 32]", "network.sequence_widths=[32, 48]")),
    "soft association": Variant(loss="soft association"),
    "best association": Variant(loss="best association"),
    "DECODE's count and mixture": Variant(loss="count and mixture"),
}


# -- losses that let a pixel's emitter lie outside the pixel -------------------------------------------------------


def around(posterior: SetPosterior, emitters: EmitterSet, reach: int) -> tuple[Tensor, Tensor]:
    """Log odds and log density of every emitter under each of the pixels around it, (n, pixels) each.

    Pixels outside the frame have odds of 0.
    """
    height, width = posterior.logit.shape[1:]
    position = emitters.xyz[:, :2] / posterior.pixel_size_nm
    pixel = torch.floor(position).long()
    steps = torch.arange(-reach, reach + 1, device=pixel.device)
    column = (pixel[:, 0, None, None] + steps).expand(-1, len(steps), -1).flatten(1)
    row = (pixel[:, 1, None, None] + steps[:, None]).expand(-1, -1, len(steps)).flatten(1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = (emitters.frame[:, None] * height + row.clamp(0, height - 1)) * width + column.clamp(0, width - 1)

    def at(values: Tensor) -> Tensor:
        return values.reshape(-1)[index]

    def normal(value: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
        return -0.5 * ((value - mean) / sigma) ** 2 - sigma.log() - LOG_SQRT_2PI

    density = normal(emitters.photons[:, None], at(posterior.photons), at(posterior.photons_sigma))
    for axis, middle in ((0, column), (1, row)):
        offset = position[:, axis, None] - middle - 0.5
        density = density + normal(offset, at(posterior.offset_px[:, axis]), at(posterior.offset_sigma_px[:, axis]))
    if posterior.z_nm is not None and posterior.z_sigma_nm is not None:
        density = density + normal(emitters.xyz[:, 2:], at(posterior.z_nm), at(posterior.z_sigma_nm))
    return at(posterior.logit).masked_fill(~inside, -1e4), density


def soft_association(posterior: SetPosterior, emitters: EmitterSet) -> Tensor:
    """Multi-Bernoulli density, summed over the pixels that may have made each emitter; not exclusive."""
    odds, density = around(posterior, emitters, 1)
    return logsigmoid(-posterior.logit).sum() + torch.logsumexp(odds + density, 1).sum()


def best_association(posterior: SetPosterior, emitters: EmitterSet) -> Tensor:
    """Multi-Bernoulli density of the most likely pixel for each emitter."""
    odds, density = around(posterior, emitters, 1)
    return logsigmoid(-posterior.logit).sum() + (odds + density).amax(1).sum()


def count_and_mixture(posterior: SetPosterior, emitters: EmitterSet) -> Tensor:
    """DECODE's loss (Speiser et al., Nature Methods 18, 1082, 2021, eqs 3 to 6), mixture over 5 x 5 pixels."""
    p = posterior.probability
    n = len(p)
    count = torch.bincount(emitters.frame, minlength=n).to(p)
    mean, variance = p.sum((1, 2)), (p * (1 - p)).sum((1, 2)) + 1e-3
    counted = -0.5 * (count - mean) ** 2 / variance - 0.5 * variance.log()
    logit, density = around(posterior, emitters, 2)
    share = torch.logsumexp(logsigmoid(logit) + density, 1) - mean.log()[emitters.frame]
    return (counted * count).sum() + share.sum()


LOSSES: dict[str, Density] = {
    "soft association": soft_association,
    "best association": best_association,
    "count and mixture": count_and_mixture,
}


def loss_with(density: Density) -> Callable[[Localizer, Simulation, TrainConfig], Tensor]:
    def loss_of(model: Localizer, batch: Simulation, config: TrainConfig) -> Tensor:
        posterior = decode.validation.posterior_of(model, batch)
        position = batch.emitters.xyz[:, :2] / batch.pixel_size_nm
        height, width = batch.frames.shape[-2:]
        size = torch.tensor([width, height], device=position.device)
        kept = ((position >= 0) & (position < size)).all(1) & (batch.emitters.photons >= config.training.min_photons)
        background = (posterior.background.log() - batch.background.flatten(0, 1).log()).square().mean()
        return -100 * density(posterior, batch.emitters[kept]) / batch.background.numel() + background

    return loss_of


@final
@dataclass(frozen=True)
class Unowned:
    """A posterior whose emitters may lie outside their pixels, and its read-out: DECODE's local peaks of p."""

    posterior: SetPosterior

    def point_estimate(self) -> EmitterSet:
        post = self.posterior
        p = post.probability
        total = sum(
            (
                pad(p, (1, 1, 1, 1))[:, y : y + p.shape[1], x : x + p.shape[2]]
                for y, x in ((0, 1), (1, 0), (1, 2), (2, 1))
            ),
            p,
        )
        peak = (p == max_pool2d(p, 3, stride=1, padding=1)) & (p > 0.2) & (total > 0.5)
        frame, row, column = torch.nonzero(peak | (p > 0.7), as_tuple=True)

        def at(values: Tensor) -> Tensor:
            return values[frame, row, column]

        x, y = (
            (pixel + 0.5 + at(post.offset_px[:, axis])) * post.pixel_size_nm for axis, pixel in ((0, column), (1, row))
        )
        sigma_x, sigma_y = (at(post.offset_sigma_px[:, axis]) * post.pixel_size_nm for axis in (0, 1))
        assert post.z_nm is not None
        assert post.z_sigma_nm is not None
        return EmitterSet(
            frame=frame,
            xyz=torch.stack([x, y, at(post.z_nm)], 1),
            photons=at(post.photons),
            probability=at(total).clamp(max=1),
            xyz_sigma=torch.stack([sigma_x, sigma_y, at(post.z_sigma_nm)], 1),
        )


def train_one(recipe: Path, name: str, minutes: float, out: Path) -> dict[str, Any]:
    """Train a variant and score it."""
    variant = VARIANTS[name]
    config = load_config(recipe, [*variant.settings, "training.validate_every=1000000", "training.patience=0"])
    if variant.loss in LOSSES:
        setattr(decode.train, "loss_of", loss_with(LOSSES[variant.loss]))  # noqa: B010
    start = load_model(variant.start) if variant.start else None
    *_, last = decode.train.train(config, out / "model.safetensors", minutes=minutes, device="cpu", start=start)
    if variant.loss in LOSSES:
        owned = decode.validation.posterior_of
        setattr(decode.validation, "posterior_of", lambda *given: Unowned(owned(*given)))  # noqa: B010
    model = Localizer.load(out / "model.safetensors")
    figures = decode.validation.Validation(config, torch.device("cpu"), n_movies=48)(model)
    return {"steps": last.step, **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--at-once", type=int, default=2, help="variants trained side by side, a thread each")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        torch.set_num_threads(1)
        # minutes of the processor, so that what else runs on the machine does not decide
        setattr(decode.train, "time", SimpleNamespace(perf_counter=time.process_time))  # noqa: B010
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(train_one(given.recipe, given.one, given.minutes, Path(folder))))
        return
    waiting, running = list(given.only), dict[str, subprocess.Popen[str]]()
    print(f"{given.minutes:g} minutes of one processor core each; {given.recipe.name}\n", flush=True)
    print("| variant | Jaccard | lateral / axial RMSE (nm) | 3D efficiency | error/bound | error/sigma | steps |")
    print("|---|---|---|---|---|---|---|")
    while waiting or running:
        while waiting and len(running) < given.at_once:
            name = waiting.pop(0)
            command = [sys.executable, __file__, str(given.recipe), "--minutes", str(given.minutes), "--one", name]
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
                f"| {name} | {f['jaccard']:.3f} | {f['rmse_lateral_nm']:.1f} / {f['rmse_axial_nm']:.1f} "
                f"| {f['efficiency']:.1f} | {f['isolated_error_over_bound']:.2f} "
                f"| {f['isolated_error_over_sigma']:.2f} | {f['steps']} |",
                flush=True,
            )
        time.sleep(1)


if __name__ == "__main__":
    main()
