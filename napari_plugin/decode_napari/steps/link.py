"""Link: the blinks of each molecule joined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from decode.emitters import EmitterSet
from decode.postprocess.filter import Range
from decode.progress import Steps
from decode_napari.molecules import Filter, filtered
from decode_napari.session import Found, Session
from decode_napari.steps.inspect import check_field, table_of
from decode_napari.steps.movie import camera_call
from decode_napari.steps.step import Step, call, command, keep_call, keep_command

if TYPE_CHECKING:
    from decode.postprocess.link import Linking

__all__ = ["LinkSettings", "LinkStep", "Linked"]


@final
@dataclass(frozen=True, kw_only=True)
class LinkSettings:
    """Settings as for `decode link`."""

    gap: int | None = None
    """most dark frames to bridge; None: by the kinetics"""
    refit: bool = False
    """molecules are fitted to all of their frames with one position"""


@final
@dataclass(frozen=True, kw_only=True)
class Linked:
    """Molecules, and how their blinks were told."""

    molecules: EmitterSet
    linking: Linking
    of: object
    """identity of the molecules that were linked"""
    ranges: Mapping[str, Range]
    """of the filter that they passed"""


@final
class LinkStep(Step):
    title = "Link"
    purpose = "Join the blinks of each molecule, so that it is one row"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.settings = LinkSettings()
        self.linked: Linked | None = None

    def missing(self) -> str:
        return self.session.why_not_whole()

    def done(self) -> str:
        return self.sentences[0] if self.sentences else ""

    @property
    def is_linked(self) -> bool:
        """Whether the molecules were linked here."""
        found = self.session.found
        return found is not None and "link" in found.applied

    @property
    def can_undo(self) -> bool:
        """Whether nothing was done to the molecules since."""
        found = self.session.found
        return found is not None and found.applied[-1:] == ("link",)

    @property
    def sentences(self) -> tuple[str, ...]:
        """Counts and kinetics of the molecules at hand."""
        return self.linked.linking.sentences if self.is_linked and self.linked else ()

    def why_not_refit(self) -> str:
        """What a joint refit needs, in a sentence; "" where nothing is missing."""
        from decode.postprocess.drift.trace import STEP as DRIFT

        movie, found = self.session.movie, self.session.found
        if movie is None or found is None or self.session.psf is None:
            parts = ("found", "movie", "psf")
            return next(why for part in parts if (why := self.session.why_not(part)))
        if movie.camera is None:
            return "state the camera in the step Movie first"
        if DRIFT in found.filter.emitters.metadata:
            return "the movie shows molecules where the stage was: link, then subtract the drift"
        return ""

    def link(self) -> Steps[Linked]:
        """The molecules of the localizations that pass the filter.

        Raises:
            Undetermined: if hardly a molecule is seen in a second frame.
            ValueError, OSError: as `decode.link` does.
        """
        found = self.session.found
        if found is None or self.missing():
            raise ValueError(self.missing())
        if self.is_linked:
            raise ValueError("molecules were linked already: undo it first")
        ranges = dict(found.filter.ranges)
        return _link(
            found.filter.passing(),
            gap=self.settings.gap,
            files=self._files() if self.settings.refit else {},
            of=found.identity,
            ranges=ranges,
        )

    def accept(self, linked: Linked) -> None:
        """Put the molecules in place of the localizations, without a filter: theirs are other
        photons and uncertainties.

        Raises:
            ValueError: if the localizations are gone.
        """
        found = self.session.found
        if found is None or linked.of != found.identity:
            raise ValueError("other molecules were opened meanwhile: link these again")
        # the filter may have been moved meanwhile
        rows = replace(found, filter=filtered(found.filter.emitters, linked.ranges))
        self.linked = linked
        self.session.put(found=rows.after("link", Filter(linked.molecules)))

    def undo(self) -> None:
        """Put the localizations back, with the filter that they had."""
        found = self.session.found
        if found is None or found.before is None or not self.is_linked:
            raise ValueError("no molecules were linked here")
        if not self.can_undo:
            raise ValueError("a drift was subtracted since: undo the step Drift first")
        self.session.put(found=found.before)

    def forget(self) -> None:
        self.linked = None

    def as_command(self) -> str:
        rows, movie = self._rows(), self.session.movie
        if rows is None:
            return ""
        files = self._files_of_command()
        if files and movie is not None and movie.em_gain is not None:
            return ""  # `decode link` takes a camera by its file
        table, lines = table_of(rows), []
        if rows.filter.ranges:
            line, table = keep_command(table, rows.filter.ranges)
            lines = [line]
        out = _out(rows)
        link = command("decode", "link", table, o=out, gap=self.settings.gap, **files)
        return " && ".join([*lines, link])

    def as_python(self) -> str:
        rows, movie = self._rows(), self.session.movie
        if rows is None:
            return ""
        imports, lines = keep_call(table_of(rows), rows.filter.ranges)
        imports = [*imports, "from decode import link"]
        files = self._files_of_command()
        named = [f"{name}={files[name]!r}" for name in files if name != "camera"]
        if files and movie is not None:
            imports.append("from decode import read_camera")
            named.append(f"camera={camera_call(movie)}")
        verb = call("link", "molecules", repr(str(_out(rows))), *named, gap=self.settings.gap)
        lines = [*lines, f"molecules, linking = {verb}", 'print("\\n".join(linking.sentences))']
        return "\n".join([*imports, "", *lines])

    def _rows(self) -> Found | None:
        """The localizations: those at hand, or those that were linked."""
        found = self.session.found
        while found is not None and "link" in found.applied:
            found = found.before
        return found

    def _files(self) -> dict[str, Any]:
        """Movie, PSF and camera of a refit.

        Raises:
            ValueError: if they are not known, or are not those of the molecules.
        """
        movie, psf, found = self.session.movie, self.session.psf, self.session.found
        if movie is None or psf is None or found is None or self.why_not_refit():
            raise ValueError(f"to refit molecules: {self.why_not_refit()}")
        check_field(movie, found.filter.emitters)
        return {"movie": movie.path, "psf": psf.path, "camera": movie.camera}

    def _files_of_command(self) -> dict[str, str]:
        movie, psf = self.session.movie, self.session.psf
        if not self.settings.refit or movie is None or psf is None:
            return {}
        return {
            "movie": str(movie.path),
            "psf": str(psf.path),
            "camera": str(movie.camera_name),
        }


def _out(rows: Found) -> Path:
    return table_of(replace(rows, applied=(*rows.applied, "link")))


def _link(
    rows: EmitterSet,
    *,
    gap: int | None,
    files: Mapping[str, Any],
    of: object,
    ranges: Mapping[str, Range],
) -> Steps[Linked]:
    from decode.verbs.link import link

    molecules, linking = yield from link.steps(rows, gap=gap, **files)
    return Linked(molecules=molecules, linking=linking, of=of, ranges=ranges)
