"""Texts of rapidSTORM (version 3), read only.

The first line describes the columns, as written by `localization_file/fields.cpp` of its source;
"Input options" of its manual places the centre of the first pixel at (0, 0) nm.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch

from decode.emitters import EmitterSet
from decode.io.tables.columns import from_named
from decode.io.tables.format import TableFormat
from decode.io.tables.text import Layout, columns_of

__all__ = ["FORMAT"]

START = b"# <localizations"

NAMES = {
    "x": "Position-0-0",
    "y": "Position-1-0",
    "z": "Position-2-0",
    "sigma_x": "Position-0-0-uncertainty",
    "sigma_y": "Position-1-0-uncertainty",
    "sigma_z": "Position-2-0-uncertainty",
    "frame": "ImageNumber-0-0",
    "photons": "Amplitude-0-0",
    "background": "LocalBackground-0-0",
}
"""identifiers of the columns in files"""

UNITS = {"nanometer": "nm", "micrometer": "um", "meter": "m", "A/D count": "ADU"}
UNITS |= {"frame": "", "dimensionless": ""}

FIELD, ATTRIBUTE = re.compile(r"<field\b([^>]*)>"), re.compile(r'(\w+)="([^"]*)"')

LONGEST = 2**16
"""bytes of the first line"""


def read_rapidstorm(path: Path, pixel_size_nm: float | None) -> EmitterSet:
    """Frames count from 0, and positions from the centre of the first pixel; half a pixel is added
    where its size is known.  The amplitude is in numbers of the camera."""
    with path.open("rb") as file:
        header = file.readline(LONGEST).decode("utf-8", "replace")
        first = file.readline(LONGEST).decode("utf-8", "replace")
    if header.count("<localizations") > 1:
        raise ValueError(f"{path} holds tracks; save the localizations before they are tracked")
    fields = [dict(ATTRIBUTE.findall(field)) for field in FIELD.findall(header)]
    identifiers = [field.get("identifier", "") for field in fields]
    if len({*identifiers}) < len(identifiers):
        raise ValueError(f"{path} describes a column twice; save it again")
    stated = {f["identifier"]: f["unit"] for f in fields if {"identifier", "unit"} <= f.keys()}
    units = {name: UNITS.get(unit, unit) for name, unit in stated.items()}
    end = [""] if first.rstrip("\r\n").endswith(" ") else []
    layout = Layout("utf-8", 1, identifiers + end, " ", ".")
    columns = columns_of(path, layout, numbers={*NAMES.values()} & {*identifiers})
    named = {name: label for name, label in NAMES.items() if label in columns}
    found = from_named(
        path, columns, first_frame=0, pixel_size_nm=pixel_size_nm, named=named, units=units
    )
    return _from_the_corner(found, pixel_size_nm)


def _from_the_corner(found: EmitterSet, pixel_size_nm: float | None) -> EmitterSet:
    if pixel_size_nm is None:
        told = [
            *found.facts.warnings,
            "positions count from the centre of the first pixel: state "
            "the side of one with --pixel-size, and half of it is added",
        ]
        return replace(found, metadata={**found.metadata, "warnings": told})
    half = torch.tensor([pixel_size_nm / 2, pixel_size_nm / 2, 0.0], dtype=torch.float64)
    return replace(found, xyz=found.xyz + half)


def _is_rapidstorm(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(START)) == START


FORMAT = TableFormat(
    name="rapidstorm",
    title="rapidSTORM text",
    content="a first line `# <localizations ...>`",
    suffixes=(".txt",),
    recognizes=_is_rapidstorm,
    read=read_rapidstorm,
)
