"""Beads whose aberrations change over the field: the maps predict beads they have not seen, one
PSF does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor

from decode.calibrate.bead_fit import BeadFit
from decode.calibrate.beads import BeadSet
from decode.calibrate.field import fit_field
from decode.calibrate.field_trial import try_field, uncovered
from decode.calibrate.psf import fit_psf
from decode.calibrate.report import save_report
from decode.calibrate.spline import fit_spline
from decode.io.cameras import CameraFile
from decode.io.psfs import read_psf, write_psf
from decode.likelihood import fit_emitters
from decode.optics.camera import Camera, Noise
from decode.optics.field import FieldSplinePSF, polynomials
from decode.optics.fisher import cramer_rao_bound
from decode.optics.psf import PSF
from decode.optics.pupil import PupilPSF
from decode.optics.spline import SplinePSF

PIXEL_NM, SIDE = 100.0, 15
FIELD_NM = ((0.0, 1e4), (0.0, 1e4))
PLANES_NM = torch.arange(-400.0, 401.0, 80.0)
PHOTONS, BACKGROUND = 10000.0, 10.0
NOISE = Noise(1.0, 0.0)
CAMERA = Camera(baseline=0.0, e_per_adu=1.0, read_noise_e=0.0)
STATED = CameraFile(
    camera=Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.6), pixel_size_nm=PIXEL_NM
)


Fits = tuple[BeadFit[SplinePSF], BeadFit[FieldSplinePSF]]


def places(n: int, rng: torch.Generator) -> Tensor:
    return 1000 + 8000 * torch.rand(n, 2, generator=rng)


def light(where: Tensor, xyz: Tensor, change: float) -> Tensor:
    """(bead, z, y, x) of pupils whose astigmatism grows along x, and coma along y, by 20 nm
    either way."""
    pupil = PupilPSF(
        numerical_aperture=1.4,
        wavelength_nm=670.0,
        pixel_size_nm=PIXEL_NM,
        patch_px=SIDE,
        zernike_nm={(2, 2): 60.0, (3, 1): 0.0},
    )
    _, x, y = polynomials(where, FIELD_NM, 3).T
    none = torch.zeros_like(x)
    own = torch.stack([60 + 20 * change * x, 20 * change * y, none, none], 1)
    at = xyz[:, None] + torch.nn.functional.pad(PLANES_NM[:, None], (2, 0))
    with torch.no_grad():
        return torch.stack(
            [pupil.integrate_pixels(a, p.expand(len(a), -1)) for a, p in zip(at, own, strict=True)]
        )


def beads(n: int, change: float, rng: torch.Generator) -> BeadSet:
    where = places(n, rng)
    xyz = torch.tensor([750.0, 750.0, 0.0]) + (
        torch.rand(n, 3, generator=rng) - 0.5
    ) * torch.tensor([90.0, 90.0, 30.0])
    mean = PHOTONS * light(where, xyz, change) + BACKGROUND
    return BeadSet(
        crops=torch.poisson(mean, generator=rng),
        z_nm=PLANES_NM,
        xy=xyz[:, :2],
        corners_nm=where - xyz[:, :2],
        stack=torch.zeros(n, dtype=torch.long),
        noise=NOISE,
        camera=CAMERA,
        pixel_size_nm=PIXEL_NM,
        field_nm=FIELD_NM,
    )


def errors_over_bound(fit: BeadFit[PSF], new: BeadSet) -> tuple[Tensor, Tensor]:
    """Of x, y and z of new beads, each bead's mean taken off: rms of the error without most of
    its noise, nm, and rms of the error over the bound."""
    n, planes = new.crops.shape[:2]
    own = new.places_nm.repeat_interleave(planes, 0) if fit.psf.field_nm else None
    start = torch.tensor([SIDE / 2 * PIXEL_NM] * 2 + [0.0]).expand(n * planes, 3)
    found = fit_emitters(
        fit.psf,
        CAMERA,
        new.crops.flatten(0, 1),
        start,
        z_range=(-450.0, 450.0),
        z_starts=3,
        n_steps=10,
        parameters=own,
    )
    bound = cramer_rao_bound(
        fit.psf, CAMERA, found.xyz, found.photons, found.background, parameters=own
    )[:, :3]
    error = found.xyz.view(n, planes, 3) - torch.nn.functional.pad(PLANES_NM[:, None], (2, 0))
    error = (error - error.mean(1, keepdim=True))[:, 1:-1]
    smooth = error.unfold(1, 3, 1).mean(-1)
    ratio = (
        error.square().mean((0, 1)).sqrt()
        / bound.view(n, planes, 3)[:, 1:-1].square().mean((0, 1)).sqrt()
    )
    return smooth.square().mean((0, 1)).sqrt(), ratio


@pytest.fixture(scope="module")
def fits() -> Fits:
    """One PSF for all, and one that changes over the field."""
    fitted = beads(14, 1.0, torch.Generator().manual_seed(3))
    same = fit_spline(fitted, smoothness=0.2, n_rounds=4)
    return same, fit_field(
        same, fitted, terms=3, size=1.0, smoothness=0.2, depth_smoothness=0.05, n_rounds=2
    )


def test_beads_that_were_not_fitted_are_found_near_the_bound(fits: Fits) -> None:
    """Of light whose astigmatism and coma change: depth and x; coma along x leaves y alone."""
    same, varied = fits
    new = beads(6, 1.0, torch.Generator().manual_seed(11))
    bias, ratio = errors_over_bound(varied, new)
    bias_same, ratio_same = errors_over_bound(same, new)
    assert float(ratio.max()) < 1.3
    assert float(ratio_same[0]) > 1.4 * float(ratio[0])
    assert float(ratio_same[2]) > 2.5 * float(ratio[2])
    assert float(bias_same[2]) > 4 * float(bias[2])


def test_noise_explains_what_a_psf_of_each_place_leaves(fits: Fits) -> None:
    same, varied = fits
    assert same.deviance > 1.3
    assert varied.deviance == pytest.approx(
        0.98, abs=0.04
    )  # below 1, as the fit takes up a part of the noise


def test_planes_hold_the_same_light_all_over_the_field(fits: Fits) -> None:
    psf = fits[1].psf
    scale = psf.middle.oversampling**2
    all_of_it = torch.full((len(psf.middle.coefficients),), float(scale))
    torch.testing.assert_close(
        psf.middle.coefficients.detach().sum((1, 2)), all_of_it, rtol=1e-4, atol=0
    )
    assert float(psf.changes.detach().sum((2, 3)).abs().max()) < 1e-3 * scale


def test_everywhere_the_centroid_of_the_light_in_focus_is_the_emitter(
    fits: Fits,
) -> None:
    psf = fits[1].psf
    corners = torch.tensor([[0.0, 0.0], [1e4, 0.0], [0.0, 1e4], [1e4, 1e4], [5e3, 5e3]])
    middle = psf.patch_px / 2 * PIXEL_NM
    at = torch.tensor([[middle, middle, 0.0]]).expand(len(corners), 3)
    image = psf.integrate_pixels(at, corners).detach().clamp_min(0)
    grid = (torch.arange(psf.patch_px) + 0.5) * PIXEL_NM - middle
    centre = torch.stack([image.sum(1) @ grid, image.sum(2) @ grid], 1) / image.sum((1, 2))[:, None]
    assert float(centre.abs().max()) < 2.0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_held_out_beads_decide() -> None:
    """Maps where there is a change, and one PSF where there is none."""
    for change, terms in ((1.0, 3), (0.0, 1)):
        some = beads(12, change, torch.Generator().manual_seed(5))
        same = fit_spline(some, smoothness=0.2, n_rounds=4)
        trial = try_field(same, some, smoothness=0.2)
        assert trial.terms == terms, trial.note
        assert isinstance(trial.fit.psf, FieldSplinePSF) == (terms > 1)
        assert ("changes linearly" in trial.note) == (terms > 1)


def test_beads_must_cover_the_field(rng: torch.Generator) -> None:
    everywhere = places(20, rng)
    assert uncovered(everywhere, FIELD_NM, 3) == ""
    assert "too few" in uncovered(everywhere[:8], FIELD_NM, 3)
    assert "too few" in uncovered(everywhere[:17], FIELD_NM, 6)
    line = torch.stack([everywhere[:, 0], everywhere[:, 0] + 30], 1)
    assert "along a line" in uncovered(line, FIELD_NM, 3)
    corner = everywhere / 4
    assert "together" in uncovered(corner, FIELD_NM, 3)
    on_a_cross = torch.cat([torch.stack([everywhere[:, 0], torch.full((20,), 5e3)], 1)] * 2)
    on_a_cross[20:] = on_a_cross[:20].flip(1)
    assert uncovered(on_a_cross, FIELD_NM, 3) == ""
    assert "empty" in uncovered(on_a_cross, FIELD_NM, 6)


def test_beads_that_do_not_cover_the_field_leave_the_psf_as_it_is(rng: torch.Generator) -> None:
    two = beads(2, 0.0, rng)
    same = fit_spline(two, smoothness=0.2, n_rounds=1)
    trial = try_field(same, two, smoothness=0.2)
    assert trial.fit is same
    assert "too few" in trial.note


def stack(path: Path, change: float) -> tuple[Path, Tensor]:
    """A bead stack of the whole field (TIFF), and where its beads are, (n, 2) nm."""
    rng = torch.Generator().manual_seed(8)
    grid = torch.cartesian_prod(*(1400 + 2400 * torch.arange(4.0),) * 2)
    where = grid + 300 * torch.rand(16, 2, generator=rng)
    corner = torch.floor(where / PIXEL_NM) - SIDE // 2
    images = light(where, torch.nn.functional.pad(where - corner * PIXEL_NM, (0, 1)), change)
    mean = torch.full((len(PLANES_NM), 100, 100), BACKGROUND)
    for (column, row), image in zip(corner.int().tolist(), images, strict=True):
        mean[:, row : row + SIDE, column : column + SIDE] += PHOTONS * image
    adu = STATED.camera.sample(mean, rng)
    tifffile.imwrite(path, adu.numpy().astype(np.uint16), photometric="minisblack")
    return path, where


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_bead_stack_becomes_a_psf_of_the_field(tmp_path: Path) -> None:
    """With figures of beads held out, a report, and the emitter where it is known to be,
    everywhere."""
    path, where = stack(tmp_path / "beads.tif", 1.0)
    found = fit_psf([path], STATED, z_step_nm=80.0, patch_px=SIDE - 2, positions_nm=where)
    assert isinstance(found.psf, FieldSplinePSF)
    assert found.psf.field_nm == FIELD_NM
    assert any("changes linearly over the field" in note for note in found.notes)
    assert found.held_out is not None
    assert max(found.held_out.summary(300)["rmse_over_bound"]) < 1.5
    assert found.deviance == pytest.approx(0.98, abs=0.06)
    corner = torch.tensor([bead.corner_px for bead in found.beads]) * PIXEL_NM
    off = torch.cdist(found.xyz[:, :2] + corner, where).min(1).values
    assert float(off.max()) < 4.0
    save_report(found, tmp_path / "psf.html")
    assert "The PSF over the field" in (tmp_path / "psf.html").read_text()
    write_psf(tmp_path / "psf.h5", found.file)
    again = read_psf(tmp_path / "psf.h5").psf
    at, place = torch.tensor([[900.0, 880.0, 150.0]]), torch.tensor([[2000.0, 9000.0]])
    torch.testing.assert_close(
        again.integrate_pixels(at, place), found.psf.integrate_pixels(at, place)
    )
