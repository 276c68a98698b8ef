"""Frames and pixels that hold no image: found with the reason, and left out of everything."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch

from decode.acquisition import acquisition_for, check_camera
from decode.defects import UsualFrames, defects_of, screened, without_unusable
from decode.emitters import EmitterSet
from decode.estimation import estimate_scene
from decode.io.cameras import read_camera
from decode.io.movies import open_movie, write_movie
from decode.metrics import score
from decode.models import load_model
from decode.network.localizer import Localizer, NetworkConfig
from decode.network.record import ModelRecord
from decode.optics.camera import Camera
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import render
from decode.optics.pupil import PupilPSF
from decode.training.diagnosis import unsteady
from decode.verbs.localize import localize_movie
from decode.verbs.polish import polish_movie
from decode.verbs.sweep import Chunk, sweep

SAMPLE = Path(__file__).parents[1] / "sample_data"
CAMERA = read_camera(SAMPLE / "camera.yaml")
STEADY = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.5)
Counts = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def counts() -> Counts:
    """The sample movie: (frame, y, x) ADU."""
    with open_movie(SAMPLE / "blinking_2d.tif") as movie:
        return movie.read(0, len(movie)).astype(np.float32)


def dark(n: int) -> Counts:
    """Frames behind a closed shutter."""
    rng = torch.Generator().manual_seed(1)
    frames: Counts = CAMERA.camera.sample(torch.zeros(n, 64, 64), rng).numpy()
    return frames


def test_frames_without_an_image_are_found_with_the_reason(counts: Counts) -> None:
    movie = counts.copy()
    movie[:20] = dark(20)
    movie[[50, 51, 120]] = 0
    movie[70] = 4095
    movie[90] += 3000
    movie[100, 32:] = 0
    reasons = dict.fromkeys(range(20), "dark") | dict.fromkeys((50, 51, 70, 100, 120), "blank")
    reasons |= {90: "far brighter than those around"}
    found = defects_of(movie, CAMERA.camera)
    assert found.frames == dict(sorted(reasons.items()))
    assert replace(found, numbers=found.numbers + 10).sentences[0] == (
        "26 of 200 frames hold no image of the sample and are left out (dark: 10 to 29; blank: 60 "
        "to 61, 80, 110, "
        "130; far brighter than those around: 100)"
    )


@pytest.mark.parametrize("share", [0.5, 2.0, 5.0])
def test_light_that_changes_from_frame_to_frame_is_no_defect(share: float) -> None:
    rng = np.random.default_rng(3)
    light = 30 * np.where(np.arange(100) % 2, share, 1.0)[:, None, None]
    movie = rng.poisson(np.broadcast_to(light, (100, 48, 48))) * 6.0 + 100
    assert not defects_of(movie, CAMERA.camera).frames


def test_a_lamp_that_bleaches_or_is_switched_is_no_defect() -> None:
    rng = np.random.default_rng(4)
    time = np.arange(600)[:, None, None]
    light = np.where(time < 311, 200 * np.exp(-time / 150), 90.0)
    movie = rng.poisson(np.broadcast_to(light, (600, 32, 32))) * 6.0 + 100
    assert not defects_of(movie, CAMERA.camera).frames


@pytest.mark.parametrize(
    ("maps", "of"),
    [
        ("right", "offset"),
        ("right", "noise"),
        ("transposed", "offset"),
        ("transposed", "noise"),
        ("of another camera", "offset"),
        ("of another camera", "noise"),
    ],
)
def test_of_maps_that_do_not_fit_one_sentence_is_said_and_none_of_the_pixels_they_spoil(
    tmp_path: Path, maps: str, of: str
) -> None:
    rng = torch.Generator().manual_seed(3)
    hot, other = ((torch.rand(64, 64, generator=rng) < 0.02).float() for _ in range(2))

    def camera_with(hot: torch.Tensor) -> Camera:
        if of == "offset":
            return Camera(baseline=100 + 80 * hot, e_per_adu=0.5, read_noise_e=1.5, qe=0.8)
        return Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.5 + 40 * hot, qe=0.8)

    write_movie(
        tmp_path / "movie.tif", camera_with(hot).sample(torch.full((40, 64, 64), 30.0), rng).numpy()
    )
    camera = camera_with({"right": hot, "transposed": hot.T, "of another camera": other}[maps])
    with open_movie(tmp_path / "movie.tif") as movie:
        sentences = check_camera(movie, camera, 100.0)
    if maps == "right":
        assert sentences == ()
        return
    (sentence,) = sentences
    fault = (
        "fit the movie only when they are transposed"
        if maps == "transposed"
        else "do not fit the movie: by them"
    )
    assert f"the camera's maps {fault}" in sentence


def test_noise_maps_of_another_camera_do_not_fit_real_frames(shared_data: Path) -> None:
    folder = shared_data / "storm_scmos_real"
    gain, variance, offset = (
        torch.from_numpy(tifffile.imread(folder / f"camera_{name}.tif").astype(np.float32))
        for name in ("gain_adu_per_electron", "variance_adu2", "offset_adu")
    )
    rng = torch.Generator().manual_seed(7)
    other = variance.flatten()[torch.randperm(variance.numel(), generator=rng)].view_as(variance)
    for noise, said in ((variance, 0), (other, 1)):
        camera = Camera(baseline=offset, e_per_adu=1 / gain, read_noise_e=noise.sqrt() / gain)
        with open_movie(folder / "frames.tif") as movie:
            sentences = check_camera(movie, camera, 100.0)
        assert sum("probably those of another camera" in each for each in sentences) == said
        assert not (said and any("dead, hot or flickering" in each for each in sentences))


@pytest.mark.parametrize("name", ["blinking_2d.tif", "blinking_3d.tif", "beads_3d.tif"])
def test_the_samples_have_no_such_frames(name: str) -> None:
    with open_movie(SAMPLE / name) as movie:
        assert not defects_of(movie, CAMERA.camera).frames


def test_movies_of_microscopes_have_no_such_frames(shared_data: Path) -> None:
    for path in sorted(shared_data.glob("*/*.tif")):
        with open_movie(path) as movie:
            assert without_unusable(movie) is movie, path


def test_a_movie_of_blank_frames_is_refused_in_estimates() -> None:
    with pytest.raises(ValueError, match="this movie holds no image"):
        without_unusable(np.full((20, 32, 32), 140.0))


def test_what_is_usual_does_not_depend_on_the_part_that_is_judged(counts: Counts) -> None:
    movie = counts.copy()
    movie[[0, 31, 32, 199]] = 0
    usual = UsualFrames.of(movie, CAMERA.camera)
    parts = [usual.unusable(movie[i : i + 8], i) for i in range(0, 200, 8)]
    assert {i: why for part in parts for i, why in part.items()} == defects_of(
        movie, CAMERA.camera
    ).frames


def test_a_blank_frame_ends_the_movie_for_those_beside_it(tmp_path: Path, counts: Counts) -> None:
    torch.manual_seed(1)
    model = Localizer(NetworkConfig(frame_widths=(4, 6), sequence_widths=(4, 6), head_width=8), {})
    torch.nn.init.normal_(model.out.weight, std=1.0)
    torch.nn.init.zeros_(model.out.bias)
    blank = counts[:12].copy()
    blank[5] = 0
    write_movie(tmp_path / "movie.tif", blank)

    def run(frames: slice) -> EmitterSet:
        with open_movie(tmp_path / "movie.tif", frames=frames) as movie:
            usual = UsualFrames.of(movie, CAMERA.camera)
            chunks = sweep(
                movie, model.eval(), CAMERA.camera, pixel_size_nm=100.0, context={}, usual=usual
            )
            return EmitterSet.cat(chunk.molecules for chunk in chunks)

    whole, parts = run(slice(None)), EmitterSet.cat([run(slice(0, 5)), run(slice(6, 12))])
    assert len(whole) == len(parts) > 100
    torch.testing.assert_close(whole.frame, parts.frame)
    torch.testing.assert_close(whole.photons, parts.photons, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("polish", [False, True])
def test_nothing_is_found_in_blank_frames_and_as_much_as_before_in_the_others(
    tmp_path: Path, counts: Counts, polish: bool
) -> None:
    gone = [3, 4, 11, 20]
    blank = counts[:24].copy()
    blank[gone] = 0
    found = []
    for name, frames in (("clean", counts[:24]), ("blank", blank)):
        write_movie(tmp_path / f"{name}.tif", frames)
        with open_movie(tmp_path / f"{name}.tif") as movie:
            model = load_model("gaussian-2d")
            known = acquisition_for(movie, model, camera=CAMERA, psf_sigma_nm=120.0)
            chunks = localize_movie(movie, model, known, polish=polish, device="cpu")
            found.append(EmitterSet.cat(chunk.molecules for chunk in chunks))
            assert any("4 of 24 frames" in warning for warning in known.warnings) == (
                name == "blank"
            )
    clean, spoilt = found
    assert not np.isin(spoilt.frame, gone).any()
    usable = clean[torch.from_numpy(~np.isin(clean.frame, gone))]
    assert len(spoilt) == pytest.approx(len(usable), rel=0.05)
    assert float(spoilt.photons.median()) == pytest.approx(float(usable.photons.median()), rel=0.05)
    assert spoilt.background is not None
    assert usable.background is not None
    assert float(spoilt.background.median()) == pytest.approx(
        float(usable.background.median()), rel=0.05
    )


def test_blank_and_flashed_frames_do_not_change_the_estimate(counts: Counts) -> None:
    spoilt = counts.copy()
    spoilt[np.random.default_rng(2).choice(200, 13, replace=False)] = 0
    spoilt[77] += 2000
    psf = GaussianPSF(120.0, pixel_size_nm=100.0)
    clean, other = (
        estimate_scene(torch.from_numpy(frames), CAMERA.camera, psf) for frames in (counts, spoilt)
    )
    for name in ("background_photons", "density_per_um2", "flux_photons", "psf_sigma_nm"):
        assert getattr(other, name).value == pytest.approx(getattr(clean, name).value, rel=0.1), (
            name
        )
    assert other.on_time_frames.value == pytest.approx(clean.on_time_frames.value, rel=0.15)
    assert abs(other.background_drift.value) < 1e-3


def test_frames_before_and_after_a_gap_are_no_neighbours_in_time(counts: Counts) -> None:
    psf = GaussianPSF(120.0, pixel_size_nm=100.0)
    spoilt = counts.copy()
    spoilt[np.random.default_rng(1).choice(200, 40, replace=False)] = 0
    clean, other = (
        estimate_scene(torch.from_numpy(frames), CAMERA.camera, psf) for frames in (counts, spoilt)
    )
    assert other.on_time_frames.value == pytest.approx(clean.on_time_frames.value, rel=0.08)


def test_too_few_successive_frames_are_refused(counts: Counts) -> None:
    shuttered = np.concatenate([counts, counts])
    shuttered[np.arange(400) % 10 >= 3] = 0
    with pytest.raises(
        ValueError, match="too few of the 120 frames that hold an image are successive"
    ):
        estimate_scene(
            torch.from_numpy(shuttered), CAMERA.camera, GaussianPSF(120.0, pixel_size_nm=100.0)
        )


@pytest.mark.parametrize("in_a_file", [False, True])
def test_usable_frames_keep_their_numbers(tmp_path: Path, counts: Counts, in_a_file: bool) -> None:
    blank = counts.copy()
    blank[[50, 51, 70]] = 0
    if in_a_file:
        write_movie(tmp_path / "movie.tif", blank)
        with open_movie(tmp_path / "movie.tif", frames=slice(40, 90)) as movie:
            usable = screened(movie, CAMERA.camera)
            assert usable.numbers.tolist() == [i for i in range(40, 90) if i not in (50, 51, 70)]
        return
    usable = screened(blank, CAMERA.camera)
    assert usable.numbers.tolist() == [i for i in range(200) if i not in (50, 51, 70)]
    assert len(usable.movie) == 197


def spoilt(counts: Counts) -> tuple[Counts, npt.NDArray[np.bool_]]:
    """The movie of a camera with bad pixels and a bad column, and where they are: (y, x) bool."""
    movie, rng = counts.copy(), np.random.default_rng(6)
    movie[:, 12, 50] = 100
    movie[:, 30, 17] = 65535
    movie[:, 45, 33] += 250
    movie[:, 50, 8] += rng.normal(0, 1200, len(movie))
    movie[:, 5, 40] += 500 * (rng.random(len(movie)) < 0.4)
    movie[:, :, 20] += 120
    bad = np.zeros((64, 64), bool)
    bad[[12, 30, 45, 50, 5], [50, 17, 33, 8, 40]] = bad[:, 20] = True
    return movie, bad


@pytest.mark.parametrize("n_frames", [24, 200])
def test_bad_pixels_and_columns_are_found_and_named(counts: Counts, n_frames: int) -> None:
    movie, bad = spoilt(counts)
    found = defects_of(movie[:n_frames], CAMERA.camera)
    np.testing.assert_array_equal(found.pixels.bad.numpy(), bad)
    assert found.sentences == (
        "69 pixels are dead, hot or flickering and left out (column 20, x 40 y 5, x 50 y 12, x 17 "
        "y 30, x 33 y 45, "
        "x 8 y 50)",
    )


@pytest.mark.parametrize("name", ["blinking_2d.tif", "blinking_3d.tif"])
@pytest.mark.parametrize("n_frames", [1, 8, 20, 60, 200])
def test_molecules_are_no_bad_pixels(name: str, n_frames: int) -> None:
    with open_movie(SAMPLE / name, frames=slice(0, n_frames)) as movie:
        assert not defects_of(movie, CAMERA.camera).sentences


def test_real_molecules_are_no_bad_pixels(shared_data: Path) -> None:
    with open_movie(shared_data / "challenge2016_as" / "frames.tif") as movie:
        assert not defects_of(movie, CAMERA.camera).sentences


def spots(centres: list[tuple[float, float]], sigma_px: float) -> torch.Tensor:
    """(48, 48) light of spots with a height of 1."""
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    square = [(y - top) ** 2 + (x - left) ** 2 for top, left in centres]
    return torch.stack(square).div(-2 * sigma_px**2).exp().sum(0)


def test_light_that_falls_off_to_the_border_is_no_bad_row(rng: torch.Generator) -> None:
    filament = spots([(3.0, left / 2) for left in range(-10, 106)], 1.0)
    movie = STEADY.sample((20 + 150 * filament).expand(40, 48, 48), rng)
    assert not defects_of(movie, STEADY).pixels.bad.any()


def test_a_pixel_between_molecules_that_shine_after_one_another_is_not_bad(
    rng: torch.Generator,
) -> None:
    """It alone is lit in most of the frames."""
    light = torch.full((40, 48, 48), 20.0)
    light[:18] += 600 * spots([(29.0, 29.0)], 0.7)
    light[18:36] += 600 * spots([(31.0, 31.0)], 0.7)
    assert not defects_of(STEADY.sample(light, rng), STEADY).pixels.bad.any()


def test_bad_pixels_of_the_border_and_of_corners_are_found(rng: torch.Generator) -> None:
    movie, bad = STEADY.sample(torch.full((40, 48, 48), 20.0), rng), torch.zeros(48, 48).bool()
    movie[:, 0, 0], movie[:, 0, 20], movie[:, 9, 0] = 100, 65535, 100
    movie[:, 30, 47] += 250
    movie[:, 47] += 120
    bad[[0, 0, 9, 30], [0, 20, 0, 47]] = bad[47] = True
    np.testing.assert_array_equal(defects_of(movie, STEADY).pixels.bad, bad)


def test_hot_pixels_that_the_cameras_maps_know_are_none(rng: torch.Generator) -> None:
    baseline, noise = torch.full((48, 48), 100.0), torch.full((48, 48), 1.5)
    baseline[7, 9], noise[20, 30] = 160.0, 25.0
    camera = Camera(baseline=baseline, e_per_adu=0.5, read_noise_e=noise)
    movie = camera.sample(torch.full((60, 48, 48), 20.0), rng)
    assert not defects_of(movie, camera).pixels.bad.any()
    unknown = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.5)
    assert torch.nonzero(defects_of(movie, unknown).pixels.bad).tolist() == [[7, 9], [20, 30]]


def test_a_pattern_of_offsets_is_said(rng: torch.Generator) -> None:
    pattern = 100 + 12 * torch.randn(48, 48, generator=rng)
    camera = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.5)
    movie = replace(camera, baseline=pattern).sample(torch.full((60, 48, 48), 20.0), rng)
    assert any(
        "measure the camera's maps" in sentence for sentence in defects_of(movie, camera).sentences
    )
    assert not defects_of(movie, replace(camera, baseline=pattern)).sentences


SCMOS = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.6, qe=0.8)


def light_of_blinking_molecules(n_frames: int, rng: torch.Generator) -> torch.Tensor:
    """(frame, y, x) photons of two molecules in each frame of 64 x 64 pixels."""
    n = 2 * n_frames
    xyz = torch.rand(n, 3, generator=rng) * torch.tensor([6400.0, 6400.0, 0.0])
    return 20 + render(
        GaussianPSF(130.0, pixel_size_nm=100.0),
        frame=torch.arange(n) // 2,
        xyz=xyz,
        photons=torch.full((n,), 1500.0),
        n_frames=n_frames,
        shape=(64, 64),
    )


@pytest.mark.parametrize("electrons", [1.2, 2.0])
def test_offsets_of_pixels_that_no_map_states_are_taken_off_as_far_as_chance_allows(
    rng: torch.Generator, electrons: float
) -> None:
    pattern = electrons / 0.5 * torch.randn(64, 64, generator=rng)
    light = light_of_blinking_molecules(60, rng)
    movie = replace(SCMOS, baseline=100 + pattern).sample(light, rng)
    left = torch.as_tensor(screened(movie, SCMOS).camera.baseline) - 100 - pattern
    # of 60 frames the median is that uncertain, and more of the slow changes over the field
    chance = 1.25 * float(SCMOS.typical_noise.variance(torch.tensor(20.0)).sqrt()) / 60**0.5
    chance /= float(SCMOS.photons_per_adu)
    assert float(left.std()) < 1.3 * chance < float(pattern.std())
    assert "measure the camera's maps" in defects_of(movie, SCMOS).sentences[0]


@pytest.mark.parametrize("name", ["blinking_2d.tif", "blinking_3d.tif", "beads_3d.tif"])
def test_light_is_no_fixed_pattern(name: str) -> None:
    with open_movie(SAMPLE / name) as movie:
        assert defects_of(movie, CAMERA.camera).pixels.offsets is None
        assert screened(movie, CAMERA.camera).camera is CAMERA.camera


def test_an_scmos_movie_without_maps_has_few_false_molecules(
    tmp_path: Path, rng: torch.Generator
) -> None:
    pattern = 4 * torch.randn(64, 64, generator=rng)
    dark = torch.full((40, 64, 64), 20.0)
    write_movie(
        tmp_path / "movie.tif", replace(SCMOS, baseline=100 + pattern).sample(dark, rng).numpy()
    )
    with open_movie(tmp_path / "movie.tif") as movie:
        model = load_model("gaussian-2d")
        stated = replace(CAMERA, camera=SCMOS)
        known = acquisition_for(movie, model, camera=stated, psf_sigma_nm=130.0)
        chunks = list(localize_movie(movie, model, known, device="cpu"))
    assert sum(len(chunk.molecules) for chunk in chunks) < 4
    assert any("decode calibrate camera" in warning for warning in known.warnings)


def with_row_noise(movie: torch.Tensor, sigma: float, rng: torch.Generator) -> torch.Tensor:
    return (movie + sigma * torch.randn(*movie.shape[:2], 1, generator=rng)).round()


def test_row_noise_is_found_and_taken_off_as_far_as_chance_allows(rng: torch.Generator) -> None:
    movie = SCMOS.sample(light_of_blinking_molecules(40, rng), rng)
    noisy = with_row_noise(movie, 4.0, rng)
    usual = UsualFrames.of(noisy, SCMOS)
    assert usual.row_noise is not None
    assert usual.row_noise.spread == pytest.approx(4.0, rel=0.15)
    left = torch.from_numpy(usual.levelled(noisy.numpy())) - movie
    # a median of 64 pixels, and that of the eleven rows around
    noise = float(SCMOS.typical_noise.variance(torch.tensor(20.0)).sqrt() / SCMOS.photons_per_adu)
    chance = 1.25 * math.hypot(noise / 8, 4.0 / 11**0.5)
    assert float(left.mean(2).std()) < 1.2 * chance


@pytest.mark.parametrize("name", ["blinking_2d.tif", "blinking_3d.tif", "beads_3d.tif"])
def test_light_is_no_row_noise(name: str) -> None:
    with open_movie(SAMPLE / name) as movie:
        usual = UsualFrames.of(movie, CAMERA.camera)
        frames = movie.read(0, 8)
    assert usual.row_noise is None
    assert usual.levelled(frames) is frames


def test_row_noise_makes_up_no_molecules_and_is_said(tmp_path: Path, rng: torch.Generator) -> None:
    movie = SCMOS.sample(torch.full((40, 64, 64), 20.0), rng)
    write_movie(tmp_path / "movie.tif", with_row_noise(movie, 5.0, rng).numpy())
    with open_movie(tmp_path / "movie.tif") as opened:
        model = load_model("gaussian-2d")
        stated = replace(CAMERA, camera=SCMOS)
        known = acquisition_for(opened, model, camera=stated, psf_sigma_nm=130.0)
        chunks = list(localize_movie(opened, model, known, device="cpu"))
    assert sum(len(chunk.molecules) for chunk in chunks) < 4
    assert any("row noise" in warning for warning in known.warnings)


@pytest.mark.parametrize("polish", [False, True])
def test_bad_pixels_become_no_molecules_and_cost_none(
    tmp_path: Path, counts: Counts, polish: bool
) -> None:
    found = []
    for name, frames in (("clean", counts[:24]), ("spoilt", spoilt(counts)[0][:24])):
        write_movie(tmp_path / f"{name}.tif", frames)
        with open_movie(tmp_path / f"{name}.tif") as movie:
            model = load_model("gaussian-2d")
            known = acquisition_for(movie, model, camera=CAMERA, psf_sigma_nm=120.0)
            chunks = localize_movie(movie, model, known, polish=polish, device="cpu")
            found.append(EmitterSet.cat(chunk.molecules for chunk in chunks))
            assert any("column 20" in warning for warning in known.warnings) == (name == "spoilt")
    against_clean = score(*found, field_nm=(6400.0, 6400.0), two_d=True)
    assert against_clean.fp < 0.02 * len(found[1])
    assert against_clean.fn < 0.05 * len(found[0])


def test_bad_pixels_do_not_change_the_estimate(counts: Counts) -> None:
    psf = GaussianPSF(120.0, pixel_size_nm=100.0)
    movies = (counts, spoilt(counts)[0])
    clean, other = (
        estimate_scene(torch.from_numpy(frames), CAMERA.camera, psf) for frames in movies
    )
    for name in (
        "background_photons",
        "density_per_um2",
        "flux_photons",
        "psf_sigma_nm",
        "on_time_frames",
    ):
        assert getattr(other, name).value == pytest.approx(getattr(clean, name).value, rel=0.1), (
            name
        )


def lit(level: npt.NDArray[np.float64], rng: torch.Generator) -> torch.Tensor:
    """(frame, y, x) ADU of an even background of so many photons in each frame."""
    light = torch.from_numpy(level).float()[:, None, None].expand(-1, 48, 48)
    return CAMERA.camera.sample(light.contiguous(), rng)


@pytest.mark.parametrize("change", [0.1, 0.5])
def test_background_that_changes_between_frames_is_said_of_models_of_steady_light(
    tmp_path: Path, rng: torch.Generator, change: float
) -> None:
    movie = lit(np.where(np.arange(60) % 2, 100.0, 100.0 * (1 + change)), rng)
    usual = UsualFrames.of(movie, CAMERA.camera)
    assert usual.flicker(CAMERA.camera) == pytest.approx(0.4 if change == 0.5 else 0.0, abs=0.03)
    steady: dict[str, object] = {"background_photons": [1.0, 300.0]}
    flickering = steady | {"flicker": 0.3, "flicker_factor": [0.2, 5.0]}
    records = [ModelRecord(config={"scene": scene}) for scene in (steady, flickering)]
    found = [unsteady(record, usual.flicker(CAMERA.camera)) for record in records]
    assert [bool(sentence) for sentence in found] == [change == 0.5, False]
    write_movie(tmp_path / "movie.tif", movie)
    model = load_model("gaussian-2d")
    model.record = ModelRecord(config={"scene": steady})
    with open_movie(tmp_path / "movie.tif") as opened:
        warnings = acquisition_for(opened, model, camera=CAMERA, psf_sigma_nm=120.0).warnings
    assert any("from frame to frame" in warning for warning in warnings) == (change == 0.5)


@pytest.mark.parametrize(
    "name", ["sim_2d", "sim_astigmatic", "sim_double_helix", "challenge2016_as"]
)
def test_molecules_that_blink_do_not_make_the_background_flicker(
    shared_data: Path, name: str
) -> None:
    with open_movie(shared_data / name / "frames.tif") as movie:
        assert UsualFrames.of(movie, CAMERA.camera).flicker(CAMERA.camera) < 0.1


def test_polishing_leaves_no_molecule_beyond_the_bead_stack(
    tmp_path: Path, rng: torch.Generator
) -> None:
    pupil = PupilPSF(
        numerical_aperture=1.4, wavelength_nm=670.0, zernike_nm={(2, 2): 60.0}, pixel_size_nm=100.0
    )
    spline = pupil.to_spline(z_range_nm=(-300.0, 300.0))
    n = 40
    xyz = torch.rand(n, 3, generator=rng) * 100 + torch.tensor([1550.0, 1550.0, 400.0])
    light = render(
        pupil,
        frame=torch.arange(n),
        xyz=xyz,
        photons=torch.full((n,), 5000.0),
        n_frames=n,
        shape=(32, 32),
    )
    write_movie(tmp_path / "movie.tif", CAMERA.camera.sample(light + 20, rng).numpy())
    start = EmitterSet(
        frame=torch.arange(n),
        xyz=xyz * torch.tensor([1.0, 1.0, 0.0]) + torch.tensor([0.0, 0.0, 330.0]),
        photons=torch.full((n,), 5000.0),
        background=torch.full((n,), 20.0),
        xyz_sigma=torch.tensor([10.0, 10.0, 60.0]).expand(n, 3),
        photons_sigma=torch.full((n,), 300.0),
    )
    whole = Chunk(molecules=start, frames_done=n, frames_total=n)
    with open_movie(tmp_path / "movie.tif") as movie:
        device = torch.device("cpu")
        chunks = polish_movie(iter([whole]), movie, spline, CAMERA.camera, device)
        polished = EmitterSet.cat(chunk.molecules for chunk in chunks)
    assert len(polished) == n
    assert float(polished.xyz[:, 2].max()) <= 300
