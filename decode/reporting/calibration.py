"""Calibration: camera and PSF that the molecules were localized with."""

from __future__ import annotations

import math
from typing import final

from decode.emitters import Facts
from decode.io.psfs import PSFFile
from decode.pages import Block, Figures, State, Words
from decode.reporting.subject import Subject
from decode.reporting.topic import Figure, Shown, Topic

__all__ = ["Calibration"]

GOOD_DEVIANCE = 1.1
"""of beads from their PSF, as the verdict of `decode calibrate psf` has it"""
CONFIRMING = frozenset({"camera noise", "PSF width", "goodness of fit"})
"""checks of what is estimated where it is not stated: gain and offset, width of the PSF"""


@final
class Calibration(Topic):
    """Facts of the calibration, and what was estimated in the place of one."""

    name = "calibration"
    title = "Calibration"

    def show(self, subject: Subject) -> Shown:
        facts, psf = subject.facts, subject.psf
        figures: dict[str, Figure] = {
            "pixel_size_nm": facts.pixel_size_nm,
            "psf_sigma_nm": facts.psf_sigma_nm,
            "aperture_correction": facts.aperture_correction,
        }
        rows = [
            (name, _stated(value, unit))
            for name, value, unit in (
                ("side of a pixel", facts.pixel_size_nm, "nm"),
                ("width of the PSF (sigma)", facts.psf_sigma_nm, "nm"),
                ("aperture correction", facts.aperture_correction, ""),
            )
            if value is not None
        ]
        if psf is not None:
            rows += _of_psf(psf)
            figures["psf_deviance"] = psf.deviance if math.isfinite(psf.deviance) else None
        blocks: list[Block] = [Figures(rows=tuple(rows))] if rows else []
        remarks = [psf.z_remark] if psf is not None and psf.z_remark else []
        said = tuple(dict.fromkeys((*facts.estimates, *remarks)))
        if said:
            blocks.append(Words(said))
        state, sentence = _judged(facts, psf)
        return Shown(blocks=tuple(blocks), figures=figures, state=state, sentence=sentence)


def _stated(value: float, unit: str) -> str:
    return f"{value:.4g} {unit}".strip()


def _of_psf(psf: PSFFile) -> list[tuple[str, str]]:
    rows = [
        ("PSF", f"{type(psf.psf).__name__} from {psf.n_beads} beads"),
        ("depths", psf.depth),
        ("direction of z", psf.z_direction),
    ]
    if math.isfinite(psf.deviance):
        rows.append(("deviance of the beads (1: noise alone)", f"{psf.deviance:.3f}"))
    for name, values in psf.figures.items():
        words = name.replace("_", " ")
        rows.append((f"held-out beads: {words} in x, y, z", ", ".join(f"{v:.3g}" for v in values)))
    return rows


def _judged(facts: Facts, psf: PSFFile | None) -> tuple[State, str]:
    if psf is not None and psf.deviance > GOOD_DEVIANCE:
        return "look", f"the beads deviate from their PSF ({psf.deviance:.2f}; 1 is noise alone)"
    if psf is not None and psf.z_remark:
        return "look", "the direction of z was assumed (see below)"
    if facts.estimates and not _confirmed(facts):
        return "look", "some facts are estimates, which no check has confirmed (see below)"
    if facts.estimates:
        return "good", "some facts are estimates, which the checks confirm (see below)"
    if psf is not None:
        return "good", f"PSF from {psf.n_beads} beads, {psf.depth}"
    if facts.pixel_size_nm is not None and facts.version is not None:
        return "good", "camera and PSF were stated"
    return "unknown", "the table states neither camera nor PSF"


def _confirmed(facts: Facts) -> bool:
    """Whether the checks that would find a wrong camera or PSF have passed."""
    passed = {check.name for check in facts.checks if check.passed}
    return passed >= CONFIRMING
