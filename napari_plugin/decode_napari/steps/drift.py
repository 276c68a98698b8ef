"""Drift: how the stage moved, and the molecules as if it had stood still."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, final

from decode.emitters import EmitterSet
from decode.progress import Progress, Steps
from decode_napari.molecules import filtered
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
    of: object
    """identity of the molecules that drifted"""
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

    def missing(self) -> str:
        return self.session.why_not_whole()

    def done(self) -> str:
        if not self.is_subtracted or self.estimated is None:
            return ""
        sizes = zip("xyz", self.estimated.stage.amplitude, strict=True)
        moved = ", ".join(f"{axis} {size:.0f} nm" for axis, size in sizes if size > 0.5)
        return f"subtracted {moved or '0 nm'}"

    @property
    def is_subtracted(self) -> bool:
        """Whether the drift was subtracted here."""
        found = self.session.found
        return found is not None and "drift" in found.applied

    @property
    def can_undo(self) -> bool:
        """Whether nothing was done to the molecules since."""
        found = self.session.found
        return found is not None and found.applied[-1:] == ("drift",)

    @property
    def can_subtract(self) -> bool:
        """Whether there is a drift of the molecules at hand."""
        found, estimated = self.session.found, self.estimated
        return found is not None and estimated is not None and estimated.of == found.identity

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
        return _estimate(found.filter.emitters, self.settings, found.identity)

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
        self.session.put(found=found.after("drift", filtered(still, found.filter.ranges)))

    def undo(self) -> None:
        """Put the molecules as they were found."""
        found = self.session.found
        if found is None or found.before is None or not self.is_subtracted:
            raise ValueError("no drift was subtracted here")
        if not self.can_undo:
            raise ValueError("molecules were linked since: undo the step Link first")
        put_back = filtered(found.before.filter.emitters, found.filter.ranges)
        self.session.put(found=replace(found.before, filter=put_back))

    def forget(self) -> None:
        self.estimated = None

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
        earlier = found.applied
        if "drift" in earlier:
            earlier = earlier[: earlier.index("drift")]
        steps = (earlier, (*earlier, "drift"))
        before, after = (table_of(replace(found, applied=applied)) for applied in steps)
        return before, after


def _estimate(emitters: EmitterSet, settings: DriftSettings, of: object) -> Steps[Estimated]:
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
    return Estimated(stage=stage, of=of, plot=plotted(stage))
