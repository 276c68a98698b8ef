"""train: a recipe to a model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from decode.calibrate.as_pupil import calibrated_pupil
from decode.conditioning import KnownOptics
from decode.config import TrainConfig, load_config
from decode.models import NEAREST, load_model
from decode.network.localizer import Localizer
from decode.outputs import check_outputs, model_files
from decode.progress import DetailedSteps, Progress, Stepwise, relayed
from decode.training import loop
from decode.verbs.calibrate_model import MOVIES, calibrate_model

__all__ = ["conditioned_for", "starting_model", "train"]

STARTS = ("astigmatic-3d", "gaussian-2d")
"""models whose weights a training may start from, in the order in which they are tried"""
CALIBRATED_MINUTES = 10.0
"""a shorter training is not worth the minute or two in which a model is calibrated"""


@Stepwise
def train(
    recipe: TrainConfig | Path | str,
    out: Path | str,
    *,
    start: Localizer | Path | str | None = None,
    settings: Sequence[str] = (),
    minutes: float | None = None,
    device: str = "auto",
    resume: bool = False,
    log_dir: Path | str | None = None,
    report_every: int = 50,
) -> DetailedSteps[loop.TrainingReport, Localizer]:
    """Train a model on simulations of a recipe, calibrate it, and write it to a file.

    After `CALIBRATED_MINUTES` or more of training, fresh simulations say what it states too boldly
    or too timidly (`calibrate_model`); the model corrects it, and carries the record.

    `train.steps` does the same step by step: details are losses and figures of validations.

    Args:
        recipe: a recipe, or its file.
        out: model file, `.safetensors`; its record and the checkpoint stand beside it.
        start: an argument of `starting_model`, or a model; None starts from random weights.
        settings: `section.key=value`, which replace values of the recipe's file.
        minutes, device, resume, log_dir, report_every: as for `decode.training.loop.train`.

    Returns:
        The trained model.

    Raises:
        ValueError, OSError, TrainingError: in one sentence, as `decode.training.loop.train` does.

    Example:
        A training of a minute or more; here two steps of a small network.

        >>> import tempfile
        >>> small = ["frame_widths=[4]", "sequence_widths=[4]", "head_width=4"]
        >>> settings = [f"network.{key}" for key in small]
        >>> settings += ["training.steps=2", "training.size_px=16", "training.warm_up_steps=0"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model = train(
        ...         "configs/gaussian-2d.yaml",
        ...         f"{folder}/model.safetensors",
        ...         settings=settings,
        ...         device="cpu",
        ...     )
        >>> model.record.steps
        2
    """
    check_outputs(model_files(Path(out)), inputs=[recipe, start])
    config = recipe if isinstance(recipe, TrainConfig) else load_config(recipe, settings)
    origin = starting_model(start, config) if isinstance(start, Path | str) else start
    training = loop.train(
        config,
        out,
        minutes=minutes,
        device=device,
        resume=resume,
        start=origin,
        log_dir=log_dir,
        report_every=report_every,
    )
    for progress in training:
        yield progress
    model, ended = load_model(out), progress.detail
    # of several processes (torchrun) the first one goes on
    if ended.minutes < CALIBRATED_MINUTES or os.environ.get("RANK", "0") != "0":
        return model

    def reported(step: Progress[object]) -> Progress[loop.TrainingReport]:
        return Progress(1.0, step.message, step.warnings, ended)

    calibration = calibrate_model.steps(model, out, movies=MOVIES, device=device)
    return (yield from relayed(calibration, reported))


def conditioned_for(model: Localizer, config: TrainConfig) -> Localizer:
    """A model to start from, conditioned on the recipe's PSF where it serves many.

    Raises:
        ValueError: if the recipe's PSF is none of those it serves.
    """
    domain = model.domain
    serves_many = bool(model.network.context_width) and domain.kind.needs_psf
    file = config.psf.calibrated() if serves_many else None
    if file is None:
        return model
    pupil = partial(calibrated_pupil, file)
    known = domain.conditioning(KnownOptics(pixel_size_nm=config.pixel_size_nm, pupil=pupil))
    shift_px = -known.z_offset_nm / config.pixel_size_nm
    context = model.context_map(known.values)
    return model.conditioned_on(context, z_sign=known.z_sign, z_shift_px=shift_px)


def starting_model(name: Path | str, config: TrainConfig) -> Localizer | None:
    """The model that a training starts from.

    Args:
        name: a shipped model, a model file, or `NEAREST`: the first shipped one that knows the
            recipe's PSF.
        config: the recipe.

    Returns:
        The model, conditioned on the recipe's PSF; None where no model has the network of the
        recipe.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if the named one does not serve the recipe's PSF.
    """
    if name != NEAREST:
        return conditioned_for(load_model(name), config)
    for shipped in map(load_model, STARTS):
        same_inputs = replace(
            config.network, axial=shipped.network.axial, context_width=shipped.network.context_width
        )
        if same_inputs == shipped.network:
            try:
                return conditioned_for(shipped, config)
            except ValueError:  # a PSF of another kind
                continue
    return None
