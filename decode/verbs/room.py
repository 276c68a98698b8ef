"""Room: whether a step that holds a whole table fits into the memory that there is."""

from __future__ import annotations

from decode.devices import free_memory
from decode.emitters import EmitterSet
from decode.errors import NoRoom

__all__ = ["require_room"]


def require_room(step: str, n: int, row_bytes: int, *, held: EmitterSet | None = None) -> None:
    """Refuse a step before it fills the memory.

    Args:
        step: what is to be done, as the beginning of a sentence.
        n: rows of the table.
        row_bytes: most memory that it takes for each, the table included.
        held: the table, where it is in memory already.

    Raises:
        NoRoom: if there is less memory than that.
    """
    free = free_memory()
    if free is None:
        return
    if held is not None:
        free += sum(column.nbytes for column in held.columns().values())
    needed = n * row_bytes
    if needed > free:
        raise NoRoom(
            f"{step} {n} rows takes {needed / 1e9:.3g} GB of memory, and {free / 1e9:.3g} GB are "
            "free; use a machine with more, or localize a region (--roi) or fewer frames (--frames)"
        )
