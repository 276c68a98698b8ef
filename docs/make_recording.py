"""Make docs/images/napari/tour.gif: from a movie to a picture in the real window.

xvfb-run -a -s "-screen 0 1400x900x24 +extension GLX" python docs/make_recording.py
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, final

from make_screenshots import OUT, idle, new_window, open_sample, wait
from napari.settings import get_settings
from PIL import Image
from qtpy.QtCore import QSettings

from decode.atomic import atomic
from decode_napari.steps.export import ExportStep
from decode_napari.steps.inspect import InspectStep
from decode_napari.steps.localize import LocalizeStep

SIZE = (880, 550)
LARGEST = 2_000_000
"""bytes"""


@final
class Recording:
    """Pictures of a window, each with the time for which it is shown."""

    def __init__(self, viewer: Any) -> None:
        self._viewer = viewer
        self._frames: list[Image.Image] = []
        self._ms: list[int] = []

    def shoot(self, ms: int) -> None:
        wait(seconds=0.3)
        picture = self._viewer.screenshot(canvas_only=False, flash=False)
        frame = Image.fromarray(picture).convert("RGB").resize(SIZE, Image.Resampling.LANCZOS)
        self._frames.append(frame)
        self._ms.append(ms)

    def save(self, path: Path) -> None:
        # one palette for all, so that what does not change is not stored again
        sheet = Image.new("RGB", (SIZE[0], SIZE[1] * len(self._frames)))
        for i, frame in enumerate(self._frames):
            sheet.paste(frame, (0, i * SIZE[1]))
        palette = Image.new("P", (1, 1))
        palette.putpalette(_colours(sheet, "MEDIANCUT", 152) + _colours(sheet, "MAXCOVERAGE", 104))
        first, *others = (
            frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in self._frames
        )
        with atomic(path) as unfinished:
            first.save(
                unfinished,
                format="GIF",
                save_all=True,
                append_images=others,
                duration=self._ms,
                loop=0,
                optimize=True,
            )
        if path.stat().st_size > LARGEST:
            raise RuntimeError(f"{path} has {path.stat().st_size} bytes: take fewer pictures")


def _colours(sheet: Image.Image, method: str, number: int) -> list[int]:
    """The most frequent colours (MEDIANCUT), or those furthest from each other (MAXCOVERAGE):
    frames are grey, molecules and pictures are not."""
    found = sheet.quantize(number, Image.Quantize[method], dither=Image.Dither.NONE).getpalette()
    return (found or [])[: 3 * number]


def tour() -> None:
    viewer, dock = new_window()
    recording = Recording(viewer)
    open_sample(viewer, dock, "blinking_2d")
    for frame in range(100, 106):
        viewer.dims.set_current_step(0, frame)
        recording.shoot(350)
    localize = dock.panel(LocalizeStep)
    dock.go_to(LocalizeStep)
    localize.preview()
    wait(lambda: "preview" in viewer.layers)
    recording.shoot(1500)
    localize.run()
    wait(lambda: dock.session.found is not None)
    while dock.runner.busy:
        wait(lambda: not dock.runner.busy, seconds=2.0)
        recording.shoot(450)
    idle(dock)
    recording.shoot(1200)
    dock.go_to(InspectStep)
    inspect = dock.panel(InspectStep)
    for largest in (40.0, 30.0, 20.0, 12.0):
        inspect.sliders["sigma"].setValue((0.0, largest))
        inspect._settle()
        recording.shoot(600)
    dock.go_to(ExportStep)
    dock.panel(ExportStep).run()
    wait(lambda: "super-resolved" in viewer.layers)
    idle(dock)
    recording.shoot(2500)
    recording.save(OUT / "tour.gif")
    viewer.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        # settings of the user's own windows stay what they are
        QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, folder)
        get_settings(None)
        os.chdir(folder)
        tour()


if __name__ == "__main__":
    main()
