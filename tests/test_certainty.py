"""Fits among neighbours state wider intervals, by which their errors are covered."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from decode.likelihood.certainty import DOUBTS, NORMAL_95, Certainty


def doubts(**values: float) -> Tensor:
    """One row, of a molecule that is alone and explained by its fit, but for some doubts."""
    row = dict.fromkeys(DOUBTS, 0.0) | {"constant": 1.0} | values
    return torch.tensor([list(row.values())], dtype=torch.float64)


def certainty_of(rows: Tensor, *tracks: int) -> Certainty:
    return Certainty.of(rows, torch.tensor(tracks or range(len(rows))))


def test_a_lone_bright_molecule_keeps_about_what_its_fit_states() -> None:
    lone = certainty_of(doubts(signal=1.0))
    assert float(lone.light) == pytest.approx(1.0, abs=0.06)
    assert bool((lone.half_68 > 0.9).all())
    assert bool((lone.half_68 < 2.2).all())
    assert bool((lone.half_95 > lone.half_68).all())


def test_crowds_and_what_a_fit_leaves_widen_the_intervals() -> None:
    lone = certainty_of(doubts())
    for doubt in ({"crowd": 0.8}, {"deviance": 0.5}):
        doubtful = certainty_of(doubts(**doubt))
        assert bool((doubtful.half_68[:, :3] > lone.half_68[:, :3]).all())
        assert bool((doubtful.half_95[:, :3] > lone.half_95[:, :3]).all())


def test_rows_of_one_track_share_what_is_said_of_their_position() -> None:
    rows = torch.cat([doubts(crowd=0.1), doubts(crowd=1.0), doubts(crowd=1.0)])
    stated = certainty_of(rows, 0, 0, 1)
    assert torch.equal(stated.half_68[0, :3], stated.half_68[1, :3])
    assert torch.equal(stated.half_95[0, :3], stated.half_95[1, :3])
    assert float(stated.half_68[1, 0]) < float(stated.half_68[2, 0])
    assert float(stated.half_68[0, 3]) < float(stated.half_68[1, 3])


def test_factors_stay_within_bounds() -> None:
    wild = certainty_of(doubts(crowd=50.0, deviance=9.0), 0)
    assert float(wild.half_68.max()) == pytest.approx(8.0)
    assert float(wild.half_95.max()) == pytest.approx(8.0 * NORMAL_95)
