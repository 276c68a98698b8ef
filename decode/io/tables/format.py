"""What a format of tables declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeAlias

from decode.emitters import EmitterSet
from decode.io.formats import Format

__all__ = ["Append", "TableFormat"]

Append = Callable[[EmitterSet], None]
"""writes a chunk at the end of a table"""

ReadTable = Callable[[Path, float | None], EmitterSet]
"""of a file, and the side of its pixels in nm where the user states it"""

OpenTable = Callable[[Path, Mapping[str, object]], AbstractContextManager[Append]]
"""of a file to write and the table's metadata; the file appears when the block ends well"""

TableFormat: TypeAlias = Format[ReadTable, OpenTable]
