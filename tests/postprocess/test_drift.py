"""Drift of the stage from simulated filaments, spread molecules and beads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from decode.cli import app
from decode.emitters import EmitterSet
from decode.errors import Undetermined
from decode.io.tables import read_table, write_table
from decode.postprocess.blinks import blinks
from decode.postprocess.drift import (
    Drift,
    drift_of_fiducials,
    drift_of_molecules,
    read_drift,
    write_drift,
)

N_FRAMES, SIDE_NM = 300, 4000.0


def _path(rng: np.random.Generator) -> np.ndarray:
    """(frames, 3) nm, a drift that bends twice or so."""
    t = np.linspace(0, 1, N_FRAMES)[:, None]
    phase = rng.uniform(0, 2 * np.pi, 3)
    drift = np.array([120.0, 100.0, 60.0]) * np.sin(2 * np.pi * 0.8 * t + phase)
    return drift - drift.mean(0)


def _scene(
    *,
    filaments: int,
    drift: np.ndarray,
    n: int = 2500,
    sigma_nm: float = 10.0,
    seed: int = 0,
) -> EmitterSet:
    """Molecules along straight filaments, or, without any, everywhere."""
    rng = np.random.default_rng(seed)
    place = rng.uniform(0, SIDE_NM, (n, 3))
    place[:, 2] = rng.uniform(-300, 300, n)
    if filaments:
        start = rng.uniform(0.2 * SIDE_NM, 0.8 * SIDE_NM, (filaments, 2))
        angle, depth = rng.uniform(0, np.pi, filaments), rng.uniform(-300, 300, filaments)
        which, along = rng.integers(0, filaments, n), rng.uniform(-1500, 1500, n)
        place[:, 0] = start[which, 0] + along * np.cos(angle[which])
        place[:, 1] = start[which, 1] + along * np.sin(angle[which])
        place[:, 2] = depth[which] + 0.05 * along
    frame = np.sort(rng.integers(0, N_FRAMES, n))
    sigma = np.tile(sigma_nm * np.array([1.0, 1.0, 2.2]), (n, 1))
    seen = place + drift[frame] + sigma * rng.normal(size=(n, 3))
    return EmitterSet(
        frame=torch.from_numpy(frame),
        xyz=torch.from_numpy(seen).float(),
        photons=torch.full((n,), 1000.0),
        xyz_sigma=torch.from_numpy(sigma).float(),
        metadata={"n_frames": N_FRAMES, "pixel_size_nm": 100.0},
    )


def _errors(found: Drift, truth: np.ndarray) -> np.ndarray:
    error = found.xyz - truth
    return np.asarray(error - error.mean(0))


def test_drift_of_filaments_is_found_within_its_uncertainty() -> None:
    truth = _path(np.random.default_rng(1))
    found = drift_of_molecules(_scene(filaments=8, drift=truth))
    error = _errors(found, truth)
    assert (np.sqrt((error**2).mean(0)) < [4, 4, 8]).all()
    assert 0.4 < (np.abs(error) < found.sigma).mean() < 0.95
    assert found.jumps == ()


def test_few_precise_molecules_on_crossing_filaments_tell_the_drift() -> None:
    """Most of the nearest molecules belong to other filaments."""
    truth = _path(np.random.default_rng(1))
    found = drift_of_molecules(_scene(filaments=16, drift=truth, n=500, sigma_nm=4.0))
    assert np.sqrt((_errors(found, truth) ** 2).mean(0)).max() < 4


def test_the_drift_of_few_molecules_is_as_uncertain_as_it_says() -> None:
    """Its ends, too, where hardly a molecule holds it."""
    covered, ends = [], []
    for seed in (0, 4, 7):
        truth = _path(np.random.default_rng(seed))
        few = _scene(filaments=14, drift=truth, n=700, sigma_nm=8.0, seed=seed)
        found = drift_of_molecules(few)
        error = _errors(found, truth)
        covered.append((np.abs(error) < found.sigma).mean())
        ends.append(np.abs(error[[0, -1], :2]).max())
    assert 0.55 < np.mean(covered) < 0.85
    assert max(ends) < 20


def test_a_stage_that_stands_still_has_no_drift() -> None:
    found = drift_of_molecules(_scene(filaments=8, drift=np.zeros((N_FRAMES, 3))))
    assert (np.sqrt((found.xyz**2).mean(0)) < [4, 4, 8]).all()


def test_a_jump_is_found_in_its_frame() -> None:
    truth = _path(np.random.default_rng(1))
    truth[140:] += [90.0, -40.0, 20.0]
    truth -= truth.mean(0)
    found = drift_of_molecules(_scene(filaments=8, drift=truth))
    assert len(found.jumps) == 1
    assert abs(found.jumps[0] - 140) <= 3
    assert np.sqrt((_errors(found, truth) ** 2).mean(0)).max() < 12


@pytest.mark.parametrize("moving", [False, True])
def test_molecules_without_structure_tell_no_drift(moving: bool) -> None:
    truth = _path(np.random.default_rng(2)) * moving
    with pytest.raises(Undetermined, match="no structure"):
        drift_of_molecules(_scene(filaments=0, drift=truth))


def test_long_blinks_do_not_pull() -> None:
    """A molecule that stays on for long drifts along; it must not hold the stage."""
    truth = _path(np.random.default_rng(3))
    once = _scene(filaments=8, drift=np.zeros((N_FRAMES, 3)), n=1200, seed=4)
    rng = np.random.default_rng(5)
    frame = np.minimum(once.frame.numpy()[:, None] + np.arange(4), N_FRAMES - 1).ravel()
    place = np.repeat(once.xyz.numpy(), 4, axis=0) + truth[frame]
    place += rng.normal(size=place.shape) * [10.0, 10.0, 22.0]
    held = EmitterSet(
        frame=torch.from_numpy(frame),
        xyz=torch.from_numpy(place).float(),
        photons=torch.full((len(frame),), 1000.0),
        xyz_sigma=torch.tensor([[10.0, 10.0, 22.0]]).repeat(len(frame), 1),
        metadata=once.metadata,
    )
    error = _errors(drift_of_molecules(held), truth)
    assert (np.sqrt((error**2).mean(0)) < [8, 8, 14]).all()


def test_blinks_are_numbered_by_molecule() -> None:
    rng = np.random.default_rng(0)
    place = np.repeat(rng.uniform(0, 50_000, (200, 2)), 3, axis=0)
    frame = np.tile([4, 5, 6], 200)
    number = blinks(frame, place + 8 * rng.normal(size=place.shape), np.full(place.shape, 8.0))
    assert (number.reshape(200, 3) == number.reshape(200, 3)[:, :1]).mean() > 0.99
    assert len(np.unique(number)) >= 200


def test_what_is_subtracted_can_be_added_back() -> None:
    molecules = _scene(filaments=4, drift=np.zeros((N_FRAMES, 3)), n=300)
    drift = Drift(
        xyz=_path(np.random.default_rng(6)), sigma=np.full((N_FRAMES, 3), 5.0), origin="a trace"
    )
    still = drift.subtracted_from(molecules)
    again = drift.added_to(still)
    assert still.xyz_sigma is not None
    assert still.xyz_sigma[0, 0] == pytest.approx(np.hypot(10, 5))
    assert torch.allclose(again.xyz, molecules.xyz, atol=1e-3)
    assert again.xyz_sigma is not None
    assert molecules.xyz_sigma is not None
    assert torch.allclose(again.xyz_sigma, molecules.xyz_sigma, atol=1e-3)
    assert "drift" in still.metadata
    assert "drift" not in again.metadata


def test_beads_tell_the_drift_of_molecules_without_structure() -> None:
    truth = _path(np.random.default_rng(7))
    molecules = _scene(filaments=0, drift=truth, n=800)
    rng = np.random.default_rng(8)
    places = np.array([[900.0, 900.0, 50.0], [3100.0, 2500.0, -80.0], [1800.0, 3300.0, 0.0]])
    frame = np.tile(np.arange(N_FRAMES), 3)
    place = np.repeat(places, N_FRAMES, axis=0) + truth[frame]
    beads = EmitterSet(
        frame=torch.from_numpy(frame),
        xyz=torch.from_numpy(place + 3 * rng.normal(size=place.shape)).float(),
        photons=torch.full((len(frame),), 20_000.0),
        xyz_sigma=torch.full((len(frame), 3), 3.0),
        metadata=molecules.metadata,
    )
    both = EmitterSet.cat([molecules, beads])
    places_xy = [(float(x), float(y)) for x, y, _ in places + truth[0]]
    for found in (drift_of_fiducials(both), drift_of_fiducials(both, places_nm=places_xy)):
        error = _errors(found, truth)
        assert np.sqrt((error**2).mean()) < 1.5
        assert (np.abs(error) < 2 * found.sigma).mean() > 0.85
    with pytest.raises(Undetermined, match="no fiducial"):
        drift_of_fiducials(molecules)


def test_a_trace_is_read_as_it_was_written(tmp_path: Path) -> None:
    drift = Drift(xyz=_path(np.random.default_rng(9)), sigma=np.full((N_FRAMES, 3), 1.5))
    write_drift(drift, tmp_path / "trace.csv")
    again = read_drift(tmp_path / "trace.csv")
    assert np.allclose(again.xyz, drift.xyz, atol=1e-3)
    assert np.allclose(again.sigma, drift.sigma, atol=1e-3)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,b\n1,2\n", "no columns"),
        ("frame,x_nm,y_nm\n0,1,1\n", "count from 1"),
        ("frame,x_nm,y_nm\n1,nan,1\n", "numbers"),
        ("frame,x_nm,y_nm\n1,here,1\n", "not a drift"),
        ("", "no columns"),
    ],
)
def test_a_wrong_trace_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "trace.csv").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_drift(tmp_path / "trace.csv")


def test_command_line(tmp_path: Path) -> None:
    run = CliRunner().invoke
    truth = _path(np.random.default_rng(1))
    table, out = tmp_path / "seen.csv", tmp_path / "still.csv"
    write_table(_scene(filaments=0, drift=0 * truth), table)
    refused = run(app, ["drift", str(table), "-o", str(out)])
    assert refused.exit_code == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["seen.csv"]
    write_drift(Drift(xyz=truth, sigma=np.ones((N_FRAMES, 3))), tmp_path / "stage.csv")
    applied = run(
        app, ["drift", str(table), "-o", str(out), "--apply", str(tmp_path / "stage.csv")]
    )
    assert applied.exit_code == 0, applied.output
    assert (tmp_path / "still.drift.png").stat().st_size > 1000
    before, after = read_table(table), read_table(out)
    shift = before.xyz - after.xyz
    assert np.allclose(shift.numpy(), truth[before.frame], atol=0.02)
    twice = run(app, ["drift", str(out), "-o", str(tmp_path / "more.csv")])
    assert twice.exit_code == 2
    assert "already" in twice.output
    trace = str(tmp_path / "still.drift.csv")
    words = ["drift", str(out), "-o", str(tmp_path / "again.csv"), "--apply", trace, "--undo"]
    assert run(app, words).exit_code == 0
    assert torch.allclose(read_table(tmp_path / "again.csv").xyz, before.xyz, atol=0.05)


def test_parts_of_one_acquisition_are_one_table(tmp_path: Path) -> None:
    truth = np.concatenate([_path(np.random.default_rng(1)) for _ in range(2)])
    parts = [_scene(filaments=4, drift=truth[:N_FRAMES], n=400, seed=s) for s in (1, 2)]
    for name, part in zip("ab", parts, strict=True):
        write_table(part, tmp_path / f"{name}.hdf5")
    write_drift(Drift(xyz=truth, sigma=np.ones(truth.shape)), tmp_path / "stage.csv")
    tables = [str(tmp_path / f"{name}.hdf5") for name in "ab"]
    words = ["drift", *tables, "-o", str(tmp_path / "c.hdf5")]
    done = CliRunner().invoke(app, [*words, "--apply", str(tmp_path / "stage.csv")])
    assert done.exit_code == 0, done.output
    whole = read_table(tmp_path / "c.hdf5")
    assert len(whole) == 800
    assert int(whole.frame.max()) >= N_FRAMES
