"""A camera from the movie alone, and how well the movie tells it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy.typing as npt
import torch
from torch import Tensor

from decode.defects import without_unusable
from decode.estimate.cumulants import NoiseCumulants, noise_cumulants, photon_transfer
from decode.estimate.frames import Estimate, shape_of
from decode.io.movies.tiff import Movie
from decode.optics.camera import Camera

__all__ = ["CameraEstimate", "CameraKind", "estimate_camera", "infer_camera"]

CameraKind = Literal["emccd", "scmos"]


@final
@dataclass(frozen=True, kw_only=True)
class _Prior:
    """What data sheets say of a kind of camera: medians, and the factors of one standard
    deviation."""

    excess: float
    """variance over that of a Poisson count"""
    skew: float
    """kappa3 kappa1 / kappa2^2: 1 of a Poisson count, 1.5 behind a register"""
    adu_per_electron: tuple[float, float]
    read_noise_e: tuple[float, float]
    """as if before the register"""
    qe: float


PRIORS: Mapping[CameraKind, _Prior] = {
    "scmos": _Prior(excess=1.0, skew=1.0, adu_per_electron=(1.5, 2.5), read_noise_e=(1.5, 1.4), qe=0.8),
    "emccd": _Prior(excess=2.0, skew=1.5, adu_per_electron=(10.0, 3.0), read_noise_e=(0.2, 2.0), qe=0.9),
}
TYPICAL_EM_GAIN = 300.0
COMMON_BASELINES = (100.0, 200.0)
"""ADU; makers set the one or the other"""
BASELINE_SPREAD = 2.0
"""standard deviation of what cameras then have, ADU"""
MODEL_ERRORS = (0.01, 0.02, 0.04, 0.08)
"""relative standard deviation of a class's variance beyond chance, as from light that changed
unseen or from offsets that drifted: how large it is the scatter of the classes tells, and all are
equally probable before"""
THIRD_MODEL_ERROR = 5.0
"""the same of the third cumulant, over that of the variance"""
OFFSET_ERROR_ADU = 0.5
"""standard deviation of the offset between the pixels of different classes: from one part of a
sensor to another"""
SURE = 0.95
"""a kind of camera that is as probable is not doubted"""
UNTOLD = 4.0
"""a gain whose interval spans such a factor is not told by steady pixels"""
N_DRAWS = 20000
ANY_GAIN = (1.0, 1e3)
"""ADU per electron, median and factor, of counts whose scale somebody changed"""


@final
@dataclass(frozen=True, kw_only=True)
class CameraEstimate:
    """A camera as the noise of a movie tells it."""

    camera: Camera
    baseline: Estimate
    """ADU"""
    adu_per_electron: Estimate
    """counts that one photoelectron gives, behind the register if there is one"""
    read_noise_e: Estimate
    """electrons; behind a register, as if before it"""
    emccd_probability: float
    """1 or 0 where the kind was stated"""
    rough: bool
    """by photon transfer alone, for the movie is small or restless"""
    notes: tuple[str, ...]
    """a sentence on each thing the user should know"""


def estimate_camera(
    movie: Movie | Tensor | npt.NDArray[Any],
    *,
    kind: CameraKind | None = None,
    qe: float | None = None,
    em_gain: float | None = None,
    n_frames: int | None = None,
) -> tuple[Camera, tuple[str, ...]]:
    """The camera of `infer_camera`, and its notes."""
    estimate = infer_camera(movie, kind=kind, qe=qe, em_gain=em_gain, n_frames=n_frames)
    return estimate.camera, estimate.notes


@torch.no_grad()
def infer_camera(
    movie: Movie | Tensor | npt.NDArray[Any],
    *,
    kind: CameraKind | None = None,
    qe: float | None = None,
    em_gain: float | None = None,
    n_frames: int | None = None,
) -> CameraEstimate:
    """A camera from a movie of blinking molecules, by the first three cumulants of its noise.

    With g ADU per electron, an offset o and read noise of variance v, photon transfer (Janesick,
    Photon Transfer, SPIE, 2007) and its next order say of pixels of mean m

        kappa2 = F^2 g (m - o) + v,    kappa3 = S (F^2 g)^2 (m - o)

    with F^2 = 1, S = 1 for Poisson counts.  A register turns an electron into an exponential
    variate, the kth moment of which is k! g^k, so that F^2 = 2 and S = 6 / 4.  Gain and read noise
    lie on a grid, the offset is integrated out in closed form, and of both kinds of camera the more
    probable one is taken.  Where all pixels are equally bright the offset rests on kappa3 alone,
    and the interval says so.

    A movie that is small or restless has few pixels that are steady for long.  Pairs of consecutive
    frames then tell kappa2 alone (`photon_transfer`), data sheets have to tell the kinds apart, and
    the answer is called rough.

    Args:
        movie: (frame, y, x) ADU.
        kind: emccd or scmos (or CCD); None judges by the movie.
        qe: quantum efficiency, which no movie tells; None takes a typical one.
        em_gain: of an EMCCD: counts tell only its ratio to `e_per_adu`; None takes a typical one.
        n_frames: number of frames to look at; None takes at least 64.

    Raises:
        ValueError: in one sentence, if an argument is wrong, the movie too small, or noise does not
            grow with light.
    """
    if kind is not None and kind not in PRIORS:
        raise ValueError(f"the kind of a camera is emccd or scmos, not {kind}")
    if kind == "scmos" and em_gain is not None:
        raise ValueError("an sCMOS camera has no EM gain; leave it out or call the camera an EMCCD")
    if qe is not None and not 0 < qe <= 1:
        raise ValueError(f"the quantum efficiency is {qe:g}, but must be above 0 and at most 1")
    if em_gain is not None and not em_gain >= 1:
        raise ValueError(f"the EM gain is {em_gain:g}, but must be at least 1")
    if em_gain is not None:
        kind = "emccd"
    kinds: tuple[CameraKind, ...] = ("emccd", "scmos") if kind is None else (kind,)
    shape_of(movie)
    movie = without_unusable(movie)
    steady = noise_cumulants(movie, n_frames=n_frames)
    belief = None if steady is None else _Belief.of(steady, kinds)
    if belief is None or belief.gain.high > UNTOLD * belief.gain.low:
        belief = _Belief.of(photon_transfer(movie, n_frames=n_frames), kinds)
    return _describe(belief, qe, em_gain)


def _describe(belief: _Belief, qe: float | None, em_gain: float | None) -> CameraEstimate:
    """The camera in the middle of the intervals, and what is to be said about it."""
    kind, noise = belief.kind, belief.noise
    baseline, gain, read_noise = belief.baseline, belief.gain, belief.read_noise_e
    rough = len(noise.third) == 0
    notes = []
    common = [level for level in COMMON_BASELINES if noise.raw and baseline.low <= level <= baseline.high]
    if common:
        # the intervals stay what the movie tells; gain and read noise follow, for they are bound to
        # the offset
        level = min(common, key=lambda level: abs(level - baseline.value))
        baseline, gain, read_noise = (
            replace(told, value=value)
            for value, told in zip(belief.posteriors[kind].near(level), (baseline, gain, read_noise), strict=True)
        )
        notes.append(
            f"the movie tells a baseline from {baseline.low:.4g} to {baseline.high:.4g} ADU; near {level:g}, which "
            f"many makers set, {baseline.value:.4g} was taken"
        )
    name = "EMCCD" if kind == "emccd" else "sCMOS"
    found = f"as an {name}: {gain} ADU per photoelectron and {baseline} ADU at no light"
    notes.insert(
        0,
        f"the movie is too small or restless to tell its camera well, and it was estimated roughly, {found}; photons "
        "and uncertainties are as rough, give --camera to have them right"
        if rough
        else f"the camera was estimated from the movie, {found}; photons and uncertainties are as rough",
    )
    if not noise.raw:
        notes.append(
            "counts are below 0 or no whole numbers, so that their offset or scale was changed, and nothing that "
            "data sheets say of cameras was assumed of these"
        )
    certainty = belief.probability[kind]
    if certainty < SURE:
        notes.append(
            f"the noise hardly tells an EMCCD from an sCMOS camera ({name} with a probability of {certainty:.2f}), "
            "and photons differ by a factor of 2; say which it is"
        )
    efficiency = PRIORS[kind].qe if qe is None else qe
    if qe is None:
        notes.append(f"a quantum efficiency of {efficiency:g} was assumed, no movie tells it")
    register = None
    if kind == "emccd":
        register = TYPICAL_EM_GAIN if em_gain is None else em_gain
        if em_gain is None:
            notes.append(f"an EM gain of {register:g} stands for the true one, of which nothing else depends")
    else:
        notes.append(f"a read noise of {read_noise} electrons rests on data sheets more than on the movie")
    multiplied = register or 1.0
    camera = Camera(
        baseline=baseline.value,
        e_per_adu=multiplied / gain.value,
        read_noise_e=read_noise.value * multiplied,
        qe=efficiency,
        em_gain=register,
    )
    return CameraEstimate(
        camera=camera,
        baseline=baseline,
        adu_per_electron=gain,
        read_noise_e=read_noise,
        emccd_probability=belief.probability.get("emccd", 0.0),
        rough=rough,
        notes=tuple(notes),
    )


@final
@dataclass(frozen=True, kw_only=True)
class _Belief:
    """What noise says of the camera: values are those of the likeliest kind, intervals those of all
    that may be."""

    noise: NoiseCumulants
    posteriors: Mapping[CameraKind, _Posterior]
    probability: Mapping[CameraKind, float]
    kind: CameraKind
    """the likeliest"""
    baseline: Estimate
    gain: Estimate
    """ADU per electron"""
    read_noise_e: Estimate

    @staticmethod
    def of(noise: NoiseCumulants, kinds: Sequence[CameraKind]) -> _Belief:
        if not bool((noise.variance > 0).any()):
            raise ValueError("the movie has no noise and tells no gain; give --camera")
        posteriors = {kind: _Posterior.of(noise, PRIORS[kind]) for kind in kinds}
        evidence = torch.stack([posterior.log_weight.logsumexp((0, 1, 2)) for posterior in posteriors.values()])
        probability = dict(zip(kinds, evidence.softmax(0).tolist(), strict=True))
        likeliest = max(kinds, key=lambda kind: probability[kind])
        draws = {kind: posterior.draw() for kind, posterior in posteriors.items()}

        def interval(i: int) -> Estimate:
            value = float(draws[likeliest][i].median())
            mixed = torch.cat([draws[kind][i][: round(N_DRAWS * probability[kind])] for kind in kinds])
            low, high = mixed.quantile(mixed.new_tensor([0.025, 0.975])).tolist()
            return Estimate(value, low, high, noise.n_pixels)

        return _Belief(
            noise=noise,
            posteriors=posteriors,
            probability=probability,
            kind=likeliest,
            baseline=interval(0),
            gain=interval(1),
            read_noise_e=interval(2),
        )


@final
@dataclass(frozen=True, kw_only=True)
class _Posterior:
    """Of gain, read noise and model error on a grid, at each point a Gaussian of the offset, cut to
    where it can be."""

    log_weight: Tensor
    """(gains, noises, errors), not normalised"""
    gain: Tensor
    """ADU per electron; as the next, broadcasts against the grid"""
    read_noise_e: Tensor
    offset: Tensor
    """(gains, noises, errors) mean of the offset, ADU"""
    offset_error: Tensor
    """(gains, noises, errors) its standard deviation"""
    bounds: tuple[float, float]

    @staticmethod
    def of(noise: NoiseCumulants, prior: _Prior) -> _Posterior:
        gain = torch.logspace(-2, 3, 1200, dtype=torch.float64)[:, None, None, None]
        z = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)[:, None]
        read_noise_e = prior.read_noise_e[0] * prior.read_noise_e[1] ** z[:, None]
        model_error = torch.tensor(MODEL_ERRORS, dtype=torch.float64)[:, None]
        # the offset counts from the darkest pixels, which none can exceed
        darkest = noise.mean.min()
        light = noise.mean - darkest
        slope2 = prior.excess * gain
        slope3 = prior.skew * slope2**2
        weight2, weight3 = (
            1 / ((scale * model_error * cumulant) ** 2 + (slope * OFFSET_ERROR_ADU) ** 2 + error**2)
            for scale, cumulant, slope, error in (
                (1.0, noise.variance, slope2, noise.variance_error),
                (THIRD_MODEL_ERROR, noise.third, slope3, noise.third_error),
            )
        )
        residual2 = noise.variance - slope2 * light - (gain * read_noise_e) ** 2 - 1 / 12  # 1 / 12: whole counts
        residual3 = noise.third - slope3 * light[: len(noise.third)]
        precision = (weight2 * slope2**2).sum(-1) + (weight3 * slope3**2).sum(-1)
        depth = ((weight2 * slope2 * residual2).sum(-1) + (weight3 * slope3 * residual3).sum(-1)) / precision
        misfit = (weight2 * (residual2 - slope2 * depth[..., None]) ** 2).sum(-1) + (
            weight3 * (residual3 - slope3 * depth[..., None]) ** 2
        ).sum(-1)
        offset, error = darkest - depth, precision.rsqrt().expand(depth.shape)
        bounds = (0.0 if noise.raw else -math.inf, float(darkest))
        low, high = ((bound - offset) / error for bound in bounds)
        median, factor = prior.adu_per_electron if noise.raw else ANY_GAIN
        log_prior = (
            -(((gain[..., 0] / median).log() / math.log(factor)) ** 2) / 2 - math.log(math.log(factor)) - z**2 / 2
        )
        log_likelihood = (weight2.log().sum(-1) + weight3.log().sum(-1)) / 2 - misfit / 2 + error.log()
        return _Posterior(
            log_weight=log_prior + log_likelihood + _log_interval(low, high),
            gain=gain[..., 0],
            read_noise_e=read_noise_e[..., 0],
            offset=offset,
            offset_error=error,
            bounds=bounds,
        )

    def draw(self, n: int = N_DRAWS) -> tuple[Tensor, Tensor, Tensor]:
        """(n,) draws of offset, gain and read noise."""
        rng = torch.Generator().manual_seed(0)
        index = torch.multinomial(self.log_weight.flatten().softmax(0), n, replacement=True, generator=rng)
        gain, read_noise_e = (x.expand(self.offset.shape).flatten()[index] for x in (self.gain, self.read_noise_e))
        offset, error = self.offset.flatten()[index], self.offset_error.flatten()[index]
        # a Gaussian between bounds, by the inverse of its distribution
        low, high = (torch.special.ndtr((bound - offset) / error) for bound in self.bounds)
        quantile = low + (high - low) * torch.rand(n, generator=rng, dtype=torch.float64)
        drawn = offset + error * torch.special.ndtri(quantile.clamp(1e-12, 1 - 1e-12))
        return drawn.clamp(*self.bounds), gain, read_noise_e

    def near(self, level: float) -> tuple[float, float, float]:
        """Means of offset, gain and read noise where the offset is about that level."""
        total = self.offset_error**2 + BASELINE_SPREAD**2
        weight = self.log_weight - (level - self.offset) ** 2 / total / 2 - total.log() / 2
        weight = weight.flatten().softmax(0).reshape(weight.shape)
        offset = (self.offset * BASELINE_SPREAD**2 + level * self.offset_error**2) / total
        baseline, gain, read_noise_e = (float((weight * x).sum()) for x in (offset, self.gain, self.read_noise_e))
        return baseline, gain, read_noise_e


def _log_interval(low: Tensor, high: Tensor) -> Tensor:
    """Log of the mass of a standard normal between two bounds, exact in both tails."""
    flip = low + high > 0
    near: Tensor = torch.special.log_ndtr(torch.where(flip, -low, high))
    far: Tensor = torch.special.log_ndtr(torch.where(flip, -high, low))
    return near + torch.log(-torch.expm1((far - near).clamp_max(-1e-12)))
