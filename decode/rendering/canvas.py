"""The pixels of a picture, and where they lie among the molecules."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import final

import numpy as np
import numpy.typing as npt

from decode.emitters import EmitterSet
from decode.rendering.settings import Rendering, View

__all__ = ["Canvas", "Plane", "Window", "axes_of"]

Window = tuple[range, range]
"""rows and columns of a part of a picture"""
Plane = tuple[float, float]
"""first depth of a slice, and the one behind its last"""

EVERYWHERE: Plane = (-math.inf, math.inf)
BOX_NM = 100.0
"""boxes around molecules end at multiples of this"""
MOST_PIXELS = 4096
"""along a side of a picture whose pixel nobody states"""
MOST_PLANES = 1000
LARGEST = 2**20
"""most pixels along a side"""


def axes_of(view: View) -> tuple[int, int, int]:
    """Numbers of the axes to the right, downwards and into the picture.

    >>> axes_of("xz")
    (0, 2, 1)
    """
    across, down = ("xyz".index(axis) for axis in view)
    return across, down, 3 - across - down


@final
@dataclass(frozen=True, kw_only=True)
class Canvas:
    """A grid of square pixels, in one or more slices."""

    view: View
    corner_nm: tuple[float, float]
    """outer corner of the first pixel, to the right and downwards"""
    shape: tuple[int, int]
    """height and width in pixels"""
    pixel_nm: float
    planes: tuple[Plane, ...] = (EVERYWHERE,)

    @staticmethod
    def of(emitters: EmitterSet, rendering: Rendering) -> Canvas:
        """The canvas of a table.

        Raises:
            ValueError: if it would have too many pixels or slices.
        """
        xyz = emitters.xyz.cpu().double()
        ends = np.stack([xyz.amin(0), xyz.amax(0)]) if len(emitters) else None
        return Canvas.around(ends, rendering, field_nm=emitters.facts.field_nm)

    @staticmethod
    def around(
        ends: npt.NDArray[np.float64] | None,
        rendering: Rendering,
        *,
        field_nm: tuple[float, float] | None = None,
    ) -> Canvas:
        """The canvas of molecules that lie between ends.

        Args:
            ends: (2, 3) lowest and highest x, y, z; None: there are no molecules.
            field_nm: (x, y) size of the field of view, where it is known.

        Raises:
            ValueError: if it would have too many pixels or slices.
        """
        box = _box(ends, rendering, field_nm)
        across, down, into = axes_of(rendering.view)
        sides = box[1] - box[0]
        pixel = rendering.pixel_nm or _pixel_for(max(sides[across], sides[down]))
        height, width = (math.ceil(sides[axis] / pixel) for axis in (down, across))
        if max(height, width) > LARGEST:
            raise ValueError(
                f"{width} x {height} pixels of {pixel:g} nm are too many; choose larger ones "
                "(--pixel)"
            )
        return Canvas(
            view=rendering.view,
            corner_nm=(float(box[0, across]), float(box[0, down])),
            shape=(height, width),
            pixel_nm=pixel,
            planes=_planes(box[:, into], rendering),
        )

    @property
    def pixel_um2(self) -> float:
        """Area of a pixel."""
        return (self.pixel_nm / 1000) ** 2

    def coarser(self, factor: int) -> Canvas:
        """The same field in larger pixels."""
        height, width = (math.ceil(side / factor) for side in self.shape)
        return replace(self, shape=(height, width), pixel_nm=self.pixel_nm * factor)

    def windows(self, height: int, width: int, rows: range | None = None) -> Iterator[Window]:
        """Parts that cover the picture, or some of its rows, row by row."""
        down, across = self.shape
        rows = rows or range(down)
        for top in range(rows.start, rows.stop, height):
            for left in range(0, across, width):
                yield (
                    range(top, min(top + height, rows.stop)),
                    range(left, min(left + width, across)),
                )


def _box(
    ends: npt.NDArray[np.float64] | None,
    rendering: Rendering,
    field_nm: tuple[float, float] | None,
) -> npt.NDArray[np.float64]:
    """(2, 3) lowest and highest x, y, z of the picture."""
    box = np.array([[0.0] * 3, [1000.0] * 3])
    if ends is not None:
        low, high = ends / BOX_NM
        box = np.stack([np.floor(low), np.floor(high) + 1]) * BOX_NM
    if rendering.view != "xy":  # Gaussians of the lowest and the highest are seen whole
        box[:, 2] += (-BOX_NM, BOX_NM)
    if field_nm is not None:
        box[:, :2] = (0.0, 0.0), field_nm
    if rendering.region_nm is not None:
        box[:, :2] = rendering.region_nm[:2], rendering.region_nm[2:]
    return box


def _planes(ends: npt.NDArray[np.float64], rendering: Rendering) -> tuple[Plane, ...]:
    low, high = ends.tolist()
    if rendering.slices_nm is None:
        # molecules in front of and behind the region are not seen from the side
        cut = rendering.region_nm is not None and rendering.view != "xy"
        return ((low, high),) if cut else (EVERYWHERE,)
    number = math.ceil((high - low) / rendering.slices_nm)
    if number > MOST_PLANES:
        raise ValueError(
            f"{number} slices of {rendering.slices_nm:g} nm are too many; choose thicker ones "
            "(--slices), or keep fewer depths first (decode filter --keep z=LOW:HIGH)"
        )
    edges = [min(low + i * rendering.slices_nm, high) for i in range(number + 1)]
    return tuple(pairwise(edges))


def _pixel_for(longest_nm: float) -> float:
    steps = (step * 10**power for power in range(9) for step in (5, 10, 20))
    return next(float(step) for step in steps if longest_nm / step <= MOST_PIXELS)
