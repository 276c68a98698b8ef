"""decode quality: the figures of a table, its budget, and the files that it writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from decode.cli import app
from decode.emitters import EmitterSet
from decode.io.tables import write_table
from decode.outputs import quality_files
from decode.verbs.quality import Quality, assess

SIDE_NM, FRAMES = 3500.0, 1500


def table(
    *,
    per_nm: float = 0.4,
    sigma_nm: float = 9.0,
    excess: float = 1.0,
    drift_nm: float = 0.0,
    locked_nm: float = 0.0,
    seed: int = 0,
) -> EmitterSet:
    """Molecules of filaments, on for two frames or so, with one fault or none."""
    rng = np.random.default_rng(seed)
    lines = 10
    start, angle = rng.uniform(0, SIDE_NM, (lines, 2)), rng.uniform(0, np.pi, lines)
    number = int(per_nm * 2 * SIDE_NM * lines)
    which, along = rng.integers(0, lines, number), rng.uniform(-SIDE_NM, SIDE_NM, number)
    place = start[which] + along[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)[which]
    place = place[((place > 0) & (place < SIDE_NM)).all(1)]
    lasts = rng.geometric(0.5, len(place))
    molecule = np.repeat(np.arange(len(place)), lasts)
    first = rng.integers(0, FRAMES - 20, len(place))
    frame = first[molecule] + np.arange(len(molecule)) - np.repeat(np.cumsum(lasts) - lasts, lasts)
    photons = 300 + rng.exponential(1200, len(frame))
    sigma = (sigma_nm * np.sqrt(1000 / photons))[:, None] * [1.0, 1.0]
    seen = place[molecule]
    seen = seen + locked_nm * np.sin(2 * np.pi * seen / 100)
    seen = seen + excess * sigma * rng.normal(size=sigma.shape)
    time = (frame / FRAMES)[:, None]
    seen = seen + drift_nm * np.sin(2 * np.pi * time * [0.8, 0.6] + [0.0, 2.0])
    return EmitterSet(
        frame=torch.from_numpy(frame),
        xyz=torch.from_numpy(np.column_stack([seen, np.zeros(len(seen))])),
        photons=torch.from_numpy(photons),
        xyz_sigma=torch.from_numpy(np.column_stack([sigma, np.full(len(seen), np.nan)])),
        metadata={"n_frames": FRAMES, "pixel_size_nm": 100.0},
    )


@pytest.fixture(scope="module")
def small() -> EmitterSet:
    return table(drift_nm=40.0)


@pytest.fixture(scope="module")
def found(small: EmitterSet) -> Quality:
    return assess(small)


def test_the_budget_names_a_planted_drift_and_predicts_what_is_seen(found: Quality) -> None:
    budget = found.budget
    assert budget is not None
    assert budget.parts[0].cause == "drift"
    assert "decode drift" in budget.verdict
    assert budget.predicted_nm == pytest.approx(budget.observed_nm, rel=0.15)


def test_no_command_is_advised_that_was_applied(small: EmitterSet) -> None:
    once = replace(small, metadata=dict(small.metadata) | {"drift": "subtracted", "link": {}})
    budget = assess(once).budget
    assert budget is not None
    assert budget.parts[0].cause == "drift"
    assert "the table before" in budget.verdict
    assert "run `decode drift`" not in budget.verdict


def test_parts_add_up_to_the_square_of_the_predicted_resolution(found: Quality) -> None:
    budget = found.budget
    assert budget is not None
    # the misfit is that of its variance, of which a correlation of halves sees less
    seen = [part.nm2 for part in budget.parts if part.cause != "misfit"]
    assert sum(nm2 for nm2 in seen if nm2 is not None) == pytest.approx(
        budget.predicted_nm**2, rel=0.05
    )
    assert budget.total_nm >= budget.predicted_nm


def test_what_is_unknown_says_why(found: Quality, small: EmitterSet) -> None:
    named = dict(found.lines())
    assert "unknown" not in named["resolution"]
    once = small[::40]
    bare = EmitterSet(frame=once.frame, xyz=once.xyz, photons=once.photons)
    poor = assess(bare, n_frames=30_000)
    assert poor.budget is None
    assert poor.precision is None
    assert poor.locking == ()
    assert poor.audit is None
    for figure in ("budget", "precision", "audit", "locking"):
        assert poor.unknown[figure]
    assert "unknown" in dict(poor.lines())["budget"]


def test_the_command_line_prints_writes_and_gives_json(small: EmitterSet, tmp_path: Path) -> None:
    table, out = tmp_path / "table.csv", tmp_path / "quality"
    write_table(small[::4], table)
    line = ["--line", "100,100,3000,3000"]
    done = CliRunner().invoke(app, ["quality", str(table), "-o", str(out), *line])
    assert done.exit_code == 0, done.output
    assert "nm (FRC at 1/7)" in done.output
    assert sorted(out.iterdir()) == sorted(quality_files(out, 1))
    written = json.loads((out / "quality.json").read_text())
    assert written["n"] == len(small[::4])
    assert written["resolution"]["value_nm"] > 0
    assert written["audit"] is None or "scatter" in written["audit"]["sentence"]
    assert "uncertainties" in done.output
    assert len(written["profiles"]) == 1
    printed = CliRunner().invoke(app, ["quality", str(table), "--json", *line])
    assert json.loads(printed.stdout)["resolution"] == written["resolution"]


def test_bad_input_is_said_in_a_sentence(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    one = EmitterSet(frame=torch.tensor([0]), xyz=torch.zeros(1, 3), photons=torch.ones(1))
    write_table(one, table)
    refused = CliRunner().invoke(app, ["quality", str(table)])
    assert refused.exit_code == 3
    assert "nothing to tell" in refused.output
    wrong = CliRunner().invoke(app, ["quality", str(table), "--line", "1,2,3"])
    assert wrong.exit_code == 2
    assert "X0,Y0,X1,Y1" in wrong.output


@pytest.mark.parametrize("case", ["one place", "a line", "unknown sigmas", "sparse", "one bead"])
def test_odd_tables_are_measured_as_far_as_they_go(case: str) -> None:
    rng = np.random.default_rng(0)
    n = 300
    xyz, frame = rng.uniform(0, 2000, (n, 3)) * [1, 1, 0], rng.integers(0, 300, n)
    sigma = np.full((n, 3), 10.0)
    if case == "one place":
        xyz[:] = 50.0
    if case == "a line":
        xyz[:, 1] = 0.0
    if case == "unknown sigmas":
        sigma[:] = np.nan
    if case == "sparse":
        xyz *= 100
    if case == "one bead":
        xyz, frame = 900 + rng.normal(size=(n, 3)) * [5, 5, 0], np.arange(n)
    found = assess(
        EmitterSet(
            frame=torch.from_numpy(frame),
            xyz=torch.from_numpy(xyz),
            photons=torch.ones(n),
            xyz_sigma=torch.from_numpy(sigma),
            metadata={"pixel_size_nm": 100.0},
        )
    )
    assert found.budget is None
    assert found.unknown["budget"]
    json.dumps(found.as_dict(), allow_nan=False)
    assert all(figure for _, figure in found.lines())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cause", "fault"),
    [
        ("photons", {}),
        ("photons", {"sigma_nm": 25.0}),
        ("excess", {"excess": 2.0}),
        ("density", {"per_nm": 0.02}),
        ("misfit", {"locked_nm": 15.0}),
    ],
)
def test_the_budget_names_each_planted_fault_first(cause: str, fault: dict[str, float]) -> None:
    budget = assess(table(**fault)).budget  # type: ignore[arg-type]
    assert budget is not None
    assert budget.parts[0].cause == cause
    assert budget.predicted_nm == pytest.approx(budget.observed_nm, rel=0.15)
