"""watch: movies to molecules while a microscope writes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

from decode.acquisition import stated_files
from decode.io.movies import Movie
from decode.outputs import check_outputs, finished_files, localize_files
from decode.progress import DetailedSteps, Progress, Stepwise, relayed
from decode.verbs.batch.job import Options
from decode.verbs.batch.plan import Known
from decode.verbs.finish import finish
from decode.verbs.localize import localize_file
from decode.verbs.stages import key_of
from decode.verbs.watch.blocks import Blocks, beginning_of
from decode.verbs.watch.figures import Update
from decode.verbs.watch.growing import POLL_S, Ended, Growing, follower, movies_in
from decode.verbs.watch.live import Live, Microscope
from decode.verbs.watch.page import LivePage

__all__ = ["IDLE_S", "Watched", "watch"]

IDLE_S = 60.0
"""time without a new frame after which an acquisition is over"""
DECIDING = (
    "model",
    "camera",
    "psf",
    "pixel_size_nm",
    "em_gain",
    "psf_sigma_nm",
    "threshold",
    "roi",
    "channel",
    "position",
    "z",
    "skip",
)
"""options that decide about the molecules of blocks"""


@final
@dataclass(frozen=True, kw_only=True)
class Watched:
    """What became of an acquisition."""

    movies: tuple[Path, ...]
    files: tuple[Path, ...]
    """tables and pictures"""
    problems: tuple[str, ...] = ()
    """a sentence on each movie that could not be localized"""


@Stepwise
def watch(
    path: Path | str,
    out: Path | str,
    options: Options,
    *,
    idle_s: float = IDLE_S,
    until: Path | str | None = None,
    again: bool = True,
    port: int | None = None,
) -> DetailedSteps[Update | None, Watched]:
    """Localize a movie while it is written.

    Frames are localized by the network, block after block, and their molecules kept in
    `<stem>.live` within `out`, from which a second call goes on, whatever ended the first one.
    When the acquisition is over, the finished movie is localized as `decode localize` does, and the
    folder deleted.  Where the steps are stopped before, the tables hold what was found so far, and
    the folder stays.  `watch.steps` does the same step by step.

    Args:
        path: a movie that is written or will be; or a folder in which its files appear, one a frame
            or one a movie.
        out: folder of the tables.
        options: as `decode localize` takes them; a model is stated.
        idle_s: time without a new frame after which the acquisition is over.
        until: a file whose appearance says so at once.
        again: localize the finished movie as a whole; False keeps the molecules of the blocks,
            which differ from those by what only the whole movie tells.
        port: of a page with picture and figures on this machine, which the first step names; 0
            takes a free one, None serves none.

    Returns:
        The movies and the files that were written.

    Raises:
        ValueError, OSError: in one sentence, if an input is wrong, nothing that can be read is
            written, or a file cannot be written.

    Example:
        >>> import decode, tempfile
        >>> from decode.verbs.batch import Options
        >>> known = {"model": "gaussian-2d", "camera": "sample_data/camera.yaml"}
        >>> options = Options(**known, psf_sigma_nm=95.0, roi="0:32,0:32", formats=("csv",))
        >>> movie = "sample_data/blinking_2d.tif"
        >>> with tempfile.TemporaryDirectory() as out:
        ...     done = decode.watch(movie, out, options, idle_s=0.1, again=False)
        >>> [file.name for file in done.files]
        ['blinking_2d.csv']
    """
    path, out = Path(path), Path(out)
    if path.is_dir() and out.resolve() == path.resolve():
        raise ValueError(f"movies appear in {path}: choose another folder with --out")
    if not idle_s > 0:
        raise ValueError(f"--idle {idle_s:g}: the time must be positive")
    inputs = [path, until, options.model, options.psf, *stated_files(options.camera)]
    _check_outputs(path, out, options, inputs)
    known = Known()
    faults = known.faults(options)
    if faults:
        raise ValueError("; ".join(faults))
    microscope = Microscope(options)
    ended = Ended(idle_s=idle_s, marker=None if until is None else Path(until))
    key = known.marks(replace(Options(), **{name: getattr(options, name) for name in DECIDING}))

    def blocks_of(movie: Movie) -> Blocks:
        (table,) = localize_files(movie.path, out, ("csv",))
        return Blocks(table.with_suffix(".live"), key_of(beginning_of(movie), key))

    pending: list[Live] = []
    problems: list[str] = []
    files: list[Path] = []
    with nullcontext() if port is None else LivePage(f"{path.name}: live", port=port) as page:
        yield Progress(None, page.address if page else "", detail=None)
        try:
            for movie in movies_in(path, ended, _pause):
                live = Live(Growing(movie, ended, options.of_file), microscope, blocks_of, out)
                _check_outputs(movie, out, options, [movie, *inputs])
                out.mkdir(parents=True, exist_ok=True)
                pending.append(live)
                try:
                    over = partial(_is_over, movie, ended, in_turn=movie != path)
                    for update in _followed(live, over):
                        if page is not None and live.figures is not None:
                            page.show(update, live.figures.picture)
                        yield _progress(update)
                except ValueError as error:  # the next movie may be well
                    pending.remove(live)
                    problems.append(f"{movie.name}: {error}")
                    yield Progress(None, "", (problems[-1],), None)
            movies = tuple(live.path for live in pending)
            while pending:
                live = pending[0]
                files += (yield from _whole(live, out, microscope)) if again else live.write()
                pending.remove(live)
                if live.blocks is not None:
                    live.blocks.remove()
        finally:
            for live in pending:
                live.write()
    if not movies:
        raise ValueError("; ".join(problems) or f"no movie appeared in {path}")
    return Watched(movies=movies, files=tuple(files), problems=tuple(problems))


def _check_outputs(movie: Path, out: Path, options: Options, inputs: Sequence[object]) -> None:
    """Refuse outputs that would overwrite inputs, or cannot be written."""
    tables = localize_files(movie, out, options.formats)
    check_outputs((*tables, *finished_files(tables)), inputs=inputs, folder=out)


def _progress(update: Update) -> Progress[Update]:
    message = f"{update.frames} frames, {update.molecules} molecules"
    return Progress(update.frames / max(1, update.frames_written), message, detail=update)


def _pause() -> None:
    time.sleep(POLL_S)


def _is_over(movie: Path, ended: Ended, *, in_turn: bool) -> bool:
    """Whether a movie is: of those that appear one after the other, once the next one has begun."""
    return ended() or (in_turn and follower(movie) is not None)


def _followed(live: Live, is_over: Callable[[], bool]) -> Iterator[Update]:
    """Figures of a movie until it is over."""
    while True:
        # asked before the file is looked at, so that no frame is missed
        changed = live.growing.changed
        over, idle = is_over(), True
        if changed or over or live.waits:
            for update in live.advance(over=over):
                idle = False
                yield update
        if over:
            return
        if idle or live.overdue:
            reviewed = live.review()
            if reviewed is not None:
                yield reviewed
        time.sleep(live.growing.rest_s)


def _whole(live: Live, out: Path, microscope: Microscope) -> DetailedSteps[None, tuple[Path, ...]]:
    """Localize a finished movie as `decode localize` does; what was written."""
    options = microscope.options
    # a movie that was planned longer is no damaged one
    arguments = options.arguments() | {"psf": microscope.psf, "allow_truncated": True}

    def told(own: Progress[object]) -> Progress[None]:
        return Progress(own.fraction, f"{live.path.name} as a whole: {own.message}", own.warnings)

    steps = localize_file.steps(live.path, microscope.model, out, **arguments)
    done = yield from relayed(steps, told)
    following = finish.steps(
        live.files,
        n_frames=done.n_frames,
        n_molecules=done.n_molecules,
        steps=options.finish,
    )
    finished = yield from relayed(following, told)
    return (*done.files, *finished.files)
