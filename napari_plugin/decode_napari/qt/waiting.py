"""Waiting for seconds while the window is drawn."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

from qtpy.QtCore import QEventLoop, Qt, QTimer
from qtpy.QtWidgets import QApplication, QProgressDialog

__all__ = ["import_in_a_thread"]

POLL_MS = 20


def import_in_a_thread(*modules: str) -> None:
    """Import modules; meanwhile the window is drawn, but takes no clicks, which could open a second
    widget.

    Raises:
        ImportError: as the import does.
    """
    if all(module in sys.modules for module in modules) or QApplication.instance() is None:
        return
    dialog = QProgressDialog("Loading decode and PyTorch…", "", 0, 0, QApplication.activeWindow())
    dialog.setCancelButton(None)
    dialog.setWindowModality(Qt.WindowModality.ApplicationModal)
    dialog.setMinimumDuration(0)
    dialog.show()
    loop, poll = QEventLoop(), QTimer()
    with ThreadPoolExecutor(max_workers=1) as pool:
        importing = pool.submit(lambda: [import_module(module) for module in modules])
        poll.timeout.connect(lambda: loop.quit() if importing.done() else None)
        poll.start(POLL_MS)
        loop.exec()
    dialog.close()
    importing.result()
