"""Counts: the number of independent molecules in each frame."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

__all__ = ["Counts"]

ROUNDING = 1e-15
"""rounding error of the probabilities of counts"""


@final
@dataclass(frozen=True, kw_only=True)
class Counts:
    """Poisson-binomial distributions of the number of molecules in each frame.

    Example:
        >>> import torch
        >>> likely = torch.tensor([0.5, 0.5, 0.9], dtype=torch.float64)
        >>> counts = Counts(frame=torch.tensor([0, 0, 1]), probability=likely, n_frames=2)
        >>> counts.mean.tolist(), [round(float(p), 2) for p in counts.pmf(2)[0]]
        ([1.0, 0.9], [0.25, 0.5, 0.25])
    """

    frame: Tensor
    """(n,) int64, frame of each molecule"""
    probability: Tensor
    """(n,) float64, probability that the molecule is counted"""
    n_frames: int

    @property
    def mean(self) -> Tensor:
        """(n_frames,) expected number"""
        return self._sum(self.probability)

    @property
    def sd(self) -> Tensor:
        """(n_frames,) standard deviation"""
        return self._sum(self.probability * (1 - self.probability)).sqrt()

    def _sum(self, values: Tensor) -> Tensor:
        return values.new_zeros(self.n_frames).index_add(0, self.frame, values)

    def pmf(self, largest: int | None = None) -> Tensor:
        """Probability of each number.

        It comes of the discrete Fourier transform of the characteristic function (Hong, Comput.
        Stat. Data Anal. 59, 2013).

        Args:
            largest: largest count that is listed; by default ten standard deviations above the
                mean.

        Returns:
            (n_frames, largest + 1) float64; rows sum to 1, less the probability beyond `largest`.
            Probabilities below 1e-15, the rounding error, are set to about that value.
        """
        p = self.probability
        most = int(torch.bincount(self.frame, minlength=1).max())
        likely = min(most, math.ceil(float((self.mean + 10 * self.sd).max())) + 10)
        largest = likely if largest is None else largest
        # the transform folds counts at or above its length back onto the small ones
        length = max(largest, likely) + 1
        angle = 2 * math.pi * torch.arange(length, device=p.device, dtype=p.dtype) / length
        phases = torch.polar(torch.ones_like(angle), angle)
        characteristic = torch.stack([self._characteristic(w) for w in phases], 1)
        pmf = torch.fft.fft(characteristic, dim=1).real / length
        return pmf[:, : largest + 1].clamp_min(ROUNDING)

    def _characteristic(self, phase: Tensor) -> Tensor:
        """(n_frames,) expectation of phase to the power of the count."""
        logs = torch.log(1 - self.probability + self.probability * phase)
        return torch.complex(self._sum(logs.real), self._sum(logs.imag)).exp()
