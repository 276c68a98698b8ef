"""Andor Solis's `.sif`."""

from __future__ import annotations

from pathlib import Path
from typing import IO, final

import numpy as np

from decode.errors import reading
from decode.io.movies.block import BlockPart
from decode.io.movies.facts import StatedFacts
from decode.io.movies.format import MovieFormat, Part
from decode.io.movies.library import needed
from decode.io.movies.selection import TIME, Axis, Selection, choose
from decode.io.movies.units import positive

__all__ = ["FORMAT"]

MARK = b"Andor Technology Multi-Channel File\n"


def _is_sif(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MARK)) == MARK


@final
class _Header:
    """A file that says where it ends: sif_parser waits for ever for the end of a word."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        content = self._file.read(size)
        if len(content) < size:
            raise EOFError("its header is cut short")
        return content

    def readline(self) -> bytes:
        line = self._file.readline()
        if not line:
            raise EOFError("its header is cut short")
        return line

    def seek(self, offset: int) -> int:
        return self._file.seek(offset)

    def tell(self) -> int:
        return self._file.tell()


def _open_sif(path: Path, selection: Selection, *, allow_truncated: bool) -> Part:
    # np_open reads or maps all pixels, and fails where some are missing
    library = needed("sif_parser._sif_open", path)
    with reading(path, "an Andor .sif movie"):
        with path.open("rb") as file:
            _, (width, height), n_frames, stated = library._open(_Header(file))
        if stated["NumberOfSubImages"] != 1:
            raise ValueError(
                f"{path} holds {stated['NumberOfSubImages']} regions of the camera; save one as a "
                "movie"
            )
        seconds = positive(stated["ExposureTime"])
        choose(path, [Axis(name=TIME, size=n_frames)], selection)
    return BlockPart.of(
        path,
        frame_shape=(height, width),
        dtype=np.dtype("<f4"),
        n_frames=n_frames,
        first_byte=stated["offset"],
        facts=StatedFacts(
            exposure_ms=None if seconds is None else 1e3 * seconds,
            camera_name=stated["DetectorType"] or None,
        ),
        allow_truncated=allow_truncated,
    )


FORMAT = MovieFormat(
    name="sif",
    title="Andor Solis .sif",
    content="its first line",
    suffixes=(".sif",),
    recognizes=_is_sif,
    read=_open_sif,
)
