"""Drift: what was subtracted, and what is left."""

from __future__ import annotations

import math
from typing import final

import numpy as np

from decode.pages import Axis, Block, Chart, State, Trace, Words
from decode.postprocess.drift import Drift
from decode.postprocess.drift.trace import STEP
from decode.quality.displacement import Displacement
from decode.reporting.photons import distribution_of
from decode.reporting.subject import Subject
from decode.reporting.topic import Figure, Shown, Topic

__all__ = ["DriftTopic"]

MOST_POINTS = 500
"""of a trace in a plot"""
HARMFUL = 0.5
"""displacement in standard deviations of a molecule that widens a picture by a tenth:
sqrt(1 + 0.5^2) = 1.12"""


@final
class DriftTopic(Topic):
    """The trace that was subtracted, and how parts of the movie lie against each other."""

    name = "drift"
    title = "Drift"

    def show(self, subject: Subject) -> Shown | None:
        if subject.quality is None:
            return None
        left, stage = subject.quality.drift, subject.drift
        step = subject.molecules.metadata.get(STEP)
        corrected = stage is not None or step is not None
        blocks: list[Block] = []
        figures: dict[str, Figure] = {}
        if corrected:
            blocks.append(Words((f"A drift was {step or 'subtracted'}.",)))
        if stage is not None:
            blocks.append(_subtracted(stage))
            figures |= {f"drift_{a}_nm": v for a, v in zip("xyz", stage.amplitude, strict=True)}
        if left is not None:
            blocks.append(_left(left, subject.quality.n_frames))
            figures["drift_left_nm"] = math.sqrt(max(left.variance, 0.0))
        state, sentence = _judged(left, _sigma(subject), corrected=corrected)
        return Shown(blocks=tuple(blocks), figures=figures, state=state, sentence=sentence)


def _sigma(subject: Subject) -> float | None:
    stated = distribution_of(subject, "sigma x")
    return None if stated is None else stated.median


def _subtracted(stage: Drift) -> Chart:
    at = np.unique(np.linspace(0, len(stage) - 1, min(len(stage), MOST_POINTS)).astype(int))
    traces = (
        Trace(
            name=axis,
            x=tuple((at + 1.0).tolist()),
            y=tuple(stage.xyz[at, i].tolist()),
            error=tuple(stage.sigma[at, i].tolist()),
        )
        for i, axis in enumerate("xyz")
        if stage.xyz[:, i].any()
    )
    return Chart(
        title="Drift that was subtracted",
        x=Axis(label="frame"),
        y=Axis(label="position of the stage (nm)"),
        traces=tuple(traces),
        caption="band: one standard deviation",
    )


def _left(left: Displacement, n_frames: int) -> Chart:
    parts = len(left.first)
    middle = tuple(((np.arange(parts) + 0.5) * n_frames / parts + 1).tolist())
    mean, half = (left.first + left.second) / 2, np.abs(left.first - left.second) / 2
    traces = (
        Trace(
            name=axis,
            x=middle,
            y=tuple(mean[:, i].tolist()),
            error=tuple(half[:, i].tolist()),
            style="points",
        )
        for i, axis in enumerate("xy")
    )
    return Chart(
        title="Displacement of parts of the movie in this table",
        x=Axis(label="frame"),
        y=Axis(label="displacement (nm)"),
        traces=tuple(traces),
        caption="bars: half of the difference of two halves of the field",
    )


def _judged(
    left: Displacement | None, sigma: float | None, *, corrected: bool
) -> tuple[State, str]:
    done = "corrected" if corrected else "not corrected"
    if left is None:
        return "unknown", f"{done}; no structure tells what is left"
    rms = math.sqrt(max(left.variance, 0.0))
    seen = f"{done}; parts of the movie lie {rms:.1f} nm off each other (rms an axis)"
    significant = left.variance > 2 * left.error
    if significant and (sigma is None or rms > HARMFUL * sigma):
        return "look", f"{seen}: run `decode drift`" if not corrected else seen
    return "good", seen
