"""Maximum-likelihood positions of single emitters, with covariance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad

from decode.optics.camera import DARKEST, Camera, Noise
from decode.optics.psf import PSF

__all__ = ["Fit", "fit_emitters", "scaled_deviance"]


def scaled_deviance(photons: Tensor, expected: Tensor, noise: Noise) -> Tensor:
    """Deviance of photons of `Camera.to_photons`: twice the log-likelihood lost against a perfect
    model.

    Divided by their variance per photon, photons plus the noise floor have the variance of a
    Poisson count for any camera (Huang et al., Nature Methods 10, 653, 2013).  The Poisson deviance
    is then that of a quasi-likelihood (Wedderburn, Biometrika 61, 439, 1974), whose estimates are
    consistent as long as mean and variance are right.

    Args:
        photons: measured photons, also negative ones.
        expected: expected photons; broadcasts.  Values below `DARKEST` count as that many.
        noise: noise of the measured photons.

    Returns:
        The deviance of every pixel; on average about 1 where the model is right, and less where
        electrons are rare (0.8 at one photon on an EMCCD, whose empty pixels scatter less than the
        Gaussian of the model).
    """
    offset = noise.floor / noise.excess**2
    measured = (photons / noise.excess + offset).clamp_min(0)
    mean = expected.clamp_min(DARKEST) / noise.excess + offset
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
    """(n, 5, 5) covariance of x, y, z, photons and background: the inverse of the Fisher
    information"""
    deviance: Tensor
    """(n,) deviance per degree of freedom; about 1 where model and camera are right"""
    converged: Tensor
    """(n,) bool"""
    alone: Tensor
    """(n,) bool; whether no other emitter was fitted together with it, in any of its frames"""

    @property
    def xyz_sigma(self) -> Tensor:
        """(n, 3) standard deviations, nm."""
        return self.covariance.diagonal(dim1=1, dim2=2)[:, :3].clamp_min(0).sqrt()

    @property
    def photons_sigma(self) -> Tensor:
        """(n,) standard deviation, photons."""
        return self.covariance[:, 3, 3].clamp_min(0).sqrt()

    def values(self, axes: Sequence[int]) -> Tensor:
        """(n, p) positions along some axes, photons and background."""
        return torch.cat([self.xyz[:, axes], self.photons[:, None], self.background[:, None]], 1)

    def __getitem__(self, rows: Tensor) -> Fit:
        """The fits of some rows, by index or mask."""
        return Fit(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @staticmethod
    def cat(parts: Sequence[Fit]) -> Fit:
        """The fits of several sets of rows, in the order given."""
        names = [f.name for f in fields(Fit)]
        return Fit(**{name: torch.cat([getattr(p, name) for p in parts]) for name in names})

    def where(self, rows: Tensor, other: Fit) -> Fit:
        """These fits where (n,) `rows` is True, and the other ones elsewhere."""

        def chosen(name: str) -> Tensor:
            own, others = getattr(self, name), getattr(other, name)
            return torch.where(rows.view(-1, *[1] * (own.ndim - 1)), own, others)

        return Fit(**{f.name: chosen(f.name) for f in fields(self)})


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
    As the likelihood has many optima in depth, the fit starts at the best of some depths over the
    whole range.

    Args:
        psf: the point spread function.
        camera: gives the noise, with the medians of its maps, unless `noise_floor` is given.
        photons: (n, y, x) crops of measured photons, background included.
        xyz: (n, 3) start, nm, from the outer corner of the crop; z is searched over `z_range`.
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
    if noise_floor is not None:
        noise = Noise(noise.excess, noise_floor.to(xyz.dtype))
    photons = photons.to(xyz.dtype)
    corner = torch.floor(xyz[:, :2] / psf.pixel_size_nm).long() - psf.patch_px // 2
    origin = pad(corner * psf.pixel_size_nm, (0, 1))

    def image(position: Tensor) -> Tensor:
        """(n, height, width) fraction of light in each pixel of the crops."""
        patches = psf.integrate_pixels(position - origin, parameters)
        return _placed(patches[:, None], corner, height, width)[:, 0]

    def image_with_slopes(position: Tensor) -> Tensor:
        """(n, 4, height, width) that fraction, and its slopes along x, y and z per nm."""
        patches = psf.integrate_pixels_with_slopes(position - origin, parameters)
        return _placed(patches, corner, height, width)

    def start_at(z: Tensor) -> tuple[Tensor, Tensor]:
        """Photons and background by weighted least squares at depths (n,), and the deviance."""
        position = torch.cat([xyz[:, :2], z[:, None]], 1)
        share = image(position)
        design = torch.stack([share, torch.ones_like(share)], 1)
        model = photons.mean((1, 2), keepdim=True).expand_as(photons)
        for _ in range(3):  # weighted by the variance that the last model implies
            weight = 1 / noise.variance(model)
            normal = torch.einsum("niyx,njyx,nyx->nij", design, design, weight)
            right = torch.einsum("niyx,nyx->ni", design, weight * photons)
            linear = torch.linalg.solve(normal + 1e-9 * torch.eye(2, dtype=normal.dtype), right)
            bright, dark = linear[:, 0].clamp_min(10), linear[:, 1].clamp_min(0.01)
            model = bright[:, None, None] * share + dark[:, None, None]
        lost = scaled_deviance(photons, model, noise).sum((1, 2))
        return torch.cat([position, bright[:, None], dark[:, None]], 1), lost

    spread = torch.linspace(*z_range, z_starts + 2, dtype=xyz.dtype)[1:-1]
    depths = spread[:, None].expand(-1, n) if z_starts > 1 else xyz[None, :, 2]
    starts = [start_at(z) for z in depths]
    best = torch.stack([lost for _, lost in starts]).argmin(0)
    p = torch.stack([start for start, _ in starts])[best, torch.arange(n)]
    damping = torch.full((n,), 1e-2, dtype=xyz.dtype)
    longest = xyz.new_tensor(
        [psf.pixel_size_nm / 2, psf.pixel_size_nm / 2, 150.0, torch.inf, torch.inf]
    )

    def deviance(p: Tensor) -> Tensor:
        model = p[:, 3, None, None] * image(p[:, :3]) + p[:, 4, None, None]
        return scaled_deviance(photons, model, noise).sum((1, 2))

    lost = deviance(p)
    moving = torch.ones(n, dtype=torch.bool)
    for _ in range(n_steps):
        information, score = _information(p, image_with_slopes(p[:, :3]), photons, noise)
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
    information, _ = _information(p, image_with_slopes(p[:, :3]), photons, noise)
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


def _information(p: Tensor, image: Tensor, photons: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """Fisher information (n, 5, 5) and score (n, 5) of x, y, z, photons and background.

    Args:
        p: (n, 5) parameters at which they are computed.
        image: (n, 4, y, x) fraction of light and its slopes there.
        photons: (n, y, x) measured.
        noise: noise of the measured photons.
    """
    share, slopes = image[:, :1], image[:, 1:]
    bright, dark = p[:, 3, None, None, None], p[:, 4, None, None]
    mean = (bright * share)[:, 0] + dark
    slope = torch.cat([bright * slopes, share, torch.ones_like(share)], 1).flatten(2)
    weight = 1 / noise.variance(mean)
    information = torch.einsum("nik,njk,nk->nij", slope, slope, weight.flatten(1))
    score = torch.einsum("nik,nk->ni", slope, (weight * (photons - mean)).flatten(1))
    return information, score


def _placed(patches: Tensor, corner: Tensor, height: int, width: int) -> Tensor:
    """(n, c, height, width) crops that begin at 0, of patches (n, c, k, k) that begin at
    `corner`."""
    k = patches.shape[-1]
    y = torch.arange(height) - corner[:, 1:]
    x = torch.arange(width) - corner[:, :1]
    inside = ((y >= 0) & (y < k))[:, :, None] & ((x >= 0) & (x < k))[:, None, :]
    pixel = y.clamp(0, k - 1)[:, :, None] * k + x.clamp(0, k - 1)[:, None, :]
    pixel = pixel.flatten(1)[:, None].expand(-1, patches.shape[1], -1)
    seen = patches.flatten(2).gather(2, pixel).unflatten(2, (height, width))
    return torch.where(inside[:, None], seen, 0.0)
