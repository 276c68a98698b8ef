"""What a microscopist has at hand, step after step: each part is put there by one step and read by
those behind it.

A part is there once it is valid: what is still being checked, or was refused, is not there, and
the session says why. So no step can work on another movie, model or PSF than the window shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, final

from psygnal import Signal

from decode_napari.molecules import Filter

if TYPE_CHECKING:
    from decode.acquisition import Acquisition
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
    unserved: str = ""
    """why no shipped model takes it, and what to do; "" where one does"""


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
    model: ChosenModel | None = None
    """the network that found them"""
    psf: ChosenPSF | None = None
    """that the network was conditioned on"""
    complete: bool = True
    """False while the movie is being localized, and where that was stopped"""
    run: object = field(default_factory=object)
    """the same for all tables of one run, each longer than the one before"""


ABSENT = {
    "movie": "open a movie first",
    "psf": "calibrate a PSF first",
    "model": "choose a model first",
    "found": "localize a movie or open a table first",
}
"""what to do for a part that nobody has chosen"""


@final
class Session:
    """The parts; `changed` says by name which of them was put, or went.

    Molecules of a run are unsaved until `saved` is called.  They leave the session by `keep` only,
    which may refuse.
    """

    changed = Signal(str)

    def __init__(self, keep: Callable[[Found], None] | None = None) -> None:
        """
        Args:
            keep: puts unsaved molecules where they are not lost; what it raises keeps them in the
                session.
        """
        self.keep = keep
        self.movie: OpenedMovie | None = None
        self.psf: ChosenPSF | None = None
        self.model: ChosenModel | None = None
        self.found: Found | None = None
        self.is_saved = True
        self._why = dict(ABSENT)

    def why_not(self, part: str) -> str:
        """Why a part is not there, in a sentence; "" where it is."""
        return self._why[part] if getattr(self, part) is None else ""

    def put(
        self,
        *,
        movie: OpenedMovie | None = None,
        psf: ChosenPSF | None = None,
        model: ChosenModel | None = None,
        found: Found | None = None,
    ) -> None:
        """Put parts in their places, and notify listeners.

        Raises:
            OSError: if molecules that are not saved would go, and cannot be kept; then nothing is
                put.
        """
        if found is not None:
            self._keep_unsaved(but_of=found.run)
            self.is_saved = found.acquisition is None
        for name, part in {"movie": movie, "psf": psf, "model": model, "found": found}.items():
            if part is not None:
                setattr(self, name, part)
                self.changed.emit(name)

    def withdraw(self, part: str, why: str = "") -> None:
        """Take a part away until there is another one.

        Args:
            part: its name.
            why: it is not there, in a sentence; by default, that nobody has chosen it.

        Raises:
            OSError: as `put`.
        """
        if part == "found":
            self._keep_unsaved()
            self.is_saved = True
        setattr(self, part, None)
        self._why[part] = why or ABSENT[part]
        self.changed.emit(part)

    def saved(self) -> None:
        """The molecules are on disk, all of them."""
        self.is_saved = True

    def _keep_unsaved(self, *, but_of: object = None) -> None:
        found = self.found
        if found is None or self.is_saved or found.run is but_of or not len(found.filter.emitters):
            return
        if self.keep is not None:
            self.keep(found)
