"""A record is the JSON beside the weights, whatever version of decode wrote it."""

from __future__ import annotations

import json

import pytest

from decode.models import shipped_models
from decode.network.record import ModelRecord

RECORD = {
    "config": {
        "pixel_size_nm": 110.0,
        "scene": {"z_nm": [-500, 500], "flicker": 0.2, "flicker_factor": [0.5, 2.0]},
        "camera": {"bad_pixels": [0.0, 0.01]},
    },
    "steps": 60,
    "validation": [{"step": 60, "jaccard": 0.9}],
    "start": {"steps": 40, "hardware": "a GPU"},
    "remarks": [],
    "of_tomorrow": {"a": [1, 2]},
}


def test_a_record_comes_back_as_it_was_with_keys_that_are_not_known() -> None:
    record = ModelRecord.from_json(RECORD)
    assert record.to_json() == RECORD
    assert record.others == {"of_tomorrow": {"a": [1, 2]}}
    assert ModelRecord.from_json({}).to_json() == {} == ModelRecord().to_json()


@pytest.mark.parametrize("name", sorted(shipped_models()))
def test_the_json_of_shipped_models_stays_the_same(name: str) -> None:
    text = shipped_models()[name].with_suffix(".json").read_text()
    assert ModelRecord.from_json(json.loads(text)).to_json() == json.loads(text)


def test_facts_of_the_recipe_are_typed() -> None:
    record = ModelRecord.from_json(RECORD)
    assert record.pixel_size_nm == 110
    assert record.z_nm == (-500, 500)
    assert record.background_photons is None
    assert record.flicker_factor == (0.5, 2)
    assert record.max_bad_pixels == 0.01
    assert record.start == ModelRecord(steps=40, hardware="a GPU")


def test_a_recipe_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="config of a model's record"):
        ModelRecord.from_json({"config": [1, 2]})
