"""Localize: a preview of one frame, and the whole movie."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

import numpy as np
import numpy.typing as npt

from decode.emitters import Check, EmitterSet
from decode.progress import DetailedSteps, Progress, Steps
from decode_napari.molecules import Filter
from decode_napari.session import ChosenModel, ChosenPSF, Found, OpenedMovie, Session
from decode_napari.steps.step import Step, call, command

if TYPE_CHECKING:
    from decode.acquisition import Acquisition
    from decode.io.movies import Movie
    from decode.verbs.localize import LocalizeReport
    from decode.verbs.sweep import Chunk

__all__ = ["LocalizeSettings", "LocalizeStep", "Region", "region_in", "region_text"]

Region = tuple[slice, slice]
"""rows and columns of a movie, counted from 0"""

OUT = "molecules"
"""output folder of the copied command"""


@final
@dataclass(frozen=True, kw_only=True)
class LocalizeSettings:
    """Settings as for `decode localize`."""

    threshold: float = 0.5
    """smallest probability of a molecule"""
    psf_sigma_nm: float | None = None
    """width of the PSF, for a model conditioned on it; None estimates it"""
    false_discovery_rate: float = 0.05
    """largest expected share of false molecules, where the likelihood decides"""
    polish: bool | None = None
    """let the likelihood decide and refine; None: wherever the PSF is known"""
    adapt: float | None = None
    """minutes of training a model for PSF and movie, unless one was; None takes the step Model's"""
    frames: tuple[int, int] | None = None
    """first frame, and the one after the last; None takes all"""
    roi: Region | None = None
    """the part of the field to localize in; coordinates stay those of the whole frame"""
    device: str = "auto"

    @property
    def stated_rate(self) -> float | None:
        """The false discovery rate, where it is not the usual one."""
        usual = LocalizeSettings.false_discovery_rate
        return None if self.false_discovery_rate == usual else self.false_discovery_rate


@final
class LocalizeStep(Step):
    title = "Localize"
    purpose = "Find the molecules: try a frame, then run on all"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.settings = LocalizeSettings()
        self.n_found = 0
        """molecules of the run, up to now"""
        self.checks: tuple[Check, ...] = ()
        """of the run, at its end"""
        self._chunks: list[EmitterSet] = []
        self._run_of: tuple[object, ChosenModel | None, ChosenPSF | None] = (object(), None, None)
        self._acquisition: Acquisition | None = None
        self._acquisitions: dict[object, Acquisition] = {}

    def missing(self) -> str:
        model = self.session.model
        missing = self.session.why_not("movie") or self.session.why_not("model")
        if missing or model is None:
            return missing
        if self.session.psf is None and model.localizer.domain.kind.needs_psf:
            return (
                f"{model.name} needs a calibrated PSF: make one in the step PSF, or choose "
                "another model"
            )
        return ""

    def missing_to_run(self) -> str:
        """As `missing`; a model that is adapted needs the PSF and the camera instead."""
        if self.settings.adapt is None:
            return self.missing()
        movie = self.session.movie
        missing = self.session.why_not("movie") or self.session.why_not("psf")
        if missing or movie is None:
            return missing
        return "" if movie.camera is not None else "state the movie's camera, to adapt a model"

    def asks_psf_sigma(self) -> bool:
        """Whether the model is conditioned on the width of the PSF, not on beads or on nothing."""
        model = self.session.model
        return model is None or model.localizer.domain.kind.needs_width

    def done(self) -> str:
        found = self.session.found
        if found is None or found.acquisition is None:
            return ""
        count = f"{len(found.filter.emitters)} molecules"
        if not found.complete:
            return f"{count} so far"
        failed = [check.name for check in self.checks if check.failed]
        return f"{count}; not right: {', '.join(failed)}" if failed else count

    def run(self) -> DetailedSteps[LocalizeReport | None, None]:
        """Localize the whole movie; every step reports the molecules of a chunk of frames.

        Raises:
            ValueError, OSError: as `acquire` and `localize_movie` do.
        """
        if self.missing_to_run():
            raise ValueError(self.missing_to_run())
        movie, psf, minutes = self.session.movie, self.session.psf, self.settings.adapt
        assert movie is not None
        self.forget()
        self._run_of = (object(), self.session.model, psf)
        if minutes is None:
            assert self.session.model is not None
            return self._run(movie, self.session.model, psf, self.settings)
        assert psf is not None
        return self._adapt_and_run(movie, psf, self.settings, minutes)

    def preview(self, frame: int) -> Steps[EmitterSet]:
        """The molecules of one frame, numbered from 0, given its neighbours, within the region if
        there is one."""
        movie, model = self._inputs()
        return self._preview(movie, model, self.session.psf, self.settings, frame)

    def absorb(self, progress: Progress[LocalizeReport | None]) -> None:
        """Keep the molecules of a step of `run`."""
        report = progress.detail
        if report is None:
            return
        self._acquisition, self.checks = report.acquisition, report.checks
        if report.frames_done:
            self._chunks.append(report.molecules)
            self.n_found = report.n_molecules

    def show(self, *, complete: bool = False) -> None:
        """Put all molecules found so far into the session."""
        if not self._chunks:
            return
        emitters = EmitterSet.cat(self._chunks)
        run, model, psf = self._run_of
        found = Found(
            filter=Filter(emitters),
            source=str(emitters.metadata["movie"]),
            acquisition=self._acquisition,
            complete=complete,
            run=run,
            model=model,
            psf=psf,
        )
        self.session.put(found=found)

    def forget(self) -> None:
        self._chunks, self.n_found, self.checks = [], 0, ()

    def as_command(self) -> str:
        movie, model, set_ = self.session.movie, self.session.model, self.settings
        if movie is None or (model is None and set_.adapt is None):
            return ""
        return command(
            "decode",
            "localize",
            movie.path,
            model=self._model_name(),
            adapt=set_.adapt,
            camera=movie.camera_name,
            pixel_size=movie.stated_pixel_size_nm,
            em_gain=movie.em_gain,
            psf_sigma=set_.psf_sigma_nm,
            psf=None if self.session.psf is None else self.session.psf.path,
            polish=set_.polish or None,
            no_polish=set_.polish is False or None,
            threshold=None if set_.threshold == 0.5 else set_.threshold,
            false_discovery_rate=set_.stated_rate,
            frames=None if set_.frames is None else f"{set_.frames[0]}:{set_.frames[1]}",
            roi=None if set_.roi is None else region_text(set_.roi),
            allow_truncated=movie.allow_truncated,
            device=None if set_.device == "auto" else set_.device,
            o=OUT,
        )

    def as_python(self) -> str:
        movie, model, set_ = self.session.movie, self.session.model, self.settings
        if movie is None or (model is None and set_.adapt is None):
            return ""
        psf = self.session.psf
        verb = call(
            "localize_file",
            repr(str(movie.path)),
            repr(self._model_name()),
            repr(OUT),
            adapt=set_.adapt,
            camera=movie.camera_name,
            psf=None if psf is None else str(psf.path),
            pixel_size_nm=movie.stated_pixel_size_nm,
            em_gain=movie.em_gain,
            psf_sigma_nm=set_.psf_sigma_nm,
            polish=set_.polish,
            threshold=None if set_.threshold == 0.5 else set_.threshold,
            false_discovery_rate=set_.stated_rate,
            frames=None if set_.frames is None else slice(*set_.frames),
            roi=set_.roi,
            device=None if set_.device == "auto" else set_.device,
            allow_truncated=movie.allow_truncated or None,
        )
        read = "from decode.verbs.localize import localize_file"
        return "\n".join([read, "", f"found = {verb}", "print(found.n_molecules)"])

    def _model_name(self) -> str | None:
        """As `decode localize` takes it: none with `adapt`."""
        if self.settings.adapt is not None or self.session.model is None:
            return None
        return self.session.model.name

    def _inputs(self) -> tuple[OpenedMovie, ChosenModel]:
        if self.missing():
            raise ValueError(self.missing())
        assert self.session.movie is not None
        assert self.session.model is not None
        return self.session.movie, self.session.model

    def _adapt_and_run(
        self, opened: OpenedMovie, psf: ChosenPSF, settings: LocalizeSettings, minutes: float
    ) -> DetailedSteps[LocalizeReport | None, None]:
        from decode.io.movies import open_movie
        from decode.verbs.adapt import adapt

        assert opened.camera is not None
        with open_movie(opened.path, allow_truncated=opened.allow_truncated) as movie:
            adapted = yield from adapt.steps(
                movie,
                psf=psf.path,
                camera=opened.camera,
                minutes=minutes,
                device=settings.device,
            )
        model = ChosenModel(name=str(adapted.file), localizer=adapted.model)
        self._run_of = (self._run_of[0], model, psf)
        yield from self._run(opened, model, psf, settings, said=(adapted.remark,))

    def _run(
        self,
        opened: OpenedMovie,
        model: ChosenModel,
        psf: ChosenPSF | None,
        settings: LocalizeSettings,
        *,
        said: tuple[str, ...] = (),
    ) -> DetailedSteps[LocalizeReport | None, None]:
        from decode.io.movies import open_movie
        from decode.verbs.localize import localize_acquired

        chosen = None if settings.frames is None else slice(*settings.frames)
        with open_movie(
            opened.path, frames=chosen, allow_truncated=opened.allow_truncated
        ) as movie:
            yield Progress(None, "looking at the movie", detail=None)
            acquisition = self._acquire(movie, opened, model, psf, settings)
            yield from localize_acquired(
                movie,
                model.localizer,
                replace(acquisition, estimates=(*said, *acquisition.estimates)),
                psf=None if psf is None else psf.file,
                threshold=settings.threshold,
                false_discovery_rate=settings.false_discovery_rate,
                roi=settings.roi,
                device=settings.device,
                polish=settings.polish,
            )

    def _preview(
        self,
        opened: OpenedMovie,
        model: ChosenModel,
        psf: ChosenPSF | None,
        settings: LocalizeSettings,
        frame: int,
    ) -> Steps[EmitterSet]:
        from decode.io.movies import open_movie

        yield Progress(None, f"frame {frame}")
        with open_movie(opened.path, allow_truncated=opened.allow_truncated) as movie:
            acquisition = self._acquire(movie, opened, model, psf, settings)
            facts = acquisition.facts(movie, threshold=settings.threshold)
        near = slice(max(0, frame - 1), min(opened.shape[0], frame + 2))
        with open_movie(opened.path, frames=near, allow_truncated=opened.allow_truncated) as movie:
            chunks = _localized(movie, model, acquisition, psf, settings)
            found = EmitterSet.cat(chunk.molecules for chunk in chunks)
        return replace(found[found.frame == frame], metadata=facts.metadata())

    def _acquire(
        self,
        movie: Movie,
        opened: OpenedMovie,
        model: ChosenModel,
        psf: ChosenPSF | None,
        settings: LocalizeSettings,
    ) -> Acquisition:
        """The acquisition by `acquire`; estimates from the whole movie are kept for the next
        preview."""
        from decode.verbs.localize import acquire

        stated = (opened.path, opened.camera_name, opened.em_gain, opened.stated_pixel_size_nm)
        read_out = (psf and psf.path, settings.roi and region_text(settings.roi), settings.polish)
        key = (*stated, model.name, settings.psf_sigma_nm, movie.frames, *read_out)
        if key not in self._acquisitions:
            self._acquisitions[key] = acquire(
                movie,
                model.localizer,
                camera=opened.camera,
                pixel_size_nm=opened.stated_pixel_size_nm,
                psf_sigma_nm=settings.psf_sigma_nm,
                psf=None if psf is None else psf.file,
                roi=settings.roi,
                device=settings.device,
                polish=settings.polish,
            )
        return self._acquisitions[key]


def region_in(corners_um: npt.ArrayLike, pixel_size_nm: float, shape: tuple[int, int]) -> Region:
    """The pixels whose centres lie in a rectangle.

    Args:
        corners_um: (n, 2) y, x in the window's world: um from the outer corner of pixel (0, 0), so
            that pixel i extends from i to i + 1 times its side.
        pixel_size_nm: side of a pixel.
        shape: (y, x) of the frames; what lies beyond them is cut off.

    Raises:
        ValueError: if no pixel of the frames lies in it.
    """
    corners = np.asarray(corners_um, np.float64) * 1000 / pixel_size_nm
    # what was drawn along the pixels' edges is theirs, whatever the last digit of a float
    ends = zip((corners.min(0) - 0.5).round(6), (corners.max(0) - 0.5).round(6), shape, strict=True)
    rows, columns = (
        slice(max(0, math.ceil(low)), min(side, math.floor(high) + 1)) for low, high, side in ends
    )
    if rows.start >= rows.stop or columns.start >= columns.stop:
        raise ValueError("no pixel of the movie lies in this rectangle; draw it over the movie")
    return rows, columns


def region_text(region: Region) -> str:
    """The region as text for `--roi`."""
    return ",".join(
        ":".join("" if end is None else str(end) for end in (s.start, s.stop)) for s in region
    )


def _localized(
    movie: Movie,
    model: ChosenModel,
    acquisition: Acquisition,
    psf: ChosenPSF | None,
    settings: LocalizeSettings,
) -> Iterator[Chunk]:
    from decode.verbs.localize import localize_movie

    return localize_movie(
        movie,
        model.localizer,
        acquisition,
        psf=None if psf is None else psf.file,
        threshold=settings.threshold,
        false_discovery_rate=settings.false_discovery_rate,
        roi=settings.roi,
        device=settings.device,
        polish=settings.polish,
    )
