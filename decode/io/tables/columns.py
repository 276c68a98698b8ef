"""Columns of tables, whatever the format: their names, their units, and how they become an
EmitterSet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from decode.emitters import CORRELATIONS, EmitterSet
from decode.errors import brief

__all__ = [
    "OWN",
    "Columns",
    "emitters_of",
    "filled",
    "from_named",
    "is_digital",
    "numbers_of",
    "require_same",
    "unit_of",
]

Columns = dict[str, npt.NDArray[Any]]

NM_PER = {"nm": 1.0, "": 1.0, "um": 1e3, "µm": 1e3, "μm": 1e3, "m": 1e9}

PHOTON_UNITS = ("photon", "photons", "photon per pixel", "")
DIGITAL_UNITS = ("adu", "adc", "a/d count", "counts")
"""units of a camera's numbers, which only its gain turns into photons"""

LENGTHS = {
    "x": ("x", "position_x"),
    "y": ("y", "position_y"),
    "z": ("z", "position_z"),
    "sigma_x": ("uncertainty_x", "x_precision", "uncertainty_xy", "uncertainty", "locprec"),
    "sigma_y": ("uncertainty_y", "y_precision", "uncertainty_xy", "uncertainty", "locprec"),
    "sigma_z": ("uncertainty_z", "z_precision", "locprecz"),
    "half95_x": ("interval95_x",),
    "half95_y": ("interval95_y",),
    "half95_z": ("interval95_z",),
}
PHOTONS = {
    "photons": ("intensity", "photons", "phot"),
    "background": ("offset", "background", "local_background", "bg"),
    "photons_sigma": ("uncertainty_intensity",),
    "photons_95": ("interval95_intensity",),
}
OTHERS = {
    "frame": ("frame",),
    "probability": ("probability", "prob"),
}
"""names of columns in other programs, the preferred one first"""

OWN = (*CORRELATIONS, "ess", "goodness", "polished")
"""columns that decode alone writes; all its formats call them so"""
OTHERS |= {name: (name,) for name in OWN}


def numbers_of(emitters: EmitterSet) -> Columns:
    """The columns one by one: frame, x, y, z, photons and, where present, the others."""
    columns = {name: column.detach().cpu().numpy() for name, column in emitters.columns().items()}
    for triple, prefix in (("xyz", ""), ("xyz_sigma", "sigma_"), ("xyz_95", "half95_")):
        if triple in columns:
            xyz = columns.pop(triple)
            columns |= {f"{prefix}{axis}": xyz[:, i] for i, axis in enumerate("xyz")}
    if "correlation" in columns:
        columns |= dict(zip(CORRELATIONS, columns.pop("correlation").T, strict=True))
    whole = {"frame", "polished"}
    return {
        name: column.astype(np.int64 if name in whole else np.float64)
        for name, column in columns.items()
    }


def filled(columns: Columns) -> Columns:
    """The columns except those that are all NaN, on which other programs fail."""

    def empty(column: npt.NDArray[Any]) -> bool:
        return column.dtype.kind == "f" and len(column) > 0 and bool(np.isnan(column).all())

    return {name: column for name, column in columns.items() if not empty(column)}


def require_same(names: list[str], before: list[str]) -> None:
    """A table keeps its columns.

    Raises:
        ValueError: if a chunk has others.
    """
    if names != before:
        raise ValueError(
            f"a chunk has the columns {', '.join(names)}, but the table began with "
            f"{', '.join(before)}"
        )


def unit_of(label: str) -> tuple[str, str]:
    """Name and unit of a column: `x [nm]`, `x (nm)`, `x_nm`, SMAP's `xnm` and the challenge's
    `xnano` are the same."""
    label = re.sub(r"^(locprecz?|[xyz])(nm|nano)$", r"\1 [nm]", label.strip().lower())
    match = re.fullmatch(r"(.*?)\s*(?:\[(.*)\]|\((.*)\)|_(nm|um|px))?", label)
    assert match is not None  # matches any text on a line
    unit = match[2] or match[3] or match[4] or ""
    return match[1], "px" if unit in ("pix", "pixel", "pixels") else unit


def from_named(
    path: Path,
    labelled: Mapping[str, npt.NDArray[Any]],
    *,
    first_frame: int,
    pixel_size_nm: float | None,
    named: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
) -> EmitterSet:
    """An EmitterSet of columns by their labels, which state name and unit.

    A quantity that is given in pixels and in nm is taken in nm.  Intensities in a camera's numbers
    are no photons: they are kept as they are, and a warning says so.

    Args:
        first_frame: number by which the columns call the first frame.
        named: labels of quantities that are not called by a usual name.
        units: units of columns whose label states none, or another one.
    """
    known = {label: unit_of(label) for label in labelled}
    known |= {label: (known[label][0], unit) for label, unit in (units or {}).items()}
    labels = {
        name: (named or {}).get(name) or _label_of(path, known, choices)
        for name, choices in (LENGTHS | PHOTONS | OTHERS).items()
    }
    digital = {
        label
        for name, label in labels.items()
        if name in PHOTONS and label is not None and is_digital(known[label][1])
    }
    values: Columns = {
        name: labelled[label].astype(np.float64)
        * _factor(path, name, known[label][1], pixel_size_nm)
        for name, label in labels.items()
        if label is not None and label not in digital
    }
    missing = [name for name in ("frame", "x", "y") if name not in values]
    if missing:
        raise ValueError(
            f"{path} is not a table of molecules: it has no column "
            f"{' and no column '.join(missing)}; say which it is, as --columns x=LABEL[nm]"
        )
    if not np.isfinite(values["frame"]).all():
        raise ValueError(f"{path} has rows without a frame; remove them")
    values["frame"] = np.rint(values["frame"]) - first_frame
    used = {label for label in labels.values() if label not in digital}
    others = {label: column for label, column in labelled.items() if label not in used}
    metadata: dict[str, object] = {} if pixel_size_nm is None else {"pixel_size_nm": pixel_size_nm}
    if digital:
        metadata["warnings"] = [
            f"{label}: numbers of the camera, which are no photons; kept as they are"
            for label in sorted(digital)
        ]
    return emitters_of(values, metadata, others)


def is_digital(unit: str) -> bool:
    """Whether a unit is that of a camera's numbers."""
    return unit.lower() in DIGITAL_UNITS


def _factor(path: Path, name: str, unit: str, pixel_size_nm: float | None) -> float:
    """From a column's unit to nm or photons."""
    if name in PHOTONS and unit not in PHOTON_UNITS:
        raise ValueError(f"{path} has intensities in {brief(unit)}; export them in photons")
    if name not in LENGTHS:
        return 1.0
    if unit == "px" and pixel_size_nm is None:
        raise ValueError(f"{path} is in pixels: state the side of one with --pixel-size, in nm")
    scales = NM_PER | {"px": pixel_size_nm or 1.0}
    if unit not in scales:
        raise ValueError(f"{path} has lengths in {brief(unit)}; the units known are nm, um and px")
    return scales[unit]


def _label_of(
    path: Path, units: Mapping[str, tuple[str, str]], choices: tuple[str, ...]
) -> str | None:
    """The label of the first choice that is present, in nm rather than in pixels, and in photons
    rather than in a camera's numbers."""
    last = None
    for choice in choices:
        found = [label for label, (name, _) in units.items() if name == choice]
        metric = [label for label in found if units[label][1] != "px"] or found
        if len(metric) > 1:
            raise ValueError(
                f"{path} has two columns {choice}: {', '.join(map(brief, metric[:2]))}; keep one "
                "of them"
            )
        if metric and not is_digital(units[metric[0]][1]):
            return metric[0]
        last = last or next(iter(metric), None)
    return last


def emitters_of(
    values: Mapping[str, npt.NDArray[Any]],
    metadata: Mapping[str, object],
    others: Mapping[str, npt.NDArray[Any]],
) -> EmitterSet:
    """The inverse of `numbers_of`; needs frame, x and y."""
    if not (np.abs(values["frame"].astype(np.float64)) < 2**31).all():
        raise ValueError("its frames are not numbers, or too large for any movie")
    columns = {name: torch.from_numpy(column.astype(np.float64)) for name, column in values.items()}
    unknown = torch.full_like(columns["x"], torch.nan)
    z = columns.get("z", torch.zeros_like(unknown))

    def by_axis(prefix: str) -> torch.Tensor | None:
        if f"{prefix}_x" not in columns:
            return None
        return torch.stack([columns.get(f"{prefix}_{axis}", unknown) for axis in "xyz"], 1)

    correlation = None
    if "corr_xy" in columns:
        correlation = torch.stack([columns.get(name, unknown) for name in CORRELATIONS], 1)
    return EmitterSet(
        frame=columns["frame"].long(),
        xyz=torch.stack([columns["x"], columns["y"], z], 1),
        photons=columns.get("photons", unknown),
        background=columns.get("background"),
        probability=columns.get("probability"),
        xyz_sigma=by_axis("sigma"),
        photons_sigma=columns.get("photons_sigma"),
        xyz_95=by_axis("half95"),
        photons_95=columns.get("photons_95"),
        correlation=correlation,
        ess=columns.get("ess"),
        goodness=columns.get("goodness"),
        polished=columns["polished"] > 0.5 if "polished" in columns else None,
        others={name: _native(column) for name, column in others.items()},
        metadata=metadata,
    )


def _native(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same numbers in the byte order of this machine, which Arrow needs."""
    return column.astype(column.dtype.newbyteorder("="), copy=False)
