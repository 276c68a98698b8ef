"""MATLAB 7.3 files, written: HDF5 behind 512 bytes, whose arrays have their axes reversed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from decode.io.hdf5 import growing_hdf5

__all__ = ["class_of", "growing_mat73", "put", "put_class", "put_empty"]

USER_BLOCK = 512
CLASSES = {"float64": "double", "float32": "single", "bool": "logical", "object": "cell"}
"""of arrays in MATLAB, where they are called otherwise than in NumPy"""
DECODED = {"logical": 1, "char": 2}
"""`MATLAB_int_decode` of what is stored as whole numbers"""


@contextmanager
def growing_mat73(path: Path) -> Iterator[h5py.File]:
    """A file to fill; `reserve` room for large arrays."""
    with growing_hdf5(path, userblock_size=USER_BLOCK) as file:
        yield file
    made = datetime.now(UTC).strftime("%a %b %d %H:%M:%S %Y")
    text = f"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: {made} HDF5 schema 1.00 ."
    header = text.ljust(116).encode() + bytes(8) + b"\x00\x02IM"
    with path.open("r+b") as block:
        block.write(header)


def put(group: h5py.Group, name: str, value: Any) -> None:
    """Store a struct (a mapping), a text, a number or an array under a name.

    >>> with h5py.File("a.mat", "w", driver="core", backing_store=False) as file:
    ...     put(file, "s", {"a": np.zeros((3, 1)), "text": "sml"})
    ...     file["s/a"].shape, file["s/text"].attrs["MATLAB_class"]
    ((1, 3), np.bytes_(b'char'))
    """
    if isinstance(value, Mapping):
        struct = group.require_group(name)
        put_class(struct, "struct")
        for field, of_field in value.items():
            put(struct, field, of_field)
    elif isinstance(value, str):
        units = np.frombuffer(value.encode("utf-16-le"), "<u2")
        put_class(group.create_dataset(name, data=units[:, None]), "char")
    elif not np.size(value):
        put_empty(group, name, np.shape(value), class_of(np.asarray(value).dtype))
    else:
        array = np.atleast_2d(value)
        put_class(group.create_dataset(name, data=array.T), class_of(array.dtype))


def put_empty(group: h5py.Group, name: str, shape: tuple[int, ...], matlab: str) -> None:
    """Store an array without elements, which MATLAB holds as its shape; in place of what is
    there."""
    if name in group:
        del group[name]
    dataset = group.create_dataset(name, data=np.array(shape, np.uint64))
    put_class(dataset, matlab)
    dataset.attrs["MATLAB_empty"] = np.uint8(1)


def class_of(dtype: np.dtype[Any]) -> str:
    """The class of numbers in MATLAB.

    >>> class_of(np.dtype("<f4")), class_of(np.dtype("u2"))
    ('single', 'uint16')
    """
    return CLASSES.get(dtype.name, dtype.name)


def put_class(item: h5py.Dataset | h5py.Group, matlab: str) -> None:
    """State the class of an array's elements, or that it is a struct."""
    item.attrs["MATLAB_class"] = np.bytes_(matlab)
    if matlab in DECODED:
        item.attrs["MATLAB_int_decode"] = np.int32(DECODED[matlab])
