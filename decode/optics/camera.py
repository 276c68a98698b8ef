"""Camera: photons to counts and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from math import log
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d

__all__ = ["DARKEST", "Camera", "Noise"]

BAD_CLUSTER_PX = 3
"""distance over which bad pixels are filled from good ones; pixels deep in larger clusters get the
mean of the frame"""
DARKEST = 0.05
"""least expected photons per pixel; a spline PSF may fall below 0 far from its centre, where no
pixel is that dark"""


@final
@dataclass(frozen=True)
class Noise:
    """Variance of measured photons, photons squared: `excess` times the expected ones plus `floor`.

    `excess` (photons) and `floor` (photons squared) are numbers or tensors: (y, x) maps, or (n, 1,
    y, x) for the crops of n beads.

    >>> camera = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=2.0, qe=0.8)
    >>> camera.typical_noise.excess
    1.25
    """

    excess: float | Tensor
    floor: float | Tensor

    def variance(self, expected: Tensor, *, darkest: float = DARKEST) -> Tensor:
        """Variance (photons squared) at expected photons; fewer than `darkest` count as that
        many."""
        return self.excess * expected.clamp_min(darkest) + self.floor

    def map(self, change: Callable[[Tensor], Tensor]) -> Noise:
        """`excess` and `floor`, each changed by the function: cut, padded, moved to another
        device."""
        return Noise(change(torch.as_tensor(self.excess)), change(torch.as_tensor(self.floor)))

    def __getitem__(self, where: Any) -> Noise:
        """Noise of some beads or pixels; numbers hold for all."""
        excess, floor = (
            value[where] if isinstance(value, Tensor) and value.ndim else value
            for value in (self.excess, self.floor)
        )
        return Noise(excess, floor)

    @property
    def typical(self) -> Noise:
        """Noise of the median pixel, in numbers."""
        excess, floor = (
            float(torch.as_tensor(value).median()) for value in (self.excess, self.floor)
        )
        return Noise(excess, floor)


@final
@dataclass(frozen=True, kw_only=True)
class Camera:
    """An EMCCD (with `em_gain`) or a CCD / sCMOS camera (without).

    Every field is a number, a (y, x) map, or any tensor that broadcasts against the frames.
    The chain is photons -> electrons (Poisson with `qe`, plus `spurious_e`) -> gamma register
    (`em_gain`) -> read noise -> ADU (`e_per_adu`, `baseline`), rounded and clipped at
    `saturation_adu`.

    Example:
        >>> camera = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.5, qe=0.8)
        >>> counts = camera.sample(torch.full((1, 64, 64), 20.0), torch.Generator().manual_seed(0))
        >>> round(float(counts.mean())), round(float(camera.to_photons(counts).mean()))
        (132, 20)
    """

    baseline: float | Tensor
    """ADU at no light"""
    e_per_adu: float | Tensor
    """electrons per ADU, at the output (after the gain register)"""
    read_noise_e: float | Tensor
    """standard deviation of the read noise, electrons at the output"""
    qe: float | Tensor = 1.0
    """quantum efficiency, electrons per photon"""
    em_gain: float | Tensor | None = None
    """mean gain of the electron-multiplying register; None: there is none"""
    spurious_e: float | Tensor = 0.0
    """clock-induced charge and dark current, electrons per pixel and frame before the gain"""
    saturation_adu: float = 65535.0
    """largest count the camera writes"""
    bad: Tensor | None = None
    """True where a pixel is dead, stuck or flickers, so that its counts do not depend on the light;
    None: no pixel"""

    def __post_init__(self) -> None:
        stated = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}
        # maps on a GPU were checked on the host, or drawn; to look at them is to wait for the GPU
        values = {
            name: value
            for name, v in stated.items()
            if (value := torch.as_tensor(v)).device.type == "cpu"
        }
        for name, value in values.items():
            if not bool(value.isfinite().all()):
                raise ValueError(f"camera: {name} must be finite everywhere")
        for name in {"e_per_adu", "qe", "em_gain"} & values.keys():
            if not bool((values[name] > 0).all()):
                raise ValueError(f"camera: {name} must be positive everywhere")
        if "read_noise_e" in values and not bool((values["read_noise_e"] >= 0).all()):
            raise ValueError("camera: read_noise_e must not be negative")
        if "qe" in values and not bool((values["qe"] <= 1).all()):
            raise ValueError("camera: qe is a fraction, at most 1")

    def to(self, device: torch.device | str) -> Camera:
        """The same camera with its maps on another device."""
        maps = {f.name: getattr(self, f.name) for f in fields(self)}
        # a copy to the host is complete only when the GPU says so
        at_once = torch.device(device).type != "cpu"
        moved: dict[str, Any] = {
            name: m.to(device, non_blocking=at_once)
            for name, m in maps.items()
            if isinstance(m, Tensor)
        }
        return replace(self, **moved)

    def crop(self, rows: slice, columns: slice) -> Camera:
        """The camera of a region of the sensor: (y, x) maps are cut, numbers stay."""
        maps = {f.name: getattr(self, f.name) for f in fields(self)}
        cut: dict[str, Any] = {
            name: m[..., rows, columns]
            for name, m in maps.items()
            if isinstance(m, Tensor) and m.ndim >= 2
        }
        return replace(self, **cut)

    def of_movie(self, i: int) -> Camera:
        """The camera of one of several movies: its fields, which broadcast against (movies, frames,
        y, x), as numbers and (y, x) maps."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        maps = {
            name: v[min(i, len(v) - 1), 0]
            for name, v in values.items()
            if isinstance(v, Tensor) and v.ndim == 4
        }
        own: dict[str, Any] = {n: float(v) if v.numel() == 1 else v for n, v in maps.items()}
        return replace(self, **own)

    def of_sum(self, n: int) -> Camera:
        """The camera whose counts are the sums of n frames of this one."""
        rounding = torch.as_tensor(self.e_per_adu) ** 2 / 12
        return replace(
            self,
            baseline=n * self.baseline,
            read_noise_e=(n * torch.as_tensor(self.read_noise_e) ** 2 + (n - 1) * rounding).sqrt(),
            spurious_e=n * self.spurious_e,
            saturation_adu=n * self.saturation_adu,
        )

    @property
    def shape(self) -> tuple[int, int] | None:
        """(y, x) of its maps; None where all is numbers."""
        for value in (getattr(self, f.name) for f in fields(self)):
            if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[-2:].numel() > 1:
                return int(value.shape[-2]), int(value.shape[-1])
        return None

    @property
    def excess_factor(self) -> float:
        """Variance of the counts over that of a Poisson count: 2 for an EMCCD (Robbins and Hadwen,
        IEEE Trans. Electron Devices 50, 1227, 2003), else 1."""
        return 1.0 if self.em_gain is None else 2.0

    @property
    def photons_per_adu(self) -> Tensor:
        """Photons before quantum efficiency per ADU."""
        gain = 1.0 if self.em_gain is None else self.em_gain
        return torch.as_tensor(self.e_per_adu) / gain / self.qe

    @property
    def noise_floor(self) -> Tensor:
        """Variance of `to_photons` at no light: read noise, quantization and spurious charge,
        photons squared."""
        gain = 1.0 if self.em_gain is None else self.em_gain
        adu = torch.as_tensor(self.e_per_adu)
        output = torch.as_tensor(self.read_noise_e) ** 2 + adu**2 / 12
        return (output / gain**2 + self.excess_factor * self.spurious_e) / torch.as_tensor(
            self.qe
        ) ** 2

    @property
    def noise(self) -> Noise:
        """Noise of `to_photons`, pixel by pixel where the camera has maps."""
        return Noise(self.excess_factor / torch.as_tensor(self.qe), self.noise_floor)

    @property
    def typical_noise(self) -> Noise:
        """Noise of `to_photons` in the median pixel, in numbers."""
        qe, floor = (
            torch.as_tensor(value, dtype=torch.float64) for value in (self.qe, self.noise_floor)
        )
        return Noise(self.excess_factor / float(qe.median()), float(floor.median()))

    def noise_of_crops(self, corners_px: Sequence[tuple[int, int]], side: int) -> Noise:
        """Noise of `to_photons` in n square crops.

        Args:
            corners_px: (x, y) of the first pixel of each crop.
            side: side of the crops, pixels.

        Returns:
            The median excess, and a floor of (n, 1, side, side) where the camera has maps.
        """
        typical, floor = self.typical_noise, self.noise_floor.float()
        if floor.ndim < 2:
            return typical
        crops = [floor[None, y : y + side, x : x + side] for x, y in corners_px]
        return Noise(typical.excess, torch.stack(crops))

    def to_photons(self, adu: Tensor) -> Tensor:
        """Photons before quantum efficiency from counts, background included; the noise stays.

        Args:
            adu: (..., y, x) counts.

        Returns:
            (..., y, x) photons; unbiased, so values below 0 occur.
        """
        return (adu - self.baseline) * self.photons_per_adu.to(adu.device) - torch.as_tensor(
            self.spurious_e / self.qe, device=adu.device
        )

    def without_bad(self, photons: Tensor) -> Tensor:
        """Photons whose bad pixels have the mean of the good ones around them.

        Args:
            photons: (..., y, x), as `to_photons` gives them.

        Returns:
            (..., y, x); the same tensor where no pixel is bad.
        """
        if self.bad is None:
            return photons
        frames = photons.reshape(-1, 1, *photons.shape[-2:])
        good = (~self.bad.to(photons.device)).expand(photons.shape).reshape(frames.shape)
        # not 0 times the value, which may be NaN or infinite
        filled = torch.where(good, frames, 0.0)
        known = good.to(photons.dtype)
        overall = filled.sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp_min(1)
        # [[1, 2, 1], [2, 0, 2], [1, 2, 1]], made on the device: a copy would make a GPU wait
        line = 2 - (torch.arange(3, device=photons.device, dtype=photons.dtype) - 1).abs()
        kernel = torch.outer(line, line)[None, None]
        kernel[..., 1, 1] = 0
        for _ in range(BAD_CLUSTER_PX):
            weight = conv2d(known, kernel, padding=1)
            mean = conv2d(filled * known, kernel, padding=1) / weight.clamp_min(1)
            filled = torch.where(known > 0, filled, mean)
            known = torch.maximum(known, (weight > 0).to(known.dtype))
            if known.device.type == "cpu" and bool(known.all()):
                break  # a GPU would have to wait for the answer
        return torch.where(known > 0, filled, overall).view(photons.shape)

    @torch.no_grad()
    def sample(self, photons: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Draw the counts a camera would write.

        Args:
            photons: (..., y, x) expected photons before quantum efficiency.
            rng: source of randomness, on the device of `photons`.

        Returns:
            (..., y, x) ADU, whole numbers in [0, saturation_adu].
        """
        electrons = torch.poisson(photons.clamp_min(0) * self.qe + self.spurious_e, generator=rng)
        if self.em_gain is not None:
            # the register is a cascade of weak multiplications: a gamma variate of shape n and
            # scale em_gain (Basden, Haniff and Mackay, MNRAS 345, 985, 2003)
            gamma = torch._standard_gamma(electrons.clamp_min(1.0), generator=rng)
            electrons = torch.where(electrons > 0, gamma * self.em_gain, 0.0)
        noise = torch.randn(
            photons.shape, generator=rng, device=photons.device, dtype=photons.dtype
        )
        adu = (electrons + noise * self.read_noise_e) / self.e_per_adu + self.baseline
        return torch.round(adu).clamp_(0, self.saturation_adu)

    def log_prob(self, adu: Tensor, photons: Tensor) -> Tensor:
        """Log probability of the counts that `sample` draws, with no Gaussian approximation.

        The read noise is integrated over the width of a count, and the lowest and highest counts
        collect what was clipped.  Electrons are Poisson; an EM register turns n of them into a
        gamma variate of shape n, which sums to a Bessel function (Hirsch et al., PLoS ONE 8,
        e53671, 2013).  It takes the memory of about 64 float64 a pixel.

        Args:
            adu: (..., y, x) whole counts.
            photons: (..., y, x) expected photons before quantum efficiency; broadcasts against
                `adu`.

        Returns:
            (..., y, x) natural log of a probability, dtype of `photons`, differentiable in
            `photons`; 0 in bad pixels.
        """
        counts, expected = torch.broadcast_tensors(adu.double(), photons.double())

        def flat(value: float | Tensor) -> Tensor:
            return (
                torch.as_tensor(value, dtype=torch.float64, device=photons.device)
                .expand_as(counts)
                .flatten()
            )

        baseline, e_per_adu = flat(self.baseline), flat(self.e_per_adu)
        gain = flat(1.0 if self.em_gain is None else self.em_gain)
        noise = flat(self.read_noise_e).clamp_min(1e-6)
        # log 0 has no gradient
        rate = (expected.flatten() * flat(self.qe) + flat(self.spurious_e)).clamp_min(0) + 1e-12
        low, high = ((counts.flatten() + half - baseline) * e_per_adu for half in (-0.5, 0.5))
        bottom, top = (clip.flatten() for clip in (counts <= 0, counts >= self.saturation_adu))
        # away from the edges of a count, an electron number gives that count always or never
        left, right = (
            torch.where(bottom, high, low) - 8 * noise,
            torch.where(top, low, high) + 8 * noise,
        )
        low, high = low.masked_fill(bottom, -torch.inf), high.masked_fill(top, torch.inf)

        def log_integral(part: Tensor | slice, left: Tensor, right: Tensor) -> Tensor:
            if self.em_gain is None:
                output, log_mass = _log_poisson(rate[part], left, right, ~(top | bottom)[part])
            else:
                output, log_mass = _log_poisson_gamma(rate[part], gain[part], left, right)
            blur = _log_interval(
                (low[part] - output) / noise[part], (high[part] - output) / noise[part]
            )
            return torch.logsumexp(log_mass + blur, 0)

        log_p = log_integral(slice(None), left, right)
        clipped = top | (bottom & (left > 0))
        if bool(clipped.any()):
            start, end = (
                torch.where(bottom, -torch.inf, right),
                torch.where(bottom, left, torch.inf),
            )
            rest = log_integral(clipped, start[clipped], end[clipped])
            log_p = log_p.masked_scatter(clipped, torch.logaddexp(log_p[clipped], rest))
        if self.em_gain is not None:
            log_p = torch.logaddexp(
                log_p, _log_interval(low / noise, high / noise) - rate
            )  # no electron, no gain
        log_p = log_p.reshape(counts.shape).to(photons.dtype)
        return log_p if self.bad is None else log_p.masked_fill(self.bad.to(log_p.device), 0.0)


BISECTIONS = 24
"""of the interval in which a peak lies"""
_NODES, _WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(64))


def _log_interval(low: Tensor, high: Tensor) -> Tensor:
    """Log of the mass of a standard normal between two bounds, exact in both tails."""
    flip = low + high > 0
    near: Tensor = torch.special.log_ndtr(torch.where(flip, -low, high))
    far: Tensor = torch.special.log_ndtr(torch.where(flip, -high, low))
    return near + torch.log(-torch.expm1(far - near))


def _window(left: Tensor, right: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """[left, right), where a count is likely, cut to where the mass is, [low, high).

    It is uncut on a side where nothing would be left, or where its middle would go: the product of
    both has its peak between them.
    """
    middle = (left + right) / 2
    before = (low >= right) | (left.isfinite() & (middle < low))
    left = torch.where(before, left, torch.maximum(left, low)).clamp_min(0)
    after = (high <= left) | (right.isfinite() & (middle > high))
    return left, torch.where(after, right, torch.minimum(right, high))


def _likeliest(rate: Tensor, left: Tensor, right: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
    """Electrons at the peak of a Poisson distribution, and their standard deviation there: (n,)
    each.  Where `inner`, of its product with the Gaussian that [left, right) holds to 8 standard
    deviations, by bisection."""
    middle = torch.where(inner, (left + right) / 2, rate)
    precision = (16 / (right - left)).square().where(inner, 0.0)
    low, high = torch.minimum(rate, middle).clamp_min(0), torch.maximum(rate, middle)
    log_rate = rate.log()
    for _ in range(BISECTIONS):
        n = (low + high) / 2
        rises = log_rate - (n + 0.5).log() + (middle - n) * precision > 0
        low, high = torch.where(rises, n, low), torch.where(rises, high, n)
    return high, (1 / (high + 1) + precision).rsqrt()


def _log_poisson(rate: Tensor, left: Tensor, right: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
    """Electrons in [left, right) and their log probability: both (64, n), from rate, left, right
    (n,).

    Where `inner` (n,), all electrons count, and those near the peak of their product with the read
    noise are enough.
    """
    with torch.no_grad():
        peak, sigma = _likeliest(rate, left, right, inner)
        spread = 8 * sigma + 16
        low, high = (peak - spread).clamp_min(0), peak + spread
        left, right = _window(left, right, low, high)
        left, right = torch.where(inner, low, left), torch.where(inner, high, right)
        first = left.ceil()
        right = torch.where(right.isinf(), first + spread, right)
        count = (right.ceil() - first).clamp_min(1)
        # up to 64 numbers of electrons are summed; of more, the sum is smooth enough for
        # Gauss-Legendre
        index = torch.arange(64, device=rate.device, dtype=rate.dtype)[:, None]
        nodes, weights = (a.to(rate.device)[:, None] for a in (_NODES, _WEIGHTS))
        few = count <= 64
        n = first + torch.where(few, index, (nodes + 1) / 2 * count - 0.5)
        weight = torch.where(few, (index < count).to(rate.dtype), weights / 2 * count)
        constant = weight.log() - torch.lgamma(n + 1)
    return n, n * rate.log() - rate + constant


def _log_poisson_gamma(
    rate: Tensor, gain: Tensor, left: Tensor, right: Tensor
) -> tuple[Tensor, Tensor]:
    """Electrons after the register and their log mass, as `_log_poisson`, but for the mass at zero.

    In t = sqrt(electrons / gain) the density is 2 sqrt(rate) exp(-(t - sqrt(rate))^2) I1e(2
    sqrt(rate) t), nearly a Gaussian of the same width at every rate.
    """
    root = rate.sqrt()
    with torch.no_grad():
        left, right = (x.clamp_min(0).div(gain).sqrt() for x in (left, right))
        left, right = _window(left, right, root - 6, root + 6)
        width = torch.where(right.isinf(), 6.0, right - left).clamp_min(1e-6)
        nodes, weights = (a.to(rate.device)[:, None] for a in (_NODES, _WEIGHTS))
        t = left + (nodes + 1) / 2 * width
        constant = log(2) + (weights / 2 * width).log()
    return gain * t**2, constant + root.log() - (t - root) ** 2 + torch.special.i1e(
        2 * root * t
    ).log()
