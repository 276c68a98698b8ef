"""TIFF files that ImageJ opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from decode.atomic import atomic

__all__ = ["write_movie"]

IMAGEJ_LIMIT = 2**32 - 2**25
"""bytes beyond which the offsets of a classic TIFF overflow (ImageJ cannot read its own dialect as
BigTIFF)"""


def write_movie(
    path: str | Path, frames: npt.ArrayLike, *, pixel_size_nm: float | None = None
) -> None:
    """Write a movie that ImageJ opens: uint16 where every count is whole and fits, else float32.

    Movies beyond 4 GB become BigTIFF.  The file appears under its name only when it is complete.

    Args:
        path: file to write.
        frames: (frame, y, x) counts.
        pixel_size_nm: side of a pixel, stored as the file's resolution; None stores none.

    Raises:
        ValueError: if `frames` is not (frame, y, x).
        OSError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> from decode import open_movie
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_movie(f"{folder}/movie.tif", np.ones((5, 32, 48)), pixel_size_nm=100.0)
        ...     with open_movie(f"{folder}/movie.tif") as movie:
        ...         movie.shape, movie.dtype, movie.pixel_size_nm
        ((5, 32, 48), dtype('uint16'), 100.0)
    """
    counts = np.asarray(frames)
    if counts.ndim != 3 or counts.size == 0:
        raise ValueError(
            f"a movie to write is (frame, y, x) and not empty, this one has shape {counts.shape}"
        )
    whole = (
        counts.min() >= 0
        and counts.max() <= 65535
        and all(np.array_equal(f, np.rint(f)) for f in counts)
    )
    counts = counts.astype(np.uint16 if whole else np.float32, copy=False)
    options: dict[str, Any] = (
        {"imagej": True} if counts.nbytes < IMAGEJ_LIMIT else {"bigtiff": True}
    )
    metadata = {"axes": "TYX"}
    if pixel_size_nm is not None:
        metadata["unit"] = "um"
        options["resolution"] = (1000 / pixel_size_nm, 1000 / pixel_size_nm)
    with atomic(path) as temporary:
        tifffile.imwrite(temporary, counts, photometric="minisblack", metadata=metadata, **options)
