"""Topic: one side of a localization, as a section of its report."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias, final

from decode.pages import Block, Light, State
from decode.reporting.subject import Subject

__all__ = ["Figure", "Shown", "Topic"]

Figure: TypeAlias = float | str | None


@final
@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a topic shows of a movie."""

    blocks: tuple[Block, ...] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """its figures by name, with their unit at the end of the name"""
    state: State | None = None
    """of its light; None: it has none"""
    sentence: str = ""
    """what the light says"""


class Topic(ABC):
    """One side of a localization."""

    name: ClassVar[str]
    title: ClassVar[str]

    @abstractmethod
    def show(self, subject: Subject) -> Shown | None:
        """What is known of it; None where the data lack it."""

    def light(self, shown: Shown) -> Light | None:
        """The light of what it shows."""
        if shown.state is None:
            return None
        section = self.name if shown.blocks else ""
        return Light(name=self.name, state=shown.state, sentence=shown.sentence, section=section)
