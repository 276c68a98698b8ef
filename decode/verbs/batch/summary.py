"""Summary of a job: a row a movie, as CSV and as one HTML page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path

from PIL import Image

from decode.atomic import atomic
from decode.pages import (
    Block,
    Chapter,
    Links,
    Page,
    Picture,
    Section,
    State,
    Summary,
    Words,
    rounded,
    save_page,
)
from decode.verbs.batch.receipt import Row
from decode.version import __version__

__all__ = ["summary_files", "write_summary"]

COLUMNS = {
    "molecules": "localizations",
    "frames": "frames",
    "density_per_um2": "per µm²",
    "photons": "photons",
    "background": "background",
    "sigma_nm": "sigma (nm)",
    "sigma_z_nm": "sigma z (nm)",
    "frc_nm": "FRC (nm)",
    "drift_nm": "drift (nm)",
    "checks_failed": "failed checks",
    "seconds": "time (s)",
    "error": "not localized",
}
"""figures of the page, and their titles; those that no movie has are left out"""
THUMBNAIL_PX = 320
"""longest side of a picture in the page"""


def summary_files(out: Path) -> tuple[Path, Path]:
    """The summary of a job in the folder of its output."""
    return out / "summary.csv", out / "summary.html"


def write_summary(rows: Sequence[Row], out: Path) -> None:
    """Write `summary.csv` and `summary.html`.

    Raises:
        OSError: if one cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    table, page = summary_files(out)
    with atomic(table) as temporary:
        temporary.write_text(_csv(rows), encoding="utf-8", newline="")
    save_page(_page(rows, out), page)


def _csv(rows: Iterable[Row]) -> str:
    """One line a movie; lists are joined by semicolons."""
    text = io.StringIO()
    names = [field.name for field in fields(Row)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in asdict(row).items()})
    return text.getvalue()


def _cell(value: object) -> str:
    if isinstance(value, tuple):
        return "; ".join(value)
    return "" if value is None else str(value)


def _page(rows: Sequence[Row], out: Path) -> Page:
    shown = {
        name: title for name, title in COLUMNS.items() if any(getattr(row, name) for row in rows)
    }
    failed = sum(row.error is not None for row in rows)
    found = sum(row.molecules or 0 for row in rows)
    said = f"{len(rows) - failed} of {len(rows)} movies localized, {found:,} molecules"
    return Page(
        title=f"Summary of {len(rows)} movies",
        about=f"{said}; decode {__version__}",
        chapters=tuple(_chapter(row, out) for row in rows),
        summary=Summary(
            columns=tuple(shown.values()),
            rows=tuple(tuple(_told(getattr(row, name)) for name in shown) for row in rows),
        ),
    )


def _told(value: float | str | tuple[str, ...] | None) -> str:
    if isinstance(value, float):
        return rounded(value)
    return f"{value:,}" if isinstance(value, int) else _cell(value)


def _chapter(row: Row, out: Path) -> Chapter:
    sections = []
    if row.remarks:
        sections.append(Section(title="Remarks", blocks=(Words(row.remarks),)))
    blocks = _blocks(row, out)
    if blocks:
        sections.append(Section(title="Files", blocks=blocks))
    return Chapter(
        title=row.movie, state=_state(row), verdict=_verdict(row), sections=tuple(sections)
    )


def _state(row: Row) -> State:
    """As the report of the movie has it."""
    if row.error is not None or row.checks_failed:
        return "bad"
    if row.remarks:
        return "look"
    return "good" if row.checks_passed else "unknown"


def _verdict(row: Row) -> tuple[str, ...]:
    if row.error is not None:
        return ("It was not localized.", f"{row.error}.")
    said = f"{row.molecules:,} localizations in {row.frames:,} frames."
    if row.checks_failed:
        return (f"Failed checks: {', '.join(row.checks_failed)}.", said)
    return (f"{row.checks_passed} checks passed, none failed.", said)


def _blocks(row: Row, out: Path) -> tuple[Block, ...]:
    folder = out / row.folder
    named = [name for name in (*row.files, row.log) if (folder / name).is_file()]
    links = tuple((name, (Path(row.folder) / name).as_posix()) for name in named)
    blocks: list[Block] = [Links(links)] if links else []
    for name in row.files:
        if name.endswith(".png") and ".drift." not in name:
            with suppress(OSError):
                blocks.append(_thumbnail(folder / name, name))
    return tuple(blocks)


def _thumbnail(path: Path, title: str) -> Picture:
    with Image.open(path) as picture:
        small = picture.convert("RGB")
        small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    png = io.BytesIO()
    small.save(png, "PNG")
    return Picture(png=png.getvalue(), title=title, caption=title)
