"""The panel of the movie."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import numpy as np
from napari.utils.notifications import show_info
from qtpy.QtCore import QSignalBlocker, QTimer
from qtpy.QtWidgets import QCheckBox, QHBoxLayout

from decode.io.cameras import camera_presets
from decode.io.movies import movie_suffixes, open_movie
from decode_napari.layers import LazyFrames, movie_layer, placement
from decode_napari.qt.panel import MOVIES, Panel, button, choice, note, number
from decode_napari.qt.plot import Plot
from decode_napari.qt.remembered import Remembered
from decode_napari.qt.runner import sentence_of
from decode_napari.qt.window import Window
from decode_napari.steps.localize import LocalizeStep
from decode_napari.steps.movie import MovieCheck, MovieSettings, MovieStep, asks_em_gain

__all__ = ["MoviePanel"]

ESTIMATE = "estimate it from the movie"
FROM_FILE = "choose a camera file…"
CHECKING = "checking the movie"


@final
class MoviePanel(Panel):
    def __init__(self, step: MovieStep, dock: Window) -> None:
        super().__init__(step, dock)
        self.step = step
        self._layer: Any = None
        """layer of the movie; None where none is open"""
        self._path: Path | None = None
        """path of the movie that was opened last"""
        self._arrived: list[Any] = []
        """layers of movies that came into the viewer"""
        self._is_due = False
        """the movie is to be checked once the work that goes on has ended"""
        self._camera: str | None = None

        files = QHBoxLayout()
        self.open_button = button(
            "Open movie…", "Open a TIFF movie; frames are read as they are looked at", self._ask
        )
        self.close_button = button(
            "Close movie",
            "Close the movie, and start over: molecules that are not saved are kept",
            self.close_movie,
        )
        files.addWidget(self.open_button)
        files.addWidget(self.close_button)
        self.column.insertLayout(1, files)
        self.movies = self.row(
            "movie",
            choice([]),
            "The movie to work on, of those that were opened here; the one before is closed",
        )
        self.movies.activated.connect(lambda _: self._movie_chosen())
        self.camera = self.row(
            "camera",
            choice([ESTIMATE, *camera_presets(), FROM_FILE]),
            "Turns counts into photons: a preset (typical values, to be checked), a camera file, "
            "or an estimate",
        )
        self.camera.activated.connect(lambda _: self._camera_chosen())
        self.pixel_size = self.row(
            "pixel size",
            number(0, 2000, 0, unit="nm", none="as the files state"),
            "Side of a pixel in the sample, nm",
        )
        self.em_gain = self.row(
            "EM gain",
            number(0, 2000, 0, digits=0, none="none"),
            "Gain of the register, for an EMCCD preset",
        )
        self.allow_truncated = self.row(
            "cut short",
            QCheckBox("allow truncated"),
            "Accept a truncated movie: take its complete frames",
            option="allow-truncated",
        )
        self.allow_truncated.toggled.connect(lambda _: self._changed())
        self.remembered = Remembered(self.check)
        """settings of the previous movie, or of an earlier window"""
        self._for_next: set[str] = set()
        """fields that were stated while no movie was open"""
        self.column.addWidget(self.remembered)
        for name, box in (("pixel size", self.pixel_size), ("EM gain", self.em_gain)):
            box.valueChanged.connect(lambda _, name=name: self._stated(name))
        buttons = QHBoxLayout()
        self.check_button = button(
            "Check again", "Read the camera again and count photons", self.check
        )
        self.go_button = button(
            "Localize", "Localize the whole movie with the model chosen", self._localize
        )
        buttons.addWidget(self.check_button)
        buttons.addWidget(self.go_button)
        self.column.addLayout(buttons)
        self.photons = Plot("photons per pixel", "photons")
        self.column.addWidget(self.photons)
        self.remarks = note()
        self.column.addWidget(self.remarks)
        self.column.addStretch()
        dock.memory.bind("movie/pixel size", self.pixel_size)
        dock.memory.bind("movie/em gain", self.em_gain)
        self._restore_camera()
        self._for_next.clear()
        self._offer_remembered()
        # layers are changed only once the one that is being inserted is there, and nothing else is
        # being done
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(0)
        self._soon.timeout.connect(self._take_up)
        dock.runner.ended.connect(self._soon.start)
        self.refresh()

    def begin(self) -> None:
        viewer = self.dock.viewer
        self.dock.follow(viewer.layers.events.inserted, lambda event: self._layer_came(event.value))
        self.dock.follow(viewer.layers.events.removed, lambda event: self._layer_went(event.value))
        layers = [layer for layer in viewer.layers if path_of(layer)]
        for layer in layers:
            self._list(layer)
        before = self.step.session.movie
        if before is not None:
            self._path = before.path
            for name in tuple(
                self.remembered.waiting
            ):  # they are this movie's: only the panel was closed
                self.remembered.settle(name)
            self.step.session.withdraw("movie")
            layers = [layer for layer in layers if path_of(layer) == str(before.path)]
        if layers:
            self._choose(layers[0])

    def refresh(self) -> None:
        is_free, is_open = not self.dock.movie_in_use, self._layer is not None
        for widget in (
            self.open_button,
            self.movies,
            self.camera,
            self.pixel_size,
            self.em_gain,
            self.allow_truncated,
        ):
            widget.setEnabled(is_free)
        for each in (self.close_button, self.check_button):
            each.setEnabled(is_free and is_open)
        missing = self.dock.step(LocalizeStep).missing()
        self.go_button.setEnabled(not missing and not self.dock.runner.busy)
        self.go_button.setToolTip(missing or "Localize the whole movie with the model chosen")
        self.form.setRowVisible(self.em_gain, asks_em_gain(self._named()))
        self._say()

    def open(self, path: Path) -> None:
        """Show a movie as a lazy layer, and check it."""
        self.forgive()
        try:
            movie = open_movie(path, allow_truncated=self.allow_truncated.isChecked())
            data, options, _ = movie_layer(movie, self.pixel_size.value() or movie.pixel_size_nm)
        except (ValueError, OSError) as error:
            self.blame(error)
            self._show_which()
            return
        self.dock.viewer.add_image(data, **options)

    def close_movie(self) -> None:
        """Start again, without a movie."""
        layer = self._layer
        if layer is None or not self._began_afresh():
            return
        self.movies.removeItem(self.movies.findData(path_of(layer)))
        self.dock.viewer.layers.remove(layer)
        self._path = None

    def set_camera(self, name: str | None) -> None:
        """Choose the camera: a preset's name, a camera file, or None to estimate it."""
        self._settle("camera")
        if name is None:
            self.camera.setCurrentText(ESTIMATE)
        elif name in camera_presets():
            self.camera.setCurrentText(name)
        else:
            index = self.camera.findData(name)
            if index < 0:
                index = self.camera.count() - 1
                self.camera.insertItem(index, Path(name).name, name)
            self.camera.setCurrentIndex(index)
        self._camera = name
        self.dock.memory.set_text("movie/camera", name or "")
        self.refresh()

    def check(self) -> None:
        """Check the movie and its camera in a thread; until then, there is no movie in the
        session."""
        path = None if self._layer is None else path_of(self._layer)
        if path is None:
            self.blame(
                ValueError("no movie is open: open a TIFF file, or drag one into the viewer")
            )
            return
        self._settle_what_the_movie_states()
        if self.remembered.ask(
            {"camera", "pixel size"} | ({"EM gain"} if asks_em_gain(self._named()) else set())
        ):
            self.forgive()
            if self.dock.runner.title == CHECKING:
                self.dock.runner.stop()
            self.step.session.withdraw(
                "movie", "confirm the settings that are remembered, in the step Movie"
            )
            return
        named = self._named()
        self.step.settings = MovieSettings(
            path=Path(path),
            camera=named,
            pixel_size_nm=self.pixel_size.value() or None,
            em_gain=(self.em_gain.value() or None) if asks_em_gain(named) else None,
            allow_truncated=self.allow_truncated.isChecked(),
        )
        runner, session = self.dock.runner, self.step.session
        self._is_due = runner.busy and runner.title != CHECKING
        if self._is_due:
            session.withdraw("movie", f"the movie is checked once this has ended: {runner.title}")
            return
        session.withdraw("movie", "the movie is being checked")
        self.work(
            CHECKING, self.step.check, returned=self._checked, ended=self._check_ended, anew=True
        )

    def _checked(self, checked: MovieCheck) -> None:
        if self._layer is None:
            return
        self.step.accept(checked)
        self.photons.set_bars(checked.counts, checked.edges)
        place = placement(checked.movie.pixel_size_nm)
        if not np.allclose(self._layer.scale, place["scale"]):
            for name, value in place.items():
                setattr(self._layer, name, value)
            self.dock.viewer.reset_view()
        _, height, width = checked.movie.shape
        self.dock.view.prepare(
            (width * checked.movie.pixel_size_nm, height * checked.movie.pixel_size_nm)
        )

    def _failed(self, error: Exception) -> None:
        super()._failed(error)
        self.step.session.withdraw("movie", f"the movie was refused: {sentence_of(error)}")

    def _check_ended(self) -> None:
        session = self.step.session
        if session.why_not("movie") == "the movie is being checked":
            session.withdraw(
                "movie",
                "the check of the movie was cancelled: check it again" if self._layer else "",
            )

    def _say(self) -> None:
        """Show the result of the check, or why there is no movie."""
        checked, why = self.step.checked, self.step.session.why_not("movie")
        if self._layer is None or self.troubles:
            self.remarks.setText("")
        elif why:
            self.remarks.setText(f"{why[:1].upper()}{why[1:]}.")
        elif checked is not None:
            sentences = [f"⚠ {warning}" for warning in checked.warnings] + list(checked.remarks)
            self.remarks.setText("\n".join(sentences) or "Camera and movie fit together.")

    def _ask(self) -> None:
        path = self.ask_open("Open movie", MOVIES)
        if path is not None:
            self.open(path)

    def _localize(self) -> None:
        self.dock.localize()

    def _camera_chosen(self) -> None:
        if self.camera.currentText() == FROM_FILE:
            path = self.ask_open("Camera file", "Camera (*.yaml *.yml)")
            self.set_camera(self._camera if path is None else str(path))
            if path is None:
                return
        else:
            self.set_camera(self._named())
        self._changed()

    def _named(self) -> str | None:
        """The chosen preset or file."""
        text = self.camera.currentText()
        named: str | None = self.camera.currentData()
        return named or (text if text in camera_presets() else None)

    def _restore_camera(self) -> None:
        name = self.dock.memory.text("movie/camera")
        if name in camera_presets() or (name and Path(name).is_file()):
            self.set_camera(name)

    def _offer_remembered(self) -> None:
        """Offer settings of another movie, which wait for a click."""
        values = {}
        if self.pixel_size.value():
            values["pixel size"] = self.pixel_size.text()
        if self.em_gain.value():
            values["EM gain"] = self.em_gain.text()
        if self._named() is not None:
            values["camera"] = self.camera.currentText()
        self.remembered.offer(
            {name: value for name, value in values.items() if name not in self._for_next}
        )

    def _settle_what_the_movie_states(self) -> None:
        """Prefer the movie's own pixel size to one that was stored, or stated for another movie."""
        data, known = self._layer.data, self.step.settings.path
        states = bool(self._layer.metadata.get("camera"))
        if isinstance(data, LazyFrames):
            states = states or bool(data.movie.pixel_size_nm)
        of_another = known is not None and str(known) != path_of(self._layer)
        if states and (of_another or "pixel size" in self.remembered.waiting):
            with QSignalBlocker(self.pixel_size):
                self.pixel_size.setValue(0)
            self.remembered.settle("pixel size")

    def _stated(self, name: str) -> None:
        self._settle(name)
        self._changed()

    def _settle(self, name: str) -> None:
        self.remembered.settle(name)
        if self._layer is None:
            self._for_next.add(name)

    def _changed(self) -> None:
        if self._layer is not None:
            self.check()

    def _layer_came(self, layer: Any) -> None:
        if path_of(layer):
            self._arrived.append(layer)
            self._soon.start()

    def _layer_went(self, layer: Any) -> None:
        """Remove the movie that the user closed; its molecules stay."""
        if layer is not self._layer:
            return
        self._layer = None
        self.forgive()
        if self.dock.runner.title == CHECKING:
            self.dock.runner.stop()
        self.step.session.withdraw("movie")
        self._show_which()

    def _take_up(self) -> None:
        """Choose the movie that was opened in the viewer, the last of several, and check it
        again."""
        layers = [layer for layer in self._arrived if layer in self.dock.viewer.layers]
        self._arrived.clear()
        for layer in layers:
            self._list(layer)
        if layers and self.dock.movie_in_use:
            show_info(
                f"{layers[-1].name} waits in the list of movies; not yet ended: "
                f"{self.dock.runner.title}"
            )
            others = layers
        else:
            others = layers[:-1]
        for layer in others:
            self.dock.viewer.layers.remove(layer)
        if len(others) < len(layers):
            self._choose(layers[-1])
        elif self._is_due and self._layer is not None and not self.dock.runner.busy:
            self.check()

    def _choose(self, layer: Any) -> None:
        """Work on the movie of a layer from now on, and close the previous one."""
        layers, path, before = self.dock.viewer.layers, Path(str(path_of(layer))), self._layer
        is_another = self._is_another(path)
        if is_another and not self._began_afresh():
            layers.remove(layer)
            self._show_which()
            return
        self._layer, self._path = layer, path
        _read_lazily(layer)
        if self.step.settings.path not in (None, path):
            self._offer_remembered()
        self._for_next.clear()
        if before is not None and before is not layer:
            layers.remove(before)
        layers.move(layers.index(layer), 0)  # below the molecules
        if is_another:
            self.dock.viewer.dims.set_current_step(0, 0)
        self.dock.viewer.reset_view()
        self._show_which()
        if layer.metadata.get("camera"):
            self.set_camera(str(layer.metadata["camera"]))
        self.check()

    def _is_another(self, path: Path) -> bool:
        """Whether the results belong to another movie; a table that was opened before any movie may
        belong to this one."""
        found = self.step.session.found
        was_found_elsewhere = (
            found is not None and found.acquisition is not None and Path(found.source) != path
        )
        return was_found_elsewhere or self._path not in (None, path)

    def _began_afresh(self) -> bool:
        try:
            self.dock.start_afresh()
        except OSError as error:
            self.blame(error)
            return False
        self.photons.clear()
        return True

    def _list(self, layer: Any) -> None:
        if self.movies.findData(path_of(layer)) < 0:
            self.movies.addItem(layer.name, path_of(layer))

    def _show_which(self) -> None:
        self.movies.setCurrentIndex(
            -1 if self._layer is None else self.movies.findData(path_of(self._layer))
        )

    def _movie_chosen(self) -> None:
        path = self.movies.currentData()
        layer = next((layer for layer in self.dock.viewer.layers if path_of(layer) == path), None)
        if layer is None:
            self.open(Path(path))
        elif layer is not self._layer:
            self._choose(layer)


def _read_lazily(layer: Any) -> None:
    """Replace the frames that napari's own reader has read whole by ones that are read when
    shown."""
    if isinstance(layer.data, LazyFrames):
        return
    try:
        movie = open_movie(str(path_of(layer)))
    except (ValueError, OSError):
        return
    if movie.shape == layer.data.shape and movie.dtype == layer.data.dtype:
        layer.data = LazyFrames(movie)
    else:
        movie.close()


def path_of(layer: Any) -> str | None:
    """The file that an image layer shows, if it is a movie."""
    data = getattr(layer, "data", None)
    if (
        type(layer).__name__ != "Image"
        or getattr(data, "ndim", 0) != 3
        or getattr(layer, "rgb", False)
    ):
        return None
    path = str(layer.metadata.get("path") or layer.source.path or "")
    return (
        path or None
        if isinstance(data, LazyFrames) or path.lower().endswith(movie_suffixes())
        else None
    )
