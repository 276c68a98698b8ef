"""What the user does not state is estimated from the movie, near enough and with an interval."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tifffile
import torch

from decode.config import TrainConfig
from decode.estimation import estimate_psf_sigma
from decode.io.movies import open_movie
from decode.optics.camera import Camera
from decode.priors.camera import FixedCamera
from decode.priors.psf import PSFPrior
from decode.priors.scene import Scene

EMCCD = Camera(
    baseline=100.0, e_per_adu=45.0, read_noise_e=74.4, qe=0.9, em_gain=300.0, spurious_e=0.002
)
SCMOS = Camera(baseline=100.0, e_per_adu=0.46, read_noise_e=1.4, qe=0.8)


def movie(
    camera: Camera, sigma_px: float, rng: torch.Generator, density: float = 0.5
) -> torch.Tensor:
    """(80, 64, 64) ADU of a movie with a PSF of that width, and molecules of 1500 photons."""
    scene = Scene(
        density_per_um2=(density, density),
        flux_photons=(1500.0, 1500.0),
        background_photons=(30.0, 30.0),
        filaments=0.0,
    )
    psf = PSFPrior(sigma_px=(sigma_px, sigma_px), halo_fraction=(0.0, 0.0))
    model = replace(TrainConfig(scene=scene, psf=psf).forward_model(), cameras=FixedCamera(camera))
    return model.sample(1, 80, (64, 64), rng).frames[0]


@pytest.mark.parametrize("camera", [EMCCD, SCMOS], ids=["EMCCD", "sCMOS"])
@pytest.mark.parametrize("sigma_px", [0.8, 1.3, 1.9])
def test_the_width_of_the_psf_is_found(
    rng: torch.Generator, camera: Camera, sigma_px: float
) -> None:
    estimate = estimate_psf_sigma(movie(camera, sigma_px, rng), camera, 100.0)
    assert estimate.value == pytest.approx(100 * sigma_px, rel=0.04)
    assert estimate.low < 100 * sigma_px < estimate.high
    assert estimate.n >= 50


def test_a_movie_without_molecules_is_said_to_have_none(rng: torch.Generator) -> None:
    dark = EMCCD.sample(torch.full((30, 64, 64), 30.0), rng)
    with pytest.raises(ValueError, match="give --psf-sigma"):
        estimate_psf_sigma(dark, EMCCD, 100.0)


def test_a_real_scmos_movie(shared_data: Path) -> None:
    folder = shared_data / "storm_scmos_real"
    gain = torch.from_numpy(tifffile.imread(folder / "camera_gain_adu_per_electron.tif")).float()
    variance = torch.from_numpy(tifffile.imread(folder / "camera_variance_adu2.tif")).float()
    offset = torch.from_numpy(tifffile.imread(folder / "camera_offset_adu.tif")).float()
    mapped = Camera(
        baseline=offset, e_per_adu=1 / gain, read_noise_e=variance.clamp_min(0).sqrt() / gain
    )
    with open_movie(folder / "frames.tif") as frames:
        assert estimate_psf_sigma(frames, mapped, 160.0).value == pytest.approx(160, rel=0.15)


def test_the_width_of_a_diffraction_limited_psf(shared_data: Path) -> None:
    """NA and wavelength of that movie put the best Gaussian near 100 nm."""
    with open_movie(shared_data / "sim_2d" / "frames.tif") as frames:
        assert 85 < estimate_psf_sigma(frames, EMCCD, 100.0).value < 115
