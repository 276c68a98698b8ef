"""Worker: a process that localizes one movie after the other; if it dies, one movie is lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias, final

import torch

from decode.commands import running
from decode.errors import in_plain_words
from decode.progress import Progress
from decode.verbs.batch.localization import Log, localized
from decode.verbs.batch.plan import Task
from decode.verbs.batch.receipt import Receipt, write_receipt

__all__ = ["Worker"]

STEP_S = 0.5
"""time between two reports of a worker"""
PATIENCE_S = 10.0
"""time that a worker has to end by itself"""
KILL_FIRST = "500"
"""Linux kills processes of a higher score first where memory runs out: a worker, not the job"""

Message: TypeAlias = Progress[Receipt | None]
"""how far a movie is; at its end with its receipt"""


@final
class Worker:
    """A process that takes a movie at a time.

    Args:
        threads: of PyTorch.
        command: the command that the tables keep.
    """

    def __init__(self, *, threads: int, command: str) -> None:
        # a fresh interpreter: PyTorch's threads and GPUs do not survive a fork
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, threads, command))
        self._process.start()
        theirs.close()  # so that its death ends the pipe
        self.task: Task | None = None
        """the movie that it works on"""

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    @property
    def pid(self) -> int | None:
        """Number of the process."""
        return self._process.pid

    def begin(self, task: Task) -> None:
        """Hand it a movie."""
        self.task = task
        with suppress(OSError):  # it died: what it tells next says so
            self.connection.send(task)

    def told(self) -> Message:
        """Its next message; that of its death is the failure of its movie."""
        assert self.task is not None
        try:
            message: Message = self.connection.recv()
        except (EOFError, OSError):
            self._process.join(PATIENCE_S)
            receipt = self.task.begun.failed(_death(self._process.exitcode))
            _keep(self.task, receipt)
            message = Progress(1.0, detail=receipt)
        if message.detail is not None:
            self.task = None
        return message

    def stop(self) -> None:
        """End it; a movie that it works on is given up, and what is half-written deleted."""
        self.connection.close()
        if self.task is not None:
            self._process.terminate()
        self._process.join(PATIENCE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


def _death(code: int | None) -> str:
    """The end of a process in a sentence."""
    if code is None or code >= 0:
        return f"the process that localized it ended (exit code {code}); its log may say why"
    name = signal.Signals(-code).name
    why = ", as where memory runs out" if name == "SIGKILL" else ""
    return f"the process that localized it was killed ({name}{why}); run the job again"


def _keep(task: Task, receipt: Receipt) -> None:
    """Leave the receipt beside the tables; a disk that is full takes none."""
    with suppress(OSError):
        task.folder.mkdir(parents=True, exist_ok=True)
        if task.shard is None:
            write_receipt(receipt, task.receipt)
        if receipt.row.error is not None:
            with task.log.open("a", encoding="utf-8") as log:
                print(receipt.row.error, file=log)


def _serve(connection: Connection, threads: int, command: str) -> None:
    """Take movies until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from the terminal: the job says what to do
    signal.signal(signal.SIGTERM, _end)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(KILL_FIRST)
    torch.set_num_threads(threads)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError), running(command):
        while True:
            task: Task = connection.recv()
            receipt = _made(task, connection)
            _keep(task, receipt)
            connection.send(Progress(1.0, detail=receipt))


def _end(number: int, frame: object) -> None:
    sys.exit(128 + number)


def _made(task: Task, connection: Connection) -> Receipt:
    """Localize a movie, whatever comes of it."""
    start = told = time.monotonic()

    def tell(fraction: float, message: str) -> None:
        nonlocal told
        if time.monotonic() >= told + STEP_S:
            told = time.monotonic()
            connection.send(Progress(fraction, message))

    try:
        with _logged(task) as log:
            try:
                log.say(f"{task.source.path} to {task.folder}")
                receipt = replace(task.begun, row=localized(task, log, tell))
            except Exception:
                traceback.print_exc()
                raise
    except (BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:
        receipt = task.begun.failed(in_plain_words(error))
    seconds = round(time.monotonic() - start, 1)
    return replace(receipt, row=replace(receipt.row, seconds=seconds))


@contextmanager
def _logged(task: Task) -> Iterator[Log]:
    """The movie's log, which also takes what is written on standard error, by libraries too."""
    task.folder.mkdir(parents=True, exist_ok=True)
    with task.log.open("w", encoding="utf-8", buffering=1) as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield Log(file)
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
