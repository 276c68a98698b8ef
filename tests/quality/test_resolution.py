"""Resolution of simulated filaments, by halves of a movie and by one picture."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import lambertw

from decode.emitters import EmitterSet
from decode.errors import Undetermined
from decode.quality.decorrelation import decorrelation_analysis
from decode.quality.resolution import (
    Resolution,
    fourier_ring_correlation,
    fourier_shell_correlation,
)
from decode.quality.spectrum import blocks_of

SIDE_NM, FRAMES = 5000.0, 1000


def expected(per_nm: float, sigma: float) -> float:
    """Of straight lines: R = 2 pi sigma sqrt(2 / W(72 d^2 sigma^2)), see
    `benchmarks/resolution.py`."""
    return 2 * math.pi * sigma * math.sqrt(2 / lambertw(72 * (per_nm * sigma) ** 2).real)


def filaments(
    *,
    per_nm: float = 0.2,
    sigma: tuple[float, float, float] = (10.0, 10.0, 0.0),
    on_time: float = 1.0,
    lines: int = 14,
    seed: int = 0,
) -> EmitterSet:
    """Localizations along straight lines through a field, in 3D where z has a sigma."""
    rng = np.random.default_rng(seed)
    deep = sigma[2] > 0
    start = rng.uniform(0, SIDE_NM, (lines, 3)) - [0, 0, SIDE_NM / 2]
    way = rng.normal(size=(lines, 3)) * [1, 1, 1 if deep else 0]
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    if deep:
        start[:, 2] = rng.uniform(-400, 400, lines)
    else:
        start[:, 2] = 0
    number = rng.poisson(per_nm / on_time * 2 * SIDE_NM, lines)
    which = np.repeat(np.arange(lines), number)
    place = start[which] + rng.uniform(-SIDE_NM, SIDE_NM, (len(which), 1)) * way[which]
    inside = ((place[:, :2] > 0) & (place[:, :2] < SIDE_NM)).all(1) & (np.abs(place[:, 2]) < 500)
    place = place[inside]
    lasts = rng.geometric(1 / on_time, len(place))
    first = rng.integers(0, FRAMES, len(place))
    molecule = np.repeat(np.arange(len(place)), lasts)
    frame = first[molecule] + np.arange(len(molecule)) - np.repeat(np.cumsum(lasts) - lasts, lasts)
    frame = np.minimum(frame, FRAMES - 1)
    seen = place[molecule] + rng.normal(size=(len(molecule), 3)) * sigma
    return EmitterSet(
        frame=torch.from_numpy(frame),
        xyz=torch.from_numpy(seen),
        photons=torch.full((len(frame),), 1000.0),
        xyz_sigma=torch.tensor([sigma]).repeat(len(frame), 1),
        metadata={"n_frames": FRAMES},
    )


def value(found: Resolution) -> float:
    assert found.value_nm is not None
    return found.value_nm


@pytest.mark.parametrize("per_nm", [0.05, 0.5])
def test_the_resolution_of_filaments_is_the_analytic_one(per_nm: float) -> None:
    found = fourier_ring_correlation(filaments(per_nm=per_nm))
    truth = expected(per_nm, 10.0)
    assert value(found) == pytest.approx(truth, rel=0.1)
    assert found.error_nm is not None
    assert abs(value(found) - truth) < 3 * found.error_nm
    assert found.error_nm < 0.1 * truth


def test_blinks_that_last_are_no_structure() -> None:
    """A split of single localizations takes them for structure; blocks of frames do not."""
    seen = filaments(per_nm=0.1, on_time=4.0)
    rng = np.random.default_rng(1)
    mixed = EmitterSet(
        frame=torch.from_numpy(rng.permutation(seen.frame.numpy())),
        xyz=seen.xyz,
        photons=seen.photons,
        xyz_sigma=seen.xyz_sigma,
        metadata=seen.metadata,
    )
    by_blocks = value(fourier_ring_correlation(seen))
    assert by_blocks > expected(0.1, 10.0)
    assert value(fourier_ring_correlation(mixed)) < 0.85 * by_blocks


def test_the_resolution_does_not_depend_on_the_order_of_rows_or_the_place_of_the_field() -> None:
    seen = filaments(per_nm=0.1)
    order = torch.from_numpy(np.random.default_rng(2).permutation(len(seen)))
    moved = EmitterSet(
        frame=seen.frame,
        xyz=seen.xyz + torch.tensor([12_345.0, -700.0, 0.0]),
        photons=seen.photons,
        xyz_sigma=seen.xyz_sigma,
        metadata=seen.metadata,
    )[order]
    assert value(fourier_ring_correlation(moved)) == pytest.approx(
        value(fourier_ring_correlation(seen)), rel=1e-6
    )


def test_molecules_without_structure_do_not_cross_and_it_is_said() -> None:
    rng = np.random.default_rng(3)
    n = 3000
    spread = EmitterSet(
        frame=torch.from_numpy(rng.integers(0, FRAMES, n)),
        xyz=torch.from_numpy(rng.uniform(0, SIDE_NM, (n, 3))),
        photons=torch.ones(n),
    )
    found = fourier_ring_correlation(spread)
    assert found.value_nm is None or found.value_nm > 500
    if found.value_nm is None:
        assert "does not cross" in found.sentence


@pytest.mark.parametrize(("rows", "frames", "words"), [(50, 500, "too few"), (900, 20, "frames")])
def test_too_little_is_refused(rows: int, frames: int, words: str) -> None:
    few = EmitterSet(
        frame=torch.arange(rows) % frames,
        xyz=torch.rand(rows, 3) * 1000,
        photons=torch.ones(rows),
    )
    with pytest.raises(Undetermined, match=words):
        fourier_ring_correlation(few)


def test_blocks_hold_equally_many_localizations_and_no_frame_is_cut() -> None:
    frame = np.sort(np.random.default_rng(4).geometric(0.01, 5000))
    block = blocks_of(frame, 10)
    assert np.bincount(block).min() > 350
    assert (np.diff(block) >= 0).all()
    assert all(len(np.unique(block[frame == f])) == 1 for f in np.unique(frame))


def test_in_3d_the_axis_with_the_larger_error_is_resolved_worse() -> None:
    lateral, axial = fourier_shell_correlation(
        filaments(per_nm=0.3, sigma=(10.0, 10.0, 30.0), lines=60)
    )
    assert 1.5 < value(axial) / value(lateral) < 5
    assert 25 < value(lateral) < 90
    with pytest.raises(Undetermined, match="no z"):
        fourier_shell_correlation(filaments())


def test_a_sharper_picture_decorrelates_at_a_finer_scale() -> None:
    sharp, blurred = (
        value(decorrelation_analysis(filaments(per_nm=0.5, sigma=(s, s, 0.0))))
        for s in (10.0, 20.0)
    )
    assert blurred / sharp == pytest.approx(2, rel=0.2)


def test_molecules_that_come_back_are_taken_out_where_it_is_asked() -> None:
    """Each seen five times, far apart in time: without correction they are structure."""
    rng = np.random.default_rng(5)
    labels = filaments(per_nm=0.02, sigma=(0.0, 0.0, 0.0))
    place = labels.xyz.repeat(5, 1).numpy()
    seen = EmitterSet(
        frame=torch.from_numpy(rng.integers(0, FRAMES, len(place))),
        xyz=torch.from_numpy(place + rng.normal(size=place.shape) * [10.0, 10.0, 0.0]),
        photons=torch.ones(len(place)),
        xyz_sigma=torch.full((len(place), 3), 10.0),
        metadata={"n_frames": FRAMES},
    )
    plain = fourier_ring_correlation(seen)
    corrected = fourier_ring_correlation(seen, correct_repeats=True)
    assert plain.repeats == pytest.approx(4, rel=0.15)
    assert value(plain) < 0.85 * expected(0.1, 10.0)
    assert value(corrected) == pytest.approx(expected(0.1, 10.0), rel=0.15)
    once = fourier_ring_correlation(filaments(per_nm=0.1))
    assert once.repeats < 0.3
