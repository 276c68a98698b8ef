"""Files in the layouts of SMAP and uiPSF: the imported PSF draws the image that their own
programs draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import scipy.io
import torch
from scipy.interpolate import CubicSpline

from decode.io.psf_imports import import_psf, read_smap, read_uipsf
from decode.io.psfs import PSFFile, write_psf
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import PSF

Array = npt.NDArray[np.float64]

PIXEL_NM, STEP_NM, SIDE, PLANES = 110.0, 50.0, 21, 25
FOCUS = 10
"""plane of z = 0, counted from 0; not the middle one"""


def stack(side: int = SIDE) -> Array:
    """(z, y, x) a PSF that no mirror and no exchange of axes leaves as it is: astigmatic, with a
    lobe towards +x."""
    psf = GaussianPSF(
        150.0, pixel_size_nm=PIXEL_NM, depth_nm=450.0, gap_nm=180.0, patch_px=side
    ).double()
    z = (torch.arange(PLANES, dtype=torch.float64) - FOCUS) * STEP_NM
    middle = torch.full_like(z, side / 2 * PIXEL_NM)
    main = torch.stack([middle, middle, z], 1)
    lobe = main + torch.tensor([400.0, 0.0, 0.0])
    return (0.8 * psf.integrate_pixels(main) + 0.2 * psf.integrate_pixels(lobe)).detach().numpy()


def smap_coefficients(model: Array) -> Array:
    """(row, column, plane, 64) of a cubic spline through a (z, y, x) stack; powers of the row
    run fastest."""
    c = np.moveaxis(model, 0, 2)
    for axis in range(3):  # the powers of each axis go to the end
        powers = CubicSpline(np.arange(c.shape[axis]), c, axis=axis).c[::-1]
        c = np.moveaxis(np.moveaxis(powers, 1, axis + 1), 0, -1)
    return c.swapaxes(3, 5).reshape(*c.shape[:3], 64)


def smap_image(coefficients: Array, row: float, column: float, plane: float, side: int) -> Array:
    """What SMAP's own simulator draws of an emitter `row`, `column` pixels from the middle of a
    window."""
    first = [(coefficients.shape[axis] + 1 - side) // 2 for axis in (0, 1)]
    shift = [-row, -column, plane]
    whole = [int(np.floor(s)) for s in shift]
    t = [s - w for s, w in zip(shift, whole, strict=True)]
    powers = np.einsum(
        "i,j,k->ijk", *([u**n for n in range(4)] for u in (t[2], t[1], t[0]))
    ).ravel()
    rows, columns = (first[a] + whole[a] + np.arange(side) for a in (0, 1))
    return coefficients[rows[:, None], columns[None], whole[2]] @ powers


def write_mat_5(path: Path, coefficients: Any, **changed: Any) -> Path:
    spline = {
        "coeff": coefficients,
        "dz": STEP_NM,
        "z0": float(FOCUS),
        "x0": float(SIDE // 2 + 1),
    } | changed
    scipy.io.savemat(path, {"SXY": {"cspline": {k: v for k, v in spline.items() if v is not None}}})
    return path


def write_mat_73(path: Path, coefficients: Array, *, cell: bool) -> Path:
    """As MATLAB writes it: a header before the HDF5, axes reversed, cells as references."""
    with h5py.File(path, "w", userblock_size=512) as h5:
        spline = h5.create_group("SXY").create_group("cspline")
        data = coefficients.T.astype(np.float32)
        if cell:
            h5.create_dataset("#refs#/b", data=data)
            spline.create_dataset("coeff", data=np.array([[h5["#refs#/b"].ref]], h5py.ref_dtype))
        else:
            spline.create_dataset("coeff", data=data)
        for name, value in {"dz": STEP_NM, "z0": FOCUS, "x0": SIDE // 2 + 1}.items():
            spline.create_dataset(name, data=np.array([[float(value)]]))
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    return path


def cell(*members: Array) -> npt.NDArray[np.object_]:
    whole = np.empty(len(members), object)
    whole[:] = members
    return whole


def write_uipsf(path: Path, parameters: Any = None, **arrays: Any) -> Path:
    sizes = {"x": PIXEL_NM / 1000, "y": PIXEL_NM / 1000, "z": STEP_NM / 1000}
    with h5py.File(path, "w") as h5:
        h5.attrs["params"] = json.dumps({"pixel_size": sizes} if parameters is None else parameters)
        for name, value in arrays.items():
            h5[f"res/{name.replace('__', '/')}"] = value
    return path


def image(psf: PSF, dx: float = 0.0, dy: float = 0.0, z: float = 0.0, side: int = 15) -> Array:
    """The middle of a patch around an emitter that lies (dx, dy) nm from the middle of the
    middle pixel."""
    middle = psf.patch_px / 2 * PIXEL_NM
    patch = psf.double().integrate_pixels(
        torch.tensor([[middle + dx, middle + dy, z]], dtype=torch.float64)
    )
    margin = (psf.patch_px - side) // 2
    return patch[0, margin : margin + side, margin : margin + side].detach().numpy()


def assert_is_the_stack(file: PSFFile, scale: float = 1.0) -> None:
    model = stack()
    for plane in (3, FOCUS, 17):
        expected = scale * model[plane, 3:-3, 3:-3]
        np.testing.assert_allclose(
            image(file.psf, z=(plane - FOCUS) * STEP_NM), expected, atol=2e-5
        )


@pytest.mark.parametrize("kind", ["5", "5 cell", "5 outside SMAP", "7.3", "7.3 cell"])
def test_smap_in_each_of_its_layouts(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "beads_3dcal.mat"
    coefficients = smap_coefficients(stack())
    if kind.startswith("7.3"):
        write_mat_73(path, coefficients, cell="cell" in kind)
    elif kind == "5 outside SMAP":
        spline = {
            "coeff": coefficients,
            "dz": STEP_NM,
            "z0": float(FOCUS),
            "x0": float(SIDE // 2 + 1),
        }
        scipy.io.savemat(path, {"cspline": spline, "parameters": {"dz": STEP_NM}})
    else:
        write_mat_5(path, cell(coefficients) if "cell" in kind else coefficients)
    file = import_psf(path, PIXEL_NM)
    assert_is_the_stack(file, 1 / stack()[FOCUS, :-1, :-1].sum())
    # the last knot of each axis has no coefficients of its own
    assert file.z_range_nm == (-FOCUS * STEP_NM, (PLANES - 2 - FOCUS) * STEP_NM)
    assert file.z_step_nm == STEP_NM
    assert file.psf.pixel_size_nm == PIXEL_NM
    assert file.sources == (str(path),)


@pytest.mark.parametrize(
    ("row", "column", "plane"), [(0.0, 0.0, 8.0), (0.3, -0.4, 6.25), (-0.2, 0.45, 15.6)]
)
def test_it_draws_what_smap_draws_between_the_knots(
    tmp_path: Path, row: float, column: float, plane: float
) -> None:
    """To 0.2 % of the peak, through other cubic splines; an exchange of x and y would be off by
    half of it."""
    coefficients = smap_coefficients(stack())
    file = read_smap(write_mat_5(tmp_path / "a.mat", coefficients), PIXEL_NM)
    expected = smap_image(coefficients, row, column, plane, 15)
    found = image(file.psf, column * PIXEL_NM, row * PIXEL_NM, (plane - FOCUS) * STEP_NM)
    expected = expected / stack()[FOCUS, :-1, :-1].sum()
    assert np.abs(found - expected).max() < 0.002 * expected.max()


def test_without_x0_the_middle_of_the_model_is_the_emitter(tmp_path: Path) -> None:
    file = read_smap(write_mat_5(tmp_path / "a.mat", smap_coefficients(stack()), x0=None), PIXEL_NM)
    assert_is_the_stack(file, 1 / stack()[FOCUS, :-1, :-1].sum())


@pytest.mark.parametrize("layout", ["one", "channels", "groups"])
def test_uipsf_in_each_of_its_layouts(tmp_path: Path, layout: str) -> None:
    path, model = tmp_path / "psf.h5", stack()
    zoffset = -float(FOCUS)
    if layout == "one":
        write_uipsf(path, I_model=model, zoffset=zoffset)
    elif layout == "channels":
        write_uipsf(path, I_model=np.stack([model[:, ::-1], model]), zoffset=zoffset)
    else:
        write_uipsf(
            path,
            channel0__I_model=model[:, ::-1],
            channel1__I_model=model,
            channel1__zoffset=zoffset,
        )
    file = import_psf(path, channel=None if layout == "one" else 1)
    assert_is_the_stack(file, 1 / model[FOCUS].sum())
    assert file.z_range_nm == (-FOCUS * STEP_NM, (PLANES - 1 - FOCUS) * STEP_NM)
    assert file.psf.pixel_size_nm == pytest.approx(PIXEL_NM)


def test_without_zoffset_the_middle_plane_of_uipsf_is_in_focus(tmp_path: Path) -> None:
    file = read_uipsf(write_uipsf(tmp_path / "psf.h5", I_model=stack()))
    assert file.z_range_nm == (-600.0, 600.0)


def test_an_even_window_of_uipsf_has_its_emitter_in_the_middle_pixel(tmp_path: Path) -> None:
    """One more row and column before the stack: the emitter is in pixel side // 2, as it was."""
    model = np.pad(stack(), ((0, 0), (1, 0), (1, 0)))
    file = read_uipsf(write_uipsf(tmp_path / "psf.h5", I_model=model, zoffset=-float(FOCUS)))
    assert_is_the_stack(file, 1 / model[FOCUS].sum())


def test_no_plane_holds_more_than_all_light(tmp_path: Path) -> None:
    """Left-over background makes SMAP's outer planes hold more than the one in focus, which is 1
    by definition."""
    model = stack() * np.linspace(1, 3, PLANES)[:, None, None]
    file = read_uipsf(write_uipsf(tmp_path / "psf.h5", I_model=model, zoffset=-float(FOCUS)))
    light = [
        image(file.psf, z=(plane - FOCUS) * STEP_NM, side=file.psf.patch_px).sum()
        for plane in (0, FOCUS, 20)
    ]
    assert light[0] < 0.99 * light[1]
    assert light[1:] == pytest.approx([1.0, 1.0], abs=0.01)


def test_the_pixel_size_is_asked_for_where_no_file_states_it(tmp_path: Path) -> None:
    smap = write_mat_5(tmp_path / "a.mat", smap_coefficients(stack()))
    uipsf = write_uipsf(tmp_path / "a.h5", {"pixel_size": {"z": 0.05}}, I_model=stack())
    for path in (smap, uipsf):
        with pytest.raises(ValueError, match="does not state the pixel size"):
            import_psf(path)
        assert import_psf(path, 97.0).psf.pixel_size_nm == 97.0


def test_a_pixel_size_that_contradicts_the_file_is_refused(tmp_path: Path) -> None:
    path = write_uipsf(tmp_path / "a.h5", I_model=stack())
    with pytest.raises(ValueError, match="110 nm wide, not 100"):
        import_psf(path, 100.0)
    assert import_psf(path, 110.0).psf.pixel_size_nm == pytest.approx(110.0)


def test_an_open_choice_of_the_channel_is_refused(tmp_path: Path) -> None:
    c = smap_coefficients(stack())
    smap = write_mat_5(tmp_path / "a.mat", cell(c, c))
    uipsf = write_uipsf(tmp_path / "a.h5", I_model=np.stack([stack(), stack()]))
    for path in (smap, uipsf):
        with pytest.raises(ValueError, match="2 channels; choose one"):
            import_psf(path, PIXEL_NM)
        with pytest.raises(ValueError, match="2 is none of them"):
            import_psf(path, PIXEL_NM, channel=2)
        import_psf(path, PIXEL_NM, channel=1)


def test_a_psf_for_each_part_of_the_field_is_refused(tmp_path: Path) -> None:
    parts = np.zeros(2, [("cspline", object)])
    for i in range(2):
        parts[i] = ({"coeff": smap_coefficients(stack()), "dz": STEP_NM, "z0": 10.0, "x0": 11.0},)
    scipy.io.savemat(tmp_path / "a.mat", {"SXY": parts})
    with pytest.raises(ValueError, match="each of 2 parts of the field"):
        import_psf(tmp_path / "a.mat", PIXEL_NM)


def _foreign(path: Path) -> None:
    path.write_text("not a PSF at all, but long enough to hold a header " * 10)


def _foreign_mat(path: Path) -> None:
    scipy.io.savemat(path, {"localizations": np.ones(5)})


def _foreign_h5(path: Path) -> None:
    with h5py.File(path, "w") as h5:
        h5["locs"] = np.ones(5)


def _short_mat(path: Path) -> None:
    write_mat_5(path, smap_coefficients(stack()))
    path.write_bytes(path.read_bytes()[:20000])


def _short_h5(path: Path) -> None:
    write_uipsf(path, I_model=stack())
    path.write_bytes(path.read_bytes()[:20000])


def _own(path: Path) -> None:
    write_psf(path, PSFFile(psf=GaussianPSF(150.0, pixel_size_nm=100.0), z_range_nm=(0, 0)))


def _four_pi(path: Path) -> None:
    write_uipsf(path, channel0__I_model=stack(), channel0__A_model=stack())


def _without_z(path: Path) -> None:
    write_uipsf(path, {"pixel_size": {"x": 0.1, "y": 0.1}}, I_model=stack())


def _oblong(path: Path) -> None:
    write_uipsf(path, {"pixel_size": {"x": 0.1, "y": 0.12, "z": 0.05}}, I_model=stack())


def _nan(path: Path) -> None:
    write_uipsf(path, I_model=np.where(stack() > 0.02, np.nan, stack()))


def _flat(path: Path) -> None:
    write_uipsf(path, I_model=stack()[0])


def _not_64(path: Path) -> None:
    write_mat_5(path, smap_coefficients(stack())[..., :63])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (_foreign, "neither a MATLAB file nor HDF5"),
        (_foreign_mat, "not a 3D calibration of SMAP"),
        (_foreign_h5, "not a file of uiPSF"),
        (_short_mat, "not a 3D calibration of SMAP"),
        (_short_h5, "not an HDF5 file"),
        (_own, "needs no import"),
        (_four_pi, "4Pi"),
        (_without_z, "how far the planes are apart"),
        (_oblong, "100 x 120 nm"),
        (_nan, "not finite"),
        (_flat, "expected \\(z, y, x\\)"),
        (_not_64, "expected 64 coefficients"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_sentence(
    tmp_path: Path, make: Any, sentence: str
) -> None:
    path = tmp_path / "file"
    make(path)
    with pytest.raises(ValueError, match=sentence) as error:
        import_psf(path, None if make in (_without_z, _oblong) else PIXEL_NM)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(path))


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such PSF file"):
        import_psf(tmp_path / "none.mat", PIXEL_NM)
