"""Kinetics of blinking: rates by which molecules switch off, return and bleach."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from decode.postprocess.link.sightings import Floats

__all__ = ["Kinetics", "kinetics_of_links", "kinetics_of_pairs"]

LOST = 0.01
"""share of molecules that may be parted by a dark time longer than the gap that is bridged"""
WEAK = 0.5
"""events by which the prior keeps probabilities away from 0 and 1"""


@final
@dataclass(frozen=True, kw_only=True)
class Kinetics:
    """A molecule is on, dark or bleached: a Markov chain in steps of a frame.

    From on it leaves with rate `k_off` to dark and `k_bleach` to bleached; from dark it returns
    with rate `k_on`.  A frame in which a molecule was missed counts as dark; dark times much longer
    than those that are looked at count as bleached.

    Example:
        >>> kinetics = Kinetics(k_on=0.7, k_off=0.1, k_bleach=0.2)
        >>> kinetics.gaps(3).round(3).tolist()
        [0.741, 0.043, 0.022]
        >>> kinetics.enough
        6
    """

    k_on: float
    """from dark to on, per frame"""
    k_off: float
    """from on to dark, per frame"""
    k_bleach: float
    """from on to bleached, per frame"""

    @property
    def leaves(self) -> float:
        """Probability that a molecule that is on is not in the next frame."""
        return -math.expm1(-(self.k_off + self.k_bleach))

    @property
    def returns(self) -> float:
        """Probability that a molecule that left returns."""
        return self.k_off / (self.k_off + self.k_bleach)

    @property
    def wakes(self) -> float:
        """Probability that a dark molecule is on in the next frame."""
        return -math.expm1(-self.k_on)

    @property
    def on_time_frames(self) -> float:
        """Mean time that a molecule stays on."""
        return 1 / (self.k_off + self.k_bleach)

    def gaps(self, n: int) -> Floats:
        """(n,) probability that the next frame in which a molecule is on comes after 0, 1, ... dark
        ones: 1 - q for none, q r d (1 - d)^(g - 1) for g (q leaves, r returns, d wakes)."""
        dark = np.arange(1, max(n, 1))
        back = self.leaves * self.returns * self.wakes * (1 - self.wakes) ** (dark - 1)
        return np.concatenate([[1 - self.leaves], back])[:n]

    def seen_again(self, n: int) -> Floats:
        """(n,) probability that a molecule that is on is on after 1, 2, ... n frames."""
        on, dark, values = 1.0, 0.0, []
        for _ in range(n):
            on, dark = (
                on * (1 - self.leaves) + dark * self.wakes,
                on * self.leaves * self.returns + dark * (1 - self.wakes),
            )
            values.append(on)
        return np.array(values)

    @property
    def enough(self) -> int:
        """Gap that hardly a molecule exceeds: it parts at most `LOST` of them."""
        per_molecule = self.k_off / max(self.k_bleach, 1e-9)
        if per_molecule <= LOST:
            return 0
        # of those that are dark, exp(-k_on g) are dark for longer than g
        return max(1, math.ceil(math.log(per_molecule / LOST) / self.k_on))


def kinetics_of_pairs(same: Floats, rows: Floats) -> Kinetics:
    """Rates of maximum likelihood, from how often molecules are seen again; no links are needed.

    Of `rows` localizations that have a frame some lag later, a Poisson number `same` shows its
    molecule there again, with the mean rows c(lag) (`Kinetics.seen_again`).  Pairs of one molecule
    are not independent: this is a composite likelihood (Lindsay, Contemp. Math. 80, 221, 1988),
    whose maximum is consistent.

    Args:
        same: (lags,) expected number of pairs that show one molecule, for lags 1, 2, ...
        rows: (lags,) localizations that have such a frame.

    Example:
        >>> truth = Kinetics(k_on=0.7, k_off=0.1, k_bleach=0.2)
        >>> rows = np.full(20, 1e4)
        >>> found = kinetics_of_pairs(rows * truth.seen_again(20), rows)
        >>> round(found.k_on, 2), round(found.k_off, 2), round(found.k_bleach, 2)
        (0.7, 0.1, 0.2)
    """

    def log_prob(kinetics: Kinetics) -> float:
        mean = kinetics.seen_again(len(same))
        return float((same * np.log(mean) - rows * mean).sum())

    return _likeliest(log_prob, again=float(same[0] / max(rows[0], 1.0)))


def kinetics_of_links(gaps: Floats, ends: Floats) -> Kinetics:
    """Rates of maximum likelihood, from the dark times between links.

    After a localization, its molecule comes again after g dark frames with the probability p(g) of
    `Kinetics.gaps`, or, with what is left of 1, not within the frames that were looked at.

    Args:
        gaps: (n,) number of links over 0, 1, ... dark frames.
        ends: (n + 1,) number of localizations without a link of which 0, 1, ... n frames after them
            were looked at.

    Example:
        >>> truth = Kinetics(k_on=0.7, k_off=0.1, k_bleach=0.2)
        >>> gaps = 1e4 * truth.gaps(4)
        >>> found = kinetics_of_links(gaps, np.array([0, 0, 0, 0, 1e4 - gaps.sum()]))
        >>> round(found.k_on, 2), round(found.k_off, 2), round(found.k_bleach, 2)
        (0.7, 0.1, 0.2)
    """

    def log_prob(kinetics: Kinetics) -> float:
        p = kinetics.gaps(len(gaps))
        none = 1 - np.concatenate([[0.0], np.cumsum(p)])
        return float((gaps * np.log(p + 1e-300)).sum() + (ends * np.log(none + 1e-300)).sum())

    return _likeliest(log_prob, again=float(gaps[0] / max(gaps.sum() + ends.sum(), 1.0)))


def _likeliest(log_prob: Callable[[Kinetics], float], *, again: float) -> Kinetics:
    """The kinetics of the largest log probability, with a weak prior on all probabilities.

    Args:
        again: share of the molecules that are on in the next frame, to start from.
    """

    def kinetics(unknown: Floats) -> Kinetics:
        leaves, returns, wakes = expit(np.clip(unknown, -12, 12)).tolist()
        leave = -math.log1p(-leaves)
        return Kinetics(
            k_on=-math.log1p(-wakes), k_off=returns * leave, k_bleach=(1 - returns) * leave
        )

    def lost(unknown: Floats) -> float:
        bounded = np.clip(unknown, -12, 12)
        prior = WEAK * (np.log(expit(bounded)) + np.log(expit(-bounded))).sum()
        return -log_prob(kinetics(unknown)) - float(prior)

    leaves = logit(np.clip(1 - again, 0.02, 0.98))
    starts = [np.array([leaves, logit(0.3), logit(wakes)]) for wakes in (0.8, 0.4, 0.1)]
    fits = [minimize(lost, start, method="Nelder-Mead") for start in starts]
    return kinetics(min(fits, key=lambda fit: float(fit.fun)).x)
