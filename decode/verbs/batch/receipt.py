"""Receipt: what was made of a movie, kept beside its tables, by which a later job knows it."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, final

from decode.atomic import atomic
from decode.errors import in_plain_words

__all__ = ["Receipt", "Row", "read_receipt", "write_receipt"]


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """A movie in the summary; None where a figure is not known."""

    movie: str
    """its path within the folder that was searched"""
    error: str | None = None
    """why it was not localized, in a sentence"""
    molecules: int | None = None
    frames: int | None = None
    density_per_um2: float | None = None
    """molecules a frame, in a square micrometre"""
    photons: float | None = None
    """median, as the figures below"""
    background: float | None = None
    """photons a pixel"""
    sigma_nm: float | None = None
    """stated lateral precision"""
    sigma_z_nm: float | None = None
    frc_nm: float | None = None
    """resolution by Fourier ring correlation, where there is a report"""
    drift_nm: float | None = None
    """lateral drift from end to end, where it was subtracted"""
    checks_passed: int = 0
    checks_failed: tuple[str, ...] = ()
    """their names"""
    remarks: tuple[str, ...] = ()
    """warnings and failed checks, a sentence each"""
    seconds: float | None = None
    folder: str = ""
    """of its files, within that of the output"""
    log: str = ""
    """name of its log"""
    files: tuple[str, ...] = ()
    """names of what was written"""


@final
@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The result for a movie, and what it was made from."""

    fingerprint: str
    """of movie, model, PSF, camera, options and version of decode"""
    row: Row
    sizes: tuple[tuple[str, int], ...] = ()
    """of the files that were written, bytes by name"""

    def stands(self, fingerprint: str, folder: Path) -> bool:
        """Whether it is for the same inputs, and all that was written is still there."""
        if self.fingerprint != fingerprint or self.row.error is not None:
            return False
        with suppress(OSError):
            return all((folder / name).stat().st_size == size for name, size in self.sizes)
        return False

    def failed(self, error: Exception | str) -> Receipt:
        """The receipt of a movie that could not be localized."""
        why = error if isinstance(error, str) else in_plain_words(error)
        return replace(self, row=replace(self.row, error=why))


def write_receipt(receipt: Receipt, path: Path) -> None:
    """Write a receipt; the sizes are those of its files now.

    Raises:
        OSError: if it cannot be written.
    """
    names = receipt.row.files
    sizes = tuple((name, (path.parent / name).stat().st_size) for name in names)
    with atomic(path) as temporary:
        text = json.dumps(asdict(replace(receipt, sizes=sizes)), indent=1)
        temporary.write_text(text, encoding="utf-8")


def read_receipt(path: Path) -> Receipt | None:
    """The receipt in a file; None where there is none that can be read."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        content = json.loads(path.read_text(encoding="utf-8"))
        known = {f.name for f in fields(Row)}
        row: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in content["row"].items()
            if key in known
        }
        sizes = tuple((str(name), int(size)) for name, size in content["sizes"])
        return Receipt(fingerprint=content["fingerprint"], row=Row(**row), sizes=sizes)
    return None
