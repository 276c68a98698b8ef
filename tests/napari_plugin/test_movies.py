"""Movies and tables that come and go in a real window: what it shows is what is worked on, and
nothing is lost."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from decode import open_movie, read_table, write_movie, write_table
from decode_napari.qt.panel import AMBER, Panel
from decode_napari.recovery import kept
from decode_napari.samples import sample_file
from decode_napari.session import Found
from decode_napari.steps.export import ExportStep
from decode_napari.steps.inspect import InspectStep
from decode_napari.steps.localize import LocalizeStep
from decode_napari.steps.model import ModelStep
from decode_napari.steps.movie import MovieStep
from decode_napari.steps.psf import PSFStep

NAME = "decode-smlm"
LONG = 100_000
"""ms: the machine may be busy"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """24 frames of 64 x 64 pixels."""
    with open_movie(sample_file("blinking_2d.tif")) as movie:
        write_movie(tmp_path / "small.tif", movie.read(0, 24), pixel_size_nm=100.0)
    return tmp_path / "small.tif"


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """10 frames of 128 x 128 pixels."""
    with open_movie(sample_file("blinking_2d.tif")) as movie:
        write_movie(
            tmp_path / "large.tif", np.tile(movie.read(30, 40), (1, 2, 2)), pixel_size_nm=100.0
        )
    return tmp_path / "large.tif"


@pytest.fixture
def viewer(make_napari_viewer: Callable[..., Any]) -> Any:
    return make_napari_viewer(show=True)


def open_dock(viewer: Any) -> Any:
    """The widget, as the menu opens it, with the camera of the sample."""
    _, dock = viewer.window.add_plugin_dock_widget(NAME, "Localize molecules")
    dock.panel(MovieStep).set_camera(str(sample_file("camera.yaml")))
    dock.panel(LocalizeStep).psf_sigma.setValue(95.0)
    return dock


def movie_of(dock: Any) -> Path | None:
    return None if dock.session.movie is None else dock.session.movie.path


def settle(dock: Any, qtbot: Any, path: Path) -> None:
    """Wait until a movie is the one to work on; settings of the one before are confirmed for it."""
    remembered = dock.panel(MovieStep).remembered
    qtbot.waitUntil(lambda: movie_of(dock) == path or not remembered.isHidden(), timeout=LONG)
    if not remembered.isHidden():
        remembered.button.click()
    qtbot.waitUntil(lambda: movie_of(dock) == path and not dock.runner.busy, timeout=LONG)
    qtbot.waitUntil(lambda: dock.session.model is not None, timeout=LONG)


def drop(viewer: Any, path: Path) -> None:
    """As the viewer opens a file that is let go over it."""
    viewer.open(path, plugin=NAME)


def localize(dock: Any, qtbot: Any) -> Found:
    before = dock.session.found
    dock.localize()
    qtbot.waitUntil(lambda: not dock.runner.busy and dock.session.found is not before, timeout=LONG)
    found: Found = dock.session.found
    assert found.complete
    qtbot.waitUntil(lambda: len(dock.view.points.data) == len(found.filter.emitters), timeout=LONG)
    assert dock.view.points.visible
    return found


def why_not(dock: Any) -> str:
    """What the panel that localizes says."""
    text: str = dock.panel(LocalizeStep).state.text()
    return text


def ready(dock: Any) -> set[bool]:
    """Whether the buttons that localize can be pressed."""
    panel = dock.panel(LocalizeStep)
    buttons = (panel.run_button, panel.preview_button, dock.panel(MovieStep).go_button)
    return {each.isEnabled() for each in buttons}


def test_a_movie_that_is_already_in_the_viewer_is_taken_up_when_the_widget_opens(
    viewer: Any, qtbot: Any, small: Path, complaints: list[str]
) -> None:
    drop(viewer, small)
    dock = open_dock(viewer)
    settle(dock, qtbot, small)
    assert ready(dock) == {True}
    assert len(localize(dock, qtbot).filter.emitters) > 100
    assert not complaints


def test_a_sample_that_is_already_in_the_viewer_brings_its_camera(
    viewer: Any, qtbot: Any, complaints: list[str]
) -> None:
    viewer.open_sample(NAME, "blinking_2d")
    _, dock = viewer.window.add_plugin_dock_widget(NAME, "Localize molecules")
    settle(dock, qtbot, sample_file("blinking_2d.tif"))
    assert dock.session.movie.camera_name == str(sample_file("camera.yaml"))
    assert not complaints


def test_a_table_that_is_already_in_the_viewer_is_taken_up_when_the_widget_opens(
    viewer: Any, qtbot: Any, small: Path, tmp_path: Path, complaints: list[str]
) -> None:
    write_table(read_table(sample_file("blinking_2d_truth.csv")), tmp_path / "table.csv")
    drop(viewer, tmp_path / "table.csv")
    dock = open_dock(viewer)
    qtbot.waitUntil(lambda: dock.session.found is not None and not dock.runner.busy, timeout=LONG)
    drop(viewer, small)  # the first movie is the table's, for all that is known
    settle(dock, qtbot, small)
    assert dock.session.found is not None
    assert not complaints


def test_a_widget_that_cannot_be_built_leaves_nothing_connected(
    viewer: Any, qtbot: Any, small: Path, monkeypatch: pytest.MonkeyPatch, complaints: list[str]
) -> None:
    events = (
        viewer.layers.events.inserted,
        viewer.layers.events.removed,
        viewer.dims.events.current_step,
    )
    before = [len(event.callbacks) for event in events[:2]]

    def broken(panel: Panel) -> None:
        raise RuntimeError("no widget")

    from decode_napari.qt import dock as module

    with monkeypatch.context() as patched:
        patched.setattr(module.InspectPanel, "begin", broken)
        with pytest.raises(RuntimeError, match="no widget"):
            module.DecodeDock(viewer)
    assert [len(event.callbacks) for event in events[:2]] == before
    dock = open_dock(viewer)
    drop(viewer, small)
    settle(dock, qtbot, small)
    assert not complaints


def test_a_panel_that_is_closed_and_opened_again_goes_on_where_it_was(
    viewer: Any, qtbot: Any, small: Path, tmp_path: Path, complaints: list[str]
) -> None:
    dock = open_dock(viewer)
    drop(viewer, small)
    settle(dock, qtbot, small)
    found = localize(dock, qtbot)
    dock.parentWidget().destroyOnClose()  # the cross of napari's title bar
    (table,) = kept(tmp_path / "recovered")
    assert len(read_table(table)) == len(found.filter.emitters)
    assert [layer.name for layer in viewer.layers] == ["small"]

    session = dock.session
    del dock  # and with it, napari's proxy of the viewer
    gc.collect()
    again = open_dock(viewer)
    settle(again, qtbot, small)
    assert again.session.found is found
    n_found = len(found.filter.emitters)
    qtbot.waitUntil(
        lambda: again.view.points is not None and len(again.view.points.data) == n_found,
        timeout=LONG,
    )
    assert again.has_unsaved
    n = len(viewer.layers)
    viewer.dims.set_current_step(0, 5)
    drop(viewer, tmp_path / "small.tif")
    qtbot.wait(200)
    settle(again, qtbot, small)
    assert len(viewer.layers) == n  # one widget looks after them, not two
    assert again.session is session
    again.panel(ExportStep).save_table(tmp_path / "saved.csv")
    qtbot.waitUntil(
        lambda: not again.has_unsaved and not kept(tmp_path / "recovered"), timeout=LONG
    )
    assert complaints == [f"saved {tmp_path / 'saved.csv'}"]


@pytest.mark.parametrize("order", ["large first", "small first"])
def test_two_movies_are_localized_after_one_another(
    order: str, viewer: Any, qtbot: Any, small: Path, large: Path, complaints: list[str]
) -> None:
    dock = open_dock(viewer)
    movies = (large, small) if order == "large first" else (small, large)
    sources = []
    for path in movies:
        drop(viewer, path)
        settle(dock, qtbot, path)
        found = localize(dock, qtbot)
        sources.append(found.source)
        points = dock.view.points
        assert points.visible
        assert points.shown.all()
        assert len(points.border_color) == len(found.filter.emitters)
        dock.view.recolour("frame")
        dock.view.recolour("photons")
    assert sources == [str(path) for path in movies]
    # and the tiled movie has pixels that are taken for bad ones, and noise that its rows share
    known = ("unsaved molecules were kept", "left out", "row noise")
    assert all(any(words in said for words in known) for said in complaints)


def test_colours_that_are_asked_for_before_the_points_are_drawn_are_those_of_the_new_table(
    viewer: Any, qtbot: Any, tmp_path: Path
) -> None:
    dock = open_dock(viewer)
    truth = read_table(sample_file("blinking_2d_truth.csv"))
    for n in (len(truth), 7):
        write_table(truth[:n], tmp_path / f"{n}.csv")
        dock.panel(InspectStep).open(tmp_path / f"{n}.csv")
        qtbot.waitUntil(
            lambda n=n: (
                dock.session.found is not None and len(dock.session.found.filter.emitters) == n
            )
        )
        dock.view.recolour("frame")
        dock.view.recolour("photons")
        qtbot.waitUntil(
            lambda n=n: dock.view.points is not None and len(dock.view.points.data) == n,
            timeout=LONG,
        )
        assert dock.view.points.visible


def maps_of_another_chip(folder: Path) -> str:
    tifffile.imwrite(folder / "offset.tif", np.full((32, 32), 100, np.float32))
    text = "pixel_size_nm: 100\noffset_map: offset.tif\ne_per_adu: 1\nread_noise_e: 1\n"
    (folder / "other.yaml").write_text(text, encoding="utf-8")
    return str(folder / "other.yaml")


@pytest.mark.parametrize(
    "cause", ["maps of another movie", "no EM gain", "a movie that is cut short"]
)
def test_after_a_refused_check_nothing_can_be_localized_and_every_step_says_why(
    cause: str,
    viewer: Any,
    qtbot: Any,
    small: Path,
    large: Path,
    tmp_path: Path,
    complaints: list[str],
) -> None:
    dock = open_dock(viewer)
    panel = dock.panel(MovieStep)
    drop(viewer, small)
    settle(dock, qtbot, small)
    localize(dock, qtbot)
    if cause == "maps of another movie":
        panel.set_camera(maps_of_another_chip(tmp_path))
    elif cause == "no EM gain":
        panel.set_camera("andor-ixon-ultra-897")
    else:
        large.write_bytes(large.read_bytes()[:-40_000])
    if cause == "a movie that is cut short":
        panel.allow_truncated.setChecked(True)
        panel.open(large)
        settle(dock, qtbot, large)
        panel.allow_truncated.setChecked(False)
    else:
        drop(viewer, large)
        qtbot.waitUntil(lambda: not panel.remembered.isHidden(), timeout=LONG)
        panel.remembered.button.click()
    qtbot.waitUntil(lambda: "was refused" in why_not(dock) and not dock.runner.busy, timeout=LONG)
    assert dock.session.movie is None
    assert ready(dock) == {False}
    assert panel.movies.currentText() == "large"
    assert panel.troubles
    assert not panel.remarks.text()
    if cause == "maps of another movie":
        assert AMBER in panel.camera.styleSheet()
    for kind in (LocalizeStep, PSFStep):
        assert "was refused" in dock.step(kind).missing()
    dock.localize()  # as by a key
    assert "was refused" in dock.panel(LocalizeStep).troubles[0]
    assert not dock.runner.busy

    panel.set_camera(str(sample_file("camera.yaml")))
    if cause == "a movie that is cut short":
        panel.allow_truncated.setChecked(True)
    else:
        panel.check()
    settle(dock, qtbot, large)
    assert ready(dock) == {True}
    assert Path(localize(dock, qtbot).source) == large


def test_a_setting_that_changes_while_a_check_runs_is_the_one_that_holds(
    viewer: Any, qtbot: Any, small: Path, complaints: list[str]
) -> None:
    dock = open_dock(viewer)
    drop(viewer, small)
    settle(dock, qtbot, small)
    panel = dock.panel(MovieStep)
    for size in (110.0, 120.0, 130.0):
        panel.pixel_size.setValue(size)
        assert dock.session.movie is None
        assert why_not(dock) == "The movie is being checked."
        assert ready(dock) == {False}
    qtbot.waitUntil(lambda: dock.session.movie is not None, timeout=LONG)
    assert dock.session.movie.pixel_size_nm == 130.0
    np.testing.assert_allclose(viewer.layers["small"].scale, (1, 0.13, 0.13))
    panel.pixel_size.setValue(140.0)
    dock.cancel_button.click()
    qtbot.waitUntil(lambda: not dock.runner.busy, timeout=LONG)
    assert dock.session.movie is None or dock.session.movie.pixel_size_nm == 140.0
    if dock.session.movie is None:
        assert "cancelled" in why_not(dock)
    assert not complaints


def test_a_model_that_is_refused_is_not_replaced_by_the_one_before(
    viewer: Any, qtbot: Any, small: Path, tmp_path: Path, complaints: list[str]
) -> None:
    dock = open_dock(viewer)
    drop(viewer, small)
    settle(dock, qtbot, small)
    (tmp_path / "bad.safetensors").write_bytes(b"not a model")
    dock.panel(ModelStep).load(str(tmp_path / "bad.safetensors"))
    assert dock.session.model is None
    assert ready(dock) == {False}
    assert "being loaded" in why_not(dock)
    qtbot.waitUntil(lambda: "model cannot be used" in why_not(dock), timeout=LONG)
    assert dock.panel(ModelStep).troubles
    assert "model cannot be used" in dock.panel(ModelStep).about.text().lower()
    dock.panel(ModelStep).load("gaussian-2d")
    qtbot.waitUntil(lambda: ready(dock) == {True}, timeout=LONG)


def test_a_movie_that_comes_while_another_is_localized_waits(
    viewer: Any, qtbot: Any, small: Path, large: Path, complaints: list[str]
) -> None:
    dock = open_dock(viewer)
    drop(viewer, small)
    settle(dock, qtbot, small)
    dock.localize()
    panel = dock.panel(MovieStep)
    assert not panel.camera.isEnabled()
    assert not panel.movies.isEnabled()
    drop(viewer, large)
    qtbot.waitUntil(lambda: "large" not in viewer.layers, timeout=LONG)
    assert "waits" in complaints[-1]
    qtbot.waitUntil(lambda: not dock.runner.busy, timeout=LONG)
    assert movie_of(dock) == small
    assert Path(dock.session.found.source) == small
    assert panel.movies.currentText() == "small"
    panel.movies.setCurrentText("large")
    panel.movies.activated.emit(panel.movies.currentIndex())
    settle(dock, qtbot, large)
    assert [layer.name for layer in viewer.layers if layer.name in ("small", "large")] == ["large"]


def test_unsaved_molecules_are_kept_when_another_table_is_opened_and_when_it_is_localized_again(
    viewer: Any, qtbot: Any, small: Path, tmp_path: Path, complaints: list[str]
) -> None:
    dock = open_dock(viewer)
    drop(viewer, small)
    settle(dock, qtbot, small)
    first = localize(dock, qtbot)
    dock.panel(LocalizeStep).threshold.setValue(0.8)
    second = localize(dock, qtbot)
    n_first, n_second = len(first.filter.emitters), len(second.filter.emitters)
    assert n_first > n_second
    write_table(read_table(sample_file("blinking_2d_truth.csv"))[:50], tmp_path / "table.csv")
    dock.panel(InspectStep).open(tmp_path / "table.csv")
    qtbot.waitUntil(
        lambda: dock.session.found.source.endswith("table.csv") and not dock.runner.busy,
        timeout=LONG,
    )
    tables = kept(tmp_path / "recovered")
    assert sorted(len(read_table(table)) for table in tables) == [n_second, n_first]
    assert complaints == [f"{n:,} unsaved molecules were kept" for n in (n_first, n_second)]
    assert max(map(len, complaints)) <= 40  # napari cuts longer ones
    assert str(tables[0]) in dock.panel(InspectStep).kept_button.toolTip()
    qtbot.waitUntil(lambda: "molecules before, not saved" in viewer.layers, timeout=LONG)
    layer = viewer.layers["molecules before, not saved"]
    qtbot.waitUntil(
        lambda: len(viewer.layers["molecules before, not saved"].data) == n_second, timeout=LONG
    )
    assert not layer.visible
    assert layer not in viewer.layers.selection


def test_unsaved_molecules_that_cannot_be_kept_stay(
    viewer: Any, qtbot: Any, small: Path, large: Path, tmp_path: Path, complaints: list[str]
) -> None:
    (tmp_path / "recovered").write_text("in the way of the folder")
    dock = open_dock(viewer)
    drop(viewer, small)
    settle(dock, qtbot, small)
    found = localize(dock, qtbot)
    write_table(read_table(sample_file("blinking_2d_truth.csv"))[:50], tmp_path / "table.csv")
    dock.panel(InspectStep).open(tmp_path / "table.csv")
    qtbot.waitUntil(lambda: not dock.runner.busy, timeout=LONG)
    assert dock.session.found is found
    assert dock.panel(InspectStep).troubles
    dock.localize()
    assert not dock.runner.busy
    assert dock.panel(LocalizeStep).troubles
    drop(viewer, large)
    qtbot.waitUntil(lambda: "large" not in viewer.layers, timeout=LONG)
    assert dock.session.found is found
    assert movie_of(dock) == small
    assert dock.panel(MovieStep).movies.currentText() == "small"
    assert dock.panel(MovieStep).troubles


def test_a_run_that_goes_on_is_kept_on_disk(
    viewer: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complaints: list[str]
) -> None:
    """So that molecules outlive a process that is killed."""
    monkeypatch.setattr("decode_napari.qt.keeper.SHORTEST_S", 0.1)
    monkeypatch.setattr("decode_napari.qt.keeper.LARGEST_SHARE", 0.9)
    viewer.open_sample(NAME, "blinking_2d")
    dock = open_dock(viewer)
    settle(dock, qtbot, sample_file("blinking_2d.tif"))
    dock.localize()
    qtbot.waitUntil(lambda: bool(kept(tmp_path / "recovered")), timeout=LONG)
    (path,) = kept(tmp_path / "recovered")
    first = path.stat()
    assert first.st_size > 0
    qtbot.waitUntil(
        lambda: path.stat().st_mtime_ns > first.st_mtime_ns, timeout=LONG
    )  # with more of them
    assert dock.runner.busy
    dock.cancel()
    qtbot.waitUntil(lambda: not dock.runner.busy, timeout=LONG)
    found = dock.session.found
    qtbot.waitUntil(lambda: dock.keeper._written is found, timeout=LONG)
    assert len(read_table(path)) == len(found.filter.emitters)
    assert kept(tmp_path / "recovered") == [path]
    found.filter.restrict("photons", 1000.0, 1e9)
    dock.panel(ExportStep).save_table(tmp_path / "bright.csv")
    qtbot.waitUntil(
        lambda: (tmp_path / "bright.csv").is_file() and not dock.runner.busy, timeout=LONG
    )
    assert dock.has_unsaved  # the others are nowhere else
    dock.panel(InspectStep)._reset()
    found.filter.restrict("photons", *found.filter.bounds("photons"))
    dock.panel(ExportStep).save_table(tmp_path / "all.csv")
    qtbot.waitUntil(lambda: not dock.has_unsaved, timeout=LONG)
    assert kept(tmp_path / "recovered") == []


def test_a_new_movie_starts_afresh(
    viewer: Any, qtbot: Any, small: Path, large: Path, tmp_path: Path, complaints: list[str]
) -> None:
    dock = open_dock(viewer)
    drop(viewer, small)
    settle(dock, qtbot, small)
    panel = dock.panel(LocalizeStep)
    panel.first.setValue(2)
    panel.roi.text.setText("0:32,0:32")
    found = localize(dock, qtbot)
    dock.panel(ExportStep).run()
    qtbot.waitUntil(lambda: "super-resolved" in viewer.layers, timeout=LONG)
    dock.view.select(0)
    dock.panel(InspectStep).with_ellipses.setChecked(True)
    dock.view_in_3d()
    drop(viewer, large)
    settle(dock, qtbot, large)
    qtbot.wait(300)
    names = [layer.name for layer in viewer.layers]
    assert names[0] == "large"
    assert set(names) == {"large", "molecules", "density"}
    assert not len(viewer.layers["molecules"].data)
    assert dock.session.found is None
    assert not dock.cloud.is_open
    assert not any(dock.step(kind).done() for kind in (LocalizeStep, InspectStep, ExportStep))
    assert (panel.first.value(), panel.stop_before.value(), panel.roi.text.text()) == (0, 0, "")
    assert viewer.dims.nsteps[0] == 10
    assert viewer.dims.current_step[0] == 0
    np.testing.assert_allclose(viewer.layers.extent.world[1, 1:], 12.8, atol=0.2)
    (table,) = kept(tmp_path / "recovered")
    assert len(read_table(table)) == len(found.filter.emitters)
    localize(dock, qtbot)
    assert [layer.name for layer in viewer.layers].index("large") == 0


def test_a_movie_is_closed_by_its_button(
    viewer: Any, qtbot: Any, small: Path, complaints: list[str]
) -> None:
    dock = open_dock(viewer)
    assert not dock.panel(MovieStep).close_button.isEnabled()
    drop(viewer, small)
    settle(dock, qtbot, small)
    localize(dock, qtbot)
    dock.panel(MovieStep).close_button.click()
    qtbot.wait(200)
    assert not viewer.layers
    assert dock.session.movie is None
    assert dock.session.found is None
    assert why_not(dock) == "Open a movie first."
    assert dock.panel(MovieStep).movies.count() == 0
    drop(viewer, small)
    settle(dock, qtbot, small)
    assert len(localize(dock, qtbot).filter.emitters) > 100


def test_a_movie_whose_layer_is_deleted_is_not_localized(
    viewer: Any, qtbot: Any, small: Path
) -> None:
    dock = open_dock(viewer)
    drop(viewer, small)
    settle(dock, qtbot, small)
    viewer.layers.remove("small")
    assert dock.session.movie is None
    assert ready(dock) == {False}


def test_molecules_of_a_movie_of_another_size_do_not_explain_this_one(
    viewer: Any, qtbot: Any, small: Path, large: Path, tmp_path: Path, complaints: list[str]
) -> None:
    dock = open_dock(viewer)
    drop(viewer, large)
    settle(dock, qtbot, large)
    localize(dock, qtbot)
    dock.panel(ExportStep).save_table(tmp_path / "large.hdf5")
    qtbot.waitUntil(lambda: not dock.has_unsaved and not dock.runner.busy, timeout=LONG)
    drop(viewer, small)
    settle(dock, qtbot, small)
    dock.panel(InspectStep).open(tmp_path / "large.hdf5")
    qtbot.waitUntil(lambda: dock.session.found is not None and not dock.runner.busy, timeout=LONG)
    panel = dock.panel(InspectStep)
    panel.explained.setChecked(True)
    qtbot.waitUntil(lambda: bool(panel.troubles), timeout=LONG)
    assert "of another movie than small.tif" in panel.troubles[0]
    assert "128 for 64" in panel.troubles[0]
