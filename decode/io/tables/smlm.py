""".smlm files, as Locan and ZOLA write them: https://github.com/imodpasteur/smlm-file-format,
specification.md, version 0.2."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from decode.atomic import atomic
from decode.emitters import EmitterSet
from decode.io.tables.columns import OWN, Columns, from_named, numbers_of, require_same, unit_of
from decode.io.tables.format import Append, TableFormat

__all__ = ["FORMAT"]

LAYOUT, TABLE = "smlm-table(binary)", "table.bin"

HEADERS = {
    "frame": ("frame", "frame"),
    "x": ("x", "nm"),
    "y": ("y", "nm"),
    "z": ("z", "nm"),
    "photons": ("intensity", "photon"),
    "background": ("background", "photon"),
    "sigma_x": ("x_precision", "nm"),
    "sigma_y": ("y_precision", "nm"),
    "sigma_z": ("z_precision", "nm"),
    "photons_sigma": ("uncertainty_intensity", "photon"),
    "half95_x": ("interval95_x", "nm"),
    "half95_y": ("interval95_y", "nm"),
    "half95_z": ("interval95_z", "nm"),
    "photons_95": ("interval95_intensity", "photon"),
    "probability": ("probability", ""),
} | {name: (name, "") for name in OWN}
"""names and units of the columns in files"""
DTYPES = {"frame": "uint32", "polished": "uint8"}
"""types of columns without floating numbers; the specification knows no signed ones, and no text"""

FACTS = "decode"
"""key of the manifest: what `EmitterSet.metadata` holds"""

MOST_BYTES = 2**31
"""most bytes of a table, as a compressed one can state any size"""


@contextmanager
def _smlm_table(path: Path, metadata: Mapping[str, object]) -> Iterator[Append]:
    """Frames from 0, nm from the outer corner, photons; in double precision, without texts."""
    headers: list[str] = []
    n_rows = 0
    with (
        atomic(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        with archive.open(TABLE, "w", force_zip64=True) as stream:

            def append(chunk: EmitterSet) -> None:
                nonlocal headers, n_rows
                columns = _columns(chunk)
                headers = headers or list(columns)
                require_same(list(columns), headers)
                kinds = [(name, np.dtype(_dtype(name)).newbyteorder("<")) for name in columns]
                records = np.empty(len(chunk), np.dtype(kinds))
                for name, column in columns.items():
                    records[name] = column
                n_rows += len(chunk)
                if n_rows * records.itemsize > MOST_BYTES:
                    raise ValueError(f"{path} would hold more than 2 GiB; write another format")
                stream.write(records.tobytes())

            yield append
            if not headers:
                append(EmitterSet.empty())
        archive.writestr("manifest.json", _manifest(headers, n_rows, metadata))


def _columns(chunk: EmitterSet) -> Columns:
    """Columns by the names in `HEADERS`, then the numbers of other programs with other names."""
    ours = {HEADERS[name][0]: column for name, column in numbers_of(chunk).items()}
    theirs = {
        name: values
        for name, values in chunk.others.items()
        if values.dtype.kind in "biuf" and unit_of(name)[0] not in ours
    }
    return ours | theirs


def _dtype(header: str) -> str:
    return DTYPES.get(header, "float64")


def _manifest(headers: Sequence[str], n_rows: int, metadata: Mapping[str, object]) -> str:
    units = dict(HEADERS.values())
    layout = {
        "name": LAYOUT,
        "type": "table",
        "mode": "binary",
        "extension": ".bin",
        "columns": len(headers),
        "headers": headers,
        "dtype": [_dtype(header) for header in headers],
        "shape": [1] * len(headers),
        "units": [units.get(header, "") for header in headers],
    }
    entry = {
        "name": TABLE,
        "type": "table",
        "format": LAYOUT,
        "channel": "default",
        "rows": n_rows,
        "offset": {},
    }
    whole = {
        "format_version": "0.2",
        "formats": {LAYOUT: layout},
        "files": [entry],
        FACTS: dict(metadata),
    }
    return json.dumps(whole, indent=1, default=str)


def read_smlm(path: Path, pixel_size_nm: float | None) -> EmitterSet:
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
    emitters = from_named(path, labelled, first_frame=0, pixel_size_nm=pixel_size_nm)
    return replace(emitters, metadata={**emitters.metadata, **manifest.get(FACTS, {})})


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
    write=_smlm_table,
)
