"""Tests of the napari plugin, in three tiers: without Qt, with Qt but no display, and in a real
window under X."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HAS_DISPLAY = sys.platform != "linux" or bool(
    os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
)
if not HAS_DISPLAY:
    # before any Qt is imported: without a display, the default platform ends the whole process
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

# napari's own settings are read from nowhere and written nowhere
os.environ["NAPARI_CONFIG"] = ""

# the extra gui-test brings them; without, the rest of the suite runs
if any(find_spec(module) is None for module in ("napari", "pytestqt", "decode_napari")):
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not HAS_DISPLAY and "make_napari_viewer" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason="a real window needs a display (xvfb-run)"))


@pytest.fixture(autouse=True, scope="session")
def _imported_for_good() -> None:
    """napari collects garbage whenever a layer goes: it need not look through all modules."""
    import napari
    import torch

    assert napari
    assert torch
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings and recovered molecules of a test are its own."""
    from qtpy.QtCore import QSettings

    QSettings.setPath(
        QSettings.Format.IniFormat, QSettings.Scope.UserScope, str(tmp_path / "settings")
    )
    monkeypatch.setattr("decode_napari.qt.dock.recovery_folder", lambda: tmp_path / "recovered")
    from napari.settings import get_settings

    assert get_settings().config_path is None
    get_settings().plugins.extension2reader = {}


@pytest.fixture
def complaints(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was said in notifications."""
    from napari.utils.notifications import notification_manager

    said: list[str] = []
    monkeypatch.setattr(
        notification_manager,
        "dispatch",
        lambda notification: said.append(str(notification.message)),
    )
    return said


@pytest.fixture
def dock(qtbot: Any, complaints: list[str]) -> Iterator[Any]:
    """The widget on a viewer without a canvas: layers and dims are napari's own."""
    from napari.components import ViewerModel
    from npe2 import PluginManager

    from decode_napari.qt.dock import DecodeDock

    PluginManager.instance().discover()
    widget = DecodeDock(ViewerModel())
    qtbot.addWidget(widget)
    qtbot.waitUntil(lambda: widget.session.model is not None, timeout=60_000)
    yield widget
    widget.keep_unsaved()
