"""What the blinking movie tells of the pupil, and what it must not pretend to tell."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from decode.calibrate.in_situ import InSituFit, crop_spots, fit_in_situ, mirrored
from decode.optics.camera import Camera
from decode.optics.psf import render
from decode.optics.pupil import PupilPSF

CAMERA = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.5, qe=0.9)
MODES = {(2, 2): "astigmatism", (3, 1): "coma", (4, 0): "spherical"}


def pupil(blur_nm: float = 40.0, **zernike: float) -> PupilPSF:
    return PupilPSF(
        numerical_aperture=1.4,
        wavelength_nm=680.0,
        pixel_size_nm=110.0,
        patch_px=15,
        grid=20,
        zernike_nm={mode: zernike.get(name, 0.0) for mode, name in MODES.items()},
        blur_nm=blur_nm,
    )


def spots(
    psf: PupilPSF, n: int, rng: torch.Generator, z_range_nm: float = 500.0
) -> tuple[Tensor, Tensor]:
    """(n, y, x) photons of molecules of 2500 to 7500 photons on 15, and where they are."""
    middle = psf.patch_px * psf.pixel_size_nm / 2
    size = torch.tensor([psf.pixel_size_nm, psf.pixel_size_nm, 2 * z_range_nm])
    xyz = torch.tensor([middle, middle, 0.0]) + (torch.rand(n, 3, generator=rng) - 0.5) * size
    photons = 2500 + 5000 * torch.rand(n, generator=rng)
    light = photons[:, None, None] * psf.integrate_pixels(xyz).detach() + 15
    return CAMERA.to_photons(CAMERA.sample(light, rng)), xyz


def refine(
    truth: PupilPSF, start: PupilPSF, rng: torch.Generator, n: int = 50
) -> tuple[InSituFit, Tensor]:
    images, xyz = spots(truth, n, rng)
    found = fit_in_situ(images, psf=start, camera=CAMERA)
    return found, found.fit.xyz_nm - xyz[found.used]


def test_a_stale_pupil_is_brought_up_to_date(rng: torch.Generator) -> None:
    truth = pupil(astigmatism=60.0, coma=-15.0, spherical=-20.0)
    found, error = refine(truth, pupil(astigmatism=40.0), rng)
    assert (found.psf.zernike_nm - truth.zernike_nm).detach().abs().max() < 4.0
    assert found.used.float().mean() > 0.9
    assert found.sides_differ
    assert found.sign_known
    assert error[:, 2].abs().median() < 30
    assert abs(found.mirror_ratio) < 5
    assert "direction of z is that of the starting PSF" in found.verdict
    assert "scale of z is as right as" in found.verdict


def test_hidden_neighbours_do_not_bend_the_pupil(rng: torch.Generator) -> None:
    truth = pupil(blur_nm=0.0, astigmatism=60.0, coma=-15.0, spherical=-40.0)
    images, xyz = spots(truth, 150, rng)
    images = images - 15
    hidden = torch.arange(150) % 5 < 3
    shift = torch.tensor([500.0, 400.0, 0.0]) * torch.randn(150, 3, generator=rng)
    light = 9000 * truth.integrate_pixels(xyz + shift).detach()
    images = images + torch.where(hidden[:, None, None], light, 0.0) + 15
    start = pupil(blur_nm=0.0, astigmatism=60.0, coma=-15.0)
    found = fit_in_situ(images, psf=start, camera=CAMERA)
    assert (found.psf.zernike_nm - truth.zernike_nm).detach().abs().max() < 4.0
    assert float(found.psf.blur_nm.detach()) < 22
    assert found.used[~hidden].float().mean() > 2 * found.used[hidden].float().mean()


def test_without_a_sign_to_start_from_it_does_not_guess(rng: torch.Generator) -> None:
    truth = pupil(astigmatism=60.0)
    found, _ = refine(truth, pupil(), rng)
    assert abs(abs(float(found.psf.zernike_nm[0])) - 60) < 4
    assert not found.sign_known
    assert "upside down" in found.verdict


def test_a_pupil_without_even_aberrations_looks_the_same_on_both_sides_of_focus(
    rng: torch.Generator,
) -> None:
    found, error = refine(pupil(), pupil(), rng)
    assert float(found.psf.zernike_nm.detach().abs().max()) < 6.0
    assert not found.sides_differ
    assert "same above and below focus" in found.verdict
    assert error[:, 2].abs().max() > 300  # some z are on the wrong side indeed


def test_a_pupils_mirror_is_its_image_upside_down() -> None:
    psf = pupil(astigmatism=50.0, coma=20.0, spherical=10.0)
    up = torch.tensor([[825.0, 825.0, 300.0]])
    down = up * torch.tensor([1.0, 1.0, -1.0])
    torch.testing.assert_close(
        mirrored(psf).integrate_pixels(down), psf.integrate_pixels(up), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(mirrored(mirrored(psf)).zernike_nm, psf.zernike_nm)


def test_spots_are_cut_where_molecules_stand_alone(rng: torch.Generator) -> None:
    psf = pupil(astigmatism=60.0)
    frames, side = 40, 64
    # one molecule alone, and a pair too close to tell
    place = torch.tensor([[16.5, 16.5, 0.0], [45.5, 44.5, 0.0], [50.5, 47.5, 0.0]]) * 110
    light = render(
        psf,
        frame=torch.arange(frames).repeat_interleave(3),
        xyz=place.repeat(frames, 1),
        photons=torch.full((3 * frames,), 4000.0),
        n_frames=frames,
        shape=(side, side),
    ).detach()
    movie = CAMERA.to_photons(CAMERA.sample(light + 15, rng))
    crops = crop_spots(movie, psf=psf, camera=CAMERA)
    assert len(crops) == frames
    expected = light[:, 9:24, 9:24] + 15
    assert float((crops - expected).mean()) == pytest.approx(0, abs=0.3)


def test_too_few_spots_are_refused(rng: torch.Generator) -> None:
    psf = pupil()
    with pytest.raises(ValueError, match="20 are needed"):
        crop_spots(torch.full((3, 40, 40), 10.0), psf=psf, camera=CAMERA)
    with pytest.raises(ValueError, match="at least 20"):
        fit_in_situ(spots(psf, 5, rng)[0], psf=psf, camera=CAMERA)
