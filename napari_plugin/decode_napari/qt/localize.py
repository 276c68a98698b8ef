"""The panel that localizes."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, final

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QCheckBox, QHBoxLayout

from decode.emitters import EmitterSet
from decode.progress import Progress
from decode_napari.qt.panel import Panel, button, choice, note, number
from decode_napari.qt.region import RegionField
from decode_napari.qt.window import Window
from decode_napari.steps.localize import LocalizeSettings, LocalizeStep

if TYPE_CHECKING:
    from decode.verbs.localize import LocalizeReport

__all__ = ["LocalizePanel"]

POLISH = {"where the PSF is known": None, "always": True, "never": False}
"""by the words of the window"""
LOOKING = "Looking at this frame…"


@final
class LocalizePanel(Panel):
    def __init__(self, step: LocalizeStep, dock: Window) -> None:
        super().__init__(step, dock)
        self.step = step
        self._shown = 0.0
        """when the table may be shown again, of a clock that only rises"""
        self._complete = False
        self._looked_at: object = None
        """movie and frame of the last preview"""
        self._count = ""
        """what is said of it, as long as movie, frame and settings are the same"""
        self.threshold = self.row(
            "threshold",
            number(0, 1, 0.5, digits=2),
            "Smallest probability of a molecule to be listed, 0 to 1",
        )
        self.threshold.setSingleStep(0.05)
        self.psf_sigma = self.row(
            "PSF sigma",
            number(0, 1000, 0, unit="nm", none="estimate"),
            "Width of the PSF (standard deviation), nm, for a model conditioned on it",
        )
        self.polish = self.row(
            "polish",
            choice(list(POLISH)),
            "Let the likelihood of the frames decide which molecules there are, and refine them",
        )
        self.false_discovery_rate = self.row(
            "false discoveries",
            number(0.001, 1, 0.05, digits=3),
            "Largest share of false molecules, 0 to 1, where the likelihood decides",
            option="false-discovery-rate",
        )
        self.adapt = self.row(
            "adapt",
            number(0, 1e4, 0, unit="min", none="no"),
            "Minutes of training a model for the PSF and this movie, in place of the step Model's; "
            "it is kept beside the PSF and serves the next movie at once (7 do)",
        )
        self.first = self.row(
            "first frame", number(0, 1e9, 0, digits=0), "Counted from 0", option="frames"
        )
        self.stop_before = self.row(
            "stop before",
            number(0, 1e9, 0, digits=0, none="the end"),
            "The frame behind the last one to localize",
        )
        self.roi = self.row(
            "ROI", RegionField(dock.viewer), "Rows and columns to localize in, counted from 0"
        )
        self.roi.text.setAccessibleName("ROI")
        self.auto = self.row(
            "preview",
            QCheckBox("as settings change"),
            "Localize the frame that is shown whenever a setting changes",
        )
        buttons = QHBoxLayout()
        self.preview_button = button(
            "Preview frame", "Localize only the frame that is shown", self.preview
        )
        self.run_button = button("Localize all", "Localize the whole movie", self.run)
        buttons.addWidget(self.preview_button)
        buttons.addWidget(self.run_button)
        self.column.addLayout(buttons)
        self.state = note()
        self.column.addWidget(self.state)
        self.column.addStretch()
        for name in ("threshold", "psf_sigma", "polish", "false_discovery_rate"):
            dock.memory.bind(f"localize/{name}", getattr(self, name))
        self._again = QTimer(self)
        self._again.setSingleShot(True)
        self._again.setInterval(200)
        self._again.timeout.connect(self.preview)
        # the start of a run is drawn before the canvas is
        self._hide_preview = QTimer(self)
        self._hide_preview.setSingleShot(True)
        self._hide_preview.setInterval(50)
        self._hide_preview.timeout.connect(dock.view.end_preview)
        for box in (self.threshold, self.psf_sigma, self.false_discovery_rate):
            box.valueChanged.connect(lambda _: self._changed())
        self.polish.currentTextChanged.connect(lambda _: self._changed())
        self.adapt.valueChanged.connect(lambda _: self.refresh())
        self.roi.changed.connect(self._changed)
        self.auto.toggled.connect(self._auto_changed)
        self.refresh()

    def begin(self) -> None:
        viewer = self.dock.viewer
        self.dock.follow(self.dock.view.frame_changed, lambda _: self._frame_changed())
        self.dock.follow(viewer.layers.events.removed, self.roi.layer_removed)

    def forget(self) -> None:
        self.auto.setChecked(False)
        self.first.setValue(0)
        self.stop_before.setValue(0)

    def refresh(self) -> None:
        self.step.settings = replace(self.step.settings, adapt=self.adapt.value() or None)
        missing, missing_to_run = self.step.missing(), self.step.missing_to_run()
        self.form.setRowVisible(self.psf_sigma, self.step.asks_psf_sigma())
        self.roi.set_movie(self.step.session.movie)
        idle = not self.dock.runner.busy
        self.preview_button.setEnabled(idle and not missing)
        self.run_button.setEnabled(idle and not missing_to_run)
        if missing_to_run:
            self.state.setText(f"{missing_to_run[0].upper()}{missing_to_run[1:]}.")
        elif self._count and self._looked_at == (self.step.session.movie, self.dock.view.frame):
            self.state.setText(self._count)
        else:
            self.state.setText(self.step.done() or "Ready.")

    def run(self) -> None:
        """Localize all frames; molecules appear while it runs, and those of the previous run are
        kept."""
        try:
            self.dock.keeper.keep_now()
        except OSError as error:
            self.blame(error)
            return
        self.auto.setChecked(False)
        self._hide_preview.start()
        self._count = ""
        self._shown = 0.0
        self._complete = False
        self.work(
            "localizing",
            lambda: self._read().run(),
            reported=self._reported,
            returned=self._returned,
            ended=self._ended,
            uses_movie=True,
        )

    def preview(self) -> None:
        """Localize the frame that is shown."""
        movie, frame = self.step.session.movie, self.dock.view.frame
        if self.dock.runner.busy or self.step.missing() or movie is None or frame >= movie.shape[0]:
            return
        self._looked_at, self._count = (movie, frame), ""
        self.look(
            f"frame {frame}",
            lambda: self._read().preview(frame),
            returned=self._previewed,
            ended=self._look_ended,
        )
        if self.dock.previewer.busy:
            self._count = LOOKING
        self.refresh()

    def _read(self) -> LocalizeStep:
        """The step, with the settings of the fields.

        Raises:
            ValueError: if the text of the region is wrong.
        """
        first, stop = int(self.first.value()), int(self.stop_before.value())
        movie = self.step.session.movie
        frames = None
        if first or stop:
            frames = (first, stop or (movie.shape[0] if movie is not None else first + 1))
        self.step.settings = LocalizeSettings(
            threshold=round(self.threshold.value(), 4),
            psf_sigma_nm=(self.psf_sigma.value() or None) if self.step.asks_psf_sigma() else None,
            polish=POLISH[self.polish.currentText()],
            false_discovery_rate=round(self.false_discovery_rate.value(), 4),
            adapt=self.adapt.value() or None,
            frames=frames,
            roi=self.roi.region(),
        )
        return self.step

    def _reported(self, progress: Progress[LocalizeReport | None]) -> None:
        self.step.absorb(progress)
        report = progress.detail
        # a table that grows is drawn no more than a few times a second, and less often the longer
        # that takes
        now = time.monotonic()
        if report is not None and report.frames_done and now > self._shown:
            self.step.show()
            self._shown = time.monotonic() + max(0.3, 10 * (time.monotonic() - now))

    def _returned(self, _: object) -> None:
        self._complete = True

    def _ended(self) -> None:
        self.step.show(complete=self._complete)

    def _previewed(self, molecules: EmitterSet) -> None:
        if self.step.missing():  # the movie or the model has changed meanwhile
            return
        self._hide_preview.stop()
        self.dock.view.preview(molecules)
        where = "this frame" if self.step.settings.roi is None else "this region of the frame"
        self._count = f"{len(molecules)} molecules in {where}"

    def _look_ended(self) -> None:
        if self._count == LOOKING:  # cancelled, or refused
            self._count = ""
        self.refresh()

    def _frame_changed(self) -> None:
        self._changed()
        self.refresh()

    def _changed(self) -> None:
        self._count = ""
        if self.auto.isChecked():
            self._again.start()

    def _auto_changed(self, on: bool) -> None:
        if on:
            self._again.start()
        else:
            self._hide_preview.start()
