"""Render and export: the picture, and the table of the molecules that pass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import numpy.typing as npt

from decode.emitters import EmitterSet
from decode.postprocess.filter import Range
from decode.progress import Progress, Steps
from decode_napari.molecules import Filter
from decode_napari.session import Found, Session
from decode_napari.steps.inspect import table_of
from decode_napari.steps.step import Step, command, keep_call, keep_command

__all__ = ["ExportStep", "RenderSettings", "Rendered"]


@final
@dataclass(frozen=True, kw_only=True)
class RenderSettings:
    """Settings of a picture, as for `decode.rendering`."""

    pixel_nm: float = 10.0
    by_depth: bool = False
    """whether colours show depth, besides brightness for density"""


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


@final
class ExportStep(Step):
    title = "Render and export"
    purpose = "Render the super-resolved picture; save picture and table"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.settings = RenderSettings()
        self.rendered: Rendered | None = None
        self.saved: Path | None = None
        """the table that was saved last"""
        self._saving = self._saved_of = (object(), dict[str, Range]())
        """run and ranges of the molecules that are being saved, and of those that were"""

    def missing(self) -> str:
        return self.session.why_not("found")

    def done(self) -> str:
        found = self.session.found
        if self.saved is None or found is None or found.run is not self._saved_of[0]:
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
        self._saving = (found.run, dict(found.filter.ranges))
        return _save_table(molecules, path)

    def save_picture(self, path: Path) -> Steps[Path]:
        """Write the picture as the window shows it, with a scale bar, as a PNG.

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
        elif result.suffix.lower() != ".png":
            self.saved, self._saved_of = result, self._saving

    @property
    def saved_all(self) -> bool:
        """Whether the table that was saved last holds all molecules, including those that the
        filter leaves out."""
        found, (run, ranges) = self.session.found, self._saved_of
        return found is not None and run is found.run and not ranges

    def as_command(self) -> str:
        if self.session.found is None:
            return ""
        table, ranges = self._on_disk(self.session.found)
        lines = []
        if ranges:
            line, table = keep_command(table, ranges)
            lines = [line]
        return " && ".join(
            [*lines, command("decode", "render", table, o=table.with_suffix(".png"))]
        )

    def as_python(self) -> str:
        if self.session.found is None:
            return ""
        imports, lines = keep_call(*self._on_disk(self.session.found))
        picture = f"image = render_image(molecules, pixel_nm={self.settings.pixel_nm:g})"
        return "\n".join(
            [*imports, "from decode.rendering import render_image", "", *lines, picture]
        )

    def _on_disk(self, found: Found) -> tuple[Path, dict[str, Range]]:
        """A table on disk and the ranges that give the molecules that pass."""
        if self.saved is not None and self._saved_of == (found.run, found.filter.ranges):
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


def _field(emitters: EmitterSet) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) nm: the movie's field, or the box around the molecules."""
    field_nm = emitters.facts.field_nm
    if field_nm is not None:
        return 0.0, 0.0, *field_nm
    if not len(emitters):
        raise ValueError("no molecule passes the filter; there is nothing to render")
    low, high = (
        emitters.xyz[:, :2].amin(0).floor().tolist(),
        emitters.xyz[:, :2].amax(0).ceil().tolist(),
    )
    return low[0], low[1], high[0] + 1, high[1] + 1


def _render(emitters: EmitterSet, settings: RenderSettings, of: Drawn | None) -> Steps[Rendered]:
    from decode.rendering import depth_range, exposed, render_image

    extent = _field(emitters)
    longest = max(extent[2] - extent[0], extent[3] - extent[1])
    if longest / settings.pixel_nm > 16384:
        raise ValueError(
            f"{longest / settings.pixel_nm:.0f} pixels are too many to show; choose a larger "
            "--pixel"
        )
    yield Progress(None, f"rendering {len(emitters)} molecules")
    z_range = depth_range(emitters, least_nm=0.0) if settings.by_depth else None
    image = render_image(emitters, pixel_nm=settings.pixel_nm, extent_nm=extent, z_range_nm=z_range)
    if image.ndim == 3:  # napari shows colours between 0 and 1
        image = exposed(image)
    return Rendered(
        image=image, of=of, pixel_nm=settings.pixel_nm, origin_nm=(extent[0], extent[1])
    )


def _save_table(emitters: EmitterSet, path: Path) -> Steps[Path]:
    from decode.io.tables import write_table

    yield Progress(None, f"writing {path.name}")
    write_table(emitters, path)
    return path


def _save_picture(emitters: EmitterSet, path: Path, settings: RenderSettings) -> Steps[Path]:
    from decode.rendering import save_picture

    yield Progress(None, f"writing {path.name}")
    save_picture(
        emitters,
        path,
        pixel_nm=settings.pixel_nm,
        extent_nm=_field(emitters),
        by_depth=settings.by_depth,
    )
    return path
