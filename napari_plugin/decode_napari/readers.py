"""Readers for napari: tables of molecules as points, movies as lazy images; other files go to their
own reader.

napari asks one plugin only, the one that is preferred for a suffix.  These readers therefore pass
on files with the suffix of a table or a movie that are neither: a picture, a stack of planes,
napari's own points.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from decode_napari.density import Density
from decode_napari.layers import (
    FACTS,
    LayerData,
    field_of,
    image_layer,
    movie_layer,
    points_layer,
    white,
)

if TYPE_CHECKING:
    from decode.emitters import EmitterSet
    from decode.io.movies import Movie

__all__ = ["PLUGIN", "movie_reader_of", "reader_of", "table_layer"]

PLUGIN = "decode-smlm"
MOST_POINTS = 200_000
"""most molecules of a table that is shown as points; larger ones are shown as an image"""


class ForeignTable(UserWarning):
    """A table without molecules."""


warnings.simplefilter("always", ForeignTable)  # also when the same file is opened again

Reader = Callable[[str | Sequence[str]], list[LayerData]]


def reader_of(path: str | Sequence[str]) -> Reader | None:
    """The function that reads tables; for other files with their suffixes (napari's points, PSFs)
    that of another plugin."""
    from decode.io.tables import is_table

    paths = [Path(p) for p in ([path] if isinstance(path, str) else path)]
    if paths and all(map(is_table, paths)):
        return _read_tables
    read_others = _reader_of_others(path)
    if read_others is None and _others(path):
        return None
    return _or_say_why(read_others, paths)


def movie_reader_of(path: str | Sequence[str]) -> Reader | None:
    """The function that opens a movie without reading it; for other TIFF files and folders that of
    another plugin.

    A folder with a file for each frame is a movie.  Pictures, colours, several channels, planes of
    a stated distance and files to be stacked are left to other plugins.
    """
    movie = _movie(path) if isinstance(path, str) else None
    return (
        _reader_of_others(path)
        if movie is None
        else lambda _: [movie_layer(movie, movie.pixel_size_nm)]
    )


def _movie(path: str) -> Movie | None:
    from decode.io.movies import open_movie

    try:
        movie = open_movie(path)
    except (ValueError, OSError):
        return None
    if len(movie) > 1 and movie.z_step_nm is None:
        return movie
    movie.close()
    return None


def _reader_of_others(path: str | Sequence[str]) -> Reader | None:
    """The reader of the only other plugin for such files; None where there are several, of which
    napari asks to choose."""
    from npe2 import read

    able = _others(path)
    if len(able) != 1:
        return None
    paths = [path] if isinstance(path, str) else list(path)
    stack = not isinstance(path, str)
    (other,) = able
    return lambda _: read(paths, stack=stack, plugin_name=other)  # type: ignore[return-value]


def _others(path: str | Sequence[str]) -> set[str]:
    """The other plugins that read such files."""
    from npe2 import PluginManager

    paths = [path] if isinstance(path, str) else list(path)
    return {
        reader.plugin_name for reader in PluginManager.instance().iter_compatible_readers(paths)
    } - {PLUGIN}


def _or_say_why(read_others: Reader | None, paths: Sequence[Path]) -> Reader:
    """Another plugin's reader for tables; if that reads nothing either, a warning says what the
    tables lack.

    Else napari would ask for a plugin to read a file that none can read.
    """

    def read(path: str | Sequence[str]) -> list[LayerData]:
        from decode.io.tables import read_table

        if read_others is not None:
            with suppress(ValueError):
                return read_others(path)
        found: list[LayerData] = []
        for each in paths:
            try:
                found.append(table_layer(read_table(each), each.stem))
            except (ValueError, OSError) as error:
                warnings.warn(str(error), ForeignTable, stacklevel=2)
        return found or [(None,)]  # type: ignore[list-item]  # no layer, and no error

    return read


def _read_tables(path: str | Sequence[str]) -> list[LayerData]:
    from decode.io.tables import read_table

    return [
        table_layer(read_table(p), Path(p).stem)
        for p in ([path] if isinstance(path, str) else path)
    ]


def table_layer(emitters: EmitterSet, name: str) -> LayerData:
    """Molecules as points; very many as an image of their density, which the widget recognizes as a
    table."""
    if len(emitters) <= MOST_POINTS:
        return points_layer(emitters, name=name)
    density = Density(size_nm=field_of(emitters))
    density.put(emitters)
    limits = (0.0, max(white(density.coarsest, 0.98), 1.0))
    return image_layer(
        density.levels,
        pixel_size_nm=density.pixel_nm,
        name=name,
        colormap="inferno",
        contrast_limits=limits,
        metadata={FACTS: dict(emitters.metadata)},
    )
