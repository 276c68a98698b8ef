"""The base of all panels: rows with labels for screen readers, and file dialogs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QLabel,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from decode.io.movies import movie_suffixes
from decode.io.tables import table_suffixes
from decode.progress import Steps
from decode_napari.qt.runner import OPTION, complain, is_refusal, sentence_of
from decode_napari.qt.window import Window
from decode_napari.steps.step import Step

__all__ = ["MOVIES", "TABLES", "Panel", "button", "choice", "note", "number"]

W = TypeVar("W", bound=QWidget)

TABLES = f"Tables ({' '.join(f'*{suffix}' for suffix in table_suffixes())})"
MOVIES = f"Movies ({' '.join(f'*{suffix}' for suffix in movie_suffixes())})"
AMBER = "#ffb52e"
"""colour of fields that the user should correct"""


@final
@dataclass(frozen=True)
class Field:
    """A row of a panel: the widget, and below it what is wrong with its value."""

    label: str
    form: QFormLayout
    widget: QWidget
    trouble: QLabel

    def blame(self, sentence: str) -> None:
        """Mark the field and show why; "" removes the mark."""
        self.trouble.setText(sentence)
        self.form.setRowVisible(self.trouble, bool(sentence))
        asked = self.widget.focusProxy() or self.widget
        kind = type(asked).__name__
        asked.setStyleSheet(f"{kind} {{ border: 2px solid {AMBER}; }}" if sentence else "")


class Panel(QWidget):
    """The widgets of one step: a subclass lays them out when it is made, and refreshes them as
    the session changes."""

    def __init__(self, step: Step, dock: Window) -> None:
        super().__init__()
        self._kind = type(step)
        self.dock = dock
        self.form = QFormLayout()
        self.form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self.form.setContentsMargins(0, 0, 0, 0)
        self.column = QVBoxLayout(self)
        self.column.setContentsMargins(6, 6, 6, 6)
        self.column.addWidget(note(step.purpose))
        self.column.addLayout(self.form)
        self._fields: dict[str, Field] = {}
        """fields by their option of the command line"""
        self.trouble = _trouble()
        """what is wrong, where it is about no field"""
        self.trouble.hide()
        self.column.addWidget(self.trouble)

    def refresh(self) -> None:
        """Show what the session holds."""
        raise NotImplementedError

    def begin(self) -> None:
        """Start to follow the viewer, and show its contents, once the whole dock exists."""

    def forget(self) -> None:
        """Forget what belongs to the previous movie."""

    def work(self, title: str, verb: Callable[[], Steps[Any]], **hooks: Any) -> None:
        """Run a verb, as `Window.start` does; errors are shown here until it is run again."""
        self.forgive()
        self.dock.start(title, verb, failed=self._failed, **hooks)

    def look(self, title: str, verb: Callable[[], Steps[Any]], **hooks: Any) -> None:
        """The same for a preview, which replaces the previous one."""
        self.forgive()
        self.dock.previewer.start(title, verb, failed=self.blame, **hooks)

    def attempt(self, action: Callable[[], object]) -> None:
        """Do something short; errors are shown here."""
        self.forgive()
        try:
            action()
        except (ValueError, OSError) as error:
            self.blame(error)

    def blame(self, error: Exception) -> None:
        """Show what is wrong at the field that the sentence is about, or above the buttons.

        An error of the program is shown as a notification, with its traceback.
        """
        if not is_refusal(error):
            complain(error)
        elif field := self._field_of(str(error)):
            field.blame(sentence_of(error))
        else:
            self.trouble.setText(sentence_of(error))
            self.trouble.show()

    def _field_of(self, sentence: str) -> Field | None:
        """The first field whose option a sentence names; else that whose label occurs first in
        it."""
        shown = {
            name: field
            for name, field in self._fields.items()
            if field.form.isRowVisible(field.widget)
        }
        named = (shown[option] for option in OPTION.findall(sentence) if option in shown)
        labels = "|".join(
            sorted((re.escape(field.label) for field in shown.values()), key=len, reverse=True)
        )
        named_by_label = re.search(rf"\b({labels})\b", sentence) if shown else None
        return next(named, None) or next(
            (
                field
                for field in shown.values()
                if named_by_label and field.label == named_by_label[1]
            ),
            None,
        )

    def forgive(self) -> None:
        """Remove all error messages."""
        self.trouble.hide()
        for field in self._fields.values():
            field.blame("")

    @property
    def troubles(self) -> list[str]:
        """The error messages that are shown."""
        said = [self.trouble, *(field.trouble for field in self._fields.values())]
        return [label.text() for label in said if not label.isHidden()]

    def _failed(self, error: Exception) -> None:
        self.dock.go_to(self._kind)  # who looks at another step would not see it
        self.blame(error)

    def row(self, label: str, widget: W, tip: str, *, option: str = "") -> W:
        """Add a widget with a label and a tooltip, which screen readers read, too.

        Args:
            label: as the user reads it.
            widget: the field.
            tip: description of the field, with its unit.
            option: option of the command line with the same meaning; "": named like the label.
        """
        widget.setAccessibleName(label)
        widget.setAccessibleDescription(tip)
        widget.setToolTip(tip)
        heading = QLabel(label)
        heading.setBuddy(widget)
        heading.setToolTip(tip)
        self.form.addRow(heading, widget)
        trouble = _trouble()
        self.form.addRow(trouble)
        self.form.setRowVisible(trouble, False)
        self._fields[option or label.lower().replace(" ", "-")] = Field(
            label, self.form, widget, trouble
        )
        return widget

    def ask_open(self, title: str, kinds: str) -> Path | None:
        name, _ = QFileDialog.getOpenFileName(self, title, self.dock.memory.folder(), kinds)
        return self._remembered(name)

    def ask_open_many(self, title: str, kinds: str) -> list[Path]:
        names, _ = QFileDialog.getOpenFileNames(self, title, self.dock.memory.folder(), kinds)
        paths = [Path(name) for name in names]
        for path in paths:
            self.dock.memory.set_folder(path)
        return paths

    def ask_save(self, title: str, name: str, kinds: str) -> Path | None:
        chosen, _ = QFileDialog.getSaveFileName(
            self, title, str(Path(self.dock.memory.folder()) / name), kinds
        )
        return self._remembered(chosen)

    def _remembered(self, name: str) -> Path | None:
        if not name:
            return None
        path = Path(name)
        self.dock.memory.set_folder(path)
        return path


def note(text: str = "") -> QLabel:
    """A paragraph."""
    label = QLabel(text)
    label.setWordWrap(True)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    label.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Minimum)
    return label


def _trouble() -> QLabel:
    label = note()
    label.setStyleSheet(f"color: {AMBER};")
    label.setAccessibleName("what is wrong")
    return label


def button(text: str, tip: str, clicked: Any) -> QPushButton:
    made = QPushButton(text)
    made.setToolTip(tip)
    made.setAccessibleDescription(tip)
    made.clicked.connect(lambda _: clicked())
    return made


def number(
    low: float, high: float, value: float, *, unit: str = "", digits: int = 1, none: str = ""
) -> QDoubleSpinBox:
    """A field for a number with its unit; the lowest value reads as `none`, where given."""
    box = QDoubleSpinBox()
    box.setDecimals(digits)
    box.setRange(low, high)
    box.setValue(value)
    box.setSuffix(f" {unit}" if unit else "")
    if none:
        box.setSpecialValueText(none)
    box.setKeyboardTracking(False)
    return box


def choice(options: Sequence[str]) -> QComboBox:
    box = QComboBox()
    box.addItems(list(options))
    box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    box.setMinimumContentsLength(12)
    return box
