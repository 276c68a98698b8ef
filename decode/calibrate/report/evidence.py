"""The evidence of the beads on a PSF: residuals, noise and usable depths, on which a verdict
rests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad

from decode.calibrate.bead_fit import centroids
from decode.calibrate.held_out import HeldOut, Range, usable_range
from decode.calibrate.psf import PSFCalibration
from decode.optics.camera import DARKEST, Noise
from decode.optics.psf import PSF

__all__ = ["BeadImages", "Evidence", "change_of_light", "photon_transfer"]

DIM_MOLECULE_PHOTONS = 1000.0
"""photons of the molecule for which depths are compared"""
FAR_APART_NM = 300.0
"""least distance of two depths whose images are compared"""
CONFUSING_CONTRAST = 4.0
"""distance of two images in standard deviations: the wrong one is more likely in 2 % of cases"""
LIGHT_GROUPS = 200
"""number of groups of pixels of similar expected light, in the photon transfer"""
MOMENTS_WITHIN_PX = 3.0
"""standard deviation of the window for the second moments of spots"""
AT_ONCE = 64
"""number of images drawn at a time"""


@final
@dataclass(frozen=True, kw_only=True)
class BeadImages:
    """Measured beads, their model, and the noise estimated from their planes."""

    measured: Tensor
    """(n, z, y, x) photons"""
    expected: Tensor
    """(n, z, y, x) photons"""
    photons: Tensor
    """(n, z) photons of each bead and plane, within the PSF of its crop"""
    noise: Noise
    """noise by neighbouring planes, which depends neither on the camera file nor on errors of the
    PSF"""

    @classmethod
    def of(cls, calibration: PSFCalibration) -> BeadImages:
        """Every bead with its model, at the fitted position and brightness."""
        measured = torch.stack([bead.photons for bead in calibration.beads])
        shares = _shares(calibration, side=measured.shape[-1])
        photons, background = _brightness(measured, shares)
        expected = photons[..., None, None] * shares + background[..., None, None]
        noise = photon_transfer(measured, expected)
        return cls(measured=measured, expected=expected, photons=photons, noise=noise)

    @property
    def residual(self) -> Tensor:
        """(n, z, y, x) measured less expected, in standard deviations of the noise."""
        return (self.measured - self.expected) / self.noise.variance(self.expected).sqrt()

    @property
    def misfit(self) -> float:
        """Mean square of the residual; 1 for noise alone."""
        return float(self.residual.square().mean())


@final
@dataclass(frozen=True)
class Evidence:
    """A calibration and the evidence of its beads, computed on demand and once."""

    calibration: PSFCalibration

    @cached_property
    def images(self) -> BeadImages:
        return BeadImages.of(self.calibration)

    @property
    def psf(self) -> PSF:
        return self.calibration.psf

    @property
    def n_beads(self) -> int:
        return len(self.calibration.beads)

    @property
    def n_stacks(self) -> int:
        """Stacks that hold usable beads."""
        return len({bead.stack for bead in self.calibration.beads})

    @property
    def held_out(self) -> HeldOut | None:
        """None with a single bead."""
        return self.calibration.held_out

    @cached_property
    def usable(self) -> Range | None:
        """Depths over which beads that were not fitted are found well."""
        return None if self.held_out is None else usable_range(self.held_out)

    @cached_property
    def usable_laterally(self) -> Range | None:
        """The same for x and y alone."""
        return None if self.held_out is None else usable_range(self.held_out, lateral=True)

    @cached_property
    def in_use(self) -> HeldOut | None:
        """Beads that were held out, in the planes of the usable range; None if there is none."""
        if self.held_out is None or self.usable is None:
            return None
        return self.held_out.among(self.held_out.inside(self.usable))

    @cached_property
    def steady_in_use(self) -> HeldOut | None:
        """The same without the stage's jitter, whose mean over all planes is 0."""
        if self.held_out is None or self.usable is None:
            return None
        return self.held_out.steady().among(self.held_out.inside(self.usable))

    @property
    def jitter_rms_nm(self) -> Tensor:
        """(3,) rms jitter of the stage along x, y and z, over all beads and planes."""
        return self.calibration.jitter_nm.square().mean((0, 1)).sqrt()

    @torch.no_grad()
    def wobble_nm(self, z_nm: Tensor) -> Tensor:
        """(z, 2) offset of the centroid of the light from the emitter, at depths (z,)."""
        psf = self.psf
        images = _drawn(psf, _in_the_middle(psf, z_nm))
        return centroids(images, psf.pixel_size_nm) - psf.patch_px / 2 * psf.pixel_size_nm

    @property
    def walk_per_nm(self) -> float:
        """Lateral displacement of the centroid per displacement along z, without unit."""
        low, high = self.usable or self.calibration.file.z_range_nm
        z = torch.linspace(low, high, 41)
        return float(_slope(self.wobble_nm(z), z).norm())

    @property
    def halfway_nm(self) -> float:
        """Half of the usable depth on the thinner side of focus; at most 0 where focus lies at an
        end."""
        low, high = self.usable or self.calibration.file.z_range_nm
        return min(-low, high) / 2

    @torch.no_grad()
    def stretch(self) -> tuple[float, float]:
        """Difference in shape of spots above focus from those as far below.

        Returns:
            The angle, radians from x towards y, along which spots above are longer, and the
            difference of the second moments over their mean; 0 for a PSF that is the same on both
            sides.
        """
        depth = self.halfway_nm
        if depth <= 0:
            return 0.0, 0.0
        images = _drawn(self.psf, _in_the_middle(self.psf, torch.tensor([depth, -depth])))
        above, below = _second_moments(images)
        (xx, xy), (_, yy) = (above - below).tolist()
        mean = float((above + below).trace()) / 4
        return math.atan2(2 * xy, xx - yy) / 2, math.hypot(2 * xy, xx - yy) / mean

    @torch.no_grad()
    def lookalikes(self) -> tuple[float, float] | None:
        """The two distant depths, nm, whose images of a dim molecule differ least.

        Returns:
            The lower and the higher; None if noise does not confuse them.
        """
        z = torch.linspace(*self.calibration.file.z_range_nm, 41)
        images = self.psf.integrate_pixels(_in_the_middle(self.psf, z)).clamp_min(0).flatten(1)
        light = DIM_MOLECULE_PHOTONS * images
        variance = self.images.noise.variance(light.mean(0) + self.calibration.background.median())
        distance = torch.cdist(light / variance.sqrt(), light / variance.sqrt())
        distance[(z[:, None] - z).abs() < FAR_APART_NM] = math.inf
        if float(distance.min()) >= CONFUSING_CONTRAST:
            return None
        row, column = divmod(int(distance.argmin()), len(z))
        low, high = sorted((float(z[row]), float(z[column])))
        return low, high


def change_of_light(photons: Tensor) -> float:
    """Relative change of the beads' light from the first plane to the last; negative: they lose
    light.

    Args:
        photons: (n, z) of each bead and plane.
    """
    mean = (photons / photons.mean(1, keepdim=True)).mean(0)
    # light fades by the same part in each plane, and never by more than there is
    way = torch.linspace(0, 1, len(mean))
    return math.expm1(float(_slope(mean.clamp_min(0.01).log(), way)))


def photon_transfer(measured: Tensor, expected: Tensor) -> Noise:
    """Variance against mean within stacks, by least squares weighted with the variance itself.

    Errors of the model change little from plane to plane, so that second differences over z
    (weights 1, -2, 1, whose squares sum to 6) hold the noise alone.  Pixels are grouped by their
    expected, not by their noisy light, and the light of each group is measured (Wald, Ann. Math.
    Stat. 11, 284, 1940): a wrong model costs precision, but does not bias.

    Args:
        measured, expected: (n, z, y, x) photons.
    """
    square = (measured - expected).double().diff(n=2, dim=1).square().flatten() / 6
    light = measured.double().unfold(1, 3, 1).mean(-1).flatten()
    order = expected[:, 1:-1].flatten().argsort()
    groups = order.tensor_split(min(LIGHT_GROUPS, len(order)))
    mean = torch.stack([light[group].mean() for group in groups])
    variance = torch.stack([square[group].mean() for group in groups])
    design = torch.stack([mean, torch.ones_like(mean)])
    excess, floor = 1.0, float(variance.min())
    for _ in range(10):
        weighted = design / (excess * mean + floor).clamp_min(1e-6) ** 2
        slope, level = torch.linalg.solve(weighted @ design.T, weighted @ variance).tolist()
        excess, floor = max(slope, 1e-3), max(level, 0.0)
    return Noise(excess, floor)


@torch.no_grad()
def _shares(calibration: PSFCalibration, *, side: int) -> Tensor:
    """(n, z, side, side) fraction of each bead's light in the pixels of its crop."""
    psf, z = calibration.psf, calibration.z_nm
    margin = (psf.patch_px - side) // 2
    corner = torch.tensor([margin * psf.pixel_size_nm] * 2 + [0.0])
    crop = slice(margin, margin + side)
    shares = []
    beads = zip(calibration.beads, calibration.xyz, calibration.jitter_nm, strict=True)
    for bead, xyz, jitter in beads:
        x, y = (c * psf.pixel_size_nm for c in bead.centre_px)
        parameters = psf.parameters_at(torch.tensor([[x, y, 0.0]]).expand(len(z), 3))
        at = xyz + pad(z[:, None], (2, 0)) + jitter + corner
        shares.append(_drawn(psf, at, parameters)[:, crop, crop])
    return torch.stack(shares)


def _drawn(psf: PSF, xyz: Tensor, parameters: Tensor | None = None) -> Tensor:
    """(n, y, x) images of `integrate_pixels`, some at a time."""
    images = []
    for start in range(0, len(xyz), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        own = None if parameters is None else parameters[some]
        images.append(psf.integrate_pixels(xyz[some], own))
    return torch.cat(images)


def _in_the_middle(psf: PSF, z_nm: Tensor) -> Tensor:
    """(z, 3) positions in the middle of the patch at depths (z,), nm."""
    middle = psf.patch_px / 2 * psf.pixel_size_nm
    return torch.cat([torch.full((len(z_nm), 2), middle), z_nm[:, None]], 1)


def _second_moments(images: Tensor) -> Tensor:
    """(n, 2, 2) px^2 in x and y of the bright middle of (n, y, x) images."""
    side = torch.arange(images.shape[-1]) - (images.shape[-1] - 1) / 2
    # noise far from the middle would weigh most
    window = torch.exp(-(side**2) / 2 / MOMENTS_WITHIN_PX**2)
    light = images.clamp_min(0).double() * window * window[:, None]
    light = light / light.sum((1, 2), keepdim=True)
    y, x = torch.meshgrid(side.double(), side.double(), indexing="ij")
    at = torch.stack([x, y])
    mean = torch.einsum("nyx,iyx->ni", light, at)
    square = torch.einsum("nyx,iyx,jyx->nij", light, at, at)
    return square - mean[:, :, None] * mean[:, None, :]


def _brightness(measured: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """(n, z) photons and (n, z) background per pixel of the best fit to beads, plane by plane.

    Least squares, weighted by the variance that the last model implies.

    Args:
        measured: (n, z, y, x) photons.
        shares: (n, z, y, x) fraction of the light in each pixel.
    """
    design = torch.stack([shares, torch.ones_like(shares)], 2).flatten(3).double()
    data = measured.flatten(2).double()
    model = data.mean(2, keepdim=True).expand_as(data)
    linear = data.new_zeros(*data.shape[:2], 2)
    for _ in range(3):
        weighted = design / model.clamp_min(DARKEST)[..., None, :]
        linear = torch.linalg.solve(weighted @ design.mT, (weighted @ data[..., None])[..., 0])
        model = (linear[..., None, :] @ design)[..., 0, :]
    photons, background = linear.to(measured).unbind(-1)
    return photons, background


def _slope(values: Tensor, z: Tensor) -> Tensor:
    """Slopes of straight lines through values (z, ...), by least squares."""
    centred = (z - z.mean()).to(values)
    return torch.tensordot(centred, values, 1) / centred.square().sum()
