"""Parameters of a movie from its moments, and intervals of quantities derived from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, final

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares
from scipy.special import stdtrit

from decode.estimation.frames import Estimate
from decode.estimation.model import Model, Parameters
from decode.estimation.moments import OFFSETS, Moments, MomentVector

__all__ = ["Fit", "bounded_interval"]

Array = npt.NDArray[np.float64]

OFFSETS_WORTH = 10
"""number of independent moments that the strongly correlated covariances at all offsets count
for"""
SLOPE_STEP = 1e-3
"""step of the optimizer's finite differences, over the prior standard deviation of a parameter"""
ERROR_STEP = 1e-4
"""step of the finite differences that propagate errors, in the same unit"""


@final
@dataclass(frozen=True, kw_only=True)
class Fit:
    """The parameters that fit the moments best."""

    vector: Array
    """(parameter,) as of `Parameters.to_vector`, with depth or without"""
    covariance: Array
    """(parameter, parameter) covariance of its errors"""
    misfit: float
    """root mean square of the residual moments over their standard errors"""
    doubt: Array
    """(parameter,) prior standard deviations"""
    freedom: int
    """degrees of freedom of the covariance, which is estimated from a few chunks of frames"""

    @property
    def parameters(self) -> Parameters:
        return Parameters.from_vector(self.vector)

    @classmethod
    def of(cls, moments: Moments, model: Model) -> Self:
        """Fit by weighted least squares.

        Moments are weighted by their variances alone: twenty or so chunks of frames do not
            determine the correlations of two hundred moments, and weights from these doubled the
            spread of the estimates in simulations, and understated it.
        """
        measured, errors = moments.values.flat(), moments.errors
        discount = math.sqrt(OFFSETS_WORTH / len(OFFSETS))
        weight = MomentVector(
            brightness=1 / errors.brightness,
            touching=1 / errors.touching,
            offsets=1 / errors.offsets * discount,
        ).flat()

        def missed(vector: Array) -> Array:
            return model.predict(Parameters.from_vector(vector)).flat() - measured

        def residuals(vector: Array) -> Array:
            prior = (vector - model.start) / model.doubt
            return np.concatenate([missed(vector) * weight, prior])

        def slopes(vector: Array) -> Array:
            here = residuals(vector)
            forward = vector + SLOPE_STEP * model.doubt < model.high
            steps = np.where(forward, SLOPE_STEP, -SLOPE_STEP) * model.doubt
            columns = [(residuals(vector + step) - here) / step.sum() for step in np.diag(steps)]
            return np.stack(columns, 1)

        found: Array = least_squares(
            residuals,
            model.start,
            slopes,
            bounds=(model.low, model.high),
            x_scale=model.doubt,
            ftol=1e-5,
            xtol=1e-5,
        ).x
        slope = slopes(found)
        gain = np.linalg.solve(slope.T @ slope, slope.T)
        # the errors' own covariance, correlations included, and not the one that the fit was
        # weighted by (Hansen, Econometrica 50, 1982)
        spread = np.eye(len(slope))
        spread[: len(weight), : len(weight)] = moments.covariance * np.outer(weight, weight)
        return cls(
            vector=found,
            covariance=gain @ spread @ gain.T,
            misfit=float(np.sqrt(np.mean((missed(found) / errors.flat()) ** 2))),
            doubt=model.doubt,
            freedom=moments.chunks - 1,
        )

    def estimate(self, quantity: Callable[[Parameters], float], n: int) -> Estimate:
        """A function of the parameters; its interval is that of their errors, to first order."""

        def at(vector: Array) -> float:
            return quantity(Parameters.from_vector(vector))

        value = at(self.vector)
        steps = np.diag(ERROR_STEP * self.doubt)
        slope = np.array([(at(self.vector + step) - value) / step.sum() for step in steps])
        variance = max(0.0, slope @ self.covariance @ slope)
        margin = float(stdtrit(self.freedom, 0.975)) * math.sqrt(variance)
        return Estimate(value, value - margin, value + margin, n)

    def positive(
        self,
        quantity: Callable[[Parameters], float],
        n: int,
        *,
        model_error: float = 0.0,
    ) -> Estimate:
        """A positive function of the parameters; its interval is that of its logarithm.

        Args:
            quantity: function of the parameters.
            n: number of molecules or pixels it rests on.
            model_error: relative standard deviation that the moments do not show.
        """
        log = self.estimate(lambda parameters: math.log(quantity(parameters)), n)
        margin = math.hypot(log.high - log.value, 1.96 * model_error)
        ends = (log.value, log.value - margin, log.value + margin)
        value, low, high = (math.exp(end) for end in ends)
        return Estimate(value, low, high, n)

    def bounded(
        self,
        quantity: Callable[[Parameters], float],
        n: int,
        *,
        model_error: float,
        bounds: tuple[float, float],
    ) -> Estimate:
        """A bounded function of the parameters; its interval lies within the bounds.

        Args:
            quantity: function of the parameters.
            n: number of molecules or pixels it rests on.
            model_error: standard deviation that the moments do not show.
            bounds: lowest and highest possible value.
        """
        free = self.estimate(quantity, n)
        error = math.hypot((free.high - free.value) / 1.96, model_error)
        return Estimate(*bounded_interval(free.value, error, bounds), n)


def bounded_interval(
    value: float,
    error: float,
    bounds: tuple[float, float],
) -> tuple[float, float, float]:
    """Value and 95 % interval of a bounded quantity, by a truncated Gaussian.

    Mere clipping would give an estimate well outside an interval of no width.
    """
    from scipy.stats import truncnorm  # its import takes longer than that of all others here

    least, most = bounds
    cuts = (least - value) / error, (most - value) / error
    low, high = truncnorm.ppf([0.025, 0.975], *cuts, value, error)
    ends = (value, min(low, value - 1.96 * error), max(high, value + 1.96 * error))
    middle, low, high = (min(max(float(end), least), most) for end in ends)
    return middle, low, high
