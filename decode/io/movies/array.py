"""Movies whose frames are in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from decode.io.movies.format import Part

__all__ = ["ArrayPart"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayPart(Part):
    """Frames in memory, as a part of a movie; made by `of`."""

    counts: npt.NDArray[Any]
    """(frames, y, x) ADU"""

    @staticmethod
    def of(counts: npt.NDArray[Any]) -> ArrayPart:
        """Raises a ValueError if the array is no movie."""
        if counts.ndim != 3 or not counts.size:
            raise ValueError(f"a movie has the shape (frames, y, x), this array has {counts.shape}")
        if counts.dtype.kind not in "uif":
            raise ValueError(f"a movie holds counts, this array holds {counts.dtype.name}")
        n_frames, height, width = counts.shape
        return ArrayPart(
            path=Path("array"),
            n_frames=n_frames,
            frame_shape=(height, width),
            dtype=np.dtype(counts.dtype),
            counts=counts,
        )

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        return self.counts[start:stop].copy()

    def files(self) -> frozenset[Path]:
        return frozenset()

    def close(self) -> None:
        """Nothing is open."""
