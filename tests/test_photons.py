"""Photons are those a molecule sent, whatever kind of PSF its light is described by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from decode.calibrate.as_pupil import calibrated_pupil
from decode.conditioning import Conditioning, KnownOptics
from decode.emitters import EmitterSet
from decode.io.psfs import PSFFile
from decode.likelihood import fit_emitters, fit_jointly
from decode.models import load_model
from decode.network.localizer import Localizer
from decode.optics.camera import Camera
from decode.optics.field import FieldSplinePSF
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import PSF, render
from decode.optics.pupil import PupilPSF
from decode.optics.spline import SplinePSF

PIXEL_NM = 100.0
SIDE = 31
PHOTONS, BACKGROUND = 4000.0, 10.0
CAMERA = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.5, qe=0.8)
Z_NM = (-500.0, 500.0)


def gaussian() -> PSF:
    return GaussianPSF(120.0, pixel_size_nm=PIXEL_NM, depth_nm=400.0, gap_nm=200.0, patch_px=SIDE)


def pupil() -> PupilPSF:
    return PupilPSF(
        numerical_aperture=1.4,
        wavelength_nm=670.0,
        pixel_size_nm=PIXEL_NM,
        zernike_nm={(2, 2): 70.0},
        blur_nm=60.0,
        patch_px=SIDE,
    )


def phase_mask() -> PupilPSF:
    at = torch.linspace(-1, 1, 44)
    lobes = 80.0 * torch.cos(2 * torch.atan2(at[:, None], at)) * torch.hypot(at[:, None], at) ** 2
    return PupilPSF(
        numerical_aperture=1.4,
        wavelength_nm=670.0,
        pixel_size_nm=PIXEL_NM,
        phase_mask_nm=lobes,
        patch_px=SIDE,
    )


def spline() -> SplinePSF:
    return pupil().to_spline(z_range_nm=(-700.0, 700.0), z_step_nm=50.0)


def of_beads() -> SplinePSF:
    """As beads give it: all light is what its patch holds."""
    cut = pupil().to_spline(
        z_range_nm=(-700.0, 700.0), z_step_nm=50.0, oversampling=1, patch_px=SIDE
    )
    coefficients = cut.coefficients.detach()
    return cut.with_coefficients(coefficients / coefficients.sum((1, 2), keepdim=True))


def field() -> FieldSplinePSF:
    middle = spline()
    c = middle.coefficients.detach()
    change = 0.2 * (c.roll(1, 1) - c)
    return FieldSplinePSF(
        middle,
        torch.stack([change, -change.mT]),
        shifts_nm=torch.ones(2, 2),
        field_nm=((0.0, 1e4), (0.0, 5e3)),
    )


KINDS: dict[str, tuple[Callable[[], PSF], Callable[[], PSF]]] = {
    "Gaussian": (gaussian, gaussian),
    "spline": (spline, pupil),
    "pupil": (pupil, pupil),
    "phase mask": (phase_mask, phase_mask),
    "field": (field, field),
}
"""the PSF that the fit knows, and the one that the light has"""


def isolated(n: int, rng: torch.Generator) -> EmitterSet:
    """One molecule in every second frame, somewhere in its middle pixel."""
    corner = torch.tensor([SIDE // 2 * PIXEL_NM, SIDE // 2 * PIXEL_NM, Z_NM[0]])
    extent = torch.tensor([PIXEL_NM, PIXEL_NM, Z_NM[1] - Z_NM[0]])
    return EmitterSet(
        frame=2 * torch.arange(n),
        xyz=corner + torch.rand(n, 3, generator=rng) * extent,
        photons=torch.full((n,), PHOTONS),
        background=torch.full((n,), BACKGROUND),
    )


def recorded(psf: PSF, truth: EmitterSet, rng: torch.Generator) -> Tensor:
    """(t, y, x) counts; light from far beyond the frame's sides comes in too."""
    light = render(
        psf.with_patch(2 * SIDE + 1),
        frame=truth.frame,
        xyz=truth.xyz,
        photons=truth.photons,
        n_frames=2 * len(truth),
        shape=(SIDE, SIDE),
    ).detach()
    return CAMERA.sample(light.clamp_min(0) + BACKGROUND, rng)


@pytest.mark.parametrize("kind", KINDS)
def test_photons_of_isolated_molecules_are_those_they_sent(kind: str, rng: torch.Generator) -> None:
    """Means of 60 scatter by 0.3 %."""
    known, true = (make() for make in KINDS[kind])
    truth = isolated(60, rng)
    adu = recorded(true, truth, rng)
    alone = fit_emitters(
        known, CAMERA, CAMERA.to_photons(adu[::2]), truth.xyz, z_range=(-600.0, 600.0), z_starts=1
    )
    assert 0.95 < alone.photons.mean() / PHOTONS < 1.05
    polished = fit_jointly(known, CAMERA, adu, replace(truth, photons=truth.photons * 1.3))
    assert 0.95 < polished.photons.mean() / PHOTONS < 1.05


def conditioning(model: Localizer, psf: PSF) -> Conditioning:
    pupil = partial(calibrated_pupil, PSFFile(psf=psf, z_range_nm=Z_NM))
    return model.domain.conditioning(KnownOptics(pixel_size_nm=PIXEL_NM, pupil=pupil))


@pytest.fixture(scope="module")
def told_of_beads() -> Conditioning:
    """A fit of seconds, so that all tests share it."""
    return conditioning(load_model("astigmatic-3d"), of_beads())


def test_a_network_that_is_told_the_pupil_of_a_spline_counts_the_photons_of_the_spline(
    told_of_beads: Conditioning, rng: torch.Generator
) -> None:
    """The pupil's rings reach beyond the patch, which the spline of beads does not know of."""
    truth = isolated(20, rng)
    held = pupil().integrate_pixels(truth.xyz).sum((1, 2)).detach()
    assert held.max() < 0.97
    seen = truth.xyz * torch.tensor([1.0, 1.0, float(told_of_beads.z_sign)])
    placed = told_of_beads.placed(replace(truth, xyz=seen, photons_sigma=torch.full((20,), 100.0)))
    torch.testing.assert_close(placed.photons, PHOTONS * held, rtol=0.02, atol=0.0)
    assert placed.photons_sigma is not None
    torch.testing.assert_close(placed.photons_sigma, 100 * placed.photons / PHOTONS)


def found_by(
    model: Localizer, psf: PSF, context: Mapping[str, float], rng: torch.Generator
) -> EmitterSet:
    """Isolated molecules as a network finds them."""
    truth = isolated(150, rng)
    light = render(
        psf,
        frame=truth.frame,
        xyz=truth.xyz,
        photons=truth.photons,
        n_frames=2 * len(truth),
        shape=(SIDE, SIDE),
    ).detach()
    adu = CAMERA.sample(light.clamp_min(0) + BACKGROUND, rng)
    with torch.no_grad():
        posterior = model.eval()(adu[None], CAMERA, model.context_map(context), PIXEL_NM)
    found = posterior.point_estimate(0.5)
    found = found[(found.xyz[:, :2] - SIDE * PIXEL_NM / 2).norm(dim=1) < 150]
    assert len(found) > 130
    return found


def test_gaussian_2d_counts_the_photons_that_were_sent(rng: torch.Generator) -> None:
    flat = GaussianPSF(120.0, pixel_size_nm=PIXEL_NM, patch_px=SIDE)
    found = found_by(load_model("gaussian-2d"), flat, {"psf_sigma_px": 1.2}, rng)
    assert 0.95 < found.photons.mean() / PHOTONS < 1.05


def test_astigmatic_3d_counts_the_photons_that_were_sent(
    told_of_beads: Conditioning, rng: torch.Generator
) -> None:
    model = load_model("astigmatic-3d")
    for psf, told in ((pupil(), conditioning(model, pupil())), (of_beads(), told_of_beads)):
        found = told.placed(found_by(model, psf, told.values, rng))
        # the median: a bright molecule far from focus may be listed with a faint part of it
        assert 0.93 < found.photons.median() / PHOTONS < 1.05
