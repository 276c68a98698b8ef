"""Limits of the checks: fitted to movies that fit, and kept with the model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from decode.network.record import ModelRecord
from decode.quality.checks import checks_of
from decode.quality.evidence import Evidence
from decode.quality.limits import LIMITS, Limits

USUAL = LIMITS["gaussian"]


def movies(n: int = 40, **statistics: float) -> list[Evidence]:
    """Each statistic rises evenly from the ideal to its value."""
    ideal = {"noise": 1.0, "width": 1.0, "goodness": 1.0}

    def of(i: int) -> dict[str, float]:
        share = i / (n - 1)
        starts = {name: ideal.get(name, 0.0) for name in statistics}
        return {name: s + share * (statistics[name] - s) for name, s in starts.items()}

    return [Evidence(kind="gaussian", **of(i)) for i in range(n)]


def test_a_limit_is_three_deviations_from_the_median_of_movies_that_fit() -> None:
    limits = Limits.fitted(movies(misfit=0.09, noise=0.91))
    assert limits.misfit == pytest.approx(0.045 + 3 * 0.34 * 0.09, abs=1e-3)
    assert limits.noise[0] == pytest.approx(1 - 0.045 - 3 * 0.34 * 0.09, abs=2e-3)
    assert limits.noise[1] == USUAL.noise[1]
    odd = [*movies(misfit=0.09), Evidence(kind="gaussian", misfit=0.9)]
    assert Limits.fitted(odd).misfit == pytest.approx(limits.misfit, abs=0.004)


def test_few_movies_and_far_ones_hardly_move_a_limit() -> None:
    assert Limits.fitted(movies(misfit=0.9)).misfit == pytest.approx(1.25 * USUAL.misfit)
    assert Limits.fitted(movies(misfit=1e-4)).misfit == USUAL.misfit
    assert Limits.fitted(movies(19, misfit=0.9)).misfit == USUAL.misfit
    assert Limits.fitted(movies(drift=0.0)).drift == USUAL.drift
    assert Limits.fitted(movies(density=0.9)).density == USUAL.density
    with pytest.raises(ValueError, match="none"):
        Limits.fitted([])


def test_checks_go_by_the_limits_of_the_record_where_they_are_of_that_kind_of_psf() -> None:
    own = replace(USUAL, misfit=0.1)
    record = ModelRecord(limits=own.to_json("gaussian", 40))
    record = ModelRecord.from_json(record.to_json())
    assert Limits.of(record, "gaussian") == own
    assert Limits.of(record, "measured") == LIMITS["measured"]
    assert Limits.of(ModelRecord(), "gaussian") == USUAL
    evidence = Evidence(kind="gaussian", misfit=0.11)
    assert checks_of(evidence, limits=Limits.of(record, "gaussian"))[0].failed
    assert not checks_of(evidence)[0].failed
    with pytest.raises(ValueError, match="decode calibrate checks"):
        Limits.of(ModelRecord(limits={"kind": "gaussian", "misfit": 0.1}), "gaussian")
