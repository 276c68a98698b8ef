"""Linking: blinks of one molecule over frames are one molecule, and no more than those."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch

from decode.emitters import EmitterSet
from decode.errors import Undetermined
from decode.io.movies import Movie
from decode.io.movies.array import ArrayPart
from decode.likelihood import fit_jointly
from decode.optics.camera import Camera
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import render
from decode.postprocess.link import Kinetics, Linking, linked, merged, refitted
from decode.postprocess.link.assignment import best_links, link_probabilities
from decode.postprocess.link.pairs import Pairs

N_FRAMES, SIDE_NM = 400, 8000.0
TRUE = Kinetics(k_on=0.9, k_off=0.15, k_bleach=0.2)


def blinking(
    density: float, *, seed: int = 0, side_nm: float = SIDE_NM, jitter_nm: float = 0.0
) -> tuple[EmitterSet, np.ndarray, np.ndarray]:
    """Molecules that blink by `TRUE`: rows, the number of each one's molecule, and where it is."""
    rng = np.random.default_rng(seed)
    per_frame = density * (side_nm / 1e3) ** 2
    n = rng.poisson(per_frame * (N_FRAMES + 30) * TRUE.k_bleach)
    place = np.column_stack([rng.uniform(0, side_nm, (n, 2)), rng.uniform(-500, 500, n)])
    start = rng.integers(-30, N_FRAMES, n)
    which, frame = [], []
    for i in range(n):
        now, on = int(start[i]), True
        while now < N_FRAMES:
            if on and now >= 0:
                which.append(i)
                frame.append(now)
            draw = rng.random()
            if on and draw < TRUE.leaves:
                if rng.random() >= TRUE.returns:
                    break
                on = False
            elif not on and draw < TRUE.wakes:
                on = True
            now += 1
    order = np.argsort(frame, kind="stable")
    molecule, frames = np.array(which)[order], np.array(frame)[order]
    width = rng.uniform(6, 20, len(molecule))
    sigma = np.column_stack([width, 1.2 * width, 2.5 * width])
    seen = place[molecule] + np.hypot(sigma, jitter_nm) * rng.normal(size=sigma.shape)
    rows = EmitterSet(
        frame=torch.from_numpy(frames),
        xyz=torch.from_numpy(seen),
        photons=torch.full((len(molecule),), 800.0),
        photons_sigma=torch.full((len(molecule),), 40.0),
        xyz_sigma=torch.from_numpy(sigma),
        metadata={"n_frames": N_FRAMES, "pixel_size_nm": 100.0, "width_px": 80, "height_px": 80},
    )
    return rows, molecule, place


def faults(linking: Linking, molecule: np.ndarray) -> tuple[float, float]:
    """Share of the found molecules that join true ones, and of the true ones that were parted."""
    both = np.unique(np.stack([linking.track, molecule], 1), axis=0)
    joined = np.bincount(both[:, 0]) > 1
    _, parts = np.unique(both[:, 1], return_counts=True)
    return float(joined.mean()), float((parts > 1).mean())


@pytest.mark.parametrize(("density", "most_joined"), [(0.1, 0.01), (1.0, 0.03)])
def test_molecules_are_neither_joined_nor_parted(density: float, most_joined: float) -> None:
    side = 8000.0 if density == 0.1 else 4000.0
    rows, molecule, _ = blinking(density, side_nm=side)
    joined, parted = faults(linked(rows), molecule)
    assert joined <= most_joined
    assert parted <= 0.05


def test_merged_positions_are_as_far_off_as_they_say() -> None:
    rows, molecule, place = blinking(0.3)
    linking = linked(rows)
    whole = merged(rows, linking)
    first = np.unique(linking.track, return_index=True)[1]
    error = whole.xyz.numpy() - place[molecule[first]]
    assert whole.xyz_sigma is not None
    pull = error / whole.xyz_sigma.numpy()
    true = np.bincount(linking.track) > 1
    middle = np.quantile(np.abs(pull[true]), 0.6827, axis=0)
    n = int(true.sum())
    assert (np.abs(middle - 1) < 4 * 0.75 / np.sqrt(n)).all()
    # a table of rows is as precise as its best row at most
    assert (whole.xyz_sigma.numpy()[true, 0] < rows.xyz_sigma.numpy()[first[true], 0]).all()


def test_columns_of_different_precision_are_merged() -> None:
    rows, _, _ = blinking(0.05)
    mixed = replace(rows, xyz_sigma=rows.xyz_sigma.float())
    whole, single = (merged(table, linked(table)) for table in (rows, mixed))
    torch.testing.assert_close(single.xyz, whole.xyz, rtol=0, atol=0.01)


def test_kinetics_and_density_are_those_of_the_molecules() -> None:
    rows, molecule, _ = blinking(0.3)
    linking = linked(rows)
    found = linking.kinetics
    assert found.k_on == pytest.approx(TRUE.k_on, rel=0.2)
    assert found.k_off == pytest.approx(TRUE.k_off, rel=0.2)
    assert found.k_bleach == pytest.approx(TRUE.k_bleach, rel=0.2)
    assert linking.density_per_um2 == pytest.approx(len(rows) / N_FRAMES / 64, rel=1e-6)
    assert linking.rate_per_um2 == pytest.approx(len(np.unique(molecule)) / N_FRAMES / 64, rel=0.05)


def test_what_sigmas_leave_out_is_told_and_used_only_where_asked() -> None:
    rows, molecule, _ = blinking(0.1, jitter_nm=15.0)
    linking = linked(rows)
    assert linking.jitter[0] == pytest.approx(15, rel=0.1)
    assert linking.jitter[1] == pytest.approx(15, rel=0.35)
    joined, parted = faults(linking, molecule)
    assert joined <= 0.01
    assert parted <= 0.05
    assert linking.excess[0] > 1.3
    plain, wider = merged(rows, linking), merged(rows, linking, rescale=True)
    assert plain.xyz_sigma is not None
    assert wider.xyz_sigma is not None
    ratio = (wider.xyz_sigma / plain.xyz_sigma)[0]
    assert ratio.tolist() == pytest.approx(list(linking.excess), rel=1e-5)


@pytest.mark.parametrize("returning", [False, True])
def test_neighbours_on_dense_filaments_are_no_molecules_that_return(returning: bool) -> None:
    """Molecules lie within their sigma of others that come before and after them."""
    rng, n, n_frames = np.random.default_rng(0), 1500, 2000
    place = np.column_stack([rng.uniform(0, 9000, n), 1000.0 * rng.integers(1, 4, n), np.zeros(n)])
    begin = rng.integers(0, n_frames - 8, n)
    times = (0, 1, 5) if returning else (0, 1)
    frame = np.concatenate([begin + t for t in times])
    noise = 10 * rng.normal(size=(len(frame), 3)) * [1, 1, 0]
    rows = EmitterSet(
        frame=torch.from_numpy(frame),
        xyz=torch.from_numpy(np.tile(place, (len(times), 1)) + noise),
        photons=torch.full((len(frame),), 800.0),
        xyz_sigma=torch.tensor([10.0, 10.0, torch.nan]).repeat(len(frame), 1),
        metadata={"n_frames": n_frames},
    )
    linking = linked(rows)
    assert (linking.gap >= 3) == returning
    assert linking.n_molecules == pytest.approx(n, rel=0.03)


def test_rows_that_share_one_position_are_one_measurement() -> None:
    """Polished molecules state the sigma of all their frames in each of them."""
    rows, _, _ = blinking(0.1)
    linking = linked(rows)
    together = merged(rows, linking)
    track = torch.from_numpy(linking.track)
    polished = replace(rows, xyz=together.xyz[track], xyz_sigma=together.xyz_sigma[track])
    again = linked(polished)
    whole = merged(polished, again)
    assert again.n_molecules < 1.1 * linking.n_molecules
    same = (
        np.bincount(again.track)
        == np.bincount(linking.track)[linking.track[np.unique(again.track, return_index=True)[1]]]
    )
    alone = torch.from_numpy(same & (whole.others["off_gaps"] == 0))
    first = torch.from_numpy(np.unique(again.track, return_index=True)[1])
    torch.testing.assert_close(whole.xyz_sigma[alone], polished.xyz_sigma[first][alone])


@pytest.mark.parametrize("seed", [3, 4])
def test_crowded_molecules_whose_frames_were_fitted_jointly_are_told_from_neighbours(
    seed: int,
) -> None:
    """On filaments at depths of their own, positions shared by the frames of a molecule; some
    molecules are missed for a frame, or fitted in two parts, with errors beyond what is stated."""
    rng, n, n_frames = np.random.default_rng(seed), 4000, 1000
    line = rng.integers(0, 12, n)
    begins, way = rng.uniform(0, 6400, (12, 2)), rng.uniform(0, np.pi, 12)
    along = rng.uniform(-3000, 3000, n)
    place = np.empty((n, 3))
    place[:, :2] = begins[line] + along[:, None] * np.stack([np.cos(way), np.sin(way)], 1)[line]
    place[:, 2] = rng.uniform(-500, 500, 12)[line] + 0.1 * along
    place += rng.normal(0, 12, (n, 3))
    on = 1 + rng.geometric(0.45, n)
    parts = np.where((on > 2) & (rng.random(n) < 0.3), 2, 1)
    start = rng.integers(0, n_frames - 20, n)
    frame, molecule, part = [], [], []
    for i in range(n):
        frames = start[i] + np.arange(on[i] + parts[i] - 1)
        half = np.arange(len(frames)) * parts[i] // len(frames)
        kept = np.diff(half, prepend=half[0]) == 0
        frame.append(frames[kept])
        part.append(half[kept])
        molecule.append(np.full(int(kept.sum()), i))
    whose = np.concatenate(molecule)
    _, sighting = np.unique(2 * whose + np.concatenate(part), return_inverse=True)
    width = np.exp(rng.normal(np.log(8), 0.7, sighting.max() + 1))
    heavy = np.where(rng.random(len(width)) < 0.2, 2.0, 1.0)
    error = (width * heavy)[:, None] * rng.normal(size=(len(width), 3)) * [1, 1, 2]
    rows = EmitterSet(
        frame=torch.from_numpy(np.concatenate(frame)),
        xyz=torch.from_numpy(place[whose] + error[sighting]),
        photons=torch.full((len(whose),), 800.0),
        xyz_sigma=torch.from_numpy((width[:, None] * [1, 1, 2])[sighting]),
        metadata={"n_frames": n_frames},
    )
    linking = linked(rows)
    joined, parted = faults(linking, whose)
    assert linking.n_molecules == pytest.approx(n, rel=0.05)
    assert 1 <= linking.gap <= 4
    assert linking.jitter[0] < 5
    assert joined < 0.03
    assert parted < 0.03


def test_correlated_errors_are_weighted_by_their_whole_covariance() -> None:
    """Of two elongated Gaussians across each other the mean is where both are certain."""
    rng = np.random.default_rng(0)
    n = 60
    place = rng.uniform(0, 50_000, (n, 2))
    sign = np.tile([0.95, -0.95], n)
    covariance = 100.0 * np.stack([np.eye(2) + s * np.array([[0, 1], [1, 0]]) for s in sign])
    noise = (np.linalg.cholesky(covariance) @ rng.normal(size=(2 * n, 2, 1)))[:, :, 0]
    correlation = torch.full((2 * n, 6), torch.nan)
    correlation[:, 0] = torch.from_numpy(sign)
    seen = torch.zeros(2 * n, 3, dtype=torch.float64)
    seen[:, :2] = torch.from_numpy(np.repeat(place, 2, axis=0) + noise)
    rows = EmitterSet(
        frame=(5 * torch.arange(n)[:, None] + torch.arange(2)).flatten(),
        xyz=seen,
        photons=torch.full((2 * n,), 500.0),
        xyz_sigma=torch.tensor([10.0, 10.0, torch.nan]).double().repeat(2 * n, 1),
        correlation=correlation,
    )
    whole = merged(rows, linked(rows))
    assert len(whole) == n
    expected = np.linalg.inv(np.linalg.inv(covariance[0]) + np.linalg.inv(covariance[1]))
    assert whole.xyz_sigma is not None
    assert whole.xyz_sigma[:, 0].numpy() == pytest.approx(np.sqrt(expected[0, 0]), rel=1e-5)
    information = np.linalg.inv(covariance)
    weighted = (information @ seen[:, :2].numpy()[:, :, None])[:, :, 0].reshape(n, 2, 2).sum(1)
    means = np.linalg.solve(information.reshape(n, 2, 2, 2).sum(1), weighted[:, :, None])[:, :, 0]
    np.testing.assert_allclose(whole.xyz[:, :2].numpy(), means, atol=1e-6)
    assert whole.xyz_sigma[:, 2].isnan().all()


def test_sums_and_columns_are_those_of_the_rows() -> None:
    rows, _, _ = blinking(0.1)
    linking = linked(rows)
    whole = merged(rows, linking)
    assert float(whole.photons.sum()) == pytest.approx(float(rows.photons.sum()))
    count = whole.others["n_frames"]
    np.testing.assert_allclose(whole.photons_sigma.numpy(), 40 * np.sqrt(count), rtol=1e-6)
    assert count.sum() == len(rows)
    length = whole.others["last_frame"] - whole.others["first_frame"] + 1
    np.testing.assert_array_equal(length, count + whole.others["off_gaps"])
    assert (np.diff(whole.frame.numpy()) >= 0).all()
    step = whole.metadata["link"]
    assert isinstance(step, dict)
    assert step["rows"] == len(rows)
    assert step["molecules"] == len(whole)


def test_the_gap_bounds_the_dark_frames_that_are_bridged() -> None:
    rows, _, _ = blinking(0.1)
    frame = rows.frame.numpy()
    for gap in (0, 1):
        track = linked(rows, gap=gap).track
        order = np.lexsort((frame, track))
        same = np.diff(track[order]) == 0
        assert np.diff(frame[order])[same].max() == gap + 1


def test_what_tells_nothing_is_refused() -> None:
    rows, _, _ = blinking(0.1)
    once = rows[torch.from_numpy(np.unique(linked(rows).track, return_index=True)[1])]
    with pytest.raises(Undetermined, match="second frame"):
        linked(once)
    with pytest.raises(Undetermined, match="no molecules"):
        linked(EmitterSet.empty())
    with pytest.raises(ValueError, match="linked already"):
        linked(merged(rows, linked(rows)))
    with pytest.raises(ValueError, match="gap is -1"):
        linked(rows, gap=-1)


@pytest.mark.parametrize("seed", range(5))
def test_the_assignment_is_the_best_of_all_and_its_probabilities_are_those_of_all(
    seed: int,
) -> None:
    """Against every assignment of three ends to three starts, one by one."""
    rng = np.random.default_rng(seed)
    gain = rng.normal(1.0, 2.0, (3, 3))
    first, second = np.divmod(np.arange(9), 3)
    pairs = Pairs(first=first, second=3 + second, lag=np.ones(9, np.int64))
    best, total, share = -np.inf, 0.0, np.zeros((3, 3))
    for order in permutations([0, 1, 2, -1, -1, -1], 3):
        used = [(i, j) for i, j in enumerate(order) if j >= 0]
        value = sum(gain[i, j] for i, j in used)
        best = max(best, value)
        # orders that differ by which of the three `none` is taken are one assignment
        none = 3 - len(used)
        weight = np.exp(value) / [1, 3, 6, 6][none]
        total += weight
        for i, j in used:
            share[i, j] += weight
    chosen = best_links(pairs, gain.ravel(), 6)
    assert gain.ravel()[chosen].sum() == pytest.approx(max(best, 0.0))
    found = link_probabilities(pairs, gain.ravel(), 6).reshape(3, 3)
    np.testing.assert_allclose(found, share / total, atol=0.12)


def test_a_large_cluster_is_solved_as_the_small_ones_are() -> None:
    """Beyond a number of ends a sparse solver takes over."""
    n = 250
    first = np.concatenate([np.arange(n), np.arange(n - 1)])
    second = np.concatenate([np.arange(n), np.arange(1, n)]) + n
    rng = np.random.default_rng(0)
    gain = rng.uniform(0.1, 5.0, len(first))
    pairs = Pairs(first=first, second=second, lag=np.ones(len(first), np.int64))
    chosen = best_links(pairs, gain, 2 * n)
    # of a path of edges, the best set without neighbours, by dynamic programming
    path = np.empty(2 * n - 1)
    path[0::2], path[1::2] = gain[:n], gain[n:]
    without = within = 0.0
    for value in path:
        without, within = max(without, within), without + value
    assert gain[chosen].sum() == pytest.approx(max(without, within))


CAMERAS = {
    "EMCCD": Camera(baseline=100.0, e_per_adu=45.0, read_noise_e=74.4, qe=0.9, em_gain=300.0),
    "sCMOS": Camera(baseline=100.0, e_per_adu=0.46, read_noise_e=1.3, qe=0.8),
}


@pytest.mark.parametrize("name", CAMERAS)
def test_a_refit_finds_the_molecules_where_rows_were_wrong_and_says_how_well(name: str) -> None:
    """Rows whose sigmas lie: one of three is stated ten times too certain.  The movie knows."""
    camera, psf = CAMERAS[name], GaussianPSF(130.0, pixel_size_nm=100.0)
    rng = torch.Generator().manual_seed(0)
    n, side, n_frames = 40, 20, 120
    place = torch.cat([700 + 600 * torch.rand(n, 2, generator=rng), torch.zeros(n, 1)], 1)
    truth = EmitterSet(
        frame=(3 * torch.arange(n)[:, None] + torch.arange(3)).flatten(),
        xyz=place.repeat_interleave(3, 0),
        photons=torch.tensor([300.0, 1000.0, 3000.0]).repeat(n),
        background=torch.full((3 * n,), 10.0),
    )
    light = render(
        psf,
        frame=truth.frame,
        xyz=truth.xyz,
        photons=truth.photons,
        n_frames=n_frames,
        shape=(side, side),
    )
    adu = camera.sample(10 + light, rng)
    even = torch.ones(side, side)
    fit = fit_jointly(psf, camera, adu, truth, axial=False, link=False, background=even)
    sigma = fit.xyz_sigma.float()
    sigma[0::3, :2] /= 10
    rows = replace(truth, xyz=fit.xyz, photons=fit.photons, xyz_sigma=sigma)
    rows = replace(rows, photons_sigma=fit.photons_sigma, background=fit.background)
    linking = Linking(
        **{
            **vars(linked(rows, gap=0)),
            "track": np.repeat(np.arange(n), 3),
            "probability": np.ones(n),
        }
    )
    whole = merged(rows, linking)
    movie = Movie([ArrayPart.of(adu.numpy())], range(n_frames))
    better = refitted(rows, linking, whole, psf=psf, camera=camera, movie=movie)
    assert better.polished is not None
    assert better.polished.float().mean() > 0.9
    before, after = ((x.xyz - place)[:, :2].square().mean().sqrt() for x in (whole, better))
    assert after < 0.7 * before
    assert better.xyz_sigma is not None
    pull = ((better.xyz - place) / better.xyz_sigma)[better.polished, :2].std()
    assert 0.8 < pull < 1.2
    assert float(better.photons.mean()) == pytest.approx(4300, rel=0.03)
