"""Molecules drawn into pixels: each a kernel that sums to 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtr

from decode.emitters import EmitterSet
from decode.rendering.canvas import Canvas, Window, axes_of
from decode.rendering.settings import Rendering

__all__ = ["Spots", "counted"]

CUT = 3.5
"""sigmas after which a Gaussian is cut; the rest is scaled up by the light cut off (5e-4)"""
BATCH = 2**20
"""pixels of patches drawn at once, a few MB"""

Floats = npt.NDArray[np.floating[Any]]
Picture = npt.NDArray[np.float32]


def counted(
    row: npt.NDArray[np.integer[Any]],
    column: npt.NDArray[np.integer[Any]],
    window: Window,
    *,
    weight: Floats | None = None,
) -> npt.NDArray[Any]:
    """Molecules in each pixel of a window, by the pixel that holds them.

    Args:
        row, column: (n,) pixels of the whole picture.
        window: rows and columns to count in.
        weight: (n,) of each molecule; None: 1.

    Returns:
        (height, width) of int64, or of float64 with weights.

    Example:
        >>> counted(np.array([4, 5, 5]), np.array([1, 2, 2]), (range(4, 6), range(3)))
        array([[0, 1, 0],
               [0, 0, 2]])
    """
    rows, columns = window
    inside = (
        (row >= rows.start)
        & (row < rows.stop)
        & (column >= columns.start)
        & (column < columns.stop)
    )
    shape = len(rows), len(columns)
    index = (row[inside] - rows.start).astype(np.int64) * shape[1] + (
        column[inside] - columns.start
    )
    some = None if weight is None else weight[inside]
    return np.bincount(index, some, minlength=shape[0] * shape[1]).reshape(shape)


def gaussian(centre: Floats, sigma: Floats, side: int) -> Picture:
    """Gaussians integrated over pixels: (n, side, side) from (n, 2) centres and sigmas in pixels,
    to the right and downwards."""
    edges = np.arange(side + 1)
    profile = np.diff(ndtr((edges - centre[:, :, None]) / sigma[:, :, None]), axis=2)
    profile = (profile / profile.sum(2, keepdims=True)).astype(np.float32)
    return profile[:, 1, :, None] * profile[:, 0, None, :]


def disc(centre: Floats, radius: Floats, side: int) -> Picture:
    """Discs of equal pixels, those whose middle is no farther than the radius, and the one that
    holds the molecule."""
    away = np.square((np.arange(side) + 0.5 - centre[:, :, None]) / radius[:, :, None])
    inside = away[:, 1, :, None] + away[:, 0, None, :] <= 1
    inside[:, side // 2, side // 2] = True
    return (inside / inside.sum((1, 2), keepdims=True)).astype(np.float32)


@final
@dataclass(frozen=True, kw_only=True)
class Kernel:
    """How a molecule is drawn."""

    width_nm: Callable[[EmitterSet, Rendering], npt.NDArray[np.float64]]
    """(n, 3) along x, y, z"""
    cut: float
    """widths after which it ends"""
    patches: Callable[[Floats, Floats, int], Picture] | None
    """from centres and widths; None: all of it lies in one pixel"""


def _sigmas(emitters: EmitterSet, rendering: Rendering) -> npt.NDArray[np.float64]:
    low, high = rendering.min_sigma_nm, rendering.max_sigma_nm
    if emitters.xyz_sigma is None:
        return np.full((len(emitters), 3), low)
    sigma = emitters.xyz_sigma.cpu().double().numpy()
    return np.nan_to_num(sigma, nan=low).clip(low, high)


KERNELS = {
    "gaussian": Kernel(width_nm=_sigmas, cut=CUT, patches=gaussian),
    "histogram": Kernel(width_nm=lambda e, _: np.zeros((len(e), 3)), cut=0.0, patches=None),
    "scatter": Kernel(
        width_nm=lambda e, rendering: np.full((len(e), 3), rendering.disc_nm / 2),
        cut=1.0,
        patches=disc,
    ),
}


@final
@dataclass(frozen=True, kw_only=True)
class Spots:
    """Molecules on a canvas, in the order of their rows."""

    kernel: Kernel
    centre: npt.NDArray[np.float64]
    """(n, 2) to the right and downwards, pixels from the outer corner of the first one"""
    width: npt.NDArray[np.float64]
    """(n, 2) pixels"""
    reach: npt.NDArray[np.int64]
    """(n,) pixels beyond its own one"""
    weight: npt.NDArray[np.float32]
    """(n,) what each sums to"""

    @staticmethod
    def of(emitters: EmitterSet, canvas: Canvas, rendering: Rendering, *, weight: Floats) -> Spots:
        """The molecules whose weight (n,) is not 0."""
        kernel = KERNELS[rendering.kernel]
        axes = list(axes_of(canvas.view)[:2])
        rows = np.flatnonzero(weight)
        some = emitters[torch.from_numpy(rows)]
        centre = (some.xyz.cpu().double().numpy()[:, axes] - canvas.corner_nm) / canvas.pixel_nm
        order = np.argsort(centre[:, 1], kind="stable")
        width = (kernel.width_nm(some, rendering)[:, axes] / canvas.pixel_nm)[order]
        return Spots(
            kernel=kernel,
            centre=centre[order],
            width=width,
            reach=np.ceil(kernel.cut * width.max(1, initial=0)).astype(np.int64),
            weight=weight[rows][order].astype(np.float32),
        )

    def drawn(self, window: Window) -> Picture:
        """(height, width) molecules per pixel of a window.

        A pixel is the same to the last bit in every window: whatever the window, the same molecules
        are added to it in the same order.
        """
        near = self._near(window)
        centre, reach = self.centre[near], self.reach[near]
        if self.kernel.patches is None:
            column, row = np.floor(centre).astype(np.int64).T
            return counted(row, column, window, weight=self.weight[near]).astype(np.float32)
        shape = len(window[0]), len(window[1])
        if not len(near):
            return np.zeros(shape, np.float32)
        # patches that hang over an edge end in a margin
        margin = 2 * int(reach.max()) + 1
        stride = shape[1] + 2 * margin
        corner = np.array([window[1].start, window[0].start]) - margin
        canvas = torch.zeros((shape[0] + 2 * margin) * stride)
        for r in np.unique(reach).tolist():
            members, steps = near[reach == r], np.arange(2 * r + 1)
            square = (steps[:, None] * stride + steps).ravel()
            batch = max(1, BATCH // len(square))
            for start in range(0, len(members), batch):
                rows = members[start : start + batch]
                first = np.floor(self.centre[rows]).astype(np.int64) - r
                patches = self.kernel.patches(
                    self.centre[rows] - first, self.width[rows], len(steps)
                )
                patches *= self.weight[rows, None, None]
                left, top = (first - corner).T
                index = (top * stride + left)[:, None] + square
                # one after the other, so that the order is that of the molecules
                canvas.index_add_(
                    0, torch.from_numpy(index.ravel()), torch.from_numpy(patches.ravel())
                )
        whole = canvas.view(-1, stride).numpy()
        return whole[margin : margin + shape[0], margin : margin + shape[1]].copy()

    def _near(self, window: Window) -> npt.NDArray[np.int64]:
        """Numbers of the molecules that reach a window."""
        farthest = self.reach.max(initial=0) + 1
        ends = np.array([window[0].start - farthest, window[0].stop + farthest])
        first, last = np.searchsorted(self.centre[:, 1], ends).tolist()
        pixel, reach = np.floor(self.centre[first:last]), self.reach[first:last, None]
        low = np.array([window[1].start, window[0].start])
        high = np.array([window[1].stop, window[0].stop])
        return first + np.flatnonzero(((pixel >= low - reach) & (pixel < high + reach)).all(1))
