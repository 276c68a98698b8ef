"""One training on several processes, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, distributed

__all__ = ["Processes", "own_device", "processes"]


class Processes(NamedTuple):
    """The processes that share a training, and which of them this one is."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and reports."""
        return self.rank == 0

    def share_of(self, movies: int) -> int:
        """This process's number of a step's movies.

        Raises:
            ValueError: if the processes cannot share them evenly.
        """
        if movies % self.size:
            raise ValueError(
                f"training.movies is {movies}, which {self.size} processes cannot share; "
                "make it a multiple"
            )
        return movies // self.size

    def agreed(self, value: float, device: torch.device) -> float:
        """The value of the first process, on all processes; each waits for it."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.broadcast(shared, 0)
        return float(shared)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the processes; each waits for it."""
        if self.size > 1:
            distributed.all_reduce(value)
            value /= self.size
        return value


def own_device(device: torch.device) -> torch.device:
    """The GPU of this process, of several."""
    local = os.environ.get("LOCAL_RANK")
    return (
        torch.device("cuda", int(local)) if local is not None and device.type == "cuda" else device
    )


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Join the processes that `torchrun` has started; one alone where it has not.

    Args:
        device: device of this process: GPUs communicate by NCCL, CPUs by gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield Processes()
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
