"""train: fit a Localizer to simulations of the forward model."""

from __future__ import annotations

import copy
import io
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import decode
from decode.atomic import atomic
from decode.config import Optimization, TrainConfig, to_mapping
from decode.devices import choose_device, keep_freed_memory
from decode.errors import reading
from decode.forward import Simulation
from decode.network.localizer import Localizer
from decode.outputs import check_outputs, model_files
from decode.training.diagnosis import diagnose
from decode.training.muon import Muon
from decode.training.processes import Processes, own_device, processes
from decode.training.validation import Validation, characterize, posterior_of

__all__ = ["Progress", "ResumeError", "TrainingError", "check_budget", "train"]

ASTRAY = 10.0
"""points of efficiency that no training loses between two validations by chance"""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to change."""


class ResumeError(ValueError):
    """There is no checkpoint to go on from, or it is damaged, or of another recipe."""


@final
@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a training stands."""

    step: int
    fraction: float
    """of the budget of steps or minutes"""
    minutes: float
    loss: float
    """mean since the last report, without outliers: negative log posterior, nats per 100 pixels, and the background's
    error"""
    learning_rate: float
    frames_per_second: float
    simulation_share: float
    """of the time of a step"""
    skipped: int
    """steps left out so far because the loss was not finite"""
    recovered: int = 0
    """times the training diverged and went back to a good state"""
    validation: dict[str, float] | None = None
    """figures of the averaged model on the fixed validation set, when it was just evaluated"""
    remarks: tuple[str, ...] = ()
    """at the end, what limits the model and what to change, a sentence each"""


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

    The learning rate stays until the last `decay_share` of the training, and falls to 0 over it.  That begins in time
    for the budget, or once validation no longer improves (`patience`).  A training that diverges, by its loss or by the
    efficiency of its validation, goes back to its last good state and takes half the learning rate.

    Beside the model stand `<out>.checkpoint` (to resume from; removed by no one) and the record.  Stopping the
    iteration keeps the last checkpoint.  On the CPU, a training of a given number of steps that was interrupted and
    resumed gives the same weights, bit for bit, as one that was not (but for a bank of pupils, which is drawn anew).

    Started by `torchrun`, the processes share every step's movies; the first one reports and writes.

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
        TrainingError: if it diverges again and again.
        OSError: if the model cannot be written.
        ResumeError: if there is nothing to resume from, or its recipe differs.
        ValueError: if `out` is no name for a model, or the minutes are not positive, or `start` has another shape, or
            the movies of a step cannot be shared among the processes.
    """
    check_budget(minutes)
    out = Path(out)
    check_outputs(model_files(out), inputs=config.inputs())
    where = own_device(choose_device(device))
    keep_freed_memory()
    with processes(where) as team:
        yield from _train(config, out, minutes, where, team, resume, start, log_dir, report_every)


def check_budget(minutes: float | None) -> None:
    """Refuse a budget that is no time.

    Raises:
        ValueError: if it is not positive and finite.
    """
    if minutes is not None and not 0 < minutes < math.inf:
        raise ValueError(f"a training of {minutes:g} minutes is asked for; give a positive number")


def _train(
    config: TrainConfig,
    out: Path,
    minutes: float | None,
    where: torch.device,
    team: Processes,
    resume: bool,
    start: Localizer | None,
    log_dir: Path | str | None,
    report_every: int,
) -> Iterator[Progress]:
    plan = config.training
    if plan.movies % team.size:
        raise ValueError(
            f"training.movies is {plan.movies}, which {team.size} processes cannot share; make it a multiple"
        )
    origin = {} if start is None else {name: v for name, v in start.record.items() if name != "figures"}
    # a model's second training must not see the movies of its first again, nor a process those of another
    seed = config.seed + int(origin.get("steps", 0))
    torch.manual_seed(seed)
    rng = torch.Generator(where).manual_seed(seed + 1_000_003 * team.rank)
    model = config.localizer()
    if start is not None:
        model.inherit(start)
    forward = config.forward_model()
    forward.psf.to(where)
    learner = _Learner(model.to(where, memory_format=torch.channels_last), config, team)  # type: ignore[call-overload]
    checkpoint = out.with_suffix(".checkpoint")
    course = _Course(plan)
    step, spent, history = 0, 0.0, []
    if resume:
        try:
            state = _take_up(checkpoint, config, learner, where)
        except ValueError as error:
            raise ResumeError(str(error)) from error
        step, spent = state["step"], state["seconds"]
        if team.first:
            rng.set_state(state["rng"])
        else:  # the state is that of the first; the others go on with movies that nobody has seen
            rng.manual_seed(seed + 1_000_003 * team.rank + step)
        course = _Course(plan, **state["course"])
        history, origin = state["history"], state["origin"]
    validate = Validation(config, where) if team.first else None
    board = _board(log_dir) if team.first else None
    good = learner.state_dict()
    losses: list[Tensor] = []
    simulating, since, n_since = 0.0, time.perf_counter(), 0

    def position() -> float:
        of_steps = step / plan.steps
        return max(of_steps, team.agreed(spent / 60 / minutes, where)) if minutes else of_steps

    def kept(report: Progress, validation: dict[str, float]) -> Progress:
        """Write checkpoint, model and record: at the end with its figures, and what limits it."""
        average = learner.average
        average.record = _record(config, where, team, report, history, origin)
        if at >= course.end:
            average.record["figures"] = characterize(average, config, where)
            remarks = diagnose(config, validation, average.record["figures"], course.settled)
            average.record["remarks"] = remarks
            report = replace(report, remarks=tuple(remarks))
        state = {
            "config": json.dumps(to_mapping(config)),
            "learner": learner.state_dict(),
            "rng": rng.get_state(),
            "step": step,
            "seconds": spent,
            "course": json.dumps(course.state()),
            "history": json.dumps(history),
            "origin": json.dumps(origin),
        }
        image = io.BytesIO()  # torch's own writer does not say why it cannot write
        torch.save(state, image)
        with atomic(checkpoint) as temporary:
            temporary.write_bytes(image.getbuffer())
        average.save(out)
        with atomic(out.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(average.record, indent=1) + "\n")
        return report

    def ended() -> Progress:
        """Of a training that had come to its end before it was resumed; a stop may have cost its last files."""
        figures = {name: v for name, v in history[-1].items() if name not in ("step", "minutes")}
        report = Progress(
            step=step,
            fraction=1.0,
            minutes=spent / 60,
            loss=math.nan,
            learning_rate=0.0,
            frames_per_second=0.0,
            simulation_share=0.0,
            skipped=learner.skipped,
            recovered=course.recovered,
            validation=figures if team.first else None,
        )
        if team.first:
            report = kept(report, figures)
        return replace(report, remarks=("the training had ended before; nothing was added to it", *report.remarks))

    at = position()
    if at >= course.end:
        yield ended()
    while at < course.end:
        rate = course.rate(at, step)
        before = time.perf_counter()
        batch = forward.sample(plan.movies // team.size, plan.frames, (plan.size_px, plan.size_px), rng)
        simulating += time.perf_counter() - before
        loss = learner.step(batch, rate)
        step, n_since = step + 1, n_since + 1
        spent += time.perf_counter() - before
        if loss is not None:
            losses.append(loss)
        at = position()
        reporting = step % report_every == 0 or at >= course.end
        typical = _typical(torch.stack(losses)) if reporting and losses else math.nan
        if learner.bad >= 20 or (reporting and course.diverged(typical)):
            learner.load_state_dict(good)
            course.recover(step)
        if not reporting:
            continue
        validation = None
        if step % plan.validate_every == 0 or at >= course.end:
            if validate is not None:
                validation = validate(learner.average)
            if team.agreed(float(validation is not None and course.lost(validation, history)), where):
                learner.load_state_dict(good)
                course.recover(step)
                if validate is not None:  # the figures of what is kept
                    validation = validate(learner.average)
            good = learner.state_dict()
            if validation is not None:
                history.append({"step": step, "minutes": round(spent / 60, 2), **validation})
            course.end = team.agreed(course.plateau(at, history), where)
        elapsed = time.perf_counter() - since
        report = Progress(
            step=step,
            fraction=min(1.0, at / course.end),
            minutes=spent / 60,
            loss=typical,
            learning_rate=rate,
            frames_per_second=n_since * plan.movies * plan.frames / elapsed,
            simulation_share=simulating / elapsed,
            skipped=learner.skipped,
            recovered=course.recovered,
            validation=validation,
        )
        if validation is not None:
            report = kept(report, validation)
        if board is not None:
            for name, value in {**asdict(report), **(validation or {})}.items():
                if isinstance(value, float | int):
                    board.add_scalar(name, value, step)
            board.flush()
        losses, simulating, n_since = [], 0.0, 0
        yield report
        since = time.perf_counter()


def _typical(losses: Tensor) -> float:
    """Mean without the largest of every 25: a model may be so sure and so wrong of one molecule that it would decide
    the mean of all."""
    return float(losses.sort().values[: max(1, len(losses) - max(1, len(losses) // 25))].mean())


@final
class _Learner:
    """The network, the running average of its weights, and the optimizers that move it."""

    def __init__(self, model: Localizer, config: TrainConfig, team: Processes) -> None:
        self.model = model
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.skipped, self.bad, self.done = 0, 0, 0
        self._optimizers = _optimizers(model, config)
        self._plan = config.training
        self._team = team
        loss = _Loss(model, config)
        # averages the gradients of all processes while they are computed
        self._loss: nn.Module = DistributedDataParallel(loss) if team.size > 1 else loss

    def step(self, batch: Simulation, rate: float) -> Tensor | None:
        """Learn from some movies; their loss, or None if it, or its gradient, was not finite and nothing was learnt."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss = self._loss(batch)
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._plan.gradient_norm)
        loss = self._team.mean(loss.detach())
        self.done += 1
        if not (bool(torch.isfinite(norm)) and bool(torch.isfinite(loss))):
            self.skipped, self.bad = self.skipped + 1, self.bad + 1
            return None
        self.bad = 0
        for optimizer in self._optimizers:
            optimizer.step()
        decay = min(self._plan.average_decay, self.done / (9 + self.done))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that `step` changes."""
        return copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "average": self.average.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
                "done": self.done,
                "skipped": self.skipped,
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = copy.deepcopy(state)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.done, self.skipped, self.bad = state["done"], max(self.skipped, state["skipped"]), 0


@final
class _Loss(nn.Module):
    """`loss_of` as a module, for DistributedDataParallel to wrap."""

    def __init__(self, model: Localizer, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config

    def forward(self, batch: Simulation) -> Tensor:
        return loss_of(self.model, batch, self.config)


@final
class _Course:
    """Where a training is heading: its learning rate, when it ends, and whether it went astray."""

    def __init__(
        self,
        plan: Optimization,
        *,
        end: float = 1.0,
        damping: float = 1.0,
        recovered: int = 0,
        settled: bool = False,
        first_losses: Sequence[float] = (),
    ) -> None:
        self._plan = plan
        self.end = end
        """share of the budget after which the training ends"""
        self.damping = damping
        self.recovered = recovered
        self.settled = settled
        """validation had stopped improving"""
        self.first_losses = [*first_losses]
        """typical losses of the first three reports, by which later ones are judged"""

    def state(self) -> dict[str, Any]:
        names = ("end", "damping", "recovered", "settled", "first_losses")
        return {name: getattr(self, name) for name in names}

    def rate(self, at: float, step: int) -> float:
        """The learning rate at a share of the budget: rising, level, and falling linearly to 0 at the end."""
        warm = min(1.0, (step + 1) / max(1, self._plan.warm_up_steps))
        left = max(0.0, (self.end - at) / (self._plan.decay_share * self.end))
        return self._plan.learning_rate * self.damping * warm * min(1.0, left)

    def plateau(self, at: float, history: list[dict[str, Any]]) -> float:
        """When to end: as before, or sooner if neither efficiency nor honesty of the sigmas has improved for long."""
        patience = self._plan.patience
        decaying = at > self.end * (1 - self._plan.decay_share)
        if not patience or decaying or len(history) <= patience:
            return self.end
        earlier, late = history[:-patience], history[-patience:]

        def best(rows: list[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> float:
            return max((v for row in rows if math.isfinite(v := value(row))), default=-math.inf)

        def honesty(row: dict[str, Any]) -> float:
            return -abs(math.log(max(row["isolated_error_over_sigma"], 1e-3)))

        better = best(late, lambda r: r["efficiency"]) > best(earlier, lambda r: r["efficiency"]) + 0.2
        if better or best(late, honesty) > best(earlier, honesty) + 0.02:
            return self.end
        self.settled = True
        return min(self.end, at / (1 - self._plan.decay_share))

    def diverged(self, loss: float) -> bool:
        """Whether the typical loss since the last report is far beyond that of the first reports."""
        if not math.isfinite(loss):
            return True
        if len(self.first_losses) < 3:
            self.first_losses.append(loss)
            return False
        return loss >= max(abs(v) for v in self.first_losses) * 3 + 10

    @staticmethod
    def lost(validation: dict[str, float], history: list[dict[str, Any]]) -> bool:
        """Whether a model that had learnt something is so much worse that it went astray, which its loss need not tell.

        A model that finds nothing has an efficiency of 0, and one that has just begun to find may have less: only those
        that come far above 0 can be lost.
        """
        best = max((e for row in history if math.isfinite(e := row["efficiency"])), default=-math.inf)
        return best > ASTRAY and not validation["efficiency"] > best - ASTRAY

    def recover(self, step: int) -> None:
        """Take half the learning rate from now on.

        Raises:
            TrainingError: if that was done three times already.
        """
        if self.recovered == 3:
            raise TrainingError(
                f"the training diverged for the fourth time (step {step}), each time from its last good state with half"
                " the learning rate; lower training.learning_rate, or check that the ranges of scene, psf and camera"
                " are sane; the last checkpoint is kept"
            )
        self.recovered += 1
        self.damping /= 2


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


def _record(
    config: TrainConfig,
    device: torch.device,
    team: Processes,
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
        **({"processes": team.size} if team.size > 1 else {}),
        "steps": report.step,
        "minutes": round(report.minutes, 1),
        "skipped_steps": report.skipped,
        **({"recovered": report.recovered} if report.recovered else {}),
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


def _take_up(path: Path, config: TrainConfig, learner: _Learner, device: torch.device) -> dict[str, Any]:
    """What a checkpoint says of a training; the learner becomes the one that it kept.

    Raises:
        ValueError: if there is none, it is damaged, or of another recipe.
    """
    if not path.is_file():
        raise ValueError(f"--resume: there is no checkpoint {path}; train without --resume first")
    with reading(path, "a checkpoint of this training", "train again without --resume"):
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        if json.loads(state["config"]) != to_mapping(config):
            raise ValueError(f"--resume: {path} was made with another recipe; resume with the same one, or train anew")
        weights = [t for kept in ("model", "average") for t in state["learner"][kept].values()]
        if not all(bool(weight.isfinite().all()) for weight in weights):
            raise ValueError("its weights hold NaN or infinite values")
        learner.load_state_dict(state["learner"])
        torch.Generator(device).set_state(state["rng"].cpu())
        state |= {name: json.loads(state[name]) for name in ("course", "history", "origin")}
        _Course(config.training, **state["course"])
        if not all(math.isfinite(state[name]) and state[name] >= 0 for name in ("step", "seconds")):
            raise ValueError("its step or its time is no number")
        needed = {"step", "efficiency", "isolated_error_over_sigma"}
        if not state["history"] or not all(needed <= row.keys() for row in state["history"]):
            raise ValueError("its history lacks figures")
        return state | {"rng": state["rng"].cpu(), "origin": dict(state["origin"])}
