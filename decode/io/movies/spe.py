"""Princeton Instruments `.SPE`, of WinView (version 2) and LightField (version 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from decode.errors import reading
from decode.io.movies.block import BlockPart
from decode.io.movies.facts import StatedFacts
from decode.io.movies.format import MovieFormat, Part
from decode.io.movies.selection import TIME, Axis, Selection, choose
from decode.io.movies.units import positive

__all__ = ["FORMAT"]

HEADER = np.dtype(
    {
        "names": [
            "exposure_s",
            "width",
            "type",
            "height",
            "footer",
            "n_frames",
            "n_regions",
            "version",
            "mark",
            "end",
        ],
        "formats": ["<f4", "<u2", "<i2", "<u2", "<u8", "<i4", "<i2", "<f4", "<u4", "<u2"],
        "offsets": [10, 42, 108, 656, 678, 1446, 1510, 1992, 2996, 4098],
        "itemsize": 4100,
    }
)
"""what of the header is read, as its manual lists it"""
MARK, END = 0x01234567, 0x5555
LONGEST_FOOTER = 2**26
TYPES = {0: "<f4", 1: "<i4", 2: "<i2", 3: "<u2", 5: "<f8", 6: "|u1", 8: "<u4"}


def _header(path: Path) -> npt.NDArray[Any] | None:
    with path.open("rb") as file:
        content = file.read(HEADER.itemsize)
    if len(content) < HEADER.itemsize:
        return None
    header = np.frombuffer(content, HEADER)[0]
    return header if header["mark"] == MARK or header["end"] == END else None


def _is_spe(path: Path) -> bool:
    return path.is_file() and _header(path) is not None


def _open_spe(path: Path, selection: Selection, *, allow_truncated: bool) -> Part:
    header = _header(path)
    if header is None:
        raise ValueError(f"{path} is no Princeton .SPE, or its header of 4100 bytes is cut short")
    with reading(path, "a Princeton .SPE movie"):
        if int(header["type"]) not in TYPES:
            raise ValueError(f"its type of counts is {header['type']}")
        if header["n_regions"] > 1:
            raise ValueError(
                f"{path} holds {header['n_regions']} regions of the camera; save one as a movie"
            )
        n_frames = int(header["n_frames"])
        stride = _stride(path, int(header["footer"])) if header["version"] >= 3 else None
        seconds = positive(header["exposure_s"])
        choose(path, [Axis(name=TIME, size=n_frames)], selection)
    return BlockPart.of(
        path,
        frame_shape=(int(header["height"]), int(header["width"])),
        dtype=np.dtype(TYPES[int(header["type"])]),
        n_frames=n_frames,
        first_byte=HEADER.itemsize,
        stride=stride,
        facts=StatedFacts(exposure_ms=None if seconds is None else 1e3 * seconds),
        allow_truncated=allow_truncated,
    )


def _stride(path: Path, footer: int) -> int:
    """Bytes from a frame to the next, time stamps included, by the XML at the end of version 3."""
    with path.open("rb") as file:
        file.seek(footer)
        text = file.read(LONGEST_FOOTER)
    if not text:
        raise ValueError(
            f"{path} is cut short: the description at its end is missing; copy or export it again"
        )
    frame = ElementTree.fromstring(text).find(".//{*}DataBlock[@type='Frame']")
    if frame is None:
        raise ValueError("its description states no frames")
    return int(frame.attrib["stride"])


FORMAT = MovieFormat(
    name="spe",
    title="Princeton Instruments .SPE",
    content="the marks of its header of 4100 bytes",
    suffixes=(".spe",),
    recognizes=_is_spe,
    read=_open_spe,
)
