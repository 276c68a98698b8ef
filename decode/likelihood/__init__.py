"""Likelihood of the frames: molecules fitted, a network's refined, and others proposed."""

from __future__ import annotations

from decode.likelihood.counts import Numbers, count_posterior
from decode.likelihood.importance import Prior, exact_posterior
from decode.likelihood.pixels import PixelLikelihood, pixels_of
from decode.likelihood.polish import fit_jointly, polish
from decode.likelihood.proposals import decide
from decode.likelihood.single import Fit, fit_emitters, scaled_deviance

__all__ = [
    "Fit",
    "Numbers",
    "PixelLikelihood",
    "Prior",
    "count_posterior",
    "decide",
    "exact_posterior",
    "fit_emitters",
    "fit_jointly",
    "pixels_of",
    "polish",
    "scaled_deviance",
]
