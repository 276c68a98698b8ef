"""Leica `.lif`; its images are positions."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from decode.errors import reading
from decode.io.movies.facts import StatedFacts
from decode.io.movies.format import MovieFormat, Part
from decode.io.movies.library import Bounded, needed
from decode.io.movies.planes import PlanesPart, whole_part
from decode.io.movies.selection import CHANNEL, POSITION, TIME, Axis, Chosen, Selection, Z, choose
from decode.io.movies.units import credible_pixel, credible_step, positive

__all__ = ["FORMAT"]

MARK = b"\x70\0\0\0"
"""first bytes; those of the description follow, which begin with a star"""
NAMES = {"T": TIME, "Z": Z, "C": CHANNEL}


def _is_lif(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        begin = file.read(9)
    return begin.startswith(MARK) and begin.endswith(b"*")


def _open_lif(path: Path, selection: Selection, *, allow_truncated: bool) -> Part:
    library = needed("liffile", path)
    with ExitStack() as opened, reading(path, "a Leica .lif movie", "copy or export it again"):
        file = library.LifFile(opened.enter_context(Bounded(path)))
        opened.callback(file.close)
        image = _image(path, file, selection)
        sizes = image.sizes
        if "S" in sizes or {*image.frames.frame_dims} != {"Y", "X"}:
            raise ValueError(f"{path} is a colour image, or a line scan; save one channel as movie")
        axes = [
            Axis(name=NAMES.get(letter, letter), size=size)
            for letter, size in sizes.items()
            if letter not in "YX"
        ]
        letters = {name: letter for letter, name in NAMES.items()}
        of_image = Selection(channel=selection.channel, z=selection.z)
        chosen = choose(path, axes, of_image)
        shape = (sizes["Y"], sizes["X"])
        dtype = np.dtype(image.dtype)

        def plane(place: Mapping[str, int]) -> npt.NDArray[Any]:
            read: npt.NDArray[Any] = image.frame(
                **{letters.get(name, name): at for name, at in place.items()}
            )
            return read

        return PlanesPart(
            path=path,
            kind="a Leica .lif movie",
            n_frames=_whole(path, image, chosen, allow_truncated=allow_truncated),
            frame_shape=shape,
            dtype=dtype,
            facts=chosen.stated(_facts(image)),
            chosen=chosen,
            plane=plane,
            closing=opened.pop_all().close,
        )


def _image(path: Path, file: Any, selection: Selection) -> Any:
    """The image that is the position chosen."""
    images = list(file.images)
    if not images:
        raise ValueError(f"{path} holds no image")
    positions = Axis(
        name=POSITION, size=len(images), labels=tuple(image.path or image.name for image in images)
    )
    at = choose(path, [positions], Selection(position=selection.position)).at[POSITION]
    return images[at]


def _whole(path: Path, image: Any, chosen: Chosen, *, allow_truncated: bool) -> int:
    block = image.memory_block
    there = path.stat().st_size - block.offset
    strides = {NAMES.get(dim.label, dim.label): dim.bytes_inc for dim in image._dimensions}
    plane = strides["Y"] * image.sizes["Y"]

    def is_there(place: Mapping[str, int]) -> bool:
        first = sum(strides.get(name, 0) * at for name, at in place.items())
        return first + plane <= min(there, block.size)

    return whole_part(path, chosen, is_there, truncated=allow_truncated)


def _facts(image: Any) -> StatedFacts:
    steps = {}
    for dim in image._dimensions:
        metres = positive(abs(dim.length) / max(dim.number_elements - 1, 1))
        if metres is not None and dim.unit == "m":
            steps[dim.label] = 1e9 * metres
    return StatedFacts(
        pixel_sides_nm=credible_pixel(steps.get("X"), steps.get("Y")),
        z_step_nm=credible_step(steps.get("Z")),
    )


FORMAT = MovieFormat(
    name="lif",
    title="Leica .lif",
    content="the first bytes of a LIF file",
    suffixes=(".lif",),
    recognizes=_is_lif,
    read=_open_lif,
)
