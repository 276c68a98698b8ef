"""What is known about a movie before its molecules are localized, and what is said where it does
not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from decode import CameraFile, EmitterSet, load_model, read_table, write_table
from decode.acquisition import Acquisition, acquisition_for, complete_acquisition
from decode.io.movies import open_movie, write_movie
from decode.optics.camera import Camera
from decode.optics.description import describe, digest_of, rebuild
from decode.optics.gaussian import GaussianPSF

CAMERA = Camera(baseline=100.0, e_per_adu=1.0, read_noise_e=1.0)
COUNTS = np.random.default_rng(0).poisson(120, (6, 16, 20)).astype(np.uint16)


def warnings(movie: Path, pixel_size_nm: float | None = None) -> tuple[str, ...]:
    with open_movie(movie) as frames:
        stated: dict[str, Any] = {
            "camera": CAMERA,
            "pixel_size_nm": pixel_size_nm,
            "psf_sigma_nm": 130.0,
        }
        return complete_acquisition(frames, **stated).warnings


@pytest.fixture
def oblong(tmp_path: Path) -> Path:
    """An OME movie whose pixels are 100 x 160 nm."""
    facts = {"axes": "TYX", "PhysicalSizeX": 0.1, "PhysicalSizeY": 0.16}
    tifffile.imwrite(tmp_path / "oblong.ome.tif", COUNTS, ome=True, metadata=facts)
    return tmp_path / "oblong.ome.tif"


def test_a_pixel_size_other_than_the_files_is_said(tmp_path: Path) -> None:
    movie = tmp_path / "movie.tif"
    write_movie(movie, COUNTS, pixel_size_nm=160.0)
    (sentence,) = warnings(movie, 100.0)
    assert "states pixels of 160 nm, and 100 nm" in sentence
    assert not warnings(movie, 160.9)
    assert not warnings(movie)


def test_a_movie_that_states_no_pixel_size_contradicts_none(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "movie.tif", COUNTS)
    assert not warnings(tmp_path / "movie.tif", 100.0)
    with pytest.raises(ValueError, match="does not say how large its pixels are"):
        warnings(tmp_path / "movie.tif")


def test_pixels_that_are_no_squares_are_said(oblong: Path) -> None:
    with pytest.raises(ValueError, match="100 x 160 nm, which are no squares; state"):
        warnings(oblong)
    (sentence,) = warnings(oblong, 100.0)
    assert "100 x 160 nm (x, y)" in sentence


def test_the_camera_that_the_file_names_is_said_where_it_is_estimated(tmp_path: Path) -> None:
    facts = '{"PixelSizeUm": 0.1, "Core-Camera": "Cam", "Cam-CameraName": "Prime 95B"}'
    tags = [(51123, "s", 0, facts, True)]
    counts = np.random.default_rng(0).poisson(120, (40, 32, 32)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "m.tif", counts, metadata=None, extratags=tags)
    model = load_model("gaussian-2d")
    with open_movie(tmp_path / "m.tif") as movie:
        known = acquisition_for(movie, model, psf_sigma_nm=130.0)
        stated = CameraFile(camera=CAMERA, pixel_size_nm=100.0)
        given = acquisition_for(movie, model, camera=stated, psf_sigma_nm=130.0)
    assert any("the file calls it Prime 95B" in sentence for sentence in known.estimates)
    assert not any("Prime 95B" in sentence for sentence in given.estimates)


def test_a_table_states_the_camera_and_the_psf(tmp_path: Path) -> None:
    write_movie(tmp_path / "movie.tif", COUNTS, pixel_size_nm=100.0)
    maps = replace(CAMERA, read_noise_e=torch.ones(16, 20), em_gain=300.0)
    psf = GaussianPSF(130.0, pixel_size_nm=100.0)
    with open_movie(tmp_path / "movie.tif") as movie:
        acquisition = Acquisition(camera=maps, pixel_size_nm=100.0, psf_sigma_nm=None)
        facts = acquisition.facts(movie, threshold=0.5, model="m", psf=psf)
    assert facts.camera == {
        "baseline": 100.0,
        "e_per_adu": 1.0,
        "read_noise_e": "map",
        "qe": 1.0,
        "em_gain": 300.0,
        "spurious_e": 0.0,
        "saturation_adu": 65535.0,
    }
    assert facts.psf == digest_of(psf)
    write_table(EmitterSet.empty(facts.metadata()), tmp_path / "table.parquet")
    assert read_table(tmp_path / "table.parquet").facts == facts


def test_equal_psfs_have_the_same_digest() -> None:
    psf = GaussianPSF(130.0, pixel_size_nm=100.0, depth_nm=400.0)
    assert digest_of(psf) == digest_of(rebuild(describe(psf)))
    assert digest_of(psf) != digest_of(GaussianPSF(130.0, pixel_size_nm=100.0, depth_nm=401.0))
