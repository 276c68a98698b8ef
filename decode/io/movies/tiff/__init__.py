"""TIFF files, as ImageJ, OME, Micro-Manager, tifffile and cameras write them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy.typing as npt

from decode.io.movies.format import MovieFormat
from decode.io.movies.selection import Selection
from decode.io.movies.tiff.part import open_tiff
from decode.io.movies.tiff.writing import write_movie

__all__ = ["FORMAT", "SUFFIXES", "open_tiff", "read_image", "write_movie"]

SUFFIXES = (".tif", ".tiff")

MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""first bytes of classic and of BigTIFF files, in both byte orders"""


def _is_tiff(path: Path) -> bool:
    if path.is_dir():
        return False
    with path.open("rb") as file:
        return file.read(4) in MARKS


def read_image(path: Path) -> npt.NDArray[Any]:
    """(y, x) the one image of grey values in a TIFF file, as `open_movie` reads frames.

    Raises:
        FileNotFoundError, ValueError: as `open_movie`, and if it holds more than one.
    """
    with closing(open_tiff(path, Selection(), allow_truncated=False)) as part:
        if part.n_frames != 1:
            raise ValueError(f"{path} must be one grey image, but holds {part.n_frames}")
        return part.read(0, 1)[0]


FORMAT = MovieFormat(
    name="tiff",
    title="TIFF of ImageJ, OME, Micro-Manager and others",
    content="the first bytes of a TIFF file",
    suffixes=SUFFIXES,
    recognizes=_is_tiff,
    read=open_tiff,
    write=write_movie,
    general=True,
)
