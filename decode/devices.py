"""Where to compute."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

import torch

__all__ = ["choose_device", "keep_freed_memory"]


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` to a device.

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
