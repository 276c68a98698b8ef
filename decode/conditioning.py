"""What a network is conditioned on: a width, a pupil, a place in the field, or nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self, final

import numpy as np
import torch
from torch import Tensor

from decode.emitters import EmitterSet
from decode.optics.pupil import MODES, PupilPSF
from decode.ranges import Range

__all__ = [
    "REMEDY",
    "AstigmaticPupil",
    "CalibratedPupil",
    "Conditioning",
    "Domain",
    "FieldPosition",
    "GaussianWidth",
    "KnownOptics",
    "Unconditioned",
    "require_pixels_alike",
]

Value = float | Tensor

REMEDY = "`decode localize --adapt` (adapt, in the window's step Localize) trains one for it"
"""what a user can do whose PSF no model takes"""
IMMERSION_INDEX = 1.518
"""refractive index of the oil that pupils are scaled to: only wavelength and aperture over the
index matter"""
ASTIGMATISM = (2, 2)
KNOWN_MODES_WAVES = 0.01
"""largest aberration beyond `MODES`, wavelengths, of a pupil that counts as one of these modes
alone"""
ALIKE_PIXELS = 0.02
"""relative difference up to which two pixel sizes count as equal"""
SLACK, LEAST_SLACK = 0.02, 0.05
"""tolerances: share of a range's width by which a value may lie beyond it; share of the value,
where the range has no width"""
NEAREST_PUPIL = 0.2
"""share of a range's width up to which a pupil beyond it is replaced by the nearest one in it"""


def require_pixels_alike(psf_nm: float, movie_nm: float) -> None:
    """Fail unless a PSF was calibrated for the pixels of a movie.

    Raises:
        ValueError: if the pixel sizes differ.
    """
    if abs(psf_nm / movie_nm - 1) > ALIKE_PIXELS:
        raise ValueError(
            f"the PSF was calibrated for pixels of {psf_nm:g} nm, the movie's are {movie_nm:g} nm; "
            "calibrate one for this movie"
        )


@final
@dataclass(frozen=True, kw_only=True)
class CalibratedPupil:
    """A pupil with the same images as a calibrated PSF."""

    psf: PupilPSF
    z_nm: tuple[float, ...] = (0.0,)
    """rising depths of the calibration"""
    light: tuple[float, ...] = (1.0,)
    """photons of the pupil per photon of the calibration at these depths: a pupil's rings reach
    beyond the patch of voxels, whose light the calibration counts as all"""


@final
@dataclass(frozen=True, kw_only=True)
class KnownOptics:
    """What is known of the optics of a movie."""

    pixel_size_nm: float
    shape: tuple[int, int] = (1, 1)
    """(height, width) of the frames, pixels"""
    psf_sigma_nm: float | None = None
    """width of the PSF"""
    psf_pixel_size_nm: float | None = None
    """side of a pixel for which the PSF was calibrated"""
    pupil: Callable[[], CalibratedPupil] | None = None
    """returns the calibrated pupil; called only where it is needed, as the fit takes seconds"""


class Conditioning(ABC):
    """What a network is conditioned on.

    Its values are numbers, or tensors (movies,) or (y, x).
    """

    names: ClassVar[tuple[str, ...]]
    """names of the context maps"""
    needs_width: ClassVar[bool] = False
    """whether the user states the width of the PSF"""
    needs_psf: ClassVar[bool] = False
    """whether the user gives a calibrated PSF"""

    @classmethod
    @abstractmethod
    def of(cls, optics: KnownOptics, domain: Domain) -> Self:
        """The conditioning for a movie.

        Raises:
            ValueError: if something is not known of the optics, or does not fit the domain.
        """

    @classmethod
    def remark(cls, optics: KnownOptics, domain: Domain) -> str:
        """A warning where a movie that can be localized differs from the calibration; else ""."""
        return ""

    @property
    def values(self) -> dict[str, Value]:
        """Values by the names of the context maps."""
        return {}

    @property
    def z_sign(self) -> int:
        """Sign of the user's z relative to that of the network: 1 or -1."""
        return 1

    @property
    def z_offset_nm(self) -> float:
        """The user's z at which the network sees an emitter that lies at 0."""
        return 0.0

    def placed(self, found: EmitterSet) -> EmitterSet:
        """The network's emitters, in the coordinates and the photons of the user."""
        return found


@final
@dataclass(frozen=True)
class Unconditioned(Conditioning):
    """Nothing: the network was trained for one PSF."""

    names = ()

    @classmethod
    def of(cls, optics: KnownOptics, domain: Domain) -> Self:
        domain.require_pixels(optics.pixel_size_nm)
        return cls()


@final
@dataclass(frozen=True)
class GaussianWidth(Conditioning):
    """The width of a Gaussian PSF in focus.

    >>> GaussianWidth(1.3).values
    {'psf_sigma_px': 1.3}
    """

    names = ("psf_sigma_px",)
    needs_width = True

    sigma_px: Value
    """standard deviation, pixels"""

    @classmethod
    def of(cls, optics: KnownOptics, domain: Domain) -> Self:
        if optics.psf_sigma_nm is None:
            raise ValueError(
                "this model is conditioned on the width of the PSF; give it as --psf-sigma"
            )
        return cls(optics.psf_sigma_nm / optics.pixel_size_nm)

    @property
    def values(self) -> dict[str, Value]:
        return {"psf_sigma_px": self.sigma_px}


@final
@dataclass(frozen=True)
class FieldPosition(Conditioning):
    """Places in the field of a PSF that varies over it."""

    names = ("field_x", "field_y")

    x_nm: Value
    """(y, x) positions from the outer corner of the field's first pixel"""
    y_nm: Value

    @classmethod
    def of(cls, optics: KnownOptics, domain: Domain) -> Self:
        """Places of the pixels of frames, (y, x) nm.

        The first pixel of the movie is taken to be that of the bead stack; places beyond the field
        are the nearest ones in it.
        """
        domain.require_pixels(optics.pixel_size_nm)
        y, x = ((torch.arange(side) + 0.5) * optics.pixel_size_nm for side in optics.shape)
        return cls(
            x.expand(optics.shape).clamp(*domain.ranges["field_x"]),
            y[:, None].expand(optics.shape).clamp(*domain.ranges["field_y"]),
        )

    @classmethod
    def remark(cls, optics: KnownOptics, domain: Domain) -> str:
        field = tuple(round(domain.ranges[name][1] / optics.pixel_size_nm) for name in cls.names)
        movie = optics.shape[1], optics.shape[0]
        if movie == field:
            return ""
        said = (
            "the PSF changes over the field and was calibrated over "
            f"{field[0]} x {field[1]} pixels, the movie has {movie[0]} x {movie[1]}: "
            "both are taken to begin at the same pixel of the sensor"
        )
        if movie[0] > field[0] or movie[1] > field[1]:
            said += "; where beads were not recorded, the PSF is that of the border"
        return said

    @property
    def values(self) -> dict[str, Value]:
        return {"field_x": self.x_nm, "field_y": self.y_nm}


@final
@dataclass(frozen=True, kw_only=True)
class AstigmaticPupil(Conditioning):
    """A pupil with a cylindrical lens; lengths in pixels, aberrations in wavelengths rms."""

    names = (
        "wavelength_px",
        "numerical_aperture",
        "blur_px",
        "apodization",
        *(f"zernike_{n}_{m}_waves" for n, m in MODES),
    )
    needs_psf = True

    optics: Mapping[str, Value]
    """values by `names`; lengths and aperture scaled to `IMMERSION_INDEX`"""
    mirrored: bool = False
    """whether z has the other sign, as the pupil was replaced by the one with the same images at
    -z"""
    offset_nm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """(x, y, z) at which the network sees an emitter that lies at the origin; z before it is
    mirrored"""
    z_nm: tuple[float, ...] = (0.0,)
    """rising depths of the calibration"""
    light: tuple[float, ...] = (1.0,)
    """photons of the pupil per photon of the calibration at these depths"""

    @classmethod
    def of(cls, optics: KnownOptics, domain: Domain) -> Self:
        if optics.pupil is None:
            raise ValueError(
                "this model serves any astigmatic PSF and is conditioned on that of the movie: "
                "calibrate it from beads with `decode calibrate psf`, and give the file as --psf"
            )
        if optics.psf_pixel_size_nm is not None:  # before the fit of the pupil
            require_pixels_alike(optics.psf_pixel_size_nm, optics.pixel_size_nm)
        try:
            calibrated = optics.pupil()
            known = cls.of_pupil(calibrated.psf)
            nearest = {name: _nearest(v, domain.ranges[name]) for name, v in known.optics.items()}
            domain.context_map(nearest)
        except ValueError as error:
            raise ValueError(f"{error}; {REMEDY}") from error
        require_pixels_alike(calibrated.psf.pixel_size_nm, optics.pixel_size_nm)
        return replace(known, optics=nearest, z_nm=calibrated.z_nm, light=calibrated.light)

    @staticmethod
    def require_scale(
        wavelength_nm: float, immersion_index: float, pixel_size_nm: float, domain: Domain
    ) -> None:
        """Fail unless the network knows pupils of this scale, which no aberration changes.

        Args:
            wavelength_nm: wavelength of the emission in vacuum.
            immersion_index: refractive index of the immersion.
            pixel_size_nm: side of a pixel in the sample.
            domain: domain of the network.

        Raises:
            ValueError: if the wavelength in pixels lies beyond the domain.
        """
        (name, *_) = AstigmaticPupil.names
        wavelength_px = wavelength_nm * IMMERSION_INDEX / immersion_index / pixel_size_nm
        _scaled(name, _nearest(wavelength_px, domain.ranges[name]), domain.ranges[name])

    @classmethod
    def of_pupil(cls, psf: PupilPSF) -> Self:
        """Conditioning on a pupil, with positive astigmatism.

        The images of the wave front W(r) at z are those of -W(-r) at -z, as the amplitude in the
        pupil is real: even modes change their sign, odd ones keep it.  A network for one sign of
        astigmatism therefore serves both.

        Raises:
            ValueError: if the pupil has a phase mask, or modes beyond the fourth order of 0.01
                wavelengths or more.
        """
        if psf.phase_mask_nm is not None:
            raise ValueError(
                "the PSF has a phase mask, on which no network for astigmatic pupils is conditioned"
            )
        zernike_nm = zip(psf.modes, psf.zernike_nm.detach(), strict=True)
        waves = {mode: float(c) / psf.wavelength_nm for mode, c in zernike_nm}
        unknown = [m for m, c in waves.items() if m not in MODES and abs(c) > KNOWN_MODES_WAVES]
        if unknown:
            raise ValueError(
                f"the PSF has aberrations {sorted(unknown)}, on which no network for astigmatic "
                "pupils is conditioned"
            )
        mirrored = waves.get(ASTIGMATISM, 0.0) < 0
        signs = {mode: -1 if mirrored and mode[0] % 2 == 0 else 1 for mode in MODES}
        wavelength_nm = psf.wavelength_nm * IMMERSION_INDEX / psf.immersion_index
        aperture = float(psf.numerical_aperture.detach()) * IMMERSION_INDEX / psf.immersion_index
        known = (
            wavelength_nm / psf.pixel_size_nm,
            aperture,
            float(psf.blur_nm.detach()) / psf.pixel_size_nm,
            float(psf.apodization.detach()),
            *(signs[mode] * waves.get(mode, 0.0) for mode in MODES),
        )
        x, y, z = psf.offset_nm.tolist()
        named = dict(zip(cls.names, known, strict=True))
        return cls(optics=named, mirrored=mirrored, offset_nm=(x, y, z))

    @property
    def values(self) -> dict[str, Value]:
        return dict(self.optics)

    @property
    def z_sign(self) -> int:
        return -1 if self.mirrored else 1

    @property
    def z_offset_nm(self) -> float:
        return self.offset_nm[2]

    def placed(self, found: EmitterSet) -> EmitterSet:
        """The network's emitters, in the coordinates and the photons of the calibration."""
        sign = torch.tensor([1.0, 1.0, float(self.z_sign)]).to(found.xyz)
        xyz = found.xyz * sign - torch.tensor(self.offset_nm).to(found.xyz)
        light = np.interp(xyz[:, 2].cpu().numpy(), self.z_nm, self.light)
        scale = torch.from_numpy(light).to(found.photons)
        sigma, half = (
            None if width is None else width / scale
            for width in (found.photons_sigma, found.photons_95)
        )
        return replace(
            found, xyz=xyz, photons=found.photons / scale, photons_sigma=sigma, photons_95=half
        )


def _nearest(value: Value, within: Range) -> Value:
    """The nearest value in a range, for one a little beyond it; else the value."""
    low, high = within
    nearest = min(max(float(value), low), high)
    near = abs(nearest - float(value)) <= NEAREST_PUPIL * (high - low)
    return nearest if near else value


KINDS: tuple[type[Conditioning], ...] = (
    Unconditioned,
    GaussianWidth,
    AstigmaticPupil,
    FieldPosition,
)


@final
@dataclass(frozen=True)
class Domain:
    """Conditions that a network was trained for.

    >>> domain = Domain({"psf_sigma_px": (0.8, 2.0)})
    >>> domain.kind.__name__
    'GaussianWidth'
    >>> domain.context_map(GaussianWidth(1.4).values).flatten().tolist()
    [0.0]
    """

    ranges: Mapping[str, Range] = field(default_factory=dict)
    """lowest and highest value by the names of the context maps, in the order of the maps"""
    pixel_size_nm: float | None = None
    """pixel size of the training"""

    @property
    def kind(self) -> type[Conditioning]:
        """The class of conditioning whose context maps these ranges belong to.

        Raises:
            ValueError: if this version of decode knows none with these names.
        """
        for kind in KINDS:
            if set(kind.names) == set(self.ranges):
                return kind
        names = sorted(self.ranges)
        raise ValueError(f"this version of decode knows no model of the context {names}")

    def conditioning(self, optics: KnownOptics) -> Conditioning:
        """What the network is conditioned on for a movie.

        Raises:
            ValueError: if something is not known of the optics, or the network was not trained for
                it.
        """
        return self.kind.of(optics, self)

    def require_pixels(self, pixel_size_nm: float) -> None:
        """Fail unless these are the pixels of the training, as a network for one PSF needs them.

        Raises:
            ValueError: if they have another size.
        """
        trained = self.pixel_size_nm
        if trained is not None and abs(pixel_size_nm / trained - 1) > ALIKE_PIXELS:
            raise ValueError(
                f"the model was trained for pixels of {trained:g} nm, the movie's are "
                f"{pixel_size_nm:g} nm; take another model, or train one"
            )

    def remark(self, shape: tuple[int, int], pixel_size_nm: float) -> str:
        """A warning where the frames are not as large as the field of the PSF; else "".

        Args:
            shape: (height, width) of the frames, pixels.
            pixel_size_nm: side of a pixel.
        """
        return self.kind.remark(KnownOptics(pixel_size_nm=pixel_size_nm, shape=shape), self)

    def context_map(self, values: Mapping[str, Value]) -> Tensor:
        """Context maps from values by name: numbers, or (b,) or (b, y, x) tensors.

        Returns:
            (b, n_context, 1 or y, 1 or x), scaled so that each range is [-1, 1].

        Raises:
            ValueError: if a value is missing or unknown, or lies beyond its range.
        """
        unknown = sorted(set(values) ^ set(self.ranges))
        if unknown:
            known = sorted(self.ranges)
            raise ValueError(f"this model is conditioned on {known}; missing or unknown: {unknown}")
        if not self.ranges:
            return torch.zeros(1, 0, 1, 1)
        maps = [_scaled(name, values[name], bounds) for name, bounds in self.ranges.items()]
        return torch.stack(torch.broadcast_tensors(*maps), 1)


def _scaled(name: str, given: Value, within: Range) -> Tensor:
    """(b, 1 or y, 1 or x) a value where -1 and 1 are the ends of its range.

    Raises:
        ValueError: if it lies beyond.
    """
    low, high = within
    value = torch.as_tensor(given, dtype=torch.float32)
    slack = SLACK * (high - low) if high > low else max(LEAST_SLACK * abs(low), 0.01)
    if bool(((value < low - slack) | (value > high + slack)).any()):
        ends = dict.fromkeys(f"{float(end):.3g}" for end in (value.min(), value.max()))
        raise ValueError(
            f"{name} = {' to '.join(ends)} lies outside the range "
            f"{low:.3g} to {high:.3g} this model was trained for; take or train another model"
        )
    flat = value.ndim < 2
    value = value.reshape(-1, 1, 1) if flat else value.reshape(-1, *value.shape[-2:])
    if high == low:
        return torch.zeros_like(value)
    return (2 * value - low - high) / (high - low)
