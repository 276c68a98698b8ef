"""Blocks: the molecules that were found so far in a growing movie, on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import final

from decode.atomic import atomic, sweep
from decode.emitters import EmitterSet
from decode.io.movies import Movie
from decode.io.tables import read_table, write_table

__all__ = ["Blocks", "beginning_of"]

MANIFEST = "manifest.json"


def beginning_of(movie: Movie) -> str:
    """A text by which a movie is known again when it has grown: its first frame."""
    first = movie.read(0, 1)
    return hashlib.sha256(first.tobytes() + repr(first.shape).encode()).hexdigest()


@final
class Blocks:
    """Molecules of a movie in a folder of their own, block after block, without a gap.

    A block is a table of its frames; it appears when it is whole.  Whatever stops the work, it goes
    on after the last one.

    Args:
        folder: where they are, or will be.
        key: of all that decides about the molecules; blocks of another one are deleted.

    Raises:
        OSError: if the folder cannot be written.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self._stop = 0
        with suppress(OSError, ValueError, TypeError):
            if json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["key"] == key:
                sweep(folder)
                self._stop = max((span.stop for span in self.spans), default=0)
                return
        if folder.exists():
            (folder / MANIFEST).unlink()  # fails for a folder that is none of blocks
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        with atomic(folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps({"key": key}), encoding="utf-8")

    @property
    def spans(self) -> list[range]:
        """Frames of each block, which follow each other."""
        named = sorted(self.folder.glob("*.parquet"))
        found = [range(*map(int, path.stem.split("-"))) for path in named]
        spans: list[range] = []
        for span in found:
            if span.start == (spans[-1].stop if spans else 0):
                spans.append(span)
        return spans

    @property
    def stop(self) -> int:
        """Number of frames that are done."""
        return self._stop

    def append(self, span: range, molecules: EmitterSet) -> None:
        """Store the molecules of the next frames."""
        write_table(molecules, self._path(span))
        self._stop = span.stop

    def __iter__(self) -> Iterator[tuple[range, EmitterSet]]:
        """Each block, in the order of frames."""
        for span in self.spans:
            yield span, self.read(span)

    def read(self, span: range) -> EmitterSet:
        """The molecules of a block, in single precision as they were found."""
        found = read_table(self._path(span))
        columns = found.columns().items()
        single = {name: values.float() for name, values in columns if values.is_floating_point()}
        return replace(found, **single)  # type: ignore[arg-type]

    def remove(self) -> None:
        """Delete them."""
        shutil.rmtree(self.folder)

    def _path(self, span: range) -> Path:
        return self.folder / f"{span.start:09d}-{span.stop:09d}.parquet"
