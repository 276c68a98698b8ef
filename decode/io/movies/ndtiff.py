"""NDTiff, the folders of Micro-Manager 2 and Pycro-Manager."""

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
from decode.io.movies.selection import CHANNEL, POSITION, TIME, Axis, Selection, Z, choose
from decode.io.movies.units import credible_pixel, credible_step, length_nm, positive

__all__ = ["FORMAT"]

INDEX = "NDTiff.index"
MARK = (483729).to_bytes(4, "little")
"""behind the first eight bytes of its TIFF files"""
KNOWN = (POSITION, TIME, CHANNEL, Z)


def _folder(path: Path) -> Path | None:
    """The folder of the index, of a data set or of one of its files."""
    if path.is_dir():
        folders = [path, path / "Full resolution"]
        return next((folder for folder in folders if (folder / INDEX).is_file()), None)
    if not (path.parent / INDEX).is_file():
        return None
    with path.open("rb") as file:
        return path.parent if file.read(12)[8:] == MARK else None


def _is_ndtiff(path: Path) -> bool:
    return _folder(path) is not None


def _open_ndtiff(path: Path, selection: Selection, *, allow_truncated: bool) -> Part:
    folder = _folder(path)
    if folder is None:
        raise ValueError(f"{path} has no {INDEX}")
    # what opens a whole data set prints to the standard output, a line an image
    index_of = needed("ndstorage.ndtiff_index", path).read_ndtiff_index
    reader_of = needed("ndstorage.ndtiff_file", path).SingleNDTiffReader
    file_io = needed("ndstorage.file_io", path).NDTiffFileIO(lambda name, _: Bounded(Path(name)))
    with ExitStack() as opened, reading(path, "an NDTiff movie", "copy or export it again"):
        index = index_of((folder / INDEX).read_bytes(), verbose=False)
        if not index:
            raise ValueError("its index is empty")
        names = sorted({entry.filename for entry in index.values()})
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ValueError(
                f"{path} continues in {missing[0]}, which is missing; put all of its files together"
            )
        readers = {}
        for name in names:
            readers[name] = reader_of(str(folder / name), file_io)
            opened.callback(readers[name].close)
        first = next(iter(index.values()))
        if first.pixel_type == first.EIGHT_BIT_RGB:
            raise ValueError(f"{path} is a colour image; save one channel of grey values")
        values = _values(index)
        chosen = choose(path, _axes(values, readers[first.filename].summary_md), selection)
        sizes = {name: (folder / name).stat().st_size for name in names}
        dtype = np.dtype("u1" if first.pixel_type == first.EIGHT_BIT else "<u2")
        shape = (first.image_height, first.image_width)
        n_bytes = shape[0] * shape[1] * dtype.itemsize

        def entry_at(place: Mapping[str, int]) -> Any:
            return index.get(frozenset((name, values[name][at]) for name, at in place.items()))

        def is_there(place: Mapping[str, int]) -> bool:
            entry = entry_at(place)
            return entry is not None and entry.pix_offset + n_bytes <= sizes[entry.filename]

        def plane(place: Mapping[str, int]) -> npt.NDArray[Any]:
            entry = entry_at(place)
            return np.asarray(readers[entry.filename].read_image(entry))

        n_frames = whole_part(path, chosen, is_there, truncated=allow_truncated)
        stated = readers[first.filename].read_metadata(first)
        return PlanesPart(
            path=path,
            kind="an NDTiff movie",
            n_frames=n_frames,
            frame_shape=shape,
            dtype=dtype,
            facts=chosen.stated(_facts({**readers[first.filename].summary_md, **stated})),
            chosen=chosen,
            plane=plane,
            closing=opened.pop_all().close,
            own=[folder / name for name in names],
        )


def _values(index: Mapping[frozenset[Any], Any]) -> dict[str, list[Any]]:
    """What each axis counts, in order: numbers, or names in the order of the index."""
    values: dict[str, dict[Any, None]] = {}
    for key in index:
        for name, value in key:
            values.setdefault(name, {})[value] = None
    if any(len(key) != len(values) for key in index):
        raise ValueError("its images have different axes")
    named = {name: list(found) for name, found in values.items()}
    ordered = sorted(named, key=lambda name: KNOWN.index(name) if name in KNOWN else -1)
    return {
        name: named[name]
        if any(isinstance(value, str) for value in named[name])
        else sorted(named[name])
        for name in ordered
    }


def _axes(values: Mapping[str, list[Any]], summary: Mapping[str, Any]) -> list[Axis]:
    axes = []
    for name, found in values.items():
        labels = tuple(found) if all(isinstance(value, str) for value in found) else ()
        stated = summary.get("ChNames")
        if name == CHANNEL and not labels and isinstance(stated, list):
            labels = tuple(map(str, stated)) if len(stated) == len(found) else ()
        axes.append(Axis(name=name, size=len(found), labels=labels))
    return axes


def _facts(stated: Mapping[str, Any]) -> StatedFacts:
    side = length_nm(stated.get("PixelSizeUm", stated.get("PixelSize_um")), "um")
    camera = stated.get("Core-Camera") or stated.get("Camera")
    named = stated.get(f"{camera}-CameraName") or camera
    return StatedFacts(
        pixel_sides_nm=credible_pixel(side, side),
        exposure_ms=positive(stated.get("Exposure", stated.get("Exposure-ms"))),
        z_step_nm=credible_step(length_nm(stated.get("z-step_um"), "um")),
        camera_name=str(named) if named else None,
    )


FORMAT = MovieFormat(
    name="ndtiff",
    title="NDTiff of Micro-Manager 2, a folder",
    content="its `NDTiff.index`",
    suffixes=(),
    recognizes=_is_ndtiff,
    read=_open_ndtiff,
)
