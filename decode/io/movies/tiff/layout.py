"""The layout of the frames of a TIFF file, and the number of whole ones."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Literal, final

import numpy as np
import tifffile

__all__ = ["Layout", "lay_out", "whole_frames"]

SMALL_FRAME = 2**26
"""bytes of a frame of the largest cameras, up to which any compression is accepted"""
MOST_COMPRESSION = 1100
"""largest compression of a larger frame: a little more than zlib reaches for one without light"""
MOST_CHANNELS = 7
"""most channels that ImageJ merges: longer axes of channels are frames that were mislabelled"""

_Page = tifffile.TiffPage | tifffile.TiffFrame


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """The frames that a file announces."""

    frame_shape: tuple[int, int]
    """y, x"""
    axes: Mapping[str, int]
    """lengths of the axes besides y and x that are longer than 1"""
    series: tifffile.TiffPageSeries | None = None
    """series whose pages are read one by one; None reads those of the file"""
    block_offset: int | None = None
    """first byte of the pixels, if they lie in one piece, which needs no pages"""
    length_is_stated: bool = False
    """whether the first page states the number of frames"""

    @property
    def n_frames(self) -> int:
        return math.prod(self.axes.values())


def lay_out(path: Path, tiff: tifffile.TiffFile) -> Layout:
    """Find the frames of a file.

    Raises:
        ValueError: if what it holds is not a movie, or is damaged.
    """
    shape = _frame_shape(path, tiff)
    announced = _announced_axes(tiff)
    if not _lies_in_one_piece(tiff, announced):
        _require_an_end(tiff)  # the list of pages is needed
    layout = _of_series(path, tiff, shape, announced)
    _require_frames_only(path, layout.axes)
    return layout


def _frame_shape(path: Path, tiff: tifffile.TiffFile) -> tuple[int, int]:
    first = tiff.pages.first
    stored = (first.imagelength, first.imagewidth)
    announced = _announced_shape(tiff)[-2:] or stored
    if announced != stored:
        listed, found = (" x ".join(map(str, shape)) for shape in (announced, stored))
        raise ValueError(
            f"{path} announces frames of {listed} pixels and holds images of {found}; export it "
            "again"
        )
    if not all(isinstance(side, int) and side > 0 for side in stored):
        raise ValueError("its frames have no size in whole pixels")
    return stored


def _lies_in_one_piece(tiff: tifffile.TiffFile, announced: Mapping[str, int]) -> bool:
    """Whether all frames that were announced follow on the first one, without a gap."""
    first = tiff.pages.first
    if not announced or not first.is_final:
        return False
    n_bytes = math.prod(announced.values()) * first.nbytes
    return bool(first.dataoffsets[0] + n_bytes <= tiff.filehandle.size)


def _of_series(
    path: Path, tiff: tifffile.TiffFile, shape: tuple[int, int], announced: Mapping[str, int]
) -> Layout:
    """Choose between what tifffile finds and what the first page announces."""
    first, found = tiff.pages.first, _series(tiff)
    axes = _longer_axes(found[0].axes, found[0].shape) if found else {}
    if math.prod(announced.values()) > math.prod(axes.values()):
        # the list of pages stands behind the pixels and is lost first, but ImageJ keeps the pixels
        # in one piece
        in_one_piece = tiff.is_imagej and first.is_final
        return Layout(
            frame_shape=shape,
            axes=announced,
            block_offset=first.dataoffsets[0] if in_one_piece else None,
            length_is_stated=True,
        )
    if len(found) > 1:
        _require_one_after_another(path, tiff, found)
        # what the first call announced is a part
        return Layout(frame_shape=shape, axes={"I": len(tiff.pages)})
    if not found:
        return Layout(frame_shape=shape, axes={}, length_is_stated=bool(announced))
    (series,) = found
    return Layout(
        frame_shape=shape,
        axes=axes,
        series=series if series.dataoffset is None else None,
        block_offset=series.dataoffset,
        length_is_stated=bool(announced),
    )


def _series(tiff: tifffile.TiffFile) -> list[tifffile.TiffPageSeries]:
    """The series that tifffile finds; none where the file is damaged."""
    try:
        return list(tiff.series)
    except (tifffile.TiffFileError, IndexError):
        return []


def _require_one_after_another(
    path: Path, tiff: tifffile.TiffFile, found: Sequence[tifffile.TiffPageSeries]
) -> None:
    """Several series are a movie where a script wrote the file by
    `for frame in movie: writer.write(frame)`, which makes each a series."""
    alike = len({(series.kind, series.shape[-2:], series.dtype) for series in found}) == 1
    n_images = sum(math.prod(series.shape[:-2]) for series in found)
    has_all_pages = n_images == len(tiff.pages) or not _list_of_pages_ends(tiff)
    if tiff.is_shaped and alike and has_all_pages:
        return
    kinds = sorted({f"{' x '.join(map(str, each.shape))} {each.dtype}" for each in found})
    raise ValueError(
        f"{path} holds {len(found)} series of images ({', '.join(kinds[:3])}); save the movie "
        "alone in a file"
    )


def _require_frames_only(path: Path, axes: Mapping[str, int]) -> None:
    if len(axes) > 1:
        listed = ", ".join(f"{name}: {length}" for name, length in axes.items())
        raise ValueError(
            f"{path} has more axes than frames, y and x ({listed}); save each movie in a file of "
            "its own"
        )
    if set(axes) == {"C"} and axes["C"] <= MOST_CHANNELS:
        raise ValueError(
            f"{path} holds {axes['C']} channels of one frame, which are no movie; save the channel "
            "to localize in as a file of its own, or declare channels to be frames (Image > "
            "Properties in ImageJ)"
        )


def whole_frames(
    path: Path, tiff: tifffile.TiffFile, layout: Layout, *, allow_truncated: bool
) -> int:
    """Number of frames from the first one on, up to the first that is missing or cut short.

    Args:
        allow_truncated: accept them where more were announced, instead of refusing the file.

    Raises:
        ValueError: if it is refused, or there are none.
    """
    if layout.block_offset is None:
        n_whole = _whole_pages(path, tiff, layout)
    else:
        n_bytes = math.prod(layout.frame_shape) * np.dtype(tiff.pages.first.dtype).itemsize
        n_stored = (tiff.filehandle.size - layout.block_offset) // n_bytes
        n_whole = min(layout.n_frames, n_stored)
    if n_whole == 0:
        raise ValueError(
            f"{path} is cut short or damaged, without one whole frame; copy or export it again"
        )
    length_is_known = layout.length_is_stated or _list_of_pages_ends(tiff)
    if not allow_truncated and (n_whole < layout.n_frames or not length_is_known):
        of_all = f" of {layout.n_frames}" if length_is_known else ""
        raise ValueError(
            f"{path} is cut short: only {n_whole}{of_all} frames are whole; copy or export it "
            "again, or take those with --allow-truncated"
        )
    return n_whole


def _whole_pages(path: Path, tiff: tifffile.TiffFile, layout: Layout) -> int:
    pages = _readable_pages(tiff if layout.series is None else layout.series)
    if None in pages:
        absent = [name for name in _ome_files(tiff) if not (path.parent / name).exists()]
        if absent:
            raise ValueError(
                f"{path} continues in {absent[0]}, which is missing; put all files of the series "
                "together"
            )
    return sum(1 for _ in takewhile(_is_whole, pages))


def _longer_axes(axes: str, shape: Sequence[int]) -> dict[str, int]:
    """The axes besides y and x that are longer than 1."""
    return {
        name: length
        for name, length in zip(axes, shape, strict=True)
        if name not in "YX" and length > 1
    }


def _announced_axes(tiff: tifffile.TiffFile) -> dict[str, int]:
    """The axes that the writing program announced in the first page; empty where there are none."""
    if tiff.is_micromanager:  # announces what was planned, not what was taken
        return {}
    if tiff.imagej_metadata is not None:
        names = {"T": "frames", "Z": "slices", "C": "channels"}
        lengths = [int(tiff.imagej_metadata.get(name, 1)) for name in names.values()]
        images = int(tiff.imagej_metadata.get("images", 1))
        return _longer_axes("TZC", lengths) or _longer_axes("I", [images])
    announced = _announced_shape(tiff)[:-2]
    return _longer_axes("Q" * len(announced), announced)


def _announced_shape(tiff: tifffile.TiffFile) -> tuple[int, ...]:
    """(..., y, x) shape of the array that tifffile wrote, without a last axis of one colour; () for
    other files."""
    if not tiff.shaped_metadata:
        return ()
    shape = tuple(tiff.shaped_metadata[0]["shape"])
    return shape[:-1] if len(shape) > 3 and shape[-1] == 1 else shape


def _readable_pages(container: tifffile.TiffFile | tifffile.TiffPageSeries) -> list[_Page | None]:
    """The pages that are listed; none where the list itself is damaged."""
    try:
        return list(container.pages)
    except (tifffile.TiffFileError, IndexError):
        return []


def _is_whole(page: _Page | None) -> bool:
    """Whether all pixels of a page lie within its file, and could be what is stored there."""
    if page is None or page.keyframe is None or not page.dataoffsets:
        return False
    size = page.parent.filehandle.size
    segments = zip(page.dataoffsets, page.databytecounts, strict=True)
    stored = sum(page.databytecounts)
    needed = math.prod(page.shape) * page.keyframe.bitspersample // 8
    if page.keyframe.compression != tifffile.COMPRESSION.NONE:
        needed = 0 if needed <= SMALL_FRAME else needed // MOST_COMPRESSION
    return needed <= stored and all(
        offset > 0 and count > 0 and offset + count <= size for offset, count in segments
    )


def _require_an_end(tiff: tifffile.TiffFile) -> None:
    """Fail where the list of pages is a cycle, which tifffile follows until memory is full.

    Raises:
        ValueError: if it does.
    """
    file, layout = tiff.filehandle, tiff.tiff
    offset, seen = int(tiff.pages.first.offset), set[int]()
    while offset:
        if offset in seen:
            raise ValueError("its list of pages leads back into itself")
        seen.add(offset)
        file.seek(offset)
        n_tags = int.from_bytes(file.read(layout.tagnosize), _order(tiff))
        file.seek(offset + layout.tagnosize + n_tags * layout.tagsize)
        offset = int.from_bytes(file.read(layout.offsetsize), _order(tiff))


def _order(tiff: tifffile.TiffFile) -> Literal["little", "big"]:
    return "little" if tiff.byteorder == "<" else "big"


def _list_of_pages_ends(tiff: tifffile.TiffFile) -> bool:
    """Whether the last page points to no other; in a file that was cut short it points beyond
    the end."""
    n_pages = len(tiff.pages)  # walks to the last one
    last = tiff.pages.next_page_offset
    if n_pages == 0 or last is None:
        return False
    tiff.filehandle.seek(last)
    pointer = tiff.filehandle.read(tiff.tiff.offsetsize)
    return len(pointer) == tiff.tiff.offsetsize and not any(pointer)


def _ome_files(tiff: tifffile.TiffFile) -> list[str]:
    """Names of the files that an OME series is spread over."""
    return sorted(set(re.findall(r'FileName="([^"]+)"', tiff.ome_metadata or "")))
