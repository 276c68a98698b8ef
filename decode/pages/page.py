"""Page: verdict, sections and chapters, as one HTML file."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias, final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from decode.atomic import atomic
from decode.pages.blocks import Block, is_number
from decode.pages.plots import Bars, Chart, FieldMap

__all__ = ["Chapter", "Light", "Page", "Section", "State", "Summary", "live_page", "save_page"]

TEMPLATES = Path(__file__).with_name("templates")

State: TypeAlias = Literal["good", "look", "bad", "unknown"]
"""of a light: as it should be, worth a look, a fault, or too little is known"""


@final
@dataclass(frozen=True, kw_only=True)
class Light:
    """What one section says, in a word and a sentence."""

    name: str
    state: State
    sentence: str
    section: str = ""
    """name of the section that it leads to"""


@final
@dataclass(frozen=True, kw_only=True)
class Section:
    """A title and what stands below it."""

    title: str
    blocks: tuple[Block, ...]
    name: str = ""
    """by which lights lead to it"""


@final
@dataclass(frozen=True, kw_only=True)
class Chapter:
    """Verdict and sections of one movie."""

    title: str = ""
    """none: it is the only one"""
    verdict: tuple[str, ...] = ()
    """sentences; the first one is the answer"""
    state: State = "good"
    lights: tuple[Light, ...] = ()
    sections: tuple[Section, ...] = ()

    @property
    def plotted(self) -> bool:
        """Whether a block needs the script."""
        blocks = (block for section in self.sections for block in section.blocks)
        return any(isinstance(block, Bars | Chart | FieldMap) for block in blocks)


@final
@dataclass(frozen=True, kw_only=True)
class Summary:
    """A row for each chapter; columns are sorted and hidden by the reader."""

    columns: tuple[str, ...]
    """of the figures; before them stand light and title"""
    rows: tuple[tuple[str, ...], ...]
    """in the order of the chapters"""

    @property
    def heads(self) -> tuple[tuple[str, bool], ...]:
        """The name of each column, those of light and title included, and whether it is words."""
        below = zip(*self.rows, strict=True)
        words = (not all(map(is_number, column)) for column in below)
        return ("verdict", True), ("movie", True), *zip(self.columns, words, strict=True)

    @property
    def cells(self) -> tuple[tuple[tuple[str, bool], ...], ...]:
        """Each text, and whether it is words."""
        return tuple(tuple((cell, not is_number(cell)) for cell in row) for row in self.rows)


@final
@dataclass(frozen=True, kw_only=True)
class Page:
    """One HTML file."""

    title: str
    about: str = ""
    """a line below the title"""
    chapters: tuple[Chapter, ...]
    summary: Summary | None = None

    @property
    def scripted(self) -> bool:
        return self.summary is not None or any(chapter.plotted for chapter in self.chapters)

    def html(self) -> str:
        """The page; texts of users are escaped."""
        template = _environment().get_template("page.html")
        return template.render(page=self, style=_text("style.css"), script=_text("script.js"))


def live_page(title: str) -> str:
    """A page that asks its server for `updates.json` and `picture.png`, again and again."""
    template = _environment().get_template("live.html")
    return template.render(title=title, style=_text("style.css"))


def save_page(page: Page, path: Path | str) -> None:
    """Write a page.

    Raises:
        OSError: if it cannot be written.
    """
    with atomic(path) as temporary:
        temporary.write_text(page.html(), encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data": _data, "prose": _prose}
    return environment


def _prose(text: str) -> Markup:
    """A text with commands, which stand between backticks, as code."""
    escaped = str(escape(text.replace("+-", "±")))
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", escaped))


def _data(value: object) -> str:
    """JSON that may stand within a script element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


@cache
def _text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")
