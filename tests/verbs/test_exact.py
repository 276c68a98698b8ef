"""localize --exact: the table states the moments of the exact posterior."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import decode
from decode.cli import app
from decode.io.psfs import PSFFile, write_psf
from decode.io.tables import read_table
from decode.optics.gaussian import GaussianPSF

SAMPLES = Path(__file__).resolve().parents[2] / "sample_data"
MOVIE, CAMERA = SAMPLES / "blinking_2d.tif", SAMPLES / "camera.yaml"
PSF = PSFFile(psf=GaussianPSF(95.0, pixel_size_nm=100.0), z_range_nm=(-50.0, 50.0))


def test_the_tables_have_correlations_and_effective_samples(tmp_path: Path) -> None:
    write_psf(tmp_path / "psf.h5", PSF)
    command = ["localize", MOVIE, "--model", "gaussian-2d", "--camera", CAMERA, "--psf-sigma", 95]
    command += ["--psf", tmp_path / "psf.h5", "--frames", "0:2", "--exact", "-o", tmp_path]
    done = CliRunner().invoke(
        app, [*map(str, command), "--format", "csv", "--format", "parquet", "--device", "cpu"]
    )
    assert done.exit_code == 0, done.output
    table = read_table(tmp_path / "blinking_2d.parquet")
    assert table.ess is not None
    assert table.correlation is not None
    assert table.xyz_sigma is not None
    assert table.ess.median() > 0.5
    assert ((table.ess > 0) & (table.ess <= 1)).all()
    assert (table.correlation[:, [0, 3, 4]].abs() < 1).all()
    assert table.correlation[:, [1, 2, 5]].isnan().all()
    printed = read_table(tmp_path / "blinking_2d.csv")
    assert printed.ess is not None
    assert (printed.ess - table.ess).abs().max() < 1e-3

    polished = decode.localize(
        MOVIE,
        model="gaussian-2d",
        camera=CAMERA,
        psf_sigma_nm=95.0,
        psf=PSF,
        frames=slice(0, 2),
        device="cpu",
    )
    table = table[table.frame < 2]
    assert len(polished) == len(table)
    assert polished.ess is None
    # the same molecules, moved within their uncertainties
    moved = (polished.xyz - table.xyz)[:, :2] / table.xyz_sigma[:, :2]
    assert moved.abs().median() < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs a known PSF"),
        ({"psf": PSF, "polish": False}, "that of polished molecules"),
    ],
)
def test_what_it_needs_is_said_in_a_sentence(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode.localize(
            MOVIE,
            model="gaussian-2d",
            camera=CAMERA,
            psf_sigma_nm=95.0,
            frames=slice(0, 2),
            exact=True,
            **options,  # type: ignore[arg-type]
        )


def test_neighbours_are_sampled_together() -> None:
    """Two molecules half a PSF apart: their errors are as large as stated."""
    from decode.emitters import EmitterSet
    from decode.likelihood import exact_posterior
    from decode.optics.camera import Camera
    from decode.optics.psf import render

    rng = torch.Generator().manual_seed(3)
    n, camera = 60, Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.5, qe=0.9)
    psf = GaussianPSF(130.0, pixel_size_nm=100.0)
    first = torch.cat([1600 + 100 * torch.rand(n, 2, generator=rng), torch.zeros(n, 1)], 1)
    angle = 2 * torch.pi * torch.rand(n, generator=rng)
    second = first + 250 * torch.stack([angle.cos(), angle.sin(), 0 * angle], 1)
    truth = EmitterSet(
        frame=2 * torch.arange(n).repeat_interleave(2),
        xyz=torch.stack([first, second], 1).flatten(0, 1),
        photons=torch.full((2 * n,), 1500.0),
        background=torch.full((2 * n,), 10.0),
    )
    light = render(
        psf, frame=truth.frame, xyz=truth.xyz, photons=truth.photons, n_frames=2 * n, shape=(33, 33)
    )
    adu = camera.sample(10 + light.detach(), rng)
    found = exact_posterior(psf, camera, adu, truth, axial=False)
    assert found.xyz_sigma is not None
    assert found.ess is not None
    assert found.ess.median() > 0.7
    error = ((found.xyz - truth.xyz) / found.xyz_sigma)[:, :2]
    assert 0.85 < error.square().mean().sqrt() < 1.15  # 240 numbers scatter by 5 %
