"""What napari is told of the plugin, and what it gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from npe2 import PluginManager, PluginManifest

from decode import EmitterSet, read_table, write_table
from decode_napari.readers import reader_of
from decode_napari.samples import sample_file

NAME = "decode-smlm"


@pytest.fixture
def table() -> EmitterSet:
    return EmitterSet(
        frame=torch.tensor([0, 1, 1]),
        xyz=torch.tensor([[100.5, 200.25, 0.0], [1.0, 2.0, 30.0], [640.0, 320.0, -10.0]]),
        photons=torch.tensor([500.0, 600.0, 700.0]),
        xyz_sigma=torch.full((3, 3), 7.5),
        metadata={"pixel_size_nm": 100.0},
    )


def test_the_manifest_is_valid_and_all_it_names_can_be_imported() -> None:
    manifest = PluginManifest.from_distribution(NAME)
    manifest.validate_imports()
    assert manifest.contributions.widgets
    assert manifest.contributions.sample_data


def test_movies_are_left_to_napari() -> None:
    readers = PluginManifest.from_distribution(NAME).contributions.readers or []
    patterns = {pattern for reader in readers for pattern in reader.filename_patterns}
    assert not any("tif" in pattern for pattern in patterns)


@pytest.mark.parametrize("suffix", [".csv", ".hdf5"])
def test_a_table_that_a_viewer_opens_and_saves_is_the_same_table(
    suffix: str, table: EmitterSet, tmp_path: Path, qapp: object
) -> None:
    from napari.components import ViewerModel

    PluginManager.instance().discover()
    path, again = tmp_path / f"table{suffix}", tmp_path / f"again{suffix}"
    write_table(table, path)
    viewer = ViewerModel()
    (layer,) = viewer.open(path, plugin=NAME)
    assert layer.name == "table"
    assert viewer.layers.save(str(again), plugin=NAME) == [str(again)]
    before, after = read_table(path), read_table(again)
    for name, column in before.columns().items():
        torch.testing.assert_close(after.columns()[name], column, equal_nan=True, rtol=0, atol=0)


def test_other_files_with_the_suffix_of_a_table_are_left_to_others(tmp_path: Path) -> None:
    points = tmp_path / "points.csv"
    points.write_text("index,axis-0,axis-1\n0,1,2\n")
    assert reader_of(str(points)) is None
    (tmp_path / "psf.h5").write_bytes(b"no HDF5")
    assert reader_of(str(tmp_path / "psf.h5")) is None
    assert reader_of(str(tmp_path / "missing.csv")) is None


@pytest.mark.parametrize("key", ["blinking_2d", "blinking_3d"])
def test_samples_open_as_lazy_movies_that_know_their_camera(key: str, qapp: object) -> None:
    from napari.components import ViewerModel

    PluginManager.instance().discover()
    (layer,) = ViewerModel().open_sample(NAME, key)
    assert layer.data.shape == (200, 64, 64)
    assert not isinstance(layer.data, np.ndarray)
    assert Path(layer.metadata["camera"]).is_file()


def test_a_sample_that_is_not_there_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.tif"):
        sample_file("none.tif")
