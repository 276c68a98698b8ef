"""Unsaved molecules, which are kept as tables in a folder from the start of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from decode.emitters import EmitterSet

__all__ = ["discard", "kept", "place_for", "write"]


def place_for(emitters: EmitterSet, folder: Path) -> Path:
    """A new file name in the folder, after the molecules' movie."""
    stem = Path(str(emitters.metadata.get("movie", "molecules"))).stem
    names = [f"{stem}.hdf5", *(f"{stem}_{i}.hdf5" for i in range(2, 10_000))]
    return next(folder / name for name in names if not (folder / name).exists())


def write(emitters: EmitterSet, path: Path) -> None:
    """Write the table, and then delete a shorter one of the same run.

    Raises:
        OSError: if it cannot be written.
    """
    from decode.io.tables import write_table

    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "pixel_size_nm": 100.0,
        **emitters.metadata,
    }  # Picasso's tables are in pixels of some size
    write_table(replace(emitters, metadata=facts), path)


def discard(path: Path) -> None:
    """Delete a table that is saved elsewhere, and its sidecar."""
    for each in (path, path.with_suffix(".yaml")):
        each.unlink(missing_ok=True)


def kept(folder: Path) -> list[Path]:
    """The tables in the folder, the latest first."""
    return sorted(folder.glob("[!.]*.hdf5"), key=lambda path: path.stat().st_mtime, reverse=True)
