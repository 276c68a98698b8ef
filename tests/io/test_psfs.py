"""PSF files give back the PSF that was written, and say in one sentence when they cannot."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from decode.io.hdf5 import text_of
from decode.io.psfs import PSFFile, read_psf, write_psf
from decode.optics.description import describe
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import PSF
from decode.optics.pupil import PupilPSF
from decode.optics.spline import SplinePSF


def spline() -> PSF:
    stack = torch.rand(7, 22, 26, generator=torch.Generator().manual_seed(3))
    return SplinePSF.from_stack(
        stack / stack.sum((1, 2), keepdim=True),
        z_start_nm=-310.0,
        z_step_nm=95.0,
        pixel_size_nm=117.0,
        centre_px=(12.3, 10.9),
        oversampling=2,
        patch_px=11,
    )


def gaussian() -> PSF:
    return GaussianPSF(
        143.0,
        pixel_size_nm=117.0,
        depth_nm=420.0,
        gap_nm=-180.0,
        third=0.11,
        fourth=-0.05,
        patch_px=13,
    )


def pupil(**changed: Any) -> PSF:
    settings: dict[str, Any] = {
        "numerical_aperture": 1.42,
        "wavelength_nm": 680.0,
        "pixel_size_nm": 117.0,
        "sample_index": 1.36,
        "immersion_index": 1.515,
        "depth_nm": 300.0,
        "scan": "stage",
        "zernike_nm": {(2, 2): 60.0, (3, -1): -12.0},
        "blur_nm": 35.0,
        "apodization": 0.2,
        "bead_diameter_nm": 40.0,
        "offset_nm": (3.0, -7.0, 20.0),
        "patch_px": 13,
        "grid": 24,
    }
    return PupilPSF(**settings | changed)


def masked() -> PSF:
    return pupil(phase_mask_nm=100 * torch.rand(24, 24, generator=torch.Generator().manual_seed(1)))


def test_the_usable_depth_is_kept_and_said(tmp_path: Path) -> None:
    known = PSFFile(psf=gaussian(), z_range_nm=(-750.0, 750.0), usable_nm=(-750.0, 300.0))
    write_psf(tmp_path / "psf.h5", known)
    assert (
        read_psf(tmp_path / "psf.h5").depth
        == "usable over z = -750 to 300 nm of the -750 to 750 nm that were measured"
    )
    write_psf(tmp_path / "psf.h5", PSFFile(psf=gaussian(), z_range_nm=(-750.0, 750.0)))
    assert read_psf(tmp_path / "psf.h5").usable_nm is None
    assert read_psf(tmp_path / "psf.h5").depth == "measured over z = -750 to 750 nm"


@pytest.mark.parametrize("make", [spline, gaussian, pupil, masked])
def test_the_psf_that_was_written_comes_back(tmp_path: Path, make: Any) -> None:
    psf = make()
    file = PSFFile(
        psf=psf,
        z_range_nm=(-310.0, 260.0),
        sources=("beads 1.tif", "bäder/2.tif"),
        n_beads=7,
        z_step_nm=19.5,
        figures={"bias_nm": (0.25, 1.5, 3.0)},
        origin="known positions of beads",
    )
    write_psf(tmp_path / "psf.h5", file)
    back = read_psf(tmp_path / "psf.h5")
    xyz = torch.tensor([[700.0, 760.0, -250.0], [790.0, 702.0, 35.0], [741.0, 745.0, 240.0]])
    assert type(back.psf) is type(psf)
    torch.testing.assert_close(
        back.psf.integrate_pixels(xyz), psf.integrate_pixels(xyz), rtol=1e-5, atol=1e-8
    )
    assert (back.psf.pixel_size_nm, back.psf.patch_px) == (117.0, psf.patch_px)
    for name in ("z_range_nm", "sources", "n_beads", "z_step_nm", "figures", "origin"):
        assert getattr(back, name) == getattr(file, name), name
    assert [p.requires_grad for p in back.psf.parameters()] == [
        p.requires_grad for p in psf.parameters()
    ]


def test_the_file_says_its_units_and_what_z_is(tmp_path: Path) -> None:
    write_psf(tmp_path / "psf.h5", PSFFile(psf=gaussian(), z_range_nm=(0, 1)))
    with h5py.File(tmp_path / "psf.h5") as h5:
        assert text_of(h5, "length_unit") == "nm"
        assert "positive as the stage's z" in text_of(h5, "z")


def test_text_has_a_fixed_length_since_a_damaged_heap_of_hdf5_takes_memory_without_bound(
    tmp_path: Path,
) -> None:
    many = tuple(f"folder/{'long name ' * 10}{i}.tif" for i in range(1000))
    write_psf(
        tmp_path / "psf.h5",
        PSFFile(psf=spline(), z_range_nm=(0, 1), sources=many, origin="Mitte der Kügelchen"),
    )
    with h5py.File(tmp_path / "psf.h5") as h5:
        kinds = {name: h5.attrs.get_id(name).dtype.kind for name in h5.attrs}
    assert "O" not in kinds.values()
    assert read_psf(tmp_path / "psf.h5").sources == many
    assert read_psf(tmp_path / "psf.h5").origin == "Mitte der Kügelchen"


def test_a_file_of_an_earlier_version_whose_text_has_a_variable_length_is_read(
    tmp_path: Path,
) -> None:
    known = PSFFile(
        psf=pupil(), z_range_nm=(-310.0, 260.0), sources=("bäder/2.tif",), origin="Kügelchen"
    )
    write_psf(tmp_path / "new.h5", known)
    with h5py.File(tmp_path / "new.h5") as new, h5py.File(tmp_path / "old.h5", "w") as old:
        for name, value in new.attrs.items():
            old.attrs[name] = value.decode() if isinstance(value, bytes) else value
        assert old.attrs.get_id("settings").dtype.kind == "O"
        for name in new:
            new.copy(name, old)
    back = read_psf(tmp_path / "old.h5")
    assert (back.sources, back.origin, back.z_range_nm) == (
        known.sources,
        known.origin,
        known.z_range_nm,
    )
    assert describe(back.psf).settings == describe(known.psf).settings


def _text(path: Path) -> None:
    path.write_text("no HDF5")


def _other_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as h5:
        h5["locs"] = np.ones(3)


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2500])


def _without_coefficients(path: Path) -> None:
    with h5py.File(path, "a") as h5:
        del h5["coefficients"]


def _without_settings(path: Path) -> None:
    with h5py.File(path, "a") as h5:
        del h5.attrs["settings"]


def _broken_settings(path: Path) -> None:
    with h5py.File(path, "a") as h5:
        h5.attrs["settings"] = text_of(h5, "settings")[:-5]


def _foreign_setting(path: Path) -> None:
    with h5py.File(path, "a") as h5:
        h5.attrs["settings"] = '{"colour": "red"}'


def _impossible_setting(path: Path) -> None:
    with h5py.File(path, "a") as h5:
        h5.attrs["settings"] = text_of(h5, "settings").replace(
            '"pixel_size_nm": 117.0', '"pixel_size_nm": -117.0'
        )


def _unknown_kind(path: Path) -> None:
    with h5py.File(path, "a") as h5:
        h5.attrs["kind"] = "airy"


def _other_version(path: Path) -> None:
    with h5py.File(path, "a") as h5:
        h5.attrs["format"] = "decode-psf-99"


def _flat(path: Path) -> None:
    with h5py.File(path, "a") as h5:
        del h5["coefficients"]
        h5["coefficients"] = np.ones(4)


def _reversed_range(path: Path) -> None:
    with h5py.File(path, "a") as h5:
        h5.attrs["z_range_nm"] = (100.0, -100.0)


@pytest.mark.parametrize(
    "spoil",
    [
        _text,
        _other_hdf5,
        _truncated,
        _without_coefficients,
        _without_settings,
        _broken_settings,
        _foreign_setting,
        _impossible_setting,
        _unknown_kind,
        _other_version,
        _flat,
        _reversed_range,
    ],
)
def test_a_damaged_or_foreign_file_is_refused_in_one_sentence(tmp_path: Path, spoil: Any) -> None:
    path = tmp_path / "psf.h5"
    write_psf(path, PSFFile(psf=spline(), z_range_nm=(-100.0, 100.0)))
    spoil(path)
    with pytest.raises(ValueError, match="PSF") as error:
        read_psf(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such PSF file"):
        read_psf(tmp_path / "psf.h5")


def test_a_file_that_cannot_be_written_leaves_none(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        write_psf(tmp_path / "none" / "psf.h5", PSFFile(psf=gaussian(), z_range_nm=(0, 1)))
    assert list(tmp_path.iterdir()) == []


def test_a_psf_without_a_format_leaves_no_file(tmp_path: Path) -> None:
    class Flat(PSF):
        z_range_nm = None

        def integrate_pixels(
            self, xyz: torch.Tensor, parameters: torch.Tensor | None = None
        ) -> torch.Tensor:
            return torch.zeros(len(xyz), 3, 3)

    with pytest.raises(TypeError, match="Flat"):
        write_psf(tmp_path / "psf.h5", PSFFile(psf=Flat(100.0, 3), z_range_nm=(0, 1)))
    assert list(tmp_path.iterdir()) == []


def test_the_lowest_depth_comes_first() -> None:
    with pytest.raises(ValueError, match="lowest depth"):
        PSFFile(psf=gaussian(), z_range_nm=(1.0, -1.0))


def test_a_limit_on_the_size_of_files_is_said(
    tmp_path: Path, limited_files: Callable[[int], AbstractContextManager[None]]
) -> None:
    """Without a crash of the process, as HDF5 would have it where it cannot write."""
    file = PSFFile(psf=spline(), z_range_nm=(-300.0, 250.0))
    with (
        limited_files(5000),
        pytest.raises(OSError, match=r"cannot write .*psf\.h5: the limit on the size of a file"),
    ):
        write_psf(tmp_path / "psf.h5", file)
    assert list(tmp_path.iterdir()) == []
