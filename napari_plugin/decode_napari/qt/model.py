"""The panel of the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, final

from napari.utils.notifications import show_info
from qtpy.QtWidgets import QCheckBox, QGroupBox, QHBoxLayout, QLineEdit, QVBoxLayout

from decode.models import NEAREST, shipped_models
from decode.progress import Progress
from decode_napari.qt.panel import Panel, button, choice, note, number
from decode_napari.qt.plot import Plot
from decode_napari.qt.runner import sentence_of
from decode_napari.qt.window import Window
from decode_napari.session import ChosenModel
from decode_napari.steps.model import FIRST, ModelStep, TrainSettings, card_of

if TYPE_CHECKING:
    from decode.training.loop import TrainingReport

__all__ = ["ModelPanel"]

FROM_FILE = "choose a model file…"
FROM_MOVIE = "estimate it from the movie"
FROM_NEAREST, FROM_NOTHING = "the nearest shipped model", "random weights"


@final
class ModelPanel(Panel):
    def __init__(self, step: ModelStep, dock: Window) -> None:
        super().__init__(step, dock)
        self.step = step
        self._before: ChosenModel | None = None
        """the model that gave way to one that is being loaded"""
        self._curves: dict[str, tuple[list[float], list[float]]] = {}
        self.model = self.row(
            "model", choice([*_shipped(), FROM_FILE]), "The network that localizes"
        )
        self.model.activated.connect(lambda _: self._chosen())
        self.about = note()
        self.column.addWidget(self.about)

        box = QGroupBox("Train one for this microscope")
        inner = QVBoxLayout(box)
        self.form = type(self.form)()  # the rows that follow stand in the box
        inner.addLayout(self.form)
        self.recipe = self.row(
            "recipe",
            choice([FROM_MOVIE, "choose a recipe…"]),
            "What is simulated: estimated, or a YAML file",
        )
        self.recipe.activated.connect(lambda _: self._recipe_chosen())
        self.start_from = self.row(
            "start from",
            choice([FROM_NEAREST, *_shipped(), FROM_NOTHING]),
            "Weights to start from: fine-tuning is quicker; the nearest model is the one that "
            "knows this PSF",
        )
        self.minutes = self.row("minutes", number(0.1, 100_000, 30), "Of training")
        self.out = self.row(
            "write to",
            QLineEdit(),
            "Model file, .safetensors; it is written at every validation",
            option="out",
        )
        self.changes = self.row(
            "changes",
            QLineEdit(),
            "In place of what the recipe says: section.key=value, several with blanks between",
            option="set",
        )
        browse = button("Choose…", "Where to write the model", self._ask_out)
        self.resume = QCheckBox("go on from its last checkpoint")
        self.resume.setToolTip(
            "Continue the training of the model file above, with the same recipe"
        )
        inner.addWidget(self.resume)
        buttons = QHBoxLayout()
        self.train_button = button("Train", "Simulate and train", self.train)
        self.pause_button = button("Pause", "Pause the training, or continue it", self._pause)
        self.stop_button = button(
            "Stop early", "End now; the weights of the last validation are kept", self._stop
        )
        for each in (browse, self.train_button, self.pause_button, self.stop_button):
            buttons.addWidget(each)
        inner.addLayout(buttons)
        self.loss = Plot("loss", "minutes")
        self.jaccard = Plot("Jaccard index", "minutes")
        self.error = Plot("lateral error, nm", "minutes")
        for plot in (self.loss, self.jaccard, self.error):
            inner.addWidget(plot)
        self.state = note()
        inner.addWidget(self.state)
        self.column.addWidget(box)
        self.column.addStretch()
        dock.memory.bind("model/minutes", self.minutes)
        self.refresh()

    def begin(self) -> None:
        if self.step.session.model is None:
            self.load(next(iter(_shipped()), ""))
        else:
            self._add(self.step.session.model.name)

    def refresh(self) -> None:
        training = self.dock.runner.busy and self.dock.runner.title == "training"
        self._read()
        missing = self.step.missing_for_training()
        self.train_button.setEnabled(not self.dock.runner.busy)
        for each in (self.pause_button, self.stop_button):
            each.setEnabled(training)
        if not training:
            self.state.setText(f"To train, {missing}." if missing else "")
            self.pause_button.setText("Pause")
        model = self.step.session.model
        if model is not None:
            card = card_of(model)
            needs = f" It needs {', '.join(card.context)}." if card.context else ""
            trained = f"{card.training[:1].upper()}{card.training[1:]}."
            lines = [
                f"{card.description[:1].upper()}{card.description[1:]}.{needs}",
                trained,
                *card.figures[:4],
            ]
            self.about.setText("\n".join(lines))
        else:
            why = self.step.session.why_not("model")
            self.about.setText(f"{why[:1].upper()}{why[1:]}.")

    def load(self, name: str, loaded: Callable[[ChosenModel], None] | None = None) -> None:
        """Take a shipped model or a model file."""
        self.forgive()
        if not name:
            return
        self._before = self.step.session.model or self._before
        self.step.session.withdraw("model", f"{Path(name).name} is being loaded")

        def refused(error: Exception) -> None:
            self.step.session.withdraw("model", f"the model cannot be used: {sentence_of(error)}")
            self.blame(error)

        self.dock.loader.start(
            f"loading {name}",
            lambda: self.step.load(name),
            returned=loaded or self._loaded,
            failed=refused,
        )

    def train(self) -> None:
        """Train in a thread, with live curves."""
        self._read()
        self._curves = {}
        self.work(
            "training",
            self.step.train,
            reported=self._reported,
            returned=self._trained,
            ended=self._training_ended,
            uses_movie=True,
        )
        self.refresh()

    def _read(self) -> None:
        start: str | None = self.start_from.currentText()
        start = {FROM_NEAREST: NEAREST, FROM_NOTHING: None}.get(str(start), start)
        self.step.settings = TrainSettings(
            out=Path(self.out.text()) if self.out.text() else None,
            recipe=None if self.recipe.currentData() is None else Path(self.recipe.currentData()),
            minutes=self.minutes.value(),
            start=start,
            resume=self.resume.isChecked(),
            settings=tuple(self.changes.text().split()),
        )

    def _reported(self, progress: Progress[TrainingReport | None]) -> None:
        self.state.setText(progress.message)
        report = progress.detail
        if report is None:
            return
        points = [(self.loss, "loss", report.loss)]
        if (figures := report.validation) is not None:
            points.append((self.jaccard, "jaccard", figures.jaccard))
            points.append((self.error, "rmse_lateral_nm", figures.rmse_lateral_nm))
        for plot, name, value in points:
            x, y = self._curves.setdefault(name, ([], []))
            x.append(report.minutes)
            y.append(value)
            plot.set_lines({name: (x, y)})

    def _training_ended(self) -> None:
        out = self.step.settings.out
        if out is not None and out.is_file():
            self._add(str(out))
            if self.step.session.model is None or self.step.session.model.name != str(out):
                self.load(
                    str(out), self._trained
                )  # stopped early: the weights of the last validation
        self.refresh()

    def _trained(self, model: ChosenModel) -> None:
        """Choose the trained model, and report it."""
        before = self.step.session.model or self._before
        self._loaded(model)
        instead = (
            ""
            if before is None or before.name == model.name
            else f" in place of {Path(before.name).name}"
        )
        show_info(
            f"{Path(model.name).name}, {card_of(model).training}, is the model that localizes "
            f"now{instead}"
        )

    def _loaded(self, model: ChosenModel) -> None:
        self.step.accept(model)
        self._add(model.name)

    def _add(self, name: str) -> None:
        index = self.model.findText(name) if name in shipped_models() else self.model.findData(name)
        if index < 0:
            index = self.model.count() - 1
            self.model.insertItem(index, Path(name).name, name)
        self.model.setCurrentIndex(index)

    def _chosen(self) -> None:
        if self.model.currentText() == FROM_FILE:
            path = self.ask_open("Model", "Models (*.safetensors)")
            model = self.step.session.model
            if path is not None:
                self.load(str(path))
            elif model is not None:
                self._add(model.name)
        else:
            self.load(self.model.currentData() or self.model.currentText())

    def set_recipe(self, path: Path) -> None:
        """Train by a recipe on disk."""
        self.recipe.insertItem(1, path.name, str(path))
        self.recipe.setCurrentIndex(1)
        self.refresh()

    def _recipe_chosen(self) -> None:
        if self.recipe.currentIndex() == self.recipe.count() - 1:
            path = self.ask_open("Recipe", "Recipes (*.yaml *.yml)")
            self.recipe.setCurrentIndex(0)
            if path is not None:
                self.set_recipe(path)
        self.refresh()

    def _ask_out(self) -> None:
        path = self.ask_save("Write model to", "model.safetensors", "Models (*.safetensors)")
        if path is not None:
            self.out.setText(str(path))
            self.refresh()

    def _pause(self) -> None:
        self.dock.runner.toggle_pause()
        self.pause_button.setText("Go on" if self.pause_button.text() == "Pause" else "Pause")

    def _stop(self) -> None:
        self.dock.runner.stop()


def _shipped() -> list[str]:
    """Names of the shipped models, the most general one first."""
    return sorted(shipped_models(), key=lambda name: name != FIRST)
