"""Density: how many molecules are seen, when and where."""

from __future__ import annotations

from typing import final

import numpy as np

from decode.pages import Axis, Chart, FieldMap, Figures, Trace
from decode.quality.distributions import Course, DensityMap
from decode.reporting.subject import Subject
from decode.reporting.topic import Figure, Shown, Topic

__all__ = ["Density"]


@final
class Density(Topic):
    """Localizations over time and field, and nearest neighbours."""

    name = "density"
    title = "Density"

    def show(self, subject: Subject) -> Shown | None:
        quality = subject.quality
        if quality is None:
            return None
        rows = [
            ("localizations", f"{quality.n:,} in {quality.n_frames:,} frames"),
            ("blinks", f"{quality.n_blinks:,}"),
        ]
        figures: dict[str, Figure] = {
            "blinks": quality.n_blinks,
            "per_frame": quality.n / quality.n_frames,
            "per_um2": quality.density.mean,
        }
        if quality.neighbours is not None:
            near = quality.neighbours
            figures["nearest_blink_nm"] = near.median_nm
            evenness = f"{near.clark_evans:.2f} ± {near.error:.2f} (1: spread evenly)"
            rows += [
                ("nearest blink, median", f"{near.median_nm:.1f} nm"),
                ("Clark and Evans's ratio", evenness),
            ]
        return Shown(
            blocks=(
                _over_time(quality.course),
                _over_field(quality.density),
                Figures(rows=tuple(rows)),
            ),
            figures=figures,
        )


def _over_time(course: Course) -> Chart:
    return Chart(
        title="Localizations a frame",
        x=Axis(label="frame"),
        y=Axis(label="localizations a frame", zero=True),
        traces=(
            Trace(
                name="localizations a frame",
                x=tuple(frame + 1 for frame in course.frame),
                y=course.per_frame,
                error=course.error,
            ),
        ),
        caption="band: one standard deviation, by the counts",
    )


def _over_field(density: DensityMap) -> FieldMap:
    return FieldMap(
        title="Localizations over the field",
        values=np.array(density.per_um2),
        unit="per µm²",
        pixel_nm=density.pixel_nm,
        origin_nm=density.origin_nm,
    )
