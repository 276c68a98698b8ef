"""The table of molecules: what its rows carry stays with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from decode.emitters import EmitterSet, Facts


@pytest.fixture
def table() -> EmitterSet:
    frame = torch.tensor([4, 1, 3, 1])
    others = {"group": frame.numpy() * 10, "cell": np.array(list("dacb"), dtype=object)}
    return EmitterSet(frame=frame, xyz=torch.zeros(4, 3), photons=frame.double(), others=others)


@pytest.mark.parametrize(
    "rows",
    [slice(1, 3), torch.tensor([3, 0, 0]), torch.tensor([True, False, True, True])],
    ids=["slice", "index", "mask"],
)
def test_other_columns_follow_their_rows(table: EmitterSet, rows: slice | torch.Tensor) -> None:
    chosen = table[rows]
    assert chosen.others["group"].tolist() == (chosen.frame * 10).tolist()
    assert len(chosen.others["cell"]) == len(chosen)


def test_other_columns_are_sorted_and_joined_with_the_rest(table: EmitterSet) -> None:
    twice = EmitterSet.cat([table.sorted_by_frame(), EmitterSet.empty(), table])
    assert twice.others["cell"].tolist() == list("abcddacb")
    assert twice.others["group"].tolist() == (twice.frame * 10).tolist()
    fewer = EmitterSet.cat([table, replace(table, others={"group": table.others["group"]})])
    assert fewer.others.keys() == {"group"}


def test_another_column_has_a_value_for_each_row(table: EmitterSet) -> None:
    with pytest.raises(ValueError, match=r"others\['group'\] has shape \(3,\), expected \(4,\)"):
        replace(table, others={"group": np.arange(3)})


def test_facts_are_the_same_after_a_turn_through_metadata() -> None:
    facts = Facts(
        pixel_size_nm=100.0, n_frames=9, height_px=32, width_px=64, movie="a.tif", version="1"
    )
    assert Facts.of(facts.metadata()) == facts
    assert facts.field_nm == (6400.0, 3200.0)


def test_what_cannot_be_read_as_a_number_is_not_stated() -> None:
    facts = Facts.of({"pixel_size_nm": "100", "width_px": "unknown", "height_px": 32, "stage": "a"})
    assert facts == Facts(pixel_size_nm=100.0, height_px=32)
    assert facts.field_nm is None
