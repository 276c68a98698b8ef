"""What napari is told of the plugin, and what it gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from npe2 import PluginManager, PluginManifest

from decode import EmitterSet, read_table, write_movie, write_table
from decode.io.tables import table_suffixes
from decode_napari.layers import LazyFrames
from decode_napari.readers import ForeignTable
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


def test_all_tables_that_are_read_are_offered(
    table: EmitterSet, tmp_path: Path, qapp: object
) -> None:
    from napari.components import ViewerModel

    from decode_napari.qt.panel import TABLES

    manifest = PluginManifest.from_distribution(NAME)
    (reader,) = (
        each for each in manifest.contributions.readers if each.command.endswith("read_molecules")
    )
    assert set(reader.filename_patterns) == {f"*{suffix}" for suffix in table_suffixes()}
    assert all(f"*{suffix}" in TABLES for suffix in table_suffixes())
    PluginManager.instance().discover()
    write_table(table, tmp_path / "table.csv")
    text = (tmp_path / "table.csv").read_text()
    for suffix in (".tsv", ".txt", ".xls"):
        path = tmp_path / f"table{suffix}"
        path.write_text(text.replace(",", "\t"))
        (layer,) = ViewerModel().open(path, plugin=NAME)
        np.testing.assert_allclose(layer.data[:, 1:], table.xyz[:, [1, 0]], err_msg=suffix)


def test_a_text_that_is_no_table_says_so_and_makes_no_layer(tmp_path: Path, qapp: object) -> None:
    from napari.components import ViewerModel

    PluginManager.instance().discover()
    (tmp_path / "notes.txt").write_text("buffer changed at noon\n")
    with pytest.warns(ForeignTable, match=r"notes\.txt"):
        assert ViewerModel().open(tmp_path / "notes.txt", plugin=NAME) == []


def test_a_folder_of_frames_is_opened_as_a_movie_and_another_one_as_others_read_it(
    tmp_path: Path, qapp: object
) -> None:
    from napari.components import ViewerModel

    PluginManager.instance().discover()
    frames = np.random.default_rng(0).integers(0, 900, (12, 12, 16)).astype(np.uint16)
    (tmp_path / "frames").mkdir()
    (tmp_path / "pictures").mkdir()
    for i, frame in enumerate(frames):
        tifffile.imwrite(tmp_path / "frames" / f"img_{i}.tif", frame)
    for i in range(2):
        tifffile.imwrite(
            tmp_path / "pictures" / f"{i}.tif", np.zeros((5, 6, 3), np.uint8), photometric="rgb"
        )
    (layer,) = ViewerModel().open(tmp_path / "frames", plugin=NAME)
    assert isinstance(layer.data, LazyFrames)
    assert layer.name == "frames"
    np.testing.assert_array_equal(np.asarray(layer.data), frames)
    (layer,) = ViewerModel().open(tmp_path / "pictures", plugin=NAME)
    assert not isinstance(layer.data, LazyFrames)
    assert layer.data.shape[-3:-1] == (5, 6)


def test_other_files_with_the_suffix_of_a_table_are_left_to_others(
    tmp_path: Path, qapp: object
) -> None:
    from napari.components import ViewerModel

    PluginManager.instance().discover()
    points = tmp_path / "points.csv"
    points.write_text("index,axis-0,axis-1\n0,1,2\n")
    (layer,) = ViewerModel().open(points, plugin=NAME)
    np.testing.assert_array_equal(layer.data, [[1, 2]])


def test_a_movie_is_opened_and_its_frames_are_read_as_they_are_looked_at(
    tmp_path: Path, qapp: object
) -> None:
    from napari.components import ViewerModel

    PluginManager.instance().discover()
    frames = np.random.default_rng(0).integers(0, 900, (7, 12, 16)).astype(np.uint16)
    for name in ("movie.tif", "movie.ome.tif", "MOVIE.TIFF"):
        write_movie(tmp_path / name, frames, pixel_size_nm=110.0)
        (layer,) = ViewerModel().open(tmp_path / name, plugin=NAME)
        assert isinstance(layer.data, LazyFrames)
        assert layer.metadata["path"] == str(tmp_path / name)
        np.testing.assert_allclose(layer.scale, (1, 0.11, 0.11))
        np.testing.assert_array_equal(np.asarray(layer.data), frames)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((12, 16), {}),
        ((40, 50, 3), {"photometric": "rgb"}),
        ((4, 12, 16), {"imagej": True, "metadata": {"axes": "ZYX", "spacing": 0.2, "unit": "um"}}),
        ((4, 2, 12, 16), {"imagej": True, "metadata": {"axes": "ZCYX"}}),
    ],
)
def test_a_picture_that_is_no_movie_looks_as_napari_reads_it(
    shape: tuple[int, ...], options: dict[str, Any], tmp_path: Path, qapp: object
) -> None:
    from napari.components import ViewerModel

    PluginManager.instance().discover()
    picture = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    tifffile.imwrite(tmp_path / "picture.tif", picture, **options)
    (ours,) = ViewerModel().open(tmp_path / "picture.tif", plugin=NAME)
    (theirs,) = ViewerModel().open(tmp_path / "picture.tif", plugin="napari")
    np.testing.assert_array_equal(ours.data, picture)
    assert (type(ours.data), ours.rgb, ours.data.shape) == (
        type(theirs.data),
        theirs.rgb,
        theirs.data.shape,
    )
    np.testing.assert_array_equal(ours.scale, theirs.scale)


def test_pictures_that_are_stacked_are_stacked_by_napari(tmp_path: Path, qapp: object) -> None:
    from napari.components import ViewerModel

    PluginManager.instance().discover()
    for i in range(3):
        tifffile.imwrite(tmp_path / f"{i}.tif", np.full((5, 6), i, np.uint8))
    paths = [tmp_path / f"{i}.tif" for i in range(3)]
    (layer,) = ViewerModel().open(paths, stack=True, plugin=NAME)
    assert layer.data.shape == (3, 5, 6)


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
