"""formats: a list of the formats that are read and written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from decode.io.formats import Format
from decode.io.movies import movie_formats
from decode.io.tables import table_formats

__all__ = ["formats"]

NOTES = """\
Frames are the images along time, or along z where there is one time.  Of several channels,
positions or planes one is chosen by `--channel`, `--position` and `--z`, by its number from 0 or
its name.  `--skip 0::4` leaves out every fourth frame; its neighbours count as successive, and
frames keep their numbers.  `--join` makes one movie of several files.

A binary file that nothing describes is read by `--raw-shape ROWS,COLUMNS --raw-dtype TYPE`.

The libraries for ND2, NDTiff, Zarr, LIF, SIF and compressed TIFF and CZI come by
`pip install 'decode-smlm[io]'`.""".splitlines()


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
            "",
            *NOTES,
        ]
    )


def _listed(found: Sequence[Format[Any, Any]]) -> Iterator[str]:
    yield "| name | what it is | suffixes | written | known by |"
    yield "|---|---|---|---|---|"
    for each in found:
        suffixes = " ".join(f"`{suffix}`" for suffix in each.suffixes)
        written = "" if each.write is None else "yes"
        yield f"| {each.name} | {each.title} | {suffixes} | {written} | {each.content} |"
