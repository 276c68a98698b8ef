"""Movies whose frames are in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

__all__ = ["ArrayPart"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayPart:
    """Frames in memory, as a part of a movie.

    Raises:
        ValueError: if the array is no movie.
    """

    counts: npt.NDArray[Any]
    """(frames, y, x) ADU"""
    path: Path = Path("array")
    """a name for messages"""
    pixel_sides_nm: tuple[float, float] | None = None
    exposure_ms: float | None = None
    z_step_nm: float | None = None

    def __post_init__(self) -> None:
        if self.counts.ndim != 3 or not self.counts.size:
            raise ValueError(
                f"a movie has the shape (frames, y, x), this array has {self.counts.shape}"
            )
        if self.counts.dtype.kind not in "uif":
            raise ValueError(f"a movie holds counts, this array holds {self.counts.dtype.name}")

    @property
    def n_frames(self) -> int:
        return len(self.counts)

    @property
    def frame_shape(self) -> tuple[int, int]:
        _, height, width = self.counts.shape
        return height, width

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.counts.dtype

    def close(self) -> None:
        """Nothing is open."""

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        return self.counts[start:stop]
