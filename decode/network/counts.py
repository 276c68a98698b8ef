"""Counts: the number of molecules in each frame."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

__all__ = ["Counts", "numbers"]

ROUNDING = 1e-15
"""rounding error of the probabilities of counts"""


def _effects(n: int) -> tuple[list[float], list[float]]:
    """Nodes and weights of the Gauss-Hermite quadrature of a standard normal variate."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return nodes.tolist(), (weights / weights.sum()).tolist()


EFFECTS = _effects(15)
"""values of a random effect, and their probabilities"""


def numbers(probability: Tensor, spread: Tensor, effect: float) -> tuple[Tensor, Tensor]:
    """What is expected of each molecule, given an effect that all have in common.

    The expected number is log-normal, with `probability` for its mean and `spread` for its relative
    standard deviation.  Up to one, the molecule exists or not; what is expected beyond are others
    that cannot be told from it, and their number is Poisson.

    Args:
        probability: (n,) that each exists.
        spread: (n,)
        effect: a standard normal variate.

    Returns:
        (n,) probability that the molecule exists, and (n,) expected number of the others.
    """
    width = torch.log1p(spread.square()).sqrt()
    expected = probability * torch.exp(width * (effect - width / 2))
    exists = expected.clamp(max=1)
    return exists, expected - exists


@final
@dataclass(frozen=True, kw_only=True)
class Counts:
    """Distributions of the number of molecules in each frame.

    They are Poisson-binomial, or mixtures of such, where molecules have a random effect in common
    (`numbers`).

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
    """(n,) float64, probability that the molecule exists"""
    n_frames: int
    inside: Tensor | None = None
    """(n,) probability that it is counted, if it exists; None: 1"""
    spread: Tensor | None = None
    """(n,) relative standard deviation of a molecule's expected number, by an effect that all have
    in common; None: 0"""

    @property
    def mean(self) -> Tensor:
        """(n_frames,) expected number"""
        return self._sum(self._counted(self.probability))

    @property
    def sd(self) -> Tensor:
        """(n_frames,) standard deviation"""
        second = torch.zeros_like(self.mean)
        for share, mean, variance in self.given():
            second += share * (variance + (mean - self.mean).square())
        return second.sqrt()

    def rank(self, number: Tensor) -> Tensor:
        """(n_frames,) probability of fewer than `number`, and half of that of as many.

        Given the effect, counts are taken as normal: fast, and right to about a hundredth where
        some are expected.
        """
        below = torch.zeros_like(self.mean)
        for share, mean, variance in self.given():
            sd = variance.clamp_min(1e-6).sqrt()
            below += share * torch.special.ndtr((number - mean) / sd)
        return below

    def given(self) -> Iterator[tuple[float, Tensor, Tensor]]:
        """Probability of each value of the effect, and (n_frames,) mean and variance, given it."""
        for share, exists, others in self._given():
            variance = exists * (1 - exists) + others
            yield share, self._sum(exists + others), self._sum(variance)

    def _given(self) -> Iterator[tuple[float, Tensor, Tensor]]:
        """Probability of each value of the effect, and given it (n,) the probability that the
        molecule is counted and the expected number of others that are."""
        if self.spread is None:
            yield 1.0, self._counted(self.probability), torch.zeros_like(self.probability)
            return
        for effect, share in zip(*EFFECTS, strict=True):
            exists, others = numbers(self.probability, self.spread, effect)
            yield share, self._counted(exists), self._counted(others)

    def _counted(self, exists: Tensor) -> Tensor:
        return exists if self.inside is None else exists * self.inside

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
        likely = math.ceil(float((self.mean + 10 * self.sd).max())) + 10
        if self.spread is None:
            likely = min(likely, int(torch.bincount(self.frame, minlength=1).max()))
        largest = likely if largest is None else largest
        # the transform folds counts at or above its length back onto the small ones
        length = max(largest, likely) + 1
        # the other half is the complex conjugate
        half = torch.arange(length // 2 + 1, device=p.device, dtype=p.dtype)
        angle = 2 * math.pi * half / length
        phases = torch.polar(torch.ones_like(angle), angle)
        characteristic = phases.new_zeros(self.n_frames, len(phases))
        for share, exists, others in self._given():
            columns = [self._characteristic(exists, others, phase) for phase in phases]
            characteristic += share * torch.stack(columns, 1)
        pmf = torch.fft.irfft(characteristic.conj(), n=length, dim=1)
        return pmf[:, : largest + 1].clamp_min(ROUNDING)

    def _characteristic(self, exists: Tensor, others: Tensor, phase: Tensor) -> Tensor:
        """(n_frames,) expectation of phase to the power of the count."""
        logs = torch.log(1 - exists + exists * phase) + others * (phase - 1)
        return torch.complex(self._sum(logs.real), self._sum(logs.imag)).exp()
