"""Regions of a movie's frames, and the tiles that they are cut into."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

__all__ = ["Span", "Tile", "parse_region", "parse_span", "region_of", "tiles_of"]


class Span(NamedTuple):
    """Successive rows or columns."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def as_slice(self) -> slice:
        return slice(self.start, self.stop)

    def within(self, other: Span) -> slice:
        """The same rows or columns, counted from the start of others."""
        return slice(self.start - other.start, self.stop - other.start)


class Tile(NamedTuple):
    """A part of the field that the network works on at a time."""

    rows: Span
    """rows whose molecules the tile reports"""
    columns: Span
    rows_seen: Span
    """rows that the network sees, overlap included"""
    columns_seen: Span

    @property
    def shape_seen(self) -> tuple[int, int]:
        """(y, x) pixels"""
        return self.rows_seen.size, self.columns_seen.size


def tiles_of(
    region: tuple[Span, Span], shape: tuple[int, int], *, tile_px: int, radius: int, stride: int
) -> list[list[Tile]]:
    """Cut a region into tiles of about equal size.

    Args:
        region: rows and columns.
        shape: (y, x) of the frames.
        tile_px: largest side of a tile, without the overlap.
        radius: width of the overlap around a tile, pixels.
        stride: the seen parts begin at multiples of it, pixels.

    Returns:
        The tiles, row by row.
    """

    def cut(span: Span, limit: int) -> list[tuple[Span, Span]]:
        n = -(-span.size // tile_px)
        edges = [span.start + span.size * i // n for i in range(n + 1)]
        own = [Span(start, stop) for start, stop in pairwise(edges)]
        return [(s, Span(first(s), min(limit, s.stop + radius))) for s in own]

    def first(span: Span) -> int:
        return max(0, (span.start - radius) // stride * stride)

    rows, columns = (cut(span, limit) for span, limit in zip(region, shape, strict=True))
    return [[Tile(r, c, r_seen, c_seen) for c, c_seen in columns] for r, r_seen in rows]


def region_of(roi: tuple[slice, slice] | None, shape: tuple[int, int]) -> tuple[Span, Span]:
    """Rows and columns that slices choose of frames.

    Args:
        roi: slices of rows and columns; None takes all.
        shape: (y, x) of the frames.

    Raises:
        ValueError: if the region is empty or reaches beyond the frames.
    """
    spans = []
    chosen = roi or (slice(None), slice(None))
    for part, size, name in zip(chosen, shape, ("rows", "columns"), strict=True):
        start, stop, step = part.indices(size)
        if step != 1 or stop <= start or (part.stop is not None and part.stop > size):
            raise ValueError(
                f"the {name} {part.start}:{part.stop} of --roi are not within "
                f"the frame's {size} pixels"
            )
        spans.append(Span(start, stop))
    return spans[0], spans[1]


def parse_span(option: str, text: str) -> slice:
    """`A:B` as in Python; either end may be left out.

    >>> parse_span("--frames", "10:")
    slice(10, None, None)

    Args:
        option: name of the option, for the error.
        text: as the user wrote it.

    Raises:
        ValueError: if it is written otherwise.
    """
    try:
        start, stop = (int(end) if end.strip() else None for end in text.split(":"))
    except ValueError:
        raise ValueError(f"{option} {text}: write it as FIRST:LAST, two whole numbers") from None
    return slice(start, stop)


def parse_region(text: str) -> tuple[slice, slice]:
    """`Y0:Y1,X0:X1` as the rows and columns of a region.

    Raises:
        ValueError: if it is written otherwise.
    """
    rows, comma, columns = text.partition(",")
    if not comma:
        raise ValueError(f"--roi {text}: write it as Y0:Y1,X0:X1")
    return parse_span("--roi", rows), parse_span("--roi", columns)
