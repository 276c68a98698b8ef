"""Settings that are stored from one window to the next."""

from __future__ import annotations

from pathlib import Path
from typing import final

from qtpy.QtCore import QSettings, QStandardPaths
from qtpy.QtWidgets import QCheckBox, QComboBox, QDoubleSpinBox, QWidget

__all__ = ["Memory", "recovery_folder"]


@final
class Memory:
    """Binds widgets to names: their values are restored now and stored whenever they change."""

    def __init__(self) -> None:
        self._store = QSettings(
            QSettings.Format.IniFormat, QSettings.Scope.UserScope, "decode-smlm", "napari"
        )

    def bind(self, name: str, widget: QWidget) -> None:
        value = self._store.value(name)
        if isinstance(widget, QDoubleSpinBox):
            if value is not None:
                widget.setValue(float(value))
            widget.valueChanged.connect(lambda v: self._store.setValue(name, v))
        elif isinstance(widget, QCheckBox):
            if value is not None:
                widget.setChecked(str(value).lower() == "true")
            widget.toggled.connect(lambda v: self._store.setValue(name, v))
        elif isinstance(widget, QComboBox):
            index = widget.findText(str(value))
            if value is not None and index >= 0:
                widget.setCurrentIndex(index)
            widget.currentTextChanged.connect(lambda v: self._store.setValue(name, v))
        else:
            raise TypeError(f"{type(widget).__name__} cannot be remembered")

    def text(self, name: str) -> str:
        return str(self._store.value(name) or "")

    def set_text(self, name: str, value: str) -> None:
        self._store.setValue(name, value)

    def folder(self) -> str:
        """The folder in which files were last opened or saved."""
        return str(self._store.value("folder") or Path.home())

    def set_folder(self, path: Path) -> None:
        self._store.setValue("folder", str(path if path.is_dir() else path.parent))


def recovery_folder() -> Path:
    """The folder of molecules that were unsaved when the window was closed."""
    data = QStandardPaths.writableLocation(QStandardPaths.StandardLocation.GenericDataLocation)
    return Path(data) / "decode-smlm" / "recovered"
