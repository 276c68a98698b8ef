"""Ranges: which numbers a setting may hold, stated by its type and checked in one place."""

from __future__ import annotations

import math
import operator
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le

__all__ = [
    "Count",
    "Fraction",
    "FractionRange",
    "NonNegative",
    "NonNegativeRange",
    "Positive",
    "PositiveRange",
    "Range",
    "check_settings",
]

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
Count = Annotated[int, Ge(1)]

Range = tuple[float, float]
"""Lowest and highest value; every movie draws its own between them."""
PositiveRange = tuple[Positive, Positive]
NonNegativeRange = tuple[NonNegative, NonNegative]
FractionRange = tuple[Fraction, Fraction]

LIMITS = {
    "gt": ("above", operator.gt),
    "ge": ("at least", operator.ge),
    "lt": ("below", operator.lt),
    "le": ("at most", operator.le),
}
"""by the attribute in which a limit of `annotated_types` keeps its number: its words, and the
comparison that holds within it"""


def check_settings(settings: object) -> None:
    """Check the fields of a dataclass against their types; dataclasses with ranges call it when
    made.

    Numbers must be finite and within the limits of their types, pairs of one type ordered, the
    lowest first.

    Raises:
        ValueError: one sentence that names the field, its value and what it must be.
    """
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        value = getattr(settings, name)
        if problem := _problem(value, hint):
            raise ValueError(
                f"{name} is {list(value) if isinstance(value, tuple) else value}, {problem}"
            )


def _problem(value: Any, hint: Any) -> str:
    """What a value must be to fit its type, or "" where it does."""
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        return "" if value in parts else f"must be {' or '.join(map(str, parts))}"
    numbers, kind = (value, parts[0]) if isinstance(value, tuple) else ((value,), hint)
    if not all(isinstance(number, int | float) for number in numbers):
        return ""
    if not all(map(math.isfinite, numbers)):
        return "must be finite"
    for limit in getattr(kind, "__metadata__", ()):
        for attribute, (words, within) in LIMITS.items():
            bound = getattr(limit, attribute, None)
            if bound is not None and not all(within(number, bound) for number in numbers):
                return f"must be {words} {bound:g}"
    if len(parts) == 2 and parts[0] == parts[1] and not numbers[0] <= numbers[1]:
        return "the lowest value must come first"
    return ""
