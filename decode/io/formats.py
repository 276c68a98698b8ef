"""Formats of files: each module of a package that declares a `FORMAT` is one."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar, final

__all__ = ["Format", "format_of", "formats_in", "recognized", "suffixes_of"]

Read = TypeVar("Read", bound=Callable[..., Any])
Write = TypeVar("Write", bound=Callable[..., Any])


@final
@dataclass(frozen=True, kw_only=True)
class Format(Generic[Read, Write]):
    """How files of one kind are recognized, read and written."""

    name: str
    """name by which users choose it"""
    title: str
    """description in a few words"""
    content: str
    """content by which its files differ from others"""
    suffixes: tuple[str, ...]
    """suffixes of its files, lower case; the first is that of files to write.  A format that shares
    all of them with another has none: it is read by its content, and written where it is named"""
    recognizes: Callable[[Path], bool]
    """whether a file or a folder that exists has the content"""
    read: Read
    write: Write | None = None
    sidecar: str | None = None
    """suffix of the sidecar beside each of its files"""
    general: bool = False
    """whether it also takes files of more specific formats; then it is tried last"""


@cache
def formats_in(package: str) -> tuple[Format[Any, Any], ...]:
    """The formats that the modules of a package declare, in the order of their names."""
    modules = pkgutil.iter_modules(import_module(package).__path__)
    declared = (
        getattr(import_module(f"{package}.{module.name}"), "FORMAT", None) for module in modules
    )
    found = (each for each in declared if isinstance(each, Format))
    return tuple(sorted(found, key=lambda each: each.name))


def suffixes_of(formats: Sequence[Format[Read, Write]]) -> tuple[str, ...]:
    """The suffixes of all formats, each once."""
    return tuple(dict.fromkeys(suffix for each in formats for suffix in each.suffixes))


def recognized(path: Path, formats: Sequence[Format[Read, Write]]) -> Format[Read, Write] | None:
    """The format whose content a file has, whatever the file is called.

    Raises:
        ValueError: if the file is damaged.
        OSError: if it cannot be read.
    """
    in_turn = sorted(formats, key=lambda each: each.general)
    return next((each for each in in_turn if each.recognizes(path)), None)


def format_of(
    path: Path, formats: Sequence[Format[Read, Write]], *, what: str
) -> Format[Read, Write]:
    """The format to read a file by: that of its content, else that of its suffix, whose reader
    states what is missing.

    Args:
        what: plural noun for the files, for messages.

    Raises:
        ValueError: if there is no such format, or the file is damaged.
        OSError: if it cannot be read.
    """
    found = recognized(path, formats)
    if found is not None:
        return found
    named = [each for each in formats if path.suffix.lower() in each.suffixes]
    named = [each for each in named if each.general] or named
    if not named:
        listed = ", ".join(suffixes_of(formats))
        raise ValueError(f"{path}: {what} are read from {listed} files; export it as one of them")
    if len(named) > 1:
        raise ValueError(f"{path} holds neither {' nor '.join(each.content for each in named)}")
    return named[0]
