"""Frames that lie in a file at even distances."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from decode.io.movies.facts import StatedFacts
from decode.io.movies.format import Part

__all__ = ["BlockPart", "cut_short"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class BlockPart(Part):
    """Frames at even distances, which are read instead of mapped, as pages of a mapped file count
    as memory in use; made by `of`."""

    first_byte: int
    """where the pixels of the first frame begin"""
    stride: int
    """bytes from a frame to the next"""
    description: Path | None = None
    """file beside it that describes it"""

    @staticmethod
    def of(
        path: Path,
        *,
        frame_shape: tuple[int, int],
        dtype: np.dtype[Any],
        n_frames: int | None,
        first_byte: int,
        stride: int | None = None,
        description: Path | None = None,
        facts: StatedFacts | None = None,
        allow_truncated: bool,
    ) -> BlockPart:
        """The frames that a header announces, if the file is long enough.

        Args:
            path: for messages.
            n_frames: number that was announced; None takes what the file holds.
            stride: bytes from a frame to the next; None: without a gap.
            description: file beside it that describes it.
            allow_truncated: take the whole frames that there are, instead of refusing the file.

        Raises:
            ValueError: if the header states nonsense, or frames are missing.
        """
        n_bytes = math.prod(frame_shape) * dtype.itemsize
        stride = stride or n_bytes
        if min(frame_shape) < 1 or stride < n_bytes or first_byte < 0:
            raise ValueError(f"{path} is damaged: its header states no frames; copy it again")
        there = max(0, path.stat().st_size - first_byte)
        whole, rest = divmod(there, stride)
        if rest >= n_bytes:  # what follows the pixels of the last one may be absent
            whole, rest = whole + 1, 0
        if n_frames is None and rest and not allow_truncated:
            raise ValueError(
                f"{path} holds {whole} frames of {frame_shape[0]} x {frame_shape[1]} {dtype.name} "
                f"and {rest} bytes more: its frames have another size, or it is cut short"
            )
        n_taken = whole if n_frames is None else min(whole, n_frames)
        if n_taken < 1 or (n_frames is not None and n_taken < n_frames and not allow_truncated):
            raise cut_short(path, n_taken, n_frames)
        return BlockPart(
            path=path,
            n_frames=n_taken,
            frame_shape=frame_shape,
            dtype=dtype,
            facts=facts or StatedFacts(),
            description=description,
            first_byte=first_byte,
            stride=stride,
        )

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        height, width = self.frame_shape
        at = self.first_byte + start * self.stride
        chunk = np.empty((stop - start, height, width), self.dtype)
        # each call has a file of its own, as frames are read ahead in another thread
        with self.path.open("rb") as file:
            whole = [chunk] if self.stride * len(chunk) == chunk.nbytes else list(chunk)
            for i, piece in enumerate(whole):
                file.seek(at + i * self.stride)
                if file.readinto(piece.reshape(-1).view(np.uint8).data) < piece.nbytes:
                    raise OSError(f"{self.path} became shorter while it was read")
        return chunk

    def files(self) -> frozenset[Path]:
        own = (self.path, self.description)
        return frozenset(file.resolve() for file in own if file is not None)

    def close(self) -> None:
        """Nothing is open."""


def cut_short(path: Path, n_whole: int, n_announced: int | None) -> ValueError:
    """The refusal of a file whose last frames are missing."""
    if n_whole < 1:
        return ValueError(
            f"{path} is cut short or damaged, without one whole frame; copy or export it again"
        )
    of_all = "" if n_announced is None else f" of {n_announced}"
    return ValueError(
        f"{path} is cut short: only {n_whole}{of_all} frames are whole; copy or export it "
        "again, or take those with --allow-truncated"
    )
