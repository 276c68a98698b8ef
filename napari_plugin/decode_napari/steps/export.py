"""Render and export: the picture, and the table of the molecules that pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
import numpy.typing as npt

from decode.emitters import EmitterSet
from decode.postprocess.filter import Range
from decode.progress import Progress, Steps
from decode.rendering.settings import Rendering
from decode_napari.molecules import Filter
from decode_napari.session import Found, Session
from decode_napari.steps.inspect import table_of
from decode_napari.steps.step import Step, call, command, keep_call, keep_command

__all__ = ["PICTURES", "SETTINGS", "ExportStep", "Rendered"]

SETTINGS = Rendering(pixel_nm=10.0, color="density")
MOST_PIXELS = 16384
"""along a side of a picture that is shown"""
PICTURES = (".png", ".svg", ".tif", ".tiff")
OF_COMMAND = {"kernel": "kernel", "color": "color", "pixel": "pixel_nm"}
"""options of `decode render` that the window offers, and the settings that they are"""


Drawn = tuple[Filter, dict[str, Range]]
"""a table, and the ranges of its filter"""


@final
@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A super-resolved picture."""

    image: npt.NDArray[np.float32]
    """(y, x) molecules per pixel, or (y, x, 3) in colours between 0 and 1"""
    of: Drawn | None
    """the molecules that are drawn"""
    pixel_nm: float
    origin_nm: tuple[float, float]
    """x, y of its outer corner"""
    limits: tuple[float, float] = (0.0, 1.0)
    """molecules per pixel that are black and at full brightness"""
    table: npt.NDArray[np.float32] | None = None
    """(n, 3) colours from the one to the other; None where the image is in colours"""


@final
class ExportStep(Step):
    title = "Render and export"
    purpose = "Render the super-resolved picture; save picture and table"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.settings = SETTINGS
        self.rendered: Rendered | None = None
        self.saved: Path | None = None
        """the table that was saved last"""
        nothing: tuple[object, tuple[str, ...]] = (object(), ())
        self._saving = self._saved_of = (nothing, dict[str, Range]())
        """run and ranges of the molecules that are being saved, and of those that were"""

    def missing(self) -> str:
        return self.session.why_not("found")

    def done(self) -> str:
        found = self.session.found
        if self.saved is None or found is None or found.identity != self._saved_of[0]:
            return ""
        return f"saved {self.saved.name}"

    def render(self) -> Steps[Rendered]:
        """Draw the molecules that pass as Gaussians of their uncertainty."""
        return _render(self._molecules(), self.settings, self._drawn())

    def is_stale(self) -> bool:
        """Whether the molecules that pass differ from those of the picture."""
        return self.rendered is not None and self.rendered.of != self._drawn()

    def save_table(self, path: Path) -> Steps[Path]:
        """Write the molecules that pass, in the format of the suffix.

        Raises:
            ValueError, OSError: as `decode.io.tables.write_table` does, and if an opened file would
                be overwritten.
        """
        from decode.outputs import check_outputs, table_files

        molecules, found = self._molecules(), self.session.found
        assert found is not None
        check_outputs(table_files(path), inputs=self._opened(found))
        self._saving = (found.identity, dict(found.filter.ranges))
        return _save_table(molecules, path)

    def save_picture(self, path: Path) -> Steps[Path]:
        """Write the picture as the window shows it, with a scale bar (.png, .svg), or its densities
        (.tif).

        Raises:
            ValueError, OSError: as `save_table` does.
        """
        from decode.outputs import check_outputs
        from decode.rendering import picture_file

        found = self.session.found
        check_outputs([picture_file(path)], inputs=self._opened(found))
        return _save_picture(self._molecules(), path, self.settings)

    def forget(self) -> None:
        self.rendered = self.saved = None

    def accept(self, result: Rendered | Path) -> None:
        if isinstance(result, Rendered):
            self.rendered = result
        elif result.suffix.lower() not in PICTURES:
            self.saved, self._saved_of = result, self._saving

    @property
    def saved_all(self) -> bool:
        """Whether the table that was saved last holds all molecules, including those that the
        filter leaves out."""
        found, (run, ranges) = self.session.found, self._saved_of
        return found is not None and run == found.identity and not ranges

    def as_command(self) -> str:
        if self.session.found is None:
            return ""
        table, ranges = self._on_disk(self.session.found)
        lines = []
        if ranges:
            line, table = keep_command(table, ranges)
            lines = [line]
        options = {name: getattr(self.settings, field) for name, field in OF_COMMAND.items()}
        picture = table.with_suffix(".png")
        return " && ".join([*lines, command("decode", "render", table, o=picture, **options)])

    def as_python(self) -> str:
        if self.session.found is None:
            return ""
        imports, lines = keep_call(*self._on_disk(self.session.found))
        options = {field: getattr(self.settings, field) for field in OF_COMMAND.values()}
        picture = f"image = render_image(molecules, {call('Rendering', **options)})"
        rendering = "from decode.rendering import Rendering, render_image"
        return "\n".join([*imports, rendering, "", *lines, picture])

    def _on_disk(self, found: Found) -> tuple[Path, dict[str, Range]]:
        """A table on disk and the ranges that give the molecules that pass."""
        if self.saved is not None and self._saved_of == (found.identity, found.filter.ranges):
            return self.saved, {}
        return table_of(found), found.filter.ranges

    def _opened(self, found: Found | None) -> list[str | Path | None]:
        """The files that the session was made from."""
        movie, psf = self.session.movie, self.session.psf
        of_movie = [] if movie is None else [movie.path, movie.camera_name]
        return [*of_movie, psf and psf.path, found and found.source]

    def _drawn(self) -> Drawn | None:
        found = self.session.found
        return None if found is None else (found.filter, dict(found.filter.ranges))

    def _molecules(self) -> EmitterSet:
        if self.session.found is None:
            raise ValueError(self.missing())
        return self.session.found.filter.passing()


def _render(emitters: EmitterSet, settings: Rendering, of: Drawn | None) -> Steps[Rendered]:
    from decode.rendering import Density, painted, picture_of

    if not len(emitters):
        raise ValueError("no molecule passes the filter; there is nothing to render")
    picture = picture_of(emitters, settings)
    longest = max(picture.canvas.shape)
    if longest > MOST_PIXELS:
        raise ValueError(f"{longest} pixels are too many to show; choose a larger --pixel")
    yield Progress(None, f"rendering {len(emitters)} molecules")
    drawn = Rendered(
        image=np.zeros((1, 1), np.float32),
        of=of,
        pixel_nm=picture.canvas.pixel_nm,
        origin_nm=picture.canvas.corner_nm,
    )
    if not isinstance(picture.colouring, Density):
        done = yield from painted(picture)
        return replace(drawn, image=done.colours[0] / np.float32(255))
    density = picture.density()
    (limits,) = picture.limits(density)
    return replace(drawn, image=density[0, 0], limits=limits, table=picture.colouring.table)


def _save_table(emitters: EmitterSet, path: Path) -> Steps[Path]:
    from decode.io.tables import write_table

    yield Progress(None, f"writing {path.name}")
    write_table(emitters, path)
    return path


def _save_picture(emitters: EmitterSet, path: Path, settings: Rendering) -> Steps[Path]:
    from decode.rendering import save_picture

    yield from save_picture.steps(emitters, path, settings)
    return path
