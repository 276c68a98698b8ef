"""Limits of the checks are fitted to simulated movies of a model's own recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from decode.models import load_model
from decode.quality.limits import Limits
from decode.verbs import calibrate_checks as verb
from decode.verbs.calibrate_checks import calibrate_checks


@pytest.mark.parametrize("name", ["gaussian-2d", "astigmatic-3d"])
def test_movies_of_the_recipe_give_a_model_limits_and_leave_the_rest_as_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "N_FRAMES", 16)
    before = load_model(name)
    out = tmp_path / "model.safetensors"
    steps = list(calibrate_checks.steps(name, out, movies=2))
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    after = load_model(out)
    assert out.with_suffix(".json").is_file()
    assert after.record.limits is not None
    assert after.record.limits["movies"] > 0
    assert Limits.of(after.record, after.record.limits["kind"])
    assert after.record.calibration == before.record.calibration
    for key, value in after.state_dict().items():
        assert torch.equal(value, before.state_dict()[key])
    assert after.recalibration is not None


def test_a_model_without_a_recipe_is_refused() -> None:
    model = load_model("gaussian-2d")
    model.record = type(model.record)()
    with pytest.raises(ValueError, match="recipe"):
        calibrate_checks(model)
