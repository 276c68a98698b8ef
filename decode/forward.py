"""ForwardModel = Scene + PSF + Camera: what the microscope would record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, NamedTuple, final

import torch
from annotated_types import Gt, Le
from torch import Tensor
from torch.nn.functional import conv2d

from decode.emitters import EmitterSet
from decode.optics.blur import BlurredPSF, blur_kernel, blur_reach
from decode.optics.camera import Camera
from decode.optics.field import FieldSplinePSF
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import PSF, render
from decode.priors.pupils import PupilBank, RoundPupilPrior
from decode.priors.scene import Scene, log_uniform, uniform
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

__all__ = ["CameraPrior", "ForwardModel", "MeasuredCamera", "MeasuredPSF", "PSFPrior", "Simulation"]

QuantumEfficiency = Annotated[float, Gt(0), Le(1)]


@final
@dataclass(frozen=True, kw_only=True)
class PSFPrior:
    """Ranges of a Gaussian PSF; every movie draws its own."""

    sigma_px: PositiveRange = (0.8, 2.0)
    """width (standard deviation) in focus, pixels; log-uniform; the network is told it"""
    told_error: NonNegative = 0.05
    """relative error (standard deviation) of the width the network is told: users measure theirs no better"""
    depth_nm: Positive = 400.0
    """focal depth: the width grows by sqrt(2) at this defocus"""
    halo_fraction: FractionRange = (0.0, 0.12)
    """light in a wider Gaussian around the core, as the rings and scattered light of a real PSF; nobody is told"""
    halo_width: Positive = 2.5
    """width of that wider Gaussian over the width of the core"""
    pupil_fraction: Fraction = 0.0
    """fraction of movies whose PSF is no Gaussian but that of an objective's pupil"""
    pupils: RoundPupilPrior = field(default_factory=RoundPupilPrior)
    """ranges of those objectives"""

    def __post_init__(self) -> None:
        check_settings(self)


@final
@dataclass(frozen=True, kw_only=True)
class MeasuredPSF:
    """The PSF of a file, as `decode calibrate psf` writes it."""

    file: str
    """PSF file (HDF5); in a recipe relative to the recipe"""
    blur_nm: NonNegativeRange = (0.0, 0.0)
    """standard deviation of a Gaussian blur on top of it; every movie draws its own, and nobody is told"""

    def __post_init__(self) -> None:
        check_settings(self)


@final
@dataclass(frozen=True, kw_only=True)
class MeasuredCamera:
    """The camera of a file; maps are cut to the simulated frames at random places."""

    file: str
    """camera file (YAML); in a recipe relative to the recipe"""


@final
@dataclass(frozen=True, kw_only=True)
class CameraPrior:
    """Ranges of EMCCD and sCMOS cameras; every movie draws its own."""

    emccd_fraction: Fraction = 0.5
    """how often the camera is an EMCCD; else it is an sCMOS with per-pixel maps"""
    qe: tuple[QuantumEfficiency, QuantumEfficiency] = (0.6, 0.95)
    """quantum efficiency"""
    em_gain: PositiveRange = (50.0, 400.0)
    """mean gain of an EMCCD's register; log-uniform"""
    emccd_read_noise_e: NonNegativeRange = (10.0, 100.0)
    """read noise of an EMCCD at its output, electrons"""
    emccd_e_per_adu: PositiveRange = (5.0, 50.0)
    """electrons per ADU at an EMCCD's output"""
    spurious_e: NonNegativeRange = (0.0, 0.01)
    """clock-induced charge of an EMCCD, electrons per pixel and frame"""
    scmos_read_noise_e: PositiveRange = (0.7, 2.5)
    """median read noise of an sCMOS, electrons; log-uniform"""
    scmos_e_per_adu: PositiveRange = (0.2, 1.0)
    """electrons per ADU of an sCMOS"""
    hot_pixels: FractionRange = (0.0, 0.01)
    """fraction of an sCMOS's pixels with 3 to 30 times the read noise"""
    bad_pixels: FractionRange = (0.0, 0.0)
    """fraction of pixels that are known to be bad; a tenth of the movies have a bad column besides"""
    unmapped: Fraction = 0.0
    """fraction of sCMOS movies whose camera is stated by numbers alone"""
    fixed_pattern_e: NonNegativeRange = (0.0, 1.0)
    """standard deviation over the pixels of an offset that those numbers do not tell, electrons"""
    baseline: float = 100.0
    """ADU at no light"""

    def __post_init__(self) -> None:
        check_settings(self)

    def sample(self, n_movies: int, shape: tuple[int, int], rng: torch.Generator) -> Camera:
        """A camera for each movie, all of one kind: fields broadcast against (n_movies, frames, height, width)."""
        camera = self._sample(n_movies, shape, rng)
        if self.bad_pixels[1] == 0:
            return camera
        share = uniform(self.bad_pixels, n_movies, rng)[:, None, None, None]
        bad = torch.rand(n_movies, 1, *shape, generator=rng, device=rng.device) < share
        column = (torch.rand(n_movies, generator=rng, device=rng.device) * 10 * shape[1]).long()
        of_column = torch.arange(shape[1], device=rng.device) == column[:, None]
        return replace(camera, bad=bad | of_column[:, None, None, :])

    def stated(self, camera: Camera, rng: torch.Generator) -> tuple[Camera, Camera]:
        """The camera that records, and the one that its user states: without maps for a fraction `unmapped`.

        Args:
            camera: from `sample`.
            rng: source of randomness.
        """
        maps = (camera.e_per_adu, camera.read_noise_e)
        e_per_adu, read_noise_e = (torch.as_tensor(m, device=rng.device) for m in maps)
        whole = camera.em_gain is not None or e_per_adu.shape[-1] == 1
        if whole or float(torch.rand(1, generator=rng, device=rng.device)) >= self.unmapped:
            return camera, camera
        spread = uniform(self.fixed_pattern_e, len(e_per_adu), rng)[:, None, None, None]
        pattern = spread * torch.randn(e_per_adu.shape, generator=rng, device=rng.device)
        middle = [m.flatten(1).median(1).values[:, None, None, None] for m in (e_per_adu, read_noise_e)]
        recording = replace(camera, baseline=camera.baseline + pattern / e_per_adu)
        return recording, replace(camera, e_per_adu=middle[0], read_noise_e=middle[1])

    def _sample(self, n_movies: int, shape: tuple[int, int], rng: torch.Generator) -> Camera:
        def each(values: Tensor) -> Tensor:
            return values[:, None, None, None]

        def rand(*size: int) -> Tensor:
            return torch.rand(*size, generator=rng, device=rng.device)

        qe = each(uniform(self.qe, n_movies, rng))
        if float(rand(1)) < self.emccd_fraction:
            return Camera(
                baseline=self.baseline,
                e_per_adu=each(uniform(self.emccd_e_per_adu, n_movies, rng)),
                read_noise_e=each(uniform(self.emccd_read_noise_e, n_movies, rng)),
                qe=qe,
                em_gain=each(log_uniform(self.em_gain, n_movies, rng)),
                spurious_e=each(uniform(self.spurious_e, n_movies, rng)),
            )
        maps = (n_movies, 1, *shape)
        noise = each(log_uniform(self.scmos_read_noise_e, n_movies, rng)) * torch.exp(
            0.2 * torch.randn(*maps, generator=rng, device=rng.device)
        )
        hot = rand(*maps) < each(uniform(self.hot_pixels, n_movies, rng))
        noise = torch.where(hot, noise * (3 + 27 * rand(*maps) ** 2), noise)
        gain = 1 + 0.05 * torch.randn(*maps, generator=rng, device=rng.device).clamp(-4, 4)
        return Camera(
            baseline=self.baseline,
            e_per_adu=each(uniform(self.scmos_e_per_adu, n_movies, rng)) * gain,
            read_noise_e=noise,
            qe=qe,
        )


class Simulation(NamedTuple):
    """Movies with known emitters."""

    emitters: EmitterSet
    """frames are numbered movie * n_frames + frame"""
    frames: Tensor
    """(n_movies, n_frames, height, width) ADU"""
    camera: Camera
    """as its user states it; fields broadcast against `frames`"""
    background: Tensor
    """(n_movies, n_frames, height, width) photons per pixel"""
    psf_parameters: Tensor
    """(n_movies, number of parameters), named by `psf.parameter_names`"""
    told: Mapping[str, Tensor]
    """what the network is told of each movie, (n_movies,) by the names of its context, with a user's errors"""
    pixel_size_nm: float
    psfs: Sequence[PSF] = ()
    """the PSF of each movie, where each has its own"""


@final
@dataclass(frozen=True)
class ForwardModel:
    """The generative model: emitters and background from `scene`, light by `psf`, counts by `camera`.

    `camera` may be a prior, from which every movie draws its own; so may the PSF's parameters.
    """

    scene: Scene
    psf: PSF
    camera: Camera | CameraPrior
    psf_prior: PSFPrior | None = None
    """ranges of the PSF's parameters, for a `GaussianPSF`; None keeps the PSF's own"""
    blur_nm: Range = (0.0, 0.0)
    """range of a Gaussian blur on top of `psf`"""
    pupils: PupilBank | None = None
    """PSFs of which every movie draws one, or a fraction of them if there is a `psf_prior`; None: all have `psf`"""

    @torch.no_grad()
    def sample(self, n_movies: int, n_frames: int, shape: tuple[int, int], rng: torch.Generator) -> Simulation:
        """Draw movies with their emitters.

        Args:
            n_movies: number of independent movies, each with its own draw of every range.
            n_frames: consecutive frames of each.
            shape: (height, width) in pixels.
            rng: source of randomness; its device is where the simulation runs.
        """
        pixel = self.psf.pixel_size_nm
        emitters = self.scene.sample_emitters(n_movies, n_frames, shape, pixel, rng)
        background = self.scene.sample_background(n_movies, n_frames, shape, rng)
        movie = emitters.frame // n_frames
        psfs: Sequence[PSF] = ()
        told: dict[str, Tensor] = {}
        halo = None
        if self.pupils is not None and self._by_pupils(rng):
            psfs, told = self.pupils.draw(n_movies, rng)
            parameters = torch.zeros(n_movies, 0)
        elif isinstance(self.psf, FieldSplinePSF):
            # a movie is a small part of the field, over which the PSF hardly changes
            low, high = torch.tensor(self.psf.field_nm, device=rng.device).T
            parameters = low + (high - low) * torch.rand(n_movies, 2, generator=rng, device=rng.device)
            told = dict(zip(self.psf.parameter_names, parameters.T, strict=True))
        elif self.psf_prior is None:
            own = [getattr(self.psf, name).detach().reshape(1) for name in self.psf.parameter_names]
            parameters = torch.stack(own, 1).expand(n_movies, -1) if own else torch.zeros(n_movies, 0)
        else:
            parameters = log_uniform(self.psf_prior.sigma_px, n_movies, rng)[:, None] * pixel
            error = torch.randn(n_movies, 1, generator=rng, device=rng.device) * self.psf_prior.told_error
            low, high = self.psf_prior.sigma_px
            told = {"psf_sigma_px": (parameters / pixel * torch.exp(error)).clamp(low, high)[:, 0]}
            halo = uniform(self.psf_prior.halo_fraction, n_movies, rng)
        parameters = parameters.to(rng.device)
        blur_nm = uniform(self.blur_nm, n_movies, rng) if self.blur_nm[1] > 0 else torch.zeros(n_movies)
        # a blur brings light in over the border of the frame: it is drawn with a margin
        margin = blur_reach(self.blur_nm[1] / pixel) if self.blur_nm[1] > 0 else 0
        seen, shift = (
            (shape[0] + 2 * margin, shape[1] + 2 * margin),
            emitters.xyz.new_tensor([margin * pixel] * 2 + [0]),
        )
        light = background
        per_emitter = parameters[movie]
        core = emitters.photons if halo is None else emitters.photons * (1 - halo[movie])
        parts = [(core, per_emitter)]
        if halo is not None and self.psf_prior is not None:
            parts.append((emitters.photons * halo[movie], per_emitter * self.psf_prior.halo_width))
        for photons, rows in parts:
            spots = background.new_zeros(n_movies * n_frames, *seen)
            for psf, inside in [(psf, movie == i) for i, psf in enumerate(psfs)] or [(self.psf, movie >= 0)]:
                spots += render(
                    psf,
                    frame=emitters.frame[inside],
                    xyz=emitters.xyz[inside] + shift,
                    photons=photons[inside],
                    n_frames=n_movies * n_frames,
                    shape=seen,
                    parameters=rows[inside] if rows.shape[1] else None,
                )
            light = light + self._blurred(spots.view(n_movies, n_frames, *seen), blur_nm)
        if self.blur_nm[1] > 0:
            psfs = [BlurredPSF(self.psf, blur).to(rng.device) for blur in blur_nm.tolist()]
        if isinstance(self.camera, CameraPrior):
            recording, camera = self.camera.stated(self.camera.sample(n_movies, shape, rng), rng)
        else:
            recording = camera = _cut(self.camera, n_movies, shape, rng)
        return Simulation(emitters, recording.sample(light, rng), camera, background, parameters, told, pixel, psfs)

    def _by_pupils(self, rng: torch.Generator) -> bool:
        """Whether the next movies have PSFs of pupils, and not Gaussian ones."""
        share = 1.0 if self.psf_prior is None else self.psf_prior.pupil_fraction
        return share == 1 or float(torch.rand(1, generator=rng, device=rng.device)) < share

    def _blurred(self, spots: Tensor, blur_nm: Tensor) -> Tensor:
        """Light (n_movies, n_frames, y, x), each movie blurred by its own width (n_movies,), without its margin."""
        if self.blur_nm[1] == 0:
            return spots
        kernel = blur_kernel(blur_nm / self.psf.pixel_size_nm, blur_reach(self.blur_nm[1] / self.psf.pixel_size_nm))
        rows = conv2d(spots.transpose(0, 1), kernel[:, None, None, :], groups=len(spots))
        return conv2d(rows, kernel[:, None, :, None], groups=len(spots)).transpose(0, 1).clamp_min(0)


def _cut(camera: Camera, n_movies: int, shape: tuple[int, int], rng: torch.Generator) -> Camera:
    """Windows of a camera's (y, x) maps at random places: fields broadcast against (n_movies, frames, y, x)."""
    if camera.shape is None:
        return camera
    camera = camera.to(rng.device)
    values = {f.name: getattr(camera, f.name) for f in fields(camera)}
    maps = {name: value for name, value in values.items() if isinstance(value, Tensor) and value.ndim == 2}
    maps = {name: value for name, value in maps.items() if value.shape != shape}
    if not maps:
        return camera
    sizes = {tuple(value.shape) for value in maps.values()}
    (height, width), *others = sizes
    if others or height < shape[0] or width < shape[1]:
        listed = ", ".join(f"{h} x {w}" for h, w in sizes)
        raise ValueError(f"the camera's maps ({listed} pixels) must be alike and at least {shape[0]} x {shape[1]}")
    corners = torch.rand(n_movies, 2, generator=rng, device=rng.device)
    tops = (corners * torch.tensor([height - shape[0] + 1, width - shape[1] + 1], device=rng.device)).long().tolist()
    cut: dict[str, Any] = {
        name: torch.stack([value[y : y + shape[0], x : x + shape[1]] for y, x in tops])[:, None]
        for name, value in maps.items()
    }
    return replace(camera, **cut)


def gaussian_forward(
    scene: Scene, psf_prior: PSFPrior, camera: Camera | CameraPrior, pixel_size_nm: float
) -> ForwardModel:
    """The forward model of a Gaussian PSF whose width is drawn from a range."""
    middle = (psf_prior.sigma_px[0] * psf_prior.sigma_px[1]) ** 0.5 * pixel_size_nm
    # four sigma of the widest core on either side
    patch = 2 * int(4 * psf_prior.sigma_px[1] + 0.5) + 1
    psf = GaussianPSF(middle, pixel_size_nm=pixel_size_nm, depth_nm=psf_prior.depth_nm, patch_px=patch)
    pupils = None
    if psf_prior.pupil_fraction > 0:
        within = replace(psf_prior.pupils, sigma_px=psf_prior.sigma_px, told_error=psf_prior.told_error)
        pupils = PupilBank(within, pixel_size_nm, scene.z_nm)
    return ForwardModel(scene, psf, camera, psf_prior, pupils=pupils)
