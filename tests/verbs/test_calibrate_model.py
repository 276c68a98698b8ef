"""A model is calibrated on simulations of its own recipe."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from decode.models import load_model
from decode.network.localizer import Localizer, NetworkConfig
from decode.network.record import ModelRecord
from decode.quality.calibration import CalibrationRecord
from decode.verbs.calibrate_model import calibrate_model


def test_a_calibrated_model_is_written_with_its_record(tmp_path: Path) -> None:
    before = load_model("gaussian-2d")
    weights = {name: value.clone() for name, value in before.state_dict().items()}
    # a model whose sigmas are too small by a factor of two, in x, y and photons
    assert before.out.bias is not None
    with torch.no_grad():
        before.out.bias[[3, 4, 6]] -= 0.7
    out = tmp_path / "model.safetensors"
    steps = calibrate_model.steps(before, out, movies=40)
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    after = load_model(out)
    assert after.recalibration is not None
    assert out.with_suffix(".json").is_file()
    for name, value in after.state_dict().items():
        if name != "out.bias":
            assert torch.equal(value, weights[name])
    every = CalibrationRecord.of_model(after.record).groups[0]
    # without it, 38 % would be within their sigmas
    assert every.n > 300
    for quantity in ("x", "y", "photons"):
        assert every.table[quantity] == pytest.approx((0.68, 0.95), abs=0.09)


def test_a_training_ends_with_a_calibration_unless_it_was_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verb = importlib.import_module("decode.verbs.train")
    monkeypatch.setattr(verb, "MOVIES", 8)
    recipe = Path(__file__).parents[2] / "configs" / "gaussian-2d.yaml"
    small = ["frame_widths=[4]", "sequence_widths=[4]", "head_width=4"]
    settings = [f"network.{key}" for key in small]
    settings += ["training.steps=2", "training.size_px=16", "training.warm_up_steps=0"]
    short = verb.train(recipe, tmp_path / "short.safetensors", settings=settings, device="cpu")
    assert short.record.calibration is None
    monkeypatch.setattr(verb, "CALIBRATED_MINUTES", 0.0)
    out = tmp_path / "model.safetensors"
    *_, last = verb.train.steps(recipe, out, settings=settings, device="cpu")
    assert last.fraction == 1.0
    assert last.detail.step == 2
    calibration = load_model(out).record.calibration
    assert calibration is not None
    assert calibration["n_frames"] == 24
    # also of a model that finds nothing yet
    json.dumps(calibration, allow_nan=False)


def test_a_model_without_a_recipe_is_refused(tmp_path: Path) -> None:
    network = NetworkConfig(frame_widths=(4,), sequence_widths=(4,), head_width=4)
    model = Localizer(network, {})
    with pytest.raises(ValueError, match="recipe"):
        calibrate_model(model, tmp_path / "model.safetensors")
    known = load_model("gaussian-2d")
    known.record = replace(ModelRecord(), config=known.record.config)
    with pytest.raises(ValueError, match=r"\.safetensors"):
        calibrate_model(known, tmp_path / "model.txt")
    assert not list(tmp_path.iterdir())
