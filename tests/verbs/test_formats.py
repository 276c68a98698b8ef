"""The page of formats, and what napari is told of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from typer.testing import CliRunner

from decode.cli import app

ROOT = Path(__file__).resolve().parents[2]


def test_what_lists_the_formats_lists_those_there_are() -> None:
    spec = importlib.util.spec_from_file_location("make", ROOT / "docs" / "make_formats.py")
    assert spec is not None
    assert spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    remedy = "make it again: python docs/make_formats.py"
    assert make.PAGE.read_text(encoding="utf-8") == make.page(), remedy
    told = make.MANIFEST.read_text(encoding="utf-8")
    assert told == make.manifest(told), remedy


def test_the_command_line_prints_the_page() -> None:
    printed = CliRunner().invoke(app, ["formats"])
    assert printed.exit_code == 0
    assert printed.stdout == (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
