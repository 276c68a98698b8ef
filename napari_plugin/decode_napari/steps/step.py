"""A step: what it needs, whether it is done, and what to type to do the same without a window."""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

from decode.postprocess.filter import Range
from decode_napari.session import Session

__all__ = ["Step", "call", "command", "keep_call", "keep_command"]


class Step(ABC):
    """One step of the job.  It knows no window: verbs are `Steps` (`decode.progress`) that may run
    in any thread.

    A verb reads the session and the step's settings when it is called, and nothing of them
    afterwards; what it returns is handed to a method of the step, in the thread of the window,
    which puts it into the session.
    """

    title: ClassVar[str]
    purpose: ClassVar[str]
    """in a sentence, for tooltips and screen readers"""

    def __init__(self, session: Session) -> None:
        self.session = session

    def forget(self) -> None:  # noqa: B027  most steps remember nothing
        """Let go of what belongs to the movie that was worked on: another one begins."""

    @abstractmethod
    def missing(self) -> str:
        """What must be there before this step can do anything, in a sentence; "" where nothing
        is missing."""

    @abstractmethod
    def done(self) -> str:
        """What the step has brought, in a few words; "" where nothing yet."""

    @abstractmethod
    def as_command(self) -> str:
        """The command line that does the same; "" where there is none."""

    @abstractmethod
    def as_python(self) -> str:
        """The Python that does the same; "" where there is nothing to do yet."""


def command(*words: object, **options: object) -> str:
    """A line for a shell: options that are None or False are left out, True stands alone."""
    line = [str(word) for word in words]
    for name, value in options.items():
        if value is None or value is False:
            continue
        flag = f"--{name.replace('_', '-')}" if len(name) > 1 else f"-{name}"
        line.append(flag)
        if value is not True:
            line.append(f"{value:g}" if isinstance(value, float) else str(value))
    return shlex.join(line)


def call(function: str, *arguments: str, **options: object) -> str:
    """A call in Python: `arguments` are expressions, options that are None are left out."""
    parts: Iterable[str] = [
        *arguments,
        *(f"{name}={value!r}" for name, value in options.items() if value is not None),
    ]
    return f"{function}({', '.join(parts)})"


def keep_command(table: Path, ranges: Mapping[str, Range]) -> tuple[str, Path]:
    """The command that filters a table, and the table that it writes."""
    from decode.io.tables import written_formats

    suffix = table.suffix if table.suffix.lower() in written_formats() else ".csv"
    out = table.with_name(f"{table.stem}_filtered{suffix}")
    line = command("decode", "filter", table, o=out)
    for name, (low, high) in ranges.items():
        line += f" {command('--keep', f'{name}={_number(low)}:{_number(high)}')}"
    return line, out


def keep_call(table: Path, ranges: Mapping[str, Range]) -> tuple[list[str], list[str]]:
    """The Python that reads the molecules of a table within ranges: what it imports, and what it
    does."""
    read = f"read_table({str(table)!r})"
    if not ranges:
        return ["from decode import read_table"], [f"molecules = {read}"]
    imports = ["from decode import read_table", "from decode.postprocess.filter import keep"]
    return imports, [f"molecules = keep({read}, {dict(ranges)!r})"]


def _number(end: float | None) -> str:
    """All its digits: the molecules at the ends are those that the window keeps."""
    return "" if end is None else repr(float(end)).removesuffix(".0")
