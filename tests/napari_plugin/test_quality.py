"""The step that measures the quality and reports, without a window; linked and measured in one."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from decode import EmitterSet, read_table, write_table
from decode.cli import app
from decode.errors import Undetermined
from decode.progress import followed
from decode.quality.resolution import fourier_ring_correlation
from decode_napari.molecules import Filter
from decode_napari.session import Found, Session
from decode_napari.steps.link import LinkStep
from decode_napari.steps.quality import QualityStep

LONG = 200_000
N_FRAMES = 1000


def filaments(n: int = 250) -> EmitterSet:
    """Molecules on three lines, each in two successive frames."""
    rng = torch.Generator().manual_seed(0)
    along = 3000 * torch.rand(n, generator=rng)
    line = 500.0 + 1000.0 * torch.randint(0, 3, (n,), generator=rng)
    place = torch.stack([along, line, torch.zeros(n)], 1).repeat_interleave(2, 0)
    noise = 10 * torch.randn(2 * n, 3, generator=rng) * torch.tensor([1.0, 1.0, 0.0])
    start = torch.randint(0, N_FRAMES - 1, (n,), generator=rng)
    return EmitterSet(
        frame=(start[:, None] + torch.arange(2)).flatten(),
        xyz=place + noise,
        photons=500 + 500 * torch.rand(2 * n, generator=rng),
        xyz_sigma=torch.tensor([10.0, 10.0, torch.nan]).repeat(2 * n, 1),
        metadata={"pixel_size_nm": 100.0, "width_px": 32, "height_px": 32, "n_frames": N_FRAMES},
    ).sorted_by_frame()


def opened(table: EmitterSet, source: str = "table.parquet") -> Session:
    session = Session()
    session.put(found=Found(filter=Filter(table), source=source))
    return session


def test_figures_are_those_of_the_molecules_that_pass() -> None:
    session = opened(filaments())
    assert session.found is not None
    step = QualityStep(session)
    session.found.filter.restrict("photons", 600, 2000)
    step.accept(followed(step.assess()))
    assert step.assessed is not None
    passing = session.found.filter.passing()
    assert step.assessed.quality.n == len(passing) < 500
    shown = dict(step.assessed.rows)
    assert shown["resolution"] == fourier_ring_correlation(passing).sentence
    assert {"molecules", "precision", "over stated"} <= shown.keys()
    assert {"what to do", "predicted"} <= shown.keys() or "unknown" in shown["budget"]
    assert step.done().endswith("(FRC)")
    session.found.filter.restrict("photons", 0, 5000)
    assert step.is_stale()
    assert step.done() == ""


def test_what_cannot_be_measured_is_said() -> None:
    with pytest.raises(ValueError, match="localize a movie or open a table first"):
        QualityStep(Session()).assess()
    with pytest.raises(Undetermined, match="9 molecules"):
        followed(QualityStep(opened(filaments()[torch.arange(9)])).assess())


def test_the_report_is_that_of_the_copied_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(filaments(), "table.parquet")
    session = opened(read_table("table.parquet"))
    step = QualityStep(session)
    assert step.as_command() == "decode quality table.parquet"
    step.reported(followed(step.report(Path("table.html"))))
    figures = json.loads(Path("table.json").read_text())["movies"][0]["figures"]
    assert figures["molecules"] == 500
    assert "<html" in Path("table.html").read_text()
    Path("table.json").unlink()
    line = step.as_command().split(" && ")[-1]
    result = CliRunner().invoke(app, shlex.split(line)[1:])
    assert result.exit_code == 0, result.output
    assert json.loads(Path("table.json").read_text())["movies"][0]["figures"] == figures
    with pytest.raises(ValueError, match="html"):
        followed(step.report(Path("table.pdf")))
    compile(step.as_python(), "quality", "exec")


def test_linked_measured_and_reported_in_a_window(
    dock: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dock.session.put(found=Found(filter=Filter(filaments()), source=str(tmp_path / "table.csv")))
    quality, link = dock.panel(QualityStep), dock.panel(LinkStep)
    assert quality.figures.isHidden()
    quality.run_button.click()
    qtbot.waitUntil(lambda: not dock.runner.busy, timeout=LONG)
    assert not quality.troubles
    assert "resolution" in quality.figures.text()
    assert not quality.plot.isHidden()
    assert link.run_button.isEnabled()
    assert not link.refit.isEnabled()
    link.run_button.click()
    qtbot.waitUntil(link.undo_button.isEnabled, timeout=LONG)
    assert not link.troubles
    n = len(dock.session.found.filter.emitters)
    assert 200 < n < 260
    assert f"500 localizations of {n} molecules" in link.state.text()
    assert "other molecules" in quality.state.text()
    urls: list[str] = []
    monkeypatch.setattr(
        "decode_napari.qt.quality.QDesktopServices.openUrl",
        lambda url: urls.append(url.toLocalFile()),
    )
    page = tmp_path / "report.html"
    monkeypatch.setattr(quality, "ask_save", lambda *_: page)
    quality.report_button.click()
    qtbot.waitUntil(lambda: bool(urls), timeout=LONG)
    assert urls == [str(page)]
    assert page.is_file()
    link.undo_button.click()
    assert len(dock.session.found.filter.emitters) == 500
    dock.session.saved()
