"""Scores against the challenge's rules written out plainly, and sigmas against draws from them."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from decode.emitters import EmitterSet
from decode.io.tables import read_table, write_table
from decode.metrics import (
    calibration,
    coverage,
    match,
    normalized_errors,
    reliability,
    score,
)

FIELD_NM = (6400.0, 6400.0)


def scatter(
    rng: torch.Generator, n: int, n_frames: int = 20, size_nm: float = 6400.0
) -> EmitterSet:
    """Molecules anywhere in a field."""
    xyz = torch.rand(n, 3, generator=rng, dtype=torch.float64) * size_nm
    xyz[:, 2] = xyz[:, 2] / 5 - 600
    frame = torch.randint(0, n_frames, (n,), generator=rng).sort().values
    return EmitterSet(frame=frame, xyz=xyz, photons=torch.rand(n, generator=rng) * 2000)


def perturb(
    truth: EmitterSet,
    rng: torch.Generator,
    *,
    sigma_nm: float,
    missed: float = 0.2,
    false: float = 0.2,
    shift_nm: float = 0,
) -> EmitterSet:
    """A table as a localizer might return it."""
    seen = truth[torch.rand(len(truth), generator=rng) > missed]
    noise = (
        torch.randn(seen.xyz.shape, generator=rng, dtype=torch.float64)
        * torch.tensor([1, 1, 2.5])
        * sigma_nm
    )
    seen = replace(seen, xyz=seen.xyz + noise + shift_nm)
    wrong = scatter(rng, len(truth) // 5, int(truth.frame.max()) + 1)
    return EmitterSet.cat([seen, wrong])[torch.randperm(len(seen) + len(wrong), generator=rng)]


def matched_plainly(truth: EmitterSet, prediction: EmitterSet, two_d: bool) -> set[tuple[int, int]]:
    """One dense assignment a frame."""
    pairs = set()
    for frame in truth.frame.unique():
        t, p = (
            torch.nonzero(truth.frame == frame)[:, 0].numpy(),
            torch.nonzero(prediction.frame == frame)[:, 0].numpy(),
        )
        delta = truth.xyz.numpy()[t][:, None] - prediction.xyz.numpy()[p]
        lateral, axial = np.linalg.norm(delta[..., :2], axis=2), abs(delta[..., 2])
        forbidden = (lateral > 250) | ((axial > 500) & (not two_d))
        cost = lateral if two_d else np.linalg.norm(delta, axis=2)
        rows, columns = linear_sum_assignment(np.where(forbidden, 1e6, cost))
        pairs |= {
            (int(t[r]), int(p[c]))
            for r, c in zip(rows, columns, strict=True)
            if not forbidden[r, c]
        }
    return pairs


@pytest.mark.parametrize("two_d", [True, False])
@pytest.mark.parametrize("n", [0, 40, 4000])
def test_match_is_the_assignment_of_every_frame(rng: torch.Generator, n: int, two_d: bool) -> None:
    truth = scatter(rng, n)
    prediction = perturb(truth, rng, sigma_nm=60) if n else scatter(rng, 7)
    pairs = match(truth, prediction, two_d=two_d)
    assert {(a, b) for a, b in pairs.tolist()} == matched_plainly(truth, prediction, two_d)
    assert torch.equal(
        match(prediction, truth, two_d=two_d).flip(1).sort(0).values, pairs.sort(0).values
    )


def test_match_takes_more_pairs_before_shorter_ones() -> None:
    def on_a_line(*x: float) -> EmitterSet:
        xyz = torch.tensor([[value, 0.0, 0.0] for value in x])
        return EmitterSet(
            frame=torch.zeros(len(x), dtype=torch.int64), xyz=xyz, photons=torch.ones(len(x))
        )

    # 200 is nearest to 210, but then 0 would be left alone
    assert match(on_a_line(0, 210), on_a_line(200, 440)).tolist() == [[0, 0], [1, 1]]
    # at the tolerance is within, beyond is not
    assert len(match(on_a_line(0), on_a_line(250))) == 1
    assert len(match(on_a_line(0), on_a_line(250.001))) == 0


def test_a_perfect_table_scores_perfectly(rng: torch.Generator) -> None:
    truth = scatter(rng, 500)
    result = score(truth, truth, field_nm=FIELD_NM)
    inside = ((truth.xyz[:, :2] > 450) & (truth.xyz[:, :2] < 6400 - 450)).all(1)
    assert (result.tp, result.fp, result.fn) == (int(inside.sum()), 0, 0)
    assert (result.jaccard, result.rmse_lateral_nm, result.rmse_axial_nm, result.efficiency_3d) == (
        1,
        0,
        0,
        100,
    )


def test_an_empty_table_scores_nothing(rng: torch.Generator) -> None:
    truth = scatter(rng, 500)
    result = score(truth, EmitterSet.empty(), field_nm=FIELD_NM)
    assert (result.tp, result.fp, result.jaccard) == (0, 0, 0)
    assert math.isnan(result.rmse_lateral_nm)
    assert score(EmitterSet.empty(), truth, field_nm=FIELD_NM).fp > 0


def test_what_lies_outside_or_is_dim_neither_helps_nor_harms() -> None:
    xyz = torch.tensor([[1000.0, 1000, 0], [3000, 3000, 0], [400, 3000, 0], [5000, 5000, 0]])
    frame = torch.zeros(4, dtype=torch.int64)
    truth = EmitterSet(frame=frame, xyz=xyz, photons=torch.tensor([1000.0, 100, 1000, 1000]))
    # found, dim, near the border but localized inside, and a false one in place of the last
    found = replace(
        truth, xyz=xyz + torch.tensor([[30.0, 40, 0], [0, 0, 0], [100, 0, 0], [0, 900, 0]])
    )
    result = score(truth, found, field_nm=FIELD_NM, min_photons=300)
    assert (result.tp, result.fp, result.fn) == (1, 1, 1)
    assert result.jaccard == pytest.approx(1 / 3)
    assert result.rmse_lateral_nm == pytest.approx(50)
    assert result.efficiency_lateral == pytest.approx(100 - math.hypot(200 / 3, 50), abs=1e-4)


def test_a_constant_shift_is_found_and_removed(rng: torch.Generator) -> None:
    truth = scatter(rng, 2000, n_frames=200)
    prediction = perturb(truth, rng, sigma_nm=10, shift_nm=80)
    result = score(truth, prediction, field_nm=FIELD_NM, remove_shift=True)
    assert result.shift_nm == pytest.approx((80, 80, 80), abs=3)
    assert result.rmse_lateral_nm == pytest.approx(10 * math.sqrt(2), rel=0.1)
    assert (
        score(truth, prediction, field_nm=FIELD_NM, remove_shift=True, two_d=True).shift_nm[2] == 0
    )


@pytest.mark.parametrize(
    ("folder", "sigma_nm"),
    [pytest.param("sim_2d", 20, marks=pytest.mark.slow), ("challenge2016_as", 90)],
)
@pytest.mark.parametrize("options", [[], ["--2d"], ["--shift", "--min-photons", "300"]])
def test_scores_agree_with_an_independent_scorer(
    shared_data: Path,
    tmp_path: Path,
    rng: torch.Generator,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
    sigma_nm: float,
    options: list[str],
) -> None:
    script = shared_data.parent / "score.py"
    if not script.is_file():
        pytest.skip("the independent scorer is not beside the data")
    truth = read_table(shared_data / folder / "activations.csv")
    write_table(perturb(truth, rng, sigma_nm=sigma_nm, shift_nm=25), tmp_path / "table.csv")
    result = score(
        truth,
        read_table(tmp_path / "table.csv"),
        field_nm=FIELD_NM,
        two_d="--2d" in options,
        min_photons=300 if "--min-photons" in options else 0,
        remove_shift="--shift" in options,
    )
    spec = importlib.util.spec_from_file_location("independent_scorer", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(
        sys,
        "argv",
        ["score", str(shared_data / folder), str(tmp_path / "table.csv"), "--json", *options],
    )
    module.main()
    expected: dict[str, Any] = json.loads(capsys.readouterr().out)
    ours = {
        "tp": result.tp,
        "fp": result.fp,
        "fn": result.fn,
        "jaccard": round(result.jaccard, 4),
        "precision": round(result.precision, 4),
        "recall": round(result.recall, 4),
        "rmse_lat_nm": round(result.rmse_lateral_nm, 2),
        "rmse_ax_nm": round(result.rmse_axial_nm, 2),
        "med_lat_nm": round(result.median_lateral_nm, 2),
        "med_ax_nm": round(result.median_axial_nm, 2),
        "eff_lat": round(result.efficiency_lateral, 2),
        "eff_3d": None if "--2d" in options else round(result.efficiency_3d, 2),
        "shift_nm": [round(value, 1) for value in result.shift_nm],
    }
    assert ours == expected


def test_normalized_errors_of_honest_sigmas_are_standard_normal(rng: torch.Generator) -> None:
    truth = scatter(rng, 4000, n_frames=4000)
    sigma = torch.rand(len(truth), 3, generator=rng, dtype=torch.float64) * 20 + 5
    noise = torch.randn(sigma.shape, generator=rng, dtype=torch.float64)
    stated = sigma * torch.tensor(
        [1.0, 0.5, torch.nan]
    )  # y is overconfident twofold, z not estimated
    order = torch.randperm(len(truth), generator=rng)
    prediction = replace(truth, xyz=truth.xyz + noise * sigma, xyz_sigma=stated)[order]
    errors = normalized_errors(truth, prediction, match(truth, prediction))
    assert errors.shape == (4000, 3)
    assert errors.std(0)[:2].tolist() == pytest.approx([1, 2], rel=0.04)
    assert errors[:, 2].isnan().all()
    shares = coverage(errors, 0.9)
    assert shares[:2].tolist() == pytest.approx(
        [0.9, math.erf(1.6449 / 2 / math.sqrt(2))], abs=0.02
    )
    assert shares[2].isnan()
    with pytest.raises(ValueError, match="states no uncertainties"):
        normalized_errors(truth, truth, match(truth, truth))


def test_a_movie_is_scored_within_a_second(rng: torch.Generator) -> None:
    truth = scatter(rng, 600 * 40, n_frames=600)
    prediction = perturb(truth, rng, sigma_nm=30)
    start = time.process_time()
    score(truth, prediction, field_nm=FIELD_NM)
    assert time.process_time() - start < 2


def test_a_crowded_frame_is_scored_in_memory_that_goes_with_its_molecules(
    rng: torch.Generator,
) -> None:
    """30 per square micrometre: all hang together in one group of 4000, of which each has 6
    candidates."""
    truth = scatter(rng, 4000, n_frames=1, size_nm=11500.0)
    prediction = replace(truth, xyz=truth.xyz + 20 * torch.randn(4000, 3, generator=rng))
    tracemalloc.start()
    pairs = match(truth, prediction)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(pairs) == 4000
    assert peak < 30e6, "bytes; a matrix of all pairs has 128e6"


def stated(truth: EmitterSet, rng: torch.Generator, *, wrong_by: float = 1.0) -> EmitterSet:
    """A table whose errors are normal, and whose sigmas are too small by a factor."""
    n = len(truth)
    sigma = torch.rand(n, 4, generator=rng, dtype=torch.float64) * 20 + 5
    noise = sigma * torch.randn(n, 4, generator=rng, dtype=torch.float64)
    return replace(
        truth,
        xyz=truth.xyz.double() + noise[:, :3] + torch.tensor([0.0, 3.0, 0.0]),
        photons=truth.photons + noise[:, 3],
        xyz_sigma=sigma[:, :3] / wrong_by,
        photons_sigma=sigma[:, 3] / wrong_by,
    )


def test_errors_of_honest_sigmas_cover_what_they_state_and_biases_show(
    rng: torch.Generator,
) -> None:
    truth = replace(scatter(rng, 5000), frame=torch.arange(5000))
    result = calibration(truth, stated(truth, rng), field_nm=FIELD_NM)
    every = result.every
    assert every == result.isolated, "one a frame"
    assert result.crowded is None
    assert result.reliability is None
    for e in (every.x, every.z, every.photons):
        assert e is not None
        assert e.coverage_68 == pytest.approx(0.6827, abs=0.025)
        assert e.coverage_95 == pytest.approx(0.95, abs=0.012)
        assert e.over_sigma_rms == pytest.approx(1, abs=0.04)
        assert e.over_sigma_robust == pytest.approx(1, abs=0.06)
        assert abs(e.bias) < 4 * e.bias_error
        assert e.bias_error == pytest.approx(16.1 / math.sqrt(e.n), rel=0.05)
    assert every.y is not None
    assert abs(every.y.bias - 3) < 4 * every.y.bias_error


def test_sigmas_too_small_by_two_cover_what_the_normal_distribution_says(
    rng: torch.Generator,
) -> None:
    truth = replace(scatter(rng, 5000), frame=torch.arange(5000))
    x = calibration(truth, stated(truth, rng, wrong_by=2), field_nm=FIELD_NM, two_d=True).every.x
    assert x is not None
    assert x.over_sigma_rms == pytest.approx(2, abs=0.08)
    assert x.over_sigma_robust == pytest.approx(2, abs=0.12)
    assert x.coverage_68 == pytest.approx(math.erf(0.5 / math.sqrt(2)), abs=0.025)
    assert x.coverage_95 == pytest.approx(math.erf(1.96 / 2 / math.sqrt(2)), abs=0.025)


def test_isolated_and_crowded_molecules_are_all_of_them(rng: torch.Generator) -> None:
    truth = scatter(rng, 3000, n_frames=1000)
    result = calibration(truth, stated(truth, rng), field_nm=FIELD_NM, two_d=True)
    assert result.isolated is not None
    assert result.crowded is not None
    assert result.every.z is None
    assert result.every.x is not None
    assert result.isolated.x is not None
    assert result.crowded.x is not None
    assert result.isolated.x.n + result.crowded.x.n == result.every.x.n
    # the others of a frame are Poisson: none in a circle of 1 um, at 3 in the field
    alone = math.exp(-3 * math.pi * 1e6 / math.prod(FIELD_NM))
    assert result.isolated.x.n / result.every.x.n == pytest.approx(alone, abs=0.03)


def test_probabilities_that_come_true_are_reliable(rng: torch.Generator) -> None:
    p = torch.rand(20000, generator=rng)
    true = torch.rand(20000, generator=rng) < p
    honest, sure = reliability(p, true), reliability(torch.ones(20000), true)
    assert honest is not None
    assert sure is not None
    assert honest.expected_error < 0.015
    assert [n for n, _, _ in honest.bins] == pytest.approx([2000] * 10, rel=0.1)
    assert sure.expected_error == pytest.approx(0.5, abs=0.02)
    assert sure.bins == ((20000, 1.0, pytest.approx(0.5, abs=0.02)),)
    assert reliability(p[:0], true[:0]) is None


def test_a_probability_is_judged_by_whether_its_localization_has_a_partner(
    rng: torch.Generator,
) -> None:
    truth = replace(scatter(rng, 4000), frame=torch.arange(4000))
    p = torch.full((4000,), 0.75)
    there = torch.rand(4000, generator=rng) < p
    found = replace(stated(truth, rng), probability=p)
    result = calibration(truth[there], found, field_nm=FIELD_NM)
    assert result.reliability is not None
    assert result.reliability.expected_error < 0.03
    printed = "\n".join(result.lines())
    assert "probabilities: expected calibration error 0.0" in printed
    assert "isolated x" in printed
    assert "crowded" not in printed
