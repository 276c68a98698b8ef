"""decode link: a table of localizations to one of molecules."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from decode import (
    Camera,
    CameraFile,
    EmitterSet,
    GaussianPSF,
    link,
    read_table,
    write_camera,
    write_movie,
    write_table,
)
from decode.cli import app
from decode.io.psfs import PSFFile, write_psf
from decode.optics.psf import render


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


FILES = {"movie": "m.tif", "psf": "psf.h5", "camera": "c.yaml"}


def test_with_the_movie_molecules_are_refitted_and_without_its_frames_refused(
    tmp_path: Path,
) -> None:
    psf = GaussianPSF(130.0, pixel_size_nm=100.0)
    camera = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.5, qe=0.8)
    rng = torch.Generator().manual_seed(0)
    n, n_frames = 60, 100
    place = torch.cat([500 + 2000 * torch.rand(n, 2, generator=rng), torch.zeros(n, 1)], 1)
    start = torch.randint(0, n_frames - 2, (n,), generator=rng)
    frame, order = (start[:, None] + torch.arange(2)).flatten().sort(stable=True)
    truth = EmitterSet(
        frame=frame,
        xyz=place.repeat_interleave(2, 0)[order],
        photons=torch.full((2 * n,), 1500.0),
        background=torch.full((2 * n,), 8.0),
    )
    light = render(
        psf,
        frame=frame,
        xyz=truth.xyz,
        photons=truth.photons,
        n_frames=n_frames,
        shape=(30, 30),
    )
    write_movie(tmp_path / "m.tif", camera.sample(8 + light, rng).numpy().astype(np.uint16))
    write_psf(tmp_path / "psf.h5", PSFFile(psf=psf, z_range_nm=(0.0, 0.0)))
    write_camera(tmp_path / "c.yaml", CameraFile(camera=camera, pixel_size_nm=100.0))
    noise = 12 * torch.randn(2 * n, 3, generator=rng) * torch.tensor([1.0, 1.0, 0.0])
    rows = EmitterSet(
        frame=frame,
        xyz=truth.xyz + noise,
        photons=truth.photons,
        background=truth.background,
        xyz_sigma=torch.tensor([12.0, 12.0, torch.nan]).repeat(2 * n, 1),
        metadata={"pixel_size_nm": 100.0, "n_frames": n_frames},
    )
    write_table(rows, tmp_path / "rows.parquet")
    words = ["link", "rows.parquet", "-o", "out.parquet", "--movie", "m.tif", "--psf", "psf.h5"]
    words = [str(tmp_path / word) if "." in word else word for word in words]
    done = CliRunner().invoke(app, [*words, "--camera", str(tmp_path / "c.yaml"), "--json"])
    assert done.exit_code == 0, done.output
    whole = read_table(tmp_path / "out.parquet")
    assert whole.polished is not None
    assert whole.xyz_sigma is not None
    assert json.loads(done.stdout)["refitted"] == int(whole.polished.sum()) > 0.8 * n
    near = torch.cdist(whole.xyz[whole.polished], place.double()).min(1).values
    assert float(near.square().mean().sqrt()) < 8  # merged: 12
    # but for those with neighbours, which state no less than their rows
    assert float(whole.xyz_sigma[whole.polished, 0].median()) < 4
    late = EmitterSet(frame=frame + 50, xyz=rows.xyz, photons=rows.photons)
    write_table(late, tmp_path / "late.parquet")
    files = {name: tmp_path / file for name, file in FILES.items()}
    with pytest.raises(ValueError, match="it is not the movie"):
        link(tmp_path / "late.parquet", tmp_path / "out.csv", **files)
