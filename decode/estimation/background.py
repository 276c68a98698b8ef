"""How the background of a movie varies over the field, and drifts in time."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from decode.estimation.frames import Estimate
from decode.estimation.model import Model, Parameters
from decode.estimation.moments import LightParts, Moments, by_brightness

__all__ = ["background_contrast", "background_drift"]

Array = npt.NDArray[np.float64]

PASSED = 0.2
"""share of the unevenness of the molecules' light that may count as background; measured on
simulated movies"""
CONTRAST_ERROR = 0.25
"""relative error of the background's contrast over simulated movies, as cells do not resolve
smaller structures"""


def background_contrast(moments: Moments, model: Model, parameters: Parameters) -> Estimate:
    """Standard deviation of the logarithm of the background over the field."""
    background, variance = _backgrounds(moments.cells, model, parameters)
    lit = background > 0
    light, background, variance = moments.cells.values[lit, 0], background[lit], variance[lit]
    square = np.log(background).var(ddof=1) - variance.mean()
    scatter = np.mean(2 * variance**2 + 4 * variance * max(square, 0.0))
    margin = 1.96 * math.sqrt(scatter / len(variance))
    # where molecules lie unevenly, faint edges of their light pass for background
    unevenness = float((light - background).std()) / float(background.mean())
    passed = (PASSED * unevenness) ** 2
    squares = (square - margin - passed, square, square + margin)
    low, middle, high = (math.sqrt(max(0.0, s)) for s in squares)
    return Estimate(middle, low * (1 - CONTRAST_ERROR), high * (1 + CONTRAST_ERROR), moments.n)


def background_drift(moments: Moments, model: Model, parameters: Parameters) -> Estimate:
    """Relative change of the background from frame to frame."""
    background, variance = _backgrounds(moments.runs, model, parameters)
    off = moments.times - moments.times.mean()
    slope = float(off @ np.log(background.clip(1e-3)) / (off @ off))
    margin = 1.96 * math.sqrt(off**2 @ variance) / float(off @ off)
    return Estimate(slope, slope - margin, slope + margin, moments.n)


def _backgrounds(light: LightParts, model: Model, parameters: Parameters) -> tuple[Array, Array]:
    """(n,) background in photons, and its relative variance.

    Given the contribution of one molecule, mean light and log transform of a cell or a run are
    linear in background and density, which weighted least squares solve for.
    """
    steady = np.array([1.0, *model.rate])
    design = np.stack([steady, model.pixel_um2 * model.light(parameters)], 1)
    # as a matrix that is applied from the left
    to_parts = by_brightness(np.eye(len(steady)), model.rate).T
    errors = to_parts @ light.covariance @ to_parts.T
    weight = 1 / np.einsum("nii->ni", errors).clip(1e-12)
    columns = to_parts @ design
    weighted = columns.T * weight[:, None, :]
    gain = (np.linalg.inv(weighted @ columns) @ weighted)[:, 0]
    value = np.einsum("ni,ni->n", gain, light.values @ to_parts.T)
    variance = np.einsum("ni,nij,nj->n", gain, errors, gain)
    return value, variance / value.clip(1e-3) ** 2
