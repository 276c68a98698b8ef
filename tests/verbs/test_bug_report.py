"""A bug report says what runs where, and never what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from decode.cli import app
from decode.verbs.bug_report import LAST_LINES, bug_report
from decode.version import __version__

SAMPLE = Path(__file__).resolve().parents[2] / "sample_data"


def test_it_names_versions_machine_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("UNRELATED_TOKEN", "hidden")
    report = bug_report()
    assert f"decode {__version__}" in report
    assert "| torch | " in report
    assert "`OMP_NUM_THREADS=3`" in report
    assert "hidden" not in report


def test_of_a_table_it_holds_facts_and_no_row() -> None:
    table = SAMPLE / "blinking_2d_truth.csv"
    report = bug_report([table])
    assert "challenge, 8919 rows" in report
    rows = table.read_text().splitlines()[1:]
    assert not any(row in report for row in rows)


def test_of_a_log_it_holds_the_end_and_of_a_recipe_all(tmp_path: Path) -> None:
    log, recipe = tmp_path / "training.log", tmp_path / "train.yaml"
    log.write_text("".join(f"line {i}\n" for i in range(500)))
    recipe.write_text("seed: 7\n")
    report = bug_report([log, recipe])
    assert report.count("\nline ") == LAST_LINES
    assert "line 499" in report
    assert "seed: 7" in report


def test_the_home_folder_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    log = tmp_path / "a.log"
    log.write_text(f"reading {tmp_path}/movie.tif\n")
    assert "reading ~/movie.tif" in bug_report([log])


def test_it_works_where_pytorch_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    assert "PyTorch does not run" in bug_report()


def test_a_file_that_is_no_table_is_refused_in_a_sentence(tmp_path: Path) -> None:
    odd = tmp_path / "odd.bin"
    odd.write_bytes(b"\x00\x01\x02")
    result = CliRunner().invoke(app, ["bug-report", str(odd)])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
