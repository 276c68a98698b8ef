"""Quality: all figures of a table of molecules, those that it does not tell with the reason."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, final

from decode.quality.audit import Audit
from decode.quality.budget import Budget
from decode.quality.displacement import Displacement
from decode.quality.distributions import Course, DensityMap, Distribution, Locking, Neighbours
from decode.quality.precision import Precision
from decode.quality.profile import Profile
from decode.quality.resolution import Resolution

__all__ = ["Quality"]


@final
@dataclass(frozen=True, kw_only=True)
class Quality:
    """Figures of a table; None where the table does not tell one (`unknown` says why)."""

    table: str
    n: int
    """localizations"""
    n_blinks: int
    n_frames: int
    resolution: Resolution | None
    """Fourier ring correlation"""
    shells: tuple[Resolution, ...]
    """Fourier shell correlation in 3D, lateral and axial"""
    decorrelation: Resolution | None
    precision: Precision | None
    audit: Audit | None
    """scatter of repeated localizations over the uncertainties they state"""
    distributions: tuple[Distribution, ...]
    course: Course
    density: DensityMap
    locking: tuple[Locking, ...]
    neighbours: Neighbours | None
    drift: Displacement | None
    """of blocks of frames against each other"""
    profiles: tuple[Profile, ...]
    budget: Budget | None
    unknown: Mapping[str, str] = field(default_factory=dict)
    """why a figure is None, by its name"""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN and infinities are None."""
        values = asdict(self)
        values["course"]["remaining"] = self.course.remaining
        if self.budget is not None:
            values["budget"]["agrees"] = self.budget.agrees
            values["budget"]["unexplained_nm2"] = self.budget.unexplained_nm2
        if self.precision is not None:
            values["precision"]["stated_nm"] = self.precision.stated_nm
        if self.audit is not None:
            values["audit"]["sentence"] = self.audit.sentence
        if self.drift is not None:
            values["drift"] |= {
                "path": self.drift.path,
                "variance_nm2": self.drift.variance,
                "error_nm2": self.drift.error,
            }
        plain: dict[str, Any] = _plain(values)
        return plain

    def lines(self) -> Iterator[tuple[str, str]]:
        """What is measured and the figure in words, for a short table."""
        yield "molecules", f"{self.n} in {self.n_frames} frames, {self.n_blinks} blinks"
        yield "resolution", self._said(self.resolution, "resolution")
        for shell in self.shells:
            yield shell.name, shell.sentence
        if self.decorrelation is not None:
            yield "decorrelation", self.decorrelation.sentence
        yield from self._precision()
        yield from self._audit()
        for each in self.distributions:
            yield each.name, _middle(each)
        if self.course.per_frame:
            first, last = self.course.per_frame[0], self.course.per_frame[-1]
            yield "a frame", f"{first:.3g} localizations at the start, {last:.3g} at the end"
        if self.neighbours is not None:
            near = self.neighbours
            yield (
                "nearest blink",
                f"{near.median_nm:.0f} nm, Clark-Evans {near.clark_evans:.2f} (1: spread evenly)",
            )
        for locking in self.locking:
            yield f"pixel locking {locking.axis}", _locked(locking)
        for i, profile in enumerate(self.profiles, start=1):
            yield f"line {i}", str(profile)
        yield from self._budget()

    def _precision(self) -> Iterator[tuple[str, str]]:
        if self.precision is None:
            yield "precision", f"unknown: {self.unknown.get('precision', '')}"
            return
        found = self.precision
        yield "precision", f"{found.sigma_nm:.1f} +- {found.error_nm:.1f} nm (NeNA)"
        if math.isfinite(found.ratio):
            z = f", {found.ratio_z:.2f} +- {found.ratio_z_error:.2f} along z"
            z = z if math.isfinite(found.ratio_z) else ""
            yield "over stated", f"{found.ratio:.2f} +- {found.ratio_error:.2f}{z}"
        if found.law is not None:
            law = found.law
            yield (
                "photon law",
                f"{law.scale_nm:.1f} nm at 1000 photons, falls as photons to the power "
                f"{law.exponent:.2f} +- {law.exponent_error:.2f}",
            )

    def _audit(self) -> Iterator[tuple[str, str]]:
        if self.audit is None:
            yield "uncertainties", f"unknown: {self.unknown.get('audit', '')}"
            return
        yield "uncertainties", self.audit.sentence
        for part in self.audit.by_photons:
            yield f"at {part.photons:.0f} photons", part.figures

    def _budget(self) -> Iterator[tuple[str, str]]:
        if self.budget is None:
            yield "budget", f"unknown: {self.unknown.get('budget', '')}"
            return
        budget = self.budget
        for part in budget.parts:
            size = "unknown" if part.nm2 is None else f"{max(part.nm2, 0.0):.0f} nm^2"
            error = "" if part.error_nm2 is None else f" +- {part.error_nm2:.0f}"
            yield f"budget: {part.cause}", f"{size}{error}; {part.sentence}"
        yield "predicted", budget.comparison
        yield "what to do", budget.verdict

    def _said(self, found: Resolution | None, name: str) -> str:
        return f"unknown: {self.unknown.get(name, '')}" if found is None else found.sentence


def _middle(found: Distribution) -> str:
    unit = f" {found.unit}" if found.unit else ""
    return (
        f"median {found.median:.4g} +- {found.median_error:.3g}{unit}, nine of ten from "
        f"{found.low:.3g} to {found.high:.3g}"
    )


def _locked(found: Locking) -> str:
    if not found.locked:
        return f"none seen (p = {found.chance:.2g}, {found.error_nm:.1f} nm would be)"
    return f"{found.bias_nm:.1f} +- {found.error_nm:.1f} nm rms (p = {found.chance:.1g})"


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
