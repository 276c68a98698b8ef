"""The panel that inspects and filters."""

from __future__ import annotations

from math import ceil, floor
from pathlib import Path
from typing import Any, final

from napari.utils.notifications import show_info
from qtpy.QtCore import QItemSelectionModel, QSignalBlocker, QTimer
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QFileDialog,
    QGridLayout,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QTableView,
)
from superqt import QLabeledDoubleRangeSlider

from decode.emitters import EmitterSet
from decode_napari.layers import FACTS
from decode_napari.molecules import QUANTITIES, Filter
from decode_napari.qt.panel import TABLES, Panel, button, choice, note
from decode_napari.qt.table import MoleculeRows
from decode_napari.qt.view import MOST_IN_VIEW, MOST_POINTS
from decode_napari.qt.window import Window
from decode_napari.readers import PLUGIN
from decode_napari.recovery import kept
from decode_napari.session import Found
from decode_napari.steps.inspect import Explained, InspectStep

__all__ = ["InspectPanel"]

COLOUR = "inspect/colour by"
CROWDED = (
    f"More than {MOST_IN_VIEW:,} molecules are in view: they are the density, which has no "
    "colours. Zoom in for points."
)


@final
class InspectPanel(Panel):
    def __init__(self, step: InspectStep, dock: Window) -> None:
        super().__init__(step, dock)
        self.step = step
        self._source: object = None
        self._movie: object = None
        self._moved: set[str] = set()
        """quantities whose ends the user has set"""
        files = QHBoxLayout()
        self.open_button = button("Open table…", "Open molecules that were saved before", self._ask)
        self.kept_button = button(
            "Open kept table…",
            "Open molecules that were not saved: they are kept in a folder",
            self._ask_kept,
        )
        files.addWidget(self.open_button)
        files.addWidget(self.kept_button)
        self.column.insertLayout(1, files)
        self.count = QLabel()
        self.count.setAccessibleName("molecules that pass")
        self.count.setToolTip("Molecules within all of the ranges below, and their total")
        self.column.insertWidget(2, self.count)
        self.sliders: dict[str, QLabeledDoubleRangeSlider] = {}
        for quantity, meaning in QUANTITIES.items():
            slider = QLabeledDoubleRangeSlider()
            slider.setDecimals(2 if quantity in ("probability", "goodness") else 0)
            slider.setHandleLabelPosition(QLabeledDoubleRangeSlider.LabelPosition.NoLabel)
            slider.setEdgeLabelMode(QLabeledDoubleRangeSlider.EdgeLabelMode.LabelIsValue)
            slider.valueChanged.connect(lambda ends, q=quantity: self._slid(q, ends))
            self.sliders[quantity] = self.row(
                words(quantity), slider, f"Keep molecules whose {meaning} lies between the ends"
            )
        self.colour_by = self.row(
            "colour by",
            choice([words(q) for q in QUANTITIES]),
            "What the colours of the points say",
        )
        self.colour_by.textActivated.connect(self._choose_colour)
        self.colour_by.currentTextChanged.connect(self._coloured)
        self.crowded = note(CROWDED)
        self.crowded.hide()
        self.column.addWidget(self.crowded)
        crowded = dock.view.crowded
        crowded.connect(lambda is_so: self.crowded.setVisible(is_so))
        self.crowded.destroyed.connect(
            lambda: crowded.disconnect()
        )  # a viewer may outlive its panels
        self.with_ellipses = QCheckBox("uncertainty ellipses")
        self.with_ellipses.setToolTip(
            "One standard deviation, of the molecules of this frame; zoom in to see them"
        )
        self.with_ellipses.toggled.connect(self._ellipses)
        self.explained = QCheckBox("re-rendered and left over")
        self.explained.setToolTip(
            "What the molecules that pass make of this frame, photons, and what they leave, in "
            "standard deviations of "
            "the noise"
        )
        self.explained.toggled.connect(self._explain_toggled)
        self.all_frames = QCheckBox("points of all frames")
        self.all_frames.setToolTip(
            "Shown where few enough are in view: zoom in; from afar they are the density"
        )
        self.all_frames.toggled.connect(self._all_frames)
        self._all_frames_chosen = False
        self.all_frames.clicked.connect(self._choose_all_frames)
        checks = QGridLayout()
        checks.addWidget(self.with_ellipses, 0, 0)
        checks.addWidget(self.all_frames, 0, 1)
        checks.addWidget(self.explained, 1, 0)
        self.column.addLayout(checks)
        tools = QHBoxLayout()
        tools.addWidget(button("Show all", "Remove all restrictions", self._reset))
        self.cloud_button = button(
            "View in 3D", "Molecules of all frames in a window of their own", self._cloud
        )
        tools.addWidget(self.cloud_button)
        self.column.addLayout(tools)

        self.rows = MoleculeRows()
        self.table = QTableView()
        self.table.setModel(self.rows)
        self.table.setAccessibleName("molecules")
        self.table.setToolTip(
            "The molecules that pass; a row selects its molecule in the viewer, and goes there"
        )
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        for header in (self.table.horizontalHeader(), self.table.verticalHeader()):
            header.setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        self.table.verticalHeader().setDefaultSectionSize(20)
        self.table.setMinimumHeight(150)
        self.table.selectionModel().currentRowChanged.connect(
            lambda now, _: self._row_chosen(now.row())
        )
        self.column.addWidget(self.table, 1)
        dock.view.picked.connect(self._picked)

        # sliders move faster than a window draws: the latest state is drawn, those between are
        # skipped
        self._later = QTimer(self)
        self._later.setSingleShot(True)
        self._later.setInterval(0)
        self._later.timeout.connect(self._redraw)
        # the table need not keep up with a moving slider
        self._rested = QTimer(self)
        self._rested.setSingleShot(True)
        self._rested.setInterval(250)
        self._rested.timeout.connect(self._settle)
        # nor need what is left over keep up with moving frames
        self._explain_soon = QTimer(self)
        self._explain_soon.setSingleShot(True)
        self._explain_soon.setInterval(250)
        self._explain_soon.timeout.connect(self._explain)
        self._colour = dock.memory.text(COLOUR) or self.colour_by.currentText()
        """quantity that the user chose; a table may lack it"""
        # layers are changed only once the one that is being inserted is there, and nothing else is
        # being done
        self._opened: list[Any] = []
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(0)
        self._soon.timeout.connect(self._adopt)
        dock.runner.ended.connect(self._soon.start)
        self.refresh()

    def begin(self) -> None:
        viewer = self.dock.viewer
        self.dock.follow(self.dock.view.frame_changed, lambda _: self._explain_soon.start())
        self.dock.follow(self.step.session.changed, self._session_changed)
        self.dock.follow(
            viewer.layers.events.inserted, lambda event: self._layer_opened(event.value)
        )
        for layer in viewer.layers:
            self._layer_opened(layer)

    def forget(self) -> None:
        self.explained.setChecked(False)
        self._moved.clear()
        self._movie = self._source = None
        self.rows.show(Filter(EmitterSet.empty()))

    def refresh(self) -> None:
        found = self.step.session.found
        tables = kept(self.dock.keeper.folder)
        self.kept_button.setEnabled(bool(tables))
        if tables:
            self.kept_button.setToolTip(
                f"Open molecules that were not saved: the latest are {tables[0]}"
            )
        for widget in (self.table, self.cloud_button, *self.sliders.values()):
            widget.setEnabled(found is not None)
        if found is None:
            self.count.setText("No molecules yet: localize a movie, or open a table.")
            return
        # of a table that grows, ranges wait for its end or for somebody to look
        if self.dock.runner.busy and not self._moved and not self.isVisible():
            return
        if found.filter is not self._source:
            self._source = found.filter
            if found.source != self._movie:
                self._movie = found.source
                self._moved.clear()
            for quantity, slider in self.sliders.items():
                self._fit(quantity, slider, found)
            self._offer_colours(found)
            if found.complete and not self._all_frames_chosen:
                self.all_frames.setChecked(len(found.filter.emitters) > MOST_POINTS)
            # settling refreshes all panels, this one too: only another table starts it
            self._rested.start()
        self._say()

    def open(self, path: Path) -> None:
        """Read a table in a thread."""
        self.work("reading a table", lambda: self.step.read(path), returned=self.step.accept)

    def _layer_opened(self, layer: Any) -> None:
        if layer.source.reader_plugin == PLUGIN and FACTS in layer.metadata:
            self._opened.append(layer)
            self._soon.start()

    def _adopt(self) -> None:
        """Take over a table that napari opened, as by a drag; the first of several."""
        if not self._opened or self.dock.runner.busy:
            return
        layer = self._opened[0]
        self._opened.clear()
        if self.dock.has_unsaved:
            show_info("The table is a layer of its own: the molecules found here are not yet saved")
            return

        def accept(found: Found) -> None:
            self.step.accept(found)
            self.dock.go_to(InspectStep)
            if layer in self.dock.viewer.layers:  # the view shows them by layers of its own
                self.dock.viewer.layers.remove(layer)

        path = Path(str(layer.source.path))
        self.work("reading a table", lambda: self.step.read(path), returned=accept)

    def _fit(self, quantity: str, slider: QLabeledDoubleRangeSlider, found: Found) -> None:
        """Give a slider the range of a new table; ends that the user moved stay."""
        present = quantity in found.filter.columns
        self.form.setRowVisible(slider, present)
        if not present:
            return
        low, high = found.filter.bounds(quantity)
        unit = 10.0 ** -slider.decimals()  # rounded outwards: the ends are read with few digits
        low, high = min(low, floor(low / unit) * unit), max(high, ceil(high / unit) * unit)
        first, last = slider.value() if quantity in self._moved else (low, high)
        at_end = last >= slider.maximum()
        slider.blockSignals(True)
        slider.setRange(low, high)  # type: ignore[arg-type]
        slider.setValue((max(low, first), high if at_end else min(last, high)))
        slider.blockSignals(False)
        if quantity in self._moved:
            found.filter.restrict(quantity, *slider.value())

    def _slid(self, quantity: str, ends: tuple[float, float]) -> None:
        found = self.step.session.found
        if found is None:
            return
        found.filter.restrict(quantity, *ends)
        self._moved.add(quantity)
        self._say()
        self._later.start()
        self._rested.start()

    def _redraw(self) -> None:
        self.dock.redraw()

    def _settle(self) -> None:
        found = self.step.session.found
        if found is not None:
            chosen = self.selected_molecule()
            self.rows.show(found.filter)
            self._fit_headings()
            if chosen is not None:
                self._picked(chosen)
            self.dock.refresh_steps()
            self._explain()

    def _fit_headings(self) -> None:
        """Make columns as wide as their headings and numbers."""
        header = self.table.horizontalHeader()
        for column in range(self.rows.columnCount()):
            header.resizeSection(column, max(66, header.sectionSizeHint(column)))

    def _say(self) -> None:
        found = self.step.session.found
        assert found is not None
        total = len(found.filter.emitters)
        self.count.setText(f"<b>{found.filter.n_passing:,}</b> of {total:,} molecules pass")

    def _reset(self) -> None:
        for slider in self.sliders.values():
            slider.setValue((slider.minimum(), slider.maximum()))
        self._moved.clear()

    def _offer_colours(self, found: Found) -> None:
        """Offer colours by the table's quantities: the user's choice, or else the first."""
        offered = [words(quantity) for quantity in found.filter.columns]
        with QSignalBlocker(self.colour_by):
            self.colour_by.clear()
            self.colour_by.addItems(offered)
            self.colour_by.setCurrentText(self._colour if self._colour in offered else offered[0])
        self._coloured(self.colour_by.currentText())

    def _choose_colour(self, chosen: str) -> None:
        self._colour = chosen
        self.dock.memory.set_text(COLOUR, chosen)

    def _coloured(self, chosen: str) -> None:
        self.dock.view.recolour(
            next(quantity for quantity in QUANTITIES if words(quantity) == chosen)
        )

    def _ellipses(self, on: bool) -> None:
        self.dock.view.with_ellipses = on
        self.dock.view.refresh()

    def _all_frames(self, on: bool) -> None:
        self.dock.view.all_frames = on
        self.dock.view.show_in_view()

    def _choose_all_frames(self) -> None:
        self._all_frames_chosen = True

    def _explain_toggled(self, on: bool) -> None:
        if on:
            self._explain()
        else:
            self.dock.view.hide_explained()

    def _session_changed(self, part: str) -> None:
        if part in ("movie", "psf") and self.step.session.movie is not None:
            self._explain_soon.start()

    def _explain(self) -> None:
        if not self.explained.isChecked():
            return
        self._explain_soon.stop()
        movie = self.step.session.movie
        pixel_size_nm = 100.0 if movie is None else movie.pixel_size_nm
        frame = self.dock.view.frame

        def show(explained: Explained) -> None:
            if self.explained.isChecked():
                self.dock.view.explain(explained, pixel_size_nm)

        self.look(f"frame {frame}", lambda: self.step.explain(frame), returned=show)

    def _cloud(self) -> None:
        self.dock.view_in_3d()

    def _row_chosen(self, row: int) -> None:
        if 0 <= row < len(self.rows.rows):
            self.dock.view.select(int(self.rows.rows[row]))

    def _picked(self, molecule: int) -> None:
        row = self.rows.position_of(molecule)
        if row is None:
            return
        index = self.rows.index(row, 0)
        selection = self.table.selectionModel()
        selection.blockSignals(True)
        flags = (
            QItemSelectionModel.SelectionFlag.ClearAndSelect
            | QItemSelectionModel.SelectionFlag.Rows
        )
        selection.setCurrentIndex(index, flags)
        selection.blockSignals(False)
        self.table.scrollTo(index, QAbstractItemView.ScrollHint.PositionAtCenter)
        self.table.viewport().update()

    def _ask(self) -> None:
        path = self.ask_open("Open table", TABLES)
        if path is not None:
            self.open(path)

    def _ask_kept(self) -> None:
        name, _ = QFileDialog.getOpenFileName(
            self, "Open kept table", str(self.dock.keeper.folder), TABLES
        )
        if name:
            self.open(Path(name))

    def selected_molecule(self) -> int | None:
        """The number of the molecule that is selected in the table; None if there is none."""
        chosen = self.table.selectionModel().selectedRows()
        return int(self.rows.rows[chosen[0].row()]) if chosen else None


def words(quantity: str) -> str:
    """The name of a column as users read it."""
    return quantity.replace("_", " ")
