"""The interface that panels use of their window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from decode.progress import Steps
from decode_napari.qt.keeper import Keeper
from decode_napari.qt.memory import Memory
from decode_napari.qt.runner import Runner
from decode_napari.qt.view import MoleculeView
from decode_napari.steps.step import Step

__all__ = ["Window"]


class Window(Protocol):
    """The steps of the job for one viewer; `DecodeDock` is one."""

    viewer: Any
    """napari's"""
    memory: Memory
    keeper: Keeper
    """keeper of unsaved molecules"""
    runner: Runner
    """runner of the verbs that the user waits for"""
    previewer: Runner
    """runner of previews, which replace one another"""
    loader: Runner
    """runner that loads models"""
    view: MoleculeView

    @property
    def movie_in_use(self) -> bool:
        """Whether a verb works on the movie, which locks movie and camera."""

    @property
    def has_unsaved(self) -> bool:
        """Whether there are unsaved molecules."""

    def start(self, title: str, verb: Callable[[], Steps[Any]], **hooks: Any) -> None:
        """Run a verb, unless one is running."""

    def follow(self, signal: Any, slot: Callable[..., None]) -> None:
        """Connect to a signal of the viewer or the session, until the window is closed."""

    def step(self, kind: type[Step]) -> Step: ...

    def panel(self, kind: type[Step]) -> Any: ...

    def go_to(self, kind: type[Step]) -> None: ...

    def localize(self) -> None:
        """Go to the step that localizes, and run it on all frames."""

    def saved(self) -> None:
        """The table at hand is on disk."""

    def start_afresh(self) -> None:
        """Remove the results of the previous movie from the window.

        Raises:
            OSError: if unsaved molecules cannot be kept; then they stay.
        """

    def view_in_3d(self) -> object:
        """The molecules that pass, of all frames, in a view of their own."""

    def redraw(self) -> None:
        """Follow the filter in every view."""

    def refresh_steps(self) -> None:
        """Enable the steps whose inputs exist."""
