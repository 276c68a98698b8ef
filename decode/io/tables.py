"""Tables of molecules on disk: ThunderSTORM, Picasso and challenge files; DECODE and SMLM files are read only."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, final

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv
import torch
import yaml

from decode.atomic import atomic
from decode.emitters import EmitterSet

__all__ = ["TableDialect", "TableWriter", "read_table", "write_table"]

TableDialect = Literal["thunderstorm", "picasso", "challenge"]

Columns = dict[str, npt.NDArray[Any]]

DECIMALS = {"nm": 3, "photon": 2, "": 4}
"""digits behind the point of a CSV column, by its unit"""

HDF5_MARGIN = 2**22
"""bytes that the HDF5 library may still hold back in its caches"""

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


@final
class TableWriter:
    """A table that grows chunk by chunk, so that memory stays bounded; a context manager.

    The file (and a sidecar) appears under its name when the block ends well; after an error there is none.

    Args:
        path: file to write; without a dialect, `.csv` means ThunderSTORM and `.hdf5` Picasso.
        metadata: as in `EmitterSet.metadata`.  Picasso needs `pixel_size_nm`; `psf_sigma_nm` is written where known.
        dialect: the file's format, where the suffix does not say it: "challenge" is the truth of the SMLM Challenge.

    Raises:
        ValueError: if the format is unknown, a fact is missing, or a chunk lacks a column that the first one had.
        OSError: if the file cannot be written.
    """

    def __init__(
        self, path: str | Path, metadata: Mapping[str, object] | None = None, *, dialect: TableDialect | None = None
    ) -> None:
        by_suffix: dict[str, TableDialect] = {".csv": "thunderstorm", ".hdf5": "picasso"}
        chosen = dialect or by_suffix.get(Path(path).suffix.lower())
        if chosen is None:
            raise ValueError(f"{path}: tables are written as {' or '.join(by_suffix)}")
        self._table = _WRITERS[chosen](Path(path), metadata or {})

    def __enter__(self) -> Self:
        self._append = self._table.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._table.__exit__(kind, error, traceback)

    def write(self, chunk: EmitterSet) -> None:
        """Append molecules; all chunks with rows must have the same columns."""
        if len(chunk):
            self._append(chunk)


def write_table(emitters: EmitterSet, path: str | Path, *, dialect: TableDialect | None = None) -> None:
    """Write a whole table; see `TableWriter` for formats and errors.

    CSV holds 3 digits behind the point for lengths in nm, 2 for photons and 4 for probabilities.
    """
    with TableWriter(path, emitters.metadata, dialect=dialect) as table:
        table.write(emitters)


def read_table(path: str | Path, *, pixel_size_nm: float | None = None) -> EmitterSet:
    """Read molecules written by this package or by ThunderSTORM, Picasso, DECODE, Locan (.smlm) or the challenge.

    CSV frames count from 1 in the file, all others from 0.  Where a file has one uncertainty for x and y, both get it;
    a column the format lacks is None (z: 0, photons: NaN).

    Args:
        path: `.csv`, `.hdf5` (with its `.yaml`), `.h5` or `.smlm` file.
        pixel_size_nm: needed only for tables in pixels that do not say how large these are.

    Returns:
        float64 columns in nm and photons, origin at the outer corner of pixel (0, 0).

    Raises:
        FileNotFoundError: if the file, or the sidecar of a Picasso file, is missing.
        ValueError: if it is no such table, is damaged, or lacks a column or a unit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    readers = {".csv": _read_csv, ".hdf5": _read_hdf5, ".h5": _read_hdf5, ".smlm": _read_smlm}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: tables are read from {', '.join(readers)} files")
    emitters = reader(path, pixel_size_nm)
    if not bool(torch.isfinite(emitters.xyz).all()):
        raise ValueError(f"{path} has rows without a position (empty, NaN or infinite x, y or z); remove them")
    if len(emitters) and int(emitters.frame.min()) < 0:
        raise ValueError(f"{path} has frame {int(emitters.frame.min()) + 1}, but frames in a CSV table count from 1")
    return emitters


Append = Callable[[EmitterSet], None]


@contextmanager
def _csv_table(path: Path, columns_of: Callable[[EmitterSet, int], Columns], *, quote: str) -> Iterator[Append]:
    """Open a CSV file and yield the function that appends a chunk to it.

    Args:
        columns_of: the file's columns of a chunk, given how many rows stand before it.
        quote: put around the names in the header.
    """
    with atomic(path) as temporary, temporary.open("wb") as file:
        writer: pa_csv.CSVWriter | None = None
        names: list[str] = []
        n_rows = 0

        def append(chunk: EmitterSet) -> None:
            nonlocal writer, names, n_rows
            columns = _filled(columns_of(chunk, n_rows))
            if writer is None:
                names = list(columns)
                file.write((",".join(f"{quote}{name}{quote}" for name in names) + "\n").encode())
                schema = pa.schema([(name, pa.from_numpy_dtype(columns[name].dtype)) for name in names])
                writer = pa_csv.CSVWriter(file, schema, write_options=pa_csv.WriteOptions(include_header=False))
            _require_same(list(columns), names)
            writer.write_table(pa.table(columns))
            n_rows += len(chunk)

        yield append
        if writer is None:
            append(EmitterSet.empty())
        if writer is not None:
            writer.close()


def _thunderstorm_table(path: Path, metadata: Mapping[str, object]) -> AbstractContextManager[Append]:
    """Frames from 1, nm from the outer corner, photons; uncertainty_xy is the root mean square of x and y."""

    def columns_of(chunk: EmitterSet, n_before: int) -> Columns:
        values = _numbers(chunk)
        columns = {"id": np.arange(n_before, n_before + len(chunk)) + 1, "frame": values["frame"] + 1}
        columns |= {f"{axis} [nm]": values[axis] for axis in "xyz"}
        if "psf_sigma_nm" in metadata:
            columns["sigma [nm]"] = np.full(len(chunk), float(str(metadata["psf_sigma_nm"])))
        columns["intensity [photon]"] = values["photons"]
        if "background" in values:
            columns["offset [photon]"] = values["background"]
        if "sigma_x" in values:
            columns["uncertainty_xy [nm]"] = np.sqrt((values["sigma_x"] ** 2 + values["sigma_y"] ** 2) / 2)
            columns |= {f"uncertainty_{axis} [nm]": values[f"sigma_{axis}"] for axis in "xyz"}
        if "photons_sigma" in values:
            columns["uncertainty_intensity [photon]"] = values["photons_sigma"]
        if "probability" in values:
            columns["probability"] = values["probability"]
        columns |= {name: values[name] for name in ("goodness", "polished") if name in values}
        return {name: _rounded(column, _unit(name)[1]) for name, column in columns.items()}

    return _csv_table(path, columns_of, quote='"')


def _challenge_table(path: Path, metadata: Mapping[str, object]) -> AbstractContextManager[Append]:
    """The truth of the SMLM Challenge: frames from 1, nm from the outer corner, photons."""

    def columns_of(chunk: EmitterSet, n_before: int) -> Columns:
        values = _numbers(chunk)
        columns = {"Ground-truth": np.arange(n_before, n_before + len(chunk)) + 1, "frame": values["frame"] + 1}
        columns |= {f"{axis}nano": _rounded(values[axis], "nm") for axis in "xyz"}
        return columns | {"intensity": _rounded(values["photons"], "photon")}

    return _csv_table(path, columns_of, quote="")


@contextmanager
def _picasso_table(path: Path, metadata: Mapping[str, object]) -> Iterator[Append]:
    """Frames from 0, x and y in pixels from the first pixel's centre, z in nm, and the facts in a YAML sidecar."""
    if "pixel_size_nm" not in metadata:
        raise ValueError(f"{path}: a Picasso table is in pixels; put pixel_size_nm into the table's metadata")
    pixel = float(str(metadata["pixel_size_nm"]))
    with atomic(path.with_suffix(".yaml")) as sidecar, atomic(path) as temporary, _hdf5_file(temporary) as file:
        locs: Any = None
        extent = {"Frames": 0, "Height": 0, "Width": 0}

        def append(chunk: EmitterSet) -> None:
            nonlocal locs
            columns = _filled(_picasso_columns(_numbers(chunk), pixel, metadata))
            if locs is None:
                dtype = np.dtype([(name, column.dtype) for name, column in columns.items()])
                locs = file.create_dataset("locs", shape=(0,), maxshape=(None,), dtype=dtype, chunks=(16384,))
            _require_same(list(columns), list(locs.dtype.names))
            records = np.empty(len(chunk), locs.dtype)
            for name, column in columns.items():
                records[name] = column
            _require_room(temporary, records.nbytes)
            locs.resize(len(locs) + len(records), axis=0)
            locs[len(locs) - len(records) :] = records
            for fact, name in {"Frames": "frame", "Height": "y", "Width": "x"}.items():
                extent[fact] = max(extent[fact], math.floor(columns[name].astype(np.float64).max(initial=-1) + 0.5) + 1)

        yield append
        if locs is None:
            append(EmitterSet.empty())
        known = {"Frames": "n_frames", "Height": "height_px", "Width": "width_px"}
        movie = {fact: int(str(metadata.get(name, extent[fact]))) for fact, name in known.items()}
        # plain scalars only, and the pixel size in the last document, where Picasso's own Localize puts it
        others = {name: value for name, value in metadata.items() if type(value) in (str, int, float, bool)}
        facts = {"Generated by": "decode", "Pixelsize": pixel} | {
            name: value for name, value in others.items() if name not in (*known.values(), "pixel_size_nm")
        }
        sidecar.write_text(yaml.safe_dump_all([movie, facts], sort_keys=False, allow_unicode=True), encoding="utf-8")


@contextmanager
def _hdf5_file(path: Path) -> Iterator[Any]:
    _require_room(path, 0)
    with h5py.File(path, "w") as file:
        yield file


def _require_room(path: Path, n_bytes: int) -> None:
    """Fail before the disk is full: HDF5 does not raise then but crashes (github.com/h5py/h5py/issues/914)."""
    if shutil.disk_usage(path.parent).free < n_bytes + HDF5_MARGIN:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _picasso_columns(values: Columns, pixel: float, metadata: Mapping[str, object]) -> Columns:
    n = len(values["frame"])
    columns: Columns = {"x": values["x"] / pixel - 0.5, "y": values["y"] / pixel - 0.5, "photons": values["photons"]}
    if "psf_sigma_nm" in metadata:
        columns["sx"] = columns["sy"] = np.full(n, float(str(metadata["psf_sigma_nm"])) / pixel)
    if "background" in values:
        columns["bg"] = values["background"]
    # Picasso insists on lpx and lpy: zeros stand for what is not known
    columns |= {f"lp{axis}": values.get(f"sigma_{axis}", np.zeros(n)) / pixel for axis in "xy"}
    sigma_z = values.get("sigma_z")
    if sigma_z is None or not np.isnan(sigma_z).all() or n == 0:  # a table without z is 2D to Picasso
        columns["z"] = values["z"]
    if sigma_z is not None:
        columns["lpz"] = sigma_z
    if "probability" in values:
        columns["prob"] = values["probability"]
    if "photons_sigma" in values:
        columns["photons_sigma"] = values["photons_sigma"]
    columns |= {name: values[name] for name in ("goodness", "polished") if name in values}
    return {"frame": values["frame"].astype(np.uint32)} | {k: v.astype(np.float32) for k, v in columns.items()}


_WRITERS: dict[TableDialect, Callable[[Path, Mapping[str, object]], AbstractContextManager[Append]]] = {
    "thunderstorm": _thunderstorm_table,
    "picasso": _picasso_table,
    "challenge": _challenge_table,
}


def _numbers(emitters: EmitterSet) -> Columns:
    """The columns one by one: frame, x, y, z, photons and, where present, the others."""
    columns = {name: column.detach().cpu().numpy() for name, column in emitters.columns().items()}
    for triple, prefix in (("xyz", ""), ("xyz_sigma", "sigma_")):
        if triple in columns:
            xyz = columns.pop(triple)
            columns |= {f"{prefix}{axis}": xyz[:, i] for i, axis in enumerate("xyz")}
    whole = {"frame", "polished"}
    return {name: column.astype(np.int64 if name in whole else np.float64) for name, column in columns.items()}


def _filled(columns: Columns) -> Columns:
    """Without the columns that hold nothing but NaN: other programs stumble over it."""
    return {name: column for name, column in columns.items() if len(column) == 0 or not np.isnan(column).all()}


def _require_same(names: list[str], before: list[str]) -> None:
    if names != before:
        raise ValueError(f"a chunk has the columns {', '.join(names)}, but the table began with {', '.join(before)}")


def _rounded(column: npt.NDArray[Any], unit: str) -> npt.NDArray[Any]:
    """Digits as printed; adding 0 turns -0 into 0."""
    return column if column.dtype.kind == "i" else np.round(column, DECIMALS[unit]) + 0.0


def _read_csv(path: Path, pixel_size_nm: float | None) -> EmitterSet:
    with path.open("rb") as file:
        line = file.readline()
    try:
        header = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        header = line.decode("latin-1")
    # some programs quote the whole header, or each name twice: no name holds a quote or a comma
    labels = [label.strip() for label in header.replace('"', "").split(",")]
    known = {alias for aliases in (LENGTHS | PHOTONS | OTHERS).values() for alias in aliases}
    wanted = [label for label in labels if _unit(label)[0] in known]
    try:
        table = pa_csv.read_csv(
            path,
            read_options=pa_csv.ReadOptions(column_names=labels, skip_rows=1),
            convert_options=pa_csv.ConvertOptions(
                include_columns=wanted, column_types=dict.fromkeys(wanted, pa.float64())
            ),
        )
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a table of molecules: {str(error).splitlines()[0]}") from error
    named = {_unit(label)[0]: (_unit(label)[1], table[label].to_numpy()) for label in wanted}
    return _from_named(path, named, first_frame=1, pixel_size_nm=pixel_size_nm)


def _unit(label: str) -> tuple[str, str]:
    """Name and unit of a column: `x [nm]`, `x_nm` and the challenge's `xnano` are the same."""
    label = re.sub(r"^([xyz])nano$", r"\1 [nm]", label.strip().lower())
    match = re.fullmatch(r"(.*?)\s*(?:\[(.*)\]|_(nm|um|px))?", label)
    assert match is not None  # matches any text
    return match[1], match[2] or match[3] or ""


def _from_named(
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
    return _emitters(values, metadata)


def _emitters(values: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, object]) -> EmitterSet:
    """The inverse of `_numbers`; needs frame, x and y."""
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


def _read_hdf5(path: Path, pixel_size_nm: float | None) -> EmitterSet:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} is not an HDF5 file, or it is damaged") from error
    with file:
        if "locs" in file:
            return _from_picasso(path, file["locs"][...])
        if "data/xyz" in file:
            return _from_decode(path, file, pixel_size_nm)
    raise ValueError(f"{path} holds neither Picasso's `locs` nor DECODE's `data/xyz`")


def _from_picasso(path: Path, locs: npt.NDArray[Any]) -> EmitterSet:
    sidecar = path.with_suffix(".yaml")
    if not sidecar.is_file():
        raise FileNotFoundError(f"{path} is in pixels: put {sidecar.name}, which says how large one is, beside it")
    try:
        documents = [facts for facts in yaml.safe_load_all(sidecar.read_text(encoding="utf-8")) if facts]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{sidecar} is not a readable YAML file") from error
    # each step of Picasso appends a document, so the last word counts
    facts = {name: value for document in documents for name, value in dict(document).items()}
    names = set(locs.dtype.names or ())
    if "Pixelsize" not in facts:
        raise ValueError(f"{sidecar} does not state Pixelsize (nm)")
    if not {"frame", "x", "y"} <= names:
        raise ValueError(f"{path} is not a table of molecules: its `locs` lack frame, x or y")
    pixel = float(facts["Pixelsize"])
    values: Columns = {axis: (locs[axis].astype(np.float64) + 0.5) * pixel for axis in ("x", "y")}
    if {"lpx", "lpy"} <= names and (locs["lpx"].any() or locs["lpy"].any()):
        values |= {f"sigma_{axis}": locs[f"lp{axis}"].astype(np.float64) * pixel for axis in "xy"}
    same = {"z": "z", "sigma_z": "lpz", "frame": "frame", "photons": "photons", "background": "bg"}
    same |= {"probability": "prob"} | {name: name for name in ("photons_sigma", "goodness", "polished")}
    values |= {name: locs[theirs] for name, theirs in same.items() if theirs in names}
    movie = {"n_frames": "Frames", "height_px": "Height", "width_px": "Width"}
    counts = {name: int(facts[theirs]) for name, theirs in movie.items() if theirs in facts}
    return _emitters(values, {"pixel_size_nm": pixel, **counts})


def _from_decode(path: Path, file: Any, pixel_size_nm: float | None) -> EmitterSet:
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
    return _emitters(values, {"pixel_size_nm": float(size[0])} if size[0] == size[1] else {})


def _read_smlm(path: Path, pixel_size_nm: float | None) -> EmitterSet:
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
    return _from_named(path, named, first_frame=0, pixel_size_nm=pixel_size_nm)
