"""The panel of the PSF."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import numpy as np
from qtpy.QtCore import QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QLineEdit,
    QStyle,
    QTableWidget,
    QTableWidgetItem,
)

from decode.calibrate.psf import MODELS, Optics
from decode.io.movies import open_movie
from decode_napari.layers import LazyFrames, placement
from decode_napari.qt.figure import Figure
from decode_napari.qt.panel import MOVIES, TABLES, Panel, button, choice, note, number
from decode_napari.qt.plot import Plot
from decode_napari.qt.window import Window
from decode_napari.steps.psf import Calibrated, PSFSettings, PSFStep

__all__ = ["PSFPanel"]

TEXTS = "Text (*.txt *.csv *.tsv *.dat);;All files (*)"
STAGE: dict[str, bool | None] = {"not known": None, "went upwards": False, "went downwards": True}
"""ways of the stage, and whether they go downwards"""
USED, REJECTED = "#57d38c", "#ff6b5e"


@final
class PSFPanel(Panel):
    def __init__(self, step: PSFStep, dock: Window) -> None:
        super().__init__(step, dock)
        self.step = step
        self._beads: tuple[Path, ...] = ()
        self._layers: list[Any] = []
        choose = QHBoxLayout()
        choose.addWidget(
            button(
                "Bead stacks…", "z-stacks of beads, TIFF, recorded in the same way", self._ask_beads
            )
        )
        choose.addWidget(
            button("Open PSF…", "A PSF file that was calibrated before", self._ask_psf)
        )
        self.column.insertLayout(1, choose)
        self.beads = self.row("beads", QLabel("none chosen"), "z-stacks of beads")
        self.z_step = self.row(
            "z step",
            number(0, 1000, 0, unit="nm", none="as the file states"),
            "Planes rise by it, nm",
        )
        self.z_focus = self.row(
            "focus plane",
            number(-1, 1e6, -1, digits=0, none="the middle one"),
            "Number of the plane, from 0, that is z = 0",
            option="z-focus",
        )
        self.frames_per_plane = self.row(
            "frames per plane",
            number(1, 1000, 1, digits=0),
            "Consecutive frames of each plane",
        )
        self.stage = self.row(
            "stage",
            choice(tuple(STAGE)),
            "Which way it went from the first plane to the last; if that is not known it is taken "
            "to be upwards, and z may be upside down",
            option="downwards",
        )
        self.z_of_frames = self._row_of_file(
            "z of frames",
            "Text file with the z of each frame in nm, a line each: for any other order of planes; "
            "empty: one after "
            "another, a step apart",
            TEXTS,
        )
        self.positions = self._row_of_file(
            "bead positions",
            "Table of where the beads truly are (x, y of its first frame), if that is known; "
            "empty: an emitter is "
            "where the centroid of its light in focus is",
            TABLES,
        )
        self.model = self.row(
            "model", choice(MODELS), "spline for any PSF, pupil names the aberrations"
        )
        usual = Optics()
        self.aperture = self.row(
            "numerical aperture",
            number(0.1, 2, usual.numerical_aperture, digits=3),
            "Of the objective",
        )
        self.wavelength = self.row(
            "wavelength",
            number(200, 2000, usual.wavelength_nm, unit="nm"),
            "Of the emission, in vacuum, nm",
        )
        self.immersion = self.row(
            "immersion index",
            number(1, 2, usual.immersion_index, digits=4),
            "Refractive index of the immersion",
        )
        self.sample = self.row(
            "sample index",
            number(0.99, 2, 0.99, digits=4, none="the immersion's"),
            "Refractive index around the beads",
        )
        self.diameter = self.row(
            "bead diameter",
            number(0, 1000, usual.bead_diameter_nm, unit="nm", none="a point"),
            "Of the beads, nm: their size is taken out, the PSF is that of a molecule",
        )
        self.phase_mask = self.row(
            "phase mask",
            QCheckBox("free phase"),
            "Fit a free phase over the pupil besides Zernike polynomials",
        )
        self._of_pupil = {
            "numerical aperture": self.aperture,
            "wavelength": self.wavelength,
            "immersion index": self.immersion,
            "sample index": self.sample,
            "bead diameter": self.diameter,
            "phase mask": self.phase_mask,
        }
        self.out = self.row(
            "write to", QLineEdit(), "PSF file, .h5; a report is written beside it", option="out"
        )
        buttons = QHBoxLayout()
        self.run_button = button(
            "Calibrate", "Find the beads, fit the PSF, test it on held-out beads", self.run
        )
        self.report_button = button("Open report", "The whole report in a browser", self._report)
        buttons.addWidget(self.run_button)
        buttons.addWidget(self.report_button)
        self.column.addLayout(buttons)
        self.state = note()
        self.column.addWidget(self.state)
        self.found = QTableWidget(0, 3)
        self.found.setHorizontalHeaderLabels(["x, y, px", "used", "why not"])
        self.found.setAccessibleName("beads found")
        self.found.setToolTip("For each bead, whether the PSF was fitted to it, or why not")
        self.found.horizontalHeader().setSectionResizeMode(2, QHeaderView.ResizeMode.Stretch)
        self.found.setColumnWidth(0, 90)
        self.found.setColumnWidth(1, 45)
        self.found.verticalHeader().setDefaultSectionSize(20)
        self.found.setMinimumHeight(110)
        self.column.addWidget(self.found)
        self.errors = [Plot(f"error in {axis}, nm", "depth z, nm") for axis in "xyz"]
        for plot in self.errors:
            self.column.addWidget(plot)
        self.errors_note = note(
            "Error: each bead was localized, plane by plane, with a PSF fitted to the others; root "
            "mean square over "
            "the beads and 100 nm of depth, without the stage's jitter. Bound: Cramér-Rao, of "
            "their light, which no "
            "method can beat."
        )
        self.column.addWidget(self.errors_note)
        self.which: QComboBox = choice([])
        self.which.setAccessibleName("figure of the report")
        self.which.setToolTip("Which figure of the report is shown below")
        self.which.currentIndexChanged.connect(lambda _: self._draw())
        self.column.addWidget(self.which)
        self.picture = Figure()
        self.column.addWidget(self.picture)
        self.caption = note()
        self.column.addWidget(self.caption)
        self.column.addStretch()
        dock.memory.bind("psf/z step", self.z_step)
        dock.memory.bind("psf/model", self.model)
        for name, widget in self._of_pupil.items():
            dock.memory.bind(f"psf/{name}", widget)
        self.model.currentTextChanged.connect(lambda _: self._model_changed())
        self._model_changed()
        self.refresh()

    def refresh(self) -> None:
        missing, psf = self.step.missing(), self.step.session.psf
        self.run_button.setEnabled(not missing and bool(self._beads) and not self.dock.runner.busy)
        calibrated = self.step.calibrated
        self.report_button.setEnabled(calibrated is not None)
        shown = calibrated is not None
        for widget in (self.found, self.which, self.picture, self.caption):
            widget.setVisible(shown)
        for each in (*self.errors, self.errors_note):
            each.setVisible(calibrated is not None and calibrated.precision is not None)
        if psf is not None:
            unserved = psf.unserved and f"{psf.unserved[0].upper()}{psf.unserved[1:]}."
            said = (self.step.done(),) if calibrated is None else calibrated.verdict
            self.state.setText("\n".join(filter(None, (*said, unserved))))
        else:
            ready = "Ready." if self._beads else "Choose a bead stack, or open a PSF."
            self.state.setText(f"To calibrate, {missing}." if missing else ready)

    def set_beads(self, paths: list[Path]) -> None:
        """Choose stacks, and show the first one as a layer."""
        self._beads = tuple(paths)
        self.beads.setText(", ".join(path.name for path in paths) or "none chosen")
        if not paths:
            return
        if not self.out.text():
            self.out.setText(str(paths[0].with_name("psf.h5")))
        stack = open_movie(paths[0])
        if stack.z_step_nm is not None and not self.z_step.value():
            self.z_step.setToolTip(f"Planes rise by it, nm; the file states {stack.z_step_nm:g} nm")
        movie = self.step.session.movie
        pixels_nm = stack.pixel_size_nm or (100.0 if movie is None else movie.pixel_size_nm)
        place = placement(pixels_nm) | {"axis_labels": ("t", "y", "x")}
        layer = self.dock.viewer.add_image(LazyFrames(stack), name=paths[0].stem, **place)
        self._layers = [layer]
        self.dock.viewer.dims.set_current_step(0, len(stack) // 2)
        self.refresh()

    def run(self) -> None:
        """Calibrate in a thread."""
        self.step.settings = PSFSettings(
            beads=self._beads,
            out=Path(self.out.text()) if self.out.text() else None,
            z_step_nm=self.z_step.value() or None,
            z_focus=None if self.z_focus.value() < 0 else int(self.z_focus.value()),
            frames_per_plane=int(self.frames_per_plane.value()),
            downwards=STAGE[self.stage.currentText()],
            z_of_frames=Path(self.z_of_frames.text()) if self.z_of_frames.text() else None,
            positions=Path(self.positions.text()) if self.positions.text() else None,
            model=self.model.currentText(),
            optics=self._optics() if self.model.currentText() == "pupil" else None,
        )
        self.work(
            "calibrating the PSF", self.step.calibrate, returned=self._calibrated, uses_movie=True
        )

    def _optics(self) -> Optics:
        return Optics(
            numerical_aperture=round(self.aperture.value(), 3),
            wavelength_nm=self.wavelength.value(),
            immersion_index=round(self.immersion.value(), 4),
            sample_index=None if self.sample.value() < 1 else round(self.sample.value(), 4),
            bead_diameter_nm=self.diameter.value(),
            phase_mask=self.phase_mask.isChecked(),
        )

    def _model_changed(self) -> None:
        for widget in self._of_pupil.values():
            self.form.setRowVisible(widget, self.model.currentText() == "pupil")

    def _calibrated(self, calibrated: Calibrated) -> None:
        self.step.accept(calibrated)
        calibration = calibrated.calibration
        spots = [(b.centre_px, "yes", "") for b in calibration.beads]
        spots += [(b.centre_px, "no", b.reason) for b in calibration.rejected]
        self.found.setRowCount(len(spots))
        for row, ((x, y), used, why) in enumerate(spots):
            for column, text in enumerate((f"{x:.1f}, {y:.1f}", used, why)):
                item = QTableWidgetItem(text)
                item.setToolTip(why or "used")
                self.found.setItem(row, column, item)
        um = calibration.psf.pixel_size_nm / 1000
        yx = np.array([(y * um, x * um) for (x, y), _, _ in spots])
        self.dock.viewer.add_points(
            yx,
            name="beads",
            features={
                "used": [used for _, used, _ in spots],
                "why not": [why for _, _, why in spots],
            },
            border_color=[USED if used == "yes" else REJECTED for _, used, _ in spots],
            face_color="transparent",
            border_width=0.06,
            size=1.2,
            axis_labels=("y", "x"),
            units=("um", "um"),
        )
        precision = calibrated.precision
        if precision is not None:
            z = precision.z_nm.tolist()
            for axis, plot in enumerate(self.errors):
                error, bound = (
                    precision.error_nm[:, axis].tolist(),
                    precision.bound_nm[:, axis].tolist(),
                )
                plot.set_lines({"error": (z, error), "bound": (z, bound)})
        self.which.clear()
        self.which.addItems([picture.title for picture in calibrated.pictures])
        self._draw()

    def _draw(self) -> None:
        calibrated, index = self.step.calibrated, self.which.currentIndex()
        if calibrated is None or not 0 <= index < len(calibrated.pictures):
            return
        shown = calibrated.pictures[index]
        self.picture.show_png(shown.png, shown.title)
        self.caption.setText(shown.caption)

    def _report(self) -> None:
        if self.step.calibrated is not None:
            QDesktopServices.openUrl(QUrl.fromLocalFile(str(self.step.calibrated.report.resolve())))

    def _ask_beads(self) -> None:
        paths = self.ask_open_many("Bead stacks", MOVIES)
        if paths:
            self.attempt(lambda: self.set_beads(paths))

    def _row_of_file(self, label: str, tip: str, kinds: str) -> QLineEdit:
        """Add a row for an optional file, typed or chosen."""
        line = self.row(label, QLineEdit(), tip)
        line.setPlaceholderText("not known")
        icon = self.style().standardIcon(QStyle.StandardPixmap.SP_DirOpenIcon)
        action = line.addAction(icon, QLineEdit.ActionPosition.TrailingPosition)

        def ask() -> None:
            path = self.ask_open(label.capitalize(), kinds)
            if path is not None:
                line.setText(str(path))

        action.triggered.connect(ask)
        return line

    def _ask_psf(self) -> None:
        path = self.ask_open("PSF", "PSF (*.h5)")
        if path is not None:
            self.open_psf(path)

    def open_psf(self, path: Path) -> None:
        """Open a calibrated PSF, in a thread."""
        self.work("reading the PSF", lambda: self.step.read(path), returned=self.step.accept)
