"""The panel that links blinks."""

from __future__ import annotations

from typing import final

from qtpy.QtWidgets import QCheckBox, QHBoxLayout

from decode_napari.qt.panel import Panel, button, note, number
from decode_napari.qt.window import Window
from decode_napari.steps.link import Linked, LinkSettings, LinkStep

__all__ = ["LinkPanel"]

AUTOMATIC = -1
MOST_DARK = 10_000
"""frames"""
REFIT = "One position for all frames of a molecule, by the exact likelihood of the camera"


@final
class LinkPanel(Panel):
    def __init__(self, step: LinkStep, dock: Window) -> None:
        super().__init__(step, dock)
        self.step = step
        self.gap = self.row(
            "gap",
            number(AUTOMATIC, MOST_DARK, AUTOMATIC, unit="frames", digits=0, none="automatic"),
            "Most dark frames that are bridged; automatic: by the kinetics of the molecules",
        )
        self.refit = self.row("refit", QCheckBox("to the movie"), REFIT)
        self.run_button = button("Link", "Localizations that pass become molecules", self.run)
        self.undo_button = button("Undo", "Localizations as they were found", self.undo)
        row = QHBoxLayout()
        row.addWidget(self.run_button)
        row.addWidget(self.undo_button)
        self.column.addLayout(row)
        self.state = note()
        self.column.addWidget(self.state)
        self.column.addStretch()
        for changed in (self.gap.valueChanged, self.refit.toggled):
            changed.connect(self._set)
        self.refresh()

    def refresh(self) -> None:
        missing, why = self.step.missing(), self.step.why_not_refit()
        self.run_button.setEnabled(not missing and not self.step.is_linked)
        self.undo_button.setEnabled(self.step.can_undo)
        self.refit.setEnabled(not why and not self.step.is_linked)
        self.refit.setToolTip(f"{REFIT}\nnot yet: {why}" if why else REFIT)
        self.gap.setEnabled(not self.step.is_linked)
        if why and not self.step.is_linked:
            self.refit.setChecked(False)
        said = "\n".join(f"{_capital(sentence)}." for sentence in self.step.sentences)
        hint = "Localizations of one molecule in several frames become one, and more precise."
        self.state.setText(f"{_capital(missing)}." if missing else said or hint)

    def run(self) -> None:
        """Link the molecules in a thread."""
        self._set()
        self.work("linking", self.step.link, returned=self._linked, uses_movie=True)

    def undo(self) -> None:
        self.attempt(self.step.undo)
        self.dock.refresh_steps()

    def _set(self) -> None:
        gap = round(self.gap.value())
        self.step.settings = LinkSettings(
            gap=None if gap == AUTOMATIC else gap, refit=self.refit.isChecked()
        )

    def _linked(self, linked: Linked) -> None:
        self.step.accept(linked)
        self.dock.refresh_steps()


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
