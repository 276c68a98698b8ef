"""Libraries that only some formats need."""

from __future__ import annotations

import os
from importlib import import_module
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any, final

__all__ = ["Bounded", "needed"]


def needed(module: str, path: Path) -> Any:
    """The module that reads a file.

    Raises:
        ValueError: if it is not installed, with the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("_", "-")
        raise ValueError(
            f"{path}: to read it, install the package {package}: pip install 'decode-smlm[io]'"
        ) from error


@final
class Bounded(BufferedReader):
    """A file for a library that reads as much as the file says.

    A read sets memory aside for all that it asks for, which a damaged length makes gigabytes; here
    it asks for no more than is left of the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(FileIO(path))

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes, so many at most."""
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        wanted = left if size is None or size < 0 else min(int(size), left)
        return super().read(wanted)
