"""The aperture correction of a movie: light of its molecules outside the Gaussian core."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from decode.emitters import EmitterSet
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import render

__all__ = ["ApertureCorrection", "aperture_correction"]

RINGS = (0.0, 2.0, 3.0, 4.0, 5.5, 7.5, 10.0)
"""edges of the rings around a molecule, in widths of the PSF"""
LONE_SIGMAS = 4.0
"""least distance to the next molecule of a lone one, in widths of the PSF"""
LONE_PROBABILITY, LONE_SNR = 0.9, 5.0
"""least probability of a certain molecule, and least photons over their sigma of a bright one"""
FEWEST_MOLECULES, FEWEST_FRAMES = 30, 10
"""fewest that allow a measurement"""
GROUPS = 20
"""number of groups of frames that the jackknife leaves out in turn"""
CERTAIN_SIGMAS = 3.0
"""standard errors by which light outside the core must differ from none"""
AT_ONCE = 512
"""molecules whose rings are drawn together; a pixel of each takes 50 bytes meanwhile"""


@final
@dataclass(frozen=True, kw_only=True)
class ApertureCorrection:
    """The ratio of all light of a movie's molecules to the photons that were counted.

    >>> correction = ApertureCorrection(factor=1.25, sigma=0.01, radius_px=8.0, n=400)
    >>> correction.certain, f"{correction.outside:.0%}"
    (True, '20%')
    """

    factor: float
    """factor from counted to all photons"""
    sigma: float
    """standard error of the factor"""
    radius_px: float
    """radius of the aperture, beyond which no more light was found"""
    n: int
    """number of lone bright molecules"""

    @property
    def certain(self) -> bool:
        """Whether there is light outside the core, by `CERTAIN_SIGMAS`."""
        return self.factor - 1 > CERTAIN_SIGMAS * self.sigma

    @property
    def outside(self) -> float:
        """Share of all light outside the core."""
        return 1 - 1 / self.factor

    def applied(self, molecules: EmitterSet) -> EmitterSet:
        """Molecules with all their light; the error of the correction adds to their sigmas."""
        sigma, half = (
            None
            if width is None
            else torch.hypot(self.factor * width, scale * self.sigma * molecules.photons)
            for width, scale in ((molecules.photons_sigma, 1.0), (molecules.photons_95, 1.96))
        )
        photons = self.factor * molecules.photons
        return replace(molecules, photons=photons, photons_sigma=sigma, photons_95=half)


class _Rings(NamedTuple):
    """Rings around molecules, pixels."""

    edges: Tensor
    """(n + 1,) radii"""

    @classmethod
    def of(cls, sigma_px: float) -> _Rings:
        return cls(torch.tensor(RINGS) * sigma_px)

    @property
    def n(self) -> int:
        return len(self.edges) - 1

    @property
    def areas(self) -> Tensor:
        """(n,) square pixels"""
        return math.pi * self.edges.double().square().diff()


@torch.no_grad()
def aperture_correction(
    light: Tensor,
    molecules: EmitterSet,
    *,
    usable: Tensor,
    sigma_px: float,
    pixel_size_nm: float,
) -> ApertureCorrection | None:
    """The light of lone bright molecules by a curve of growth, over the photons counted for them.

    Photometry with a narrow profile is corrected by the light of bright lone stars in wide
    apertures (Howell, PASP 101, 616, 1989; Stetson, PASP 102, 932, 1990).  Here the residual light
    after subtraction of the counted Gaussians is regressed on rings around all molecules at once,
    so that neighbours are accounted for; dim and crowded ones have rings of their own.  Background,
    flickering or not, is projected out of both sides: steady light, light proportional to the level
    of the background, and the mean of each frame (Frisch and Waugh, Econometrica 1, 387, 1933).
    The sum of the rings grows with the radius; the aperture is that of the least mean square error,
    by a jackknife over frames (Efron, The Jackknife, the Bootstrap and Other Resampling Plans,
    SIAM, 1982).

    Args:
        light: (frame, y, x) photons, with background.
        molecules: the molecules with photons as counted, probability and `photons_sigma`; frames
            count from the first of `light`.
        usable: (y, x) bool; pixels that hold an image.
        sigma_px: width of the Gaussian in focus.
        pixel_size_nm: side of a pixel.

    Returns:
        The correction; None where too few molecules are bright and alone, or frames are few.

    Raises:
        ValueError: if the molecules come without probability or sigma of their photons.
    """
    if len(light) < FEWEST_FRAMES or len(molecules) < FEWEST_MOLECULES:
        return None
    if molecules.probability is None or molecules.photons_sigma is None:
        raise ValueError("light is measured of molecules with probability and sigma of photons")
    position = molecules.xyz[:, :2] / pixel_size_nm
    lone = _alone(position, molecules.frame, LONE_SIGMAS * sigma_px)
    lone &= molecules.probability > LONE_PROBABILITY
    lone &= molecules.photons > LONE_SNR * molecules.photons_sigma
    n_lone = int(lone.sum())
    if n_lone < FEWEST_MOLECULES:
        return None
    rings = _Rings.of(sigma_px)
    counted = _counted(molecules, position, sigma_px, light.shape)
    around = [
        _light_in_rings(molecules[rows], position[rows], rings, light.shape)
        for rows in (lone, ~lone)
    ]
    maps = torch.cat([(light - counted)[None], *around])[..., usable].float()
    growth = _growth(_without_background(maps), rings)
    error, at = growth.error.min(0)
    # the last digits depend on where sums lie in memory; a table should not
    return ApertureCorrection(
        factor=1 + round(float(growth.total[at]), 6),
        sigma=round(float(error), 6),
        radius_px=float(rings.edges[int(at) + 1]),
        n=n_lone,
    )


def _alone(position: Tensor, frame: Tensor, reach_px: float) -> Tensor:
    """(n,) whether no other molecule of the frame is near."""
    apart = frame[:, None] * 1e6  # frames are far from one another
    places = torch.cat([position.double(), apart.double()], 1).numpy()
    distance = cKDTree(places).query(places, k=2)[0][:, 1]
    return torch.from_numpy(np.asarray(distance) > reach_px)


def _counted(molecules: EmitterSet, position: Tensor, sigma_px: float, shape: torch.Size) -> Tensor:
    """(frame, y, x) light of the Gaussians."""
    patch = 2 * math.ceil(5 * sigma_px) + 1
    core = GaussianPSF(sigma_px, pixel_size_nm=1.0, patch_px=patch)
    return render(
        core,
        frame=molecules.frame,
        xyz=torch.cat([position, torch.zeros_like(position[:, :1])], 1),
        photons=molecules.photons,
        n_frames=shape[0],
        shape=(shape[1], shape[2]),
    )


def _light_in_rings(
    molecules: EmitterSet, position: Tensor, rings: _Rings, shape: torch.Size
) -> Tensor:
    """(ring, frame, y, x) photons of the molecules around which a pixel lies in that ring."""
    n_frames, height, width = shape
    half = math.ceil(float(rings.edges[-1]))
    steps = torch.arange(-half, half + 1)
    maps = torch.zeros(rings.n * n_frames * height * width, dtype=molecules.photons.dtype)
    for rows in torch.arange(len(molecules)).split(AT_ONCE):
        x, y = (position[rows].floor().long()[:, :, None] + steps).unbind(1)
        dx, dy = (place + 0.5 - position[rows, i, None] for i, place in enumerate((x, y)))
        distance = torch.hypot(dx[:, None, :], dy[:, :, None])
        ring = torch.bucketize(distance, rings.edges, right=True) - 1
        seen = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
        seen &= ring < rings.n
        plane = ring * n_frames + molecules.frame[rows, None, None]
        pixel = (plane * height + y[:, :, None]) * width + x[:, None, :]
        photons = molecules.photons[rows, None, None].expand(ring.shape)
        maps.index_add_(0, pixel[seen], photons[seen])
    return maps.view(rings.n, *shape)


def _without_background(maps: Tensor) -> Tensor:
    """(k, frame, pixel) maps, of which the first is light, without what goes with the level of the
    light in each pixel, and without the mean of each frame."""
    level = maps[0].median(1).values
    course = torch.stack([torch.ones_like(level), level - level.mean()], 1)
    course, _ = torch.linalg.qr(course)
    maps = maps - course @ (course.T @ maps)
    return maps - maps.mean(2, keepdim=True)


class _Growth(NamedTuple):
    """The curve of growth of the light that was not counted, as a share of what was."""

    total: Tensor
    """(ring,) within the outer edge of each ring"""
    error: Tensor
    """(ring,) root mean square error as that of all light: noise, and what lies beyond"""


def _growth(maps: Tensor, rings: _Rings) -> _Growth:
    """Regress the light that is left, maps[0], on that of the molecules in rings, maps[1:]."""
    lit = maps[1:].flatten(1).abs().amax(1) > 0
    groups = maps.tensor_split(min(GROUPS, maps.shape[1]), 1)
    products = torch.stack([_gram(group.flatten(1).double()) for group in groups])
    whole = products.sum(0)

    def total(product: Tensor) -> Tensor:
        brightness = product.new_zeros(len(lit))
        rows = torch.nonzero(lit)[:, 0] + 1
        inner, right = product[rows[:, None], rows], product[rows, :1]
        brightness[lit] = torch.linalg.lstsq(inner, right).solution[:, 0]
        return (brightness[: rings.n] * rings.areas).cumsum(0)

    best = total(whole)
    jackknife = torch.stack([total(whole - product) for product in products])
    beyond = best[-1] - best
    noise = _jackknife_variance(jackknife)
    noise_beyond = _jackknife_variance(jackknife[:, -1:] - jackknife)
    bias = (beyond.square() - noise_beyond).clamp_min(0)
    return _Growth(best, (noise + bias).sqrt())


def _gram(maps: Tensor) -> Tensor:
    return maps @ maps.T


def _jackknife_variance(values: Tensor) -> Tensor:
    """Variance of an estimate from (group, k) values without each group (Efron, 1982)."""
    n = len(values)
    return (n - 1) / n * (values - values.mean(0)).square().sum(0)
