"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks: there, nothing is swept
    fcntl = None  # type: ignore[assignment]

__all__ = ["PREFIX", "atomic", "check_writable", "sweep"]

PREFIX = ".unfinished-" + hashlib.blake2s(platform.node().encode(), digest_size=3).hexdigest()
"""prefix of temporary names, one for each machine: locks do not reach processes of another
machine"""

NO_ROOM = {
    errno.ENOSPC: "the disk is full, make room and run again",
    errno.EDQUOT: "the disk quota is used up, make room and run again",
    errno.EFBIG: "the limit on the size of a file is reached (`ulimit -f`), raise it and run again",
}
"""why nothing more can be written, and what to do"""


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary name in the folder of `path`: it becomes `path` when the block ends well, else it
    is deleted.

    What the block has written is on the disk before the name changes, so that a power cut leaves
    the old file or the new one.

    Raises:
        OSError: if nothing can be written there, or the disk fills up inside the block.
    """
    target = Path(path)
    if target.name.startswith(PREFIX):  # within another such block
        yield target
        return
    temporary = _name_beside(target)
    lock = -1
    try:  # around all of it: Ctrl-C may come at any time
        lock = _begin(temporary, target)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_names(target.parent)
    except OSError as error:
        code = _errno(error, temporary)
        if code not in NO_ROOM:
            raise
        raise OSError(f"cannot write {target}: {NO_ROOM[code]}") from error
    finally:
        _forget(temporary)
        if lock >= 0:
            os.close(lock)


def check_writable(path: str | Path) -> None:
    """Check that a file can be made where `atomic` would make it.

    Raises:
        OSError: if it cannot.
    """
    temporary = _name_beside(Path(path))
    try:
        os.close(_begin(temporary, Path(path)))
    finally:
        _forget(temporary)


def sweep(folder: Path) -> None:
    """Delete the temporary files of killed processes in a folder; files of living ones are locked,
    and stay."""
    if fcntl is None:
        return
    for left in folder.glob(f"{PREFIX}*"):
        with suppress(OSError), left.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def _name_beside(target: Path) -> Path:
    return target.with_name(f"{PREFIX}-{secrets.token_hex(8)}{target.suffix}")


def _forget(temporary: Path) -> None:
    with suppress(OSError):  # it was renamed, or never made
        temporary.unlink()


def _begin(temporary: Path, target: Path) -> int:
    """Make the file that is to become `target`; the descriptor that holds its lock."""
    if os.path.exists(target.parent) and not os.path.isdir(target.parent):
        raise NotADirectoryError(f"cannot write {target}: {target.parent} is a file, not a folder")
    if not os.path.isdir(target.parent):
        raise FileNotFoundError(
            f"cannot write {target}: the folder {target.parent} does not exist, make it first"
        )
    if os.path.isdir(target):
        raise IsADirectoryError(f"cannot write {target}: a folder of that name is in the way")
    if os.path.exists(target) and not os.access(target, os.W_OK):
        raise PermissionError(f"cannot write {target}: the file is write-protected")
    while True:
        try:
            with suppress(FileNotFoundError):
                os.lstat(target)  # fails for a name that no file can have
            lock = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except OSError as error:
            raise type(error)(f"cannot write {target}: {error.strerror}") from error
        if _locked(lock, temporary):
            return lock
        os.close(lock)


def _locked(descriptor: int, path: Path) -> bool:
    """Whether nobody swept the new file away before it was locked."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a disk without locks, on which nothing is swept either
            pass
    return path.exists()


def _errno(error: OSError, temporary: Path) -> int | None:
    """Why writing failed; NumPy and HDF5 do not say, but then no byte more can be written
    either."""
    if error.errno is not None or not temporary.exists():
        return error.errno
    try:
        with temporary.open("ab") as file:
            file.write(bytes(2**16))
    except OSError as same:
        return same.errno
    return None


def _sync_names(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network disks cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
