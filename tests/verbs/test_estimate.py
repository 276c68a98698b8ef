"""An estimate of files is that of the arrays in them, and what it writes is a recipe that can be
trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from decode.config import load_config
from decode.estimation import compare, estimate_scene
from decode.io.cameras import CameraFile, read_camera
from decode.io.movies import open_movie, write_movie
from decode.io.psfs import PSFFile, write_psf
from decode.optics.camera import Camera
from decode.optics.gaussian import GaussianPSF
from decode.verbs.estimate import MovieEstimate, estimate

SAMPLES = Path(__file__).parents[2] / "sample_data"
CAMERA = SAMPLES / "camera.yaml"
PSF = PSFFile(
    psf=GaussianPSF(130.0, pixel_size_nm=100.0, depth_nm=400.0, gap_nm=300.0),
    z_range_nm=(-500.0, 500.0),
)


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("movie") / "movie.tif"
    with open_movie(SAMPLES / "blinking_3d.tif") as whole:
        write_movie(path, whole.read(0, 80))
    return path


@pytest.fixture(scope="module")
def of_files(movie: Path) -> MovieEstimate:
    write_psf(movie.with_name("psf.h5"), PSF)
    return estimate(movie, camera=CAMERA, psf=movie.with_name("psf.h5"))


def test_an_estimate_of_files_is_that_of_the_arrays_in_them(
    movie: Path, of_files: MovieEstimate
) -> None:
    camera = read_camera(CAMERA)
    with open_movie(movie) as opened:
        frames = opened.read(0, len(opened))
    of_arrays = estimate(frames, camera=camera, psf=PSF)
    assert of_arrays.scene == of_files.scene
    assert str(of_arrays) == str(of_files)
    by_hand = estimate_scene(frames, camera.camera, PSF.psf, z_range_nm=PSF.z_range_nm)
    assert of_arrays.scene == by_hand
    comparison = compare(frames, camera.camera, PSF.psf, by_hand)
    assert of_arrays.comparison is not None
    torch.testing.assert_close(of_arrays.comparison.simulated, comparison.simulated, atol=0, rtol=0)


def test_an_estimate_writes_a_recipe_with_all_that_it_names(
    of_files: MovieEstimate, tmp_path: Path
) -> None:
    write_psf(tmp_path / "psf.h5", PSF)
    written = of_files.write(tmp_path / "train.yaml", psf_file="psf.h5")
    assert {file.name for file in written} == {"train.yaml", "train.png", "train_camera.yaml"}
    assert all(file.is_file() for file in written)
    config = load_config(tmp_path / "train.yaml")
    density = of_files.scene.density_per_um2
    assert config.scene.density_per_um2[0] < density.value < config.scene.density_per_um2[1]
    own = yaml.safe_load((tmp_path / "train.yaml").read_text())
    assert own["camera"]["file"] == "train_camera.yaml"


def test_a_camera_file_that_is_named_is_not_written_again(
    of_files: MovieEstimate, tmp_path: Path
) -> None:
    written = of_files.write(tmp_path / "train.yaml", psf_file="psf.h5", camera_file=CAMERA)
    assert {file.name for file in written} == {"train.yaml", "train.png"}
    named = yaml.safe_load((tmp_path / "train.yaml").read_text())["camera"]["file"]
    assert (tmp_path / named).resolve() == CAMERA.resolve()


def test_warnings_come_before_the_work_that_may_fail() -> None:
    """Of a movie without molecules, whose last column is dead."""
    camera = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.5, qe=0.8)
    rng = torch.Generator().manual_seed(3)
    frames = camera.sample(torch.full((80, 40, 40), 30.0), rng)
    frames[:, :, 20] = 100
    steps = estimate.steps(frames, camera=CameraFile(camera=camera, pixel_size_nm=100.0), psf=PSF)
    assert "column 20" in " ".join(next(steps).warnings)
    with pytest.raises(ValueError, match="no molecules are seen to blink"):
        list(steps)


def test_what_is_not_stated_is_estimated() -> None:
    with open_movie(SAMPLES / "blinking_2d.tif") as whole:
        frames = whole.read(0, 100)
    found = estimate(frames, pixel_size_nm=100.0, compared=False)
    assert found.comparison is None
    assert found.camera.pixel_size_nm == 100
    assert found.scene.psf_sigma_nm is not None
    assert isinstance(found.psf.psf, GaussianPSF)
    width_nm = float(found.psf.psf.sigma_nm.detach())
    assert found.scene.psf_sigma_nm.value == pytest.approx(width_nm, rel=0.2)
    with pytest.raises(ValueError, match="nothing says how large the movie's pixels are"):
        estimate(frames, compared=False)


def test_a_psf_of_other_pixels_is_refused(movie: Path) -> None:
    with pytest.raises(ValueError, match=r"the PSF has pixels of 100 nm, .*camera.yaml of 160 nm"):
        estimate(movie, camera=CAMERA, psf=PSF, pixel_size_nm=160.0)
