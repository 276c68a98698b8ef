"""The panel of the drift."""

from __future__ import annotations

from pathlib import Path
from typing import final

from qtpy.QtWidgets import QCheckBox, QHBoxLayout

from decode_napari.qt.figure import Figure
from decode_napari.qt.panel import Panel, button, note
from decode_napari.qt.window import Window
from decode_napari.steps.drift import DriftSettings, DriftStep, Estimated

__all__ = ["DriftPanel"]


@final
class DriftPanel(Panel):
    def __init__(self, step: DriftStep, dock: Window) -> None:
        super().__init__(step, dock)
        self.step = step
        self.fiducials = self.row(
            "fiducials",
            QCheckBox("beads tell the drift"),
            "Beads that are seen in nearly all frames; they are found",
        )
        self.run_button = button(
            "Estimate", "From the structures that the molecules form, or from beads", self.run
        )
        self.trace_button = button(
            "Open trace…", "A drift that was measured (CSV: frame from 1, x_nm, y_nm)", self._ask
        )
        self.subtract_button = button(
            "Subtract", "Molecules as if the stage had stood still", self.subtract
        )
        self.undo_button = button("Undo", "Molecules as they were found", self.undo)
        for pair in (
            (self.run_button, self.trace_button),
            (self.subtract_button, self.undo_button),
        ):
            row = QHBoxLayout()
            for each in pair:
                row.addWidget(each)
            self.column.addLayout(row)
        self.state = note()
        self.column.addWidget(self.state)
        self.plot = Figure()
        self.plot.hide()
        self.column.addWidget(self.plot)
        self.column.addStretch()
        self.refresh()

    def refresh(self) -> None:
        missing = self.step.missing()
        for each in (self.run_button, self.trace_button):
            each.setEnabled(not missing and not self.step.is_subtracted)
        self.subtract_button.setEnabled(self.step.can_subtract)
        self.undo_button.setEnabled(self.step.can_undo)
        self.plot.setVisible(self.step.estimated is not None)
        self.state.setText(f"{missing[:1].upper()}{missing[1:]}." if missing else self._found())

    def forget(self) -> None:
        self.plot.hide()

    def run(self) -> None:
        """Estimate the drift in a thread."""
        self.step.settings = DriftSettings(fiducials=self.fiducials.isChecked())
        self.work("estimating the drift", self.step.estimate, returned=self._estimated)

    def open_trace(self, path: Path) -> None:
        """Take the drift of a file."""
        self.step.settings = DriftSettings(trace=path)
        self.work("reading a drift", self.step.estimate, returned=self._estimated)

    def subtract(self) -> None:
        self.attempt(self.step.subtract)
        self.dock.refresh_steps()

    def undo(self) -> None:
        self.attempt(self.step.undo)
        self.dock.refresh_steps()

    def _estimated(self, estimated: Estimated) -> None:
        self.step.accept(estimated)
        self.plot.show_png(estimated.plot, "drift of the stage")
        self.dock.refresh_steps()

    def _found(self) -> str:
        estimated = self.step.estimated
        if estimated is None:
            return "Molecules of repeated structures tell how the stage moved, and how well."
        return "; ".join(estimated.stage.sentences or ["no drift"]) + "."

    def _ask(self) -> None:
        path = self.ask_open("Drift", "Drift (*.csv);;All files (*)")
        if path is not None:
            self.open_trace(path)
