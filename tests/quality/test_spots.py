"""Isolated spots: of one molecule, or of several that a model makes of one image."""

from __future__ import annotations

import numpy as np

from decode.quality.spots import Spots


def spots(*rows: tuple[int, float, float], apart: float = 6.0) -> Spots:
    frame, x, y = np.array(rows, float).T
    return Spots.of(frame.astype(np.int64), np.stack([x, y], 1), np.ones(len(rows)), apart)


def test_molecules_are_one_spot_up_to_half_the_distance_and_crowd_up_to_all_of_it() -> None:
    alone = spots((0, 10.0, 10.0), (1, 12.0, 10.0))
    assert alone.alone.tolist() == [True, True]
    both = spots((0, 10.0, 10.0), (0, 12.0, 10.0))
    assert both.alone.tolist() == [False]
    assert both.place.tolist() == [[11.0, 10.0]]
    assert both.spot.tolist() == [0, 0]
    assert not len(spots((0, 10.0, 10.0), (0, 15.0, 10.0)).frame)
    assert len(spots((0, 10.0, 10.0), (0, 17.0, 10.0)).frame) == 2


def test_a_chain_of_many_molecules_is_no_spot() -> None:
    chain = [(0, 10.0 + 2 * i, 10.0) for i in range(5)]
    found = spots(*chain, (0, 40.0, 40.0))
    assert found.alone.tolist() == [True]
    assert found.spot.tolist() == [-1] * 5 + [0]


def test_chosen_spots_know_their_molecules() -> None:
    found = spots((0, 10.0, 10.0), (0, 30.0, 30.0), (0, 31.0, 30.0), (1, 5.0, 5.0))
    order = np.argsort(found.place[:, 0])[::-1]
    chosen = found[order[:2]]
    assert chosen.alone.tolist() == [False, True]
    assert chosen.spot.tolist() == [1, 0, 0, -1]
