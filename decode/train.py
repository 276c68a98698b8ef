"""train: fit a Localizer to simulations of the forward model."""

from __future__ import annotations

import copy
import json
import math
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

import decode
from decode.atomic import atomic
from decode.config import TrainConfig, to_mapping
from decode.devices import choose_device, keep_freed_memory
from decode.forward import Simulation
from decode.network.localizer import Localizer
from decode.network.muon import Muon
from decode.validation import Validation, characterize, posterior_of

__all__ = ["Progress", "TrainingError", "train"]


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to change."""


@final
@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a training stands."""

    step: int
    fraction: float
    """of the budget of steps or minutes"""
    minutes: float
    loss: float
    """mean since the last report: negative log posterior, nats per 100 pixels, and the background's error"""
    learning_rate: float
    frames_per_second: float
    simulation_share: float
    """of the time of a step"""
    skipped: int
    """steps left out so far because the loss was not finite"""
    validation: dict[str, float] | None = None
    """figures of the averaged model on the fixed validation set, when it was just evaluated"""


def loss_of(model: Localizer, batch: Simulation, config: TrainConfig) -> Tensor:
    """Negative log posterior of the emitters, in nats per 100 pixels, plus the squared error of log background."""
    posterior = posterior_of(model, batch)
    bright = batch.emitters[batch.emitters.photons >= config.training.min_photons]
    log_prob = posterior.log_prob(posterior.thin(bright)).sum()
    background = (posterior.background.log() - batch.background.flatten(0, 1).log()).square().mean()
    return -100 * log_prob / batch.background.numel() + background


def train(
    config: TrainConfig,
    out: Path | str,
    *,
    minutes: float | None = None,
    device: str = "auto",
    resume: bool = False,
    start: Localizer | None = None,
    log_dir: Path | str | None = None,
    report_every: int = 50,
) -> Iterator[Progress]:
    """Train a model on simulations drawn on the training device, and write it to `out`.

    Beside the model stand `<out>.checkpoint` (to resume from; removed by no one) and the record.  Stopping the
    iteration keeps the last checkpoint.  On the CPU, a training of a given number of steps that was interrupted and
    resumed gives the same weights, bit for bit, as one that was not.

    Args:
        config: the recipe.
        out: model file, `.safetensors`.
        minutes: stop after so long; the learning rate's schedule follows the time.  None: after `training.steps`.
        device: `auto`, `cpu` or `cuda`.
        resume: go on from the checkpoint beside `out`.
        start: a trained model whose weights to start from (see `Localizer.inherit`), by other simulations than its
            own; None: random weights.
        log_dir: folder for TensorBoard's files; None: none are written.
        report_every: steps between two reports.

    Yields:
        Where the training stands.

    Raises:
        TrainingError: if the loss is not finite again and again.
        ValueError: if there is nothing to resume from, or its recipe differs, or `start` has another shape.
    """
    out = Path(out)
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: there is no such folder to write the model to")
    where = choose_device(device)
    plan = config.training
    origin = {} if start is None else {name: v for name, v in start.record.items() if name != "figures"}
    # a model's second training must not see the movies of its first again
    seed = config.seed + int(origin.get("steps", 0))
    torch.manual_seed(seed)
    keep_freed_memory()
    rng = torch.Generator(where).manual_seed(seed)
    model = config.localizer()
    if start is not None:
        model.inherit(start)
    model = model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model).eval().requires_grad_(False)
    forward = config.forward_model()
    forward.psf.to(where)
    optimizers = _optimizers(model, config)
    checkpoint = out.with_suffix(".checkpoint")
    step, skipped, spent, history = 0, 0, 0.0, []
    if resume:
        state = _read_checkpoint(checkpoint, config, where)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        rng.set_state(state["rng"])
        step, skipped, spent = state["step"], state["skipped"], state["seconds"]
        history, origin = json.loads(state["history"]), json.loads(state["origin"])
    validate = Validation(config, where)
    board = _board(log_dir)

    def progress(**more: Any) -> float:
        of_steps = step / plan.steps
        return min(1.0, max(of_steps, spent / 60 / minutes) if minutes else of_steps)

    losses: list[Tensor] = []
    simulating, bad, since = 0.0, 0, time.perf_counter()
    n_since = 0
    while progress() < 1:
        rate = plan.learning_rate * min(1, (step + 1) / plan.warm_up_steps) * _cosine(progress())
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        before = time.perf_counter()
        batch = forward.sample(plan.movies, plan.frames, (plan.size_px, plan.size_px), rng)
        simulating += time.perf_counter() - before
        loss = loss_of(model, batch, config)
        model.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), plan.gradient_norm)
        if bool(torch.isfinite(norm)) and bool(torch.isfinite(loss)):
            for optimizer in optimizers:
                optimizer.step()
            decay = min(plan.average_decay, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
            losses.append(loss.detach())
            bad = 0
        else:
            skipped, bad = skipped + 1, bad + 1
            if bad >= 20:
                raise TrainingError(
                    f"the loss was not finite in 20 steps in a row (step {step}); lower training.learning_rate, or"
                    " check that the ranges of scene, psf and camera are sane; the last checkpoint is kept"
                )
        step, n_since = step + 1, n_since + 1
        spent += time.perf_counter() - before
        last = progress() >= 1
        if step % report_every == 0 or last:
            validation = None
            if step % plan.validate_every == 0 or last:
                validation = validate(average)
                history.append({"step": step, "minutes": round(spent / 60, 2), **validation})
            elapsed = time.perf_counter() - since
            report = Progress(
                step=step,
                fraction=progress(),
                minutes=spent / 60,
                loss=float(torch.stack(losses).mean()) if losses else math.nan,
                learning_rate=rate,
                frames_per_second=n_since * plan.movies * plan.frames / elapsed,
                simulation_share=simulating / elapsed,
                skipped=skipped,
                validation=validation,
            )
            if validation is not None:
                average.record = _record(config, where, report, history, origin)
                if last:
                    average.record["figures"] = characterize(average, config, where)
                state = {
                    "config": json.dumps(to_mapping(config)),
                    "model": model.state_dict(),
                    "average": average.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "rng": rng.get_state(),
                    "step": step,
                    "skipped": skipped,
                    "seconds": spent,
                    "history": json.dumps(history),
                    "origin": json.dumps(origin),
                }
                with atomic(checkpoint) as temporary:
                    torch.save(state, temporary)
                average.save(out)
                with atomic(out.with_suffix(".json")) as temporary:
                    temporary.write_text(json.dumps(average.record, indent=1) + "\n")
            if board is not None:
                for name, value in {**asdict(report), **(validation or {})}.items():
                    if isinstance(value, float | int):
                        board.add_scalar(name, value, step)
                board.flush()
            losses, simulating, n_since = [], 0.0, 0
            yield report
            since = time.perf_counter()


def _optimizers(model: Localizer, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the convolutions; AdamW for biases and for the output layer, whose rows are separate quantities."""
    plan = config.training
    inner = [p for name, p in model.named_parameters() if p.ndim > 1 and not name.startswith("out.")]
    chosen = {id(p) for p in inner}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    if plan.optimizer == "adamw":
        rest, inner = inner + rest, []
    adam = torch.optim.AdamW(rest, lr=plan.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    return [adam, Muon(inner, plan.learning_rate, weight_decay=plan.weight_decay)] if inner else [adam]


def _cosine(fraction: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))


def _record(
    config: TrainConfig,
    device: torch.device,
    report: Progress,
    history: list[dict[str, Any]],
    origin: dict[str, Any],
) -> dict[str, Any]:
    cpu = f"{os.cpu_count()} CPU cores, {platform.machine()}"
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return {
        "config": to_mapping(config),
        "decode": decode.__version__,
        "torch": torch.__version__,
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        "steps": report.step,
        "minutes": round(report.minutes, 1),
        "skipped_steps": report.skipped,
        "validation": history,
    } | ({"start": origin} if origin else {})


def _board(log_dir: Path | str | None) -> Any:
    if log_dir is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("--log needs TensorBoard: pip install 'decode-smlm[train]'") from None
    return SummaryWriter(str(log_dir))


def _read_checkpoint(path: Path, config: TrainConfig, device: torch.device) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"--resume: there is no checkpoint {path}; train without --resume first")
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(
            f"--resume: {path} is damaged ({type(error).__name__}); train again without --resume"
        ) from None
    if json.loads(state["config"]) != to_mapping(config):
        raise ValueError(f"--resume: {path} was made with another recipe; resume with the same one, or train anew")
    state["rng"] = state["rng"].cpu()
    return state
