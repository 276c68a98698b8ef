"""Errors in plain words, for the command line and for windows alike."""

from __future__ import annotations

__all__ = ["in_plain_words", "is_out_of_memory"]


def is_out_of_memory(error: Exception) -> bool:
    """Whether there was not enough memory, on whatever device."""
    from torch import OutOfMemoryError

    # on the CPU, PyTorch says so by a plain RuntimeError
    return isinstance(error, MemoryError | OutOfMemoryError) or "can't allocate memory" in str(error)


def in_plain_words(error: Exception) -> str:
    """One sentence without line breaks: what is wrong, and what to do where the error says so."""
    if is_out_of_memory(error):
        return "there is not enough memory; ask for fewer or smaller frames, or for --device cpu if a GPU is full"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
