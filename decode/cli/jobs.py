"""Movies of a job, with a bar over all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, NoReturn

import typer

from decode.cli.shown import follow, list_files, print_json

if TYPE_CHECKING:
    from decode.progress import Progress
    from decode.verbs.batch import Event, Job

__all__ = [
    "faults_listed",
    "run_batch",
    "share_of",
]


@contextmanager
def faults_listed() -> Iterator[None]:
    """What is wrong with a job, a line each on stderr."""
    from decode.verbs.batch import JobError

    try:
        yield
    except JobError as error:
        for fault in error.faults:
            typer.echo(f"decode: {fault}", err=True)
        raise typer.Exit(2) from None


def share_of(text: str, option: str) -> tuple[int, int]:
    """I and N of a share that is written as I/N."""
    index, _, number = text.partition("/")
    if not (index.isdigit() and number.isdigit() and 1 <= int(index) <= int(number)):
        raise ValueError(f"{option} {text}: write it as I/N, share I of N from 1")
    return int(index), int(number)


def run_batch(
    job: Job,
    *,
    only: tuple[int, int] | None = None,
    workers: int | None = None,
    summary: bool = False,
    strict: bool,
    as_json: bool,
) -> NoReturn:
    """The movies of a job with a bar over all, and the exit code."""
    from decode.progress import Bar
    from decode.verbs.batch import batch as work

    ended = 0
    layout = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining} {postfix}"
    steps = work.steps(job, only=only, workers=workers, summary=summary)
    with faults_listed(), Bar(total=1.0, bar_format=layout) as bar:

        def show(progress: Progress[Event | None]) -> None:
            nonlocal ended
            event = progress.detail
            if event is not None:
                ended += 1
                row = event.row
                told = row.error or f"{row.molecules} molecules in {row.frames} frames"
                earlier = "" if event.new or row.error else ", before"
                if row.error is not None:
                    bar.write(f"decode: {row.movie}: {told}", file=sys.stderr)
                elif not as_json:
                    bar.write(f"{row.movie}: {told}{earlier}", file=sys.stdout)
                bar.set_description_str(f"{ended} of {event.n_movies} movies", refresh=False)
            bar.set_postfix_str(progress.message, refresh=False)
            bar.update((progress.fraction or 0.0) - bar.n)

        done = follow(steps, show)
    rows = done.rows
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        typer.echo(f"{len(rows) - len(done.failed)} of {len(rows)} movies are localized")
        list_files(done.files)
    failing = strict and any(row.checks_failed for row in rows)
    raise typer.Exit(1 if done.failed else 3 if failing else 0)
