"""Zarr and OME-Zarr, folders of blocks of one array."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt

from decode.errors import reading
from decode.io.movies.block import cut_short
from decode.io.movies.facts import StatedFacts
from decode.io.movies.format import MovieFormat, Part
from decode.io.movies.library import needed
from decode.io.movies.selection import (
    CHANNEL,
    POSITION,
    TIME,
    Axis,
    Chosen,
    Selection,
    Z,
    choose,
)
from decode.io.movies.units import credible_pixel, credible_step, length_nm

__all__ = ["FORMAT"]

DESCRIPTIONS = ("zarr.json", ".zgroup", ".zarray")
NAMES = {"t": TIME, "time": TIME, "frame": TIME, "z": Z, "c": CHANNEL, "channel": CHANNEL}
UNITS = {"nanometer": "nm", "micrometer": "um", "millimeter": "mm"}
LARGEST_FRAME = 2**32
"""bytes"""
Place: TypeAlias = tuple[int | slice, ...]
"""of frames in an array, along all axes but y and x"""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class _ZarrPart(Part):
    """Frames of an array, of whose blocks those are read that hold them."""

    array: Any
    chosen: Chosen
    by_blosc: bool
    """whether files are blocks of Blosc, which may unpack what was cut short to anything"""

    def _require_whole_blocks(self, at: Place) -> None:
        """Raise a ValueError unless the files of some frames are there, and as long as they
        state."""
        for files in _files_of(self.path, self.array, at):
            there = [file for file in files if file.is_file()]
            if there and len(there) < len(files):  # without any, frames hold but the fill value
                missing = next(file for file in files if file not in there)
                raise ValueError(f"{missing}, a block of some frames, is missing; copy it again")
            for file in there if self.by_blosc else ():
                with file.open("rb") as opened:
                    stated = int.from_bytes(opened.read(16)[12:], "little")
                if stated != file.stat().st_size:
                    raise ValueError(f"{file} is cut short; copy or export it again")

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        at = _place(self.chosen, start, stop)
        with reading(self.path, "a Zarr movie", "copy or export it again"):
            self._require_whole_blocks(at)
            frames = np.asarray(self.array[at])
            return frames.reshape(stop - start, *self.frame_shape)

    def files(self) -> frozenset[Path]:
        return frozenset()

    def close(self) -> None:
        """Nothing is open."""


def _place(chosen: Chosen, start: int, stop: int) -> Place:
    """Where frames lie in the array, without y and x."""
    index = chosen.slices(start, stop)
    return tuple(index[axis.name] for axis in chosen.axes)


def _files_of(path: Path, array: Any, at: Place) -> Iterator[list[Path]]:
    """The files with blocks of some frames, those of the same frames together."""
    sizes = array.shards or array.chunks
    spans = []
    for each, size, length in zip((*at, slice(None), slice(None)), sizes, array.shape, strict=True):
        start, stop, _ = each.indices(length) if isinstance(each, slice) else (each, each + 1, 1)
        spans.append(range(start // size, -(-stop // size)))
    folder, key = path / array.path, array.metadata.encode_chunk_key
    for some in product(*spans[:-2]):
        yield [folder / key((*some, *block)) for block in product(*spans[-2:])]


def _n_there(path: Path, array: Any, chosen: Chosen) -> int:
    """Number of frames up to the last of which a block is there."""

    def is_there(frame: int) -> bool:
        files = _files_of(path, array, _place(chosen, frame, frame + 1))
        return any(file.is_file() for some in files for file in some)

    return next((i + 1 for i in range(chosen.n_frames - 1, -1, -1) if is_there(i)), 0)


def _is_zarr(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in DESCRIPTIONS)


def _open_zarr(path: Path, selection: Selection, *, allow_truncated: bool) -> Part:
    library = needed("zarr", path)
    with reading(path, "a Zarr movie", "copy or export it again"):
        positions = list(_images(library.open(str(path), mode="r"), library))
        if not positions:
            raise ValueError(f"{path} holds no image, or its description is missing")
        labels = tuple(image.name for image in positions)
        among = Axis(name=POSITION, size=len(positions), labels=labels)
        at = choose(path, [among], Selection(position=selection.position)).at[POSITION]
        image = positions[at]
        array = image.array
        if not isinstance(array, library.Array) or len(image.axes) != array.ndim:
            raise ValueError(
                f"{path} has an array of {getattr(array, 'ndim', 'no')} axes, without their names; "
                "a movie is (time, y, x)"
            )
        if image.axes[-2:] != ("y", "x"):
            raise ValueError(f"{path} has the axes {', '.join(image.axes)}; y and x must be last")
        height, width = array.shape[-2:]
        if array.dtype.kind not in "uif":
            raise ValueError(f"it holds {array.dtype}, not counts")
        if not 0 < height * width * array.dtype.itemsize <= LARGEST_FRAME or 0 in array.shape:
            raise ValueError(f"its array is {array.shape}")
        axes = []
        for name, size in zip(image.axes[:-2], array.shape[:-2], strict=True):
            named = image.channels if NAMES.get(name) == CHANNEL else ()
            axes.append(
                Axis(
                    name=NAMES.get(name, name),
                    size=size,
                    labels=named if len(named) == size else (),
                )
            )
        chosen = choose(path, axes, Selection(channel=selection.channel, z=selection.z))
        n_frames = _n_there(path, array, chosen)
        if n_frames < 1 or (n_frames < chosen.n_frames and not allow_truncated):
            raise cut_short(path, n_frames, chosen.n_frames)
        return _ZarrPart(
            path=path,
            n_frames=n_frames,
            frame_shape=(height, width),
            dtype=np.dtype(array.dtype),
            facts=chosen.stated(image.facts),
            array=array,
            chosen=chosen,
            by_blosc=array.shards is None and "blosc" in str(array.compressors).lower(),
        )


@final
@dataclass(frozen=True, kw_only=True)
class _Image:
    """An array that may be the movie."""

    array: Any
    axes: tuple[str, ...]
    name: str = ""
    channels: tuple[str, ...] = ()
    facts: StatedFacts = field(default_factory=StatedFacts)


def _images(found: Any, library: Any, name: str = "") -> Iterator[_Image]:
    """An array alone, the image of a group, or those of its series, wells and fields."""
    if isinstance(found, library.Array):
        yield _Image(array=found, axes=_named_axes(found), name=name)
        return
    attributes = dict(found.attrs)
    stated = attributes.get("ome", attributes)
    if "multiscales" in stated:
        yield _of_ome(found, stated, name)
    elif "plate" in stated:
        for well in stated["plate"]["wells"]:
            yield from _images(found[well["path"]], library, well["path"])
    elif "well" in stated:
        for field in stated["well"]["images"]:
            yield from _images(found[field["path"]], library, f"{name}/{field['path']}")
    else:
        members = {key: member for key, member in found.members() if key != "OME"}
        for key in sorted(members, key=lambda key: (not key.isdecimal(), key.zfill(9))):
            if isinstance(members[key], library.Array) or "multiscales" in dict(
                members[key].attrs.get("ome", members[key].attrs)
            ):
                yield from _images(members[key], library, key)


def _named_axes(array: Any) -> tuple[str, ...]:
    """The axes by the names that an array alone has; without any, (time, y, x)."""
    stated = getattr(array.metadata, "dimension_names", None) or array.attrs.get(
        "_ARRAY_DIMENSIONS"
    )
    if stated and all(stated):
        return tuple(str(name).lower() for name in stated)
    return ("t", "y", "x")[-array.ndim :] if array.ndim in (2, 3) else ()


def _of_ome(group: Any, stated: Mapping[str, Any], name: str) -> _Image:
    scales = stated["multiscales"][0]
    finest = scales["datasets"][0]
    axes = scales.get("axes", ["t", "c", "z", "y", "x"])
    axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in axes]
    names = tuple(str(axis["name"]).lower() for axis in axes)
    channels = (stated.get("omero") or {}).get("channels") or ()
    return _Image(
        array=group[finest["path"]],
        axes=names,
        name=name or str(scales.get("name", "")),
        channels=tuple(str(channel.get("label", "")) for channel in channels),
        facts=_facts(axes, [*_scales(finest), *_scales(scales)]),
    )


def _scales(stated: Mapping[str, Any]) -> list[Sequence[float]]:
    transformations = stated.get("coordinateTransformations") or ()
    return [each["scale"] for each in transformations if each.get("type") == "scale"]


def _facts(axes: Sequence[Mapping[str, Any]], scales: Sequence[Sequence[float]]) -> StatedFacts:
    steps: dict[str, float | None] = {}
    for i, axis in enumerate(axes):
        size = 1.0
        for scale in scales:
            size *= float(scale[i])
        unit = str(axis.get("unit"))
        steps[str(axis["name"]).lower()] = (
            length_nm(size, UNITS.get(unit, unit)) if scales else None
        )
    return StatedFacts(
        pixel_sides_nm=credible_pixel(steps.get("x"), steps.get("y")),
        z_step_nm=credible_step(steps.get("z")),
    )


FORMAT = MovieFormat(
    name="zarr",
    title="Zarr and OME-Zarr, a folder",
    content="its `zarr.json`, `.zgroup` or `.zarray`",
    suffixes=(),
    recognizes=_is_zarr,
    read=_open_zarr,
)
