"""Likelihood of the frames: fits of single emitters, and refinement of a network's molecules."""

from __future__ import annotations

from decode.likelihood.polish import fit_jointly, polish
from decode.likelihood.single import Fit, fit_emitters, scaled_deviance

__all__ = ["Fit", "fit_emitters", "fit_jointly", "polish", "scaled_deviance"]
