"""Exports of Abberior's MINFLUX microscopes (Imspector), read only: .npy and .json.

Until 2024 a row was a localization that held its iterations (`itr`, a structure of each); since
m2410 it is an iteration (`itr`, its number).  The fields are those of the wiki of Abberior
Instruments, "MINFLUX files and data".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from decode.emitters import EmitterSet
from decode.io.tables.columns import Columns, emitters_of
from decode.io.tables.format import TableFormat

__all__ = ["FORMAT"]

NM_PER_M = 1e9

UNITS = {"tim": "s", "efo": "Hz", "efc": "Hz", "fbg": "Hz"}
UNITS |= dict.fromkeys(("gvx", "gvy", "eox", "eoy", "lcx", "lcy", "lcz", "dmz"), "m")

HEAD = 2**16
"""bytes at the beginning of a text that tell whether it is such an export"""

Fields = dict[str, npt.NDArray[Any]]
"""(n, ...) each: fields of localizations or iterations, by their names"""


def read_minflux(path: Path, pixel_size_nm: float | None) -> EmitterSet:
    """Valid localizations, each as its last iteration found it; metres from the centre of the
    stage.

    There are no frames: a localization's is its place in the order of time.  Photons are those
    counted around the molecule (`eco`).
    """
    fields = _of_array(path) if _is_array(path) else _of_json(path)
    if "loc" not in fields or fields["loc"].ndim != 2 or fields["loc"].shape[1] != 3:
        raise ValueError(f"{path} has no field loc with x, y and z; export it again")
    places = fields.pop("loc").astype(np.float64) * NM_PER_M
    valid = np.isfinite(places).all(1) & (fields.pop("vld", np.ones(len(places))) != 0)
    fields = {name: column[valid] for name, column in fields.items()}
    x, y, z = places[valid].T
    order = np.argsort(fields.get("tim", np.arange(len(x))), kind="stable")
    values: Columns = {"frame": np.empty(len(x)), "x": x, "y": y, "z": z}
    values["frame"][order] = np.arange(len(x))
    if "eco" in fields:
        values["photons"] = fields.pop("eco")
    others = {
        f"{name} [{UNITS[name]}]" if name in UNITS else name: _number(column)
        for name, column in fields.items()
    }
    metadata = {} if pixel_size_nm is None else {"pixel_size_nm": pixel_size_nm}
    return emitters_of(values, metadata, others)


def _number(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return column.astype(np.uint8) if column.dtype.kind == "b" else column


def _of_array(path: Path) -> Fields:
    # mapped, as a damaged header may state any size
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    if rows.dtype.names is None or "itr" not in rows.dtype.names:
        raise ValueError(f"{path} is no export of a MINFLUX microscope: it has no field itr")
    iterations = rows["itr"]
    if iterations.dtype.names is None:
        return _last({name: np.asarray(rows[name]) for name in rows.dtype.names})
    last = iterations[:, -1] if iterations.ndim == 2 else iterations
    found = {name: np.asarray(last[name]) for name in last.dtype.names}
    found |= {name: np.asarray(rows[name]) for name in rows.dtype.names if name != "itr"}
    return _plain(found)


def _of_json(path: Path) -> Fields:
    rows = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("it is no list of localizations")
    if rows and isinstance(rows[0].get("itr"), list):
        of_rows = [{k: v for k, v in row.items() if k != "itr"} for row in rows]
        return _plain(_stacked([row["itr"][-1] for row in rows]) | _stacked(of_rows))
    return _last(_stacked(rows))


def _stacked(rows: Sequence[Mapping[str, Any]]) -> Fields:
    names = [name for name in (rows[0] if rows else {}) if all(name in row for row in rows)]
    return {name: np.array([_floats(row[name]) for row in rows], np.float64) for name in names}


def _floats(value: Any) -> Any:
    """A number, or numbers; null is NaN."""
    if isinstance(value, list):
        return [_floats(part) for part in value]
    return np.nan if value is None else float(value)


def _last(fields: Fields) -> Fields:
    """The rows of the last iteration, of a table whose rows are iterations."""
    if "itr" not in fields:
        raise ValueError("it has no field itr, as exports of MINFLUX microscopes have")
    last = fields["itr"] == fields["itr"].max(initial=0)
    return _plain({name: column[last] for name, column in fields.items()})


def _plain(fields: Fields) -> Fields:
    """Positions, and the fields of one number; of the two shares of the detectors the first."""
    if fields.get("dcr", np.zeros(0)).ndim == 2:
        fields["dcr"] = fields["dcr"][:, 0]
    return {name: column for name, column in fields.items() if name == "loc" or column.ndim == 1}


def _is_array(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(6) == b"\x93NUMPY"


def _is_minflux(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(HEAD)
    if head.startswith(b"\x93NUMPY"):
        return all(mark in head for mark in (b"'itr'", b"'loc'", b"'tid'"))
    return head.lstrip().startswith(b"[") and all(mark in head for mark in (b'"itr"', b'"loc"'))


FORMAT = TableFormat(
    name="minflux",
    title="MINFLUX export of Imspector",
    content="an array or a list with `itr`, `loc` and `tid`",
    suffixes=(".npy", ".json"),
    recognizes=_is_minflux,
    read=read_minflux,
)
