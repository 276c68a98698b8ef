"""Model: a shipped one, a file, or one trained for this microscope and sample."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, final

from decode.progress import DetailedSteps, Progress, Steps, relayed
from decode_napari.session import ChosenModel, ChosenPSF, OpenedMovie, Session
from decode_napari.steps.step import Step, call, command

if TYPE_CHECKING:
    from decode.network.record import ModelRecord
    from decode.training.loop import TrainingReport

__all__ = ["FIRST", "Card", "ModelStep", "TrainSettings", "card_of"]

FIRST = "gaussian-2d"
"""the shipped model that needs a movie only"""

REPORT_EVERY = 10
"""steps between two points of the curves, after which a pause or a stop takes effect"""


@final
@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings as for `decode train`."""

    out: Path | None = None
    recipe: Path | None = None
    """None estimates it from the movie, with the PSF and the camera"""
    minutes: float = 30.0
    start: str | None = None
    """model whose weights to start from, as for `decode train`: fine-tuning"""
    resume: bool = False
    """whether to continue from the checkpoint beside `out`"""
    settings: tuple[str, ...] = ()
    """`section.key=value`, which replace values of the recipe"""


@final
@dataclass(frozen=True, kw_only=True)
class Card:
    """A summary of a model."""

    name: str
    description: str
    training: str
    """duration of the training in words"""
    context: tuple[str, ...]
    """conditions of the model with their ranges"""
    figures: tuple[str, ...]
    """scores of the model, a line each"""


@final
class ModelStep(Step):
    title = "Model"
    purpose = "Choose the network that localizes, or train one for this microscope"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.settings = TrainSettings()
        self.trained: Path | None = None

    def missing(self) -> str:
        return ""

    def missing_for_training(self) -> str:
        """What is missing for a training, in a sentence; "" where nothing is."""
        if self.settings.out is None:
            return "choose the file to write the model to"
        if self.settings.recipe is not None:
            return ""
        movie = self.session.movie
        if movie is None:
            return (
                f"{self.session.why_not('movie')} to estimate a recipe from it, or choose a recipe"
            )
        if movie.camera is None:
            return "choose a recipe, or state the movie's camera, to estimate one"
        return (
            ""
            if self.session.psf is not None
            else "choose a recipe, or calibrate a PSF, to estimate one"
        )

    def done(self) -> str:
        return Path(self.session.model.name).name if self.session.model is not None else ""

    def load(self, name: str) -> Steps[ChosenModel]:
        """Load a shipped model by its name, or any model by its file.

        Raises:
            ValueError, FileNotFoundError: as `decode.models.load_model` does.
        """
        return _load(name)

    def accept(self, model: ChosenModel) -> None:
        self.session.put(model=model)

    def train(self) -> DetailedSteps[TrainingReport | None, ChosenModel]:
        """Train, from an estimate of the movie where there is no recipe; the last validated weights
        are kept on disk.

        Raises:
            ValueError, OSError, TrainingError: as `decode.training.loop.train` does.
        """
        if self.missing_for_training():
            raise ValueError(self.missing_for_training())
        return _train(self.settings, self.session.movie, self.session.psf)

    def as_command(self) -> str:
        set_, recipe = self.settings, self._recipe()
        if recipe is None or set_.out is None or self.missing_for_training():
            return ""
        movie, psf, lines = self.session.movie, self.session.psf, []
        if set_.recipe is None and movie is not None and psf is not None:
            # the training writes a camera that was estimated
            camera = {"camera": _camera_beside(recipe)} if movie.camera_name is None else {
                "camera": movie.camera_name,
                "pixel_size": movie.stated_pixel_size_nm,
                "em_gain": movie.em_gain,
            }  # fmt: skip
            estimate = command(
                "decode",
                "estimate",
                movie.path,
                psf=psf.path,
                **camera,
                allow_truncated=movie.allow_truncated,
                o=recipe,
            )
            lines = [estimate]
        train = command(
            "decode",
            "train",
            recipe,
            o=set_.out,
            minutes=set_.minutes,
            start=set_.start,
            resume=set_.resume,
        )
        for setting in set_.settings:
            train += f" {command('--set', setting)}"
        return " && ".join([*lines, train])

    def as_python(self) -> str:
        model, set_, recipe = self.session.model, self.settings, self._recipe()
        if recipe is None or set_.out is None or self.missing_for_training():
            return (
                ""
                if model is None
                else f"from decode import load_model\n\nmodel = load_model({model.name!r})"
            )
        lines: list[str] = []
        if set_.recipe is None:
            assert self.session.movie is not None
            assert self.session.psf is not None
            lines = [_estimate_in_python(self.session.movie, self.session.psf, recipe)]
        verb = call(
            "decode.train",
            repr(str(recipe)),
            repr(str(set_.out)),
            start=set_.start or None,
            settings=list(set_.settings) or None,
            minutes=set_.minutes,
            resume=set_.resume or None,
        )
        lines += [f"model = {verb}", "print(model.record.steps)"]
        return "\n".join(["import decode", "", *lines])

    def _recipe(self) -> Path | None:
        return self.settings.recipe or (
            self.settings.out and self.settings.out.with_suffix(".yaml")
        )


def card_of(model: ChosenModel) -> Card:
    """The summary of a model by its record."""
    record = model.localizer.record
    context = (
        ["the PSF, by the step PSF"]
        if model.localizer.domain.kind.needs_psf
        else [
            f"{name.replace('_', ' ')} from {low:g} to {high:g}"
            for name, (low, high) in model.localizer.context.items()
        ]
    )
    figures = [
        f"{row['density_per_um2']:g} molecules/um2 of {row['flux_photons']:g} photons: Jaccard "
        f"{row['jaccard']:.2f}, "
        f"{row['rmse_lateral_nm']:.0f} nm"
        for row in record.figures or ()
    ]
    return Card(
        name=model.name,
        description=record.description or "no description",
        training=_training_of(record),
        context=tuple(context),
        figures=tuple(figures),
    )


def _training_of(record: ModelRecord) -> str:
    if record.minutes is None:
        return "how long it was trained is not known"
    duration = f"trained for {record.minutes:.1f} minutes, {record.steps:,} steps"
    if not record.validation:
        return duration
    return f"{duration}; Jaccard {record.validation[-1]['jaccard']:.2f} on its validation movies"


def _load(name: str) -> Steps[ChosenModel]:
    from decode.models import load_model

    yield Progress(None, f"loading {Path(name).name}")
    return ChosenModel(name=name, localizer=load_model(name))


def _train(
    settings: TrainSettings, movie: OpenedMovie | None, psf: ChosenPSF | None
) -> DetailedSteps[TrainingReport | None, ChosenModel]:
    from decode.outputs import check_outputs, model_files
    from decode.verbs.train import train

    assert settings.out is not None
    recipe = settings.recipe
    check_outputs(model_files(settings.out), inputs=[recipe, settings.start])
    if recipe is None:
        assert movie is not None
        assert psf is not None
        recipe = settings.out.with_suffix(".yaml")
        yield from _estimate(movie, psf, recipe)
    yield Progress(0.0, "the training begins", detail=None)
    steps = train.steps(
        recipe,
        settings.out,
        start=settings.start,
        settings=settings.settings,
        minutes=settings.minutes,
        resume=settings.resume,
        report_every=REPORT_EVERY,
    )
    model = yield from relayed(steps, _with_remarks)
    return ChosenModel(name=str(settings.out), localizer=model)


def _with_remarks(progress: Progress[TrainingReport]) -> Progress[TrainingReport | None]:
    return replace(progress, warnings=progress.detail.remarks)


def _estimate(
    movie: OpenedMovie, psf: ChosenPSF, recipe: Path
) -> DetailedSteps[TrainingReport | None, None]:
    """Estimate a recipe, as `decode estimate` does, with a camera file beside it unless there is a
    complete one."""
    from decode.verbs.estimate import estimate

    steps = estimate.steps(
        movie.path,
        camera=movie.camera_name,
        psf=psf.path,
        out=recipe,
        pixel_size_nm=movie.stated_pixel_size_nm,
        em_gain=movie.em_gain,
        allow_truncated=movie.allow_truncated,
        compared=False,
    )
    yield from relayed(steps, _without_warnings)


def _without_warnings(progress: Progress[object]) -> Progress[TrainingReport | None]:
    """The progress without warnings, which were shown when the movie was opened."""
    return Progress(progress.fraction, progress.message, detail=None)


def _estimate_in_python(movie: OpenedMovie, psf: ChosenPSF, recipe: Path) -> str:
    """The Python code of `_estimate`."""
    return call(
        "decode.estimate",
        repr(str(movie.path)),
        camera=movie.camera_name,
        psf=str(psf.path),
        out=str(recipe),
        pixel_size_nm=movie.stated_pixel_size_nm,
        em_gain=movie.em_gain,
        allow_truncated=movie.allow_truncated or None,
        compared=False,
    )


def _camera_beside(recipe: Path) -> Path:
    from decode.outputs import camera_beside

    return camera_beside(recipe)
