"""Rounds: the prior moves to where the molecules of a movie lie, and ends when nothing improves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from decode.config import load_config
from decode.emitters import Check, EmitterSet, Facts
from decode.io.movies import Selection
from decode.io.psfs import PSFFile, write_psf
from decode.optics.gaussian import GaussianPSF
from decode.priors.scene import Scene
from decode.progress import Progress
from decode.verbs.rounds import Round, SceneOfMolecules, with_scene
from decode.verbs.run import _in_rounds
from decode.verbs.stages import Made, Stage, ended

RECIPE = """\
version: 1
pixel_size_nm: 100

scene:
  density_per_um2: [0.0, 1.0]  # molecules on at once
  flux_photons: [{low}, {high}]  # mean of a movie
  flux_variation: [0.2, 0.6]
  on_time_frames: [2.0, 5.0]
  background_photons: [40.0, 90.0]  # photons per pixel
psf:
  file: 'psf.h5'  # calibrated from beads
"""
GOOD = Check(name="camera noise", value=1.0, limit=1.1, passed=True, sentence="as it should be")
BAD = replace(GOOD, name="light left over", value=0.8, limit=0.4, passed=False, sentence="missed")


def found(*, flux: float, faintest: float = 400.0, checks: tuple[Check, ...] = ()) -> EmitterSet:
    """Molecules of a movie of 64 x 64 pixels, 0.3 on at once in a square micrometre."""
    scene = Scene(
        density_per_um2=(0.3, 0.3),
        flux_photons=(flux, flux),
        flux_variation=(0.4, 0.4),
        on_time_frames=(3.0, 3.0),
        filaments=0.0,
    )
    rng = torch.Generator().manual_seed(4)
    drawn = scene.sample_emitters(1, 200, (64, 64), 100.0, rng)
    xy = drawn.xyz[:, :2]
    seen = drawn[((xy > 0) & (xy < 6400)).all(1) & (drawn.photons > faintest)]
    facts = Facts(pixel_size_nm=100.0, n_frames=200, height_px=64, width_px=64, checks=checks)
    background = torch.full((len(seen),), 60.0)
    return replace(seen, background=background, metadata=facts.metadata())


def recipe(folder: Path, *, low: float = 2000.0, high: float = 5000.0) -> Made:
    made = Made(folder)
    made.recipe.write_text(RECIPE.format(low=low, high=high))
    write_psf(made.psf, PSFFile(psf=GaussianPSF(130.0, pixel_size_nm=100.0), z_range_nm=(0, 0)))
    return made


@pytest.mark.parametrize(("flux", "faintest"), [(3000.0, 400.0), (3000.0, 1200.0), (1000.0, 500.0)])
def test_molecules_that_were_missed_do_not_bias_the_scene(
    tmp_path: Path, flux: float, faintest: float
) -> None:
    config = load_config(recipe(tmp_path).recipe)
    scene = SceneOfMolecules.of(found(flux=flux, faintest=faintest), config)
    assert scene is not None
    assert abs(scene.flux_photons / flux - 1) < 0.1
    assert abs(scene.density_per_um2 / 0.3 - 1) < 0.15
    assert scene.background_photons == 60


def test_a_scene_outside_the_prior_becomes_the_next_prior(tmp_path: Path) -> None:
    made = recipe(tmp_path, low=6000.0, high=9000.0)
    scene = SceneOfMolecules.of(found(flux=3000.0), load_config(made.recipe))
    assert scene is not None
    (name,) = scene.outside(load_config(made.recipe).scene)
    assert name == "flux_photons"
    text = with_scene(made.recipe.read_text(), scene.ranges, psf_file="psf-2.h5", number=2)
    made.recipe.write_text(text)
    (tmp_path / "psf-2.h5").write_bytes(made.psf.read_bytes())
    after = load_config(made.recipe)
    assert after.scene.flux_photons == pytest.approx(scene.ranges["flux_photons"], abs=1e-5)
    assert Path(after.psf.file).name == "psf-2.h5"
    assert not scene.outside(after.scene)


@pytest.mark.parametrize(
    ("checks", "says", "kept"),
    [
        ((GOOD,), "all checks pass", "second"),
        ((BAD, BAD, BAD), "it did not improve: the tables are those of round 1", "first"),
    ],
)
def test_rounds_go_on_while_they_improve(
    tmp_path: Path, checks: tuple[Check, ...], says: str, kept: str
) -> None:
    made = recipe(tmp_path, low=6000.0, high=9000.0)
    (tmp_path / "movie.csv").write_text("first")
    trained: list[Path] = []

    def train(following: Made, key: str, *, start: Path) -> Iterator[Progress[Stage]]:
        assert start == made.model
        trained.append(following.recipe)
        yield ended("train", "", following.model)

    def localize(following: Made, *, psf: Path, folder: Path) -> Any:
        assert psf == made.psf
        folder.mkdir()
        (folder / "movie.csv").write_text("second")
        yield ended("localize", "")
        # the second round's molecules lie within its prior
        return found(flux=3000.0, checks=checks)

    first = found(flux=3000.0, checks=(BAD,))
    steps = _in_rounds(
        made,
        first,
        rounds=3,
        key="key",
        movie=tmp_path / "movie.tif",
        camera=None,
        selection=Selection(),
        settings=(),
        train=train,
        localize=localize,
    )
    (*_, last) = steps
    assert trained == [tmp_path / "train-2.yaml"]
    assert last.detail.name == "rounds"
    assert says in last.message
    assert (tmp_path / "movie.csv").read_text() == kept


def test_without_a_cause_that_can_be_mended_there_is_no_other_round(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    noisy = replace(BAD, name="camera noise")

    def never(*arguments: object, **more: object) -> Any:
        raise AssertionError

    first = found(flux=3000.0, checks=(noisy,))
    steps = _in_rounds(
        made,
        first,
        rounds=3,
        key="key",
        movie=tmp_path / "movie.tif",
        camera=None,
        selection=Selection(),
        settings=(),
        train=never,
        localize=never,
    )
    (last,) = steps
    assert "another round mends none of this" in last.message


def test_fewer_failures_are_an_improvement_and_so_are_smaller_ones() -> None:
    first = Round(number=1, checks=(BAD, replace(BAD, name="density")), outside={})
    fewer = Round(number=2, checks=(BAD,), outside={})
    smaller = Round(number=3, checks=(replace(BAD, value=0.5),), outside={})
    assert fewer.improves_on(first)
    assert smaller.improves_on(fewer)
    assert not fewer.improves_on(smaller)
    assert not first.improves_on(first)
