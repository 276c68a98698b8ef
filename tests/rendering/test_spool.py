"""Pictures of molecules that wait on the disk are those of molecules in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from decode.emitters import EmitterSet
from decode.rendering import Rendering, Spool, picture_of, save_picture, save_spooled

FIELD = {"pixel_size_nm": 100.0, "width_px": 64, "height_px": 48}


def table(n: int, *, deep: bool, seed: int = 0) -> EmitterSet:
    """Molecules within the field and some beyond, sharp and wide, on a line and anywhere."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-150, 6500, n), rng.uniform(-150, 4950, n)
    y[: n // 3] = 2000 + 15 * rng.standard_normal(n // 3)
    z = rng.normal(0, 250, n) if deep else np.zeros(n)
    sigma = np.column_stack([rng.uniform(3, 120, (n, 2)), np.full(n, np.nan)])
    return EmitterSet(
        frame=torch.arange(n),
        xyz=torch.from_numpy(np.column_stack([x, y, z])).float(),
        photons=torch.ones(n),
        xyz_sigma=torch.from_numpy(sigma).float(),
        metadata=FIELD,
    )


def spooled(molecules: EmitterSet, folder: Path, n_chunks: int) -> Spool:
    spool = Spool(folder, field_nm=(6400.0, 4800.0))
    for rows in torch.arange(len(molecules)).tensor_split(n_chunks):
        spool.add(molecules[rows])
    return spool


@pytest.mark.parametrize("deep", [False, True])
def test_the_picture_is_the_same_to_the_last_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deep: bool
) -> None:
    monkeypatch.setattr("decode.rendering.spool.WAITING", 700)
    monkeypatch.setattr("decode.rendering.spool.AT_ONCE", 900)
    molecules = table(5000, deep=deep)
    whole = picture_of(molecules, Rendering())
    parts = spooled(molecules, tmp_path, 7).layout()
    assert parts.canvas == whole.canvas
    assert parts.colouring.names == whole.colouring.names
    assert len(whole.colouring.names) == (7 if deep else 1)
    density = np.zeros((len(whole.colouring.names), *whole.canvas.shape), np.float32)
    tiles = list(parts.tiles())
    assert len(tiles) > 5
    for plane, (rows, columns), part in tiles:
        assert plane == 0
        density[:, rows.start : rows.stop, columns.start : columns.stop] = part
    np.testing.assert_array_equal(density, whole.density()[0])


@pytest.mark.parametrize("n", [0, 1, 2, 3, 400])
def test_the_file_is_the_same(tmp_path: Path, n: int) -> None:
    molecules = table(n, deep=True)
    waiting = tmp_path / "waiting"
    waiting.mkdir()
    save_picture(molecules, tmp_path / "whole.png")
    save_spooled(spooled(molecules, waiting, 2), tmp_path / "parts.png")
    assert (tmp_path / "parts.png").read_bytes() == (tmp_path / "whole.png").read_bytes()


def test_molecules_without_uncertainties_and_depths_of_both_signs(tmp_path: Path) -> None:
    molecules = table(999, deep=True)
    z = torch.linspace(-300, 300, 999)
    z[::2] = -0.0
    bare = EmitterSet(
        frame=molecules.frame,
        xyz=torch.stack([molecules.xyz[:, 0], molecules.xyz[:, 1], z], 1),
        photons=molecules.photons,
        metadata=FIELD,
    )
    waiting = tmp_path / "waiting"
    waiting.mkdir()
    save_picture(bare, tmp_path / "whole.png")
    save_spooled(spooled(bare, waiting, 4), tmp_path / "parts.png")
    assert (tmp_path / "parts.png").read_bytes() == (tmp_path / "whole.png").read_bytes()
