"""A table is looked at, and is refused where it is not as its description says."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from decode import EmitterSet, check_table, write_table
from decode.cli import app
from decode.io.tables.parquet import NAMES

FACTS = {"pixel_size_nm": 100.0, "n_frames": 8, "width_px": 64, "height_px": 32}


def molecules(**columns: Any) -> EmitterSet:
    good = {
        "frame": torch.tensor([0, 2, 7]),
        "xyz": torch.tensor([[125.0, 1150.0, -250.0], [1500.5, 50.25, 0.0], [6390, 3100, 480]]),
        "photons": torch.tensor([512.5, torch.nan, 2048.0]),
        "probability": torch.tensor([0.5, 0.875, 1.0]),
        "xyz_sigma": torch.tensor([[5.0, 10.0, torch.nan]] * 3),
        "metadata": FACTS,
    }
    return EmitterSet(**(good | columns))


def changed(name: str, *place: int, value: float) -> dict[str, Any]:
    column = molecules().columns()[name].clone()
    column[place] = value
    return {name: column}


def test_a_good_table_is_described(tmp_path: Path) -> None:
    done = {"drift": "subtracted, estimated from molecules", **FACTS, "filter": "photons=100:"}
    write_table(molecules(metadata=done), tmp_path / "a.parquet")
    found = check_table(tmp_path / "a.parquet")
    assert (found.format, found.rows, found.first_frame, found.last_frame) == ("parquet", 3, 0, 7)
    assert found.columns == {
        "frame": "",
        "x_nm": "nm",
        "y_nm": "nm",
        "z_nm": "nm",
        "photons": "photon",
        "probability": "",
        "uncertainty_x_nm": "nm",
        "uncertainty_y_nm": "nm",
        "uncertainty_z_nm": "nm",
    }
    assert found.facts == FACTS
    assert list(found.steps) == ["drift", "filter"]
    assert found.problems == ()


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (changed("xyz_sigma", 1, 0, value=-2), r"1 rows have a uncertainty_x_nm .* row 2 \(-2\)"),
        (changed("probability", 2, value=1.5), r"probability .* row 3 \(1.5\).* from 0 to 1"),
        (changed("photons", 0, value=torch.inf), r"photons .* row 1 \(inf\): it must be finite"),
        (changed("frame", 2, value=8), r"frame .* row 3 \(8\): it must be below 8, from 0"),
        (changed("xyz", 0, 0, value=-101), r"x_nm .* row 1 \(-101\): it must be from 0 to 6400 nm"),
        (changed("xyz", 0, 1, value=3301), r"y_nm .* row 1 \(3301\): it must be from 0 to 3200 nm"),
        ({"metadata": FACTS | {"pixel_size_nm": -100.0}}, "pixel_size_nm -100.0, which must be"),
        ({"correlation": torch.full((3, 6), -1.25)}, r"3 rows have a corr_xy .* from -1 to 1"),
    ],
)
def test_what_is_not_as_described_is_said(
    columns: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    write_table(molecules(**columns), tmp_path / "a.parquet")
    assert check_table(tmp_path / "a.parquet").problems
    done = CliRunner().invoke(app, ["check-table", str(tmp_path / "a.parquet")])
    assert done.exit_code == 2
    assert re.search(sentence, done.output)


def test_the_field_does_not_move_with_a_drift(tmp_path: Path) -> None:
    far = molecules(**changed("xyz", 0, 0, value=-900))
    write_table(far, tmp_path / "a.parquet")
    assert check_table(tmp_path / "a.parquet").problems
    still = replace(far, metadata=FACTS | {"drift": "subtracted"})
    write_table(still, tmp_path / "a.parquet")
    assert not check_table(tmp_path / "a.parquet").problems


def test_units_that_are_unknown_or_contradict_a_name_are_refused(tmp_path: Path) -> None:
    for name, unit, sentence in (
        ("x_nm", "um", "the column x_nm states the unit 'um'"),
        ("x", "furlong", "lengths in 'furlong'"),
    ):
        fields = [pa.field("frame", pa.int64()), pa.field("y_nm", pa.float64())]
        fields += [pa.field(name, pa.float64(), metadata={"unit": unit})]
        pq.write_table(
            pa.table([[0], [1.0], [2.0]], schema=pa.schema(fields)), tmp_path / "a.parquet"
        )
        with pytest.raises(ValueError, match=sentence):
            check_table(tmp_path / "a.parquet")


def test_the_command_prints_what_it_found_as_json_too(tmp_path: Path) -> None:
    write_table(molecules(**changed("probability", 0, value=-1)), tmp_path / "a.csv")
    done = CliRunner().invoke(app, ["check-table", str(tmp_path / "a.csv"), "--json"])
    assert done.exit_code == 2
    found = json.loads(done.stdout)
    assert (found["format"], found["rows"], found["columns"]["x_nm"]) == ("thunderstorm", 3, "nm")
    assert len(found["problems"]) == 1
    good = CliRunner().invoke(app, ["check-table", "sample_data/blinking_2d_truth.csv"])
    assert good.exit_code == 0
    assert "x_nm [nm]" in good.output
    (tmp_path / "b.csv").write_text("frame,x [nm],y [nm]\n1,2,nan\n")
    refused = CliRunner().invoke(app, ["check-table", str(tmp_path / "b.csv")])
    assert refused.exit_code == 2
    assert "rows without a position" in refused.output


def test_facts_and_steps_are_a_line_each(tmp_path: Path) -> None:
    facts = FACTS | {"camera": {"baseline": 100.0, "qe": 0.5}, "warnings": ["one", "two"]}
    done = {"link": {"gap": 1}, "commands": "decode a\ndecode b", "checks": [{"name": "n"}]}
    write_table(molecules(metadata=facts | done), tmp_path / "a.parquet")
    lines = CliRunner().invoke(app, ["check-table", str(tmp_path / "a.parquet")]).output.split("\n")
    for line in (
        "rows     3, frames 0 to 7",
        "facts    camera: baseline 100.0, qe 0.5",
        "facts    warnings: one; two",
        "facts    checks: 1 (see --json)",
        "steps    link: gap 1",
        "steps    commands: decode a; decode b",
    ):
        assert line in lines


def test_the_page_describes_every_column_of_the_native_table() -> None:
    page = Path("docs/table.md").read_text()
    assert all(f"`{name}`" in page for name, _ in NAMES.values())
