"""Ranges that are kept, as a function and on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from decode import EmitterSet, read_table, write_table
from decode.cli import app
from decode.postprocess.filter import COLUMNS, columns_of, filter_table, keep, parse_ranges

N = 500


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def table(rng: torch.Generator) -> EmitterSet:
    return EmitterSet(
        frame=torch.randint(0, 50, (N,), generator=rng),
        xyz=torch.rand(N, 3, generator=rng) * 6400,
        photons=torch.rand(N, generator=rng) * 5000,
        background=torch.rand(N, generator=rng) * 30,
        probability=torch.rand(N, generator=rng),
        xyz_sigma=torch.rand(N, 3, generator=rng) * 40,
        goodness=torch.rand(N, generator=rng) * 2,
        ess=torch.rand(N, generator=rng),
        metadata={"pixel_size_nm": 100.0},
    )


def test_every_column_is_a_column_of_the_table_in_its_unit(table: EmitterSet) -> None:
    columns = columns_of(table)
    assert columns.keys() == COLUMNS.keys()
    assert table.xyz_sigma is not None
    x, y, _ = table.xyz_sigma.T
    np.testing.assert_allclose(columns["sigma"], ((x**2 + y**2) / 2).sqrt(), rtol=1e-6)
    np.testing.assert_array_equal(columns["z"], table.xyz[:, 2])
    np.testing.assert_array_equal(columns["frame"], table.frame)


@pytest.mark.parametrize("name", list(COLUMNS))
def test_what_is_kept_lies_within_the_range_and_what_is_left_does_not(
    name: str, table: EmitterSet
) -> None:
    column = columns_of(table)[name]
    low, high = np.quantile(column, (0.2, 0.7)).tolist()
    kept = columns_of(keep(table, {name: (low, high)}))[name]
    assert 0.3 * N < len(kept) == np.count_nonzero((column >= low) & (column <= high)) < N
    assert len(keep(table, {name: (None, high)})) + np.count_nonzero(column > high) == N
    assert len(keep(table, {name: (low, None)})) + np.count_nonzero(column < low) == N


def test_ends_are_kept_whatever_the_precision_of_a_file(table: EmitterSet, tmp_path: Path) -> None:
    for suffix in (".csv", ".hdf5"):
        write_table(table, tmp_path / f"table{suffix}")
        stored = read_table(tmp_path / f"table{suffix}")
        assert stored.probability is not None
        end = float(f"{float(stored.probability[7]):.9g}")
        assert len(keep(stored[7:8], {"probability": (end, end)})) == 1


def test_a_value_that_is_not_known_is_kept(table: EmitterSet) -> None:
    assert table.goodness is not None
    table.goodness[:5] = torch.nan
    assert len(keep(table, {"goodness": (5.0, 6.0)})) == 5


@pytest.mark.parametrize("out", ["kept.csv", "kept.hdf5"])
def test_the_command_writes_what_the_function_keeps(
    out: str, table: EmitterSet, tmp_path: Path
) -> None:
    write_table(table, tmp_path / "table.hdf5")
    expected = keep(
        read_table(tmp_path / "table.hdf5"), {"photons": (1000.0, 4000.0), "z": (None, 3000.0)}
    )
    ranges = ("--keep", "photons=1000:", "--keep", "z=:3e3", "--keep", "photons=-5:4000")
    result = run("filter", tmp_path / "table.hdf5", "-o", tmp_path / out, *ranges)
    assert result.exit_code == 0, result.output
    assert f"{len(expected)} of {N} molecules" in result.output
    kept = read_table(tmp_path / out)
    assert 0 < len(kept) == len(expected) < N
    torch.testing.assert_close(kept.xyz, expected.xyz, rtol=0, atol=6e-4)
    assert torch.equal(kept.frame, expected.frame)


def test_a_table_without_a_pixel_size_becomes_one_in_pixels_where_it_is_stated(
    table: EmitterSet, tmp_path: Path
) -> None:
    write_table(table, tmp_path / "table.csv")
    arguments = (
        "filter",
        tmp_path / "table.csv",
        "-o",
        tmp_path / "kept.hdf5",
        "--keep",
        "frame=:9",
    )
    assert run(*arguments).exit_code == 2
    assert run(*arguments, "--pixel-size", 100).exit_code == 0
    assert int(read_table(tmp_path / "kept.hdf5").frame.max()) <= 9


@pytest.mark.parametrize(
    ("ranges", "sentence"),
    [
        (["photons"], "write it as COLUMN=LOW:HIGH"),
        (["photons=100"], "write it as COLUMN=LOW:HIGH"),
        (["photons=:"], "write it as COLUMN=LOW:HIGH"),
        (["photons=a:b"], "write it as COLUMN=LOW:HIGH"),
        (["photons=1:2:3"], "write it as COLUMN=LOW:HIGH"),
        (["photons=nan:"], "write it as COLUMN=LOW:HIGH"),
        (["light=1:2"], "there is no column light"),
        (["photons=5:1"], "nothing lies between"),
        (["photons=5:", "photons=:1"], "nothing lies between"),
        (["goodness=1:2"], "the table has no column goodness; it has photons"),
    ],
)
def test_a_range_that_cannot_be_is_said_in_one_sentence(
    ranges: list[str], sentence: str, tmp_path: Path
) -> None:
    one = EmitterSet(frame=torch.tensor([0]), xyz=torch.zeros(1, 3), photons=torch.ones(1))
    write_table(one, tmp_path / "table.csv")
    options = [word for text in ranges for word in ("--keep", text)]
    result = run("filter", tmp_path / "table.csv", "-o", tmp_path / "kept.csv", *options)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv"]


def test_ranges_of_one_column_narrow_each_other() -> None:
    assert parse_ranges(["z=-5:", "z=:7.5", "z=-9:3"]) == {"z": (-5.0, 3.0)}


def test_a_table_says_what_it_was_filtered_by(tmp_path: Path) -> None:
    source = "sample_data/blinking_2d_truth.csv"
    once, twice = tmp_path / "once.parquet", tmp_path / "twice.parquet"
    filter_table(source, once, {"photons": (500.0, None)})
    filter_table(once, twice, {"frame": (None, 99.0)})
    assert read_table(twice).metadata["filter"] == "photons=500:, frame=:99"
    third = keep(read_table(twice), {"z": (None, 1 / 3)})
    assert third.metadata["filter"] == "photons=500:, frame=:99, z=:0.3333333333333333"
    assert keep(third, {}).metadata == third.metadata
