"""Binary files without any description: their layout is stated by the user, never guessed."""

from __future__ import annotations

from pathlib import Path

from decode.io.movies.block import BlockPart
from decode.io.movies.format import Part
from decode.io.movies.selection import TIME, Axis, RawLayout, Selection, choose

__all__ = ["open_raw"]


def open_raw(path: Path, layout: RawLayout, selection: Selection, *, allow_truncated: bool) -> Part:
    """Frames one after the other, as many as the file holds; see `OpenPart`."""
    if not path.is_file():
        raise ValueError(f"{path} is no file, whose layout --raw-shape could state")
    part = BlockPart.of(
        path,
        frame_shape=layout.frame_shape,
        dtype=layout.counts,
        n_frames=None,
        first_byte=layout.first_byte,
        allow_truncated=allow_truncated,
    )
    choose(path, [Axis(name=TIME, size=part.n_frames)], selection)
    return part
