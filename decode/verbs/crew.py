"""Crews: processes that find the molecules of a movie's pieces, on this machine or on others."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, final

import torch

from decode.errors import in_plain_words
from decode.progress import Progress, Steps
from decode.verbs.order import Work, mark_of, shared
from decode.verbs.pieces import Pieces

__all__ = ["Cluster", "Crew", "Ended", "Processes", "done_by", "find_together"]

HEARTBEAT_S = 0.5
"""time between two looks at how far the work is"""
PER_WORKER = 3
"""tasks for each worker, so that the last ones end together"""
MOST_DEATHS = 3
"""deaths of its worker after which a piece is given up"""
PATIENCE_S = 10.0
"""time in which a process ends by itself"""
CONNECTING_S = 60
"""time in which the scheduler answers, and the first worker is there"""
SEEN_S = 90.0
"""time in which a shared disk shows what another machine has stored"""
ASKING_S = 5
"""time between two questions how many workers there are"""
KILL_FIRST = "500"
"""Linux kills processes of a higher score first where memory runs out: a worker, not the caller"""


class Ended(NamedTuple):
    """A task that ended."""

    frames: range
    deaths: int = 0
    """of workers that had it"""
    error: str = ""
    """why it failed, in a sentence"""


class Crew(ABC):
    """Workers that take tasks: the frames of successive pieces.  A context manager."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of workers."""

    @property
    @abstractmethod
    def n_busy(self) -> int:
        """Number of tasks that have not ended."""

    @abstractmethod
    def begin(self, frames: range) -> None:
        """Hand out a task; there must be fewer than workers."""

    @abstractmethod
    def ended(self) -> list[Ended]:
        """Tasks that ended since the last call; waits a moment for one."""

    @abstractmethod
    def close(self) -> None:
        """End all work."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def find_together(pieces: Pieces, crew: Crew) -> Steps[None]:
    """Have a crew find the molecules of all pieces that are missing.

    A task whose worker dies is handed out again, without what was stored.  The piece at which a
    worker died twice is tried again when all others are done, alone; if that ends as badly, it is
    given up.

    Raises:
        RuntimeError: at the end, if pieces were given up.
        OSError: at the first task that fails for another reason.
    """
    missing = [piece for piece in pieces.all if pieces.missing([piece])]
    waiting, doubtful = deque(_tasks(missing, PER_WORKER * crew.size)), deque[range]()
    deaths, given_up, alone = Counter[int](), list[range](), False
    unseen: deque[tuple[float, Ended]] = deque()
    while waiting or doubtful or unseen or crew.n_busy:
        while waiting and crew.n_busy < crew.size:
            crew.begin(waiting.popleft())
        if doubtful and not (crew.n_busy or unseen):
            crew.begin(doubtful.popleft())
            alone = True
        for task in crew.ended():
            if task.error:
                raise OSError(task.error)
            unseen.append((time.monotonic() + (0 if task.deaths else SEEN_S), task))
        for _ in range(len(unseen)):
            until, task = unseen.popleft()
            left = [piece for piece in pieces.within(task.frames) if pieces.missing([piece])]
            if left and time.monotonic() < until:
                unseen.append((until, task))
            elif left:
                suspect, *innocent = left
                deaths[suspect.start] += max(1, task.deaths)
                waiting += _tasks(innocent, 1)
                if alone and deaths[suspect.start] >= MOST_DEATHS:
                    given_up.append(suspect)
                elif deaths[suspect.start] >= MOST_DEATHS - 1:
                    doubtful.append(suspect)
                else:
                    waiting.appendleft(suspect)
        alone &= bool(crew.n_busy or unseen)
        yield Progress(pieces.frames_done / pieces.all[-1].stop, "")
    if given_up:
        frames = ", ".join(f"{piece.start} to {piece.stop - 1}" for piece in given_up)
        raise RuntimeError(
            f"the process that localized the frames {frames} (counted from the first chosen one) "
            f"ended {MOST_DEATHS} times, as where memory runs out; all others are kept, and the "
            "same call tries these again"
        )


def _tasks(pieces: Sequence[range], number: int) -> list[range]:
    """Successive pieces together, in about so many tasks."""
    n_each = max(1, -(-len(pieces) // max(1, number)))
    tasks: list[list[range]] = []
    for piece in pieces:
        if tasks and tasks[-1][-1].stop == piece.start and len(tasks[-1]) < n_each:
            tasks[-1].append(piece)
        else:
            tasks.append([piece])
    return [range(task[0].start, task[-1].stop) for task in tasks]


@final
class Processes(Crew):
    """Processes of this machine, which share its threads, and its GPUs: one each, in turn.

    Args:
        folder: of the pieces.
        number: of processes.
        n_gpus: of this machine; 0: none is used.
    """

    def __init__(self, folder: Path, number: int, *, n_gpus: int = 0) -> None:
        self._folder, self._n_gpus = folder, n_gpus
        self._threads = max(1, torch.get_num_threads() // number)
        self._workers: list[_Worker | None] = [None] * number

    @property
    def size(self) -> int:
        return len(self._workers)

    @property
    def n_busy(self) -> int:
        return sum(worker is not None and worker.task is not None for worker in self._workers)

    def begin(self, frames: range) -> None:
        for place, worker in enumerate(self._workers):
            if worker is None:
                gpu = str(place % self._n_gpus) if self._n_gpus else None
                worker = self._workers[place] = _Worker(self._folder, self._threads, gpu)
            if worker.task is None:
                worker.begin(frames)
                return
        raise AssertionError("no worker is idle")

    def ended(self) -> list[Ended]:
        busy = {
            worker.connection: place
            for place, worker in enumerate(self._workers)
            if worker is not None and worker.task is not None
        }
        ended = []
        for connection in wait(list(busy), timeout=HEARTBEAT_S):
            place = busy[connection]  # type: ignore[index]
            worker = self._workers[place]
            assert worker is not None
            told = worker.told()
            ended.append(told)
            if told.deaths:
                worker.stop()
                self._workers[place] = None
        return ended

    @property
    def pids(self) -> list[int | None]:
        """Numbers of the processes."""
        return [worker.pid for worker in self._workers if worker is not None]

    def close(self) -> None:
        for worker in self._workers:
            if worker is not None:
                worker.stop()
        self._workers = [None] * len(self._workers)


@final
class _Worker:
    """A process that takes a task at a time."""

    def __init__(self, folder: Path, threads: int, gpu: str | None) -> None:
        # a fresh interpreter: PyTorch's threads and GPUs do not survive a fork
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, folder, threads, gpu))
        self._process.start()
        theirs.close()  # so that its death ends the pipe
        self.task: range | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def begin(self, frames: range) -> None:
        self.task = frames
        with suppress(OSError):  # it died: what it tells next says so
            self.connection.send(frames)

    def told(self) -> Ended:
        assert self.task is not None
        try:
            ended: Ended = self.connection.recv()
        except (EOFError, OSError):
            ended = Ended(self.task, deaths=1)
        self.task = None
        return ended

    def stop(self) -> None:
        self.connection.close()
        if self.task is not None:
            self._process.terminate()
        self._process.join(PATIENCE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


def _serve(connection: Connection, folder: Path, threads: int, gpu: str | None) -> None:
    """Take tasks until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from the terminal: the caller says what to do
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(KILL_FIRST)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    torch.set_num_threads(threads)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            frames: range = connection.recv()
            connection.send(Ended(frames, error=done_by(str(folder), frames.start, frames.stop)))


_OPEN: dict[str, tuple[ExitStack, Pieces, Work]] = {}
"""the work of this process, by its mark: a model is loaded once"""


def done_by(folder: str, start: int, stop: int) -> str:
    """Find what is missing of these frames, in this process; why it cannot be, or ""."""
    try:
        for _ in _found(folder, range(start, stop)):
            pass
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        return in_plain_words(error)
    return ""


def _found(folder: str, frames: range) -> Iterator[object]:
    mark = f"{folder} {mark_of(Path(folder))}"
    if mark not in _OPEN:
        for stack, *_ in _OPEN.values():
            stack.close()
        _OPEN.clear()
        stack = ExitStack()
        _OPEN[mark] = (stack, *stack.enter_context(shared(Path(folder))))
    _, pieces, work = _OPEN[mark]
    for run in pieces.missing(pieces.within(frames)):
        yield from work.find(pieces, run)


def done_by_dask(folder: str, start: int, stop: int) -> str:
    """The same in a worker of Dask, with as many threads as it has."""
    from distributed import get_worker

    torch.set_num_threads(max(1, get_worker().state.nthreads))
    return done_by(folder, start, stop)


@final
class Cluster(Crew):
    """The workers of a Dask scheduler, a task each at a time, so that a death tells of one task.

    Args:
        folder: of the pieces; all workers see it and the movie under these names.
        address: of the scheduler, such as `tcp://10.0.0.1:8786`.

    Raises:
        ValueError: if Dask is not installed.
        OSError: if there is no scheduler, or it has no workers.
    """

    def __init__(self, folder: Path, address: str) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise ValueError(
                "--scheduler needs Dask: pip install 'decode-smlm[distributed]'"
            ) from error
        self._folder = str(folder.resolve())
        try:
            self._client = Client(address, timeout=CONNECTING_S, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise OSError(f"there is no Dask scheduler at {address}: {error}") from error
        self._tasks: dict[range, Any] = {}
        self._places: dict[range, str] = {}
        self._workers, self._asked = list[str](), -math.inf
        try:
            self._client.wait_for_workers(1, timeout=CONNECTING_S)
        except TimeoutError as error:
            self._client.close()
            raise OSError(f"the Dask scheduler at {address} has no workers: start some") from error

    @property
    def size(self) -> int:
        if time.monotonic() > self._asked + ASKING_S:
            self._asked = time.monotonic()
            self._workers = list(self._client.scheduler_info(n_workers=-1)["workers"])
        return max(1, len(self._workers))

    @property
    def n_busy(self) -> int:
        return len(self._tasks)

    def begin(self, frames: range) -> None:
        taken = set(self._places.values())
        free = next((worker for worker in self._workers if worker not in taken), None)
        if free is not None:
            self._places[frames] = free
        self._tasks[frames] = self._client.submit(
            done_by_dask,
            *(self._folder, frames.start, frames.stop),
            workers=free,
            allow_other_workers=free is not None,  # if that one dies
            pure=False,
        )

    def ended(self) -> list[Ended]:
        until = time.monotonic() + HEARTBEAT_S
        while not any(task.done() for task in self._tasks.values()) and time.monotonic() < until:
            time.sleep(HEARTBEAT_S / 50)
        done = [frames for frames, task in self._tasks.items() if task.done()]
        for frames in done:
            self._places.pop(frames, None)
        return [self._end_of(frames, self._tasks.pop(frames)) for frames in done]

    def _end_of(self, frames: range, task: Any) -> Ended:
        from distributed import KilledWorker

        if task.status == "finished":
            return Ended(frames, error=task.result())
        error = task.exception() if task.status == "error" else None
        if isinstance(error, KilledWorker):  # the scheduler has tried it several times
            return Ended(frames, deaths=MOST_DEATHS)
        if error is not None:
            return Ended(frames, error=in_plain_words(error))
        return Ended(frames, deaths=1)  # lost with its worker

    def close(self) -> None:
        self._client.cancel(list(self._tasks.values()))
        self._client.close()
