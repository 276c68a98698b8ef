"""The molecules in the viewer: points, ellipses, density, and what the molecules leave of a frame."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from napari.layers import Image, Points, Vectors
from napari.utils.colormaps import ensure_colormap
from psygnal import Signal
from qtpy.QtCore import QTimer

from decode.emitters import EmitterSet
from decode_napari.layers import (
    UM_PER_NM,
    image_layer,
    placement,
    points_layer,
)
from decode_napari.molecules import Density, Filter
from decode_napari.session import Found
from decode_napari.steps.inspect import Explained, ellipses

__all__ = ["MoleculeView"]

MOST_POINTS = 20_000
"""shown all at once; of more, those of the current frame"""
MOST_ELLIPSES = 2_000
MOST_IN_VIEW = 5_000
"""of all frames; more are an image until the user zooms in"""
COLORMAP = "turbo"
GLOW: dict[str, Any] = {"colormap": "inferno", "blending": "additive"}
ROW = "molecule"
"""feature: number of the molecule in the whole table"""


@final
class MoleculeView:
    """Layers that follow a table and its filter; a layer that the user has closed comes back with the next table."""

    picked = Signal(int)
    """the number of a molecule that was selected in the viewer"""

    def __init__(self, viewer: Any) -> None:
        self._viewer = viewer
        self._found: Found | None = None
        self._density: Density | None = None
        self._lit: Density | None = None
        """to which the contrast was set"""
        self._layers: dict[str, Any] = {}
        self._is_new = False
        """a table was put, and its points are not yet there"""
        self._shown: object = None
        self._rows: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        """numbers of the molecules that are points, in the whole table"""
        self.colour_by = "photons"
        self.with_ellipses = False
        self.all_frames = False
        """show the molecules of all frames as points, where few enough are in view"""
        # a layer that is being inserted changes the step too: layers are changed only once that is over
        self._soon = QTimer()
        self._soon.setSingleShot(True)
        self._soon.setInterval(0)
        self._soon.timeout.connect(self._follow)
        viewer.dims.events.current_step.connect(self._on_step)
        self._moved = QTimer()
        self._moved.setSingleShot(True)
        self._moved.setInterval(150)
        self._moved.timeout.connect(self.show_in_view)
        camera = getattr(viewer, "scene", viewer).camera
        for event in (camera.events.zoom, camera.events.center):
            event.connect(lambda _: self._moved.start())

    @property
    def points(self) -> Points | None:
        return self._alive("molecules")

    @property
    def frame(self) -> int:
        """The current one."""
        step = self._viewer.dims.current_step
        return int(step[0]) if len(step) > 2 else 0

    def prepare(self) -> None:
        """Make the layers of points and density while nothing hurries: the first drawing takes a moment."""
        if self.points is None:
            self._put_points(Filter(EmitterSet.empty()), np.zeros(0, np.int64))
            self._set_image("density", np.zeros((8, 8), np.float32), 10.0, (0.0, 1.0), **GLOW)

    def show(self, found: Found) -> None:
        """Show a table; one that grows keeps its layers.  The points follow when the event loop comes round again."""
        emitters = found.filter.emitters
        self._found = found
        self._density = Density(emitters, size_nm=_size_nm(emitters))
        self._show_density()
        self._is_new = True
        self._soon.start()

    def refresh(self) -> None:
        """Follow the filter and the frame."""
        if self._found is None:
            return
        self._show_density()
        self._show_points()
        self.show_in_view()

    def show_in_view(self) -> None:
        """Points of all frames, where the part of the field that is seen holds few enough."""
        layer: Points | None = self._alive("all frames")
        density: Image | None = self._alive("density")
        rows = None
        if self.all_frames and self._found is not None and self._density is not None and density is not None:
            (top, left), (bottom, right) = (density.corner_pixels[:, -2:] * self._density.pixel_nm).tolist()
            rows = self._found.filter.rows_in_view(left, top, right, bottom, at_most=MOST_IN_VIEW)
        if rows is None or self._found is None:
            if layer is not None:
                layer.visible = False
            return
        data, options, _ = points_layer(self._found.filter.emitters[torch.from_numpy(rows)], name="all frames")
        flat = {name: options[name][1:] for name in ("scale", "axis_labels", "units")}
        if layer is None:
            options |= flat | {"size": 30.0, "border_width": 0, "face_color": self._colours(rows)}
            layer = self._layers["all frames"] = self._viewer.add_points(data[:, 1:], **options)
        else:
            with layer.selected_data.events.blocked():
                layer.selected_data = set()
                layer.data = data[:, 1:]
            layer.features, layer.visible = options["features"], True
        if len(rows):
            layer.face_color = self._colours(rows)

    def recolour(self, quantity: str) -> None:
        """Say a quantity by the colours of the points."""
        self.colour_by = quantity
        if self._found is not None:
            self._colour()

    def select(self, molecule: int) -> None:
        """Go to the frame of a molecule, centre it and select its point."""
        assert self._found is not None
        emitters = self._found.filter.emitters
        self._viewer.dims.set_current_step(0, int(emitters.frame[molecule]))
        x, y = (emitters.xyz[molecule, :2].double() * UM_PER_NM).tolist()
        # a viewer has had scenes since napari 0.9
        getattr(self._viewer, "scene", self._viewer).camera.center = (0.0, y, x)
        points = self.points
        if points is not None:
            at = np.flatnonzero(points.features[ROW].to_numpy() == molecule)
            with points.selected_data.events.blocked():
                points.selected_data = set(at.tolist())
            self._viewer.layers.selection.active = points  # napari highlights in the active layer only
            points.refresh()

    def explain(self, explained: Explained, pixel_size_nm: float) -> None:
        """Show what the molecules make of a frame, and what they leave."""
        model, residual = explained.model, explained.residual
        low, high = np.percentile(model, (1, 99.8)).tolist()
        self._set_image("re-rendered", model, pixel_size_nm, (low, max(high, low + 1)), colormap="gray")
        reach = max(float(np.percentile(np.abs(residual), 99.5)), 1.0)
        self._set_image("left over", residual, pixel_size_nm, (-reach, reach), colormap="PiYG")

    def hide_explained(self) -> None:
        for name in ("re-rendered", "left over"):
            layer = self._alive(name)
            if layer is not None:
                self._viewer.layers.remove(layer)

    def preview(self, emitters: EmitterSet) -> None:
        """Show the molecules of a frame that was tried."""
        layer = self._alive("preview")
        data, options, _ = points_layer(emitters, name="preview", border_color="#57d38c")
        if layer is None:
            self._layers["preview"] = self._viewer.add_points(data, **options)
        else:
            layer.data, layer.features, layer.visible = data, options["features"], True

    def end_preview(self) -> None:
        layer = self._alive("preview")
        if layer is not None:
            layer.visible = False

    def _on_step(self) -> None:
        self._soon.start()

    def _follow(self) -> None:
        # points that the user has closed come back with the next table, not with the next frame
        if self._found is not None and (self._is_new or self.points is not None):
            self._is_new = False
            self._show_points()

    def close(self) -> None:
        """Add no more layers: the viewer goes away."""
        self._is_new = False
        self._soon.stop()
        self._moved.stop()

    def _show_density(self) -> None:
        assert self._found is not None
        assert self._density is not None
        image = self._density.image(self._found.filter.mask)
        layer = self._alive("density")
        if layer is None or layer.data.shape != image.shape:
            self._set_image("density", image, self._density.pixel_nm, (0.0, _white(image)), **GLOW)
            return
        # in place, so that the extent stays; so does the contrast while the filter moves
        layer.data[...] = image
        layer.refresh(thumbnail=False, highlight=False, extent=False)
        if self._lit is not self._density:
            self._lit = self._density
            white = _white(image)
            if not 0.8 < white / layer.contrast_limits[1] < 1.25:
                layer.contrast_limits = (0.0, white)

    def _set_image(
        self, name: str, image: npt.NDArray[Any], pixel_nm: float, limits: tuple[float, float], **options: Any
    ) -> None:
        layer: Image | None = self._alive(name)
        if layer is not None:
            place = placement(pixel_nm, n_axes=2)
            if not np.allclose(layer.scale, place["scale"]):
                layer.scale, layer.translate = place["scale"], place["translate"]
            layer.data = image
            layer.contrast_limits = limits
            return
        data, settings, _ = image_layer(image, pixel_size_nm=pixel_nm, name=name, contrast_limits=limits, **options)
        self._layers[name] = self._viewer.add_image(data, **settings)
        self._below_points(self._layers[name])

    def _below_points(self, layer: Any) -> None:
        points = self.points
        if points is not None:
            layers = self._viewer.layers
            if layers.index(layer) > layers.index(points):
                layers.move(layers.index(layer), layers.index(points))

    def _show_points(self) -> None:
        """Points of the table, or of this frame of a large one; those that do not pass are there, but not shown."""
        assert self._found is not None
        source = self._found.filter
        few = len(source.emitters) <= MOST_POINTS
        what = (source, None if few else self.frame)
        layer = self.points
        if layer is None or what != self._shown:
            rows = np.arange(len(source.emitters)) if few else source.all_in_frame(self.frame)
            layer = self._put_points(source, rows)
            layer.name = "molecules" if few else "molecules of this frame"
            self._shown = what
        if len(self._rows):
            layer.shown = source.mask[self._rows]
        self._show_ellipses()

    def _put_points(self, source: Filter, rows: npt.NDArray[np.int64]) -> Points:
        layer = self.points
        some = source.emitters[torch.from_numpy(rows)]
        data, options, _ = points_layer(some)
        self._rows = rows
        features = {ROW: rows, **options["features"]}
        if layer is None:
            options["features"] = features
            layer = self._layers["molecules"] = self._viewer.add_points(data, **options)
            layer.selected_data.events.items_changed.connect(self._on_selection)
        else:
            with layer.selected_data.events.blocked():
                layer.selected_data = set()
                layer.data = data
            layer.features = features
            layer.metadata = options["metadata"]
        self._colour()
        return layer

    def _colour(self) -> None:
        if len(self._rows) and self.points is not None:
            self.points.border_color = self._colours(self._rows)

    def _on_selection(self) -> None:
        points = self.points
        if points is not None and len(points.selected_data) == 1 and ROW in points.features:
            self.picked.emit(int(points.features[ROW].iloc[next(iter(points.selected_data))]))

    def _colours(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(n, 4) by the quantity chosen, from its 2 % to its 98 % quantile."""
        assert self._found is not None
        columns = self._found.filter.columns
        column = columns.get(self.colour_by, columns["frame"])
        some = column[:: max(1, len(column) // 20_000)]
        some = some[np.isfinite(some)]
        low, high = np.quantile(some, (0.02, 0.98)).tolist() if len(some) else (0.0, 1.0)
        share = np.clip((column[rows] - low) / max(high - low, 1e-9), 0, 1)
        colours: npt.NDArray[np.float32] = ensure_colormap(COLORMAP).map(np.nan_to_num(share)).astype(np.float32)
        return colours

    def _show_ellipses(self) -> None:
        assert self._found is not None
        layer: Vectors | None = self._alive("uncertainty")
        if not self.with_ellipses:
            if layer is not None:
                self._viewer.layers.remove(layer)
            return
        rows = self._found.filter.rows_in_frame(self.frame)[:MOST_ELLIPSES]
        chords = ellipses(self._found.filter.emitters, rows)
        if layer is not None:
            layer.data = chords
            return
        place = {"scale": (UM_PER_NM, UM_PER_NM), "axis_labels": ("y", "x"), "units": ("um", "um")}
        self._layers["uncertainty"] = self._viewer.add_vectors(
            chords, name="uncertainty", edge_width=2.0, edge_color="white", vector_style="line", **place
        )

    def _alive(self, name: str) -> Any:
        layer = self._layers.get(name)
        return layer if layer is not None and layer in self._viewer.layers else None


def _white(image: npt.NDArray[np.float32]) -> float:
    """The brightness of all but the densest pixels."""
    lit = image[image > 0]
    return max(1.0, float(np.quantile(lit[:: max(1, len(lit) // 10_000)], 0.98))) if lit.size else 1.0


def _size_nm(emitters: EmitterSet) -> tuple[float, float]:
    """Width and height of the movie, or of the box around the molecules."""
    facts = [emitters.metadata.get(name) for name in ("width_px", "height_px", "pixel_size_nm")]
    if None not in facts:
        width, height, pixel = (float(str(fact)) for fact in facts)
        return width * pixel, height * pixel
    if not len(emitters):
        return 1000.0, 1000.0
    x, y = emitters.xyz[:, :2].amax(0).tolist()
    return max(x, 1.0) + 1, max(y, 1.0) + 1
