"""The report: one HTML page with the verdict, the pictures and the figures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from decode.atomic import atomic
from decode.calibrate.psf import PSFCalibration
from decode.calibrate.report.evidence import Evidence
from decode.calibrate.report.pictures import Drawn, draw_pictures
from decode.calibrate.report.tables import tables
from decode.calibrate.report.verdict import counted, sentences
from decode.optics.psf import Table

__all__ = ["save_report"]

TITLE = "Calibration of the PSF"
STYLE = """
body {
  font: 16px/1.5 system-ui, sans-serif;
  color: #222;
  max-width: 1000px;
  margin: 2em auto;
  padding: 0 1em
}
h1 { font-size: 1.6em; margin-bottom: 0 }
h2 { font-size: 1.2em; margin-top: 2em }
table { border-collapse: collapse; margin: 0.8em 0; font-size: 0.9em }
caption { font-weight: bold; text-align: left }
figcaption { color: #555; font-size: 0.9em }
td { white-space: nowrap }
td.words { white-space: normal }
th, td {
  border-bottom: 1px solid #ddd;
  padding: 0.25em 0.6em;
  text-align: right;
  vertical-align: top
}
th:first-child, td:first-child, .words { text-align: left }
figure { margin: 0 }
img { width: 100% }
.verdict { background: #f2f6f3; border-left: 4px solid #2a7f3f; padding: 0.6em 1.2em }
.verdict p { margin: 0.5em 0 }
.verdict p:first-child { font-weight: bold }
"""


def save_report(
    calibration: PSFCalibration,
    path: Path | str,
    *,
    pictures: Sequence[Drawn] | None = None,
) -> None:
    """Write the verdict, the pictures and the figures as one HTML page without scripts or links.

    Args:
        calibration: the calibration.
        path: file to write.
        pictures: those of `draw_pictures`; None draws them.

    Raises:
        OSError: if it cannot be written.
    """
    evidence = Evidence(calibration)
    if pictures is None:
        pictures = draw_pictures(calibration)
    body = (
        f"<h1>{TITLE}</h1><p>{escape(_origin(evidence))}</p>",
        f'<div class="verdict">{_paragraphs(sentences(evidence))}</div>',
        *(_figure(drawn) for drawn in pictures),
        "<h2>Figures</h2>",
        *(_table(table) for table in tables(evidence)),
    )
    page = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{TITLE}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(body)}</body></html>"
    )
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _origin(evidence: Evidence) -> str:
    """A sentence on the kind of PSF, the number of beads and their files."""
    kind = type(evidence.psf).__name__
    names = ", ".join(Path(source).name for source in evidence.calibration.file.sources)
    files = f" of {names}" if names else ""
    return f"{kind} from {counted(evidence.n_beads)}{files}"


def _paragraphs(texts: Sequence[str]) -> str:
    return "".join(f"<p>{escape(text)}</p>" for text in texts)


def _figure(drawn: Drawn) -> str:
    title, caption = escape(drawn.title), escape(drawn.caption)
    source = f"data:image/png;base64,{base64.b64encode(drawn.png).decode('ascii')}"
    image = f'<img alt="{title}" src="{source}">'
    return f"<h2>{title}</h2><figure>{image}<figcaption>{caption}</figcaption></figure>"


def _table(table: Table) -> str:
    # of a table without names of columns the row of titles is empty
    below = table.rows[0][: len(table.columns)]
    head = zip(table.columns, below, strict=True)
    titles = "".join(_cell("th", name, like=text) for name, text in head)
    rows = "".join(_row(row) for row in table.rows)
    return f"<table><caption>{escape(table.caption)}</caption><tr>{titles}</tr>{rows}</table>"


def _row(texts: Sequence[str]) -> str:
    return f"<tr>{''.join(_cell('td', text, like=text) for text in texts)}</tr>"


def _cell(tag: str, text: str, *, like: str) -> str:
    """A cell aligned by the text `like`: numbers to the right, words to the left."""
    words = ' class="words"'
    if like[:1] in "-0123456789":  # as an empty text is
        words = ""
    return f"<{tag}{words}>{escape(text)}</{tag}>"
