"""DrawnPSFs: the PSFs of some movies, and what a network is conditioned on for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from decode.conditioning import Conditioning
from decode.optics.blur import Blur
from decode.optics.psf import PSF
from decode.ranges import Range

__all__ = ["DrawnPSFs", "Light", "PSFs"]


class Light(NamedTuple):
    """A part of the light of some movies, drawn by one PSF."""

    psf: PSF
    parameters: Tensor
    """(n_movies, p) in the order of `psf.parameter_names`; p = 0 takes the PSF's own"""
    share: Tensor
    """(n_movies,) share of the photons"""


class DrawnPSFs(NamedTuple):
    """The PSFs of some movies."""

    lights: Sequence[Light]
    """parts of the light; their shares sum to 1 in each movie"""
    psfs: Sequence[PSF]
    """the PSF of each movie, with the blur and without the halo"""
    parameters: Tensor
    """(n_movies, p) parameters of these PSFs"""
    conditioning: Conditioning
    """conditioning of the network, with (n_movies,) values as users know them"""
    core: Tensor
    """(n_movies,) share of the light in the Gaussian core (`core_fraction`); 1 where the whole PSF
    is known"""
    blur: Blur | None = None
    """blur on top of all parts"""


class PSFs(Protocol):
    """A distribution of PSFs, one for each movie."""

    @property
    def psf(self) -> PSF:
        """The PSF in the middle of the ranges."""

    @property
    def known(self) -> PSF | None:
        """The PSF of all movies; None where each has its own."""

    @property
    def domain(self) -> dict[str, Range]:
        """Ranges of what the network is conditioned on, by the names of its context maps."""

    def anew(self) -> PSFs:
        """The same distribution, with nothing kept from earlier draws."""

    def draw(self, n_movies: int, rng: torch.Generator) -> DrawnPSFs:
        """The PSFs of some movies.

        Args:
            n_movies: number of movies.
            rng: source of randomness; its device is where the simulation runs.
        """
