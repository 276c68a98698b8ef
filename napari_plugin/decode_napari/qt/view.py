"""The molecules in the viewer: points, ellipses, density, and the residual of a frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from napari.layers import Image, Points, Vectors
from napari.layers.base import ActionType
from napari.utils.colormaps import ensure_colormap
from psygnal import Signal
from qtpy.QtCore import QTimer

from decode.emitters import EmitterSet
from decode_napari.density import Density
from decode_napari.layers import UM_PER_NM, field_of, image_layer, placement, points_layer, white
from decode_napari.molecules import Filter
from decode_napari.session import Found
from decode_napari.steps.inspect import Explained, ellipses

__all__ = ["MOST_POINTS", "MoleculeView", "camera_of", "colours_of", "half_canvas_um"]

MOST_POINTS = 20_000
"""most molecules of a table that is shown as points; larger ones are an image, with points of the
current frame and on zooming in"""
MOST_ELLIPSES = 2_000
MOST_IN_VIEW = 5_000
"""most points of all frames in view; more are shown as the image until the user zooms in"""
REACH = 5.0
"""standard deviations of noise from grey to full colour, in the residual"""
DONE = object()
COLORMAP = "turbo"
GLOW: dict[str, Any] = {"colormap": "inferno", "blending": "additive", "gamma": 0.5}
CHOSEN: dict[str, Any] = {
    "name": "selected",
    "symbol": "square",
    "face_color": "transparent",
    "border_color": "#00e5ff",
    "border_width": 0.1,
}
RINGS_PX = {"molecules": 13.0, "preview": 13.0, "selected": 24.0}
"""diameters of the layers' points on the screen, pixels"""
FAINTEST = 4
"""least number of molecules in a pixel that is white, so that a single one is not"""
NOTHING = Filter(EmitterSet.empty())
ROW = "molecule"
"""feature that holds the number of the molecule in the whole table"""


@final
class MoleculeView:
    """Layers that follow a table and its filter; a layer that the user closed returns with the next
    table."""

    picked = Signal(int)
    """the number of a molecule that was selected in the viewer"""
    frame_changed = Signal(int)
    """another frame is shown"""
    crowded = Signal(bool)
    """whether points of all frames are requested but too many, so that the density is shown"""

    def __init__(self, viewer: Any, seen: Callable[[], bool]) -> None:
        self._viewer = viewer
        self._seen = seen
        """whether the window is shown"""
        self._found: Found | None = None
        self._growing = False
        self._density: Density | None = None
        self._lit: object = None
        """table to which the contrast was set"""
        self._layers: dict[str, Any] = {}
        self._is_new = False
        """a table was put, and its points are not yet there"""
        self._stages: Iterator[None] = iter(())
        """what is still to be done until the points are there"""
        self._shown: object = None
        self._source = NOTHING
        self._rows: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        """the table whose molecules are points, and their numbers in it"""
        self.colour_by = "photons"
        self.with_ellipses = False
        self.all_frames = False
        """show the molecules of all frames as points, where few enough are in view"""
        # a layer that is being inserted changes the step too: layers are changed only once that is
        # over
        self._soon = QTimer()
        self._soon.setSingleShot(True)
        self._soon.setInterval(0)
        self._soon.timeout.connect(self._follow)
        self._moved = QTimer()
        self._moved.setSingleShot(True)
        self._moved.setInterval(150)
        self._moved.timeout.connect(self._follow_camera)
        camera = camera_of(viewer)
        self._frame = self.frame
        viewer.dims.events.current_step.connect(self._on_step)
        for event in (camera.events.zoom, camera.events.center):
            event.connect(self._on_camera)

    @property
    def points(self) -> Points | None:
        return self._alive("molecules")

    @property
    def frame(self) -> int:
        """The current one."""
        step = self._viewer.dims.current_step
        return int(step[0]) if len(step) > 2 else 0

    def prepare(self, size_nm: tuple[float, float]) -> None:
        """Make the layers of points and density in advance, as the first drawing takes a moment.

        Args:
            size_nm: width and height of the movie.
        """
        if self.points is None:
            _all(self._put_points(NOTHING, np.zeros(0, np.int64)))
            self._density_of(size_nm)

    def show(self, found: Found, *, growing: bool = False) -> None:
        """Show a table; a growing one keeps its layers.  The points follow in later rounds of the
        event loop."""
        if self._found is None or found.filter is not self._found.filter:
            self.mark(None)
        self._found, self._growing = found, growing
        self._density_of(field_of(found.filter.emitters)).put(found.filter.emitters)
        self._show_density()
        self._is_new = True
        self._follow_anew()

    def refresh(self) -> None:
        """Follow the filter and the frame."""
        if self._found is None:
            return
        self._show_density()
        self._stages = iter(())
        _all(self._show_points())
        self.show_in_view()

    def _follow_camera(self) -> None:
        self.show_in_view()
        self._light()
        self._fit_rings()

    def _fit_rings(self) -> None:
        """Rings keep their size on the screen."""
        zoom = camera_of(self._viewer).zoom
        for name, diameter_px in RINGS_PX.items():
            layer: Points | None = self._alive(name)
            size = diameter_px / zoom / UM_PER_NM
            if layer is not None and not 0.8 < float(layer.current_size) / size < 1.25:
                with layer.selected_data.events.blocked():
                    chosen, layer.selected_data = set(layer.selected_data), set()
                    layer.current_size = size
                    layer.size = size
                    layer.selected_data = chosen

    def show_in_view(self) -> None:
        """Show points of all frames, if few enough are in view."""
        layer: Points | None = self._alive("all frames")
        rows = None
        if self.all_frames and self._found is not None:
            y, x = camera_of(self._viewer).center[-2:]
            down, right = half_canvas_um(self._viewer)
            corners = (side / UM_PER_NM for side in (x - right, y - down, x + right, y + down))
            rows = self._found.filter.rows_in_view(*corners, at_most=MOST_IN_VIEW)
            self.crowded.emit(rows is None)
        else:
            self.crowded.emit(False)
        if rows is None or self._found is None:
            if layer is not None:
                layer.visible = False
            return
        data, options, _ = points_layer(
            self._found.filter.emitters[torch.from_numpy(rows)], name="all frames"
        )
        flat = {name: options[name][1:] for name in ("scale", "axis_labels", "units")}
        features = {ROW: rows, **options["features"]}
        if layer is None:
            options |= flat | {"size": 30.0, "border_width": 0, "features": features}
            layer = self._layers["all frames"] = self._add("points", data[:, 1:], **options)
            self._link(layer)
        else:
            with layer.selected_data.events.blocked():
                layer.selected_data = set()
                layer.data = data[:, 1:]
            layer.features, layer.visible = features, True
        if len(rows):
            layer.face_color = self._colours(rows)

    def recolour(self, quantity: str) -> None:
        """Colour the points by a quantity."""
        self.colour_by = quantity
        if self._found is not None:
            self._colour()
            self.show_in_view()

    def select(self, molecule: int) -> None:
        """Go to the frame of a molecule, centre it and select its point."""
        assert self._found is not None
        emitters = self._found.filter.emitters
        self._viewer.dims.set_current_step(0, int(emitters.frame[molecule]))
        x, y = (emitters.xyz[molecule, :2].double() * UM_PER_NM).tolist()
        down, right = half_canvas_um(self._viewer)
        middle = camera_of(self._viewer).center
        if abs(middle[-2] - y) > down or abs(middle[-1] - x) > right:
            camera_of(self._viewer).center = (0.0, y, x)
        self.show_in_view()
        self.mark(molecule)
        for points in (self._alive("all frames"), self.points):
            if points is None or not points.visible:
                continue
            at = np.flatnonzero(points.features[ROW].to_numpy() == molecule).tolist()
            if at:
                with points.selected_data.events.blocked():
                    points.selected_data = set(at)
                self._viewer.layers.selection.active = (
                    points  # napari highlights in the active layer only
                )
                points.refresh()

    def mark(self, molecule: int | None) -> None:
        """Put a square around a molecule, or around none."""
        layer: Points | None = self._alive("selected")
        if molecule is None or self._found is None:
            if layer is not None:
                self._viewer.layers.remove(layer)
            return
        one = self._found.filter.emitters[torch.tensor([molecule])]
        data, options, _ = points_layer(one)
        if layer is None:
            place = {name: options[name] for name in ("scale", "axis_labels", "units")}
            self._layers["selected"] = self._add("points", data, **place, **CHOSEN)
        else:
            layer.data = data

    def explain(self, explained: Explained, pixel_size_nm: float) -> None:
        """Show the model of a frame by its molecules, and the residual."""
        model, residual = explained.model, explained.residual
        low, high = float(np.percentile(model, 1)), float(model.max())
        self._set_image(
            "re-rendered", model, pixel_size_nm, (low, max(high, low + 1)), colormap="gray"
        )
        self._set_image("left over", residual, pixel_size_nm, (-REACH, REACH), colormap="PiYG")

    def hide_explained(self) -> None:
        for name in ("re-rendered", "left over"):
            layer = self._alive(name)
            if layer is not None:
                self._viewer.layers.remove(layer)

    def preview(self, emitters: EmitterSet) -> None:
        """Show the molecules of a preview."""
        layer = self._alive("preview")
        data, options, _ = points_layer(emitters, name="preview", border_color="#57d38c")
        if layer is None:
            self._layers["preview"] = self._add("points", data, **options)
        else:
            layer.data, layer.features, layer.visible = data, options["features"], True

    def end_preview(self) -> None:
        layer = self._alive("preview")
        if layer is not None:
            layer.visible = False

    def _on_step(self, _: object = None) -> None:
        # layers that come and go change the steps in y and x
        if self.frame != self._frame:
            self._frame = self.frame
            self._follow_anew()
            self.frame_changed.emit(self._frame)

    def _on_camera(self, _: object = None) -> None:
        self._moved.start()

    def _follow_anew(self) -> None:
        self._stages = self._show_points()
        self._soon.start()

    def _follow(self) -> None:
        """Draw the next stage of the points; the window responds between two."""
        # points that the user has closed come back with the next table, not with the next frame
        if self._found is None or not (self._is_new or self.points is not None):
            return
        if (
            not self._seen()
        ):  # nobody waits, and a window that was never shown does not say when it goes
            _all(self._stages)
        elif next(self._stages, DONE) is not DONE:
            self._soon.start()
            return
        self._is_new = False

    def clear(self) -> None:
        """Show no molecules: all layers of this view go."""
        self._soon.stop()
        self._moved.stop()
        self._found, self._growing, self._is_new = None, False, False
        self._density = self._lit = self._shown = None
        self._source, self._rows = NOTHING, np.zeros(0, np.int64)
        self._stages = iter(())
        layers = [layer for layer in self._layers.values() if layer in self._viewer.layers]
        self._layers.clear()
        for layer in layers:
            self._viewer.layers.remove(layer)

    def close(self) -> None:
        """Disconnect from the viewer, and add no more layers."""
        self._is_new = False
        self._soon.stop()
        self._moved.stop()
        camera = camera_of(self._viewer)
        self._viewer.dims.events.current_step.disconnect(self._on_step)
        for event in (camera.events.zoom, camera.events.center):
            event.disconnect(self._on_camera)

    def _density_of(self, size_nm: tuple[float, float]) -> Density:
        """The density of a field, and its layer."""
        layer: Image | None = self._alive("density")
        if self._density is None or self._density.size_nm != size_nm:
            self._density = Density(size_nm=size_nm)
            if layer is not None:
                self._viewer.layers.remove(layer)
                layer = None
        if layer is None:
            levels, pixel_nm = self._density.levels, self._density.pixel_nm
            data, options, _ = image_layer(
                levels, pixel_size_nm=pixel_nm, name="density", contrast_limits=(0.0, 1.0), **GLOW
            )
            layer = self._layers["density"] = self._add("image", data, **options)
            self._lit = None
            self._below_points(layer)
        return self._density

    def _show_density(self) -> None:
        assert self._found is not None
        density = self._density_of(field_of(self._found.filter.emitters))
        density.show(self._found.filter.mask)
        layer: Image = self._layers["density"]
        layer.refresh(thumbnail=False, highlight=False, extent=False)
        # the contrast stays while the filter moves
        if self._lit is not self._found.filter:
            self._lit = self._found.filter
            self._light()

    def _light(self) -> None:
        """Adapt the contrast of the density to the zoom, which changes its pixels and their
        numbers."""
        layer: Image | None = self._alive("density")
        if layer is None or self._density is None:
            return
        level, (y, x) = layer.data_level, camera_of(self._viewer).center[-2:]
        pixel_um = self._density.pixel_nm * 2**level * UM_PER_NM
        down, right = half_canvas_um(self._viewer)
        rows, columns = (
            range(
                max(0, int((middle - half) / pixel_um)),
                min(side, int((middle + half) / pixel_um) + 1),
            )
            for middle, half, side in zip(
                (y, x), (down, right), self._density.levels[level].shape, strict=True
            )
        )
        if not rows or not columns:
            return
        most = max(white(self._density.count(level, rows, columns), 0.98), FAINTEST / pixel_um**2)
        if not 0.8 < most / layer.contrast_limits[1] < 1.25:
            layer.contrast_limits_range = layer.contrast_limits = (0.0, most)

    def _set_image(
        self,
        name: str,
        image: npt.NDArray[Any],
        pixel_nm: float,
        limits: tuple[float, float],
        **options: Any,
    ) -> None:
        layer: Image | None = self._alive(name)
        if layer is not None:
            place = placement(pixel_nm, n_axes=2)
            if not np.allclose(layer.scale, place["scale"]):
                layer.scale, layer.translate = place["scale"], place["translate"]
            layer.data = image
            layer.contrast_limits = limits
            return
        data, settings, _ = image_layer(
            image, pixel_size_nm=pixel_nm, name=name, contrast_limits=limits, **options
        )
        self._layers[name] = self._add("image", data, **settings)
        self._below_points(self._layers[name])

    def _below_points(self, layer: Any) -> None:
        points = self.points
        if points is not None:
            layers = self._viewer.layers
            if layers.index(layer) > layers.index(points):
                layers.move(layers.index(layer), layers.index(points))

    def _show_points(self) -> Iterator[None]:
        """Points of the table, or of this frame of a large one; those that do not pass are
        hidden."""
        yield  # what else has changed is drawn first
        assert self._found is not None
        source = self._found.filter
        # a table that grows is drawn again and again: the other frames' points wait for its end
        few = not self._growing and len(source.emitters) <= MOST_POINTS
        rows = np.arange(len(source.emitters)) if few else source.all_in_frame(self.frame)
        if (
            not few and not self._growing
        ):  # the time slider reaches from the first frame to the last, movie or none
            rows = np.union1d(rows, source.first_and_last())
        what = (self._found.run if self._growing else source, None if few else self.frame)
        # it grows at its end: those of this frame, once they are there, stay
        if self.points is None or what != self._shown or len(rows) != len(self._rows):
            self._shown = None
            yield from self._put_points(source, rows)
            self._layers["molecules"].name = "molecules" if few else "molecules of this frame"
            self._shown = what
            yield
        elif not np.array_equal(self.points.shown, source.mask[rows]):
            self.points.shown = source.mask[rows]
        self._show_ellipses()

    def _put_points(self, source: Filter, rows: npt.NDArray[np.int64]) -> Iterator[None]:
        """Put new points into the layer, which napari redraws after each property that is set."""
        layer = self.points
        some = source.emitters[torch.from_numpy(rows)]
        data, options, _ = points_layer(some)
        self._source, self._rows = source, rows
        features = {ROW: rows, **options["features"]}
        shown = source.mask[rows] if len(rows) else True  # at once: none is seen that does not pass
        if layer is None:
            options |= {"features": features, "shown": shown}
            layer = self._layers["molecules"] = self._add("points", data, **options)
            self._link(layer)
        else:
            # a hidden layer is not redrawn after each property that is set, but once, when it
            # is seen again
            with layer.selected_data.events.blocked(), layer.events.blocker_all():
                seen = layer.visible
                if len(data) < len(layer.data):
                    # napari draws a colour that changes at the points it has sliced last, and
                    # slices what is seen only
                    layer.visible, layer.data = True, data[:0]
                layer.visible = False
                try:
                    layer.selected_data = set()
                    layer.data = data
                    layer.shown = shown
                    layer.features = features
                    layer.metadata = options["metadata"]
                    self._colour()
                finally:
                    layer.visible = seen
            layer.refresh(thumbnail=False, extent=not self._growing)
            if self._growing:  # the viewer's axes wait for the end
                return
            yield
            layer.events.data(
                value=layer.data,
                action=ActionType.CHANGED,
                data_indices=tuple(range(len(data))),
                vertex_indices=((),),
            )
            layer.events.features()
            return
        yield
        self._colour()

    def _colour(self) -> None:
        """Colour the drawn points by their own table, as another one may be waiting to be drawn."""
        if len(self._rows) and self.points is not None and len(self.points.data) == len(self._rows):
            self.points.border_color = colours_of(self._source, self._rows, self.colour_by)

    def _link(self, points: Points) -> None:
        """Report which molecule is selected in a layer."""

        def on_selection() -> None:
            if len(points.selected_data) == 1 and ROW in points.features:
                molecule = int(points.features[ROW].iloc[next(iter(points.selected_data))])
                self.mark(molecule)
                self.picked.emit(molecule)

        points.selected_data.events.items_changed.connect(on_selection)

    def _colours(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        assert self._found is not None
        return colours_of(self._found.filter, rows, self.colour_by)

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
        self._layers["uncertainty"] = self._add(
            "vectors",
            chords,
            name="uncertainty",
            edge_width=2.0,
            edge_color="white",
            vector_style="line",
            **place,
        )

    def _add(self, kind: str, data: Any, **options: Any) -> Any:
        """Add a layer without changing the user's selection, and with it the controls shown."""
        selection = self._viewer.layers.selection
        chosen, active = set(selection), selection.active
        layer = getattr(self._viewer, f"add_{kind}")(data, **options)
        self._moved.start()  # its rings get their size
        if chosen:
            selection.clear()
            selection.update(chosen)
            selection.active = active
        return layer

    def _alive(self, name: str) -> Any:
        layer = self._layers.get(name)
        return layer if layer is not None and layer in self._viewer.layers else None


def _all(stages: Iterator[None]) -> None:
    for _ in stages:
        pass


def colours_of(
    source: Filter, rows: npt.NDArray[np.int64], quantity: str
) -> npt.NDArray[np.float32]:
    """(n, 4) colours of molecules by a quantity, from its 2 % to its 98 % quantile in the whole
    table."""
    column = source.columns.get(quantity, source.columns["frame"])
    some = column[:: max(1, len(column) // 20_000)]
    some = some[np.isfinite(some)]
    low, high = np.quantile(some, (0.02, 0.98)).tolist() if len(some) else (0.0, 1.0)
    share = np.clip((column[rows] - low) / max(high - low, 1e-9), 0, 1)
    colours: npt.NDArray[np.float32] = (
        ensure_colormap(COLORMAP).map(np.nan_to_num(share)).astype(np.float32)
    )
    return colours


def camera_of(viewer: Any) -> Any:
    # a viewer has had scenes since napari 0.9
    return getattr(viewer, "scene", viewer).camera


def half_canvas_um(viewer: Any) -> tuple[float, float]:
    """Half the height and width of the view of a canvas, um."""
    # a viewer has had a canvas since napari 0.9
    height, width = viewer.canvas.size if hasattr(viewer, "canvas") else viewer._canvas_size
    zoom = camera_of(viewer).zoom
    return height / 2 / zoom, width / 2 / zoom
