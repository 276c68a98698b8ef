"""CSV files of ThunderSTORM, which are also written, and of the SMLM Challenge; both count frames from 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv

from decode.atomic import atomic
from decode.emitters import EmitterSet
from decode.io.tables.columns import (
    LENGTHS,
    OTHERS,
    PHOTONS,
    Append,
    Columns,
    filled,
    from_named,
    numbers_of,
    require_same,
    unit_of,
)

__all__ = ["challenge_table", "read_csv", "thunderstorm_table"]

DECIMALS = {"nm": 3, "photon": 2, "": 4}
"""digits behind the point of a CSV column, by its unit"""


@contextmanager
def _csv_table(path: Path, columns_of: Callable[[EmitterSet, int], Columns], *, quote: str) -> Iterator[Append]:
    """Open a CSV file and yield the function that appends a chunk to it.

    Args:
        columns_of: the file's columns of a chunk, given how many rows stand before it.
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
                file.write((",".join(f"{quote}{name}{quote}" for name in names) + "\n").encode())
                schema = pa.schema([(name, pa.from_numpy_dtype(columns[name].dtype)) for name in names])
                writer = pa_csv.CSVWriter(file, schema, write_options=pa_csv.WriteOptions(include_header=False))
            require_same(list(columns), names)
            writer.write_table(pa.table(columns))
            n_rows += len(chunk)

        yield append
        if writer is None:
            append(EmitterSet.empty())
        if writer is not None:
            writer.close()


def thunderstorm_table(path: Path, metadata: Mapping[str, object]) -> AbstractContextManager[Append]:
    """Frames from 1, nm from the outer corner, photons; uncertainty_xy is the root mean square of x and y."""

    def columns_of(chunk: EmitterSet, n_before: int) -> Columns:
        values = numbers_of(chunk)
        columns = {"id": np.arange(n_before, n_before + len(chunk)) + 1, "frame": values["frame"] + 1}
        columns |= {f"{axis} [nm]": values[axis] for axis in "xyz"}
        if "psf_sigma_nm" in metadata:
            columns["sigma [nm]"] = np.full(len(chunk), float(str(metadata["psf_sigma_nm"])))
        columns["intensity [photon]"] = values["photons"]
        if "background" in values:
            columns["offset [photon]"] = values["background"]
        if "sigma_x" in values:
            columns["uncertainty_xy [nm]"] = np.sqrt((values["sigma_x"] ** 2 + values["sigma_y"] ** 2) / 2)
            columns |= {f"uncertainty_{axis} [nm]": values[f"sigma_{axis}"] for axis in "xyz"}
        if "photons_sigma" in values:
            columns["uncertainty_intensity [photon]"] = values["photons_sigma"]
        if "probability" in values:
            columns["probability"] = values["probability"]
        columns |= {name: values[name] for name in ("goodness", "polished") if name in values}
        return {name: rounded(column, unit_of(name)[1]) for name, column in columns.items()}

    return _csv_table(path, columns_of, quote='"')


def challenge_table(path: Path, metadata: Mapping[str, object]) -> AbstractContextManager[Append]:
    """The truth of the SMLM Challenge: frames from 1, nm from the outer corner, photons."""

    def columns_of(chunk: EmitterSet, n_before: int) -> Columns:
        values = numbers_of(chunk)
        columns = {"Ground-truth": np.arange(n_before, n_before + len(chunk)) + 1, "frame": values["frame"] + 1}
        columns |= {f"{axis}nano": rounded(values[axis], "nm") for axis in "xyz"}
        return columns | {"intensity": rounded(values["photons"], "photon")}

    return _csv_table(path, columns_of, quote="")


def rounded(column: npt.NDArray[Any], unit: str) -> npt.NDArray[Any]:
    """Digits as printed; adding 0 turns -0 into 0."""
    return column if column.dtype.kind == "i" else np.round(column, DECIMALS[unit]) + 0.0


def read_csv(path: Path, pixel_size_nm: float | None) -> EmitterSet:
    with path.open("rb") as file:
        line = file.readline()
    try:
        header = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        header = line.decode("latin-1")
    # some programs quote the whole header, or each name twice: no name holds a quote or a comma
    labels = [label.strip() for label in header.replace('"', "").split(",")]
    known = {alias for aliases in (LENGTHS | PHOTONS | OTHERS).values() for alias in aliases}
    wanted = [label for label in labels if unit_of(label)[0] in known]
    try:
        table = pa_csv.read_csv(
            path,
            read_options=pa_csv.ReadOptions(column_names=labels, skip_rows=1),
            convert_options=pa_csv.ConvertOptions(
                include_columns=wanted, column_types=dict.fromkeys(wanted, pa.float64())
            ),
        )
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a table of molecules: {str(error).splitlines()[0]}") from error
    named = {unit_of(label)[0]: (unit_of(label)[1], table[label].to_numpy()) for label in wanted}
    return from_named(path, named, first_frame=1, pixel_size_nm=pixel_size_nm)
