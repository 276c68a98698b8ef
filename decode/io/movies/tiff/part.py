"""The frames of a TIFF file, read on demand."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import tifffile

from decode.errors import brief, reading
from decode.io.movies.format import Part
from decode.io.movies.tiff.layout import Layout, lay_out, whole_frames
from decode.io.movies.tiff.metadata import stated_facts

__all__ = ["open_tiff"]

# tifffile logs damage once per tag; what matters is raised once, as an exception
logging.getLogger("tifffile").addHandler(logging.NullHandler())

COLOURS = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.PALETTE)
"""kinds of pixels that do not hold the counts of a camera"""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class _TiffPart(Part):
    """The frames of one file, or of one OME or Micro-Manager series of files."""

    tiff: tifffile.TiffFile
    layout: Layout

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
        series = self.layout.series
        pages = [] if series is None else [page for page in series.pages if page is not None]
        return {self.tiff.filehandle, *(page.parent.filehandle for page in pages)}

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        if self.layout.block_offset is None:
            return self._read_pages(start, stop)
        return self._read_block(self.layout.block_offset, start, stop)

    def _read_pages(self, start: int, stop: int) -> npt.NDArray[Any]:
        try:
            pages: npt.NDArray[Any] = self.tiff.asarray(
                series=self.layout.series, key=slice(start, stop)
            )
            return pages.reshape(stop - start, *self.frame_shape)
        except Exception as error:  # every codec has errors of its own
            packed = self.tiff.pages.first.compression != tifffile.COMPRESSION.NONE
            remedy = "export it again"
            if packed and find_spec("imagecodecs") is None:
                remedy = "pip install 'decode-smlm[io]', which brings more codecs"
            which, reason = f"frames {start}:{stop}", brief(str(error))
            raise ValueError(
                f"{self.path}: {which} cannot be decoded ({reason}); {remedy}"
            ) from error

    def _read_block(self, first_byte: int, start: int, stop: int) -> npt.NDArray[Any]:
        """Frames of a block, read instead of mapped, as pages of a mapped file count as memory in
        use."""
        height, width = self.frame_shape
        n_counts = (stop - start) * height * width
        offset = first_byte + start * height * width * self.dtype.itemsize
        chunk = np.fromfile(self.path, self.dtype, n_counts, offset=offset)
        if chunk.size < n_counts:
            raise OSError(f"{self.path} became shorter while it was read")
        return chunk.reshape(stop - start, height, width)


def open_tiff(path: Path, *, allow_truncated: bool) -> Part:
    """Open a TIFF file without reading its pixels; see `OpenPart`."""
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    with reading(path, "a TIFF file", "export the movie as TIFF"):
        tiff = tifffile.TiffFile(path)
    with ExitStack() as opened, reading(path, "a TIFF movie", "export it again"):
        opened.callback(tiff.close)
        dtype = _dtype_of_counts(path, tiff)
        layout = lay_out(path, tiff)
        facts = stated_facts(tiff)
        part = _TiffPart(
            path=path,
            tiff=tiff,
            layout=layout,
            n_frames=whole_frames(path, tiff, layout, allow_truncated=allow_truncated),
            frame_shape=layout.frame_shape,
            dtype=dtype.newbyteorder(tiff.byteorder),
            pixel_sides_nm=facts.pixel_sides_nm,
            exposure_ms=facts.exposure_ms,
            z_step_nm=facts.z_step_nm,
        )
        part.open()  # tifffile leaves the other files of a series closed
        opened.pop_all()
        return part


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
