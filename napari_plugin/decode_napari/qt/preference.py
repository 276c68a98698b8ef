"""Which plugin napari opens movies and tables with: asked for no more once the widget has been
open."""

from __future__ import annotations

from fnmatch import fnmatch

from napari.settings import get_settings

from decode.io.movies import movie_suffixes
from decode.io.tables import table_formats
from decode_napari.qt.memory import Memory
from decode_napari.readers import PLUGIN

__all__ = ["prefer_own_reader"]

DONE = "reader/preference"


def prefer_own_reader(memory: Memory) -> None:
    """Make this plugin napari's reader of movies and tables, where the user has no preference.

    Only once: who takes it out of napari's preferences does not find it there again.
    """
    if memory.text(DONE):
        return
    plugins = get_settings().plugins
    stated = dict(plugins.extension2reader)
    free = {
        pattern: PLUGIN
        for suffix, pattern in _patterns().items()
        if not any(fnmatch(f"/folder/file{suffix}", theirs) for theirs in stated)
    }
    plugins.extension2reader = stated | free
    memory.set_text(DONE, "stated")


def _patterns() -> dict[str, str]:
    """Of folders, movies and tables: as sets of letters, which match both cases, and which napari
    takes for less specific than any `*.tif` that a user states."""
    first = (each.suffixes[0] for each in table_formats() if each.suffixes)

    def letters(suffix: str) -> str:
        return "".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in suffix)

    suffixes = dict.fromkeys((*movie_suffixes(), *first))
    return {"/": "*/"} | {suffix: f"*{letters(suffix)}" for suffix in suffixes}
