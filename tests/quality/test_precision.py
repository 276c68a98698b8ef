"""Precision, displacement and the distributions of simulated tables."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from decode.emitters import EmitterSet
from decode.errors import Undetermined
from decode.quality.displacement import displacement_of
from decode.quality.distributions import (
    course_of,
    density_of,
    distribution_of,
    locking_of,
    neighbours_of,
    on_times,
)
from decode.quality.precision import precision_of
from decode.quality.profile import profile_of
from decode.quality.spectrum import Localizations

SIDE_NM = 5000.0


def blinking(*, excess: float = 1.0, per_nm: float = 0.1, seed: int = 0) -> EmitterSet:
    """Molecules on lines, on for two frames or so, with errors that fall as the root of their
    photons."""
    rng = np.random.default_rng(seed)
    lines, frames = 10, 1000
    start, angle = rng.uniform(0, SIDE_NM, (lines, 2)), rng.uniform(0, np.pi, lines)
    number = int(per_nm * SIDE_NM * lines)
    which, along = rng.integers(0, lines, number), rng.uniform(-SIDE_NM, SIDE_NM, number)
    way = np.stack([np.cos(angle), np.sin(angle)], 1)
    place = np.column_stack([start[which] + along[:, None] * way[which], np.zeros(number)])
    lasts = rng.geometric(0.5, number)
    molecule = np.repeat(np.arange(number), lasts)
    first = rng.integers(0, frames, number)
    frame = first[molecule] + np.arange(len(molecule)) - np.repeat(np.cumsum(lasts) - lasts, lasts)
    photons = 200 + rng.exponential(1500, len(frame))
    sigma = np.sqrt(1000 / photons)[:, None] * [12.0, 12.0, 25.0]
    seen = place[molecule] + excess * sigma * rng.normal(size=sigma.shape)
    return EmitterSet(
        frame=torch.from_numpy(frame),
        xyz=torch.from_numpy(seen),
        photons=torch.from_numpy(photons),
        xyz_sigma=torch.from_numpy(sigma),
    )


@pytest.mark.parametrize("excess", [1.0, 1.7])
def test_the_scatter_over_the_stated_one_is_found_on_dense_filaments(excess: float) -> None:
    found = precision_of(blinking(excess=excess))
    assert found is not None
    assert abs(found.ratio - excess) < 4 * found.ratio_error
    assert abs(found.ratio_z - excess) < 4 * found.ratio_z_error
    assert found.ratio_error < 0.05
    assert found.law is not None
    assert abs(found.law.exponent - 0.5) < 4 * found.law.exponent_error
    assert found.law.scale_nm == pytest.approx(12 * excess, rel=0.06)


def test_molecules_that_are_seen_once_tell_no_precision() -> None:
    rng = np.random.default_rng(0)
    n = 20_000
    x = rng.uniform(0, SIDE_NM, n)
    once = EmitterSet(
        frame=torch.from_numpy(rng.integers(0, 1000, n)),
        xyz=torch.from_numpy(np.stack([x, x + 10 * rng.normal(size=n), 0 * x], 1)),
        photons=torch.ones(n),
    )
    assert precision_of(once) is None


@pytest.mark.parametrize("nm", [0.0, 30.0])
def test_parts_that_are_displaced_are_told_apart(nm: float) -> None:
    rng = np.random.default_rng(1)
    place = blinking(seed=1).xyz.numpy()[:, :2]
    part = rng.integers(0, 6, len(place))
    shift = nm * rng.normal(size=(6, 2))
    seen = Localizations(place=place + shift[part], block=part, n_blocks=6)
    found = displacement_of(seen, 12.0)
    weight = np.bincount(part) / len(part)
    shift = shift - weight @ shift
    assert found.told
    assert abs(found.variance - float((weight @ shift**2).mean())) < 4 * found.error + 1.0
    assert np.abs(found.path - shift).max() < 6


def test_places_without_structure_tell_no_displacement() -> None:
    rng = np.random.default_rng(2)
    n = 3000
    seen = Localizations(
        place=rng.uniform(0, SIDE_NM, (n, 2)), block=rng.integers(0, 6, n), n_blocks=6
    )
    assert not displacement_of(seen, 12.0).told


def test_locking_to_pixels_is_found_with_its_size_and_not_invented() -> None:
    rng = np.random.default_rng(3)
    x = rng.uniform(0, 20_000, 8000)
    for bias in (0.0, 8.0):
        seen = x + bias * np.sin(2 * np.pi * x / 100) + 10 * rng.normal(size=len(x))
        found = locking_of(seen, 0, pixel_nm=100.0, sigma_nm=10.0, extent_nm=20_000.0)
        assert found.locked == (bias > 0)
        assert abs(found.bias_nm - bias / math.sqrt(2)) < 4 * found.error_nm


def test_filaments_that_cross_the_pixels_evenly_are_not_locked() -> None:
    """Their structure has power at the frequency of the pixels, as at those around it."""
    x = blinking(seed=4).xyz.numpy()[:, 0]
    assert not locking_of(x, 0, pixel_nm=100.0, sigma_nm=12.0, extent_nm=float(np.ptp(x))).locked


def test_standard_errors_of_a_distribution_are_those_of_repeats() -> None:
    rng = np.random.default_rng(5)
    found = [distribution_of("x", "nm", rng.exponential(10, 400)) for _ in range(200)]
    medians = np.array([f.median for f in found if f is not None])
    errors = np.array([f.median_error for f in found if f is not None])
    assert errors.mean() == pytest.approx(medians.std(), rel=0.2)
    assert medians.mean() == pytest.approx(10 * math.log(2), rel=0.03)
    assert distribution_of("x", "nm", [math.nan]) is None


def test_whole_numbers_have_a_bin_each_and_many_of_them_share_one() -> None:
    few = distribution_of("on-time", "frames", [1, 1, 1, 2, 4])
    assert few is not None
    assert few.edges == (0.5, 1.5, 2.5, 3.5, 4.5)
    assert few.counts == (3, 1, 0, 1)
    many = distribution_of("photons", "photons", np.arange(1000))
    assert many is not None
    assert len(set(many.counts[:-1])) == 1
    assert sum(many.counts) >= 0.995 * many.n


def test_counts_over_time_and_field_keep_all_molecules() -> None:
    rng = np.random.default_rng(6)
    frame = rng.integers(0, 777, 5000)
    course = course_of(frame, 777)
    edges = np.unique(np.linspace(0, 777, 101).astype(int))
    assert float(np.array(course.per_frame) @ np.diff(edges)) == pytest.approx(5000)
    density = density_of(rng.uniform(0, [4000, 2000], (5000, 2)))
    total = float(np.sum(density.per_um2)) * (density.pixel_nm / 1e3) ** 2
    assert total == pytest.approx(5000)
    assert density.mean == pytest.approx(5000 / 8, rel=0.05)
    assert on_times(np.array([0, 0, 3, 3, 3])).tolist() == [2, 3]


def test_even_places_have_a_clark_evans_ratio_of_one_and_clusters_less() -> None:
    rng = np.random.default_rng(7)
    even = rng.uniform(0, 1000, (4000, 2))
    found = neighbours_of(even)
    assert found is not None
    assert abs(found.clark_evans - 1) < 4 * found.error
    clusters = neighbours_of(np.repeat(even[:400], 10, 0) + rng.normal(size=(4000, 2)))
    assert clusters is not None
    assert clusters.clark_evans < 0.5


def _across(x: np.ndarray, sigma: float = 8.0) -> EmitterSet:
    rng = np.random.default_rng(8)
    xyz = np.stack([x, rng.uniform(-80, 80, len(x)), 0 * x], 1)
    return EmitterSet(
        frame=torch.zeros(len(x), dtype=torch.int64),
        xyz=torch.from_numpy(xyz),
        photons=torch.ones(len(x)),
        xyz_sigma=torch.full((len(x), 3), sigma),
    )


def test_the_profile_of_a_filament_has_its_width_with_and_without_sigma() -> None:
    rng = np.random.default_rng(9)
    own = rng.normal(500, math.hypot(12, 8), 1500)
    found = profile_of(_across(np.append(own, rng.uniform(200, 800, 300))), (200, 0, 800, 0))
    fwhm = 2 * math.sqrt(2 * math.log(2))
    assert found.distance_nm is None
    assert abs(found.fwhm_nm - fwhm * math.hypot(12, 8)) < 4 * found.fwhm_error_nm
    assert found.fwhm_error_nm < 2
    assert found.intrinsic_nm == pytest.approx(fwhm * 12, rel=0.08)
    assert found.peaks_nm[0] == pytest.approx(300, abs=4 * found.peaks_error_nm[0])
    assert sum(found.counts) == found.n


def test_the_profile_of_two_filaments_has_their_distance() -> None:
    rng = np.random.default_rng(10)
    x = np.append(rng.normal(480, 10, 400), rng.normal(520, 10, 400))
    found = profile_of(_across(x), (300, 0, 700, 0))
    assert found.distance_nm is not None
    assert found.distance_error_nm is not None
    assert abs(found.distance_nm - 40) < 4 * found.distance_error_nm
    with pytest.raises(Undetermined, match="molecules lie on the line"):
        profile_of(_across(x), (300, 3000, 700, 3000))
    with pytest.raises(ValueError, match="two ends"):
        profile_of(_across(x), (300, 0, 300, 0))
