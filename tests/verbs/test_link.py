"""decode link: a table of localizations to one of molecules."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from decode import EmitterSet, link, read_table, write_table
from decode.cli import app


def seen_twice(path: Path, *, n: int = 80, drift: bool = False) -> None:
    rng = torch.Generator().manual_seed(0)
    place = torch.cat([20_000 * torch.rand(n, 2, generator=rng), torch.zeros(n, 1)], 1)
    noise = 10 * torch.randn(2 * n, 3, generator=rng) * torch.tensor([1.0, 1.0, 0.0])
    rows = EmitterSet(
        frame=(4 * torch.arange(n)[:, None] + torch.arange(2)).flatten(),
        xyz=place.repeat_interleave(2, 0) + noise,
        photons=torch.full((2 * n,), 500.0),
        xyz_sigma=torch.tensor([10.0, 10.0, torch.nan]).repeat(2 * n, 1),
        metadata={"pixel_size_nm": 100.0} | ({"drift": "subtracted"} if drift else {}),
    )
    write_table(rows, path)


@pytest.mark.parametrize("suffix", [".csv", ".hdf5", ".parquet"])
def test_a_table_of_rows_becomes_one_of_molecules(suffix: str, tmp_path: Path) -> None:
    source, out = tmp_path / "rows.parquet", tmp_path / f"molecules{suffix}"
    seen_twice(source)
    molecules, linking = link(source, out)
    again = read_table(out)
    assert len(again) == len(molecules) == linking.n_molecules == 80
    np.testing.assert_array_equal(again.others["n_frames"], 2)
    torch.testing.assert_close(again.xyz, molecules.xyz, atol=2e-3, rtol=0)
    with pytest.raises(ValueError, match="linked already"):
        link(out, tmp_path / "twice.csv")


def test_the_step_is_in_the_metadata_and_printed_as_json(tmp_path: Path) -> None:
    source, out = tmp_path / "rows.csv", tmp_path / "molecules.parquet"
    seen_twice(source)
    done = CliRunner().invoke(app, ["link", str(source), "-o", str(out), "--json"])
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["rows"] == 160
    assert record["molecules"] == 80
    assert {"gap", "gate", "k_on_per_frame", "density_per_um2", "jitter_nm"} <= record.keys()
    assert read_table(out).metadata["link"] == record


def test_what_cannot_be_linked_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    source, out = tmp_path / "rows.parquet", tmp_path / "molecules.csv"

    def refused(*options: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["link", str(source), "-o", str(out), *options])
        assert not out.exists()
        return done.exit_code, done.stderr

    seen_twice(source, n=3)
    code, said = refused()
    assert code == 3
    assert "hardly a molecule is seen in a second frame" in said
    seen_twice(source, drift=True)
    code, said = refused("--movie", str(source))
    assert code == 2
    assert "name their movie, its PSF and its camera" in said
    beside = ("--movie", "m.tif", "--psf", "psf.h5", "--camera", "sample_data/camera.yaml")
    code, said = refused(*beside)
    assert code == 2
    assert "link the table before, then correct the drift" in said
