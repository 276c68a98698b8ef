"""A camera from the movie alone, and how well it is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Self, final

import torch

from decode.defects import Counts, without_unusable
from decode.estimation.camera_posterior import PRIORS, CameraBelief, CameraKind
from decode.estimation.cumulants import noise_cumulants, photon_transfer
from decode.estimation.frames import Estimate, shape_of
from decode.optics.camera import Camera

__all__ = ["CameraEstimate", "CameraKind", "estimate_camera"]

NAMES: dict[CameraKind, str] = {"emccd": "EMCCD", "scmos": "sCMOS"}
TYPICAL_EM_GAIN = 300.0
COMMON_BASELINES = (100.0, 200.0)
"""offsets that makers commonly set, ADU"""
SURE = 0.95
"""probability from which the kind of camera counts as certain"""
WIDE_INTERVAL = 4.0
"""ratio of the ends of the gain's interval above which steady pixels do not determine the gain"""


@final
@dataclass(frozen=True, kw_only=True)
class CameraEstimate:
    """A camera as estimated from the noise of a movie."""

    camera: Camera
    baseline: Estimate
    """ADU"""
    adu_per_electron: Estimate
    """counts per photoelectron, behind the register if there is one"""
    read_noise_e: Estimate
    """electrons; of a camera with a register, referred to its input"""
    emccd_probability: float
    """probability of an EMCCD; 1 or 0 where the kind was stated"""
    rough: bool
    """whether it rests on photon transfer alone, as too few pixels are steady"""
    notes: tuple[str, ...]
    """a sentence on each thing the user should know"""


@torch.no_grad()
def estimate_camera(
    movie: Counts,
    *,
    kind: CameraKind | None = None,
    qe: float | None = None,
    em_gain: float | None = None,
    n_frames: int | None = None,
) -> CameraEstimate:
    """Estimate a camera from a movie of blinking molecules, by the first three cumulants of its
    noise.

    With g ADU per electron, an offset o and read noise of variance v, photon transfer (Janesick,
    Photon Transfer, SPIE, 2007) and its next order state, for pixels of mean m,

        kappa2 = F^2 g (m - o) + v,    kappa3 = S (F^2 g)^2 (m - o)

    with F^2 = 1, S = 1 for Poisson counts.  A register turns an electron into an exponential
    variate, whose kth moment is k! g^k; as the kth cumulant of a compound Poisson variate is its
    rate times that moment, F^2 = 2 and S = 6 / 4.  Gain and read noise lie on a grid, the offset is
    integrated out in closed form, and the more probable of both kinds of camera is taken.  Where
    all pixels are equally bright, kappa3 alone determines the offset, and its interval is wide.

    A movie that is small, or whose light changes fast, has few pixels that are steady for long.
    Pairs of consecutive frames then give kappa2 alone (`photon_transfer`), data sheets decide
    between the kinds, and the estimate is marked as rough.

    Args:
        movie: (frame, y, x) ADU.
        kind: emccd or scmos (or CCD); None judges by the movie.
        qe: quantum efficiency, which no movie shows; None takes a typical one.
        em_gain: mean gain of an EMCCD's register, of which counts determine only the ratio to
            `e_per_adu`; None takes a typical one.
        n_frames: number of frames to look at; None takes at least 64.

    Raises:
        ValueError: in one sentence, if an argument is wrong, the movie too small, or noise does not
            grow with light.
    """
    kinds = _kinds(kind, qe, em_gain)
    shape_of(movie)
    movie = without_unusable(movie)
    steady = noise_cumulants(movie, n_frames=n_frames)
    belief = None if steady is None else CameraBelief.of(steady, kinds)
    if belief is None or belief.gain.high > WIDE_INTERVAL * belief.gain.low:
        belief = CameraBelief.of(photon_transfer(movie, n_frames=n_frames), kinds)
    return _describe(belief, qe, em_gain)


def _kinds(
    kind: CameraKind | None,
    qe: float | None,
    em_gain: float | None,
) -> tuple[CameraKind, ...]:
    """Kinds of camera that agree with what is stated."""
    if kind is not None and kind not in PRIORS:
        raise ValueError(f"the kind of a camera is emccd or scmos, not {kind}")
    if kind == "scmos" and em_gain is not None:
        raise ValueError("an sCMOS camera has no EM gain; leave it out or call the camera an EMCCD")
    if qe is not None and not 0 < qe <= 1:
        raise ValueError(f"the quantum efficiency is {qe:g}, but must be above 0 and at most 1")
    if em_gain is not None and not em_gain >= 1:
        raise ValueError(f"the EM gain is {em_gain:g}, but must be at least 1")
    if em_gain is not None:
        return ("emccd",)
    return ("emccd", "scmos") if kind is None else (kind,)


class _Values(NamedTuple):
    """Numbers of the camera with their intervals."""

    baseline: Estimate
    gain: Estimate
    read_noise_e: Estimate
    set_by_maker: float | None
    """ADU: the common offset near which the values were taken"""

    @classmethod
    def of(cls, belief: CameraBelief) -> Self:
        baseline = belief.baseline
        common = [level for level in COMMON_BASELINES if baseline.low <= level <= baseline.high]
        if not belief.noise.raw or not common:
            return cls(baseline, belief.gain, belief.read_noise_e, None)
        level = min(common, key=lambda level: abs(level - baseline.value))
        # the intervals stay those of the movie; gain and read noise depend on the offset
        near = belief.posterior.near(level)
        return cls(
            replace(baseline, value=float(near.baseline)),
            replace(belief.gain, value=float(near.gain)),
            replace(belief.read_noise_e, value=float(near.read_noise_e)),
            level,
        )


def _describe(belief: CameraBelief, qe: float | None, em_gain: float | None) -> CameraEstimate:
    """The camera in the middle of the intervals, with notes for its user."""
    values = _Values.of(belief)
    register = None
    if belief.kind == "emccd":
        register = em_gain or TYPICAL_EM_GAIN
    multiplied = register or 1.0
    camera = Camera(
        baseline=values.baseline.value,
        e_per_adu=multiplied / values.gain.value,
        read_noise_e=values.read_noise_e.value * multiplied,
        qe=PRIORS[belief.kind].qe if qe is None else qe,
        em_gain=register,
    )
    notes = [*_notes_on_noise(belief, values)]
    if qe is None:
        notes.append(f"a quantum efficiency of {camera.qe:g} was assumed, no movie shows it")
    if register is None:
        sheets = "data sheets more than on the movie"
        notes.append(f"a read noise of {values.read_noise_e} electrons rests on {sheets}")
    elif em_gain is None:
        gain = f"an EM gain of {register:g} stands for the true one"
        notes.append(f"{gain}, on which nothing else depends")
    return CameraEstimate(
        camera=camera,
        baseline=values.baseline,
        adu_per_electron=values.gain,
        read_noise_e=values.read_noise_e,
        emccd_probability=belief.probability.get("emccd", 0.0),
        rough=belief.rough,
        notes=tuple(notes),
    )


def _notes_on_noise(belief: CameraBelief, values: _Values) -> Iterator[str]:
    """Sentences on what the noise does and does not determine."""
    name, baseline = NAMES[belief.kind], values.baseline
    found = f"as an {name}: {values.gain} ADU per photoelectron and {baseline} ADU at no light"
    if belief.rough:
        yield (
            "the movie is too small, or its light changes too fast, to estimate its camera well; "
            f"it was estimated roughly, {found}; photons and uncertainties are as inaccurate: "
            "state the camera with --camera"
        )
    else:
        yield (
            f"the camera was estimated from the movie, {found}; photons and uncertainties are as "
            "inaccurate"
        )
    if values.set_by_maker is not None:
        yield (
            f"the noise gives a baseline from {baseline.low:.4g} to {baseline.high:.4g} ADU; near "
            f"{values.set_by_maker:g}, which many makers set, {baseline.value:.4g} was taken"
        )
    if not belief.noise.raw:
        yield (
            "counts are below 0 or no whole numbers, so that their offset or scale was changed, "
            "and nothing that data sheets say of cameras was assumed of these"
        )
    certainty = belief.probability[belief.kind]
    if certainty < SURE:
        yield (
            f"the noise hardly distinguishes an EMCCD from an sCMOS camera ({name} with a "
            f"probability of {certainty:.2f}), and photons differ by a factor of 2; say which it is"
        )
