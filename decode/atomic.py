"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic"]

DISK_FULL = (os.strerror(errno.ENOSPC), " requested and ")
"""what HDF5 and NumPy say of a full disk, instead of giving an errno"""


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary name in the folder of `path`: it becomes `path` when the block ends well, else it is deleted.

    Raises:
        OSError: if nothing can be written there, or the disk fills up inside the block.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: the folder {target.parent} does not exist, make it first")
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {target}: a folder of that name is in the way")
    temporary = target.with_name(f".{target.stem}-{secrets.token_hex(4)}{target.suffix}")
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise type(error)(f"cannot write {target}: {error.strerror}") from error
    try:
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        if error.errno == errno.ENOSPC or any(words in str(error) for words in DISK_FULL):
            raise OSError(f"cannot write {target}: the disk is full, make room and run again") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
