"""Make the pictures of docs/napari.md: the tutorial, gone through in a real window of 1280 x 800.

xvfb-run -a -s "-screen 0 1400x900x24 +extension GLX" python docs/make_screenshots.py
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
import numpy as np
import torch
from napari._qt.dialogs.qt_notification import NapariQtNotification
from napari.settings import get_settings
from qtpy.QtCore import QSettings
from qtpy.QtWidgets import QApplication

from decode import EmitterSet, write_table
from decode_napari.samples import sample_file
from decode_napari.steps.drift import DriftStep
from decode_napari.steps.export import ExportStep
from decode_napari.steps.inspect import InspectStep
from decode_napari.steps.link import LinkStep
from decode_napari.steps.localize import LocalizeStep
from decode_napari.steps.model import ModelStep
from decode_napari.steps.psf import PSFStep
from decode_napari.steps.quality import QualityStep

OUT = Path(__file__).resolve().parent / "images" / "napari"
MINUTES = 10.0
"""of the training that is shown"""
PATIENCE = 1800.0
"""seconds that a step may take"""


def wait(until: Callable[[], bool] = lambda: False, seconds: float = PATIENCE) -> None:
    """Let the window live until something has happened."""
    app, end = QApplication.instance(), time.monotonic() + seconds
    while not until() and time.monotonic() < end:
        app.processEvents()
        time.sleep(0.002)


def new_window() -> tuple[Any, Any]:
    viewer = napari.Viewer()
    viewer.window._qt_window.resize(1280, 800)
    _, dock = viewer.window.add_plugin_dock_widget("decode-smlm", "Localize molecules")
    wait(lambda: dock.session.model is not None)
    return viewer, dock


def idle(dock: Any) -> None:
    wait(lambda: not dock.runner.busy and not dock.previewer.busy)
    wait(seconds=2)
    for notification in dock.window().findChildren(NapariQtNotification):
        notification.close()


def shoot(viewer: Any, name: str) -> None:
    wait(seconds=1)
    viewer.screenshot(str(OUT / f"{name}.png"), canvas_only=False, flash=False)


def open_sample(viewer: Any, dock: Any, name: str) -> None:
    viewer.open_sample("decode-smlm", name)
    wait(lambda: dock.session.movie is not None)
    idle(dock)


def flat() -> None:
    """The tutorial in 2D: movie, preview, molecules, filter, picture."""
    viewer, dock = new_window()
    open_sample(viewer, dock, "blinking_2d")
    viewer.dims.set_current_step(0, 100)
    shoot(viewer, "movie")
    localize = dock.panel(LocalizeStep)
    dock.go_to(LocalizeStep)
    localize.preview()
    wait(lambda: "preview" in viewer.layers)
    shoot(viewer, "preview")
    localize.run()
    wait(lambda: dock.session.found is not None)
    wait(lambda: len(dock.session.found.filter.emitters) > 3000 or not dock.runner.busy)
    shoot(viewer, "running")
    idle(dock)
    dock.go_to(InspectStep)
    inspect = dock.panel(InspectStep)
    inspect.sliders["sigma"].setValue((0.0, 20.0))
    inspect.with_ellipses.setChecked(True)
    inspect._settle()
    bright = dock.session.found.filter
    rows = bright.rows_in_frame(100)
    inspect.table.selectRow(inspect.rows.position_of(int(rows[len(rows) // 2])))
    scene = getattr(viewer, "scene", viewer)
    zoom = scene.camera.zoom
    scene.camera.zoom = 6 * zoom
    selected = viewer.layers["selected"]
    scene.camera.center = selected.data_to_world(selected.data[0])[-2:]
    shoot(viewer, "inspect")
    viewer.reset_view()
    inspect.explained.setChecked(True)
    wait(lambda: "left over" in viewer.layers)
    for name in ("density", "molecules", "uncertainty"):
        viewer.layers[name].visible = False
    idle(dock)
    shoot(viewer, "left_over")
    inspect.explained.setChecked(False)
    dock.go_to(ExportStep)
    dock.panel(ExportStep).run()
    wait(lambda: "super-resolved" in viewer.layers)
    dock.panel(ExportStep).save_table(Path("blinking_2d.csv"))
    idle(dock)
    shoot(viewer, "render")
    viewer.close()


def deep() -> None:
    """And in 3D: beads to a PSF, a model trained for it."""
    viewer, dock = new_window()
    open_sample(viewer, dock, "blinking_3d")
    psf = dock.panel(PSFStep)
    dock.go_to(PSFStep)
    psf.set_beads([sample_file("beads_3d.tif")])
    psf.z_step.setValue(20.0)
    psf.out.setText("psf.h5")
    psf.run()
    wait(lambda: dock.session.psf is not None)
    idle(dock)
    viewer.layers["blinking_3d"].visible = False
    viewer.reset_view()
    shoot(viewer, "psf")
    psf.which.setCurrentIndex(1)
    area = dock.stack.currentWidget()
    area.verticalScrollBar().setValue(area.verticalScrollBar().maximum())
    shoot(viewer, "psf_precision")
    model = dock.panel(ModelStep)
    dock.go_to(ModelStep)
    model.out.setText("astigmatic.safetensors")
    model.minutes.setValue(MINUTES)
    model.changes.setText("training.validate_every=100")
    model.train()
    area = dock.stack.currentWidget()
    wait(lambda: len(model._curves.get("jaccard", ([],))[0]) >= 5 or not dock.runner.busy)
    area.verticalScrollBar().setValue(area.verticalScrollBar().maximum())
    shoot(viewer, "model")
    idle(dock)
    viewer.close()


def blinking(n_frames: int = 4000) -> EmitterSet:
    """Blinking molecules along filaments, on a stage that drifts."""
    rng = np.random.default_rng(1)
    side, n_filaments, n_molecules = 12_800.0, 14, 2500
    start, angle = rng.uniform(0, side, (n_filaments, 2)), rng.uniform(0, np.pi, n_filaments)
    of, along = rng.integers(0, n_filaments, n_molecules), rng.uniform(-6000, 6000, n_molecules)
    bend = 500 * np.sin(along / 2000 + of)
    across = np.stack([-np.sin(angle[of]), np.cos(angle[of])], 1)
    place = start[of] + along[:, None] * np.stack([np.cos(angle[of]), np.sin(angle[of])], 1)
    place = (place + bend[:, None] * across) % side
    blinks = np.repeat(np.arange(n_molecules), 1 + rng.poisson(1.0, n_molecules))
    first = rng.integers(0, n_frames, len(blinks))
    rows = np.repeat(np.arange(len(blinks)), rng.geometric(0.35, len(blinks)))
    on = np.arange(len(rows)) - np.searchsorted(rows, rows)
    frame = first[rows] + on
    keep = frame < n_frames
    frame, molecule = frame[keep], blinks[rows][keep]
    photons = rng.gamma(3.0, 500.0, len(frame)) + 200
    sigma = 330 / np.sqrt(photons)
    time = frame / n_frames
    moved = np.stack([180 * time**1.5, -120 * np.sin(2.5 * time)], 1)
    xy = place[molecule] + moved + rng.normal(size=(len(frame), 2)) * sigma[:, None]
    order = np.argsort(frame, kind="stable")
    xyz = np.concatenate([xy, np.zeros((len(frame), 1))], 1)[order]
    nothing = np.full(len(frame), np.nan)
    return EmitterSet(
        frame=torch.from_numpy(frame[order]),
        xyz=torch.from_numpy(xyz),
        photons=torch.from_numpy(photons[order]),
        xyz_sigma=torch.from_numpy(np.stack([sigma[order], sigma[order], nothing], 1)),
        metadata={"pixel_size_nm": 100.0, "width_px": 128, "height_px": 128, "n_frames": n_frames},
    )


def table() -> None:
    """A table of a long movie: drift, links, quality."""
    viewer, dock = new_window()
    write_table(blinking(), "filaments.csv")
    dock.panel(InspectStep).open(Path("filaments.csv"))
    wait(lambda: dock.session.found is not None)
    idle(dock)
    drift, link, quality = (dock.panel(step) for step in (DriftStep, LinkStep, QualityStep))
    dock.go_to(DriftStep)
    drift.run()
    wait(lambda: drift.step.estimated is not None or not dock.runner.busy)
    idle(dock)
    drift.subtract()
    render = dock.panel(ExportStep)
    render.run()
    wait(lambda: "super-resolved" in viewer.layers)
    idle(dock)
    shoot(viewer, "drift")
    dock.go_to(LinkStep)
    link.run()
    wait(lambda: link.step.is_linked or not dock.runner.busy)
    idle(dock)
    render.run()
    idle(dock)
    shoot(viewer, "link")
    dock.go_to(QualityStep)
    quality.run()
    wait(lambda: quality.step.assessed is not None or not dock.runner.busy)
    idle(dock)
    shoot(viewer, "quality")
    viewer.close()


SCENES = {"flat": flat, "deep": deep, "table": table}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=tuple(SCENES))
    arguments = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        # settings of the user's own windows stay what they are
        QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, folder)
        get_settings(None)
        os.chdir(folder)  # pictures show the names of files that the tutorial writes, not where
        for name in [arguments.only] if arguments.only else SCENES:
            SCENES[name]()


if __name__ == "__main__":
    main()
