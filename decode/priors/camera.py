"""Priors over cameras: ranges, or the camera of a file."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol, final

import torch
from annotated_types import Gt, Le
from torch import Tensor

from decode.devices import on_host
from decode.io.cameras import camera_inputs, read_camera
from decode.optics.camera import Camera
from decode.priors.scene import log_uniform, uniform
from decode.priors.section import Section, require_recipe_pixels
from decode.ranges import (
    Fraction,
    FractionRange,
    NonNegativeRange,
    PositiveRange,
    check_settings,
)

__all__ = ["CameraPrior", "Cameras", "DrawnCamera", "FixedCamera", "MeasuredCamera"]

QuantumEfficiency = Annotated[float, Gt(0), Le(1)]


class DrawnCamera(NamedTuple):
    """The camera of some movies; fields broadcast against (n_movies, frames, height, width)."""

    recording: Camera
    """the camera that records the counts"""
    stated: Camera
    """the same camera as its user states it"""


class Cameras(Protocol):
    """A distribution of cameras, one for each movie."""

    @property
    def known(self) -> Camera | None:
        """The camera of all movies; None where each has its own."""

    def draw(self, n_movies: int, shape: tuple[int, int], rng: torch.Generator) -> DrawnCamera:
        """The cameras of some movies.

        Args:
            n_movies: number of movies.
            shape: (height, width) of their frames, pixels.
            rng: source of randomness; its device is where the simulation runs.
        """


@final
@dataclass(frozen=True)
class FixedCamera:
    """One camera, whose maps are cut to the frames at random places."""

    known: Camera

    def draw(self, n_movies: int, shape: tuple[int, int], rng: torch.Generator) -> DrawnCamera:
        """Windows of the maps.

        Raises:
            ValueError: if the maps are smaller than the frames.
        """
        camera = _cut(self.known, n_movies, shape, rng)
        return DrawnCamera(camera, camera)


@final
@dataclass(frozen=True, kw_only=True)
class MeasuredCamera(Section):
    """The camera of a file; maps are cut to the simulated frames at random places."""

    file: str
    """camera file (YAML); in a recipe relative to the recipe"""

    def at(self, pixel_size_nm: float) -> FixedCamera:
        """The camera of the file.

        Raises:
            ValueError: if its pixels have another size.
        """
        named = read_camera(self.file, pixel_size_nm=pixel_size_nm)
        require_recipe_pixels(self.file, named.pixel_size_nm, pixel_size_nm)
        return FixedCamera(named.camera)

    def mapped(self) -> MeasuredCamera:
        """The section itself, as its camera is stated as it is."""
        return self

    def files(self) -> tuple[Path, ...]:
        return camera_inputs(self.file)

    def beside(self, folder: Path) -> MeasuredCamera:
        return replace(self, file=str(folder / self.file))


@final
@dataclass(frozen=True, kw_only=True)
class CameraPrior(Section):
    """Ranges of EMCCD and sCMOS cameras; every movie draws its own."""

    emccd_fraction: Fraction = 0.5
    """fraction of movies whose camera is an EMCCD; the others are of an sCMOS with per-pixel
    maps"""
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
    scmos_noise_spread: NonNegativeRange = (0.2, 0.2)
    """standard deviation of the logarithm of the read noise over an sCMOS's pixels"""
    scmos_e_per_adu: PositiveRange = (0.2, 1.0)
    """electrons per ADU of an sCMOS"""
    hot_pixels: FractionRange = (0.0, 0.01)
    """fraction of an sCMOS's pixels with 3 to 30 times the read noise"""
    bad_pixels: FractionRange = (0.0, 0.0)
    """fraction of pixels that are known to be bad; a tenth of the movies also have a bad column"""
    unmapped: Fraction = 0.0
    """fraction of sCMOS movies whose camera is stated by numbers alone"""
    fixed_pattern_e: NonNegativeRange = (0.0, 1.0)
    """standard deviation over the pixels of an offset that those numbers do not state, electrons"""
    baseline: float = 100.0
    """ADU at no light"""

    def __post_init__(self) -> None:
        check_settings(self)

    def at(self, pixel_size_nm: float) -> CameraPrior:
        """The prior itself, which is the same at all pixel sizes."""
        return self

    def mapped(self) -> CameraPrior:
        """The prior whose users state the maps of every camera."""
        return replace(self, unmapped=0.0)

    @property
    def known(self) -> Camera | None:
        """None, as each movie has its own camera."""
        return None

    def typical(self) -> CameraPrior:
        return replace(self, emccd_fraction=1.0, bad_pixels=(0.0, 0.0))

    def draw(self, n_movies: int, shape: tuple[int, int], rng: torch.Generator) -> DrawnCamera:
        """A camera for each movie, and how its user states it."""
        return self.stated(self.sample(n_movies, shape, rng), rng)

    def sample(self, n_movies: int, shape: tuple[int, int], rng: torch.Generator) -> Camera:
        """A camera for each movie, all of one kind: fields broadcast against (n_movies, frames,
        height, width)."""
        camera = self._sample(n_movies, shape, rng)
        if self.bad_pixels[1] == 0:
            return camera
        share = uniform(self.bad_pixels, n_movies, rng)[:, None, None, None]
        bad = torch.rand(n_movies, 1, *shape, generator=rng, device=rng.device) < share
        column = (torch.rand(n_movies, generator=rng, device=rng.device) * 10 * shape[1]).long()
        of_column = torch.arange(shape[1], device=rng.device) == column[:, None]
        return replace(camera, bad=bad | of_column[:, None, None, :])

    def stated(self, camera: Camera, rng: torch.Generator) -> DrawnCamera:
        """The recording camera, and what its user states of it: no maps for a fraction `unmapped`
        of the movies.

        Args:
            camera: from `sample`.
            rng: source of randomness.
        """
        maps = (camera.e_per_adu, camera.read_noise_e)
        e_per_adu, read_noise_e = (torch.as_tensor(m, device=rng.device) for m in maps)
        whole = camera.em_gain is not None or e_per_adu.shape[-1] == 1
        if whole or float(torch.rand(1, generator=on_host(rng))) >= self.unmapped:
            return DrawnCamera(camera, camera)
        spread = uniform(self.fixed_pattern_e, len(e_per_adu), rng)[:, None, None, None]
        pattern = spread * torch.randn(e_per_adu.shape, generator=rng, device=rng.device)
        middle = [
            m.flatten(1).median(1).values[:, None, None, None] for m in (e_per_adu, read_noise_e)
        ]
        recording = replace(camera, baseline=camera.baseline + pattern / e_per_adu)
        return DrawnCamera(recording, replace(camera, e_per_adu=middle[0], read_noise_e=middle[1]))

    def _sample(self, n_movies: int, shape: tuple[int, int], rng: torch.Generator) -> Camera:
        def each(values: Tensor) -> Tensor:
            return values[:, None, None, None]

        def rand(*size: int) -> Tensor:
            return torch.rand(*size, generator=rng, device=rng.device)

        qe = each(uniform(self.qe, n_movies, rng))
        if float(torch.rand(1, generator=on_host(rng))) < self.emccd_fraction:
            return Camera(
                baseline=self.baseline,
                e_per_adu=each(uniform(self.emccd_e_per_adu, n_movies, rng)),
                read_noise_e=each(uniform(self.emccd_read_noise_e, n_movies, rng)),
                qe=qe,
                em_gain=each(log_uniform(self.em_gain, n_movies, rng)),
                spurious_e=each(uniform(self.spurious_e, n_movies, rng)),
            )
        maps = (n_movies, 1, *shape)
        spread = each(uniform(self.scmos_noise_spread, n_movies, rng))
        noise = each(log_uniform(self.scmos_read_noise_e, n_movies, rng)) * torch.exp(
            spread * torch.randn(*maps, generator=rng, device=rng.device)
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


def _cut(camera: Camera, n_movies: int, shape: tuple[int, int], rng: torch.Generator) -> Camera:
    """Windows of a camera's (y, x) maps at random places: fields broadcast against (n_movies,
    frames, y, x)."""
    if camera.shape is None:
        return camera
    values = {f.name: getattr(camera, f.name) for f in fields(camera)}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    maps = {name: v for name, v in tensors.items() if v.ndim == 2 and v.shape != shape}
    if not maps:
        return camera.to(rng.device)
    sizes = {tuple(value.shape) for value in maps.values()}
    (height, width), *others = sizes
    if others or height < shape[0] or width < shape[1]:
        listed = ", ".join(f"{h} x {w}" for h, w in sizes)
        raise ValueError(
            f"the camera's maps ({listed} pixels) must be of one size and at least {shape[0]} x "
            f"{shape[1]}"
        )
    corners = torch.rand(n_movies, 2, generator=on_host(rng))
    places = torch.tensor([height - shape[0] + 1, width - shape[1] + 1])
    tops = (corners * places).long().tolist()
    cut: dict[str, Any] = {
        name: torch.stack([value[y : y + shape[0], x : x + shape[1]] for y, x in tops])[:, None]
        for name, value in maps.items()
    }
    return replace(camera, **cut).to(rng.device)
