"""The panel of the quality."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import final

from qtpy.QtCore import Qt, QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QHBoxLayout

from decode_napari.qt.panel import Panel, button, note
from decode_napari.qt.plot import Plot
from decode_napari.qt.window import Window
from decode_napari.steps.inspect import table_of
from decode_napari.steps.quality import VERDICT, Assessed, QualityStep

__all__ = ["QualityPanel"]


@final
class QualityPanel(Panel):
    def __init__(self, step: QualityStep, dock: Window) -> None:
        super().__init__(step, dock)
        self.step = step
        self.run_button = button(
            "Measure", "Resolution, precision, and what limits them, of what passes", self.run
        )
        self.report_button = button(
            "Report…", "One page with all figures, which the browser opens", self._ask
        )
        row = QHBoxLayout()
        row.addWidget(self.run_button)
        row.addWidget(self.report_button)
        self.column.addLayout(row)
        self.state = note()
        self.figures = note()
        self.figures.setTextFormat(Qt.TextFormat.RichText)
        self.figures.setAccessibleName("figures")
        self.plot = Plot("correlation of both halves of the movie", "frequency, 1/nm")
        for each in (self.state, self.figures, self.plot):
            self.column.addWidget(each)
        self.column.addStretch()
        self.refresh()

    def refresh(self) -> None:
        missing, assessed = self.step.missing(), self.step.assessed
        for each in (self.run_button, self.report_button):
            each.setEnabled(not missing)
        self.state.setText(self._state(missing))
        self.state.setVisible(bool(self.state.text()))
        for shown in (self.figures, self.plot):
            shown.setVisible(assessed is not None)
        if assessed is not None and assessed.quality.resolution is None:
            self.plot.hide()

    def run(self) -> None:
        """Measure in a thread."""
        self.work("measuring the quality", self.step.assess, returned=self._assessed)

    def write_report(self, page: Path) -> None:
        """Write the report in a thread, and open it."""
        self.work("writing the report", lambda: self.step.report(page), returned=self._reported)

    def _state(self, missing: str) -> str:
        if missing:
            return f"{missing[:1].upper()}{missing[1:]}."
        if self.step.assessed is None:
            return "Figures are those of the molecules that pass the filter."
        return "These are figures of other molecules than those that pass now." * (
            self.step.is_stale()
        )

    def _assessed(self, assessed: Assessed) -> None:
        self.step.accept(assessed)
        rows = "".join(
            f"<tr><td><b>{escape(name)}</b>&nbsp;</td><td>{escape(figure)}</td></tr>"
            for name, figure in sorted(assessed.rows, key=lambda row: row[0] != VERDICT)
        )
        self.figures.setText(f"<table cellpadding='2'>{rows}</table>")
        if (curve := assessed.quality.resolution) is not None:
            ends = (curve.frequency[0], curve.frequency[-1])
            self.plot.set_lines(
                {
                    "FRC": (curve.frequency, curve.correlation),
                    "1/7": (ends, (curve.threshold, curve.threshold)),
                }
            )
        self.dock.refresh_steps()

    def _reported(self, page: Path) -> None:
        self.step.reported(page)
        QDesktopServices.openUrl(QUrl.fromLocalFile(str(page.absolute())))
        self.dock.refresh_steps()

    def _ask(self) -> None:
        found = self.step.session.found
        name = "report" if found is None else table_of(found).stem
        page = self.ask_save("Report", f"{name}.html", "Reports (*.html)")
        if page is not None:
            self.write_report(page.with_suffix(".html"))
