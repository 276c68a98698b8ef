"""Counts of a movie, in files or in memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from decode.io.movies import Movie

__all__ = ["LISTED", "Array", "Counts", "Frames", "first_of", "read_counts", "spans"]

Array: TypeAlias = npt.NDArray[np.float64]
Frames: TypeAlias = npt.NDArray[Any]
Counts: TypeAlias = Movie | Tensor | Frames
"""(frame, y, x) ADU"""

LISTED = 10
"""most spans of frames, or pixels, in a sentence"""


def first_of(movie: Counts) -> int:
    """Number of a movie's first frame in its `whole`."""
    return movie.frames.start if isinstance(movie, Movie) else 0


def read_counts(movie: Counts, start: int, stop: int) -> Frames:
    """(stop - start, y, x) ADU.

    Raises:
        ValueError: if a count is not finite.
    """
    part = movie.read(start, stop) if isinstance(movie, Movie) else movie[start:stop]
    frames: Frames = np.asarray(part)
    if frames.dtype.kind == "f" and not np.isfinite(frames).all():
        raise ValueError("the movie holds NaN or infinite counts; repair or leave out those frames")
    return frames


def spans(numbers: Sequence[int]) -> str:
    """`3, 7 to 9, ...` of rising whole numbers: the first `LISTED` spans."""
    runs = [list(run) for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    ends = [(run[0][1], run[-1][1]) for run in runs]
    words = [f"{a}" if a == b else f"{a} to {b}" for a, b in ends[:LISTED]]
    if len(ends) > LISTED:
        words.append("...")
    return ", ".join(words)
