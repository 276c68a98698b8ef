"""Gaussians: quick work, without the wobble of the PSF."""

from __future__ import annotations

from typing import final

from decode.calibrate.beads import BeadSet
from decode.calibrate.families.family import Family, FamilyFit
from decode.calibrate.gaussian import fit_gaussian
from decode.calibrate.spline import BeadFit
from decode.progress import Steps

__all__ = ["GaussianFamily"]


@final
class GaussianFamily(Family):
    """Gaussians whose widths follow a defocus curve."""

    takes_positions = False

    def fit(self, beads: BeadSet) -> Steps[FamilyFit]:
        fit = yield from self._fitted(beads)
        return FamilyFit(fit=fit, uniform=fit, without=lambda i: self._fitted(beads.without(i)))

    def work(self, beads: BeadSet) -> tuple[float, float]:
        return 1, 1

    def _fitted(self, beads: BeadSet) -> Steps[BeadFit]:
        pixel = beads.pixel_size_nm
        return fit_gaussian.steps(beads.crops, beads.z_nm, beads.noise, pixel, beads.xy)
