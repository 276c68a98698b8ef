"""Long work in steps: each step reports progress, and the caller stops by asking for no further
one."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import update_wrapper
from itertools import accumulate, pairwise
from typing import Any, Generic, ParamSpec, TypeAlias, TypeVar, final

from tqdm import tqdm

__all__ = [
    "Bar",
    "DetailedSteps",
    "Progress",
    "Steps",
    "Stepwise",
    "followed",
    "part",
    "relayed",
    "shares",
]

P = ParamSpec("P")
R = TypeVar("R")
D = TypeVar("D")
E = TypeVar("E")
D_co = TypeVar("D_co", covariant=True)


LOG_INTERVAL_S = 60.0
"""time between two lines in a log file"""


@final
class Bar(tqdm):  # type: ignore[type-arg]
    """A progress bar on stderr; where that is a file, a line a minute."""

    def __init__(self, **options: Any) -> None:
        self._log = None if sys.stderr.isatty() else sys.stderr
        self._told = time.monotonic()
        if self._log is not None:
            # what a bar writes to draw over itself does not belong in a file
            options |= {"file": io.StringIO(), "mininterval": 0, "miniters": 0}
        super().__init__(**options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self._log is None:
            super().display(msg, pos)
        elif time.monotonic() >= self._told + LOG_INTERVAL_S:
            self._told = time.monotonic()
            print(msg or str(self), file=self._log, flush=True)


@final
@dataclass(frozen=True)
class Progress(Generic[D_co]):
    """How far the work is; the same type for all long verbs."""

    fraction: float | None
    """share of the work that is done, 0 to 1; None where it is not known"""
    message: str = ""
    """what is being done, for the user"""
    warnings: tuple[str, ...] = ()
    """a sentence on each thing that does not fit together; each is reported once"""
    detail: D_co = None  # type: ignore[assignment]
    """further results of the step, in a type of the verb's own"""


DetailedSteps: TypeAlias = Generator[Progress[D], None, R]
"""work whose progress carries details of type D"""
Steps: TypeAlias = Generator[Progress[object], None, R]
"""work whose progress carries no details"""


@final
class Stepwise(Generic[P, D, R]):
    """A function written as a generator of its progress.

    Called, it runs to its end; `steps` runs it step by step.
    """

    def __init__(self, steps: Callable[P, DetailedSteps[D, R]]) -> None:
        update_wrapper(self, steps)
        self.steps = steps

    def __call__(self, *arguments: P.args, **options: P.kwargs) -> R:
        return followed(self.steps(*arguments, **options))


def followed(
    steps: DetailedSteps[D, R], show: Callable[[Progress[D]], object] = lambda _: None
) -> R:
    """Work to its end, its progress shown."""
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            result: R = end.value
            return result
        show(progress)


def relayed(
    steps: DetailedSteps[D, R], report: Callable[[Progress[D]], Progress[E]]
) -> DetailedSteps[E, R]:
    """The same work, its progress translated."""
    try:
        while True:
            try:
                progress = next(steps)
            except StopIteration as end:
                result: R = end.value
                return result
            yield report(progress)
    finally:
        steps.close()


def part(
    steps: DetailedSteps[D, R], start: float, stop: float, message: str = ""
) -> DetailedSteps[D, R]:
    """The steps of a part of some work.

    Args:
        steps: the steps of the part.
        start, stop: fraction of the whole that is done before and after it.
        message: description of the part, in place of its own messages.
    """

    def of_whole(own: Progress[D]) -> Progress[D]:
        fraction = start + (stop - start) * (own.fraction or 0.0)
        return replace(own, fraction=fraction, message=message or own.message)

    return relayed(steps, of_whole)


def shares(*work: float, start: float = 0.0) -> list[tuple[float, float]]:
    """Start and stop of parts, for `part`, in proportion to their work.

    >>> shares(1, 3)
    [(0.0, 0.25), (0.25, 1.0)]

    Args:
        work: work of each part, in any unit.
        start: fraction that is done before all of them.
    """
    total = sum(work)
    done = accumulate(work, initial=0.0)
    return list(pairwise(start + (1 - start) * before / total for before in done))
