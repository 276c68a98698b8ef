"""HDF5 files of any origin: damage is reported in one sentence, and memory is bounded by the size
of the file."""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from decode.errors import brief, reading

__all__ = [
    "array_of",
    "attribute_of",
    "growing_hdf5",
    "holds",
    "open_hdf5",
    "reserve",
    "set_text",
    "stored",
    "text_of",
]

COMPRESSION = 1100
"""largest factor by which zlib compresses"""

SUFFIXES = (".hdf5", ".h5")

MARGIN = 2**16
"""bytes of a file besides the rows of a dataset; a million of them take below 10 kB"""

CONTINUATION, ATTRIBUTE = 0x10, 0x0C
"""types of messages in the header of an object"""

ATTRIBUTE_LAYOUT = {1: (8, 8), 2: (8, 1), 3: (9, 1)}
"""by version, the first byte of an attribute's name, and the multiple of bytes to which its parts
are padded"""
HEAP_ID = 16
"""bytes by which the header of an object refers to a text; the first hold its length"""


@contextmanager
def open_hdf5(
    path: Path | str, kind: str, remedy: str = "make or copy it again"
) -> Iterator[h5py.File]:
    """An HDF5 file to read; see `reading` for arguments and errors."""
    with reading(path, kind, remedy), h5py.File(path, "r") as file:
        yield file


@contextmanager
def growing_hdf5(path: Path, *, userblock_size: int = 0) -> Iterator[h5py.File]:
    """An HDF5 file to write; `reserve` room for what is put into it.

    Args:
        path: the file.
        userblock_size: bytes before the file proper, which HDF5 leaves alone.
    """
    reserve(path, MARGIN)
    with h5py.File(path, "w", locking=False, userblock_size=userblock_size) as file:
        reserve(path, MARGIN)
        yield file
        file.flush()
        size = file.id.get_filesize()
    os.truncate(path, size)


def reserve(path: Path, n_bytes: int) -> None:
    """Extend a file before HDF5 does, which crashes where it cannot write
    (github.com/h5py/h5py/issues/914).

    Raises:
        OSError: if the disk, a quota or a limit on the size of files does not allow it.
    """
    with path.open("ab") as file:
        file.write(bytes(max(0, n_bytes - path.stat().st_size)))


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


def attribute_of(holder: h5py.Group, name: str) -> Any:
    """The value of an attribute; None if there is none.

    Raises:
        ValueError: if it is a text longer than the file, or holds anything but numbers and text.
    """
    if name not in holder.attrs:
        return None
    kind = holder.attrs.get_id(name).dtype
    if kind.hasobject:
        if h5py.check_string_dtype(kind) is None:
            raise ValueError(f"the attribute {brief(name)} holds neither numbers nor text")
        _require_bounded(holder, name)
    return holder.attrs[name]


def text_of(holder: h5py.Group, name: str) -> str:
    """An attribute that holds text, of fixed or of variable length; "" if there is none.

    Raises:
        ValueError: if it is not UTF-8, or as `attribute_of` does.
    """
    value = attribute_of(holder, name)
    if value is None:
        return ""
    return value.decode() if isinstance(value, bytes) else str(value)


def set_text(holder: h5py.Group, name: str, text: str) -> None:
    """Set an attribute to text of a fixed length.

    HDF5 keeps text of variable length in a heap, whose lengths have no checksum.
    """
    content = text.encode()
    holder.attrs.create(name, content, dtype=h5py.string_dtype("utf-8", max(1, len(content))))


def stored(dataset: h5py.Group | h5py.Dataset) -> h5py.Dataset:
    """The dataset itself, if the file holds all of it.

    Raises:
        ValueError: if it is not a dataset of plain values, or the file stores less than its shape
            says.
    """
    where = brief(dataset.name)
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise ValueError(f"{where} holds no array")
    if any(kind.hasobject and not h5py.check_ref_dtype(kind) for kind in _parts(dataset.dtype)):
        raise ValueError(f"{where} holds {brief(dataset.dtype)}, not numbers")
    compressed = dataset.id.get_create_plist().get_nfilters() > 0
    if dataset.nbytes > dataset.id.get_storage_size() * (COMPRESSION if compressed else 1):
        raise ValueError(
            f"{where} has the shape {brief(dataset.shape)}, but the file does not hold so much"
        )
    return dataset


def _parts(dtype: np.dtype[Any]) -> list[np.dtype[Any]]:
    return [dtype] if dtype.fields is None else [kind for kind, *_ in dtype.fields.values()]


def _require_bounded(holder: h5py.Group, name: str) -> None:
    """Check the length of a text before HDF5 reads it, which allocates the stated length first: up
    to 4 GiB for a damaged one.

    Headers of version 2 have checksums, by which HDF5 notices damage itself.

    Raises:
        ValueError: if a text is longer than the file, or the header is damaged.
    """
    file = holder.file
    if file.id.get_create_plist().get_sizes() != (8, 8):
        raise ValueError("it has addresses of less than 64 bits")
    address = file.userblock_size + h5py.h5o.get_info(holder.id).addr
    with (
        open(file.filename, "rb") as stream,
        closing(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)) as content,
    ):
        if content[address] != 1:
            return
        attributes = _attributes(content, address, file.userblock_size)
        values = [value for named, value in attributes if named == name.encode()]
        end = HEAP_ID * holder.attrs.get_id(name).get_space().get_simple_extent_npoints()
        lengths = [n for value in values for (n,) in struct.iter_unpack("<I12x", value[:end])]
        if not values or sum(lengths) > len(content):
            raise ValueError(f"the attribute {brief(name)} is longer than the file")


def _attributes(content: mmap.mmap, address: int, base: int) -> Iterator[tuple[bytes, bytes]]:
    """Names and values of the attributes in the header of an object, version 1 (HDF5 File Format
    Specification, IV.A.1.a and IV.A.2.m)."""
    n_messages, size = struct.unpack_from("<2xH4xI", content, address)
    for kind, message in islice(_messages(content, address + 16, size, base), n_messages):
        if kind != ATTRIBUTE:
            continue
        version, *sizes = struct.unpack_from("<BxHHH", message)
        start, multiple = ATTRIBUTE_LAYOUT.get(version, ATTRIBUTE_LAYOUT[2])
        name = message[start : start + sizes[0]].partition(b"\0")[0]
        # type and shape lie between name and value
        yield name, message[start + sum(math.ceil(n / multiple) * multiple for n in sizes) :]


def _messages(content: mmap.mmap, start: int, size: int, base: int) -> Iterator[tuple[int, bytes]]:
    """Type and content of the messages in a block and in those that continue it."""
    blocks = [(start, size)]
    for at, n_bytes in blocks:
        end = at + n_bytes
        while at + 8 <= end:
            kind, length = struct.unpack_from("<HH", content, at)
            message = content[at + 8 : at + 8 + length]
            if kind == CONTINUATION:
                further, n_further = struct.unpack_from("<QQ", message)
                blocks.append((base + further, n_further))
            yield kind, message
            at += 8 + length
