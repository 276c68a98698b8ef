"""Texts of Zeiss ZEN for the Elyra, read only."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from decode.emitters import EmitterSet
from decode.io.tables.columns import from_named
from decode.io.tables.format import TableFormat
from decode.io.tables.text import read_columns

__all__ = ["FORMAT"]

START = b"Index\tFirst Frame\t"

NAMES = {
    "frame": "First Frame",
    "x": "Position X [nm]",
    "y": "Position Y [nm]",
    "z": "Position Z [nm]",
    "sigma_x": "Precision [nm]",
    "sigma_y": "Precision [nm]",
    "photons": "Number Photons",
}
"""labels of the columns in files"""


def read_elyra(path: Path, pixel_size_nm: float | None) -> EmitterSet:
    """Frames count from 1.  Behind the rows and a byte 0 stand the facts of the image, of which
    the size of a pixel is read."""
    content = path.read_bytes()
    end = re.search(rb"\0|\r?\n\s*VoxelSizeX", content)
    n_bytes = len(content) if end is None else end.start()
    rows, facts = content[:n_bytes], content[n_bytes:]
    columns = read_columns(path, numbers=NAMES.values(), content=rows)
    named = {name: label for name, label in NAMES.items() if label in columns}
    found = from_named(path, columns, first_frame=1, pixel_size_nm=pixel_size_nm, named=named)
    stated = re.search(rb"VoxelSizeX\s*:\s*(\d*\.?\d+)\s*[\xb5\xc2u]", facts)
    if pixel_size_nm is not None or stated is None or not float(stated[1]):
        return found
    return replace(found, metadata={**found.metadata, "pixel_size_nm": 1000 * float(stated[1])})


def _is_elyra(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(START)) == START


FORMAT = TableFormat(
    name="elyra",
    title="Zeiss Elyra text",
    content="a first line `Index`, `First Frame`, ... between tabs",
    suffixes=(".txt",),
    recognizes=_is_elyra,
    read=read_elyra,
)
