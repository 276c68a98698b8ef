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
    """Independent draws of the molecules of a movie.

    Args:
        number: number of draws.
        seed: fixes them; the k-th draw is the same whatever their number is.
        corner_px: (row, column) where the posterior of a chunk starts in the frame.
    """

    def __init__(self, number: int, *, seed: int, corner_px: tuple[int, int]) -> None:
        states = [np.random.SeedSequence([seed, k]).generate_state(2) for k in range(number)]
        self._generators = [
            torch.Generator().manual_seed(int(high) << 31 | int(low) >> 1) for high, low in states
        ]
        # what the log odds of molecules have in common is the same in all frames of a draw
        self._effects = [
            float(torch.randn(1, generator=rng, dtype=torch.float64)) for rng in self._generators
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
            posterior.sample(rng, first_frame=number, effect=effect)
            for rng, effect in zip(self._generators, self._effects, strict=True)
        )
        return tuple(replace(table, xyz=table.xyz + corner) for table in drawn)
