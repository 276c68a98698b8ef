"""The widgets themselves: on a viewer without a canvas, and in a real window where there is a
display."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from decode import EmitterSet, open_movie, read_table, write_movie, write_table
from decode.calibrate.gaussian import fit_gaussian
from decode.calibrate.psf import Optics
from decode.cli import app
from decode.progress import Progress, Stepwise
from decode_napari.layers import FACTS
from decode_napari.molecules import Filter
from decode_napari.qt.runner import remaining
from decode_napari.qt.view import camera_of, half_canvas_um
from decode_napari.samples import sample_file
from decode_napari.session import Found
from decode_napari.steps import STEPS
from decode_napari.steps.export import ExportStep
from decode_napari.steps.inspect import InspectStep
from decode_napari.steps.localize import LocalizeStep
from decode_napari.steps.model import ModelStep
from decode_napari.steps.movie import MovieStep
from decode_napari.steps.psf import PSFStep

NAME = "decode-smlm"
LONG = 200_000
"""ms: the machine may be busy"""

TINY_RECIPE = """
version: 1
training: {steps: 100000, movies: 1, frames: 3, size_px: 16, validate_every: 20}
network: {frame_widths: [4], sequence_widths: [4], head_width: 4}
"""


def open_sample(dock: Any, qtbot: Any, n_frames: int = 24) -> Any:
    """The 2D sample in the viewer, checked, and the panel set to its first frames and the PSF's
    known width."""
    dock.viewer.open_sample(NAME, "blinking_2d")
    qtbot.waitUntil(lambda: dock.session.movie is not None and not dock.runner.busy, timeout=LONG)
    panel = dock.panel(LocalizeStep)
    panel.psf_sigma.setValue(95.0)
    panel.stop_before.setValue(n_frames)
    return panel


def localized(dock: Any, qtbot: Any, n_frames: int = 24) -> Found:
    open_sample(dock, qtbot, n_frames)
    dock.localize()
    qtbot.waitUntil(lambda: not dock.runner.busy, timeout=LONG)
    found: Found = dock.session.found
    return found


@contextmanager
def longest_gap() -> Iterator[Callable[[], float]]:
    """Of the event loop, seconds between two beats of a timer that should beat every 5 ms."""
    from qtpy.QtCore import QTimer

    beats, timer = [time.perf_counter()], QTimer()
    timer.timeout.connect(lambda: beats.append(time.perf_counter()))
    timer.start(5)
    yield lambda: max(b - a for a, b in pairwise(beats))
    timer.stop()


def table_of(n: int) -> EmitterSet:
    rng = torch.Generator().manual_seed(1)
    return EmitterSet(
        frame=torch.randint(0, 5000, (n,), generator=rng).sort().values,
        xyz=torch.rand(n, 3, generator=rng) * torch.tensor([25600.0, 25600.0, 1000.0]),
        photons=torch.rand(n, generator=rng) * 5000,
        probability=torch.rand(n, generator=rng),
        xyz_sigma=torch.rand(n, 3, generator=rng) * 40,
        metadata={"pixel_size_nm": 100.0, "width_px": 256, "height_px": 256},
    )


def test_the_whole_job_in_a_real_window(
    make_napari_viewer: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open the sample, localize, filter, export, reopen: what is saved is what the command line
    writes."""
    viewer = make_napari_viewer(show=True)
    _, dock = viewer.window.add_plugin_dock_widget(NAME, "Localize molecules")
    qtbot.waitUntil(lambda: dock.session.model is not None, timeout=LONG)
    found = localized(dock, qtbot)
    assert found.complete
    assert len(found.filter.emitters) > 500
    monkeypatch.chdir(tmp_path)
    _, verb, *arguments = shlex.split(dock.steps[STEPS.index(LocalizeStep)].as_command())
    assert CliRunner().invoke(app, [verb, *arguments]).exit_code == 0

    export = dock.panel(ExportStep)
    export.save_table(tmp_path / "window.csv")
    qtbot.waitUntil((tmp_path / "window.csv").is_file, timeout=LONG)
    assert (tmp_path / "window.csv").read_bytes() == (
        tmp_path / "molecules" / "blinking_2d.csv"
    ).read_bytes()

    low, high = found.filter.bounds("probability")
    dock.panel(InspectStep).sliders["probability"].setValue((0.9, high))
    assert 0 < found.filter.n_passing < len(found.filter.emitters)
    qtbot.waitUntil(lambda: not dock.runner.busy, timeout=LONG)
    export.save_table(tmp_path / "filtered.csv")
    qtbot.waitUntil((tmp_path / "filtered.csv").is_file, timeout=LONG)
    cli = read_table(tmp_path / "molecules" / "blinking_2d.csv")
    assert cli.probability is not None
    # the table rounds probabilities to four digits, the filter does not
    kept = cli[torch.from_numpy(found.filter.mask)]
    assert torch.equal(read_table(tmp_path / "filtered.csv").xyz, kept.xyz)
    assert low < 0.9

    (layer,) = viewer.open(tmp_path / "filtered.csv", plugin=NAME)
    assert len(layer.data) == found.filter.n_passing
    np.testing.assert_array_equal(layer.data[:, 1:], kept.xyz[:, (1, 0)].numpy())

    dock.view_in_3d()
    cloud = dock.cloud.viewer
    assert cloud.dims.ndisplay == 3
    assert cloud.layers["molecules in 3D"].shown.sum() == found.filter.n_passing
    cloud.close()

    qtbot.wait(300)
    picture = viewer.screenshot(canvas_only=True, flash=False)
    assert picture[..., :3].std() > 5


def test_points_lie_on_their_spots(dock: Any, qtbot: Any) -> None:
    """Light around isolated bright molecules has its centroid at the point, to a tenth of a
    pixel on average."""
    found = localized(dock, qtbot)
    emitters, movie = found.filter.emitters, dock.viewer.layers["blinking_2d"]
    points = dock.view.points
    qtbot.waitUntil(lambda: len(points.data) == len(emitters), timeout=LONG)
    with open_movie(sample_file("blinking_2d.tif")) as file:
        frames = file.read(0, 24).astype(float)
    apart = torch.cdist(emitters.xyz[:, :2], emitters.xyz[:, :2])
    apart[(emitters.frame[:, None] != emitters.frame)] = torch.inf
    alone = apart.fill_diagonal_(torch.inf).amin(1) > 900
    offsets = []
    for point in points.data[(alone & (emitters.photons > 1000)).numpy()]:
        t, y, x = movie.world_to_data(points.data_to_world(point))
        row, column = round(y), round(x)
        if not (4 <= row < 60 and 4 <= column < 60):
            continue
        spot = frames[round(t), row - 3 : row + 4, column - 3 : column + 4]
        light = np.clip(spot - np.quantile(spot, 0.4), 0, None)
        grid = np.arange(-3, 4)
        centroid = (
            row + light.sum(1) @ grid / light.sum(),
            column + light.sum(0) @ grid / light.sum(),
        )
        offsets.append((centroid[0] - y, centroid[1] - x))
    assert len(offsets) > 10
    assert np.abs(np.mean(offsets, 0)).max() < 0.1


def test_molecules_appear_while_it_runs_and_a_cancel_keeps_them(dock: Any, qtbot: Any) -> None:
    open_sample(dock, qtbot, n_frames=0)
    dock.localize()
    qtbot.waitUntil(lambda: dock.session.found is not None, timeout=LONG)
    assert dock.runner.busy
    assert not dock.session.found.complete
    asked = time.monotonic()
    dock.cancel_button.click()
    qtbot.waitUntil(lambda: not dock.runner.busy, timeout=LONG)
    took = time.monotonic() - asked
    print(f"cancelled within {took:.2f} s")
    assert took < 10  # a second on a machine that does nothing else
    assert len(dock.session.found.filter.emitters) > 0
    assert "so far" in dock.steps[STEPS.index(LocalizeStep)].done()
    qtbot.waitUntil(
        lambda: len(dock.view.points.data) == len(dock.session.found.filter.emitters), timeout=LONG
    )


def test_closing_the_window_loses_nothing_that_was_found(
    dock: Any, qtbot: Any, tmp_path: Path
) -> None:
    open_sample(dock, qtbot, n_frames=0)
    dock.show()
    dock.localize()
    qtbot.waitUntil(lambda: dock.session.found is not None, timeout=LONG)
    found = dock.panel(LocalizeStep).step.n_found
    dock.close()
    dock.keep_unsaved()
    (kept,) = (tmp_path / "recovered").glob("*.hdf5")
    assert len(read_table(kept)) >= found > 0
    assert not dock.runner.busy


def test_the_event_loop_is_free_while_localizing(dock: Any, qtbot: Any) -> None:
    open_sample(dock, qtbot)
    dock.panel(LocalizeStep).preview()  # what is imported once
    qtbot.waitUntil(lambda: not dock.previewer.busy, timeout=LONG)
    with longest_gap() as gap:
        dock.localize()
        qtbot.waitUntil(lambda: not dock.runner.busy, timeout=LONG)
        print(f"localize: the event loop stood still for {1000 * gap():.0f} ms at most")
        assert gap() < 2  # 0.1 s on a machine that does nothing else


def test_training_shows_curves_pauses_stops_early_and_leaves_the_event_loop_free(
    dock: Any, qtbot: Any, tmp_path: Path, complaints: list[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(TINY_RECIPE)
    panel = dock.panel(ModelStep)
    panel.set_recipe(tmp_path / "recipe.yaml")
    panel.start_from.setCurrentText("random weights")
    panel.out.setText(str(tmp_path / "mine.safetensors"))
    panel.minutes.setValue(30)
    dock.go_to(ModelStep)
    panel.train()
    qtbot.waitUntil(lambda: "loss" in panel._curves, timeout=LONG)
    with longest_gap() as gap:
        qtbot.waitUntil(lambda: len(panel._curves.get("jaccard", ([],))[0]) > 0, timeout=LONG)
        print(f"train: the event loop stood still for {1000 * gap():.0f} ms at most")
        assert gap() < 2
    panel.pause_button.click()
    qtbot.waitUntil(lambda: dock.runner.paused, timeout=LONG)
    qtbot.wait(200)  # reports that were on their way
    n = len(panel._curves["loss"][0])
    qtbot.wait(300)
    assert len(panel._curves["loss"][0]) == n
    panel.pause_button.click()
    qtbot.waitUntil(lambda: len(panel._curves["loss"][0]) > n, timeout=LONG)
    panel.stop_button.click()
    qtbot.waitUntil(lambda: not dock.runner.busy, timeout=LONG)
    qtbot.waitUntil(lambda: "mine.safetensors" in dock.step(ModelStep).done(), timeout=LONG)
    assert panel.model.currentText() == "mine.safetensors"
    (said,) = complaints
    assert "mine.safetensors, trained for" in said


def test_a_growing_table_draws_its_points_once_for_what_is_new_in_the_frame(
    dock: Any, qtbot: Any
) -> None:
    table = table_of(20_000)
    in_frame = [int((table.frame <= frame).sum()) for frame in (0, 1)]
    view, drawn, run = dock.view, [], object()

    def grow(n: int) -> int:
        """Times that the points are drawn when n molecules are found."""
        drawn.clear()
        view.show(
            Found(filter=Filter(table[:n]), source="movie.tif", complete=False, run=run),
            growing=True,
        )
        qtbot.waitUntil(lambda: not view._is_new, timeout=LONG)
        return len(drawn)

    grow(in_frame[0] - 1)
    view.points.events.set_data.connect(drawn.append)
    assert grow(in_frame[0]) == 1
    assert len(view.points.data) == in_frame[0] == len(view.points.features)
    assert grow(in_frame[1]) == 0  # the others are not in the frame that is seen
    assert view.points.shown.all()
    view.show(Found(filter=Filter(table), source="movie.tif"))
    qtbot.waitUntil(lambda: len(view.points.data) == len(table), timeout=LONG)


def test_the_progress_bar_says_how_far_and_how_long(dock: Any, qtbot: Any) -> None:
    go_on = threading.Event()

    def verb() -> Iterator[Progress[None]]:
        for fraction in (0.0, 0.25):
            yield Progress(fraction, "searching")
        assert go_on.wait(LONG / 1000)

    dock.runner.start("Search", verb)
    qtbot.waitUntil(lambda: dock.progress.value() == 250, timeout=LONG)
    assert dock.progress.updatesEnabled()
    assert dock.message.text() == "searching; a few seconds left"
    go_on.set()
    qtbot.waitUntil(lambda: not dock.runner.busy, timeout=LONG)
    assert (dock.progress.value(), dock.message.text()) == (0, "")


def look_at(viewer: Any, x_um: float, y_um: float, longest_um: float) -> None:
    """Move the camera, as a user does who zooms in."""
    camera = camera_of(viewer)
    camera.center = (*camera.center[:-2], y_um, x_um)
    camera.zoom *= 2 * max(half_canvas_um(viewer)) / longest_um


def test_a_million_molecules_follow_a_slider(dock: Any, qtbot: Any) -> None:
    dock.session.put(found=Found(filter=Filter(table_of(1_000_000)), source="table.csv"))
    panel = dock.panel(InspectStep)
    slider = panel.sliders["photons"]
    times = []
    for i in range(1, 15):
        start = time.process_time()
        slider.setValue((100.0 * i, 4500.0))
        dock.redraw()
        times.append(time.process_time() - start)
        assert f"{dock.session.found.filter.n_passing:,}" in panel.count.text()
    print(
        f"a slider's move over 1,000,000 molecules: {1000 * np.median(times):.0f} ms of processor "
        "time"
    )
    assert np.median(times) < 0.4  # 0.1 on a machine that does nothing else
    points, source = dock.view.points, dock.session.found.filter
    assert points.name == "molecules of this frame"
    # without a movie, too, the time slider reaches from the first frame to the last
    assert (
        dock.viewer.dims.nsteps[0]
        == int(source.emitters.frame.max() - source.emitters.frame.min()) + 1
    )
    for frame in (0, 1234):
        dock.viewer.dims.set_current_step(0, frame)
        n = len(source.rows_in_frame(frame))
        qtbot.waitUntil(
            lambda f=frame, n=n: (points.shown & (points.data[:, 0] == f)).sum() == n, timeout=LONG
        )
        assert n <= points.shown.sum() <= n + 2


def test_a_million_molecules_in_a_real_window(
    make_napari_viewer: Any, qtbot: Any, tmp_path: Path
) -> None:
    """Opened, seen whole, filtered, and seen close by as points: in 2D and in 3D."""
    n = 1_000_000
    write_table(table_of(n), tmp_path / "table.hdf5")
    viewer = make_napari_viewer(show=True)
    viewer.window.resize(1100, 600)
    _, dock = viewer.window.add_plugin_dock_widget(NAME, "Localize molecules")
    (layer,) = viewer.open(tmp_path / "table.hdf5", plugin=NAME)
    assert layer.multiscale  # no million points, not even for a moment
    qtbot.waitUntil(
        lambda: dock.session.found is not None and layer not in viewer.layers, timeout=LONG
    )
    panel, density, found = dock.panel(InspectStep), viewer.layers["density"], dock.session.found
    assert panel.all_frames.isChecked()
    viewer.reset_view()
    qtbot.wait(200)
    assert "all frames" not in viewer.layers
    whole = viewer.screenshot(canvas_only=True, flash=False)[..., :3].astype(float)
    panel.sliders["photons"].setValue((4000.0, 5000.0))
    qtbot.wait(300)
    fifth = viewer.screenshot(canvas_only=True, flash=False)[..., :3].astype(float)
    assert fifth.mean() < 0.7 * whole.mean()

    look_at(viewer, 12.0, 12.0, 2.0)
    qtbot.waitUntil(
        lambda: "all frames" in viewer.layers and viewer.layers["all frames"].visible,
        timeout=20_000,
    )
    down, right = half_canvas_um(viewer)
    x, y = (found.filter.emitters.xyz[:, i].numpy() / 1000 - 12 for i in (0, 1))
    expected = found.filter.mask & (np.abs(x) < right) & (np.abs(y) < down)
    assert expected.sum() > 100
    assert len(viewer.layers["all frames"].data) == pytest.approx(expected.sum(), abs=3)
    assert density.data_level == 0
    panel.sliders["photons"].setValue((0.0, 1000.0))
    qtbot.waitUntil(
        lambda: viewer.layers["all frames"].features["photons"].max() <= 1000, timeout=LONG
    )

    dock.view_in_3d()
    cloud = dock.cloud.viewer
    cloud.window.resize(600, 400)
    volume = cloud.layers["density in 3D"]
    assert cloud.dims.ndisplay == 3
    assert "molecules in 3D" not in cloud.layers
    assert volume.data.sum() == pytest.approx(found.filter.n_passing, rel=0.01)
    look_at(cloud, 12.0, 12.0, 1.5)
    qtbot.waitUntil(lambda: "molecules in 3D" in cloud.layers, timeout=LONG)
    near = cloud.layers["molecules in 3D"]
    zyx = near.data_to_world(near.data[0]) if len(near.data) else None
    assert 20 < len(near.data) < 20_000
    assert zyx is not None
    assert abs(zyx[2] - 12) <= 0.75
    before = volume.data.sum()
    panel.sliders["photons"].setValue((0.0, 500.0))
    qtbot.waitUntil(lambda: volume.data.sum() < 0.6 * before, timeout=LONG)
    qtbot.waitUntil(lambda: near.features["photons"].max() <= 500, timeout=LONG)
    assert cloud.screenshot(canvas_only=True, flash=False)[..., :3].std() > 2
    cloud.close()
    qtbot.waitUntil(lambda: not dock.cloud.is_open, timeout=LONG)
    panel.sliders["photons"].setValue((0.0, 600.0))  # a window that is gone does not mind
    qtbot.wait(100)


def test_of_a_large_table_points_appear_where_the_view_holds_few(dock: Any, qtbot: Any) -> None:
    dock.session.put(found=Found(filter=Filter(table_of(100_000)), source="table.csv"))
    qtbot.waitUntil(lambda: dock.view.points is not None and not dock.view._is_new, timeout=LONG)
    panel = dock.panel(InspectStep)
    assert panel.all_frames.isChecked()
    look_at(dock.viewer, 12.8, 12.8, 30.0)
    dock.view.show_in_view()
    assert "all frames" not in dock.viewer.layers
    look_at(dock.viewer, 1.25, 1.25, 2.5)
    dock.view.show_in_view()
    near = dock.viewer.layers["all frames"]
    assert 500 < len(near.data) < 5000
    assert near.data[:, 1].max() <= 2500.0
    panel._settle()  # the rows of the table
    near.selected_data = {3}
    assert panel.selected_molecule() == near.features["molecule"].iloc[3]
    molecule = int(near.features["molecule"].iloc[5])
    dock.view.select(molecule)
    (chosen,) = near.selected_data
    assert near.features["molecule"].iloc[chosen] == molecule
    look_at(dock.viewer, 12.8, 12.8, 30.0)
    dock.view.show_in_view()
    assert not near.visible
    panel.all_frames.click()
    dock.session.put(found=Found(filter=Filter(table_of(100_000)), source="table.csv"))
    assert not panel.all_frames.isChecked()


def test_table_and_points_are_linked_both_ways(dock: Any, qtbot: Any) -> None:
    emitters = table_of(400)
    dock.session.put(found=Found(filter=Filter(emitters), source="table.csv"))
    dock.view.refresh()
    panel, points = dock.panel(InspectStep), dock.view.points
    panel.sliders["photons"].setValue((1000.0, 5000.0))
    panel._settle()
    dock.view.refresh()
    panel.table.selectRow(7)
    molecule = panel.selected_molecule()
    assert molecule is not None
    (chosen,) = points.selected_data
    assert points.features["molecule"].iloc[chosen] == molecule
    panel._settle()
    assert panel.selected_molecule() == molecule
    points.selected_data = {20}
    assert panel.selected_molecule() == points.features["molecule"].iloc[20]
    assert points.metadata[FACTS]["pixel_size_nm"] == 100.0


def test_ellipses_and_the_unexplained_follow_the_frame(dock: Any, qtbot: Any) -> None:
    found = localized(dock, qtbot)
    dock.viewer.dims.set_current_step(0, 10)
    panel = dock.panel(InspectStep)
    panel.with_ellipses.setChecked(True)
    panel.explained.setChecked(True)
    qtbot.waitUntil(lambda: "left over" in dock.viewer.layers, timeout=LONG)
    n = len(found.filter.rows_in_frame(10))
    assert len(dock.viewer.layers["uncertainty"].data) == 24 * n > 0
    assert dock.viewer.layers["left over"].data.shape == (64, 64)
    dock.viewer.dims.set_current_step(0, 11)
    qtbot.waitUntil(
        lambda: (
            len(dock.viewer.layers["uncertainty"].data) == 24 * len(found.filter.rows_in_frame(11))
        ),
        timeout=LONG,
    )
    panel.with_ellipses.setChecked(False)
    panel.explained.setChecked(False)
    assert {"uncertainty", "left over", "re-rendered"}.isdisjoint(
        layer.name for layer in dock.viewer.layers
    )


def test_a_frame_is_explained_once_until_something_changes(
    make_napari_viewer: Any, qtbot: Any
) -> None:
    viewer = make_napari_viewer(show=True)
    _, dock = viewer.window.add_plugin_dock_widget(NAME, "Localize molecules")
    qtbot.waitUntil(lambda: dock.session.model is not None, timeout=LONG)
    found = localized(dock, qtbot, 4)
    dock.go_to(InspectStep)
    panel = dock.panel(InspectStep)
    qtbot.waitUntil(lambda: panel.rows.rowCount() > 0, timeout=LONG)
    panel.table.selectRow(panel.rows.position_of(int(found.filter.rows_in_frame(2)[0])))
    looks: list[str] = []
    resets: list[int] = []
    dock.previewer.began.connect(looks.append)
    panel.rows.modelReset.connect(lambda: resets.append(dock.view.frame))

    def rest() -> None:
        qtbot.wait(800)
        qtbot.waitUntil(lambda: not dock.previewer.busy, timeout=LONG)
        qtbot.wait(800)

    panel.explained.setChecked(True)
    rest()
    assert "left over" in viewer.layers
    assert looks == ["frame 2"]
    dock.refresh_steps()
    rest()
    assert looks == ["frame 2"]
    viewer.dims.set_current_step(0, 3)
    rest()
    assert looks == ["frame 2", "frame 3"]
    assert not resets  # a user scrolls the table
    dock.session.put(movie=dock.session.movie)  # another camera, as it may be
    rest()
    assert looks == ["frame 2", "frame 3", "frame 3"]


def test_layers_of_the_window_are_no_new_frames(make_napari_viewer: Any, qtbot: Any) -> None:
    """Those with finer pixels change the steps of a viewer in y and x."""
    viewer = make_napari_viewer(show=True)
    _, dock = viewer.window.add_plugin_dock_widget(NAME, "Localize molecules")
    qtbot.waitUntil(lambda: dock.session.model is not None, timeout=LONG)
    panel = open_sample(dock, qtbot, 4)
    viewer.dims.set_current_step(0, 0)
    frames: list[int] = []
    steps: list[Any] = []
    looks: list[str] = []
    dock.view.frame_changed.connect(frames.append)
    viewer.dims.events.current_step.connect(steps.append)
    dock.previewer.began.connect(looks.append)
    panel.auto.setChecked(True)
    qtbot.waitUntil(lambda: "preview" in viewer.layers, timeout=LONG)
    fine = viewer.add_image(np.zeros((640, 640)), scale=(0.01, 0.01), units="um")
    viewer.layers.remove(fine)
    qtbot.wait(1500)
    assert steps
    assert not frames
    assert looks == ["frame 0"]
    viewer.dims.set_current_step(0, 1)
    assert frames == [1]


def test_a_preview_follows_the_settings(dock: Any, qtbot: Any) -> None:
    panel = open_sample(dock, qtbot)
    dock.viewer.dims.set_current_step(0, 10)
    panel.preview()
    qtbot.waitUntil(lambda: "preview" in dock.viewer.layers, timeout=LONG)
    assert (
        dock.viewer.layers["preview"] not in dock.viewer.layers.selection
    )  # what was chosen stays chosen
    many = len(dock.viewer.layers["preview"].data)
    panel.auto.setChecked(True)
    panel.threshold.setValue(0.95)
    qtbot.waitUntil(lambda: len(dock.viewer.layers["preview"].data) < many, timeout=LONG)


def test_a_region_is_drawn_or_written_and_a_preview_keeps_to_it(
    dock: Any, qtbot: Any, complaints: list[str]
) -> None:
    panel = open_sample(dock, qtbot)
    panel.roi.draw()
    layer = dock.viewer.layers["region"]
    assert layer.mode == "add_rectangle"
    # along the edges of pixels, whose centres are whole numbers in the layer as in the movie
    layer.add_rectangles(np.array([[9.5, 19.5], [9.5, 43.5], [41.5, 43.5], [41.5, 19.5]]))
    assert panel.roi.text.text() == "10:42,20:44"
    world = np.array([layer.data_to_world(corner) for corner in layer.data[0]])
    np.testing.assert_allclose([world.min(0), world.max(0)], [(1.0, 2.0), (4.2, 4.4)])
    dock.viewer.dims.set_current_step(0, 10)
    panel.preview()
    qtbot.waitUntil(lambda: "preview" in dock.viewer.layers, timeout=LONG)
    points = dock.viewer.layers["preview"]
    found = np.array([points.data_to_world(point)[-2:] for point in points.data])
    assert len(found) > 0
    assert (found >= (1.0, 2.0)).all()
    assert (found < (4.2, 4.4)).all()

    panel.roi.text.setText("0:8, :16")
    panel.roi.text.editingFinished.emit()
    (corners,) = layer.data
    np.testing.assert_allclose([corners.min(0), corners.max(0)], [(-0.5, -0.5), (7.5, 15.5)])
    panel.roi.text.setText("8")
    panel.run()
    assert "Y0:Y1,X0:X1" in panel.troubles[0]
    dock.viewer.layers.remove(layer)
    assert panel.roi.region() is None


@pytest.mark.slow
@pytest.mark.usefixtures("no_pupil")
def test_a_calibration_is_cancelled_on_its_way_and_draws_its_errors_at_its_end(
    dock: Any, qtbot: Any, tmp_path: Path, complaints: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_movie(sample_file("beads_3d.tif")) as stack:
        write_movie(tmp_path / "beads.tif", stack.read(0, 81)[::8, 8:58, 4:90])
    open_sample(dock, qtbot)
    panel = dock.panel(PSFStep)
    panel.set_beads([tmp_path / "beads.tif"])
    panel.z_step.setValue(160.0)
    panel.model.setCurrentText("gaussian")
    assert all(plot.isHidden() for plot in panel.errors)
    shown = []

    def cancel(report: Progress[object]) -> None:
        shown.append((dock.progress.value(), dock.progress.maximum()))
        if report.fraction:
            dock.cancel()

    dock.runner.reported.connect(cancel)
    panel.run()
    qtbot.waitUntil(lambda: not dock.runner.busy, timeout=LONG)
    dock.runner.reported.disconnect(cancel)
    assert 0 < shown[-1][0] < shown[-1][1]
    assert dock.session.psf is None
    assert not (tmp_path / "psf.h5").exists()

    monkeypatch.setattr(
        "decode.calibrate.families.gaussian.fit_gaussian",
        Stepwise(partial(fit_gaussian.steps, n_steps=3)),
    )
    panel.run()
    qtbot.waitUntil(lambda: dock.session.psf is not None, timeout=LONG)
    assert not complaints
    assert not any(plot.isHidden() for plot in panel.errors)
    for axis, plot in enumerate(panel.errors):
        assert plot.accessibleName() == f"error in {'xyz'[axis]}, nm"
        z, error = plot._lines["error"]
        np.testing.assert_allclose(z, 160.0 * np.arange(-5, 6))
        assert (error >= 0).all()
        assert set(plot._lines) == {"error", "bound"}


def test_the_panel_of_the_psf_states_how_the_stage_went(
    dock: Any, qtbot: Any, tmp_path: Path
) -> None:
    """As the command line does: a file of depths and an order of planes at once are refused
    beside the field."""
    panel = dock.panel(PSFStep)
    dock.viewer.open_sample(NAME, "blinking_3d")
    qtbot.waitUntil(lambda: dock.session.movie is not None and not dock.runner.busy, timeout=LONG)
    (tmp_path / "depths.txt").write_text("\n".join(str(20 * i) for i in range(51)))
    panel.set_beads([sample_file("beads_3d.tif")])
    panel.frames_per_plane.setValue(3)
    panel.stage.setCurrentText("went downwards")
    panel.z_of_frames.setText(str(tmp_path / "depths.txt"))
    panel.out.setText(str(tmp_path / "psf.h5"))
    panel.run()
    qtbot.waitUntil(lambda: bool(panel.troubles), timeout=LONG)
    assert "leave frames per plane, upwards and downwards out" in panel.troubles[0]
    settings = panel.step.settings
    assert (settings.frames_per_plane, settings.downwards) == (3, True)
    assert settings.z_of_frames == tmp_path / "depths.txt"


def test_only_a_pupil_asks_for_its_optics(dock: Any, qtbot: Any) -> None:
    panel = dock.panel(PSFStep)
    for model in ("spline", "pupil", "gaussian"):
        panel.model.setCurrentText(model)
        shown = {panel.form.isRowVisible(widget) for widget in panel._of_pupil.values()}
        assert shown == {model == "pupil"}
        assert panel.form.isRowVisible(panel.z_focus)
        assert panel.form.isRowVisible(panel.positions)
    assert panel._optics() == Optics()
    panel.aperture.setValue(1.2)
    panel.sample.setValue(1.33)
    panel.phase_mask.setChecked(True)
    assert panel._optics() == Optics(numerical_aperture=1.2, sample_index=1.33, phase_mask=True)


def test_a_camera_of_another_chip_and_a_folder_that_cannot_be_written_are_said(
    dock: Any, qtbot: Any, tmp_path: Path, complaints: list[str]
) -> None:
    import tifffile

    tifffile.imwrite(tmp_path / "offset.tif", np.full((32, 32), 100, np.float32))
    (tmp_path / "other.yaml").write_text(
        "pixel_size_nm: 100\noffset_map: offset.tif\ne_per_adu: 1\nread_noise_e: 1\n",
        encoding="utf-8",
    )
    open_sample(dock, qtbot)
    dock.panel(MovieStep).set_camera(str(tmp_path / "other.yaml"))
    dock.panel(MovieStep).check()
    qtbot.waitUntil(lambda: bool(dock.panel(MovieStep).troubles), timeout=LONG)
    assert "32" in dock.panel(MovieStep).troubles[0]
    dock.session.put(found=Found(filter=Filter(table_of(10)), source="table.csv"))
    (tmp_path / "file").touch()
    qtbot.waitUntil(lambda: not dock.runner.busy, timeout=LONG)
    dock.panel(ExportStep).save_table(tmp_path / "file" / "table.csv")
    qtbot.waitUntil(lambda: bool(dock.panel(ExportStep).troubles), timeout=LONG)
    assert "cannot write" in dock.panel(ExportStep).troubles[0].lower()
    assert not complaints


def test_a_model_for_another_psf_is_said(dock: Any, qtbot: Any) -> None:
    panel = open_sample(dock, qtbot)
    panel.psf_sigma.setValue(500.0)  # five pixels: no PSF of this model
    dock.localize()
    qtbot.waitUntil(lambda: bool(panel.troubles), timeout=LONG)
    assert "outside the range" in panel.troubles[0]


def test_layers_that_are_closed_in_mid_run_come_to_no_harm(
    dock: Any, qtbot: Any, complaints: list[str]
) -> None:
    open_sample(dock, qtbot, n_frames=0)
    dock.localize()
    qtbot.waitUntil(lambda: dock.session.found is not None, timeout=LONG)
    dock.viewer.layers.clear()
    before = dock.panel(LocalizeStep).step.n_found
    qtbot.waitUntil(
        lambda: dock.panel(LocalizeStep).step.n_found > before or not dock.runner.busy, timeout=LONG
    )
    dock.cancel()
    qtbot.waitUntil(lambda: not dock.runner.busy, timeout=LONG)
    assert not complaints
    qtbot.waitUntil(
        lambda: dock.view.points is not None, timeout=LONG
    )  # the molecules are shown again


def test_a_movie_that_napari_opened_is_put_in_its_place(
    dock: Any, qtbot: Any, tmp_path: Path, complaints: list[str]
) -> None:
    """As when a file is dragged into the viewer: the camera is the one chosen, place and scale
    follow."""
    with open_movie(sample_file("blinking_2d.tif")) as movie:
        write_movie(tmp_path / "dragged.tif", movie.read(0, 30))
    panel = dock.panel(MovieStep)
    panel.set_camera(str(sample_file("camera.yaml")))
    (layer,) = dock.viewer.open(tmp_path / "dragged.tif", plugin="napari")
    qtbot.waitUntil(lambda: dock.session.movie is not None, timeout=LONG)
    np.testing.assert_allclose(layer.scale, (1, 0.1, 0.1))
    np.testing.assert_allclose(layer.translate, (0, 0.05, 0.05))
    assert dock.session.movie.path == tmp_path / "dragged.tif"


def test_settings_are_remembered(dock: Any, qtbot: Any) -> None:
    from napari.components import ViewerModel

    from decode_napari.qt.dock import DecodeDock

    dock.panel(LocalizeStep).threshold.setValue(0.7)
    dock.panel(MovieStep).set_camera("pco-edge-4.2")
    dock.panel(MovieStep).pixel_size.setValue(108.0)
    again = DecodeDock(ViewerModel())
    qtbot.addWidget(again)
    assert again.panel(LocalizeStep).threshold.value() == pytest.approx(0.7)
    assert again.panel(MovieStep).camera.currentText() == "pco-edge-4.2"
    assert again.panel(MovieStep).pixel_size.value() == 108.0
    qtbot.waitUntil(lambda: not again.loader.busy, timeout=LONG)


def test_every_widget_can_be_named_and_every_step_reached_by_keys(dock: Any, qtbot: Any) -> None:
    from qtpy.QtCore import Qt
    from qtpy.QtWidgets import QAbstractSlider, QAbstractSpinBox, QCheckBox, QComboBox

    for kind in (QComboBox, QAbstractSpinBox, QCheckBox):
        for panel in dock.panels.values():
            for widget in panel.findChildren(kind):
                if (
                    not isinstance(widget.parent(), (QAbstractSlider, QAbstractSpinBox))
                    and widget.toolTip()
                ):
                    assert widget.accessibleName() or getattr(widget, "text", str)()
    dock.list.setFocus()
    for row in range(1, len(STEPS)):
        qtbot.keyClick(dock.list, Qt.Key.Key_Down)
        assert dock.list.currentRow() == row
        assert dock.stack.currentIndex() == row


def test_copied_commands_are_in_the_clipboard(dock: Any, qtbot: Any) -> None:
    from qtpy.QtWidgets import QApplication

    open_sample(dock, qtbot)
    dock.go_to(LocalizeStep)
    dock.panel(LocalizeStep)._read()
    dock.command_button.click()
    assert QApplication.clipboard().text().startswith("decode localize")
    dock.python_button.click()
    assert "localize_file" in QApplication.clipboard().text()


@pytest.mark.parametrize(
    ("seconds", "words"), [(2, "a few seconds"), (42, "40 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_times_left_are_round(seconds: float, words: str) -> None:
    assert remaining(seconds).startswith(words)
