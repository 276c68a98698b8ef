"""Quality: how good the molecules are, what limits them, and a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from decode.emitters import EmitterSet
from decode.postprocess.filter import Range
from decode.progress import Steps
from decode_napari.session import Found, Session
from decode_napari.steps.inspect import table_of
from decode_napari.steps.step import Step, call, command, keep_call, keep_command

if TYPE_CHECKING:
    from decode.quality.summary import Quality

__all__ = ["Assessed", "QualityStep"]

FIGURES = ("molecules", "resolution", "precision", "over stated", "predicted", "budget")
"""that are shown, of `Quality.lines`; a report has all"""
VERDICT = "what to do"

Molecules = tuple[object, dict[str, Range]]
"""identity of a table, and the ranges of its filter"""


@final
@dataclass(frozen=True, kw_only=True)
class Assessed:
    """Figures of the molecules that passed."""

    quality: Quality
    of: Molecules

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """What is measured, and the figure with its error in words."""
        return tuple(line for line in self.quality.lines() if line[0] in (*FIGURES, VERDICT))


@final
class QualityStep(Step):
    title = "Quality"
    purpose = "Measure resolution and precision, and what limits them; write a report"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.assessed: Assessed | None = None
        self.page: Path | None = None
        """report that was written last"""

    def missing(self) -> str:
        return self.session.why_not_whole()

    def done(self) -> str:
        if self.assessed is None or self.is_stale():
            return ""
        resolution = self.assessed.quality.resolution
        if resolution is None or resolution.value_nm is None:
            return "measured"
        return f"{resolution.value_nm:.0f} nm (FRC)"

    def is_stale(self) -> bool:
        """Whether the molecules that pass differ from those that were measured."""
        return self.assessed is not None and self.assessed.of != self._at_hand()

    def assess(self) -> Steps[Assessed]:
        """Figures of the molecules that pass the filter.

        Raises:
            Undetermined: if there are fewer than ten.
        """
        return _assess(self._found().filter.passing(), self._at_hand())

    def accept(self, assessed: Assessed) -> None:
        self.assessed = assessed

    def report(self, page: Path) -> Steps[Path]:
        """Write the report on the molecules that pass, and its twin as JSON.

        Raises:
            ValueError, OSError: as `decode.report` does.
        """
        found = self._found()
        return _report(found.filter.passing(), table_of(found), page)

    def reported(self, page: Path) -> None:
        self.page = page

    def forget(self) -> None:
        self.assessed = self.page = None

    def as_command(self) -> str:
        found = self.session.found
        if found is None:
            return ""
        table, lines = table_of(found), []
        if found.filter.ranges:
            line, table = keep_command(table, found.filter.ranges)
            lines = [line]
        lines.append(command("decode", "quality", table))
        if self.page is not None:
            lines.append(command("decode", "report", table, o=self.page))
        return " && ".join(lines)

    def as_python(self) -> str:
        found = self.session.found
        if found is None:
            return ""
        table = table_of(found)
        imports, lines = keep_call(table, found.filter.ranges)
        imports = [*imports, "from decode import assess"]
        lines = [
            *lines,
            "for name, figure in assess(molecules).lines():",
            "    print(name, figure)",
        ]
        if self.page is not None:
            imports += [
                "from pathlib import Path",
                "from decode import report",
                "from decode.reporting import Subject",
            ]
            subject = call("Subject", f"path=Path({str(table)!r})", "molecules=molecules")
            lines.append(call("report", subject, repr(str(self.page))))
        return "\n".join([*imports, "", *lines])

    def _found(self) -> Found:
        found = self.session.found
        if found is None or self.missing():
            raise ValueError(self.missing())
        return found

    def _at_hand(self) -> Molecules:
        found = self.session.found
        return (None, {}) if found is None else (found.identity, dict(found.filter.ranges))


def _assess(molecules: EmitterSet, of: Molecules) -> Steps[Assessed]:
    from decode.verbs.quality import assess

    return Assessed(quality=(yield from assess.steps(molecules)), of=of)


def _report(molecules: EmitterSet, table: Path, page: Path) -> Steps[Path]:
    from decode.reporting import Subject
    from decode.verbs.report import report

    yield from report.steps(Subject(path=table, molecules=molecules), page)
    return page
