"""A change over the movie is what its molecules have in common, beyond chance."""

from __future__ import annotations

import torch

from decode.quality.trend import trend

N, FRAMES = 240, 80


def scene(seed: int, *, on: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values, frames and places of molecules on a line, each on for some frames."""
    rng = torch.Generator().manual_seed(seed)
    n = N // on
    first = torch.randint(FRAMES - on, (n,), generator=rng)
    frame = (first[:, None] + torch.arange(on)).flatten()
    along = 60 * torch.rand(n, 1, generator=rng)
    place = torch.cat([along, torch.full_like(along, 30.0)], 1).repeat_interleave(on, 0)
    values = (200 * torch.randn(n, generator=rng)).repeat_interleave(on)
    return values, frame, place


def found(values: torch.Tensor, frame: torch.Tensor, place: torch.Tensor) -> float:
    return trend(values, torch.zeros_like(values), frame, place)


def test_a_drift_is_found_also_along_one_filament() -> None:
    values, frame, place = scene(1)
    drift = found(values + 400 * frame / FRAMES, frame, place)
    assert 300 < drift < 500


def test_chance_is_no_drift_nor_is_a_molecule_that_stays_on() -> None:
    for on in (1, 4, 12):
        assert [found(*scene(seed, on=on)) for seed in range(60)].count(0.0) >= 59


def test_few_molecules_tell_nothing() -> None:
    values, frame, place = scene(1)
    assert found(values[:8], frame[:8], place[:8]) != found(values[:8], frame[:8], place[:8])
    assert found(values[:0], frame[:0], place[:0]) != 0
