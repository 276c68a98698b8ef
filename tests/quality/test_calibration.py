"""Calibration by simulations finds what is wrong with a posterior, and nothing wrong with a right
one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from decode.emitters import EmitterSet
from decode.network.posterior import SetPosterior
from decode.network.record import ModelRecord
from decode.quality.calibration import (
    BINS,
    CREDIBILITIES,
    LEVELS,
    CalibrationRecord,
    Measured,
    sbc_ranks,
    tarp,
)

N, K = 6000, 63


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def normal(*shape: int, rng: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def largest_bin(ranks: Tensor) -> float:
    """Largest deviation of a bin from its number for uniform ranks, in standard deviations."""
    expected = len(ranks) / BINS
    counts = torch.histc(ranks, BINS, 0, 1)
    return float((counts - expected).abs().max() / math.sqrt(expected * (1 - 1 / BINS)))


@pytest.mark.parametrize(("noise", "width"), [(0.3, 1.0), (2.0, 1.0), (0.7, 1.5), (0.7, 0.6)])
def test_ranks_are_uniform_for_the_exact_posterior_of_a_gaussian_alone(
    rng: torch.Generator, noise: float, width: float
) -> None:
    theta = normal(N, rng=rng)
    x = theta + noise * normal(N, rng=rng)
    sd = noise / math.sqrt(1 + noise**2)
    draws = x / (1 + noise**2) + width * sd * normal(K, N, rng=rng)
    ranks = sbc_ranks(draws, theta, rng)
    if width == 1:
        assert largest_bin(ranks) < 4
    else:
        assert largest_bin(ranks) > 10
    # a central interval of draws that are `width` times too wide holds this share
    for level in LEVELS:
        half = width * torch.special.ndtri(torch.tensor(0.5 + level / 2, dtype=torch.float64))
        expected = math.erf(float(half) / math.sqrt(2))
        held = float(((2 * ranks - 1).abs() < level).double().mean())
        assert held == pytest.approx(expected, abs=0.025)


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_tarp_sees_a_wrong_correlation_that_ranks_do_not(
    rng: torch.Generator, correlation: float
) -> None:
    def pairs(*shape: int) -> Tensor:
        a, b = normal(*shape, rng=rng), normal(*shape, rng=rng)
        return torch.stack([a, 0.9 * a + math.sqrt(1 - 0.81) * b], -1)

    truth, draws = pairs(N), pairs(K, N)
    if correlation == 0:
        draws = normal(K, N, 2, rng=rng)
    assert largest_bin(sbc_ranks(draws[..., 0], truth[:, 0], rng)) < 4
    assert largest_bin(sbc_ranks(draws[..., 1], truth[:, 1], rng)) < 4
    joint = tarp(draws, truth, normal(N, 2, rng=rng), rng)
    apart = [abs(float((joint < c).double().mean()) - c) for c in CREDIBILITIES]
    assert (max(apart) < 0.02) == (correlation == 0.9)


def measured(*, sharper: float = 1.0) -> Measured:
    """Lone molecules whose truth is drawn from their posterior, which states sigmas `sharper`."""
    rng = torch.Generator().manual_seed(3)
    n, side = 800, 9
    logit = torch.full((n, side, side), -12.0)
    logit[:, 4, 4] = torch.logit(0.6 + 0.4 * torch.rand(n, generator=rng))
    light = torch.full((n, side, side), 1000.0)

    def posterior(factor: float) -> SetPosterior:
        return SetPosterior(
            logit=logit,
            offset_px=torch.zeros(n, 2, side, side),
            offset_sigma_px=torch.full((n, 2, side, side), 0.1 / factor),
            photons=light,
            photons_sigma=light / 10 / factor,
            background=light / 100,
            pixel_size_nm=100.0,
        )

    truth = posterior(1.0).molecules().sample(rng)
    return Measured.of(
        posterior(sharper).molecules(), truth, pixel_size_nm=100.0, border_nm=0.0, two_d=True
    )


def test_a_right_posterior_has_a_good_record() -> None:
    record = CalibrationRecord.of([measured()], two_d=True)
    every = record.groups[0]
    assert record.expected_error < 0.04
    assert record.counted == pytest.approx(1, abs=0.04)
    assert every.tarp < 0.06
    assert abs(every.photons_bias) < 0.01
    for quantity in ("x", "y", "photons"):
        assert every.table[quantity] == pytest.approx((0.68, 0.95), abs=0.05)
        assert every.covered[quantity] == pytest.approx(LEVELS, abs=0.06)
        assert sum(every.ranks[quantity]) == every.n
    assert "z" not in every.table


def test_sigmas_that_are_too_small_show(tmp_path: Path) -> None:
    record = CalibrationRecord.of([measured(sharper=2.0)], two_d=True)
    every = record.groups[0]
    assert every.table["x"][0] == pytest.approx(math.erf(0.5 / math.sqrt(2)), abs=0.06)
    assert every.tarp > 0.1
    (first, *_) = record.lines()
    assert "probability off by" in first
    picture = tmp_path / "calibration.png"
    record.picture(picture)
    assert Image.open(picture).size[0] > 800


def test_a_record_is_kept_with_a_model() -> None:
    record = CalibrationRecord.of([measured()], two_d=True)
    kept = ModelRecord(steps=3, calibration=record.to_json())
    again = ModelRecord.from_json(json.loads(json.dumps(kept.to_json())))
    assert CalibrationRecord.of_model(again).to_json() == record.to_json()
    with pytest.raises(ValueError, match="calibrate model"):
        CalibrationRecord.of_model(ModelRecord())
    with pytest.raises(ValueError, match="another version"):
        CalibrationRecord.of_model(ModelRecord(calibration={"groups": []}))


def test_nothing_is_measured_where_nothing_is() -> None:
    empty = EmitterSet.empty()
    light = torch.ones(2, 5, 5)
    nothing = SetPosterior(
        logit=torch.full((2, 5, 5), -15.0),
        offset_px=torch.zeros(2, 2, 5, 5),
        offset_sigma_px=torch.ones(2, 2, 5, 5),
        photons=light,
        photons_sigma=light,
        background=light,
        pixel_size_nm=100.0,
    )
    part = Measured.of(nothing.molecules(), empty, pixel_size_nm=100.0, border_nm=0.0, two_d=True)
    assert len(part.true) == 0
    assert part.counts.shape == (2, 3)
