"""What panels say: beside the field that it is about, for as long as it is so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from decode import open_movie, write_movie
from decode.io.psfs import PSFFile, write_psf
from decode.optics.pupil import PupilPSF
from decode.progress import Progress
from decode_napari.qt.memory import Memory
from decode_napari.qt.panel import AMBER
from decode_napari.samples import sample_file
from decode_napari.steps.export import ExportStep
from decode_napari.steps.inspect import InspectStep
from decode_napari.steps.localize import LocalizeStep
from decode_napari.steps.model import ModelStep
from decode_napari.steps.movie import MovieStep
from decode_napari.steps.psf import PSFStep

NAME = "decode-smlm"
LONG = 200_000
"""ms: the machine may be busy"""


def marked(widget: Any) -> bool:
    return AMBER in widget.styleSheet()


def open_sample(dock: Any, qtbot: Any) -> Any:
    """The 2D sample, and the panel that localizes it, told the PSF's width."""
    dock.viewer.open_sample(NAME, "blinking_2d")
    qtbot.waitUntil(lambda: dock.session.movie is not None and not dock.runner.busy, timeout=LONG)
    panel = dock.panel(LocalizeStep)
    panel.psf_sigma.setValue(95.0)
    return panel


def localize_all(dock: Any, tmp: Path) -> None:
    dock.localize()


@pytest.mark.parametrize(
    ("step", "spoil", "sentence"),
    [
        (MovieStep, lambda dock, tmp: dock.panel(MovieStep).check(), "No movie is open"),
        (MovieStep, lambda dock, tmp: dock.panel(MovieStep).open(tmp / "none.tif"), "none.tif"),
        (LocalizeStep, localize_all, "Open a movie first"),
        (InspectStep, lambda dock, tmp: dock.panel(InspectStep).open(tmp / "none.csv"), "none.csv"),
        (
            ExportStep,
            lambda dock, tmp: dock.panel(ExportStep).save_table(tmp / "a.csv"),
            "Localize a movie",
        ),
        (PSFStep, lambda dock, tmp: dock.panel(PSFStep).run(), "Open a movie first"),
        (ModelStep, lambda dock, tmp: dock.panel(ModelStep).train(), "To write the model"),
        (
            ModelStep,
            lambda dock, tmp: dock.panel(ModelStep).load("gaussian-3d"),
            "no model gaussian-3d",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_its_panel_and_not_in_a_notification(
    step: Any,
    spoil: Any,
    sentence: str,
    dock: Any,
    qtbot: Any,
    tmp_path: Path,
    complaints: list[str],
) -> None:
    spoil(dock, tmp_path)
    panel = dock.panel(step)
    qtbot.waitUntil(lambda: bool(panel.troubles), timeout=LONG)
    assert sentence.lower() in panel.troubles[0].lower()
    assert not complaints
    assert not dock.runner.busy


def test_a_fault_of_the_program_is_a_notification_with_its_traceback(
    dock: Any, qtbot: Any, complaints: list[str]
) -> None:
    def verb() -> Iterator[Progress[None]]:
        yield Progress(None, "working")
        raise KeyError("column")

    panel = dock.panel(ExportStep)
    panel.work("working", verb)
    qtbot.waitUntil(lambda: bool(complaints), timeout=LONG)
    assert "column" in complaints[0]
    assert not panel.troubles


def test_a_movie_without_a_pixel_size_marks_the_field_until_it_is_stated(
    make_napari_viewer: Any, qtbot: Any, tmp_path: Path, complaints: list[str]
) -> None:
    with tifffile.TiffFile(sample_file("blinking_2d.tif")) as file:
        tifffile.imwrite(tmp_path / "plain.tif", file.asarray()[:9], photometric="minisblack")
    viewer = make_napari_viewer(show=True)
    _, dock = viewer.window.add_plugin_dock_widget(NAME, "Localize molecules")
    panel = dock.panel(MovieStep)
    panel.open(tmp_path / "plain.tif")
    qtbot.waitUntil(lambda: bool(panel.troubles), timeout=LONG)
    assert panel.troubles == [
        "plain.tif does not say how large its pixels are; state it with pixel size"
    ]
    assert marked(panel.pixel_size)
    assert not complaints
    dock.refresh_steps()
    assert panel.troubles  # it stays
    panel.pixel_size.setValue(100.0)
    qtbot.waitUntil(lambda: dock.session.movie is not None, timeout=LONG)
    assert not panel.troubles
    assert not marked(panel.pixel_size)


def test_an_em_gain_that_is_missing_and_a_wrong_region_mark_their_fields(
    dock: Any, qtbot: Any, tmp_path: Path
) -> None:
    localize = open_sample(dock, qtbot)
    localize.roi.text.setText("10:4000,0:20")
    localize.preview()
    qtbot.waitUntil(lambda: bool(localize.troubles), timeout=LONG)
    assert marked(localize.roi.text)
    localize.roi.text.setText("10:40,0:20")
    localize.preview()
    assert not marked(localize.roi.text)
    movie = dock.panel(MovieStep)
    movie.set_camera("andor-ixon-ultra-897")
    movie.check()
    qtbot.waitUntil(lambda: bool(movie.troubles), timeout=LONG)
    assert marked(movie.em_gain)


def test_a_bead_stack_without_a_distance_of_planes_marks_the_field(
    make_napari_viewer: Any, qtbot: Any, tmp_path: Path
) -> None:
    tifffile.imwrite(
        tmp_path / "beads.tif", np.full((9, 40, 40), 100, np.uint16), photometric="minisblack"
    )
    viewer = make_napari_viewer(show=True)
    _, dock = viewer.window.add_plugin_dock_widget(NAME, "Localize molecules")
    open_sample(dock, qtbot)
    panel = dock.panel(PSFStep)
    panel.set_beads([tmp_path / "beads.tif"])
    panel.run()
    qtbot.waitUntil(lambda: bool(panel.troubles), timeout=LONG)
    assert marked(panel.z_step)
    assert dock.steps[dock.list.currentRow()] is panel.step  # where the user sees it


def test_a_preview_is_seen_to_work_and_can_be_cancelled(dock: Any, qtbot: Any) -> None:
    panel = open_sample(dock, qtbot)
    panel.preview()
    assert dock.previewer.busy
    assert panel.state.text() == "Looking at this frame…"
    assert dock.progress.maximum() == 0  # it moves, and says no part
    assert dock.cancel_button.isEnabled()
    dock.cancel_button.click()
    qtbot.waitUntil(lambda: not dock.previewer.busy, timeout=LONG)
    assert "preview" not in dock.viewer.layers
    assert panel.state.text() == "Ready."
    assert dock.progress.maximum() > 0
    assert not dock.cancel_button.isEnabled()


def test_minutes_of_adapting_ask_for_a_psf_in_place_of_the_chosen_model(
    dock: Any, qtbot: Any
) -> None:
    panel = open_sample(dock, qtbot)
    assert panel.run_button.isEnabled()
    panel.adapt.setValue(7)
    assert not panel.run_button.isEnabled()
    assert panel.state.text() == "Calibrate a PSF first."
    assert panel.preview_button.isEnabled()  # by the chosen model
    panel.adapt.setValue(0)
    assert panel.run_button.isEnabled()


def test_the_count_of_a_frame_goes_when_the_frame_or_a_setting_changes(
    dock: Any, qtbot: Any
) -> None:
    panel = open_sample(dock, qtbot)
    dock.viewer.dims.set_current_step(0, 10)
    for change in (
        lambda: dock.viewer.dims.set_current_step(0, 11),
        lambda: panel.threshold.setValue(0.9),
    ):
        panel.preview()
        qtbot.waitUntil(lambda: "molecules in this frame" in panel.state.text(), timeout=LONG)
        dock.refresh_steps()
        assert "molecules in this frame" in panel.state.text()
        change()
        dock.refresh_steps()
        assert panel.state.text() == "Ready."


STARTING = """
import sys
import time

import napari
from qtpy.QtCore import QTimer

viewer = napari.Viewer()
viewer.open_sample("decode-smlm", "blinking_2d")
viewer.open(sys.argv[1], plugin="decode-smlm")
assert "torch" not in sys.modules
viewer.layers.clear()
beats, timer = [], QTimer()
timer.timeout.connect(lambda: beats.append(time.perf_counter()))
timer.start(5)
viewer.window.add_plugin_dock_widget("decode-smlm", "Localize molecules")
assert "torch" in sys.modules
assert len(beats) > 10, beats
viewer.close()
"""


@pytest.mark.usefixtures(
    "make_napari_viewer"
)  # a real window, in a process that has imported nothing
def test_the_window_lives_while_pytorch_is_imported_and_movies_need_none_of_it() -> None:
    command = [sys.executable, "-c", STARTING, str(sample_file("blinking_3d.tif"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr


def test_every_control_has_a_tooltip(dock: Any) -> None:
    from qtpy.QtWidgets import (
        QAbstractItemView,
        QAbstractSlider,
        QAbstractSpinBox,
        QCheckBox,
        QComboBox,
        QHeaderView,
        QLineEdit,
        QProgressBar,
        QPushButton,
    )

    from decode_napari.qt.plot import Plot

    kinds = (
        QAbstractItemView,
        QAbstractSpinBox,
        QCheckBox,
        QComboBox,
        QLineEdit,
        QProgressBar,
        QPushButton,
        Plot,
    )
    inner = (QAbstractSlider, QAbstractSpinBox, QComboBox, QHeaderView)
    for kind in kinds:
        for widget in dock.findChildren(kind):
            parts = widget, widget.parent()
            if isinstance(widget, QHeaderView) or isinstance(widget.parent(), inner):
                continue
            if type(widget.parent()).__name__ == "QFrame":  # the list of a combo box
                continue
            assert any(part.toolTip() for part in parts), (
                type(widget).__name__,
                widget.accessibleName(),
            )


def test_figures_are_as_wide_as_their_panel_and_open_large_by_a_click(
    qtbot: Any, tmp_path: Path
) -> None:
    from PIL import Image
    from qtpy.QtCore import Qt

    from decode_napari.qt.figure import Figure

    Image.new("RGB", (1200, 600), "white").save(tmp_path / "figure.png")
    figure = Figure()
    qtbot.addWidget(figure)
    figure.show_png((tmp_path / "figure.png").read_bytes(), "x against z")
    figure.resize(900, figure.heightForWidth(900))
    figure.show()
    picture = figure.grab().toImage()
    assert picture.pixelColor(895, 440).name() == "#ffffff"
    qtbot.mouseClick(figure, Qt.MouseButton.LeftButton)
    (window,) = figure.children()
    assert window.windowTitle() == "x against z"
    assert window.width() > 700


def test_a_notice_is_shown_whole(dock: Any, qtbot: Any) -> None:
    dock.resize(400, 800)
    dock.show()
    dock.say(
        "Kept from a window that was closed: /"
        + "a_long_folder/" * 12
        + "movie.hdf5; open it in the step Inspect."
    )
    qtbot.waitUntil(
        lambda: dock.message.height() >= dock.message.heightForWidth(dock.message.width()),
        timeout=LONG,
    )
    assert dock.message.sizeHint().width() <= dock.width()


def plain_movie(tmp_path: Path, **facts: Any) -> Path:
    """Frames of the sample, in a TIFF that says nothing of its pixels unless told to."""
    with open_movie(sample_file("blinking_2d.tif")) as movie:
        frames = movie.read(0, 9)
    if facts:
        write_movie(tmp_path / "stated.tif", frames, **facts)
        return tmp_path / "stated.tif"
    tifffile.imwrite(tmp_path / "plain.tif", frames, photometric="minisblack")
    return tmp_path / "plain.tif"


def test_settings_of_an_earlier_window_are_shown_as_remembered_and_used_once_they_are_confirmed(
    make_napari_viewer: Any, qtbot: Any, tmp_path: Path
) -> None:
    memory = Memory()
    memory.set_text("movie/camera", str(sample_file("camera.yaml")))
    memory._store.setValue("movie/pixel size", 108.0)
    viewer = make_napari_viewer(show=True)
    _, dock = viewer.window.add_plugin_dock_widget(NAME, "Localize molecules")
    panel = dock.panel(MovieStep)
    assert panel.remembered.isHidden()  # there is no movie yet
    panel.open(plain_movie(tmp_path))
    qtbot.waitUntil(lambda: not panel.remembered.isHidden(), timeout=LONG)
    assert dict(panel.remembered.waiting) == {"pixel size": "108.0 nm", "camera": "camera.yaml"}
    qtbot.wait(100)
    assert dock.session.movie is None
    assert not dock.runner.busy
    panel.remembered.button.click()
    qtbot.waitUntil(lambda: dock.session.movie is not None, timeout=LONG)
    assert dock.session.movie.pixel_size_nm == 108.0
    assert panel.remembered.isHidden()


def test_what_is_stated_anew_or_by_the_movie_itself_need_not_be_confirmed(
    dock: Any, qtbot: Any, tmp_path: Path
) -> None:
    panel = dock.panel(MovieStep)
    panel.pixel_size.setValue(108.0)
    panel.remembered.offer({"pixel size": "108.0 nm", "camera": "camera.yaml"})
    panel.open(plain_movie(tmp_path, pixel_size_nm=100.0))
    qtbot.waitUntil(lambda: not panel.remembered.isHidden(), timeout=LONG)
    assert list(panel.remembered.waiting) == ["camera"]
    assert panel.pixel_size.value() == 0
    panel.set_camera(str(sample_file("camera.yaml")))
    panel.check()
    qtbot.waitUntil(lambda: dock.session.movie is not None, timeout=LONG)
    assert dock.session.movie.pixel_size_nm == 100.0


def test_what_was_stated_for_one_movie_must_be_confirmed_for_the_next_unless_that_states_its_own(
    dock: Any, qtbot: Any, tmp_path: Path
) -> None:
    panel = dock.panel(MovieStep)
    panel.pixel_size.setValue(108.0)
    panel.open(plain_movie(tmp_path))
    qtbot.waitUntil(lambda: dock.session.movie is not None and not dock.runner.busy, timeout=LONG)
    assert dock.session.movie.pixel_size_nm == 108.0
    panel.set_camera("andor-ixon-ultra-897")
    panel.em_gain.setValue(300)
    again = tmp_path / "again"
    again.mkdir()
    panel.open(plain_movie(again))
    qtbot.waitUntil(lambda: not panel.remembered.isHidden(), timeout=LONG)
    assert set(panel.remembered.waiting) == {"pixel size", "camera", "EM gain"}
    assert dock.session.movie is None
    assert "confirm" in dock.panel(LocalizeStep).step.missing()
    dock.viewer.open_sample(NAME, "blinking_2d")
    qtbot.waitUntil(
        lambda: (
            dock.session.movie is not None and dock.session.movie.path.name == "blinking_2d.tif"
        ),
        timeout=LONG,
    )
    assert dock.session.movie.pixel_size_nm == 100.0


@pytest.mark.parametrize("served", [True, False])
def test_the_psf_panel_says_beforehand_that_no_shipped_model_takes_a_psf(
    dock: Any, qtbot: Any, tmp_path: Path, served: bool
) -> None:
    pupil = PupilPSF(
        numerical_aperture=1.4,
        wavelength_nm=670.0,
        pixel_size_nm=100.0 if served else 30.0,
        zernike_nm={(2, 2): 67.0},
    )
    write_psf(tmp_path / "psf.h5", PSFFile(psf=pupil, z_range_nm=(-600.0, 600.0)))
    panel = dock.panel(PSFStep)
    panel.open_psf(tmp_path / "psf.h5")
    qtbot.waitUntil(lambda: dock.session.psf is not None and not dock.runner.busy, timeout=LONG)
    assert ("No shipped model takes this PSF in 3D" in panel.state.text()) != served
