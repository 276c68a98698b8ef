"""What blinks in a movie is told from its moments: near the truth, with an interval, and usable
as a recipe."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from scipy import ndimage

from decode.config import from_mapping
from decode.estimation import SceneEstimate, estimate_scene, to_recipe
from decode.estimation.moments import measure
from decode.forward import ForwardModel
from decode.optics.camera import Camera
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import PSF, render
from decode.optics.spline import SplinePSF
from decode.priors.scene import Scene

EMCCD = Camera(
    baseline=100.0, e_per_adu=45.0, read_noise_e=74.4, qe=0.9, em_gain=300.0, spurious_e=0.002
)
SCMOS = Camera(baseline=100.0, e_per_adu=0.46, read_noise_e=1.4, qe=0.8)
TRUTH = ("background_photons", "density_per_um2", "flux_photons", "on_time_frames")
ROUND = GaussianPSF(120.0, pixel_size_nm=100.0, patch_px=15)
ASTIGMATIC = GaussianPSF(120.0, pixel_size_nm=100.0, depth_nm=350.0, gap_nm=200.0, patch_px=25)


def scene(
    density: float, flux: float, on_time: float, background: float, **more: tuple[float, float]
) -> Scene:
    """Every movie the same, its molecules anywhere or on filaments."""
    fixed = {
        "density_per_um2": density,
        "flux_photons": flux,
        "on_time_frames": on_time,
        "background_photons": background,
        "flux_variation": 0.3,
        "background_contrast": 0.1,
        "background_drift": 0.0,
    }
    return Scene(
        **{**{name: (value, value) for name, value in fixed.items()}, **more}, filaments=0.5
    )


def movie(
    psf: PSF, camera: Camera, scene: Scene, rng: torch.Generator, n: int = 400
) -> tuple[torch.Tensor, dict]:
    """(n, 64, 64) ADU, and the truth of what was drawn."""
    simulation = ForwardModel.of(scene, psf, camera).sample(1, n, (64, 64), rng)
    emitters = simulation.emitters
    inside = ((emitters.xyz[:, :2] >= 0) & (emitters.xyz[:, :2] < 6400)).all(1)
    truth = {name: getattr(scene, name)[0] for name in TRUTH}
    truth["background_photons"] = float(simulation.background.mean())
    truth["density_per_um2"] = (
        float(emitters.photons[inside].sum()) / n / 6.4**2 / truth["flux_photons"]
    )
    return simulation.frames[0], truth


def as_spline(psf: GaussianPSF, z: np.ndarray) -> SplinePSF:
    xyz = torch.tensor([[1250.0, 1250.0, float(depth)] for depth in z])
    wide = GaussianPSF(
        float(psf.sigma_nm.detach()),
        pixel_size_nm=100.0,
        depth_nm=float(psf.depth_nm.detach()),
        gap_nm=float(psf.gap_nm.detach()),
        patch_px=25,
    )
    with torch.no_grad():
        stack = wide.integrate_pixels(xyz).double().numpy()
    step = float(z[1] - z[0]) if len(z) > 1 else 1.0
    return SplinePSF.from_stack(stack, z_start_nm=float(z[0]), z_step_nm=step, pixel_size_nm=100.0)


def test_the_on_time_of_a_short_movie_is_not_cut_short(rng: torch.Generator) -> None:
    found = []
    for _ in range(6):
        frames, _ = movie(ROUND, EMCCD, scene(0.5, 3000.0, 4.0, 20.0), rng, n=64)
        found.append(math.log(estimate_scene(frames, EMCCD, ROUND).on_time_frames.value / 4.0))
    # each is known to some 15 %
    assert abs(np.mean(found)) < 0.13


@pytest.mark.parametrize(
    ("camera", "density", "flux", "on_time", "background"),
    [
        (EMCCD, 0.3, 4000.0, 2.0, 25.0),
        (SCMOS, 0.8, 1500.0, 3.5, 60.0),
        (EMCCD, 1.5, 2500.0, 1.0, 10.0),
        (SCMOS, 0.2, 8000.0, 1.5, 5.0),
    ],
)
def test_the_scene_of_a_simulated_movie_is_found(
    rng: torch.Generator,
    camera: Camera,
    density: float,
    flux: float,
    on_time: float,
    background: float,
) -> None:
    frames, truth = movie(ROUND, camera, scene(density, flux, on_time, background), rng)
    estimate = estimate_scene(frames, camera, GaussianPSF(130.0, pixel_size_nm=100.0, patch_px=15))
    assert estimate.background_photons.value == pytest.approx(truth["background_photons"], rel=0.05)
    assert estimate.flux_photons.value == pytest.approx(flux, rel=0.15)
    assert estimate.density_per_um2.value == pytest.approx(truth["density_per_um2"], rel=0.2)
    assert estimate.on_time_frames.value == pytest.approx(on_time, rel=0.15)
    assert estimate.psf_sigma_nm is not None
    assert estimate.psf_sigma_nm.value == pytest.approx(120, rel=0.05)
    assert estimate.z_low_nm is None


def test_intervals_hold_the_truth(rng: torch.Generator) -> None:
    held = []
    for i in range(10):
        frames, truth = movie(
            ROUND, (EMCCD, SCMOS)[i % 2], scene(0.3 + 0.08 * i, 2500.0, 1.0 + 0.2 * i, 20.0), rng
        )
        estimate = estimate_scene(frames, (EMCCD, SCMOS)[i % 2], ROUND)
        intervals = {name: getattr(estimate, name) for name in TRUTH}
        held += [
            interval.low <= truth[name] <= interval.high for name, interval in intervals.items()
        ]
        # an interval that is sure to hold everything says nothing
        assert all(interval.high < 1.6 * interval.low for interval in intervals.values())
    # of 40, 38 are expected; fewer than 33 come by chance once in a hundred
    assert sum(held) >= 33


def test_molecules_that_are_on_for_a_single_frame_are_estimated(rng: torch.Generator) -> None:
    """As many switch on in each frame and are gone in the next."""
    n, density = 200, 0.2
    molecules = torch.poisson(torch.full((n,), density * 6.4**2), generator=rng).long()
    frame = torch.repeat_interleave(torch.arange(n), molecules)
    xyz = torch.cat(
        [6400 * torch.rand(len(frame), 2, generator=rng), torch.zeros(len(frame), 1)], 1
    )
    photons = 1500 * torch._standard_gamma(torch.full((len(frame),), 6.0), generator=rng) / 6
    with torch.no_grad():
        light = render(ROUND, frame=frame, xyz=xyz, photons=photons, n_frames=n, shape=(64, 64))
    estimate = estimate_scene(SCMOS.sample(20 + light, rng), SCMOS, ROUND)
    assert estimate.density_per_um2.low < len(frame) / n / 6.4**2 < estimate.density_per_um2.high
    assert estimate.density_per_um2.high < 2.5 * estimate.density_per_um2.low
    assert estimate.flux_photons.value == pytest.approx(1500, rel=0.15)
    assert estimate.background_photons.value == pytest.approx(20, rel=0.05)
    assert estimate.on_time_frames.high == estimate.on_time_frames.value == 1
    recipe = yaml.safe_load(to_recipe(estimate, ROUND, psf_file="", camera_file="", source=""))
    assert recipe["scene"]["on_time_frames"][0] < 1 < recipe["scene"]["on_time_frames"][1]


@pytest.mark.parametrize("seed", range(4))
def test_few_bright_molecules_in_a_short_movie_are_seen_to_blink(seed: int) -> None:
    """As many as in the first frames of the SMLM Challenge's sparse movies."""
    rng = torch.Generator().manual_seed(seed)
    few = scene(0.02, 6000.0, 1.0, 100.0)
    adu, _ = movie(ASTIGMATIC, EMCCD, few, rng, n=64)
    assert measure(adu, EMCCD).lag is not None


def test_light_that_flickers_as_a_whole_is_no_molecule(rng: torch.Generator) -> None:
    lamp = 20 * (1 + 0.1 * torch.randn(200, 1, 1, generator=rng))
    with pytest.raises(ValueError, match="no molecules are seen to blink"):
        estimate_scene(SCMOS.sample(lamp.expand(200, 64, 64), rng), SCMOS, ROUND)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_density_of_a_crowded_filament_is_within_its_interval(seed: int) -> None:
    """All molecules of the field on one line, whose pixels are hardly ever dark."""
    rng = torch.Generator().manual_seed(seed)
    drawn = scene(1.0, 2500.0, 2.0, 20.0).sample_emitters(1, 400, (64, 64), 100.0, rng)
    xyz = drawn.xyz.clone()
    xyz[:, 1] = 3200 + 0.01 * (xyz[:, 1] - 3200)
    with torch.no_grad():
        light = render(
            ROUND, frame=drawn.frame, xyz=xyz, photons=drawn.photons, n_frames=400, shape=(64, 64)
        )
    inside = (xyz[:, 0] >= 0) & (xyz[:, 0] < 6400)
    truth = float(drawn.photons[inside].sum()) / 400 / 6.4**2 / 2500
    found = estimate_scene(SCMOS.sample(20 + light, rng), SCMOS, ROUND).density_per_um2
    assert found.low < truth < found.high
    assert found.value == pytest.approx(truth, rel=0.25)


def test_depth_is_told_by_an_astigmatic_psf(rng: torch.Generator) -> None:
    psf = as_spline(ASTIGMATIC, np.arange(-600.0, 601.0, 50.0))
    frames, _ = movie(psf, EMCCD, scene(0.5, 4000.0, 2.0, 20.0, z_nm=(-100.0, 450.0)), rng)
    estimate = estimate_scene(frames, EMCCD, psf)
    assert estimate.z_low_nm is not None
    assert estimate.z_high_nm is not None
    assert estimate.z_low_nm.value == pytest.approx(-100, abs=100)
    assert estimate.z_high_nm.value == pytest.approx(450, abs=100)


def test_a_movie_more_blurred_than_its_calibration(rng: torch.Generator) -> None:
    frames, _ = movie(ROUND, EMCCD, scene(0.4, 3000.0, 2.0, 20.0), rng)
    sharp, true = (
        as_spline(GaussianPSF(s, pixel_size_nm=100.0), np.zeros(1)) for s in (95.0, 120.0)
    )
    blur = estimate_scene(frames, EMCCD, sharp).psf_blur_nm
    assert blur is not None
    assert blur.value == pytest.approx(math.sqrt(120**2 - 95**2), rel=0.15)
    none = estimate_scene(frames, EMCCD, true).psf_blur_nm
    assert none is not None
    assert none.low < 15


@pytest.mark.slow
def test_intervals_of_blur_and_depth_hold_the_truth(rng: torch.Generator) -> None:
    """Movies no more blurred than their PSF too, where the variance that is found is often
    negative."""
    psf = as_spline(ASTIGMATIC, np.arange(-600.0, 601.0, 50.0))
    held = []
    for i in range(8):
        blur, low, high = 6.0 * i, -450.0 + 40 * i, 100.0 + 50 * i
        drawn = scene(0.2 + 0.1 * i, 2500.0, 2.0, 20.0, z_nm=(low, high))
        frames = (
            ForwardModel.of(drawn, psf, EMCCD, blur_nm=(blur, blur))
            .sample(1, 150, (48, 48), rng)
            .frames[0]
        )
        estimate = estimate_scene(frames, EMCCD, psf)
        for interval, truth in (
            (estimate.psf_blur_nm, blur),
            (estimate.z_low_nm, low),
            (estimate.z_high_nm, high),
        ):
            assert interval is not None
            assert -600 <= interval.low <= interval.value <= interval.high <= 600
            assert interval.low < interval.high
            held.append(interval.low <= truth <= interval.high)
    # of 24, 22.8 are expected; fewer than 20 come by chance once in a hundred
    assert sum(held) >= 20


def test_drift_of_the_background_is_seen(rng: torch.Generator) -> None:
    frames, _ = movie(
        ROUND, EMCCD, scene(0.3, 3000.0, 2.0, 40.0, background_drift=(-5e-4, -5e-4)), rng
    )
    drift = estimate_scene(frames, EMCCD, ROUND).background_drift
    assert drift.value == pytest.approx(-5e-4, abs=2e-4)
    assert drift.high < 0


def test_a_movie_without_molecules_is_said_to_have_none(rng: torch.Generator) -> None:
    dark = EMCCD.sample(torch.full((100, 64, 64), 30.0), rng)
    with pytest.raises(ValueError, match="no molecules are seen to blink"):
        estimate_scene(dark, EMCCD, ROUND)


def test_a_movie_of_a_few_frames_is_refused() -> None:
    with pytest.raises(
        ValueError, match="at least 60 frames of 32 x 32 pixels, this movie has 10 of 64 x 64"
    ):
        estimate_scene(torch.rand(10, 64, 64), EMCCD, ROUND)


def test_a_recipe_brackets_the_estimate(rng: torch.Generator) -> None:
    psf = as_spline(ASTIGMATIC, np.arange(-600.0, 601.0, 50.0))
    drawn = scene(0.5, 4000.0, 2.0, 20.0, z_nm=(-300.0, 300.0))
    frames, truth = movie(psf, EMCCD, drawn, rng, n=200)
    estimate = estimate_scene(frames, EMCCD, psf)
    text = to_recipe(
        estimate, psf, psf_file="it's.h5", camera_file="camera.yaml", source="movie.tif"
    )
    recipe = yaml.safe_load(text)
    ranges = from_mapping(Scene, recipe["scene"], "recipe")
    for name in TRUTH:
        low, high = getattr(ranges, name)
        assert low < truth[name] < high
    assert ranges.density_per_um2[0] == 0
    assert ranges.z_nm[0] < -300 < 300 < ranges.z_nm[1]
    assert ranges.z_nm[0] >= -600
    assert recipe["psf"]["file"] == "it's.h5"
    assert recipe["camera"] == {"file": "camera.yaml"}
    assert recipe["network"]["axial"] is True
    # every range says what it rests on
    entries = [line for line in text.splitlines() if line.startswith("  ")]
    assert all(" # " in line for line in entries)
    assert str(estimate.flux_photons) in text


def test_a_recipe_of_a_flat_gaussian(rng: torch.Generator) -> None:
    frames, _ = movie(ROUND, EMCCD, scene(0.5, 4000.0, 2.0, 20.0), rng, n=100)
    estimate = estimate_scene(frames, EMCCD, ROUND)
    recipe = yaml.safe_load(
        to_recipe(estimate, ROUND, psf_file="", camera_file="c.yaml", source="movie.tif")
    )
    low, high = recipe["psf"]["sigma_px"]
    assert low < 1.2 < high
    assert recipe["network"]["axial"] is False
    tiny = replace(
        estimate,
        background_drift=replace(estimate.background_drift, low=-1e-9, value=0.0, high=1e-9),
    )
    text = to_recipe(tiny, ROUND, psf_file="", camera_file="c.yaml", source="movie.tif")
    assert all(isinstance(v, float) for v in yaml.safe_load(text)["scene"]["background_drift"])


def bead_psf(folder: Path) -> SplinePSF:
    """The mean of six beads that stand on a grid; a plain calibration, for the test alone."""
    stack = EMCCD.to_photons(
        torch.from_numpy(tifffile.imread(folder / "beads.tif").astype(np.float64))
    ).numpy()
    half, mean = 18, []
    for y in (32, 92):
        for x in (24, 64, 104):
            crop = stack[:, y - half - 1 : y + half + 2, x - half - 1 : x + half + 2]
            rim = np.concatenate([crop[:, 0], crop[:, -1]], 1)
            crop = crop - np.median(rim, 1)[:, None, None]
            weight = ndimage.gaussian_filter(crop.mean(0), 1).clip(0)
            where = ndimage.center_of_mass(weight)
            moved = ndimage.shift(
                crop, (0, *(half + 1 - c for c in where)), order=3, mode="nearest"
            )
            mean.append(moved[:, 1:-1, 1:-1])
    psf = np.mean(mean, 0)
    psf /= psf.sum((1, 2)).max()
    return SplinePSF.from_stack(psf, z_start_nm=-800.0, z_step_nm=20.0, pixel_size_nm=100.0)


def ofshared_fraction(folder: Path) -> SceneEstimate:
    return estimate_scene(tifffile.imread(folder / "frames.tif"), EMCCD, bead_psf(folder))


def test_an_astigmatic_movie_of_another_simulator(shared_data: Path) -> None:
    estimate = ofshared_fraction(shared_data / "sim_astigmatic")
    assert estimate.flux_photons.value == pytest.approx(4000, rel=0.2)
    assert estimate.on_time_frames.value == pytest.approx(2, rel=0.25)
    assert estimate.background_photons.value == pytest.approx(25, rel=0.1)
    assert estimate.density_per_um2.value == pytest.approx(0.6, rel=0.3)


def test_a_flat_movie_of_another_simulator(shared_data: Path) -> None:
    estimate = ofshared_fraction(shared_data / "sim_2d")
    assert estimate.flux_photons.value == pytest.approx(1800, rel=0.2)
    assert estimate.on_time_frames.value == pytest.approx(2.5, rel=0.25)
    assert estimate.background_photons.value == pytest.approx(30, rel=0.1)
    assert estimate.density_per_um2.value == pytest.approx(0.76, rel=0.3)
