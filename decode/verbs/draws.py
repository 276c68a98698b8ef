"""Draws: sets of molecules from the posterior of a movie, chunk after chunk."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import numpy as np
import torch

from decode.emitters import EmitterSet
from decode.verbs.sweep import Chunk

__all__ = ["Draws"]


@final
class Draws:
    """Independent draws of the molecules of a movie; those of a chunk depend on no other chunk.

    Args:
        number: number of draws.
        seed: fixes them; the k-th draw is the same whatever their number is.
        corner_px: (row, column) where the posterior of a chunk starts in the frame.
    """

    def __init__(self, number: int, *, seed: int, corner_px: tuple[int, int]) -> None:
        self._seeds = [(seed, k) for k in range(number)]
        # what the numbers of molecules have in common is the same in all frames of a draw
        self._effects = [
            float(torch.randn(1, generator=_generator(*own, 0), dtype=torch.float64))
            for own in self._seeds
        ]
        self._corner_px = corner_px

    def of(self, chunk: Chunk, *, first_frame: int) -> tuple[EmitterSet, ...]:
        """One table per draw, in the coordinates of the whole frame.

        Args:
            chunk: with the posterior of its frames.
            first_frame: number of the movie's first frame in its file.
        """
        if chunk.posterior is None:
            return ()
        posterior = chunk.posterior.molecules()
        row, column = self._corner_px
        corner = torch.tensor([column, row, 0.0]) * chunk.posterior.pixel_size_nm
        number = first_frame + chunk.frames_done - len(chunk.posterior)
        drawn = (
            posterior.sample(_generator(*own, number + 1), first_frame=number, effect=effect)
            for own, effect in zip(self._seeds, self._effects, strict=True)
        )
        return tuple(replace(table, xyz=table.xyz + corner) for table in drawn)


def _generator(*seeds: int) -> torch.Generator:
    high, low = np.random.SeedSequence(seeds).generate_state(2)
    return torch.Generator().manual_seed(int(high) << 31 | int(low) >> 1)
