"""Zeiss `.czi`: its directory of planes is read here, as the library for it needs a newer Python
and reads whole files."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from decode.errors import reading
from decode.io.movies.facts import StatedFacts
from decode.io.movies.format import MovieFormat, Part
from decode.io.movies.library import needed
from decode.io.movies.planes import PlanesPart, whole_part
from decode.io.movies.selection import CHANNEL, POSITION, TIME, Axis, Selection, Z, choose
from decode.io.movies.units import credible_pixel, credible_step, positive

__all__ = ["FORMAT"]

KIND = "a Zeiss .czi movie"
MARK = b"ZISRAWFILE"
SEGMENT = struct.Struct("<16sqq")
POSITIONS = struct.Struct("<qq")
"""of directory and metadata, in the header"""
ENTRY = struct.Struct("<2siqiiB5xi")
"""of the directory: schema, pixels, position, part, compression, pyramid, number of dimensions"""
DIMENSION = struct.Struct("<4siifi")
"""axis, first place, size, coordinate, stored size"""
SIZES = struct.Struct("<iiq")
"""of metadata, attachment and pixels of a plane"""
NAMES = {"T": TIME, "Z": Z, "C": CHANNEL, "S": POSITION}
PIXELS = {0: "|u1", 1: "<u2", 2: "<f4", 12: "<i4"}
RAW, ZSTD, ZSTD_HEADER, JPEGXR = 0, 5, 6, 4


@final
@dataclass(frozen=True, kw_only=True)
class _Plane:
    """Where a plane lies in the file."""

    at: Mapping[str, int]
    position: int
    """of its segment"""
    n_dimensions: int
    compression: int
    pixels: int
    shape: tuple[int, int]
    """y, x"""


def _is_czi(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MARK)) == MARK


def _open_czi(path: Path, selection: Selection, *, allow_truncated: bool) -> Part:
    with ExitStack() as opened, reading(path, KIND, "copy or export it again"):
        file = opened.enter_context(path.open("rb"))
        size = path.stat().st_size
        directory, metadata = _read(file, POSITIONS, 84)
        if not 0 < directory < size:
            raise ValueError("its list of planes is missing, as in a file that was cut short")
        planes = list(_planes(file, directory))
        first = _first(path, planes)
        if first.compression != RAW:
            needed("imagecodecs", path)
        document = _metadata(file, metadata)
        begin = _begin(planes)
        chosen = choose(path, _axes(planes, begin, document), selection)
        found = {
            tuple(plane.at[name] - start for name, start in begin.items()): plane
            for plane in planes
        }
        dtype = np.dtype(PIXELS[first.pixels])
        least = dtype.itemsize * math.prod(first.shape) if first.compression == RAW else 1

        def plane_at(place: Mapping[str, int]) -> _Plane | None:
            return found.get(tuple(place[name] for name in begin))

        def is_there(place: Mapping[str, int]) -> bool:
            plane = plane_at(place)
            return plane is not None and plane.position + SEGMENT.size + least <= size

        def read_plane(place: Mapping[str, int]) -> npt.NDArray[Any]:
            plane = plane_at(place)
            assert plane is not None  # it was there as the file was opened
            return _pixels(file, plane, dtype)

        return PlanesPart(
            path=path,
            kind=KIND,
            n_frames=whole_part(path, chosen, is_there, truncated=allow_truncated),
            frame_shape=first.shape,
            dtype=dtype,
            facts=chosen.stated(_facts(document, chosen.at.get(CHANNEL, 0))),
            chosen=chosen,
            plane=read_plane,
            closing=opened.pop_all().close,
        )


def _first(path: Path, planes: list[_Plane]) -> _Plane:
    """The first plane, which all others are like."""
    if not planes:
        raise ValueError("its list of planes is empty")
    if len({(plane.pixels, plane.shape) for plane in planes}) > 1:
        raise ValueError(
            f"{path} holds images of several sizes or types, as mosaics do; save one as a movie"
        )
    if planes[0].pixels not in PIXELS:
        raise ValueError(f"{path} is a colour image; save one channel of grey values")
    return planes[0]


def _read(file: Any, layout: struct.Struct, position: int) -> tuple[Any, ...]:
    file.seek(position)
    return layout.unpack(file.read(layout.size))


def _content(file: Any, n_bytes: int) -> bytes:
    """What follows in the file; a damaged length is refused before memory is asked for it."""
    if not 0 <= n_bytes <= os.fstat(file.fileno()).st_size - file.tell():
        raise ValueError("a part of it is longer than the file")
    content: bytes = file.read(n_bytes)
    return content


def _planes(file: Any, directory: int) -> Iterator[_Plane]:
    """The planes at full resolution, in the order of the directory."""
    name, _, used = _read(file, SEGMENT, directory)
    if not name.startswith(b"ZISRAWDIRECTORY"):
        raise ValueError("its list of planes is not where it is said to be")
    content = _content(file, used)
    (n_entries,) = struct.unpack_from("<i", content)
    at = 128
    for _ in range(n_entries):
        entry = ENTRY.unpack_from(content, at)
        _, pixels, position, part, compression, pyramid, n_dimensions = entry
        at += ENTRY.size
        dimensions = {}
        for _ in range(n_dimensions):
            axis, start, size, _, stored = DIMENSION.unpack_from(content, at)
            dimensions[axis.rstrip(b"\0 ").decode()] = (start, size, stored)
            at += DIMENSION.size
        if part != 0:
            raise ValueError("it continues in other files; save it as one")
        height, width = dimensions.pop("Y"), dimensions.pop("X")
        if pyramid == 0 and height[2] in (0, height[1]) and width[2] in (0, width[1]):
            yield _Plane(
                at={NAMES.get(key, key): start for key, (start, *_) in dimensions.items()},
                position=position,
                n_dimensions=n_dimensions,
                compression=compression,
                pixels=pixels,
                shape=(height[1], width[1]),
            )


def _begin(planes: list[_Plane]) -> dict[str, int]:
    """The first place along each axis, which is not 0 where a part was saved."""
    names = list(dict.fromkeys(name for plane in planes for name in plane.at))
    if any(set(plane.at) != set(names) for plane in planes):
        raise ValueError("its planes have different axes")
    return {name: min(plane.at[name] for plane in planes) for name in names}


def _axes(
    planes: list[_Plane], begin: Mapping[str, int], document: ElementTree.Element | None
) -> list[Axis]:
    axes = []
    for name, first in begin.items():
        size = max(plane.at[name] for plane in planes) - first + 1
        if size > len(planes):
            raise ValueError(f"it has {len(planes)} planes, and {size} places along {name}")
        labels = _channel_names(document) if name == CHANNEL else ()
        axes.append(Axis(name=name, size=size, labels=labels if len(labels) == size else ()))
    return axes


def _pixels(file: Any, plane: _Plane, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    n_metadata, _, n_pixels = _read(file, SIZES, plane.position + SEGMENT.size)
    # the copy of the directory's entry, padded to 256 bytes with what is before it
    entry = ENTRY.size + plane.n_dimensions * DIMENSION.size
    file.seek(plane.position + SEGMENT.size + max(256, SIZES.size + entry) + n_metadata)
    content = _content(file, n_pixels)
    if plane.compression == RAW:
        return np.frombuffer(content, dtype).reshape(plane.shape)
    return _unpacked(content, plane, dtype)


def _unpacked(content: bytes, plane: _Plane, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    import imagecodecs

    n_bytes = plane.shape[0] * plane.shape[1] * dtype.itemsize
    if plane.compression == JPEGXR:
        decoded: npt.NDArray[Any] = imagecodecs.jpegxr_decode(content)
        return decoded.astype(dtype, copy=False)
    if plane.compression not in (ZSTD, ZSTD_HEADER):
        raise ValueError(f"its compression has the number {plane.compression}; export it again")
    interleaved = False
    if plane.compression == ZSTD_HEADER:
        interleaved = content[0] == 3 and content[1] == 1 and bool(content[2] & 1)
        content = content[content[0] :]
    unpacked = np.frombuffer(imagecodecs.zstd_decode(content, out=n_bytes), np.uint8)
    if interleaved:  # all low bytes, then all high ones
        unpacked = np.ascontiguousarray(unpacked.reshape(2, -1).T).reshape(-1)
    return unpacked.view(dtype).reshape(plane.shape)


def _metadata(file: Any, position: int) -> ElementTree.Element | None:
    """None where it was cut off."""
    try:
        (n_letters,) = _read(file, struct.Struct("<i"), position + SEGMENT.size)
        file.seek(position + SEGMENT.size + 256)
        return ElementTree.fromstring(_content(file, n_letters))
    except (ElementTree.ParseError, struct.error, ValueError, OSError, OverflowError):
        return None


def _channels(document: ElementTree.Element | None) -> list[ElementTree.Element]:
    where = ".//Information/Image/Dimensions/Channels/Channel"
    return [] if document is None else document.findall(where)


def _channel_names(document: ElementTree.Element | None) -> tuple[str, ...]:
    return tuple(channel.get("Name", "") for channel in _channels(document))


def _facts(document: ElementTree.Element | None, channel: int) -> StatedFacts:
    if document is None:
        return StatedFacts()

    def side(axis: str) -> float | None:
        metres = positive(document.findtext(f".//Scaling/Items/Distance[@Id='{axis}']/Value"))
        return None if metres is None else 1e9 * metres

    channels = _channels(document)
    mine = channels[channel] if channel < len(channels) else None
    nanoseconds = None if mine is None else positive(mine.findtext("ExposureTime"))
    return StatedFacts(
        pixel_sides_nm=credible_pixel(side("X"), side("Y")),
        exposure_ms=None if nanoseconds is None else nanoseconds / 1e6,
        z_step_nm=credible_step(side("Z")),
        camera_name=document.findtext(".//Scaling/AutoScaling/CameraName") or None,
    )


FORMAT = MovieFormat(
    name="czi",
    title="Zeiss .czi",
    content="the first bytes of a CZI file",
    suffixes=(".czi",),
    recognizes=_is_czi,
    read=_open_czi,
)
