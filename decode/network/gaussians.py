"""TruncatedGaussians: positions and photons of emitters, given their pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, final

import torch
from torch import Tensor

__all__ = ["TruncatedGaussians", "log_mass", "log_normal", "truncated_moments"]

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


@final
@dataclass(frozen=True, kw_only=True)
class TruncatedGaussians:
    """m emitters, each in a given pixel: x and y are Gaussian, truncated to the pixel's area;
    photons and z are Gaussian.

    Example:
        >>> import torch
        >>> flat = TruncatedGaussians(
        ...     pixel=torch.tensor([[3, 1]]),
        ...     offset_px=torch.tensor([[0.5, 0.0]], dtype=torch.float64),
        ...     offset_sigma_px=torch.full((1, 2), 100.0, dtype=torch.float64),
        ...     photons=torch.tensor([1000.0], dtype=torch.float64),
        ...     photons_sigma=torch.tensor([50.0], dtype=torch.float64),
        ...     pixel_size_nm=100.0,
        ... )
        >>> mean, variance = flat.moments()
        >>> [round(float(v), 1) for v in (*mean[0], variance[0, 0])]
        [350.0, 150.0, 1000.0, 0.0, 833.3]
    """

    pixel: Tensor
    """(m, 2) int64, column and row"""
    offset_px: Tensor
    """(m, 2) centre before truncation, from that of the pixel; x, y"""
    offset_sigma_px: Tensor
    """(m, 2) width before truncation"""
    photons: Tensor
    """(m,) mean"""
    photons_sigma: Tensor
    """(m,)"""
    z_nm: Tensor | None = None
    """(m,) mean"""
    z_sigma_nm: Tensor | None = None
    """(m,)"""
    pixel_size_nm: float

    def __len__(self) -> int:
        return len(self.pixel)

    def __getitem__(self, rows: Tensor) -> TruncatedGaussians:
        """The emitters of some rows, in their order."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen: dict[str, Any] = {k: v[rows] for k, v in named.items() if isinstance(v, Tensor)}
        return replace(self, **chosen)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of (x, y, photons, z) in nm and photons: (m, 4) each; z is 0 in 2D."""
        offset, spread = truncated_moments(self.offset_px, self.offset_sigma_px)
        place = (self.pixel + 0.5 + offset) * self.pixel_size_nm
        z, z_variance = torch.zeros_like(self.photons), torch.zeros_like(self.photons)
        if self.z_nm is not None and self.z_sigma_nm is not None:
            z, z_variance = self.z_nm, self.z_sigma_nm**2
        mean = torch.cat([place, self.photons[:, None], z[:, None]], 1)
        photons_variance = self.photons_sigma[:, None] ** 2
        spread = spread * self.pixel_size_nm**2
        return mean, torch.cat([spread, photons_variance, z_variance[:, None]], 1)

    def sample(self, rng: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw (m, 3) positions in nm and (m,) photons of every emitter."""
        device, dtype = self.photons.device, self.photons.dtype
        u = torch.rand(len(self), 2, generator=rng, device=device, dtype=dtype)
        noise = torch.randn(len(self), 2, generator=rng, device=device, dtype=dtype)
        # mirrored so that the pixel lies in the left tail, which log_ndtr resolves, and ndtr not
        sign = torch.where(self.offset_px < 0, -1.0, 1.0).to(u)
        centre, width = sign * self.offset_px, self.offset_sigma_px
        low, high = (torch.special.log_ndtr((e - centre) / width).exp() for e in (-0.5, 0.5))
        inner = centre + width * torch.special.ndtri(low + u * (high - low))
        # further out, the mass is all at the edge
        inner = torch.where(high > low, inner, 0.5).clamp(-0.5 + 1e-9, 0.5 - 1e-9)
        offset = sign * inner
        xy = (self.pixel + 0.5 + offset) * self.pixel_size_nm
        z = torch.zeros_like(self.photons)
        if self.z_nm is not None and self.z_sigma_nm is not None:
            z = self.z_nm + noise[:, 0] * self.z_sigma_nm
        return torch.cat([xy, z[:, None]], 1), self.photons + noise[:, 1] * self.photons_sigma

    def mass(self, axis: int, parts: int) -> Tensor:
        """Probability of each of the equal parts that a pixel is cut into along an axis.

        Args:
            axis: 0 for x, 1 for y.
            parts: number of them.

        Returns:
            (m, parts); rows sum to 1.
        """
        edges = torch.linspace(-0.5, 0.5, parts + 1).to(self.offset_px)
        centre, width = self.offset_px[:, axis, None], self.offset_sigma_px[:, axis, None]
        # mirrored so that the pixel lies in the left tail, which log_ndtr resolves
        below = torch.special.log_ndtr((edges - centre.abs()) / width)
        share = (below - below[:, -1:]).exp().diff(dim=1)
        share = share / share.sum(1, keepdim=True)
        return torch.where(centre < 0, share.flip(1), share)


def log_normal(value: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """Log density of a normal distribution."""
    return -0.5 * ((value - mean) / sigma) ** 2 - sigma.log() - LOG_SQRT_2PI


def log_mass(centre: Tensor, sigma: Tensor) -> Tensor:
    """Log probability of a normal variate in [-0.5, 0.5]; both tails keep full precision."""
    # mirrored so that the interval lies in the left tail, which log_ndtr resolves
    distance = centre.abs()
    low = torch.special.log_ndtr((-0.5 - distance) / sigma)
    high = torch.special.log_ndtr((0.5 - distance) / sigma)
    return high + torch.log1p(-torch.exp((low - high).clamp(max=-1e-6)))


def truncated_moments(centre: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of a normal variate truncated to [-0.5, 0.5].

    Johnson, Kotz and Balakrishnan, Continuous Univariate Distributions 1, 1994, sec. 13.10.
    """
    mass = log_mass(centre, sigma)
    low, high = (-0.5 - centre) / sigma, (0.5 - centre) / sigma
    density_low = torch.exp(-0.5 * low**2 - LOG_SQRT_2PI - mass)
    density_high = torch.exp(-0.5 * high**2 - LOG_SQRT_2PI - mass)
    shift = density_low - density_high
    variance = sigma**2 * (1 + low * density_low - high * density_high - shift**2)
    # a uniform pixel has the largest variance; far tails cancel, and keep at least a trace
    return (centre + sigma * shift).clamp(-0.5, 0.5), variance.clamp(1e-8, 1 / 12)
