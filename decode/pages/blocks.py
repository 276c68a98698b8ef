"""Blocks of a page: words, tables, pictures and lines to copy."""

from __future__ import annotations

import base64
from abc import ABC
from dataclasses import dataclass
from typing import ClassVar, final
from urllib.parse import quote

__all__ = [
    "Block",
    "Figures",
    "Lines",
    "Links",
    "Picture",
    "Words",
    "data_url",
    "is_number",
    "rounded",
]


class Block(ABC):
    """A part of a section, with a template of its own."""

    template: ClassVar[str]
    """file in `templates/`, in which it is called `block`"""


@final
@dataclass(frozen=True)
class Words(Block):
    """Sentences, a paragraph each."""

    template = "words.html"
    sentences: tuple[str, ...]


@final
@dataclass(frozen=True, kw_only=True)
class Figures(Block):
    """A table of words and numbers as they are printed."""

    template = "figures.html"
    rows: tuple[tuple[str, ...], ...]
    columns: tuple[str, ...] = ()
    """their names; none: a row is a name and its value"""
    caption: str = ""

    @property
    def head(self) -> tuple[tuple[str, bool], ...]:
        """Each column's name, and whether it holds words: numbers stand at the right."""
        below = self.rows[0] if self.rows else self.columns
        return tuple(
            (name, not is_number(cell)) for name, cell in zip(self.columns, below, strict=False)
        )

    @property
    def body(self) -> tuple[tuple[tuple[str, bool], ...], ...]:
        """The same of each cell; where columns have no names, all stand at the left."""
        plain = not self.columns
        return tuple(
            tuple((cell, plain or not is_number(cell)) for cell in row) for row in self.rows
        )


@final
@dataclass(frozen=True, kw_only=True)
class Picture(Block):
    """A PNG with a caption."""

    template = "picture.html"
    png: bytes
    title: str
    """read out in its place"""
    caption: str = ""

    @property
    def source(self) -> str:
        return data_url(self.png)


@final
@dataclass(frozen=True)
class Lines(Block):
    """Lines to copy, as of a shell."""

    template = "lines.html"
    lines: tuple[str, ...]


@final
@dataclass(frozen=True)
class Links(Block):
    """Files beside the page, each by its name and its path from there."""

    template = "links.html"
    files: tuple[tuple[str, str], ...]

    @property
    def addresses(self) -> tuple[tuple[str, str], ...]:
        return tuple((name, quote(path)) for name, path in self.files)


def data_url(png: bytes) -> str:
    """A PNG as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def is_number(text: str) -> bool:
    """Whether a cell is set as a number, as an empty one is.

    >>> [is_number(text) for text in ("-3.2 nm", "", "photons")]
    [True, True, False]
    """
    return text[:1] in "-0123456789"


def rounded(value: float, digits: int = 3) -> str:
    """A number as people write it.

    >>> rounded(2861.0), rounded(0.12345), rounded(-0.0)
    ('2,860', '0.123', '0')
    """
    return f"{float(f'{value:.{digits}g}'):z,.10g}"
