"""Scale bar, legend and titles of a painted picture, as marks that each kind of file draws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import numpy.typing as npt

from decode.rendering.colours import Channels, Colouring, Scale
from decode.rendering.picture import Painted

__all__ = ["Box", "Mark", "Ramp", "Sheet", "Text", "laid_out"]

GAP, GREY = 2, 80
"""width and colour of the lines between slices"""

Pixels = npt.NDArray[np.uint8]
Anchor = Literal["start", "middle", "end"]


@final
@dataclass(frozen=True)
class Box:
    """A filled rectangle; the unit is the pixel of the picture, y runs down."""

    x: float
    y: float
    width: float
    height: float
    colour: str = "#ffffff"


@final
@dataclass(frozen=True)
class Ramp:
    """A rectangle whose colour runs from top to bottom straight through (n, 3) colours."""

    x: float
    y: float
    width: float
    height: float
    colours: Pixels


@final
@dataclass(frozen=True)
class Text:
    """White text on a baseline."""

    x: float
    y: float
    text: str
    size: float
    anchor: Anchor = "start"


Mark = Box | Ramp | Text


@final
@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A picture as it is printed: pixels on black, with marks over them."""

    width: int
    height: int
    raster: Pixels
    """(y, x, 3) in the upper left corner"""
    marks: tuple[Mark, ...]


def laid_out(painted: Painted) -> Sheet:
    """The slices side by side, with a scale bar if it is wanted, and what the colours show."""
    picture = painted.picture
    canvas = picture.canvas
    height, width = canvas.shape
    raster, corners = _montage(painted.colours)
    size = float(max(13, min(raster.shape[:2]) // 40))
    marks: list[Mark] = []
    if len(corners) > 1:
        for (x, y), (low, high) in zip(corners, canvas.planes, strict=True):
            title = f"{low:g} to {high:g} nm"
            marks.append(Text(x + size / 2, y + 1.4 * size, title, size))
    if picture.rendering.scale_bar:
        x, y = corners[-1]
        marks += _scale_bar(x + width - size, y + height - size, canvas.pixel_nm, width, size)
    if canvas.view != "xy":
        across, down = canvas.view
        marks.append(Text(size, height - size, f"→ {across}  ↓ {down}", size))
    legend = _legend(picture.colouring, raster.shape[1] + size, raster.shape[0], size)
    longest = max((len(mark.text) for mark in legend if isinstance(mark, Text)), default=0)
    strip = math.ceil((3 + 0.62 * longest) * size) if legend else 0
    return Sheet(
        width=raster.shape[1] + strip,
        height=raster.shape[0],
        raster=raster,
        marks=(*marks, *legend),
    )


def _montage(colours: Pixels) -> tuple[Pixels, list[tuple[int, int]]]:
    """Slices in rows, a line apart, and x, y of their corners."""
    number, height, width, _ = colours.shape
    columns = math.ceil(math.sqrt(number * height / width))
    columns = min(max(columns, 1), number)
    rows = math.ceil(number / columns)
    shape = rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3
    sheet = np.full(shape, GREY, np.uint8)
    corners = []
    for i, plane in enumerate(colours):
        y, x = i // columns * (height + GAP), i % columns * (width + GAP)
        sheet[y : y + height, x : x + width] = plane
        corners.append((x, y))
    return sheet, corners


def _scale_bar(right: float, bottom: float, pixel_nm: float, width: int, size: float) -> list[Mark]:
    """A bar of a round length, at most a fifth of the width; none of less than a pixel."""
    lengths = (step * 10**power for power in range(9, -1, -1) for step in (5, 2, 1))
    length_nm = next((length for length in lengths if length <= width * pixel_nm / 5), 1)
    text = f"{length_nm / 1000:g} µm" if length_nm >= 1000 else f"{length_nm} nm"
    thick, long = max(2.0, size // 5), length_nm / pixel_nm
    if long < 1:
        return []
    return [
        Box(right - long, bottom - thick, long, thick),
        Text(right - long / 2, bottom - 2 * thick, text, size, "middle"),
    ]


def _legend(colouring: Colouring, left: float, height: int, size: float) -> list[Mark]:
    """What the colours show, in a strip that begins at `left`."""
    if isinstance(colouring, Scale):
        return _ramp(colouring, left, height, size)
    if isinstance(colouring, Channels):
        return _swatches(colouring, left, size)
    return []


def _ramp(scale: Scale, left: float, height: int, size: float) -> list[Mark]:
    top, long = 2.2 * size, max(2.0, min(height - 3.5 * size, 16 * size))
    colours = np.rint(scale.stops[::-1] * 255).astype(np.uint8)
    low, high = scale.range
    ends = ((0.0, high), (0.5, (low + high) / 2), (1.0, low))
    return [
        Text(left, top - 0.8 * size, scale.title, size),
        Ramp(left, top, size, long, colours),
        *(
            Text(left + 1.5 * size, top + share * long + 0.35 * size, f"{value:g}", size)
            for share, value in ends
        ),
    ]


def _swatches(channels: Channels, left: float, size: float) -> list[Mark]:
    marks: list[Mark] = [Text(left, 1.4 * size, channels.title, size)]
    for i, (label, rgb) in enumerate(zip(channels.labels, channels.colours, strict=True)):
        red, green, blue = np.rint(rgb * 255).astype(int).tolist()
        top = (2.2 + 1.5 * i) * size
        colour = f"#{red:02x}{green:02x}{blue:02x}"
        marks += [Box(left, top, size, size, colour)]
        marks += [Text(left + 1.5 * size, top + 0.85 * size, label, size)]
    return marks
