"""Sentences on what a PSF is good for, what limits it and what would improve it."""

from __future__ import annotations

import math
from collections.abc import Callable

from decode.calibrate.held_out import POOLED_NM, HeldOut
from decode.calibrate.psf import PSFCalibration
from decode.calibrate.report.evidence import DIM_MOLECULE_PHOTONS, Evidence, change_of_light

__all__ = ["counted", "sentences", "verdict"]

FEW_BEADS = 5
DIM_BEAD_PHOTONS = 5000.0
"""photons of a bead in a plane below which a few beads leave percents of noise in the PSF"""
NOTABLE_JITTER_NM = 5.0
"""rms of the stage's jitter from which it is reported"""
FINE_DEPTH_SMOOTHNESS = 0.1
"""smoothness along z from which the PSF follows changes within 300 nm of depth"""
NOTABLE_DEVIANCE = 1.1
"""deviance from which residuals are more than noise"""
NOTABLE_WALK = 0.05
"""lateral displacement of the centroid per depth that is reported, without unit"""
NOTABLE_CHANGE_OF_LIGHT = 0.15
"""relative change of the light from one end of the stack to the other that is reported"""
NOTABLE_SPREAD = 1.3
"""spread of beads over the bound that is reported"""
NOTABLE_STRETCH = 0.1
"""relative difference of second moments between above and below focus that is reported"""


FALLING, RISING = "the falling diagonal (\\)", "the rising diagonal (/)"
DIRECTIONS = (("x", "y"), (FALLING, RISING), ("y", "x"), (RISING, FALLING))
"""directions along which spots are long and short, at 0, 45, 90 and 135 degrees from x to y, which
points down on the screen"""


def verdict(calibration: PSFCalibration) -> tuple[str, ...]:
    """What the calibration is good for, what limits it and what would improve it.

    Returns:
        Sentences; the first states the usable depths, the others the limits, gravest first.
    """
    return sentences(Evidence(calibration))


def sentences(evidence: Evidence) -> tuple[str, ...]:
    """The verdict that the evidence allows."""
    limits = [said for limit in LIMITS if (said := limit(evidence))]
    if not limits:
        limits = ["The beads show no fault of this PSF."]
    notes = [f"{note[0].upper()}{note[1:]}." for note in evidence.calibration.notes]
    return tuple(filter(None, (_range(evidence), *limits, _which_way(evidence), *notes)))


def counted(n: int) -> str:
    """A number of beads in words."""
    return "one bead" if n == 1 else f"{n} beads"


def _range(evidence: Evidence) -> str:
    if evidence.held_out is None:
        return (
            "One bead does not show how good the PSF is, as none is left to test it on: record at "
            f"least {FEW_BEADS}."
        )
    steady = evidence.steady_in_use
    if steady is None:
        return _no_depth(evidence)
    spread_z = steady.spread_nm()[:, 2]
    bias_x, bias_y, bias_z = steady.bias_nm(smooth_nm=POOLED_NM).abs().amax(0).tolist()
    return (
        f"Usable over {evidence.usable}: there a bead that was not fitted is found to "
        f"{float(spread_z.min()):.1f} nm in z at best and {float(spread_z.max()):.1f} nm at worst, "
        f"with a bias of at most {bias_z:.1f} nm in z and {max(bias_x, bias_y):.1f} nm in x and y."
        f"{_wider_without_depth(evidence)}"
    )


def _which_way(evidence: Evidence) -> str:
    """A sentence on the shape of spots above focus, by which users recognize a stack that went
    down."""
    angle, stretch = evidence.stretch()
    if stretch < NOTABLE_STRETCH:
        return ""
    above, below = DIRECTIONS[round(angle / (math.pi / 4)) % 4]
    shape = f"Above focus (positive z) spots stretch along {above}, below along {below}"
    if evidence.calibration.file.z_direction == "stated":
        return f"{shape}, by the direction of the stage that was stated."
    return (
        f"{shape}: from a stage that went down it is the other way round, which no image shows. "
        "State it with --upwards or --downwards."
    )


def _no_depth(evidence: Evidence) -> str:
    lateral = evidence.usable_laterally
    sideways = "neither in x and y" if lateral is None else f"in x and y usable over {lateral}"
    return (
        f"No depth can be measured well with this PSF; {sideways}. Use it for 2D, or add an "
        "astigmatic lens or a phase mask for 3D."
    )


def _wider_without_depth(evidence: Evidence) -> str:
    lateral, usable = evidence.usable_laterally, evidence.usable
    if lateral is None or usable is None or lateral.length <= usable.length + 2 * POOLED_NM:
        return ""
    return f" Without depth, usable over {lateral}."


def _misfit(evidence: Evidence) -> str:
    deviance, misfit = evidence.calibration.deviance, evidence.images.misfit
    if deviance > NOTABLE_DEVIANCE and misfit > 1 + 0.5 * (deviance - 1):
        return _unexplained(evidence, deviance)
    if not 2 - NOTABLE_DEVIANCE <= deviance <= NOTABLE_DEVIANCE:
        more = "more" if deviance > 1 else "less"
        return (
            f"The images hold {more} noise than the camera file says (deviance {deviance:.2f} "
            "instead of 1), which is not due to the PSF: check gain, EM gain and baseline, "
            "then calibrate again."
        )
    if misfit > NOTABLE_DEVIANCE:
        return (
            f"The PSF misses some of the beads' light ({misfit:.2f} times the variance of noise), "
            "which the camera file hides by stating too much noise: check gain and EM gain, then "
            "calibrate again."
        )
    return ""


def _unexplained(evidence: Evidence, deviance: float) -> str:
    advice = "Try the spline model, take out"
    if evidence.psf.free_form:
        advice = "Look at the residuals: take out"
    return (
        f"The PSF does not explain the beads: the residuals have {deviance:.2f} times the variance "
        f"of noise (1 is noise alone). {advice} beads that look different, use smaller beads."
    )


def _few(evidence: Evidence) -> str:
    used, rejected = evidence.n_beads, len(evidence.calibration.rejected)
    if used < FEW_BEADS:
        why = f"; {rejected} more could not be used, see the table" if rejected else ""
        advice = f"Record {2 * FEW_BEADS} or more."
        return f"Only {counted(used)}{why}: their noise stays in the PSF. {advice}"
    if rejected > used:
        return (
            f"{rejected} of {rejected + used} bright spots could not be used (see the table): "
            "dilute the beads, move the field."
        )
    return ""


def _dim(evidence: Evidence) -> str:
    median = float(evidence.images.photons.mean(1).median())
    if median >= DIM_BEAD_PHOTONS:
        return ""
    return (
        f"The beads are dim: {median:.0f} photons a plane, whose noise remains in the "
        "PSF. Expose longer, use more light or brighter beads, "
        f"up to {DIM_BEAD_PHOTONS:.0f} or more without saturation."
    )


def _spread(evidence: Evidence) -> str:
    steady = evidence.steady_in_use
    if steady is None:
        return ""
    ratio = (steady.spread_nm() / steady.rms_bound_nm()).square().mean(0).sqrt()
    worst, axis = max(zip(ratio.tolist(), "xyz", strict=True))
    if worst <= NOTABLE_SPREAD * (1 + 2 * _relative_error_of_spread(steady)):
        return ""
    return (
        f"Beads that were not fitted spread {worst:.1f} times as far in {axis} as their light "
        "allows: beads differ (field, size, tilt of the coverslip) or the PSF is noisy. Record "
        "more beads near the middle of the field."
    )


def _relative_error_of_spread(held_out: HeldOut) -> float:
    beads, planes = held_out.error_nm.shape[:2]
    return 1 / math.sqrt(2 * (beads - 1) * planes)


def _stage(evidence: Evidence) -> str:
    x, y, z = evidence.jitter_rms_nm.tolist()
    if max(x, y, z) <= NOTABLE_JITTER_NM:
        return ""
    where = "from where it is in the other stacks"
    if evidence.n_stacks == 1:
        where = "from plane to plane"
    return (
        f"All beads of a stack shift together {where}, by {x:.1f}, {y:.1f} and {z:.1f} nm rms in "
        "x, y and z. This is taken for the stage's and kept out of the PSF, but not wholly."
    )


def _wander(evidence: Evidence) -> str:
    tried = evidence.calibration.depth_smoothness
    if not tried or evidence.n_stacks > 1:
        return ""
    if min(tried, key=lambda smoothness: tried[smoothness]) < FINE_DEPTH_SMOOTHNESS:
        return ""
    return (
        "Beads that were held out call for a PSF with detail within 300 nm of depth; but they lie "
        "in one stack, in which slow drift of the stage would look the same. A second stack "
        "decides: only the PSF is the same in both."
    )


def _tilt(evidence: Evidence) -> str:
    walk = evidence.walk_per_nm
    if walk <= NOTABLE_WALK:
        return ""
    return (
        f"The spot shifts laterally by {1000 * walk:.0f} nm per µm of depth: a tilted axis, which "
        "belongs to the PSF, or drift during the scan, which does not. Record the stack in "
        "both directions: only drift changes its sign."
    )


def _lost(evidence: Evidence) -> str:
    if evidence.in_use is None:
        return ""
    lost = evidence.in_use.lost()
    if not bool(lost.any()):
        return ""
    return (
        f"{float(lost.float().mean()):.1%} of the beads' images in this range were found at a "
        "wholly different depth, and are left out of the figures of this verdict: depths look "
        "similar, the more so for dim molecules."
    )


def _fading(evidence: Evidence) -> str:
    change = change_of_light(evidence.images.photons)
    if abs(change) <= NOTABLE_CHANGE_OF_LIGHT:
        return ""
    verb = "lose" if change < 0 else "gain"
    return (
        f"The beads {verb} {abs(change):.0%} of their light from the first to the last plane: they "
        "bleach, the lamp is not steady, or the crop cuts the light off."
    )


def _lookalikes(evidence: Evidence) -> str:
    depths = evidence.lookalikes()
    if depths is None:
        return ""
    low, high = depths
    return (
        f"A molecule of {DIM_MOLECULE_PHOTONS:.0f} photons looks the same at {low:.0f} and at "
        f"{high:.0f} nm: dim molecules will be found at the wrong one of the two."
    )


def _ends(evidence: Evidence) -> str:
    """A sentence on what ends the usable range."""
    held_out, usable = evidence.held_out, evidence.usable
    if held_out is None or usable is None:
        return ""
    z, checks = held_out.z_nm, held_out.checks()
    below = int((z == usable.low).nonzero()) - 1, usable.low - float(z[0])
    above = int((z == usable.high).nonzero()) + 1, float(z[-1]) - usable.high
    ends = []
    for word, (plane, beyond) in (("below", below), ("above", above)):
        if beyond >= POOLED_NM:
            failed = (fault for fault, passed in checks.items() if not passed[plane])
            ends.append(f"{word} it {' and '.join(failed)}")
    if not ends:
        longer = "a longer scan would widen the range of depth"
        return f"The PSF is still good at both ends of the stack: {longer}."
    return f"This limits the range: {', '.join(ends)}."


LIMITS: tuple[Callable[[Evidence], str], ...] = (
    _misfit,
    _few,
    _dim,
    _spread,
    _stage,
    _wander,
    _tilt,
    _lost,
    _fading,
    _lookalikes,
    _ends,
)
"""limits, gravest first; each returns "" where it does not apply"""
