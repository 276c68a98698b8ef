"""The audit of stated uncertainties: honest ones pass, misstated ones are told by how much."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from decode.emitters import EmitterSet
from decode.errors import Undetermined
from decode.quality.audit import audit_of


def localized(
    *,
    stated: tuple[float, float, float] = (1.0, 1.0, 1.0),
    filaments: bool = False,
    on_frames: float = 2.0,
    n: int = 4000,
) -> tuple[EmitterSet, torch.Tensor]:
    """Rows with errors of known sigma, of which so many times as much is stated, and the molecule
    of each."""
    rng = np.random.default_rng(3)
    place = rng.uniform(0, 12_000, (n, 3))
    place[:, 2] = rng.uniform(-400, 400, n)
    if filaments:  # five dense lines
        place[:, 1] = 2000.0 * rng.integers(1, 6, n) + rng.normal(0, 5, n)
    on = np.ones(n, int) if on_frames == 1 else rng.geometric(1 / on_frames, n)
    row = np.repeat(np.arange(n), on)
    frame = np.repeat(rng.integers(0, 200, n), on) + np.concatenate([np.arange(k) for k in on])
    sigma = rng.lognormal(np.log(10), 0.4, len(row))[:, None] * [1, 1, 2.5]
    seen = place[row] + sigma * rng.normal(size=sigma.shape)
    molecules = EmitterSet(
        frame=torch.from_numpy(frame),
        xyz=torch.from_numpy(seen),
        photons=torch.from_numpy(1e4 / sigma[:, 0]),
        xyz_sigma=torch.from_numpy(sigma * stated),
    )
    return molecules, torch.from_numpy(row)


@pytest.mark.parametrize("filaments", [False, True])
@pytest.mark.parametrize("stated", [(1.0, 1.0, 1.0), (1 / 1.5, 1 / 1.5, 1 / 1.5), (1.0, 1.0, 1.5)])
def test_the_ratio_is_that_of_the_errors(
    stated: tuple[float, float, float], filaments: bool
) -> None:
    molecules, _ = localized(stated=stated, filaments=filaments)
    found = audit_of(molecules)
    for ratio, error, factor in zip(found.ratio, found.error, stated, strict=True):
        assert error < 0.03
        assert abs(ratio * factor - 1) < 4 * error * factor + 0.02
    assert len(found.by_photons) == 3
    assert found.by_photons[0].photons < found.by_photons[2].photons
    for part in found.by_photons:
        for ratio, error, factor in zip(part.ratio, part.error, stated, strict=True):
            assert abs(ratio * factor - 1) < 4 * error * factor + 0.03
    assert found.too_small == tuple(a for a, f in zip("xyz", stated, strict=True) if f < 1)
    assert found.too_large == tuple(a for a, f in zip("xyz", stated, strict=True) if f > 1)


def test_single_blinks_on_filaments_are_not_taken_for_repeats() -> None:
    molecules, _ = localized(filaments=True, on_frames=1)
    with pytest.raises(Undetermined, match="too few molecules"):
        audit_of(molecules)


def test_a_network_is_compared_where_its_frames_have_nothing_in_common() -> None:
    """Errors of neighbouring frames that are alike do not make an uncertainty look too large."""
    molecules, row = localized(on_frames=5.0)
    assert molecules.xyz_sigma is not None
    rng = np.random.default_rng(0)
    n, frames = int(row.max()) + 1, int(molecules.frame.max()) + 3
    noise = torch.from_numpy(rng.normal(size=(n, frames, 3)))
    frame = molecules.frame
    alike = (noise[row, frame] + noise[row, frame + 1] + noise[row, frame + 2]) / math.sqrt(3)
    place = torch.from_numpy(rng.uniform(0, 12_000, (n, 3)))[row]
    seen = replace(molecules, xyz=place + molecules.xyz_sigma * alike)
    assert audit_of(seen).ratio[0] < 0.7
    seen = replace(seen, metadata={"model": "network"})
    assert abs(audit_of(seen).ratio[0] - 1) < 0.05


@pytest.mark.parametrize("stated", [1.0, 1 / 1.5])
def test_polished_molecules_are_compared_before_and_after_dark_frames(stated: float) -> None:
    """Rows of a track have one position; the error of one track is not that of the other."""
    molecules, row = localized(on_frames=6.0)
    dark = torch.from_numpy(np.random.default_rng(1).random(len(row)) < 0.2)
    first = torch.ones(len(row), dtype=torch.bool)
    first[1:] = (row[1:] != row[:-1]) | dark[:-1]
    track = torch.cumsum(first, 0) - 1
    start = torch.nonzero(first)[:, 0]
    assert molecules.xyz_sigma is not None
    polished = replace(
        molecules,
        xyz=molecules.xyz[start][track],
        xyz_sigma=stated * molecules.xyz_sigma[start][track],
        polished=torch.ones(len(row), dtype=torch.bool),
    )[~dark]
    found = audit_of(polished)
    assert "dark" in found.pairs
    assert abs(found.ratio[0] * stated - 1) < 0.08
    never = replace(molecules, polished=torch.ones(len(row), dtype=torch.bool))
    with pytest.raises(Undetermined, match="dark"):
        audit_of(never)


def test_what_a_table_does_not_tell_is_said() -> None:
    molecules, _ = localized(n=100)
    with pytest.raises(Undetermined, match="no uncertainties"):
        audit_of(replace(molecules, xyz_sigma=None))
    flat = torch.full((len(molecules), 3), torch.nan)
    with pytest.raises(Undetermined, match="too few"):
        audit_of(replace(molecules, xyz_sigma=flat))
