"""Plots of a page: SVG in the page's colours, with the data behind it for hovering and CSV."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias, final

import numpy as np
import numpy.typing as npt

from decode.pages.blocks import Block, data_url, rounded

__all__ = ["Axis", "Bar", "Bars", "Chart", "FieldMap", "Mark", "Trace"]

Numbers: TypeAlias = tuple[float, ...]
Style: TypeAlias = Literal["line", "dashed", "steps", "points"]

WIDTH, HEIGHT = 440.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 12.0, 26.0, 42.0
MAP_WIDTH = 420.0
ROW, NAMES, NUMBERS = 26.0, 70.0, 120.0
"""of plots, in their own units; a page scales them"""
TICKS, MARGIN = 5, 0.05
DIGITS = 5
"""significant ones of the data behind a plot"""


@final
@dataclass(frozen=True, kw_only=True)
class Axis:
    """What is plotted along a side."""

    label: str
    """with its unit"""
    log: bool = False
    zero: bool = False
    """whether it begins at 0"""


@final
@dataclass(frozen=True, kw_only=True)
class Trace:
    """One series of numbers."""

    name: str
    x: Numbers
    y: Numbers
    """of steps, one fewer than edges in x"""
    style: Style = "line"
    error: Numbers = ()
    """standard deviations of y"""


@final
@dataclass(frozen=True, kw_only=True)
class Mark:
    """A line across a plot, at a value of x or of y."""

    label: str
    x: float | None = None
    y: float | None = None


@final
@dataclass(frozen=True, kw_only=True)
class _Scale:
    """Values of an axis to places on the paper."""

    low: float
    high: float
    log: bool
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        low, high, value = (self._warped(v) for v in (self.low, self.high, value))
        return round(self.start + (self.stop - self.start) * (value - low) / (high - low), 2)

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    def _warped(self, value: float) -> float:
        return math.log10(max(value, self.low / 10)) if self.log else value

    @cached_property
    def ticks(self) -> list[tuple[float, str]]:
        """Places and numbers of round values."""
        from matplotlib.ticker import LogLocator, MaxNLocator

        wide = self.log and self.high / self.low >= 10
        subdivided = LogLocator(subs=(1.0,) if self.high >= 1e3 * self.low else (1.0, 2.0, 5.0))
        locator = subdivided if wide else MaxNLocator(TICKS, steps=[1, 2, 5, 10])
        found = locator.tick_values(self.low, self.high)
        return [(self(v), _short(v)) for v in found if self.holds(v)]


@final
@dataclass(frozen=True, kw_only=True)
class Chart(Block):
    """Traces over two axes."""

    template = "chart.html"
    width, height = WIDTH, HEIGHT

    title: str
    x: Axis
    y: Axis
    traces: tuple[Trace, ...]
    marks: tuple[Mark, ...] = ()
    caption: str = ""
    x_range: tuple[float, float] | None = None
    """None: that of the data"""

    @cached_property
    def across(self) -> _Scale:
        values = [v for trace in self.traces for v in trace.x]
        values += [mark.x for mark in self.marks if mark.x is not None]
        margin = MARGIN if any(trace.style == "points" for trace in self.traces) else 0.0
        return _scale(self.x, self.x_range or values, LEFT, WIDTH - RIGHT, margin=margin)

    @cached_property
    def up(self) -> _Scale:
        values = [mark.y for mark in self.marks if mark.y is not None]
        for trace in self.traces:
            error = trace.error or (0.0,) * len(trace.y)
            rows = zip(trace.x, trace.y, error, strict=False)
            for at, y, e in rows:
                if self.across.holds(at):
                    values += [y - e, y + e]
        return _scale(self.y, values, HEIGHT - BOTTOM, TOP, margin=MARGIN)

    def path(self, trace: Trace) -> str:
        """The line of a trace."""
        pairs = zip(trace.x, trace.y, strict=False)
        if trace.style == "steps":
            pairs = zip(
                np.repeat(trace.x, 2)[1:-1].tolist(), np.repeat(trace.y, 2).tolist(), strict=True
            )
        return self._line(pairs)

    def area(self, trace: Trace) -> str:
        """What a trace fills: below steps, or the band of its errors; "" for others."""
        if trace.style == "steps":
            bottom = self.up.start
            first, last = self.across(trace.x[0]), self.across(trace.x[-1])
            return f"{self.path(trace)}L{last},{bottom}L{first},{bottom}Z"
        if not trace.error or trace.style == "points":
            return ""
        rows = list(zip(trace.x, trace.y, trace.error, strict=True))
        forth = self._line((x, y + e) for x, y, e in rows)
        back = self._line((x, y - e) for x, y, e in reversed(rows))
        return f"{forth}L{back.removeprefix('M')}Z"

    def points(self, trace: Trace) -> list[tuple[float, float, float, float]]:
        """Places of points, and both ends of their error bars."""
        if trace.style != "points":
            return []
        error = trace.error or (0.0,) * len(trace.y)
        rows = zip(trace.x, trace.y, error, strict=True)
        known = (row for row in rows if all(map(math.isfinite, row)))
        return [(self.across(x), self.up(y), self.up(y - e), self.up(y + e)) for x, y, e in known]

    def _line(self, pairs: Iterable[tuple[float, float]]) -> str:
        known = (pair for pair in pairs if all(map(math.isfinite, pair)))
        return "M" + "L".join(f"{self.across(x)},{self.up(y)}" for x, y in known)

    @property
    def data(self) -> dict[str, Any]:
        """What the script reads: axes, and the numbers of each trace."""
        return {
            "title": self.title,
            "x": _described(self.x, self.across),
            "y": _described(self.y, self.up),
            "traces": [
                {
                    "name": trace.name,
                    "steps": trace.style == "steps",
                    "x": _rounded(trace.x),
                    "y": _rounded(trace.y),
                    "error": _rounded(trace.error),
                }
                for trace in self.traces
            ],
        }


@final
@dataclass(frozen=True, kw_only=True)
class Bar:
    """A named quantity."""

    name: str
    value: float | None
    """None where it is not known"""
    error: float | None = None
    """standard deviation"""

    @property
    def said(self) -> str:
        if self.value is None:
            return "unknown"
        error = "" if self.error is None else f" ± {rounded(self.error, 2)}"
        return f"{rounded(self.value)}{error}"


@final
@dataclass(frozen=True, kw_only=True)
class Bars(Block):
    """Named quantities as lengths, one below the other."""

    template = "bars.html"
    width = WIDTH

    title: str
    label: str
    """with the unit"""
    bars: tuple[Bar, ...]

    @property
    def height(self) -> float:
        return ROW * len(self.bars) + 4

    @property
    def rows(self) -> list[tuple[Bar, float, float, float]]:
        """Each bar, its middle, its end and half of its error."""
        ends = ((bar.value or 0.0) + (bar.error or 0.0) for bar in self.bars)
        longest = max(ends, default=0.0) or 1.0
        per_unit = (WIDTH - NAMES - NUMBERS) / longest
        return [
            (
                bar,
                round(ROW * (i + 0.5) + 2, 1),
                round(NAMES + per_unit * max(bar.value or 0.0, 0.0), 1),
                round(per_unit * (bar.error or 0.0), 1),
            )
            for i, bar in enumerate(self.bars)
        ]

    @property
    def names(self) -> float:
        """Place at which bars begin."""
        return NAMES

    @property
    def data(self) -> dict[str, Any]:
        rows = [
            [bar.name, *_rounded([math.nan if v is None else v for v in (bar.value, bar.error)])]
            for bar in self.bars
        ]
        return {"title": self.title, "label": self.label, "bars": rows}


@final
@dataclass(frozen=True, kw_only=True)
class FieldMap(Block):
    """A quantity over the field, from a dark to a bright colour."""

    template = "map.html"
    width = MAP_WIDTH

    title: str
    values: npt.NDArray[np.float64]
    """(y, x)"""
    unit: str
    pixel_nm: float
    origin_nm: tuple[float, float] = (0.0, 0.0)
    """x and y of the outer corner of the first pixel"""
    caption: str = ""

    @property
    def height(self) -> float:
        rows, columns = self.values.shape
        return round(self.width * min(rows / columns, 1.5), 1)

    @property
    def top(self) -> float:
        """Value of the brightest colour, which few exceed."""
        return float(np.quantile(self.values, 0.995)) or float(self.values.max()) or 1.0

    @property
    def ends(self) -> str:
        """The values of both ends of the colours."""
        return f"0 to {rounded(self.top)} {self.unit}"

    @property
    def source(self) -> str:
        from matplotlib import colormaps
        from PIL import Image

        shade = np.clip(self.values / self.top, 0, 1)
        colours = np.rint(colormaps["viridis"](shade)[..., :3] * 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(colours).save(file, format="PNG", optimize=True)
        return data_url(file.getvalue())

    @property
    def data(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "unit": self.unit,
            "pixel_nm": round(self.pixel_nm, 3),
            "origin_nm": [round(at, 1) for at in self.origin_nm],
            "values": [_rounded(row, 3) for row in self.values.tolist()],
        }


def _scale(
    axis: Axis, values: Sequence[float], start: float, stop: float, *, margin: float
) -> _Scale:
    known = [v for v in values if math.isfinite(v) and (v > 0 or not axis.log)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if axis.zero:
        low = min(low, 0.0)
    if not high > low:
        low, high = (low / 2, low * 2) if axis.log else (low - 0.5, high + 0.5)
    if axis.log:
        grown = (high / low) ** margin
        return _Scale(low=low / grown, high=high * grown, log=True, start=start, stop=stop)
    more = margin * (high - low)
    first = low if axis.zero and low == 0 else low - more
    return _Scale(low=first, high=high + more, log=False, start=start, stop=stop)


def _short(value: float) -> str:
    """A round number in a few characters.

    >>> [_short(value) for value in (0.25, 3000.0, 20_000.0, 1_500_000.0)]
    ['0.25', '3,000', '20k', '1.5M']
    """
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= max(unit, 1e4):
            return f"{value / unit:.6g}{name}"
    return f"{float(f'{value:.10g}'):,.6g}"


def _described(axis: Axis, scale: _Scale) -> dict[str, Any]:
    return {
        "label": axis.label,
        "log": axis.log,
        "values": [scale.low, scale.high],
        "places": [scale.start, scale.stop],
    }


def _rounded(values: Iterable[float], digits: int = DIGITS) -> list[float | int | None]:
    def short(value: float) -> float | int | None:
        if not math.isfinite(value):
            return None
        near = float(f"{value:.{digits}g}")
        return int(near) if near == int(near) else near

    return [short(float(value)) for value in values]
