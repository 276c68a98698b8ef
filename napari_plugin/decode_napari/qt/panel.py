"""What all panels share: rows with labels that a screen reader reads, and files that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

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

from decode_napari.steps.step import Step

if TYPE_CHECKING:
    from decode_napari.qt.dock import DecodeDock

__all__ = ["TABLES", "TIFFS", "Panel", "button", "choice", "note", "number"]

W = TypeVar("W", bound=QWidget)

TABLES = "Tables (*.csv *.hdf5 *.h5 *.smlm)"
TIFFS = "TIFF (*.tif *.tiff)"


class Panel(QWidget):
    """The widgets of one step: a subclass lays them out when it is made, and refreshes them as the session changes."""

    def __init__(self, step: Step, dock: DecodeDock) -> None:
        super().__init__()
        self.dock = dock
        self.form = QFormLayout()
        self.form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self.form.setContentsMargins(0, 0, 0, 0)
        self.column = QVBoxLayout(self)
        self.column.setContentsMargins(6, 6, 6, 6)
        self.column.addWidget(note(step.purpose))
        self.column.addLayout(self.form)

    def refresh(self) -> None:
        """Show what the session holds."""
        raise NotImplementedError

    def row(self, label: str, widget: W, tip: str) -> W:
        """A widget with a label, its tooltip the same as what a screen reader says."""
        widget.setAccessibleName(label)
        widget.setAccessibleDescription(tip)
        widget.setToolTip(tip)
        heading = QLabel(label)
        heading.setBuddy(widget)
        heading.setToolTip(tip)
        self.form.addRow(heading, widget)
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
        chosen, _ = QFileDialog.getSaveFileName(self, title, str(Path(self.dock.memory.folder()) / name), kinds)
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


def button(text: str, tip: str, clicked: Any) -> QPushButton:
    made = QPushButton(text)
    made.setToolTip(tip)
    made.setAccessibleDescription(tip)
    made.clicked.connect(lambda _: clicked())
    return made


def number(low: float, high: float, value: float, *, unit: str = "", digits: int = 1, none: str = "") -> QDoubleSpinBox:
    """A number with its unit; the lowest value reads as `none`, where that is given."""
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
