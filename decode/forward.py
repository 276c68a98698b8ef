"""ForwardModel = Scene + PSFs + Cameras: what the microscope would record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self, final

import torch
from torch import Tensor

from decode.conditioning import Conditioning
from decode.devices import constant
from decode.emitters import EmitterSet
from decode.optics.camera import Camera
from decode.optics.psf import PSF, render
from decode.priors.camera import Cameras, FixedCamera
from decode.priors.drawn import DrawnPSFs, PSFs
from decode.priors.psf import FixedPSF
from decode.priors.scene import Scene
from decode.ranges import Range

__all__ = ["ForwardModel", "Simulation"]


class Simulation(NamedTuple):
    """Movies with known emitters."""

    emitters: EmitterSet
    """frames are numbered movie * n_frames + frame"""
    frames: Tensor
    """(n_movies, n_frames, height, width) ADU"""
    camera: Camera
    """the camera as its user states it; fields broadcast against `frames`"""
    background: Tensor
    """(n_movies, n_frames, height, width) photons per pixel"""
    psfs: list[PSF]
    """PSF of each movie"""
    psf_parameters: Tensor
    """(n_movies, p) parameters of these PSFs; p = 0: each PSF's own"""
    conditioning: Conditioning
    """conditioning of the network, with (n_movies,) values as users know them"""
    core: Tensor
    """(n_movies,) share of the light of emitters in the Gaussian core of their PSF"""
    pixel_size_nm: float


@final
@dataclass(frozen=True)
class ForwardModel:
    """The generative model: emitters and background from `scene`, light by `psfs`, counts by
    `cameras`.

    Every movie draws its own PSF and camera.

    >>> from decode import Camera, GaussianPSF
    >>> psf = GaussianPSF(130.0, pixel_size_nm=100.0)
    >>> camera = Camera(baseline=100.0, e_per_adu=1.0, read_noise_e=1.0)
    >>> model = ForwardModel.of(Scene(), psf, camera)
    >>> model.sample(2, 3, (32, 32), torch.Generator().manual_seed(0)).frames.shape
    torch.Size([2, 3, 32, 32])
    """

    scene: Scene
    """prior over molecules and background"""
    psfs: PSFs
    """prior over PSFs; a measured one is a prior of one"""
    cameras: Cameras
    """prior over cameras"""

    @classmethod
    def of(cls, scene: Scene, psf: PSF, camera: Camera, *, blur_nm: Range = (0.0, 0.0)) -> Self:
        """The forward model of one PSF and one camera.

        Args:
            scene: prior over molecules and background.
            psf, camera: those of all movies.
            blur_nm: range of the standard deviation of a Gaussian blur on top of the PSF.
        """
        return cls(scene, FixedPSF(psf, blur_nm), FixedCamera(camera))

    @property
    def psf(self) -> PSF:
        """The PSF in the middle of the ranges."""
        return self.psfs.psf

    @torch.no_grad()
    def sample(
        self, n_movies: int, n_frames: int, shape: tuple[int, int], rng: torch.Generator
    ) -> Simulation:
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
        drawn = self.psfs.draw(n_movies, rng)
        light = _expected(emitters, background, drawn, pixel)
        camera = self.cameras.draw(n_movies, shape, rng)
        return Simulation(
            emitters=emitters,
            frames=camera.recording.sample(light, rng),
            camera=camera.stated,
            background=background,
            psfs=list(drawn.psfs),
            psf_parameters=drawn.parameters,
            conditioning=drawn.conditioning,
            core=drawn.core,
            pixel_size_nm=pixel,
        )


def _expected(
    emitters: EmitterSet, background: Tensor, drawn: DrawnPSFs, pixel_size_nm: float
) -> Tensor:
    """Expected photons (n_movies, n_frames, y, x) of emitters on a background of that shape."""
    n_movies, n_frames, height, width = background.shape
    movie = emitters.frame // n_frames
    # a blur brings light in over the border of the frame: it is drawn with a margin
    margin = drawn.blur.reach if drawn.blur else 0
    seen = (height + 2 * margin, width + 2 * margin)
    shift = constant([margin * pixel_size_nm, margin * pixel_size_nm, 0.0], emitters.xyz)
    expected = background
    for light in drawn.lights:
        rows = light.parameters[movie]
        spots = render(
            light.psf,
            frame=emitters.frame,
            xyz=emitters.xyz + shift,
            photons=emitters.photons * light.share[movie],
            n_frames=n_movies * n_frames,
            shape=seen,
            parameters=rows if rows.shape[1] else None,
        ).view(n_movies, n_frames, *seen)
        expected = expected + (drawn.blur.of(spots) if drawn.blur else spots)
    return expected
