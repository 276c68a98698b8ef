"""decode render: every option reaches the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from typer.testing import CliRunner, Result

import decode
from decode import Rendering, read_table
from decode.cli import app
from decode.rendering import Contrast, picture_of, save_picture

TABLE = "sample_data/blinking_3d_truth.csv"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["render", TABLE, *map(str, arguments)])


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ("", {}),
        ("--kernel scatter --color time", {"kernel": "scatter", "color": "time"}),
        (
            "--color z --range=-500,500 --colormap viridis --view xz --no-scale-bar",
            {
                "color": "z",
                "color_range": (-500.0, 500.0),
                "colormap": "viridis",
                "view": "xz",
                "scale_bar": False,
            },
        ),
        (
            "--region 1000,1000,4000,3000 --slices 400 --contrast 5,99.9 --gamma 1",
            {
                "region_nm": (1000.0, 1000.0, 4000.0, 3000.0),
                "slices_nm": 400.0,
                "contrast": Contrast(low=5.0, high=99.9),
                "gamma": 1.0,
            },
        ),
    ],
)
def test_options_are_settings(options: str, settings: dict[str, Any], tmp_path: Path) -> None:
    result = run("-o", tmp_path / "typed.png", "--pixel", 20, *options.split())
    assert result.exit_code == 0, result.output
    assert "7338 molecules" in result.stdout
    save_picture(read_table(TABLE), tmp_path / "called.png", Rendering(pixel_nm=20.0, **settings))
    typed, called = (
        np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("typed", "called")
    )
    np.testing.assert_array_equal(typed, called)


def test_densities_are_without_colours_unless_they_are_asked_for(tmp_path: Path) -> None:
    assert run("-o", tmp_path / "plain.tif", "--pixel", 20).exit_code == 0
    assert run("-o", tmp_path / "z.ome.tif", "--pixel", 20, "--color", "z").exit_code == 0
    plain, coloured = (tifffile.imread(tmp_path / name) for name in ("plain.tif", "z.ome.tif"))
    assert plain.ndim == 2
    assert coloured.shape == (7, *plain.shape)
    np.testing.assert_allclose(coloured.sum(0), plain, atol=1e-5)
    table = read_table(TABLE)
    settings = Rendering(pixel_nm=20.0, color="density")
    np.testing.assert_array_equal(plain, picture_of(table, settings).density()[0, 0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--region 1,2,3", "--region 1,2,3: write it as X0,Y0,X1,Y1"),
        ("--range high", "--range high: write it as LOW,HIGH"),
        ("--contrast 99", "--contrast 99: write it as LOW,HIGH"),
        ("--color flavour", "colours cannot show flavour; they show density, x, y, z"),
        ("--kernel blob", "kernel is blob, must be gaussian or histogram or scatter"),
        ("--pixel 0", "pixel of 0 nm: a positive length is needed"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_no_file(options: str, said: str, tmp_path: Path) -> None:
    result = run("-o", tmp_path / "picture.png", *options.split())
    assert result.exit_code == 2
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_picture_can_be_stopped_and_leaves_nothing(tmp_path: Path) -> None:
    steps = decode.render.steps(TABLE, tmp_path / "picture.tif", Rendering(pixel_nm=5.0))
    for _ in range(3):
        assert 0 <= (next(steps).fraction or 0.0) < 1
    steps.close()
    assert list(tmp_path.iterdir()) == []


def test_bits_are_those_of_the_numbers(tmp_path: Path) -> None:
    counts = ("--kernel", "histogram", "--pixel", 100, "--bits", 16)
    assert run("-o", tmp_path / "counts.tif", *counts).exit_code == 0
    assert tifffile.imread(tmp_path / "counts.tif").dtype == np.uint16
    refused = run("-o", tmp_path / "more.tif", "--bits", 12)
    assert refused.exit_code == 2
    assert "bits is 12, must be 16 or 32" in refused.stderr
    assert not (tmp_path / "more.tif").exists()
