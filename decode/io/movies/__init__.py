"""Movies on disk, read frame by frame.  A format is a module of this package that declares a
`FORMAT`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy.typing as npt

from decode.io.formats import format_of, formats_in, recognized, suffixes_of
from decode.io.movies.array import ArrayPart
from decode.io.movies.format import MovieFormat, Part, check_continues
from decode.io.movies.movie import Movie, chosen_frames
from decode.io.movies.order import in_natural_order
from decode.io.movies.raw import open_raw
from decode.io.movies.selection import WHOLE, RawLayout, Selection, raw_shape
from decode.io.movies.tiff import read_image, write_movie
from decode.io.movies.units import require_pixel_size

__all__ = [
    "WHOLE",
    "Movie",
    "RawLayout",
    "Selection",
    "in_natural_order",
    "movie_formats",
    "movie_suffixes",
    "open_array",
    "open_movie",
    "raw_shape",
    "read_image",
    "require_pixel_size",
    "write_movie",
]


def movie_formats() -> tuple[MovieFormat, ...]:
    """All formats of movies, in the order of their names.

    >>> "tiff" in [each.name for each in movie_formats()]
    True
    """
    return formats_in(__name__)


def movie_suffixes() -> tuple[str, ...]:
    """Suffixes of the movies that are read."""
    return suffixes_of(movie_formats())


def open_movie(
    path: str | Path | Sequence[str | Path],
    *,
    frames: slice | None = None,
    allow_truncated: bool = False,
    selection: Selection = WHOLE,
) -> Movie:
    """Open a movie without reading its pixels.

    Its content decides which of `movie_formats` it is.  Frames are the images along time, or along
    z where there is one time; of several channels, positions or planes `selection` chooses one.
    A single image is a movie of one frame; images of one size and type that tifffile wrote one
    after the other are frames of one movie.

    Example:
        >>> with open_movie("sample_data/blinking_2d.tif", frames=slice(0, 10)) as movie:
        ...     len(movie), movie.read(0, 2).shape
        (10, (2, 64, 64))

    Args:
        path: a file; a folder, whose files are a frame each; or the parts of a movie that was
            split.  Files are taken in the natural order of their names.
        frames: the frames to keep, from 0, without a step; None keeps all.
        allow_truncated: take the whole frames of a file that was cut short, instead of refusing it.
        selection: channel, position and plane; frames to leave out, to which numbers in tables
            leave gaps; and the layout of a file that states none.

    Returns:
        The movie, a context manager that closes its files.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if it is not a movie of grey values, is damaged, its parts do not fit together,
            or several channels, positions or planes are left to choose from.
    """
    paths = [Path(path)] if isinstance(path, str | Path) else in_natural_order(path)
    if not paths:
        raise ValueError("no movie was given")
    with ExitStack() as opened:
        parts: list[Part] = []
        for each in paths:
            # the files of an OME or Micro-Manager series name each other: the first one brings them
            # all
            if any(each.resolve() in part.files() for part in parts):
                continue
            parts.append(_open_part(each, selection, allow_truncated=allow_truncated))
            opened.callback(parts[-1].close)
            parts[-1].read(0, 1)  # a codec that is not installed shows here, not after minutes
        for part in parts[1:]:
            check_continues(part, parts[0])
        n_frames = sum(part.n_frames for part in parts)
        chosen = chosen_frames(frames, n_frames, parts[0].path)
        movie = Movie(parts, chosen)
        left_out = selection.skipped(n_frames)
        if len(left_out):
            movie = movie.whole.without(left_out).between(chosen)
        opened.pop_all()
        return movie


def _open_part(path: Path, selection: Selection, *, allow_truncated: bool) -> Part:
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if selection.raw is None:
        found = format_of(path, movie_formats(), what="movies")
        return found.read(path, selection, allow_truncated=allow_truncated)
    described = recognized(path, movie_formats())
    if described is not None:
        raise ValueError(
            f"{path} is known by {described.content} and states its layout itself; leave out "
            "--raw-shape"
        )
    return open_raw(path, selection.raw, selection, allow_truncated=allow_truncated)


def open_array(counts: npt.NDArray[Any], *, frames: slice | None = None) -> Movie:
    """A movie whose frames are in memory.

    >>> import numpy as np
    >>> open_array(np.ones((20, 32, 48)), frames=slice(0, 5)).shape
    (5, 32, 48)

    Args:
        counts: (frames, y, x) ADU.
        frames: the frames to keep, from 0, without a step; None keeps all.

    Raises:
        ValueError: if the array is not a movie.
    """
    part = ArrayPart.of(counts)
    return Movie([part], chosen_frames(frames, part.n_frames, part.path))
