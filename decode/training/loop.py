"""Training: fit a Localizer to simulations of the forward model."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from decode.atomic import atomic
from decode.config import TrainConfig, to_mapping
from decode.devices import choose_device, keep_freed_memory
from decode.forward import Simulation
from decode.network.localizer import Localizer
from decode.network.record import ModelRecord
from decode.outputs import check_outputs, model_files
from decode.progress import Progress
from decode.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from decode.training.course import Course
from decode.training.diagnosis import diagnose
from decode.training.learner import Learner, Loss, OptimizerChoice, choose_optimizers, loss_of
from decode.training.processes import Processes, own_device, processes
from decode.training.validation import Figures, Validation, characterize
from decode.version import __version__

__all__ = ["TrainingReport", "check_budget", "train"]

RANK_SEED = 1_000_003
"""difference of the seeds of two processes"""


@final
@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """Figures of a running training, besides the fraction of its budget."""

    step: int
    minutes: float
    loss: float
    """mean loss since the last report, without outliers (see `loss_of`)"""
    learning_rate: float
    frames_per_second: float
    simulation_share: float
    """share of the time of a step spent on simulation"""
    skipped: int
    """steps skipped so far because the loss was not finite"""
    recovered: int = 0
    """times that the training diverged and returned to a good state"""
    validation: Figures | None = None
    """figures of the averaged model on the fixed validation set, if it was just evaluated"""
    remarks: tuple[str, ...] = ()
    """limits of the model and advice, a sentence each; at the end only"""

    @property
    def message(self) -> str:
        return f"step {self.step}, {self.frames_per_second:.0f} frames a second"


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
    loss: Loss = loss_of,
    optimizers: OptimizerChoice = choose_optimizers,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Progress[TrainingReport]]:
    """Train a model on simulations drawn on the training device, and write it to `out`.

    The learning rate is constant until the last `decay_share` of the training, over which it falls
    to 0.  The fall begins in time for the budget, or once validation no longer improves
    (`patience`).  A training that diverges, by its loss or by the efficiency of its validation,
    returns to its last good state and halves the learning rate.

    The checkpoint `<out>.checkpoint`, which is kept, and the record lie beside the model.  A
    stopped iteration keeps the last checkpoint.  On the CPU, a training of a given number of steps
    gives the same weights, bit for bit, whether it was interrupted and resumed or not (except with
    a bank of pupils, which is drawn anew).

    Under `torchrun`, the processes share every step's movies; the first one reports and writes.

    Args:
        config: the recipe.
        out: model file, `.safetensors`.
        minutes: budget of time, which the schedule of the learning rate follows; None:
            `training.steps` steps.
        device: `auto`, `cpu` or `cuda`.
        resume: continue from the checkpoint beside `out`.
        start: a model, trained on other simulations, whose weights to start from (see
            `Localizer.inherit`); None: random weights.
        log_dir: folder for TensorBoard's files; None: none are written.
        report_every: steps between two reports.
        loss: the loss to minimize.
        optimizers: chooses the optimizers.
        clock: seconds, by which the budget of minutes is measured.

    Yields:
        The fraction of the budget of steps or minutes that is spent, with a report.

    Raises:
        TrainingError: if it diverges again and again.
        OSError: if the model cannot be written.
        ResumeError: if there is nothing to resume from, or its recipe differs.
        ValueError: if `out` is no name for a model, or the minutes are not positive, or `start` has
            another shape, or the processes cannot share the movies of a step.
    """
    check_budget(minutes)
    out = Path(out)
    check_outputs(model_files(out), inputs=config.inputs())
    where = own_device(choose_device(device))
    keep_freed_memory()
    with processes(where) as team:
        training = _Training(
            config,
            out,
            device=where,
            team=team,
            minutes=minutes,
            resume=resume,
            start=start,
            loss=loss,
            optimizers=optimizers,
        )
        board = _board(log_dir) if team.first else None
        if training.over:
            ended = training.ended_before()
            yield Progress(1.0, ended.message, detail=ended)
        meter = _Meter(clock)
        while not training.over:
            rate = training.rate
            began = clock()
            batch = training.simulate()
            simulated = clock()
            loss_of_batch = training.learner.step(batch, rate)
            training.advance(seconds=clock() - began)
            meter.count(loss_of_batch, simulating=simulated - began)
            reporting = training.over or training.step % report_every == 0
            if training.learner.stuck or (reporting and training.course.diverged(meter.loss)):
                training.go_back()
            if not reporting:
                continue
            validation = training.validate() if training.validating else None
            report = training.report(meter, rate, validation)
            if validation is not None:
                report = training.keep(report, validation)
            if board is not None:
                _log(board, training.done, report)
            yield Progress(training.done, report.message, detail=report)
            meter = _Meter(clock)
        # the first process has written the model before another one reads it
        team.agreed(1.0, where)


def check_budget(minutes: float | None) -> None:
    """Check a budget of minutes.

    Raises:
        ValueError: if it is not positive and finite.
    """
    if minutes is not None and not 0 < minutes < math.inf:
        raise ValueError(f"a training of {minutes:g} minutes is asked for; give a positive number")


@final
class _Meter:
    """Losses and speed since the last report."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self._losses: list[Tensor] = []
        self.n_steps = 0
        self.simulating = 0.0
        """seconds"""

    def count(self, loss: Tensor | None, *, simulating: float) -> None:
        """Count a step, with its loss where that was finite, and the seconds of its simulation."""
        if loss is not None:
            self._losses.append(loss)
        self.n_steps += 1
        self.simulating += simulating

    @property
    def elapsed(self) -> float:
        """Seconds."""
        return self._clock() - self._began

    @property
    def loss(self) -> float:
        """Mean without the largest of every 25 losses; NaN if none was finite.

        A single molecule of which a model is certain and wrong would dominate the mean.
        """
        if not self._losses:
            return math.nan
        losses = torch.stack(self._losses).sort().values
        n_outliers = max(1, len(losses) // 25)
        return float(losses[: max(1, len(losses) - n_outliers)].mean())


@final
class _Training:
    """The state of a training, and what changes it.

    Args:
        config: the recipe.
        out: model file.
        device: device of simulations and network.
        team: processes that share every step.
        minutes, resume, start, loss, optimizers: as for `train`.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        *,
        device: torch.device,
        team: Processes,
        minutes: float | None,
        resume: bool,
        start: Localizer | None,
        loss: Loss,
        optimizers: OptimizerChoice,
    ) -> None:
        self._config, self._out, self._device, self._team = config, out, device, team
        self._minutes = minutes
        self._n_movies = team.share_of(config.training.movies)
        self._origin = _origin(start)
        # neither a second training of a model nor another process sees the same movies again
        seed = config.seed + (self._origin.steps if self._origin else 0)
        torch.manual_seed(seed)
        self._rng = torch.Generator(device).manual_seed(seed + RANK_SEED * team.rank)
        model = config.localizer()
        if start is not None:
            model.inherit(start)
        self._forward = config.forward_model()
        model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.learner = Learner(model, config.training, team, loss=loss, optimizers=optimizers)
        self.course = Course(plan=config.training)
        self.step = 0
        self._seconds = 0.0
        self._history: list[dict[str, Any]] = []
        if resume:
            self._resume(seed)
        self._validation = Validation(config, device) if team.first else None
        self._good = self.learner.state_dict()
        self._at = self._spent()

    @property
    def _checkpoint_file(self) -> Path:
        return self._out.with_suffix(".checkpoint")

    def _resume(self, seed: int) -> None:
        """Continue from the checkpoint."""
        checkpoint = read_checkpoint(
            self._checkpoint_file, self._config, self.learner, self._device
        )
        self.step, self._seconds = checkpoint.step, checkpoint.seconds
        self.course = Course(plan=self._config.training, **checkpoint.course)
        self._history, self._origin = checkpoint.history, checkpoint.origin
        if self._team.first:
            self._rng.set_state(checkpoint.rng)
        else:  # the state is that of the first; the others go on with movies that nobody has seen
            self._rng.manual_seed(seed + RANK_SEED * self._team.rank + self.step)

    def _spent(self) -> float:
        """Share of the budget that is spent, the same on all processes."""
        of_steps = self.step / self._config.training.steps
        if not self._minutes:
            return of_steps
        of_time = self._seconds / 60 / self._minutes
        return max(of_steps, self._team.agreed(of_time, self._device))

    @property
    def over(self) -> bool:
        return self._at >= self.course.end

    @property
    def done(self) -> float:
        """Share of the training that is done; it may end before its budget."""
        return min(1.0, self._at / self.course.end)

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return self.course.rate(self._at, self.step)

    @property
    def validating(self) -> bool:
        return self.over or self.step % self._config.training.validate_every == 0

    def simulate(self) -> Simulation:
        """This process's movies for a step."""
        plan = self._config.training
        shape = (plan.size_px, plan.size_px)
        return self._forward.sample(self._n_movies, plan.frames, shape, self._rng)

    def advance(self, *, seconds: float) -> None:
        """Count a step that took `seconds`."""
        self.step += 1
        self._seconds += seconds
        self._at = self._spent()

    def go_back(self) -> None:
        """Recover from divergence: restore the last good state, and halve the learning rate.

        Raises:
            TrainingError: if that did not help before.
        """
        self.learner.load_state_dict(self._good)
        self.course.recover(self.step)

    def validate(self) -> Figures | None:
        """Validate the averaged model, or the last good state where that has lost efficiency.

        Returns:
            The figures; None on all processes except the first.
        """
        figures = self._figures()
        lost = figures is not None and self.course.lost_efficiency(figures.row(), self._history)
        if self._team.agreed(float(lost), self._device):
            self.go_back()
            figures = self._figures()
        self._good = self.learner.state_dict()
        if figures is not None:
            minutes = round(self._seconds / 60, 2)
            self._history.append({"step": self.step, "minutes": minutes, **figures.row()})
        end = self.course.end_after(self._at, self._history)
        self.course.end = self._team.agreed(end, self._device)
        return figures

    def _figures(self) -> Figures | None:
        return None if self._validation is None else self._validation(self.learner.average)

    def report(self, meter: _Meter, rate: float, validation: Figures | None) -> TrainingReport:
        """A report on the training, with the learning rate of the last step."""
        plan, elapsed = self._config.training, meter.elapsed
        return TrainingReport(
            step=self.step,
            minutes=self._seconds / 60,
            loss=meter.loss,
            learning_rate=rate,
            frames_per_second=meter.n_steps * plan.movies * plan.frames / elapsed,
            simulation_share=meter.simulating / elapsed,
            skipped=self.learner.skipped,
            recovered=self.course.recovered,
            validation=validation,
        )

    def ended_before(self) -> TrainingReport:
        """Write the files of a training that had ended before it was resumed.

        A stop after the last checkpoint may have prevented them.
        """
        figures = Figures.of(self._history[-1])
        report = TrainingReport(
            step=self.step,
            minutes=self._seconds / 60,
            loss=math.nan,
            learning_rate=0.0,
            frames_per_second=0.0,
            simulation_share=0.0,
            skipped=self.learner.skipped,
            recovered=self.course.recovered,
        )
        if self._team.first:
            report = self.keep(replace(report, validation=figures), figures)
        remark = "the training had ended before; nothing was added to it"
        return replace(report, remarks=(remark, *report.remarks))

    def keep(self, report: TrainingReport, validation: Figures) -> TrainingReport:
        """Write checkpoint, model and record, at the end with figures and remarks.

        Returns:
            The report, at the end with the remarks.
        """
        model = self.learner.average
        model.record = self._record(report)
        if self.over:
            figures = characterize(model, self._config, self._device)
            remarks = diagnose(self._config, validation.row(), figures, self.course.converged)
            model.record = replace(model.record, figures=tuple(figures), remarks=tuple(remarks))
            report = replace(report, remarks=tuple(remarks))
        checkpoint = Checkpoint(
            step=self.step,
            seconds=self._seconds,
            rng=self._rng.get_state(),
            course=self.course.state(),
            history=self._history,
            origin=self._origin,
        )
        write_checkpoint(self._checkpoint_file, checkpoint, self.learner, self._config)
        model.save(self._out)
        with atomic(self._out.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(model.record.to_json(), indent=1) + "\n")
        return report

    def _record(self, report: TrainingReport) -> ModelRecord:
        return ModelRecord(
            config=to_mapping(self._config),
            decode=__version__,
            torch=torch.__version__,
            hardware=_hardware(self._device),
            threads=torch.get_num_threads(),
            processes=self._team.size,
            steps=report.step,
            minutes=round(report.minutes, 1),
            skipped_steps=report.skipped,
            recovered=report.recovered,
            validation=tuple(self._history),
            start=self._origin,
        )


def _origin(start: Localizer | None) -> ModelRecord | None:
    """The record of a model to start from, without its figures."""
    if start is None or start.record == ModelRecord():
        return None
    return replace(start.record, figures=None)


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"


def _board(log_dir: Path | str | None) -> Any:
    """TensorBoard's writer, or None.

    Raises:
        ValueError: if TensorBoard is not installed.
    """
    if log_dir is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("--log needs TensorBoard: pip install 'decode-smlm[train]'") from None
    return SummaryWriter(str(log_dir))


def _log(board: Any, fraction: float, report: TrainingReport) -> None:
    """Write the numbers of a report to TensorBoard."""
    figures = {} if report.validation is None else report.validation.row()
    values = {"fraction": fraction, **asdict(report), **figures}
    for name, value in values.items():
        if isinstance(value, float | int):
            board.add_scalar(name, value, report.step)
    board.flush()
