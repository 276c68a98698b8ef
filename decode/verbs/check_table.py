"""check-table: whether a table of molecules is one as docs/table.md describes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from decode.commands import COMMANDS
from decode.emitters import STEPS, EmitterSet
from decode.errors import brief
from decode.io.formats import format_of
from decode.io.tables import read_table, table_formats
from decode.io.tables.columns import Columns, numbers_of, unit_of
from decode.io.tables.parquet import NAMES

__all__ = ["TableCheck", "check_table"]

RANGES = {"sigma": (0.0, np.inf), "half95": (0.0, np.inf), "photons_": (0.0, np.inf)}
RANGES |= {"probability": (0.0, 1.0), "corr": (-1.0, 1.0), "ess": (0.0, 1.0)}
RANGES |= {"goodness": (0.0, np.inf)}
"""smallest and largest values of the quantities whose names begin so"""

DONE = (*STEPS, COMMANDS)
"""entries of the metadata that say what was done"""

BEYOND_PX = 1.0
"""how far a molecule may lie outside the field, as its light still reaches in"""
DRIFT_NM = 5000.0
"""how much farther where a drift was subtracted, which moves molecules and not the field"""


@final
@dataclass(frozen=True, kw_only=True)
class TableCheck:
    """What a table holds, and where it is not as described."""

    format: str
    """name of its format (`decode.io.tables.table_formats`)"""
    rows: int
    first_frame: int | None
    """of a molecule, from 0; None without molecules"""
    last_frame: int | None
    columns: Mapping[str, str]
    """units by the columns' names in the native table; "" where there is none"""
    facts: Mapping[str, object]
    """of the movie, the camera and the model"""
    steps: Mapping[str, object]
    """what was done with the molecules, in order, by the command's name; and the commands"""
    problems: tuple[str, ...]
    """a sentence on each way in which the table violates the description"""


def check_table(table: Path | str, *, pixel_size_nm: float | None = None) -> TableCheck:
    """Look at a table of any format, and compare it with the description of the native one.

    Uncertainties are not negative, probabilities lie in 0 to 1 and correlations in -1 to 1, frames
    are among those of the movie, and molecules in its field (where the table states them).  NaN is
    what is not known.

    Example:
        >>> found = check_table("sample_data/blinking_2d_truth.csv")
        >>> found.format, found.rows, found.columns["x_nm"], found.problems
        ('challenge', 8919, 'nm', ())

    Args:
        table: any table that `read_table` reads.
        pixel_size_nm: side of a pixel, for a table in pixels that does not state it.

    Returns:
        What it holds, with its problems, if there are any.

    Raises:
        ValueError: if it is no table: unknown units, rows without a frame or a position, damage.
        OSError: if it cannot be read.
    """
    path = Path(table)
    molecules = read_table(path, pixel_size_nm=pixel_size_nm)
    numbers = numbers_of(molecules)
    columns = {label: unit for name, (label, unit) in NAMES.items() if name in numbers}
    frames = numbers["frame"]
    return TableCheck(
        format=format_of(path, table_formats(), what="tables").name,
        rows=len(molecules),
        first_frame=int(frames.min()) if len(frames) else None,
        last_frame=int(frames.max()) if len(frames) else None,
        columns=columns | {label: unit_of(label)[1] for label in molecules.others},
        facts={k: v for k, v in molecules.metadata.items() if k not in DONE},
        steps={k: v for k, v in molecules.metadata.items() if k in DONE},
        problems=tuple(_problems(molecules, numbers)),
    )


def _problems(molecules: EmitterSet, numbers: Columns) -> Iterator[str]:
    for name, column in numbers.items():
        low, high = _range(name)
        wrong = np.isinf(column) | (column < low) | (column > high)
        limits = f"{low:g} or more" if np.isinf(high) else f"from {low:g} to {high:g}"
        yield from _counted(
            wrong, column, NAMES[name][0], "finite" if np.isinf(low) else f"{limits}, or unknown"
        )
    facts = molecules.facts
    for fact in ("pixel_size_nm", "n_frames", "width_px", "height_px", "psf_sigma_nm"):
        value = getattr(facts, fact)
        if value is not None and not 0 < value < np.inf:
            yield f"it states {fact} {brief(value)}, which must be positive"
    if facts.n_frames is not None:
        late = numbers["frame"] >= facts.n_frames
        yield from _counted(late, numbers["frame"], "frame", f"below {facts.n_frames}, from 0")
    if facts.field_nm is not None and facts.pixel_size_nm is not None:
        margin = BEYOND_PX * facts.pixel_size_nm + DRIFT_NM * ("drift" in molecules.metadata)
        for axis, size in zip("xy", facts.field_nm, strict=True):
            outside = (numbers[axis] < -margin) | (numbers[axis] > size + margin)
            yield from _counted(outside, numbers[axis], f"{axis}_nm", f"from 0 to {size:g} nm")


def _range(name: str) -> tuple[float, float]:
    found = (limits for start, limits in RANGES.items() if name.startswith(start))
    return next(found, (-np.inf, np.inf))


def _counted(
    wrong: npt.NDArray[np.bool_], column: npt.NDArray[Any], name: str, must: str
) -> Iterator[str]:
    """A sentence on all rows of a column that are wrong, if there are any."""
    if wrong.any():
        first = int(wrong.argmax())
        yield (
            f"{int(wrong.sum())} rows have a {name} that it cannot be, the first in row {first + 1}"
            f" ({column[first]:g}): it must be {must}"
        )
