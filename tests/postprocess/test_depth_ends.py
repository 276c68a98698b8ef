"""Molecules at the ends of the depths that are known."""

from __future__ import annotations

import torch

from decode.emitters import EmitterSet
from decode.postprocess.depth_ends import DepthEnds


def test_molecules_at_an_end_of_depth_are_counted_and_said() -> None:
    def at(*z: float) -> EmitterSet:
        xyz = torch.tensor([[100.0, 100.0, depth] for depth in z]).reshape(-1, 3)
        return EmitterSet(
            frame=torch.zeros(len(z), dtype=torch.int64),
            xyz=xyz,
            photons=torch.full((len(z),), 900.0),
        )

    ends = DepthEnds()
    for chunk in (at(-310.0, 12.0, 300.0), at(), at(480.0, -20.0, 480.0), at(480.0, 100.0)):
        ends.see(chunk)
    (remark,) = ends.remarks
    assert remark.startswith("3 of 8 molecules lie at z = 480 nm")
    flat = DepthEnds()
    flat.see(at(0.0, 0.0, 0.0))
    assert not flat.remarks
