"""Priors over PSFs: ranges of a Gaussian, ranges of pupils, or a measured PSF, which is a prior of
one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from decode.conditioning import Conditioning, FieldPosition, GaussianWidth, Unconditioned
from decode.devices import on_host
from decode.io.psfs import PSFFile, read_psf
from decode.optics.blur import Blur, BlurredPSF, blur_reach
from decode.optics.gaussian import GaussianPSF, core_fraction
from decode.optics.psf import PSF
from decode.priors.drawn import DrawnPSFs, Light, PSFs
from decode.priors.pupils import PupilBank, RoundPupilPrior
from decode.priors.scene import log_uniform, uniform
from decode.priors.section import PSFSection, StatedPSF, require_recipe_pixels
from decode.ranges import (
    Fraction,
    FractionRange,
    NonNegative,
    NonNegativeRange,
    Positive,
    PositiveRange,
    Range,
    check_settings,
)

__all__ = ["FixedPSF", "GaussianPSFs", "MeasuredPSF", "PSFPrior", "SomeByPupils"]


@final
@dataclass(frozen=True, kw_only=True)
class PSFPrior(PSFSection):
    """Ranges of a Gaussian PSF; every movie draws its own."""

    sigma_px: PositiveRange = (0.8, 2.0)
    """width (standard deviation) in focus, pixels; log-uniform; the network is
    conditioned on it"""
    told_error: NonNegative = 0.05
    """relative error (standard deviation) of the width that the network is conditioned on, as users
    measure theirs no better"""
    depth_nm: Positive = 400.0
    """focal depth: the width grows by sqrt(2) at this defocus"""
    halo_fraction: FractionRange = (0.0, 0.12)
    """share of the light in a wider Gaussian around the core, for the rings and scattered light of
    a real PSF; users do not know it"""
    halo_width: Positive = 2.5
    """width of that wider Gaussian over the width of the core"""
    pupil_fraction: Fraction = 0.0
    """fraction of movies whose PSF is that of an objective's pupil instead of a Gaussian"""
    pupils: RoundPupilPrior = field(default_factory=RoundPupilPrior)
    """ranges of those objectives"""

    def __post_init__(self) -> None:
        check_settings(self)

    def at(self, pixel_size_nm: float, z_nm: Range) -> PSFs:
        """PSFs of these ranges.

        Args:
            pixel_size_nm: side of a pixel.
            z_nm: depths that will be drawn.
        """
        gaussians = GaussianPSFs(self, pixel_size_nm)
        if self.pupil_fraction == 0:
            return gaussians
        within = replace(self.pupils, sigma_px=self.sigma_px, told_error=self.told_error)
        bank = PupilBank(within, pixel_size_nm, z_nm)
        return SomeByPupils(gaussians, bank, self.pupil_fraction)

    def typical(self) -> PSFPrior:
        sigma = math.sqrt(math.prod(self.sigma_px))
        return replace(
            self,
            sigma_px=(sigma, sigma),
            halo_fraction=(0.0, 0.0),
            told_error=0.0,
            pupil_fraction=0.0,
        )

    def figures(self) -> dict[str, float]:
        return {"psf_sigma_px": round(self.sigma_px[0], 3)}

    def stated(
        self, conditioning: Conditioning, pixel_size_nm: float, z_nm: Range
    ) -> StatedPSF | None:
        (width_px,) = conditioning.values.values()
        return StatedPSF(sigma_nm=float(width_px) * pixel_size_nm)


@final
@dataclass(frozen=True, kw_only=True)
class MeasuredPSF(PSFSection):
    """The PSF of a file, as `decode calibrate psf` writes it."""

    file: str
    """PSF file (HDF5); in a recipe relative to the recipe"""
    blur_nm: NonNegativeRange = (0.0, 0.0)
    """standard deviation of a Gaussian blur on top of it; every movie draws its own, and users do
    not know it"""

    def __post_init__(self) -> None:
        check_settings(self)

    def at(self, pixel_size_nm: float, z_nm: Range) -> FixedPSF:
        """The PSF of the file.

        Args:
            pixel_size_nm: side of a pixel.
            z_nm: depths that will be drawn.

        Raises:
            ValueError: if its pixels have another size, or it was not measured at these depths.
        """
        file = self.calibrated()
        require_recipe_pixels(self.file, file.psf.pixel_size_nm, pixel_size_nm)
        low, high = file.z_range_nm
        if low < high and not (low <= z_nm[0] and z_nm[1] <= high):
            raise ValueError(
                f"scene.z_nm is {list(z_nm)}, but {self.file} was measured from {low:g} to "
                f"{high:g} nm"
            )
        return FixedPSF(file.psf.tabulated(file.z_range_nm), self.blur_nm)

    def calibrated(self) -> PSFFile:
        return read_psf(self.file)

    def stated(
        self, conditioning: Conditioning, pixel_size_nm: float, z_nm: Range
    ) -> StatedPSF | None:
        return StatedPSF() if self.calibrated().psf.field_nm is None else None

    def files(self) -> tuple[Path, ...]:
        return (Path(self.file),)

    def beside(self, folder: Path) -> MeasuredPSF:
        return replace(self, file=str(folder / self.file))


@final
class GaussianPSFs:
    """A distribution of Gaussian PSFs with a halo, each movie with its own width.

    Args:
        prior: ranges.
        pixel_size_nm: side of a pixel.
    """

    known = None

    def __init__(self, prior: PSFPrior, pixel_size_nm: float) -> None:
        low, high = prior.sigma_px
        # four sigma of the widest core on either side
        patch = 2 * int(4 * high + 0.5) + 1
        self.prior = prior
        self.psf = GaussianPSF(
            (low * high) ** 0.5 * pixel_size_nm,
            pixel_size_nm=pixel_size_nm,
            depth_nm=prior.depth_nm,
            patch_px=patch,
        )

    @property
    def domain(self) -> dict[str, Range]:
        return dict.fromkeys(GaussianWidth.names, self.prior.sigma_px)

    def anew(self) -> GaussianPSFs:
        return self

    def draw(self, n_movies: int, rng: torch.Generator) -> DrawnPSFs:
        psf, pixel, host = self.psf.to(rng.device), self.psf.pixel_size_nm, on_host(rng)
        sigma_nm = log_uniform(self.prior.sigma_px, n_movies, host)[:, None] * pixel
        error = torch.randn(n_movies, 1, generator=host) * self.prior.told_error
        measured = (sigma_nm / pixel * torch.exp(error)).clamp(*self.prior.sigma_px)
        halo = uniform(self.prior.halo_fraction, n_movies, host)
        within = self._within_core(sigma_nm)
        halo, within = (t.to(rng.device, non_blocking=True) for t in (halo, within))
        sigma_nm = sigma_nm.to(rng.device, non_blocking=True)
        lights = [Light(psf, sigma_nm, 1 - halo)]
        if self.prior.halo_fraction[1] > 0:
            lights.append(Light(psf, sigma_nm * self.prior.halo_width, halo))
        return DrawnPSFs(
            lights=lights,
            psfs=[psf] * n_movies,
            parameters=sigma_nm,
            conditioning=GaussianWidth(measured[:, 0]),
            core=1 - halo + halo * within,
        )

    def _within_core(self, sigma_nm: Tensor) -> Tensor:
        """(n,) share of the light of the halos that counts as core, for (n, 1) widths of the
        cores."""
        pixel, side = self.psf.pixel_size_nm, self.psf.patch_px
        flat = GaussianPSF(pixel, pixel_size_nm=pixel, patch_px=side)
        middle = sigma_nm.new_tensor([side * pixel / 2] * 2 + [0.0]).expand(len(sigma_nm), 3)
        wide = flat.integrate_pixels(middle, sigma_nm * self.prior.halo_width)
        return core_fraction(wide, sigma_nm[:, 0] / pixel).detach()


@final
@dataclass(frozen=True)
class SomeByPupils:
    """A mixture of Gaussian PSFs and those of pupils; all movies of a draw have the same kind."""

    gaussians: GaussianPSFs
    pupils: PupilBank
    pupil_fraction: float
    """fraction of draws with pupils"""

    known = None

    @property
    def psf(self) -> PSF:
        return self.gaussians.psf

    @property
    def domain(self) -> dict[str, Range]:
        return self.gaussians.domain

    def anew(self) -> SomeByPupils:
        return replace(self, pupils=self.pupils.anew())

    def draw(self, n_movies: int, rng: torch.Generator) -> DrawnPSFs:
        share = self.pupil_fraction
        by_pupils = share == 1 or float(torch.rand(1, generator=on_host(rng))) < share
        chosen: PSFs = self.pupils if by_pupils else self.gaussians
        return chosen.draw(n_movies, rng)


@final
@dataclass(frozen=True)
class FixedPSF:
    """One PSF for all movies, each at its own place in the field, and with its own blur."""

    known: PSF
    blur_nm: Range = (0.0, 0.0)
    """range of the standard deviation of a Gaussian blur on top of it"""

    @property
    def psf(self) -> PSF:
        return self.known

    @property
    def domain(self) -> dict[str, Range]:
        if self.known.field_nm is None:
            return {}
        return dict(zip(FieldPosition.names, self.known.field_nm, strict=True))

    def anew(self) -> FixedPSF:
        return self

    def draw(self, n_movies: int, rng: torch.Generator) -> DrawnPSFs:
        psf, host, device = self.known.to(rng.device), on_host(rng), rng.device
        place = psf.draw_parameters(n_movies, host)
        parameters = place.to(device, non_blocking=True)
        blur, psfs = self._blurred(psf, n_movies, host, device)
        return DrawnPSFs(
            lights=(Light(psf, parameters, torch.ones(n_movies, device=device)),),
            psfs=psfs,
            parameters=parameters,
            conditioning=self._conditioning(place),
            core=torch.ones(n_movies, device=device),
            blur=blur,
        )

    def _conditioning(self, parameters: Tensor) -> Conditioning:
        if self.known.field_nm is None:
            return Unconditioned()
        return FieldPosition(*parameters.unbind(1))

    def _blurred(
        self, psf: PSF, n_movies: int, host: torch.Generator, device: torch.device
    ) -> tuple[Blur | None, list[PSF]]:
        """The blur of movies, and the PSF with it of each."""
        widest_px = self.blur_nm[1] / psf.pixel_size_nm
        if widest_px == 0:
            return None, [psf] * n_movies
        blur_nm = uniform(self.blur_nm, n_movies, host)
        sigma_px = (blur_nm / psf.pixel_size_nm).to(device, non_blocking=True)
        psfs: list[PSF] = [
            BlurredPSF(psf, nm).to(device, non_blocking=True) for nm in blur_nm.tolist()
        ]
        return Blur(sigma_px, blur_reach(widest_px)), psfs
