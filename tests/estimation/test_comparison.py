"""A movie and its simulation are compared: alike where the estimate is right, apart where it is
not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from decode.estimation import Comparison, compare, estimate_scene, save_comparison
from decode.forward import ForwardModel
from decode.optics.camera import Camera
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import render
from decode.priors.scene import Scene

CAMERA = Camera(baseline=100.0, e_per_adu=0.46, read_noise_e=1.4, qe=0.8)
PSF = GaussianPSF(120.0, pixel_size_nm=100.0, patch_px=15)


@pytest.fixture(scope="module")
def comparisons() -> tuple[Comparison, Comparison]:
    """With the estimate, and with molecules twice too bright and too dim a background."""
    scene = Scene(
        density_per_um2=(0.5, 0.5),
        flux_photons=(2500.0, 2500.0),
        flux_variation=(0.3, 0.3),
        on_time_frames=(2.0, 2.0),
        filaments=0.0,
        background_photons=(20.0, 20.0),
        background_contrast=(0.1, 0.1),
        background_drift=(0.0, 0.0),
    )
    rng = torch.Generator().manual_seed(5)
    frames = ForwardModel.of(scene, PSF, CAMERA).sample(1, 300, (64, 64), rng).frames[0]
    estimate = estimate_scene(frames, CAMERA, PSF)
    wrong = replace(
        estimate,
        flux_photons=replace(estimate.flux_photons, value=2 * estimate.flux_photons.value),
        background_photons=replace(
            estimate.background_photons, value=0.7 * estimate.background_photons.value
        ),
    )
    return compare(frames, CAMERA, PSF, estimate), compare(frames, CAMERA, PSF, wrong)


def test_a_right_estimate_looks_like_the_movie(comparisons: tuple[Comparison, Comparison]) -> None:
    right, wrong = comparisons
    assert right.histogram_overlap > 0.95
    assert right.spectrum_difference < 0.15
    assert wrong.histogram_overlap < right.histogram_overlap - 0.1
    assert wrong.spectrum_difference > 2 * right.spectrum_difference


def test_molecules_on_a_structure_are_no_difference(rng: torch.Generator) -> None:
    """A right estimate does not draw the filament at the field's border, nor the background's
    shape."""
    scene = Scene(
        density_per_um2=(0.5, 0.5),
        flux_photons=(2500.0, 2500.0),
        flux_variation=(0.3, 0.3),
        on_time_frames=(2.0, 2.0),
        filaments=0.0,
    )
    drawn = scene.sample_emitters(1, 300, (64, 64), 100.0, rng)
    xyz = drawn.xyz.clone()
    xyz[:, 1] = 700 + 0.05 * xyz[:, 1]
    with torch.no_grad():
        light = render(
            PSF, frame=drawn.frame, xyz=xyz, photons=drawn.photons, n_frames=300, shape=(64, 64)
        )
    background = 20 + 10 * torch.linspace(0, 6, 64).sin()
    frames = CAMERA.sample(light + background, rng)
    compared = compare(frames, CAMERA, PSF, estimate_scene(frames, CAMERA, PSF))
    # 1.4 with a window that fades half of the field, and the structure itself in the spectrum
    assert compared.spectrum_difference < 0.4


def test_histograms_count_every_pixel(comparisons: tuple[Comparison, Comparison]) -> None:
    np.testing.assert_allclose(comparisons[0].histograms.sum(1), 1)


def test_the_power_of_white_noise_is_its_variance(
    comparisons: tuple[Comparison, Comparison],
) -> None:
    """At the highest frequencies an image of molecules holds noise alone: its variance, by the
    camera."""
    right = comparisons[0]
    mean = float(right.simulated.mean())
    noise = mean / 0.8 + float(CAMERA.noise_floor)
    assert right.spectra[1, -5:].mean() == pytest.approx(noise, rel=0.1)


def test_the_picture_is_written(comparisons: tuple[Comparison, Comparison], tmp_path: Path) -> None:
    save_comparison(comparisons[0], tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 500
        assert np.asarray(picture.convert("L")).std() > 20
    with pytest.raises(OSError, match="does not exist"):
        save_comparison(comparisons[0], tmp_path / "nowhere" / "picture.png")
