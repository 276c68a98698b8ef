"""Photons: how bright the molecules are, and how long they are on."""

from __future__ import annotations

from typing import final

from decode.pages import Axis, Chart, Mark, Trace, rounded
from decode.quality.distributions import Distribution
from decode.reporting.subject import Subject
from decode.reporting.topic import Shown, Topic

__all__ = ["Photons", "distribution_of", "histogram"]

TITLES = {
    "photons": "Photons of a localization",
    "background": "Background",
    "on-time": "On-time",
}


@final
class Photons(Topic):
    """Distributions of photons, background and on-times."""

    name = "photons"
    title = "Photons"

    def show(self, subject: Subject) -> Shown | None:
        found = {name: distribution_of(subject, name) for name in TITLES}
        known = {name: each for name, each in found.items() if each is not None}
        if not known:
            return None
        charts = (histogram(TITLES[name], each) for name, each in known.items())
        units = {"photons": "photons", "background": "background_photons", "on-time": "on_frames"}
        return Shown(
            blocks=tuple(charts),
            figures={f"median_{units[name]}": each.median for name, each in known.items()},
        )


def distribution_of(subject: Subject, name: str) -> Distribution | None:
    """The distribution of that name, or None."""
    every = () if subject.quality is None else subject.quality.distributions
    return next((each for each in every if each.name == name), None)


def histogram(title: str, found: Distribution, *, label: str = "") -> Chart:
    """A distribution with its median."""
    unit = f" ({found.unit})" if found.unit and found.unit != found.name else ""
    error = f" ± {rounded(found.median_error, 2)}" if found.median_error else ""
    median = Mark(label=f"median {rounded(found.median)}{error}", x=found.median)
    name = label or found.name
    middle = f"{rounded(found.low)} to {rounded(found.high)}"
    return Chart(
        title=title,
        x=Axis(label=f"{name}{unit}"),
        y=Axis(label="number", zero=True),
        traces=(Trace(name=name, x=found.edges, y=found.counts, style="steps"),),
        marks=(median,),
        caption=f"{found.n:,} values, nine of ten from {middle}",
    )
