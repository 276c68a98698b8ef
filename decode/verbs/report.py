"""report: tables of molecules to one HTML page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from decode.atomic import atomic
from decode.errors import Undetermined, in_plain_words
from decode.outputs import check_outputs, report_files, table_inputs
from decode.pages import save_page
from decode.progress import Progress, Steps, Stepwise, part
from decode.quality.summary import Quality
from decode.reporting import (
    MovieReport,
    Report,
    Subject,
    read_subject,
    report_on,
    tables_in,
    unreadable,
)
from decode.verbs.quality import assess
from decode.verbs.room import require_room

__all__ = ["report"]

WRITING = 0.98
"""fraction of the work after which files are written"""

ROW_BYTES = 800
"""of memory for each row of a table; 670 were measured with 300,000 rows"""


@Stepwise
def report(
    sources: Sequence[Path | str] | Path | str | Subject,
    out: Path | str,
    *,
    pixel_size_nm: float | None = None,
) -> Steps[Report]:
    """Write a report on tables of molecules: an HTML page that stands alone, and its twin as JSON.

    The page has a verdict with lights and the figure; then checks, calibration, photons, precision,
    drift, resolution and what limits it, density, residuals and provenance, as far as the table and
    the files beside it tell.  Several movies stand in one table, each with its own chapter.
    `report.steps` does the same step by step.

    Args:
        sources: tables of any format that `read_table` reads, and folders that hold some; a table
            that a folder holds in several formats is listed once.  Or molecules in memory
            (`decode.reporting.Subject`), with the path of the table beside which lie their files.
        out: `.html` to write; the twin has the suffix `.json`.
        pixel_size_nm: side of a pixel of the camera, where the tables do not state it.

    Returns:
        What is said of each movie.

    Raises:
        ValueError: if there is no table, or the only one cannot be read.
        NoRoom: if a table is too large for the memory.
        OSError: if a file cannot be read or written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     out = f"{folder}/truth.html"
        ...     found = report("sample_data/blinking_2d_truth.csv", out, pixel_size_nm=100)
        ...     size = Path(out).stat().st_size
        >>> found.movies[0].figures["molecules"], size < 5e6
        (8919, True)
    """
    tables = _tables(sources)
    paths = [table if isinstance(table, Path) else table.path for table in tables]
    files = report_files(Path(out))
    check_outputs(files, inputs=[file for path in paths for file in table_inputs(path)])
    movies = []
    for i, (table, path) in enumerate(zip(tables, paths, strict=True)):
        start, stop = (WRITING * n / len(tables) for n in (i, i + 1))
        steps = _movie(table, n_movies=len(tables), pixel_size_nm=pixel_size_nm)
        movies.append((yield from part(steps, start, stop, path.name)))
    yield Progress(WRITING, "writing")
    found = Report(movies=tuple(movies))
    page, twin = files
    save_page(found.page(), page)
    with atomic(twin) as temporary:
        temporary.write_text(json.dumps(found.as_dict(), default=str), encoding="utf-8")
    yield Progress(1.0, "")
    return found


def _tables(sources: Sequence[Path | str] | Path | str | Subject) -> Sequence[Path | Subject]:
    if isinstance(sources, Subject):
        return [sources]
    named = [sources] if isinstance(sources, Path | str) else sources
    return tables_in([Path(source) for source in named])


def _movie(
    table: Path | Subject, *, n_movies: int, pixel_size_nm: float | None
) -> Steps[MovieReport]:
    """The report of one movie; a damaged table among others costs its own row only."""
    if isinstance(table, Path):
        try:
            subject = read_subject(table, pixel_size_nm=pixel_size_nm)
        except (ValueError, OSError) as error:
            if n_movies == 1:
                raise
            return unreadable(table, in_plain_words(error))
    else:
        subject = table
    require_room("a report on", len(subject.molecules), ROW_BYTES, held=subject.molecules)
    quality = yield from part(_quality(subject, pixel_size_nm), 0.0, 0.8)
    return report_on(replace(subject, quality=quality), n_movies=n_movies)


def _quality(subject: Subject, pixel_size_nm: float | None) -> Steps[Quality | None]:
    try:
        return (yield from assess.steps(subject.molecules, pixel_size_nm=pixel_size_nm))
    except Undetermined:
        return None
