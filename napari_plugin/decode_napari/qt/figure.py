"""A figure that fills its width, and opens in a window of its own on a click."""

from __future__ import annotations

from typing import final

from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QMouseEvent, QPainter, QPaintEvent, QPixmap
from qtpy.QtWidgets import QDialog, QSizePolicy, QVBoxLayout, QWidget

__all__ = ["Figure"]

LEAST_PX = 280


@final
class Figure(QWidget):
    """A picture that keeps its proportions, as large as fits."""

    def __init__(self, parent: QWidget | None = None, *, enlargeable: bool = True) -> None:
        super().__init__(parent)
        self._pixmap = QPixmap()
        self._enlargeable = enlargeable
        policy = QSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred)
        policy.setHeightForWidth(True)
        self.setSizePolicy(policy)
        if enlargeable:
            self.setCursor(Qt.CursorShape.PointingHandCursor)
            self.setToolTip("Click to see it in a window of its own")

    def show_png(self, png: bytes, title: str) -> None:
        self._pixmap.loadFromData(png)
        self.setAccessibleName(title)
        self.updateGeometry()
        self.update()

    def hasHeightForWidth(self) -> bool:
        return True

    def heightForWidth(self, width: int) -> int:
        size = self._pixmap.size()
        return round(width * size.height() / size.width()) if size.width() else 0

    def sizeHint(self) -> QSize:
        return QSize(LEAST_PX, self.heightForWidth(LEAST_PX))

    def minimumSizeHint(self) -> QSize:
        return self.sizeHint()

    def enlarge(self) -> QDialog:
        """The picture in a window of its size, at most that of the screen."""
        window = QDialog(self)
        window.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        window.setWindowTitle(self.accessibleName())
        large = Figure(window, enlargeable=False)
        large._pixmap = self._pixmap
        column = QVBoxLayout(window)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(large)
        window.resize(self._pixmap.size().boundedTo(self.screen().availableSize() * 0.9))
        window.show()
        return window

    def mousePressEvent(self, event: QMouseEvent) -> None:
        if self._enlargeable and not self._pixmap.isNull():
            self.enlarge()

    def paintEvent(self, event: QPaintEvent) -> None:
        if self._pixmap.isNull():
            return
        ratio = self.devicePixelRatioF()
        mode = Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation
        scaled = self._pixmap.scaled(self.size() * ratio, *mode)
        scaled.setDevicePixelRatio(ratio)
        left = (self.width() - scaled.width() / ratio) / 2
        QPainter(self).drawPixmap(round(left), 0, scaled)
