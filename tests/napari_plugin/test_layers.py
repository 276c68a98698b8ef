"""Half pixel, axis order and scale; molecules as points and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from napari.layers import Layer

from decode import EmitterSet, open_movie, write_movie
from decode_napari.layers import (
    LazyFrames,
    cloud_layer,
    emitters_of,
    image_layer,
    movie_layer,
    points_layer,
    pyramid,
    volume_layer,
    white,
)


@pytest.fixture
def molecules(rng: torch.Generator) -> EmitterSet:
    n = 50
    return EmitterSet(
        frame=torch.randint(0, 9, (n,), generator=rng),
        xyz=torch.rand(n, 3, generator=rng) * 6400,
        photons=torch.rand(n, generator=rng) * 1000,
        background=torch.rand(n, generator=rng),
        probability=torch.rand(n, generator=rng),
        xyz_sigma=torch.rand(n, 3, generator=rng) * 20,
        photons_sigma=torch.rand(n, generator=rng),
        xyz_95=torch.rand(n, 3, generator=rng),
        photons_95=torch.rand(n, generator=rng),
        metadata={"pixel_size_nm": 100.0, "n_frames": 9},
    )


def test_a_molecule_at_the_centre_of_a_pixel_lies_there_in_images_of_any_pixel_size() -> None:
    """The centre of pixel (row 3, column 5) of 100 nm is x 550, y 350 nm from the outer corner."""
    one = EmitterSet(
        frame=torch.tensor([2]), xyz=torch.tensor([[550.0, 350.0, 0.0]]), photons=torch.ones(1)
    )
    points = Layer.create(*points_layer(one))
    at = points.data_to_world(points.data[0])
    for pixel_nm, row, column in ((100.0, 3, 5), (10.0, 34.5, 54.5), (1100.0, -0.182, 0.0)):
        image = Layer.create(
            *image_layer(np.zeros((100, 100)), pixel_size_nm=pixel_nm, name="image")
        )
        np.testing.assert_allclose(image.world_to_data(at[1:]), (row, column), atol=1e-3)


def test_a_large_picture_has_scales_that_hold_the_same_light_at_the_same_place() -> None:
    rng = np.random.default_rng(0)
    small = rng.random((300, 200)).astype(np.float32)
    assert len(pyramid(small)) == 1
    for shape in ((301, 517), (517, 301, 3)):
        large = rng.random(shape).astype(np.float32)
        scales = pyramid(large, longest_px=140)
        np.testing.assert_array_equal(scales[0][: shape[0], : shape[1]], large)
        assert max(scales[-1].shape[:2]) <= 140
        for halved, scale in enumerate(scales):
            assert scale.shape[:2] == tuple(side >> halved for side in scales[0].shape[:2])
            assert scale.sum() * 4**halved == pytest.approx(large.sum(), rel=1e-4)
        layer = Layer.create(*image_layer(scales, pixel_size_nm=10.0, name="picture"))
        assert layer.multiscale
        np.testing.assert_allclose(layer.world_to_data((0.005, 0.015)), (0, 1), atol=1e-9)


def test_a_voxel_lies_in_3d_where_its_molecules_lie() -> None:
    volume = Layer.create(
        *volume_layer(
            np.zeros((4, 5, 6)),
            voxel_nm=(50.0, 100.0, 100.0),
            origin_nm=(-100.0, 0.0, 0.0),
            name="volume",
        )
    )
    one = EmitterSet(
        frame=torch.tensor([3]), xyz=torch.tensor([[250.0, 150.0, -75.0]]), photons=torch.ones(1)
    )
    cloud = Layer.create(*cloud_layer(one))
    np.testing.assert_allclose(
        volume.world_to_data(cloud.data_to_world(cloud.data[0])), (0, 1, 2), atol=1e-9
    )


def test_white_is_a_share_of_the_light_and_darkness_has_one_too() -> None:
    image = np.zeros((100, 100))
    image[:10] = np.arange(1000).reshape(10, 100)
    assert white(image, 0.5) == pytest.approx(500, abs=1)
    assert white(np.zeros((4, 4)), 0.9) == 1.0


def test_movie_and_points_share_time_and_place(tmp_path: Path) -> None:
    write_movie(tmp_path / "movie.tif", np.arange(4 * 6 * 8).reshape(4, 6, 8))
    with open_movie(tmp_path / "movie.tif") as movie:
        layer = Layer.create(*movie_layer(movie, 160.0))
        one = EmitterSet(
            frame=torch.tensor([3]), xyz=torch.tensor([[240.0, 80.0, 0.0]]), photons=torch.ones(1)
        )
        points = Layer.create(*points_layer(one))
        np.testing.assert_allclose(
            layer.world_to_data(points.data_to_world(points.data[0])), (3, 0, 1), atol=1e-9
        )
        assert layer.units == points.units
        assert layer.axis_labels == points.axis_labels == ("t", "y", "x")


def test_in_3d_z_is_the_first_axis_in_um() -> None:
    one = EmitterSet(
        frame=torch.tensor([3]), xyz=torch.tensor([[240.0, 80.0, -500.0]]), photons=torch.ones(1)
    )
    cloud = Layer.create(*cloud_layer(one))
    np.testing.assert_allclose(cloud.data_to_world(cloud.data[0]), (-0.5, 0.08, 0.24), atol=1e-9)


def test_points_give_back_the_table_to_the_last_bit(molecules: EmitterSet) -> None:
    layer = Layer.create(*points_layer(molecules))
    data, options, _ = layer.as_layer_data_tuple()
    back = emitters_of(data, options)
    assert back.columns().keys() == molecules.columns().keys()
    for name, column in molecules.columns().items():
        assert torch.equal(back.columns()[name].to(column), column), name
    assert back.metadata == molecules.metadata


def test_points_that_were_deleted_or_moved_in_the_window_are_so_in_the_table(
    molecules: EmitterSet,
) -> None:
    layer = Layer.create(*points_layer(molecules))
    layer.selected_data = {0}
    layer.remove_selected()
    moved = layer.data.copy()
    moved[0, 1:] += (50, 20)
    layer.data = moved
    data, options, _ = layer.as_layer_data_tuple()
    back = emitters_of(data, options)
    assert len(back) == len(molecules) - 1
    torch.testing.assert_close(
        back.xyz[0],
        molecules.xyz[1].double() + torch.tensor([20.0, 50.0, 0.0], dtype=torch.float64),
    )


def test_points_in_um_of_another_plugin_are_understood_and_points_without_units_refused() -> None:
    data = np.array([[0.0, 10.0, 20.0]])
    um = emitters_of(
        data,
        {"scale": (1, 0.1, 0.1), "translate": (0, 0.05, 0.05), "units": ("pixel", "um", "um")}
        | {"units": ("pixel", "micrometer", "micrometer")},
    )
    torch.testing.assert_close(um.xyz[0], torch.tensor([2050.0, 1050.0, 0.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="units"):
        emitters_of(data, {"scale": (1, 1, 1)})
    with pytest.raises(ValueError, match="frame"):
        emitters_of(data[:, 1:], {"scale": (0.001, 0.001)})


def test_lazy_frames_slice_as_an_array_does(tmp_path: Path) -> None:
    frames = np.arange(5 * 6 * 7, dtype=np.uint16).reshape(5, 6, 7)
    write_movie(tmp_path / "movie.tif", frames)
    with open_movie(tmp_path / "movie.tif") as movie:
        lazy = LazyFrames(movie)
        assert lazy.shape == frames.shape
        for key in (
            2,
            -1,
            slice(1, 4),
            slice(None, None, 2),
            (3, slice(1, 3)),
            (slice(0, 2), slice(None), 4),
            (Ellipsis,),
            (1, 2, 3),
        ):
            np.testing.assert_array_equal(lazy[key], frames[key])
        np.testing.assert_array_equal(np.asarray(lazy), frames)


def test_other_columns_of_a_table_go_through_a_layer(molecules: EmitterSet) -> None:
    others = {"group": np.arange(50) * 3, "cell": np.array(["a", "b"] * 25, dtype=object)}
    layer = Layer.create(*points_layer(replace(molecules, others=others)))
    layer.shown = np.arange(50) >= 20
    data, options, _ = layer.as_layer_data_tuple()
    back = emitters_of(data, options)
    assert {name: values.tolist() for name, values in back.others.items()} == {
        name: values[20:].tolist() for name, values in others.items()
    }
