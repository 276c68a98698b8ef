"""Movies `.dax` of the Zhuang laboratory's software, described by an `.inf` beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from decode.errors import reading
from decode.io.movies.block import BlockPart
from decode.io.movies.format import MovieFormat, Part
from decode.io.movies.selection import TIME, Axis, Selection, choose

__all__ = ["FORMAT"]

LONGEST = 2**20
"""bytes of a description; others are none"""


def _is_dax(path: Path) -> bool:
    return path.is_file() and {"frame dimensions", "number of frames"} <= {*_stated(path)}


def _stated(path: Path) -> Mapping[str, str]:
    """What the description beside a file states; nothing where there is none."""
    beside = path.with_suffix(".inf")
    if not beside.is_file() or beside.stat().st_size > LONGEST:
        return {}
    lines = beside.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line)
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def _open_dax(path: Path, selection: Selection, *, allow_truncated: bool) -> Part:
    stated = _stated(path)
    if not stated:
        raise ValueError(f"{path} is described by {path.with_suffix('.inf')}, which is missing")
    with reading(path.with_suffix(".inf"), "the description of a .dax movie", "copy it again"):
        kind = stated.get("data type", "16 bit integers (binary, big endian)").lower()
        bits = re.match(r"(8|16|32) bit", kind)
        if bits is None:
            raise ValueError(f"its data type is {kind}")
        order = "<" if "little" in kind else ">"
        dtype = np.dtype(f"{order}u{int(bits[1]) // 8}")
        # width x height, in spite of the order of everything else
        width, height = (int(side) for side in stated["frame dimensions"].split("x"))
        n_frames = int(stated["number of frames"])
        choose(path, [Axis(name=TIME, size=n_frames)], selection)
    return BlockPart.of(
        path,
        frame_shape=(height, width),
        dtype=dtype,
        n_frames=n_frames,
        first_byte=0,
        description=path.with_suffix(".inf"),
        allow_truncated=allow_truncated,
    )


FORMAT = MovieFormat(
    name="dax",
    title="Zhuang laboratory's .dax",
    content="an `.inf` of its name beside it",
    suffixes=(".dax",),
    recognizes=_is_dax,
    read=_open_dax,
    sidecar=".inf",
)
