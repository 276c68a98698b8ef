"""What of a file is the movie, where it holds several channels, positions or planes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from decode.io.movies.facts import StatedFacts

__all__ = [
    "CHANNEL",
    "POSITION",
    "TIME",
    "WHOLE",
    "Axis",
    "Chosen",
    "RawLayout",
    "Selection",
    "Z",
    "choose",
    "raw_shape",
]

TIME, Z, CHANNEL, POSITION = "time", "z", "channel", "position"
"""names of the axes that formats have in common; others keep those of their files"""
PLURAL = {TIME: "time points", Z: "z planes", CHANNEL: "channels", POSITION: "positions"}
MOST_LISTED = 12
"""names of channels or positions in a message"""


@final
@dataclass(frozen=True, kw_only=True)
class RawLayout:
    """The layout of a binary file without any description of itself.

    Example:
        >>> RawLayout(frame_shape=(512, 256), dtype="uint16").counts
        dtype('<u2')
    """

    frame_shape: tuple[int, int]
    """(y, x) pixels"""
    dtype: str
    """NumPy's name of the type of a count; little-endian unless it begins with `>`"""
    first_byte: int = 0
    """length of a header, bytes"""

    def __post_init__(self) -> None:
        if min(self.frame_shape) < 1 or self.first_byte < 0:
            raise ValueError("frames of a raw file have positive sides, and begin at a byte from 0")
        if self.counts.kind not in "uif":
            raise ValueError(f"--raw-dtype {self.dtype}: counts are uint16, >u2, float32, ...")

    @property
    def counts(self) -> np.dtype[Any]:
        """The type of a count, in its byte order."""
        try:
            dtype = np.dtype(self.dtype)
        except TypeError:
            raise ValueError(
                f"--raw-dtype {self.dtype}: NumPy knows no such type; write uint16, >u2, ..."
            ) from None
        return dtype if self.dtype.startswith(">") else dtype.newbyteorder("<")


def raw_shape(text: str) -> tuple[int, int]:
    """`Y,X` as rows and columns.

    >>> raw_shape("512,256")
    (512, 256)

    Raises:
        ValueError: if it is written otherwise.
    """
    sides = text.split(",")
    if len(sides) != 2 or not all(side.strip().isdecimal() for side in sides):
        raise ValueError(f"--raw-shape {text}: write rows and columns, as 512,256")
    return int(sides[0]), int(sides[1])


@final
@dataclass(frozen=True, kw_only=True)
class Selection:
    """What of a file is the movie.

    A file with one channel, one position and one plane needs none.  Where there are several, that
    of the movie is chosen by its number, from 0, or by its name.

    Example:
        >>> from decode import Selection, open_movie
        >>> fourth = Selection(skip="0::4")
        >>> with open_movie("sample_data/blinking_2d.tif", selection=fourth) as movie:
        ...     len(movie), movie.numbers[:4].tolist()
        (150, [1, 2, 3, 5])
    """

    channel: str | int | None = None
    """number or name of the channel"""
    position: str | int | None = None
    """number or name of the position of the stage"""
    z: str | int | None = None
    """number or name of the plane"""
    skip: str = ""
    """frames to leave out, by their numbers in the files from 0: `0::4` (every fourth), `7`, `3:9`,
    or several of these between commas"""
    raw: RawLayout | None = None
    """layout of a file that states none itself"""

    def skipped(self, n_frames: int) -> npt.NDArray[np.int64]:
        """Numbers of the frames to leave out of so many."""
        left_out = np.zeros(n_frames, dtype=bool)
        for part in filter(None, self.skip.split(",")):
            left_out[_span(part)] = True
        return np.flatnonzero(left_out)

    def of_axis(self, name: str) -> str | int | None:
        """The choice along an axis."""
        choices = {each.name: getattr(self, each.name) for each in fields(self)}
        return choices[name] if name in (CHANNEL, POSITION, Z) else None


WHOLE = Selection()
"""all frames of a file that holds one movie"""


def _span(text: str) -> slice:
    wrong = f"--skip {text}: write FIRST:LAST:STEP (0::4 is every fourth frame), or a number"
    try:
        ends = [int(end) if end.strip() else None for end in text.split(":")]
    except ValueError:
        raise ValueError(wrong) from None
    if len(ends) == 1 and ends[0] is not None and ends[0] >= 0:
        return slice(ends[0], ends[0] + 1)
    if not 2 <= len(ends) <= 3 or (len(ends) == 3 and ends[2] is not None and ends[2] < 1):
        raise ValueError(wrong)
    return slice(*ends)


@final
@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis of the images of a file, besides y and x."""

    name: str
    size: int
    labels: tuple[str, ...] = ()
    """names of its places, where they have any"""

    def index(self, wanted: str | int, path: Path) -> int:
        """The place that a user names or counts.

        Raises:
            ValueError: if there is none, with a list of those there are.
        """
        if wanted in self.labels:
            if self.labels.count(str(wanted)) == 1:
                return self.labels.index(str(wanted))
            raise ValueError(
                f"{path} has several {PLURAL[self.name]} called {wanted}: {self}; choose by number"
            )
        if str(wanted).isdecimal() and int(wanted) < self.size:
            return int(wanted)
        raise ValueError(f"{path} has no {self.name} {wanted}, but {self}")

    def __str__(self) -> str:
        counted = f"{self.size} {PLURAL.get(self.name, f'along {self.name}')}"
        if self.size == 1:
            counted = counted.removesuffix("s")
        if not any(self.labels):
            return f"{counted} (0 to {self.size - 1})" if self.size > 1 else f"{counted} (0)"
        listed = [f"{i}: {label}" for i, label in enumerate(self.labels[:MOST_LISTED])]
        more = ["..."] if self.size > MOST_LISTED else []
        return f"{counted} ({', '.join([*listed, *more])})"


@final
@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The frames of a movie among the images of a file."""

    axes: tuple[Axis, ...]
    """in the order of the file, the last varying fastest"""
    at: Mapping[str, int]
    """place along each axis but that of the frames"""
    along: str | None
    """axis of the frames; None for one frame"""
    n_frames: int

    def places(self, start: int, stop: int) -> Iterator[dict[str, int]]:
        """Place along every axis of frames start .. stop - 1."""
        for frame in range(start, stop):
            yield {**self.at} if self.along is None else {**self.at, self.along: frame}

    def images(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Numbers of frames start .. stop - 1 among all images, counted along the axes."""
        first, step, stride = 0, 0, 1
        for axis in reversed(self.axes):
            if axis.name == self.along:
                step = stride
            else:
                first += stride * self.at[axis.name]
            stride *= axis.size
        return first + step * np.arange(start, stop, dtype=np.int64)

    def stated(self, facts: StatedFacts) -> StatedFacts:
        """What metadata state of these frames, whose distance is none unless they are planes."""
        return facts if self.along == Z else replace(facts, z_step_nm=None)

    def slices(self, start: int, stop: int) -> dict[str, int | slice]:
        """An index along every axis, which takes frames start .. stop - 1 at once."""
        spans: dict[str, int | slice] = dict(self.at)
        return spans if self.along is None else {**spans, self.along: slice(start, stop)}


def choose(path: Path, axes: Sequence[Axis], selection: Selection) -> Chosen:
    """The frames that users choose: those along the axis of time, or else along z.

    Raises:
        ValueError: if several channels, positions or planes are left, or one is chosen that the
            file does not have.
    """
    known = {axis.name: axis for axis in axes}
    if len(known) < len(axes):
        raise ValueError(f"{path} has several axes of one name, which is no movie")
    at: dict[str, int] = {}
    for name in (CHANNEL, POSITION, Z):
        wanted = selection.of_axis(name)
        if wanted is not None:
            at[name] = known.get(name, Axis(name=name, size=1)).index(wanted, path)
    longer = [axis for axis in axes if axis.size > 1 and axis.name not in at]
    along = next((axis for name in (TIME, Z) for axis in longer if axis.name == name), None)
    open_ = [axis for axis in longer if axis is not along]
    _require_chosen(path, open_)
    places = {axis.name: at.get(axis.name, 0) for axis in axes if axis is not along}
    if along is None:
        return Chosen(axes=tuple(axes), at=places, along=None, n_frames=1)
    return Chosen(axes=tuple(axes), at=places, along=along.name, n_frames=along.size)


def _require_chosen(path: Path, left: Sequence[Axis]) -> None:
    for axis in left:
        if axis.name not in (CHANNEL, POSITION, Z):
            raise ValueError(f"{path} has {axis}, which is no movie; save one of them as a movie")
    if left:
        listed = " and ".join(map(str, left))
        options = " and ".join(f"--{axis.name}" for axis in left)
        raise ValueError(f"{path} has {listed}; choose by {options}, a number or a name")
