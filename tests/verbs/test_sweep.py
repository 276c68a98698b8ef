"""Localizing: the same molecules whatever the tiles and chunks, in the frame's own coordinates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import decode.verbs.sweep
from decode.emitters import EmitterSet
from decode.io.movies import open_movie, write_movie
from decode.network.localizer import Localizer, NetworkConfig
from decode.network.posterior import SetPosterior
from decode.optics.camera import Camera
from decode.verbs.sweep import sweep

CAMERA = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.5)


@pytest.fixture(scope="module")
def model() -> Localizer:
    """Untrained, with outputs wild enough to list molecules everywhere."""
    torch.manual_seed(1)
    model = Localizer(
        NetworkConfig(frame_widths=(4, 6), sequence_widths=(4, 6), head_width=8),
        {"psf_sigma_px": (0.8, 2.0)},
    )
    torch.nn.init.normal_(model.out.weight, std=1.0)
    torch.nn.init.zeros_(model.out.bias)
    return model.eval()


@pytest.fixture(scope="module")
def movie_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("movie") / "movie.tif"
    rng = np.random.default_rng(2)
    spots = rng.random((21, 50, 74)) > 0.98
    write_movie(path, rng.poisson(140 + 900 * spots).astype(np.uint16))
    return path


def run(path: Path, model: Localizer, frames: slice | None = None, **options: Any) -> EmitterSet:
    with open_movie(path, frames=frames) as movie:
        context = options.pop("context", {"psf_sigma_px": 1.3})
        chunks = list(
            sweep(
                movie, model, CAMERA, pixel_size_nm=100.0, context=context, device="cpu", **options
            )
        )
    assert chunks[-1].frames_done == chunks[-1].frames_total
    return EmitterSet.cat(chunk.molecules for chunk in chunks)


def assert_same(one: EmitterSet, two: EmitterSet) -> None:
    assert len(one) == len(two) > 100
    order = [np.lexsort((e.xyz[:, 0].round(decimals=1), e.frame)) for e in (one, two)]
    for name, column in one.columns().items():
        torch.testing.assert_close(
            column[order[0]],
            two.columns()[name][order[1]],
            rtol=1e-3,
            atol=1e-2,
            equal_nan=True,
            msg=name,
        )


def test_molecules_do_not_depend_on_tiles(movie_path: Path, model: Localizer) -> None:
    whole = run(movie_path, model)
    assert_same(whole, run(movie_path, model, tile_px=19))
    assert whole.frame.diff().min() >= 0, "frames in order"


@pytest.mark.parametrize("at_once", [1, 2, 5, 100])
def test_molecules_do_not_depend_on_batches(
    movie_path: Path, model: Localizer, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    whole = run(movie_path, model)
    monkeypatch.setitem(decode.verbs.sweep.PIXELS_AT_ONCE, "cpu", at_once * 50 * 74)
    monkeypatch.setitem(decode.verbs.sweep.CHUNK_PIXELS, "cpu", 8 * 50 * 74)
    assert_same(whole, run(movie_path, model))


def test_it_equals_the_network_run_on_the_whole_movie(movie_path: Path, model: Localizer) -> None:
    with open_movie(movie_path) as movie, torch.no_grad():
        adu = torch.from_numpy(movie.read(0, 21).astype(np.float32))[None]
    with torch.no_grad():
        direct = model(
            adu, CAMERA, model.context_map({"psf_sigma_px": 1.3}), 100.0
        ).point_estimate()
    assert_same(direct, run(movie_path, model))


def test_a_region_keeps_the_frames_coordinates(movie_path: Path, model: Localizer) -> None:
    whole = run(movie_path, model)
    x, y = whole.xyz[:, 0] / 100, whole.xyz[:, 1] / 100
    inside = whole[(x >= 20) & (x < 61) & (y >= 10) & (y < 33)]
    assert_same(inside, run(movie_path, model, roi=(slice(10, 33), slice(20, 61))))


@pytest.mark.parametrize(
    "chosen", [slice(5, 15), slice(0, 9), slice(20, 21), slice(1, 20)], ids=str
)
def test_chosen_frames_have_the_molecules_that_they_have_in_the_whole_movie(
    movie_path: Path, model: Localizer, chosen: slice
) -> None:
    """The first and the last of them too, whose neighbours are in the file."""
    whole = run(movie_path, model)
    assert_same(
        whole[(whole.frame >= chosen.start) & (whole.frame < chosen.stop)],
        run(movie_path, model, chosen),
    )


def test_a_neighbour_that_cannot_be_read_is_as_none(tmp_path: Path, model: Localizer) -> None:
    """It was left out with `frames` for just that."""
    counts = np.random.default_rng(3).poisson(140, (6, 24, 32)).astype(np.float32)
    write_movie(tmp_path / "whole.tif", counts[1:])
    counts[0, 3, 3] = np.nan
    write_movie(tmp_path / "broken.tif", counts)
    one, two = run(tmp_path / "broken.tif", model, slice(1, 6)), run(tmp_path / "whole.tif", model)
    assert_same(replace(one, frame=one.frame - 1), two)


def test_maps_must_fit(movie_path: Path, model: Localizer) -> None:
    with open_movie(movie_path) as movie:
        wrong = Camera(baseline=torch.full((74, 50), 100.0), e_per_adu=1.0, read_noise_e=1.0)
        with pytest.raises(ValueError, match=r"baseline map is \(74, 50\).*frames are \(50, 74\)"):
            next(sweep(movie, model, wrong, pixel_size_nm=100.0, context={"psf_sigma_px": 1.3}))
        with pytest.raises(ValueError, match="rows 40:60"):
            next(
                sweep(
                    movie, model, CAMERA, pixel_size_nm=100.0, context={"psf_sigma_px": 1.3},
                    roi=(slice(40, 60), slice(0, 5)),
                )
            )  # fmt: skip
        with pytest.raises(ValueError, match="outside the range"):
            next(sweep(movie, model, CAMERA, pixel_size_nm=100.0, context={"psf_sigma_px": 9.0}))


def test_a_map_of_widths_reaches_its_pixels(movie_path: Path, model: Localizer) -> None:
    uniform = run(movie_path, model, context={"psf_sigma_px": torch.full((50, 74), 1.3)})
    assert_same(run(movie_path, model), uniform)
    assert_same(
        uniform,
        run(movie_path, model, context={"psf_sigma_px": torch.full((50, 74), 1.3)}, tile_px=30),
    )


def test_one_frame_is_a_movie(tmp_path: Path, model: Localizer) -> None:
    write_movie(
        tmp_path / "one.tif", np.random.default_rng(0).poisson(140, (1, 40, 40)).astype(np.uint16)
    )
    assert len(run(tmp_path / "one.tif", model)) > 0


@pytest.mark.parametrize("tile_px", [512, 19])
def test_posteriors_are_those_of_the_frames_whatever_the_tiles(
    movie_path: Path, model: Localizer, monkeypatch: pytest.MonkeyPatch, tile_px: int
) -> None:
    monkeypatch.setitem(decode.verbs.sweep.PIXELS_AT_ONCE, "cpu", 3 * 50 * 74)
    monkeypatch.setitem(decode.verbs.sweep.CHUNK_PIXELS, "cpu", 8 * 50 * 74)
    options: dict[str, Any] = {
        "pixel_size_nm": 100.0,
        "context": {"psf_sigma_px": 1.3},
        "device": "cpu",
    }
    with open_movie(movie_path) as movie:
        adu = torch.from_numpy(movie.read(0, 21).astype(np.float32))[None]
        chunks = list(sweep(movie, model, CAMERA, tile_px=tile_px, posteriors=True, **options))
        (part, *_) = sweep(
            movie, model, CAMERA, roi=(slice(8, 30), slice(4, 60)), posteriors=True, **options
        )
    parts = [chunk.posterior for chunk in chunks if chunk.posterior is not None]
    assert [len(posterior) for posterior in parts] == [8, 8, 5]
    with torch.no_grad():
        direct = model(adu, CAMERA, model.context_map({"psf_sigma_px": 1.3}), 100.0)
    whole = SetPosterior.cat(parts)
    torch.testing.assert_close(whole.probability, direct.probability, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(whole.offset_px, direct.offset_px, rtol=1e-3, atol=1e-3)
    of_one, of_other = whole[:2].count_pmf(3), direct[:2].count_pmf(3)
    torch.testing.assert_close(of_one, of_other, rtol=1e-2, atol=1e-6)
    assert part.posterior is not None
    torch.testing.assert_close(
        part.posterior.photons, direct.photons[:8, 8:30, 4:60], rtol=1e-3, atol=1e-2
    )


def test_posteriors_of_frames_without_an_image_hold_no_emitter(
    tmp_path: Path, model: Localizer
) -> None:
    counts = np.random.default_rng(3).poisson(140, (12, 24, 32)).astype(np.uint16)
    counts[4] = 100
    write_movie(tmp_path / "blank.tif", counts)
    with open_movie(tmp_path / "blank.tif") as movie:
        (chunk,) = sweep(
            movie,
            model,
            CAMERA,
            pixel_size_nm=100.0,
            context={"psf_sigma_px": 1.3},
            posteriors=True,
        )
    assert chunk.posterior is not None
    empty = (chunk.posterior.probability == 0).flatten(1).all(1)
    assert empty.nonzero().flatten().tolist() == [4]
