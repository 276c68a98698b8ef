""".smlm files, as Locan and ZOLA write them, read only."""

from __future__ import annotations

import json
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from decode.emitters import EmitterSet
from decode.io.tables.columns import from_named
from decode.io.tables.format import TableFormat

__all__ = ["FORMAT"]


MOST_BYTES = 2**31
"""of a table; a compressed one can state any size"""


def read_smlm(path: Path, pixel_size_nm: float | None) -> EmitterSet:
    """Version 0.2: https://github.com/imodpasteur/smlm-file-format, specification.md."""
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(_content(archive, "manifest.json"))
        tables = [entry for entry in manifest["files"] if entry["type"] == "table"]
        if len(tables) != 1:
            raise ValueError(f"{path} holds {len(tables)} tables; save each in a file of its own")
        entry = tables[0]
        layout = manifest["formats"][entry["format"]]
        fields = [
            (name, np.dtype(kind).newbyteorder("<"), tuple(np.atleast_1d(shape).astype(int)))
            for name, kind, shape in zip(
                layout["headers"], layout["dtype"], layout["shape"], strict=True
            )
        ]
        records = np.frombuffer(
            _content(archive, entry["name"]), np.dtype(fields), int(entry["rows"])
        )
    labelled = {}
    for name, unit in zip(layout["headers"], layout["units"], strict=True):
        # a column may hold a whole patch in each row; such a column is not read
        if records[name].size == len(records):
            offset = float(entry["offset"].get(name, 0))
            labelled[f"{name} [{unit}]" if unit else name] = (
                records[name].reshape(len(records)) + offset
            )
    return from_named(path, labelled, first_frame=0, pixel_size_nm=pixel_size_nm)


def _content(archive: zipfile.ZipFile, name: str) -> bytes:
    # deflate makes nothing more than 1032 times smaller
    size = archive.getinfo(name).file_size
    if size > min(MOST_BYTES, 1100 * archive.getinfo(name).compress_size):
        raise ValueError(f"it states a table of {size} bytes, which it cannot hold")
    return archive.read(name)


def _is_smlm(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return "manifest.json" in archive.namelist()
    return False


FORMAT = TableFormat(
    name="smlm",
    title="SMLM 0.2",
    content="the manifest of an SMLM file",
    suffixes=(".smlm",),
    recognizes=_is_smlm,
    read=read_smlm,
)
