"""Text tables of any program: their layout, reading and writing."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv

from decode.atomic import atomic
from decode.emitters import EmitterSet
from decode.errors import brief
from decode.io.tables.chosen import chosen
from decode.io.tables.columns import (
    LENGTHS,
    OTHERS,
    PHOTONS,
    Columns,
    filled,
    from_named,
    require_same,
    unit_of,
)
from decode.io.tables.format import Append
from decode.io.tables.picasso import emitters_of_locs

__all__ = [
    "Layout",
    "columns_of",
    "header_of",
    "read_columns",
    "read_text",
    "rounded",
    "text_table",
]

HEAD = 2**16
"""bytes at the beginning of a text that determine its layout"""

NUMBER = re.compile(r"[-+]?(\d+[.,]?\d*|[.,]\d+)(e[-+]?\d+)?|nan", re.IGNORECASE)

KNOWN = {alias for aliases in (LENGTHS | PHOTONS | OTHERS).values() for alias in aliases}

DECIMALS = {"nm": 3, "photon": 2, "": 4}
"""digits behind the point of a CSV column, by its unit"""


@contextmanager
def text_table(
    path: Path, columns_of: Callable[[EmitterSet, int], Columns], *, quote: str
) -> Iterator[Append]:
    """Open a CSV file and yield the function that appends a chunk to it.

    Args:
        columns_of: the columns of a chunk, given the number of rows before it.
        quote: put around the names in the header.
    """
    with atomic(path) as temporary, temporary.open("wb") as file:
        writer: pa_csv.CSVWriter | None = None
        names: list[str] = []
        n_rows = 0

        def append(chunk: EmitterSet) -> None:
            nonlocal writer, names, n_rows
            columns = filled(columns_of(chunk, n_rows))
            if writer is None:
                names = list(columns)
                header = ",".join(f"{quote}{name.replace(',', ' ')}{quote}" for name in names)
                file.write(f"{header}\n".encode())
                schema = pa.schema([(name, pa.array(columns[name]).type) for name in names])
                writer = pa_csv.CSVWriter(
                    file, schema, write_options=pa_csv.WriteOptions(include_header=False)
                )
            require_same(list(columns), names)
            writer.write_table(pa.table(columns))
            n_rows += len(chunk)

        yield append
        if writer is None:
            append(EmitterSet.empty())
        if writer is not None:
            writer.close()


def rounded(column: npt.NDArray[Any], unit: str) -> npt.NDArray[Any]:
    """Digits as printed; adding 0 turns -0 into 0."""
    return column if column.dtype.kind == "i" else np.round(column, DECIMALS[unit]) + 0.0


def header_of(path: Path) -> list[str]:
    """Labels of a text's columns; none where it is no text."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if b"\0" in head and _encoding(head) != "utf-16":
        return []
    try:
        return _layout(path, head).labels
    except ValueError:
        return []


def read_text(
    path: Path,
    pixel_size_nm: float | None,
    *,
    columns: Mapping[str, str] | None = None,
    first_frame: int = 1,
) -> EmitterSet:
    """Read a text in any of the dialects of `Layout`; Picasso's columns have Picasso's
    conventions.

    Args:
        columns: by the name of a quantity, the label of its column (`chosen`), where it has none
            of the usual names.
        first_frame: number by which the text calls the first frame.
    """
    with path.open("rb") as file:
        layout = _layout(path, file.read(HEAD))
    named, units = chosen(path, columns or {}, layout.labels)
    found = columns_of(path, layout, numbers=named.values())
    if columns is None and {"x", "y"} <= found.keys():
        if "frame_ix" in found:
            raise ValueError(
                f"{path} is a CSV table of DECODE, which does not state all its axes; export it as "
                ".h5"
            )
        if {"lpx", "lpy", "sx", "sy"} & found.keys():
            return _of_picasso(path, found, pixel_size_nm)
    if columns is not None and not any(unit_of(label)[0] == "frame" for label in found):
        found.setdefault(named.setdefault("frame", "frame"), _all_in(first_frame, found))
    return from_named(
        path,
        found,
        first_frame=first_frame,
        pixel_size_nm=pixel_size_nm,
        named=named,
        units=units,
    )


def _all_in(frame: int, columns: Columns) -> npt.NDArray[Any]:
    """The frames of a table that states none."""
    return np.full(len(next(iter(columns.values()), ())), frame)


def _of_picasso(path: Path, columns: Columns, pixel_size_nm: float | None) -> EmitterSet:
    if pixel_size_nm is None:
        raise ValueError(
            f"{path} is in Picasso's pixels: state the side of one with --pixel-size, in nm"
        )
    return emitters_of_locs(path, columns, {"pixel_size_nm": pixel_size_nm})


def read_columns(path: Path, *, numbers: Iterable[str], content: bytes | None = None) -> Columns:
    """The columns of a text by their labels, in any of the dialects of `Layout`.

    Args:
        numbers: labels of columns that must be numbers, where there are such.
        content: the part of the file that is the table; None: all of it.
    """
    with path.open("rb") if content is None else BytesIO(content) as source:
        layout = _layout(path, source.read(HEAD))
        source.seek(0)
        return columns_of(source, layout, numbers={*numbers} & {*layout.labels})


def columns_of(source: Path | BinaryIO, layout: Layout, *, numbers: Iterable[str] = ()) -> Columns:
    """The columns of a text by their labels.

    Args:
        numbers: labels of columns that must be numbers, besides those with a known name.
    """
    known = {*numbers, *(label for label in layout.labels if unit_of(label)[0] in KNOWN)}
    table = pa_csv.read_csv(
        source,
        read_options=pa_csv.ReadOptions(
            column_names=layout.labels, skip_rows=layout.n_before, encoding=layout.encoding
        ),
        parse_options=pa_csv.ParseOptions(delimiter=layout.delimiter),
        convert_options=pa_csv.ConvertOptions(
            decimal_point=layout.decimal, column_types=dict.fromkeys(known, pa.float64())
        ),
    )
    # pyarrow gives a column without any value a type of its own
    return {
        name: _values(table[name])
        for name in layout.labels
        if name and table[name].type != pa.null()
    }


def _values(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    if pa.types.is_binary(column.type):  # a text in another encoding
        texts = [b"" if text is None else text for text in column.to_pylist()]
        return np.array([text.decode("latin-1") for text in texts], object)
    return (column.fill_null("") if pa.types.is_string(column.type) else column).to_numpy()


class Layout(NamedTuple):
    """The layout of a text table."""

    encoding: str
    n_before: int
    """number of lines before the rows"""
    labels: list[str]
    """labels of the columns, their numbers where there is no header; "" where there is none (a
    row's number, or a delimiter at the end)"""
    delimiter: str
    decimal: str


def _layout(path: Path, head: bytes) -> Layout:
    if head.startswith((b"PK", b"\xd0\xcf\x11\xe0")):
        raise ValueError(f"{path} is a spreadsheet, not a text; export it as CSV")
    encoding = _encoding(head)
    lines = head.decode(encoding, errors="ignore").removeprefix("\ufeff").splitlines()
    n_before = next(
        (i + 1 for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), 0
    )
    if not n_before:
        raise ValueError(f"{path} is empty")
    header = lines[n_before - 1]
    whole = lines[n_before:-1] or lines[n_before:]  # what was read may end within a line
    rows = [line for line in whole if line.strip()][:100]
    delimiter = max("\t;,", key=header.count)
    if delimiter not in header and NUMBER.fullmatch(header.split()[0]):
        delimiter = " "
    cells = list(csv.reader(rows, delimiter=delimiter))
    labels = _labels(header, next(iter(cells), []), delimiter)
    if all(map(NUMBER.fullmatch, labels)):  # no header, but the first row
        n_before -= 1
        cells.insert(0, labels)
        labels = [str(i + 1) for i in range(len(labels))]
    commas = any(
        re.fullmatch(r"\s*-?\d+,\d+(e[-+]?\d+)?\s*", cell, re.IGNORECASE)
        for row in cells
        for cell in row
    )
    return Layout(encoding, n_before, _told_apart(path, labels), delimiter, "," if commas else ".")


def _labels(header: str, row: Sequence[str], delimiter: str) -> list[str]:
    """The labels in a header, by the first row; "" for a delimiter at the end of the rows."""
    # some programs quote the whole header, or each name twice
    labels = [label.strip() for label in header.replace('"', "").split(delimiter)]
    quoted = next(csv.reader([header], delimiter=delimiter))
    if len(labels) != len(row) == len(quoted):  # a name holds a delimiter
        labels = [label.strip() for label in quoted]
    end = len(row) == len(labels) + 1 and not row[-1].strip()
    return [*labels, ""] if end else labels


def _encoding(head: bytes) -> str:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):  # what spreadsheets call Unicode text
        return "utf-16"
    try:
        head.split(b"\n")[0].decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def _told_apart(path: Path, labels: list[str]) -> list[str]:
    """The labels made unique: known columns may occur once, repeated other ones get a number."""
    distinct: list[str] = []
    seen: Counter[str] = Counter()
    for label in labels:
        if label in seen and unit_of(label)[0] in KNOWN:
            raise ValueError(f"{path} has two columns {brief(label)}; keep one of them")
        seen[label] += 1
        distinct.append(label if seen[label] == 1 else f"{label} {seen[label]}".strip())
    return distinct
