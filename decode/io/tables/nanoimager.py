"""CSV files of ONI's Nanoimager (NimOS), read only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from decode.emitters import EmitterSet
from decode.io.tables.columns import Columns, from_named
from decode.io.tables.format import TableFormat
from decode.io.tables.text import header_of, read_columns

__all__ = ["FORMAT"]

MARKS = {"Channel", "Frame", "X (nm)", "Y (nm)"}

NAMES = {
    "frame": "Frame",
    "x": "X (nm)",
    "y": "Y (nm)",
    "z": "Z (nm)",
    "sigma_x": "X precision (nm)",
    "sigma_y": "Y precision (nm)",
    "photons": "Photons",
    "background": "Background",
}
"""labels of the columns in files"""


def read_nanoimager(path: Path, pixel_size_nm: float | None) -> EmitterSet:
    """Frames count from 0.  Where positions are stated in nm and in pixels, their ratio is the size
    of a pixel."""
    columns = read_columns(path, numbers=NAMES.values())
    named = {name: label for name, label in NAMES.items() if label in columns}
    found = from_named(path, columns, first_frame=0, pixel_size_nm=pixel_size_nm, named=named)
    size = pixel_size_nm or _pixel_size(columns)
    facts = {} if size is None else {"pixel_size_nm": size}
    return replace(found, metadata={**found.metadata, **facts})


def _pixel_size(columns: Columns) -> float | None:
    """Median ratio of nm to pixels, to the tenth of a nm; None where it cannot be told."""
    nm, px = columns["X (nm)"], columns.get("X (pix)")
    if px is None or px.dtype.kind != "f":
        return None
    far = np.isfinite(nm) & np.isfinite(px) & (np.abs(px) > 1)
    size = round(float(np.median(nm[far] / px[far])), 1) if far.any() else 0.0
    return size if size > 0 else None


FORMAT = TableFormat(
    name="nanoimager",
    title="ONI Nanoimager CSV",
    content="columns `Channel`, `Frame`, `X (nm)` and `Y (nm)`",
    suffixes=(".csv",),
    recognizes=lambda path: {*header_of(path)} >= MARKS,
    read=read_nanoimager,
)
