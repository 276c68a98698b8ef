""".smlm files, as Locan and ZOLA write them, read only."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np

from decode.emitters import EmitterSet
from decode.io.tables.columns import from_named

__all__ = ["read_smlm"]


def read_smlm(path: Path, pixel_size_nm: float | None) -> EmitterSet:
    # version 0.2: https://github.com/imodpasteur/smlm-file-format, specification.md
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = json.loads(archive.read("manifest.json"))
            tables = [entry for entry in manifest["files"] if entry["type"] == "table"]
            if len(tables) != 1:
                raise ValueError(f"{path} holds {len(tables)} tables; split them into a file each")
            entry = tables[0]
            layout = manifest["formats"][entry["format"]]
            fields = [
                (name, np.dtype(kind).newbyteorder("<"), tuple(np.atleast_1d(shape).astype(int)))
                for name, kind, shape in zip(layout["headers"], layout["dtype"], layout["shape"], strict=True)
            ]
            records = np.frombuffer(archive.read(entry["name"]), np.dtype(fields), int(entry["rows"]))
    except (zipfile.BadZipFile, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not an SMLM file, or it is damaged") from error
    named = {}
    for name, unit in zip(layout["headers"], layout["units"], strict=True):
        # a column may hold a whole patch in each row; such a one is none of ours
        column = records[name].reshape(len(records), -1)[:, 0] + float(entry["offset"].get(name, 0))
        named[name.lower()] = (unit.lower(), column)
    return from_named(path, named, first_frame=0, pixel_size_nm=pixel_size_nm)
