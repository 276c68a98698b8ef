"""HDF5 files of DECODE, read only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from decode.emitters import EmitterSet
from decode.io.tables.columns import Columns, emitters_of

__all__ = ["read_decode"]


def read_decode(path: Path, file: Any, pixel_size_nm: float | None) -> EmitterSet:
    # DECODE's x runs along the rows of the image and its pixels have their centres at whole numbers
    data, attributes = file["data"], file["meta"].attrs
    rows_columns = attributes.get("px_size", pixel_size_nm)
    if rows_columns is None or isinstance(rows_columns, h5py.Empty):
        raise ValueError(f"{path} does not say how large a pixel is (pixel_size_nm)")
    size = np.broadcast_to(np.asarray(rows_columns, np.float64), 2)
    unit = attributes.get("xy_unit")
    if unit not in ("px", "nm"):
        raise ValueError(f"{path} has lengths in {unit}; DECODE writes px or nm")
    scale = np.append(size, 1.0) if unit == "px" else np.ones(3)
    columns = {name: column[...].astype(np.float64) for name, column in data.items() if column.shape is not None}
    y, x, z = ((columns["xyz"] * scale) + np.append(size / 2, 0.0)).T
    values: Columns = {"x": x, "y": y, "z": z, "frame": columns["frame_ix"]}
    if "xyz_sig" in columns:
        values |= dict(zip(("sigma_y", "sigma_x", "sigma_z"), (columns["xyz_sig"] * scale).T, strict=True))
    same = {"photons": "phot", "photons_sigma": "phot_sig", "background": "bg", "probability": "prob"}
    values |= {name: columns[theirs] for name, theirs in same.items() if theirs in columns}
    return emitters_of(values, {"pixel_size_nm": float(size[0])} if size[0] == size[1] else {})
