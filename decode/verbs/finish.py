"""finish: from the table of a movie to the figure: drift, links, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, final

from decode.emitters import EmitterSet
from decode.errors import NoRoom, Undetermined
from decode.io.tables import write_table, written_formats
from decode.outputs import (
    drift_files,
    linked_file,
    report_files,
    table_inputs,
    undrifted_file,
)
from decode.progress import DetailedSteps, Steps, Stepwise, part
from decode.rendering import save_picture
from decode.verbs.drift import ROW_BYTES as DRIFT_BYTES
from decode.verbs.drift import drift
from decode.verbs.link import ROW_BYTES as LINK_BYTES
from decode.verbs.link import link
from decode.verbs.report import ROW_BYTES as REPORT_BYTES
from decode.verbs.report import report
from decode.verbs.room import require_room

__all__ = ["LONG_FRAMES", "Finish", "Finished", "finish"]

D = TypeVar("D")
R = TypeVar("R")

LONG_FRAMES = 2000
"""shortest movie that is finished unless told otherwise: a minute or so, in which stages drift"""


@final
@dataclass(frozen=True, kw_only=True)
class Finish:
    """The steps that follow a localization; None: where the movie is long enough."""

    drift: bool | None = None
    link: bool | None = None
    report: bool | None = None

    @property
    def possible(self) -> bool:
        """Whether any of them may be done."""
        return any(step is not False for step in (self.drift, self.link, self.report))

    def of_movie(self, n_frames: int) -> Finish:
        """The steps for a movie of that length, each yes or no."""
        long = n_frames >= LONG_FRAMES

        def chosen(step: bool | None) -> bool:
            return long if step is None else step

        return Finish(drift=chosen(self.drift), link=chosen(self.link), report=chosen(self.report))


@final
@dataclass(frozen=True, kw_only=True)
class Finished:
    """What was made of a table."""

    files: tuple[Path, ...] = ()
    remarks: tuple[str, ...] = ()
    """a sentence on each step that the data do not allow"""


@Stepwise
def finish(
    files: Sequence[Path | str],
    *,
    n_frames: int,
    n_molecules: int = 0,
    steps: Finish | None = None,
) -> Steps[Finished]:
    """Subtract the drift of a movie's molecules, link their blinks, and report on them.

    The table of the localization stays as it is.  Beside `movie.csv` are `movie.undrifted.csv`
    (with its trace, plot and picture), `movie.linked.csv`, a row a molecule, and the report
    `movie.html`; those of an earlier time are replaced.  What the data do not tell, and what does
    not fit into memory, is left out, with a remark.  `finish.steps` does the same step by step.

    Args:
        files: what the localization wrote; its tables and its picture have twins here.
        n_frames: length of the movie.
        n_molecules: rows of the table, so that what does not fit into memory is told before it is
            read; each step holds the whole table.
        steps: which are done; None: drift and report, where the movie is long enough
            (`LONG_FRAMES`).

    Raises:
        ValueError, OSError: in one sentence, as the steps do.

    Example:
        >>> import tempfile
        >>> from decode.io.tables import read_table
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = Path(folder, "movie.csv")
        ...     write_table(read_table("sample_data/blinking_2d_truth.csv"), table)
        ...     done = finish([table], n_frames=200, steps=Finish(link=True))
        >>> [file.name for file in done.files]
        ['movie.linked.csv']
    """
    chosen = (steps or Finish()).of_movie(n_frames)
    tables = [Path(file) for file in files if Path(file).suffix in written_formats()]
    pictures = [Path(file) for file in files if Path(file).suffix == ".png"]
    if not chosen.possible:
        return Finished()
    if not tables:
        return Finished(remarks=("drift, links and report need a table: choose a format of one",))
    source, made, remarks = tables[-1], list[Path](), list[str]()  # CSV, the first one, rounds
    if chosen.drift:
        undrifted = [undrifted_file(path) for path in (*tables, *pictures)]
        _remove(undrifted)
        work = drift.steps(source, undrifted_file(source), n_frames=n_frames)
        drifting = _allowed(work, "the drift of", n_molecules, DRIFT_BYTES)
        told = yield from part(drifting, 0.0, 0.4)
        if isinstance(told, Undetermined | NoRoom):
            remarks.append(f"no drift was subtracted: {told}")
        else:
            source = undrifted_file(source)
            _write(told[0], undrifted)
            made += [*_whole(undrifted), *drift_files(source)]
    if chosen.link:
        linked = [linked_file(path) for path in tables]
        _remove(linked)
        joining = link.steps(source, linked_file(tables[-1]))
        linking = _allowed(joining, "linking", n_molecules, LINK_BYTES)
        blinks = yield from part(linking, 0.4, 0.6)
        if isinstance(blinks, Undetermined | NoRoom):
            remarks.append(f"no blinks were linked: {blinks}")
        else:
            _write(blinks[0], linked)
            made += _whole(linked)
    if chosen.report:
        page, twin = report_files(tables[-1].with_suffix(".html"))
        _remove([page, twin])
        telling = _allowed(report.steps(source, page), "a report on", n_molecules, REPORT_BYTES)
        found = yield from part(telling, 0.6, 1.0)
        if isinstance(found, Undetermined | NoRoom):
            remarks.append(f"no report was written: {found}")
        else:
            made += (page, twin)
    return Finished(files=tuple(made), remarks=tuple(remarks))


def _allowed(
    steps: DetailedSteps[D, R], step: str, n: int, row_bytes: int
) -> DetailedSteps[D, R | Undetermined | NoRoom]:
    """The same work, which returns the reason where the data or the memory do not allow it."""
    try:
        require_room(step, n, row_bytes)
        return (yield from steps)
    except (Undetermined, NoRoom) as reason:
        return reason


def _remove(files: Sequence[Path]) -> None:
    """Remove files of an earlier localization, which would pass for those of this one."""
    for path in files:
        path.unlink(missing_ok=True)


def _whole(files: Sequence[Path]) -> list[Path]:
    """Tables with their sidecars, and pictures."""
    return [file for path in files for file in table_inputs(path)]


def _write(molecules: EmitterSet, files: Sequence[Path]) -> None:
    """Write molecules as tables and as a picture."""
    for path in files:
        if path.suffix == ".png":
            save_picture(molecules, path)
        else:
            write_table(molecules, path)
