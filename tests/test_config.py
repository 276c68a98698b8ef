"""Recipes: every shipped one loads, and what is wrong in one is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from decode.config import TrainConfig, from_mapping, load_config, to_mapping
from decode.schema import schema

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
    told = simulation.sample(2, 1, (16, 16), torch.Generator().manual_seed(0)).told
    context = config.localizer().context_map(told)
    assert context.shape[:2] == (2, len(told))
    assert context.abs().max() <= 1


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_points_editors_to_the_schema(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    stored = json.loads((path.parent / first.partition("$schema=")[2]).read_text())
    assert stored == json.loads(json.dumps(schema())), "make it again: decode schema > docs/train.schema.json"


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
    config = load_config(path, ["training.steps=20", "scene.density_per_um2=[1, 2]", "training.learning_rate=1e-3"])
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
        ({"scene": 3}, "scene: "),
        ({"version": 99}, "version 99"),
        ({"pixel_size_nm": 0}, "pixel_size_nm must be positive"),
        ({"camera": {"emccd_fraction": 2}}, "emccd_fraction is a fraction"),
        ({"network": {"frame_widths": []}}, "frame_widths"),
        ([1, 2], "`key: value`"),
    ],
)
def test_a_wrong_key_or_value_is_named_in_one_sentence(tmp_path: Path, content: object, sentence: str) -> None:
    path = save(tmp_path, content)
    with pytest.raises(ValueError, match=sentence) as caught:
        load_config(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("setting", ["training.steps", "seed.deeper=3", "training.stepz=3", "training.steps=[", "=3"])
def test_a_wrong_setting_is_named(tmp_path: Path, setting: str) -> None:
    path = save(tmp_path, {"seed": 1})
    with pytest.raises(ValueError, match=r"--set|unknown key"):
        load_config(path, [setting])
