"""Trend: change over a movie of what its molecules have in common, beyond chance."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor

__all__ = ["MEDIAN_DEVIATION", "spread", "trend"]

SAME_PX, SAME_FRAMES = 1.0, 5.0
"""distance, and frames apart, up to which two molecules may be the same one"""
FEWEST = 12
"""fewest molecules, each in some frames, from which a change is estimated"""
CHANCE = 3e-4
"""probability of a change that counts as chance"""
OUTLIER = 4.0
"""standard deviations from the median to which values are clipped"""
MEDIAN_DEVIATION = 0.674
"""median absolute deviation of a normal distribution over its standard deviation"""


def trend(values: Tensor, variance: Tensor, frame: Tensor, place: Tensor) -> float:
    """Largest less smallest value of a parabola in time, moved towards 0 by what chance explains;
    NaN where there are too few molecules.

    Values of one molecule in successive frames go together, so the errors of the parabola are those
    of a jackknife over molecules (MacKinnon and White, J. Econometrics 29, 305, 1985), which few of
    them make larger rather than smaller.

    Args:
        values, variance: (n,) values, and the variances of their noise.
        frame, place: (n,) frames, (n, 2) places in the frame, pixels.
    """
    if not len(values):
        return math.nan
    which = _molecules(frame, place)
    n = int(which.max()) + 1
    if n < FEWEST:
        return math.nan
    middle = values.median()
    far = OUTLIER * (values - middle).abs().median() / MEDIAN_DEVIATION
    values = (middle + (values - middle).clamp(-far, far)).double()
    time = (frame - frame.min()).double() / max(1, int(frame.max() - frame.min()))
    powers = torch.stack([torch.ones_like(time), time, time.square()], 1)
    weighted = powers / (variance + spread(values, variance) ** 2).clamp_min(1e-9)[:, None]
    each = weighted[:, :, None] * powers[:, None]
    normals = powers.new_zeros(n, 3, 3).index_add(0, which, each)
    sums = powers.new_zeros(n, 3).index_add(0, which, weighted * values[:, None])
    normal, total = normals.sum(0), sums.sum(0)
    parabola = torch.linalg.pinv(normal, hermitian=True) @ total
    without = torch.linalg.pinv(normal - normals, hermitian=True) @ (total - sums)[:, :, None]
    apart = without[:, :, 0] - parabola
    covariance = apart.mT @ apart * (n - 1) / n
    bend, error = parabola[1:], covariance[1:, 1:]
    ratio = float(bend @ torch.linalg.pinv(error, hermitian=True) @ bend) / 2
    # the quantile of Fisher's F with 2 and n - 3 degrees of freedom
    chance = (n - 3) / 2 * (CHANCE ** (-2 / (n - 3)) - 1)
    curve = powers @ parabola
    return float(curve.max() - curve.min()) * math.sqrt(max(0.0, 1 - chance / max(ratio, 1e-9)))


def spread(values: Tensor, noise: Tensor) -> float:
    """Robust standard deviation of values beyond their noise: half of them lie within 0.674
    standard deviations of the median.

    Args:
        values, noise: (n,) values, and the variances of their noise.
    """
    far = (values - values.median()).square()
    known = noise <= noise.median() * 2
    beyond = float(far[known].median()) / MEDIAN_DEVIATION**2 - float(noise[known].median())
    return math.sqrt(max(0.0, beyond))


def _molecules(frame: Tensor, place: Tensor) -> Tensor:
    """(n,) number of the molecule that each row is, by (n,) frames and (n, 2) places, pixels."""
    at = np.column_stack([place.numpy(), frame.numpy() * (SAME_PX / SAME_FRAMES)])
    pairs = cKDTree(at).query_pairs(SAME_PX, output_type="ndarray")
    graph = coo_array((np.ones(len(pairs)), tuple(pairs.T)), shape=(len(at), len(at)))
    return torch.from_numpy(connected_components(graph, directed=False)[1]).long()
