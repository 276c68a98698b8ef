from __future__ import annotations

import pytest
import torch

from decode.calibrate.as_pupil import as_pupil, unserved_psf
from decode.io.psfs import PSFFile
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
    fit = as_pupil(pupil.to_spline(z_range_nm=(-700, 700)), (-600, 600), n_planes=13)
    assert fit.misfit < 0.02
    found = dict(zip(fit.psf.modes, fit.psf.zernike_nm.tolist(), strict=True))
    for mode in fit.psf.modes:
        assert abs(found[mode] / 670 - waves.get(mode, 0.0)) < 0.004, mode
    # lateral position and depth may trade a little with coma and spherical aberration
    torch.testing.assert_close(
        fit.psf.offset_nm, torch.tensor([12.0, -8.0, 60.0]), atol=6.0, rtol=0.0
    )
    assert abs(float(fit.psf.numerical_aperture) - 1.4) < 0.03


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
