"""What a microscopist has at hand, step after step: each part is put there by one step and read by those behind it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from psygnal import Signal

from decode_napari.molecules import Filter

if TYPE_CHECKING:
    from decode.batch import Acquisition
    from decode.io.cameras import CameraFile
    from decode.io.psfs import PSFFile
    from decode.network.localizer import Localizer

__all__ = ["ChosenModel", "ChosenPSF", "Found", "OpenedMovie", "Session"]


@final
@dataclass(frozen=True, kw_only=True)
class OpenedMovie:
    """A movie that can be read, and what was stated about it."""

    path: Path
    shape: tuple[int, int, int]
    pixel_size_nm: float
    camera: CameraFile | None
    """None where it was not stated"""
    camera_name: str | None
    """file or preset that states it"""
    stated_pixel_size_nm: float | None = None
    """in place of what the files state"""
    em_gain: float | None = None
    allow_truncated: bool = False
    """of a file that was cut short, its whole frames are the movie"""


@final
@dataclass(frozen=True, kw_only=True)
class ChosenPSF:
    """A calibrated PSF on disk."""

    path: Path
    file: PSFFile


@final
@dataclass(frozen=True, kw_only=True)
class ChosenModel:
    """A trained network."""

    name: str
    """of a shipped model, or its file"""
    localizer: Localizer


@final
@dataclass(frozen=True, kw_only=True)
class Found:
    """Molecules, and where they are from."""

    filter: Filter
    """the whole table, and which of it passes"""
    source: str
    """movie or table"""
    acquisition: Acquisition | None = None
    """None for a table that was read from a file"""
    complete: bool = True
    """False while the movie is being localized, and where that was stopped"""


@final
class Session:
    """The parts; `changed` says by name which of them was put."""

    changed = Signal(str)

    def __init__(self) -> None:
        self.movie: OpenedMovie | None = None
        self.psf: ChosenPSF | None = None
        self.model: ChosenModel | None = None
        self.found: Found | None = None

    def put(
        self,
        *,
        movie: OpenedMovie | None = None,
        psf: ChosenPSF | None = None,
        model: ChosenModel | None = None,
        found: Found | None = None,
    ) -> None:
        """Put parts in their places, and tell those who listen."""
        for name, part in {"movie": movie, "psf": psf, "model": model, "found": found}.items():
            if part is not None:
                setattr(self, name, part)
                self.changed.emit(name)
