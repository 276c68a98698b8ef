"""Frames of files as one lazy (frame, y, x) array."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

import numpy as np
import numpy.typing as npt

from decode.io.movies.format import Part

__all__ = ["Movie", "chosen_frames"]

LARGEST_COUNT = 2**24
"""largest count; beyond it, single precision does not resolve successive ones"""


@final
class Movie:
    """Frames of one or more files, read on demand; a context manager that closes them.

    Made by `open_movie`.  `movie.shape` is (frames, height, width).

    Example:
        >>> from decode import open_movie
        >>> with open_movie("sample_data/blinking_2d.tif") as movie:
        ...     movie.shape, movie.read(10, 12).shape
        ((200, 64, 64), (2, 64, 64))
    """

    def __init__(
        self,
        parts: Sequence[Part],
        frames: range,
        kept: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self._parts = tuple(parts)
        self._starts = np.cumsum([0, *(part.n_frames for part in parts)])
        self._kept = kept
        self.frames = frames
        """numbers of these frames in `whole`, from 0: in the files, unless frames were left out"""
        self.path: Path = parts[0].path
        """the first file, or the folder of all"""
        self.shape: tuple[int, int, int] = (len(frames), *parts[0].frame_shape)
        self.dtype: np.dtype[Any] = parts[0].dtype.newbyteorder("=")
        facts = parts[0].facts
        self.pixel_sides_nm: tuple[float, float] | None = facts.pixel_sides_nm
        """(x, y) sides of a pixel by the metadata; None where these state none, or no credible
        ones"""
        self.pixel_size_nm: float | None = _side_of_square(facts.pixel_sides_nm)
        """the side of its pixels, where its metadata state square ones"""
        self.exposure_ms: float | None = facts.exposure_ms
        """exposure by the metadata; None where they state none"""
        self.z_step_nm: float | None = facts.z_step_nm
        """distance of the planes of a z-stack by its metadata; None where they state none"""
        self.camera_name: str | None = facts.camera_name
        """camera as its metadata call it; None where they do not name it"""

    def __len__(self) -> int:
        return self.shape[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def files(self) -> frozenset[Path]:
        """Resolved paths of the files that belong to it; none of a folder of frames."""
        return frozenset().union(*(part.files() for part in self._parts))

    def close(self) -> None:
        """Close the files."""
        for part in self._parts:
            part.close()

    def without(self, frames: Collection[int]) -> Movie:
        """The movie without some of its frames; the remaining ones count as successive, those of
        `whole` too.  It shares the files.

        Raises:
            ValueError: if no frame is left.
        """
        left_out = {self.frames.start + i for i in frames if 0 <= i < len(self)}
        if len(left_out) == len(self):
            raise ValueError(f"{self.path}: no frame is left; choose others with --frames")
        start = self.frames.start  # all of those left out come later
        return Movie(
            self._parts,
            range(start, self.frames.stop - len(left_out)),
            np.delete(self._all_numbers, sorted(left_out)),
        )

    def between(self, numbers: range) -> Movie:
        """The frames of this movie that have one of these numbers in the files.  It shares the
        files.

        Raises:
            ValueError: if there is none.
        """
        start, stop = np.searchsorted(self._all_numbers, (numbers.start, numbers.stop)).tolist()
        start, stop = max(start, self.frames.start), min(stop, self.frames.stop)
        if start >= stop:
            raise ValueError(
                f"{self.path}: all of the frames {numbers.start}:{numbers.stop} are left out; "
                "choose others with --frames or --skip"
            )
        return Movie(self._parts, range(start, stop), self._kept)

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        """(frame,) number of each frame in the files, from 0, with gaps where frames were left
        out."""
        return self._all_numbers[self.frames.start : self.frames.stop]

    @property
    def _all_numbers(self) -> npt.NDArray[np.int64]:
        """(frame,) numbers of the frames of `whole`."""
        return np.arange(self._starts[-1]) if self._kept is None else self._kept

    @property
    def whole(self) -> Movie:
        """All frames of the files, whichever of them this movie has, but those that were left out;
        it shares the files."""
        n_frames = int(self._starts[-1]) if self._kept is None else len(self._kept)
        return Movie(self._parts, range(n_frames), self._kept)

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Frames start, ..., stop - 1; nothing else is read or kept.

        Returns:
            (stop - start, height, width), a copy in the movie's dtype and native byte order.

        Raises:
            IndexError: if the movie has no such frames.
            ValueError: if a frame holds NaN or infinite counts, or counts beyond
                `LARGEST_COUNT`.
            OSError: if the file cannot be read.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(
                f"frames {start}:{stop} are not within the {len(self)} frames of {self.path}"
            )
        pieces = []
        for run in self._runs(self.frames.start + start, self.frames.start + stop):
            for part, offset in zip(self._parts, self._starts[:-1].tolist(), strict=True):
                a, b = max(run.start, offset), min(run.stop, offset + part.n_frames)
                if a < b:
                    pieces.append(part.read(a - offset, b - offset))
        if not pieces:
            return np.empty((0, *self.shape[1:]), self.dtype)
        chunk: npt.NDArray[Any] = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        chunk = chunk.astype(self.dtype, copy=False)
        if chunk.dtype.itemsize > 2 or chunk.dtype.kind == "f":
            limit = np.float64(LARGEST_COUNT)
            usable = (chunk >= -limit) & (chunk <= limit)
            broken = np.flatnonzero(~usable.all(axis=(1, 2)))
            if len(broken):
                finite = bool(np.isfinite(chunk[broken[0]]).all())
                holds = (
                    f"counts beyond {LARGEST_COUNT}, as no camera writes"
                    if finite
                    else "NaN or infinite counts"
                )
                raise ValueError(
                    f"{self.path}: frame {self.numbers[start + broken[0]]} (from 0) holds {holds}; "
                    "correct it or leave it out with --frames"
                )
        return chunk

    def _runs(self, start: int, stop: int) -> Sequence[range]:
        """Numbers in the files of frames of `whole`, a range for those without a gap."""
        if self._kept is None or start == stop:
            return [range(start, stop)]
        numbers = self._kept[start:stop]
        gaps = np.flatnonzero(np.diff(numbers) != 1) + 1
        return [range(int(run[0]), int(run[-1]) + 1) for run in np.split(numbers, gaps)]


def chosen_frames(frames: slice | None, n_frames: int, path: Path) -> range:
    """The frames that a slice chooses."""
    if frames is None:
        return range(n_frames)
    if frames.step not in (None, 1):
        raise ValueError("frames must follow each other: give first and last without a step")
    chosen = range(*frames.indices(n_frames))
    if not chosen:
        asked = ":".join("" if end is None else str(end) for end in (frames.start, frames.stop))
        raise ValueError(f"frames {asked} select none of the {n_frames} in {path}")
    return chosen


def _side_of_square(sides_nm: tuple[float, float] | None) -> float | None:
    if sides_nm is None or max(sides_nm) > 1.01 * min(sides_nm):
        return None
    return sides_nm[0]
