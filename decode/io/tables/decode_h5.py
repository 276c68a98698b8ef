"""HDF5 files of DECODE, read only."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from decode.emitters import EmitterSet
from decode.errors import brief
from decode.io.hdf5 import array_of, attribute_of, holds, open_hdf5
from decode.io.tables.columns import Columns, emitters_of
from decode.io.tables.format import TableFormat

__all__ = ["FORMAT"]


def read_decode(path: Path, pixel_size_nm: float | None) -> EmitterSet:
    with open_hdf5(path, "an HDF5 file", "export it again") as file:
        return _emitters(path, file, pixel_size_nm)


def _emitters(path: Path, file: h5py.File, pixel_size_nm: float | None) -> EmitterSet:
    """The molecules of a file, whose x runs along the rows of the image, and whose pixel centres
    are whole numbers."""
    data, meta = file["data"], file["meta"]
    stated = attribute_of(meta, "px_size")
    rows_columns = pixel_size_nm if stated is None else stated
    if rows_columns is None or isinstance(rows_columns, h5py.Empty):
        raise ValueError(
            f"{path} does not say how large a pixel is: state it (--pixel-size, in nm)"
        )
    size = np.broadcast_to(np.asarray(rows_columns, np.float64), 2)
    if not (np.isfinite(size) & (size > 0)).all():
        raise ValueError(f"{path}: px_size is {brief(rows_columns)}, must be positive")
    unit = attribute_of(meta, "xy_unit")
    if unit not in ("px", "nm"):
        raise ValueError(f"{path} has lengths in {brief(unit)}; DECODE writes px or nm")
    scale = np.append(size, 1.0) if unit == "px" else np.ones(3)
    columns = {
        name: array_of(data, name) for name, column in data.items() if column.shape is not None
    }
    y, x, z = ((columns.pop("xyz") * scale) + np.append(size / 2, 0.0)).T
    values: Columns = {"x": x, "y": y, "z": z, "frame": columns.pop("frame_ix")}
    if "xyz_sig" in columns:
        values |= dict(
            zip(("sigma_y", "sigma_x", "sigma_z"), (columns.pop("xyz_sig") * scale).T, strict=True)
        )
    same = {
        "photons": "phot",
        "photons_sigma": "phot_sig",
        "background": "bg",
        "probability": "prob",
    }
    values |= {name: columns.pop(theirs) for name, theirs in same.items() if theirs in columns}
    others = {name: column for name, column in columns.items() if column.shape == x.shape}
    return emitters_of(
        values, {"pixel_size_nm": float(size[0])} if size[0] == size[1] else {}, others
    )


FORMAT = TableFormat(
    name="decode",
    title="DECODE HDF5",
    content="DECODE's `data/xyz`",
    suffixes=(".h5", ".hdf5"),
    recognizes=lambda path: holds(path, "data/xyz"),
    read=read_decode,
)
