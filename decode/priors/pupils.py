"""PupilBank: splines of many pupils, for movies of many microscopes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, final

import torch
from annotated_types import Gt, Le
from torch import Tensor

from decode.conditioning import (
    ASTIGMATISM,
    IMMERSION_INDEX,
    AstigmaticPupil,
    Conditioning,
    GaussianWidth,
)
from decode.devices import constant, on_host
from decode.io.psfs import PSFFile
from decode.optics.gaussian import GaussianPSF, core_fraction, gaussian_centre_nm, gaussian_width_px
from decode.optics.psf import PSF
from decode.optics.pupil import MODES, PupilPSF
from decode.optics.spline import SplineBank, SplinePSF
from decode.priors.drawn import DrawnPSFs, Light
from decode.priors.section import PSFSection, StatedPSF
from decode.ranges import NonNegative, NonNegativeRange, PositiveRange, Range, check_settings

__all__ = ["PupilBank", "PupilPrior", "RoundPupilPrior"]

Aperture = Annotated[float, Gt(0), Le(IMMERSION_INDEX)]
FURTHER_MODES = ((5, -1), (5, 1), (5, -3), (5, 3), (6, 0), (6, -2), (6, 2))
"""(n, m) of weak further modes of real objectives"""
PATCH_PX = 25
"""side of the patch that holds the light of an emitter, pixels"""
FRESH = 0.25
"""number of splines renewed with every draw, on average"""


@final
@dataclass(frozen=True, kw_only=True)
class PupilPrior(PSFSection):
    """Ranges of microscopes with a cylindrical lens; every movie draws its own, and the network is
    conditioned on it.

    The wavelength is the only scale of the optics, so lengths are in pixels, and aberrations in
    wavelengths (rms).
    """

    wavelength_px: PositiveRange = (4.0, 7.5)
    """emission wavelength over the pixel's side, in oil (index 1.518)"""
    numerical_aperture: tuple[Aperture, Aperture] = (1.15, 1.5)
    """numerical aperture in oil"""
    astigmatism_waves: PositiveRange = (0.05, 0.17)
    """coefficient of (2, 2), which elongates spots beyond focus along y; `AstigmaticPupil` mirrors
    pupils of the other sign"""
    oblique_waves: NonNegative = 0.04
    """largest (2, -2) of either sign"""
    spherical_waves: NonNegative = 0.05
    """largest (4, 0) of either sign"""
    others_waves: NonNegative = 0.03
    """largest of each other mode up to the fourth order"""
    untold_waves: NonNegative = 0.008
    """standard deviation of modes of the fifth and sixth order, which users do not know"""
    blur_px: NonNegativeRange = (0.0, 1.2)
    """standard deviation of a Gaussian blur, pixels"""
    apodization: Range = (-0.7, 0.7)
    """loss of amplitude towards the rim"""
    told_error_waves: NonNegative = 0.003
    """standard deviation of the error of each aberration that the network is conditioned on, as
    beads determine them no better"""

    def __post_init__(self) -> None:
        check_settings(self)

    def at(self, pixel_size_nm: float, z_nm: Range) -> PupilBank:
        """PSFs of these ranges.

        Args:
            pixel_size_nm: side of a pixel.
            z_nm: depths that will be drawn.
        """
        return PupilBank(self, pixel_size_nm, z_nm)

    def known(self, values: Tensor, rng: torch.Generator) -> AstigmaticPupil:
        """Pupils as users know them: (n, context) true values with the errors of a calibration."""
        aberrations = [float(name.startswith("zernike")) for name in self.context]
        error = torch.randn(values.shape, generator=rng, device=rng.device) * self.told_error_waves
        measured = values + error * torch.tensor(aberrations, device=rng.device)
        low, high = torch.tensor(list(self.context.values()), device=rng.device).unbind(1)
        within = measured.clamp(low, high).unbind(1)
        return AstigmaticPupil(optics=dict(zip(self.context, within, strict=True)))

    def core(self, image: Tensor, values: Tensor) -> Tensor:
        """(n,) ones: the true values determine all the light of the (n, y, x) images."""
        return image.new_ones(len(image))

    def sample(self, pixel_size_nm: float, rng: torch.Generator) -> tuple[PupilPSF, Tensor]:
        """A pupil and its (context,) true values."""
        ranges = torch.tensor(list(self.context.values()), device=rng.device)
        share = torch.rand(len(ranges), generator=rng, device=rng.device)
        values = ranges[:, 0] + share * (ranges[:, 1] - ranges[:, 0])
        known = dict(zip(self.context, values.tolist(), strict=True))
        waves = torch.randn(len(FURTHER_MODES), generator=rng, device=rng.device)
        further_waves = (self.untold_waves * waves).tolist()
        further = dict(zip(FURTHER_MODES, further_waves, strict=True))
        return self.pupil(known, pixel_size_nm, further), values

    def middle(self, pixel_size_nm: float) -> PupilPSF:
        """The pupil in the middle of all ranges."""
        middles = {name: (low + high) / 2 for name, (low, high) in self.context.items()}
        return self.pupil(middles, pixel_size_nm)

    def pupil(
        self,
        known: Mapping[str, float],
        pixel_size_nm: float,
        further: Mapping[tuple[int, int], float] = MappingProxyType({}),
    ) -> PupilPSF:
        """The pupil with these values, by the names of the context, and with further modes in
        wavelengths rms."""
        wavelength = known["wavelength_px"] * pixel_size_nm
        waves = {mode: known[f"zernike_{mode[0]}_{mode[1]}_waves"] for mode in MODES} | dict(
            further
        )
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

    def stated(
        self, conditioning: Conditioning, pixel_size_nm: float, z_nm: Range
    ) -> StatedPSF | None:
        known = {name: float(value) for name, value in conditioning.values.items()}
        return StatedPSF(file=PSFFile(psf=self.pupil(known, pixel_size_nm), z_range_nm=z_nm))

    @property
    def context(self) -> dict[str, Range]:
        """Name and range of what the network is conditioned on."""
        largest = {(2, -2): self.oblique_waves, (4, 0): self.spherical_waves}
        bounds_of = {mode: largest.get(mode, self.others_waves) for mode in MODES}
        ranges = {mode: (-most, most) for mode, most in bounds_of.items()}
        ranges[ASTIGMATISM] = self.astigmatism_waves
        others = (self.wavelength_px, self.numerical_aperture, self.blur_px, self.apodization)
        bounds = (*others, *(ranges[mode] for mode in MODES))
        return dict(zip(AstigmaticPupil.names, bounds, strict=True))


@final
@dataclass(frozen=True, kw_only=True)
class RoundPupilPrior:
    """Ranges of objectives whose PSF is about round; the network is conditioned on the width of the
    Gaussian most like it in focus, at whose centre the molecule lies."""

    wavelength_px: PositiveRange = (4.0, 12.0)
    """emission wavelength over the pixel's side, in oil (index 1.518); log-uniform"""
    numerical_aperture: tuple[Aperture, Aperture] = (1.1, 1.5)
    """numerical aperture in oil"""
    spherical_waves: NonNegative = 0.06
    """largest (4, 0) of either sign, wavelengths rms"""
    others_waves: NonNegative = 0.03
    """largest of each other mode up to the fourth order"""
    blur_px: NonNegativeRange = (0.0, 0.6)
    """standard deviation of a Gaussian blur, pixels"""
    apodization: Range = (-0.7, 0.7)
    """loss of amplitude towards the rim"""
    sigma_px: PositiveRange = (0.8, 2.0)
    """range of the widths, pixels; pupils outside it are drawn again"""
    told_error: NonNegative = 0.05
    """relative error (standard deviation) of the width that the network is conditioned on"""

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def context(self) -> dict[str, Range]:
        """Name and range of what the network is conditioned on."""
        return dict.fromkeys(GaussianWidth.names, self.sigma_px)

    def middle(self, pixel_size_nm: float) -> GaussianPSF:
        """The Gaussian in the middle of the widths."""
        low, high = self.sigma_px
        return GaussianPSF((low * high) ** 0.5 * pixel_size_nm, pixel_size_nm=pixel_size_nm)

    def known(self, values: Tensor, rng: torch.Generator) -> GaussianWidth:
        """Widths as users know them: (n, 1) true values with the errors of an estimate."""
        error = torch.randn(values.shape, generator=rng, device=rng.device) * self.told_error
        measured = values * torch.exp(error)
        return GaussianWidth(measured.clamp(*self.sigma_px)[:, 0])

    def core(self, image: Tensor, values: Tensor) -> Tensor:
        """(n,) share of the light of (n, y, x) images in focus that lies in Gaussians of the (n, 1)
        widths."""
        return core_fraction(image, values[:, 0])

    def sample(self, pixel_size_nm: float, rng: torch.Generator) -> tuple[PupilPSF, Tensor]:
        """A pupil and its width (1,) in pixels.

        Raises:
            ValueError: if none of many pupils has a width within `sigma_px`.
        """

        def between(low: float, high: float) -> float:
            return low + (high - low) * float(torch.rand(1, generator=rng, device=rng.device))

        for _ in range(100):
            wavelength = pixel_size_nm * math.exp(
                between(*(math.log(v) for v in self.wavelength_px))
            )
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
                # nothing in a movie tells a shift of all molecules
                psf.offset_nm[:2] -= gaussian_centre_nm(psf, sigma_px)
                return psf, torch.tensor([sigma_px], device=rng.device)
        raise ValueError(
            f"psf: no pupil of these ranges has a width within sigma_px {list(self.sigma_px)}"
        )


@final
class PupilBank:
    """A distribution of pupil PSFs that keeps some and renews them, as computing one takes as long
    as a step of training.

    Args:
        prior: ranges.
        pixel_size_nm: side of a pixel.
        z_range_nm: depths that will be drawn.
        size: number of splines kept.
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
        self.psf: PSF = prior.middle(pixel_size_nm)
        self._z_range = (z_range_nm[0] - 50, z_range_nm[1] + 50)
        self._size = size
        self._kept: list[tuple[SplinePSF, Tensor, Tensor]] = []
        self._oldest, self._due = 0, 0.0

    known = None

    @property
    def domain(self) -> dict[str, Range]:
        return self.prior.context

    def anew(self) -> PupilBank:
        bank = copy(self)
        bank._kept, bank._oldest, bank._due = [], 0, 0.0
        return bank

    def draw(self, n_movies: int, rng: torch.Generator) -> DrawnPSFs:
        host, device = on_host(rng), rng.device
        for _ in range(min(n_movies, self._size - len(self._kept))):
            self._kept.append(self._make(host, device))
        self._due += FRESH
        for _ in range(int(self._due)):
            self._kept[self._oldest % len(self._kept)] = self._make(host, device)
            self._oldest += 1
        self._due %= 1
        chosen = torch.randint(len(self._kept), (n_movies,), generator=host).tolist()
        psfs = [self._kept[i][0] for i in chosen]
        true = torch.stack([self._kept[i][1] for i in chosen])
        number = torch.arange(n_movies, dtype=torch.float32, device=device)
        light = Light(SplineBank(psfs), number[:, None], torch.ones(n_movies, device=device))
        return DrawnPSFs(
            lights=[light],
            psfs=psfs,
            parameters=torch.zeros(n_movies, 0, device=device),
            conditioning=self.prior.known(true, host),
            core=torch.cat([self._kept[i][2] for i in chosen]),
        )

    @torch.no_grad()
    def _make(
        self, host: torch.Generator, device: torch.device
    ) -> tuple[SplinePSF, Tensor, Tensor]:
        """A pupil's spline, its true values (on the host), and the (1,) share of its light in
        the core."""
        psf, values = self.prior.sample(self.pixel_size_nm, host)
        psf = psf.to(device, non_blocking=True)
        steps = math.ceil((self._z_range[1] - self._z_range[0]) / 50)
        step = (self._z_range[1] - self._z_range[0]) / steps
        spline = psf.to_spline(z_range_nm=self._z_range, z_step_nm=step)
        spline = spline.to(device, non_blocking=True)
        # photons are those of the light within the patch, as a PSF from beads counts them
        middle = psf.patch_px / 2 * psf.pixel_size_nm
        in_focus = constant([[middle, middle, 0.0]], psf.offset_nm)
        image = psf.integrate_pixels(in_focus)
        spline.coefficients.div_(image.sum())
        return spline, values, self.prior.core(image / image.sum(), values[None])
