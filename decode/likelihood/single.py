"""Maximum-likelihood positions of single emitters, with covariance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from decode.optics.camera import DARKEST, Camera
from decode.optics.psf import PSF

__all__ = ["Fit", "fit_emitters", "scaled_deviance"]


def scaled_deviance(
    photons: Tensor, expected: Tensor, excess: Tensor | float, floor: Tensor | float
) -> Tensor:
    """Twice the log-likelihood lost against a perfect model, for photons of `Camera.to_photons`.

    Divided by their variance per photon, counts plus the floor have the variance of a Poisson
    count whatever the camera (Huang et al., Nature Methods 10, 653, 2013); its deviance is that of
    a quasi-likelihood (Wedderburn, Biometrika 61, 439, 1974), whose estimates are unbiased as only
    mean and variance must be right.

    Args:
        photons: measured photons, also negative ones.
        expected: expected photons; broadcasts.  Less than `DARKEST` is not taken for true.
        excess: variance of the measured photons per expected photon (`Camera.excess_factor` over
            `qe`).
        floor: their variance at no light (`Camera.noise_floor`), photons squared.

    Returns:
        The deviance of every pixel; on average about 1 where the model is right, less where
        electrons are rare (0.8 at one photon on an EMCCD, whose empty pixels scatter less than the
        Gaussian they are taken for).
    """
    offset = floor / excess**2
    measured = (photons / excess + offset).clamp_min(0)
    mean = expected.clamp_min(DARKEST) / excess + offset
    return 2 * (mean - measured + torch.xlogy(measured, measured) - measured * mean.log())


@final
@dataclass(frozen=True, kw_only=True)
class Fit:
    """Emitters fitted one by one, each in a crop of its own."""

    xyz: Tensor
    """(n, 3) nm, from the outer corner of the crop"""
    photons: Tensor
    """(n,)"""
    background: Tensor
    """(n,) photons per pixel"""
    covariance: Tensor
    """(n, 5, 5) of x, y, z, photons and background: the inverse of the Fisher information"""
    deviance: Tensor
    """(n,) per degree of freedom; about 1 where model and camera are right"""
    converged: Tensor
    """(n,) bool"""
    alone: Tensor
    """(n,) bool: no other was fitted together with it, in any of its frames"""

    @property
    def xyz_sigma(self) -> Tensor:
        """(n, 3) standard deviations, nm."""
        return self.covariance.diagonal(dim1=1, dim2=2)[:, :3].clamp_min(0).sqrt()


@torch.no_grad()
def fit_emitters(
    psf: PSF,
    camera: Camera,
    photons: Tensor,
    xyz: Tensor,
    *,
    z_range: tuple[float, float],
    z_starts: int = 9,
    n_steps: int = 30,
    noise_floor: Tensor | None = None,
    parameters: Tensor | None = None,
) -> Fit:
    """Maximum-likelihood position, photons and background of single emitters.

    Levenberg-Marquardt on the deviance with the Fisher information as its Hessian (Smith et al.,
    Nature Methods 7, 373, 2010, whose likelihood it maximizes for a camera without read noise).
    Depth has many optima: the best of some depths over the whole range starts the fit.

    Args:
        psf: the point spread function.
        camera: gives the noise; of its maps the medians are taken unless `noise_floor` says more.
        photons: (n, y, x) crops of measured photons, background included.
        xyz: (n, 3) nm where to start, from the outer corner of the crop; z is looked for over
            `z_range`.
        z_range: lowest and highest depth allowed, nm.
        z_starts: number of depths tried; 1 keeps that of `xyz`.
        n_steps: most steps of the fit.
        noise_floor: (n, y, x) variance at no light of each pixel, photons squared.
        parameters: (n, p) PSF parameters, or None.

    Returns:
        The fits, in the precision of `xyz`.
    """
    n, height, width = photons.shape
    noise = camera.typical_noise
    excess = float(noise.excess)
    floor = torch.as_tensor(noise.floor if noise_floor is None else noise_floor, dtype=xyz.dtype)
    photons = photons.to(xyz.dtype)
    corner = torch.floor(xyz[:, :2] / psf.pixel_size_nm).long() - psf.patch_px // 2
    rows, columns = (torch.arange(side) for side in (height, width))

    def image(position: Tensor) -> Tensor:
        """(n, height, width) fraction of light in each pixel of the crops."""
        patch = psf.integrate_pixels(
            position - torch.cat([corner * psf.pixel_size_nm, torch.zeros_like(corner[:, :1])], 1),
            parameters,
        )
        return _placed(patch, corner, rows, columns)

    def start_at(z: Tensor) -> tuple[Tensor, Tensor]:
        """Photons and background by weighted least squares at depths (n,), and the deviance."""
        position = torch.cat([xyz[:, :2], z[:, None]], 1)
        share = image(position).flatten(1)
        design = torch.stack([share, torch.ones_like(share)], 1)
        model = photons.flatten(1).mean(1, keepdim=True)
        for _ in range(3):  # weighted by the variance that the last model implies
            weight = 1 / _variance(model, excess, _flat(floor))
            normal = torch.einsum("nik,njk,nk->nij", design, design, weight)
            right = torch.einsum("nik,nk->ni", design, weight * photons.flatten(1))
            linear = torch.linalg.solve(normal + 1e-9 * torch.eye(2, dtype=normal.dtype), right)
            light = linear[:, :1].clamp_min(10), linear[:, 1:].clamp_min(0.01)
            model = light[0] * share + light[1]
        lost = scaled_deviance(photons.flatten(1), model, excess, _flat(floor)).sum(1)
        return torch.cat([position, *light], 1), lost

    spread = torch.linspace(*z_range, z_starts + 2, dtype=xyz.dtype)[1:-1]
    depths = spread[:, None].expand(-1, n) if z_starts > 1 else xyz[None, :, 2]
    starts = [start_at(z) for z in depths]
    best = torch.stack([lost for _, lost in starts]).argmin(0)
    p = torch.stack([start for start, _ in starts])[best, torch.arange(n)]
    damping = torch.full((n,), 1e-2, dtype=xyz.dtype)
    longest = xyz.new_tensor(
        [psf.pixel_size_nm / 2, psf.pixel_size_nm / 2, 150.0, torch.inf, torch.inf]
    )
    axes = torch.eye(3, dtype=xyz.dtype)

    def deviance(p: Tensor) -> Tensor:
        model = p[:, 3, None, None] * image(p[:, :3]) + p[:, 4, None, None]
        return scaled_deviance(photons, model, excess, floor).sum((1, 2))

    lost = deviance(p)
    moving = torch.ones(n, dtype=torch.bool)
    for _ in range(n_steps):
        information, score = _information(p, image, photons, axes, excess, floor)
        diagonal = information.diagonal(dim1=1, dim2=2).clamp_min(1e-12)
        scale = diagonal.sqrt()
        correlation = information / (scale[:, :, None] * scale[:, None, :])
        damped = correlation + damping[:, None, None] * torch.eye(5, dtype=p.dtype)
        step = torch.linalg.solve(damped, score / scale) / scale
        trial = p + step.clamp(-longest, longest)
        trial[:, 2] = trial[:, 2].clamp(*z_range)
        trial[:, 3] = trial[:, 3].clamp_min(1)
        trial[:, 4] = trial[:, 4].clamp_min(0)
        now = deviance(trial)
        better = now <= lost
        # a gain of 0.01 in twice the log-likelihood is a tenth of a standard deviation
        moving = ((lost - now).abs() > 0.01) & (damping < 1e4)
        p = torch.where(better[:, None], trial, p)
        lost = torch.where(better, now, lost)
        damping = torch.where(better, damping / 5, damping * 5).clamp(1e-7, 1e6)
        if not bool(moving.any()):
            break
    information, _ = _information(p, image, photons, axes, excess, floor)
    scale = information.diagonal(dim1=1, dim2=2).clamp_min(1e-12).sqrt()
    outer = scale[:, :, None] * scale[:, None, :]
    covariance = torch.linalg.pinv(information / outer, hermitian=True) / outer
    return Fit(
        xyz=p[:, :3],
        photons=p[:, 3],
        background=p[:, 4],
        covariance=covariance,
        deviance=lost / (height * width - 5),
        converged=~moving,
        alone=torch.ones(len(xyz), dtype=torch.bool, device=xyz.device),
    )


def _information(
    p: Tensor,
    image: Callable[[Tensor], Tensor],
    photons: Tensor,
    axes: Tensor,
    excess: float,
    floor: Tensor,
) -> tuple[Tensor, Tensor]:
    """Fisher information (n, 5, 5) and score (n, 5) of x, y, z, photons and background."""
    # emitters are independent, so one forward-mode pass per axis differentiates all of them
    slopes = [
        torch.func.jvp(image, (p[:, :3],), (axis.expand(len(p), 3).contiguous(),))[1]
        for axis in axes
    ]
    share = image(p[:, :3])
    bright = p[:, 3, None, None]
    mean = bright * share + p[:, 4, None, None]
    slope = torch.stack([*(bright * s for s in slopes), share, torch.ones_like(share)], 1).flatten(
        2
    )
    weight = (1 / _variance(mean, excess, floor)).flatten(1)
    information = torch.einsum("nik,njk,nk->nij", slope, slope, weight)
    score = torch.einsum("nik,nk->ni", slope, weight * (photons - mean).flatten(1))
    return information, score


def _variance(mean: Tensor, excess: float, floor: Tensor) -> Tensor:
    return excess * mean.clamp_min(DARKEST) + floor


def _placed(patch: Tensor, corner: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(n, rows, columns) crops that begin at 0, of patches (n, k, k) that begin at `corner`."""
    k = patch.shape[-1]
    y, x = rows - corner[:, 1:], columns - corner[:, :1]
    inside = ((y >= 0) & (y < k))[:, :, None] & ((x >= 0) & (x < k))[:, None, :]
    y, x = y.clamp(0, k - 1), x.clamp(0, k - 1)
    seen = patch[torch.arange(len(patch))[:, None, None], y[:, :, None], x[:, None, :]]
    return torch.where(inside, seen, 0.0)


def _flat(value: Tensor) -> Tensor:
    return value.flatten(1) if value.ndim == 3 else value
