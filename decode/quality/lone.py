"""Lone molecules: their images compared with those of the PSF."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import final

import torch
from torch import Tensor

from decode.likelihood.single import Fit, fit_emitters
from decode.optics.camera import Camera, Noise
from decode.optics.psf import PSF

__all__ = ["Crops", "LoneMolecules", "drawing"]

STEPS = 6
"""steps of the fit of a molecule from the network's position"""
BEND_PX = 0.25
"""step of the second derivatives of images, pixels"""
PARTS = 4
"""number of parts of the movie, and of the depth, between which molecules are compared"""
FEWEST = 30
"""fewest lone molecules of which figures are given"""
ERRORS = 2.0
"""standard errors by which figures are moved towards those of a movie that fits"""
MEDIAN_DEVIATION, ERROR_OF_MEDIAN = 0.674, 1.253
"""of a normal distribution: median absolute deviation over its standard deviation, and error of the
median over that of the mean"""
TURNED = 48
"""number of lone molecules to which other orientations of the PSF are fitted"""
SURE = 3.0
"""standard errors by which the likelihood of another orientation must be larger"""
DEPTHS = 7
"""number of depths from which such a fit starts, as depths change with the orientation of the
PSF"""
ALIKE = 0.01
"""relative difference up to which two images count as the same"""


@final
@dataclass(frozen=True, kw_only=True)
class Crops:
    """Square crops of frames, each around a lone molecule."""

    frame: Tensor
    """(n,)"""
    xyz: Tensor
    """(n, 3) nm, from the outer corner of the crop"""
    light: Tensor
    """(n, y, x) photons"""
    floor: Tensor
    """(n, y, x) variance at no light, photons squared"""
    parameters: Tensor
    """(n, p) parameters of the PSF; p = 0: its own"""

    @staticmethod
    def cat(parts: Sequence[Crops]) -> Crops:
        """One set of crops from several."""
        names = [f.name for f in fields(Crops)]
        return Crops(**{name: torch.cat([getattr(p, name) for p in parts]) for name in names})

    def __getitem__(self, rows: Tensor | slice) -> Crops:
        return Crops(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def __len__(self) -> int:
        return len(self.frame)


@final
@dataclass(frozen=True, kw_only=True)
class LoneMolecules:
    """Lone molecules, and how their images differ from those of the PSF."""

    crops: Crops
    deviance: Tensor
    """(n,) deviance per degree of freedom"""
    z: Tensor
    """(n,) nm"""
    excess: Tensor
    """(n, 2) excess variance of the image along x and y, over the variance of the PSF"""
    excess_sigma: Tensor
    """(n, 2) standard deviations"""
    image: Tensor
    """(n, y, x) expected photons, without background"""
    residual: Tensor
    """(n, y, x) measured less expected photons"""

    @classmethod
    @torch.no_grad()
    def of(cls, crops: Crops, psf: PSF, camera: Camera, *, axial: bool) -> LoneMolecules:
        """Fit each molecule.

        Where an image is wider than that of the PSF by the variances v along x and y, it differs
        by v / 2 times the second derivatives.  They are estimated together with changes of
        position, light and background, by weighted least squares.

        Args:
            crops: crops of the frames.
            psf: the PSF that they are compared with.
            camera: camera of the frames.
            axial: whether z is fitted.
        """
        fit = _fitted(crops, psf, camera, depths=1)
        parameters = crops.parameters if crops.parameters.shape[1] else None
        draw = drawing(psf, crops.light.shape[-1], parameters)
        light, h = fit.photons[:, None, None], BEND_PX * psf.pixel_size_nm
        share = draw(fit.xyz)
        slopes, bends = [], []
        for axis in (0, 1):
            step = torch.zeros(3)
            step[axis] = h
            more, less = draw(fit.xyz + step), draw(fit.xyz - step)
            slopes.append((more - less) / (2 * h))
            bends.append((more - 2 * share + less) / h**2)
        if axial:
            step = torch.tensor([0.0, 0.0, 10.0])
            slopes.append((draw(fit.xyz + step) - draw(fit.xyz - step)) / 20)
        steepness = sum(s.square().sum((1, 2)) for s in slopes[:2])
        variance = share.square().sum((1, 2)) / steepness
        image = light * share
        expected = image + fit.background[:, None, None]
        noise = Noise(camera.typical_noise.excess, crops.floor)
        bent = [light * bend * variance[:, None, None] / 2 for bend in bends]
        nuisance = [light * s * psf.pixel_size_nm for s in slopes]
        design = torch.stack([*bent, *nuisance, image, torch.ones_like(image)], 1).flatten(2)
        weight = 1 / noise.variance(expected).flatten(1)
        residual = crops.light - expected
        left = torch.einsum("nik,nk,njk->nij", design, weight, design)
        right = torch.einsum("nik,nk,nk->ni", design, weight, residual.flatten(1))
        covariance = torch.linalg.pinv(left.double(), rtol=1e-9, hermitian=True)
        change = torch.einsum("nij,nj->ni", covariance, right.double())
        sigma = covariance.diagonal(dim1=1, dim2=2)[:, :2].clamp_min(0).sqrt()
        return cls(
            crops=crops,
            deviance=fit.deviance,
            z=fit.xyz[:, 2],
            excess=change[:, :2].float(),
            excess_sigma=sigma.float(),
            image=image,
            residual=residual,
        )

    @property
    def enough(self) -> bool:
        """Whether there are enough lone molecules."""
        return len(self.crops) >= FEWEST

    def misfit(self) -> float:
        """Root mean square of the mean residual image over that of the mean image.

        It is averaged over parts of the depth, between which residuals could cancel.  The square is
        the product of two means, each over every other molecule, and so is free of noise, less two
        standard errors.  Only the better fitted half of the molecules count, as others may not be
        lone.
        """
        middle = self.image - self.image.mean((1, 2), keepdim=True)
        better = torch.nonzero(self.deviance <= self.deviance.median())[:, 0]
        parts = better[torch.argsort(self.z[better], stable=True)].tensor_split(PARTS)
        product, variance, whole = 0.0, 0.0, 0.0
        for part in parts:
            a, b = (self.residual[half] for half in (part[::2], part[1::2]))
            noise = [half.var(0) / len(half) for half in (a, b)]
            product += float((a.mean(0) * b.mean(0)).sum())
            variance += float((noise[0] * noise[1]).sum())
            whole += float(middle[part].mean(0).square().sum())
        beyond = product - ERRORS * math.sqrt(variance)
        return math.sqrt(max(0.0, beyond) / whole)

    def goodness(self) -> float:
        """First quartile of the deviance per degree of freedom, as molecules with a larger one may
        not be lone."""
        return float(self.deviance.quantile(0.25))

    @property
    def widening(self) -> Tensor:
        """(n,) excess variance, mean of x and y."""
        return self.excess.mean(1)

    def width(self) -> float:
        """Median width of the images over that of the PSF, two standard errors nearer to 1."""
        middle = self.widening.median()
        spread = float((self.widening - middle).abs().median()) / MEDIAN_DEVIATION
        error = ERROR_OF_MEDIAN * spread / math.sqrt(len(self.widening))
        excess = math.copysign(max(0.0, abs(float(middle)) - ERRORS * error), float(middle))
        return math.sqrt(max(0.05, 1 + excess))

    def width_spread(self) -> float:
        """Spread of that ratio between molecules, beyond noise."""
        noise = self.excess_sigma.square().sum(1) / 4
        return _spread(self.widening, noise) / 2

    def elongation(self) -> float:
        """Spread of the ratio of the widths along x and y between molecules, beyond noise."""
        x, y = self.excess.unbind(1)
        return _spread(x - y, self.excess_sigma.square().sum(1)) / 2

    def drift(self, *, axial: bool) -> float:
        """Largest Kruskal-Wallis statistic between parts of the movie, per degree of freedom, of
        width and of depth (J. Am. Stat. Assoc. 47, 583, 1952)."""
        values = [self.widening, self.z] if axial else [self.widening]
        return max(_kruskal_wallis(value, self.crops.frame) for value in values)

    def best_turn(self, psf: PSF, camera: Camera) -> tuple[str, float]:
        """The orientation of the PSF, other than the stated one, that explains them best.

        Returns:
            Its name, and the share that it explains of the deviance that the stated one leaves
            beyond noise; 0 where that may be chance.  ("", NaN) where the PSF is round.
        """
        z_range = psf.z_range_nm
        if z_range is None or _is_round(psf, z_range):
            return "", math.nan
        brightest = self.image.sum((1, 2)).argsort(descending=True)[:TURNED]
        crops = self.crops[brightest]
        stated = _fitted(crops, psf, camera, depths=DEPTHS, z_range=z_range).deviance
        gains: dict[str, Tensor] = {}
        for name, turn in TURNS.items():
            turned = turn(crops, psf.pixel_size_nm)
            other = _fitted(turned, psf, camera, depths=DEPTHS, z_range=z_range)
            gains[name] = stated - other.deviance
        best = max(gains, key=lambda name: float(gains[name].mean()))
        gain = gains[best]
        if float(gain.mean()) < SURE * float(gain.std()) / math.sqrt(len(gain)):
            return best, 0.0
        return best, float(gain.mean() / (stated.mean() - 1).clamp_min(0.05))


def _fitted(
    crops: Crops,
    psf: PSF,
    camera: Camera,
    *,
    depths: int,
    z_range: tuple[float, float] | None = None,
) -> Fit:
    parameters = crops.parameters if crops.parameters.shape[1] else None
    return fit_emitters(
        psf,
        camera,
        crops.light,
        crops.xyz,
        z_range=z_range or psf.z_range_nm or (-1.0, 1.0),
        z_starts=depths,
        n_steps=STEPS,
        noise_floor=crops.floor,
        parameters=parameters,
    )


def drawing(psf: PSF, side: int, parameters: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A function for the share of light in each pixel of square crops with molecules near their
    middles.

    Args:
        psf: the point spread function.
        side: side of the crops, pixels; an odd number.
        parameters: (n, p) of the PSF, or None.

    Returns:
        A function of (n, 3) nm, from the outer corner of the crop.
    """
    cut = psf.with_patch(side)
    return lambda xyz: cut.integrate_pixels(xyz, parameters)


def _spread(values: Tensor, noise: Tensor) -> float:
    """Robust standard deviation of values beyond their noise: half of them lie within 0.674
    standard deviations of the median."""
    far = (values - values.median()).square()
    known = noise <= noise.median() * 2
    return math.sqrt(max(0.0, float(far[known].median()) / 0.455 - float(noise[known].median())))


def _kruskal_wallis(values: Tensor, frame: Tensor) -> float:
    n = len(values)
    rank = torch.argsort(torch.argsort(values)).double() + 1
    parts = torch.argsort(frame, stable=True).tensor_split(PARTS)
    between = sum(len(p) * float(rank[p].mean() - (n + 1) / 2) ** 2 for p in parts)
    return 12 / (n * (n + 1)) * between / (PARTS - 1)


def _is_round(psf: PSF, z_range: tuple[float, float]) -> bool:
    """Whether the images of a PSF equal their transposes."""
    z = torch.linspace(*z_range, 5)
    middle = torch.full_like(z, psf.patch_px * psf.pixel_size_nm / 2)
    image = psf.integrate_pixels(torch.stack([middle, middle, z], 1))
    difference = (image - image.mT).square().sum() / image.square().sum()
    return bool(difference.sqrt() < ALIKE)


def _turn(
    *, transpose: bool = False, x: bool = False, y: bool = False
) -> Callable[[Crops, float], Crops]:
    """A function that flips crops along x and y, and then transposes them."""

    def turned(crops: Crops, pixel_size_nm: float) -> Crops:
        side = crops.light.shape[-1] * pixel_size_nm
        axes = [axis for axis, flip in ((2, x), (1, y)) if flip]
        light, floor = (image.flip(axes) for image in (crops.light, crops.floor))
        xyz = crops.xyz.clone()
        for axis, flip in enumerate((x, y)):
            if flip:
                xyz[:, axis] = side - xyz[:, axis]
        if transpose:
            light, floor, xyz = light.mT, floor.mT, xyz[:, [1, 0, 2]]
        return Crops(
            frame=crops.frame, xyz=xyz, light=light, floor=floor, parameters=crops.parameters
        )

    return turned


TURNS: dict[str, Callable[[Crops, float], Crops]] = {
    "transposed": _turn(transpose=True),
    "mirrored along x": _turn(x=True),
    "mirrored along y": _turn(y=True),
    "turned by 180 degrees": _turn(x=True, y=True),
    "turned by 90 degrees": _turn(transpose=True, y=True),
    "turned by 270 degrees": _turn(transpose=True, x=True),
    "transposed and turned by 180 degrees": _turn(transpose=True, x=True, y=True),
}
"""orientations of a movie relative to its PSF, with the functions that undo them"""
