"""Intervals hold what can be, and no more."""

from __future__ import annotations

import math

import numpy as np
import pytest

from decode.estimation.fit import bounded_interval


@pytest.mark.parametrize("value", [-30.0, -3.0, 0.0, 0.5, 5.0])
def test_an_interval_ends_where_the_number_must(value: float) -> None:
    """By a float64 sum over what the Gaussian leaves above 0."""
    middle, low, high = bounded_interval(value, 1.0, (0.0, math.inf))
    assert low <= middle < high
    assert low >= 0
    x = np.linspace(0, 15, 300_001)
    density = np.exp(-((x - value) ** 2) / 2 + min(value, 0.0) ** 2 / 2)
    assert density[(x >= low) & (x <= high)].sum() / density.sum() >= 0.949
    mirrored = bounded_interval(-value, 1.0, (-math.inf, 0.0))
    np.testing.assert_allclose(mirrored, (-middle, -high, -low))
