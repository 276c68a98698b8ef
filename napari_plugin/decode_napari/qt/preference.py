"""Which plugin napari opens movies and tables with: asked for no more once the widget has been
open."""

from __future__ import annotations

from fnmatch import fnmatch

from napari.settings import get_settings

from decode_napari.qt.memory import Memory
from decode_napari.readers import PLUGIN

__all__ = ["prefer_own_reader"]

# sets of letters: they match both cases, and napari takes them for less specific than any `*.tif`
# that a user states
PATTERNS = {
    ".tif": "*.[tT][iI][fF]",
    ".tiff": "*.[tT][iI][fF][fF]",
    ".csv": "*.[cC][sS][vV]",
    ".hdf5": "*.[hH][dD][fF]5",
    ".h5": "*.[hH]5",
    "/": "*/",  # a folder
}
DONE = "reader/preference"


def prefer_own_reader(memory: Memory) -> None:
    """Tell napari that this plugin reads movies and tables, where the user has no preference.

    Once in a lifetime: who takes it out of napari's preferences is not told again.
    """
    if memory.text(DONE):
        return
    plugins = get_settings().plugins
    stated = dict(plugins.extension2reader)
    free = {
        pattern: PLUGIN
        for suffix, pattern in PATTERNS.items()
        if not any(fnmatch(f"/folder/file{suffix}", theirs) for theirs in stated)
    }
    plugins.extension2reader = stated | free
    memory.set_text(DONE, "stated")
