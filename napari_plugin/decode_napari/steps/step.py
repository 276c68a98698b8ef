"""A step: its needs, its state, and the command and the Python code that do the same."""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

from decode.postprocess.filter import Range, range_text
from decode_napari.session import Session

__all__ = ["Step", "call", "command", "keep_call", "keep_command"]


class Step(ABC):
    """One step of the work, independent of any window: verbs are `Steps` (`decode.progress`) that
    may run in any thread.

    A verb reads session and settings only when it is called; its result goes to a method of the
    step, in the thread of the window, which puts it into the session.
    """

    title: ClassVar[str]
    purpose: ClassVar[str]
    """purpose in a sentence, for tooltips and screen readers"""

    def __init__(self, session: Session) -> None:
        self.session = session

    def forget(self) -> None:  # noqa: B027  most steps remember nothing
        """Forget what belongs to the previous movie."""

    @abstractmethod
    def missing(self) -> str:
        """What this step needs first, in a sentence; "" where nothing is missing."""

    @abstractmethod
    def done(self) -> str:
        """The result of the step, in a few words; "" where there is none yet."""

    @abstractmethod
    def as_command(self) -> str:
        """The command line that does the same; "" where there is none."""

    @abstractmethod
    def as_python(self) -> str:
        """The Python code that does the same; "" where there is nothing to do yet."""


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
    for name, ends in ranges.items():
        line += f" {command('--keep', range_text(name, ends))}"
    return line, out


def keep_call(table: Path, ranges: Mapping[str, Range]) -> tuple[list[str], list[str]]:
    """The Python code that reads the molecules of a table within ranges: imports and statements."""
    read = f"read_table({str(table)!r})"
    if not ranges:
        return ["from decode import read_table"], [f"molecules = {read}"]
    imports = ["from decode import read_table", "from decode.postprocess.filter import keep"]
    return imports, [f"molecules = keep({read}, {dict(ranges)!r})"]
