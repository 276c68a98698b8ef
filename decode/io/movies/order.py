"""The order of the files of a movie."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["in_natural_order"]


def in_natural_order(paths: Iterable[str | Path]) -> list[Path]:
    """The paths by their names, part 2 before part 10."""

    def key(path: Path) -> list[tuple[int, int | str]]:
        words = re.split(r"(\d+)", str(path))
        return [(0, int(word)) if word.isdigit() else (1, word) for word in words]

    return sorted(map(Path, paths), key=key)
