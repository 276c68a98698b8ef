"""The layout of the images of a TIFF file, and the number of whole ones."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import final

import numpy as np
import tifffile

from decode.io.movies.block import cut_short
from decode.io.movies.selection import CHANNEL, POSITION, TIME, Axis, Selection, Z, choose
from decode.io.movies.tiff.pages import Pages, list_pages

__all__ = ["Layout", "lay_out", "whole_images"]

SMALL_FRAME = 2**26
"""bytes of a frame of the largest cameras, up to which any compression is accepted"""
MOST_COMPRESSION = 1100
"""largest compression of a larger frame: a little more than zlib reaches for one without light"""
MOST_CHANNELS = 7
"""most channels that ImageJ merges: longer axes of channels are frames that were mislabelled"""
NAMES = {"T": TIME, "Q": TIME, "I": TIME, "Z": Z, "C": CHANNEL}
OWN_DIALECTS = {"shaped", "imagej", "uniform"}
"""of whose files the list of pages is that of the frames; tifffile knows the others"""

_Page = tifffile.TiffPage | tifffile.TiffFrame


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """The images that a file announces."""

    frame_shape: tuple[int, int]
    """y, x"""
    axes: tuple[Axis, ...]
    """axes besides y and x that are longer than 1"""
    series: tifffile.TiffPageSeries | None = None
    """series whose pages are read one by one; None reads those of the file"""
    pages: Pages | None = None
    """where all pages lie, if they are alike"""
    block_offset: int | None = None
    """first byte of the pixels, if they lie in one piece, which needs no pages"""
    of_position: bool = False
    """whether these are the images of a position that was chosen"""
    length_is_stated: bool = False
    """whether the first page states the number of images"""
    list_ends: bool = True
    """whether the list of pages is complete"""

    @property
    def n_images(self) -> int:
        return math.prod(axis.size for axis in self.axes)


def lay_out(path: Path, tiff: tifffile.TiffFile, selection: Selection) -> Layout:
    """Find the images of a file, or of the position that is chosen.

    Raises:
        ValueError: if what it holds is not a movie, or is damaged.
    """
    shape = _frame_shape(path, tiff)
    announced = _announced_axes(tiff)
    first = tiff.pages.first
    in_one_piece = _lies_in_one_piece(tiff, announced)
    if tiff.is_imagej and in_one_piece:  # the list of pages is not needed
        layout = Layout(
            frame_shape=shape,
            axes=announced,
            block_offset=first.dataoffsets[0],
            length_is_stated=True,
        )
    else:
        listed = list_pages(tiff)
        n_unlisted = _n_unlisted(tiff, announced, listed)
        if n_unlisted:
            return Layout(
                frame_shape=shape,
                axes=_longer([Axis(name=TIME, size=1 + n_unlisted)]),
                block_offset=first.dataoffsets[0],
                list_ends=False,
            )
        own = not any(getattr(tiff, f"is_{name}") for name in _dialects())
        if own and listed.offsets is not None:
            layout = _of_pages(tiff, shape, announced, listed)
        else:
            layout = _of_series(path, tiff, shape, announced, listed, selection)
    if [axis.name for axis in layout.axes] == [CHANNEL] and layout.n_images > MOST_CHANNELS:
        return replace(layout, axes=(Axis(name=TIME, size=layout.n_images),))
    return layout


def _n_unlisted(tiff: tifffile.TiffFile, announced: Sequence[Axis], listed: Pages) -> int:
    """Number of images behind the only one that is listed: tifffile and its writers of ImageJ's
    files announce them when the file is closed, which one that is growing, or whose program was
    stopped, is not."""
    first = tiff.pages.first
    written_so = tiff.is_shaped or tiff.is_imagej
    if announced or not written_so or listed.n_pages != 1 or not first.is_final:
        return 0
    behind = tiff.filehandle.size - first.dataoffsets[0] - first.nbytes
    return int(max(0, behind) // first.nbytes)


def _dialects() -> set[str]:
    return {name.lower() for name in tifffile.TIFF.FILE_FLAGS} - OWN_DIALECTS


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


def _lies_in_one_piece(tiff: tifffile.TiffFile, announced: Sequence[Axis]) -> bool:
    """Whether all images that were announced follow on the first one, without a gap."""
    first = tiff.pages.first
    if not announced or not first.is_final:
        return False
    n_bytes = math.prod(axis.size for axis in announced) * first.nbytes
    return bool(first.dataoffsets[0] + n_bytes <= tiff.filehandle.size)


def _of_pages(
    tiff: tifffile.TiffFile, shape: tuple[int, int], announced: tuple[Axis, ...], listed: Pages
) -> Layout:
    """The images are the pages, which are all alike."""
    n_announced = math.prod(axis.size for axis in announced)
    first = tiff.pages.first
    if announced and n_announced >= listed.n_pages:
        # the list of pages stands behind the pixels and is lost first, but ImageJ keeps the pixels
        # in one piece
        whole = n_announced == listed.n_pages
        in_one_piece = first.is_final and (
            (tiff.is_imagej and not whole) or _lies_in_one_piece(tiff, announced)
        )
        return Layout(
            frame_shape=shape,
            axes=announced,
            pages=listed,
            block_offset=first.dataoffsets[0] if in_one_piece else None,
            length_is_stated=True,
            list_ends=listed.ends,
        )
    # what the first call announced is a part
    return Layout(
        frame_shape=shape,
        axes=_longer([Axis(name=TIME, size=listed.n_pages)]),
        pages=listed,
        list_ends=listed.ends,
    )


def _of_series(
    path: Path,
    tiff: tifffile.TiffFile,
    shape: tuple[int, int],
    announced: tuple[Axis, ...],
    listed: Pages,
    selection: Selection,
) -> Layout:
    """What tifffile finds, or what the first page announces where that is more."""
    found = _series(tiff)
    has_positions = bool(found) and found[0].kind in ("ome", "mmstack")
    if has_positions:
        found = [_position(path, found, selection)]
    axes = _axes_of(found[0]) if found else ()
    if math.prod(axis.size for axis in announced) > math.prod(axis.size for axis in axes):
        return Layout(
            frame_shape=shape, axes=announced, length_is_stated=True, list_ends=listed.ends
        )
    if len(found) > 1:
        _require_one_after_another(path, tiff, found, listed)
        return Layout(
            frame_shape=shape,
            axes=_longer([Axis(name=TIME, size=listed.n_pages)]),
            list_ends=listed.ends,
        )
    if not found:
        return Layout(
            frame_shape=shape, axes=(), length_is_stated=bool(announced), list_ends=listed.ends
        )
    (series,) = found
    rows, columns = series.shape[series.axes.index("Y")], series.shape[series.axes.index("X")]
    return Layout(
        frame_shape=(rows, columns),
        axes=axes,
        series=series if series.dataoffset is None else None,
        block_offset=series.dataoffset,
        of_position=has_positions,
        length_is_stated=bool(announced),
        list_ends=listed.ends,
    )


def _series(tiff: tifffile.TiffFile) -> list[tifffile.TiffPageSeries]:
    """The series that tifffile finds; none where the file is damaged."""
    try:
        return list(tiff.series)
    except (tifffile.TiffFileError, IndexError):
        return []


def _position(
    path: Path, found: Sequence[tifffile.TiffPageSeries], selection: Selection
) -> tifffile.TiffPageSeries:
    """The series of the position that is chosen."""
    among = Axis(name=POSITION, size=len(found), labels=tuple(each.name for each in found))
    at = choose(path, [among], Selection(position=selection.position)).at[POSITION]
    return found[at]


def _axes_of(series: tifffile.TiffPageSeries) -> tuple[Axis, ...]:
    axes = []
    for letter, size in zip(series.axes, series.shape, strict=True):
        if letter not in "YX":
            axes.append(Axis(name=NAMES.get(letter, letter), size=size))
    return _longer(axes)


def _longer(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    return tuple(axis for axis in axes if axis.size > 1)


def _require_one_after_another(
    path: Path,
    tiff: tifffile.TiffFile,
    found: Sequence[tifffile.TiffPageSeries],
    listed: Pages,
) -> None:
    """Several series are a movie where a script wrote the file by
    `for frame in movie: writer.write(frame)`, which makes each a series."""
    alike = len({(series.kind, series.shape[-2:], series.dtype) for series in found}) == 1
    n_images = sum(math.prod(series.shape[:-2]) for series in found)
    has_all_pages = n_images == listed.n_pages or not listed.ends
    if tiff.is_shaped and alike and has_all_pages:
        return
    kinds = sorted({f"{' x '.join(map(str, each.shape))} {each.dtype}" for each in found})
    raise ValueError(
        f"{path} holds {len(found)} series of images ({', '.join(kinds[:3])}); save the movie "
        "alone in a file"
    )


def whole_images(
    path: Path, tiff: tifffile.TiffFile, layout: Layout, *, allow_truncated: bool
) -> int:
    """Number of images from the first one on, up to the first that is missing or cut short.

    Args:
        allow_truncated: accept them where more were announced, instead of refusing the file.

    Raises:
        ValueError: if it is refused, or there are none.
    """
    if layout.block_offset is not None:
        n_bytes = math.prod(layout.frame_shape) * np.dtype(tiff.pages.first.dtype).itemsize
        n_stored = (tiff.filehandle.size - layout.block_offset) // n_bytes
        n_whole = min(layout.n_images, n_stored)
    elif layout.pages is not None:
        n_whole = min(layout.n_images, _whole_of_list(tiff, layout.pages))
    else:
        n_whole = _whole_pages(path, tiff, layout)
    if n_whole == 0:
        raise cut_short(path, 0, None)
    length_is_known = layout.length_is_stated or layout.list_ends
    if not allow_truncated and (n_whole < layout.n_images or not length_is_known):
        raise cut_short(path, n_whole, layout.n_images if length_is_known else None)
    return n_whole


def _whole_of_list(tiff: tifffile.TiffFile, pages: Pages) -> int:
    """Number of the pages up to the first whose pixels are not all within the file."""
    assert pages.offsets is not None
    assert pages.sizes is not None
    least = _least_bytes(tiff.pages.first)
    whole = (pages.offsets > 0) & (pages.sizes >= max(least, 1))
    whole &= pages.offsets <= tiff.filehandle.size - pages.sizes
    return int(np.argmin(whole)) if not whole.all() else len(whole)


def _least_bytes(page: tifffile.TiffPage) -> int:
    """Fewest bytes in which the pixels of a page can be stored."""
    needed: int = math.prod(page.shape) * page.bitspersample // 8
    if page.compression == tifffile.COMPRESSION.NONE:
        return needed
    return 0 if needed <= SMALL_FRAME else needed // MOST_COMPRESSION


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


def _announced_axes(tiff: tifffile.TiffFile) -> tuple[Axis, ...]:
    """The axes that the writing program announced in the first page; empty where there are none."""
    if tiff.is_micromanager:  # announces what was planned, not what was taken
        return ()
    if tiff.imagej_metadata is not None:
        names = {TIME: "frames", Z: "slices", CHANNEL: "channels"}
        stated = tiff.imagej_metadata
        sizes = {axis: int(stated.get(name, 1)) for axis, name in names.items()}
        axes = _longer([Axis(name=name, size=size) for name, size in sizes.items()])
        return axes or _longer([Axis(name=TIME, size=int(stated.get("images", 1)))])
    announced = [size for size in _announced_shape(tiff)[:-2] if size > 1]
    if len(announced) == 1:
        return (Axis(name=TIME, size=announced[0]),)
    return tuple(Axis(name=f"axis {i}", size=size) for i, size in enumerate(announced))


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
    return _least_bytes(page.keyframe) <= sum(page.databytecounts) and all(
        offset > 0 and count > 0 and offset + count <= size for offset, count in segments
    )


def _ome_files(tiff: tifffile.TiffFile) -> list[str]:
    """Names of the files that an OME series is spread over."""
    return sorted(set(re.findall(r'FileName="([^"]+)"', tiff.ome_metadata or "")))
