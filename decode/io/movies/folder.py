"""Folders of TIFF files, each of which is a frame."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from decode.io.movies.format import MovieFormat, Part, check_continues
from decode.io.movies.order import in_natural_order
from decode.io.movies.selection import TIME, Axis, Selection, choose
from decode.io.movies.tiff import SUFFIXES, open_tiff

__all__ = ["FORMAT", "is_frame"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class _Folder(Part):
    """Frames in a file each, which is open only while it is read."""

    frames: tuple[Path, ...]

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        chunk = np.empty((stop - start, *self.frame_shape), self.dtype)
        for frame, file in zip(chunk, self.frames[start:stop], strict=True):
            part = open_tiff(file, Selection(), allow_truncated=False)
            with closing(part):
                check_continues(part, self)
                frame[:] = part.read(0, 1)[0]
        return chunk

    def files(self) -> frozenset[Path]:
        return frozenset()

    def close(self) -> None:
        """Nothing is open."""


def is_frame(file: Path) -> bool:
    """Whether a file in a folder is one of its frames, by its name."""
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


@lru_cache(maxsize=2**16)
def _frame(file: Path, size: int, changed_ns: int) -> Part:
    """What a file of that size and time of change holds; a folder that grows is opened often."""
    part = open_tiff(file, Selection(), allow_truncated=False)
    with closing(part):
        return _Folder(
            path=file,
            n_frames=part.n_frames,
            frame_shape=part.frame_shape,
            dtype=part.dtype,
            frames=(file,),
        )


def _open_folder(path: Path, selection: Selection, *, allow_truncated: bool) -> Part:
    """A movie of one file a frame; or the file, or the OME series of files, that is alone in its
    folder."""
    files = in_natural_order(file for file in path.iterdir() if is_frame(file))
    if not files:
        raise ValueError(
            f"{path} is a folder without TIFF files; name the movie, or the folder of its frames"
        )
    first = open_tiff(files[0], selection, allow_truncated=allow_truncated)
    if {file.resolve() for file in files} <= first.files():
        return first
    first.close()
    for file in [*files]:
        try:
            part = _frame(file, file.stat().st_size, file.stat().st_mtime_ns)
        except ValueError:
            if allow_truncated and file == files[-1]:  # it is cut short, or still written
                files.pop()
                continue
            raise
        check_continues(part, first)
        if part.n_frames > 1:
            raise ValueError(
                f"{file} holds {part.n_frames} frames, and a folder is one movie only where "
                "each file is one frame; name the files themselves, and join those that "
                "continue each other"
            )
    choose(path, [Axis(name=TIME, size=len(files))], selection)
    return _Folder(
        path=path,
        n_frames=len(files),
        frames=tuple(files),
        frame_shape=first.frame_shape,
        dtype=first.dtype,
        facts=first.facts,
    )


FORMAT = MovieFormat(
    name="folder",
    title="Folder of TIFF files, each a frame",
    content="TIFF files",
    suffixes=(),
    recognizes=Path.is_dir,
    read=_open_folder,
    general=True,
)
