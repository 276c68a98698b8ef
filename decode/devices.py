"""Where to compute."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = [
    "choose_device",
    "constant",
    "free_memory",
    "keep_freed_memory",
    "memory_of",
    "on_host",
]


def choose_device(name: str) -> torch.device:
    """The device of a name: `auto`, `cpu` or `cuda`.

    Raises:
        ValueError: if a GPU is asked for and there is none, or the name is unknown.
    """
    kind = name.split(":")[0]
    if kind not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device {name!r} is unknown; choose auto, cpu or cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "PyTorch sees no GPU here; choose the device cpu, or install a CUDA build of torch"
        )
    if kind == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def memory_of(device: torch.device) -> int | None:
    """Bytes of memory of a GPU; None of a CPU, which shares it with all else."""
    if device.type == "cpu":
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)


def free_memory() -> int | None:
    """Bytes of memory that are free for programs: those of the machine, or of the control group in
    which clusters and containers hold this one; None where the system does not say."""
    free = list(_left_by_groups())
    with suppress(OSError):
        stated = Path("/proc/meminfo").read_text(encoding="utf-8")
        free += [1024 * kb for kb in _numbers(r"^MemAvailable:\s+(\d+)", stated)]
    return min(free, default=None)


def _left_by_groups(root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """What the control groups of this process (version 2) leave it, the innermost first."""
    with suppress(OSError, ValueError, StopIteration):
        named = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        own = next(line.removeprefix("0::/") for line in named if line.startswith("0::"))
        for group in (root / own, *(root / own).parents):
            if root not in (group, *group.parents):
                return
            with suppress(OSError, ValueError):  # a group without a limit says "max"
                most = int((group / "memory.max").read_text())
                used = int((group / "memory.current").read_text())
                cached = _numbers(r"^inactive_file (\d+)", (group / "memory.stat").read_text())
                yield most - used + sum(cached)


def _numbers(pattern: str, text: str) -> list[int]:
    """Whole numbers of the lines that look so."""
    return [int(number) for number in re.findall(pattern, text, re.MULTILINE)]


Numbers: TypeAlias = Sequence[float] | Sequence["Numbers"]


def constant(values: Numbers, like: Tensor) -> Tensor:
    """Numbers as a tensor of the same type and device as another one.

    Unlike `Tensor.new_tensor` it does not wait for what a GPU is computing.

    >>> constant([1, 2], torch.zeros(1))
    tensor([1., 2.])
    """
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)


def on_host(rng: torch.Generator) -> torch.Generator:
    """A random generator on the host, for draws that decide what a program does next.

    Reading a number drawn on a GPU would wait for all its queued work.

    Args:
        rng: generator on any device; one on a GPU advances by a draw.

    Returns:
        `rng` where it is on the host, else a generator whose seed follows from the state of `rng`,
        which the host knows.
    """
    if rng.device.type == "cpu":
        return rng
    seed = blake2b(rng.get_state().numpy().tobytes(), digest_size=7).digest()
    torch.rand(1, generator=rng, device=rng.device)  # so that the next seed is another
    return torch.Generator().manual_seed(int.from_bytes(seed))


@cache
def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next tensor.

    By default every tensor above some megabytes is returned to the system and its pages are zeroed
    again when the next one is made, which takes a tenth of the time of a training step.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc; musl has none
        m_trim_threshold, m_mmap_threshold, never = -1, -3, 2**30
        libc.mallopt(m_mmap_threshold, never)
        libc.mallopt(m_trim_threshold, never)
