"""Stopping a verb during its work."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from threading import Event
from typing import Any, TypeVar, final

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["Stop", "Stopped"]

Y = TypeVar("Y")
R = TypeVar("R")


class Stopped(BaseException):
    """The user stopped the verb; no error, or a reader of files would report one of its own."""


@final
class Stop(TorchFunctionMode):
    """Stops a verb at its next call of PyTorch, as work between its yields may last many
    seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._asked = Event()

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    def ask(self) -> None:
        """End the verb soon; may be called from any thread."""
        self._asked.set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Any = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # but who leaves `no_grad` on the way out must be able to: the thread is used again
        if self._asked.is_set() and func is not torch._C._set_grad_enabled:
            raise Stopped
        return func(*args, **(kwargs or {}))

    def watch(self, verb: Generator[Y, None, R]) -> Generator[Y, None, R]:
        """The same verb, ended by `Stopped` once `ask` was called.

        PyTorch's mode belongs to one thread, and is left before every yield, as the caller may be
        on another.
        """
        try:
            while True:
                with self:
                    if self.asked:
                        raise Stopped
                    try:
                        report = next(verb)
                    except StopIteration as end:
                        result: R = end.value
                        return result
                yield report
        finally:
            verb.close()
