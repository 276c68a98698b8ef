"""Points layers as tables of molecules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from decode_napari.layers import emitters_of

__all__ = ["write_molecules"]


def write_molecules(path: str, data: Any, options: dict[str, Any]) -> list[str]:
    """Write a Points layer as the table that its suffix names.

    Raises:
        ValueError: if the layer does not state its units, or Picasso's pixel size is unknown.
        OSError: if the file cannot be written; then there is none.
    """
    from decode.io.tables import write_table
    from decode.outputs import check_outputs, table_files

    check_outputs(table_files(Path(path)))
    write_table(emitters_of(data, options), path)
    return [path]
