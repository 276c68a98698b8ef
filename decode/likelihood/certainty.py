"""Certainty: what fits among neighbours state, against simulations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from torch import Tensor

from decode.likelihood.polish import means_of

__all__ = ["DOUBTS", "Certainty"]

COEFFICIENTS = {
    "constant": (-0.023, 0.221, 0.232, 0.454, 0.378, 0.406, 0.627),
    "near": (0.139, -1.028, -0.982, -0.700, -1.523, -0.986, -0.378),
    "crowd": (-0.138, 0.416, 0.424, 0.662, 0.611, 0.546, 0.453),
    "near, of the search": (0.085, 1.130, 0.728, 0.586, 2.086, 1.141, 0.990),
    "near, network over fit": (-0.043, 0.557, 0.632, 0.176, 1.182, 0.817, 0.346),
    "near, brightness of the neighbour": (0.054, 0.058, 0.077, -0.023, 0.353, -0.145, 0.069),
    "deviance": (-0.070, 1.037, 1.220, 0.805, 1.028, 1.563, 1.086),
    "deviance beyond noise": (0.055, -0.904, -1.031, -0.565, -0.657, -1.007, -0.825),
    "width": (-0.102, 0.181, 0.155, 0.269, 0.258, 0.170, 0.331),
    "signal": (0.021, -0.076, -0.071, 0.240, -0.149, -0.159, 0.205),
    "crowd, signal": (0.032, -0.087, -0.033, 0.252, 0.108, 0.205, 0.315),
    "brightness": (-0.021, 0.017, 0.043, 0.032, 0.092, 0.109, 0.041),
    "crowd, brightness": (-0.150, 0.164, 0.053, 0.071, -0.019, -0.115, -0.112),
}
"""by doubt, those of the logarithms of a factor of photons, of the half-widths of the central 68 %
intervals of x and y, z, and photons over the standard deviations of the fit, and of those of 95 %
over 1.96 of these (`benchmarks/proposals.py`)"""
DOUBTS = tuple(COEFFICIENTS)
NORMAL_95 = 1.959963984540054
"""half-width of the central 95 % interval of a standard normal distribution"""
LEAST, LARGEST = math.log(0.5), math.log(8.0)
"""of the logarithm of a factor"""


@final
@dataclass(frozen=True, kw_only=True)
class Certainty:
    """Corrections of n fits, measured on simulated movies.

    A fit states the precision of its light.  Where neighbours are missed, or two molecules pass for
    one, it errs by more, with heavy tails: photons are corrected by a factor, and the intervals
    that hold 68 and 95 % of the errors have a factor each.  The logarithms of the factors are
    linear in what makes a fit doubtful, by Poisson and quantile regressions as those of
    `decode.network.recalibration`.

    Example:
        >>> import torch
        >>> doubts = torch.zeros(2, len(DOUBTS), dtype=torch.float64)
        >>> Certainty.of(doubts, torch.tensor([0, 1])).half_68.shape
        torch.Size([2, 4])
    """

    light: Tensor
    """(n,) factor of the photons"""
    half_68: Tensor
    """(n, 4) half-widths of 68 % intervals over sigma; x, y, z, photons"""
    half_95: Tensor
    """(n, 4) half-widths of 95 % intervals over sigma"""

    @staticmethod
    def of(doubts: Tensor, track: Tensor) -> Certainty:
        """From (n, k) `DOUBTS`; rows of one (n,) track share those of their position."""
        weights = doubts.new_tensor(list(COEFFICIENTS.values()))
        logs = (doubts @ weights).clamp(LEAST, LARGEST)
        place = [1, 2, 4, 5]
        logs[:, place] = means_of(track, logs[:, place])
        factors = logs.exp()
        return Certainty(
            light=factors[:, 0],
            half_68=factors[:, [1, 1, 2, 3]],
            half_95=NORMAL_95 * factors[:, [4, 4, 5, 6]],
        )
