"""Errors in plain words, for the command line and for windows alike."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import final

__all__ = [
    "NoRoom",
    "Undetermined",
    "brief",
    "in_plain_words",
    "is_out_of_memory",
    "on_a_line",
    "reading",
]

LONGEST = 600
"""characters of a message; a path and a sentence or two are shorter"""

_REPR = reprlib.Repr()
_REPR.maxstring = 60


@final
class Undetermined(ValueError):
    """The data do not allow an answer."""


@final
class NoRoom(MemoryError):
    """Work that would take more memory than there is, and was not begun."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether there was not enough memory, on whatever device."""
    from torch import OutOfMemoryError

    # on the CPU, PyTorch says so by a plain RuntimeError
    return isinstance(error, MemoryError | OutOfMemoryError) or "can't allocate memory" in str(
        error
    )


def in_plain_words(error: Exception) -> str:
    """One sentence without line breaks: what is wrong, and what to do where the error says so."""
    if is_out_of_memory(error) and not isinstance(error, NoRoom):
        return (
            "there is not enough memory; ask for fewer or smaller frames, or for --device cpu "
            "if a GPU is full"
        )
    if isinstance(error, OSError) and error.strerror and error.filename:
        return on_a_line(f"{error.filename}: {error.strerror}")
    return on_a_line(str(error))


def brief(value: object) -> str:
    """A value of a file on part of a line, whatever its size."""
    return on_a_line(_REPR.repr(value), 80)


@contextmanager
def reading(path: Path | str, kind: str, remedy: str = "make or copy it again") -> Iterator[None]:
    """Turn whatever a library raises about a file's content into one sentence with the file's name.

    An error that already names the file, or comes from the system, keeps its words, but is cut to
    `LONGEST`.

    Args:
        path: the file.
        kind: the kind of file expected, with its article.
        remedy: advice to the user.

    Raises:
        ValueError: in the place of any other error.
        OSError: where the file cannot be read at all.
    """
    try:
        yield
    except Exception as error:
        text = str(error)
        # by its stem: what stands beside it under the same name has a sentence of its own
        named = isinstance(error, ValueError | OSError) and str(Path(path).with_suffix("")) in text
        by_the_system = isinstance(error, OSError) and error.filename
        if (named or by_the_system) and len(text) <= LONGEST and "\n" not in text:
            raise
        if named:
            raise ValueError(on_a_line(text)) from error
        reason = on_a_line(f"{type(error).__name__}: {error}", 120)
        raise ValueError(f"{path} is not {kind}, or it is damaged ({reason}); {remedy}") from error


def on_a_line(text: str, longest: int = LONGEST) -> str:
    """A text without line breaks, cut to the longest length."""
    line = " ".join(text[: 4 * longest].split())
    return line if len(line) <= longest else f"{line[: longest - 4]} ..."
