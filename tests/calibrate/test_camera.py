"""Maps of a camera: their errors are as stated, and maps that do not fit a movie are found."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor

from decode.calibrate.camera import CameraCalibration, measure_maps
from decode.calibrate.maps import check_maps
from decode.io.cameras import CameraFile, read_camera, write_camera
from decode.io.movies import write_movie
from decode.optics.camera import Camera
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import render

SHAPE = (40, 56)


def camera(rng: torch.Generator, shape: tuple[int, int] = SHAPE) -> Camera:
    """An sCMOS whose pixels differ, a twentieth of them hot."""

    def normal() -> Tensor:
        return torch.randn(shape, generator=rng)

    hot = torch.rand(shape, generator=rng) < 0.05
    return Camera(
        baseline=100 + normal(),
        e_per_adu=1 / (2 * (1 + 0.05 * normal())),
        read_noise_e=1.3 * (0.2 * normal()).exp() * torch.where(hot, 8.0, 1.0),
        qe=0.8,
    )


def series(camera: Camera, photons: float, n: int, rng: torch.Generator) -> Tensor:
    shape = torch.as_tensor(camera.baseline).shape if isinstance(camera.baseline, Tensor) else SHAPE
    return camera.sample(torch.full((n, *shape), float(photons)), rng)


@pytest.fixture
def truth(rng: torch.Generator) -> Camera:
    return camera(rng)


@pytest.fixture
def calibration(truth: Camera, rng: torch.Generator) -> CameraCalibration:
    flats = [series(truth, photons, 300, rng) for photons in (50, 150, 400, 1000)]
    return measure_maps(series(truth, 0, 500, rng), flats)


def pulls(found: Tensor | None, error: Tensor | None, true: Tensor) -> Tensor:
    assert found is not None
    assert error is not None
    return (found - true) / error


def test_standard_errors_are_the_errors_found(
    truth: Camera, calibration: CameraCalibration
) -> None:
    """2240 pixels: the spread of their errors over the standard errors is 1 within some percent."""
    e_per_adu = torch.as_tensor(truth.e_per_adu)
    read_variance = (torch.as_tensor(truth.read_noise_e) / e_per_adu) ** 2 + 1 / 12
    for found, error, true in (
        (calibration.offset, calibration.offset_error, torch.as_tensor(truth.baseline)),
        (calibration.read_variance, calibration.read_variance_error, read_variance),
        (calibration.gain, calibration.gain_error, 1 / e_per_adu),
    ):
        z = pulls(found, error, true)
        assert abs(float(z.mean())) < 0.1
        assert float(z.std()) == pytest.approx(1, abs=0.08)
    assert calibration.notes == ()


def test_a_read_variance_is_read_from_few_and_many_frames_alike(
    truth: Camera, rng: torch.Generator
) -> None:
    """Chunks and separate series add up to what NumPy makes of all frames at once."""
    parts = [series(truth, 0, n, rng) for n in (11, 30)]
    found = measure_maps(parts)
    every = torch.cat(parts).double()
    torch.testing.assert_close(found.offset, every.mean(0))
    within = sum(
        (part.double().var(0) * (len(part) - 1) for part in parts),
        torch.zeros(SHAPE, dtype=torch.float64),
    )
    torch.testing.assert_close(found.read_variance, within / (11 + 30 - 2))


def test_a_register_doubles_the_variance_and_is_told(rng: torch.Generator) -> None:
    truth = Camera(baseline=100.0, e_per_adu=12.0, read_noise_e=40.0, em_gain=200.0)
    flats = [series(truth, photons, 400, rng) for photons in (20, 60, 150)]
    found = measure_maps(series(truth, 0, 200, rng), flats, em_gain=200)
    assert found.gain is not None
    assert float(found.gain.mean()) == pytest.approx(1 / 12, rel=0.01)
    made = found.camera(em_gain=200)
    assert float(made.photons_per_adu.mean()) == pytest.approx(
        float(truth.photons_per_adu), rel=0.01
    )


def test_a_flickering_lamp_does_not_change_the_gain(rng: torch.Generator) -> None:
    truth = replace(camera(rng), e_per_adu=0.5)
    flats = []
    for photons in (200.0, 800.0):
        lamp = 1 + 0.03 * torch.randn(300, 1, 1, generator=rng)
        flats.append(truth.sample((photons * lamp).expand(300, *SHAPE), rng))
    found = measure_maps(series(truth, 0, 300, rng), flats)
    assert found.gain is not None
    assert float(found.gain.median()) == pytest.approx(2, rel=0.01)
    assert any("varied by 3." in note or "varied by 2." in note for note in found.notes)


def test_the_file_holds_the_maps(tmp_path: Path, truth: Camera, rng: torch.Generator) -> None:
    """From TIFF series to a camera file and back."""
    paths = []
    for name, photons in (("dark", 0.0), ("low", 100.0), ("high", 500.0)):
        paths.append(tmp_path / f"{name}.tif")
        write_movie(paths[-1], series(truth, photons, 60, rng).numpy())
    found = measure_maps(paths[0], paths[1:])
    write_camera(
        tmp_path / "camera.yaml", CameraFile(camera=found.camera(qe=0.8), pixel_size_nm=110)
    )
    read = read_camera(tmp_path / "camera.yaml").camera
    torch.testing.assert_close(read.baseline, found.offset.float())
    assert found.gain is not None
    torch.testing.assert_close(1 / torch.as_tensor(read.e_per_adu), found.gain.float())
    assert read.qe == 0.8


def test_dark_frames_alone_tell_no_gain(truth: Camera, rng: torch.Generator) -> None:
    found = measure_maps(series(truth, 0, 50, rng))
    assert found.gain is None
    assert any("gain is missing" in note for note in found.notes)
    with pytest.raises(ValueError, match="no gain: add flat frames"):
        found.camera()
    with pytest.raises(ValueError, match="must be positive"):
        found.camera(gain=0)
    assert found.camera(gain=2.0).e_per_adu == 0.5


def test_a_dead_pixel_and_bent_light_are_said(truth: Camera, rng: torch.Generator) -> None:
    flats = [series(truth, photons, 200, rng) for photons in (100, 300, 900)]
    flats[2] = (flats[2] - 100) ** 0.95 + 100  # compressed
    for flat in flats:
        flat[:, 3, 4] = 100
    found = measure_maps(series(truth, 0, 200, rng), flats)
    assert any("1 pixel does not answer" in note for note in found.notes)
    assert any("not linear" in note for note in found.notes)
    assert found.gain is not None
    assert bool((found.gain > 0).all())


@pytest.mark.parametrize(
    ("dark", "flats", "message"),
    [
        (torch.rand(5, 8, 8), [], "take at least 10"),
        (torch.full((20, 8, 8), 100.0), [], "do not vary"),
        (torch.full((20, 8, 8), float("nan")), [], "NaN"),
        (torch.rand(20, 8, 8, 3), [], "grey values"),
        (torch.rand(20, 8, 8), [torch.rand(20, 8, 9)], "same region"),
        (torch.rand(20, 8, 8), [torch.rand(20, 8, 8)], "no brighter"),
        (torch.rand(20, 8, 8), [torch.full((20, 8, 8), 4095.0)], "saturated at 4095"),
        ([], [], "no dark frames"),
    ],
)
def test_bad_series(dark: Tensor, flats: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_maps(dark, flats)


TURNS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda m: m.T,
    "mirrored in x": lambda m: m.flip(1),
    "mirrored in y": lambda m: m.flip(0),
    "mirrored in x and y": lambda m: m.flip(0, 1),
    "transposed and mirrored in x": lambda m: m.T.flip(1),
    "transposed and mirrored in y": lambda m: m.T.flip(0),
    "shifted by 3 pixels in x and -2 in y": lambda m: m.roll((-2, 3), (0, 1)),
}


def turned(camera: Camera, turn: Callable[[Tensor], Tensor]) -> Camera:
    maps = {name: getattr(camera, name) for name in ("baseline", "e_per_adu", "read_noise_e")}
    return replace(camera, **{name: turn(m) for name, m in maps.items()})


@pytest.mark.parametrize("remedy", TURNS)
def test_the_remedy_named_puts_maps_right(remedy: str, rng: torch.Generator) -> None:
    """Maps of which the named turn is the true camera."""
    wrong = camera(rng, (64, 64))
    movie = series(turned(wrong, TURNS[remedy]), 15, 20, rng)
    (sentence,) = check_maps(movie, wrong)
    assert f" {remedy}: save" in sentence
    assert check_maps(movie, turned(wrong, TURNS[remedy])) == ()


def test_the_middle_of_the_frames_tells_how_maps_lie(rng: torch.Generator) -> None:
    right = camera(rng, (101, 96))
    movie = series(right, 15, 20, rng)
    for turn in ("mirrored in x", "mirrored in y", "mirrored in x and y"):
        (sentence,) = check_maps(movie, turned(right, TURNS[turn]), side_px=50)
        assert f" {turn}: save" in sentence
    assert check_maps(movie, right, side_px=50) == ()


@pytest.mark.parametrize("error", [-8.0, 8.0, 40.0])
def test_a_wrong_offset_is_found(error: float, rng: torch.Generator) -> None:
    truth = camera(rng, (64, 64))
    movie = series(truth, 12, 40, rng)
    (sentence,) = check_maps(movie, replace(truth, baseline=truth.baseline + error))
    if error == 40:
        assert "negative photons" in sentence
    else:
        found = float(
            re.search(r"offset ([\d.]+) ADU " + ("below" if error > 0 else "above"), sentence)[1]
        )  # type: ignore[index]
        assert found == pytest.approx(8, abs=1.5)


@pytest.mark.parametrize("stated", [0.05, 0.005, 2.0, 5.0])
def test_a_wrong_gain_is_said_with_one_that_the_noise_allows(
    stated: float, rng: torch.Generator
) -> None:
    """And no offset is, for none explains the noise: they would be negative, or above the
    counts."""
    camera = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.6, qe=0.8)
    frames = camera.sample(torch.full((60, 64, 64), 30.0), rng)
    assert check_maps(frames, camera) == ()
    (sentence,) = check_maps(frames, replace(camera, e_per_adu=stated))
    found = float(re.search(r"e_per_adu is about ([\d.]+)", sentence)[1])  # type: ignore[index]
    assert found == pytest.approx(0.5, rel=0.05)
    assert "offset" not in sentence
    assert ("(the inverse: ADU per electron?)" in sentence) == (stated == 2.0)


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_maps_of_a_wrong_gain_keep_their_read_variance(
    factor: float, truth: Camera, rng: torch.Generator
) -> None:
    """It is measured in ADU^2."""
    wrong = {name: factor * getattr(truth, name) for name in ("e_per_adu", "read_noise_e")}
    (sentence,) = check_maps(series(truth, 60, 60, rng), replace(truth, **wrong))
    found = float(re.search(r"e_per_adu is about ([\d.]+)", sentence)[1])  # type: ignore[index]
    assert found == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("light", [0.0, 30.0])
def test_of_a_movie_without_noise_no_gain_is_said(light: float, rng: torch.Generator) -> None:
    camera = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=4.0, qe=0.8)
    frames = 100 + 2 * light + 0.2 * torch.randn(60, 64, 64, generator=rng)
    (sentence,) = check_maps(frames, camera)
    assert "less noise than a camera gives" in sentence
    assert "e_per_adu" not in sentence


@pytest.mark.parametrize("shape", [(40, 3, 3), (40, 1, 1), (5, 2, 5), (40, 9, 11)])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_few_pixels_raise_no_alarm(shape: tuple[int, int, int], rng: torch.Generator) -> None:
    camera = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.6, qe=0.8)
    assert check_maps(camera.sample(torch.full(shape, 30.0), rng), camera) == ()


def test_saturation_and_sizes_are_said(rng: torch.Generator) -> None:
    truth = replace(camera(rng, (64, 48)), saturation_adu=4095.0)
    movie = series(truth, 12, 20, rng)
    movie[:, 9:12, 9:12] = 4095
    assert any("limit of 4095" in sentence for sentence in check_maps(movie, truth))
    with pytest.raises(ValueError, match="they are transposed"):
        check_maps(movie.mT, truth)
    with pytest.raises(ValueError, match="cut them to the movie's region"):
        check_maps(movie[:, :32], truth)


def test_a_movie_that_tells_nothing(rng: torch.Generator) -> None:
    with pytest.raises(ValueError, match="at least 3 frames"):
        check_maps(torch.rand(2, 32, 32), Camera(baseline=0.0, e_per_adu=1.0, read_noise_e=1.0))
    with pytest.raises(ValueError, match="NaN"):
        check_maps(
            torch.full((5, 32, 32), float("nan")),
            Camera(baseline=0.0, e_per_adu=1.0, read_noise_e=1.0),
        )


def test_maps_of_a_real_camera(shared_data: Path) -> None:
    folder = shared_data / "storm_scmos_real"
    gain, variance, offset = (
        torch.from_numpy(tifffile.imread(folder / f"camera_{name}.tif").astype(np.float32))
        for name in ("gain_adu_per_electron", "variance_adu2", "offset_adu")
    )
    right = Camera(baseline=offset, e_per_adu=1 / gain, read_noise_e=variance.sqrt() / gain)
    assert check_maps(folder / "frames.tif", right) == ()
    (sentence,) = check_maps(folder / "frames.tif", turned(right, TURNS["transposed"]))
    assert "only when they are transposed:" in sentence
    (sentence,) = check_maps(folder / "frames.tif", replace(right, baseline=offset - 6))
    assert "above" in sentence


@pytest.mark.parametrize(
    "name", ["challenge2016_as", "sim_astigmatic", "sim_2d", "sim_double_helix"]
)
def test_a_right_camera_raises_no_alarm(shared_data: Path, name: str) -> None:
    right = Camera(
        baseline=100.0, e_per_adu=45.0, read_noise_e=74.4, qe=0.9, em_gain=300.0, spurious_e=0.002
    )
    movie = shared_data / name / "frames.tif"
    assert check_maps(movie, right) == ()
    assert check_maps(movie, replace(right, e_per_adu=25.0)) != ()


def test_crowded_molecules_raise_no_alarm_of_a_right_camera(rng: torch.Generator) -> None:
    camera = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.6, qe=0.8)
    n_frames, n = 60, 60 * 15
    light = render(
        GaussianPSF(90.0, pixel_size_nm=100.0),
        frame=torch.arange(n) % n_frames,
        xyz=torch.rand(n, 3, generator=rng) * torch.tensor([6400.0, 6400.0, 0.0]),
        photons=torch.full((n,), 2000.0),
        n_frames=n_frames,
        shape=(64, 64),
    )
    movie = camera.sample(5 + light, rng)
    assert check_maps(movie, camera) == ()


@pytest.mark.parametrize("count", [0.0, 100.0, 65535.0])
def test_a_stuck_pixel_is_named_and_left_out(
    rng: torch.Generator, tmp_path: Path, count: float
) -> None:
    truth = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.6, qe=0.8)
    levels = [truth.sample(torch.full((60, 24, 32), light), rng) for light in (0.0, 100.0, 400.0)]
    for frames in levels:
        frames[:, 12, 20] = count
    found = measure_maps(levels[0], levels[1:])
    assert any("1 pixel does not answer to light (x 20 y 12)" in note for note in found.notes)
    assert found.gain is not None
    assert float(found.gain.median()) == pytest.approx(2.0, rel=0.03)
    write_camera(
        tmp_path / "camera.yaml", CameraFile(camera=found.camera(qe=0.8), pixel_size_nm=100.0)
    )
    bad = read_camera(tmp_path / "camera.yaml").camera.bad
    assert bad is not None
    assert torch.nonzero(bad).tolist() == [[12, 20]]
    dark_alone = measure_maps(levels[0])
    assert torch.nonzero(dark_alone.dead).tolist() == [[12, 20]]


def test_frames_that_the_camera_dropped_do_not_change_its_maps(rng: torch.Generator) -> None:
    truth = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.6, qe=0.8)
    dark, flat = (truth.sample(torch.full((80, 24, 32), light), rng) for light in (0.0, 300.0))
    clean = measure_maps(dark, [flat])
    flat[[3, 40]] = dark[17] = 0
    spoilt = measure_maps(dark, [flat])
    assert float(spoilt.offset.mean()) == pytest.approx(100.0, abs=0.1)
    assert clean.gain is not None
    assert spoilt.gain is not None
    assert float(spoilt.gain.median()) == pytest.approx(float(clean.gain.median()), rel=0.02)
