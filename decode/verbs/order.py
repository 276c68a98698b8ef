"""Order: what is to be done with a movie, so that any process can do a part of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

from decode.acquisition import Acquisition
from decode.atomic import atomic
from decode.emitters import EmitterSet, Facts
from decode.errors import reading
from decode.io.movies import Movie, RawLayout, Selection, open_movie
from decode.io.psfs import PSFFile, read_psf, write_psf
from decode.network.localizer import Localizer
from decode.verbs.checking import Checking
from decode.verbs.localize_movie import localize_movie, numbered
from decode.verbs.pieces import MANIFEST, Pieces
from decode.verbs.sweep import Chunk

__all__ = ["Order", "Work", "ends", "mark_of", "region_ends", "share", "shared"]

ORDER, MODEL, PSF = "order.json", "model.safetensors", "psf.h5"
"""files by which processes share the work"""


@final
@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be done with a movie, in values that JSON holds; as `localize_file` takes them."""

    movie: tuple[str, ...]
    """its files"""
    frames: tuple[int | None, int | None] | None
    roi: tuple[tuple[int | None, int | None], ...] | None
    allow_truncated: bool
    selection: dict[str, Any]
    """fields of a `Selection`"""
    device: str
    threshold: float
    false_discovery_rate: float
    polish: bool | None
    exact: bool
    samples: int
    seed: int
    model: str
    """as `Facts` state it"""
    files: tuple[str, ...]
    """tables and picture"""
    draws: tuple[tuple[str, ...], ...]
    """tables of each draw"""

    def opened(self) -> Movie:
        """The movie."""
        return open_movie(
            list(self.movie),
            frames=None if self.frames is None else slice(*self.frames),
            allow_truncated=self.allow_truncated,
            selection=self._selection,
        )

    @property
    def _selection(self) -> Selection:
        stated = dict(self.selection)
        raw = stated.pop("raw")
        return Selection(**stated, raw=None if raw is None else RawLayout(**raw))

    def anywhere(self) -> Order:
        """The same for processes in other folders."""

        def absolute(paths: Iterable[str]) -> tuple[str, ...]:
            return tuple(str(Path(path).resolve()) for path in paths)

        draws = tuple(map(absolute, self.draws))
        return replace(self, movie=absolute(self.movie), files=absolute(self.files), draws=draws)

    @property
    def region(self) -> tuple[slice, slice] | None:
        """Rows and columns; None: all."""
        if self.roi is None:
            return None
        rows, columns = self.roi
        return slice(*rows), slice(*columns)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """A movie with all that is needed to find its molecules."""

    order: Order
    movie: Movie
    model: Localizer
    psf: PSFFile | None
    acquisition: Acquisition

    def find(self, pieces: Pieces, run: range) -> Iterator[Chunk]:
        """Find and store the molecules of successive pieces; yields them, chunk after chunk.

        Raises:
            ValueError, OSError: as `localize_movie` and `Pieces.write` do.
        """
        order = self.order
        chunks = localize_movie(
            self.movie,
            self.model,
            self.acquisition,
            psf=self.psf,
            threshold=order.threshold,
            false_discovery_rate=order.false_discovery_rate,
            roi=order.region,
            device=order.device,
            polish=order.polish,
            exact=order.exact,
            samples=order.samples,
            seed=order.seed,
            part=run,
        )
        piece, found = pieces.at(run.start), list[Chunk]()
        for chunk in chunks:
            found.append(chunk)
            if chunk.frames_done == piece.stop:
                draws = zip(*(each.samples for each in found), strict=True)
                molecules = EmitterSet.cat(each.molecules for each in found)
                pieces.write(piece, molecules, [EmitterSet.cat(draw) for draw in draws])
                found.clear()
                if piece.stop < run.stop:
                    piece = pieces.at(piece.stop)
            yield chunk

    def checking(self) -> Checking:
        """Sees the molecules."""
        return Checking(
            self.movie, self.model, self.acquisition, psf=self.psf, roi=self.order.region
        )

    def numbered(self, molecules: EmitterSet) -> EmitterSet:
        """Molecules with the frame numbers of the file."""
        return numbered(self.movie, molecules)

    @property
    def facts(self) -> Facts:
        """Of the movie's tables."""
        return self.acquisition.facts(
            self.movie,
            threshold=self.order.threshold,
            model=self.order.model,
            psf=self.model.psf if self.psf is None else self.psf.psf,
        )


def share(folder: Path, work: Work) -> None:
    """Leave in the folder of the pieces all that other processes need.

    Raises:
        TypeError: if no file can hold the PSF.
        OSError: if it cannot be written.
    """
    work.model.save(folder / MODEL)
    if work.psf is not None:
        write_psf(folder / PSF, work.psf)
    with atomic(folder / ORDER) as temporary:  # the last one
        text = json.dumps(asdict(work.order.anywhere()), indent=1)
        temporary.write_text(text, encoding="utf-8")


def mark_of(folder: Path) -> str:
    """A text that changes when other work is begun in a folder.

    Raises:
        OSError: if there is none.
    """
    return "".join((folder / name).read_text(encoding="utf-8") for name in (MANIFEST, ORDER))


@contextmanager
def shared(folder: Path) -> Iterator[tuple[Pieces, Work]]:
    """The pieces of a folder, and the work that was shared there.

    Raises:
        ValueError: if there is none, or it is of another version.
        OSError: if it or the movie cannot be read.
    """
    path = folder / ORDER
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no work to share; begin it with decode localize --shard or --workers"
        )
    with reading(path, "shared work", "begin it anew"):
        order = Order(**_frozen(json.loads(path.read_text(encoding="utf-8"))))
    pieces = Pieces.of(folder)
    psf = folder / PSF
    with order.opened() as movie:
        yield (
            pieces,
            Work(
                order=order,
                movie=movie,
                model=Localizer.load(folder / MODEL),
                psf=read_psf(psf) if psf.exists() else None,
                acquisition=pieces.acquisition(_not_there),
            ),
        )


def _not_there() -> Acquisition:
    raise ValueError("what was found out of the movie is not there any more; begin anew")


def _frozen(value: Any) -> Any:
    """Lists as tuples."""
    if isinstance(value, dict):
        return {name: _frozen(each) for name, each in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def ends(part: slice) -> tuple[int | None, int | None]:
    """A slice for JSON.

    Raises:
        ValueError: if it has a step.
    """
    if part.step not in (None, 1):
        raise ValueError("frames must follow each other: give first and last without a step")
    return part.start, part.stop


def region_ends(
    roi: Sequence[slice] | None,
) -> tuple[tuple[int | None, int | None], ...] | None:
    """A region for JSON."""
    return None if roi is None else tuple(ends(side) for side in roi)
