"""Filter a table: keep the molecules whose columns lie within ranges."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from decode.emitters import EmitterSet
from decode.io.tables import read_table, write_table
from decode.outputs import check_outputs, table_files, table_inputs

__all__ = [
    "COLUMNS",
    "Column",
    "Range",
    "columns_of",
    "filter_table",
    "keep",
    "parse_ranges",
    "range_text",
    "recorded",
    "within",
]

Column = npt.NDArray[Any]

STEP = "filter"
"""entry of a table's metadata that says which ranges were kept"""

Range = tuple[float | None, float | None]
"""lowest and highest value that is kept; None where that end is open"""

COLUMNS = {
    "photons": "photons",
    "sigma": "lateral uncertainty, nm",
    "sigma_z": "axial uncertainty, nm",
    "probability": "probability",
    "x": "x, nm",
    "y": "y, nm",
    "z": "depth z, nm",
    "frame": "frame, from 0",
    "background": "background, photons per pixel",
    "goodness": "goodness of fit",
    "ess": "effective share of samples",
}
"""columns that molecules are filtered by, with their descriptions"""


def columns_of(emitters: EmitterSet) -> dict[str, Column]:
    """(n,) the columns of `COLUMNS` that a table has; columns without a known value are left out.

    In single precision, so that a number is the same whether its file holds digits, floats or
    doubles.
    """
    sigma = emitters.xyz_sigma
    columns = {
        "photons": emitters.photons,
        "sigma": None if sigma is None else sigma[:, :2].double().square().mean(1).sqrt(),
        "sigma_z": None if sigma is None else sigma[:, 2],
        "probability": emitters.probability,
        **{axis: emitters.xyz[:, i] for i, axis in enumerate("xyz")},
        "background": emitters.background,
        "goodness": emitters.goodness,
        "ess": emitters.ess,
    }
    numbers = {
        name: column.detach().cpu().numpy().astype(np.float32)
        for name, column in columns.items()
        if column is not None
    }
    known = {
        name: column
        for name, column in numbers.items()
        if not len(column) or np.isfinite(column).any()
    }
    return known | {"frame": emitters.frame.cpu().numpy()}


def within(column: Column, low: float | None, high: float | None) -> npt.NDArray[np.bool_]:
    """(n,) which values lie in a range, its ends included; unknown values lie in any."""
    inside = np.ones(len(column), np.bool_)
    if low is not None:
        inside &= ~(column < low)
    if high is not None:
        inside &= ~(column > high)
    return inside


def keep(emitters: EmitterSet, ranges: Mapping[str, Range]) -> EmitterSet:
    """The molecules within all ranges, in the order of the table; its metadata say so.

    Args:
        emitters: the table.
        ranges: lowest and highest value of columns, by their names in `COLUMNS`; None leaves an end
            open.

    Raises:
        ValueError: if the table has no such column.
    """
    columns = columns_of(emitters)
    mask = np.ones(len(emitters), np.bool_)
    for name, (low, high) in ranges.items():
        if name not in columns:
            raise ValueError(
                f"the table has no column {name}; it has "
                f"{', '.join(c for c in COLUMNS if c in columns)}"
            )
        mask &= within(columns[name], low, high)
    return recorded(emitters[torch.from_numpy(mask)], ranges)


def recorded(kept: EmitterSet, ranges: Mapping[str, Range]) -> EmitterSet:
    """Molecules that were kept, with a note of the ranges after those of earlier filters."""
    before = (str(kept.metadata[STEP]),) if STEP in kept.metadata else ()
    done = ", ".join((*before, *(range_text(name, ends) for name, ends in ranges.items())))
    return replace(kept, metadata={**kept.metadata, STEP: done}) if ranges else kept


def range_text(name: str, ends: Range) -> str:
    """A range as `parse_ranges` takes it, with all digits, so that it keeps the same molecules.

    >>> range_text("photons", (500.0, None)), range_text("z", (-0.1, 1 / 3))
    ('photons=500:', 'z=-0.1:0.3333333333333333')
    """
    low, high = ("" if end is None else repr(float(end)).removesuffix(".0") for end in ends)
    return f"{name}={low}:{high}"


def parse_ranges(texts: Iterable[str]) -> dict[str, Range]:
    """Ranges from `COLUMN=LOW:HIGH`; a column that is named twice gets the intersection.

    Raises:
        ValueError: if a text has another form, or names no column.
    """
    ranges: dict[str, Range] = {}
    for text in texts:
        name, equals, ends = text.partition("=")
        name = name.strip()
        try:
            low, high = (float(end) if end.strip() else None for end in ends.split(":"))
        except ValueError:
            equals = ""
            low = high = None
        if (
            not equals
            or (low is None and high is None)
            or any(end is not None and math.isnan(end) for end in (low, high))
        ):
            raise ValueError(
                f"--keep {text}: write it as COLUMN=LOW:HIGH, two numbers of which one may be left "
                "out"
            )
        if name not in COLUMNS:
            raise ValueError(
                f"--keep {text}: there is no column {name}; the columns are {', '.join(COLUMNS)}"
            )
        before = ranges.get(name, (None, None))
        low = max((end for end in (before[0], low) if end is not None), default=None)
        high = min((end for end in (before[1], high) if end is not None), default=None)
        if low is not None and high is not None and low > high:
            raise ValueError(
                f"--keep {text}: nothing lies between {low:g} and {high:g}; the lower number comes "
                "first"
            )
        ranges[name] = (low, high)
    return ranges


def filter_table(
    table: str | Path,
    out: str | Path,
    ranges: Mapping[str, Range],
    *,
    pixel_size_nm: float | None = None,
) -> tuple[int, int]:
    """Write the molecules of a table that lie within all ranges as another table.

    Args:
        table: any table that `read_table` reads.
        out: table to write; its suffix determines the format, and it appears when it is complete.
        ranges: as for `keep`.
        pixel_size_nm: side of a pixel, needed for a table in pixels that does not state it, and to
            write pixels.

    Returns:
        The number of molecules that were kept, and the number of all.

    Raises:
        ValueError, OSError: as `keep`, `read_table` and `write_table` do, and if the new table
            would replace the old.
    """
    check_outputs(table_files(Path(out)), inputs=table_inputs(Path(table)))
    emitters = read_table(table, pixel_size_nm=pixel_size_nm)
    kept = keep(emitters, ranges)
    write_table(kept, out)
    return len(kept), len(emitters)
