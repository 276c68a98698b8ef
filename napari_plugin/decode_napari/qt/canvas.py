"""The OpenGL context of a viewer, made current while layers are removed."""

from __future__ import annotations

from typing import Any

__all__ = ["make_current", "own"]


def own(viewer: Any) -> Any:
    """The viewer itself, as napari gives widgets a proxy that lives no longer than they do."""
    return getattr(viewer, "__wrapped__", viewer)


def make_current(viewer: Any) -> None:
    """Make the context of a viewer's canvas the current one; a viewer without a canvas has none.

    napari deletes the programs and textures of a layer as soon as it is removed, in whichever
    context is current: often that of Qt, which composes the window.  Contexts share their objects,
    but Mesa's software renderer ends the process at the next drawing (a null pointer in
    swrast_dri.so below glDrawArrays).
    """
    canvas = getattr(
        getattr(getattr(own(viewer), "window", None), "_qt_viewer", None), "canvas", None
    )
    scene = getattr(canvas, "_scene_canvas", None)
    if scene is not None:
        scene.set_current()
