"""Residuals: what the model of the images leaves unexplained."""

from __future__ import annotations

from typing import final

from decode.pages import Block, Figures
from decode.quality.distributions import Locking
from decode.reporting.photons import distribution_of, histogram
from decode.reporting.subject import Subject
from decode.reporting.topic import Figure, Shown, Topic

__all__ = ["Residuals"]


@final
class Residuals(Topic):
    """Goodness of fit, probabilities, and a bias that repeats with the pixels."""

    name = "residuals"
    title = "Residuals"

    def show(self, subject: Subject) -> Shown | None:
        locking = () if subject.quality is None else subject.quality.locking
        goodness = distribution_of(subject, "goodness")
        probability = distribution_of(subject, "probability")
        blocks: list[Block] = []
        figures: dict[str, Figure] = {}
        if goodness is not None:
            label = "deviance per degree of freedom"
            blocks.append(histogram("Goodness of fit (1: noise alone)", goodness, label=label))
            figures["median_goodness"] = goodness.median
        if probability is not None:
            blocks.append(histogram("Probability of a molecule", probability))
        if locking:
            rows = tuple(
                (f"bias that repeats with the pixels, {e.axis}", _said(e)) for e in locking
            )
            blocks.append(Figures(rows=rows))
            figures |= {f"pixel_locking_{each.axis}_nm": each.bias_nm for each in locking}
        if not blocks:
            return None
        locked = [each for each in locking if each.locked]
        return Shown(
            blocks=tuple(blocks),
            figures=figures,
            state=("look" if locked else "good") if locking else None,
            sentence="; ".join(f"{e.axis} is drawn to the pixels by {_said(e)}" for e in locked)
            or "places do not depend on the pixels",
        )


def _said(found: Locking) -> str:
    if not found.locked:
        return f"none seen (p = {found.chance:.2g}; {found.error_nm:.1f} nm would be)"
    return f"{found.bias_nm:.1f} ± {found.error_nm:.1f} nm rms"
