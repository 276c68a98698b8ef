"""Localizing as one function: files or arrays in, molecules out."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import decode
from decode.emitters import EmitterSet
from decode.io.movies import open_array, open_movie
from decode.io.tables import read_table
from decode.verbs.localize import localize, localize_file

SAMPLES = Path(__file__).resolve().parents[2] / "sample_data"
MOVIE, CAMERA = SAMPLES / "blinking_2d.tif", SAMPLES / "camera.yaml"
FRAMES = slice(3, 15)


def assert_same(one: EmitterSet, two: EmitterSet) -> None:
    assert len(one) == len(two) > 20
    assert torch.equal(one.frame, two.frame)
    torch.testing.assert_close(one.xyz.double(), two.xyz.double(), rtol=0, atol=1e-2)


@pytest.mark.parametrize("polish", [False, True])
def test_the_molecules_are_those_of_the_table_that_the_command_writes(
    tmp_path: Path, polish: bool
) -> None:
    molecules = decode.localize(
        MOVIE,
        model="gaussian-2d",
        camera=str(CAMERA),
        psf_sigma_nm=95.0,
        frames=FRAMES,
        polish=polish,
        device="cpu",
    )
    done = localize_file(
        MOVIE,
        "gaussian-2d",
        tmp_path,
        camera=CAMERA,
        psf_sigma_nm=95.0,
        frames=FRAMES,
        formats=["hdf5"],
        polish=polish,
        device="cpu",
    )
    assert done.n_molecules == len(molecules)
    assert_same(molecules, read_table(tmp_path / "blinking_2d.hdf5"))
    assert (molecules.polished is not None) == polish


@pytest.mark.parametrize("polish", [False, True])
def test_frames_that_are_skipped_are_as_if_they_had_never_been_but_for_the_numbers(
    tmp_path: Path, polish: bool
) -> None:
    with open_movie(MOVIE) as movie:
        counts = movie.read(0, 24)
    kept = [i for i in range(24) if i % 4]
    options = {"model": "gaussian-2d", "camera": CAMERA, "psf_sigma_nm": 95.0, "polish": polish}
    alone = localize(open_array(counts[kept]), **options, device="cpu")
    (tmp_path / "movie.raw").write_bytes(b"\0" * 8 + counts.astype("<u2").tobytes())
    layout = decode.RawLayout(frame_shape=(64, 64), dtype="uint16", first_byte=8)
    chosen = decode.Selection(skip="0::4", raw=layout)
    options |= {"pixel_size_nm": 100.0, "selection": chosen}
    found = localize(tmp_path / "movie.raw", **options, device="cpu")
    assert sorted({*found.frame.tolist()}) == kept
    assert found.facts.n_frames == 24
    assert_same(replace(alone, frame=torch.tensor(kept)[alone.frame]), found)
    localize_file(
        tmp_path / "movie.raw", out=tmp_path / "out", formats=["hdf5"], **options, device="cpu"
    )
    assert_same(found, read_table(tmp_path / "out" / "movie.hdf5"))


def test_a_movie_is_localized_without_what_is_slow_to_import() -> None:
    """PyTorch's compiler and SciPy's statistics take as long as all the rest."""
    script = f"""
import sys, decode
with decode.open_movie({str(MOVIE)!r}, frames=slice(0, 2)) as movie:
    counts = movie.read(0, 2)
found = decode.localize(counts, model="gaussian-2d", camera={str(CAMERA)!r}, psf_sigma_nm=95.0)
assert len(found) > 20
assert not {{"torch._dynamo", "sympy", "scipy.stats"}} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_an_open_movie_and_an_array_are_movies() -> None:
    model = decode.load_model("gaussian-2d")
    with open_movie(MOVIE, frames=FRAMES) as movie:
        counts = movie.read(0, len(movie))
        of_file = localize(movie, model=model, camera=CAMERA, psf_sigma_nm=95.0, device="cpu")
        with pytest.raises(ValueError, match="open movie has frames of its own"):
            localize(movie, model=model, camera=CAMERA, frames=FRAMES)
    of_array = localize(counts, model=model, camera=CAMERA, psf_sigma_nm=95.0, device="cpu")
    # the array knows nothing of the frames beside the chosen ones
    inner = of_file[(of_file.frame > 3) & (of_file.frame < 14)]
    same = of_array[(of_array.frame > 0) & (of_array.frame < 11)]
    assert torch.equal(inner.frame, same.frame + 3)
    torch.testing.assert_close(inner.xyz, same.xyz, rtol=0, atol=0.1)


def test_what_was_estimated_and_what_is_wrong_is_said_with_the_molecules() -> None:
    steps = localize.steps(
        MOVIE, model="gaussian-2d", pixel_size_nm=110.0, psf_sigma_nm=95.0, device="cpu"
    )
    assert next(steps).detail is None
    first, second = next(steps), next(steps)
    steps.close()
    assert first.detail is not None
    assert second.detail is not None
    assert (first.fraction, len(first.detail.molecules)) == (0.0, 0)
    assert "states pixels of 100 nm" in " ".join(first.warnings)
    assert second.fraction == second.detail.frames_done / second.detail.frames_total > 0
    assert len(second.detail.molecules) == second.detail.n_molecules > 0
    assert second.warnings == ()
    molecules = localize(
        MOVIE,
        model="gaussian-2d",
        pixel_size_nm=110.0,
        psf_sigma_nm=95.0,
        frames=slice(0, 8),
        device="cpu",
    )
    assert any("states pixels of 100 nm" in warning for warning in molecules.facts.warnings)
    assert any("gain" in estimate for estimate in molecules.facts.estimates)


def test_an_array_that_is_no_movie_is_named() -> None:
    with pytest.raises(ValueError, match=r"shape \(frames, y, x\), this array has \(5, 6\)"):
        open_array(np.zeros((5, 6)))
    with pytest.raises(ValueError, match="this array holds bool"):
        open_array(np.zeros((2, 5, 6), bool))
