"""Execution: the movies of a job in processes of their own, and the summary over all."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Self, final

import torch

from decode.commands import COMMANDS, with_command
from decode.progress import DetailedSteps, Progress, Stepwise
from decode.verbs.batch.job import Job, load_job
from decode.verbs.batch.plan import Task, plan
from decode.verbs.batch.receipt import Receipt, Row
from decode.verbs.batch.summary import summary_files, write_summary
from decode.verbs.batch.worker import Worker

__all__ = ["Batch", "Event", "batch"]


@final
@dataclass(frozen=True, kw_only=True)
class Event:
    """A movie that is done, or given up."""

    row: Row
    new: bool
    """whether it was localized now, and not at an earlier time"""
    n_movies: int
    """of the job"""


@final
@dataclass(frozen=True, kw_only=True)
class Batch:
    """What became of the movies of a job."""

    rows: tuple[Row, ...]
    """in the order of the movies"""
    files: tuple[Path, ...] = ()
    """the summary"""

    @property
    def failed(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.error is not None)


@Stepwise
def batch(
    job: Job | Path | str,
    *,
    only: tuple[int, int] | None = None,
    workers: int | None = None,
    summary: bool = False,
) -> DetailedSteps[Event | None, Batch]:
    """Localize the movies of a job; what fails costs one movie.

    All that is known beforehand is checked before the first movie begins.  Movies run in processes
    of their own, which take one after the other: one that dies is replaced.  Beside the tables of a
    movie stand a log and a receipt, by which a later job passes over it while movie, model, PSF,
    camera, options and version of decode are the same.  At the end, `summary.csv` and
    `summary.html` have a row a movie.  `batch.steps` does the same step by step.

    Args:
        job: the job, or its file.
        only: (i, n): only the ith of n shares of the movies, or of the tasks that share each of
            them (`Job.shards`), counted from 1; no summary, and no tables of movies that are shared
            until the job is done as a whole.
        workers: movies at a time; None: as the job says.
        summary: localize nothing, and sum up what earlier jobs have done.

    Returns:
        A row for each movie, those included that were done before.

    Raises:
        JobError: with all that is wrong, before the first movie begins.
        ValueError, OSError: if the job file cannot be read, or the summary not be written.
    """
    known = load_job(job) if isinstance(job, Path | str) else job
    yield Progress(0.0, "looking at the movies", detail=None)
    planned = plan(known)
    if only is not None:
        planned = planned.share(*only, shards=known.shards)
    n = len(planned.tasks)
    receipts: dict[str, Receipt] = {}
    waiting: list[Task] = []
    for task in planned.tasks:
        done = task.done
        if done is None and summary:
            done = task.made or task.begun.failed(task.fault or "it is not localized yet")
        elif done is None and task.fault:
            done = task.begun.failed(task.fault)
            with suppress(OSError):  # a disk that is full takes no log
                task.folder.mkdir(parents=True, exist_ok=True)
                task.log.write_text(f"{task.fault}\n", encoding="utf-8")
        if done is None:
            waiting.append(task)
        else:
            receipts[task.name] = done
            yield Progress(0.0, "", detail=Event(row=done.row, new=False, n_movies=n))
    number = min(len(waiting), workers or known.workers)
    yield from _run(waiting, number, receipts, n_movies=n)
    rows = tuple(receipts[task.name].row for task in planned.tasks)
    files = () if only is not None else summary_files(planned.out)
    if files:
        write_summary(rows, planned.out)
    yield Progress(1.0, "", detail=None)
    return Batch(rows=rows, files=files)


def _run(
    tasks: Iterable[Task], number: int, receipts: dict[str, Receipt], *, n_movies: int
) -> DetailedSteps[Event | None, None]:
    """Localize movies, so many at a time, and put their receipts by their names."""
    waiting = deque(tasks)
    total = sum(task.work for task in waiting)
    shares: dict[str, float] = {}
    with _Pool(number) as pool:
        while waiting or pool.busy:
            for worker in pool.idle[: len(waiting)]:
                worker.begin(waiting.popleft())
            for worker in pool.ready():
                task = worker.task
                assert task is not None
                told = worker.told()
                shares[task.name] = (told.fraction or 0.0) * task.work / total
                event = None
                if told.detail is not None:
                    receipts[task.name] = told.detail
                    event = Event(row=told.detail.row, new=True, n_movies=n_movies)
                yield Progress(sum(shares.values()), f"{task.name}: {told.message}", detail=event)


@final
class _Pool:
    """Workers, those that died replaced; a context manager that ends them.

    Args:
        number: how many, which share the threads of PyTorch.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._workers: list[Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.stop()

    @property
    def busy(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.task is not None]

    @property
    def idle(self) -> list[Worker]:
        """Living workers without a movie."""
        for worker in [each for each in self._workers if each.task is None and not each.alive]:
            self._workers.remove(worker)
            worker.stop()
        while len(self._workers) < self._number:
            self._workers.append(self._new())
        return [worker for worker in self._workers if worker.task is None]

    def _new(self) -> Worker:
        command = str(with_command({}).get(COMMANDS, ""))
        return Worker(threads=max(1, torch.get_num_threads() // self._number), command=command)

    def ready(self) -> list[Worker]:
        """Workers that have something to tell; waits for one."""
        heard = wait([worker.connection for worker in self.busy])
        return [worker for worker in self.busy if worker.connection in heard]
