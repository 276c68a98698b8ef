"""The panel of the movie."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

from qtpy.QtCore import QSignalBlocker
from qtpy.QtWidgets import QCheckBox, QHBoxLayout

from decode.io.cameras import camera_presets
from decode.io.stacks import open_movie
from decode_napari.layers import LazyFrames, movie_layer, placement
from decode_napari.qt.panel import TIFFS, Panel, button, choice, note, number
from decode_napari.qt.plot import Plot
from decode_napari.qt.remembered import Remembered
from decode_napari.steps.movie import MovieCheck, MovieSettings, MovieStep, asks_em_gain

__all__ = ["MoviePanel"]

ESTIMATE = "estimate it from the movie"
FROM_FILE = "choose a camera file…"


@final
class MoviePanel(Panel):
    def __init__(self, step: MovieStep, dock: Any) -> None:
        super().__init__(step, dock)
        self.step = step
        self._layer: Any = None
        self._camera_file: str | None = None
        self._restoring = False

        self.open_button = button("Open movie…", "Open a TIFF movie; frames are read as they are looked at", self._ask)
        self.column.insertWidget(1, self.open_button)
        self.movies = self.row("movie", choice([]), "The movie to work on, of those open in the viewer")
        self.movies.currentIndexChanged.connect(lambda _: self._choose_layer())
        self.camera = self.row(
            "camera",
            choice([ESTIMATE, *camera_presets(), FROM_FILE]),
            "Turns counts into photons: a preset (typical values, to be checked), a camera file, or an estimate",
        )
        self.camera.activated.connect(lambda _: self._camera_chosen())
        self.pixel_size = self.row(
            "pixel size",
            number(0, 2000, 0, unit="nm", none="as the files state"),
            "Side of a pixel in the sample, nm",
        )
        self.em_gain = self.row(
            "EM gain", number(0, 2000, 0, digits=0, none="none"), "Gain of the register, for an EMCCD preset"
        )
        self.allow_truncated = self.row(
            "cut short",
            QCheckBox("allow truncated"),
            "Take the whole frames of a movie whose file was cut short, instead of refusing it",
            option="allow-truncated",
        )
        self.allow_truncated.toggled.connect(lambda _: self._changed())
        self.remembered = Remembered(self.check)
        """from an earlier window"""
        self.column.addWidget(self.remembered)
        for name, box in (("pixel size", self.pixel_size), ("EM gain", self.em_gain)):
            box.valueChanged.connect(lambda _, name=name: self._stated(name))
        buttons = QHBoxLayout()
        self.check_button = button("Check again", "Read the camera again and count photons", self.check)
        self.go_button = button("Localize", "Localize the whole movie with the model chosen", self._localize)
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
        self._offer_remembered()

        viewer = dock.viewer
        viewer.layers.events.inserted.connect(lambda event: self._layers_changed(event.value))
        viewer.layers.events.removed.connect(lambda event: self._layers_changed(None))
        self._layers_changed(next((layer for layer in viewer.layers if path_of(layer)), None))
        self.refresh()

    def refresh(self) -> None:
        self.go_button.setEnabled(self.step.session.movie is not None)
        self.check_button.setEnabled(self.step.settings.path is not None)
        self.form.setRowVisible(self.em_gain, asks_em_gain(self._named()))

    def open(self, path: Path) -> None:
        """Show a movie as a lazy layer, and check it."""
        self.forgive()
        try:
            movie = open_movie(path, allow_truncated=self.allow_truncated.isChecked())
            data, options, _ = movie_layer(movie, self.pixel_size.value() or movie.pixel_size_nm)
        except (ValueError, OSError) as error:
            self.blame(error)
            return
        self.dock.viewer.add_image(data, **options)

    def set_camera(self, name: str | None) -> None:
        """A preset's name, a camera file, or None to estimate it."""
        self.remembered.settle("camera")
        if name is None:
            self.camera.setCurrentText(ESTIMATE)
        elif name in camera_presets():
            self.camera.setCurrentText(name)
        else:
            self._camera_file = name
            index = self.camera.findData(name)
            if index < 0:
                index = self.camera.count() - 1
                self.camera.insertItem(index, Path(name).name, name)
            self.camera.setCurrentIndex(index)
        self.dock.memory.set_text("movie/camera", name or "")
        self.refresh()

    def check(self) -> None:
        """Read the movie and its camera in a thread."""
        path = path_of(self._layer) if self._layer is not None else None
        if path is None:
            self.blame(ValueError("no movie is open: open a TIFF file, or drag one into the viewer"))
            return
        self._settle_what_the_movie_states()
        if self.remembered.ask({"camera", "pixel size"} | ({"EM gain"} if asks_em_gain(self._named()) else set())):
            self.forgive()
            return
        named = self._named()
        self.step.settings = MovieSettings(
            path=Path(path),
            camera=named,
            pixel_size_nm=self.pixel_size.value() or None,
            em_gain=(self.em_gain.value() or None) if asks_em_gain(named) else None,
            allow_truncated=self.allow_truncated.isChecked(),
        )
        self.refresh()
        self.work("checking the movie", self.step.check, returned=self._checked)

    def _checked(self, checked: MovieCheck) -> None:
        self.step.accept(checked)
        self.photons.set_bars(checked.counts, checked.edges)
        sentences = [f"⚠ {warning}" for warning in checked.warnings] + list(checked.remarks)
        self.remarks.setText("\n".join(sentences) or "Camera and movie fit together.")
        if self._layer is not None and self._layer in self.dock.viewer.layers:
            for name, value in placement(checked.movie.pixel_size_nm).items():
                setattr(self._layer, name, value)
            self.dock.viewer.reset_view()
        _, height, width = checked.movie.shape
        self.dock.view.prepare((width * checked.movie.pixel_size_nm, height * checked.movie.pixel_size_nm))

    def _ask(self) -> None:
        path = self.ask_open("Open movie", TIFFS)
        if path is not None:
            self.open(path)

    def _localize(self) -> None:
        self.dock.localize()

    def _camera_chosen(self) -> None:
        if self.camera.currentText() == FROM_FILE:
            path = self.ask_open("Camera file", "Camera (*.yaml *.yml)")
            self.set_camera(None if path is None else str(path))
        else:
            self.set_camera(self._named())
        self._changed()

    def _named(self) -> str | None:
        """The preset or the file that is chosen."""
        text = self.camera.currentText()
        named: str | None = self.camera.currentData()
        return named or (text if text in camera_presets() else None)

    def _restore_camera(self) -> None:
        name = self.dock.memory.text("movie/camera")
        if name in camera_presets() or (name and Path(name).is_file()):
            self.set_camera(name)

    def _offer_remembered(self) -> None:
        values = {}
        if self.pixel_size.value():
            values["pixel size"] = self.pixel_size.text()
        if self.em_gain.value():
            values["EM gain"] = self.em_gain.text()
        if self._named() is not None:
            values["camera"] = self.camera.currentText()
        self.remembered.offer(values)

    def _settle_what_the_movie_states(self) -> None:
        """Its own pixel size goes before one that is remembered."""
        data = self._layer.data
        if isinstance(data, LazyFrames) and data.movie.pixel_size_nm and "pixel size" in self.remembered.waiting:
            with QSignalBlocker(self.pixel_size):
                self.pixel_size.setValue(0)
            self.remembered.settle("pixel size")

    def _stated(self, name: str) -> None:
        self.remembered.settle(name)
        self._changed()

    def _changed(self) -> None:
        if self._layer is not None:
            self.check()

    def _layers_changed(self, added: Any) -> None:
        layers = [layer for layer in self.dock.viewer.layers if path_of(layer)]
        self._restoring = True
        self.movies.clear()
        for layer in layers:
            self.movies.addItem(layer.name, layer)
        self._restoring = False
        if added is not None and added in layers:
            self.movies.setCurrentIndex(layers.index(added))
            self._choose_layer()
        elif self._layer in layers:
            self.movies.setCurrentIndex(layers.index(self._layer))
        else:
            self._layer = None

    def _choose_layer(self) -> None:
        layer = self.movies.currentData()
        if self._restoring or layer is None or layer is self._layer:
            return
        self._layer = layer
        _read_lazily(layer)
        camera = layer.metadata.get("camera")
        if camera:
            self.set_camera(str(camera))
        self.check()


def _read_lazily(layer: Any) -> None:
    """Frames of a movie that napari's own reader has read whole: from now on they are read as they are looked at."""
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
    """The TIFF that an image layer shows, if it is a movie."""
    data = getattr(layer, "data", None)
    if type(layer).__name__ != "Image" or getattr(data, "ndim", 0) != 3 or getattr(layer, "rgb", False):
        return None
    path = str(layer.metadata.get("path") or layer.source.path or "")
    return path or None if isinstance(data, LazyFrames) or path.lower().endswith((".tif", ".tiff")) else None
