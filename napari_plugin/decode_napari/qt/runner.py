"""Verbs in threads: progress, time left, pause, stop; errors as one sentence."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from napari.qt.threading import create_worker
from napari.utils.notifications import ErrorNotification, notification_manager, show_warning
from qtpy.QtCore import QCoreApplication, QObject, QThreadPool, Signal

from decode.errors import in_plain_words, is_out_of_memory
from decode.progress import Progress, Steps
from decode_napari.stopping import Stop, Stopped

__all__ = ["OPTION", "Runner", "complain", "is_refusal", "remaining", "sentence_of"]

OPTION = re.compile(r"--([a-z][a-z-]*)")
"""an option of the command line, as it occurs in sentences"""

Verb = Steps[Any]


@final
class Trouble(Exception):
    """The sentence that the user reads; its cause is the original error, one click away."""


@final
@dataclass(frozen=True)
class _End:
    """How a verb ended: with a result, an error, or because it was stopped."""

    result: Any = None
    error: Exception | None = None
    stopped: bool = False


@final
class Runner(QObject):
    """One verb at a time in a thread; a new one stops the old one, whose reports are then ignored.

    All signals arrive in the thread of the window.
    """

    began = Signal(str)
    reported = Signal(object)
    ended = Signal()

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._stop: Stop | None = None
        self._worker: Any = None
        self.title = ""

    @property
    def busy(self) -> bool:
        return self._stop is not None

    @property
    def paused(self) -> bool:
        return self._worker is not None and bool(self._worker.is_paused)

    def start(
        self,
        title: str,
        verb: Callable[[], Verb],
        *,
        reported: Callable[[Progress[Any]], None] | None = None,
        returned: Callable[[Any], None] | None = None,
        ended: Callable[[], None] | None = None,
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        """Run a verb.

        Args:
            title: description of the work, for the user.
            verb: makes the generator; errors that it raises are reported at once.
            reported: called with every step's progress.
            returned: called with the result, if there is one.
            ended: called at the end, in any case.
            failed: called with an error; None shows it in a notification.
        """
        refuse = failed or complain
        try:
            generator = verb()
        except Exception as error:
            refuse(error)
            return
        self.stop()
        stop = self._stop = Stop()
        self.title = title

        def on_report(progress: Progress[Any]) -> None:
            if self._stop is stop:
                self._report(progress, reported)

        def on_end(end: _End) -> None:
            if self._stop is not stop:
                return
            self._stop, self._worker = None, None
            error = end.error if returned is None else _handed_over(end, returned)
            if error is not None:
                refuse(error)
            if ended is not None:
                ended()
            self.ended.emit()

        self._worker = create_worker(_guarded, stop.watch(generator), _start_thread=False)
        self._worker.yielded.connect(on_report)
        self._worker.returned.connect(on_end)
        self.began.emit(title)
        self._worker.start()

    def _report(
        self, progress: Progress[Any], reported: Callable[[Progress[Any]], None] | None
    ) -> None:
        for warning in progress.warnings:
            show_warning(warning)
        if reported is not None:
            reported(progress)
        self.reported.emit(progress)

    def stop(self) -> None:
        """Ask the verb to end; earlier reports stay."""
        if self._stop is not None:
            self._stop.ask()
            if self.paused:
                self._worker.resume()

    def toggle_pause(self) -> None:
        """Pause the verb at its next report, or resume it."""
        if self._worker is not None:
            self._worker.toggle_pause()

    def wait(self, seconds: float) -> None:
        """Wait for the end of the verb, and deliver its outstanding reports."""
        until = time.monotonic() + seconds
        while self.busy and time.monotonic() < until:
            QThreadPool.globalInstance().waitForDone(20)
            QCoreApplication.sendPostedEvents()


def _let_the_window_go_first() -> None:
    """Give the window priority over this thread and the threads that it starts."""
    sys.setswitchinterval(0.001)  # Python's 5 ms, each time that a call of Qt returns, add up
    if sys.platform == "linux":  # elsewhere a thread has no niceness of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _guarded(verb: Verb) -> Steps[_End]:
    _let_the_window_go_first()
    # superqt takes some kinds of errors for signs of a window that is gone: they are handed over as
    # results
    try:
        result = yield from verb
    except Stopped:
        return _End(stopped=True)
    except Exception as error:
        return _End(error=error)
    return _End(result=result)


def _handed_over(end: _End, returned: Callable[[Any], None]) -> Exception | None:
    """The error of a verb, or else that of the function that its result, if any, is given to."""
    if end.error is not None or end.stopped:
        return end.error
    try:
        returned(end.result)
    except (ValueError, OSError) as error:
        return error
    return None


def complain(error: Exception) -> None:
    """A notification in plain words, with the traceback behind a button."""
    trouble = Trouble(sentence_of(error))
    trouble.__cause__ = error
    notification_manager.dispatch(ErrorNotification(trouble))


def sentence_of(error: Exception) -> str:
    """The sentence of an error in the words of the window, where --pixel-size is the field `pixel
    size`."""
    plain = OPTION.sub(lambda option: option[1].replace("-", " "), in_plain_words(error))
    plain = plain or type(error).__name__
    first = plain.split(maxsplit=1)[0]
    is_name = "." in first or "/" in first  # of a file
    return plain if is_name else plain[:1].upper() + plain[1:]


def is_refusal(error: Exception) -> bool:
    """Whether the user can correct the error; others are errors of the program, to be reported with
    their traceback."""
    from decode.training.course import TrainingError

    return isinstance(error, ValueError | OSError | TrainingError) or is_out_of_memory(error)


def remaining(seconds: float) -> str:
    """The remaining time in words, rounded so that they do not flicker."""
    if seconds < 5:
        return "a few seconds left"
    if seconds < 90:
        return f"{round(seconds / 5) * 5} s left"
    if seconds < 5400:
        return f"{round(seconds / 60)} min left"
    return f"{seconds / 3600:.1f} h left"
