"""SMAP's `_sml.mat` of MATLAB 7.3, which is HDF5: of any size, written as it grows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from decode.atomic import atomic
from decode.emitters import EmitterSet
from decode.io.hdf5 import MARGIN, array_of, holds, open_hdf5, reserve
from decode.io.mat73 import class_of, growing_mat73, put, put_class, put_empty
from decode.io.tables.columns import Columns, filled, require_same
from decode.io.tables.format import Append, TableFormat
from decode.io.tables.smap import (
    FACTS,
    Content,
    columns_of,
    matlab_names,
    rows_of,
    table_of,
    variables,
)

__all__ = ["FORMAT"]

CHUNK = 16384
"""rows of a chunk in HDF5"""
INDEX = 1.01
"""bytes of chunks with their index over those without"""


@contextmanager
def smap_table(path: Path, metadata: Mapping[str, object]) -> Iterator[Append]:
    """Frames from 1, nm, photons, in double precision; without texts."""
    names: dict[str, str] = {}
    known: set[str] = set()
    n_rows = 0
    with atomic(path) as temporary, growing_mat73(temporary) as file:
        loc = file.create_group("saveloc/loc")
        put_class(loc, "struct")

        def append(chunk: EmitterSet) -> None:
            nonlocal names, n_rows
            labelled = columns_of(chunk, metadata)
            first = not names
            names = names or matlab_names(labelled)
            require_same(list(labelled), list(names))
            before, n_rows = n_rows, n_rows + len(chunk)
            row_bytes = sum(column.dtype.itemsize for column in labelled.values())
            rows = math.ceil(n_rows / CHUNK) * CHUNK
            reserve(temporary, math.ceil(rows * row_bytes * INDEX) + (len(names) + 1) * MARGIN)
            if first:
                _begin(loc, {names[label]: column for label, column in labelled.items()})
            for label, column in labelled.items():
                loc[names[label]].resize(n_rows, axis=1)
                loc[names[label]][0, before:] = column
            known.update(filled(labelled))

        yield append
        if not names:
            append(EmitterSet.empty())
        for label, name in names.items():
            if label not in known:
                del loc[name]
            elif n_rows == 0:
                put_empty(loc, name, (0, 1), class_of(loc[name].dtype))
        for name, value in variables(path, metadata, names).items():
            put(file, name, value)


def _begin(loc: h5py.Group, columns: Columns) -> None:
    """Columns N x 1, which HDF5 has as 1 x N; compressed, as MATLAB does."""
    for name, column in columns.items():
        dataset = loc.create_dataset(
            name,
            shape=(1, 0),
            maxshape=(1, None),
            dtype=np.uint8 if column.dtype == bool else column.dtype,
            chunks=(1, CHUNK),
            compression="gzip",
            compression_opts=1,
        )
        put_class(dataset, class_of(column.dtype))


def read_smap(path: Path, pixel_size_nm: float | None) -> EmitterSet:
    with open_hdf5(path, "a table of SMAP", "save it again") as file:
        saveloc = file["saveloc"]
        info = saveloc.get("file/info")
        if isinstance(info, h5py.Dataset) and info.dtype == h5py.ref_dtype:  # of several files
            info = file[array_of(saveloc, "file/info").flat[0]]
        content = Content(
            rows_of(_arrays(saveloc["loc"])),
            _arrays(info) if isinstance(info, h5py.Group) else {},
            array_of(saveloc, FACTS).astype(np.uint8).tobytes() if FACTS in saveloc else b"",
        )
    return table_of(path, content, pixel_size_nm)


def _arrays(group: h5py.Group) -> Columns:
    """The arrays of numbers in a group; MATLAB stores the shape of an empty one in its place."""
    return {
        name: np.zeros(0) if "MATLAB_empty" in item.attrs else array_of(group, name).ravel()
        for name, item in group.items()
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "biuf"
    }


def _is_smap(path: Path) -> bool:
    return h5py.is_hdf5(path) and holds(path, "saveloc/loc")


FORMAT = TableFormat(
    name="smap-7.3",
    title="SMAP `_sml.mat` of MATLAB 7.3, of any size",
    content="the variable `saveloc` of a MATLAB file (7.3, HDF5)",
    suffixes=(),
    recognizes=_is_smap,
    read=read_smap,
    write=smap_table,
)
