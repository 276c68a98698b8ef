"""Budget: what the resolution is made of."""

from __future__ import annotations

from typing import final

from decode.pages import Bar, Bars, Figures, Words
from decode.quality.budget import Part
from decode.reporting.subject import Subject
from decode.reporting.topic import Shown, Topic

__all__ = ["BudgetTopic"]


@final
class BudgetTopic(Topic):
    """Parts of the square of the resolution by cause, and what to do next."""

    name = "budget"
    title = "What limits the resolution"

    def show(self, subject: Subject) -> Shown | None:
        if subject.quality is None:
            return None
        budget = subject.quality.budget
        if budget is None:
            why = subject.quality.unknown.get("budget", "")
            return Shown(state="unknown", sentence=why)
        bars = Bars(
            title="Parts of the square of the resolution",
            label="nm²",
            bars=tuple(
                Bar(name=part.cause, value=part.nm2, error=part.error_nm2) for part in budget.parts
            ),
        )
        said = tuple((part.cause, part.sentence) for part in budget.parts)
        advice = f"{budget.verdict[:1].upper()}{budget.verdict[1:]}."
        return Shown(
            blocks=(
                bars,
                Figures(rows=said),
                Words((advice, f"{budget.comparison}.".capitalize())),
            ),
            figures={
                **{f"budget_{part.cause}_nm2": part.nm2 for part in budget.parts},
                "predicted_nm": budget.predicted_nm,
                "limited_by": budget.parts[0].cause,
            },
            state="good" if budget.agrees else "look",
            sentence=_sentence(budget.parts[0], budget.comparison),
        )


def _sentence(largest: Part, comparison: str) -> str:
    return f"largest part: {largest.cause}; {comparison}"
