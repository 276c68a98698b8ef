from __future__ import annotations

from pathlib import Path

import pytest
import torch

from decode.calibrate import as_pupil as module
from decode.calibrate.as_pupil import as_pupil, calibrated_pupil, unserved_psf, with_pupil
from decode.io.psfs import PSFFile, read_psf, write_psf
from decode.optics.pupil import PupilPSF


def test_a_spline_of_a_pupil_is_described_as_that_pupil() -> None:
    waves = {(2, 2): 0.1, (2, -2): 0.02, (3, 1): -0.02, (4, 0): 0.03}
    pupil = PupilPSF(
        numerical_aperture=1.4,
        wavelength_nm=670.0,
        pixel_size_nm=110.0,
        zernike_nm={mode: 670 * c for mode, c in waves.items()},
        blur_nm=40.0,
        offset_nm=(12.0, -8.0, 60.0),
        patch_px=21,
    )
    spline = pupil.to_spline(z_range_nm=(-700, 700))
    fit = as_pupil(spline, (-600, 600), n_planes=13)
    assert fit.misfit < 0.02
    found = dict(zip(fit.psf.modes, fit.psf.zernike_nm.tolist(), strict=True))
    for mode in fit.psf.modes:
        assert abs(found[mode] / 670 - waves.get(mode, 0.0)) < 0.004, mode
    # lateral position and depth may trade a little with coma and spherical aberration
    torch.testing.assert_close(
        fit.psf.offset_nm, torch.tensor([12.0, -8.0, 60.0]), atol=6.0, rtol=0.0
    )
    assert abs(float(fit.psf.numerical_aperture) - 1.4) < 0.03


def test_a_file_keeps_the_pupil_with_its_images_which_is_then_not_fitted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pupil = PupilPSF(
        numerical_aperture=1.4,
        wavelength_nm=670.0,
        pixel_size_nm=110.0,
        zernike_nm={(2, 2): 70.0},
        patch_px=13,
    )
    spline = pupil.to_spline(z_range_nm=(-400, 400))
    fitted = with_pupil(PSFFile(psf=spline, z_range_nm=(-300.0, 300.0)))
    write_psf(tmp_path / "psf.h5", fitted)
    monkeypatch.setattr(module, "as_pupil", None)
    kept, made = calibrated_pupil(read_psf(tmp_path / "psf.h5")), fitted.pupil
    assert made is not None
    assert kept.z_nm == pytest.approx(made.z_nm)
    assert kept.light == pytest.approx(made.light)
    at = torch.tensor([[700.0, 720.0, 150.0]])
    torch.testing.assert_close(kept.psf.integrate_pixels(at), made.psf.integrate_pixels(at))
    astigmatism = kept.psf.zernike_nm.tolist()[kept.psf.modes.index((2, 2))]
    assert abs(abs(astigmatism) - 70.0) < 5.0


def test_a_calibration_at_one_depth_and_a_pupil_need_no_pupil() -> None:
    pupil = PupilPSF(numerical_aperture=1.4, wavelength_nm=670.0, pixel_size_nm=110.0)
    for z_range in ((0.0, 0.0), (-300.0, 300.0)):
        assert with_pupil(PSFFile(psf=pupil, z_range_nm=z_range)).pupil is None


@pytest.mark.parametrize(
    ("pixel_nm", "waves", "why"),
    [
        (100.0, {(2, 2): 0.1}, ""),
        (30.0, {(2, 2): 0.1}, "wavelength"),
        (100.0, {(2, 2): 0.1, (6, 0): 0.1}, "aberrations"),
    ],
    ids=["served", "small pixels", "high order"],
)
def test_whether_a_shipped_model_takes_a_psf_is_said_with_the_reason_and_the_remedy(
    pixel_nm: float, waves: dict[tuple[int, int], float], why: str
) -> None:
    pupil = PupilPSF(
        numerical_aperture=1.4,
        wavelength_nm=670.0,
        pixel_size_nm=pixel_nm,
        zernike_nm={mode: 670 * c for mode, c in waves.items()},
    )
    said = unserved_psf(PSFFile(psf=pupil, z_range_nm=(-600.0, 600.0)))
    assert bool(said) == bool(why)
    assert why in said
    assert not why or "`decode localize --adapt`" in said
