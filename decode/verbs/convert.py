"""convert: a table of molecules to another format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from decode.emitters import EmitterSet
from decode.io.tables import read_table, write_table
from decode.outputs import check_outputs, table_files, table_inputs

__all__ = ["convert"]


def convert(
    table: Path | str,
    out: Path | str,
    *,
    to: str | None = None,
    pixel_size_nm: float | None = None,
    columns: Mapping[str, str] | None = None,
    first_frame: int | None = None,
) -> EmitterSet:
    """Write a table of molecules in another format.

    Axes, origin, units and first frame become those of the format.  Columns that no format knows
    stay with their molecules where the format has room for them.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     out = f"{folder}/truth.hdf5"
        ...     molecules = convert("sample_data/blinking_2d_truth.csv", out, pixel_size_nm=100)
        ...     again = read_table(out)
        >>> len(again), float((again.xyz - molecules.xyz).abs().max()) < 1e-2
        (8919, True)

    Args:
        table: any table that `read_table` reads.
        out: file to write; it appears when it is complete.
        to: name of its format, where the suffix does not determine it.
        pixel_size_nm: side of a pixel, needed for a table in pixels that does not state it, and to
            write pixels.
        columns, first_frame: of a text with columns of any names, as `read_table` takes them.

    Returns:
        The molecules that were read.

    Raises:
        ValueError: if the table or the format cannot be read or written, or `out` is `table`.
        OSError: if a file cannot be read or written.
    """
    check_outputs(table_files(Path(out), to), inputs=table_inputs(Path(table)))
    molecules = read_table(
        table, pixel_size_nm=pixel_size_nm, columns=columns, first_frame=first_frame
    )
    write_table(molecules, out, dialect=to)
    return molecules
