"""Settings from an earlier window, which are shown as such and used once confirmed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import final

from qtpy.QtWidgets import QVBoxLayout, QWidget

from decode_napari.qt.panel import AMBER, button, note

__all__ = ["Remembered"]


@final
class Remembered(QWidget):
    """Settings of another movie, and a button that uses them for this one; hidden if there are
    none."""

    def __init__(self, confirmed: Callable[[], None]) -> None:
        """
        Args:
            confirmed: called when the button confirms all settings.
        """
        super().__init__()
        self._waiting: dict[str, str] = {}
        self._confirmed = confirmed
        self._text = note()
        self._text.setStyleSheet(f"color: {AMBER};")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self._text)
        self.button = button(
            "Use them for this movie",
            "Take the remembered settings; or state others above",
            self.confirm,
        )
        column.addWidget(self.button)
        self.hide()

    @property
    def waiting(self) -> Mapping[str, str]:
        """The unconfirmed settings, by the names of their fields."""
        return self._waiting

    def offer(self, values: Mapping[str, str]) -> None:
        """Offer values, by the names of their fields, as the user reads them."""
        self._waiting |= values

    def settle(self, name: str) -> None:
        """Drop the offer of a field, which the user has stated, or which is not needed."""
        self._waiting.pop(name, None)

    def confirm(self) -> None:
        self._waiting.clear()
        self.hide()
        self._confirmed()

    def ask(self, needed: Set[str]) -> bool:
        """Whether one of these fields is unconfirmed, which is then shown."""
        listed = [f"{name} {value}" for name, value in self._waiting.items() if name in needed]
        self._text.setText(f"Remembered from another movie: {', '.join(listed)}.")
        self.setVisible(bool(listed))
        return bool(listed)
