"""A small plot, drawn by Qt, as a figure of matplotlib would block the window for too long."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt
from qtpy.QtCore import QPointF, QRectF, QSize, Qt
from qtpy.QtGui import QColor, QPainter, QPaintEvent, QPen, QPolygonF
from qtpy.QtWidgets import QWidget

__all__ = ["Plot"]

INK = ("#4fa3ff", "#ffb52e", "#57d38c", "#ff6b5e")
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 20, 32


@final
class Plot(QWidget):
    """Lines or bars over an axis with a title and a unit."""

    def __init__(self, title: str, x_label: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._title, self._x_label = title, x_label
        self._lines: dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]] = {}
        self._bars: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None
        self.setMinimumHeight(110)
        self.setAccessibleName(title)
        self.setToolTip(f"{title}, over {x_label}")

    def sizeHint(self) -> QSize:
        return QSize(320, 130)

    def clear(self) -> None:
        self._lines, self._bars = {}, None
        self.update()

    def set_lines(self, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
        """x and y of each line, by name; values that are not finite are left out."""
        self._lines = {}
        for name, (x, y) in lines.items():
            xs, ys = np.asarray(x, float), np.asarray(y, float)
            finite = np.isfinite(xs) & np.isfinite(ys)
            self._lines[name] = xs[finite], ys[finite]
        self.update()

    def set_bars(self, counts: npt.NDArray[Any], edges: npt.NDArray[Any]) -> None:
        """Heights of bars, and the ends of the bars along the axis."""
        self._bars = np.asarray(counts, float), np.asarray(edges, float)
        self.setAccessibleDescription(f"from {edges[0]:.3g} to {edges[-1]:.3g} {self._x_label}")
        self.update()

    def _limits(self) -> tuple[float, float, float, float] | None:
        if self._bars is not None:
            counts, edges = self._bars
            return float(edges[0]), float(edges[-1]), 0.0, float(counts.max(initial=1)) * 1.05
        filled = [(x, y) for x, y in self._lines.values() if len(x)]
        if not filled:
            return None
        x, y = (np.concatenate(values) for values in zip(*filled, strict=True))
        right = float(x.max()) if float(np.ptp(x)) > 0 else float(x.min()) + 1
        # a value far from all others does not flatten them: it is cut off
        usual = np.quantile(y, (0.05, 0.95))
        reach = 2 * float(np.ptp(usual)) or np.inf
        low, high = max(float(y.min()), usual[0] - reach), min(float(y.max()), usual[1] + reach)
        margin = 0.06 * ((high - low) or abs(high) or 1.0)
        return float(x.min()), right, float(low - margin), float(high + margin)

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        text = self.palette().windowText().color()
        faint = QColor(text)
        faint.setAlpha(60)
        frame = QRectF(LEFT, TOP, self.width() - LEFT - RIGHT, self.height() - TOP - BOTTOM)
        painter.setPen(text)
        painter.drawText(
            QRectF(LEFT, 0, frame.width(), TOP), Qt.AlignmentFlag.AlignLeft, self._title
        )
        painter.drawText(
            QRectF(LEFT, self.height() - 15, frame.width(), 15),
            Qt.AlignmentFlag.AlignHCenter,
            self._x_label,
        )
        painter.setPen(QPen(faint, 1))
        painter.drawRect(frame)
        limits = self._limits()
        if limits is None:
            painter.setPen(faint)
            painter.drawText(frame, Qt.AlignmentFlag.AlignCenter, "nothing yet")
            return
        left, right, low, high = limits

        def at(x: float, y: float) -> QPointF:
            return QPointF(
                frame.left() + (x - left) / (right - left) * frame.width(),
                frame.bottom() - (y - low) / (high - low) * frame.height(),
            )

        small = painter.font()
        small.setPointSizeF(max(6.0, small.pointSizeF() * 0.85))
        painter.setFont(small)
        for value in _ticks(left, right, 5):
            spot = at(value, low)
            painter.setPen(text)
            box = QRectF(spot.x() - 30, frame.bottom() + 2, 60, 14)
            painter.drawText(box, Qt.AlignmentFlag.AlignHCenter, f"{value:g}")
        for value in [] if self._bars is not None else _ticks(low, high, 3):
            spot = at(left, value)
            painter.setPen(faint)
            painter.drawLine(spot, QPointF(frame.right(), spot.y()))
            painter.setPen(text)
            box = QRectF(0, spot.y() - 7, LEFT - 4, 14)
            painter.drawText(
                box, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, f"{value:g}"
            )
        if self._bars is not None:
            for count, start, stop in zip(
                self._bars[0], self._bars[1][:-1], self._bars[1][1:], strict=True
            ):
                painter.fillRect(QRectF(at(start, count), at(stop, 0)), QColor(INK[0]))
            return
        key = frame.right()
        for (name, (x, y)), ink in reversed(list(zip(self._lines.items(), INK, strict=False))):
            painter.setPen(QPen(QColor(ink), 1.6))
            painter.setClipRect(frame)
            painter.drawPolyline(QPolygonF([at(a, b) for a, b in zip(x, y, strict=True)]))
            if len(x) == 1:
                painter.drawEllipse(at(x[0], y[0]), 2, 2)
            painter.setClipping(False)
            if len(self._lines) > 1:
                width = painter.fontMetrics().horizontalAdvance(name) + 10
                key -= width
                painter.drawText(QRectF(key, 0, width, TOP), Qt.AlignmentFlag.AlignRight, name)


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round values between two limits."""
    raw = (high - low) / most
    power = 10 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]
