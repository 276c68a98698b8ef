"""A region of the movie, typed or drawn."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, final

import numpy as np
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QHBoxLayout, QLineEdit, QWidget

from decode.verbs.region import parse_region
from decode_napari.layers import placement
from decode_napari.qt.panel import button
from decode_napari.session import OpenedMovie
from decode_napari.steps.localize import Region, region_in, region_text

__all__ = ["RegionField"]


@final
class RegionField(QWidget):
    """Rows and columns as text, and as the first rectangle of a Shapes layer: each follows the
    other."""

    changed = Signal()

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._viewer = viewer
        self._movie: OpenedMovie | None = None
        self._layer: Any = None
        self.text = QLineEdit()
        self.text.setPlaceholderText("all, or Y0:Y1,X0:X1")
        self.text.editingFinished.connect(self._written)
        self.setFocusProxy(self.text)
        self.button = button(
            "Draw a region",
            "Draw a rectangle over the movie, to localize within it",
            self.draw,
        )
        line = QHBoxLayout(self)
        line.setContentsMargins(0, 0, 0, 0)
        line.addWidget(self.text, 1)
        line.addWidget(self.button)

    def region(self) -> Region | None:
        """The region that was typed; None for the whole frame.

        Raises:
            ValueError: if it is no region.
        """
        text = self.text.text().strip()
        return parse_region(text) if text else None

    def set_movie(self, movie: OpenedMovie | None) -> None:
        """Set the movie of the regions; those of another one are forgotten."""
        self.button.setEnabled(movie is not None)
        if movie is None or movie is self._movie:  # one that is being checked may be the same again
            return
        known, self._movie = self._movie, movie
        if known is None:
            return
        if movie.path != known.path:
            self.text.clear()
            if self._layer is not None:
                self._viewer.layers.remove(self._layer)
        elif self._layer is not None:
            for name, value in self._placement(movie).items():
                setattr(self._layer, name, value)

    def draw(self) -> None:
        """Let the user draw a rectangle, in a layer that is made on first use."""
        if self._movie is None or not self.button.isEnabled():
            return
        if self._layer is None:
            self._layer = self._viewer.add_shapes(
                name="region",
                ndim=2,
                edge_color="#57d38c",
                face_color="transparent",
                edge_width=0.4,
                **self._placement(self._movie),
            )
            self._layer.events.data.connect(lambda _: self._drawn())
            self._written()
        self._viewer.layers.selection.active = self._layer
        self._layer.mode = "select" if len(self._layer.data) else "add_rectangle"

    def _placement(self, movie: OpenedMovie) -> dict[str, Any]:
        """The placement of the movie, so that the layer's coordinates are pixels, whose centres are
        whole numbers."""
        return placement(movie.pixel_size_nm, n_axes=2)

    def _drawn(self) -> None:
        """Write the drawn region as text."""
        assert self._movie is not None
        shapes = zip(self._layer.data, self._layer.shape_type, strict=True)
        rectangle = next((corners for corners, kind in shapes if kind == "rectangle"), None)
        text = ""
        if rectangle is not None:
            world = [self._layer.data_to_world(corner)[-2:] for corner in rectangle]
            with suppress(ValueError):  # as long as it is not yet larger than a pixel
                text = region_text(
                    region_in(world, self._movie.pixel_size_nm, self._movie.shape[1:])
                )
        if text != self.text.text():
            self.text.setText(text)
            self.changed.emit()

    def _written(self) -> None:
        """Draw the typed region; a wrong text is reported when it is used."""
        self.changed.emit()
        if self._layer is None or self._movie is None:
            return
        try:
            region = self.region()
        except ValueError:
            region = None
        with self._layer.events.data.blocker():
            self._layer.data = []
            if region is not None:
                (top, bottom, _), (left, right, _) = (
                    part.indices(side)
                    for part, side in zip(region, self._movie.shape[1:], strict=True)
                )
                # pixels reach half of their side beyond their centres
                corners = (
                    np.array([[top, left], [top, right], [bottom, right], [bottom, left]]) - 0.5
                )
                self._layer.add_rectangles([corners])

    def layer_removed(self, event: Any) -> None:
        """Clear the region when its layer is deleted."""
        if event.value is self._layer is not None:
            self._layer = None
            self.text.clear()
            self.changed.emit()
