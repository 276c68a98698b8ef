"""Live: the molecules of a movie while it is written."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import final

from decode.acquisition import Acquisition, acquisition_for
from decode.emitters import EmitterSet
from decode.io.movies import Movie
from decode.io.psfs import PSFFile, read_psf
from decode.io.tables import written_formats
from decode.io.tables.together import TableWriters
from decode.models import load_model
from decode.outputs import localize_files
from decode.rendering import save_picture
from decode.verbs.batch.job import Options
from decode.verbs.checking import Checking
from decode.verbs.localize import localize_movie
from decode.verbs.region import region_of
from decode.verbs.sweep import Chunk
from decode.verbs.watch.blocks import Blocks
from decode.verbs.watch.figures import Figures, Update
from decode.verbs.watch.growing import Growing

__all__ = ["Live", "Microscope"]

POINTS = (32, 256, 2048, 16384, 131072)
"""frames after which the camera, the width of the PSF and defects are looked at again, and, but for
the first, the checks made"""
LEAST_FRAMES, MOST_FRAMES = 8, 32
"""of a block: fewer are awaited for `PATIENCE_S`, more are not taken so that figures come often.
The two frames beside a block are seen again, which is a twelfth of the time of one of 8."""
PATIENCE_S = 0.5
REMARK = (
    "localized while the movie was written, by the network alone: `decode localize` polishes "
    "where the PSF is known, and looks at the whole movie for the camera, the PSF's width and "
    "defects"
)


@final
class Microscope:
    """What movies are localized with.

    Raises:
        ValueError, OSError: if a file cannot be read.
    """

    def __init__(self, options: Options) -> None:
        if options.model is None:
            raise ValueError("state a model (--model): none is trained while a movie is written")
        self.options = options
        self.model = load_model(options.model)
        self.psf: PSFFile | None = None if options.psf is None else read_psf(options.psf)

    def acquisition(self, movie: Movie) -> Acquisition:
        """What is known of a movie, without the light outside the core of the PSF, which takes
        seconds to measure."""
        options = self.options
        return acquisition_for(
            movie,
            self.model,
            camera=options.camera,
            pixel_size_nm=options.pixel_size_nm,
            em_gain=options.em_gain,
            psf_sigma_nm=options.psf_sigma_nm,
        )

    def molecules(self, movie: Movie, acquisition: Acquisition) -> EmitterSet:
        """The molecules of some frames of a movie, which sees those beside them in its file."""
        chunks = localize_movie(
            movie,
            self.model,
            acquisition,
            psf=self.psf,
            threshold=self.options.threshold,
            roi=self.options.selection()["roi"],
            device=self.options.device,
            polish=False,
        )
        return EmitterSet.cat(chunk.molecules for chunk in chunks)


@final
class Live:
    """The blocks of a movie that grows, and what they tell.

    Args:
        growing: the movie.
        microscope: what it is localized with.
        blocks: makes or finds the blocks of the movie that is given to it.
        out: folder of the tables.
    """

    def __init__(
        self,
        growing: Growing,
        microscope: Microscope,
        blocks: Callable[[Movie], Blocks],
        out: Path,
    ) -> None:
        self.path, self.growing = growing.path, growing
        self._microscope, self._begin, self._out = microscope, blocks, out
        self._acquisition: Acquisition | None = None
        self._untold: set[int] = set()
        """points whose frames do not tell what must be known"""
        self._written: deque[tuple[int, float]] = deque()
        self._usable = 0
        self._point, self._review = POINTS[1], self._reviewed()
        self.blocks: Blocks | None = None
        self.figures: Figures | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Tables and picture."""
        return localize_files(self.path, self._out, self._microscope.options.formats)

    @property
    def waits(self) -> bool:
        """Whether frames that were seen wait to be localized."""
        return self.blocks is None or self._next(self.blocks, over=False) is not None

    @property
    def overdue(self) -> bool:
        """Whether a review has waited for as many frames again as it is about."""
        return self.blocks is not None and self.blocks.stop >= 2 * self._point

    def advance(self, *, over: bool) -> Iterator[Update]:
        """Localize what has been written since.

        Args:
            over: whether nothing more will be.

        Raises:
            ValueError, OSError: if the movie is over, and cannot be localized.
        """
        movie = self.growing.look()
        if movie is None:
            if over:
                raise ValueError(self.growing.problem)
            return
        with movie:
            # the last frame may be half-written, and each but the last is seen with the next one
            self._usable = len(movie) - 2 * (not over)
            self._note(len(movie))
            if self._usable < 1:
                return
            self.blocks = self.blocks or self._begin(movie)
            while span := self._next(self.blocks, over=over):
                acquisition = self._known(movie, span.start, over=over)
                if acquisition is None:
                    return
                figures = self._figures(movie, acquisition)
                yield self._localized(movie, span, acquisition, figures)

    def review(self) -> Update | None:
        """Take a step of what can wait until no frame does: the camera, the width of the PSF and
        defects by more frames, and the checks.

        Returns:
            The figures, where there are new checks.
        """
        return next(self._review, None)

    def _figures(self, movie: Movie, acquisition: Acquisition) -> Figures:
        """The figures, with the blocks of an earlier time."""
        if self.figures is not None:
            return self.figures
        assert self.blocks is not None
        pixel_nm = acquisition.pixel_size_nm
        height, width = movie.shape[1:]
        rows, columns = region_of(self._microscope.options.selection()["roi"], (height, width))
        self.figures = Figures(
            self.path.name,
            field_nm=(width * pixel_nm, height * pixel_nm),
            area_um2=rows.size * columns.size * (pixel_nm / 1000) ** 2,
        )
        for span, molecules in self.blocks:
            self.figures.see(span, molecules)
        return self.figures

    def _note(self, n_frames: int) -> None:
        """Note when frames were seen first."""
        if not self._written or n_frames > self._written[-1][0]:
            self._written.append((n_frames, time.monotonic()))

    def _age_s(self, frame: int) -> float:
        """Time since a frame was seen first."""
        while len(self._written) > 1 and self._written[0][0] <= frame:
            self._written.popleft()
        return time.monotonic() - self._written[0][1] if self._written else 0.0

    def _next(self, blocks: Blocks, *, over: bool) -> range | None:
        """The next block; None where frames are awaited."""
        start = blocks.stop
        stop = min(self._usable, start + MOST_FRAMES)
        if stop <= start:
            return None
        waits = not over and stop - start < LEAST_FRAMES
        return None if waits and self._age_s(start) < PATIENCE_S else range(start, stop)

    def _known(self, movie: Movie, start: int, *, over: bool) -> Acquisition | None:
        """What is known of the movie, at first by the frames before a block, or the first ones;
        None where they do not tell it yet."""
        if self._acquisition is not None:
            return self._acquisition
        before = [point for point in reversed(POINTS) if point <= start]
        after = [point for point in POINTS if start < point <= self._usable]
        untried = [point for point in (*before, *after) if point not in self._untold]
        for point in (*untried, *([self._usable] if over else [])):
            try:
                self._acquisition = self._microscope.acquisition(frames_of(movie, range(point)))
                break
            except ValueError:
                if over and point == self._usable:
                    raise
                self._untold.add(point)
        return self._acquisition

    def _localized(
        self, movie: Movie, span: range, acquisition: Acquisition, figures: Figures
    ) -> Update:
        assert self.blocks is not None
        age_s = self._age_s(span.start)
        begun = time.monotonic()
        molecules = self._microscope.molecules(frames_of(movie, span), acquisition)
        self.blocks.append(span, molecules)
        figures.see(span, molecules)
        latency_s = age_s + time.monotonic() - begun
        return figures.update(frames_written=len(movie), latency_s=latency_s)

    def _reviewed(self) -> Iterator[Update | None]:
        """The steps of `review`, for ever."""
        for point, following in pairwise((*POINTS[1:], sys.maxsize)):
            self._point = point
            while self.blocks is None or self.figures is None or self.blocks.stop < point:
                yield None
            if self.blocks.stop < following:  # else it goes on after a later one
                yield from self._reviewed_at(point, self.blocks, self.figures)

    def _reviewed_at(self, point: int, blocks: Blocks, figures: Figures) -> Iterator[Update | None]:
        """The review by so many frames."""
        while (movie := self.growing.look()) is None:
            yield None
        with movie:
            with suppress(ValueError):  # which leaves what is known
                self._acquisition = self._microscope.acquisition(frames_of(movie, range(point)))
            yield None
            assert self._acquisition is not None
            spans = [span for span in blocks.spans if span.start < point]
            stop = spans[-1].stop
            checking = Checking(
                frames_of(movie, range(stop)),
                self._microscope.model,
                self._acquisition,
                psf=self._microscope.psf,
                roi=self._microscope.options.selection()["roi"],
            )
            for span in spans:
                found = blocks.read(span)
                checking.see(Chunk(molecules=found, frames_done=span.stop, frames_total=stop))
                yield None
            figures.checks, figures.checks_frames = checking.checks, stop
            yield figures.update(frames_written=len(movie))

    def write(self) -> tuple[Path, ...]:
        """Write the tables and the picture of all that is localized; the blocks stay.

        Raises:
            OSError: if a file cannot be written.
        """
        if self.blocks is None or not self.blocks.stop:
            return ()
        movie = self.growing.look()
        if movie is None:
            raise OSError(self.growing.problem)
        n_frames = self.blocks.stop
        psf = self._microscope.psf
        with movie:
            self._usable = n_frames
            acquisition = self._known(movie, n_frames, over=True)
            assert acquisition is not None
            stated = acquisition.facts(
                frames_of(movie, range(n_frames)),
                threshold=self._microscope.options.threshold,
                model=f"SHA-256 {self._microscope.model.sha256()}",
                psf=self._microscope.model.psf if psf is None else psf.psf,
            )
        facts = replace(stated, warnings=(*stated.warnings, REMARK)).metadata()
        tables = [file for file in self.files if file.suffix in written_formats()]
        pictures = [file for file in self.files if file.suffix == ".png"]
        with TableWriters(tables, facts) as growing:
            for _, molecules in self.blocks:
                growing.write(molecules)
        if growing.failures:
            raise OSError("; ".join(growing.failures))
        for picture in pictures:
            save_picture(EmitterSet.cat(molecules for _, molecules in self.blocks), picture)
        return self.files


def frames_of(movie: Movie, span: range) -> Movie:
    """Some frames of a movie, counted without those that are left out; it shares the files."""
    numbers = movie.numbers
    return movie.between(range(int(numbers[span.start]), int(numbers[span.stop - 1]) + 1))
