"""The posterior over offset, gain and read noise of a camera, given the noise of a movie."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self, final

import torch
from torch import Tensor

from decode.estimation.cumulants import NoiseCumulants
from decode.estimation.frames import Estimate

__all__ = ["PRIORS", "CameraBelief", "CameraKind", "CameraPosterior"]

CameraKind = Literal["emccd", "scmos"]
"""kinds of camera; an sCMOS stands for a CCD without a register, too"""


@final
@dataclass(frozen=True, kw_only=True)
class _Prior:
    """Prior of a kind of camera by data sheets: medians, and factors of one standard deviation."""

    excess: float
    """excess noise factor F^2: variance over that of a Poisson count"""
    skew: float
    """kappa3 kappa1 / kappa2^2: 1 for a Poisson count, 1.5 behind a register"""
    adu_per_electron: tuple[float, float]
    read_noise_e: tuple[float, float]
    """electrons, referred to the input of the register"""
    qe: float


PRIORS: Mapping[CameraKind, _Prior] = {
    "scmos": _Prior(
        excess=1.0,
        skew=1.0,
        adu_per_electron=(1.5, 2.5),
        read_noise_e=(1.5, 1.4),
        qe=0.8,
    ),
    "emccd": _Prior(
        excess=2.0,
        skew=1.5,
        adu_per_electron=(10.0, 3.0),
        read_noise_e=(0.2, 2.0),
        qe=0.9,
    ),
}
ANY_GAIN = (1.0, 1e3)
"""median and factor of the gain of counts whose scale was changed, ADU per electron"""
BASELINE_SPREAD = 2.0
"""standard deviation of the offsets of cameras set to a common one, ADU"""
MODEL_ERRORS = (0.01, 0.02, 0.04, 0.08)
"""possible relative standard deviations of a class's variance beyond chance, as from unseen changes
of light or from drifting offsets; all are equally probable a priori, and the scatter of the classes
decides"""
THIRD_MODEL_ERROR = 5.0
"""model error of the third cumulant over that of the variance"""
OFFSET_ERROR_ADU = 0.5
"""standard deviation of the offset between pixels of different classes, from different parts of a
sensor"""
ROUNDING_VARIANCE = 1 / 12
"""variance of rounding to whole counts, ADU^2"""
N_DRAWS = 20000


class _Numbers(NamedTuple):
    """Cameras, one per draw."""

    baseline: Tensor
    """ADU"""
    gain: Tensor
    """ADU per electron"""
    read_noise_e: Tensor


@final
@dataclass(frozen=True, kw_only=True)
class CameraBelief:
    """A camera as its noise shows it: values of the most probable kind, intervals over all
    kinds."""

    noise: NoiseCumulants
    probability: Mapping[CameraKind, float]
    kind: CameraKind
    """the most probable kind"""
    posterior: CameraPosterior
    """posterior of that kind"""
    baseline: Estimate
    """ADU"""
    gain: Estimate
    """ADU per electron"""
    read_noise_e: Estimate

    @property
    def rough(self) -> bool:
        """Whether it rests on photon transfer alone, which has no third cumulant."""
        return len(self.noise.third) == 0

    @classmethod
    def of(cls, noise: NoiseCumulants, kinds: Sequence[CameraKind]) -> Self:
        """The belief about a camera of one of these kinds, from noise alone.

        Raises:
            ValueError: if there is no noise.
        """
        if not bool((noise.variance > 0).any()):
            raise ValueError("the movie has no noise, so its gain is unknown; give --camera")
        posteriors = [CameraPosterior.of(noise, PRIORS[kind]) for kind in kinds]
        evidence = torch.stack([posterior.log_evidence for posterior in posteriors])
        probability = evidence.softmax(0).tolist()
        likeliest = max(range(len(kinds)), key=lambda i: probability[i])
        draws = [posterior.draw() for posterior in posteriors]
        shares = [round(N_DRAWS * share) for share in probability]

        def interval(values: Sequence[Tensor]) -> Estimate:
            mixed = torch.cat([of_kind[:n] for of_kind, n in zip(values, shares, strict=True)])
            low, high = mixed.quantile(mixed.new_tensor([0.025, 0.975])).tolist()
            return Estimate(float(values[likeliest].median()), low, high, noise.n_pixels)

        return cls(
            noise=noise,
            probability=dict(zip(kinds, probability, strict=True)),
            kind=kinds[likeliest],
            posterior=posteriors[likeliest],
            baseline=interval([drawn.baseline for drawn in draws]),
            gain=interval([drawn.gain for drawn in draws]),
            read_noise_e=interval([drawn.read_noise_e for drawn in draws]),
        )


@final
@dataclass(frozen=True, kw_only=True)
class CameraPosterior:
    """Gain, read noise and model error on a grid; at each point a truncated Gaussian of the offset.

    The grid is (gains, noises, errors).
    """

    log_weight: Tensor
    """(gains, noises, errors), not normalized"""
    gain: Tensor
    """ADU per electron; broadcasts against the grid, as does `read_noise_e`"""
    read_noise_e: Tensor
    offset: Tensor
    """(gains, noises, errors) mean of the offset, ADU"""
    offset_error: Tensor
    """(gains, noises, errors) its standard deviation"""
    bounds: tuple[float, float]
    """lowest and highest possible offset, ADU"""

    @classmethod
    def of(cls, noise: NoiseCumulants, prior: _Prior) -> Self:
        """The posterior under the prior of one kind of camera."""
        gain = torch.logspace(-2, 3, 1200, dtype=torch.float64)[:, None, None, None]
        z = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)[:, None]
        read_noise_e = prior.read_noise_e[0] * prior.read_noise_e[1] ** z[:, None]
        model_error = torch.tensor(MODEL_ERRORS, dtype=torch.float64)[:, None]
        # the offset counts from the darkest pixels, which none can exceed
        darkest = noise.mean.min()
        light = noise.mean - darkest
        slope2 = prior.excess * gain
        slope3 = prior.skew * slope2**2
        error2 = (model_error * noise.variance) ** 2 + noise.variance_error**2
        error3 = (THIRD_MODEL_ERROR * model_error * noise.third) ** 2 + noise.third_error**2
        weight2 = 1 / (error2 + (slope2 * OFFSET_ERROR_ADU) ** 2)
        weight3 = 1 / (error3 + (slope3 * OFFSET_ERROR_ADU) ** 2)
        dark_variance = (gain * read_noise_e) ** 2 + ROUNDING_VARIANCE
        residual2 = noise.variance - slope2 * light - dark_variance
        residual3 = noise.third - slope3 * light[: len(noise.third)]
        precision = (weight2 * slope2**2).sum(-1) + (weight3 * slope3**2).sum(-1)
        score2 = (weight2 * slope2 * residual2).sum(-1)
        score3 = (weight3 * slope3 * residual3).sum(-1)
        depth = (score2 + score3) / precision
        misfit2 = (weight2 * (residual2 - slope2 * depth[..., None]) ** 2).sum(-1)
        misfit3 = (weight3 * (residual3 - slope3 * depth[..., None]) ** 2).sum(-1)
        offset, error = darkest - depth, precision.rsqrt().expand(depth.shape)
        bounds = (0.0 if noise.raw else -math.inf, float(darkest))
        low, high = ((bound - offset) / error for bound in bounds)
        log_weights = (weight2.log().sum(-1) + weight3.log().sum(-1)) / 2
        log_likelihood = log_weights - (misfit2 + misfit3) / 2 + error.log()
        median, factor = prior.adu_per_electron if noise.raw else ANY_GAIN
        log_factor = math.log(factor)
        gain_deviation = (gain[..., 0] / median).log() / log_factor
        log_prior = -(gain_deviation**2) / 2 - math.log(log_factor) - z**2 / 2
        return cls(
            log_weight=log_prior + log_likelihood + _log_interval(low, high),
            gain=gain[..., 0],
            read_noise_e=read_noise_e[..., 0],
            offset=offset,
            offset_error=error,
            bounds=bounds,
        )

    @property
    def log_evidence(self) -> Tensor:
        """() log evidence of the kind of camera, up to a constant."""
        return self.log_weight.logsumexp((0, 1, 2))

    def draw(self, n: int = N_DRAWS) -> _Numbers:
        """(n,) draws from the posterior."""
        rng = torch.Generator().manual_seed(0)
        weight = self.log_weight.flatten().softmax(0)
        index = torch.multinomial(weight, n, replacement=True, generator=rng)
        gain, read_noise_e, offset, error = (
            values.expand(self.offset.shape).flatten()[index]
            for values in (self.gain, self.read_noise_e, self.offset, self.offset_error)
        )
        # a Gaussian between bounds, by the inverse of its distribution
        low, high = (torch.special.ndtr((bound - offset) / error) for bound in self.bounds)
        quantile = low + (high - low) * torch.rand(n, generator=rng, dtype=torch.float64)
        drawn = offset + error * torch.special.ndtri(quantile.clamp(1e-12, 1 - 1e-12))
        return _Numbers(drawn.clamp(*self.bounds), gain, read_noise_e)

    def near(self, level: float) -> _Numbers:
        """() posterior means, given that the offset was set to this level, ADU."""
        total = self.offset_error**2 + BASELINE_SPREAD**2
        weight = self.log_weight - (level - self.offset) ** 2 / total / 2 - total.log() / 2
        weight = weight.flatten().softmax(0).reshape(weight.shape)
        offset = (self.offset * BASELINE_SPREAD**2 + level * self.offset_error**2) / total
        of_grid = (offset, self.gain, self.read_noise_e)
        return _Numbers(*((weight * values).sum() for values in of_grid))


def _log_interval(low: Tensor, high: Tensor) -> Tensor:
    """Log of the mass of a standard normal between two bounds, exact in both tails."""
    flip = low + high > 0
    near: Tensor = torch.special.log_ndtr(torch.where(flip, -low, high))
    far: Tensor = torch.special.log_ndtr(torch.where(flip, -high, low))
    return near + torch.log(-torch.expm1((far - near).clamp_max(-1e-12)))
