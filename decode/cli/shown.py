"""Progress, warnings, files and JSON as commands print them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

if TYPE_CHECKING:
    from decode.emitters import Check
    from decode.progress import DetailedSteps, Progress, Steps

__all__ = [
    "LAYOUT",
    "follow",
    "is_asked",
    "list_files",
    "print_json",
    "strictly",
    "warned",
]

D = TypeVar("D")
R = TypeVar("R")


LAYOUT = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed}"
"""of a bar of work of which a fraction is done"""


def strictly(checks: Iterable[Check], *, strict: bool) -> int:
    """The exit code: 3 where a check failed, and that is not to pass."""
    return 3 if strict and any(check.failed for check in checks) else 0


def is_asked() -> bool:
    """Whether somebody sits at a terminal who can answer."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def follow(steps: DetailedSteps[D, R], show: Callable[[Progress[D]], None]) -> R:
    """Work to its end, its progress shown."""
    from decode.progress import followed

    return followed(steps, show)


def warned(steps: Steps[R], source: str) -> R:
    """Work to its end; its warnings go to stderr at once, for it may fail."""

    def show(progress: Progress[object]) -> None:
        for warning in progress.warnings:
            typer.echo(f"{source}: warning: {warning}", err=True)

    return follow(steps, show)


def list_files(files: Iterable[Path]) -> None:
    """Files that were written, a line each."""
    for file in files:
        typer.echo(f"  {file}")


def print_json(values: Any) -> None:
    """JSON has no NaN: what is not known is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(v) for name, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    typer.echo(json.dumps(plain(values), indent=1))
