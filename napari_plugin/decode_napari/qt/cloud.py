"""The molecules of all frames in 3D, in a window of their own: points, or a volume that becomes
points on zooming in."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from napari import Viewer
from napari.layers import Points
from qtpy.QtCore import QTimer

from decode_napari.density import Volume
from decode_napari.layers import UM_PER_NM, cloud_layer, field_of, volume_layer, white
from decode_napari.molecules import Filter
from decode_napari.qt.canvas import make_current
from decode_napari.qt.view import camera_of, colours_of, half_canvas_um
from decode_napari.session import Found

__all__ = ["CloudView"]

MOST_POINTS = 50_000
"""most molecules of a table that is shown as points; larger ones are a volume, with points on
zooming in"""
MOST_IN_VIEW = 20_000
LOOK: dict[str, Any] = {"size": 30.0, "border_width": 0}
POINTS, VOLUME = "molecules in 3D", "density in 3D"


@final
class CloudView:
    """A viewer that follows a table and its filter, until it is closed."""

    def __init__(self) -> None:
        self.viewer = Viewer(title=POINTS, ndisplay=3)
        # a viewer has had a canvas since napari 0.9
        overlays = self.viewer.canvas.overlays if hasattr(self.viewer, "canvas") else self.viewer
        overlays.scale_bar.visible = True
        window = self.viewer.window._qt_window
        window.destroyed.connect(self._closed)
        self.viewer.layers.events.removing.connect(lambda _: make_current(self.viewer))
        self.is_open = True
        self._source: Filter | None = None
        self._volume: Volume | None = None
        """None where there are few molecules: all are points"""
        self._moved, self._filtered = QTimer(window), QTimer(window)
        for timer, wait_ms, follow in (
            (self._moved, 150, self._show_in_view),
            (self._filtered, 50, self._show),
        ):
            timer.setSingleShot(True)
            timer.setInterval(wait_ms)
            timer.timeout.connect(follow)
        camera = camera_of(self.viewer)
        for event in (camera.events.zoom, camera.events.center, camera.events.angles):
            event.connect(self._on_camera)

    def show(self, found: Found) -> None:
        """Show a table from now on."""
        is_first, self._source = self._source is None, found.filter
        emitters = found.filter.emitters
        few = len(emitters) <= MOST_POINTS
        self._volume = None if few else Volume(emitters, size_nm=field_of(emitters))
        if VOLUME in self.viewer.layers:
            self.viewer.layers.remove(VOLUME)
        if few:
            self._put_points(np.arange(len(emitters)))
        self._show()
        if is_first:
            self.viewer.reset_view()

    def close(self) -> None:
        """Close the window, if the user has not."""
        if self.is_open:
            self.viewer.close()

    def refresh(self) -> None:
        """Follow the filter soon; states that change too fast are skipped."""
        if self.is_open and not self._filtered.isActive():
            self._filtered.start()

    def _on_camera(self) -> None:
        if self.is_open:
            self._moved.start()

    def _closed(self) -> None:
        self.is_open = False

    def _show(self) -> None:
        source = self._source
        if not self.is_open or source is None:
            return
        if self._volume is None:
            if POINTS in self.viewer.layers:  # the user may have closed it
                self.viewer.layers[POINTS].shown = source.mask
            return
        image = self._volume.image(source.mask)
        if VOLUME in self.viewer.layers:
            layer = self.viewer.layers[VOLUME]
            layer.data[...] = image  # in place, so that the extent stays
            layer.refresh(thumbnail=False, highlight=False, extent=False)
        else:
            data, options, _ = volume_layer(
                image,
                voxel_nm=self._volume.voxel_nm,
                origin_nm=self._volume.origin_nm,
                name=VOLUME,
                colormap="inferno",
                blending="additive",
                rendering="mip",
                contrast_limits=(0.0, white(image, 0.99)),
            )
            self.viewer.add_image(data, **options)
        self._show_in_view()

    def _show_in_view(self) -> None:
        """Show points of the molecules of a volume within the canvas, if they are few enough."""
        source = self._source
        if not self.is_open or source is None or self._volume is None:
            return
        camera = camera_of(self.viewer)
        up = np.asarray(camera.up_direction)
        across = np.cross(np.asarray(camera.view_direction), up)
        zyx = source.emitters.xyz.numpy()[:, ::-1]
        within = source.mask.copy()
        for direction, half in zip((up, across), half_canvas_um(self.viewer), strict=True):
            along = zyx @ direction.astype(zyx.dtype) * UM_PER_NM - direction @ np.asarray(
                camera.center
            )
            within &= np.abs(along) < half
        rows = np.flatnonzero(within)
        if len(rows) <= MOST_IN_VIEW:
            self._put_points(rows)
        elif POINTS in self.viewer.layers:
            self.viewer.layers[POINTS].visible = False

    def _put_points(self, rows: npt.NDArray[np.int64]) -> None:
        assert self._source is not None
        data, options, _ = cloud_layer(
            self._source.emitters[torch.from_numpy(rows)], name=POINTS, **LOOK
        )
        if POINTS in self.viewer.layers:
            layer: Points = self.viewer.layers[POINTS]
            layer.selected_data = set()
            layer.data, layer.features, layer.visible = data, options["features"], True
            layer.shown = True
        else:
            layer = self.viewer.add_points(data, **options)
        if len(rows):
            layer.face_color = colours_of(self._source, rows, "z")
