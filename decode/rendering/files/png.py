"""A picture as PNG, with its marks drawn into the pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from decode.atomic import atomic
from decode.progress import Steps
from decode.rendering.annotation import Box, Mark, Ramp, Sheet, laid_out
from decode.rendering.picture import Layout, painted

__all__ = ["write"]

ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}


def write(picture: Layout, path: Path) -> Steps[None]:
    """Draw a picture and write it."""
    sheet = laid_out((yield from painted(picture)))
    with atomic(path) as temporary:
        _image(sheet).save(temporary, format="PNG")


def _image(sheet: Sheet) -> Image.Image:
    image = Image.new("RGB", (sheet.width, sheet.height))
    image.paste(Image.fromarray(sheet.raster), (0, 0))
    draw = ImageDraw.Draw(image)
    for mark in sheet.marks:
        _draw(draw, image, mark)
    return image


def _draw(draw: ImageDraw.ImageDraw, image: Image.Image, mark: Mark) -> None:
    if isinstance(mark, Box):
        left, top = round(mark.x), round(mark.y)
        size = round(mark.width), round(mark.height)
        draw.rectangle((left, top, left + size[0] - 1, top + size[1] - 1), fill=mark.colour)
    elif isinstance(mark, Ramp):
        rows = np.linspace(0, len(mark.colours) - 1, round(mark.height))
        at = np.arange(len(mark.colours))
        column = np.stack([np.interp(rows, at, channel) for channel in mark.colours.T], -1)
        ramp = np.rint(column).astype(np.uint8)[:, None].repeat(round(mark.width), 1)
        image.paste(Image.fromarray(ramp), (round(mark.x), round(mark.y)))
    else:
        draw.text(
            (mark.x, mark.y),
            mark.text,
            fill="white",
            font=_font(mark.size),
            anchor=ANCHORS[mark.anchor],
        )


def _font(size: float) -> ImageFont.FreeTypeFont:
    """The font that comes with Matplotlib; that of Pillow has no micro sign."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
