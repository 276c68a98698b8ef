"""Parquet files: every number as it is, each column with its unit, and the facts of the movie."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from decode.atomic import atomic
from decode.emitters import EmitterSet
from decode.errors import brief
from decode.io.tables.columns import OWN, Columns, from_named, numbers_of, require_same, unit_of
from decode.io.tables.format import Append, TableFormat

__all__ = ["FORMAT"]

NAMES = {
    "frame": ("frame", ""),
    "x": ("x_nm", "nm"),
    "y": ("y_nm", "nm"),
    "z": ("z_nm", "nm"),
    "photons": ("photons", "photon"),
    "background": ("background", "photon per pixel"),
    "sigma_x": ("uncertainty_x_nm", "nm"),
    "sigma_y": ("uncertainty_y_nm", "nm"),
    "sigma_z": ("uncertainty_z_nm", "nm"),
    "photons_sigma": ("uncertainty_intensity", "photon"),
    "half95_x": ("interval95_x_nm", "nm"),
    "half95_y": ("interval95_y_nm", "nm"),
    "half95_z": ("interval95_z_nm", "nm"),
    "photons_95": ("interval95_intensity", "photon"),
    "probability": ("probability", ""),
} | {name: (name, "") for name in OWN}
"""names and units of the columns in files"""

GROUP = 2**16
"""rows that are written together; small groups make large files that are slow to read"""

UNIT = b"unit"
"""key of a column's metadata"""

FACTS = b"decode"
"""key of the file's metadata: a JSON text, as `EmitterSet.metadata`"""


@contextmanager
def _parquet_table(path: Path, metadata: Mapping[str, object]) -> Iterator[Append]:
    """Frames from 0, nm from the outer corner, photons; in double precision."""
    with atomic(path) as temporary, ExitStack() as opened:
        writer: pq.ParquetWriter | None = None
        waiting: list[pa.Table] = []

        def append(chunk: EmitterSet) -> None:
            nonlocal writer
            columns = _columns(chunk)
            if writer is None:
                writer = opened.enter_context(_writer(temporary, _schema(columns)))
            require_same(list(columns), writer.schema.names)
            waiting.append(pa.table([*columns.values()], schema=writer.schema))
            if sum(map(len, waiting)) >= GROUP:
                write()

        def write() -> None:
            assert writer is not None
            writer.write_table(pa.concat_tables(waiting))
            waiting.clear()

        yield append
        if writer is None:
            append(EmitterSet.empty())
        if waiting:
            write()
        assert writer is not None
        writer.add_key_value_metadata({FACTS: json.dumps(dict(metadata), default=str)})


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    floats = [field.name for field in schema if pa.types.is_floating(field.type)]
    return pq.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=False, use_byte_stream_split=floats
    )


def _columns(chunk: EmitterSet) -> Columns:
    """Columns by the names in `NAMES`, then those of other programs with other names."""
    ours = {NAMES[name][0]: column for name, column in numbers_of(chunk).items()}
    meant = {unit_of(name)[0] for name in ours}
    theirs = {
        name: values for name, values in chunk.others.items() if unit_of(name)[0] not in meant
    }
    return ours | theirs


def _schema(columns: Columns) -> pa.Schema:
    units = dict(NAMES.values())
    return pa.schema(
        [
            pa.field(
                name,
                pa.array(column).type,
                metadata={UNIT: units.get(name, unit_of(name)[1])},
            )
            for name, column in columns.items()
        ]
    )


def _read_parquet(path: Path, pixel_size_nm: float | None) -> EmitterSet:
    """Read a file of any program whose frames count from 0 and whose columns state their units."""
    with pq.ParquetFile(path) as file:
        table = file.read()
        facts = (file.metadata.metadata or {}).get(FACTS, b"{}")
    labelled = {
        name: _values(table[name]) for name in table.column_names if _is_plain(table[name].type)
    }
    emitters = from_named(
        path,
        labelled,
        first_frame=0,
        pixel_size_nm=pixel_size_nm,
        units=_stated_units(path, table.schema),
    )
    return replace(emitters, metadata={**emitters.metadata, **json.loads(facts)})


def _stated_units(path: Path, schema: pa.Schema) -> dict[str, str]:
    """The units that columns state, by their names.

    Raises:
        ValueError: if a column's name states another one.
    """
    stated = {
        field.name: (field.metadata or {}).get(UNIT, b"").decode("utf-8", "replace")
        for field in schema
    }
    for name, unit in stated.items():
        named = unit_of(name)[1]
        if unit and named and unit_of(f"[{unit}]")[1] != named:
            raise ValueError(f"{path}: the column {name} states the unit {brief(unit)}; correct it")
    return {name: unit_of(f"[{unit}]")[1] for name, unit in stated.items() if unit}


def _is_plain(kind: pa.DataType) -> bool:
    """Whether a column holds a number or a text in each row."""
    of_numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return of_numbers or pa.types.is_boolean(kind) or _is_text(kind)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _values(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    return (column.fill_null("") if _is_text(column.type) else column).to_numpy()


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


FORMAT = TableFormat(
    name="parquet",
    title="Parquet",
    content="the first bytes of a Parquet file",
    suffixes=(".parquet",),
    recognizes=_is_parquet,
    read=_read_parquet,
    write=_parquet_table,
)
