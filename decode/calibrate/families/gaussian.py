"""Gaussians: fast, but without the wobble of the PSF."""

from __future__ import annotations

from typing import final

from decode.calibrate.bead_fit import BeadFit
from decode.calibrate.beads import BeadSet
from decode.calibrate.families.family import Family, FamilyFit
from decode.calibrate.gaussian import fit_gaussian
from decode.optics.gaussian import GaussianPSF
from decode.progress import Steps

__all__ = ["GaussianFamily"]


@final
class GaussianFamily(Family[GaussianPSF]):
    """Gaussians whose widths follow a defocus curve."""

    takes_positions = False

    def fit(self, beads: BeadSet) -> Steps[FamilyFit[GaussianPSF]]:
        fit = yield from self._fitted(beads)
        return FamilyFit(fit=fit, uniform=fit, without=lambda i: self._fitted(beads.without(i)))

    def work(self, beads: BeadSet) -> tuple[float, float]:
        return 1, 1

    def _fitted(self, beads: BeadSet) -> Steps[BeadFit[GaussianPSF]]:
        return fit_gaussian.steps(beads)
