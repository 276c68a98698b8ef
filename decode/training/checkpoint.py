"""Checkpoint: the state from which a stopped training resumes."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from decode.atomic import atomic
from decode.config import TrainConfig, to_mapping
from decode.errors import reading
from decode.network.record import ModelRecord
from decode.training.course import Course
from decode.training.learner import Learner

__all__ = ["Checkpoint", "ResumeError", "read_checkpoint", "write_checkpoint"]


class ResumeError(ValueError):
    """A training cannot be resumed: its checkpoint is missing, damaged, or of another recipe."""


@final
@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a training, besides that of its learner."""

    step: int
    seconds: float
    """time spent on steps"""
    rng: Tensor
    """state of the generator of the first process"""
    course: dict[str, Any] = field(default_factory=dict)
    """`Course.state`"""
    history: list[dict[str, Any]] = field(default_factory=list)
    """figures of the validations"""
    origin: ModelRecord | None = None
    """record of the model whose weights it started from; None: random weights"""


def write_checkpoint(
    path: Path, checkpoint: Checkpoint, learner: Learner, config: TrainConfig
) -> None:
    """Write the state of a training, or leave the file as it was.

    Raises:
        OSError: if it cannot be written.
    """
    state = {
        "config": json.dumps(to_mapping(config)),
        "learner": learner.state_dict(),
        "rng": checkpoint.rng,
        "step": checkpoint.step,
        "seconds": checkpoint.seconds,
        "course": json.dumps(checkpoint.course),
        "history": json.dumps(checkpoint.history),
        "origin": json.dumps(checkpoint.origin.to_json() if checkpoint.origin else {}),
    }
    image = io.BytesIO()  # torch's own writer does not say why it cannot write
    torch.save(state, image)
    with atomic(path) as temporary:
        temporary.write_bytes(image.getbuffer())


def read_checkpoint(
    path: Path, config: TrainConfig, learner: Learner, device: torch.device
) -> Checkpoint:
    """Read the state of a training; the learner takes over its part.

    Raises:
        ResumeError: if there is no checkpoint, it is damaged, or of another recipe.
    """
    if not path.is_file():
        raise ResumeError(f"--resume: there is no checkpoint {path}; train without --resume first")
    try:
        with reading(path, "a checkpoint of this training", "train again without --resume"):
            return _read(path, config, learner, device)
    except ValueError as error:
        raise ResumeError(str(error)) from error


def _read(path: Path, config: TrainConfig, learner: Learner, device: torch.device) -> Checkpoint:
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    if json.loads(state["config"]) != to_mapping(config):
        raise ValueError(
            f"--resume: {path} was made with another recipe; "
            "resume with the same one, or train anew"
        )
    origin = json.loads(state["origin"])
    checkpoint = Checkpoint(
        step=state["step"],
        seconds=state["seconds"],
        rng=state["rng"].cpu(),
        course=json.loads(state["course"]),
        history=json.loads(state["history"]),
        origin=ModelRecord.from_json(origin) if origin else None,
    )
    _check(checkpoint, config, device)
    _check_weights(state["learner"])
    learner.load_state_dict(state["learner"])
    return checkpoint


def _check(checkpoint: Checkpoint, config: TrainConfig, device: torch.device) -> None:
    """Fail unless a training can resume from the checkpoint."""
    torch.Generator(device).set_state(checkpoint.rng)
    Course(plan=config.training, **checkpoint.course)
    for number in (checkpoint.step, checkpoint.seconds):
        if not (math.isfinite(number) and number >= 0):
            raise ValueError("its step or its time is no number")
    needed = {"step", "efficiency", "isolated_error_over_sigma"}
    history = checkpoint.history
    if not history or not all(needed <= row.keys() for row in history):
        raise ValueError("its history lacks figures")


def _check_weights(learner: dict[str, Any]) -> None:
    for kept in ("model", "average"):
        for weight in learner[kept].values():
            if not bool(weight.isfinite().all()):
                raise ValueError("its weights hold NaN or infinite values")
