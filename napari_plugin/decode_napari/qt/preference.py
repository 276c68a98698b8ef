"""napari's preferred reader of movies and tables, which it need not ask for once the widget was
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

    It does so once, so that a user who removes the preference does not find it again.
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
    """Patterns of folders, movies and tables, as sets of letters, which match both cases, and which
    napari ranks below any `*.tif` of a user."""
    first = (each.suffixes[0] for each in table_formats() if each.suffixes)

    def letters(suffix: str) -> str:
        return "".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in suffix)

    suffixes = dict.fromkeys((*movie_suffixes(), *first))
    return {"/": "*/"} | {suffix: f"*{letters(suffix)}" for suffix in suffixes}
