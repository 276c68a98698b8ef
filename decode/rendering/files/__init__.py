"""Pictures in files, by their suffix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from decode.emitters import EmitterSet
from decode.progress import Steps, Stepwise
from decode.rendering.files import png, svg, tiff
from decode.rendering.picture import picture_of
from decode.rendering.settings import AUTO, DENSITY, Rendering
from decode.rendering.spool import Spool

__all__ = ["picture_file", "save_picture", "save_spooled"]

WRITERS = {".png": png.write, ".tif": tiff.write, ".tiff": tiff.write, ".svg": svg.write}
DENSITIES = (".tif", ".tiff")
"""files of numbers, in which colours are channels and must be asked for"""


@Stepwise
def save_picture(
    emitters: EmitterSet, path: str | Path, rendering: Rendering | None = None
) -> Steps[None]:
    """Write a picture: PNG or SVG in colours with scale bar and legend, TIFF as densities,
    in which what colours show is a channel each.

    `save_picture.steps` does the same step by step.

    Args:
        emitters: the table.
        path: file to write; it appears only when it is complete.
        rendering: how; None: Gaussians, coloured by depth where there is some.

    Raises:
        ValueError: if the suffix or the settings do not fit.
        OSError: if the file cannot be written.
    """
    path = picture_file(Path(path))
    suffix, chosen = path.suffix.lower(), rendering or Rendering()
    if suffix in DENSITIES and chosen.color == AUTO:
        chosen = replace(chosen, color=DENSITY)
    yield from WRITERS[suffix](picture_of(emitters, chosen), path)


@Stepwise
def save_spooled(spool: Spool, path: Path) -> Steps[None]:
    """Write the picture of a spool as PNG, as `save_picture` does that of a table.

    Raises:
        OSError: if the file cannot be written.
    """
    yield from png.write(spool.layout(), path)


def picture_file(path: Path) -> Path:
    """The path itself, if it names a picture.

    Raises:
        ValueError: if it does not.
    """
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"{path}: pictures are written as .png, .tif or .svg; choose such a name")
    return path
