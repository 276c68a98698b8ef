"""Whether the PSF changes over the field, decided by held-out beads where beads cover it."""

from __future__ import annotations

import math
from typing import NamedTuple, final

import torch
from torch import Tensor

from decode.calibrate.bead_fit import BeadFit
from decode.calibrate.beads import BeadSet
from decode.calibrate.field import fit_field
from decode.calibrate.jitter import jitter_of
from decode.calibrate.spline import DEPTH_SMOOTHNESS, fit_spline, place_beads
from decode.optics.field import FieldSplinePSF, polynomials
from decode.optics.spline import SplinePSF
from decode.progress import Progress, Steps, Stepwise, part

__all__ = ["FieldTrial", "try_field", "uncovered"]

Field = tuple[tuple[float, float], tuple[float, float]]

LINEAR, QUADRATIC = 3, 6
"""terms of a polynomial in x and y"""
BEADS_PER_TERM = 3
"""beads per term that are needed to determine the terms with some beads held out"""
LEAST_SPREAD = 0.25
"""least rms distance of the beads from their mean, in the direction of least spread, over half the
field; 0.58 in an evenly filled field"""
SIZES = (1.0, 0.3, 0.1)
"""candidates for the expected change of the coefficients over their size"""
FOLDS = 4
SIGNIFICANT = 2.0
"""standard errors by which held-out beads must be predicted better; one would be chance, as several
sizes are tried"""
PLANES = 25
"""number of planes that suffice to choose a size, as the spline's own are 50 nm apart"""


@final
class FieldTrial(NamedTuple):
    """Whether the PSF changes over the field."""

    fit: BeadFit[SplinePSF] | BeadFit[FieldSplinePSF]
    """fit to all beads, with changes, or else the fit from before"""
    note: str
    """the result in a sentence"""
    terms: int = 1
    """number of terms of the polynomial; 1: the PSF is the same all over"""
    size: float = 0.0
    """expected change of the coefficients over their size"""
    gain: Tensor | None = None
    """(n,) decrease of each bead's deviance by the changes, when held out; None: it was not
    tried"""


def uncovered(places: Tensor, field_nm: Field, terms: int) -> str:
    """Why beads at these places (n, 2) nm do not cover a field; empty if they do."""
    if len(places) < BEADS_PER_TERM * terms:
        return (
            f"{len(places)} beads are too few, record {BEADS_PER_TERM * terms} or more all over "
            "the field"
        )
    design = polynomials(places, field_nm, terms)
    linear, curved = design[:, :LINEAR], design[:, LINEAR:]
    root = math.sqrt(len(places))
    # what remains of X and Y without their mean; of quadratic terms no less must remain
    # by the linear ones
    spread = torch.linalg.svdvals(linear[:, 1:] - linear[:, 1:].mean(0)) / root
    if float(spread.min()) < LEAST_SPREAD:
        return "the beads lie together, or along a line; record some all over the field"
    if terms == QUADRATIC:
        left = curved - linear @ torch.linalg.lstsq(linear, curved).solution
        if float(torch.linalg.svdvals(left).min()) / root < LEAST_SPREAD**2 / 2:
            return "the beads leave parts of the field empty"
    return ""


@Stepwise
def try_field(
    fit: BeadFit[SplinePSF],
    beads: BeadSet,
    *,
    smoothness: float,
    depth_smoothness: float = DEPTH_SMOOTHNESS[1],
) -> Steps[FieldTrial]:
    """Let the PSF change over the field if this predicts held-out beads better.

    Every fourth bead is held out in turn, and compared with the PSF that the others give at its
    position, with changes and without.  The changes are kept if they lower the deviance, on average
    over the beads, by more than twice the standard error of the mean difference.  The PSF stays as
    it is where beads do not cover the field.

    Args:
        fit: to these beads with one PSF for the whole field.
        beads: beads of the fit.
        smoothness, depth_smoothness: as for `fit_spline`.
    """
    same_everywhere = "the PSF is taken to be the same all over the field"
    if reason := uncovered(beads.places_nm, beads.field_nm, LINEAR):
        return FieldTrial(fit, f"{same_everywhere}: {reason}")
    trial = _HeldOut(fit, beads, smoothness=smoothness, depth_smoothness=depth_smoothness)
    yield from part(trial.fit(), 0.0, 0.3)
    same = yield from part(trial.deviance(1, 0.0), 0.3, 0.4)
    linear, size = yield from part(_best_size(trial, same), 0.4, 0.7)
    terms, gain = LINEAR, linear
    if _significant(linear) and not uncovered(beads.places_nm, beads.field_nm, QUADRATIC):
        quadratic = same - (yield from part(trial.deviance(QUADRATIC, size), 0.7, 0.8))
        # a parabola must be better than a line as a line is than nothing
        if _significant(quadratic - linear):
            terms, gain = QUADRATIC, quadratic
    percent = 100 / float(same.mean())
    change = f"{percent * float(gain.mean()):.2g} +- {percent * _standard_error(gain):.1g} %"
    if not _significant(gain):
        note = (
            f"{same_everywhere}: one that changes predicts held-out beads no better (deviance "
            f"lower by {change})"
        )
        return FieldTrial(fit, note, gain=gain)
    whole = fit_field.steps(
        fit,
        beads,
        terms=terms,
        size=size,
        smoothness=smoothness,
        depth_smoothness=depth_smoothness,
        n_rounds=4,
    )
    found = yield from part(whole, 0.8, 1.0)
    order = {LINEAR: "linearly", QUADRATIC: "quadratically"}[terms]
    note = (
        f"the PSF changes {order} over the field, by which the deviance of held-out beads is "
        f"{change} lower"
    )
    return FieldTrial(found, note, terms, size, gain)


def _best_size(trial: _HeldOut, same: Tensor) -> Steps[tuple[Tensor, float]]:
    """Gain (n,) of linear changes, and their expected size, chosen for the largest gain.

    Args:
        trial: gives deviances.
        same: (n,) deviance without changes.
    """
    best: tuple[Tensor, float] | None = None
    for turn, size in enumerate(SIZES):
        deviance = trial.deviance(LINEAR, size)
        gain = same - (yield from part(deviance, turn / len(SIZES), (turn + 1) / len(SIZES)))
        if best is not None and float(gain.mean()) < float(best[0].mean()):
            break  # held nearer to 0 they do still less
        best = gain, size
    assert best is not None
    return best


@final
class _HeldOut:
    """Beads under the PSF of the others: every fourth bead is held out in turn."""

    def __init__(
        self,
        fit: BeadFit[SplinePSF],
        beads: BeadSet,
        *,
        smoothness: float,
        depth_smoothness: float,
    ) -> None:
        n, planes = fit.photons.shape
        self.beads = beads.at_planes(range(0, planes, max(1, planes // PLANES)))
        self.smoothness, self.depth_smoothness = smoothness, depth_smoothness
        self.folds = [torch.arange(n) % FOLDS == fold for fold in range(FOLDS)]
        self.starts: list[BeadFit[SplinePSF]] = []

    def fit(self) -> Steps[None]:
        """Fit one PSF for the whole field to the beads of each turn, as a fit of all beads would
        include those held out."""
        for turn, out in enumerate(self.folds):
            start = fit_spline.steps(
                self.beads[~out],
                smoothness=self.smoothness,
                depth_smoothness=self.depth_smoothness,
                n_rounds=4,
            )
            self.starts.append((yield from part(start, turn / FOLDS, (turn + 1) / FOLDS)))

    def deviance(self, terms: int, size: float) -> Steps[Tensor]:
        """(n,) of each bead when it is held out."""
        deviance = torch.zeros(len(self.beads))
        for turn, (out, start) in enumerate(zip(self.folds, self.starts, strict=True)):
            others = self.beads[~out]
            fit = fit_field.steps(
                start,
                others,
                terms=terms,
                size=size,
                smoothness=self.smoothness,
                depth_smoothness=self.depth_smoothness,
                n_rounds=2,
            )
            found = yield from part(fit, turn / FOLDS, (turn + 0.8) / FOLDS)
            for i in out.nonzero()[:, 0].tolist():
                one = self.beads[[i]]
                x, y = one.places_nm[0].tolist()
                jitter = jitter_of(found, others.stack, one.stack)
                deviance[i] = place_beads(found.psf.at(x, y), one, jitter=jitter).deviance
            yield Progress((turn + 1) / FOLDS)
        return deviance


def _standard_error(gain: Tensor) -> float:
    return float(gain.std()) / math.sqrt(len(gain))


def _significant(gain: Tensor) -> bool:
    return float(gain.mean()) > SIGNIFICANT * _standard_error(gain)
