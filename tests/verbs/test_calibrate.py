"""A calibration of files is that of the arrays in them, and what it writes is what it returns."""

from __future__ import annotations

from dataclasses import replace
from itertools import compress
from pathlib import Path

import numpy as np
import pytest
import torch

import decode
from decode.io.movies import open_movie, write_movie
from decode.io.psfs import read_psf
from decode.optics.camera import Camera
from decode.verbs.calibrate_psf import CalibratedPSF, calibrate_psf, state_direction

SAMPLES = Path(__file__).parents[2] / "sample_data"
CAMERA = SAMPLES / "camera.yaml"


@pytest.fixture(scope="module")
def beads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some planes of two beads."""
    path = tmp_path_factory.mktemp("beads") / "beads.tif"
    with open_movie(SAMPLES / "beads_3d.tif") as stack:
        write_movie(path, stack.read(0, 81)[::8, 8:58, 4:90])
    return path


@pytest.fixture(scope="module")
def written(beads: Path) -> CalibratedPSF:
    return decode.calibrate_psf(
        beads,
        CAMERA,
        out=beads.with_name("psf.h5"),
        z_step_nm=160.0,
        model="gaussian",
        pupil=False,
    )


def test_a_psf_of_files_is_that_of_the_arrays_in_them(beads: Path, written: CalibratedPSF) -> None:
    with open_movie(beads) as stack:
        frames = stack.read(0, len(stack))
    upwards = decode.calibrate_psf(
        [frames], decode.read_camera(CAMERA), z_step_nm=160.0, model="gaussian", pupil=False
    )
    downwards = decode.calibrate_psf(
        torch.from_numpy(frames[::-1].astype(np.float32)),
        str(CAMERA),
        z_step_nm=160.0,
        downwards=True,
        model="gaussian",
        pupil=False,
    )
    assert upwards.verdict == written.verdict
    assert [made.calibration.file.z_direction for made in (upwards, downwards)] == [
        "assumed",
        "stated",
    ]
    assert downwards.verdict == state_direction(upwards).verdict != upwards.verdict
    for made in (upwards, downwards):
        assert (made.files, made.pictures) == ((), ())
        for name, value in written.calibration.psf.arrays().items():
            torch.testing.assert_close(made.calibration.psf.arrays()[name], value)


def test_the_psf_and_the_report_that_are_written_are_those_returned(
    beads: Path, written: CalibratedPSF
) -> None:
    psf, report = written.files
    assert (psf.name, report.name) == ("psf.h5", "psf.html")
    file, read = written.calibration.file, read_psf(psf)
    assert read.sources == file.sources == (str(beads),)
    assert (read.figures, read.usable_nm) == (file.figures, file.usable_nm)
    for name, value in file.psf.arrays().items():
        assert torch.equal(read.psf.arrays()[name], value), name
    page = report.read_text()
    assert all(picture.title in page for picture in written.pictures)


def test_a_direction_of_z_that_is_confirmed_is_kept_in_file_and_report(
    written: CalibratedPSF, tmp_path: Path
) -> None:
    psf, report = tmp_path / "psf.h5", tmp_path / "psf.html"
    assert "upside down" in read_psf(written.files[0]).z_remark
    assert "--upwards or --downwards" in written.files[1].read_text()
    confirmed = state_direction(replace(written, files=(psf, report)))
    assert read_psf(psf).z_remark == confirmed.calibration.file.z_remark == ""
    assert "that was stated" in report.read_text()
    assert "--upwards or --downwards" not in report.read_text()


def test_planes_whose_depths_are_given_need_neither_step_nor_order(
    beads: Path, written: CalibratedPSF
) -> None:
    order = np.random.default_rng(1).permutation(11)
    with open_movie(beads) as stack:
        frames = stack.read(0, 11)[order]
    made = decode.calibrate_psf(
        frames,
        CAMERA,
        z_of_frames=(160.0 * (order - 5)).tolist(),
        model="gaussian",
        pupil=False,
    )
    # what is said of the direction of the stage differs: depths state it
    same = [not line.startswith("Above focus") for line in written.verdict]
    assert list(compress(made.verdict, same)) == list(compress(written.verdict, same))


def test_nothing_is_fitted_where_the_psf_would_be_written_over_the_beads(beads: Path) -> None:
    stack, link = beads.read_bytes(), beads.with_name("beads.h5")
    link.symlink_to(beads)
    with pytest.raises(ValueError, match=r"beads\.h5 would be written over .*beads\.h5"):
        next(calibrate_psf.steps(link, CAMERA, out=link, z_step_nm=160.0))
    assert beads.read_bytes() == stack


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Dark frames, and two levels of even light."""
    camera = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.5, qe=0.8)
    rng = torch.Generator().manual_seed(2)
    folder = tmp_path_factory.mktemp("series")
    for photons in (0, 200, 600):
        frames = camera.sample(torch.full((60, 12, 16), float(photons)), rng)
        write_movie(folder / f"{photons}.tif", frames.numpy().astype(np.uint16), pixel_size_nm=99.0)
    return [folder / f"{photons}.tif" for photons in (0, 200, 600)]


def test_a_camera_of_files_is_that_of_the_arrays_in_them_and_is_written(
    series: list[Path], tmp_path: Path
) -> None:
    dark, *flats = series
    arrays = []
    for path in series:
        with open_movie(path) as movie:
            arrays.append(movie.read(0, len(movie)))
    of_files = decode.calibrate_camera(dark, flats, out=tmp_path / "camera.yaml")
    of_arrays = decode.calibrate_camera(arrays[0], arrays[1:], pixel_size_nm=99.0)
    assert of_files.file.pixel_size_nm == pytest.approx(99.0)
    assert of_files.maps is not None
    assert of_arrays.maps is not None
    torch.testing.assert_close(of_files.maps.gain, of_arrays.maps.gain, rtol=0, atol=0)
    assert of_files.files == (tmp_path / "camera.yaml",)
    assert of_arrays.files == ()
    read = decode.read_camera(tmp_path / "camera.yaml").camera
    torch.testing.assert_close(read.e_per_adu, of_files.file.camera.e_per_adu)
    with pytest.raises(ValueError, match="an array does not say how large its pixels are"):
        decode.calibrate_camera(arrays[0])


def test_a_camera_of_a_movie_has_numbers(tmp_path: Path) -> None:
    made = decode.calibrate_camera(movie=SAMPLES / "blinking_2d.tif", out=tmp_path / "c.yaml")
    assert made.maps is None
    assert decode.read_camera(tmp_path / "c.yaml").camera == made.file.camera
    with pytest.raises(ValueError, match="belong to dark series"):
        decode.calibrate_camera(movie=SAMPLES / "blinking_2d.tif", gain=2.0)
