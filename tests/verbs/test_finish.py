"""What follows the table of a movie: drift subtracted, blinks linked, a report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from decode.cli import app
from decode.emitters import EmitterSet
from decode.io.tables import read_table, write_table
from decode.outputs import finished_files
from decode.postprocess.drift import read_drift
from decode.verbs import room
from decode.verbs.finish import LONG_FRAMES, Finish, finish

SAMPLES = Path(__file__).resolve().parents[2] / "sample_data"
N_FRAMES, SIDE_NM = 300, 4000.0
DRIFT_NM = np.linspace(-60, 60, N_FRAMES)


def molecules(*, structured: bool) -> EmitterSet:
    """Blinks of two frames along eight filaments, or anywhere, on a stage that moves along x."""
    rng = np.random.default_rng(0)
    place = rng.uniform(0, SIDE_NM, (1500, 2))
    if structured:
        which, along = rng.integers(0, 8, 1500), rng.uniform(-1500, 1500, 1500)
        start = rng.uniform(0.2 * SIDE_NM, 0.8 * SIDE_NM, (8, 2))
        angle = rng.uniform(0, np.pi, 8)[which]
        place = start[which] + along[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    frame = np.repeat(rng.integers(0, N_FRAMES - 1, 1500), 2) + np.tile([0, 1], 1500)
    place = np.repeat(place, 2, axis=0) + 10 * rng.normal(size=(3000, 2))
    place[:, 0] += DRIFT_NM[frame]
    order = np.argsort(frame, kind="stable")
    xyz = np.pad(place[order], ((0, 0), (0, 1)))
    return EmitterSet(
        frame=torch.from_numpy(frame[order]),
        xyz=torch.from_numpy(xyz),
        photons=torch.full((3000,), 1000.0),
        xyz_sigma=torch.tensor([10.0, 10.0, torch.nan]).repeat(3000, 1),
        metadata={"n_frames": N_FRAMES, "pixel_size_nm": 100.0, "width_px": 40, "height_px": 40},
    )


def test_drift_links_and_report_stand_beside_the_table_that_stays_as_it_is(tmp_path: Path) -> None:
    tables = [tmp_path / "movie.csv", tmp_path / "movie.hdf5"]
    picture = tmp_path / "movie.png"
    for path in tables:
        write_table(molecules(structured=True), path)
    before = [path.read_bytes() for path in tables]
    done = finish(
        [*tables, picture], n_frames=N_FRAMES, steps=Finish(drift=True, link=True, report=True)
    )
    assert done.remarks == ()
    assert [path.read_bytes() for path in tables] == before
    localized = [*tables, tmp_path / "movie.yaml", picture]
    assert set(done.files) == set(finished_files(localized))
    assert all(path.stat().st_size for path in done.files)
    trace = read_drift(tmp_path / "movie.undrifted.drift.csv")
    assert np.abs(trace.xyz[:, 0] - DRIFT_NM).mean() < 5
    shift = read_table(tables[0]).xyz - read_table(tmp_path / "movie.undrifted.csv").xyz
    assert float(shift[:, 0].max()) == pytest.approx(60, abs=8)
    linked = read_table(tmp_path / "movie.linked.hdf5")
    assert len(linked) < 1600
    assert linked.others["n_frames"].sum() == 3000
    page = (tmp_path / "movie.html").read_text(encoding="utf-8")
    assert "movie.undrifted" in page


def test_what_the_data_do_not_tell_is_left_out_and_files_of_before_are_removed(
    tmp_path: Path,
) -> None:
    table, stale = tmp_path / "movie.csv", tmp_path / "movie.undrifted.csv"
    write_table(molecules(structured=False), table)
    stale.write_text("of another movie")
    done = finish([table], n_frames=N_FRAMES, steps=Finish(drift=True, link=True))
    (remark,) = done.remarks
    assert "no structure" in remark
    assert not stale.exists()
    assert [path.name for path in done.files] == ["movie.linked.csv"]


def test_what_does_not_fit_into_memory_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "movie.csv"
    write_table(molecules(structured=True), table)
    before = table.read_bytes()
    monkeypatch.setattr(room, "free_memory", lambda: 10**6)
    every = Finish(drift=True, link=True, report=True)
    done = finish([table], n_frames=N_FRAMES, n_molecules=3000, steps=every)
    assert done.files == ()
    drift, link, report = done.remarks
    assert "no drift was subtracted: the drift of 3000 rows takes" in drift
    assert "no blinks were linked" in link
    assert "no report was written" in report
    assert table.read_bytes() == before
    assert list(tmp_path.iterdir()) == [table]
    # the same, asked for by itself
    for verb in ("drift", "link", "report"):
        out = tmp_path / f"out{'.html' if verb == 'report' else '.csv'}"
        result = CliRunner().invoke(app, [verb, str(table), "-o", str(out)])
        assert result.exit_code == 1, result.output
        assert "GB of memory" in result.output
        assert not out.exists()
    monkeypatch.setattr(room, "free_memory", lambda: None)  # a system that does not say
    assert finish([table], n_frames=N_FRAMES, n_molecules=10**12, steps=Finish(link=True)).files


def test_only_long_movies_are_finished_unless_told_otherwise() -> None:
    assert not Finish().of_movie(LONG_FRAMES - 1).possible
    assert Finish().of_movie(LONG_FRAMES) == Finish(drift=True, link=True, report=True)
    assert Finish(drift=False).of_movie(LONG_FRAMES).drift is False
    assert Finish(report=True).of_movie(10) == Finish(drift=False, link=False, report=True)


def test_a_movie_without_a_table_is_told_to_have_one(tmp_path: Path) -> None:
    done = finish([tmp_path / "movie.png"], n_frames=LONG_FRAMES)
    assert done.files == ()
    assert "need a table" in done.remarks[0]


def test_the_command_line_takes_each_step_alone(tmp_path: Path) -> None:
    movie = ["localize", str(SAMPLES / "blinking_2d.tif"), "--model", "gaussian-2d", "--no-polish"]
    camera = ["--camera", str(SAMPLES / "camera.yaml"), "--psf-sigma", "92", "--frames", "0:6"]
    words = [*movie, *camera, "--format", "csv", "--link", "-o", str(tmp_path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "blinking_2d.linked.csv" in result.output
    assert {path.name for path in tmp_path.iterdir()} == {
        "blinking_2d.csv",
        "blinking_2d.linked.csv",
    }
