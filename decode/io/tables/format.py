"""The parts of a format of tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeAlias

from decode.emitters import EmitterSet
from decode.io.formats import Format

__all__ = ["Append", "TableFormat"]

Append = Callable[[EmitterSet], None]
"""appends a chunk to a table"""

ReadTable = Callable[[Path, float | None], EmitterSet]
"""reads a file, given the side of its pixels in nm where the user states it"""

OpenTable = Callable[[Path, Mapping[str, object]], AbstractContextManager[Append]]
"""opens a file to write, given the table's metadata; the file appears when the block ends well"""

TableFormat: TypeAlias = Format[ReadTable, OpenTable]
