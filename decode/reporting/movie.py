"""The report of each movie, and of all movies together."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

from decode.pages import Chapter, Page, Picture, Section, State, Summary
from decode.rendering import Rendering, save_picture
from decode.reporting.budget import BudgetTopic
from decode.reporting.calibration import Calibration
from decode.reporting.checks import Checks
from decode.reporting.density import Density
from decode.reporting.drift import DriftTopic
from decode.reporting.photons import Photons, distribution_of
from decode.reporting.precision import PrecisionTopic
from decode.reporting.provenance import Provenance
from decode.reporting.residuals import Residuals
from decode.reporting.resolution import ResolutionTopic
from decode.reporting.subject import Subject
from decode.reporting.topic import Figure, Topic
from decode.version import __version__

__all__ = ["TOPICS", "MovieReport", "Report", "report_on", "unreadable"]

TOPICS: tuple[Topic, ...] = (
    Checks(),
    Calibration(),
    Photons(),
    PrecisionTopic(),
    DriftTopic(),
    ResolutionTopic(),
    BudgetTopic(),
    Density(),
    Residuals(),
    Provenance(),
)
"""in the order of the page"""

PICTURE_PX, SMALLEST_PX = 1000, 300
"""longest side of the figure, of one movie and of many"""
COLUMNS: Mapping[str, str] = {
    "molecules": "localizations",
    "frames": "frames",
    "checks_failed": "failed checks",
    "median_photons": "photons",
    "median_background_photons": "background",
    "median_sigma_x_nm": "sigma x (nm)",
    "median_sigma_z_nm": "sigma z (nm)",
    "nena_over_stated": "NeNA over stated",
    "drift_left_nm": "drift left (nm)",
    "frc_nm": "FRC (nm)",
    "limited_by": "limited by",
    "per_frame": "a frame",
}
"""figures in the table of several movies, and their titles"""
VERDICTS: Mapping[State, str] = {
    "bad": "Not to be trusted as it is",
    "look": "Usable, with a look at",
    "unknown": "No fault is seen, but too little is known",
    "good": "Nothing speaks against these molecules.",
}


@final
@dataclass(frozen=True, kw_only=True)
class MovieReport:
    """What a report says of one movie."""

    name: str
    table: Path
    chapter: Chapter
    figures: Mapping[str, Figure]
    """of all topics, by name"""
    record: Mapping[str, Any]
    """facts and distributions behind the page, as JSON"""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "table": str(self.table),
            "state": self.chapter.state,
            "verdict": list(self.chapter.verdict),
            "lights": [asdict(light) for light in self.chapter.lights],
            "figures": dict(self.figures),
            **self.record,
        }


@final
@dataclass(frozen=True, kw_only=True)
class Report:
    """The reports of one or more movies."""

    movies: tuple[MovieReport, ...]

    def page(self) -> Page:
        """The page; of several movies with a table of all, in which each is a chapter to open."""
        about = f"decode {__version__}"
        if len(self.movies) == 1:
            (movie,) = self.movies
            return Page(
                title=f"Report: {movie.name}",
                about=about,
                chapters=(replace(movie.chapter, title=""),),
            )
        names = [key for key in COLUMNS if any(_told(m.figures.get(key)) for m in self.movies)]
        summary = Summary(
            columns=tuple(COLUMNS[name] for name in names),
            rows=tuple(tuple(_told(m.figures.get(name)) for name in names) for m in self.movies),
        )
        chapters = tuple(movie.chapter for movie in self.movies)
        title = f"Report on {len(self.movies)} movies"
        return Page(title=title, about=about, chapters=chapters, summary=summary)

    def as_dict(self) -> dict[str, Any]:
        """The twin of the page, as plain values for JSON."""
        return {"version": __version__, "movies": [movie.as_dict() for movie in self.movies]}


def report_on(subject: Subject, *, n_movies: int = 1) -> MovieReport:
    """The report of one movie.

    Args:
        subject: the table and its figures.
        n_movies: movies that share the page; of many, figures are smaller.
    """
    every = [(topic, topic.show(subject)) for topic in TOPICS]
    shown = [(topic, told) for topic, told in every if told is not None]
    figures: dict[str, Figure] = {
        "molecules": len(subject.molecules),
        "frames": None if subject.quality is None else subject.quality.n_frames,
    }
    for _, told in shown:
        figures |= told.figures
    sections = [
        Section(name=topic.name, title=topic.title, blocks=told.blocks)
        for topic, told in shown
        if told.blocks
    ]
    lights = tuple(light for topic, told in shown if (light := topic.light(told)) is not None)
    states = {light.name: light.state for light in lights}
    state = _overall(subject, states)
    chapter = Chapter(
        title=subject.name,
        state=state,
        verdict=_verdict(subject, states, state),
        lights=lights,
        sections=(_figure(subject, PICTURE_PX / math.sqrt(n_movies)), *sections),
    )
    quality = subject.quality
    record = {
        "facts": dict(subject.molecules.metadata),
        "quality": None if quality is None else quality.as_dict(),
    }
    return MovieReport(
        name=subject.name, table=subject.path, chapter=chapter, figures=figures, record=record
    )


def unreadable(table: Path, why: str) -> MovieReport:
    """The report of a table that cannot be read."""
    chapter = Chapter(title=table.stem, state="bad", verdict=("It cannot be read.", f"{why}."))
    return MovieReport(name=table.stem, table=table, chapter=chapter, figures={}, record={})


def _figure(subject: Subject, longest_px: float) -> Section:
    """The molecules, as `decode render` draws them."""
    pixel = max(_longest_nm(subject) / max(longest_px, SMALLEST_PX), 1.0)
    rendering = Rendering(pixel_nm=float(f"{pixel:.2g}"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "molecules.png")
        save_picture(subject.molecules, path, rendering)
        png = path.read_bytes()
    caption = "each molecule a Gaussian as wide as its uncertainty"
    picture = Picture(png=png, title=f"Molecules of {subject.name}", caption=caption)
    return Section(title="The molecules", blocks=(picture,))


def _longest_nm(subject: Subject) -> float:
    """The longer side of the field of view, or else of the box around the molecules."""
    if subject.facts.field_nm is not None:
        return max(subject.facts.field_nm)
    places = subject.molecules.xyz[:, :2]
    return float((places.amax(0) - places.amin(0)).max()) if len(places) else 0.0


def _overall(subject: Subject, states: Mapping[str, State]) -> State:
    """The worst light; good only where the checks are, of enough molecules."""
    for state in ("bad", "look"):
        if state in states.values():
            return state
    known = states["checks"] == "good" and subject.quality is not None
    return "good" if known else "unknown"


def _verdict(subject: Subject, states: Mapping[str, State], state: State) -> tuple[str, ...]:
    """The answer in a sentence, its figures, and what to do next."""
    n = len(subject.molecules)
    causes = [name for name, own in states.items() if own == state]
    if subject.quality is None:
        causes = [f"{n} localization{'s' * (n != 1)}"]
    answer = VERDICTS[state]
    if state != "good":
        answer = f"{answer}: {', '.join(causes)}."
    quality = subject.quality
    if quality is None:
        return (answer,)
    said = [f"{quality.n:,} localizations in {quality.n_frames:,} frames"]
    if quality.resolution is not None and quality.resolution.value_nm is not None:
        said.append(f"resolution {quality.resolution.sentence}")
    stated = distribution_of(subject, "sigma x")
    if stated is not None:
        said.append(f"median uncertainty {stated.median:.1f} nm along x")
    budget = quality.budget
    advice = (_sentence(budget.verdict),) if budget is not None and budget.agrees else ()
    return (answer, _sentence("; ".join(said)), *advice)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _told(figure: Figure) -> str:
    if figure is None or isinstance(figure, str):
        return figure or ""
    return f"{figure:,}" if isinstance(figure, int) else f"{figure:.4g}"
