"""Counts: the number of molecules in each frame."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

__all__ = ["EFFECTS", "Counts", "conditional_logit"]

ROUNDING = 1e-15
"""rounding error of the probabilities of counts"""


def _effects(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the Gauss-Hermite quadrature of a standard normal variate."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


EFFECTS = _effects(15)
"""values of a random effect, and their probabilities"""


def conditional_logit(probability: Tensor, spread: float) -> Tensor:
    """Log odds to which a random effect of standard deviation `spread` is added.

    The mean over the effect is `probability`, (n,) float64.
    """
    p = probability.clamp(1e-12, 1 - 1e-12)
    logit = torch.logit(p)
    if spread == 0:
        return logit
    nodes, weights = (t.to(p) for t in EFFECTS)
    # the approximation of Zeger, Liang and Albert, Biometrics 44, 1049, 1988, then Newton's method
    logit = logit * math.sqrt(1 + 0.346 * spread**2)
    for _ in range(4):
        given = torch.sigmoid(logit[:, None] + spread * nodes)
        mean, slope = given @ weights, (given * (1 - given)) @ weights
        step = (torch.logit(mean) - torch.logit(p)) * mean * (1 - mean) / slope
        logit = logit - step.clamp(-2, 2)
    return logit


@final
@dataclass(frozen=True, kw_only=True)
class Counts:
    """Distributions of the number of molecules in each frame.

    They are Poisson-binomial, or mixtures of such, where the log odds of molecules have a random
    effect in common.

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
    spread: float = 0.0
    """standard deviation of the log odds that molecules have in common"""

    @property
    def mean(self) -> Tensor:
        """(n_frames,) expected number"""
        return self._sum(self._counted(self.probability))

    @property
    def sd(self) -> Tensor:
        """(n_frames,) standard deviation"""
        second = torch.zeros_like(self.mean)
        for share, p in self._given():
            second += share * (self._sum(p * (1 - p)) + (self._sum(p) - self.mean).square())
        return second.sqrt()

    def rank(self, number: Tensor) -> Tensor:
        """(n_frames,) probability of fewer than `number`, and half of that of as many.

        Given the effect, counts are taken as normal: fast, and right to about a hundredth where
        some are expected.
        """
        below = torch.zeros_like(self.mean)
        for share, p in self._given():
            sd = self._sum(p * (1 - p)).clamp_min(1e-6).sqrt()
            below += share * torch.special.ndtr((number - self._sum(p)) / sd)
        return below

    def _given(self) -> list[tuple[float, Tensor]]:
        """Probability of each value of the effect, and (n,) those of being counted, given it."""
        if self.spread == 0:
            return [(1.0, self._counted(self.probability))]
        logit = conditional_logit(self.probability, self.spread)
        nodes, weights = (t.tolist() for t in EFFECTS)
        return [
            (share, self._counted(torch.sigmoid(logit + self.spread * node)))
            for node, share in zip(nodes, weights, strict=True)
        ]

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
        most = int(torch.bincount(self.frame, minlength=1).max())
        likely = min(most, math.ceil(float((self.mean + 10 * self.sd).max())) + 10)
        largest = likely if largest is None else largest
        # the transform folds counts at or above its length back onto the small ones
        length = max(largest, likely) + 1
        angle = 2 * math.pi * torch.arange(length, device=p.device, dtype=p.dtype) / length
        phases = torch.polar(torch.ones_like(angle), angle)
        characteristic = torch.zeros(self.n_frames, length, dtype=phases.dtype, device=p.device)
        for share, given in self._given():
            columns = [self._characteristic(given, phase) for phase in phases]
            characteristic += share * torch.stack(columns, 1)
        pmf = torch.fft.fft(characteristic, dim=1).real / length
        return pmf[:, : largest + 1].clamp_min(ROUNDING)

    def _characteristic(self, probability: Tensor, phase: Tensor) -> Tensor:
        """(n_frames,) expectation of phase to the power of the count."""
        logs = torch.log(1 - probability + probability * phase)
        return torch.complex(self._sum(logs.real), self._sum(logs.imag)).exp()
