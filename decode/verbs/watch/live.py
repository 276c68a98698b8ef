"""Live: the molecules of a movie while it is written."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
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
"""frames after which the camera, the width of the PSF and defects are looked at again, and the
checks made"""
LEAST_FRAMES, MOST_FRAMES = 16, 64
"""of a block: fewer are awaited for `PATIENCE_S`, more are not taken so that figures come often"""
PATIENCE_S = 1.0
POLL_S = 0.25
"""time between two looks at the file"""
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
        self._acquisitions: dict[int, Acquisition] = {}
        self._written: deque[tuple[int, float]] = deque()
        self._usable = 0
        self.blocks: Blocks | None = None
        self.figures: Figures | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Tables and picture."""
        return localize_files(self.path, self._out, self._microscope.options.formats)

    @property
    def waits(self) -> bool:
        """Whether frames that were seen are not localized yet."""
        return self.blocks is None or self.blocks.stop < self._usable

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
            usable = self._usable = len(movie) - 2 * (not over)
            self._note(len(movie))
            if usable < 1:
                return
            self.blocks = self.blocks or self._begin(movie)
            while span := self._next(self.blocks.stop, usable, over=over):
                acquisition = self._acquisition(movie, span.start, usable, over=over)
                if acquisition is None:
                    return
                figures = self._figures(movie, acquisition)
                yield self._localized(movie, span, acquisition, figures)
                if span.stop in POINTS[1:]:
                    self._check(movie, span.stop, acquisition, figures)
                    yield figures.update(frames_written=len(movie))

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

    def _next(self, start: int, usable: int, *, over: bool) -> range | None:
        """The next block; None where frames are awaited."""
        stop = min([usable, start + MOST_FRAMES, *(point for point in POINTS if point > start)])
        if stop <= start:
            return None
        waits = stop == usable and not over and stop - start < LEAST_FRAMES
        return None if waits and self._age_s(start) < PATIENCE_S else range(start, stop)

    def _acquisition(
        self, movie: Movie, start: int, usable: int, *, over: bool
    ) -> Acquisition | None:
        """What is known of the movie by the frames before a block, or by the first ones; None where
        they do not tell it yet."""
        before = [point for point in reversed(POINTS) if point <= start]
        after = [point for point in POINTS if start < point <= usable]
        for point in (*before, *after, *([usable] if over else [])):
            if point in self._acquisitions:
                return self._acquisitions[point]
            try:
                found = self._microscope.acquisition(frames_of(movie, range(point)))
            except ValueError:
                if over and point == usable:
                    raise
                continue
            self._acquisitions[point] = found
            return found
        return None

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

    def _check(self, movie: Movie, stop: int, acquisition: Acquisition, figures: Figures) -> None:
        """Check the molecules of the frames so far."""
        assert self.blocks is not None
        checking = Checking(
            frames_of(movie, range(stop)),
            self._microscope.model,
            acquisition,
            psf=self._microscope.psf,
            roi=self._microscope.options.selection()["roi"],
        )
        for span, molecules in self.blocks:
            checking.see(Chunk(molecules=molecules, frames_done=span.stop, frames_total=stop))
        figures.checks, figures.checks_frames = checking.checks, stop

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
            acquisition = self._acquisition(movie, n_frames, n_frames, over=True)
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
