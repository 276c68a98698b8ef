"""Responsiveness of the napari window: its event loop during work, a preview, a cancel, sliders
over many molecules.

    xvfb-run -a -s "-screen 0 1400x900x24 +extension GLX" python benchmarks/window.py [--molecules
    500000 1000000]

It opens a real window, drawn by the available OpenGL (under Xvfb by the processor, which the work
needs, too).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import napari
import numpy as np
import torch
from napari.settings import get_settings
from qtpy.QtCore import QSettings, QTimer
from qtpy.QtWidgets import QApplication

from decode import EmitterSet, open_movie, write_movie, write_table
from decode_napari.qt.view import camera_of, half_canvas_um
from decode_napari.samples import sample_file
from decode_napari.steps.inspect import InspectStep
from decode_napari.steps.localize import LocalizeStep
from decode_napari.steps.model import ModelStep
from decode_napari.steps.movie import MovieStep

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "gaussian-2d.yaml"


def wait(until: Callable[[], bool], seconds: float = 300.0) -> float:
    """Run the event loop until a condition holds; returns the seconds it took."""
    app, start = QApplication.instance(), time.perf_counter()
    while not until():
        app.processEvents()
        time.sleep(0.001)
        if time.perf_counter() - start > seconds:
            raise TimeoutError(f"nothing happened within {seconds:g} s")
    return time.perf_counter() - start


def longest_gap(work: Callable[[], None]) -> float:
    """Longest time between two beats of the event loop, nominally 5 ms apart, during work, in
    milliseconds."""
    beats, timer = [time.perf_counter()], QTimer()
    timer.timeout.connect(lambda: beats.append(time.perf_counter()))
    timer.start(5)
    work()
    timer.stop()
    return 1000 * max(b - a for a, b in pairwise(beats))


def pause(seconds: float) -> None:
    end = time.perf_counter() + seconds
    wait(lambda: time.perf_counter() > end)


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


def large_movie(path: Path) -> None:
    """The sample, laid 4 x 4 side by side: 256 x 256 pixels."""
    with open_movie(sample_file("blinking_2d.tif")) as movie:
        write_movie(path, np.tile(movie.read(0, 20), (1, 4, 4)), pixel_size_nm=100.0)


def table(dock: Any, viewer: Any, n: int, path: Path) -> None:
    """Time opening a table, moving a slider and zooming in, until the window is drawn."""
    inspect: Any = dock.panel(InspectStep)
    write_table(table_of(n), path)
    before = dock.session.found
    inspect.open(path)
    opened = wait(lambda: dock.session.found is not before and not dock.runner.busy)
    viewer.reset_view()
    pause(1)
    times = []
    for i in range(1, 31):
        start = time.perf_counter()
        inspect.sliders["photons"].setValue((50.0 * i, 4500.0))
        QApplication.processEvents()
        QApplication.processEvents()
        times.append(time.perf_counter() - start)
    camera = camera_of(viewer)
    camera.center, camera.zoom = (0.0, 12.8, 12.8), camera.zoom * max(half_canvas_um(viewer)) / 0.75
    near = wait(lambda: "all frames" in viewer.layers and viewer.layers["all frames"].visible)
    cloud = dock.view_in_3d()
    pause(1)
    turns = []
    for i in range(10):
        start = time.perf_counter()
        camera_of(cloud.viewer).angles = (0.0, 10.0 * i, 0.0)
        QApplication.processEvents()
        QApplication.processEvents()
        turns.append(time.perf_counter() - start)
    cloud.viewer.close()
    print(
        f"{n} molecules: opened in {opened:.1f} s, slider {1 / np.mean(times):.0f} updates a "
        "second, "
        f"points {near:.1f} s after zooming in, 3D turns {1 / np.mean(turns):.0f} times a second"
    )


def measure(n_molecules: list[int], folder: Path) -> None:
    viewer = napari.Viewer()
    _, dock = viewer.window.add_plugin_dock_widget("decode-smlm", "Localize molecules")
    wait(lambda: dock.session.model is not None)

    def idle() -> None:
        wait(lambda: not dock.runner.busy and not dock.previewer.busy)

    viewer.open_sample("decode-smlm", "blinking_2d")
    wait(lambda: dock.session.movie is not None)
    idle()
    localize: Any = dock.panel(LocalizeStep)
    dock.go_to(LocalizeStep)
    localize.preview()
    idle()
    pause(1)  # until it is drawn

    def whole_movie() -> None:
        dock.localize()
        idle()
        pause(1)  # until all points are drawn

    for name in ("first", "second"):
        print(
            f"localize, {name} run: event loop held up for {longest_gap(whole_movie):.0f} ms at "
            "most"
        )
    dock.localize()
    wait(lambda: localize.step.n_found > 500)
    dock.cancel()
    print(f"cancel: {wait(lambda: not dock.runner.busy):.2f} s")

    large_movie(folder / "large.tif")
    dock.panel(MovieStep).open(folder / "large.tif")
    wait(lambda: dock.session.movie.path.name == "large.tif")
    idle()
    viewer.dims.set_current_step(0, 10)
    times = []
    for i in range(4):
        localize.threshold.setValue(0.5 + i / 100)
        localize.preview()
        assert dock.previewer.busy
        times.append(wait(lambda: not dock.previewer.busy))
    print(f"preview of 256 x 256: {times[0]:.2f} s, then {max(times[1:]):.2f} s at most")

    training: Any = dock.panel(ModelStep)
    training.set_recipe(RECIPE)
    training.out.setText(str(folder / "mine.safetensors"))
    training.train()
    wait(lambda: "loss" in training._curves)
    print(f"train: event loop held up for {longest_gap(lambda: pause(15)):.0f} ms at most")
    dock.cancel()
    idle()

    for n in n_molecules:
        table(dock, viewer, n, folder / "table.hdf5")
    viewer.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--molecules", type=int, nargs="+", default=[500_000, 1_000_000])
    arguments = parser.parse_args()
    print(
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory() as folder:
        # settings of the user's own windows stay what they are
        QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, folder)
        get_settings(None)
        measure(arguments.molecules, Path(folder))


if __name__ == "__main__":
    main()
