"""The state of the work: each part is set by one step and read by the later ones.

A part is present once it is valid; of one that is being checked, or was refused, the session states
why it is absent. No step can therefore work on another movie, model or PSF than the window shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
    """A readable movie, and the user's statements about it."""

    path: Path
    shape: tuple[int, int, int]
    pixel_size_nm: float
    camera: CameraFile | None
    """None where it was not stated"""
    camera_name: str | None
    """file or preset of the camera"""
    stated_pixel_size_nm: float | None = None
    """replaces the pixel size of the files"""
    em_gain: float | None = None
    allow_truncated: bool = False
    """whether the whole frames of a truncated file are the movie"""


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
    """name of a shipped model, or its file"""
    localizer: Localizer


@final
@dataclass(frozen=True, kw_only=True)
class Found:
    """Molecules and their source."""

    filter: Filter
    """the whole table, and the molecules that pass"""
    source: str
    """movie or table"""
    acquisition: Acquisition | None = None
    """None for a table that was read from a file"""
    model: ChosenModel | None = None
    """the network that found them"""
    psf: ChosenPSF | None = None
    """PSF that the network was conditioned on"""
    complete: bool = True
    """False while the movie is being localized, and where that was stopped"""
    applied: tuple[str, ...] = ()
    """commands that the window applied to the molecules, in order: drift, link"""
    before: Found | None = None
    """molecules to which the last of them was applied"""
    run: object = field(default_factory=object)
    """identity of the run, the same for all its growing tables"""

    @property
    def identity(self) -> tuple[object, tuple[str, ...]]:
        """Which molecules of which run these are."""
        return self.run, self.applied

    def after(self, verb: str, filter: Filter) -> Found:
        """The molecules once a command was applied to these."""
        return replace(self, filter=filter, applied=(*self.applied, verb), before=self)


ABSENT = {
    "movie": "open a movie first",
    "psf": "calibrate a PSF first",
    "model": "choose a model first",
    "found": "localize a movie or open a table first",
}
"""what to do about a part that was not chosen"""


@final
class Session:
    """The parts; `changed` names those that were set or removed.

    Molecules of a run are unsaved until `saved` is called.  They leave the session by `keep` only,
    which may refuse.
    """

    changed = Signal(str)

    def __init__(self, keep: Callable[[Found], None] | None = None) -> None:
        """
        Args:
            keep: saves molecules before they leave the session; if it raises, they stay.
        """
        self.keep = keep
        self.movie: OpenedMovie | None = None
        self.psf: ChosenPSF | None = None
        self.model: ChosenModel | None = None
        self.found: Found | None = None
        self.is_saved = True
        self._why = dict(ABSENT)

    def why_not(self, part: str) -> str:
        """Why a part is absent, in a sentence; "" where it is present."""
        return self._why[part] if getattr(self, part) is None else ""

    def why_not_whole(self) -> str:
        """Why the molecules of the whole movie are absent, in a sentence; "" where they are
        present."""
        if self.found is not None and not self.found.complete:
            return "wait until the whole movie is localized"
        return self.why_not("found")

    def put(
        self,
        *,
        movie: OpenedMovie | None = None,
        psf: ChosenPSF | None = None,
        model: ChosenModel | None = None,
        found: Found | None = None,
    ) -> None:
        """Set parts, and notify listeners.

        Raises:
            OSError: if unsaved molecules would be replaced and cannot be kept; then nothing is set.
        """
        if found is not None:
            self._keep_unsaved(but_of=found.run)
            self.is_saved = found.acquisition is None and not found.applied
        for name, part in {"movie": movie, "psf": psf, "model": model, "found": found}.items():
            if part is not None:
                setattr(self, name, part)
                self.changed.emit(name)

    def withdraw(self, part: str, why: str = "") -> None:
        """Remove a part until there is another one.

        Args:
            part: its name.
            why: why it is absent, in a sentence; by default, that it was not chosen.

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
