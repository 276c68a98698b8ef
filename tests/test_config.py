"""Recipes: every shipped one loads, and what is wrong in one is named."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
import yaml

from decode.config import TrainConfig, from_mapping, load_config, to_mapping
from decode.verbs.schema import schema

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


def save(folder: Path, content: object) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_there_are_recipes() -> None:
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_its_network_takes_its_movies(path: Path) -> None:
    config = load_config(path)
    assert config.description
    simulation = config.forward_model()
    assert simulation.psf.pixel_size_nm == config.pixel_size_nm
    drawn = simulation.sample(2, 1, (16, 16), torch.Generator().manual_seed(0))
    known = drawn.conditioning.values
    context = config.localizer().context_map(known)
    assert context.shape[:2] == (2, len(known))
    assert context.abs().max() <= 1


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_points_editors_to_the_schema(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    stored = json.loads((path.parent / first.partition("$schema=")[2]).read_text())
    assert stored == json.loads(json.dumps(schema())), (
        "make it again: decode schema > docs/train.schema.json"
    )


def test_what_is_saved_reads_back() -> None:
    config = load_config(RECIPES[0], ["seed=7", "scene.filaments=0.25"])
    assert from_mapping(TrainConfig, to_mapping(config), "saved") == config


def test_every_key_is_described() -> None:
    whole = schema()
    parts: list[dict[str, Any]] = [whole, *whole["$defs"].values()]
    for part in parts:
        assert part["additionalProperties"] is False
        for name, key in part["properties"].items():
            assert key.get("description"), f"{part['title']}.{name} has no description"


def test_set_replaces_one_value(tmp_path: Path) -> None:
    path = save(tmp_path, {"seed": 3, "training": {"steps": 10}})
    config = load_config(
        path, ["training.steps=20", "scene.density_per_um2=[1, 2]", "training.learning_rate=1e-3"]
    )
    assert config.training.steps == 20
    assert config.scene.density_per_um2 == (1.0, 2.0)
    assert config.training.learning_rate == 1e-3
    assert config.seed == 3


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"sceen": {}}, "unknown key 'sceen'"),
        ({"scene": {"density": [0, 1]}}, "unknown key 'scene.density'"),
        ({"training": {"steps": "many"}}, "training.steps: "),
        ({"scene": {"z_nm": [1]}}, "scene.z_nm"),
        ({"scene": {"flux_photons": [500, 100]}}, "flux_photons is .*lowest value must come first"),
        ({"scene": 3}, "scene: must hold"),
        ({"psf": None}, "psf: must hold"),
        (
            {"psf": {"file": "psf.h5", "blur_nm": 20}},
            r"psf\.blur_nm: must be a list, as \[20, 20\]",
        ),
        (
            {"psf": {"file": "psf.h5", "sigma_px": [1, 2], "depth_nm": 300}},
            r"unknown key 'psf\.depth_nm'; known here: blur_nm, file",
        ),
        ({"psf": {"file": 3}}, r"psf\.file: "),
        ({"psf": {"wavelength_px": [0, 5]}}, r"psf\.wavelength_px"),
        ({"psf": {"sigma_px": [1.3, "wide"]}}, r"psf\.sigma_px\.1: "),
        ({"psf": {"sigma_px": [2.0, 0.8]}}, "psf: sigma_px is .*lowest value must come first"),
        (
            {"camera": {"file": "camera.yaml", "qe": [0.5, 0.9]}},
            r"unknown key 'camera\.qe'; known here: file",
        ),
        ({"camera": {"qe": [0.5, 1.5]}}, r"camera\.qe\.1: "),
        ({"seed": True}, "seed: must not be true"),
        ({"training": {"optimizer": "sgd"}}, r"training\.optimizer: .*'muon' or 'adamw'"),
        (
            {"training": {"learning_rate": float("inf")}},
            "training: learning_rate is inf, must be finite",
        ),
        ({"training": {"min_photons": float("nan")}}, r"training\.min_photons"),
        ({"training": {"warm_up_steps": -3}}, r"training\.warm_up_steps: "),
        ({"training": {"gradient_norm": 0}}, r"training\.gradient_norm: "),
        ({"version": 99}, "version 99"),
        ({"pixel_size_nm": 0}, "pixel_size_nm: .*greater than 0"),
        ({"camera": {"emccd_fraction": 2}}, "camera.emccd_fraction: .*less than or equal to 1"),
        ({"network": {"frame_widths": []}}, "frame_widths"),
        ([1, 2], "`key: value`"),
    ],
)
def test_a_wrong_key_or_value_is_named_in_one_sentence(
    tmp_path: Path, content: object, sentence: str
) -> None:
    path = save(tmp_path, content)
    with pytest.raises(ValueError, match=sentence) as caught:
        load_config(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def sections(of: object) -> Iterator[object]:
    """A recipe and all the dataclasses that may stand in it."""
    yield of
    for hint in get_type_hints(type(of)).values():
        for kind in (k for k in (*get_args(hint), hint) if dataclasses.is_dataclass(k)):
            named = {"file": "file"} if "file" in get_type_hints(kind) else {}
            yield kind(**named)


SECTIONS = list(sections(TrainConfig()))


@pytest.mark.parametrize("settings", SECTIONS, ids=lambda settings: type(settings).__name__)
@pytest.mark.parametrize("unfit", [math.nan, math.inf, -math.inf])
def test_no_setting_is_anything_but_finite(settings: Any, unfit: float) -> None:
    for name, value in ((f.name, getattr(settings, f.name)) for f in dataclasses.fields(settings)):
        if isinstance(value, float):
            with pytest.raises(ValueError, match=name):
                dataclasses.replace(settings, **{name: unfit})
        if isinstance(value, tuple):
            with pytest.raises(ValueError, match=name):
                dataclasses.replace(settings, **{name: (value[0], unfit)})


@pytest.mark.parametrize("settings", SECTIONS, ids=lambda settings: type(settings).__name__)
def test_of_no_range_the_highest_value_comes_first(settings: Any) -> None:
    hints = get_type_hints(type(settings))
    for name in (name for name, hint in hints.items() if hint == tuple[float, float]):
        low, high = getattr(settings, name)
        if low == high:
            continue
        with pytest.raises(ValueError, match=f"{name} is .*, the lowest value must come first"):
            dataclasses.replace(settings, **{name: (high, low)})


@pytest.mark.parametrize(
    "setting", ["training.steps", "seed.deeper=3", "training.stepz=3", "training.steps=[", "=3"]
)
def test_a_wrong_setting_is_named(tmp_path: Path, setting: str) -> None:
    path = save(tmp_path, {"seed": 1})
    with pytest.raises(ValueError, match=r"--set|unknown key"):
        load_config(path, [setting])
