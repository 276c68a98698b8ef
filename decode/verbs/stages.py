"""Stages of work whose files are kept in a folder, and not made again from unchanged inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar, final

from torch import Tensor

from decode.atomic import atomic
from decode.config import load_config
from decode.errors import reading
from decode.io.cameras import CameraFile
from decode.models import NEAREST
from decode.outputs import model_files, psf_files, recipe_files
from decode.progress import DetailedSteps, Progress, relayed
from decode.training.checkpoint import ResumeError
from decode.training.loop import TrainingReport
from decode.verbs.train import train
from decode.version import __version__

__all__ = [
    "AS_IT_WAS",
    "Done",
    "Made",
    "Stage",
    "StageName",
    "ended",
    "key_of",
    "marks_of",
    "of_stage",
    "trained",
]

D = TypeVar("D")
R = TypeVar("R")

StageName: TypeAlias = Literal[
    "calibrate", "estimate", "train", "localize", "refine", "rounds", "finish"
]

AS_IT_WAS = "as it was"
"""message of a stage whose output is reused"""
UNFINISHED = 0.999
"""largest fraction of a stage whose files are not complete"""


@final
@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage; the fraction of its progress is that of the stage."""

    name: StageName
    files: tuple[Path, ...] = ()
    """files that it wrote, when it has ended"""


@final
class Made:
    """The files of the stages in a folder, and which of them exist.

    Args:
        folder: the folder.
        number: that of the round; files of later ones have it in their names.
    """

    def __init__(self, folder: Path, number: int = 1) -> None:
        self.folder = folder
        of_round = f"-{number}" if number > 1 else ""
        self.psf, self.report = psf_files(folder / f"psf{of_round}.h5")
        self.camera = folder / "camera.yaml"
        self.recipe, self.picture = recipe_files(folder / f"train{of_round}.yaml")
        self.model, self.record, self.checkpoint = model_files(
            folder / f"model{of_round}.safetensors"
        )
        self.done = Done(folder / f"run{of_round}.json")


@final
class Done:
    """The finished stages and the keys of their inputs, in a small JSON in the output folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: dict[str, str] = {}
        with suppress(ValueError, OSError), reading(path, "a note of stages"):
            self._keys = dict(
                json.loads(path.read_text(encoding="utf-8"))
            )  # a damaged note costs time, no more

    def has(self, stage: str, key: str, *files: Path) -> bool:
        return self._keys.get(stage) == key and all(file.is_file() for file in files)

    def forget(self, stage: str) -> None:
        self._keys.pop(stage, None)

    def note(self, stage: str, key: str) -> None:
        self._keys[stage] = key
        with atomic(self._path) as temporary:
            temporary.write_text(json.dumps(self._keys, indent=1), encoding="utf-8")


def trained(
    made: Made,
    key: str,
    *,
    settings: Sequence[str] = (),
    minutes: float,
    device: str,
    start: Path | str = NEAREST,
) -> DetailedSteps[Stage, bool]:
    """Train the model of the recipe in the folder.

    A training that was stopped goes on from its last checkpoint.  A recipe that the user has edited
    since is trained as it is.

    Args:
        made: the folder, which holds a recipe.
        key: of the recipe's inputs.
        settings: `section.key=value`, to replace what the recipe says.
        minutes, device: of the training, as `train` takes them.
        start: the model to begin with; the shipped one that is nearest, unless stated.

    Returns:
        Whether it was trained now; False where it was there.
    """
    config = load_config(made.recipe, settings)
    key = key_of(key, made.recipe.read_text(encoding="utf-8"), list(settings), minutes)
    message = AS_IT_WAS
    missing = not made.done.has("train", key, made.model)
    if missing:
        resume = made.done.has("training", key)
        if not resume:
            _set_aside(made.checkpoint)
        made.done.forget("train")  # from now on the model is another
        made.done.note("training", key)
        message = ""
        begin = partial(train.steps, config, made.model, start=start)
        for step in _training(partial(begin, minutes=minutes, device=device), made, resume=resume):
            validation = step.detail.validation
            if validation is not None:
                figures = (f"{name} {value:.3g}" for name, value in validation.row().items())
                message = ", ".join(figures)
            fraction = min(step.fraction or 0.0, UNFINISHED)
            yield Progress(fraction, message or step.message, detail=Stage(name="train"))
        made.done.note("train", key)
    yield ended("train", message, made.model, made.record)
    return missing


def _training(
    steps: Callable[..., Iterator[Progress[TrainingReport]]], made: Made, *, resume: bool
) -> Iterator[Progress[TrainingReport]]:
    """Resume a training if its checkpoint is intact and `resume` is set, else start one."""
    if resume:
        try:
            yield from steps(resume=True)
            return
        except ResumeError:  # stopped before its first checkpoint, or this was damaged
            _set_aside(made.checkpoint)
    yield from steps()


def of_stage(name: StageName, steps: DetailedSteps[D, R]) -> DetailedSteps[Stage, R]:
    """The steps of a verb as a stage, without warnings, which come before all stages."""

    def own_stage(own: Progress[D]) -> Progress[Stage]:
        fraction = min(own.fraction or 0.0, UNFINISHED)
        return Progress(fraction, own.message, detail=Stage(name=name))

    return relayed(steps, own_stage)


def ended(name: StageName, message: str, *files: Path) -> Progress[Stage]:
    """The last step of a stage."""
    return Progress(1.0, message, detail=Stage(name=name, files=files))


def key_of(*inputs: object) -> str:
    """The same for equal inputs of this version of decode.

    Example:
        >>> key_of(50, [0.5]) == key_of(50.0, [0.5]), key_of(50) == key_of("50")
        (True, False)
    """
    content = [_plain(value) for value in (__version__, *inputs)]
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def _plain(value: object) -> object:
    """A value whose text is the same for equal values: 50 for 50.0."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__name__, *(_plain(getattr(value, f.name)) for f in fields(value))]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def marks_of(camera: CameraFile) -> list[object]:
    """All that a camera states, maps by their content, for `key_of`."""
    values = (getattr(camera.camera, f.name) for f in fields(camera.camera))
    return [camera.pixel_size_nm, *(_digest(v) if isinstance(v, Tensor) else v for v in values)]


def _digest(values: Tensor) -> tuple[object, ...]:
    content = values.cpu().numpy().tobytes()
    return (*values.shape, hashlib.sha256(content).hexdigest())


def _set_aside(checkpoint: Path) -> None:
    if checkpoint.is_file():
        model = checkpoint.stem
        checkpoint.replace(checkpoint.with_stem(f"{model}-before"))
