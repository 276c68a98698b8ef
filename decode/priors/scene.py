"""Scene: the prior over blinking molecules and their background."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from decode.devices import on_host
from decode.emitters import EmitterSet
from decode.ranges import (
    Fraction,
    FractionRange,
    NonNegativeRange,
    PositiveRange,
    Range,
    check_settings,
)

__all__ = ["Scene", "log_uniform", "uniform"]


def uniform(bounds: Range, n: int, rng: torch.Generator) -> Tensor:
    """(n,) numbers uniform between the bounds, on the device of `rng`."""
    return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(n, generator=rng, device=rng.device)


def log_uniform(bounds: Range, n: int, rng: torch.Generator) -> Tensor:
    """(n,) numbers whose logarithm is uniform between the bounds, on the device of `rng`."""
    return torch.exp(uniform((math.log(bounds[0]), math.log(bounds[1])), n, rng))


@final
@dataclass(frozen=True, kw_only=True)
class Scene:
    """Ranges from which every movie draws its own blinking, structure and background.

    Molecules switch on at random times and stay on for an exponential time, both continuous, so
    that the first and the last frame of an emission hold a part of the flux.  Fluxes follow a gamma
    distribution.

    Example:
        >>> scene = Scene(density_per_um2=(0.0, 1.0), z_nm=(-500.0, 500.0))
        >>> rng = torch.Generator().manual_seed(0)
        >>> molecules = scene.sample_emitters(2, 3, (32, 32), 100.0, rng)
        >>> bool((molecules.xyz[:, 2].abs() <= 500).all()), int(molecules.frame.max()) < 6
        (True, True)
        >>> scene.sample_background(2, 3, (32, 32), rng).shape
        torch.Size([2, 3, 32, 32])
    """

    density_per_um2: NonNegativeRange = (0.0, 3.0)
    """molecules on at once, per square micrometre; low densities are drawn more often (the square
    of a uniform number)"""
    flux_photons: PositiveRange = (200.0, 20000.0)
    """mean photons of a molecule in a frame during which it is on throughout; log-uniform"""
    flux_variation: NonNegativeRange = (0.1, 0.8)
    """standard deviation of the flux over its mean, between the molecules of a movie"""
    on_time_frames: PositiveRange = (0.7, 5.0)
    """mean time a molecule stays on; log-uniform"""
    z_nm: Range = (0.0, 0.0)
    """range of depths of the molecules"""
    z_share: FractionRange = (1.0, 1.0)
    """share of that depth a movie fills: from flat to thick samples"""
    filaments: Fraction = 0.4
    """fraction of movies whose molecules lie on filaments instead of anywhere"""
    background_photons: PositiveRange = (1.0, 300.0)
    """mean background per pixel; log-uniform"""
    background_contrast: NonNegativeRange = (0.0, 0.5)
    """standard deviation of the logarithm of the background over the field"""
    background_drift: Range = (-0.02, 0.005)
    """relative change of the background from frame to frame"""
    flicker: Fraction = 0.0
    """fraction of movies whose background jumps between frames: alternating lasers, flashes, steps,
    lamp noise"""
    flicker_factor: PositiveRange = (0.2, 5.0)
    """background of the frames that jump over that of the others; log-uniform, and raised to a
    uniform power below 1, as slight jumps are harder to tell from molecules than wide ones"""
    flicker_noise: NonNegativeRange = (0.05, 0.4)
    """standard deviation of the logarithm of the background from frame to frame, in movies with
    lamp noise"""

    def __post_init__(self) -> None:
        check_settings(self)

    def sample_emitters(
        self,
        n_movies: int,
        n_frames: int,
        shape: tuple[int, int],
        pixel_size_nm: float,
        rng: torch.Generator,
    ) -> EmitterSet:
        """Draw the molecules of some movies, in the frames they shine in.

        Args:
            n_movies, n_frames: frames are numbered movie * n_frames + frame.
            shape: (height, width) in pixels; molecules lie up to 4 px outside, their light reaches
                in.
            pixel_size_nm: side of a pixel.
            rng: source of randomness; its device is the result's.

        Returns:
            One row per molecule and frame, with the photons of that frame.
        """
        margin = 4 * pixel_size_nm
        width, height = (side * pixel_size_nm + 2 * margin for side in (shape[1], shape[0]))
        # the host draws how many there are, so that it need not ask a GPU
        host = on_host(rng)
        on_time = log_uniform(self.on_time_frames, n_movies, host)
        density = (
            self.density_per_um2[0]
            + (self.density_per_um2[1] - self.density_per_um2[0])
            * torch.rand(n_movies, generator=host).square()
        )
        # on at the start, or switched on later: exponential times have no memory, so no warm-up is
        # needed
        expected = density * (width * height * 1e-6) * (1 + n_frames / on_time)
        movie = torch.repeat_interleave(
            torch.arange(n_movies), torch.poisson(expected, generator=host).long()
        )
        n = len(movie)
        movie, on_time = (t.to(rng.device, non_blocking=True) for t in (movie, on_time))

        def rand(*size: int) -> Tensor:
            return torch.rand(*size, generator=rng, device=rng.device)

        on_at_start = rand(n) < 1 / (1 + n_frames / on_time[movie])
        start = torch.where(on_at_start, 0.0, rand(n) * n_frames)
        end = start - on_time[movie] * torch.log1p(-rand(n))
        end = end.clamp(max=float(n_frames))

        xyz = torch.empty(n, 3, device=rng.device)
        xyz[:, :2] = self._positions(movie, n_movies, (width, height), rng) - margin
        xyz[:, 2] = uniform(self.z_nm, n, rng) * uniform(self.z_share, n_movies, rng)[movie]
        flux = log_uniform(self.flux_photons, n_movies, rng)[movie]
        shape_parameter = uniform(self.flux_variation, n_movies, rng).clamp_min(1e-3)[movie] ** -2
        flux = flux * torch._standard_gamma(shape_parameter, generator=rng) / shape_parameter

        first = start.floor().long()
        last = (end.ceil().long() - 1).clamp(min=first, max=torch.full_like(first, n_frames - 1))
        lasts = last - first + 1
        row = torch.repeat_interleave(lasts)
        frame = (
            first[row] + torch.arange(len(row), device=rng.device) - (lasts.cumsum(0) - lasts)[row]
        )
        fraction = torch.minimum(end[row], frame + 1.0) - torch.maximum(start[row], frame.float())
        return EmitterSet(
            frame=movie[row] * n_frames + frame,
            xyz=xyz[row],
            photons=flux[row] * fraction.clamp_min(0),
        )

    def _positions(
        self, movie: Tensor, n_movies: int, size_nm: tuple[float, float], rng: torch.Generator
    ) -> Tensor:
        """(n, 2) nm, anywhere in the field, or along a few straight filaments 20 nm wide."""
        n, lines = len(movie), 5
        size = torch.tensor(size_nm).to(rng.device, non_blocking=True)

        def rand(*size: int) -> Tensor:
            return torch.rand(*size, generator=rng, device=rng.device)

        anywhere = rand(n, 2) * size
        filamentous = rand(n_movies) < self.filaments
        n_lines = (rand(n_movies) * lines).long() + 1
        line = (rand(n) * n_lines[movie]).long()
        point, angle = rand(n_movies, lines, 2) * size, rand(n_movies, lines) * math.pi
        direction = torch.stack([angle.cos(), angle.sin()], -1)[movie, line]
        normal = torch.stack([-direction[:, 1], direction[:, 0]], -1)
        along = (rand(n, 1) - 0.5) * max(size_nm) * 1.4
        across = 20.0 * torch.randn(n, 1, generator=rng, device=rng.device)
        on_line = point[movie, line] + along * direction + across * normal
        # a molecule beyond the field would shine nowhere: place it anywhere instead, as unspecific
        # labelling
        inside = ((on_line >= 0) & (on_line < size)).all(1) & filamentous[movie]
        return torch.where(inside[:, None], on_line, anywhere)

    def sample_background(
        self, n_movies: int, n_frames: int, shape: tuple[int, int], rng: torch.Generator
    ) -> Tensor:
        """Uneven, drifting background: (n_movies, n_frames, height, width) photons per pixel."""
        height, width = shape
        waves = 4
        y = torch.arange(height, device=rng.device)[:, None]
        x = torch.arange(width, device=rng.device)
        wavelength = log_uniform((16.0, 120.0), n_movies * waves, rng)
        angle = uniform((0.0, 2 * math.pi), n_movies * waves, rng)
        phase = uniform((0.0, 2 * math.pi), n_movies * waves, rng)
        k = 2 * math.pi / wavelength
        argument = (
            (k * angle.cos())[:, None, None] * x
            + (k * angle.sin())[:, None, None] * y
            + phase[:, None, None]
        )
        # the waves of one movie sum to unit variance
        pattern = argument.cos().view(n_movies, waves, height, width).sum(1) * (2 / waves) ** 0.5
        level = log_uniform(self.background_photons, n_movies, rng)
        contrast = uniform(self.background_contrast, n_movies, rng)
        drift = uniform(self.background_drift, n_movies, rng)
        time = torch.exp(drift[:, None] * torch.arange(n_frames, device=rng.device))
        if self.flicker > 0:
            time = time * self._flicker(n_movies, n_frames, rng)
        field = level[:, None, None] * torch.exp(contrast[:, None, None] * pattern)
        return field[:, None] * time[:, :, None, None]

    def _flicker(self, n_movies: int, n_frames: int, rng: torch.Generator) -> Tensor:
        """Factors (n_movies, n_frames) on the background: 1 where nothing flickers."""

        def rand(*size: int) -> Tensor:
            return torch.rand(*size, generator=rng, device=rng.device)

        frame = torch.arange(n_frames, device=rng.device)
        moment = (rand(n_movies, 1) * n_frames).floor()
        period = (2 + 3 * rand(n_movies, 1)).floor()
        takes_turns = (frame + moment) % period == 0
        flashes = frame == moment
        steps = frame >= moment
        patterns = torch.stack([takes_turns, flashes, steps], 1)
        kind = (rand(n_movies) * 4).long()
        chosen = patterns[torch.arange(n_movies, device=rng.device), kind.clamp_max(2)]
        jump = (log_uniform(self.flicker_factor, n_movies, rng) ** rand(n_movies))[:, None]
        spread = uniform(self.flicker_noise, n_movies, rng)[:, None]
        noise = torch.exp(spread * torch.randn(chosen.shape, generator=rng, device=rng.device))
        factor = torch.where((kind == 3)[:, None], noise, torch.where(chosen, jump, 1.0))
        return torch.where(rand(n_movies, 1) < self.flicker, factor, 1.0)
