"""Counts of a camera, chunk by chunk, and the limit at which it clips them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple, TypeAlias, final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from decode.defects.counts import Counts
from decode.io.movies import Movie, open_movie

__all__ = [
    "AT_LIMIT",
    "Frames",
    "Highest",
    "Map",
    "chunks",
    "is_limit",
    "largest_count",
    "opened",
    "read",
    "shape_of",
    "size_in_words",
]

Frames: TypeAlias = str | Path | Counts
"""(frame, y, x) ADU: a TIFF file, an open movie, or an array"""
Map: TypeAlias = npt.NDArray[np.float64]
"""(y, x)"""
Region: TypeAlias = tuple[slice, slice]
"""rows and columns"""

CHUNK_BYTES = 2**26
"""bytes of float64 counts in memory at a time"""
AT_LIMIT = 10
"""number of counts at the largest value of a bit depth from which the camera clips there"""
BITS = (8, 10, 11, 12, 14, 16)
WHOLE: Region = (slice(None), slice(None))


@final
class Highest(NamedTuple):
    """The highest count that occurred."""

    value: float = -math.inf
    """ADU"""
    times: int = 0
    """number of times that it occurred"""

    def among(self, counts: Map) -> Highest:
        """The highest count, with these counts included."""
        top = float(counts.max())
        if top < self.value:
            return self
        times = int((counts == top).sum())
        before = self.times if top == self.value else 0
        return Highest(top, before + times)


def opened(frames: Frames) -> AbstractContextManager[Counts]:
    """A context of the frames, which closes them if they are a file."""
    return open_movie(frames) if isinstance(frames, str | Path) else nullcontext(frames)


def shape_of(counts: Counts, name: str) -> tuple[int, int, int]:
    """Frames, height and width.

    Raises:
        ValueError: if it is no series of frames; the sentence begins with `name`.
    """
    shape = tuple(counts.shape)
    if len(shape) != 3 or 0 in shape:
        raise ValueError(
            f"{name} must be (frame, y, x) of grey values and not empty, but have the shape {shape}"
        )
    return shape[0], shape[1], shape[2]


def read(counts: Counts, start: int, stop: int, name: str, region: Region = WHOLE) -> Map:
    """(stop - start, y, x) of a region.

    Raises:
        ValueError: if a count is not finite; the sentence begins with `name`.
    """
    frames = counts.read(start, stop) if isinstance(counts, Movie) else counts[start:stop]
    chunk = np.asarray(frames)[:, *region].astype(np.float64)
    if not np.isfinite(chunk).all():
        raise ValueError(f"{name} hold NaN or infinite counts; repair or leave out those frames")
    return chunk


def chunks(counts: Counts, name: str) -> Iterator[Map]:
    """All frames, as many at a time as fit into `CHUNK_BYTES`."""
    total, height, width = counts.shape
    length = max(1, CHUNK_BYTES // (8 * height * width))
    for start in range(0, total, length):
        yield read(counts, start, min(total, start + length), name)


def largest_count(adu: Tensor, stated: float) -> float:
    """The count at which a camera clips, ADU: the stated one, or the largest of a lower bit depth
    where counts pile up."""
    top = float(adu.max())
    piled = is_limit(top) and int((adu == top).sum()) >= AT_LIMIT
    return min(top, stated) if piled else stated


def is_limit(count: float) -> bool:
    """Whether a count is the largest of 8 to 16 bits."""
    return count in {2.0**bits - 1 for bits in BITS}


def size_in_words(shape: Sequence[int]) -> str:
    """Pixels along y and x."""
    return f"{shape[0]} x {shape[1]}"
