"""PupilBank: splines of many pupils, for movies of many microscopes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, NamedTuple, final

import numpy as np
import torch
from annotated_types import Gt, Le
from torch import Tensor

from decode.emitters import EmitterSet
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import PSF
from decode.optics.pupil import MODES, PupilPSF
from decode.optics.spline import SplinePSF
from decode.ranges import NonNegative, NonNegativeRange, PositiveRange, Range, check_settings

__all__ = ["Canonical", "PupilBank", "PupilPrior", "RoundPupilPrior", "canonical", "gaussian_width_px"]

IMMERSION_INDEX = 1.518
"""of all pupils in the bank: others are scaled to it, for only wavelength and aperture over the index matter"""
Aperture = Annotated[float, Gt(0), Le(IMMERSION_INDEX)]
ASTIGMATISM = (2, 2)
UNTOLD = ((5, -1), (5, 1), (5, -3), (5, 3), (6, 0), (6, -2), (6, 2))
"""(n, m) of the modes that real objectives have besides, a little"""
PATCH_PX = 25
"""side of the patch that holds the light of an emitter"""
FRESH = 0.25
"""splines renewed with every draw, on average"""


@final
@dataclass(frozen=True, kw_only=True)
class PupilPrior:
    """Ranges of microscopes with a cylindrical lens; every movie draws its own, and the network is told it.

    Nothing in optics has a scale but the wavelength, so lengths are in pixels, and aberrations in wavelengths (rms).
    """

    wavelength_px: PositiveRange = (4.0, 7.5)
    """emission wavelength over the pixel's side, in oil (index 1.518)"""
    numerical_aperture: tuple[Aperture, Aperture] = (1.15, 1.5)
    """in oil"""
    astigmatism_waves: PositiveRange = (0.05, 0.17)
    """(2, 2): makes spots beyond focus longer along y; `canonical` brings those of the other sign to it"""
    oblique_waves: NonNegative = 0.04
    """largest (2, -2) of either sign"""
    spherical_waves: NonNegative = 0.05
    """largest (4, 0) of either sign"""
    others_waves: NonNegative = 0.03
    """largest of each other mode up to the fourth order"""
    untold_waves: NonNegative = 0.008
    """standard deviation of modes of the fifth and sixth order, of which the network is not told"""
    blur_px: NonNegativeRange = (0.0, 1.2)
    """standard deviation of a Gaussian blur, pixels"""
    apodization: Range = (-0.7, 0.7)
    """loss of amplitude towards the rim"""
    told_error_waves: NonNegative = 0.003
    """standard deviation of the error of each aberration that the network is told: beads tell no better"""

    def __post_init__(self) -> None:
        check_settings(self)

    def told(self, values: Tensor, rng: torch.Generator) -> Tensor:
        """What users know of their pupils: (n, context) true values with the errors of a calibration."""
        aberrations = [float(name.startswith("zernike")) for name in self.context]
        error = torch.randn(values.shape, generator=rng, device=rng.device) * self.told_error_waves
        return values + error * torch.tensor(aberrations, device=rng.device)

    def sample(self, pixel_size_nm: float, rng: torch.Generator) -> tuple[PupilPSF, Tensor]:
        """A pupil and its (context,) true values."""
        ranges = torch.tensor(list(self.context.values()), device=rng.device)
        share = torch.rand(len(ranges), generator=rng, device=rng.device)
        values = ranges[:, 0] + share * (ranges[:, 1] - ranges[:, 0])
        known = dict(zip(self.context, values.tolist(), strict=True))
        untold = torch.randn(len(UNTOLD), generator=rng, device=rng.device) * self.untold_waves
        return self.pupil(known, pixel_size_nm, dict(zip(UNTOLD, untold.tolist(), strict=True))), values

    def middle(self, pixel_size_nm: float) -> PupilPSF:
        """The pupil in the middle of all ranges."""
        return self.pupil({name: (low + high) / 2 for name, (low, high) in self.context.items()}, pixel_size_nm)

    def pupil(
        self,
        known: Mapping[str, float],
        pixel_size_nm: float,
        untold: Mapping[tuple[int, int], float] = MappingProxyType({}),
    ) -> PupilPSF:
        """The pupil of values by the names of the context, and of further modes in wavelengths."""
        wavelength = known["wavelength_px"] * pixel_size_nm
        waves = {mode: known[_name(mode)] for mode in MODES} | dict(untold)
        return PupilPSF(
            numerical_aperture=known["numerical_aperture"],
            wavelength_nm=wavelength,
            pixel_size_nm=pixel_size_nm,
            immersion_index=IMMERSION_INDEX,
            zernike_nm={mode: c * wavelength for mode, c in waves.items()},
            blur_nm=known["blur_px"] * pixel_size_nm,
            apodization=known["apodization"],
            patch_px=PATCH_PX,
        )

    @property
    def context(self) -> dict[str, Range]:
        """Name and range of what the network is told."""
        largest = {(2, -2): self.oblique_waves, (4, 0): self.spherical_waves}
        ranges = {mode: (-largest.get(mode, self.others_waves), largest.get(mode, self.others_waves)) for mode in MODES}
        ranges[ASTIGMATISM] = self.astigmatism_waves
        return {
            "wavelength_px": self.wavelength_px,
            "numerical_aperture": self.numerical_aperture,
            "blur_px": self.blur_px,
            "apodization": self.apodization,
            **{_name(mode): bounds for mode, bounds in ranges.items()},
        }


def _name(mode: tuple[int, int]) -> str:
    return f"zernike_{mode[0]}_{mode[1]}_waves"


class Canonical(NamedTuple):
    """A pupil as a network that is amortized over pupils is told it."""

    context: dict[str, float]
    """by the names of `PupilPrior.context`"""
    mirrored: bool
    """z has the other sign: the pupil was replaced by the one with the same images at -z"""
    offset_nm: tuple[float, float, float]
    """where the network sees an emitter that lies at the origin; z before it is mirrored"""
    z_nm: tuple[float, ...] = (0.0,)
    """rising depths of the calibration"""
    light: tuple[float, ...] = (1.0,)
    """photons of the pupil for one of the calibration at these depths: a pupil's rings reach beyond a patch of voxels,
    which calls all light what it holds"""

    def placed(self, found: EmitterSet) -> EmitterSet:
        """Emitters as the network saw them, in the coordinates and the photons of the calibration."""
        sign = torch.tensor([1.0, 1.0, -1.0 if self.mirrored else 1.0]).to(found.xyz)
        xyz = found.xyz * sign - torch.tensor(self.offset_nm).to(found.xyz)
        light = torch.from_numpy(np.interp(xyz[:, 2].cpu().numpy(), self.z_nm, self.light)).to(found.photons)
        sigma = None if found.photons_sigma is None else found.photons_sigma / light
        return replace(found, xyz=xyz, photons=found.photons / light, photons_sigma=sigma)


def canonical(psf: PupilPSF) -> Canonical:
    """What a network is told of a calibrated pupil.

    The images of the wave front W(r) at z are those of -W(-r) at -z, as the field is real but for its phase: even
    modes change their sign, odd ones keep it.  So a network for one sign of astigmatism does for both.

    Raises:
        ValueError: if the pupil has a phase mask, or modes beyond the fourth order of 0.01 wavelengths or more.
    """
    if psf.phase_mask_nm is not None:
        raise ValueError("the PSF has a phase mask, which no network for astigmatic pupils is told; train one for it")
    wavelength = psf.wavelength_nm * IMMERSION_INDEX / psf.immersion_index
    waves = {mode: float(c) / psf.wavelength_nm for mode, c in zip(psf.modes, psf.zernike_nm.detach(), strict=True)}
    unknown = {mode: c for mode, c in waves.items() if mode not in MODES and abs(c) > 0.01}
    if unknown:
        raise ValueError(f"the PSF has aberrations {sorted(unknown)} that no network for astigmatic pupils is told")
    mirrored = waves.get(ASTIGMATISM, 0.0) < 0
    signs = {mode: -1 if mirrored and mode[0] % 2 == 0 else 1 for mode in MODES}
    x, y, z = psf.offset_nm.tolist()
    return Canonical(
        {
            "wavelength_px": wavelength / psf.pixel_size_nm,
            "numerical_aperture": float(psf.numerical_aperture.detach()) * IMMERSION_INDEX / psf.immersion_index,
            "blur_px": float(psf.blur_nm.detach()) / psf.pixel_size_nm,
            "apodization": float(psf.apodization.detach()),
            **{_name(mode): signs[mode] * waves.get(mode, 0.0) for mode in MODES},
        },
        mirrored,
        (x, y, z),
    )


@final
@dataclass(frozen=True, kw_only=True)
class RoundPupilPrior:
    """Ranges of objectives whose PSF is about round; the network is told the width of the Gaussian like it in focus."""

    wavelength_px: PositiveRange = (4.0, 12.0)
    """emission wavelength over the pixel's side, in oil (index 1.518); log-uniform"""
    numerical_aperture: tuple[Aperture, Aperture] = (1.1, 1.5)
    """in oil"""
    spherical_waves: NonNegative = 0.06
    """largest (4, 0) of either sign, wavelengths rms"""
    others_waves: NonNegative = 0.03
    """largest of each other mode up to the fourth order"""
    blur_px: NonNegativeRange = (0.0, 0.6)
    """standard deviation of a Gaussian blur, pixels"""
    apodization: Range = (-0.7, 0.7)
    """loss of amplitude towards the rim"""
    sigma_px: PositiveRange = (0.8, 2.0)
    """widths, pixels; pupils beyond it are drawn again"""
    told_error: NonNegative = 0.05
    """relative error (standard deviation) of the width that the network is told"""

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def context(self) -> dict[str, Range]:
        """Name and range of what the network is told."""
        return {"psf_sigma_px": self.sigma_px}

    def told(self, values: Tensor, rng: torch.Generator) -> Tensor:
        """What users know of their width: (n, 1) true values with the errors of an estimate."""
        error = torch.randn(values.shape, generator=rng, device=rng.device) * self.told_error
        return values * torch.exp(error)

    def sample(self, pixel_size_nm: float, rng: torch.Generator) -> tuple[PupilPSF, Tensor]:
        """A pupil and its width (1,) in pixels.

        Raises:
            ValueError: if none of many pupils has a width within `sigma_px`.
        """

        def between(low: float, high: float) -> float:
            return low + (high - low) * float(torch.rand(1, generator=rng, device=rng.device))

        for _ in range(100):
            wavelength = pixel_size_nm * math.exp(between(*(math.log(v) for v in self.wavelength_px)))
            waves = {mode: between(-self.others_waves, self.others_waves) for mode in MODES}
            waves[4, 0] = between(-self.spherical_waves, self.spherical_waves)
            psf = PupilPSF(
                numerical_aperture=between(*self.numerical_aperture),
                wavelength_nm=wavelength,
                pixel_size_nm=pixel_size_nm,
                immersion_index=IMMERSION_INDEX,
                zernike_nm={mode: c * wavelength for mode, c in waves.items()},
                blur_nm=between(*self.blur_px) * pixel_size_nm,
                apodization=between(*self.apodization),
                patch_px=PATCH_PX,
            )
            sigma_px = gaussian_width_px(psf)
            if self.sigma_px[0] <= sigma_px <= self.sigma_px[1]:
                return psf, torch.tensor([sigma_px], device=rng.device)
        raise ValueError(f"psf: no pupil of these ranges has a width within sigma_px {list(self.sigma_px)}")


@torch.no_grad()
def gaussian_width_px(psf: PSF) -> float:
    """Width in pixels of the Gaussian most like a PSF in focus, as it is fitted to molecules on a background.

    Weighted least squares in a window of 9 x 9 pixels, for 2000 photons on 20 a pixel.
    """
    side = 9
    centre = psf.pixel_size_nm * side / 2
    place = torch.tensor([[centre, centre, 0.0]], dtype=torch.float64)
    image = psf.with_patch(side).integrate_pixels(place.to(torch.get_default_dtype())).double().cpu().view(-1)
    weight = 1 / (2000 * image + 20)
    widths = torch.logspace(math.log10(0.4), math.log10(3.0), 200, dtype=torch.float64)
    gaussian = GaussianPSF(1.0, pixel_size_nm=1.0, patch_px=side)
    middle = torch.tensor([[side / 2, side / 2, 0.0]], dtype=torch.float64).expand(len(widths), 3)
    spots = gaussian.integrate_pixels(middle, widths[:, None]).flatten(1)
    design = torch.stack([spots, torch.ones_like(spots)], 2) * weight.sqrt()[None, :, None]
    target = (image * weight.sqrt()).expand(len(widths), -1)[..., None]
    rest = target - design @ torch.linalg.lstsq(design, target).solution
    return float(widths[rest.square().sum((1, 2)).argmin()])


@final
class PupilBank:
    """Draws PSFs from a prior; as computing one takes as long as a step of training, it keeps some and renews them.

    Args:
        prior: ranges.
        pixel_size_nm: side of a pixel.
        z_range_nm: depths that will be drawn.
        size: splines kept.
    """

    def __init__(
        self,
        prior: PupilPrior | RoundPupilPrior,
        pixel_size_nm: float,
        z_range_nm: Range,
        *,
        size: int = 256,
    ) -> None:
        self.prior = prior
        self.pixel_size_nm = pixel_size_nm
        self._z_range = (z_range_nm[0] - 50, z_range_nm[1] + 50)
        self._size = size
        self._kept: list[tuple[SplinePSF, Tensor]] = []
        self._oldest, self._due = 0, 0.0

    def draw(self, n: int, rng: torch.Generator) -> tuple[list[SplinePSF], dict[str, Tensor]]:
        """Some PSFs, and what the network is told of them: (n,) by the names of the prior's context."""
        for _ in range(min(n, self._size - len(self._kept))):
            self._kept.append(self._make(rng))
        self._due += FRESH
        for _ in range(int(self._due)):
            self._kept[self._oldest % len(self._kept)] = self._make(rng)
            self._oldest += 1
        self._due %= 1
        chosen = torch.randint(len(self._kept), (n,), generator=rng, device=rng.device).tolist()
        psfs = [self._kept[i][0] for i in chosen]
        true = torch.stack([self._kept[i][1] for i in chosen]).to(rng.device)
        low, high = torch.tensor(list(self.prior.context.values()), device=rng.device).unbind(1)
        told = self.prior.told(true, rng).clamp(low, high)
        return psfs, dict(zip(self.prior.context, told.unbind(1), strict=True))

    @torch.no_grad()
    def _make(self, rng: torch.Generator) -> tuple[SplinePSF, Tensor]:
        psf, values = self.prior.sample(self.pixel_size_nm, rng)
        psf = psf.to(rng.device)
        steps = math.ceil((self._z_range[1] - self._z_range[0]) / 50)
        step = (self._z_range[1] - self._z_range[0]) / steps
        spline = psf.to_spline(z_range_nm=self._z_range, z_step_nm=step).to(rng.device)
        # photons are those of the light within the patch, as a PSF from beads counts them
        middle = psf.patch_px / 2 * psf.pixel_size_nm
        in_focus = psf.offset_nm.new_tensor([[middle, middle, 0.0]])
        spline.coefficients.div_(psf.integrate_pixels(in_focus).sum())
        return spline, values
