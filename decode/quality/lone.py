"""Lone molecules, and other isolated spots: their images compared with those of the PSF."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TypeAlias, final

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from decode.likelihood.single import Fit, fit_emitters
from decode.optics.camera import Camera, Noise
from decode.optics.psf import PSF
from decode.quality.trend import MEDIAN_DEVIATION, spread, trend

__all__ = ["MISFITS", "Crops", "LoneMolecules", "Pupil", "nearer_to_one"]

Pupil: TypeAlias = Callable[[float], PSF]
"""a PSF with so many more waves rms of spherical aberration"""

STEPS, MORE_STEPS = 3, 3
"""steps of the fit of a molecule from the network's position, and from that with a similar PSF"""
SLOPE = torch.tensor([1.0, -8.0, 0.0, 8.0, -1.0]) / 12
BEND = torch.tensor([-1.0, 16.0, -30.0, 16.0, -1.0]) / 12
"""first and second derivative per pixel, exact up to the fourth order"""
ELONGATIONS = torch.tensor([[2.0, -2.0, 0.0], [0.0, 0.0, 4.0]], dtype=torch.float64)
"""variance along x less that along y, and the same of axes turned by 45 degrees, of the first three
changes of an image"""
DIRECTIONS = 6
"""number of axes of elongation that are tried"""
ELONGATED, SURELY = 0.18, 2.0
"""logarithm of the ratio of widths from which a spot is elongated, and standard deviations of it"""
CLEAR = 0.3
"""largest variance of twice that logarithm by noise"""
LEAST_WIDTH = 0.5
"""smallest width of an image over that of the PSF"""
POWERS = (0, 1, 2)
"""powers of z with which the images of a wrong PSF differ"""
DEPTH_NM = 400.0
"""unit of z in them"""
CHANGES = 6
"""changes of the image that do not depend on the optics"""
SPHERICAL_WAVES = 0.02
"""spherical aberration of the PSF that is compared, besides, waves rms"""
SPHERICAL_FITS, SPHERICAL_STEP = 3, 0.05
"""further fits by which spherical aberration is found, and their largest step, waves rms"""
SLIGHT_WAVES, SLIGHT_WIDTH = 0.01, 0.03
"""spherical aberration, and width relative to the PSF's, up to which the first order is enough"""
FITS, MISFITS = 0.03, 0.04
"""misfit up to which a PSF counts as right, and from which its orientation may be the cause"""
UNEXPLAINED = 0.4
"""share of a misfit that is left from which something else explains it"""
LONE = 0.75
"""share of the molecules, those with the least deviance, that count as lone"""
FEWEST = 30
"""fewest lone molecules of which figures are given"""
TOLD = 0.15
"""largest error of the width of an image, over that of the PSF, that tells something: those of
dimmer molecules are fewer, and chosen by their width as only compact ones are found"""
WIDTH_FITS = 2
"""further fits by which a Gaussian's width is found"""
ERRORS = 2.0
"""standard errors by which figures are moved towards those of a movie that fits"""
ERROR_OF_MEDIAN = 1.253
"""error of the median of a normal distribution over that of the mean"""
TURNED = 96
"""number of lone molecules to which other orientations of the PSF are fitted"""
SURE = 3.0
"""standard errors by which the likelihood of another orientation must be larger"""
TURNED_STEPS, TURNED_FITS, TURNED_WIDTH = 10, 0.035, 0.05
"""steps of the fits of another orientation; misfit, and logarithm of the width of images over that
of the PSF, up to which it counts as right: another PSF altogether is rarely as wide, too"""
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
    place: Tensor
    """(n, 2) x and y in the frame, pixels"""
    alone: Tensor
    """(n,) bool; whether the table has one molecule there, and not several"""
    xyz: Tensor
    """(n, 3) nm, from the outer corner of the crop; in its middle pixel"""
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
    """with the positions of the fit, where they lie in the middle pixel"""
    deviance: Tensor
    """(n,) deviance per degree of freedom"""
    z: Tensor
    """(n,) nm"""
    score: Tensor
    """(n, 6 or 7) derivative of the log-likelihood by six changes of the image: its second
    derivatives along x, along y and along both, the slopes of their sum along x and y, and the sum
    of the fourth; and by a wave of spherical aberration, if the PSF tells; changes of position,
    light and background taken out"""
    information: Tensor
    """(n, 6, 6) or (n, 7, 7) Fisher information of the same"""
    power: Tensor
    """(n,) squared image over the variance of its noise, summed over pixels"""
    variance_px2: Tensor
    """(n,) variance of the image"""
    light: Tensor
    """(n,) photons"""
    axial: bool
    """whether z was fitted"""

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        crops: Crops,
        psf: PSF,
        camera: Camera,
        *,
        axial: bool,
        pupil: Pupil | None = None,
        n_steps: int = STEPS,
    ) -> LoneMolecules:
        """Fit each molecule, and compute the scores of changes of its image.

        Args:
            crops: crops of the frames.
            psf: the PSF that they are compared with.
            camera: camera of the frames.
            axial: whether z is fitted.
            pupil: the PSF with more spherical aberration.
            n_steps: most steps of the fit.
        """
        fit = _fitted(crops, psf, camera, n_steps=n_steps)
        parameters = crops.parameters if crops.parameters.shape[1] else None
        cut = psf.with_patch(crops.light.shape[-1])
        share, *slopes = cut.integrate_pixels_with_slopes(fit.xyz, parameters).unbind(1)
        slopes = [slope * psf.pixel_size_nm for slope in slopes[: 3 if axial else 2]]
        light = fit.photons[:, None, None]
        image = light * share
        expected = image + fit.background[:, None, None]
        noise = Noise(camera.typical_noise.excess, crops.floor)
        weight = (1 / noise.variance(expected)).flatten(1).double()
        nuisance = [*(light * slope for slope in slopes), image, torch.ones_like(image)]
        residual = crops.light - expected
        different = [*_changes(image)]
        if pupil is not None:
            side = crops.light.shape[-1]
            none, more = (
                _drawing(pupil(w), side, parameters)(fit.xyz) for w in (0, SPHERICAL_WAVES)
            )
            different.append(light * (more - none) / SPHERICAL_WAVES)
        changes = torch.stack([*different, residual], 1).flatten(2).double()
        without = _without(changes, torch.stack(nuisance, 1).flatten(2).double(), weight)
        changes, left = without[:, :-1], without[:, -1:]
        weighted = changes * weight[:, None]
        middle = (image - image.mean((1, 2), keepdim=True)).flatten(1).double()
        steepness = sum(slope.square().sum((1, 2)) for slope in slopes[:2])
        return cls(
            crops=replace(crops, xyz=_central(fit.xyz, crops.xyz, psf.pixel_size_nm)),
            deviance=fit.deviance,
            z=fit.xyz[:, 2],
            score=(weighted @ left.mT)[:, :, 0],
            information=weighted @ changes.mT,
            power=(middle.square() * weight).sum(1),
            variance_px2=share.square().sum((1, 2)) / steepness,
            light=fit.photons,
            axial=axial,
        )

    def __getitem__(self, rows: Tensor) -> LoneMolecules:
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "axial"}
        chosen = {name: value[rows] for name, value in values.items()}
        return LoneMolecules(axial=self.axial, **chosen)

    def fitted_width(self, psf: PSF, camera: Camera) -> float:
        """As `width`, of a Gaussian of one width, and two standard errors nearer to 1.

        As the score of a change is its first order only, the molecules are fitted again with the
        width that was found.
        """
        told = self[self.excess_sigma.square().sum(1).sqrt() / 4 < TOLD]
        if len(told.crops) < len(self.crops):
            return told.fitted_width(psf, camera) if told.enough else math.nan
        sigma_nm = float(psf.settings()["sigma_nm"])
        ratio, error = self.width()
        if abs(math.log(ratio)) < SLIGHT_WIDTH:
            return nearer_to_one(ratio, error)
        again = self
        for _ in range(WIDTH_FITS):
            width = torch.full((len(self.crops), 1), ratio * sigma_nm)
            crops = replace(again.crops, parameters=width)
            again = LoneMolecules.of(crops, psf, camera, axial=False, n_steps=MORE_STEPS)
            step, error = again.width()
            ratio *= min(max(step, 0.7), 1.5)
            if abs(math.log(step)) < SLIGHT_WIDTH:
                break
        return nearer_to_one(ratio, error)

    @property
    def enough(self) -> bool:
        """Whether there are enough lone molecules."""
        return len(self.crops) >= FEWEST

    def misfit(self) -> float:
        """Root mean square by which images differ from the PSF, over the image, in the noise's
        units.

        It is what five changes of the image explain besides a wider one, each constant, linear and
        quadratic in z: the score test (Rao, Proc. Camb. Phil. Soc. 44, 50, 1948), less what noise
        and the differences between molecules explain on average, and two standard errors.
        """
        lone = self.deviance <= self.deviance.quantile(LONE)
        z = (self.z[lone] / DEPTH_NM).double()
        powers = torch.stack([z**n for n in (POWERS if self.axial else POWERS[:1])], 1)
        scores = (powers[:, :, None] * self.score[lone, None, :CHANGES]).flatten(1)
        size = scores.shape[1]
        each = self.information[lone, :CHANGES, :CHANGES]
        information = torch.einsum("na,nb,nij->aibj", powers, powers, each)
        information = information.reshape(size, size)
        information += torch.diag(1e-9 * information.diagonal() + 1e-12)
        wider = torch.eye(size, dtype=torch.float64)[0] + torch.eye(size, dtype=torch.float64)[1]
        # coordinates in which a constant widening is the first, and no other correlates with it
        basis = torch.eye(size, dtype=torch.float64)
        basis[0] = wider
        of_wider = basis @ information @ wider
        basis[1:] -= (of_wider[1:] / of_wider[0])[:, None] * wider
        basis = basis[1:]
        score, spread = basis @ scores.sum(0), basis @ (scores.mT @ scores) @ basis.mT
        information = basis @ information @ basis.mT
        by_noise = torch.linalg.solve(information, spread)
        explained = score @ torch.linalg.solve(information, score) - by_noise.trace()
        error = (2 * (by_noise @ by_noise).trace()).sqrt()
        beyond = float(explained - ERRORS * error)
        return math.sqrt(max(0.0, beyond) / float(self.power[lone].sum()))

    def spherical(self) -> tuple[float, float]:
        """Spherical aberration that the PSF lacks, waves rms, of first order, and its standard
        error."""
        score, information = self.score[:, CHANGES], self.information[:, CHANGES, CHANGES]
        waves = score.sum() / information.sum()
        beyond = score - waves * information
        return float(waves), float(beyond.norm() / information.sum())

    def fitted_spherical(self, pupil: Pupil, camera: Camera) -> float:
        """Spherical aberration that the PSF lacks, waves rms, two standard errors nearer to 0.

        As a score is of first order, the molecules are fitted again with what was found, where that
        may be no chance.  It is 0 where images then differ from the PSF nearly as much: they are
        of another PSF altogether.
        """
        waves, error = self.spherical()
        if abs(waves) - ERRORS * error < SLIGHT_WAVES:
            return math.copysign(max(0.0, abs(waves) - ERRORS * error), waves)
        again = self
        for _ in range(SPHERICAL_FITS):
            if abs(waves) < ERRORS * error:
                return 0.0
            at = partial(_added, pupil, waves)
            again = LoneMolecules.of(
                again.crops, at(0.0), camera, axial=self.axial, pupil=at, n_steps=MORE_STEPS
            )
            step, error = again.spherical()
            waves += min(max(step, -SPHERICAL_STEP), SPHERICAL_STEP)
        if again.misfit() > max(FITS, UNEXPLAINED * self.misfit()):
            return 0.0
        return math.copysign(max(0.0, abs(waves) - ERRORS * error), waves)

    def goodness(self) -> float:
        """First quartile of the deviance per degree of freedom, as molecules with a larger one may
        not be lone."""
        return float(self.deviance.quantile(0.25))

    @property
    def excess(self) -> Tensor:
        """(n, 2) excess variance of the image along x and y, over the variance of the PSF.

        An image that is wider by the variance v differs by v / 2 times the second derivative.
        """
        change = (self._covariance @ self.score[:, :2, None])[:, :, 0]
        return (2 * change / self.variance_px2[:, None]).float()

    @property
    def excess_sigma(self) -> Tensor:
        """(n, 2) standard deviations of `excess`."""
        sigma = self._covariance.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
        return (2 * sigma / self.variance_px2[:, None]).float()

    @property
    def _covariance(self) -> Tensor:
        return torch.linalg.pinv(self.information[:, :2, :2], rtol=1e-9, hermitian=True)

    @property
    def widening(self) -> Tensor:
        """(n,) excess variance, mean of x and y."""
        return self.excess.mean(1)

    def width(self) -> tuple[float, float]:
        """Median width of the images over that of the PSF, and its standard error."""
        middle = self.widening.median()
        spread = float((self.widening - middle).abs().median()) / MEDIAN_DEVIATION
        ratio = math.sqrt(max(0.05, 1 + float(middle)))
        error = ERROR_OF_MEDIAN * spread / math.sqrt(len(self.widening))
        return ratio, error / (2 * ratio)

    def width_spread(self) -> float:
        """Spread of that ratio between molecules, beyond noise."""
        noise = self.excess_sigma.square().sum(1) / 4
        return spread(self.widening, noise) / 2

    def elongation(self) -> float:
        """Share of spots that are elongated along an axis or across it.

        It is that of the axis where it is largest, less that of the axis at 45 degrees to it:
        through a cylindrical lens images are long along one axis or across it, while two molecules
        that count as one lie in any direction.  NaN if there are too few spots that are bright
        enough to tell.
        """
        covariance = torch.linalg.pinv(self.information[:, :3, :3], rtol=1e-9, hermitian=True)
        change = (covariance @ self.score[:, :3, None])[:, :, 0]
        variance = self.variance_px2.double()
        both = change @ ELONGATIONS.mT / variance[:, None]
        noise = ELONGATIONS @ covariance @ ELONGATIONS.mT / variance[:, None, None] ** 2
        clear = noise.diagonal(dim1=1, dim2=2).mean(1) < CLEAR
        if int(clear.sum()) < FEWEST:
            return math.nan
        both, noise = both[clear] - both[clear].median(0).values, noise[clear]
        angles = [math.pi * i / DIRECTIONS for i in range(DIRECTIONS)]
        axes = both.new_tensor([[math.cos(angle), math.sin(angle)] for angle in angles])
        ratio = (both @ axes.mT).abs() / 2
        sigma = torch.einsum("ai,nij,aj->na", axes, noise, axes).clamp_min(0).sqrt() / 2
        share = ((ratio > ELONGATED) & (ratio > SURELY * sigma)).double().mean(0)
        return float((share - share.roll(DIRECTIONS // 2)).max())

    def drift(self) -> float:
        """Change over the movie of the logarithm of the height of images, by `trend`.

        Images out of focus are lower as they are wider, and as a part of their light is in rings.
        """
        variance = (1 + self.widening).clamp_min(LEAST_WIDTH**2)
        noise = self.excess_sigma.square().sum(1) / (4 * variance.square())
        wider = variance.log()
        height = self.light.clamp_min(1).log() - wider
        frame, place = self.crops.frame, self.crops.place
        return max(trend(values, noise, frame, place) for values in (wider, height))

    def best_turn(self, psf: PSF, camera: Camera) -> tuple[str, float]:
        """The orientation of the PSF, other than the stated one, that explains them best.

        Returns:
            Its name, and the share that it explains of the deviance that the stated one leaves
            beyond noise; 0 where that may be chance, or where images then differ from the PSF
            nearly as much: they are of another PSF altogether.  ("", NaN) where the PSF is round.
        """
        z_range = psf.z_range_nm
        if z_range is None or _is_round(psf, z_range):
            return "", math.nan
        brightest = self.light.argsort(descending=True)[:TURNED]
        crops = self.crops[brightest]
        stated = _fitted(crops, psf, camera, depths=DEPTHS, z_range=z_range).deviance
        gains: dict[str, Tensor] = {}
        turned: dict[str, Crops] = {}
        for name, turn in TURNS.items():
            other = turn(crops, psf.pixel_size_nm)
            fit = _fitted(other, psf, camera, depths=DEPTHS, z_range=z_range)
            gains[name] = stated - fit.deviance
            turned[name] = replace(other, xyz=_central(fit.xyz, other.xyz, psf.pixel_size_nm))
        best = max(gains, key=lambda name: float(gains[name].mean()))
        gain = gains[best]
        if float(gain.mean()) < SURE * float(gain.std()) / math.sqrt(len(gain)):
            return best, 0.0
        again = LoneMolecules.of(turned[best], psf, camera, axial=self.axial, n_steps=TURNED_STEPS)
        wider = abs(math.log(nearer_to_one(*again.width())))
        left = again.misfit() / max(TURNED_FITS, UNEXPLAINED * self[brightest].misfit())
        if left > 1 or wider > TURNED_WIDTH:
            return best, 0.0
        return best, float(gain.mean() / (stated.mean() - 1).clamp_min(0.05))


def _added(pupil: Pupil, waves: float, more: float) -> PSF:
    return pupil(waves + more)


def nearer_to_one(ratio: float, error: float) -> float:
    """A ratio moved towards 1 by two standard errors."""
    far = math.log(ratio)
    return math.exp(math.copysign(max(0.0, abs(far) - ERRORS * error), far))


def _fitted(
    crops: Crops,
    psf: PSF,
    camera: Camera,
    *,
    depths: int = 1,
    z_range: tuple[float, float] | None = None,
    n_steps: int = STEPS,
) -> Fit:
    parameters = crops.parameters if crops.parameters.shape[1] else None
    return fit_emitters(
        psf.with_patch(crops.light.shape[-1]),
        camera,
        crops.light,
        crops.xyz,
        z_range=z_range or psf.z_range_nm or (-1.0, 1.0),
        z_starts=depths,
        n_steps=n_steps,
        noise_floor=crops.floor,
        parameters=parameters,
    )


def _central(xyz: Tensor, start: Tensor, pixel_size_nm: float) -> Tensor:
    """Fitted positions (n, 3); their starts where they left the pixel of these."""
    pixel = (xyz[:, :2] / pixel_size_nm).floor() == (start[:, :2] / pixel_size_nm).floor()
    return torch.where(pixel.all(1, keepdim=True), xyz, start)


def _drawing(psf: PSF, side: int, parameters: Tensor | None) -> Callable[[Tensor], Tensor]:
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


def _changes(image: Tensor) -> tuple[Tensor, ...]:
    """The six changes of images (n, y, x) that `LoneMolecules.score` names."""
    along_x, along_y = _along(image, BEND, 2), _along(image, BEND, 1)
    both = along_x + along_y
    return (
        along_x,
        along_y,
        2 * _along(_along(image, SLOPE, 1), SLOPE, 2),
        _along(both, SLOPE, 2),
        _along(both, SLOPE, 1),
        _along(both, BEND, 1) + _along(both, BEND, 2),
    )


def _along(image: Tensor, taps: Tensor, axis: int) -> Tensor:
    """Images (n, y, x) correlated with five taps along an axis, their border repeated."""
    shape, border = ((1, 1, 5, 1), (0, 0, 2, 2)) if axis == 1 else ((1, 1, 1, 5), (2, 2, 0, 0))
    padded = pad(image[:, None], border, mode="replicate")
    return conv2d(padded, taps.to(image).view(shape))[:, 0]


def _without(images: Tensor, nuisance: Tensor, weight: Tensor) -> Tensor:
    """Images (n, k, pixels) less what others explain of them, by weighted least squares."""
    weighted = nuisance * weight[:, None]
    normal = weighted @ nuisance.mT
    normal += torch.diag_embed(1e-9 * normal.diagonal(dim1=1, dim2=2) + 1e-12)
    return images - torch.linalg.solve(normal, weighted @ images.mT).mT @ nuisance


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
            frame=crops.frame,
            place=crops.place,
            alone=crops.alone,
            xyz=xyz,
            light=light,
            floor=floor,
            parameters=crops.parameters,
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
