"""Columns that the user names, where their labels do not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from decode.errors import brief
from decode.io.tables.columns import LENGTHS, OTHERS, PHOTONS, unit_of

__all__ = ["chosen", "parsed"]

BOTH = "sigma_xy"
"""name for one column that holds the uncertainty of x and of y"""

QUANTITIES = (*LENGTHS, BOTH, *PHOTONS, *OTHERS)
"""what a column may be"""


def parsed(texts: Iterable[str]) -> dict[str, str]:
    """The columns of a command line: `x=LABEL[UNIT],y=LABEL[UNIT]`, in one text or in several.

    >>> parsed(["x=X, stage[um],y=Y[um]", "frame=T"])
    {'x': 'X, stage[um]', 'y': 'Y[um]', 'frame': 'T'}

    Raises:
        ValueError: if a part is no such pair.
    """
    columns: dict[str, str] = {}
    for part in (part for text in texts for part in re.split(r",(?=\s*\w+\s*=)", text)):
        name, equals, label = part.partition("=")
        if not equals or not label.strip():
            raise ValueError(f"--columns {part}: write it as x=LABEL[nm],y=LABEL[nm],frame=LABEL")
        columns[name.strip()] = label.strip()
    return columns


def chosen(
    path: Path, columns: Mapping[str, str], labels: Sequence[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Labels of the quantities that were named, and units of the labels for which one was stated.

    A text is a label as it stands in the file, or one with a unit in brackets behind it.

    >>> chosen(Path("a.csv"), {"x": "X[um]", "sigma_xy": "err [nm]"}, ["X", "err [nm]"])
    ({'x': 'X', 'sigma_x': 'err [nm]', 'sigma_y': 'err [nm]'}, {'X': 'um'})

    Raises:
        ValueError: if there is no such quantity, or no such label.
    """
    unknown = next((name for name in columns if name not in QUANTITIES), None)
    if unknown is not None:
        raise ValueError(
            f"there is no quantity {unknown!r} to name a column of; choose from "
            f"{', '.join(QUANTITIES)}"
        )
    named: dict[str, str] = {}
    units: dict[str, str] = {}
    for name, text in columns.items():
        bare = re.fullmatch(r"(.*?)\s*\[([^\]]*)\]", text)
        label = text if text in labels or bare is None else bare[1]
        if label not in labels:
            raise ValueError(
                f"{path} has no column {brief(label)}; it has {', '.join(map(brief, labels[:20]))}"
            )
        if label != text and bare is not None:
            units[label] = unit_of(text)[1]
        named |= dict.fromkeys(("sigma_x", "sigma_y") if name == BOTH else (name,), label)
    return named, units
