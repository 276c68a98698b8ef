"""Subject: a table of molecules, its figures, and the files beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import final

from decode.emitters import EmitterSet, Facts
from decode.io.formats import recognized
from decode.io.psfs import PSFFile, read_psf
from decode.io.tables import is_table, read_table, table_formats
from decode.outputs import drift_files, model_files, psf_files, recipe_files
from decode.postprocess.drift import Drift, read_drift
from decode.quality.summary import Quality

__all__ = ["Subject", "read_subject", "tables_in"]

RICHEST = (".parquet", ".smlm", ".hdf5")
"""suffixes of the formats that keep the facts of the movie, those that keep most first"""
NO_TABLES = (".drift.csv", ".sample-")
"""in names of files that are no table of a movie of its own"""


@final
@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a report is about."""

    path: Path
    """of the table"""
    molecules: EmitterSet
    quality: Quality | None = None
    """None where there are too few molecules"""

    @property
    def facts(self) -> Facts:
        return self.molecules.facts

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def psf(self) -> PSFFile | None:
        """The PSF that a run has left beside the table."""
        path, _ = psf_files(self.path.parent / "psf.h5")
        with suppress(ValueError, OSError):
            return read_psf(path)
        return None

    @cached_property
    def drift(self) -> Drift | None:
        """What was subtracted, where it is known."""
        trace, _ = drift_files(self.path)
        with suppress(ValueError, OSError):
            return read_drift(trace)
        return None

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The table, and what belongs to it in its folder."""
        folder = self.path.parent
        named = {
            self.path,
            *(path for path in folder.glob(f"{self.name}.*") if path.is_file()),
            *psf_files(folder / "psf.h5"),
            folder / "camera.yaml",
            *recipe_files(folder / "train.yaml"),
            *model_files(folder / "model.safetensors")[:2],
        }
        return tuple(sorted(path for path in named if path.is_file()))


def read_subject(path: Path, *, pixel_size_nm: float | None = None) -> Subject:
    """A table, with the facts of its movie from the same table in another format where its own
    keeps none.

    Raises:
        ValueError, OSError: as for `read_table`.
    """
    molecules = read_table(path, pixel_size_nm=pixel_size_nm)
    if molecules.facts.version is None:
        for twin in _twins(path):
            other = read_table(twin)
            if len(other) == len(molecules):
                metadata = {**other.metadata, **molecules.metadata}
                molecules = replace(molecules, metadata=metadata)
                break
    return Subject(path=path, molecules=molecules)


def _twins(path: Path) -> list[Path]:
    named = (path.with_suffix(suffix) for suffix in RICHEST)
    return [twin for twin in named if twin != path and twin.is_file() and is_table(twin)]


def tables_in(paths: Sequence[Path]) -> list[Path]:
    """The tables that are named, and of each folder the tables of its movies.

    A movie whose table a folder holds in several formats is listed once.  A folder without tables
    gives those of the folders in it.

    Raises:
        ValueError: if there is none.
        FileNotFoundError: if a file or folder is missing.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"there is no file or folder {path}")
        found += _in_folder(path) if path.is_dir() else [path]
    if not found:
        raise ValueError("name at least one table, or a folder that holds some")
    return list(dict.fromkeys(found))


def _in_folder(folder: Path) -> list[Path]:
    own = _movies(folder.iterdir())
    within = sorted(path for path in folder.iterdir() if path.is_dir())
    found = own or [table for path in within for table in _movies(path.iterdir())]
    if not found:
        raise ValueError(f"{folder} holds no table of molecules: name one, or another folder")
    return found


def _movies(files: Iterable[Path]) -> list[Path]:
    """The richest table of each name."""

    def poverty(path: Path) -> int:
        suffix = path.suffix.lower()
        return RICHEST.index(suffix) if suffix in RICHEST else len(RICHEST)

    own = [path for path in files if path.is_file() and not any(n in path.name for n in NO_TABLES)]
    tables = sorted(filter(_is_named_as_table, own), key=poverty)
    by_name: dict[str, Path] = {}
    for path in tables:
        by_name.setdefault(path.stem, path)
    return [by_name[name] for name in sorted(by_name)]


def _is_named_as_table(path: Path) -> bool:
    """Whether a format recognizes a file and its suffix: a report as JSON is no table of text."""
    with suppress(ValueError, OSError):
        found = recognized(path, table_formats())
        suffix = path.suffix.lower()
        return found is not None and suffix in (found.suffixes or (suffix,))
    return False
