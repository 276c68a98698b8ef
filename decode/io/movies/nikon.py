"""Nikon `.nd2`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from decode.errors import reading
from decode.io.movies.facts import StatedFacts
from decode.io.movies.format import MovieFormat, Part
from decode.io.movies.library import needed
from decode.io.movies.planes import PlanesPart, whole_part
from decode.io.movies.selection import CHANNEL, POSITION, TIME, Axis, Selection, Z, choose
from decode.io.movies.units import MS_PER, credible_pixel, credible_step, length_nm, positive

__all__ = ["FORMAT"]

MARKS = (b"\xda\xce\xbe\x0a", b"\x00\x00\x00\x0cjP  ")
"""of today's files, and of the JPEG 2000 before 2010"""
NAMES = {"T": TIME, "Z": Z, "C": CHANNEL, "P": POSITION}


def _is_nd2(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(8).startswith(MARKS)


def _open_nd2(path: Path, selection: Selection, *, allow_truncated: bool) -> Part:
    library = needed("nd2", path)
    with ExitStack() as opened, reading(path, "a Nikon .nd2 movie", "copy or export it again"):
        file = library.ND2File(path)
        opened.callback(file.close)
        if file.is_rgb:
            raise ValueError(f"{path} is a colour image; save one channel of grey values")
        axes = _axes(file)
        loops = [axis for axis in axes if axis.name != CHANNEL]
        chosen = choose(path, axes, selection)
        # a frame that was never taken is read as one of zeros
        there = getattr(file._rdr, "_frame_offsets", None)

        def number(place: Mapping[str, int]) -> int:
            """Of the frame that holds all channels of a place."""
            at = [place[axis.name] for axis in loops]
            return int(np.ravel_multi_index(at, [axis.size for axis in loops])) if loops else 0

        def plane(place: Mapping[str, int]) -> npt.NDArray[Any]:
            channels = file.read_frame(number(place))
            return channels[place[CHANNEL]] if CHANNEL in place else channels

        part = PlanesPart(
            path=path,
            kind="a Nikon .nd2 movie",
            n_frames=whole_part(
                path,
                chosen,
                lambda place: there is None or number(place) in there,
                truncated=allow_truncated,
            ),
            frame_shape=(file.sizes["Y"], file.sizes["X"]),
            dtype=np.dtype(file.dtype),
            facts=chosen.stated(_facts(file)),
            chosen=chosen,
            plane=plane,
            closing=file.close,
        )
        opened.pop_all()
        return part


def _axes(file: Any) -> list[Axis]:
    labels = {CHANNEL: tuple(each.channel.name for each in file.metadata.channels or ())}
    for loop in file.experiment:
        if loop.type == "XYPosLoop":
            labels[POSITION] = tuple(point.name or "" for point in loop.parameters.points)
    axes = []
    for letter, size in file.sizes.items():
        if letter in "YX":
            continue
        name = NAMES.get(letter, letter)
        named = labels.get(name, ())
        axes.append(Axis(name=name, size=size, labels=named if len(named) == size else ()))
    return axes


def _facts(file: Any) -> StatedFacts:
    voxel = file.voxel_size()
    x, y, z = (length_nm(side, "um") for side in (voxel.x, voxel.y, voxel.z))
    text = "\n".join(str(each) for each in file.text_info.values())
    exposure = re.search(r"Exposure: *([\d.]+) *(ms|s|us|µs)\b", text)
    time = positive(exposure[1]) if exposure else None
    camera = re.search(r"Camera Name: *(.+)", text)
    return StatedFacts(
        pixel_sides_nm=credible_pixel(x, y),
        exposure_ms=time * MS_PER[exposure[2]] if time and exposure else None,
        z_step_nm=credible_step(z),
        camera_name=camera[1].strip() if camera else None,
    )


FORMAT = MovieFormat(
    name="nd2",
    title="Nikon .nd2",
    content="the first bytes of an ND2 file",
    suffixes=(".nd2",),
    recognizes=_is_nd2,
    read=_open_nd2,
)
