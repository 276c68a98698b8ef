"""Splines: any PSF; beads decide how smooth it is and whether it changes over the field."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from decode.calibrate.bead_fit import BeadFit
from decode.calibrate.beads import BeadSet
from decode.calibrate.families.family import Family, FamilyFit
from decode.calibrate.field import fit_field
from decode.calibrate.field_trial import BEADS_PER_TERM, PLANES, FieldTrial, try_field
from decode.calibrate.spline import (
    DEPTH_SMOOTHNESS,
    SMOOTHNESS,
    fit_spline,
    held_out_deviance,
)
from decode.optics.field import FieldSplinePSF
from decode.optics.spline import SplinePSF
from decode.progress import Steps, part, shares

__all__ = ["SplineFamily"]

Splines: TypeAlias = SplinePSF | FieldSplinePSF

ROUNDS = 4
"""turns of a fit without a start"""
PLANES_FOR_SMOOTHNESS = 50
"""number of planes that suffice to choose the smoothness, as the distance of knots does not depend
on it"""
MIDDLE_PLANES = 30
"""number of planes to either side of the middle by which the smoothness along z is chosen, which
takes neighbours"""


@final
@dataclass(frozen=True, kw_only=True)
class _Smoothness:
    """The smoothness across and along z, and the deviance of held-out beads for each candidate."""

    across: float = 0.2
    along: float = DEPTH_SMOOTHNESS[1]
    tried_across: dict[float, float]
    tried_along: dict[float, float]


@final
class SplineFamily(Family[Splines]):
    """Cubic splines, uniform or changing over the field."""

    def fit(self, beads: BeadSet) -> Steps[FamilyFit[Splines]]:
        if len(beads) == 1:
            only = _Smoothness(tried_across={}, tried_along={})
            fit = yield from part(_fitted(beads, only), 0.0, 1.0, "fitting the PSF")
            return FamilyFit(
                fit=fit,
                uniform=fit,
                without=lambda i: _fitted(beads.without(i), only),
            )
        choosing, fitting, varying = shares(*_work(beads))
        smooth = yield from part(_chosen(beads), *choosing)
        uniform = yield from part(_fitted(beads, smooth), *fitting, "fitting the PSF")
        changing = try_field.steps(
            uniform, beads, smoothness=smooth.across, depth_smoothness=smooth.along
        )
        message = "trying whether the PSF changes over the field"
        trial = yield from part(changing, *varying, message)
        return FamilyFit(
            fit=trial.fit,
            uniform=uniform,
            without=lambda i: _without(beads, i, smooth, trial),
            smoothness=smooth.tried_across,
            depth_smoothness=smooth.tried_along,
            notes=(trial.note,),
        )

    def work(self, beads: BeadSet) -> tuple[float, float]:
        _, fitting, _ = _work(beads)
        return sum(_work(beads)), 1.5 * fitting

    def moved(
        self, fit: BeadFit[Splines], *, places_nm: Tensor, offsets_nm: Tensor
    ) -> BeadFit[Splines]:
        psf = fit.psf
        if isinstance(psf, FieldSplinePSF):
            return _moved_over_field(fit, psf, places_nm=places_nm, offsets_nm=offsets_nm)
        offset = offsets_nm.mean(0)
        return replace(fit, psf=_shifted(psf, offset), xyz=fit.xyz - pad(offset, (0, 1)))


def _work(beads: BeadSet) -> tuple[float, float, float]:
    """Turns times images: of the choice of the smoothness, of the fit, and of the trial over the
    field."""
    n, planes = len(beads), len(beads.z_nm)
    tried = len(SMOOTHNESS) * ROUNDS * n / 2
    choosing = tried * (len(_thinned(planes)) + len(_middle(planes)))
    varying = 60 * n * min(PLANES, planes) * (n >= 3 * BEADS_PER_TERM)
    return choosing, ROUNDS * n * planes, varying


def _thinned(planes: int) -> range:
    return range(0, planes, max(1, planes // PLANES_FOR_SMOOTHNESS))


def _middle(planes: int) -> range:
    first = max(0, planes // 2 - MIDDLE_PLANES)
    return range(first, min(planes, planes // 2 + MIDDLE_PLANES + 1))


def _chosen(beads: BeadSet) -> Steps[_Smoothness]:
    """The smoothness that predicts held-out beads best: first across, then along z."""
    smooth = _Smoothness(tried_across={}, tried_along={})
    across = [(s, smooth.along) for s in sorted(SMOOTHNESS, reverse=True)]
    trial = _deviances(beads.at_planes(_thinned(len(beads.z_nm))), across)
    lost = yield from part(trial, 0.0, 0.5, "choosing how smooth the PSF is")
    tried_across = {s: deviance for (s, _), deviance in zip(across, lost, strict=True)}
    best = min(tried_across, key=lambda s: tried_across[s])

    along = [(best, s) for s in sorted(DEPTH_SMOOTHNESS)]
    trial = _deviances(beads.at_planes(_middle(len(beads.z_nm))), along)
    lost = yield from part(trial, 0.5, 1.0, "choosing how smooth the PSF is along z")
    tried_along = {s: deviance for (_, s), deviance in zip(along, lost, strict=True)}
    return _Smoothness(
        across=best,
        along=min(tried_along, key=lambda s: tried_along[s]),
        tried_across=tried_across,
        tried_along=tried_along,
    )


def _deviances(beads: BeadSet, tried: list[tuple[float, float]]) -> Steps[list[float]]:
    return held_out_deviance.steps(beads, tried)


def _fitted(beads: BeadSet, smooth: _Smoothness) -> Steps[BeadFit[SplinePSF]]:
    """A fit without a start, as a fit of all beads would carry over noise of the held-out one."""
    return fit_spline.steps(
        beads, smoothness=smooth.across, depth_smoothness=smooth.along, n_rounds=ROUNDS
    )


def _without(
    beads: BeadSet, i: int, smooth: _Smoothness, trial: FieldTrial
) -> Steps[BeadFit[SplinePSF]]:
    """The PSF at the position of the i-th bead, fitted to all others."""
    others = beads.without(i)
    if trial.terms == 1:
        return (yield from _fitted(others, smooth))
    uniform = yield from part(_fitted(others, smooth), 0.0, 0.5)
    over_field = fit_field.steps(
        uniform,
        others,
        terms=trial.terms,
        size=trial.size,
        smoothness=smooth.across,
        depth_smoothness=smooth.along,
        n_rounds=2,
    )
    found = yield from part(over_field, 0.5, 1.0)
    x, y = beads.places_nm[i].tolist()
    return found.with_psf(found.psf.at(x, y))


def _shifted(psf: SplinePSF, offset_nm: Tensor) -> SplinePSF:
    """The same image, attributed to an emitter that lies `offset_nm` (x, y) back."""
    voxels = offset_nm * psf.oversampling / psf.pixel_size_nm
    x, y = (torch.tensor(psf.centre_px) - voxels).tolist()
    return psf.moved((x, y))


def _moved_over_field(
    fit: BeadFit[Splines],
    psf: FieldSplinePSF,
    *,
    places_nm: Tensor,
    offsets_nm: Tensor,
) -> BeadFit[FieldSplinePSF]:
    """The PSF with the offsets as a polynomial of the position."""
    weight = psf.basis(places_nm)
    terms = torch.linalg.lstsq(weight, offsets_nm).solution
    moved = FieldSplinePSF(
        _shifted(psf.middle, terms[0]),
        psf.changes.detach(),
        shifts_nm=psf.shifts_nm.detach() - terms[1:],
        field_nm=psf.field_nm,
    )
    return replace(fit.with_psf(moved), xyz=fit.xyz - pad(weight @ terms, (0, 1)))
