"""HDF5 files of any origin: damage is told in one sentence, and no more is read than a file can
hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from decode.errors import brief, reading

__all__ = ["array_of", "holds", "open_hdf5", "set_text", "stored", "text_of"]

COMPRESSION = 1100
"""times that zlib makes an array of equal bytes smaller, at most"""

SUFFIXES = (".hdf5", ".h5")


@contextmanager
def open_hdf5(
    path: Path | str, kind: str, remedy: str = "make or copy it again"
) -> Iterator[h5py.File]:
    """An HDF5 file to read; see `reading` for arguments and errors."""
    with reading(path, kind, remedy), h5py.File(path, "r") as file:
        yield file


def holds(path: Path, name: str) -> bool:
    """Whether a file is HDF5 and has an object of that name.

    Raises:
        ValueError: if it is HDF5 by its content or its suffix, and cannot be opened.
    """
    if path.suffix.lower() not in SUFFIXES and not h5py.is_hdf5(path):
        return False
    with open_hdf5(path, "an HDF5 file", "export it again") as file:
        return name in file


def array_of(holder: h5py.Group, name: str) -> npt.NDArray[Any]:
    """A whole dataset.

    Raises:
        KeyError: if there is none of that name.
        ValueError: as `stored` does.
    """
    return np.asarray(stored(holder[name])[...])


def text_of(holder: h5py.Group, name: str) -> str:
    """An attribute that holds text, of fixed or of variable length; "" if there is none.

    Raises:
        ValueError: if it is no UTF-8.
    """
    value = holder.attrs.get(name, "")
    return value.decode() if isinstance(value, bytes) else str(value)


def set_text(holder: h5py.Group, name: str, text: str) -> None:
    """Set an attribute to text of a fixed length.

    HDF5 keeps text of variable length in a heap, and takes a GiB of memory to read one that is
    damaged.
    """
    content = text.encode()
    holder.attrs.create(name, content, dtype=h5py.string_dtype("utf-8", max(1, len(content))))


def stored(dataset: h5py.Group | h5py.Dataset) -> h5py.Dataset:
    """The same, if the file holds all of it.

    Raises:
        ValueError: if it is no dataset of plain values, or is said to be larger than what the file
            stores of it.
    """
    where = brief(dataset.name)
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise ValueError(f"{where} holds no array")
    if any(kind.hasobject and not h5py.check_ref_dtype(kind) for kind in _parts(dataset.dtype)):
        raise ValueError(f"{where} holds {brief(dataset.dtype)}, not numbers")
    compressed = dataset.id.get_create_plist().get_nfilters() > 0
    if dataset.nbytes > dataset.id.get_storage_size() * (COMPRESSION if compressed else 1):
        raise ValueError(
            f"{where} has the shape {brief(dataset.shape)}, and the file does not hold so much"
        )
    return dataset


def _parts(dtype: np.dtype[Any]) -> list[np.dtype[Any]]:
    return [dtype] if dtype.fields is None else [kind for kind, *_ in dtype.fields.values()]
