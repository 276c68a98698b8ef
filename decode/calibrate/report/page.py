"""The report: one HTML page with the verdict, the pictures and the figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from decode.calibrate.psf import PSFCalibration
from decode.calibrate.report.evidence import Evidence
from decode.calibrate.report.pictures import Drawn, draw_pictures
from decode.calibrate.report.tables import tables
from decode.calibrate.report.verdict import counted, sentences
from decode.pages import Chapter, Figures, Page, Picture, Section, save_page

__all__ = ["save_report"]

TITLE = "Calibration of the PSF"


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
    drawn = (Section(title=each.title, blocks=(_picture(each),)) for each in pictures)
    listed = tuple(Figures(**table._asdict()) for table in tables(evidence))
    chapter = Chapter(
        verdict=sentences(evidence), sections=(*drawn, Section(title="Figures", blocks=listed))
    )
    save_page(Page(title=TITLE, about=_origin(evidence), chapters=(chapter,)), path)


def _origin(evidence: Evidence) -> str:
    """A sentence on the kind of PSF, the number of beads and their files."""
    kind = type(evidence.psf).__name__
    names = ", ".join(Path(source).name for source in evidence.calibration.file.sources)
    files = f" of {names}" if names else ""
    return f"{kind} from {counted(evidence.n_beads)}{files}"


def _picture(drawn: Drawn) -> Picture:
    return Picture(png=drawn.png, title=drawn.title, caption=drawn.caption)
