"""Pieces: a movie's molecules on disk, piece by piece, until all are found."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.serialization import safe_globals

from decode.acquisition import Acquisition
from decode.atomic import PREFIX, atomic, sweep
from decode.defects import UsualFrames
from decode.defects.rows import RowNoise
from decode.emitters import EmitterSet
from decode.estimation import ApertureCorrection
from decode.io.tables import read_table, write_table
from decode.optics.camera import Camera
from decode.optics.description import digest_of
from decode.optics.psf import PSF
from decode.verbs.polish import block_frames
from decode.verbs.sweep import chunk_frames

__all__ = ["MANIFEST", "Pieces", "digest", "marks_of", "piece_frames"]

PIECE_PIXELS, PIECE_FRAMES = 2**24, 1024
"""about how many pixels, and at most how many frames, have their molecules in one file: what is
done twice after a power cut"""
MANIFEST, ACQUISITION = "manifest.json", "acquisition.pt"
SCRATCH = "picture"
"""a folder for what can be made again"""
FORMAT = 1
ENDS = 2**16
"""bytes at either end of a file by which it is known again"""
STORED: list[Any] = [Acquisition, ApertureCorrection, Camera, RowNoise, UsualFrames]
"""types that an acquisition is stored in"""


def piece_frames(shape: tuple[int, int], device: torch.device) -> int:
    """Number of frames of that shape (y, x) whose molecules are in one file, as whole blocks."""
    height, width = shape
    block = block_frames(shape, chunk_frames(shape, device))
    return block * max(1, min(PIECE_FRAMES, PIECE_PIXELS // (height * width)) // block)


@final
class Pieces:
    """Molecules of a movie in a folder of their own, piece by piece; made by `begin`.

    The folder holds what decides the molecules (`manifest.json`), what was found out of the movie
    beforehand, and for each piece that is done a table `<first frame>.parquet` with one for each
    draw.  Files appear when they are whole, so that the work goes on from there after whatever
    stopped it, and several processes may work in the folder at once.

    Args:
        folder: where they are.
        n_frames: length of the movie.
        size: frames of a piece.
        n_samples: number of draws that belong to each piece.
    """

    def __init__(self, folder: Path, *, n_frames: int, size: int, n_samples: int = 0) -> None:
        self.folder = folder
        self._n_samples = n_samples
        starts = range(0, n_frames, size)
        self._all = {start: range(start, min(n_frames, start + size)) for start in starts}
        self._counts: dict[int, int] = {}
        """molecules of pieces that are known to be there, by their first frames"""
        self.begun = ""
        """a sentence where the folder was not empty: whether the work goes on"""

    @classmethod
    def begin(
        cls,
        folder: Path,
        deciding: Mapping[str, str],
        *,
        n_frames: int,
        size: int,
        n_samples: int = 0,
        fresh: bool = False,
        together: bool = False,
    ) -> Pieces:
        """Go on with the pieces in a folder, or begin anew.

        Args:
            deciding: all that decides the molecules, by names for the user; pieces of others are
                deleted.
            fresh: begin anew in any case.
            together: other processes may begin the same at this moment.

        Raises:
            ValueError: if the folder holds something else, or, together, pieces of others.
            OSError: if it cannot be written.
        """
        pieces = cls(folder, n_frames=n_frames, size=size, n_samples=n_samples)
        manifest = {
            "format": FORMAT,
            "frames": [n_frames, size],
            "samples": n_samples,
            "deciding": dict(deciding),
        }
        before = _manifest(folder)
        if before is not None and before | manifest == before and not fresh:
            sweep(folder)
            pieces._drop_damaged()
            if pieces.frames_done:
                pieces.begun = f"goes on from frame {pieces.frames_done} of {n_frames}"
            return pieces
        if before is not None:
            changed = f"unlike in the unfinished work, {_changed(before, manifest)} changed"
            if together:
                raise ValueError(
                    f"{folder}: {changed}; delete it, or finish it with what it began with"
                )
            pieces.begun = "begins anew" + ("" if fresh else f": {changed}")
        if before is None and folder.is_dir() and not all(map(_is_own, folder.iterdir())):
            raise ValueError(
                f"{folder} is needed for unfinished work, and holds something else; rename it"
            )
        pieces.remove()
        folder.parent.mkdir(parents=True, exist_ok=True)
        # under its name only when it is whole, as another process may begin the same now
        with TemporaryDirectory(prefix=f"{PREFIX}-", dir=folder.parent) as beside:
            own = Path(beside, folder.name)
            own.mkdir()
            with atomic(own / MANIFEST) as temporary:
                text = json.dumps(manifest | {"id": secrets.token_hex(8)}, indent=1)
                temporary.write_text(text, encoding="utf-8")
            try:
                own.rename(folder)
            except OSError:
                there = _manifest(folder)
                if there is None or there | manifest != there:
                    raise
        return pieces

    @classmethod
    def of(cls, folder: Path) -> Pieces:
        """The pieces of unfinished work, whatever it is.

        Raises:
            ValueError: if there is none.
        """
        manifest = _manifest(folder)
        if manifest is None or manifest.get("format") != FORMAT:
            raise ValueError(f"{folder} holds no unfinished work of this version of decode")
        n_frames, size = manifest["frames"]
        return cls(folder, n_frames=n_frames, size=size, n_samples=manifest["samples"])

    def acquisition(self, find: Callable[[], Acquisition]) -> Acquisition:
        """What was found out of the movie; the first process does, and all others take the same.

        Raises:
            OSError: if it cannot be stored.
        """
        path = self.folder / ACQUISITION
        stored = _acquisition(path)
        if stored is not None:
            return stored
        image = io.BytesIO()
        torch.save(find(), image)
        own = path.with_name(f"{ACQUISITION}.{os.getpid()}")
        with atomic(own) as temporary:
            temporary.write_bytes(image.getvalue())
        try:
            with suppress(FileExistsError):
                os.link(own, path)
        except OSError:  # a disk without links
            os.replace(own, path)
        own.unlink(missing_ok=True)
        stored = _acquisition(path)
        if stored is None:
            raise OSError(f"{path} cannot be read again; give --fresh")
        return stored

    @property
    def all(self) -> Sequence[range]:
        """The frames of each piece, from the first of the movie."""
        return [*self._all.values()]

    @property
    def done(self) -> list[range]:
        """The pieces whose molecules are there."""
        return [piece for piece in self.all if self._is_there(piece)]

    @property
    def frames_done(self) -> int:
        return sum(map(len, self.done))

    def missing(self, some: Sequence[range] | None = None) -> list[range]:
        """Frames of which there are no molecules, as few ranges as there are.

        Args:
            some: pieces to look at; None: all.
        """
        runs: list[range] = []
        for piece in self.all if some is None else some:
            if self._is_there(piece):
                continue
            if runs and runs[-1].stop == piece.start:
                runs[-1] = range(runs[-1].start, piece.stop)
            else:
                runs.append(piece)
        return runs

    def within(self, frames: range) -> list[range]:
        """The pieces that lie in a range of frames."""
        return [
            each for each in self.all if frames.start <= each.start and each.stop <= frames.stop
        ]

    def at(self, start: int) -> range:
        """The frames of the piece that begins there."""
        return self._all[start]

    def write(
        self, piece: range, molecules: EmitterSet, samples: Sequence[EmitterSet] = ()
    ) -> None:
        """Store a piece.

        Args:
            piece: its frames.
            molecules: all of its molecules.
            samples: its draws.

        Raises:
            OSError: if it cannot be written; then it is not there.
        """
        for k, sample in enumerate(samples):
            write_table(sample, self._table(piece, k))
        write_table(molecules, self._table(piece))  # the last one: now the piece is there

    def read(self) -> Iterator[tuple[range, EmitterSet]]:
        """The molecules of all pieces that are there, in the order of frames."""
        for piece in self.done:
            yield piece, _single(read_table(self._table(piece)))

    def samples_of(self, piece: range) -> list[EmitterSet]:
        """The draws of a piece."""
        tables = (self._table(piece, k) for k in range(self._n_samples))
        return [_single(read_table(table)) for table in tables]

    def count(self, some: Sequence[range] | None = None) -> int:
        """Number of molecules in the pieces that are there.

        Args:
            some: pieces to look at; None: all.
        """
        pieces = self.all if some is None else some
        return sum(self._counts[piece.start] for piece in pieces if self._is_there(piece))

    def scratch(self) -> Path:
        """An empty folder for what can be made again."""
        path = self.folder / SCRATCH
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path

    def remove(self) -> None:
        """Delete all; without the manifest, which goes first, the rest is worth nothing."""
        if self.folder.exists():
            (self.folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(self.folder)

    def _is_there(self, piece: range) -> bool:
        """Whether a piece is stored; the disk is asked until it is, as others store pieces, too."""
        if piece.start not in self._counts:
            n_molecules = _n_rows(self._table(piece))
            if n_molecules is None:
                return False
            self._counts[piece.start] = n_molecules
        return True

    def _table(self, piece: range, sample: int | None = None) -> Path:
        draw = "" if sample is None else f".sample-{sample + 1}"
        return self.folder / f"{piece.start:08d}{draw}.parquet"

    def _drop_damaged(self) -> None:
        """Delete pieces that a power cut left without their content on some disks."""
        for piece in self.done:
            draws = [self._table(piece, k) for k in range(self._n_samples)]
            if any(_n_rows(table) is None for table in draws):
                del self._counts[piece.start]
                self._table(piece).unlink()


def _is_own(path: Path) -> bool:
    """Whether a file is of some unfinished work."""
    starts = (PREFIX, MANIFEST, ACQUISITION, SCRATCH, "order.json", "model.", "psf.h5")
    return path.name.startswith(starts) or re.match(r"\d{8}.*\.parquet$", path.name) is not None


def _n_rows(table: Path) -> int | None:
    """Number of molecules of a stored table; None if it is not there, or not whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not table.exists():
        return None
    try:
        return int(pq.read_metadata(table).num_rows)
    except (OSError, pa.ArrowInvalid):
        return None


def _single(table: EmitterSet) -> EmitterSet:
    """In single precision, in which molecules are found."""
    columns = table.columns().items()
    single = {name: column.float() for name, column in columns if column.is_floating_point()}
    return replace(table, **single)  # type: ignore[arg-type]


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What is not as it was, for the user."""
    was, deciding = before.get("deciding", {}), now["deciding"]
    changed = [name for name in deciding if was.get(name) != deciding[name]]
    return ", ".join(changed) or "the grid"


def _acquisition(path: Path) -> Acquisition | None:
    """A stored acquisition; None if there is none."""
    if not path.exists():
        return None
    arrays: list[Any] = [np.ndarray, np.dtype, type(np.dtype("f8")), *_RECONSTRUCT]
    try:
        with safe_globals([*STORED, *arrays]):
            stored: Acquisition = torch.load(path, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):  # cut short
        path.unlink()
        return None
    return stored


_RECONSTRUCT = [np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]]
"""functions by which NumPy makes arrays and numbers again, wherever this version keeps them"""


def marks_of(paths: Sequence[Path]) -> str:
    """A text that changes with the files, and with those in folders: their names, sizes, times, and
    both ends of their content.

    >>> marks_of([Path("sample_data/camera.yaml")]) == marks_of([Path("sample_data/camera.yaml")])
    True
    """
    seen = hashlib.sha256()
    folders = [path for path in paths if path.is_dir()]
    inner = [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
    whole = [path for path in paths if path not in folders]
    for file in (*whole, *inner):
        stat = file.stat()
        seen.update(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    for file in (*whole, *inner[:1], *inner[-1:]):
        with file.open("rb") as content:
            seen.update(content.read(ENDS))
            content.seek(max(0, file.stat().st_size - ENDS))
            seen.update(content.read(ENDS))
    return seen.hexdigest()


def digest(value: object) -> str:
    """A text that changes with the content of a setting: numbers, tensors, dataclasses, PSFs."""
    seen = hashlib.sha256()
    _digest(value, seen.update)
    return seen.hexdigest()


def _digest(value: object, update: Callable[[bytes], object]) -> None:
    if isinstance(value, Tensor):
        update(f"{value.dtype} {tuple(value.shape)}".encode())
        update(value.detach().cpu().contiguous().numpy().tobytes())
    elif isinstance(value, PSF):
        update(digest_of(value).encode())
    elif is_dataclass(value) and not isinstance(value, type):
        update(type(value).__name__.encode())
        for field in fields(value):
            update(field.name.encode())
            _digest(getattr(value, field.name), update)
    elif isinstance(value, list | tuple):
        for item in value:
            _digest(item, update)
    else:
        update(f"{value!r};".encode())
