"""Which movies lie in files, folders and patterns."""

from __future__ import annotations

import glob
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

from decode.io.formats import recognized
from decode.io.movies import in_natural_order, movie_formats, movie_suffixes, open_movie

__all__ = ["Search", "Source"]

WILD = "*?["


@final
@dataclass(frozen=True, kw_only=True)
class Source:
    """A movie that was found."""

    path: Path
    """its file, or its folder"""
    within: Path
    """the folder, within the one that was searched, in which it lies"""

    @property
    def name(self) -> str:
        """Its path within the folder that was searched, with `/`."""
        return (self.within / self.path.name).as_posix()


@final
@dataclass(frozen=True, kw_only=True)
class Search:
    """Where movies are looked for.

    A folder whose files are a frame each is a movie, as is one that a format of movies recognizes;
    else its files are movies whose suffix is one of a format.  Hidden ones are none.
    """

    recursive: bool = False
    leave: Collection[Path] = ()
    """files and folders that are passed over, with all in them"""

    def sources(self, entry: str) -> list[Source]:
        """The movies of a file, a folder or a pattern.

        Raises:
            ValueError: if there is none.
            FileNotFoundError: if there is no such file or folder.
        """
        path = Path(entry)
        if path.is_dir() and self._left(path):
            raise ValueError(
                f"{entry} lies in the folder of the output, which is never searched for movies; "
                "choose another out"
            )
        if path.is_dir():
            found = list(self._of_folder(path, path))
            if not found:
                more = "" if self.recursive else ", or search the folders within it, too"
                raise ValueError(f"{entry} holds no movies; name others{more} (recursive)")
            return found
        if path.exists():
            return [Source(path=path, within=Path())]
        if not any(sign in entry for sign in WILD):
            raise FileNotFoundError(f"there is no file or folder {entry}")
        root = _fixed(path)
        matches = in_natural_order(glob.glob(entry, recursive=True))
        kept = [match for match in matches if not self._passed_over(match)]
        if not kept:
            raise ValueError(f"{entry} fits no movie; correct the pattern")
        files = [path for path in kept if path.is_file()]
        found = [Source(path=file, within=file.parent.relative_to(root)) for file in files]
        for folder in (path for path in kept if path.is_dir()):
            found += self._of_folder(folder, root)
        return list({source.path: source for source in found}.values())

    def _of_folder(self, folder: Path, root: Path) -> Iterator[Source]:
        if _is_movie(folder):
            yield Source(path=folder, within=_parent_within(folder, root))
            return
        inside = in_natural_order(path for path in folder.iterdir() if not self._passed_over(path))
        files = [
            path for path in inside if path.is_file() and path.suffix.lower() in movie_suffixes()
        ]
        if _are_frames(files):
            yield Source(path=folder, within=_parent_within(folder, root))
        else:
            within = folder.relative_to(root)
            yield from (Source(path=file, within=within) for file in files)
        for path in (path for path in inside if path.is_dir()):
            if self.recursive or _is_movie(path):
                yield from self._of_folder(path, root)

    def _passed_over(self, path: Path) -> bool:
        return path.name.startswith(".") or self._left(path)

    def _left(self, path: Path) -> bool:
        whole = path.resolve()
        return any(whole == left or left in whole.parents for left in self.leave)


def _parent_within(folder: Path, root: Path) -> Path:
    return Path() if folder == root else folder.parent.relative_to(root)


def _fixed(pattern: Path) -> Path:
    """The folder before the first wildcard."""
    parts = pattern.parts
    wild = next(i for i, part in enumerate(parts) if any(sign in part for sign in WILD))
    return Path(*parts[:wild])


def _is_movie(folder: Path) -> bool:
    """Whether a format knows the folder by its content."""
    particular = [each for each in movie_formats() if not each.general]
    with suppress(ValueError, OSError):
        return recognized(folder, particular) is not None
    return False


def _are_frames(files: Sequence[Path]) -> bool:
    """Whether the files of a folder are a frame each, by the first, the middle and the last one."""
    if len(files) < 2:
        return False
    lengths: list[int] = []
    for file in {files[0], files[len(files) // 2], files[-1]}:
        with suppress(ValueError, OSError), closing(open_movie(file)) as movie:
            lengths.append(len(movie))
    return bool(lengths) and max(lengths) == 1
