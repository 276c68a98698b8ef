"""Tables of molecules on disk: ThunderSTORM, Picasso and challenge files; DECODE and SMLM files
are read only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, final

import torch

from decode.emitters import EmitterSet
from decode.errors import reading
from decode.io.hdf5 import open_hdf5
from decode.io.tables.columns import Append
from decode.io.tables.csv import challenge_table, read_csv, thunderstorm_table
from decode.io.tables.decode_h5 import read_decode
from decode.io.tables.picasso import picasso_table, read_picasso
from decode.io.tables.smlm import read_smlm

__all__ = ["SUFFIXES", "TableDialect", "TableWriter", "read_table", "write_table"]

TableDialect = Literal["thunderstorm", "picasso", "challenge"]

FARTHEST_NM = 1e9
"""no stage moves as far as a metre"""


@final
class TableWriter:
    """A table that grows chunk by chunk, so that memory stays bounded; a context manager.

    The file (and a sidecar) appears under its name when the block ends well; after an error there
    is none.

    Args:
        path: file to write; without a dialect, `.csv` means ThunderSTORM and `.hdf5` Picasso.
        metadata: as in `EmitterSet.metadata`.  Picasso needs `pixel_size_nm`; `psf_sigma_nm` is
            written where known.
        dialect: the file's format, where the suffix does not say it: "challenge" is the truth of
            the SMLM Challenge.

    Raises:
        ValueError: if the format is unknown, a fact is missing, or a chunk lacks a column that the
            first one had.
        OSError: if the file cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        metadata: Mapping[str, object] | None = None,
        *,
        dialect: TableDialect | None = None,
    ) -> None:
        by_suffix: dict[str, TableDialect] = {".csv": "thunderstorm", ".hdf5": "picasso"}
        chosen = dialect or by_suffix.get(Path(path).suffix.lower())
        if chosen is None:
            raise ValueError(f"{path}: tables are written as {' or '.join(by_suffix)}")
        self._table = _WRITERS[chosen](Path(path), metadata or {})

    def __enter__(self) -> Self:
        self._append = self._table.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return self._table.__exit__(kind, error, traceback)

    def write(self, chunk: EmitterSet) -> None:
        """Append molecules; all chunks with rows must have the same columns."""
        if len(chunk):
            self._append(chunk)


def write_table(
    emitters: EmitterSet, path: str | Path, *, dialect: TableDialect | None = None
) -> None:
    """Write a whole table; see `TableWriter` for formats and errors.

    CSV holds 3 digits behind the point for lengths in nm, 2 for photons and 4 for probabilities.

    Example:
        >>> import tempfile
        >>> molecules = EmitterSet(
        ...     frame=torch.tensor([0, 7]),
        ...     xyz=torch.tensor([[150.0, 220.0, 0.0], [900.0, 410.0, -80.0]]),
        ...     photons=torch.tensor([1200.0, 800.0]),
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_table(molecules, f"{folder}/molecules.csv")
        ...     again = read_table(f"{folder}/molecules.csv")
        >>> again.frame.tolist(), again.xyz[1].tolist()
        ([0, 7], [900.0, 410.0, -80.0])
    """
    with TableWriter(path, emitters.metadata, dialect=dialect) as table:
        table.write(emitters)


def read_table(path: str | Path, *, pixel_size_nm: float | None = None) -> EmitterSet:
    """Read molecules of ThunderSTORM, Picasso, DECODE, Locan (.smlm), the challenge or this
    package.

    The columns decide what a text means: it may have commas, semicolons or tabs, decimal commas,
    and the names of ThunderSTORM, SMAP or Picasso.  CSV frames count from 1, those of Picasso and
    of all other files from 0.  Where a file has one uncertainty for x and y, both get it; a column
    the format lacks is None (z: 0, photons: NaN).  Further columns are kept as `others`.

    Example:
        >>> truth = read_table("sample_data/blinking_2d_truth.csv")
        >>> len(truth), int(truth.frame.max())
        (8919, 199)

    Args:
        path: `.csv`, `.tsv`, `.txt` or `.xls` (text, as ThunderSTORM writes it), `.hdf5` (with its
            `.yaml`), `.h5` or `.smlm` file.
        pixel_size_nm: needed only for tables in pixels without a stated size.

    Returns:
        float64 columns in nm and photons, origin at the outer corner of pixel (0, 0).

    Raises:
        FileNotFoundError: if the file, or the sidecar of a Picasso file, is missing.
        ValueError: if it is no such table, is damaged, or lacks a column or a unit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: tables are read from {', '.join(_READERS)} files")
    with reading(path, "a table of molecules", "export it again"):
        emitters = reader(path, pixel_size_nm)
        _require_places(path, emitters)
    return emitters


def _require_places(path: Path, emitters: EmitterSet) -> None:
    if not bool(torch.isfinite(emitters.xyz).all()):
        raise ValueError(
            f"{path} has rows without a position (empty, NaN or infinite x, y or z); remove them"
        )
    if not len(emitters):
        return
    first, farthest = int(emitters.frame.min()), float(emitters.xyz.abs().max())
    if first < 0:
        raise ValueError(f"{path} has frame {first + 1}, but frames in a CSV table count from 1")
    if farthest > FARTHEST_NM:
        raise ValueError(
            f"{path} has a molecule {farthest:.3g} nm from the origin, in no field of view; mend "
            "its unit"
        )


_WRITERS: dict[
    TableDialect, Callable[[Path, Mapping[str, object]], AbstractContextManager[Append]]
] = {
    "thunderstorm": thunderstorm_table,
    "picasso": picasso_table,
    "challenge": challenge_table,
}


def _read_hdf5(path: Path, pixel_size_nm: float | None) -> EmitterSet:
    with open_hdf5(path, "an HDF5 file", "export it again") as file:
        if "locs" in file:
            return read_picasso(path, file, pixel_size_nm)
        if "data/xyz" in file:
            return read_decode(path, file, pixel_size_nm)
    raise ValueError(f"{path} holds neither Picasso's `locs` nor DECODE's `data/xyz`")


_READERS: dict[str, Callable[[Path, float | None], EmitterSet]] = {
    **dict.fromkeys(
        (".csv", ".tsv", ".txt", ".xls"), read_csv
    ),  # ThunderSTORM calls tabulated text .xls
    **dict.fromkeys((".hdf5", ".h5"), _read_hdf5),
    ".smlm": read_smlm,
}
SUFFIXES = tuple(_READERS)
"""of the tables that are read"""
