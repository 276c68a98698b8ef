"""Resolution: what both halves of the movie show alike."""

from __future__ import annotations

from typing import final

import numpy as np

from decode.pages import Axis, Block, Chart, Figures, Mark, State, Trace
from decode.quality.resolution import Resolution
from decode.reporting.subject import Subject
from decode.reporting.topic import Figure, Shown, Topic

__all__ = ["ResolutionTopic"]

MOST_POINTS = 300
"""of a curve"""
SHOWN = 2.2
"""frequencies are shown up to this multiple of the finest crossing"""


@final
class ResolutionTopic(Topic):
    """Fourier ring and shell correlation, and decorrelation analysis."""

    name = "resolution"
    title = "Resolution"

    def show(self, subject: Subject) -> Shown | None:
        quality = subject.quality
        if quality is None:
            return None
        ring = quality.resolution
        curves = [curve for curve in (ring, *quality.shells) if curve is not None]
        every = [*curves, *([quality.decorrelation] if quality.decorrelation else [])]
        blocks: list[Block] = [_correlations(curves)] if curves else []
        if every:
            rows = tuple((curve.name, curve.sentence) for curve in every)
            blocks.append(Figures(rows=rows))
        state: State = "good" if ring is not None and ring.value_nm is not None else "unknown"
        figures: dict[str, Figure] = {_key(curve): curve.value_nm for curve in every}
        why = quality.unknown.get("resolution", "")
        return Shown(
            blocks=tuple(blocks),
            figures=figures,
            state=state,
            sentence=why if ring is None else ring.sentence,
        )


def _key(curve: Resolution) -> str:
    return f"{curve.name.lower().replace(' ', '_')}_nm"


def _correlations(curves: list[Resolution]) -> Chart:
    crossings = [1 / curve.value_nm for curve in curves if curve.value_nm]
    end = SHOWN * max(crossings) if crossings else max(c.frequency[-1] for c in curves)
    traces = []
    for curve in curves:
        frequency, correlation = np.array(curve.frequency), np.array(curve.correlation)
        inside = np.flatnonzero(frequency <= end)
        rows = inside[np.unique(np.linspace(0, len(inside) - 1, MOST_POINTS).astype(int))]
        x, y = frequency[rows], correlation[rows]
        traces.append(Trace(name=curve.name, x=tuple(x.tolist()), y=tuple(y.tolist())))
    return Chart(
        title="Correlation of both halves of the movie",
        x=Axis(label="frequency (1/nm)", zero=True),
        y=Axis(label="correlation", zero=True),
        traces=tuple(traces),
        marks=(Mark(label="threshold 1/7", y=curves[0].threshold),),
        x_range=(0.0, end),
    )
