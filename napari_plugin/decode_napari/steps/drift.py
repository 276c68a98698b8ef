"""Drift: how the stage moved, and the molecules as if it had stood still."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, final

from decode.emitters import EmitterSet
from decode.progress import Progress, Steps
from decode_napari.molecules import Filter
from decode_napari.session import Found, Session
from decode_napari.steps.inspect import table_of
from decode_napari.steps.step import Step, call, command

if TYPE_CHECKING:
    from decode.postprocess.drift import Drift

__all__ = ["DriftSettings", "DriftStep", "Estimated"]


@final
@dataclass(frozen=True, kw_only=True)
class DriftSettings:
    """Settings as for `decode drift`."""

    fiducials: bool = False
    """beads tell the drift, which are seen in nearly all frames"""
    trace: Path | None = None
    """file of a drift that was measured or estimated before"""


@final
@dataclass(frozen=True, kw_only=True)
class Estimated:
    """A drift, and its plot with its uncertainty as a band."""

    stage: Drift
    run: object
    """identity of the run whose molecules drifted"""
    plot: bytes
    """PNG"""


@final
class DriftStep(Step):
    title = "Drift"
    purpose = "Estimate how the stage moved, and subtract it from the molecules"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.settings = DriftSettings()
        self.estimated: Estimated | None = None
        self._before: Found | None = None
        """molecules from which the drift was subtracted"""

    def missing(self) -> str:
        found = self.session.found
        if found is not None and not found.complete:
            return "wait until the whole movie is localized"
        return self.session.why_not("found")

    def done(self) -> str:
        if not self.is_subtracted or self.estimated is None:
            return ""
        sizes = zip("xyz", self.estimated.stage.amplitude, strict=True)
        moved = ", ".join(f"{axis} {size:.0f} nm" for axis, size in sizes if size > 0.5)
        return f"subtracted {moved or '0 nm'}"

    @property
    def is_subtracted(self) -> bool:
        """Whether the drift was subtracted here, and can be added back."""
        found = self.session.found
        return found is not None and found.is_still

    @property
    def can_subtract(self) -> bool:
        """Whether there is a drift of the molecules at hand."""
        found, estimated = self.session.found, self.estimated
        here = found is not None and estimated is not None and estimated.run is found.run
        return here and not self.is_subtracted

    def estimate(self) -> Steps[Estimated]:
        """The drift of all molecules, whether they pass the filter or not.

        Raises:
            Undetermined: if they do not tell it.
            ValueError, OSError: as `decode.drift` does.
        """
        from decode.postprocess.drift.trace import STEP

        found = self.session.found
        if found is None or self.missing():
            raise ValueError(self.missing())
        if STEP in found.filter.emitters.metadata:
            raise ValueError("a drift was subtracted already: undo it first")
        return _estimate(found.filter.emitters, self.settings, found.run)

    def accept(self, estimated: Estimated) -> None:
        self.estimated = estimated

    def subtract(self) -> None:
        """Put the molecules as if the stage had stood still.

        Raises:
            ValueError: if the drift does not reach all their frames.
        """
        found, estimated = self.session.found, self.estimated
        if found is None or estimated is None or not self.can_subtract:
            raise ValueError("estimate the drift of these molecules first")
        still = estimated.stage.subtracted_from(found.filter.emitters)
        self._before = found
        self.session.put(found=replace(found, filter=_refiltered(found, still), is_still=True))

    def undo(self) -> None:
        """Put the molecules as they were found."""
        found, before = self.session.found, self._before
        if found is None or before is None or not self.is_subtracted:
            raise ValueError("no drift was subtracted here")
        self.session.put(found=replace(before, filter=_refiltered(found, before.filter.emitters)))

    def forget(self) -> None:
        self.estimated = self._before = None

    def as_command(self) -> str:
        if self.session.found is None:
            return ""
        table, out = self._files(self.session.found)
        return command(
            "decode",
            "drift",
            table,
            o=out,
            fiducials=self.settings.fiducials and self.settings.trace is None,
            apply=self.settings.trace,
        )

    def as_python(self) -> str:
        if self.session.found is None:
            return ""
        table, out = self._files(self.session.found)
        trace = self.settings.trace
        verb = call(
            "drift",
            repr(str(table)),
            repr(str(out)),
            fiducials=(self.settings.fiducials and trace is None) or None,
            apply=None if trace is None else str(trace),
        )
        return "\n".join(
            ["from decode import drift", "", f"molecules, stage = {verb}", "print(stage.amplitude)"]
        )

    def _files(self, found: Found) -> tuple[Path, Path]:
        """The table on disk before and after."""
        before, after = (replace(found, is_still=still) for still in (False, True))
        return table_of(before), table_of(after)


def _refiltered(found: Found, emitters: EmitterSet) -> Filter:
    """The same ranges on other molecules."""
    made = Filter(emitters)
    for quantity, (low, high) in found.filter.ranges.items():
        lowest, highest = made.bounds(quantity)
        made.restrict(quantity, lowest if low is None else low, highest if high is None else high)
    return made


def _estimate(emitters: EmitterSet, settings: DriftSettings, run: object) -> Steps[Estimated]:
    from decode.postprocess.drift import drift_of_fiducials, drift_of_molecules, read_drift
    from decode.verbs.drift import plotted

    yield Progress(None, "estimating the drift")
    n_frames = emitters.facts.n_frames
    if settings.trace is not None:
        stage = read_drift(settings.trace)
    elif settings.fiducials:
        stage = drift_of_fiducials(emitters, n_frames=n_frames)
    else:
        stage = drift_of_molecules(emitters, n_frames=n_frames)
    return Estimated(stage=stage, run=run, plot=plotted(stage))
