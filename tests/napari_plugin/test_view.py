"""What the viewer shows of molecules: the same at any zoom, on top of what it belongs to, and
never out of date."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from decode import EmitterSet, open_movie, write_movie
from decode.optics.camera import Camera
from decode.rendering import Rendering, render_image
from decode_napari.layers import LazyFrames, movie_layer
from decode_napari.molecules import Filter
from decode_napari.qt.view import CHOSEN, RINGS_PX, camera_of, half_canvas_um
from decode_napari.readers import ForeignTable, reader_of
from decode_napari.samples import sample_file
from decode_napari.session import ChosenModel, Found
from decode_napari.steps.export import ExportStep
from decode_napari.steps.inspect import InspectStep, _noise
from decode_napari.steps.localize import LocalizeStep
from decode_napari.steps.model import ModelStep, card_of
from decode_napari.steps.movie import MovieStep

NAME = "decode-smlm"
LONG = 200_000
"""ms: the machine may be busy"""


def table_of(n: int, *, deep: bool = True) -> EmitterSet:
    rng = torch.Generator().manual_seed(1)
    depth = 1000.0 if deep else 0.0
    return EmitterSet(
        frame=torch.randint(0, 500, (n,), generator=rng).sort().values,
        xyz=torch.rand(n, 3, generator=rng) * torch.tensor([25600.0, 25600.0, depth]),
        photons=torch.rand(n, generator=rng) * 5000,
        probability=torch.rand(n, generator=rng),
        xyz_sigma=torch.rand(n, 3, generator=rng) * 20 + 5,
        metadata={"pixel_size_nm": 100.0, "width_px": 256, "height_px": 256},
    )


def put(dock: Any, qtbot: Any, emitters: EmitterSet, source: str = "table.csv") -> None:
    dock.session.put(found=Found(filter=Filter(emitters), source=source))
    qtbot.waitUntil(lambda: not dock.view._is_new, timeout=LONG)


def look_at(viewer: Any, x_um: float, y_um: float, longest_um: float) -> None:
    camera = camera_of(viewer)
    camera.center = (*camera.center[:-2], y_um, x_um)
    camera.zoom *= 2 * max(half_canvas_um(viewer)) / longest_um


def on_screen_px(viewer: Any, name: str) -> float:
    """Diameter of a layer's points."""
    layer = viewer.layers[name]
    return float(layer.size.max() * layer.scale[-1] * camera_of(viewer).zoom)


def test_rings_keep_their_size_on_the_screen_and_the_selected_molecule_has_a_square(
    make_napari_viewer: Any, qtbot: Any
) -> None:
    viewer = make_napari_viewer(show=True)
    _, dock = viewer.window.add_plugin_dock_widget(NAME, "Localize molecules")
    put(dock, qtbot, table_of(400))
    viewer.reset_view()
    dock.view.select(7)
    for field_um in (25.0, 3.0, 60.0):
        look_at(viewer, 12.8, 12.8, field_um)
        for name in ("molecules", "selected"):
            qtbot.waitUntil(
                lambda n=name: abs(on_screen_px(viewer, n) / RINGS_PX[n] - 1) < 0.3, timeout=LONG
            )
    square = viewer.layers["selected"]
    emitters = dock.session.found.filter.emitters
    np.testing.assert_allclose(square.data[0, 1:], emitters.xyz[7, [1, 0]].numpy())
    assert str(square.symbol[0]) == CHOSEN["symbol"]
    viewer.layers["molecules"].selected_data = {30}
    np.testing.assert_allclose(square.data[0, 1:], emitters.xyz[30, [1, 0]].numpy())
    put(dock, qtbot, table_of(50))
    assert "selected" not in viewer.layers


def test_a_molecule_in_view_is_selected_where_it_is(dock: Any, qtbot: Any) -> None:
    put(dock, qtbot, table_of(400))
    look_at(dock.viewer, 12.8, 12.8, 60.0)
    before = camera_of(dock.viewer).center
    dock.view.select(7)
    assert camera_of(dock.viewer).center == before
    look_at(dock.viewer, 1000.0, 1000.0, 5.0)
    dock.view.select(7)
    x, y = (dock.session.found.filter.emitters.xyz[7, :2] / 1000).tolist()
    np.testing.assert_allclose(camera_of(dock.viewer).center[-2:], (y, x), rtol=1e-5)


def test_what_the_widget_adds_is_not_selected(dock: Any, qtbot: Any) -> None:
    dock.viewer.open_sample(NAME, "blinking_2d")
    qtbot.waitUntil(lambda: "density" in dock.viewer.layers, timeout=LONG)
    assert dock.viewer.layers.selection.active.name == "blinking_2d"


def test_the_contrast_of_the_density_follows_the_zoom(dock: Any, qtbot: Any) -> None:
    put(dock, qtbot, table_of(100_000))
    layer = dock.viewer.layers["density"]
    for field_um in (26.0, 2.0):
        look_at(dock.viewer, 12.8, 12.8, field_um)
        dock.view._follow_camera()
        pixel_um = 0.01 * 2**layer.data_level
        assert (
            layer.contrast_limits[1] >= 4 / pixel_um**2 * 0.75
        )  # a single molecule is never white


def test_colours_that_cannot_be_seen_are_explained_and_seen_ones_follow_at_once(
    dock: Any, qtbot: Any
) -> None:
    put(dock, qtbot, table_of(100_000))
    panel = dock.panel(InspectStep)
    look_at(dock.viewer, 12.8, 12.8, 30.0)
    dock.view.show_in_view()
    assert not panel.crowded.isHidden()
    assert "5,000" in panel.crowded.text()
    look_at(dock.viewer, 1.25, 1.25, 2.5)
    dock.view.show_in_view()
    assert panel.crowded.isHidden()
    near = dock.viewer.layers["all frames"]
    before = near.face_color.copy()
    panel.colour_by.setCurrentText("z")
    assert not np.allclose(near.face_color, before)


def test_a_table_in_2d_is_not_coloured_by_a_depth_that_was_chosen_before(
    dock: Any, qtbot: Any
) -> None:
    panel, export = dock.panel(InspectStep), dock.panel(ExportStep)
    put(dock, qtbot, table_of(50))
    panel.colour_by.setCurrentText("z")
    panel.colour_by.textActivated.emit("z")
    export.color.setCurrentText("z")
    put(dock, qtbot, table_of(50, deep=False), "flat.csv")
    assert panel.colour_by.findText("z") < 0
    assert dock.view.colour_by == panel.colour_by.currentText() == "photons"
    export._read()
    assert export.step.settings.color == "density"
    put(dock, qtbot, table_of(50), "deep.csv")
    assert dock.view.colour_by == "z"  # the choice stays


@pytest.mark.parametrize(
    ("color", "kernel"), [("density", "gaussian"), ("density", "histogram"), ("z", "gaussian")]
)
def test_the_picture_that_is_saved_is_the_one_that_is_shown(
    color: str, kernel: str, make_napari_viewer: Any, qtbot: Any, tmp_path: Path
) -> None:
    viewer = make_napari_viewer(show=True)
    _, dock = viewer.window.add_plugin_dock_widget(NAME, "Localize molecules")
    table = table_of(3000)
    put(dock, qtbot, table)
    export = dock.panel(ExportStep)
    export.pixel.setValue(100.0)
    export.color.setCurrentText(color)
    export.kernel.setCurrentText(kernel)
    export.run()
    qtbot.waitUntil(
        lambda: "super-resolved" in viewer.layers and not dock.runner.busy, timeout=LONG
    )
    for name in ("picture.png", "picture.tif"):
        export.save_picture(tmp_path / name)
        qtbot.waitUntil(lambda name=name: (tmp_path / name).is_file(), timeout=LONG)
        qtbot.waitUntil(lambda: not dock.runner.busy, timeout=LONG)
    saved = (
        np.asarray(Image.open(tmp_path / "picture.png"))[:200, :256, :3] / 255.0
    )  # the scale bar is below
    layer = viewer.layers["super-resolved"]
    shown = np.asarray(layer.data)
    density = tifffile.imread(tmp_path / "picture.tif").reshape(-1, 256, 256)
    assert density.sum() == pytest.approx(3000, rel=3e-3)  # a few hang over an edge
    if color == "density":
        settings = Rendering(pixel_nm=100.0, color=color, kernel=cast(Any, kernel))
        np.testing.assert_array_equal(shown, render_image(table, settings))
        np.testing.assert_array_equal(shown, density[0])
        low, high = layer.contrast_limits
        shown = layer.colormap.map(
            (np.clip((shown - low) / (high - low), 0, 1) ** layer.gamma).ravel()
        )
        shown = shown[:, :3].reshape(256, 256, 3)
    assert np.abs(shown[:200] - saved).max() < 0.02
    assert viewer.layers.index(layer) == len(viewer.layers) - 1


def test_the_density_in_the_window_is_the_histogram_that_is_saved(dock: Any, qtbot: Any) -> None:
    table = table_of(30_000)
    put(dock, qtbot, table)
    layer = dock.viewer.layers["density"]
    finest = np.asarray(layer.data[0])
    pixel_nm = dock.view._density.pixel_nm
    region = (0.0, 0.0, finest.shape[1] * pixel_nm, finest.shape[0] * pixel_nm)
    settings = Rendering(kernel="histogram", pixel_nm=pixel_nm, region_nm=region)
    counts = render_image(table, settings)
    assert counts.sum() == 30_000
    np.testing.assert_allclose(finest, counts / (pixel_nm / 1000) ** 2, rtol=1e-6)


def test_a_picture_of_other_molecules_than_pass_is_marked(dock: Any, qtbot: Any) -> None:
    put(dock, qtbot, table_of(30_000))
    inspect, export = dock.panel(InspectStep), dock.panel(ExportStep)
    assert inspect.all_frames.isChecked()
    export.pixel.setValue(100.0)
    export.run()
    qtbot.waitUntil(
        lambda: "super-resolved" in dock.viewer.layers and not dock.runner.busy, timeout=LONG
    )
    assert not inspect.all_frames.isChecked()  # their points would cover the picture
    inspect.sliders["photons"].setValue((1000.0, 4000.0))
    qtbot.waitUntil(lambda: "super-resolved, out of date" in dock.viewer.layers, timeout=LONG)
    assert "render it again" in export.state.text()
    export.run()
    qtbot.waitUntil(
        lambda: "super-resolved" in dock.viewer.layers and not dock.runner.busy, timeout=LONG
    )
    assert "again" not in export.state.text()
    assert "super-resolved, out of date" not in dock.viewer.layers


def test_what_is_left_over_is_in_standard_deviations_of_each_pixel_of_an_scmos() -> None:
    rng = torch.Generator().manual_seed(3)
    read_noise = torch.where(torch.rand(64, 64, generator=rng) < 0.05, 20.0, 1.5)
    camera = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=read_noise, qe=0.8)
    light = torch.full((400, 64, 64), 30.0)
    measured = camera.to_photons(camera.sample(light, rng))
    spread = ((measured - light) / _noise(camera, light[0])).std(0)
    assert spread.mean() == pytest.approx(1.0, abs=0.02)
    assert spread.max() < 1.3


def test_bright_spots_are_within_the_contrast_and_a_hot_pixel_has_no_say(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.poisson(100, (30, 64, 64))
    frames[::5, 30, 30] += 2000  # a molecule
    frames[:, 5, 5] = 60_000  # a hot pixel
    write_movie(tmp_path / "movie.tif", frames.astype(np.uint16))
    with open_movie(tmp_path / "movie.tif") as movie:
        _, options, _ = movie_layer(movie, 100.0)
    low, high = options["contrast_limits"]
    assert low < 100
    assert 1900 < high < 3000


def test_a_movie_that_was_read_whole_is_read_lazily_from_then_on(dock: Any, qtbot: Any) -> None:
    dock.panel(MovieStep).set_camera(str(sample_file("camera.yaml")))
    (layer,) = dock.viewer.open(sample_file("blinking_2d.tif"), plugin="napari")
    qtbot.waitUntil(lambda: dock.session.movie is not None, timeout=LONG)
    assert isinstance(layer.data, LazyFrames)
    with open_movie(sample_file("blinking_2d.tif")) as movie:
        np.testing.assert_array_equal(layer.data[3], movie.read(3, 4)[0])


def test_a_foreign_table_is_a_sentence_and_no_dialog(
    make_napari_viewer: Any, tmp_path: Path
) -> None:
    (tmp_path / "foreign.csv").write_text("name;value\na;1\n", encoding="utf-8")
    viewer = make_napari_viewer()
    read = reader_of(str(tmp_path / "foreign.csv"))
    assert read is not None
    for _ in range(2):  # said each time
        with pytest.warns(ForeignTable, match="foreign.csv is not a table of molecules"):
            viewer.open(tmp_path / "foreign.csv", plugin=NAME)
    assert not viewer.layers
    (tmp_path / "points.csv").write_text("index,axis-0,axis-1\n0,1.0,2.0\n", encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ForeignTable)
        (points,) = viewer.open(tmp_path / "points.csv", plugin=NAME)  # napari's own
    np.testing.assert_allclose(points.data, [[1.0, 2.0]])


def test_the_width_of_a_psf_is_asked_for_by_models_that_are_told_it(dock: Any, qtbot: Any) -> None:
    localize = dock.panel(LocalizeStep)
    localize.psf_sigma.setValue(95.0)
    assert localize.form.isRowVisible(localize.psf_sigma)
    dock.panel(ModelStep).load("astigmatic-3d")

    def loaded() -> bool:
        model = dock.session.model  # None while a model is loaded
        return model is not None and model.name == "astigmatic-3d"

    qtbot.waitUntil(loaded, timeout=LONG)
    assert not localize.form.isRowVisible(localize.psf_sigma)
    assert localize._read().settings.psf_sigma_nm is None


def test_a_model_that_was_trained_here_says_how_long_and_that_it_is_the_one_that_localizes(
    dock: Any, complaints: list[str]
) -> None:
    localizer = dock.session.model.localizer
    localizer.record = replace(
        localizer.record, minutes=0.7, steps=120, validation=({"jaccard": 0.12},)
    )
    mine = ChosenModel(name="/data/mine.safetensors", localizer=localizer)
    assert "0.7 minutes, 120 steps; Jaccard 0.12" in card_of(mine).training
    dock.panel(ModelStep)._trained(mine)
    assert "mine.safetensors, trained for 0.7 minutes" in complaints[-1]
    assert "localizes now in place of gaussian-2d" in complaints[-1]
    assert "0.7 minutes" in dock.panel(ModelStep).about.text()
