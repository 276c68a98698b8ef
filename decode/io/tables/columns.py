"""Columns of tables, whatever the format: their names, their units, and how they become an EmitterSet."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from decode.emitters import EmitterSet

__all__ = [
    "Append",
    "Columns",
    "emitters_of",
    "filled",
    "from_named",
    "numbers_of",
    "require_same",
    "unit_of",
]

Columns = dict[str, npt.NDArray[Any]]

Append = Callable[[EmitterSet], None]
"""writes a chunk at the end of a table"""

NM_PER = {"nm": 1.0, "": 1.0, "um": 1e3, "µm": 1e3, "μm": 1e3}

LENGTHS = {
    "x": ("x", "position_x"),
    "y": ("y", "position_y"),
    "z": ("z", "position_z"),
    "sigma_x": ("uncertainty_x", "x_precision", "uncertainty_xy", "uncertainty"),
    "sigma_y": ("uncertainty_y", "y_precision", "uncertainty_xy", "uncertainty"),
    "sigma_z": ("uncertainty_z", "z_precision"),
}
PHOTONS = {
    "photons": ("intensity", "photons"),
    "background": ("offset", "background", "local_background"),
    "photons_sigma": ("uncertainty_intensity",),
}
OTHERS = {
    "frame": ("frame",),
    "probability": ("probability", "prob"),
    "goodness": ("goodness",),
    "polished": ("polished",),
}
"""what other programs call our columns, the preferred name first"""


def numbers_of(emitters: EmitterSet) -> Columns:
    """The columns one by one: frame, x, y, z, photons and, where present, the others."""
    columns = {name: column.detach().cpu().numpy() for name, column in emitters.columns().items()}
    for triple, prefix in (("xyz", ""), ("xyz_sigma", "sigma_")):
        if triple in columns:
            xyz = columns.pop(triple)
            columns |= {f"{prefix}{axis}": xyz[:, i] for i, axis in enumerate("xyz")}
    whole = {"frame", "polished"}
    return {name: column.astype(np.int64 if name in whole else np.float64) for name, column in columns.items()}


def filled(columns: Columns) -> Columns:
    """Without the columns that hold nothing but NaN: other programs stumble over it."""
    return {name: column for name, column in columns.items() if len(column) == 0 or not np.isnan(column).all()}


def require_same(names: list[str], before: list[str]) -> None:
    if names != before:
        raise ValueError(f"a chunk has the columns {', '.join(names)}, but the table began with {', '.join(before)}")


def unit_of(label: str) -> tuple[str, str]:
    """Name and unit of a column: `x [nm]`, `x_nm` and the challenge's `xnano` are the same."""
    label = re.sub(r"^([xyz])nano$", r"\1 [nm]", label.strip().lower())
    match = re.fullmatch(r"(.*?)\s*(?:\[(.*)\]|_(nm|um|px))?", label)
    assert match is not None  # matches any text
    return match[1], match[2] or match[3] or ""


def from_named(
    path: Path,
    named: Mapping[str, tuple[str, npt.NDArray[Any]]],
    *,
    first_frame: int,
    pixel_size_nm: float | None,
) -> EmitterSet:
    """An EmitterSet of columns by lower-case name, each with its unit."""

    def nm(unit: str) -> float:
        if unit == "px" and pixel_size_nm is None:
            raise ValueError(f"{path} is in pixels: say how large one is (pixel_size_nm)")
        scales = NM_PER | {"px": pixel_size_nm or 1.0}
        if unit not in scales:
            raise ValueError(f"{path} has lengths in {unit}; the units known are nm, um and px")
        return scales[unit]

    def photons(unit: str) -> float:
        if unit not in ("photon", "photons", ""):
            raise ValueError(f"{path} has intensities in {unit}; export them in photons")
        return 1.0

    values: Columns = {}
    for aliases, scale in ((LENGTHS, nm), (PHOTONS, photons), (OTHERS, None)):
        for name, choices in aliases.items():
            found = [named[choice] for choice in choices if choice in named]
            if found:
                unit, column = found[0]
                values[name] = column.astype(np.float64) * (1.0 if scale is None else scale(unit))
    missing = [name for name in ("frame", "x", "y") if name not in values]
    if missing:
        raise ValueError(f"{path} is not a table of molecules: it has no column {' and no column '.join(missing)}")
    if not np.isfinite(values["frame"]).all():
        raise ValueError(f"{path} has rows without a frame; remove them")
    values["frame"] = np.rint(values["frame"]) - first_frame
    metadata = {} if pixel_size_nm is None else {"pixel_size_nm": pixel_size_nm}
    return emitters_of(values, metadata)


def emitters_of(values: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, object]) -> EmitterSet:
    """The inverse of `numbers_of`; needs frame, x and y."""
    columns = {name: torch.from_numpy(column.astype(np.float64)) for name, column in values.items()}
    unknown = torch.full_like(columns["x"], torch.nan)
    z = columns.get("z", torch.zeros_like(unknown))
    xyz_sigma = None
    if "sigma_x" in columns:
        xyz_sigma = torch.stack([columns.get(f"sigma_{axis}", unknown) for axis in "xyz"], 1)
    return EmitterSet(
        frame=columns["frame"].long(),
        xyz=torch.stack([columns["x"], columns["y"], z], 1),
        photons=columns.get("photons", unknown),
        background=columns.get("background"),
        probability=columns.get("probability"),
        xyz_sigma=xyz_sigma,
        photons_sigma=columns.get("photons_sigma"),
        goodness=columns.get("goodness"),
        polished=columns["polished"] > 0.5 if "polished" in columns else None,
        metadata=metadata,
    )
