"""Converting a table keeps the molecules where they are, in every format there is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner, Result

from decode import EmitterSet, convert, read_table, write_table
from decode.cli import app
from decode.io.tables import TableWriter, table_formats
from decode.io.tables.format import TableFormat

WRITABLE = [each for each in table_formats() if each.write is not None]
WITHOUT_ROOM = {"challenge"}
"""formats whose columns are fixed"""
WITHOUT_TEXTS = {"smlm", "smap", "smap-7.3"}


def phantom() -> EmitterSet:
    """Unlike in every axis, quantity and frame, with columns that no format knows; all of it exact
    in the digits of texts, and the places in those of single precision."""
    return EmitterSet(
        frame=torch.tensor([0, 2, 7]),
        xyz=torch.tensor(
            [[125.0, 1150.0, -250.0], [1500.5, 50.25, 0.0], [6399.0, 3100.0, 480.0]],
            dtype=torch.float64,
        ),
        photons=torch.tensor([512.5, 1000.0, 2048.0], dtype=torch.float64),
        background=torch.tensor([8.0, 16.5, 3.0], dtype=torch.float64),
        probability=torch.tensor([0.5, 0.875, 1.0], dtype=torch.float64),
        xyz_sigma=torch.tensor(
            [[5.0, 10.0, 20.5], [6.0, 12.0, 30.0], [7.0, 11.0, 40.0]], dtype=torch.float64
        ),
        photons_sigma=torch.tensor([30.5, 40.0, 50.0], dtype=torch.float64),
        goodness=torch.tensor([1.0, 1.25, 0.75], dtype=torch.float64),
        polished=torch.tensor([True, False, True]),
        others={
            "cluster": np.array([3, 1, 2]),
            "drift [um]": np.array([0.5, -0.25, 0.125]),
            "remark": np.array(["good", "near, an edge", "µ"], object),
        },
        metadata={"pixel_size_nm": 100.0, "n_frames": 8, "width_px": 64, "height_px": 32},
    )


def name_of(kind: TableFormat, stem: str) -> str:
    return f"{stem}{(*kind.suffixes, '.bin')[0]}"


@pytest.mark.parametrize("second", WRITABLE, ids=lambda kind: kind.name)
@pytest.mark.parametrize("first", WRITABLE, ids=lambda kind: kind.name)
def test_from_each_format_to_each_other_molecules_stay_in_place(
    first: TableFormat, second: TableFormat, tmp_path: Path
) -> None:
    source, out = tmp_path / name_of(first, "source"), tmp_path / name_of(second, "out")
    write_table(phantom(), source, dialect=first.name)
    convert(source, out, to=second.name, pixel_size_nm=100.0)
    again = read_table(out)
    assert again.frame.tolist() == phantom().frame.tolist()
    torch.testing.assert_close(again.xyz, phantom().xyz, atol=1e-3, rtol=0)
    torch.testing.assert_close(again.photons, phantom().photons)
    if {first.name, second.name} & WITHOUT_ROOM:
        return
    for name, column in phantom().columns().items():
        torch.testing.assert_close(again.columns()[name], column, atol=1e-3, rtol=1e-6)
    texts = not {first.name, second.name} & WITHOUT_TEXTS
    for name, values in phantom().others.items():
        if values.dtype != object or texts:
            np.testing.assert_array_equal(again.others[name], values)


@pytest.mark.parametrize("name", ["table.parquet", "table.smlm", "table.mat"])
def test_every_digit_and_the_facts_of_the_movie_are_kept(name: str, tmp_path: Path) -> None:
    table = replace(
        phantom(),
        xyz=phantom().xyz / 3,
        xyz_sigma=torch.tensor([[1.0, 2.0, torch.nan]] * 3, dtype=torch.float64) / 3,
        xyz_95=torch.tensor([[2.0, 4.0, torch.nan]] * 3, dtype=torch.float64) / 3,
        photons_95=torch.tensor([70.0, 80.0, 100.0], dtype=torch.float64) / 3,
        correlation=torch.arange(-9, 9, dtype=torch.float64).reshape(3, 6) / 9,
        ess=torch.tensor([0.9, 0.1, 0.3], dtype=torch.float64),
    )
    write_table(table, tmp_path / name)
    again = read_table(tmp_path / name)
    for name, column in table.columns().items():
        torch.testing.assert_close(again.columns()[name], column, atol=0, rtol=0, equal_nan=True)
    assert again.metadata == table.metadata
    assert again.facts.field_nm == (6400.0, 3200.0)


def test_small_chunks_of_a_parquet_table_are_stored_together(tmp_path: Path) -> None:
    with TableWriter(tmp_path / "table.parquet") as table:
        for _ in range(50):
            table.write(phantom())
    assert pq.ParquetFile(tmp_path / "table.parquet").num_row_groups == 1
    assert len(read_table(tmp_path / "table.parquet")) == 50 * len(phantom())


def test_a_parquet_table_of_another_program_is_read_by_its_units(tmp_path: Path) -> None:
    table = pa.table(
        {"frame": [0, 4], "x [um]": [0.5, 1.0], "y [px]": [2.0, None], "list": [[1]] * 2}
    )
    pq.write_table(table, tmp_path / "table.parquet")
    with pytest.raises(ValueError, match="is in pixels: state the side of one"):
        read_table(tmp_path / "table.parquet")
    with pytest.raises(ValueError, match="has rows without a position"):
        read_table(tmp_path / "table.parquet", pixel_size_nm=100.0)
    pq.write_table(table.slice(0, 1), tmp_path / "table.parquet")
    read = read_table(tmp_path / "table.parquet", pixel_size_nm=100.0)
    assert read.xyz.tolist() == [[500.0, 200.0, 0.0]]
    assert not read.others


def test_the_command_line_converts_by_suffix_or_by_name(tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        done = CliRunner().invoke(app, ["convert", *map(str, arguments)])
        assert done.exit_code == 0, done.output
        return done.stdout

    source = "sample_data/blinking_2d_truth.csv"
    assert "8919 molecules" in run(source, tmp_path / "t.parquet")
    run(tmp_path / "t.parquet", tmp_path / "t.csv", "--to", "challenge")
    assert (tmp_path / "t.csv").read_text().startswith("Ground-truth,frame,xnano")
    torch.testing.assert_close(read_table(tmp_path / "t.csv").xyz, read_table(source).xyz)
    refused = CliRunner().invoke(app, ["convert", source, str(tmp_path / "t.hdf5")])
    assert refused.exit_code == 2
    assert "pixel_size_nm" in refused.output
    assert not (tmp_path / "t.hdf5").exists()


def test_the_command_line_converts_a_text_with_columns_of_any_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("T;X;Y;N\n0;0,125;1,15;512\n5;1,5;0,05;99\n")

    def run(*options: str) -> Result:
        command = ["convert", str(tmp_path / "a.csv"), str(tmp_path / "b.csv"), *options]
        return CliRunner().invoke(app, command)

    named = ["--columns", "frame=T,x=X[um],y=Y[um]", "--columns", "photons=N"]
    assert run(*named, "--first-frame", "0").exit_code == 0
    molecules = read_table(tmp_path / "b.csv")
    assert molecules.frame.tolist() == [0, 5]
    assert molecules.xyz.tolist() == [[125, 1150, 0], [1500, 50, 0]]
    assert molecules.photons.tolist() == [512, 99]
    assert run("--columns", "x=X[um],y=Y[um]", "--first-frame", "3").exit_code == 0
    assert read_table(tmp_path / "b.csv").frame.tolist() == [0, 0]
    for options, sentence in (
        (["--columns", "frame=T,x=Z,y=Y"], "has no column 'Z'; it has 'T', 'X', 'Y', 'N'"),
        (["--columns", "frame=T,x=X[inch],y=Y"], "lengths in 'inch'"),
        (["--columns", "width=X"], "there is no quantity 'width'"),
        (["--columns", "x"], "write it as x=LABEL"),
        ([], "say which it is, as --columns x=LABEL"),
        (named, "has frame 0, but its frames count from 1; --first-frame says"),
    ):
        refused = run(*options)
        assert refused.exit_code == 2
        assert sentence in refused.output


def test_columns_are_named_of_texts_alone(tmp_path: Path) -> None:
    write_table(phantom(), tmp_path / "a.hdf5")
    with pytest.raises(ValueError, match="--first-frame are for texts alone"):
        read_table(tmp_path / "a.hdf5", first_frame=1)


def test_doubts_about_a_table_are_printed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"frame","x [nm]","y [nm]","intensity [ADU]"\n1,2,3,4\n')
    command = ["convert", str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0
    assert "warning: intensity [ADU]: numbers of the camera" in done.output
    again = read_table(tmp_path / "b.csv")
    assert again.photons.isnan().all()
    assert again.others["intensity [ADU]"].tolist() == [4]
