"""The window: widgets that show the steps and call them."""

from __future__ import annotations


def __getattr__(name: str) -> object:
    # napari asks for the widget in the thread of the window, and what it needs takes seconds to
    # import
    if name == "DecodeDock":
        from decode_napari.qt.waiting import import_in_a_thread

        import_in_a_thread("torch", "decode.calibrate.psf", "decode.verbs.sweep", "decode.models")
        from decode_napari.qt.dock import DecodeDock

        return DecodeDock
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
