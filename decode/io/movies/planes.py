"""Frames that a library reads one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt

from decode.errors import reading
from decode.io.movies.block import cut_short
from decode.io.movies.format import Part
from decode.io.movies.selection import Chosen

__all__ = ["PlanesPart", "ReadPlane", "whole_part"]

ReadPlane: TypeAlias = Callable[[Mapping[str, int]], npt.NDArray[Any]]
"""(y, x) ADU at a place along every axis"""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class PlanesPart(Part):
    """Frames, each of which is read by itself."""

    kind: str
    """the kind of file, with its article, for messages"""
    chosen: Chosen
    plane: ReadPlane
    closing: Callable[[], None]
    own: Iterable[Path] = ()
    """files that belong to it; none: `path`"""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """libraries seek before they read, and frames are read ahead in another thread"""

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        chunk = np.empty((stop - start, *self.frame_shape), self.dtype)
        with self.lock, reading(self.path, self.kind, "copy or export it again"):
            for frame, place in zip(chunk, self.chosen.places(start, stop), strict=True):
                plane = self.plane(place)
                if plane.shape != self.frame_shape:
                    raise ValueError(f"an image has the shape {plane.shape}")
                frame[:] = plane
        return chunk

    def files(self) -> frozenset[Path]:
        return frozenset(file.resolve() for file in (*self.own,) or (self.path,))

    def close(self) -> None:
        self.closing()


def whole_part(
    path: Path, chosen: Chosen, is_there: Callable[[Mapping[str, int]], bool], *, truncated: bool
) -> int:
    """Number of frames up to the first that is missing.

    Args:
        truncated: accept them where some are missing, instead of refusing the file.

    Raises:
        ValueError: if it is refused, or there are none.
    """
    n_frames = chosen.n_frames
    there = (is_there(place) for place in chosen.places(0, n_frames))
    n_whole = next((i for i, is_whole in enumerate(there) if not is_whole), n_frames)
    if n_whole < 1 or (n_whole < n_frames and not truncated):
        raise cut_short(path, n_whole, n_frames)
    return n_whole
