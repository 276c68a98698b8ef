"""Tables of molecules on disk.  A format is a module of this package that declares a `FORMAT`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, final

import torch

from decode.commands import with_command
from decode.emitters import EmitterSet
from decode.errors import reading
from decode.io.formats import format_of, formats_in, recognized, suffixes_of
from decode.io.tables.format import TableFormat
from decode.io.tables.text import header_of, read_text

__all__ = [
    "TableWriter",
    "format_to_write",
    "is_table",
    "read_table",
    "table_formats",
    "table_suffixes",
    "write_table",
    "written_formats",
]

FARTHEST_NM = 1e9
"""largest coordinate, a metre; no stage moves as far"""


def table_formats() -> tuple[TableFormat, ...]:
    """All formats of tables, in the order of their names.

    >>> "picasso" in [each.name for each in table_formats()]
    True
    """
    return formats_in(__name__)


def table_suffixes() -> tuple[str, ...]:
    """Suffixes of the tables that are read."""
    return suffixes_of(table_formats())


def written_formats() -> dict[str, TableFormat]:
    """The format of each suffix, for tables to write.

    >>> written_formats()[".csv"].title.split()[0]
    'ThunderSTORM'
    """
    writable = (each for each in table_formats() if each.write is not None and each.suffixes)
    return dict(sorted((each.suffixes[0], each) for each in writable))


def format_to_write(path: Path, name: str | None = None) -> TableFormat:
    """The format of that name, else that of the suffix.

    Raises:
        ValueError: if there is no such format that can be written.
    """
    by_suffix = written_formats()
    by_name = {each.name: each for each in table_formats() if each.write is not None}
    if name is None and path.suffix.lower() not in by_suffix:
        listed = " or ".join(by_suffix)
        raise ValueError(f"{path}: tables are written as {listed}; choose such a name")
    if name is not None and name not in by_name:
        raise ValueError(f"there is no format {name!r} to write; choose from {', '.join(by_name)}")
    return by_suffix[path.suffix.lower()] if name is None else by_name[name]


def is_table(path: Path) -> bool:
    """Whether a format recognizes a file; the content is checked when it is read."""
    try:
        return recognized(path, table_formats()) is not None
    except (ValueError, OSError):
        return False


@final
class TableWriter:
    """A table that grows chunk by chunk, so that memory stays bounded; a context manager.

    The file (and a sidecar) appears under its name when the block ends well; after an error there
    is none.

    Args:
        path: file to write; without a dialect, its suffix determines the format
            (`written_formats`).
        metadata: as in `EmitterSet.metadata`.  Picasso needs `pixel_size_nm`; `psf_sigma_nm` is
            written where known.  `checks` may be added until the block ends.
        dialect: name of the file's format (`table_formats`), where the suffix does not determine
            it: "challenge" is the truth of the SMLM Challenge.

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
        dialect: str | None = None,
    ) -> None:
        path = Path(path)
        begin = format_to_write(path, dialect).write
        assert begin is not None
        stated: Mapping[str, object] = {} if metadata is None else metadata
        self._table = begin(path, with_command(stated))

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


def write_table(emitters: EmitterSet, path: str | Path, *, dialect: str | None = None) -> None:
    """Write a whole table; `TableWriter` writes one that grows.

    CSV holds 3 digits behind the point for lengths in nm, 2 for photons and 4 for probabilities.

    Args:
        emitters: the molecules; their metadata go with them where the format has room.
        path: file to write; without a dialect, its suffix determines the format.
        dialect: name of the file's format (`table_formats`), where the suffix does not.

    Raises:
        ValueError: if the format is unknown, or a fact is missing that it needs.
        OSError: if the file cannot be written.

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


def read_table(
    path: str | Path,
    *,
    pixel_size_nm: float | None = None,
    columns: Mapping[str, str] | None = None,
    first_frame: int | None = None,
) -> EmitterSet:
    """Read molecules of any format in `table_formats`; the content decides which one it is.

    A text is read by its header: it may have commas, semicolons or tabs, decimal commas, and the
    names of ThunderSTORM, SMAP or Picasso.  Frames are counted as each program does, in a text from
    1.  Where a file has one uncertainty for x and y, both get it; a column the format lacks is None
    (z: 0, photons: NaN).  Further columns are kept as `others`, and what is doubtful is a sentence
    in `Facts.warnings`.

    Example:
        >>> truth = read_table("sample_data/blinking_2d_truth.csv")
        >>> len(truth), int(truth.frame.max())
        (8919, 199)
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        ...     _ = file.write("T;X;Y\\n0;1.5;2.25\\n")
        ...     _ = file.flush()
        ...     named = {"frame": "T", "x": "X[um]", "y": "Y[um]"}
        ...     table = read_table(file.name, columns=named, first_frame=0)
        >>> table.xyz.tolist()
        [[1500.0, 2250.0, 0.0]]

    Args:
        path: file, beside which a Picasso table has its `.yaml`.
        pixel_size_nm: side of a pixel, needed only for tables in pixels that state none; added to
            the metadata of tables that state none.
        columns: of any text, by the name of a quantity (x, y, z, frame, photons, background,
            sigma_x, sigma_xy, probability and so on) the label of its column, with its unit in
            brackets where the label does not state it (nm, um, m, px).  Columns of a text without
            a header are called by their numbers, from 1.  A text of which no column is a frame is
            all in one.
        first_frame: number by which a text calls the first frame; None: 1.

    Returns:
        float64 columns in nm and photons, origin at the outer corner of pixel (0, 0).

    Raises:
        FileNotFoundError: if the file, or the sidecar of a Picasso file, is missing.
        ValueError: if it is not such a table, is damaged, or lacks a column or a unit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with reading(path, "a table of molecules", "export it again"):
        begin = 1 if first_frame is None else first_frame
        if columns is None and first_frame is None:
            read = format_of(path, table_formats(), what="tables").read
        else:
            _require_text(path)
            read = partial(read_text, columns=columns, first_frame=begin)
        emitters = read(path, pixel_size_nm)
        _require_places(path, emitters, first_frame=begin)
    if pixel_size_nm is None:
        return emitters
    return replace(emitters, metadata={"pixel_size_nm": pixel_size_nm, **emitters.metadata})


def _require_text(path: Path) -> None:
    if not header_of(path):
        raise ValueError(
            f"{path} is no text in columns; --columns and --first-frame are for texts alone"
        )


def _require_places(path: Path, emitters: EmitterSet, *, first_frame: int) -> None:
    if not bool(torch.isfinite(emitters.xyz).all()):
        raise ValueError(
            f"{path} has rows without a position (empty, NaN or infinite x, y or z); remove them"
        )
    if not len(emitters):
        return
    first, farthest = int(emitters.frame.min()), float(emitters.xyz.abs().max())
    if first < 0:
        raise ValueError(
            f"{path} has frame {first + first_frame}, but its frames count from {first_frame}; "
            "--first-frame says where they begin"
        )
    if farthest > FARTHEST_NM:
        raise ValueError(
            f"{path} has a molecule {farthest:.3g} nm from the origin, outside any field of view; "
            "correct its unit"
        )
