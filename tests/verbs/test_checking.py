"""Checks as users meet them: on stderr, in JSON, in tables, and as an exit code."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import yaml
from typer.testing import CliRunner

from decode.cli import app
from decode.io.tables import read_table

SAMPLES = Path(__file__).resolve().parents[2] / "sample_data"


def test_a_wrong_gain_is_said_and_with_strict_ends_the_command_with_3(tmp_path: Path) -> None:
    camera = yaml.safe_load((SAMPLES / "camera.yaml").read_text())
    (tmp_path / "camera.yaml").write_text(yaml.safe_dump(camera | {"e_per_adu": 70.0}))
    known = ["--model", "gaussian-2d", "--camera", str(tmp_path / "camera.yaml")]
    written = ["--psf-sigma", "95", "--frames", "0:24", "-o", str(tmp_path), "--format", "hdf5"]
    movie = str(SAMPLES / "blinking_2d.tif")
    result = CliRunner().invoke(app, ["localize", movie, *known, *written, "--json", "--strict"])
    assert result.exit_code == 3, result.stderr
    assert "warning: camera noise: where no molecule is" in result.stderr
    (summary,) = json.loads(result.stdout)
    first = summary["checks"][0]
    assert (first["name"], first["passed"]) == ("camera noise", False)
    assert first["value"] > first["limit"]
    table = read_table(tmp_path / "blinking_2d.hdf5")
    assert [asdict(check) for check in table.facts.checks] == summary["checks"]
