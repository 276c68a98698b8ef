"""A picture as OME-TIFF: molecules per pixel, slice by slice and channel by channel."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any, final

import numpy as np
import numpy.typing as npt
import tifffile
from tifffile import imagej_metadata_tag

from decode.atomic import atomic
from decode.progress import Progress, Steps
from decode.rendering.exposure import Levels, Limits
from decode.rendering.picture import Picture
from decode.version import __version__

__all__ = ["write"]

TILE = 512
LARGE = 8192
"""pixels along a side above which a picture is a pyramid of tiles; smaller ones are strips, which
ImageJ opens without Bio-Formats"""
NM_PER_CM = 1e7
IN_MEMORY = 2**26
"""bytes of compressed pixels that wait in memory, not on the disk"""
DTYPES = {16: "<u2", 32: "<f4"}
WHITE = 2**16 - 1
"""largest number of 16 bits"""

Floats = npt.NDArray[np.float32]


def write(picture: Picture, path: Path) -> Steps[None]:
    """Draw a picture and write it, part by part, so that memory does not grow with its pixels.

    Each level of a pyramid is drawn anew in pixels twice as large, and holds the mean density of
    the finest pixels.
    """
    longest = max(picture.canvas.shape)
    large = longest > LARGE
    halvings = math.ceil(math.log2(longest / TILE)) * large
    with (
        atomic(path) as temporary,
        tifffile.TiffWriter(temporary, bigtiff=large, ome=True, byteorder="<") as file,
        SpooledTemporaryFile(IN_MEMORY) as waiting,
    ):
        level = Level(picture, waiting, large=large)
        yield from level.draw()
        numbers = level.numbers()
        about = {
            "subifds": halvings,
            "metadata": _metadata(picture, numbers),
            # where ImageJ looks for the contrast of the channels of a composite
            "extratags": imagej_metadata_tag({"Ranges": sum(numbers.limits, ())}, "<"),
        }
        level.write(file, numbers, about)
        for halved in range(1, halvings + 1):
            level = Level(picture.coarser(2**halved), waiting, large=large)
            yield from level.draw(scale=4.0**-halved)
            level.write(file, numbers, {"subfiletype": 1})  # FILETYPE.REDUCEDIMAGE


@final
@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What stands for densities in a file."""

    bits: int
    per_molecule: tuple[float, ...]
    """of each channel the number of one molecule in one pixel"""
    limits: Limits
    """of each channel the numbers that are black and at full brightness"""

    @property
    def dtype(self) -> str:
        return DTYPES[self.bits]

    @property
    def unit(self) -> str:
        """The numbers in words."""
        factors = dict.fromkeys(self.per_molecule)
        if list(factors) == [1.0]:
            return "molecules per pixel"
        times = ", ".join(f"{number:.7g}" for number in factors)
        return f"molecules per pixel times {times}, at most {WHITE}"

    def coded(self, packed: bytes, per_molecule: float) -> bytes:
        """Compressed densities as compressed numbers."""
        if self.bits == 32:
            return packed
        density = np.frombuffer(zlib.decompress(packed), "<f4")
        numbers = np.rint(np.minimum(density * np.float32(per_molecule), WHITE))
        return zlib.compress(numbers.astype(self.dtype).tobytes(), 1)


@final
@dataclass(frozen=True)
class Part:
    """A strip or tile that waits to be written."""

    n_pixels: int
    start: int
    length: int
    """compressed; 0 where there are no molecules"""


@final
class Level:
    """A picture that is drawn, waits for what it tells of itself, and is written."""

    def __init__(self, picture: Picture, waiting: IO[bytes], *, large: bool) -> None:
        self.picture = picture
        self._waiting = waiting
        self._large = large
        self._tile = (TILE, TILE if large else picture.canvas.shape[1])
        self._pages: list[list[list[Part]]] = []
        """parts of each slice and channel"""
        self._levels = Levels(picture.colouring.n_lights)
        self._counts = picture.rendering.bits == 16 and not large
        """whether numbers are to have 16 bits, which hold all densities as they are, as no larger
        pixels share them"""

    def draw(self, *, scale: float = 1.0) -> Steps[None]:
        """Draw the densities, times a number, part by part."""
        colouring, planes = self.picture.colouring, self.picture.canvas.planes
        self._waiting.seek(0)
        windows = list(self.picture.canvas.windows(*self._tile))
        for done, plane in enumerate(planes):
            spots = self.picture.channels(plane)
            self._pages.append([[] for _ in spots])
            for i, window in enumerate(windows):
                yield Progress((done + i / len(windows)) / len(planes), "drawing")
                density = np.stack([each.drawn(window) for each in spots]) * np.float32(scale)
                if density.any():
                    self._levels.add(colouring.lights(density))
                    self._counts = self._counts and _are_counts(density)
                for page, drawn in zip(self._pages[-1], density, strict=True):
                    page.append(self._kept(drawn))

    def numbers(self) -> Numbers:
        """The numbers that stand for the densities: themselves, or in 16 bits, unless they are
        counts, multiples by which full brightness is the largest number."""
        rendering, canvas = self.picture.rendering, self.picture.canvas
        ends = self._levels.limits(rendering.contrast, pixel_um2=canvas.pixel_um2)
        ends *= len(self.picture.colouring.names) // len(ends)
        scaled = rendering.bits == 16 and not self._counts
        per_molecule = tuple(WHITE / high if scaled else 1.0 for _, high in ends)
        limits = zip(ends, per_molecule, strict=True)
        return Numbers(
            bits=rendering.bits,
            per_molecule=per_molecule,
            limits=tuple((low * number, high * number) for (low, high), number in limits),
        )

    def write(self, file: tifffile.TiffWriter, numbers: Numbers, options: dict[str, Any]) -> None:
        """Write what was drawn."""
        canvas = self.picture.canvas
        per_cm = NM_PER_CM / canvas.pixel_nm
        layout = {"tile": self._tile} if self._large else {"rowsperstrip": TILE}
        file.write(
            self._coded(numbers),
            shape=(len(canvas.planes), len(numbers.per_molecule), *canvas.shape),
            dtype=numbers.dtype,
            photometric="minisblack",
            compression="adobe_deflate",
            resolution=(per_cm, per_cm),
            resolutionunit="CENTIMETER",
            **layout,
            **options,
        )

    def _kept(self, density: Floats) -> Part:
        if self._large:  # tiles at the edges are full, too
            sides = zip(self._tile, density.shape, strict=True)
            density = np.pad(density, [(0, side - size) for side, size in sides])
        packed = zlib.compress(density.tobytes(), 1) if density.any() else b""
        part = Part(density.size, self._waiting.tell(), len(packed))
        self._waiting.write(packed)
        return part

    def _coded(self, numbers: Numbers) -> Iterator[bytes]:
        """The compressed parts in the order of the file."""
        for channels in self._pages:
            for page, per_molecule in zip(channels, numbers.per_molecule, strict=True):
                for part in page:
                    self._waiting.seek(part.start)
                    packed = self._waiting.read(part.length)
                    n_bytes = part.n_pixels * numbers.bits // 8
                    yield numbers.coded(packed, per_molecule) if packed else _blank(n_bytes)


def _are_counts(density: Floats) -> bool:
    return bool(((density == np.rint(density)) & (density <= WHITE)).all())


@cache
def _blank(n_bytes: int) -> bytes:
    """Pixels without molecules, of which a large field has many."""
    return zlib.compress(bytes(n_bytes), 1)


def _metadata(picture: Picture, numbers: Numbers) -> dict[str, Any]:
    canvas, colouring, rendering = picture.canvas, picture.colouring, picture.rendering
    um = canvas.pixel_nm / 1000
    low, high = canvas.planes[0]
    thickness = {"PhysicalSizeZ": (high - low) / 1000, "PhysicalSizeZUnit": "µm"}
    red, green, blue = np.rint(colouring.colours.T * 255).astype(int)
    rgba = ((red << 24) | (green << 16) | (blue << 8) | 255).astype(np.int32)
    across, down = canvas.corner_nm
    unit = numbers.unit
    blacks, whites = zip(*numbers.limits, strict=True)
    return {
        "axes": "ZCYX",
        "PhysicalSizeX": um,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": um,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": list(colouring.names), "Color": rgba.tolist()},
        "Description": f"{unit[0].upper()}{unit[1:]}, {rendering.kernel}; {canvas.view[0]} to the "
        f"right and {canvas.view[1]} downwards from {across:g}, {down:g} nm; decode {__version__}",
        "MapAnnotation": {
            "Description": "What the numbers are, channel by channel: that of one molecule in one "
            "pixel, and those that are black and white",
            "one molecule": _text(numbers.per_molecule),
            "black": _text(blacks),
            "white": _text(whites),
        },
        **(thickness if math.isfinite(high - low) else {}),
    }


def _text(numbers: tuple[float, ...]) -> str:
    return " ".join(f"{number:.9g}" for number in numbers)
