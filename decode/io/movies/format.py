"""What a format of movies declares, and what it opens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from decode.io.formats import Format
from decode.io.movies.facts import StatedFacts
from decode.io.movies.selection import Selection

__all__ = ["MovieFormat", "Part", "check_continues"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Part(ABC):
    """Frames of one file, of a series of files that name each other, or of a folder."""

    path: Path
    """a name for messages"""
    n_frames: int
    frame_shape: tuple[int, int]
    """(y, x) pixels"""
    dtype: np.dtype[Any]
    """type of the counts; unsigned, signed or floating, in any byte order"""
    facts: StatedFacts = field(default_factory=StatedFacts)
    """what its metadata state"""

    @abstractmethod
    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """(stop - start, y, x) ADU, the caller's own, nothing else being read.

        Args:
            start, stop: within the frames of this part.

        Raises:
            ValueError: if the file is damaged.
            OSError: if it cannot be read.
        """

    @abstractmethod
    def files(self) -> frozenset[Path]:
        """Resolved paths of all files that belong to this part."""

    @abstractmethod
    def close(self) -> None:
        """Close the files."""


class OpenPart(Protocol):
    """Opens a file or a folder without reading its pixels."""

    def __call__(self, path: Path, selection: Selection, *, allow_truncated: bool) -> Part:
        """Args:
            selection: which of several channels, positions and planes is the movie; `choose` takes
                it.
            allow_truncated: take the whole frames of a file that was cut short, instead of
                refusing it.

        Raises:
            ValueError: if it is not a movie of grey values, or is damaged.
            OSError: if it cannot be read.
        """


MovieFormat: TypeAlias = Format[OpenPart, Callable[..., None]]


def check_continues(part: Part, first: Part) -> None:
    """Raise a ValueError unless two parts have frames of one size and type."""
    kinds = [(each.frame_shape, each.dtype.newbyteorder("=")) for each in (part, first)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"{part.path} does not continue {first.path}: its frames are {_describe(part)}, not "
            f"{_describe(first)}"
        )


def _describe(part: Part) -> str:
    height, width = part.frame_shape
    return f"{height} x {width} {part.dtype.name}"
