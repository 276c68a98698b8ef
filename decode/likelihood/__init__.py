"""Likelihood of what a camera saw: emitters fitted to it one by one, and a network's molecules refined by it."""

from __future__ import annotations

from decode.likelihood.polish import fit_jointly, polish
from decode.likelihood.single import Fit, fit_emitters, scaled_deviance

__all__ = ["Fit", "fit_emitters", "fit_jointly", "polish", "scaled_deviance"]
