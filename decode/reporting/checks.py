"""Checks: whether the molecules are right for their movie."""

from __future__ import annotations

from typing import final

from decode.emitters import Check
from decode.pages import Block, Figures, State, Words
from decode.reporting.subject import Subject
from decode.reporting.topic import Shown, Topic

__all__ = ["Checks"]


@final
class Checks(Topic):
    """The checks of the movie that its table states, and its warnings."""

    name = "checks"
    title = "Checks of the movie"

    def show(self, subject: Subject) -> Shown:
        checks, warnings = subject.facts.checks, subject.facts.warnings
        blocks: list[Block] = [Words(warnings)] if warnings else []
        if checks:
            columns = ("check", "value", "limit", "", "what it means")
            blocks.append(Figures(columns=columns, rows=tuple(_row(check) for check in checks)))
        failed = [check.name for check in checks if check.failed]
        return Shown(
            blocks=tuple(blocks),
            figures={"checks_failed": len(failed) if checks else None, "warnings": len(warnings)},
            state=_state(checks, n_warnings=len(warnings)),
            sentence=_sentence(checks, failed),
        )


def _row(check: Check) -> tuple[str, ...]:
    outcome = {True: "passed", False: "failed", None: "unknown"}[check.passed]
    numbers = ("" if n is None else f"{n:.4g}" for n in (check.value, check.limit))
    return (check.name, *numbers, outcome, check.sentence)


def _state(checks: tuple[Check, ...], *, n_warnings: int) -> State:
    if any(check.failed for check in checks):
        return "bad"
    if n_warnings:
        return "look"
    return "good" if any(check.passed for check in checks) else "unknown"


def _sentence(checks: tuple[Check, ...], failed: list[str]) -> str:
    if not checks:
        return "the table states none: `decode localize` makes them"
    made = sum(check.passed is not None for check in checks)
    if failed:
        return f"{len(failed)} of {made} failed: {', '.join(failed)}"
    return f"all {made} passed" if made else "too little was seen to tell"
