"""Movies that are being written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal, TypeAlias, final

from decode.errors import in_plain_words
from decode.io.formats import recognized
from decode.io.movies import (
    WHOLE,
    Movie,
    Selection,
    in_natural_order,
    movie_formats,
    movie_suffixes,
    open_movie,
)

__all__ = ["POLL_S", "Ended", "Growing", "follower", "movies_in"]

Signature: TypeAlias = tuple[tuple[str, int], ...]

POLL_S = 0.1
"""least time between two looks at a file"""
LOOKING = 0.2
"""most of the time that is spent on looks: files of very many frames take long to open"""


@final
class Ended:
    """Whether an acquisition is over: a file has appeared, or nothing was written for a while.

    Args:
        idle_s: for so long.
        marker: the file; None: none is awaited.
    """

    def __init__(self, *, idle_s: float, marker: Path | None = None) -> None:
        self.idle_s, self._marker = idle_s, marker
        self._last = time.monotonic()

    def written(self) -> None:
        """Something was written just now."""
        self._last = time.monotonic()

    def __call__(self) -> bool:
        if self._marker is not None and self._marker.exists():
            return True
        return time.monotonic() - self._last >= self.idle_s


@final
class Growing:
    """A movie that is being written: a file, or a folder of one.

    What stands last may be half-written: it is held back until the acquisition is over.  Nothing
    that the file announces of its length is believed.

    Args:
        path: its file or folder, which need not be there yet.
        ended: whether its last frame is written; it is told of every change.
        selection: what of the file is the movie.
    """

    def __init__(self, path: Path, ended: Ended, selection: Selection = WHOLE) -> None:
        self.path = path
        self._ended, self._selection = ended, selection
        self._seen: Signature = ()
        self._asked, self._took_s = time.monotonic(), 0.0
        self.problem = ""
        """why it cannot be read as it is now"""

    @property
    def changed(self) -> bool:
        """Whether something was written since the last time this was asked."""
        self._asked = time.monotonic()
        now = _signature(self.path)
        self._took_s = time.monotonic() - self._asked
        changed, self._seen = now != self._seen, now
        if changed:
            self._ended.written()
        return changed

    def look(self) -> Movie | None:
        """The movie as far as its frames are whole, the last of which may not be; None where
        nothing can be read."""
        self.problem = ""
        begun = time.monotonic()
        try:
            return open_movie(self.path, allow_truncated=True, selection=self._selection)
        except (ValueError, OSError) as error:  # of a header that is half-written, too
            self.problem = in_plain_words(error)
            return None
        finally:
            self._took_s += time.monotonic() - begun

    @property
    def rest_s(self) -> float:
        """Time until `changed` is worth asking again."""
        return max(0.0, self._asked + max(POLL_S, self._took_s / LOOKING) - time.monotonic())


def movies_in(path: Path, ended: Callable[[], bool], pause: Callable[[], object]) -> Iterator[Path]:
    """The movies that are written to a path, each once it has begun: the file or the folder itself,
    or one file after the other in a folder.

    Args:
        ended: whether no further one comes.
        pause: waits until something may have been written.
    """
    while not (path.is_dir() or path.is_file() or ended()):
        pause()
    if not path.is_dir() or _is_movie(path):
        yield path
        return
    done: set[Path] = set()
    while True:
        files = _files(path)
        kind = _kind(files, ended=ended())
        if kind == "frames":
            yield path
            return
        new = [file for file in files if file not in done] if kind == "movies" else []
        if new:
            done.add(new[0])
            yield new[0]
        elif ended():
            return
        else:
            pause()


def follower(path: Path) -> Path | None:
    """The file that was begun after a movie in the same folder."""
    files = _files(path.parent) if path.parent.is_dir() else []
    later = files[files.index(path) + 1 :] if path in files else []
    return later[0] if later else None


def _files(folder: Path) -> list[Path]:
    """The movies in a folder, by their names."""
    suffixes = movie_suffixes()
    every = (path for path in folder.iterdir() if not path.name.startswith("."))
    return in_natural_order(p for p in every if p.is_file() and p.suffix.lower() in suffixes)


def _is_movie(folder: Path) -> bool:
    """Whether a format knows a folder by its content."""
    particular = [each for each in movie_formats() if not each.general]
    with suppress(ValueError, OSError):
        return recognized(folder, particular) is not None
    return False


def _kind(files: Sequence[Path], *, ended: bool) -> Literal["frames", "movies", "unknown"]:
    """What the files of a folder are, by the first one; it tells only once a second one is
    begun, or it has two frames."""
    if not files:
        return "unknown"
    with (
        suppress(ValueError, OSError),
        closing(open_movie(files[0], allow_truncated=True)) as first,
    ):
        if len(first) > 1:
            return "movies"
        if len(files) > 1:
            return "frames"
    return "movies" if ended else "unknown"


def _signature(path: Path) -> Signature:
    """Names and sizes of the files of a movie."""
    with suppress(OSError):
        if not path.is_dir():
            return ((path.name, path.stat().st_size),)
        with os.scandir(path) as entries:
            return tuple(sorted((e.name, e.stat().st_size) for e in entries if e.is_file()))
    return ()
