"""The step that subtracts the drift, without a window and in one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from decode import EmitterSet, read_table, write_table
from decode.cli import app
from decode.errors import Undetermined
from decode.postprocess.drift import Drift, write_drift
from decode.progress import followed
from decode_napari.molecules import Filter
from decode_napari.session import Found, Session
from decode_napari.steps.drift import DriftSettings, DriftStep, Estimated
from decode_napari.steps.export import ExportStep
from decode_napari.steps.inspect import InspectStep

LONG = 200_000
N_FRAMES = 400


def beads() -> tuple[EmitterSet, np.ndarray[Any, Any]]:
    """Four beads on a stage that goes 40 nm along x, and what it did in each frame."""
    rng = np.random.default_rng(0)
    places = np.array([[1000.0, 900.0], [5000.0, 1200.0], [900.0, 5100.0], [4800.0, 4900.0]])
    stage = np.stack([np.linspace(-20, 20, N_FRAMES), np.zeros(N_FRAMES)], 1)
    xy = places[:, None] + stage + rng.normal(0, 3, (4, N_FRAMES, 2))
    n = 4 * N_FRAMES
    xyz = np.concatenate([xy.reshape(n, 2), np.zeros((n, 1))], 1)
    table = EmitterSet(
        frame=torch.arange(N_FRAMES).repeat(4),
        xyz=torch.from_numpy(xyz).float(),
        photons=torch.full((n,), 5000.0),
        xyz_sigma=torch.full((n, 3), 3.0),
        metadata={"pixel_size_nm": 100.0, "width_px": 64, "height_px": 64, "n_frames": N_FRAMES},
    ).sorted_by_frame()
    return table, stage


def opened(table: EmitterSet, source: str = "table.csv") -> Session:
    session = Session()
    session.put(found=Found(filter=Filter(table), source=source))
    return session


def test_a_drift_is_subtracted_and_added_back() -> None:
    table, stage = beads()
    session = opened(table)
    step = DriftStep(session)
    step.settings = DriftSettings(fiducials=True)
    assert not step.can_subtract
    estimated: Estimated = followed(step.estimate())
    step.accept(estimated)
    assert np.abs(estimated.stage.xyz[:, :2] - stage).max() < 4
    assert estimated.plot.startswith(b"\x89PNG")
    assert step.can_subtract
    assert not step.is_subtracted
    assert session.found is not None
    session.found.filter.restrict("frame", 10, 300)
    step.subtract()
    still = session.found.filter
    expected = estimated.stage.subtracted_from(table)
    torch.testing.assert_close(still.emitters.xyz, expected.xyz)
    assert float(still.emitters.xyz[:, 0].sub(table.xyz[:, 0]).abs().max()) > 15
    assert still.ranges == {"frame": (10, 300)}
    assert not session.is_saved  # on no disk yet
    assert step.done() in ("subtracted x 39 nm", "subtracted x 40 nm")
    assert not step.can_subtract
    with pytest.raises(ValueError, match="subtracted already"):
        step.estimate()
    step.undo()
    assert torch.equal(session.found.filter.emitters.xyz, table.xyz)
    assert session.found.filter.ranges == still.ranges
    assert step.can_subtract
    with pytest.raises(ValueError, match="no drift was subtracted"):
        step.undo()


def test_molecules_that_tell_no_drift_are_refused_in_a_sentence(rng: torch.Generator) -> None:
    few = EmitterSet(
        frame=torch.arange(60), xyz=torch.rand(60, 3, generator=rng), photons=torch.ones(60)
    )
    with pytest.raises(Undetermined):
        followed(DriftStep(opened(few)).estimate())
    with pytest.raises(ValueError, match="localize a movie or open a table first"):
        DriftStep(Session()).estimate()


def test_a_drift_of_other_molecules_is_not_subtracted() -> None:
    table, _ = beads()
    session = opened(table)
    step = DriftStep(session)
    step.settings = DriftSettings(fiducials=True)
    step.accept(followed(step.estimate()))
    session.put(found=Found(filter=Filter(table), source="other.csv"))
    assert not step.can_subtract
    with pytest.raises(ValueError, match="estimate the drift of these molecules first"):
        step.subtract()


@pytest.mark.parametrize("traced", [False, True])
def test_what_is_copied_does_what_the_window_did(
    traced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table, stage = beads()
    write_table(table, "table.hdf5")
    xyz = np.concatenate([stage, np.zeros((N_FRAMES, 1))], 1)
    write_drift(Drift(xyz=xyz, sigma=np.zeros_like(xyz)), "stage.csv")
    session = opened(read_table("table.hdf5"), "table.hdf5")
    step, inspect, export = DriftStep(session), InspectStep(session), ExportStep(session)
    step.settings = (
        DriftSettings(trace=Path("stage.csv")) if traced else DriftSettings(fiducials=True)
    )
    step.accept(followed(step.estimate()))
    step.subtract()
    _, verb, *arguments = shlex.split(step.as_command())
    result = CliRunner().invoke(app, [verb, *arguments])
    assert result.exit_code == 0, result.output
    assert session.found is not None
    shown = session.found.filter.emitters
    torch.testing.assert_close(
        read_table("table_still.hdf5").xyz, shown.xyz, atol=1e-2, rtol=0, check_dtype=False
    )
    # later steps begin with the table that the command wrote
    assert "table_still.hdf5" in export.as_command()
    session.found.filter.restrict("sigma", 0, 3.5)
    assert "table_still.hdf5" in inspect.as_python()
    names: dict[str, Any] = {}
    exec(compile(step.as_python(), "drift", "exec"), names)
    torch.testing.assert_close(
        names["molecules"].xyz, shown.xyz, atol=1e-2, rtol=0, check_dtype=False
    )


def test_the_panel_shows_the_drift_and_moves_the_points(dock: Any, qtbot: Any) -> None:
    table, _ = beads()
    dock.session.put(found=Found(filter=Filter(table), source="table.csv"))
    qtbot.waitUntil(lambda: not dock.view._is_new, timeout=LONG)
    panel = dock.panel(DriftStep)
    panel.fiducials.setChecked(True)
    assert panel.run_button.isEnabled()
    assert not panel.subtract_button.isEnabled()
    panel.run()
    qtbot.waitUntil(panel.subtract_button.isEnabled, timeout=LONG)
    assert not panel.troubles
    assert "nm from end to end" in panel.state.text()
    assert not panel.plot.isHidden()
    before = dock.viewer.layers["molecules"].data.copy()
    panel.subtract_button.click()
    qtbot.waitUntil(lambda: not dock.view._is_new, timeout=LONG)
    moved = dock.viewer.layers["molecules"].data - before
    assert 15 < np.abs(moved[:, 2]).max() < 25
    assert panel.undo_button.isEnabled()
    assert not panel.run_button.isEnabled()
    panel.undo_button.click()
    qtbot.waitUntil(lambda: not dock.view._is_new, timeout=LONG)
    np.testing.assert_array_equal(dock.viewer.layers["molecules"].data, before)
    dock.session.saved()
