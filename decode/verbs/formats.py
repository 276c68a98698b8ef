"""formats: a list of the formats that are read and written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from decode.io.formats import Format
from decode.io.movies import movie_formats
from decode.io.tables import table_formats

__all__ = ["formats"]


def formats() -> str:
    """A page in Markdown that lists the formats of tables and movies.

    >>> print(formats().splitlines()[0])
    # Formats
    """
    return "\n".join(
        [
            "# Formats",
            "",
            "`decode formats` prints this page.  A file is known by what it holds, whatever its",
            "name is; the suffix of a file to write says its format.",
            "",
            "## Tables of molecules",
            "",
            *_listed(table_formats()),
            "",
            "## Movies",
            "",
            *_listed(movie_formats()),
        ]
    )


def _listed(found: Sequence[Format[Any, Any]]) -> Iterator[str]:
    yield "| name | what it is | suffixes | written | known by |"
    yield "|---|---|---|---|---|"
    for each in found:
        suffixes = " ".join(f"`{suffix}`" for suffix in each.suffixes)
        written = "" if each.write is None else "yes"
        yield f"| {each.name} | {each.title} | {suffixes} | {written} | {each.content} |"
