"""A camera from the movie alone: intervals hold the truth, and what the movie does not tell is
said."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tifffile
import torch

from decode.config import TrainConfig
from decode.estimation.camera import CameraEstimate, CameraKind, estimate_camera
from decode.estimation.cumulants import noise_cumulants, photon_transfer
from decode.optics.camera import Camera
from decode.priors.camera import FixedCamera
from decode.priors.psf import PSFPrior
from decode.priors.scene import Scene


def movie(
    camera: Camera,
    background: float,
    rng: torch.Generator,
    *,
    n_frames: int = 60,
    side: int = 96,
    density: float = 0.1,
) -> torch.Tensor:
    """(frame, y, x) ADU of molecules of 1500 photons on an uneven background."""
    scene = Scene(
        density_per_um2=(density, density),
        flux_photons=(1500.0, 1500.0),
        background_photons=(background, background),
    )
    psf = PSFPrior(sigma_px=(1.3, 1.3), halo_fraction=(0.0, 0.2))
    model = replace(TrainConfig(scene=scene, psf=psf).forward_model(), cameras=FixedCamera(camera))
    return model.sample(1, n_frames, (side, side), rng).frames[0]


def emccd(baseline: float, adu_per_electron: float) -> Camera:
    return Camera(
        baseline=baseline,
        e_per_adu=250 / adu_per_electron,
        read_noise_e=60.0,
        qe=0.9,
        em_gain=250.0,
        spurious_e=0.002,
    )


def scmos(baseline: float, adu_per_electron: float) -> Camera:
    return Camera(baseline=baseline, e_per_adu=1 / adu_per_electron, read_noise_e=1.4, qe=0.8)


def off(estimate: CameraEstimate, baseline: float, adu_per_electron: float) -> int:
    """Number of intervals without the truth."""
    gain, dark = estimate.adu_per_electron, estimate.baseline
    return int(not dark.low <= baseline <= dark.high) + int(
        not gain.low <= adu_per_electron <= gain.high
    )


@pytest.mark.parametrize("make", [emccd, scmos])
def test_intervals_hold_the_truth(make: Callable[[float, float], Camera]) -> None:
    """Of 24 intervals of 95 %, 1.2 miss on average and more than 4 in one of a hundred such
    tests."""
    missed, wrong, widths = 0, 0, []
    gains = (4.0, 9.0, 16.0) if make is emccd else (0.5, 1.2, 2.6)
    for i, (gain, background) in enumerate((g, b) for g in gains for b in (8.0, 20.0, 45.0, 90.0)):
        baseline = 60.0 + 31 * i
        rng = torch.Generator().manual_seed(i)
        found = estimate_camera(movie(make(baseline, gain), background, rng))
        wrong += (found.emccd_probability > 0.5) != (make is emccd)
        missed += off(found, baseline, gain)
        widths.append(found.adu_per_electron.high / found.adu_per_electron.low)
    assert wrong == 0
    assert missed <= 4
    assert sorted(widths)[len(widths) // 2] < 1.3  # and they say something


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("make", [emccd, scmos])
def test_a_small_movie_of_changing_light_gives_a_rough_estimate(
    make: Callable[[float, float], Camera], stated: bool
) -> None:
    """Of 16 intervals of 95 %, 0.8 miss on average and more than 3 in one of a hundred such
    tests."""
    kind: CameraKind = "emccd" if make is emccd else "scmos"
    missed, n_rough, ratios = 0, 0, []
    for i in range(8):
        gain = (7.0 if make is emccd else 0.8) * 1.2**i
        baseline = 60.0 + 47 * i
        camera, background = make(baseline, gain), (8.0, 20.0, 45.0, 90.0)[i % 4]
        rng = torch.Generator().manual_seed(i)
        frames = movie(camera, background, rng, n_frames=300, side=16, density=1.5)
        found = estimate_camera(frames, kind=kind if stated else None)
        missed += off(found, baseline, gain)
        ratios.append(found.adu_per_electron.value / gain)
        n_rough += found.rough
        assert found.rough == ("roughly" in found.notes[0] and "--camera" in found.notes[0])
    assert n_rough >= 4
    assert missed <= 3
    assert max(ratios) < 1.4
    assert min(ratios) > 0.7
    assert abs(sorted(ratios)[4] - 1) < 0.1


def test_a_doubted_kind_widens_the_interval(rng: torch.Generator) -> None:
    """A camera between the kinds: twice the gain of an EMCCD is that of an sCMOS camera."""
    frames = movie(scmos(150.0, 4.0), 30, rng, n_frames=300, side=16, density=1.5)
    found, as_emccd, as_scmos = (
        estimate_camera(frames, kind=kind) for kind in (None, "emccd", "scmos")
    )  # type: ignore[arg-type]
    assert found.rough
    assert 0.05 < found.emccd_probability < 0.95
    assert found.adu_per_electron.low < as_emccd.adu_per_electron.value
    assert found.adu_per_electron.high > as_scmos.adu_per_electron.value
    assert any("hardly distinguishes" in note for note in found.notes)


@pytest.mark.parametrize("make", [emccd, scmos])
def test_photon_transfer_is_that_of_the_camera(
    make: Callable[[float, float], Camera], rng: torch.Generator
) -> None:
    """From the background up to molecules that blink: what light changed adds no more than 2 %."""
    gain, excess = (8.0, 2.0) if make is emccd else (1.5, 1.0)
    noise = photon_transfer(movie(make(100.0, gain), 10, rng, n_frames=200, side=64, density=1.0))
    read = (60 * gain / 250) ** 2 if make is emccd else (1.4 * gain) ** 2
    variance = excess * gain * (noise.mean - 100) + read
    assert float((noise.mean[-1] - 100) / (noise.mean[0] - 100)) > 5
    assert (
        (noise.variance / variance - 1).abs() < 3 * noise.variance_error / variance + 0.02
    ).all()
    assert float((noise.variance_error / variance).min()) < 0.02


def test_hot_pixels_do_not_pass_for_light(rng: torch.Generator) -> None:
    """One pixel of 50 of ten times the read noise."""
    camera, gain = scmos(150.0, 2.0), 2.0
    frames = movie(camera, 10, rng, n_frames=300, side=16, density=1.5)
    hot = torch.rand(16, 16, generator=rng) < 0.02
    noisy = frames + (torch.randn(frames.shape, generator=rng) * 14 * gain * hot).round()
    clean, found = (estimate_camera(each, kind="scmos") for each in (frames, noisy))
    assert int(hot.sum()) >= 3
    assert found.rough
    assert found.adu_per_electron.value == pytest.approx(clean.adu_per_electron.value, rel=0.1)
    assert found.baseline.value == pytest.approx(clean.baseline.value, abs=2 * gain)


def test_counts_of_another_scale_are_known_by_their_fractions(rng: torch.Generator) -> None:
    """An offset taken off and a gain of 1: no data sheet speaks of such counts."""
    baseline, gain = 100.0, 12.0
    frames = movie(emccd(baseline, gain), 30, rng, n_frames=300, side=16, density=1.5)
    found = estimate_camera((frames - baseline) / gain, kind="emccd")
    assert off(found, 0.0, 1.0) == 0
    assert found.adu_per_electron.value == pytest.approx(1, rel=0.25)
    assert any("scale" in note for note in found.notes)
    assert not any("makers" in note for note in found.notes)


@pytest.mark.parametrize(("make", "skew"), [(emccd, 1.5), (scmos, 1.0)])
def test_cumulants_are_those_of_the_camera(
    make: Callable[[float, float], Camera], skew: float, rng: torch.Generator
) -> None:
    """Of a steady uneven light, against what Poisson and register theory say."""
    gain = 8.0 if make is emccd else 1.5
    excess = 2.0 if make is emccd else 1.0
    camera = make(100.0, gain)
    light = torch.linspace(10, 60, 128).expand(96, 128, 128)
    noise = noise_cumulants(camera.sample(light, rng))
    assert noise is not None
    dark = noise.mean - 100
    read = (1.4 * gain) ** 2 if make is scmos else (60 / camera.e_per_adu) ** 2
    variance = excess * gain * dark + read + 1 / 12
    third = skew * (excess * gain) ** 2 * dark
    assert ((noise.variance - variance).abs() < 4 * noise.variance_error).all()
    assert ((noise.third - third).abs() < 4 * noise.third_error).all()
    assert float((noise.variance_error / variance).min()) < 0.01  # and the errors are small
    assert float((noise.third_error / third).min()) < 0.1


def test_a_common_baseline_is_taken_where_the_movie_allows_it(rng: torch.Generator) -> None:
    found = estimate_camera(movie(scmos(100.4, 2.0), 20, rng))
    assert found.baseline.value == pytest.approx(100, abs=1)
    assert found.baseline.low < 100 < found.baseline.high
    assert any("makers" in note for note in found.notes)


def test_a_stated_kind_is_not_doubted(rng: torch.Generator) -> None:
    frames = movie(emccd(150, 6), 20, rng)
    as_emccd = estimate_camera(frames, kind="emccd")
    as_scmos = estimate_camera(frames, kind="scmos")
    assert as_emccd.emccd_probability == 1
    assert as_scmos.emccd_probability == 0
    # the same noise: an electron behind a register gives half the counts
    ratio = as_scmos.adu_per_electron.value / as_emccd.adu_per_electron.value
    assert ratio == pytest.approx(2, rel=0.1)
    assert as_scmos.camera.em_gain is None


def test_efficiency_and_register_are_as_stated(rng: torch.Generator) -> None:
    frames = movie(emccd(150, 6), 20, rng)
    found = estimate_camera(frames, em_gain=100, qe=0.7)
    camera, notes = found.camera, found.notes
    assert (camera.em_gain, camera.qe) == (100, 0.7)
    assert not any("efficiency" in note or "EM gain" in note for note in notes)
    other = estimate_camera(frames, qe=0.7).camera
    assert float(camera.photons_per_adu) == pytest.approx(float(other.photons_per_adu))
    assert float(camera.noise_floor) == pytest.approx(float(other.noise_floor), rel=0.05)


def test_doubt_about_the_kind_is_said(rng: torch.Generator) -> None:
    """Ten frames of a small bright field."""
    camera = Camera(baseline=150.0, e_per_adu=1 / 7.0, read_noise_e=1.4, qe=0.8)
    light = torch.linspace(150, 400, 40).expand(10, 40, 40)
    found = estimate_camera(camera.sample(light, rng))
    assert 0.05 < found.emccd_probability < 0.95
    assert any("hardly distinguishes" in note for note in found.notes)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.full((20, 32, 32), 100.0), "no image"),
        (torch.rand(1, 64, 64), "at least 2 frames"),
        (torch.rand(20, 8, 64), "16 x 16"),
        (torch.rand(20, 64, 64).where(torch.rand(20, 64, 64) > 1e-3, math.nan), "NaN"),
        (torch.rand(20, 64, 64, 3), "frame, y, x"),
        (
            torch.randn(40, 64, 64, generator=torch.Generator().manual_seed(1)) * 4 + 100,
            "no more than chance",
        ),
    ],
)
def test_what_tells_no_camera(frames: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate_camera(frames)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "ccd"}, "emccd or scmos"),
        ({"qe": 0.0}, "quantum efficiency is 0"),
        ({"em_gain": 0.0}, "EM gain is 0"),
        ({"kind": "scmos", "em_gain": 300.0}, "no EM gain"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate_camera(torch.rand(20, 64, 64), **arguments)  # type: ignore[arg-type]


def test_a_real_scmos_movie(shared_data: Path) -> None:
    found = estimate_camera(tifffile.imread(shared_data / "storm_scmos_real" / "frames.tif"))
    assert found.emccd_probability < 0.01
    assert found.baseline.value == pytest.approx(100.3, abs=1.5)
    assert found.adu_per_electron.low < 2.11 < found.adu_per_electron.high
    assert found.adu_per_electron.value == pytest.approx(2.11, abs=0.2)


@pytest.mark.parametrize(
    "name", ["challenge2016_as", "sim_astigmatic", "sim_2d", "sim_double_helix"]
)
def test_emccd_movies_of_other_simulators(shared_data: Path, name: str) -> None:
    found = estimate_camera(tifffile.imread(shared_data / name / "frames.tif"))
    assert found.emccd_probability > 0.95
    assert found.baseline.value == pytest.approx(100, abs=5)
    assert found.baseline.low < 100 < found.baseline.high
    assert 1 / float(found.camera.photons_per_adu) == pytest.approx(6, rel=0.12)


def test_a_real_small_movie_of_another_scale(shared_data: Path) -> None:
    """Counts were divided by 7 and their offset taken off: about an electron a count, or half
    with a register."""
    frames = tifffile.imread(shared_data / "storm_microtubules_real" / "frames.tif")
    found, as_emccd, as_scmos = (
        estimate_camera(frames, kind=kind) for kind in (None, "emccd", "scmos")
    )  # type: ignore[arg-type]
    for each in (found, as_emccd, as_scmos):
        assert each.rough
        assert each.baseline.low < 0 < each.baseline.high
        assert "--camera" in each.notes[0]
    assert as_scmos.adu_per_electron.value == pytest.approx(1, rel=0.15)
    assert as_emccd.adu_per_electron.value == pytest.approx(0.5, rel=0.15)
    # nothing tells the kind of camera, and the interval holds both
    assert found.adu_per_electron.low < 0.5 < 1 < found.adu_per_electron.high
