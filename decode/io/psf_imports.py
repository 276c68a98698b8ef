"""PSFs that other programs calibrated: cubic splines of SMAP, and the models of uiPSF."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

from decode.errors import reading
from decode.io.hdf5 import array_of, open_hdf5, stored, text_of
from decode.io.mat5 import read_mat5
from decode.io.psfs import FORMAT, PSFFile
from decode.optics.spline import SplinePSF

__all__ = ["import_psf", "read_smap", "read_uipsf"]

COPY = "copy it again from where it was made"

POWERS = 64
"""number of coefficients per voxel of a cubic spline: four powers along each of three axes, the
constant first"""

Stack = npt.NDArray[np.float64]


def import_psf(
    path: Path | str, pixel_size_nm: float | None = None, channel: int | None = None
) -> PSFFile:
    """Read a PSF that another program calibrated; the content of the file decides which program,
    not its name.

    Args:
        path: a `_3dcal.mat` of SMAP or an HDF5 file of uiPSF.
        pixel_size_nm: side of a pixel in object space; needed where the file does not state it.
        channel: index of the channel, from 0; None where there is only one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is of another kind or damaged, or holds several channels and none is
            chosen.
    """
    path = _existing(path)
    if not h5py.is_hdf5(path):
        return read_smap(path, pixel_size_nm, channel)
    with open_hdf5(path, "an HDF5 file", COPY) as h5:
        own, smap = text_of(h5, "format") == FORMAT, "SXY" in h5 or "cspline" in h5
    if own:
        raise ValueError(f"{path}: is a PSF file of decode already; it needs no import")
    return (
        read_smap(path, pixel_size_nm, channel)
        if smap
        else read_uipsf(path, pixel_size_nm, channel)
    )


def read_smap(
    path: Path | str, pixel_size_nm: float | None = None, channel: int | None = None
) -> PSFFile:
    """Read the cubic spline of a SMAP calibration (Li et al., Nature Methods 15, 367, 2018), MATLAB
    v5 or v7.3.

    `SXY.cspline.coeff` (or `cspline.coeff`, where the calibration ran outside SMAP) has the axes
    (row, column, plane, power): the FIRST axis is y of the image and the second x.  The constant
    terms are the values at the knots, and the spline goes through these.  `x0` is the middle in
    both axes, counted from 1.  `z0` is the plane of z = 0 as SMAP's fitter counts, from 0.  z grows
    with the planes of the bead stack; in SMAP's tables it has the other sign. SMAP scales the light
    within its window to 1 in focus.

    Args:
        path: the `_3dcal.mat`.
        pixel_size_nm: side of a pixel in object space; the file does not state it.
        channel: index of the channel, from 0; None where there is only one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such a calibration or damaged, or holds several channels and none
            is chosen.
    """
    path = _existing(path)
    with reading(path, "a 3D calibration of SMAP", COPY):
        return _smap(path, pixel_size_nm, channel)


def _smap(path: Path, pixel_size_nm: float | None, channel: int | None) -> PSFFile:
    found = _cspline_73(path) if h5py.is_hdf5(path) else _cspline_5(path)
    if found.dz_nm is None or found.z0 is None:
        raise ValueError("it states no dz or no z0")
    if pixel_size_nm is None:
        raise ValueError(
            f"{path}: a SMAP calibration does not state the pixel size; state it, in nm"
        )
    knots = _chosen(path, found.knots, channel)
    # the last interval of each axis ends at a knot that has no coefficients of its own
    middle = [size / 2 if found.x0 is None else found.x0 - 1 for size in knots.shape[:2]]
    return _through(
        path,
        np.moveaxis(knots, 2, 0),
        focus=found.z0,
        z_step_nm=found.dz_nm,
        pixel_size_nm=pixel_size_nm,
        centre_px=(middle[1] + 0.5, middle[0] + 0.5),
        origin="the middle of the model of SMAP",
    )


def read_uipsf(
    path: Path | str, pixel_size_nm: float | None = None, channel: int | None = None
) -> PSFFile:
    """Read the model of single molecules of a uiPSF file (Liu et al., Nature Methods 21, 1082,
    2024).

    `res/I_model` (z, y, x), or (channel, z, y, x), or `res/channel0/I_model` and so on, in camera
    pixels; the attribute `params` is JSON that states `pixel_size` x, y and z in um.  z grows with
    the planes; z = 0 is the middle one, or where `res/zoffset` (depth of the first plane, in
    planes) has it.  x = y = 0 is the middle pixel.

    Args:
        path: the HDF5 file.
        pixel_size_nm: side of a pixel in object space, where the file does not state it.
        channel: index of the channel, from 0; None where there is only one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such a file or damaged, or holds several channels and none is
            chosen.
    """
    path = _existing(path)
    with reading(path, "a file of uiPSF", COPY):
        return _uipsf(path, pixel_size_nm, channel)


def _uipsf(path: Path, pixel_size_nm: float | None, channel: int | None) -> PSFFile:
    with open_hdf5(path, "a file of uiPSF", COPY) as h5:
        result = h5["res"]
        parts = [result[f"channel{i}"] for i in range(len(result)) if f"channel{i}" in result] or [
            result
        ]
        if any("A_model" in part for part in parts):
            raise ValueError(
                f"{path}: PSFs of 4Pi microscopes, which interfere two pupils, are not supported"
            )
        models = [array_of(part, "I_model").astype(np.float64) for part in parts]
        offsets = [_first(part, "zoffset") for part in parts]
        parameters = json.loads(text_of(h5, "params"))
    if len(models) == 1 and models[0].ndim == 4:
        models, offsets = list(models[0]), offsets * len(models[0])
    stack = _chosen(path, models, channel)
    if stack.ndim != 3:
        raise ValueError(f"{path}: I_model has shape {stack.shape}, expected (z, y, x)")
    step, pixel = _uipsf_sizes(path, parameters, pixel_size_nm)
    offset = offsets[channel or 0]
    return _through(
        path,
        stack,
        focus=(len(stack) - 1) // 2 if offset is None else -offset,
        z_step_nm=step,
        pixel_size_nm=pixel,
        centre_px=(stack.shape[2] // 2 + 0.5, stack.shape[1] // 2 + 0.5),
        origin="the middle pixel of the model of uiPSF",
    )


class _Cspline(NamedTuple):
    """The values of a SMAP calibration."""

    knots: list[Stack]
    """values of each channel, (row, column, plane)"""
    dz_nm: float | None
    z0: float | None
    x0: float | None


def _cspline_5(path: Path) -> _Cspline:
    with path.open("rb") as stream:
        if not stream.read(20).startswith(b"MATLAB 5.0 MAT-file"):
            raise ValueError(
                f"{path}: neither a MATLAB file nor HDF5; SMAP's and uiPSF's PSFs can be imported"
            )
    content = read_mat5(path)
    holder: Any = content.get("SXY", content)
    if isinstance(holder, list):
        raise _by_field(path, len(holder))
    spline: Any = holder["cspline"]
    coefficients = spline["coeff"]
    channels = coefficients if isinstance(coefficients, list) else [coefficients]
    knots = [_constant_terms(path, c, axis=3) for c in channels]
    numbers = (spline[name].item() if name in spline else None for name in ("dz", "z0", "x0"))
    return _Cspline(knots, *numbers)


def _cspline_73(path: Path) -> _Cspline:
    """The same from an HDF5 file, in which MATLAB has the axes in reverse and cells as
    references."""
    with open_hdf5(path, "a 3D calibration of SMAP", COPY) as h5:
        spline = h5["SXY"]["cspline"] if "SXY" in h5 else h5["cspline"]
        if isinstance(spline, h5py.Dataset):
            raise _by_field(path, spline.size)
        coefficients = spline["coeff"]
        cells = coefficients.dtype == h5py.ref_dtype
        channels = (
            [h5[cell] for cell in array_of(spline, "coeff").flat] if cells else [coefficients]
        )
        knots = [_constant_terms(path, stored(c), axis=0) for c in channels]
        return _Cspline(knots, *(_first(spline, name) for name in ("dz", "z0", "x0")))


def _first(group: h5py.Group, name: str) -> float | None:
    """A number that MATLAB or uiPSF stores as an array; None if there is none."""
    return float(array_of(group, name).flat[0]) if name in group else None


def _constant_terms(path: Path, coefficients: Any, axis: int) -> Stack:
    """(row, column, plane); a dataset is not read whole, as the constants are 1/64 of it."""
    if len(coefficients.shape) != 4 or coefficients.shape[axis] != POWERS:
        raise ValueError(
            f"{path}: cspline.coeff has shape {tuple(coefficients.shape)}, expected {POWERS} "
            "coefficients a voxel"
        )
    constant = coefficients[0].T if axis == 0 else coefficients[..., 0]
    return np.asarray(constant, np.float64)


def _uipsf_sizes(path: Path, parameters: Any, pixel_size_nm: float | None) -> tuple[float, float]:
    """Distance of the planes and side of a pixel, nm."""
    try:
        sides = parameters.get("pixel_size") or {
            axis: parameters.get(f"pixelsize_{axis}") for axis in "xyz"
        }
        x, y, z = (None if sides.get(axis) is None else 1000 * float(sides[axis]) for axis in "xyz")
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"{path}: its params state no readable pixel_size") from None
    if z is None:
        raise ValueError(
            f"{path}: its params do not state how far the planes are apart (pixel_size, z)"
        )
    if x is not None and y is not None and abs(x - y) > 0.01 * x:
        raise ValueError(f"{path}: its pixels are {x:g} x {y:g} nm; only square ones can be used")
    stated = x if x is not None else y
    if stated is None and pixel_size_nm is None:
        raise ValueError(f"{path}: it does not state the pixel size; state it, in nm")
    if (
        stated is not None
        and pixel_size_nm is not None
        and abs(stated - pixel_size_nm) > 0.01 * stated
    ):
        raise ValueError(
            f"{path}: its pixels are {stated:g} nm wide, not {pixel_size_nm:g}; leave the pixel "
            "size out"
        )
    return z, stated if stated is not None else float(pixel_size_nm or 0)


def _through(
    path: Path,
    stack: Stack,
    *,
    focus: float,
    z_step_nm: float,
    pixel_size_nm: float,
    centre_px: tuple[float, float],
    origin: str,
) -> PSFFile:
    """The spline through a (z, y, x) stack, its light scaled.

    The light in the window at z = 0 counts as all light, and no plane may hold more.
    """
    if not (z_step_nm > 0 and pixel_size_nm > 0):
        raise ValueError(
            f"{path}: planes {z_step_nm:g} nm apart and pixels of {pixel_size_nm:g} nm; both must "
            "be > 0"
        )
    if not np.isfinite(stack).all():
        raise ValueError(f"{path}: the PSF holds values that are not finite")
    light = stack.sum((1, 2))
    middle = light[min(max(round(focus), 0), len(light) - 1)]
    if not middle > 0:
        raise ValueError(f"{path}: the PSF holds no light at z = 0")
    stack = stack / np.maximum(light, middle)[:, None, None]
    low, high = (float(plane - focus) * z_step_nm for plane in (0, len(stack) - 1))
    psf = SplinePSF.from_stack(
        stack, z_start_nm=low, z_step_nm=z_step_nm, pixel_size_nm=pixel_size_nm, centre_px=centre_px
    )
    return PSFFile(
        psf=psf, z_range_nm=(low, high), sources=(str(path),), z_step_nm=z_step_nm, origin=origin
    )


def _chosen(path: Path, channels: Sequence[Stack], channel: int | None) -> Stack:
    if channel is None and len(channels) > 1:
        raise ValueError(
            f"{path}: it holds the PSFs of {len(channels)} channels; choose one, from 0"
        )
    if channel is not None and not 0 <= channel < len(channels):
        raise ValueError(
            f"{path}: it holds {len(channels)} channel(s), counted from 0; {channel} is none of "
            "them"
        )
    return channels[channel or 0]


def _existing(path: Path | str) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such PSF file")
    return Path(path)


def _by_field(path: Path, parts: int) -> ValueError:
    return ValueError(
        f"{path}: it holds a PSF for each of {parts} parts of the field; calibrate one for the "
        "whole field"
    )
