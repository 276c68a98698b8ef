"""Repeated localizations against stated uncertainties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from decode.emitters import EmitterSet
from decode.repeats import repeats


def _movie(
    factors: tuple[float, float, float], *, n: int = 3000, density: float = 1.0
) -> EmitterSet:
    """Molecules that are on for some frames, localized with errors of so many stated sigmas."""
    rng = np.random.default_rng(0)
    side = math.sqrt(n / 60 / density) * 1000
    place = rng.uniform(0, side, (n, 3))
    place[:, 2] = rng.uniform(-400, 400, n)
    on = rng.geometric(0.5, n)
    row = np.repeat(np.arange(n), on)
    frame = np.repeat(rng.integers(0, 120, n), on) + np.concatenate([np.arange(k) for k in on])
    sigma = rng.lognormal(np.log(12), 0.4, len(row))[:, None] * [1, 1, 2.5]
    seen = place[row] + sigma * factors * rng.normal(size=sigma.shape)
    return EmitterSet(
        frame=torch.from_numpy(frame),
        xyz=torch.from_numpy(seen).float(),
        photons=torch.from_numpy(1e4 / sigma[:, 0]).float(),
        xyz_sigma=torch.from_numpy(sigma).float(),
    )


@pytest.mark.parametrize("factors", [(1.0, 1.0, 1.0), (1.5, 1.4, 2.0), (0.6, 0.8, 1.0)])
def test_the_ratio_is_that_of_the_errors(factors: tuple[float, float, float]) -> None:
    found = repeats(_movie(factors))
    for ratio, error, factor in zip(found.ratio, found.error, factors, strict=True):
        assert abs(ratio - factor) < 4 * error + 0.02
    assert len(found.by_photons) == 3
    assert found.by_photons[0].photons < found.by_photons[2].photons


def test_shared_positions_tell_nothing() -> None:
    movie = _movie((1.0, 1.0, 1.0))
    held = EmitterSet(
        frame=torch.arange(len(movie)) % 2,
        xyz=movie.xyz[:1].repeat(len(movie), 1),
        photons=movie.photons,
        xyz_sigma=movie.xyz_sigma,
    )
    assert math.isnan(repeats(held).ratio[0])


def test_no_depth_no_ratio() -> None:
    movie = _movie((1.0, 1.0, 1.0))
    assert movie.xyz_sigma is not None
    flat = EmitterSet(
        frame=movie.frame,
        xyz=movie.xyz * torch.tensor([1.0, 1.0, 0.0]),
        photons=movie.photons,
        xyz_sigma=torch.cat([movie.xyz_sigma[:, :2], torch.full((len(movie), 1), math.nan)], 1),
    )
    x, _, z = repeats(flat).ratio
    assert abs(x - 1) < 0.1
    assert math.isnan(z)


def test_too_few() -> None:
    assert math.isnan(repeats(EmitterSet.empty()).ratio[0])
