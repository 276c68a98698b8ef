"""Files with any content: a reader returns, or says in one sentence that names the file what is
wrong with it.

A sample of each format is changed at random: bytes are flipped, cut off and put in, and values,
names, shapes and types within the format are replaced.  A process of its own reads each, with 5 s
of processor time and 1 GB of memory for it.
"""

from __future__ import annotations

import hashlib
import json
import random
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.torch
import scipy.io
import tifffile
import torch
import yaml

from decode.config import TrainConfig, load_config, to_mapping
from decode.emitters import EmitterSet
from decode.errors import LONGEST
from decode.io.cameras import CameraFile, read_camera, write_camera
from decode.io.movies import open_movie
from decode.io.psf_imports import import_psf
from decode.io.psfs import PSFFile, read_psf, write_psf
from decode.io.tables import read_table, write_table
from decode.network.localizer import Localizer, NetworkConfig
from decode.optics.camera import Camera
from decode.optics.field import FieldSplinePSF
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import PSF
from decode.optics.pupil import PupilPSF
from decode.optics.spline import SplinePSF
from decode.verbs.stages import Done

SECONDS, BYTES = 5.0, 2**30

MOST_ASKED = 2 * BYTES
"""bytes of addresses, of which fewer are filled"""

Rng = random.Random
Change = Callable[[Path, Rng], None]
"""changes the sample in place"""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of file: how to make a small one, how to read it, and how to damage it."""

    name: str
    """of the file; what else is made with it stands beside it"""
    make: Callable[[Path], object]
    read: Callable[[Path], object]
    changes: tuple[Change, ...]


# -- what is put in the place of values
# --------------------------------------------------------------------------------

DEEP: Any = []
for _ in range(40):
    DEEP = [DEEP]

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    255,
    10**9,
    2**31,
    -(2**63),
    10**30,
    0.0,
    -0.5,
    1e-300,
    1e14,
    1e300,
    float("inf"),
    float("-inf"),
    float("nan"),
    "",
    "nan",
    "1e999",
    "x" * 5000,
    "é\0\n",
    "../..",
    [],
    [0],
    [1, 2],
    [1, 2, 3],
    [[]],
    ["a"],
    [float("nan")] * 3,
    {},
    {"a": 1},
    {"": None},
    DEEP,
    [0] * 5000,
)


def change_tree(tree: Any, rng: Rng) -> Any:
    """A copy of plain values of which one, anywhere, is another, is gone, or has another name."""
    if isinstance(tree, Mapping) and tree and rng.random() < 0.9:
        name = rng.choice(list(tree))
        others = {key: value for key, value in tree.items() if key != name}
        kind = rng.random()
        if kind < 0.1:
            return others
        if kind < 0.2:
            return others | {rng.choice(["", "a", "file", "x" * 3000]): tree[name]}
        return others | {name: change_tree(tree[name], rng)}
    if isinstance(tree, list) and tree and rng.random() < 0.8:
        at = rng.randrange(len(tree))
        kind = rng.random()
        if kind < 0.2:
            return tree[:at] + tree[at + 1 :]
        if kind < 0.3:
            return tree[:at] + [tree[at]] * rng.choice([2, 1000]) + tree[at:]
        return [*tree[:at], change_tree(tree[at], rng), *tree[at + 1 :]]
    return rng.choice(VALUES)


def change_bytes(path: Path, rng: Rng) -> None:
    """Flip, overwrite, cut off, take out, or put in, most often near the beginning, where
    headers stand."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at = (
            rng.randrange(min(len(content), rng.choice([64, 1024, len(content)]))) if content else 0
        )
        junk = rng.choice(
            [rng.randbytes(rng.choice([1, 4, 8])), b"\xff" * 8, bytes(8), b"\x7f\xff\xff\xff"]
        )
        kind = rng.randrange(6)
        if kind == 0 and content:
            content[at] ^= 1 << rng.randrange(8)
        elif kind <= 2:
            content[at : at + len(junk)] = junk
        elif kind == 3:
            del content[at : at + rng.choice([1, 2, 16, 1000])]
        elif kind == 4:
            content[at:at] = junk
        elif rng.random() < 0.3:
            del content[at:]
    path.write_bytes(content)


def change_json(path: Path, rng: Rng) -> None:
    path.write_text(json.dumps(change_tree(json.loads(path.read_text()), rng)))


def change_yaml(path: Path, rng: Rng) -> None:
    documents = [change_tree(d, rng) for d in yaml.safe_load_all(path.read_text())]
    text = yaml.safe_dump_all(documents)
    kind = rng.random()
    if kind < 0.1:
        text = (
            "".join(
                f"k{i}: &k{i} [{', '.join([f'*k{i - 1}' if i else '0'] * 9)}]\n" for i in range(12)
            )
            + text
        )
    elif kind < 0.2:
        text += f"deep: {'[' * 3000}{']' * rng.choice([0, 3000])}\n"
    elif kind < 0.3:
        long = ["1" * 20_000, "1:" * 20_000 + "1", "0x" + "f" * 9999, "1e" + "9" * 400]
        text += f"long: {rng.choice(long)}\n"
    path.write_text(text, encoding="utf-8")


def change_sidecar(path: Path, rng: Rng) -> None:
    rng.choice([change_yaml, change_bytes])(path.with_suffix(".yaml"), rng)


def change_text_table(path: Path, rng: Rng) -> None:
    """Cells, names and delimiters."""
    rows = [line.split(",") for line in path.read_text().splitlines()]
    for _ in range(rng.choice([1, 1, 3])):
        row = rng.choice([rows[0], rng.choice(rows)])
        at = rng.randrange(len(row))
        kind = rng.randrange(4)
        if kind == 0:
            row[at] = rng.choice(row)
        elif kind == 1:
            row[at] = str(rng.choice(VALUES))
        elif kind == 2:
            del row[at]
        else:
            row.insert(at, rng.choice(["1e14", "-7", "1e400", '"', "frame", "x [px]", "#"]))
        if not row:
            row.append("")
    path.write_text(
        "\n".join(rng.choice([",", ",", ";", "\t"]).join(row) for row in rows), encoding="utf-8"
    )


def change_hdf5(path: Path, rng: Rng) -> None:
    """An attribute or a dataset: gone, of another type, shape or value, or of a size that
    nothing could hold."""
    with h5py.File(path, "r+") as file:
        found: list[Any] = [file]
        file.visititems(lambda _, item: found.append(item))
        holder = rng.choice([item for item in found if len(item.attrs)] or found)
        if len(holder.attrs) and rng.random() < 0.5:
            name = rng.choice(list(holder.attrs))
            value = holder.attrs[name]
            value = value.decode() if isinstance(value, bytes) else value
            del holder.attrs[name]
            if isinstance(value, str) and value[:1] in ("[", "{") and rng.random() < 0.7:
                holder.attrs[name] = json.dumps(change_tree(json.loads(value), rng))
            elif rng.random() < 0.9:
                holder.attrs[name] = _for_hdf5(rng)
            return
        dataset = rng.choice([item for item in found if isinstance(item, h5py.Dataset)] or [None])
        if dataset is None:
            return
        name, old = dataset.name, np.asarray(dataset[...] if dataset.shape is not None else 0)
        del file[name]
        kind = rng.randrange(7)
        if kind == 1:
            file[name] = _for_hdf5(rng)
        elif kind == 2:
            file.create_group(name)
        elif kind == 3:
            file.create_dataset(
                name, (2 ** rng.choice([20, 31]),) * rng.choice([1, 2]), "f4", chunks=True
            )
        elif kind == 4 and old.dtype.names:
            names = [n for n in old.dtype.names if rng.random() < 0.8] or ["x"]
            file[name] = np.zeros(
                old.shape, [(n, rng.choice(["f4", "f8", "i8", "S3", "(2,)f4"])) for n in names]
            )
        elif kind == 5 and old.dtype.kind in "iuf":
            file[name] = old[..., : rng.randrange(3)] if old.ndim else old
        elif kind == 6 and old.dtype.kind == "f":
            file[name] = np.where(
                np.random.default_rng(rng.randrange(99)).random(old.shape) < 0.1, np.nan, old
            )


def _for_hdf5(rng: Rng) -> Any:
    value = rng.choice(VALUES)
    if value in (10**30, ["a"], [[]], DEEP) or not isinstance(value, bool | int | float | list):
        return json.dumps(value)
    return np.asarray(value)


def change_archive(path: Path, rng: Rng) -> None:
    """The manifest of an archive, or what it names."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(content["manifest.json"])
    content["manifest.json"] = json.dumps(change_tree(manifest, rng)).encode()
    if rng.random() < 0.2:
        del content[rng.choice(list(content))]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def change_tags(path: Path, rng: Rng) -> None:
    """Type, count or value of a tag of any page of a classic, little-endian TIFF, or where the
    next page stands."""
    content = bytearray(path.read_bytes())
    offset, entries, ends = int.from_bytes(content[4:8], "little"), [], []
    while offset and len(ends) < 100:
        n = int.from_bytes(content[offset : offset + 2], "little")
        entries += [offset + 2 + 12 * i for i in range(n)]
        ends.append(offset + 2 + 12 * n)
        offset = int.from_bytes(content[ends[-1] : ends[-1] + 4], "little")
    for _ in range(rng.choice([1, 1, 2, 4])):
        size = rng.choice(
            [
                0,
                1,
                2,
                3,
                8,
                13,
                255,
                65535,
                2**16,
                2**24,
                2**31 - 1,
                2**32 - 1,
                rng.randrange(2**32),
            ]
        )
        if rng.random() < 0.1:
            at, value = rng.choice(ends), rng.choice([size, int.from_bytes(content[4:8], "little")])
            content[at : at + 4] = (value % 2**32).to_bytes(4, "little")
            continue
        entry = rng.choice(entries)
        kind = rng.random()
        if kind < 0.15:
            content[entry : entry + 2] = rng.choice(
                [254, 256, 259, 277, 320, 330, 339, 51123]
            ).to_bytes(2, "little")
        elif kind < 0.3:
            content[entry + 2 : entry + 4] = rng.choice([0, 1, 2, 5, 7, 12, 16, 255]).to_bytes(
                2, "little"
            )
        elif kind < 0.5:
            content[entry + 4 : entry + 8] = size.to_bytes(4, "little")
        else:
            content[entry + 8 : entry + 12] = size.to_bytes(4, "little")
    path.write_bytes(content)


def change_description(path: Path, rng: Rng) -> None:
    """Numbers and names in the text that describes the movie, each with as many letters as
    before."""
    content = bytearray(path.read_bytes())
    start = rng.choice(
        [at for word in (b"ImageJ=", b"<OME", b"{") if (at := content.find(word)) >= 0]
    )
    digits = [i for i in range(start, min(start + 700, len(content))) if chr(content[i]).isdigit()]
    for _ in range(rng.choice([1, 2, 5])):
        content[rng.choice(digits)] = ord(rng.choice("0123456789-e.xn"))
    path.write_bytes(content)


def change_map(path: Path, rng: Rng) -> None:
    rng.choice([change_bytes, change_tags])(path.with_name("camera_offset_map.tif"), rng)


def change_model(path: Path, rng: Rng) -> None:
    """What a model says of itself, or its weights, with the fingerprint that belongs to it."""
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = file.metadata()["about"]
    if rng.random() < 0.7:
        text = json.dumps(change_tree(json.loads(text), rng))
    else:
        name = rng.choice(list(tensors))
        tensors |= _other(name, tensors.pop(name), rng)
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().tobytes())
    metadata = {"format": "decode-localizer-1", "about": text, "sha256": digest.hexdigest()}
    path.write_bytes(safetensors.torch.save(tensors, metadata))


def change_checkpoint(path: Path, rng: Rng) -> None:
    state = torch.load(path, weights_only=True)
    kind = rng.random()
    if kind < 0.3:
        weights = state["learner"][rng.choice(["model", "average"])]
        name = rng.choice(list(weights))
        weights |= _other(name, weights.pop(name), rng)
    elif kind < 0.6:
        name = rng.choice(["config", "course", "history", "origin"])
        state[name] = json.dumps(change_tree(json.loads(state[name]), rng))
    elif kind < 0.8:
        state = change_tree(state, rng)
    else:
        state["learner"] = change_tree(state["learner"], rng)
    torch.save(state, path)


def _other(name: str, tensor: torch.Tensor, rng: Rng) -> dict[str, torch.Tensor]:
    kind = rng.randrange(5)
    if kind == 0:
        return {}
    if kind == 1:
        return {f"{name}x": tensor}
    if kind == 2:
        return {name: torch.full_like(tensor, rng.choice([torch.nan, torch.inf]))}
    if kind == 3:
        return {name: tensor.flatten()[: rng.randrange(3)].clone()}
    return {name: tensor.to(rng.choice([torch.int8, torch.float64, torch.bool]))}


# -- samples and readers
# -----------------------------------------------------------------------------------------------

CAMERA = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.5, qe=0.8, em_gain=None)
NETWORK = NetworkConfig(frame_widths=(4, 6), sequence_widths=(4, 6), head_width=4)
WRITERS = runpy.run_path(str(Path(__file__).parent / "movies" / "microscopes.py"))["WRITERS"]
FRAMES = (np.arange(5 * 12 * 10).reshape(5, 12, 10) % 251).astype(np.uint16)


def molecules() -> EmitterSet:
    n, rng = 20, torch.Generator().manual_seed(0)
    return EmitterSet(
        frame=torch.arange(n) // 3,
        xyz=torch.rand(n, 3, generator=rng) * 1000,
        photons=torch.rand(n, generator=rng) * 1000,
        background=torch.rand(n, generator=rng),
        probability=torch.rand(n, generator=rng),
        xyz_sigma=torch.rand(n, 3, generator=rng) + 1,
        others={"group": np.arange(n)},
        metadata={"pixel_size_nm": 100.0},
    )


def write_decode(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("meta").attrs.update(
            {"xy_unit": "px", "px_size": np.array([100.0, 120.0])}
        )
        data = file.create_group("data")
        data.update({"xyz": np.ones((9, 3)), "xyz_sig": np.ones((9, 3)), "frame_ix": np.arange(9)})
        data.update(
            {"phot": np.ones(9), "bg": np.ones(9), "prob": np.ones(9), "phot_sig": h5py.Empty("f")}
        )


def write_smlm(path: Path) -> None:
    layout = {
        "headers": ["frame", "x", "y", "patch", "intensity"],
        "dtype": ["uint16", "uint16", "float32", "uint8", "float64"],
        "shape": [1, 1, 1, [2, 3], 1],
        "units": ["frame", "nm", "um", "", "photon"],
    }
    entry = {"name": "a.bin", "type": "table", "format": "f", "rows": 4, "offset": {"x": -40}}
    kinds = np.dtype([("f", "<u2"), ("x", "<u2"), ("y", "<f4"), ("p", "u1", (2, 3)), ("i", "<f8")])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", json.dumps({"formats": {"f": layout}, "files": [entry]}))
        archive.writestr("a.bin", np.ones(4, kinds).tobytes())


def write_smap(path: Path, *, v73: bool) -> None:
    coefficients = np.random.default_rng(0).random((7, 7, 5, 64)) + 1
    numbers = {"dz": 50.0, "z0": 2.0, "x0": 4.0}
    if not v73:
        scipy.io.savemat(path, {"SXY": {"cspline": {"coeff": coefficients, **numbers}}})
        return
    with h5py.File(path, "w") as file:
        spline = file.create_group("SXY/cspline")
        spline.update(
            {"coeff": coefficients.T, **{name: np.array([[v]]) for name, v in numbers.items()}}
        )


def write_uipsf(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["params"] = json.dumps({"pixel_size": {"x": 0.1, "y": 0.1, "z": 0.05}})
        file["res/I_model"] = np.random.default_rng(0).random((5, 7, 7))
        file["res/zoffset"] = -2.0


def write_smap_table(path: Path, *, v73: bool) -> None:
    if not v73:
        write_table(molecules(), path)
        return
    with h5py.File(path, "w", userblock_size=512) as file:
        for name in ("frame", "xnm", "ynm", "znm", "phot", "bg", "xnmerr", "ynmerr"):
            file[f"saveloc/loc/{name}"] = np.arange(1.0, 8.0)[None]
        file["saveloc/file/info/cam_pixelsize_um"] = np.full((2, 1), 0.1)


def write_minflux(path: Path) -> None:
    kinds = [("vld", "?"), ("tim", "f8"), ("tid", "u4"), ("itr", "i4"), ("loc", "f8", (3,))]
    rows = np.zeros(5, kinds)
    rows["vld"], rows["tim"] = True, np.arange(5)
    np.save(path, rows)


def write_minflux_json(path: Path) -> None:
    found = {"itr": [{"itr": 0, "loc": [1e-6, 2e-6, 3e-6], "eco": 50}], "tim": 0.5, "tid": 3}
    path.write_text(json.dumps([found | {"vld": True}] * 4))


RAPIDSTORM = """\
# <localizations><field identifier="Position-0-0" unit="nanometer" /><field \
identifier="Position-1-0" unit="nanometer" /><field identifier="ImageNumber-0-0" unit="frame" />\
<field identifier="Amplitude-0-0" unit="A/D count" /></localizations>
75 1100 0 5125
1450.5 0.25 2 10000
"""
NANOIMAGER = """\
Channel,Frame,X (nm),Y (nm),Z (nm),X (pix),Y (pix),Photons,Background
0,0,125.0,1150.0,-250.0,1.25,11.5,512.5,8.0
1,2,1500.5,50.25,30.0,15.005,0.5025,1000.0,16.5
"""
ELYRA = (
    "Index\tFirst Frame\tPosition X [nm]\tPosition Y [nm]\tPrecision [nm]\tNumber Photons\r\n"
    "1\t1\t125.0\t1150.0\t5.0\t512.5\r\n2\t3\t1500.5\t50.25\t6.0\t1000\r\n"
    "\0\r\r\nVoxelSizeX : 0.1000000000 um\r\r\n"
)


def read_named(path: Path) -> None:
    named = {"frame": "frame", "x": "x [nm]", "y": "y [nm]"}
    read_table(path, columns=named, first_frame=0)


def spline() -> SplinePSF:
    stack = torch.rand(5, 9, 9, generator=torch.Generator().manual_seed(0))
    return SplinePSF(stack, z_start_nm=-100.0, z_step_nm=50.0, pixel_size_nm=100.0)


def field_spline() -> FieldSplinePSF:
    field = ((0.0, 900.0), (0.0, 900.0))
    return FieldSplinePSF(
        spline(), torch.zeros(2, 5, 9, 9), shifts_nm=torch.zeros(2, 2), field_nm=field
    )


def pupil() -> PupilPSF:
    mask = torch.zeros(16, 16)
    return PupilPSF(
        numerical_aperture=1.4,
        wavelength_nm=680.0,
        pixel_size_nm=100.0,
        patch_px=9,
        grid=16,
        phase_mask_nm=mask,
    )


def gaussian() -> GaussianPSF:
    return GaussianPSF(130.0, pixel_size_nm=100.0)


def psf_writer(psf: Callable[[], PSF]) -> Callable[[Path], None]:
    return lambda path: write_psf(
        path, PSFFile(psf=psf(), z_range_nm=(-100.0, 100.0), figures={"a": (1.0, 2.0, 3.0)})
    )


def write_model(path: Path) -> None:
    torch.manual_seed(0)
    maps = Camera(baseline=torch.full((4, 5), 100.0), e_per_adu=0.5, read_noise_e=1.5)
    Localizer(NETWORK, {"psf_sigma_px": (0.8, 2.0)}, psf=spline(), camera=maps).save(path)


def write_maps(path: Path) -> None:
    maps = Camera(
        baseline=torch.full((8, 9), 100.0), e_per_adu=torch.full((8, 9), 0.5), read_noise_e=1.5
    )
    write_camera(path, CameraFile(camera=maps, pixel_size_nm=100.0))


def write_recipe(path: Path) -> None:
    path.write_text(yaml.safe_dump(to_mapping(TrainConfig())))


@cache
def small_recipe() -> TrainConfig:
    return TrainConfig(network=NETWORK)


def learner() -> Any:
    from decode.training.learner import Learner
    from decode.training.processes import Processes

    torch.manual_seed(0)
    return Learner(small_recipe().localizer(), small_recipe().training, Processes())


def write_checkpoint(path: Path) -> None:
    row = {"step": 1, "minutes": 0.1, "efficiency": 3.0, "isolated_error_over_sigma": 1.0}
    course = {"end": 1.0, "damping": 1.0, "recovered": 0, "converged": False}
    state = {
        "config": json.dumps(to_mapping(small_recipe())),
        "learner": learner().state_dict(),
        "rng": torch.Generator().get_state(),
        "step": 1,
        "seconds": 2.0,
        "course": json.dumps(course),
        "history": json.dumps([row]),
        "origin": json.dumps({"config": asdict(NETWORK)}),
    }
    torch.save(state, path)


def read_checkpoint(path: Path) -> object:
    from decode.training.checkpoint import read_checkpoint as read

    return read(path, small_recipe(), learner(), torch.device("cpu"))


def read_movie(path: Path) -> None:
    with open_movie(path) as movie:
        for frame in {0, len(movie) - 1}:
            movie.read(frame, frame + 1)


def read_and_write_table(path: Path) -> None:
    table = read_table(path)
    for suffix in (".csv", ".hdf5") if "pixel_size_nm" in table.metadata else (".csv",):
        write_table(table, path.with_name(f"again{suffix}"))


def read_note(path: Path) -> None:
    """A damaged note of `run` is as none."""
    assert not Done(path).has("train", "another key")


def tiff(changes: tuple[Change, ...] = (change_bytes, change_tags), **options: Any) -> Format:
    def make(path: Path) -> None:
        tifffile.imwrite(path, FRAMES, **({"photometric": "minisblack"} | options))

    return Format(name="movie.tif", make=make, read=read_movie, changes=changes)


def make_micro_manager(path: Path) -> None:
    facts = json.dumps({"PixelSizeUm": 0.1, "Exposure-ms": 20.0, "ZStepUm": 0.05})
    tag = [(51123, "s", 0, facts, True)]
    tifffile.imwrite(path, FRAMES, photometric="minisblack", metadata=None, extratags=tag)


def change_inside(path: Path, rng: Rng) -> None:
    """A file of a folder, or one that is gone."""
    file = rng.choice(sorted(file for file in path.rglob("*") if file.is_file()))
    if rng.random() < 0.1:
        file.unlink()
    elif file.suffix == ".json" and rng.random() < 0.7:
        change_json(file, rng)
    else:
        change_bytes(file, rng)


def change_inf(path: Path, rng: Rng) -> None:
    change_bytes(path.with_suffix(".inf"), rng)


def microscope(name: str, file: str, *changes: Change) -> Format:
    """A format of `movies/microscopes.py`."""

    def make(path: Path) -> None:
        written = WRITERS[name](path.parent, FRAMES[:, None, None])
        assert written.name == path.name

    return Format(name=file, make=make, read=read_movie, changes=changes)


TABLE = (change_bytes, change_hdf5)
PSF_FILE = (change_bytes, change_hdf5, change_hdf5)
FORMATS: dict[str, Format] = {
    "tiff": tiff(metadata=None),
    "tiff-imagej": tiff(
        (change_bytes, change_tags, change_description), imagej=True, metadata={"axes": "TYX"}
    ),
    "tiff-ome": tiff(
        (change_bytes, change_tags, change_description), ome=True, metadata={"axes": "TYX"}
    ),
    "tiff-shaped": tiff((change_bytes, change_tags, change_description)),
    "tiff-zlib": tiff(metadata=None, compression="zlib"),
    "tiff-tiles": tiff(metadata=None, tile=(16, 16)),
    "tiff-big": tiff((change_bytes,), bigtiff=True),
    "tiff-micro-manager": Format(
        name="movie.tif",
        make=make_micro_manager,
        read=read_movie,
        changes=(change_bytes, change_tags, change_description),
    ),
    "ndtiff": microscope("ndtiff", "movie_1", change_inside),
    "zarr": microscope("zarr", "movie.zarr", change_inside),
    "ims": microscope("ims", "movie.ims", change_bytes, change_hdf5),
    "czi": microscope("czi", "movie.czi", change_bytes),
    "czi-zstd": microscope("czi-zstd", "movie.czi", change_bytes),
    "lif": microscope("lif", "movie.lif", change_bytes),
    "spe": microscope("spe", "movie.spe", change_bytes),
    "spe-3": microscope("spe-3", "movie.spe", change_bytes),
    "sif": microscope("sif", "movie.sif", change_bytes),
    "dax": microscope("dax", "movie.dax", change_bytes, change_inf),
    "raw": microscope("picasso", "movie.raw", change_bytes, change_sidecar),
    "thunderstorm": Format(
        name="table.csv",
        make=lambda path: write_table(molecules(), path),
        read=read_and_write_table,
        changes=(change_bytes, change_text_table, change_text_table),
    ),
    "picasso": Format(
        name="table.hdf5",
        make=lambda path: write_table(molecules(), path),
        read=read_and_write_table,
        changes=(*TABLE, change_sidecar),
    ),
    "parquet": Format(
        name="table.parquet",
        make=lambda path: write_table(molecules(), path),
        read=read_and_write_table,
        changes=(change_bytes,),
    ),
    "decode": Format(name="table.h5", make=write_decode, read=read_and_write_table, changes=TABLE),
    "smlm": Format(
        name="table.smlm",
        make=write_smlm,
        read=read_and_write_table,
        changes=(change_bytes, change_archive),
    ),
    "smap-table-5": Format(
        name="a_sml.mat",
        make=lambda path: write_smap_table(path, v73=False),
        read=read_and_write_table,
        changes=(change_bytes,),
    ),
    "smap-table-7.3": Format(
        name="a_sml.mat",
        make=lambda path: write_smap_table(path, v73=True),
        read=read_and_write_table,
        changes=TABLE,
    ),
    "minflux": Format(
        name="a.npy", make=write_minflux, read=read_and_write_table, changes=(change_bytes,)
    ),
    "minflux-json": Format(
        name="a.json",
        make=write_minflux_json,
        read=read_and_write_table,
        changes=(change_bytes, change_json, change_json),
    ),
    "rapidstorm": Format(
        name="a.txt",
        make=lambda path: path.write_text(RAPIDSTORM),
        read=read_and_write_table,
        changes=(change_bytes,),
    ),
    "nanoimager": Format(
        name="a.csv",
        make=lambda path: path.write_text(NANOIMAGER),
        read=read_and_write_table,
        changes=(change_bytes, change_text_table),
    ),
    "elyra": Format(
        name="a.txt",
        make=lambda path: path.write_text(ELYRA),
        read=read_and_write_table,
        changes=(change_bytes,),
    ),
    "named": Format(
        name="a.csv",
        make=lambda path: write_table(molecules(), path),
        read=read_named,
        changes=(change_bytes, change_text_table),
    ),
    "camera": Format(
        name="camera.yaml",
        make=lambda path: write_camera(path, CameraFile(camera=CAMERA, pixel_size_nm=100.0)),
        read=read_camera,
        changes=(change_bytes, change_yaml),
    ),
    "camera-maps": Format(
        name="camera.yaml", make=write_maps, read=read_camera, changes=(change_map, change_yaml)
    ),
    "recipe": Format(
        name="recipe.yaml", make=write_recipe, read=load_config, changes=(change_bytes, change_yaml)
    ),
    "model": Format(
        name="m.safetensors",
        make=write_model,
        read=Localizer.load,
        changes=(change_bytes, change_model, change_model),
    ),
    "checkpoint": Format(
        name="m.checkpoint",
        make=write_checkpoint,
        read=read_checkpoint,
        changes=(change_bytes, change_checkpoint),
    ),
    "note": Format(
        name="run.json",
        make=lambda path: path.write_text(json.dumps({"train": "a key", "estimate": "another"})),
        read=read_note,
        changes=(change_bytes, change_json),
    ),
    "psf-spline": Format(name="psf.h5", make=psf_writer(spline), read=read_psf, changes=PSF_FILE),
    "psf-field": Format(
        name="psf.h5", make=psf_writer(field_spline), read=read_psf, changes=PSF_FILE
    ),
    "psf-pupil": Format(name="psf.h5", make=psf_writer(pupil), read=read_psf, changes=PSF_FILE),
    "psf-gaussian": Format(
        name="psf.h5", make=psf_writer(gaussian), read=read_psf, changes=PSF_FILE
    ),
    "smap-5": Format(
        name="a_3dcal.mat",
        make=lambda path: write_smap(path, v73=False),
        read=lambda path: import_psf(path, 100.0),
        changes=(change_bytes,),
    ),
    "smap-7.3": Format(
        name="a_3dcal.mat",
        make=lambda path: write_smap(path, v73=True),
        read=lambda path: import_psf(path, 100.0),
        changes=TABLE,
    ),
    "uipsf": Format(
        name="a.h5", make=write_uipsf, read=lambda path: import_psf(path, None), changes=TABLE
    ),
}


# -- the process that reads
# --------------------------------------------------------------------------------------------


def read_changed(names: Sequence[str], n: int, first: int, folder: Path) -> None:
    """Read `n` changed samples of each format, leaving out the first ones of all.

    Prints a line of JSON with the place of each before it is read, and another on what is wrong
    with it.
    """
    warnings.simplefilter("ignore")
    for at, name in enumerate(names):
        seeds = range(max(first - at * n, 0), n)
        if not seeds:
            continue
        kind, sample, changed = FORMATS[name], folder / "sample", folder / "changed"
        sample.mkdir()
        kind.make(sample / kind.name)
        kind.read(sample / kind.name)  # imports, and shows that the sample is good
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MOST_ASKED
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        before = _peak_bytes()
        for seed in seeds:
            rng = Rng(f"{name} {seed}")
            shutil.copytree(sample, changed)
            rng.choice(kind.changes)(changed / kind.name, rng)
            print(json.dumps({"reads": at * n + seed}), flush=True)
            signal.setitimer(
                signal.ITIMER_PROF, SECONDS
            )  # its signal ends the process, whatever that is doing
            wrong = _wrong(kind, changed / kind.name)
            signal.setitimer(signal.ITIMER_PROF, 0)
            if _peak_bytes() > before + BYTES:
                wrong, before = f"took {_peak_bytes() - before} bytes", _peak_bytes()
            if wrong:
                print(json.dumps({"wrong": f"{name} {seed}: {wrong}"}), flush=True)
            shutil.rmtree(changed)
        shutil.rmtree(sample)


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _wrong(kind: Format, path: Path) -> str | None:
    """What is wrong with how a file is read."""
    try:
        kind.read(path)
    except (ValueError, OSError) as error:
        message, causes = str(error), _causes(error)
        if any(isinstance(cause, MemoryError) for cause in causes):
            return f"asked for too much memory: {message[:300]}"
        if len(message) > LONGEST or "\n" in message:
            return f"no short sentence: {message[:1000]}"
        named = any(str(file.with_suffix("")) in message for file in path.parent.iterdir())
        return (
            None
            if named or getattr(error, "filename", None)
            else f"does not name the file: {message[:300]}"
        )
    except BaseException:
        return traceback.format_exc()[-1500:]
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def failures(names: Sequence[str], n: int, folder: Path) -> list[str]:
    """What went wrong with `n` changed samples of each format; a process that dies is one
    failure of many."""
    found, first = [], 0
    while first < n * len(names):
        folder.mkdir()
        command = [sys.executable, __file__, ",".join(names), str(n), str(first), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
        shutil.rmtree(folder)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        found += [line["wrong"] for line in lines if "wrong" in line]
        if done.returncode == 0:
            break
        last = max((line["reads"] for line in lines if "reads" in line), default=None)
        if last is None:
            return [*found, f"a sample itself cannot be read: {done.stderr[-1500:]}"]
        how = (
            "more than 5 s"
            if done.returncode == -signal.SIGPROF
            else f"exit {done.returncode} {done.stderr[-900:]}"
        )
        found.append(f"{names[last // n]} {last % n}: {how}")
        first = last + 1
    return found


@pytest.mark.parametrize("movies", [True, False], ids=["movies", "others"])
def test_any_content_is_read_or_refused_in_a_sentence(movies: bool, tmp_path: Path) -> None:
    names = [name for name, kind in FORMATS.items() if (kind.read is read_movie) == movies]
    assert failures(names, 50, tmp_path / "files") == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FORMATS)
def test_any_of_many_contents_is_read_or_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    assert failures([name], 2000, tmp_path / "files") == []


if __name__ == "__main__":
    formats, number, begin, where = sys.argv[1:]
    read_changed(formats.split(","), int(number), int(begin), Path(where))
