"""A report says of a table what its figures and facts say, and nothing where they say nothing."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import decode
from decode import EmitterSet, read_table, write_table
from decode.cli import app
from decode.emitters import Check, Facts
from decode.postprocess.drift import Drift, write_drift
from decode.reporting import Report, tables_in

PASSED = Check(name="PSF width", value=1.02, limit=1.1, passed=True, sentence="as it should be")
FAILED = Check(name="camera noise", value=1.4, limit=1.1, passed=False, sentence="wrong <gain>")
SIGMA = 10.0


def movie(*checks: Check) -> EmitterSet:
    """The sample's true molecules, with the scatter that they state."""
    truth = read_table("sample_data/blinking_2d_truth.csv")
    rng = torch.Generator().manual_seed(0)
    noise = SIGMA * torch.randn(len(truth), 3, generator=rng) * torch.tensor([1.0, 1.0, 0.0])
    sigma = torch.full((len(truth), 3), SIGMA)
    sigma[:, 2] = torch.nan
    facts = Facts(
        pixel_size_nm=100.0,
        n_frames=200,
        width_px=64,
        height_px=64,
        movie="cells.tif",
        threshold=0.5,
        version="0.1.0",
        checks=checks,
    )
    return replace(truth, xyz=truth.xyz + noise, xyz_sigma=sigma, metadata=facts.metadata())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two movies, of which one fails a check, with what stands beside tables."""
    place = tmp_path_factory.mktemp("out")
    good, bad = movie(PASSED), movie(FAILED, PASSED)
    write_table(good, place / "good.csv")
    write_table(good, place / "good.hdf5")
    write_table(bad[:2000], place / "bad.parquet")
    write_table(good[:50], place / "good.sample-01.csv")
    trace = np.zeros((200, 3))
    trace[:, 0] = np.linspace(-40, 40, 200)
    write_drift(Drift(xyz=trace, sigma=np.full((200, 3), 1.5)), place / "good.drift.csv")
    return place


@pytest.fixture(scope="module")
def both(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    out = tmp_path_factory.mktemp("report") / "both.html"
    return decode.report(folder, out), out


def section(page: str, name: str, movie_number: int = 1) -> str:
    """The HTML of a section, "" where there is none."""
    found = re.search(rf'<section id="{name}-{movie_number}">.*?</section>', page, re.DOTALL)
    return found[0] if found else ""


def test_a_folder_gives_each_movie_once_and_no_draws_nor_traces(folder: Path) -> None:
    assert [path.name for path in tables_in([folder])] == ["bad.parquet", "good.hdf5"]
    assert [
        path.name for path in tables_in([folder.parent / folder.name, folder / "good.csv"])
    ] == [
        "bad.parquet",
        "good.hdf5",
        "good.csv",
    ]


def test_the_verdict_is_that_of_the_worst_light(both: tuple[Report, Path]) -> None:
    bad, good = both[0].movies
    assert bad.chapter.state == "bad"
    assert bad.chapter.verdict[0] == "Not to be trusted as it is: checks."
    (light,) = (light for light in bad.chapter.lights if light.name == "checks")
    assert light.sentence == "1 of 2 failed: camera noise"
    assert good.chapter.state != "bad"
    assert (bad.figures["checks_failed"], good.figures["checks_failed"]) == (1, 0)


def test_scatter_as_large_as_stated_is_said_to_be_so(both: tuple[Report, Path]) -> None:
    good = both[0].movies[1]
    assert good.figures["median_sigma_x_nm"] == pytest.approx(SIGMA)
    assert good.figures["nena_nm"] == pytest.approx(SIGMA, rel=0.05)
    assert good.figures["nena_over_stated"] == pytest.approx(1.0, rel=0.05)
    (light,) = (light for light in good.chapter.lights if light.name == "precision")
    assert light.state == "good"
    for axis in "xy":
        assert good.figures[f"scatter_over_stated_{axis}"] == pytest.approx(1.0, abs=0.05)
    page = section(both[1].read_text(), "precision")
    assert "Scatter of repeated localizations over their stated uncertainty" in page


def test_the_twin_holds_what_the_page_says(both: tuple[Report, Path]) -> None:
    found, out = both

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    twin = json.loads(out.with_suffix(".json").read_text(), parse_constant=refuse)
    page = out.read_text()
    for said, report in zip(twin["movies"], found.movies, strict=True):
        assert said["state"] == report.chapter.state
        assert said["figures"]["molecules"] == report.figures["molecules"]
        assert said["facts"]["movie"] == "cells.tif"
        assert said["quality"]["n"] == report.figures["molecules"]
        for sentence in report.chapter.verdict:
            words = re.sub("`([^`]+)`", r"<code>\1</code>", sentence.replace("+-", "±"))
            assert words.replace("'", "&#39;") in page


def test_the_page_shows_the_drift_that_was_subtracted(both: tuple[Report, Path]) -> None:
    found, out = both
    page = out.read_text()
    assert "Drift that was subtracted" in section(page, "drift", 2)
    assert "Drift that was subtracted" not in section(page, "drift", 1)
    assert found.movies[1].figures["drift_x_nm"] == pytest.approx(80.0)


def test_what_a_check_says_is_text_and_no_markup(both: tuple[Report, Path]) -> None:
    page = both[1].read_text()
    assert "wrong &lt;gain&gt;" in section(page, "checks", 1)
    assert "<gain>" not in page


def test_the_page_asks_the_network_for_nothing(both: tuple[Report, Path]) -> None:
    page = both[1].read_text()
    assert not re.search(r"https?:|<link|@import|url\(", page)
    assert set(re.findall(r'(?:src|href)="([#a-z]*)', page)) <= {"#movie", "#", "data"} | {
        f"#{name}" for name in re.findall(r'href="#([a-z]*)', page)
    }


def test_a_table_without_facts_has_those_of_its_twin(folder: Path, tmp_path: Path) -> None:
    (alone,) = decode.report(folder / "good.csv", tmp_path / "r.html").movies
    assert alone.record["facts"]["movie"] == "cells.tif"
    assert alone.figures["checks_failed"] == 0


def test_where_a_table_says_little_the_report_does_too(tmp_path: Path) -> None:
    truth = read_table("sample_data/blinking_2d_truth.csv")[:300]
    bare = EmitterSet(frame=truth.frame, xyz=truth.xyz, photons=torch.full((300,), math.nan))
    write_table(bare, tmp_path / "bare.csv")
    (found,) = decode.report(tmp_path / "bare.csv", tmp_path / "r.html").movies
    page = (tmp_path / "r.html").read_text()
    lights = {light.name: light.state for light in found.chapter.lights}
    assert lights["checks"] == lights["calibration"] == lights["precision"] == "unknown"
    assert found.chapter.state == "unknown"
    assert "median_photons" not in found.figures
    assert "Stated uncertainty" not in page
    assert not re.search(r"\bnan\b|NaN", page.split("<script>")[0])


@pytest.mark.parametrize(("n", "said"), [(0, "0 localizations"), (1, "1 localization")])
def test_few_molecules_are_said_to_tell_nothing(n: int, said: str, tmp_path: Path) -> None:
    write_table(movie(PASSED)[:n], tmp_path / "few.parquet")
    (found,) = decode.report(tmp_path / "few.parquet", tmp_path / "r.html").movies
    assert found.chapter.verdict == (f"No fault is seen, but too little is known: {said}.",)
    assert section((tmp_path / "r.html").read_text(), "provenance")


ODD = {
    "one place": (0.0, 0.0, SIGMA),
    "a line": (5000.0, 0.0, SIGMA),
    "no uncertainties": (5000.0, 5000.0, math.nan),
    "none but zeros": (5000.0, 5000.0, 0.0),
    "wide ones": (5000.0, 5000.0, 1e6),
}
"""sides of fields and uncertainties, nm, that tell no resolution"""


@pytest.mark.parametrize(("width", "height", "sigma"), ODD.values(), ids=ODD)
def test_molecules_without_structure_are_reported_all_the_same(
    width: float, height: float, sigma: float, tmp_path: Path
) -> None:
    n = 1000
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 1, (n, 3)) * [width, height, 0.0]
    table = EmitterSet(
        frame=torch.arange(n),
        xyz=torch.from_numpy(places),
        photons=torch.full((n,), 1000.0),
        xyz_sigma=torch.full((n, 3), sigma),
    )
    write_table(table, tmp_path / "odd.parquet")
    (found,) = decode.report(tmp_path / "odd.parquet", tmp_path / "r.html").movies
    assert found.figures["molecules"] == n
    assert found.figures.get("limited_by") is None


def test_frames_that_were_fitted_jointly_tell_no_precision(tmp_path: Path) -> None:
    free = movie(PASSED)
    tied = replace(free, polished=torch.ones(len(free), dtype=torch.bool))
    for name, table in {"free": free, "tied": tied}.items():
        write_table(table[:3000], tmp_path / f"{name}.parquet")
    first, second = decode.report(tmp_path, tmp_path / "r.html").movies
    assert first.figures["nena_nm"] == pytest.approx(SIGMA, rel=0.1)
    assert "nena_nm" not in second.figures
    (light,) = (light for light in second.chapter.lights if light.name == "precision")
    assert light.state == "unknown"
    assert "fitted jointly" in light.sentence


def call(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_commands_that_made_a_table_stand_in_its_report(tmp_path: Path) -> None:
    write_table(movie(PASSED)[:40], tmp_path / "a.parquet")
    first, second = tmp_path / "b.parquet", tmp_path / "c d.hdf5"
    assert call("convert", tmp_path / "a.parquet", first).exit_code == 0
    assert call("filter", first, "-o", second, "--keep", "frame=0:100").exit_code == 0
    lines = str(read_table(second).metadata["commands"]).splitlines()
    assert lines[0] == f"decode convert {tmp_path / 'a.parquet'} {first}"
    assert lines[1] == f"decode filter {first} -o '{second}' --keep frame=0:100"
    done = call("report", second, "-o", tmp_path / "r.html")
    assert done.exit_code == 0, done.output
    page = section((tmp_path / "r.html").read_text(), "provenance").replace("&#39;", "'")
    assert "\n".join(lines) in page
    write_table(movie(PASSED)[:40], first)  # in Python there is no command
    assert "commands" not in read_table(first).metadata


def test_the_command_line_lists_movies_and_files(folder: Path, tmp_path: Path) -> None:
    done = call("report", folder / "bad.parquet", "-o", tmp_path / "r.html")
    assert done.exit_code == 0, done.output
    assert "bad: Not to be trusted as it is: checks." in done.stdout
    assert (tmp_path / "r.json").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("empty -o r.html", "empty holds no table of molecules"),
        ("nothing.csv -o r.html", "there is no file or folder nothing.csv"),
        ("t.csv -o r.pdf", "reports are written as .html"),
        ("broken.csv -o r.html", "broken.csv"),
    ],
)
def test_what_cannot_be_reported_is_said_in_a_sentence(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("t.csv").write_text("frame,x [nm],y [nm]\n1,2,3\n")
    Path("broken.csv").write_text("frame,x [nm],y [nm]\n1,2\n")
    done = call("report", *words.split())
    assert done.exit_code == 2
    assert said in done.stderr
    assert not list(tmp_path.glob("r.*"))


def test_a_damaged_table_costs_its_own_row_only(tmp_path: Path) -> None:
    write_table(movie(PASSED)[:5], tmp_path / "whole.csv")
    (tmp_path / "broken.csv").write_text("frame,x [nm],y [nm]\n1,2\n")
    broken, whole = decode.report(tmp_path, tmp_path / "r.html").movies
    assert (broken.chapter.state, whole.chapter.state) == ("bad", "unknown")
    assert "broken.csv" in broken.chapter.verdict[1]


def test_a_report_in_its_own_folder_is_no_table_of_the_next_one(tmp_path: Path) -> None:
    write_table(movie(PASSED)[:300], tmp_path / "cells.hdf5")
    for _ in range(2):
        (found,) = decode.report(tmp_path, tmp_path / "report.html").movies
        assert found.name == "cells"


@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_nothing_overlaps(
    width: int, both: tuple[Report, Path], browser: Any, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    text = both[1].read_text()
    page.write_text(text.replace('<details class="chapter"', '<details open class="chapter"'))
    seen = browser.layout(page, width=width)
    assert (seen["width"], seen["overlaps"]) == (width, [])
    assert seen["needed"] <= width


@pytest.mark.slow
def test_half_a_million_molecules_take_seconds_and_few_megabytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n, frames, lines, side = 500_000, 10_000, 60, 25_600.0
    at, angle = rng.uniform(0, side, (lines, 2)), rng.uniform(0, np.pi, lines)
    which, along = rng.integers(0, lines, n), rng.uniform(-8000, 8000, n)
    x, y = at[which].T + along * np.array([np.cos(angle), np.sin(angle)])[:, which]
    sigma = rng.gamma(8, 1.5, (n, 1)) * np.array([1.0, 1.0, 2.0])
    xyz = np.column_stack([x, y, rng.uniform(-400, 400, n)]) + sigma * rng.normal(size=(n, 3))
    table = EmitterSet(
        frame=torch.from_numpy(np.sort(rng.integers(0, frames, n))),
        xyz=torch.from_numpy(xyz),
        photons=torch.from_numpy(rng.gamma(4, 300, n)),
        xyz_sigma=torch.from_numpy(sigma),
        probability=torch.from_numpy(rng.beta(8, 1, n)),
        metadata=Facts(pixel_size_nm=100, n_frames=frames, width_px=256, height_px=256).metadata(),
    )
    write_table(table, tmp_path / "large.parquet")
    before = time.process_time()
    decode.report(tmp_path / "large.parquet", tmp_path / "r.html")
    spent = time.process_time() - before
    assert (tmp_path / "r.html").stat().st_size < 5e6
    assert spent < 20, spent
