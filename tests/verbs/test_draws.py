"""Draws of the posterior of a movie are written beside its table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from decode.acquisition import acquisition_for
from decode.emitters import EmitterSet
from decode.io.movies import open_movie
from decode.io.tables import read_table
from decode.models import load_model
from decode.outputs import sample_files
from decode.verbs.localize import localize_file, localize_movie

MOVIE = Path("sample_data/blinking_2d.tif")
CAMERA = Path("sample_data/camera.yaml")
FRAMES = slice(3, 15)


def drawn(out: Path, samples: int, seed: int = 0, **options: object) -> list[EmitterSet]:
    """Localize a part of the sample movie; its draws."""
    localize_file(
        MOVIE,
        "gaussian-2d",
        out,
        camera=CAMERA,
        psf_sigma_nm=95.0,
        frames=FRAMES,
        formats=("csv",),
        samples=samples,
        seed=seed,
        **options,  # type: ignore[arg-type]
    )
    return [read_table(files[0]) for files in sample_files(MOVIE, out, ("csv",), samples)]


def test_draws_have_the_counts_and_places_of_the_posterior_by_their_seed(tmp_path: Path) -> None:
    three = drawn(tmp_path / "three", 3)
    two, other = drawn(tmp_path / "two", 2), drawn(tmp_path / "other", 1, seed=1)
    assert sorted(file.name for file in (tmp_path / "three").iterdir()) == [
        "blinking_2d.csv",
        *(f"blinking_2d.sample-0{k}.csv" for k in (1, 2, 3)),
    ]
    for first, second in zip(two, three, strict=False):
        assert torch.equal(first.xyz, second.xyz)
    assert not torch.equal(three[0].photons, three[1].photons)
    assert not torch.equal(three[0].photons, other[0].photons)
    model = load_model("gaussian-2d")
    with open_movie(MOVIE, frames=FRAMES) as movie:
        known = acquisition_for(movie, model, camera=CAMERA, psf_sigma_nm=95.0)
        (chunk,) = localize_movie(movie, model, known, posteriors=True)
    assert chunk.posterior is not None
    counts = chunk.posterior.molecules().counts()
    for table in three:
        assert set(table.frame.tolist()) <= set(range(3, 15))
        number = torch.bincount(table.frame - 3, minlength=12)
        assert float(((number - counts.mean) / counts.sd).abs().max()) < 5
    # a sure molecule is in every draw, within its sigma
    found = chunk.molecules
    assert found.probability is not None
    sure = found[found.probability > 0.999]
    assert len(sure) > 20
    for molecule in sure.xyz[:20]:
        nearest = (three[0].xyz[:, :2] - molecule[:2]).norm(dim=1).min()
        assert float(nearest) < 100


def test_draws_of_a_region_lie_in_it(tmp_path: Path) -> None:
    (table,) = drawn(tmp_path, 1, roi=(slice(16, 40), slice(24, 64)))
    assert len(table) > 5
    x, y = table.xyz[:, 0] / 100, table.xyz[:, 1] / 100
    # corrected uncertainties reach a little over the border
    assert float(x.min()) >= 23.8
    assert float(x.max()) <= 64.2
    assert float(y.min()) >= 15.8
    assert float(y.max()) <= 40.2


def test_draws_are_tables_and_not_polished(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose a format of tables"):
        sample_files(MOVIE, tmp_path, ("png",), 2)
    assert sample_files(MOVIE, tmp_path, ("png",), 0) == ()
    names = [file.name for file in sample_files(MOVIE, tmp_path, ("hdf5", "png"), 120)[6]]
    assert names == ["blinking_2d.sample-007.hdf5", "blinking_2d.sample-007.yaml"]
    with pytest.raises(ValueError, match="choose samples or polish"):
        drawn(tmp_path, 1, polish=True)
    assert not list(tmp_path.iterdir())
