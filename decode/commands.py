"""The command that is running, which the tables that it writes keep."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["COMMANDS", "running", "with_command"]

COMMANDS = "commands"
"""entry of a table's metadata: the commands that made it, a line each"""

_RUNNING: ContextVar[str] = ContextVar("command", default="")


@contextmanager
def running(command: str) -> Iterator[None]:
    """Within it, tables are made by this command.

    >>> with running("decode convert a.csv b.csv"):
    ...     dict(with_command({COMMANDS: "decode localize a.tif"}))["commands"].splitlines()
    ['decode localize a.tif', 'decode convert a.csv b.csv']
    """
    before = _RUNNING.set(command)
    try:
        yield
    finally:
        _RUNNING.reset(before)


def with_command(metadata: Mapping[str, object]) -> Mapping[str, object]:
    """A table's metadata and the running command, after those that came before it.

    It is a view: what is added to the metadata later on is in it, too.
    """
    command = _RUNNING.get()
    if not command:
        return metadata
    before = str(metadata.get(COMMANDS, "")).splitlines()
    return ChainMap({COMMANDS: "\n".join([*before, command])}, metadata)  # type: ignore[arg-type]
