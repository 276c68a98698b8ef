"""A free phase over the pupil finds masks that Zernike polynomials do not describe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from decode.calibrate.phase_mask import fit_phase_mask
from decode.calibrate.psf import Optics, fit_psf
from decode.calibrate.pupil import fit_pupil
from decode.cli import app
from decode.io.cameras import CameraFile, write_camera
from decode.io.movies import write_movie
from decode.io.psfs import read_psf
from decode.optics.camera import Camera
from decode.optics.pupil import PupilPSF

PATCH_PX, GRID, PIXEL_NM = 17, 18, 110.0
PLANES_NM = torch.arange(-500.0, 501.0, 100.0)
XYZ = torch.tensor([[910.0, 960.0, 30.0], [970.0, 900.0, -20.0]])
EMCCD = Camera(
    baseline=100.0, e_per_adu=45.0, read_noise_e=74.4, qe=0.9, em_gain=300.0, spurious_e=0.002
)


def pupil(mask: Tensor | None = None, **settings: Any) -> PupilPSF:
    return PupilPSF(
        numerical_aperture=1.4,
        wavelength_nm=660.0,
        pixel_size_nm=PIXEL_NM,
        patch_px=PATCH_PX,
        grid=GRID,
        scan="stage",
        phase_mask_nm=mask,
        **settings,
    )


def vortices(*places: float) -> Tensor:
    """Phase, as a path in nm, that turns once around each of some places on the x axis; in a
    row: a double helix."""
    at = (torch.arange(GRID) + 0.5) * 2 / GRID - 1
    turns = torch.stack(
        [torch.atan2(at[:, None].expand(GRID, GRID), at.expand(GRID, GRID) - x) for x in places]
    )
    return turns.sum(0) * 660 / (2 * torch.pi)


def stacks(psf: PupilPSF, rng: torch.Generator, photons: float = 30000.0) -> Tensor:
    """(bead, z, y, x) photons."""
    light = photons * truth(psf) + 8
    return EMCCD.to_photons(EMCCD.sample(light, rng))


def truth(psf: PupilPSF, xyz: Tensor = XYZ) -> Tensor:
    at = xyz[:, None] + torch.nn.functional.pad(PLANES_NM[:, None], (2, 0))
    return (
        psf.integrate_pixels(at.flatten(0, 1))
        .detach()
        .view(len(xyz), len(PLANES_NM), PATCH_PX, PATCH_PX)
    )


def error(found: PupilPSF, xyz: Tensor, expected: Tensor) -> float:
    """Of the images of beads, as a fraction of their energy; of what shines beyond the patch
    nothing is known."""
    images = truth(found, xyz)
    scale = (images * expected).sum() / images.square().sum()
    return float((scale * images - expected).square().sum() / expected.square().sum())


@pytest.mark.parametrize(
    "places",
    [
        pytest.param((0.0,), id="vortex"),
        pytest.param((-0.5, 0.0, 0.5), id="double helix", marks=pytest.mark.slow),
    ],
)
def test_a_mask_is_recovered_where_zernike_polynomials_fail(
    places: tuple[float, ...], rng: torch.Generator
) -> None:
    psf = pupil(vortices(*places), blur_nm=30.0)
    expected = truth(psf)
    seen = stacks(psf, rng)
    zernike = fit_pupil(seen, z_nm=PLANES_NM, psf=pupil(), camera=EMCCD)
    masked = fit_phase_mask(seen, z_nm=PLANES_NM, psf=pupil(), camera=EMCCD, steps=120)
    assert masked.misfit < 1.15 < zernike.misfit
    assert error(masked.psf, masked.xyz_nm, expected) < 0.005
    assert error(masked.psf, masked.xyz_nm, expected) < 0.1 * error(
        zernike.psf, zernike.xyz_nm, expected
    )


def test_the_mask_takes_up_no_more_of_the_noise_than_its_part_of_the_numbers(
    rng: torch.Generator,
) -> None:
    """Where Zernike polynomials explain all; 254 cells against 6358 pixels of noise."""
    psf = pupil(zernike_nm={(2, 2): 60.0}, blur_nm=30.0)
    expected = truth(psf)
    seen = stacks(psf, rng, 5000.0)
    masked = fit_phase_mask(seen, z_nm=PLANES_NM, psf=pupil(), camera=EMCCD, steps=100)
    noise = float((seen - 5000 * expected - 8).square().sum() / (5000 * expected).square().sum())
    assert masked.misfit == pytest.approx(1.0, abs=0.06)
    assert error(masked.psf, masked.xyz_nm, expected) < 254 / 6358 * noise


def recorded(folder: Path, psf: PupilPSF, rng: torch.Generator) -> Path:
    """A stack of two beads."""
    frames = torch.full((len(PLANES_NM), 60, 60), 8.0)
    for (x, y), light in zip(((5, 8), (36, 33)), 30000 * truth(psf), strict=True):
        frames[:, y : y + PATCH_PX, x : x + PATCH_PX] += light
    write_movie(folder / "beads.tif", EMCCD.sample(frames, rng).numpy(), pixel_size_nm=PIXEL_NM)
    write_camera(folder / "camera.yaml", CameraFile(camera=EMCCD, pixel_size_nm=PIXEL_NM))
    return folder / "beads.tif"


@pytest.mark.slow
def test_the_size_of_beads_and_the_sample_are_known_to_the_pupil(
    tmp_path: Path, rng: torch.Generator
) -> None:
    """The command's PSF is a molecule's: sharper than its beads were."""
    bead = pupil(zernike_nm={(2, 2): 60.0}, blur_nm=30.0, sample_index=1.33, bead_diameter_nm=200.0)
    beads = recorded(tmp_path, bead, rng)
    known = [
        "--model",
        "pupil",
        "--numerical-aperture",
        "1.4",
        "--wavelength",
        "660",
        "--patch",
        str(PATCH_PX),
    ]
    known += ["--sample-index", "1.33", "--bead-diameter", "200", "--z-step", "100"]
    paths = ["--camera", str(tmp_path / "camera.yaml"), "-o", str(tmp_path / "psf.h5")]
    result = CliRunner().invoke(app, ["calibrate", "psf", str(beads), *paths, *known])
    assert result.exit_code == 0, result.output
    psf = read_psf(tmp_path / "psf.h5").psf
    assert isinstance(psf, PupilPSF)
    assert (psf.sample_index, psf.bead_diameter_nm) == (1.33, 0.0)
    assert float(psf.blur_nm.detach()) == pytest.approx(30, abs=15)
    assert float(psf.zernike_nm[psf.modes.index((2, 2))].detach()) == pytest.approx(60, abs=3)


def test_only_a_pupil_knows_of_such_things(tmp_path: Path, rng: torch.Generator) -> None:
    camera = CameraFile(camera=EMCCD, pixel_size_nm=PIXEL_NM)
    with pytest.raises(ValueError, match="calibrate one with --model pupil"):
        fit_psf([tmp_path / "beads.tif"], camera, optics=Optics(phase_mask=True))
