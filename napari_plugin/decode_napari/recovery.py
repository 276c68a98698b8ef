"""Molecules that were found and not saved when the window was closed: they are kept as tables in a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from decode.emitters import EmitterSet

__all__ = ["keep", "kept"]


def keep(emitters: EmitterSet, folder: Path) -> Path:
    """Write a table into the folder, under the name of its movie; an older one of that name stays, numbered.

    Raises:
        OSError: if it cannot be written.
    """
    from decode.io.tables import write_table

    folder.mkdir(parents=True, exist_ok=True)
    stem = Path(str(emitters.metadata.get("movie", "molecules"))).stem
    names = [f"{stem}.hdf5", *(f"{stem}_{i}.hdf5" for i in range(2, 1000))]
    path = next(folder / name for name in names if not (folder / name).exists())
    facts = {"pixel_size_nm": 100.0, **emitters.metadata}  # Picasso's tables are in pixels of some size
    write_table(replace(emitters, metadata=facts), path)
    return path


def kept(folder: Path) -> list[Path]:
    """The tables in the folder, the latest first."""
    return sorted(folder.glob("*.hdf5"), key=lambda path: path.stat().st_mtime, reverse=True)
