"""A table laid out to be drawn, part by part, on a canvas and in colours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt

from decode.emitters import EmitterSet
from decode.progress import Progress, Steps
from decode.rendering.canvas import Canvas, Plane, Window, axes_of
from decode.rendering.colours import Colouring, colouring_of
from decode.rendering.exposure import Levels, Limits
from decode.rendering.settings import DENSITY, Rendering
from decode.rendering.spots import Spots

__all__ = ["Layout", "Painted", "Picture", "Tile", "painted", "picture_of", "render_image"]

TILE = 1024
KEPT = 2**25
"""pixels that are kept between finding the contrast and painting, 128 MB; more are drawn twice"""
LARGEST = 2**28
"""most pixels of a painted picture, 800 MB"""


class Tile(NamedTuple):
    """A part of a picture."""

    plane: int
    """number of its slice"""
    window: Window
    density: npt.NDArray[np.float32]
    """(channels, height, width) molecules per pixel"""


@dataclass(frozen=True, kw_only=True)
class Layout(ABC):
    """Molecules on a canvas; pixels are drawn when they are asked for."""

    canvas: Canvas
    colouring: Colouring
    rendering: Rendering

    @abstractmethod
    def tiles(self) -> Iterator[Tile]:
        """The whole picture, part by part; the same parts each time."""


@final
@dataclass(frozen=True, kw_only=True)
class Picture(Layout):
    """Molecules in memory on a canvas."""

    emitters: EmitterSet

    def tiles(self, rows: range | None = None) -> Iterator[Tile]:
        """The picture, or some of its rows, part by part."""
        for number, plane in enumerate(self.canvas.planes):
            channels = self.channels(plane)
            for window in self.canvas.windows(TILE, TILE, rows):
                yield Tile(number, window, np.stack([spots.drawn(window) for spots in channels]))

    def spots(self, plane: Plane, channel: int) -> Spots:
        """The molecules of a slice and of a channel."""
        low, high = plane
        *_, into = axes_of(self.canvas.view)
        depth = self.emitters.xyz[:, into].cpu().double().numpy()
        weight = self.colouring.weights(self.emitters)[channel] * ((depth >= low) & (depth < high))
        return Spots.of(self.emitters, self.canvas, self.rendering, weight=weight)

    def coarser(self, factor: int) -> Picture:
        """The same in larger pixels."""
        return replace(self, canvas=self.canvas.coarser(factor))

    def density(self) -> npt.NDArray[np.float32]:
        """(slices, channels, height, width) molecules per pixel, the whole picture at once."""
        whole = range(self.canvas.shape[0]), range(self.canvas.shape[1])
        return np.stack(
            [
                np.stack([spots.drawn(whole) for spots in self.channels(plane)])
                for plane in self.canvas.planes
            ]
        )

    def limits(self, density: npt.NDArray[np.float32]) -> Limits:
        """The contrast of the whole picture."""
        levels = Levels(self.colouring.n_lights)
        for plane in density:
            levels.add(self.colouring.lights(plane))
        return levels.limits(self.rendering.contrast, pixel_um2=self.canvas.pixel_um2)

    def channels(self, plane: Plane) -> list[Spots]:
        """The molecules of a slice, channel by channel."""
        return [self.spots(plane, channel) for channel in range(len(self.colouring.names))]


@final
@dataclass(frozen=True, kw_only=True)
class Painted:
    """A picture in colours, and what they stand for."""

    colours: npt.NDArray[np.uint8]
    """(slices, height, width, 3)"""
    limits: Limits
    picture: Layout


def picture_of(emitters: EmitterSet, rendering: Rendering) -> Picture:
    """Lay out a table.

    Raises:
        ValueError: if the settings do not fit the table.
    """
    return Picture(
        emitters=emitters,
        canvas=Canvas.of(emitters, rendering),
        colouring=colouring_of(emitters, rendering),
        rendering=rendering,
    )


def render_image(
    emitters: EmitterSet, rendering: Rendering | None = None
) -> npt.NDArray[np.float32]:
    """(height, width) molecules per pixel, of all depths and colours.

    The image sums to the number of molecules within.

    Raises:
        ValueError: if the settings do not fit the table.

    Example:
        >>> import torch
        >>> molecules = EmitterSet(
        ...     frame=torch.tensor([0]),
        ...     xyz=torch.tensor([[250.0, 150.0, 0.0]]),
        ...     photons=torch.tensor([1000.0]),
        ...     xyz_sigma=torch.tensor([[10.0, 10.0, torch.nan]]),
        ... )
        >>> region = (0.0, 0.0, 500.0, 400.0)
        >>> image = render_image(molecules, Rendering(pixel_nm=10.0, region_nm=region))
        >>> image.shape, round(float(image.sum()), 3)
        ((40, 50), 1.0)
    """
    settings = replace(rendering or Rendering(), color=DENSITY, slices_nm=None)
    return picture_of(emitters, settings).density()[0, 0]


def painted(picture: Layout) -> Steps[Painted]:
    """Draw a picture in colours, tile by tile: once for the contrast, once for the colours.

    Raises:
        ValueError: if it has too many pixels.
    """
    canvas, colouring = picture.canvas, picture.colouring
    n_pixels = len(canvas.planes) * canvas.shape[0] * canvas.shape[1]
    if n_pixels > LARGEST:
        raise ValueError(
            f"{n_pixels / 1e6:.0f} million pixels are too many for a picture in colours; write a "
            ".tif, or choose larger pixels (--pixel) or a region (--region)"
        )
    kept = len(colouring.names) * n_pixels <= KEPT
    tiles: list[Tile] = []
    levels = Levels(colouring.n_lights)
    drawn = 0
    yield Progress(0.0, "drawing")
    for tile in picture.tiles():
        tiles += [tile] * kept
        levels.add(colouring.lights(tile.density))
        drawn += tile.density[0].size
        yield Progress(drawn / n_pixels / 2, "drawing")
    rendering = picture.rendering
    limits = levels.limits(rendering.contrast, pixel_um2=canvas.pixel_um2)
    colours = np.zeros((len(canvas.planes), *canvas.shape, 3), np.uint8)
    for plane, (rows, columns), density in tiles if kept else picture.tiles():
        shown = colouring.painted(density, limits, rendering.gamma)
        colours[plane, rows.start : rows.stop, columns.start : columns.stop] = np.rint(shown * 255)
        drawn += density[0].size
        yield Progress(drawn / n_pixels / 2, "painting")
    return Painted(colours=colours, limits=limits, picture=picture)
