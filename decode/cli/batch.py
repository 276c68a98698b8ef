"""decode batch: all movies of a job file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from decode.cli.application import app, examples
from decode.cli.jobs import faults_listed, run_batch, share_of
from decode.cli.options import Json, Strict
from decode.cli.shown import print_json

if TYPE_CHECKING:
    pass

__all__ = [
    "batch",
]


@app.command(
    epilog=examples(
        "decode batch job.yaml --dry-run",
        "decode batch job.yaml",
        "decode batch job.yaml --slurm > submit.sh",
    ),
)
def batch(
    job: Annotated[
        Path, typer.Argument(metavar="JOB", help="Job file (YAML), as docs/batch.md describes it.")
    ],
    *,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Movies that are localized at a time; without: as JOB says."),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="Only share I of N of the movies, counted from 1; no summary."
        ),
    ] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="Localize nothing: sum up what is done.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all, and list what would be done.")
    ] = False,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Print a script that sends each movie to SLURM.")
    ] = False,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """All movies of a job file to tables, and a summary over all (CSV and HTML).

    All is checked before the first movie begins.  What fails costs one movie; done movies are
    passed over, changed ones are done again.  Exit codes: 0 all are done, 1 some failed, 2 the job
    is invalid, 130 interrupted.
    """
    from decode.verbs.batch import load_job, plan, slurm_script

    read = load_job(job)
    if slurm:
        with faults_listed():
            planned = plan(read)
        typer.echo(
            slurm_script(job, planned.out, len(planned.tasks), read.slurm, shards=read.shards),
            nl=False,
        )
        return
    if dry_run:
        with faults_listed():
            tasks = plan(read).tasks
        if as_json:
            print_json([task.as_dict() for task in tasks])
        else:
            for task in tasks:
                typer.echo(f"{task.name}: {task.intent}")
        raise typer.Exit(1 if any(task.fault for task in tasks) else 0)
    share = None if only is None else share_of(only, "--only")
    run_batch(read, only=share, workers=workers, summary=summary, strict=strict, as_json=as_json)
