"""Imaris `.ims`, an HDF5 file of a data set a time point and channel."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from decode.errors import reading
from decode.io.movies.facts import StatedFacts
from decode.io.movies.format import MovieFormat, Part
from decode.io.movies.planes import PlanesPart, whole_part
from decode.io.movies.selection import CHANNEL, TIME, Axis, Selection, Z, choose
from decode.io.movies.units import NM_PER, credible_pixel, credible_step, positive

__all__ = ["FORMAT"]

PIXELS = "DataSet/ResolutionLevel 0"


def _is_ims(path: Path) -> bool:
    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    try:
        with h5py.File(path, "r") as file:
            return {"DataSet", "DataSetInfo"} <= set(file)
    except (OSError, RuntimeError, KeyError):
        return False


def _open_ims(path: Path, selection: Selection, *, allow_truncated: bool) -> Part:
    with ExitStack() as opened, reading(path, "an Imaris .ims movie", "copy or export it again"):
        file = opened.enter_context(h5py.File(path, "r"))
        info = file["DataSetInfo/Image"].attrs
        width, height, depth = (int(_text(info[side])) for side in "XYZ")
        n_points = _numbered(file[PIXELS], "TimePoint")
        n_channels = _numbered(file[f"{PIXELS}/TimePoint 0"], "Channel")
        first = file[f"{PIXELS}/TimePoint 0/Channel 0/Data"]
        # planes are padded to whole blocks
        if any(
            there < stated
            for there, stated in zip(first.shape, (depth, height, width), strict=True)
        ):
            raise ValueError(f"images of {first.shape} are less than {(depth, height, width)}")
        names = tuple(_name(file, channel) for channel in range(n_channels))
        axes = [
            Axis(name=TIME, size=n_points),
            Axis(name=CHANNEL, size=n_channels, labels=names),
            Axis(name=Z, size=depth),
        ]
        chosen = choose(path, axes, selection)

        def data(place: Mapping[str, int]) -> Any:
            return file.get(f"{PIXELS}/TimePoint {place[TIME]}/Channel {place[CHANNEL]}/Data")

        part = PlanesPart(
            path=path,
            kind="an Imaris .ims movie",
            n_frames=whole_part(
                path,
                chosen,
                lambda place: data(place) is not None,
                truncated=allow_truncated,
            ),
            frame_shape=(height, width),
            dtype=np.dtype(first.dtype),
            facts=chosen.stated(_facts(info, (width, height, depth))),
            chosen=chosen,
            plane=lambda place: _plane(data(place), place[Z], (height, width)),
            closing=file.close,
        )
        opened.pop_all()
        return part


def _numbered(group: Any, name: str) -> int:
    """Number of members `name 0`, `name 1`, ..."""
    return sum(1 for member in group if member.startswith(f"{name} "))


def _plane(data: Any, z: int, shape: tuple[int, int]) -> npt.NDArray[Any]:
    plane: npt.NDArray[Any] = data[z, : shape[0], : shape[1]]
    return plane


def _text(value: Any) -> str:
    """An attribute, which is a letter an element."""
    return b"".join(np.asarray(value).ravel().astype("S1").tolist()).decode("utf-8", "replace")


def _name(file: h5py.File, channel: int) -> str:
    group = file.get(f"DataSetInfo/Channel {channel}")
    return "" if group is None or "Name" not in group.attrs else _text(group.attrs["Name"])


def _facts(info: Any, sides: tuple[int, int, int]) -> StatedFacts:
    scale = NM_PER.get(_text(info["Unit"]) if "Unit" in info else "um")

    def step(axis: int) -> float | None:
        ends = [f"ExtMin{axis}", f"ExtMax{axis}"]
        if scale is None or any(end not in info for end in ends):
            return None
        low, high = (float(_text(info[end])) for end in ends)
        length = positive((high - low) / sides[axis])
        return None if length is None else length * scale

    return StatedFacts(
        pixel_sides_nm=credible_pixel(step(0), step(1)), z_step_nm=credible_step(step(2))
    )


FORMAT = MovieFormat(
    name="ims",
    title="Imaris .ims",
    content="`DataSet` and `DataSetInfo` of an HDF5 file",
    suffixes=(".ims",),
    recognizes=_is_ims,
    read=_open_ims,
)
