"""The panel that renders and exports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast, final

from napari.utils.colormaps import Colormap
from napari.utils.notifications import show_info

from decode.io.tables import written_formats
from decode_napari.layers import image_layer, pyramid
from decode_napari.qt.panel import Panel, button, choice, note, number
from decode_napari.qt.window import Window
from decode_napari.steps.export import PICTURES, SETTINGS, ExportStep, Rendered
from decode_napari.steps.inspect import InspectStep

__all__ = ["ExportPanel"]

NAME = "super-resolved"
STALE = f"{NAME}, out of date"
KERNELS = ("gaussian", "histogram", "scatter")
NUMBERS = {"32 bits, densities": 32, "16 bits, counts or scaled": 16}
"""what a picture that is saved as TIFF holds"""
COLOURS = ("density", "z", "time", "photons")
"""what colours of the picture may show"""


@final
class ExportPanel(Panel):
    def __init__(self, step: ExportStep, dock: Window) -> None:
        super().__init__(step, dock)
        self.step = step
        self._layer: Any = None
        """the picture in the viewer"""
        self.pixel = self.row(
            "pixel", number(1, 1000, 10, unit="nm"), "Side of a pixel of the picture, nm"
        )
        self.kernel = self.row(
            "kernel",
            choice(KERNELS),
            "A Gaussian as wide as its uncertainty for each molecule, a count in its pixel, or a "
            "disc",
        )
        self.color = self.row(
            "colours", choice(COLOURS), "What colours show; brightness shows density"
        )
        self.bits = self.row(
            "TIFF",
            choice(tuple(NUMBERS)),
            "Molecules per pixel, or whole numbers of which 65535 is full brightness",
        )
        self.render_button = button(
            "Render", "The picture of the molecules that pass, in the viewer", self.run
        )
        self.table_button = button("Save table…", "The molecules that pass", self._ask_table)
        self.picture_button = button(
            "Save picture…",
            "As it is shown, with a scale bar (PNG, SVG), or as densities (TIFF)",
            self._ask_picture,
        )
        for each in (self.render_button, self.table_button, self.picture_button):
            self.column.addWidget(each)
        self.state = note()
        self.column.addWidget(self.state)
        self.column.addStretch()
        dock.memory.bind("render/pixel", self.pixel)
        dock.memory.bind("render/kernel", self.kernel)
        dock.memory.bind("render/colours", self.color)
        dock.memory.bind("render/TIFF", self.bits)
        self.refresh()

    def refresh(self) -> None:
        missing, found = self.step.missing(), self.step.session.found
        for each in (self.render_button, self.table_button, self.picture_button):
            each.setEnabled(not missing)
        if missing or found is None:
            self.state.setText(f"{missing[:1].upper()}{missing[1:]}.")
            return
        stale = self.step.is_stale()
        text = f"{found.filter.n_passing:,} molecules pass the filter, and are drawn and saved."
        self.state.setText(text + " The picture is of others: render it again." * stale)
        if self._layer is not None and self._layer in self.dock.viewer.layers:
            self._layer.name = STALE if stale else NAME

    def forget(self) -> None:
        layer, self._layer = self._layer, None
        if layer is not None and layer in self.dock.viewer.layers:
            self.dock.viewer.layers.remove(layer)

    def run(self) -> None:
        self._read()
        self.work("rendering", self.step.render, returned=self._rendered)

    def save_table(self, path: Path) -> None:
        self.work("saving", lambda: self.step.save_table(path), returned=self._saved)

    def save_picture(self, path: Path) -> None:
        self._read()
        self.work("saving", lambda: self.step.save_picture(path), returned=self._saved)

    def _read(self) -> None:
        found, color = self.step.session.found, self.color.currentText()
        flat = found is not None and "z" not in found.filter.columns
        self.step.settings = replace(
            SETTINGS,
            pixel_nm=self.pixel.value(),
            kernel=cast(Any, self.kernel.currentText()),
            color="density" if flat and color == "z" else color,
            bits=cast(Any, NUMBERS[self.bits.currentText()]),
        )

    def _rendered(self, rendered: Rendered) -> None:
        self.step.accept(rendered)
        viewer = self.dock.viewer
        if self._layer is not None and self._layer in viewer.layers:
            viewer.layers.remove(self._layer)
        options: dict[str, Any] = {}
        if rendered.table is not None:
            options = {
                "colormap": Colormap(rendered.table, name="decode density"),
                "contrast_limits": rendered.limits,
                "gamma": SETTINGS.gamma,
            }
        data, settings, _ = image_layer(
            pyramid(rendered.image),
            pixel_size_nm=rendered.pixel_nm,
            name=NAME,
            origin_nm=rendered.origin_nm,
            **options,
        )
        self._layer = viewer.add_image(data, **settings)
        self.dock.panel(InspectStep).all_frames.setChecked(False)  # they would cover it
        self.refresh()

    def _saved(self, path: Path) -> None:
        self.step.accept(path)
        if path.suffix.lower() not in PICTURES and self.step.saved_all:
            self.dock.saved()
        self.dock.refresh_steps()
        show_info(f"saved {path}")

    def _ask_table(self) -> None:
        kinds = (f"{each.title} (*{suffix})" for suffix, each in written_formats().items())
        path = self.ask_save("Save table", f"{self._stem()}.csv", ";;".join(kinds))
        if path is not None:
            self.save_table(path)

    def _ask_picture(self) -> None:
        path = self.ask_save(
            "Save picture",
            f"{self._stem()}.png",
            ";;".join(("PNG (*.png)", "SVG (*.svg)", "TIFF (*.tif)")),
        )
        if path is not None:
            self.save_picture(path)

    def _stem(self) -> str:
        found = self.step.session.found
        return "molecules" if found is None else Path(found.source).stem
