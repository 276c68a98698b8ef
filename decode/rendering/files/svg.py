"""A picture as SVG: its pixels as they are, its marks as shapes and text that can be edited."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from decode.atomic import atomic
from decode.progress import Steps
from decode.rendering.annotation import Box, Mark, Ramp, Sheet, laid_out
from decode.rendering.picture import Picture, painted

__all__ = ["write"]


def write(picture: Picture, path: Path) -> Steps[None]:
    """Draw a picture and write it."""
    sheet = laid_out((yield from painted(picture)))
    with atomic(path) as temporary:
        temporary.write_text(_document(sheet), encoding="utf-8")


def _document(sheet: Sheet) -> str:
    file = io.BytesIO()
    Image.fromarray(sheet.raster).save(file, format="PNG")
    pixels = base64.b64encode(file.getvalue()).decode()
    height, width, _ = sheet.raster.shape
    marks = "\n".join(_shape(mark) for mark in sheet.marks)
    size = f'width="{sheet.width}" height="{sheet.height}"'
    return f"""<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {sheet.width} {sheet.height}">
<rect {size} fill="#000000"/>
<image width="{width}" height="{height}" style="image-rendering: pixelated"
 href="data:image/png;base64,{pixels}"/>
<g font-family="DejaVu Sans, Helvetica, Arial, sans-serif" fill="#ffffff">
{marks}
</g>
</svg>
"""  # noqa: E501


def _shape(mark: Mark) -> str:
    if isinstance(mark, Box):
        return f"<rect {_place(mark)} fill={mark.colour!r}/>"
    if isinstance(mark, Ramp):
        shares = np.linspace(0, 100, len(mark.colours))
        stops = "".join(
            f'<stop offset="{share:g}%" stop-color="rgb({red},{green},{blue})"/>'
            for share, (red, green, blue) in zip(shares, mark.colours.tolist(), strict=True)
        )
        gradient = f'<linearGradient id="ramp" x2="0" y2="1">{stops}</linearGradient>'
        return f'{gradient}<rect {_place(mark)} fill="url(#ramp)"/>'
    return (
        f'<text x="{mark.x:g}" y="{mark.y:g}" font-size="{mark.size:g}" '
        f'text-anchor="{mark.anchor}">{escape(mark.text)}</text>'
    )


def _place(mark: Box | Ramp) -> str:
    return f'x="{mark.x:g}" y="{mark.y:g}" width="{mark.width:g}" height="{mark.height:g}"'
