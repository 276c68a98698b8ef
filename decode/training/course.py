"""Course: the learning rate of a training, its end, and its test of divergence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from decode.config import Optimization

__all__ = ["MAX_EFFICIENCY_DROP", "Course", "TrainingError"]

MAX_EFFICIENCY_DROP = 10.0
"""points of efficiency below the best validation that count as divergence; none loses as much by
chance"""
MIN_EFFICIENCY_GAIN = 0.2
"""points by which efficiency must rise over `patience` validations, or it has converged"""
MIN_CALIBRATION_GAIN = 0.02
"""decrease of the log ratio of errors and sigmas over `patience` validations below which it has
converged"""
N_REFERENCE_LOSSES = 3
"""reports at the beginning whose losses are the reference for divergence"""
MAX_RECOVERIES = 3
"""most times that a diverging training restarts from its last good state"""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to change."""


@final
@dataclass(kw_only=True)
class Course:
    """The schedule of a training, as it adapts to losses and validations."""

    plan: Optimization
    end: float = 1.0
    """share of the budget after which the training ends"""
    damping: float = 1.0
    """factor of the learning rate; each recovery halves it"""
    recovered: int = 0
    """recoveries from divergence"""
    converged: bool = False
    """validation had stopped improving"""
    first_losses: list[float] = field(default_factory=list)
    """typical losses of the first reports, the reference for divergence"""

    def state(self) -> dict[str, Any]:
        """All except the plan, as plain values for a checkpoint."""
        names = ("end", "damping", "recovered", "converged", "first_losses")
        return {name: getattr(self, name) for name in names}

    def rate(self, at: float, step: int) -> float:
        """The learning rate: a linear rise, a plateau, and a linear fall to 0 at the end.

        Args:
            at: share of the budget that is spent.
            step: number of steps done.
        """
        warm = min(1.0, (step + 1) / max(1, self.plan.warm_up_steps))
        left = max(0.0, (self.end - at) / (self.plan.decay_share * self.end))
        return self.plan.learning_rate * self.damping * warm * min(1.0, left)

    def end_after(self, at: float, history: Sequence[Mapping[str, float]]) -> float:
        """The end of the training, which moves forward once validations no longer improve.

        Args:
            at: share of the budget that is spent.
            history: figures of `Validation`, in order.

        Returns:
            The end as before, or, at convergence, the end of a fall that begins now.
        """
        patience = self.plan.patience
        falling = at > self.end * (1 - self.plan.decay_share)
        if not patience or falling or len(history) <= patience:
            return self.end
        earlier, late = history[:-patience], history[-patience:]
        gain = _best(late, _efficiency) - _best(earlier, _efficiency)
        calibration_gain = _best(late, _calibration) - _best(earlier, _calibration)
        if gain > MIN_EFFICIENCY_GAIN or calibration_gain > MIN_CALIBRATION_GAIN:
            return self.end
        self.converged = True
        return min(self.end, at / (1 - self.plan.decay_share))

    def diverged(self, loss: float) -> bool:
        """Whether the typical loss since the last report is far beyond the first reports'."""
        if not math.isfinite(loss):
            return True
        if len(self.first_losses) < N_REFERENCE_LOSSES:
            self.first_losses.append(loss)
            return False
        return loss >= max(abs(v) for v in self.first_losses) * 3 + 10

    @staticmethod
    def lost_efficiency(
        validation: Mapping[str, float], history: Sequence[Mapping[str, float]]
    ) -> bool:
        """Whether a validation is far below the best one before: divergence that a loss can hide.

        A model that finds nothing has an efficiency of 0, and one that begins to find molecules may
            have less: only a model far above 0 can lose it.
        """
        best = _best(history, _efficiency)
        kept = validation["efficiency"] > best - MAX_EFFICIENCY_DROP  # False of NaN
        return best > MAX_EFFICIENCY_DROP and not kept

    def recover(self, step: int) -> None:
        """Halve the learning rate from now on.

        Raises:
            TrainingError: after `MAX_RECOVERIES`.
        """
        if self.recovered == MAX_RECOVERIES:
            raise TrainingError(
                f"the training diverged for the fourth time (step {step}), each time from its last "
                "good state with half the learning rate; lower training.learning_rate, or check "
                "that the ranges of scene, psf and camera are sane; the last checkpoint is kept"
            )
        self.recovered += 1
        self.damping /= 2


def _best(
    rows: Sequence[Mapping[str, float]], figure: Callable[[Mapping[str, float]], float]
) -> float:
    """The largest finite value of a figure; minus infinity if there is none."""
    values = [figure(row) for row in rows]
    return max((value for value in values if math.isfinite(value)), default=-math.inf)


def _efficiency(row: Mapping[str, float]) -> float:
    return row["efficiency"]


def _calibration(row: Mapping[str, float]) -> float:
    """How well stated sigmas fit the errors: 0 at best."""
    return -abs(math.log(max(row["isolated_error_over_sigma"], 1e-3)))
