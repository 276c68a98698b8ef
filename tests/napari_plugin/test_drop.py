"""What is dropped into the window: movies stay on disk, tables become molecules, pictures stay
pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch

from decode import EmitterSet, open_movie, write_movie, write_table
from decode_napari.layers import LazyFrames
from decode_napari.molecules import Filter
from decode_napari.qt.memory import Memory
from decode_napari.qt.preference import prefer_own_reader
from decode_napari.samples import sample_file
from decode_napari.session import Found
from decode_napari.steps.movie import MovieStep

NAME = "decode-smlm"
LONG = 200_000


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Dialogs by which napari asks for a reader; they are cancelled."""
    from napari._qt.dialogs.qt_reader_dialog import QtReaderDialog

    asked: list[object] = []

    def exec_(dialog: Any) -> bool:
        asked.append(dialog)
        return False

    monkeypatch.setattr(QtReaderDialog, "exec_", exec_)
    return asked


def drop(viewer: Any, *paths: Path) -> None:
    """As when files are let go over the canvas."""
    from qtpy.QtCore import QMimeData, QPointF, Qt, QUrl
    from qtpy.QtGui import QDropEvent

    mime = QMimeData()
    mime.setUrls([QUrl.fromLocalFile(str(path)) for path in paths])
    event = QDropEvent(
        QPointF(50, 50),
        Qt.DropAction.CopyAction,
        mime,
        Qt.MouseButton.LeftButton,
        Qt.KeyboardModifier.NoModifier,
    )
    viewer.window._qt_viewer.dropEvent(event)


def layer_of(viewer: Any, path: Path) -> Any:
    """The layer that shows a file; the widget may have added others meanwhile."""
    (layer,) = (layer for layer in viewer.layers if layer.source.path == str(path))
    return layer


def some_frames() -> npt.NDArray[Any]:
    with open_movie(sample_file("blinking_2d.tif")) as movie:
        return movie.read(0, 9)


def with_widget(viewer: Any) -> Any:
    """The widget, opened, with the camera of the sample."""
    _, dock = viewer.window.add_plugin_dock_widget(NAME, "Localize molecules")
    dock.panel(MovieStep).set_camera(str(sample_file("camera.yaml")))
    return dock


def confirm(dock: Any, qtbot: Any) -> None:
    """Take the settings of the movie before for this one."""
    button = dock.panel(MovieStep).remembered.button
    qtbot.waitUntil(lambda: not dock.panel(MovieStep).remembered.isHidden(), timeout=LONG)
    button.click()


def table() -> EmitterSet:
    return EmitterSet(
        frame=torch.tensor([0, 1, 1]),
        xyz=torch.tensor([[100.5, 200.25, 0.0], [1.0, 2.0, 30.0], [640.0, 320.0, -10.0]]),
        photons=torch.tensor([500.0, 600.0, 700.0]),
        metadata={"pixel_size_nm": 100.0},
    )


def holds_movie(dock: Any, path: Path) -> bool:
    return dock.session.movie is not None and dock.session.movie.path == path


def holds_table(dock: Any, path: Path) -> bool:
    return dock.session.found is not None and dock.session.found.source == str(path)


def test_files_that_are_dropped_into_the_window(
    make_napari_viewer: Any, qtbot: Any, tmp_path: Path, questions: list[object]
) -> None:
    viewer = make_napari_viewer()
    frames = some_frames()
    movies = [tmp_path / name for name in ("movie.tif", "movie.ome.tif", "MOVIE.TIF", "movie.tiff")]
    for path in movies:
        write_movie(path, frames, pixel_size_nm=100.0)
    tifffile.imwrite(tmp_path / "grey.tif", frames[0])
    tifffile.imwrite(tmp_path / "colours.tif", np.zeros((40, 50, 3), np.uint8), photometric="rgb")
    write_table(table(), tmp_path / "table.csv")
    write_table(table(), tmp_path / "table.hdf5")

    drop(viewer, movies[0])  # the widget was never open: napari asks, and nothing is read
    assert len(questions) == 1
    assert not viewer.layers

    dock = with_widget(viewer)
    for path in movies:
        drop(viewer, path)
        assert isinstance(layer_of(viewer, path).data, LazyFrames), path
        if path != movies[0]:
            confirm(dock, qtbot)
        opened = partial(holds_movie, dock, path)
        qtbot.waitUntil(opened, timeout=LONG)
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, frame in enumerate(frames):
        tifffile.imwrite(folder / f"img_{i}.tif", frame)
    dock.panel(MovieStep).pixel_size.setValue(100.0)
    drop(viewer, folder)
    assert isinstance(layer_of(viewer, folder).data, LazyFrames)
    confirm(dock, qtbot)
    qtbot.waitUntil(
        lambda: dock.session.movie is not None and dock.session.movie.path == folder, timeout=LONG
    )
    drop(viewer, tmp_path / "grey.tif", tmp_path / "colours.tif")
    np.testing.assert_array_equal(layer_of(viewer, tmp_path / "grey.tif").data, frames[0])
    assert layer_of(viewer, tmp_path / "colours.tif").rgb

    for name in ("table.csv", "table.hdf5"):
        drop(viewer, tmp_path / name)
        opened = partial(holds_table, dock, tmp_path / name)
        qtbot.waitUntil(opened, timeout=LONG)
        assert "table" not in viewer.layers
        qtbot.waitUntil(
            lambda: dock.view.points is not None and len(dock.view.points.data) == 3, timeout=LONG
        )
    assert len(questions) == 1


def test_a_movie_and_its_table_that_are_dropped_together_are_both_taken(
    make_napari_viewer: Any, qtbot: Any, tmp_path: Path, questions: list[object]
) -> None:
    viewer = make_napari_viewer()
    dock = with_widget(viewer)
    write_movie(tmp_path / "movie.tif", some_frames(), pixel_size_nm=100.0)
    write_table(table(), tmp_path / "movie.hdf5")
    drop(viewer, tmp_path / "movie.tif", tmp_path / "movie.hdf5")
    qtbot.waitUntil(
        lambda: dock.session.movie is not None and dock.session.found is not None, timeout=LONG
    )
    qtbot.waitUntil(lambda: not dock.runner.busy, timeout=LONG)
    assert not questions


def test_who_prefers_another_reader_keeps_it(
    make_napari_viewer: Any, qtbot: Any, tmp_path: Path, questions: list[object]
) -> None:
    from napari.settings import get_settings

    viewer = make_napari_viewer()
    stated = {"*.tif": "napari", "*.ome.tiff": "napari"}
    get_settings().plugins.extension2reader = stated
    dock = with_widget(viewer)
    assert stated.items() <= get_settings().plugins.extension2reader.items()
    for name, reader in (
        ("movie.tif", "napari"),
        ("movie.ome.tiff", "napari"),
        ("movie.tiff", NAME),
    ):
        write_movie(tmp_path / name, some_frames(), pixel_size_nm=100.0)
        drop(viewer, tmp_path / name)
        assert layer_of(viewer, tmp_path / name).source.reader_plugin == reader, name
    assert not questions
    qtbot.waitUntil(lambda: not dock.runner.busy, timeout=LONG)


def test_a_preference_that_is_taken_back_is_not_stated_again(qtbot: Any) -> None:
    from napari.settings import get_settings

    prefer_own_reader(Memory())
    assert set(get_settings().plugins.extension2reader.values()) == {NAME}
    get_settings().plugins.extension2reader = {}
    prefer_own_reader(Memory())
    assert not get_settings().plugins.extension2reader


def test_a_script_without_a_plugin_follows_the_preference(dock: Any, tmp_path: Path) -> None:
    """napari's default, plugin="napari", asks no other reader."""
    write_movie(tmp_path / "movie.tif", some_frames(), pixel_size_nm=100.0)
    (layer,) = dock.viewer.open(tmp_path / "movie.tif", plugin=None)
    assert layer.source.reader_plugin == NAME
    assert isinstance(layer.data, LazyFrames)


def test_a_table_does_not_take_the_place_of_molecules_that_are_not_saved(
    dock: Any, qtbot: Any, tmp_path: Path, complaints: list[str]
) -> None:
    acquisition: Any = object()
    found = Found(filter=Filter(table()), source="movie.tif", acquisition=acquisition)
    dock.session.put(found=found)
    write_table(table(), tmp_path / "table.csv")
    (layer,) = dock.viewer.open(tmp_path / "table.csv", plugin=NAME)
    qtbot.waitUntil(lambda: bool(complaints), timeout=LONG)
    assert "not yet saved" in complaints[0]
    assert dock.session.found is found
    assert layer in dock.viewer.layers
    dock.saved()
