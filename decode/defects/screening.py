"""Screening of a movie for frames and pixels that hold no image, which happens once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, final
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from decode.defects.counts import Counts, spans
from decode.defects.frames import unusable_frames
from decode.defects.pixels import PixelDefects
from decode.io.movies import Movie
from decode.optics.camera import Camera

__all__ = [
    "MovieDefects",
    "Screened",
    "defects_of",
    "screened",
    "with_bad_pixels",
    "without_unusable",
]


@final
@dataclass(frozen=True, kw_only=True)
class MovieDefects:
    """What of a movie is no image of the sample."""

    numbers: npt.NDArray[np.int64]
    """(frame,) numbers of the movie's frames in the file"""
    frames: Mapping[int, str]
    """why frames hold no image, by their number in the movie"""
    pixels: PixelDefects

    @property
    def sentences(self) -> tuple[str, ...]:
        """Sentences on what is left out, and further remarks."""
        of_pixels = self.pixels.remark
        return (*self.sentences_on_frames, of_pixels) if of_pixels else self.sentences_on_frames

    @property
    def sentences_on_frames(self) -> tuple[str, ...]:
        """Sentences on the frames that are left out."""
        remark = _frames_remark(self.frames, self.numbers)
        return (remark,) if remark else ()


@final
class Screened(NamedTuple):
    """The usable part of a movie."""

    movie: Counts
    """the usable frames"""
    camera: Camera
    """camera with the bad pixels"""
    numbers: npt.NDArray[np.int64]
    """(frame,) numbers of the usable frames in the file, or in the array, with gaps where frames
    are left out"""


class _Screening(NamedTuple):
    """The defects that were found in a movie with a camera."""

    asked: Camera
    defects: MovieDefects
    camera: Camera
    """camera with the bad pixels"""


_known: WeakKeyDictionary[Movie, list[_Screening]] = WeakKeyDictionary()
"""a movie is screened once for all of its estimates"""


def defects_of(movie: Counts, camera: Camera) -> MovieDefects:
    """The frames and pixels of a movie that hold no image.

    Of a long movie not all frames are checked.

    Args:
        movie: (frame, y, x) ADU.
        camera: its maps, if any, are as large as the frames.
    """
    return _screening(movie, camera).defects


def screened(movie: Counts, camera: Camera) -> Screened:
    """A movie without the frames that hold no image, and its camera, which knows the bad pixels.

    Raises:
        ValueError: if no frame is left.
    """
    found = _screening(movie, camera)
    unusable = found.defects.frames
    numbers = found.defects.numbers
    return Screened(
        movie=_without(movie, unusable),
        camera=found.camera,
        numbers=np.delete(numbers, sorted(unusable)),
    )


def with_bad_pixels(movie: Counts, camera: Camera) -> Camera:
    """The camera with the bad pixels that a movie shows."""
    return _screening(movie, camera).camera


def without_unusable(movie: Counts) -> Counts:
    """A movie of an unknown camera without the frames that are blank or far from those around.

    Raises:
        ValueError: if no frame is left.
    """
    return _without(movie, unusable_frames(movie, None))


def _screening(movie: Counts, camera: Camera) -> _Screening:
    known = _known.setdefault(movie, []) if isinstance(movie, Movie) else []
    for before in known:
        if before.asked is camera or before.camera is camera:
            return before
    unusable = unusable_frames(movie, camera)
    # where all frames are unusable there is nothing to judge pixels by
    usable = movie if len(unusable) == movie.shape[0] else _without(movie, unusable)
    pixels = PixelDefects.of(usable, camera).blamed(usable, camera)
    defects = MovieDefects(
        numbers=movie.numbers if isinstance(movie, Movie) else np.arange(len(movie)),
        frames=unusable,
        pixels=pixels,
    )
    known.append(_Screening(camera, defects, pixels.marked(camera)))
    return known[-1]


def _without(movie: Counts, unusable: Mapping[int, str]) -> Counts:
    if not unusable:
        return movie
    if len(unusable) == movie.shape[0]:
        raise ValueError("this movie holds no image: all of its frames are blank or dark")
    if isinstance(movie, Movie):
        return movie.without(unusable)
    return movie[[i for i in range(len(movie)) if i not in unusable]]


def _frames_remark(unusable: Mapping[int, str], numbers: npt.NDArray[np.int64]) -> str:
    """A sentence on the frames that were left out, or ""."""
    if not unusable:
        return ""
    kinds = {
        kind: spans([int(numbers[i]) for i, why in unusable.items() if why == kind])
        for kind in dict.fromkeys(unusable.values())
    }
    listed = "; ".join(f"{kind}: {where}" for kind, where in kinds.items())
    n, n_frames = len(unusable), len(numbers)
    hold = "frame holds" if n == n_frames == 1 else "frames hold"
    return f"{n} of {n_frames} {hold} no image of the sample and are left out ({listed})"
