"""SMAP's `_sml.mat` as MATLAB's level 5; `smap_73` has that of MATLAB 7.3.

The fields are those of `LocalizationData.savelocs` of SMAP, https://github.com/jries/SMAP.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from decode.atomic import atomic
from decode.emitters import EmitterSet
from decode.io.mat5 import names_of_mat5, read_mat5
from decode.io.tables.columns import (
    OWN,
    Columns,
    filled,
    from_named,
    numbers_of,
    require_same,
    unit_of,
)
from decode.io.tables.format import Append, TableFormat

__all__ = [
    "FACTS",
    "FORMAT",
    "Content",
    "columns_of",
    "matlab_names",
    "rows_of",
    "table_of",
    "variables",
]

NAMES = {
    "frame": "frame",
    "x": "xnm",
    "y": "ynm",
    "z": "znm",
    "photons": "phot",
    "background": "bg",
    "sigma_x": "xnmerr",
    "sigma_y": "ynmerr",
    "sigma_z": "locprecznm",
    "photons_sigma": "photerr",
    "half95_x": "interval95_x",
    "half95_y": "interval95_y",
    "half95_z": "interval95_z",
    "photons_95": "interval95_phot",
    "probability": "prob",
} | {name: name for name in OWN}
"""names of the columns in files"""

ELSE = {"sigma_x": "locprecnm", "sigma_y": "locprecnm", "sigma_z": "znmerr"}
ELSE |= {"photons_sigma": "phot_err"}
"""names of columns where those above are missing"""

STANDING = {"channel": 0, "filenumber": 1}
"""fields that SMAP asks of a table, and their values in one of one channel and one file"""

USUAL_PIXEL_UM = 0.1
"""what SMAP assumes of tables that state no pixel size"""

MOST_BYTES = 2**31
"""most bytes of a variable of level 5"""

LONGEST_NAME = 63
"""letters of a name in MATLAB"""

OF_ITS_FITS = (
    "SMAP's own fits call the centre of the first pixel 1 px, where others call it half a pixel; "
    "the positions are as it stated them"
)

FACTS = "decode"
"""field of `saveloc`: bytes of a JSON text with what `EmitterSet.metadata` holds, and the names of
the columns that MATLAB would not allow"""


@contextmanager
def smap_table(path: Path, metadata: Mapping[str, object]) -> Iterator[Append]:
    """Frames from 1, nm, photons, in double precision; without texts.  The rows are kept until the
    end, as the format holds them column by column."""
    names: dict[str, str] = {}
    chunks: list[Columns] = []
    n_bytes = 0
    with atomic(path) as temporary:

        def append(chunk: EmitterSet) -> None:
            nonlocal names, n_bytes
            labelled = columns_of(chunk, metadata)
            names = names or matlab_names(labelled)
            require_same(list(labelled), list(names))
            chunks.append({names[label]: column for label, column in labelled.items()})
            n_bytes += sum(column.nbytes for column in labelled.values())
            if n_bytes > MOST_BYTES:
                raise ValueError(
                    f"{path} would hold more than 2 GiB; write it as smap-7.3 (--to), which "
                    "MATLAB reads as well"
                )

        yield append
        if not chunks:
            append(EmitterSet.empty())
        whole = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
        loc = {name: column[:, None] for name, column in filled(whole).items()}
        content = variables(path, metadata, names)
        content["saveloc"]["loc"] = loc
        import scipy.io  # takes a while, and few need it

        with temporary.open("wb") as file:
            scipy.io.savemat(file, content, long_field_names=True)


def variables(
    path: Path, metadata: Mapping[str, object], names: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """What a file holds, but for `saveloc.loc`: structs, arrays as MATLAB shapes them, texts."""
    ours = {label: name for label, name in names.items() if label != name}
    facts = json.dumps({"metadata": dict(metadata), "names": ours}, default=str)
    saveloc = {
        "file": {
            "name": path.name,
            "number": 1.0,
            "numberOfTif": 0.0,
            "info": _info(metadata),
            "average": np.zeros((0, 0)),
            "tif": np.zeros((0, 0)),
        },
        "history": np.empty((0, 0), object),
        FACTS: np.frombuffer(facts.encode(), np.uint8)[None],
    }
    return {"saveloc": saveloc, "fileformat": {"name": "sml"}}


def columns_of(chunk: EmitterSet, metadata: Mapping[str, object]) -> Columns:
    """Columns by the names in `NAMES`, what SMAP asks for, then the numbers of other programs."""
    values = numbers_of(chunk)
    ours = {NAMES[name]: column for name, column in values.items()}
    ours["frame"] = values["frame"] + 1.0
    if "sigma_x" in values:
        ours["locprecnm"] = np.sqrt((values["sigma_x"] ** 2 + values["sigma_y"] ** 2) / 2)
    if "psf_sigma_nm" in metadata:
        ours["PSFxnm"] = np.full(len(chunk), float(str(metadata["psf_sigma_nm"])))
    standing = {name: np.full(len(chunk), float(value)) for name, value in STANDING.items()}
    meant = {unit_of(name)[0] for name in ours}
    theirs = {
        name: column
        for name, column in chunk.others.items()
        if column.dtype.kind in "biuf" and unit_of(name)[0] not in meant
    }
    return ours | standing | theirs


def matlab_names(columns: Columns) -> dict[str, str]:
    """By its label, a name for each column that MATLAB allows: letters, digits and `_`."""
    names: dict[str, str] = {}
    for label in columns:
        bare = re.sub(r"\W", "_", label, flags=re.ASCII)
        name = (bare if bare[:1].isalpha() else f"x{bare}")[: LONGEST_NAME - 4]
        others = (f"{name}_{k}" for k in count(2))
        names[label] = next(n for n in chain([name], others) if n not in names.values())
    return names


def _info(metadata: Mapping[str, object]) -> dict[str, object]:
    """`file.info`: a pixel in um, and the extent of the movie where it is known."""
    stated = {
        name: float(str(v))
        for name, v in metadata.items()
        if name in ("pixel_size_nm", "width_px", "height_px", "n_frames")
    }
    pixel_um = stated.get("pixel_size_nm", 1e3 * USUAL_PIXEL_UM) / 1e3
    info: dict[str, object] = {"cam_pixelsize_um": np.array([[pixel_um, pixel_um]])}
    if {"width_px", "height_px"} <= stated.keys():
        width, height = stated["width_px"], stated["height_px"]
        info |= {"Width": width, "Height": height, "roi": np.array([[0.0, 0.0, width, height]])}
    return info | ({"numberOfFrames": stated["n_frames"]} if "n_frames" in stated else {})


class Content(NamedTuple):
    """What is read of a file."""

    loc: Columns
    """(n,) each"""
    info: Columns
    """numbers on the file, of any shape"""
    facts: bytes


def read_smap(path: Path, pixel_size_nm: float | None) -> EmitterSet:
    return table_of(path, _level_5(path), pixel_size_nm)


def table_of(path: Path, content: Content, pixel_size_nm: float | None) -> EmitterSet:
    """Frames count from 1; positions are as SMAP states them."""
    stated = json.loads(content.facts or b"{}")
    labels = {name: label for label, name in stated.get("names", {}).items()}
    loc = {labels.get(name, name): column for name, column in content.loc.items()}
    for name, value in STANDING.items():
        if name in loc and (loc[name] == value).all():
            del loc[name]
    if {"xnmerr", "ynmerr"} <= loc.keys():
        loc.pop("locprecnm", None)  # their root mean square
    found_in = [{k: v for k, v in names.items() if v in loc} for names in (ELSE, NAMES)]
    named = found_in[0] | found_in[1]
    found = from_named(path, loc, first_frame=1, pixel_size_nm=pixel_size_nm, named=named)
    facts = stated["metadata"] if "metadata" in stated else _facts(content.info)
    doubts = [OF_ITS_FITS] if "xpix" in loc else []
    told = {"warnings": [*found.facts.warnings, *doubts]} if doubts else {}
    return replace(found, metadata={**found.metadata, **facts, **told})


def _facts(info: Columns) -> dict[str, object]:
    """What SMAP knows of the movie; sides of pixels that are no squares are left out."""
    facts: dict[str, object] = {}
    sides = info.get("cam_pixelsize_um", np.zeros(0)).ravel()
    if sides.size and np.isfinite(sides).all() and sides.min() == sides.max() > 0:
        facts["pixel_size_nm"] = 1e3 * float(sides[0])
    counts = {"n_frames": "numberOfFrames"}
    if not info.get("roi", np.zeros(2)).ravel()[:2].any():
        counts |= {"width_px": "Width", "height_px": "Height"}
    for name, theirs in counts.items():
        number = info.get(theirs, np.zeros(0)).ravel()
        if number.size == 1 and 0 < number[0] < MOST_BYTES:
            facts[name] = int(number[0])
    return facts


def _level_5(path: Path) -> Content:
    saveloc: Any = read_mat5(path).get("saveloc")
    if not isinstance(saveloc, Mapping) or not isinstance(saveloc.get("loc"), Mapping):
        raise ValueError(f"{path} is no table of SMAP: it has no saveloc.loc")
    files = saveloc.get("file")
    file = files[0] if isinstance(files, list) and files else files
    info = file.get("info") if isinstance(file, Mapping) else None
    facts = saveloc.get(FACTS)
    return Content(
        rows_of({name: _numbers(value) for name, value in saveloc["loc"].items()}),
        {name: _numbers(value) for name, value in (info or {}).items()},
        b"" if facts is None else facts.tobytes(),
    )


def _numbers(value: object) -> npt.NDArray[Any]:
    return value.ravel() if isinstance(value, np.ndarray) else np.zeros(0)


def rows_of(loc: Columns) -> Columns:
    """The columns that have a name, and a value in each row."""
    n = len(loc.get("frame", ()))
    return {name: column for name, column in loc.items() if name and len(column) == n}


def _is_smap(path: Path) -> bool:
    with path.open("rb") as file:
        if file.read(10) != b"MATLAB 5.0":
            return False
    with suppress(ValueError, zlib.error):
        return "saveloc" in names_of_mat5(path)
    return False


FORMAT = TableFormat(
    name="smap",
    title="SMAP `_sml.mat`",
    content="the variable `saveloc` of a MATLAB file (level 5)",
    suffixes=(".mat",),
    recognizes=_is_smap,
    read=read_smap,
    write=smap_table,
)
