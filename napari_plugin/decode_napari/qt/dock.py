"""The dock widget: the list of steps, the panel of the chosen one, and progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, final
from weakref import WeakKeyDictionary

from napari.layers import Layer
from napari.utils.notifications import show_info
from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtGui import QColor, QDragEnterEvent, QDropEvent, QIcon, QPainter, QPixmap, QShowEvent
from qtpy.QtWidgets import (
    QApplication,
    QFrame,
    QHBoxLayout,
    QListWidget,
    QListWidgetItem,
    QProgressBar,
    QScrollArea,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from decode.io.movies import movie_suffixes
from decode.io.tables import table_suffixes
from decode.progress import Progress
from decode_napari.qt.canvas import make_current, own
from decode_napari.qt.cloud import CloudView
from decode_napari.qt.drift import DriftPanel
from decode_napari.qt.export import ExportPanel
from decode_napari.qt.inspect import InspectPanel
from decode_napari.qt.keeper import Keeper
from decode_napari.qt.link import LinkPanel
from decode_napari.qt.localize import LocalizePanel
from decode_napari.qt.memory import Memory, recovery_folder
from decode_napari.qt.model import ModelPanel
from decode_napari.qt.movie import MoviePanel
from decode_napari.qt.panel import Panel, button, note
from decode_napari.qt.preference import prefer_own_reader
from decode_napari.qt.psf import PSFPanel
from decode_napari.qt.quality import QualityPanel
from decode_napari.qt.runner import Runner, complain, remaining
from decode_napari.qt.view import MoleculeView
from decode_napari.readers import table_layer
from decode_napari.recovery import kept
from decode_napari.session import Found, Session
from decode_napari.steps import STEPS
from decode_napari.steps.drift import DriftStep
from decode_napari.steps.export import ExportStep
from decode_napari.steps.inspect import InspectStep
from decode_napari.steps.link import LinkStep
from decode_napari.steps.localize import LocalizeStep
from decode_napari.steps.model import ModelStep
from decode_napari.steps.movie import MovieStep
from decode_napari.steps.psf import PSFStep
from decode_napari.steps.quality import QualityStep
from decode_napari.steps.step import Step

__all__ = ["DecodeDock"]

PANELS: dict[type[Step], Callable[[Any, Any], Panel]] = {
    MovieStep: MoviePanel,
    PSFStep: PSFPanel,
    ModelStep: ModelPanel,
    LocalizeStep: LocalizePanel,
    InspectStep: InspectPanel,
    DriftStep: DriftPanel,
    LinkStep: LinkPanel,
    QualityStep: QualityPanel,
    ExportStep: ExportPanel,
}
KEEPERS: WeakKeyDictionary[Any, Keeper] = WeakKeyDictionary()
"""keeper of each viewer's session, so that a reopened panel continues where it was closed"""
UNSAVED = "molecules before, not saved"
DARK, READY, DONE = "#6b7280", "#4fa3ff", "#57d38c"


@final
class DecodeDock(QWidget):
    """All steps, for one viewer."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.memory = Memory()
        prefer_own_reader(self.memory)
        self.keeper = _keeper_of(napari_viewer)
        """keeper of unsaved molecules"""
        self.session = self.keeper.session
        self.runner = Runner(self)
        """what the user waits for"""
        self.previewer = Runner(self)
        """quick looks, which replace one another"""
        self.loader = Runner(self)
        """models that are loaded"""
        self.view = MoleculeView(napari_viewer, self.isVisible)
        self.cloud: CloudView | None = None
        self._uses_movie = False
        self._following: list[tuple[Any, Callable[..., None]]] = []
        self._since: float | None = None
        self._from = 0.0
        """time and fraction from which the time left is reckoned"""
        self.setAcceptDrops(True)
        self.setMinimumWidth(400)
        self.steps = [kind(self.session) for kind in STEPS]
        self.panels: dict[type[Step], Panel] = {}
        try:
            self._lay_out()
            self._begin()
        except BaseException:
            self._leave()
            raise

    def _lay_out(self) -> None:
        column = QVBoxLayout(self)
        column.setContentsMargins(4, 4, 4, 4)
        self.list = QListWidget()
        self.list.setAccessibleName("steps")
        self.list.setToolTip(
            "The steps of the job: grey needs something first, blue is ready, green is done"
        )
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.setTextElideMode(Qt.TextElideMode.ElideRight)
        for step in self.steps:
            item = QListWidgetItem(step.title)
            item.setToolTip(step.purpose)
            self.list.addItem(item)
        self.list.setFixedHeight((self.list.sizeHintForRow(0) + 2) * len(self.steps) + 6)
        column.addWidget(self.list)

        self.stack = QStackedWidget()
        for step in self.steps:
            panel = PANELS[type(step)](step, self)
            self.panels[type(step)] = panel
            area = QScrollArea()
            area.setWidgetResizable(True)
            area.setFrameShape(QFrame.Shape.NoFrame)
            area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
            area.setWidget(panel)
            self.stack.addWidget(area)
        column.addWidget(self.stack, 1)

        self.progress = QProgressBar()
        self.progress.setAccessibleName("progress")
        self.progress.setToolTip("Progress; below it what is being done, and the time left")
        self.progress.setTextVisible(True)
        self.cancel_button = button("Cancel", "End the work; what was found stays", self.cancel)
        line = QHBoxLayout()
        line.addWidget(self.progress, 1)
        line.addWidget(self.cancel_button)
        column.addLayout(line)
        self.message = note()
        self.message.setMinimumHeight(34)
        self.message.setAccessibleName("what is being done")
        column.addWidget(self.message)
        copies = QHBoxLayout()
        self.command_button = button(
            "Copy as CLI command", "What was done here, for a terminal", self._copy_command
        )
        self.python_button = button(
            "Copy as Python", "What was done here, for a script", self._copy_python
        )
        copies.addWidget(self.command_button)
        copies.addWidget(self.python_button)
        column.addLayout(copies)

    def _begin(self) -> None:
        """Follow session and viewer, and show their contents, once all widgets exist."""
        self.list.currentRowChanged.connect(self._step_chosen)
        self.runner.reported.connect(self._reported)
        self.runner.ended.connect(self._ended)
        self.previewer.began.connect(self._looking)
        self.previewer.ended.connect(self._looked)
        self.follow(self.session.changed, self._changed)
        self.follow(self.keeper.set_aside, self._set_aside)
        self.follow(self.viewer.layers.events.removing, lambda _: make_current(self.viewer))
        self.list.setCurrentRow(0)
        self._idle("")
        found = kept(recovery_folder())
        if found:
            self.say(
                f"Kept from a window that was closed: {found[0]}; open it in the step Inspect."
            )
        for panel in self.panels.values():
            panel.begin()
        if self.session.found is not None:
            self._changed("found")
        self.refresh_steps()
        self.installEventFilter(self)

    def follow(self, signal: Any, slot: Callable[..., None]) -> None:
        """Connect to a signal of the viewer or the session, which outlive this dock, until it is
        closed."""
        signal.connect(slot)
        self._following.append((signal, slot))

    def start(
        self,
        title: str,
        verb: Callable[[], Any],
        *,
        reported: Callable[[Progress[Any]], None] | None = None,
        returned: Callable[[Any], None] | None = None,
        ended: Callable[[], None] | None = None,
        failed: Callable[[Exception], None] | None = None,
        uses_movie: bool = False,
        anew: bool = False,
    ) -> None:
        """Run a verb, unless one is running; further arguments are those of `Runner.start`.

        Args:
            uses_movie: whether the movie is locked until the end.
            anew: whether a running verb of this title is replaced.
        """
        if self.runner.busy and not (anew and self.runner.title == title):
            show_info(f"still {self.runner.title}; cancel it, or wait")
            return
        self._since = None
        self._show_progress(None)
        self.cancel_button.setEnabled(True)
        self.message.setText(title)
        self._uses_movie = uses_movie
        self.runner.start(
            title, verb, reported=reported, returned=returned, ended=ended, failed=failed
        )
        if not self.runner.busy:
            self._idle("")
        self.refresh_steps()

    def say(self, sentence: str) -> None:
        """Show a sentence below the progress bar; long paths break at their folders."""
        self.message.setText(sentence.replace("/", "/\N{ZERO WIDTH SPACE}"))

    @property
    def movie_in_use(self) -> bool:
        """Whether a verb works on the movie, which locks movie and camera."""
        return self.runner.busy and self._uses_movie

    def cancel(self) -> None:
        """Stop the verb that the user waits for, or else a preview."""
        (self.runner if self.runner.busy else self.previewer).stop()
        self.cancel_button.setEnabled(False)
        self.message.setText("stopping; what was found stays")

    def localize(self) -> None:
        """Go to the step that localizes, and run it on all frames."""
        self.go_to(LocalizeStep)
        panel = self.panels[LocalizeStep]
        assert isinstance(panel, LocalizePanel)
        panel.run()

    def go_to(self, kind: type[Step]) -> None:
        self.list.setCurrentRow(STEPS.index(kind))

    def panel(self, kind: type[Step]) -> Any:
        return self.panels[kind]

    def step(self, kind: type[Step]) -> Step:
        return self.steps[STEPS.index(kind)]

    @property
    def has_unsaved(self) -> bool:
        """Whether there are unsaved molecules."""
        return not self.session.is_saved

    def saved(self) -> None:
        """The table at hand is on disk."""
        self.session.saved()
        self.keeper.discard()

    def start_afresh(self) -> None:
        """Remove the results of the previous movie from the window.

        Raises:
            OSError: if unsaved molecules cannot be kept; then they stay.
        """
        self.session.withdraw("found")
        self.previewer.stop()
        for step in self.steps:
            step.forget()
        for panel in self.panels.values():
            panel.forget()
        self.view.clear()
        if UNSAVED in self.viewer.layers:
            self.viewer.layers.remove(UNSAVED)
        if self.cloud is not None:
            self.cloud.close()
        self.refresh_steps()

    def view_in_3d(self) -> CloudView | None:
        """The molecules that pass, of all frames, in a window of their own."""
        if self.session.found is None:
            return None
        if self.cloud is None or not self.cloud.is_open:
            self.cloud = CloudView()
        self.cloud.show(self.session.found)
        self.cloud.viewer.window.activate()
        return self.cloud

    def redraw(self) -> None:
        """Follow the filter in every view."""
        self.view.refresh()
        if self.cloud is not None:
            self.cloud.refresh()

    def refresh_steps(self) -> None:
        """Enable the steps whose inputs exist."""
        for row, step in enumerate(self.steps):
            item = self.list.item(row)
            if item is None:
                continue
            missing, done = step.missing(), step.done()
            item.setText(f"{step.title}: {done}" if done else step.title)
            ready = DARK if missing else READY
            item.setIcon(_light(DONE if done else ready))
            state = done or (f"not yet: {missing}" if missing else "ready")
            item.setData(Qt.ItemDataRole.AccessibleTextRole, f"{step.title}, {state}")
            item.setToolTip(f"{step.purpose}\n{state}")
            item.setForeground(QColor(DARK) if missing else self.palette().windowText())
        for panel in self.panels.values():
            panel.refresh()
        step = self.steps[max(0, self.list.currentRow())]
        self.command_button.setEnabled(bool(step.as_command()))
        self.python_button.setEnabled(bool(step.as_python()))

    def keep_unsaved(self) -> None:
        """End the work, and keep unsaved molecules in the recovery folder."""
        for runner in (self.runner, self.previewer, self.loader):
            runner.stop()
            runner.wait(2.0)
        try:
            self.keeper.keep_now()
        except (ValueError, OSError) as error:
            complain(error)

    def _leave(self, *, viewer_stays: bool = False) -> None:
        """Disconnect from the viewer, as panel or window is closed."""
        self.keep_unsaved()
        if viewer_stays:
            self.view.clear()
        for signal, slot in self._following:
            signal.disconnect(slot)
        self._following.clear()
        self.view.close()

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        for above in (self.window(), self.parentWidget()):
            if above is not None and above is not self:
                above.removeEventFilter(self)
                above.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        # napari closes a panel by taking the widget out of its dock
        taken_out = (
            watched is self and event.type() == QEvent.Type.ParentChange and self.parent() is None
        )
        if taken_out:
            self._leave(viewer_stays=True)
        elif event.type() == QEvent.Type.Close:
            self._leave()
        return super().eventFilter(watched, event)

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        paths = [Path(url.toLocalFile()) for url in event.mimeData().urls()]
        if any(_is_table(path) or _is_movie(path) for path in paths):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        for url in event.mimeData().urls():
            path = Path(url.toLocalFile())
            kind = InspectStep if _is_table(path) else MovieStep
            self.go_to(kind)
            self.panel(kind).open(path)

    def _step_chosen(self, row: int) -> None:
        self.stack.setCurrentIndex(row)
        self.refresh_steps()

    def _set_aside(self, before: Found) -> None:
        """Keep unsaved molecules that were replaced as a hidden layer."""
        if self.session.found is None:  # another movie begins
            return
        data, options, kind = table_layer(before.filter.emitters, UNSAVED)
        if UNSAVED in self.viewer.layers:
            self.viewer.layers.remove(UNSAVED)
        selection = self.viewer.layers.selection
        chosen = set(selection)
        self.viewer.add_layer(Layer.create(data, options | {"visible": False}, kind))
        selection.clear()
        selection.update(chosen)

    def _changed(self, part: str) -> None:
        found = self.session.found
        if part == "found" and found is not None:
            growing = self.movie_in_use and not found.complete
            self.keeper.keep_soon(growing=growing)
            self.view.show(found, growing=growing)
            if self.cloud is not None and self.cloud.is_open:
                self.cloud.show(found)
        self.refresh_steps()

    def _reported(self, progress: Progress[Any]) -> None:
        left, fraction = "", progress.fraction
        self._show_progress(fraction)
        if fraction is not None:
            now = time.monotonic()
            if not fraction or self._since is None:
                self._since, self._from = now, fraction
            elif fraction > self._from:
                seconds = (now - self._since) / (fraction - self._from) * (1 - fraction)
                left = f"; {remaining(seconds)}" if fraction < 1 else ""
        self.message.setText(f"{progress.message}{left}")

    def _show_progress(self, fraction: float | None) -> None:
        # Qt would draw a new value at once, and with it the whole window
        self.progress.setUpdatesEnabled(False)
        self.progress.setRange(0, 0 if fraction is None else 1000)
        self.progress.setValue(round(1000 * (fraction or 0.0)))
        self.progress.setUpdatesEnabled(True)

    def _ended(self) -> None:
        self._uses_movie = False
        self._idle("")
        self.refresh_steps()

    def _looking(self, title: str) -> None:
        if not self.runner.busy:
            self._show_progress(None)
            self.cancel_button.setEnabled(True)
            self.message.setText(f"looking at {title}")

    def _looked(self) -> None:
        if not self.runner.busy:
            self._idle("")

    def _idle(self, message: str) -> None:
        self._show_progress(0.0)
        self.cancel_button.setEnabled(False)
        self.message.setText(message)

    def _copy_command(self) -> None:
        self._copy(self.steps[self.list.currentRow()].as_command())

    def _copy_python(self) -> None:
        self._copy(self.steps[self.list.currentRow()].as_python())

    def _copy(self, text: str) -> None:
        clipboard = QApplication.clipboard()
        if clipboard is not None:
            clipboard.setText(text)
        show_info("copied")


def _keeper_of(viewer: Any) -> Keeper:
    viewer = own(viewer)
    if viewer not in KEEPERS:
        KEEPERS[viewer] = Keeper(Session(), recovery_folder())
    return KEEPERS[viewer]


def _light(colour: str) -> QIcon:
    pixmap = QPixmap(12, 12)
    pixmap.fill(Qt.GlobalColor.transparent)
    painter = QPainter(pixmap)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.setBrush(QColor(colour))
    painter.setPen(Qt.PenStyle.NoPen)
    painter.drawEllipse(1, 1, 10, 10)
    painter.end()
    return QIcon(pixmap)


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in table_suffixes()


def _is_movie(path: Path) -> bool:
    """Whether a path is a movie file, or a folder with a file for each frame."""
    return path.suffix.lower() in movie_suffixes() or path.is_dir()
