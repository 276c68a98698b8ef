"""The frames of a TIFF file, read on demand."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import tifffile

from decode.errors import brief, reading
from decode.io.movies.block import BlockPart, cut_short
from decode.io.movies.format import Part
from decode.io.movies.selection import CHANNEL, Axis, Chosen, Selection, choose
from decode.io.movies.tiff.layout import Layout, lay_out, whole_images
from decode.io.movies.tiff.metadata import channel_names, stated_facts

__all__ = ["open_tiff"]

# tifffile logs damage once per tag; what matters is raised once, as an exception
logging.getLogger("tifffile").addHandler(logging.NullHandler())

COLOURS = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.PALETTE)
"""kinds of pixels that do not hold the counts of a camera"""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class _PagesPart(Part):
    """The frames are pages of one file, which are all alike."""

    first: tifffile.TiffPage
    """which knows how they are packed"""
    offsets: npt.NDArray[np.int64]
    """(frame,) first byte of the pixels"""
    sizes: npt.NDArray[np.int64]
    """(frame,) bytes of the pixels"""

    def files(self) -> frozenset[Path]:
        return frozenset({self.path.resolve()})

    def close(self) -> None:
        """Nothing is open."""

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        packed = self.first.compression != tifffile.COMPRESSION.NONE or self.first.fillorder != 1
        packed |= self.first.bitspersample != 8 * self.dtype.itemsize
        pages = zip(self.offsets[start:stop].tolist(), self.sizes[start:stop].tolist(), strict=True)
        dtype = self.dtype.newbyteorder("=") if packed else self.dtype
        chunk = np.empty((stop - start, *self.frame_shape), dtype)
        # each call has a file of its own, as frames are read ahead in another thread
        with self.path.open("rb") as file:
            for number, (frame, (offset, size)) in enumerate(zip(chunk, pages, strict=True), start):
                file.seek(offset)
                if packed:
                    frame[:] = self._unpacked(file.read(size), number)
                elif file.readinto(frame.reshape(-1).view(np.uint8).data) < frame.nbytes:
                    raise OSError(f"{self.path} became shorter while it was read")
        return chunk

    def _unpacked(self, content: bytes, number: int) -> npt.NDArray[Any]:
        with decoding(self.path, f"frame {number}", self.first):
            unpacked = np.asarray(self.first.decode(content, 0)[0])
            return unpacked.reshape(self.frame_shape)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class _SeriesPart(Part):
    """Frames that tifffile finds, in one file or in those of an OME or Micro-Manager series."""

    tiff: tifffile.TiffFile
    series: tifffile.TiffPageSeries | None
    chosen: Chosen

    def files(self) -> frozenset[Path]:
        return frozenset(Path(handle.path).resolve() for handle in self._handles())

    def open(self) -> None:
        for handle in self._handles():
            handle.open()

    def close(self) -> None:
        for handle in self._handles():
            handle.close()

    def _handles(self) -> set[tifffile.FileHandle]:
        """Handles of all files that hold frames of this part."""
        series = self.series
        pages = [] if series is None else [page for page in series.pages if page is not None]
        return {self.tiff.filehandle, *(page.parent.filehandle for page in pages)}

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        if start == stop:
            return np.empty((0, *self.frame_shape), self.dtype)
        with decoding(self.path, f"frames {start}:{stop}", self.tiff.pages.first):
            images = self.chosen.images(start, stop).tolist()
            pages: npt.NDArray[Any] = self.tiff.asarray(series=self.series, key=images)
            return pages.reshape(stop - start, *self.frame_shape)


@contextmanager
def decoding(path: Path, which: str, page: tifffile.TiffPage) -> Iterator[None]:
    """Turn whatever a codec raises into one sentence, with the library that is missing."""
    try:
        yield
    except Exception as error:  # every codec has errors of its own
        packed = page.compression != tifffile.COMPRESSION.NONE
        remedy = "export it again"
        if packed and find_spec("imagecodecs") is None:
            remedy = "pip install 'decode-smlm[io]', which brings more codecs"
        reason = brief(str(error))
        raise ValueError(f"{path}: {which} cannot be decoded ({reason}); {remedy}") from error


def open_tiff(path: Path, selection: Selection, *, allow_truncated: bool) -> Part:
    """Open a TIFF file without reading its pixels; see `OpenPart`."""
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    with reading(path, "a TIFF file", "export the movie as TIFF"):
        tiff = tifffile.TiffFile(path)
    with ExitStack() as opened, reading(path, "a TIFF movie", "export it again"):
        opened.callback(tiff.close)
        dtype = _dtype_of_counts(path, tiff).newbyteorder(tiff.byteorder)
        layout = lay_out(path, tiff, selection)
        chosen = choose(path, _labelled(layout.axes, tiff), _within(selection, layout))
        n_whole = whole_images(path, tiff, layout, allow_truncated=allow_truncated)
        images = chosen.images(0, chosen.n_frames)
        images = images[images < n_whole]
        if not len(images):
            raise cut_short(path, 0, None)
        known: dict[str, Any] = {
            "path": path,
            "n_frames": len(images),
            "frame_shape": layout.frame_shape,
            "dtype": dtype,
            "facts": stated_facts(tiff),
        }
        if layout.block_offset is not None:
            return _block(layout.block_offset, images, known)
        pages = layout.pages
        if pages is not None and pages.offsets is not None and pages.sizes is not None:
            return _PagesPart(
                first=tiff.pages.first,
                offsets=pages.offsets[images],
                sizes=pages.sizes[images],
                **known,
            )
        part = _SeriesPart(tiff=tiff, series=layout.series, chosen=chosen, **known)
        part.open()  # tifffile leaves the other files of a series closed
        opened.pop_all()
        return part


def _labelled(axes: Sequence[Axis], tiff: tifffile.TiffFile) -> list[Axis]:
    """The axes with the names of the channels."""
    names = channel_names(tiff)
    return [
        replace(axis, labels=names) if axis.name == CHANNEL and len(names) == axis.size else axis
        for axis in axes
    ]


def _within(selection: Selection, layout: Layout) -> Selection:
    """What is left to choose."""
    return replace(selection, position=None) if layout.of_position else selection


def _block(first_byte: int, images: npt.NDArray[np.int64], known: Mapping[str, Any]) -> Part:
    """Frames that lie in one piece, or are every so many images of it."""
    n_bytes = math.prod(known["frame_shape"]) * known["dtype"].itemsize
    step = int(images[1] - images[0]) if len(images) > 1 else 1
    return BlockPart(
        first_byte=first_byte + int(images[0]) * n_bytes,
        stride=step * n_bytes,
        **known,
    )


def _dtype_of_counts(path: Path, tiff: tifffile.TiffFile) -> np.dtype[Any]:
    try:
        first = tiff.pages.first
    except (tifffile.TiffFileError, IndexError) as error:
        raise ValueError(f"{path} holds no image") from error
    if first.samplesperpixel > 1 or first.photometric in COLOURS:
        raise ValueError(f"{path} is a colour image; save the camera's grey values as one channel")
    if first.dtype is None or first.dtype.kind not in "uif":
        raise ValueError(f"{path} holds {first.dtype} pixels, not counts")
    return np.dtype(first.dtype)
