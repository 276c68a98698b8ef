"""Provenance: where the table comes from, and the commands that made it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from decode.commands import COMMANDS
from decode.pages import Block, Figures, Lines
from decode.reporting.subject import Subject
from decode.reporting.topic import Shown, Topic

__all__ = ["Provenance"]

ELSEWHERE = ("checks", "estimates", "warnings", COMMANDS)
"""metadata that stand in other places of the report"""


@final
class Provenance(Topic):
    """All that the table's metadata state, its files, and the commands."""

    name = "provenance"
    title = "Provenance"

    def show(self, subject: Subject) -> Shown:
        metadata = subject.molecules.metadata
        stated = tuple(
            (name, _said(value)) for name, value in metadata.items() if name not in ELSEWHERE
        )
        files = tuple((path.name, _size(path.stat().st_size)) for path in subject.files)
        blocks: list[Block] = [Figures(caption="What the table states", rows=stated)]
        if not stated:
            blocks = []
        blocks.append(Figures(caption=f"Files in {subject.path.parent.absolute()}", rows=files))
        commands = str(metadata.get(COMMANDS, "")).splitlines()
        if commands:
            blocks.append(Lines(tuple(commands)))
        return Shown(blocks=tuple(blocks), figures={"version": subject.facts.version})


def _said(value: object) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{str(name).replace('_', ' ')}: {_said(v)}" for name, v in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.2f} MB" if n_bytes >= 1e5 else f"{n_bytes / 1e3:.1f} kB"
