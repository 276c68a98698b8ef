"""Tables of molecules as Points layers.  Movies come in by the Movie step, or by napari's own reader and from there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from decode_napari.layers import LayerData, points_layer

__all__ = ["reader_of"]

Reader = Callable[[str | Sequence[str]], list[LayerData]]


def reader_of(path: str | Sequence[str]) -> Reader | None:
    """The function that reads a table, or None for other files that share its suffix (napari's own points, PSFs)."""
    paths = [Path(p) for p in ([path] if isinstance(path, str) else path)]
    return _read if paths and all(_is_table(p) for p in paths) else None


def _is_table(path: Path) -> bool:
    """A glance at the head of the file: what it holds is checked when it is read."""
    try:
        if path.suffix.lower() == ".csv":
            with path.open("rb") as file:
                return b"frame" in file.readline(4096).lower()
        if path.suffix.lower() in (".hdf5", ".h5"):
            import h5py

            with h5py.File(path, "r") as file:
                return "locs" in file or "data/xyz" in file
    except OSError:
        return False
    return path.suffix.lower() == ".smlm"


def _read(path: str | Sequence[str]) -> list[LayerData]:
    from decode.io.tables import read_table

    paths = [path] if isinstance(path, str) else path
    return [points_layer(read_table(p), name=Path(p).stem) for p in paths]
