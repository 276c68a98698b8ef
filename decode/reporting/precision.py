"""Precision: stated uncertainties, and the scatter that is seen."""

from __future__ import annotations

import math
from typing import final

import numpy as np

from decode.pages import Axis, Block, Chart, Figures, Mark, State, Trace, Words
from decode.quality.audit import Audit
from decode.quality.distributions import Distribution
from decode.quality.precision import PhotonLaw, Precision
from decode.reporting.photons import distribution_of
from decode.reporting.subject import Subject
from decode.reporting.topic import Figure, Shown, Topic

__all__ = ["PrecisionTopic"]

HONEST = 0.1
"""share by which seen and stated precision may differ, beyond two standard errors"""


@final
class PrecisionTopic(Topic):
    """Distributions of the uncertainties, and NeNA with its law of photons."""

    name = "precision"
    title = "Precision"

    def show(self, subject: Subject) -> Shown | None:
        if subject.quality is None:
            return None
        sigmas = {axis: distribution_of(subject, f"sigma {axis}") for axis in "xyz"}
        stated = {axis: each for axis, each in sigmas.items() if each is not None}
        seen = subject.quality.precision
        blocks: list[Block] = [_uncertainties(stated)] if stated else []
        figures: dict[str, Figure] = {
            f"median_sigma_{axis}_nm": each.median for axis, each in stated.items()
        }
        if seen is not None:
            blocks += [*([_law(seen, seen.law)] if seen.law else []), Words((_said(seen),))]
            figures |= {"nena_nm": seen.sigma_nm, "nena_over_stated": _finite(seen.ratio)}
        audit = subject.quality.audit
        if audit is None:
            said = subject.quality.unknown.get("audit", "")
            blocks.append(Words((f"Whether uncertainties are honest is unknown: {said}.",)))
        else:
            blocks += _audited(audit)
            for axis, ratio in zip("xyz", audit.ratio, strict=True):
                figures[f"scatter_over_stated_{axis}"] = _finite(ratio)
        why = subject.quality.unknown.get("precision", "")
        if subject.molecules.polished is not None:
            why = "frames of a molecule were fitted jointly: their scatter tells nothing"
        state, sentence = _judged(seen, why)
        if audit is not None:
            state, sentence = _audit_state(audit), audit.sentence
        return Shown(blocks=tuple(blocks), figures=figures, state=state, sentence=sentence)


def _uncertainties(stated: dict[str, Distribution]) -> Chart:
    marks = (
        Mark(label=f"median {axis} {each.median:.4g} nm", x=each.median)
        for axis, each in stated.items()
    )
    return Chart(
        title="Stated uncertainty (standard deviation)",
        x=Axis(label="sigma (nm)", zero=True),
        y=Axis(label="number", zero=True),
        traces=tuple(
            Trace(name=axis, x=each.edges, y=each.counts, style="steps")
            for axis, each in stated.items()
        ),
        marks=tuple(marks),
    )


def _audited(audit: Audit) -> list[Block]:
    parts = audit.by_photons or (audit,)
    ratios, errors = audit.columns
    photons = tuple(part.photons for part in parts)
    known = [i for i in range(3) if math.isfinite(audit.ratio[i])]
    traces = (
        Trace(
            name="xyz"[i],
            x=photons,
            y=tuple(row[i] for row in ratios),
            error=tuple(row[i] for row in errors),
            style="points",
        )
        for i in known
    )
    rows = [
        (f"{part.photons:.0f}", f"{part.n_pairs:.0f}", *(_cell(part, i) for i in known))
        for part in parts
    ]
    rows.append(("all", f"{audit.n_pairs:.0f}", *(_cell(audit, i) for i in known)))
    sentence = audit.sentence
    return [
        Chart(
            title="Scatter of repeated localizations over their stated uncertainty",
            x=Axis(label="photons"),
            y=Axis(label="scatter over stated", zero=True),
            traces=tuple(traces),
            marks=(Mark(label="honest", y=1.0),),
        ),
        Figures(
            columns=("photons", "pairs", *("xyz"[i] for i in known)),
            rows=tuple(rows),
            caption="Scatter over stated uncertainty: 1 where it is honest, 2 where the stated one "
            "is half of the true one",
        ),
        Words(
            (
                f"{sentence[0].upper()}{sentence[1:]}.",
                "Errors that both localizations share, as of a wrong PSF, are not seen.",
            )
        ),
    ]


def _cell(audit: Audit, i: int) -> str:
    return f"{audit.ratio[i]:.2f} ± {audit.error[i]:.2f}"


def _audit_state(audit: Audit) -> State:
    return "look" if audit.too_small or audit.too_large else "good"


def _law(seen: Precision, law: PhotonLaw) -> Chart:
    photons = np.geomspace(min(law.photons), max(law.photons), 40)
    fit = law.scale_nm * (photons / 1000) ** -law.exponent
    stated = seen.stated_nm
    marks = (Mark(label=f"stated, rms {stated:.4g} nm", y=stated),) if stated > 0 else ()
    return Chart(
        title="Precision by photons (NeNA)",
        x=Axis(label="photons", log=True),
        y=Axis(label="precision (nm)", log=True),
        traces=(
            Trace(
                name="measured", x=law.photons, y=law.sigma_nm, error=law.error_nm, style="points"
            ),
            Trace(
                name=f"photons to the power -{law.exponent:.2f} ± {law.exponent_error:.2f}",
                x=tuple(photons.tolist()),
                y=tuple(fit.tolist()),
            ),
        ),
        marks=marks,
    )


def _said(seen: Precision) -> str:
    return (
        f"Molecules that are seen in successive frames scatter by {seen.sigma_nm:.1f} ± "
        f"{seen.error_nm:.1f} nm along x and y (NeNA, {seen.n_pairs:,.0f} pairs)."
    )


def _judged(seen: Precision | None, why: str) -> tuple[State, str]:
    if seen is None:
        return "unknown", why
    said = f"{seen.sigma_nm:.1f} nm seen (NeNA)"
    if not math.isfinite(seen.ratio):
        return "unknown", f"{said}; the table states no uncertainties"
    compared = f"{said}, {seen.ratio:.2f} ± {seen.ratio_error:.2f} times the stated"
    tolerance = HONEST + 2 * seen.ratio_error
    if seen.ratio < 1 - tolerance:
        # a network that looks at neighbouring frames errs alike in them, and so does a joint fit
        return "unknown", f"{compared}: frames that were localized together scatter less"
    return "good" if seen.ratio <= 1 + tolerance else "look", compared


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
