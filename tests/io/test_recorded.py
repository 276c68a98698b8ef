"""An asymmetric phantom, typed in as each program writes it: axes, origin, units and frames.

No coordinate is another one's mirror image, multiple or exchange, so that whatever is confounded
shows.
"""

from __future__ import annotations

import csv
import json
import math
import re
import struct
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import torch

from decode import EmitterSet, read_table, write_table
from decode.io.formats import format_of
from decode.io.tables import TableWriter, table_formats

NM = 0.01
"""largest difference of a coordinate"""

FRAMES = [0, 2, 7]
X, Y, Z = [125.0, 1500.5, 6320.0], [1150.0, 50.25, 2210.0], [-250.0, 30.0, 480.0]
PHOTONS = [512.5, 1000.0, 2048.0]
SIGMA_X, SIGMA_Y, SIGMA_Z = [5.0, 6.0, 7.0], [10.0, 12.0, 11.0], [20.5, 30.0, 40.0]
FACTS = {"pixel_size_nm": 100.0, "n_frames": 8, "width_px": 64, "height_px": 32}


@dataclass(frozen=True)
class Recorded:
    """A file as a program writes it, and how much of the phantom it can state."""

    format: str
    name: str
    write: Callable[[Path], object]
    pixel_size_nm: float | None = None
    photons: bool = True
    z: bool = True
    sigma: str = ""
    """axes of which it states the uncertainty; "one": the same for x and y"""
    options: dict[str, Any] = field(default_factory=dict)


def text(content: str, encoding: str = "utf-8") -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content.encode(encoding))


THUNDERSTORM_OLD = """\
"id","frame","x [nm]","y [nm]","sigma [nm]","intensity [photon]","offset [photon]",\
"bkgstd [photon]","uncertainty [nm]"
1.0,1.0,125.0,1150.0,130.0,512.5,8.0,1.5,5.0
2.0,3.0,1500.5,50.25,131.0,1000.0,16.5,1.6,6.0
3.0,8.0,6320.0,2210.0,132.0,2048.0,3.0,1.7,7.0
"""
THUNDERSTORM_3D = """\
"id","frame","x [nm]","y [nm]","z [nm]","sigma1 [nm]","sigma2 [nm]","intensity [photon]",\
"offset [photon]","bkgstd [photon]","chi2","uncertainty_xy [nm]","uncertainty_z [nm]","detections"
1,1,125,1150,-250,180,120,512.5,8,1.5,90,5,20.5,2
2,3,1500.5,50.25,30,140,141,1000,16.5,1.6,91,6,30,1
3,8,6320,2210,480,110,200,2048,3,1.7,92,7,40,4
"""
THUNDERSTORM_PIXELS = """\
"frame","x [px]","y [px]","z [nm]","sigma1 [px]","sigma2 [px]","intensity [ADU]","offset [ADU]",\
"uncertainty [px]"
1,1.25,11.5,-250,1.8,1.2,5125,80,0.05
3,15.005,0.5025,30,1.4,1.41,10000,165,0.06
8,63.2,22.1,480,1.1,2.0,20480,30,0.07
"""
THUNDERSTORM_UM = """\
"frame","x [um]","y [um]","z [um]","intensity [photon]","uncertainty_xy [um]"
1,0.125,1.15,-0.25,512.5,0.005
3,1.5005,0.05025,0.03,1000,0.006
8,6.32,2.21,0.48,2048,0.007
"""
CHALLENGE = """\
Ground-truth,frame,xnano,ynano,znano,intensity
1,1,125,1150,-250,512.5
2,3,1500.5,50.25,30,1000
3,8,6320,2210,480,2048
"""
NANOIMAGER = """\
Channel,Frame,X (nm),Y (nm),Z (nm),X precision (nm),Y precision (nm),X (pix),Y (pix),Z (pix),\
X precision (pix),Y precision (pix),Photons,Background
0,0,125.000000,1150.000000,-250.000000,5.0,10.0,1.25,11.5,-2.5,0.05,0.1,512.5,8.0
1,2,1500.500000,50.250000,30.000000,6.0,12.0,15.005,0.5025,0.3,0.06,0.12,1000.0,16.5
0,7,6320.000000,2210.000000,480.000000,7.0,11.0,63.2,22.1,4.8,0.07,0.11,2048.0,3.0
"""
ELYRA = (
    "Index\tFirst Frame\tNumber Frames\tFrames Missing\tPosition X [nm]\tPosition Y [nm]\t"
    "Position Z [nm]\tPrecision [nm]\tNumber Photons\tBackground variance\tChi square\t"
    "PSF half width [nm]\tChannel\tZ Slice\r\n"
    "1\t1\t1\t0\t125.0\t1150.0\t-250.0\t5.0\t512.5\t5.33\t0.28\t110.0\t1\t1\r\n"
    "2\t3\t2\t1\t1500.5\t50.25\t30.0\t6.0\t1000\t4.38\t0.31\t129.8\t1\t1\r\n"
    "3\t8\t1\t0\t6320.0\t2210.0\t480.0\t7.0\t2048\t3.06\t0.23\t131.1\t1\t1\r\n"
    "\0\r\r\nVoxelSizeX : 0.1000000000 \xb5m\r\r\nVoxelSizeY : 0.1000000000 \xb5m\r\r\n"
    "SizeX : 64\r\r\nSizeY : 32\r\r\n\r\nROI List : \r\r\n"
)
# the centre of the first pixel is rapidSTORM's origin: half of 100 nm is to be added
RAPIDSTORM = (
    '# <localizations insequence="true" repetitions="variable">'
    '<field identifier="Position-0-0" syntax="floating point with . for decimals and optional '
    'scientific e-notation" semantic="position in sample space in X" unit="nanometer" min="0 m" '
    'max="6.3e-006 m" />'
    '<field identifier="Position-0-0-uncertainty" unit="nanometer" />'
    '<field identifier="Position-1-0" unit="nanometer" min="0 m" max="3.1e-006 m" />'
    '<field identifier="Position-1-0-uncertainty" unit="nanometer" />'
    '<field identifier="Position-2-0" unit="nanometer" />'
    '<field identifier="ImageNumber-0-0" syntax="integer" semantic="frame number" unit="frame" '
    'min="0 fr" />'
    '<field identifier="Amplitude-0-0" semantic="emission strength" unit="A/D count" />'
    "</localizations>\n"
    "75 5 1100 10 -250 0 5125\n"
    "1450.5 6 0.25 12 30 2 10000\n"
    "6270 7 2160 11 480 7 20480\n"
)
NAMELESS = "0;0,125;1,15;512,5\n2;1,5005;0,05025;1000\n7;6,32;2,21;2048\n"
OWN_NAMES = """\
T,X stage,"Y, stage",x [nm],depth [um],N
10,0.125,1.15,9,-0.25,512.5
12,1.5005,0.05025,8,0.03,1000
17,6.32,2.21,7,0.48,2048
"""


def picasso(path: Path) -> None:
    """Frames from 0, x and y in pixels from the centre of the first one, z in nm."""
    names = ["frame", "x", "y", "photons", "bg", "lpx", "lpy", "z", "lpz"]
    rows = [
        (0, 0.75, 11.0, 512.5, 8.0, 0.05, 0.10, -250.0, 20.5),
        (2, 14.505, 0.0025, 1000.0, 16.5, 0.06, 0.12, 30.0, 30.0),
        (7, 62.7, 21.6, 2048.0, 3.0, 0.07, 0.11, 480.0, 40.0),
    ]
    kinds = [(name, "<u4" if name == "frame" else "<f4") for name in names]
    with h5py.File(path, "w") as file:
        file["locs"] = np.array(rows, kinds)
    path.with_suffix(".yaml").write_text(
        "Frames: 8\nHeight: 32\nWidth: 64\n---\nGenerated by: Picasso Localize\nPixelsize: 100\n"
    )


def decode_h5(path: Path) -> None:
    """x along the rows of the image, pixel centres at whole numbers."""
    with h5py.File(path, "w") as file:
        file.create_group("meta").attrs.update({"xy_unit": "px", "px_size": [100.0, 100.0]})
        file.create_group("decode").attrs["version"] = "v0.10.0"
        file["data/xyz"] = np.array(
            [[11.0, 0.75, -250.0], [0.0025, 14.505, 30.0], [21.6, 62.7, 480.0]], "f4"
        )
        file["data/xyz_sig"] = np.array([[0.1, 0.05, 20.5], [0.12, 0.06, 30], [0.11, 0.07, 40]])
        file["data/phot"] = np.array([512.5, 1000.0, 2048.0])
        file["data/frame_ix"] = np.array([0, 2, 7])


def smlm(path: Path) -> None:
    layout = {
        "headers": ["frame", "x", "y", "z", "intensity"],
        "dtype": ["uint32", "float64", "float32", "float32", "float32"],
        "shape": [1, 1, 1, 1, 1],
        "units": ["frame", "um", "nm", "nm", "photon"],
    }
    entry = {"name": "a.bin", "type": "table", "format": "f", "rows": 3, "offset": {}}
    rows = [
        (0, 0.125, 1150.0, -250.0, 512.5),
        (2, 1.5005, 50.25, 30.0, 1000.0),
        (7, 6.32, 2210.0, 480.0, 2048.0),
    ]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", json.dumps({"formats": {"f": layout}, "files": [entry]}))
        archive.writestr("a.bin", b"".join(struct.pack("<Idfff", *row) for row in rows))


def parquet(path: Path) -> None:
    columns = {
        "frame": ([0, 2, 7], ""),
        "x_nm": ([125.0, 1500.5, 6320.0], "nm"),
        "y_nm": ([1150.0, 50.25, 2210.0], "nm"),
        "z": ([-0.25, 0.03, 0.48], "um"),
        "photons": ([512.5, 1000.0, 2048.0], "photon"),
        "background": ([8.0, 16.5, 3.0], "photon per pixel"),
    }
    fields = [
        pa.field(name, pa.array(values).type, metadata={"unit": unit})
        for name, (values, unit) in columns.items()
    ]
    schema = pa.schema(fields, metadata={"decode": json.dumps(FACTS)})
    pq.write_table(pa.table([values for values, _ in columns.values()], schema=schema), path)


def smap(path: Path) -> dict[str, Any]:
    """Fields of a table of SMAP, frames from 1."""
    loc = {
        "frame": [1.0, 3.0, 8.0],
        "xnm": [125.0, 1500.5, 6320.0],
        "ynm": [1150.0, 50.25, 2210.0],
        "znm": [-250.0, 30.0, 480.0],
        "phot": [512.5, 1000.0, 2048.0],
        "bg": [8.0, 16.5, 3.0],
        "xnmerr": [5.0, 6.0, 7.0],
        "ynmerr": [10.0, 12.0, 11.0],
        "locprecznm": [20.5, 30.0, 40.0],
        "channel": [0.0, 1.0, 0.0],
        "filenumber": [1.0, 1.0, 1.0],
    }
    info = {
        "cam_pixelsize_um": [0.1, 0.1],
        "roi": [0.0, 0.0, 64.0, 32.0],
        "numberOfFrames": [8.0],
        "Width": [64.0],
        "Height": [32.0],
    }
    return {"loc": loc, "info": info}


def smap_5(path: Path) -> None:
    """N x 1, as MATLAB's `save -v7` stores it: compressed."""
    content = smap(path)
    loc = {name: np.array(values)[:, None] for name, values in content["loc"].items()}
    info = {name: np.array([values]) for name, values in content["info"].items()}
    saveloc = {"loc": loc, "file": {"info": info, "name": "a.tif"}}
    scipy.io.savemat(path, {"parameters": 1.0, "saveloc": saveloc}, do_compression=True)


def smap_73(path: Path) -> None:
    """1 x N behind MATLAB's 512 bytes, as `save -v7.3` stores N x 1."""
    content = smap(path)
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in content["loc"].items():
            file[f"saveloc/loc/{name}"] = np.array([values], "f4")
        for name, values in content["info"].items():
            file[f"saveloc/file/info/{name}"] = np.array(values)[:, None]
        empty = file.create_dataset("saveloc/loc/clusterindex", data=np.array([0, 0], "u8"))
        empty.attrs["MATLAB_empty"] = 1
    header = (
        "MATLAB 7.3 MAT-file, Platform: PCWIN64, Created on: Mon Nov 30 2026 HDF5 schema 1.00 ."
    )
    with path.open("r+b") as stream:
        stream.write(header.ljust(116).encode() + bytes(8) + b"\x00\x02IM")


EXPOSURES = [(0.5, 7, 125e-9, 1150e-9, -250e-9, 512), (0.75, 7, 1500.5e-9, 50.25e-9, 30e-9, 1000)]
EXPOSURES += [(9.25, 12, 6320e-9, 2210e-9, 480e-9, 2048)]
"""of a MINFLUX microscope: s, trace, x, y and z in m, counts"""


def minflux_npy(path: Path) -> None:
    """Two iterations in each row, of which the first is off; a third row is no localization."""
    iteration = [("itr", "<i4"), ("loc", "<f8", (3,)), ("lnc", "<f8", (3,)), ("eco", "<i4")]
    kinds = [("itr", iteration, (2,)), ("tim", "<f8"), ("tid", "<i4"), ("vld", "?")]
    rows = np.zeros(4, kinds)
    for at, (tim, tid, x, y, z, eco) in zip([0, 1, 3], EXPOSURES, strict=True):
        off, last = (0, (9e-6, 8e-6, 7e-6), (0, 0, 0), 9), (1, (x, y, z), (0, 0, 0), eco)
        rows[at] = ([off, last], tim, tid, True)
    rows["itr"]["loc"][2] = np.nan
    np.save(path, rows)


def minflux_flat() -> list[dict[str, Any]]:
    """An iteration in each row, as of Imspector m2410."""
    rows = []
    for tim, tid, x, y, z, eco in EXPOSURES:
        first = {"loc": [9e-6, 8e-6, 7e-6], "itr": 0, "eco": 9, "vld": True, "fnl": False}
        last = {"loc": [x, y, z], "itr": 1, "eco": eco, "vld": True, "fnl": True}
        rows += [each | {"tim": tim, "tid": tid, "dcr": [0.25, 0.75]} for each in (first, last)]
    bad = {"loc": [math.nan] * 3, "itr": 1, "eco": 5, "vld": False, "fnl": True}
    return [*rows, bad | {"tim": 9.5, "tid": 13, "dcr": [0.0, 0.0]}]


def minflux_flat_npy(path: Path) -> None:
    kinds = [("vld", "?"), ("fnl", "?"), ("tim", "<f8"), ("tid", "<u4"), ("itr", "<i4")]
    kinds += [("loc", "<f8", (3,)), ("eco", "<u4"), ("dcr", "<f2", (2,))]
    rows = np.zeros(len(minflux_flat()), kinds)
    for name, *_ in kinds:
        rows[name] = [row[name] for row in minflux_flat()]
    np.save(path, rows)


def minflux_json(path: Path) -> None:
    off = {"itr": 0, "loc": [9e-6, 8e-6, 7e-6], "eco": 9}
    rows = [
        {
            "itr": [off, {"itr": 1, "loc": [x, y, z], "eco": eco}],
            "tim": tim,
            "tid": tid,
            "vld": True,
        }
        for tim, tid, x, y, z, eco in EXPOSURES
    ]
    path.write_text(json.dumps(rows, indent=1))


OWN_COLUMNS = {"frame": "T", "x": "X stage[um]", "y": "Y, stage [um]", "photons": "N"}
RECORDED = {
    "thunderstorm-old": Recorded(
        "thunderstorm", "a.csv", text(THUNDERSTORM_OLD), z=False, sigma="one"
    ),
    "thunderstorm-3d": Recorded("thunderstorm", "a.csv", text(THUNDERSTORM_3D), sigma="one z"),
    "thunderstorm-px": Recorded(
        "thunderstorm", "a.csv", text(THUNDERSTORM_PIXELS), 100.0, photons=False, sigma="one"
    ),
    "thunderstorm-um": Recorded(
        "thunderstorm", "a.xls", text(THUNDERSTORM_UM.replace(",", "\t")), sigma="one"
    ),
    "challenge": Recorded("challenge", "a.csv", text(CHALLENGE)),
    "nanoimager": Recorded("nanoimager", "a.csv", text(NANOIMAGER), sigma="x y"),
    "elyra": Recorded("elyra", "a.txt", text(ELYRA, "latin-1"), sigma="one"),
    "rapidstorm": Recorded(
        "rapidstorm", "a.txt", text(RAPIDSTORM), 100.0, photons=False, sigma="x y"
    ),
    "picasso": Recorded("picasso", "a.hdf5", picasso, sigma="x y z"),
    "decode": Recorded("decode", "a.h5", decode_h5, sigma="x y z"),
    "smlm": Recorded("smlm", "a.smlm", smlm),
    "parquet": Recorded("parquet", "a.parquet", parquet),
    "smap-5": Recorded("smap", "a_sml.mat", smap_5, sigma="x y z"),
    "smap-7.3": Recorded("smap-7.3", "a_sml.mat", smap_73, sigma="x y z"),
    "minflux-npy": Recorded("minflux", "a.npy", minflux_npy),
    "minflux-flat-npy": Recorded("minflux", "a.npy", minflux_flat_npy),
    "minflux-json": Recorded("minflux", "a.json", minflux_json),
    "minflux-flat-json": Recorded(
        "minflux", "a.json", lambda path: path.write_text(json.dumps(minflux_flat()))
    ),
    "named": Recorded(
        "",
        "a.csv",
        text(OWN_NAMES),
        options={"columns": {**OWN_COLUMNS, "z": "depth [um]"}, "first_frame": 10},
    ),
    "nameless": Recorded(
        "",
        "a.dat",
        text(NAMELESS),
        z=False,
        options={
            "columns": {"frame": "1", "x": "2[um]", "y": "3[um]", "photons": "4"},
            "first_frame": 0,
        },
    ),
}


@pytest.mark.parametrize("name", RECORDED)
def test_the_phantom_is_where_each_program_put_it(name: str, tmp_path: Path) -> None:
    kind = RECORDED[name]
    kind.write(tmp_path / kind.name)
    if kind.format:
        assert format_of(tmp_path / kind.name, table_formats(), what="tables").name == kind.format
    table = read_table(tmp_path / kind.name, pixel_size_nm=kind.pixel_size_nm, **kind.options)
    ranks = kind.format == "minflux"  # it has no frames
    assert table.frame.tolist() == ([0, 1, 2] if ranks else FRAMES)
    expected = torch.tensor([X, Y, Z if kind.z else [0.0] * 3], dtype=torch.float64).T
    assert (table.xyz - expected).abs().max() < NM
    if kind.photons:
        assert table.photons.tolist() == pytest.approx(PHOTONS, abs=0.5 * ranks)
    else:
        assert table.photons.isnan().all()
        assert any("no photons" in warning for warning in table.facts.warnings)
    sigma = np.full((3, 3), np.nan) if table.xyz_sigma is None else table.xyz_sigma.numpy()
    stated = {"x": SIGMA_X, "y": SIGMA_Y, "z": SIGMA_Z}
    if "one" in kind.sigma:
        stated |= {"x": SIGMA_X, "y": SIGMA_X}
    axes = kind.sigma.replace("one", "x y").split()
    for i, axis in enumerate("xyz"):
        known = stated[axis] if axis in axes else [np.nan] * 3
        np.testing.assert_allclose(sigma[:, i], known, rtol=1e-6)


def test_every_format_has_a_recorded_file() -> None:
    assert {kind.format for kind in RECORDED.values()} - {""} == {f.name for f in table_formats()}


def test_facts_that_a_file_states_are_read(tmp_path: Path) -> None:
    for name in ("picasso", "parquet", "smap-5", "smap-7.3"):
        kind = RECORDED[name]
        (tmp_path / name).mkdir()
        kind.write(tmp_path / name / kind.name)
        assert dict(read_table(tmp_path / name / kind.name).metadata) == FACTS
    for name in ("elyra", "nanoimager"):
        kind = RECORDED[name]
        kind.write(tmp_path / kind.name)
        assert read_table(tmp_path / kind.name).facts.pixel_size_nm == 100


def test_further_columns_stay_with_their_molecules(tmp_path: Path) -> None:
    expected = {
        "thunderstorm-3d": {"detections": [2, 1, 4], "sigma2 [nm]": [120, 141, 200]},
        "thunderstorm-px": {"intensity [ADU]": [5125, 10000, 20480]},
        "nanoimager": {"Channel": [0, 1, 0]},
        "elyra": {"Frames Missing": [0, 1, 0]},
        "rapidstorm": {"Amplitude-0-0": [5125, 10000, 20480]},
        "smap-7.3": {"channel": [0, 1, 0]},
        "minflux-flat-npy": {"tid": [7, 7, 12], "tim [s]": [0.5, 0.75, 9.25], "dcr": [0.25] * 3},
        "minflux-json": {"tid": [7, 7, 12], "tim [s]": [0.5, 0.75, 9.25]},
        "named": {"x [nm]": [9, 8, 7]},
    }
    for name, columns in expected.items():
        kind = RECORDED[name]
        kind.write(tmp_path / kind.name)
        table = read_table(tmp_path / kind.name, pixel_size_nm=kind.pixel_size_nm, **kind.options)
        for label, values in columns.items():
            assert table.others[label].tolist() == values


def test_rapidstorm_without_a_pixel_size_is_half_a_pixel_off_and_says_so(tmp_path: Path) -> None:
    RECORDED["rapidstorm"].write(tmp_path / "a.txt")
    table = read_table(tmp_path / "a.txt")
    assert table.xyz[:, 0].tolist() == [75, 1450.5, 6270]
    assert any("half of it is added" in warning for warning in table.facts.warnings)


def test_tracks_of_rapidstorm_are_refused(tmp_path: Path) -> None:
    nested = RAPIDSTORM.replace("</localizations>", "<localizations /></localizations>")
    (tmp_path / "a.txt").write_text(nested)
    with pytest.raises(ValueError, match="holds tracks; save the localizations"):
        read_table(tmp_path / "a.txt")


def test_a_table_of_smaps_own_fits_says_where_its_origin_is(tmp_path: Path) -> None:
    loc = {"frame": [[1.0]], "xnm": [[100.0]], "ynm": [[200.0]], "xpix": [[1.0]]}
    scipy.io.savemat(tmp_path / "a.mat", {"saveloc": {"loc": loc}})
    table = read_table(tmp_path / "a.mat")
    assert table.xyz.tolist() == [[100, 200, 0]]
    assert "calls" in table.facts.warnings[0] or "call the centre" in table.facts.warnings[0]


# -- what is written, looked at without decode
# -------------------------------------------------------------------------------------------------


def phantom() -> EmitterSet:
    def column(*values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64).T.squeeze(1)

    return EmitterSet(
        frame=torch.tensor(FRAMES),
        xyz=column(X, Y, Z),
        photons=column(PHOTONS),
        xyz_sigma=column(SIGMA_X, SIGMA_Y, SIGMA_Z),
        metadata=FACTS,
    )


def rows_of_text(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def rows_of_picasso(path: Path) -> list[dict[str, float]]:
    with h5py.File(path) as file:
        locs = file["locs"][...]
    return [dict(zip(locs.dtype.names, map(float, row), strict=True)) for row in locs]


def rows_of_smlm(path: Path) -> list[dict[str, float]]:
    with zipfile.ZipFile(path) as archive:
        layout = next(iter(json.loads(archive.read("manifest.json"))["formats"].values()))
        letters = {"uint32": "I", "float64": "d"}
        row = struct.Struct("<" + "".join(letters[kind] for kind in layout["dtype"]))
        content = archive.read("table.bin")
    return [
        dict(zip(layout["headers"], values, strict=True)) for values in row.iter_unpack(content)
    ]


def rows_of_smap(path: Path) -> list[dict[str, float]]:
    loc = scipy.io.loadmat(path, squeeze_me=True, struct_as_record=False)["saveloc"].loc
    names = loc._fieldnames
    return [{name: float(getattr(loc, name)[i]) for name in names} for i in range(len(loc.frame))]


def rows_of_smap_73(path: Path) -> list[dict[str, float]]:
    with h5py.File(path, "r") as file:
        loc = {name: column[0] for name, column in file["saveloc/loc"].items()}
    return [{name: float(loc[name][i]) for name in loc} for i in range(len(loc["frame"]))]


SMAP = {"frame": 3, "xnm": 1500.5, "ynm": 50.25, "znm": 30, "phot": 1000, "xnmerr": 6}
SMAP |= {"ynmerr": 12, "locprecznm": 30, "locprecnm": math.sqrt((6**2 + 12**2) / 2)}
SMAP |= {"filenumber": 1, "channel": 0}

WRITTEN: dict[str, tuple[str, Callable[[Path], list[dict[str, float]]], dict[str, float]]] = {
    "thunderstorm": (
        "a.csv",
        rows_of_text,
        {"frame": 3, "x [nm]": 1500.5, "y [nm]": 50.25, "z [nm]": 30, "intensity [photon]": 1000},
    ),
    "challenge": (
        "a.csv",
        rows_of_text,
        {"frame": 3, "xnano": 1500.5, "ynano": 50.25, "znano": 30},
    ),
    "picasso": (
        "a.hdf5",
        rows_of_picasso,
        {"frame": 2, "x": 14.505, "y": 0.0025, "z": 30, "lpx": 0.06, "lpy": 0.12, "lpz": 30},
    ),
    "smlm": (
        "a.smlm",
        rows_of_smlm,
        {"frame": 2, "x": 1500.5, "y": 50.25, "z": 30, "intensity": 1000, "y_precision": 12},
    ),
    "parquet": (
        "a.parquet",
        lambda path: pq.read_table(path).to_pylist(),
        {"frame": 2, "x_nm": 1500.5, "y_nm": 50.25, "z_nm": 30, "uncertainty_y_nm": 12},
    ),
    "smap": ("a_sml.mat", rows_of_smap, SMAP),
    "smap-7.3": ("a_sml.mat", rows_of_smap_73, SMAP),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_has_the_axes_origin_units_and_frames_of_the_format(
    name: str, tmp_path: Path
) -> None:
    file, rows_of, second = WRITTEN[name]
    write_table(phantom(), tmp_path / file, dialect=name)
    rows = rows_of(tmp_path / file)
    assert len(rows) == 3
    assert {label: rows[1][label] for label in second} == pytest.approx(second, abs=1e-5)


def test_every_format_that_is_written_is_looked_at() -> None:
    assert WRITTEN.keys() == {f.name for f in table_formats() if f.write is not None}


def test_smap_is_told_of_pixels_field_and_frames(tmp_path: Path) -> None:
    write_table(phantom(), tmp_path / "a_sml.mat")
    content = scipy.io.loadmat(tmp_path / "a_sml.mat", squeeze_me=True, struct_as_record=False)
    info = content["saveloc"].file.info
    assert info.cam_pixelsize_um.tolist() == [0.1, 0.1]
    assert info.roi.tolist() == [0, 0, 64, 32]
    assert (info.numberOfFrames, info.Width, info.Height) == (8, 64, 32)
    assert content["fileformat"].name == "sml"


def test_names_that_matlab_does_not_allow_come_back(tmp_path: Path) -> None:
    labels = ["a b", "a_b", "a-b", "a.b", "1st [nm]", "µ", "x" * 70, "_"]
    others = {label: np.arange(3) + i for i, label in enumerate(labels)}
    write_table(replace(phantom(), others=others), tmp_path / "a_sml.mat")
    again = read_table(tmp_path / "a_sml.mat")
    assert {label: again.others[label][0] for label in labels} == {
        label: i for i, label in enumerate(labels)
    }
    names = rows_of_smap(tmp_path / "a_sml.mat")[0]
    assert all(re.fullmatch(r"[A-Za-z]\w{0,62}", name, re.ASCII) for name in names)


def test_more_than_a_matlab_file_can_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("decode.io.tables.smap.MOST_BYTES", 100)
    with pytest.raises(ValueError, match=r"more than 2 GiB; write it as smap-7\.3"):
        write_table(phantom(), tmp_path / "a_sml.mat")
    assert list(tmp_path.iterdir()) == []
    write_table(phantom(), tmp_path / "a_sml.mat", dialect="smap-7.3")
    assert read_table(tmp_path / "a_sml.mat").xyz.tolist() == phantom().xyz.tolist()


def test_matlab_7_3_is_told_shapes_and_classes(tmp_path: Path) -> None:
    path = tmp_path / "a_sml.mat"
    flags = {"flag": np.array([True, False, True]), "µ m": np.arange(3, dtype=np.int16)}
    whole = replace(phantom(), others=flags)
    write_table(whole, path, dialect="smap-7.3")
    head = path.read_bytes()[:128]
    assert head.startswith(b"MATLAB 7.3 MAT-file, Platform: ")
    assert head[116:] == bytes(8) + b"\x00\x02IM"
    with h5py.File(path, "r") as file:
        kinds: dict[str, tuple[bytes, tuple[int, ...]]] = {}
        file.visititems(
            lambda name, item: kinds.update(
                {name: (item.attrs["MATLAB_class"], getattr(item, "shape", ()))}
            )
        )
        assert file["fileformat/name"][:, 0].tobytes().decode("utf-16-le") == "sml"
        assert file["saveloc/history"].attrs["MATLAB_empty"] == 1
        assert file["saveloc/history"][:].tolist() == [0, 0]
    assert kinds["saveloc"] == kinds["saveloc/loc"] == (b"struct", ())
    assert kinds["saveloc/loc/xnm"] == (b"double", (1, 3))  # N x 1 in MATLAB
    assert kinds["saveloc/loc/flag"] == (b"logical", (1, 3))
    assert kinds["saveloc/loc/x__m"] == (b"int16", (1, 3))
    assert kinds["saveloc/file/info/roi"] == (b"double", (4, 1))
    assert kinds["fileformat/name"] == (b"char", (3, 1))
    assert kinds["saveloc/history"][0] == b"cell"
    again = read_table(path)
    assert again.metadata == whole.metadata
    for label, values in flags.items():
        assert again.others[label].tolist() == values.tolist()


def test_a_matlab_7_3_file_grows_without_what_nobody_knows(tmp_path: Path) -> None:
    path = tmp_path / "a_sml.mat"
    n = 10_000
    sigma = torch.full((n, 3), 5.0)
    sigma[:, 2] = torch.nan
    chunk = EmitterSet(
        frame=torch.arange(n), xyz=torch.rand(n, 3), photons=torch.ones(n), xyz_sigma=sigma
    )
    with TableWriter(path, {"pixel_size_nm": 100.0}, dialect="smap-7.3") as table:
        for _ in range(4):
            table.write(chunk)
    again = read_table(path)
    assert torch.equal(again.xyz.float(), chunk.xyz.repeat(4, 1))
    assert again.frame[n + 3] == 3
    with h5py.File(path, "r") as file:
        assert "locprecznm" not in file["saveloc/loc"]
    write_table(EmitterSet.empty(), path, dialect="smap-7.3")
    assert len(read_table(path)) == 0


@pytest.mark.parametrize("limit", [1000, 2**20])
def test_a_limit_on_the_size_of_a_matlab_7_3_file_is_said(
    tmp_path: Path, limit: int, limited_files: Callable[[int], AbstractContextManager[None]]
) -> None:
    """Without a crash of the process, as HDF5 would have it where it cannot write."""

    def write() -> None:
        with TableWriter(tmp_path / "a_sml.mat", dialect="smap-7.3") as table:
            table.write(phantom())

    with (
        limited_files(limit),
        pytest.raises(OSError, match=r"cannot write .*a_sml\.mat: the limit"),
    ):
        write()
    assert list(tmp_path.iterdir()) == []


# -- tables of other programs
# -------------------------------------------------------------------------------------------------

TABLES = ("Thunderstorm_dstorm_data.csv", "decode_dstorm_data.h5", "SMLM_dstorm_data.smlm")
TABLES += ("raw_movie_locs.hdf5", "testdata_locs.hdf5")
FIXED, WITHOUT_TEXTS = {"challenge"}, {"smlm", "smap", "smap-7.3"}
PRECISION = {"thunderstorm": 5.1e-4, "challenge": 5.1e-4, "picasso": 2e-3}
"""of a coordinate, where it is not double precision: digits of a text, float32 of pixels"""


@pytest.mark.parametrize("to", WRITTEN)
@pytest.mark.parametrize("name", TABLES)
def test_tables_of_other_programs_lose_nothing(
    shared_data: Path, name: str, to: str, tmp_path: Path
) -> None:
    table = read_table(shared_data / "tables" / name, pixel_size_nm=None)
    facts = {"pixel_size_nm": 100.0, **table.metadata}
    table = EmitterSet(**table.columns(), others=table.others, metadata=facts)
    path = tmp_path / f"out{Path(WRITTEN[to][0]).suffix}"
    write_table(table, path, dialect=to)
    again = read_table(path)
    assert again.frame.tolist() == table.frame.tolist()
    assert (again.xyz - table.xyz).abs().max() <= PRECISION.get(to, 1e-9)
    torch.testing.assert_close(again.photons, table.photons, rtol=1e-6, atol=5.1e-3)
    if to in FIXED:
        return
    for label, column in table.columns().items():
        torch.testing.assert_close(
            again.columns()[label].double(), column.double(), rtol=1e-5, atol=5.1e-3, equal_nan=True
        )
    for label, values in table.others.items():
        if values.dtype.kind in "biuf" or to not in WITHOUT_TEXTS:
            np.testing.assert_allclose(
                again.others[label].astype(float), values.astype(float), rtol=1e-6
            )


def test_the_byte_order_of_an_export_says_nothing(tmp_path: Path) -> None:
    minflux_npy(tmp_path / "little.npy")
    rows = np.load(tmp_path / "little.npy")
    np.save(tmp_path / "big.npy", rows.astype(rows.dtype.newbyteorder(">")))
    little, big = (read_table(tmp_path / name) for name in ("little.npy", "big.npy"))
    assert torch.equal(big.xyz, little.xyz)
    write_table(big, tmp_path / "table.parquet")
    read = read_table(tmp_path / "table.parquet")
    assert read.others["tid"].tolist() == little.others["tid"].tolist()
