"""Windows of frames around molecules that are sampled together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor

from decode.emitters import EmitterSet
from decode.likelihood.nodes import nodes_of
from decode.likelihood.polish import background_of, windows_for
from decode.optics.camera import DARKEST, Camera
from decode.optics.psf import PSF, render

__all__ = ["Frames", "Neighbourhoods", "Windows", "neighbourhoods"]

MAX_BOUND_RATIO = 1.06
"""largest ratio of the Cramer-Rao bound in the window to that in the whole patch"""
SAMPLES_ALIKE = 128
"""samples of a molecule, in the order of the first unknown, whose images are drawn together"""
PIXELS_AT_ONCE, AT_NODES = 2**18, 2**13
"""light of all samples in all pixels that is computed together, and pixels of windows whose nodes
are drawn together"""
DEGREE = {2: 4, 3: 5}
"""of the polynomials that are images of samples, by the number of axes"""
FEWEST_SAMPLES, TESTED = 200, 8
"""samples from which on their images are polynomials, and those for which they are tested"""
LARGEST_ERROR = 0.1
"""largest difference of the tested images, in standard deviations of all pixels together: the
logarithms of weights are off by no more"""
MOST_TOGETHER = 4
"""most molecules that are sampled together; the light of the others is fixed"""


class Neighbourhoods(NamedTuple):
    """n sets of k molecules of one frame that are sampled together."""

    rows: Tensor
    """(n, k)"""
    kept: Tensor
    """(n, k) bool; whose posterior is kept: in a crowd, of the first only"""


def neighbourhoods(emitters: EmitterSet, reach_nm: float) -> Iterator[Neighbourhoods]:
    """Sets of molecules whose light overlaps, each size by itself.

    Groups of up to `MOST_TOGETHER` are sampled together.  In larger ones each molecule is sampled
    with its nearest neighbours, given those farther away.

    Args:
        emitters: the molecules.
        reach_nm: largest distance of neighbours.
    """
    n = len(emitters)
    xy, frame = (column.double().numpy() for column in (emitters.xyz[:, :2], emitters.frame))
    # frames lie apart along a third axis, so that one tree serves them all
    places = np.column_stack([xy, frame * 2 * reach_nm])
    tree = cKDTree(places, balanced_tree=False)
    first, second = tree.query_pairs(reach_nm, output_type="ndarray").reshape(-1, 2).T
    links = coo_array((np.ones(len(first)), (first, second)), shape=(n, n))
    _, group = connected_components(links.tocsr(), directed=False)
    size = np.bincount(group, minlength=1)[group]
    _, near = tree.query(places, k=range(1, MOST_TOGETHER + 1), distance_upper_bound=reach_nm)
    crowded = size > MOST_TOGETHER
    for k in range(1, MOST_TOGETHER + 1):
        rows = np.flatnonzero(size == k)
        together = rows[np.argsort(group[rows], kind="stable")].reshape(-1, k)
        own = np.flatnonzero(crowded & ((near < n).sum(1) == k))
        beside = near[own, :k]
        # a molecule is its own nearest, unless another is at the very same place
        beside = np.take_along_axis(beside, np.argsort(beside != own[:, None], 1, kind="stable"), 1)
        kept = np.concatenate([np.ones(together.shape), np.arange(k) + 0 * beside == 0])
        whole = np.concatenate([together, beside])
        if len(whole):
            yield Neighbourhoods(torch.from_numpy(whole), torch.from_numpy(kept > 0))


@final
@dataclass(frozen=True, kw_only=True)
class Windows:
    """n windows of t frames around k molecules each: p pixels, counts and what is known of them.

    Positions are nm from the window's outer corner.
    """

    psf: PSF
    """drawn in the window"""
    adu: Tensor
    """(n, t, p)"""
    pixel: Tensor
    """(n, p) number of each pixel in its frame"""
    seen: Tensor
    """(n, p) 1, or 0 beyond the frame and in bad pixels"""
    light: Tensor
    """(n, t, p) photons of other molecules, and those by which the background differs from that in
    the middle"""
    noise: tuple[Tensor, Tensor]
    """excess and floor (n, p) of the photons' variance"""
    photons_seen: Tensor
    """(n, t, p) measured photons"""
    xyz: Tensor
    """(n, k, 3) where the molecules start"""
    photons: Tensor
    """(n, k, t)"""
    background: Tensor
    """(n, t)"""
    origin: Tensor
    """(n, 3) nm, the window's outer corner"""
    parameters: Tensor | None
    """(n k, q) PSF parameters"""

    def __getitem__(self, rows: Tensor) -> Windows:
        k = self.xyz.shape[1]
        parameters = self.parameters
        if parameters is not None:
            parameters = parameters.unflatten(0, (-1, k))[rows].flatten(0, 1)
        names = (
            "adu",
            "pixel",
            "seen",
            "light",
            "photons_seen",
            "xyz",
            "photons",
            "background",
            "origin",
        )
        cut = {name: getattr(self, name)[rows] for name in names}
        noise = (self.noise[0][rows], self.noise[1][rows])
        return replace(self, **cut, noise=noise, parameters=parameters)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of molecules and frames."""
        return self.xyz.shape[1], self.adu.shape[1]

    def start(self, axes: list[int]) -> Tensor:
        """(n, q) unknowns: positions, photons, background."""
        parts = (self.xyz[:, :, axes], self.photons, self.background)
        return torch.cat([part.flatten(1) for part in parts], 1)

    def parted(self, unknown: Tensor, axes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Positions (n, m, k, 3), photons (n, m, k, t) and background (n, m, t) of unknowns
        (n, m, q)."""
        k, t = self.shape
        d = len(axes)
        place, photons, background = unknown.split([k * d, k * t, t], 2)
        xyz = self.xyz[:, None].repeat(1, unknown.shape[1], 1, 1)
        xyz[..., axes] = place.unflatten(2, (k, d))
        return xyz, photons.unflatten(2, (k, t)), background

    def expected(self, unknown: Tensor, axes: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Photons of unknowns (n, m, q), a few windows at a time, as processors have small caches.

        Yields:
            (r,) rows, and the (r, m, t, p) photons there.
        """
        n, m = unknown.shape[:2]
        at_once = max(1, PIXELS_AT_ONCE // (m * self.adu[0].numel()))
        for rows in torch.arange(n).split(max(at_once, AT_NODES // self.adu[0].numel())):
            part = self[rows]
            for some, photons in part._some(unknown[rows], axes, at_once):
                yield rows[some], photons

    def _some(
        self, unknown: Tensor, axes: list[int], at_once: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As `expected`.  Images of many samples are polynomials of the position through those at a
        few nodes, where these agree with some that are drawn; elsewhere those of each half are."""
        n, m = unknown.shape[:2]
        if m < FEWEST_SAMPLES:
            yield torch.arange(n), self._drawn(unknown, axes)
            return
        shares, images = self._at_nodes(unknown, axes)
        tested = torch.linspace(0, m - 1, TESTED + 2).long()[1:-1]
        exact = self._drawn(unknown[:, tested], axes).transpose(1, 2)
        off = (shares[:, :, tested] @ images - exact).square() / exact.clamp_min(DARKEST)
        right = off.sum((1, 3)).mean(1) < LARGEST_ERROR**2
        good, wrong = torch.nonzero(right)[:, 0], torch.nonzero(~right)[:, 0]
        for rows in good.split(at_once) if len(good) else ():
            yield rows, (shares[rows] @ images[rows]).transpose(1, 2)
        if not len(wrong):
            return
        photons = unknown.new_empty(len(wrong), m, *self.adu.shape[1:])
        for part in torch.arange(m).tensor_split(2):
            half = slice(int(part[0]), int(part[-1]) + 1)
            for rows, seen in self[wrong]._some(unknown[wrong, half], axes, at_once):
                photons[rows, half] = seen
        for rows in torch.arange(len(wrong)).split(at_once):
            yield wrong[rows], photons[rows]

    def _at_nodes(self, unknown: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
        """(n, t, m, b) and (n, t, b, p), whose product is the photons of unknowns (n, m, q)."""
        xyz, photons, background = self.parted(unknown, axes)
        (k, t), n = self.shape, len(xyz)
        clouds = xyz.transpose(1, 2).flatten(0, 1)
        nodes, weight = nodes_of(clouds[..., axes], DEGREE[len(axes)])
        places = clouds[:, : nodes.shape[1]].clone()
        places[..., axes] = nodes
        images = self.psf.integrate_pixels_around(places, self.parameters).flatten(2)
        images = images.unflatten(0, (n, k)).flatten(1, 2)[:, None].expand(-1, t, -1, -1)
        weight = weight.unflatten(0, (n, k)).transpose(1, 2)[:, None]
        bright = weight * photons.movedim(3, 1)[..., None]
        dark = background.transpose(1, 2)[..., None]
        light = self.light[:, :, None]
        shares = torch.cat([bright.flatten(3), dark, torch.ones_like(dark)], 3)
        return shares, torch.cat([images, torch.ones_like(light), light], 2)

    def _drawn(self, unknown: Tensor, axes: list[int]) -> Tensor:
        """(n, m, t, p) photons of unknowns (n, m, q)."""
        xyz, photons, background = self.parted(unknown, axes)
        places = xyz.transpose(1, 2).flatten(0, 1)
        expected = background[..., None] + self.light[:, None]
        for part in torch.arange(xyz.shape[1]).split(SAMPLES_ALIKE):
            near = slice(int(part[0]), int(part[-1]) + 1)
            images = self.psf.integrate_pixels_around(places[:, near], self.parameters)
            images = images.flatten(2).unflatten(0, xyz.shape[:1] + xyz.shape[2:3])
            for image, bright in zip(images.unbind(1), photons[:, near].unbind(2), strict=True):
                expected[:, near].addcmul_(image[:, :, None], bright[..., None])
        return expected

    def fisher(self, unknown: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
        """Score (n, q) and Fisher information (n, q, q) of `scaled_deviance` at unknowns (n, q)."""
        (k, t), d = self.shape, len(axes)
        xyz, photons, background = (part[:, 0] for part in self.parted(unknown[:, None], axes))
        image = self.psf.integrate_pixels_with_slopes(xyz.flatten(0, 1), self.parameters)
        image = image.flatten(2).unflatten(0, (-1, k))
        share, slopes = image[:, :, 0], image[:, :, [1 + axis for axis in axes]]
        light = torch.einsum("nkt,nkp->ntp", photons, share)
        mean = (light + background[..., None] + self.light).clamp_min(DARKEST)
        root = (self.seen / (self.noise[0] * mean.transpose(0, 1) + self.noise[1])).sqrt()
        root = root.transpose(0, 1)
        n, p = len(unknown), share.shape[2]
        slope = unknown.new_zeros(n, t, p, unknown.shape[1])
        slope[..., : k * d] = torch.einsum("nkt,nkdp->ntpkd", photons, slopes).flatten(3)
        frame = torch.arange(t)
        for j in range(k):
            # the photons of a frame change the light of that frame alone
            slope[:, frame, :, k * d + j * t + frame] = share[:, j].expand(t, -1, -1)
        slope[:, frame, :, k * d + k * t + frame] = 1.0
        slope *= root[..., None]
        flat = slope.flatten(1, 2)
        rest = (root * (self.photons_seen - mean)).flatten(1)
        return torch.einsum("niq,ni->nq", flat, rest), flat.mT @ flat


@final
class Frames:
    """Frames, the light of all molecules in them, and their background."""

    def __init__(
        self,
        psf: PSF,
        camera: Camera,
        adu: Tensor,
        emitters: EmitterSet,
        *,
        axes: list[int],
        background: Tensor | None,
    ) -> None:
        axial = len(axes) == 3
        (self.side,) = windows_for(psf, camera, axial=axial, most=[MAX_BOUND_RATIO])
        self._psf, self._emitters = psf, emitters
        self._adu = adu
        self._photons = camera.without_bad(camera.to_photons(adu)).to(emitters.xyz.dtype)
        self._noise = camera.noise.map(lambda value: value.to(self._photons))
        good = torch.ones_like(self._photons[0])
        self._good = good if camera.bad is None else good.masked_fill(camera.bad, 0)
        self._light = render(
            psf,
            frame=emitters.frame,
            xyz=emitters.xyz,
            photons=emitters.photons,
            n_frames=len(adu),
            shape=(adu.shape[1], adu.shape[2]),
            parameters=psf.parameters_at(emitters.xyz),
        )
        self._background = self._estimated() if background is None else background.to(good)

    @property
    def reach_nm(self) -> float:
        """Largest distance of molecules that are sampled together."""
        return self.side / 2 * self._psf.pixel_size_nm

    def extent(self, rows: Tensor) -> Tensor:
        """(n,) largest distance along x or y, nm, of the molecules (n, k) of a set."""
        low, high = self._emitters.xyz[rows][..., :2].aminmax(dim=1)
        return (high - low).amax(1)

    def _estimated(self) -> Tensor:
        """(y, x) photons, as `fit_jointly` estimates it."""
        rest = self._photons - self._light
        level = rest.median().clamp_min(DARKEST)
        weight = self._good / self._noise.variance(self._light.clamp_min(0) + level)
        return background_of(rest, weight)

    def windows(self, rows: Tensor, parameters: Tensor | None) -> Windows:
        """Windows around the molecules of each of n sets.

        Args:
            rows: (n, k) molecules of one frame.
            parameters: PSF parameters of all molecules, or None.
        """
        height, width = self._adu.shape[1:]
        xyz, size = self._emitters.xyz[rows], self._psf.pixel_size_nm
        low, high = (xyz[..., :2] / size).floor().aminmax(dim=1)
        side = self.side + int((high - low).max())
        corner = torch.div(low + high, 2, rounding_mode="floor").long() - side // 2
        reach = torch.arange(side)
        x, y = (corner[:, axis, None] + reach for axis in (0, 1))
        inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None]
        x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
        pixel = (y[:, :, None] * width + x[:, None]).flatten(1)
        frame = self._emitters.frame[rows[:, 0]]
        here = frame[:, None], pixel

        def taken(frames: Tensor) -> Tensor:
            return frames.flatten(1)[here]

        def of_pixels(value: Tensor) -> Tensor:
            flat = (
                value.expand(height, width)
                if value.numel() > 1
                else value.view(1, 1).expand(height, width)
            )
            return flat.reshape(-1)[pixel]

        origin = torch.cat([corner * size, torch.zeros_like(corner[:, :1])], 1).to(xyz)
        xyz = xyz - origin[:, None]
        own = None if parameters is None else parameters[rows.flatten()]
        psf = self._psf.with_patch(side)
        photons = self._emitters.photons[rows]
        images = psf.integrate_pixels_around(xyz.flatten(0, 1)[:, None], own)
        images = images.view(*rows.shape, -1)
        shape = self._background.reshape(-1)[pixel]
        middle = shape[:, shape.shape[1] // 2, None]
        others = taken(self._light) - (photons[..., None] * images).sum(1)
        assert self._emitters.background is not None
        return Windows(
            psf=psf,
            adu=taken(self._adu)[:, None],
            pixel=pixel,
            seen=inside.flatten(1) * self._good.reshape(-1)[pixel],
            light=(others + shape - middle)[:, None],
            noise=(
                of_pixels(torch.as_tensor(self._noise.excess)),
                of_pixels(torch.as_tensor(self._noise.floor)),
            ),
            photons_seen=taken(self._photons)[:, None],
            xyz=xyz,
            photons=photons[..., None].clamp_min(1.0),
            background=self._emitters.background[rows].mean(1, keepdim=True).clamp_min(DARKEST),
            origin=origin,
            parameters=own,
        )
