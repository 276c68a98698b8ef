"""Keeps unsaved molecules in the recovery folder, during a run and when they are replaced."""

from __future__ import annotations

import time
from pathlib import Path
from typing import final

from napari.utils.notifications import show_info
from qtpy.QtCore import QObject, QTimer, Signal

from decode.progress import Progress, Steps
from decode_napari.qt.runner import Runner, complain
from decode_napari.recovery import discard, place_for, write
from decode_napari.session import Found, Session

__all__ = ["Keeper"]

SHORTEST_S = 10.0
"""shortest time between two tables of a run"""
AFTER_FAILURE_S = 60.0
LARGEST_SHARE = 0.05
"""largest share of the time that is spent on writing tables"""


@final
class Keeper(QObject):
    """One file a run, rewritten as the table grows, and deleted once the user has saved the
    molecules."""

    set_aside = Signal(object)
    """unsaved molecules that left the session"""

    def __init__(self, session: Session, folder: Path) -> None:
        super().__init__()
        self.session, self.folder = session, folder
        session.keep = self._set_aside
        self._writer = Runner(self)
        self._path: Path | None = None
        self._run: object = None
        self._written: Found | None = None
        """the table that the file holds"""
        self._due = 0.0
        """when the next table may be written, of a clock that only rises"""

    def keep_soon(self, *, growing: bool) -> None:
        """Write the session's molecules in a thread; a growing table is not written each time."""
        found = self.session.found
        if found is None or not self._is_due(found):
            return
        if growing and (self._writer.busy or time.monotonic() < self._due):
            return
        path, began = self._place(found), time.monotonic()

        def verb() -> Steps[None]:
            yield Progress(None, "keeping what was found")
            write(found.filter.emitters, path)

        def written(_: object) -> None:
            self._written = found
            took = time.monotonic() - began
            self._due = time.monotonic() + max(SHORTEST_S, took / LARGEST_SHARE)

        def failed(error: Exception) -> None:
            self._due = time.monotonic() + AFTER_FAILURE_S
            complain(error)

        def ended() -> None:
            if self.session.is_saved:
                self.discard()

        self._writer.start(
            "keeping what was found", verb, returned=written, failed=failed, ended=ended
        )

    def keep_now(self) -> None:
        """Write the session's molecules, unless they are saved or already in the file.

        Raises:
            OSError: if that fails.
        """
        found = self.session.found
        if found is None or not self._is_due(found):
            return
        self._writer.wait(5.0)
        if self._written is not found:
            write(found.filter.emitters, self._place(found))
            self._written = found

    def discard(self) -> None:
        """Delete the file, as the molecules were saved elsewhere."""
        self._writer.stop()
        if self._path is not None and not self._writer.busy:
            discard(self._path)
            self._path = self._run = None

    def _set_aside(self, found: Found) -> None:
        """Keep the file of molecules that leave the session unsaved, and tell the user its path."""
        self.keep_now()
        self._path = self._run = None
        # napari cuts longer sentences; the step Inspect says where
        show_info(f"{len(found.filter.emitters):,} unsaved molecules were kept")
        QTimer.singleShot(0, lambda: self.set_aside.emit(found))

    def _is_due(self, found: Found) -> bool:
        return (
            not self.session.is_saved
            and self._written is not found
            and len(found.filter.emitters) > 0
        )

    def _place(self, found: Found) -> Path:
        if self._path is None or self._run is not found.run:
            self._path, self._run = place_for(found.filter.emitters, self.folder), found.run
        return self._path
