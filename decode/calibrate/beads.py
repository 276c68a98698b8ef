"""Beads: their positions in a z-stack, and why some of them cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.ndimage import gaussian_filter, shift
from scipy.spatial.distance import cdist
from skimage.feature import peak_local_max
from torch import Tensor

from decode.optics.camera import Camera, Noise

__all__ = ["Bead", "BeadSet", "RejectedBead", "border_background", "find_beads"]

LEAST_DISTANCE = 0.8
"""least distance of beads, in sides of a patch"""
LARGEST_UNLIKENESS = 0.03
"""how much less than most a bead may correlate with the median of all; two beads, or dirt, exceed
it"""
LARGEST_DRIFT_PX = 0.5
"""how much further than most a bead may move from the lower to the upper half of its stack, pixels;
loose beads exceed it"""


@final
@dataclass(frozen=True, kw_only=True)
class Bead:
    """One bead, cut out of its stack."""

    stack: int
    """number of the stack it lies in"""
    corner_px: tuple[int, int]
    """x, y of the crop's first pixel in the stack"""
    centre_px: tuple[float, float]
    """x, y of the centroid of its light, from the stack's outer corner"""
    photons: Tensor
    """(z, y, x) measured photons, background included"""


@final
@dataclass(frozen=True, kw_only=True)
class RejectedBead:
    """A bright spot that cannot be used as a bead."""

    stack: int
    centre_px: tuple[float, float]
    reason: str

    def __str__(self) -> str:
        x, y = self.centre_px
        return f"stack {self.stack}, x {x:.1f} y {y:.1f} px: {self.reason}"


@final
@dataclass(frozen=True, kw_only=True)
class BeadSet:
    """Beads for the fit of a PSF, in crops of one size, with the facts of their recording."""

    crops: Tensor
    """(n, z, y, x) measured photons, background included"""
    z_nm: Tensor
    """(z,) depth of the planes"""
    xy: Tensor
    """(n, 2) approximate position of each bead, nm, from the outer corner of its crop"""
    corners_nm: Tensor
    """(n, 2) x, y of the outer corner of each crop in the field"""
    stack: Tensor
    """(n,) number of the stack in which each bead lies"""
    noise: Noise
    """noise of the crops"""
    camera: Camera
    """camera of a plane, which may be the sum of several frames"""
    pixel_size_nm: float
    field_nm: tuple[tuple[float, float], tuple[float, float]]
    """(lowest, highest) x and (lowest, highest) y of all stacks"""

    @classmethod
    def of(
        cls,
        beads: Sequence[Bead],
        *,
        z_nm: Tensor,
        camera: Camera,
        pixel_size_nm: float,
        field_nm: tuple[tuple[float, float], tuple[float, float]],
    ) -> BeadSet:
        """Beads in crops of one size."""
        crops = torch.stack([bead.photons for bead in beads])
        corners_px = [bead.corner_px for bead in beads]
        inside = [[bead.centre_px[i] - bead.corner_px[i] for i in (0, 1)] for bead in beads]
        return cls(
            crops=crops,
            z_nm=z_nm,
            xy=torch.tensor(inside) * pixel_size_nm,
            corners_nm=torch.tensor(corners_px) * pixel_size_nm,
            stack=torch.tensor([bead.stack for bead in beads]),
            noise=camera.noise_of_crops(corners_px, crops.shape[-1]),
            camera=camera,
            pixel_size_nm=pixel_size_nm,
            field_nm=field_nm,
        )

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, which: list[int] | Tensor) -> BeadSet:
        """Some of the beads, by number or by a mask."""
        return replace(
            self,
            crops=self.crops[which],
            xy=self.xy[which],
            corners_nm=self.corners_nm[which],
            stack=self.stack[which],
            noise=self.noise[which],
        )

    @property
    def side_px(self) -> int:
        return self.crops.shape[-1]

    @property
    def places_nm(self) -> Tensor:
        """(n, 2) approximate x, y in the field, nm."""
        return self.corners_nm + self.xy

    def backgrounds(self) -> Tensor:
        """(n,) photons per pixel, see `border_background`."""
        each = [border_background(crop, self.noise[i]) for i, crop in enumerate(self.crops)]
        return torch.stack(each)

    def others(self, i: int) -> list[int]:
        """All numbers but that of the i-th bead."""
        return [k for k in range(len(self)) if k != i]

    def without(self, i: int) -> BeadSet:
        """All but the i-th bead."""
        return self[self.others(i)]

    def at_planes(self, planes: range) -> BeadSet:
        """The same beads in some of the planes."""
        some = slice(planes.start, planes.stop, planes.step)
        return replace(self, crops=self.crops[:, some], z_nm=self.z_nm[some])


def border_background(crop: Tensor, noise: Noise) -> Tensor:
    """Background of a bead: the light at the border of its crop, where the bead contributes least.

    Args:
        crop: (z, y, x) photons.
        noise: noise of the crop.

    Returns:
        () photons per pixel.
    """
    border = torch.ones(crop.shape[1:], dtype=torch.bool)
    border[2:-2, 2:-2] = False
    dark = crop[:, border].clamp_min(0).median()
    weight = 1 / noise.variance(dark.expand_as(crop[:1]))[0]
    level = (crop * weight)[:, border].sum(1) / weight[border].sum()
    # the least of a few is less than their mean: averaged over planes, it is by a third of its
    # standard deviation
    width = max(1, len(level) // 7)
    return level.unfold(0, width, 1).mean(1).min()


def find_beads(
    stacks: Sequence[Tensor], patch_px: int, saturated: Sequence[Tensor] | None = None
) -> tuple[list[Bead], list[RejectedBead]]:
    """Find beads, whatever the shape of the PSF.

    The mean over z of an engineered PSF may have several lobes; bright maxima closer than half a
    patch count as one bead, whose centre is the centroid of all its light.

    Args:
        stacks: (z, y, x) photons each, all of the same number of planes.
        patch_px: side of a crop; an odd number.
        saturated: (z, y, x) masks of pixels at the camera's limit, one per stack.

    Returns:
        The usable beads, and the rejected ones with the reason.

    Raises:
        ValueError: if a frame is smaller than a patch, or there is no bead at all.
    """
    beads: list[Bead] = []
    rejected: list[RejectedBead] = []
    for number, stack in enumerate(stacks):
        if min(stack.shape[1:]) < patch_px:
            raise ValueError(
                f"the bead stack is {stack.shape[2]} x {stack.shape[1]} pixels, smaller than the "
                f"patch of {patch_px}; choose a smaller one"
            )
        clipped = None if saturated is None else saturated[number]
        centres = _centres(stack.mean(0).double().numpy(), patch_px)
        distance = cdist(centres, centres) + np.where(np.eye(len(centres)), np.inf, 0)
        for (x, y), nearest in zip(centres.tolist(), distance.min(1, initial=np.inf), strict=True):
            corner = (round(x - patch_px / 2), round(y - patch_px / 2))
            reason = _fault(corner, patch_px, stack, nearest=nearest, clipped=clipped)
            if reason:
                rejected.append(RejectedBead(stack=number, centre_px=(x, y), reason=reason))
                continue
            columns, rows = (slice(c, c + patch_px) for c in corner)
            beads.append(
                Bead(
                    stack=number,
                    corner_px=corner,
                    centre_px=(x, y),
                    photons=stack[:, rows, columns],
                )
            )
    if not beads and not rejected:
        why = "no spot stands out of the mean over z"
        raise ValueError(
            f"no bead was found: {why}; check the file, and the baseline of the camera"
        )
    good, odd = _alike(beads)
    return good, rejected + odd


def _fault(
    corner_px: tuple[int, int],
    patch_px: int,
    stack: Tensor,
    *,
    nearest: float,
    clipped: Tensor | None,
) -> str:
    """Why a crop cannot be used, in words; empty if it can.

    Args:
        corner_px: (x, y) of its first pixel.
        patch_px: side of the crop, pixels.
        stack: (z, y, x).
        nearest: distance to the next bead, pixels.
        clipped: (z, y, x) pixels at the camera's limit.
    """
    if nearest < LEAST_DISTANCE * patch_px:
        return f"another bead is {nearest:.0f} px away, its light overlaps"
    columns, rows = (slice(c, c + patch_px) for c in corner_px)
    if min(corner_px) < 0 or rows.stop > stack.shape[1] or columns.stop > stack.shape[2]:
        return "too near to the border of the frame"
    if clipped is not None and bool(clipped[:, rows, columns].any()):
        return "saturated: it fills the camera's range; record it with less light"
    return ""


def _centres(projection: npt.NDArray[np.float64], patch_px: int) -> npt.NDArray[np.float64]:
    """(n, 2) x, y in pixels from the outer corner."""
    smooth = gaussian_filter(projection, 1.5)
    level = np.median(smooth)
    noise = 1.4826 * np.median(np.abs(smooth - level)) + 1e-9
    contrast = smooth - level
    # a tenth of the brightest leaves out rings and scattered light, six standard deviations leave
    # out noise
    peaks = peak_local_max(  # type: ignore[no-untyped-call]
        smooth, min_distance=2, threshold_abs=level + max(6 * noise, 0.1 * contrast.max())
    )
    if not len(peaks) or contrast.max() < 10 * noise:
        return np.zeros((0, 2))
    y, x = (np.arange(side) + 0.5 for side in projection.shape)
    light = np.clip(projection - level - 2 * noise, 0, None)
    centres = peaks + 0.5
    # lobes of one bead that were taken for two draw nearer as each takes in the other's light, and
    # are joined then
    for _ in range(5):
        centres = _joined(centres, patch_px / 2)
        for i, (cy, cx) in enumerate(centres):
            window = light * ((y[:, None] - cy) ** 2 + (x - cx) ** 2 < (patch_px / 2.5) ** 2)
            total = window.sum()
            if total > 0:
                centres[i] = (window.sum(1) @ y / total, window.sum(0) @ x / total)
    return centres[:, ::-1]


def _joined(centres: npt.NDArray[np.float64], distance: float) -> npt.NDArray[np.float64]:
    """Means of the groups of points that are connected by steps shorter than a distance."""
    if len(centres) < 2:
        return centres
    label = fcluster(linkage(centres, "single"), distance, "distance")
    return np.array([centres[label == i].mean(0) for i in np.unique(label)])


def _alike(beads: list[Bead]) -> tuple[list[Bead], list[RejectedBead]]:
    """Beads whose image and position agree with the median bead, which takes three or more."""
    if len(beads) < 3:
        return beads, []
    pictures = torch.stack([_normalized(bead) for bead in beads])
    middle = pictures.median(0).values
    likeness = (pictures * middle).flatten(1).sum(1) / middle.norm()
    usual = float(likeness.median())
    half = pictures.shape[1] // 2
    moved = torch.stack([_centroid(p[half:]) - _centroid(p[:half]) for p in pictures])
    moved = (moved - moved.median(0).values).norm(dim=1)
    good, rejected = [], []
    for bead, like, way in zip(beads, likeness.tolist(), moved.tolist(), strict=True):
        reason = ""
        # noise makes all of them unlike
        if 1 - like > LARGEST_UNLIKENESS + 3 * (1 - usual):
            reason = f"unlike the others (correlation {like:.2f}): two beads in one, or dirt"
        elif way > LARGEST_DRIFT_PX:
            reason = f"it moved by {way:.1f} px during the scan: not stuck to the glass"
        if reason:
            rejected.append(RejectedBead(stack=bead.stack, centre_px=bead.centre_px, reason=reason))
        else:
            good.append(bead)
    return good, rejected


def _normalized(bead: Bead) -> Tensor:
    """A crop without background, centred to the fraction of a pixel and blurred, of norm 1."""
    light = bead.photons.double() - bead.photons.double().flatten(1).median(1).values[:, None, None]
    x, y = (bead.photons.shape[2] / 2 - (bead.centre_px[i] - bead.corner_px[i]) for i in (0, 1))
    moved = shift(light.numpy(), (0, y, x), order=1, mode="nearest")
    light = torch.from_numpy(gaussian_filter(moved, (1.0, 1.5, 1.5)))
    return light / light.norm()


def _centroid(photons: Tensor) -> Tensor:
    """(2,) x, y in pixels of the light in some planes of a crop."""
    image = photons.mean(0).clamp_min(0)
    image = (image - image.quantile(0.5)).clamp_min(0)
    y, x = (torch.arange(side, dtype=image.dtype) for side in image.shape)
    return torch.stack([image.sum(0) @ x, image.sum(1) @ y]) / image.sum()
