"""A picture as OME-TIFF: molecules per pixel, slice by slice and channel by channel."""

from __future__ import annotations

import math
import zlib
from functools import cache
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from decode.atomic import atomic
from decode.progress import Progress, Steps
from decode.rendering.picture import Picture
from decode.version import __version__

__all__ = ["write"]

TILE = 512
LARGE = 8192
"""pixels along a side above which a picture is a pyramid of tiles; smaller ones are strips, which
ImageJ opens without Bio-Formats"""
NM_PER_CM = 1e7
IN_MEMORY = 2**26
"""bytes of compressed pixels that wait in memory, not on the disk"""


def write(picture: Picture, path: Path) -> Steps[None]:
    """Draw a picture and write it, part by part, so that memory does not grow with its pixels.

    Each level of a pyramid is drawn anew in pixels twice as large, and holds the mean density of
    the finest pixels.
    """
    longest = max(picture.canvas.shape)
    large = longest > LARGE
    halvings = math.ceil(math.log2(longest / TILE)) * large
    with (
        atomic(path) as temporary,
        tifffile.TiffWriter(temporary, bigtiff=large, ome=True, byteorder="<") as file,
    ):
        for halved in range(halvings + 1):
            level = picture.coarser(2**halved)
            tile = (TILE, TILE) if large else (TILE, level.canvas.shape[1])
            yield from _write_level(
                file,
                level,
                tile=tile,
                scale=4.0**-halved,
                layout={"tile": tile} if large else {"rowsperstrip": TILE},
                about=_sublevel() if halved else _finest(picture, halvings),
            )


def _write_level(
    file: tifffile.TiffWriter,
    picture: Picture,
    *,
    tile: tuple[int, int],
    scale: float,
    layout: dict[str, Any],
    about: dict[str, Any],
) -> Steps[None]:
    canvas = picture.canvas
    pages = [
        (plane, channel)
        for plane in canvas.planes
        for channel in range(len(picture.colouring.names))
    ]
    per_cm = NM_PER_CM / canvas.pixel_nm
    pads = "tile" in layout
    with SpooledTemporaryFile(IN_MEMORY) as waiting:
        lengths = []
        for done, (plane, channel) in enumerate(pages):
            spots = picture.spots(plane, channel)
            windows = list(canvas.windows(*tile))
            for i, window in enumerate(windows):
                yield Progress((done + i / len(windows)) / len(pages), "drawing")
                density = spots.drawn(window) * np.float32(scale)
                lengths.append(waiting.write(_compressed(density, tile if pads else None)))
        waiting.seek(0)
        file.write(
            (waiting.read(length) for length in lengths),
            shape=(len(canvas.planes), len(picture.colouring.names), *canvas.shape),
            dtype="<f4",
            photometric="minisblack",
            compression="adobe_deflate",
            resolution=(per_cm, per_cm),
            resolutionunit="CENTIMETER",
            **layout,
            **about,
        )


def _compressed(density: npt.NDArray[np.float32], tile: tuple[int, int] | None) -> bytes:
    if tile is not None and tile != density.shape:  # tiles at the edges are full, too
        missing = [(0, side - size) for side, size in zip(tile, density.shape, strict=True)]
        density = np.pad(density, missing)
    return zlib.compress(density.tobytes(), 1) if density.any() else _blank(density.size)


@cache
def _blank(size: int) -> bytes:
    """Pixels without molecules, of which a large field has many."""
    return zlib.compress(np.zeros(size, np.float32).tobytes(), 1)


def _sublevel() -> dict[str, Any]:
    return {"subfiletype": 1}  # FILETYPE.REDUCEDIMAGE


def _finest(picture: Picture, halvings: int) -> dict[str, Any]:
    canvas, colouring = picture.canvas, picture.colouring
    um = canvas.pixel_nm / 1000
    low, high = canvas.planes[0]
    thickness = {"PhysicalSizeZ": (high - low) / 1000, "PhysicalSizeZUnit": "µm"}
    red, green, blue = np.rint(colouring.colours.T * 255).astype(int)
    rgba = ((red << 24) | (green << 16) | (blue << 8) | 255).astype(np.int32)
    across, down = canvas.corner_nm
    kernel = picture.rendering.kernel
    metadata = {
        "axes": "ZCYX",
        "PhysicalSizeX": um,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": um,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": list(colouring.names), "Color": rgba.tolist()},
        "Description": f"Molecules per pixel, {kernel}; {canvas.view[0]} to the right and "
        f"{canvas.view[1]} downwards from {across:g}, {down:g} nm; decode {__version__}",
        **(thickness if math.isfinite(high - low) else {}),
    }
    return {"subifds": halvings, "metadata": metadata}
