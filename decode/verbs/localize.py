"""localize: a movie and a model to molecules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from decode.acquisition import Acquisition, stated_camera, stated_files
from decode.devices import choose_device
from decode.emitters import Check, EmitterSet
from decode.io.cameras import CameraFile
from decode.io.movies import WHOLE, Movie, Selection, in_natural_order, open_array, open_movie
from decode.io.psfs import PSFFile, read_psf
from decode.models import load_model
from decode.network.localizer import Localizer
from decode.outputs import (
    DEFAULT_FORMATS,
    check_outputs,
    localize_files,
    sample_files,
    unfinished_folder,
)
from decode.progress import DetailedSteps, Progress, Stepwise, relayed
from decode.verbs.adapt import adapt as adapt_model
from decode.verbs.assemble import assemble
from decode.verbs.checking import Checking
from decode.verbs.crew import Cluster, Crew, Processes, find_together
from decode.verbs.localize_movie import acquire, localize_movie, numbered
from decode.verbs.minutes import usual_minutes
from decode.verbs.order import Order, Work, ends, region_ends, share
from decode.verbs.pieces import Pieces, digest, marks_of, piece_frames
from decode.version import __version__

__all__ = [
    "LocalizeReport",
    "Localized",
    "acquire",
    "assembled",
    "localize",
    "localize_acquired",
    "localize_file",
    "localize_movie",
]

MovieSource: TypeAlias = Movie | npt.NDArray[Any] | Tensor | Path | str | Sequence[Path | str]


@final
@dataclass(frozen=True, kw_only=True)
class LocalizeReport:
    """Progress of a localization."""

    acquisition: Acquisition
    """what is known of the movie"""
    molecules: EmitterSet
    """molecules of the frames since the last step"""
    n_molecules: int
    """number of molecules of all frames done"""
    frames_done: int
    frames_total: int
    samples: tuple[EmitterSet, ...] = ()
    """draws of the posterior of the frames since the last step"""
    begun: str = ""
    """whether earlier work goes on, or why it does not; "" where there was none"""
    checks: tuple[Check, ...] = ()
    """whether the molecules are right for the movie; at the end"""


@final
@dataclass(frozen=True, kw_only=True)
class Localized:
    """The result for a movie, without the molecules themselves."""

    acquisition: Acquisition
    """what is known of the movie"""
    n_molecules: int
    n_frames: int
    remarks: tuple[str, ...]
    """remarks on the molecules for their user, a sentence each"""
    checks: tuple[Check, ...] = ()
    """whether they are right for the movie; failed checks first"""
    files: tuple[Path, ...] = ()
    """files that were written"""
    draws: tuple[Path, ...] = ()
    """those of them that are draws of the posterior"""


@Stepwise
def localize(
    movie: MovieSource,
    *,
    model: Localizer | Path | str | None = None,
    adapt: float | None = None,
    camera: CameraFile | Path | str | None = None,
    psf: PSFFile | Path | str | None = None,
    pixel_size_nm: float | None = None,
    em_gain: float | None = None,
    psf_sigma_nm: float | None = None,
    polish: bool | None = None,
    exact: bool = False,
    threshold: float = 0.5,
    false_discovery_rate: float = 0.05,
    frames: slice | None = None,
    roi: tuple[slice, slice] | None = None,
    device: str = "auto",
    allow_truncated: bool = False,
    selection: Selection = WHOLE,
) -> DetailedSteps[LocalizeReport | None, EmitterSet]:
    """Localize the molecules of a movie.

    `localize.steps` does the same step by step: the second step carries the warnings, later ones
    the molecules found since.

    Args:
        movie: a file or folder of a format that `open_movie` reads, the parts of a movie that was
            split, an open movie, or (frames, y, x) ADU.
        model: a shipped model by its name, a model file, or a model; None where one is adapted.
        adapt: minutes for which a model is trained for the PSF's file, the camera and this movie,
            unless one was (see `decode.verbs.adapt`); None takes `model`.
        camera: the movie's camera, its file, or the name of a common camera; None takes the
            model's, where it was trained for one, or else estimates it.
        psf: the calibrated PSF or its file, for a model that is conditioned on a pupil, and for
            polishing.
        pixel_size_nm: side of a pixel; None takes the camera file's, else the movie's, else the
            model's.
        em_gain: mean gain of the EM register, for a common camera whose gain is a setting.
        psf_sigma_nm: width of the PSF, where the model is conditioned on it; None estimates it.
        polish: let the likelihood of the frames decide which molecules there are and refine them,
            with `psf` or else the model's PSF (`decode.likelihood.decide`); with neither, refine
            those of the network with a Gaussian.  None: wherever the PSF is known.
        exact: state mean and covariance of the exact posterior of each molecule
            (`decode.likelihood.exact_posterior`), which needs a known PSF; `ess` and `correlation`
            are columns of the table.
        threshold: smallest probability of a molecule, after polishing where the likelihood decides.
        false_discovery_rate: largest expected share of false molecules, where the likelihood
            decides.
        frames: the frames to localize in, from 0, without a step; an open movie has its own.
        roi: rows and columns to localize in; coordinates stay those of the whole frame.
        device: `auto`, `cpu` or `cuda`.
        allow_truncated: take the whole frames of a file that was cut short.
        selection: channel, position and plane of a file that holds several, and frames to leave
            out, as `open_movie` takes it; numbers of frames stay those of the file.

    Returns:
        The molecules in the order of frames.  Their `facts` hold a sentence on each thing that was
        estimated (`facts.estimates`) or is wrong (`facts.warnings`), and whether they are right for
        this movie (`facts.checks`).

    Raises:
        ValueError: in one sentence, if movie, model, camera and PSF do not belong together, or
            something is missing.
        OSError: if a file cannot be read.

    Example:
        >>> import decode
        >>> molecules = decode.localize(
        ...     "sample_data/blinking_2d.tif",
        ...     model="gaussian-2d",
        ...     camera="sample_data/camera.yaml",
        ...     psf_sigma_nm=95.0,
        ...     frames=slice(0, 8),
        ... )
        >>> molecules.facts.field_nm
        (6400.0, 6400.0)
    """
    calibrated = _calibrated(psf)
    network, adapted = yield from _network(
        model,
        adapt,
        movie,
        camera=camera,
        psf=psf,
        pixel_size_nm=pixel_size_nm,
        em_gain=em_gain,
        device=device,
        allow_truncated=allow_truncated,
        selection=selection,
    )
    parts: list[EmitterSet] = []

    def kept(progress: Progress[LocalizeReport]) -> Progress[LocalizeReport | None]:
        if progress.detail.frames_done:
            parts.append(progress.detail.molecules)
        return progress

    with _opened(
        movie, frames=frames, allow_truncated=allow_truncated, selection=selection
    ) as opened:
        yield Progress(0.0, "looking at the movie", detail=None)
        acquisition = acquire(
            opened,
            network,
            camera=camera,
            pixel_size_nm=pixel_size_nm,
            em_gain=em_gain,
            psf_sigma_nm=psf_sigma_nm,
            psf=calibrated,
            roi=roi,
            device=device,
            polish=polish,
        )
        acquisition = replace(acquisition, estimates=(*adapted, *acquisition.estimates))
        steps = localize_acquired(
            opened,
            network,
            acquisition,
            psf=calibrated,
            threshold=threshold,
            false_discovery_rate=false_discovery_rate,
            roi=roi,
            device=device,
            polish=polish,
            exact=exact,
        )
        found = yield from relayed(steps, kept)
        facts = acquisition.facts(
            opened,
            threshold=threshold,
            model=_called(model, network),
            psf=network.psf if calibrated is None else calibrated.psf,
        )
    facts = replace(facts, warnings=(*facts.warnings, *found.remarks), checks=found.checks)
    return replace(EmitterSet.cat(parts), metadata=facts.metadata())


def localize_acquired(
    movie: Movie,
    model: Localizer,
    acquisition: Acquisition,
    *,
    psf: PSFFile | None = None,
    threshold: float = 0.5,
    false_discovery_rate: float = 0.05,
    roi: tuple[slice, slice] | None = None,
    device: str = "auto",
    polish: bool | None = None,
    exact: bool = False,
    samples: int = 0,
    seed: int = 0,
) -> DetailedSteps[LocalizeReport, Localized]:
    """Localize in an open movie with a known acquisition, step by step.

    Args:
        movie, model, acquisition, psf, threshold, false_discovery_rate, roi, device, polish, exact,
        samples, seed: as `localize_movie` takes them.

    Yields:
        Once before the first frame, with what was estimated and the warnings; then after every
        chunk of frames; and at the end with the checks, and a warning for each that failed.

    Raises:
        ValueError, OSError: as `localize_movie` does.
    """
    chunks = localize_movie(
        movie,
        model,
        acquisition,
        psf=psf,
        threshold=threshold,
        false_discovery_rate=false_discovery_rate,
        roi=roi,
        device=device,
        polish=polish,
        exact=exact,
        samples=samples,
        seed=seed,
    )
    report = LocalizeReport(
        acquisition=acquisition,
        molecules=EmitterSet.empty(),
        n_molecules=0,
        frames_done=0,
        frames_total=len(movie),
    )
    message = "; ".join(acquisition.estimates) or "looking for molecules"
    yield Progress(0.0, message, acquisition.warnings, report)
    checking = Checking(movie, model, acquisition, psf=psf, roi=roi)
    for chunk in chunks:
        checking.see(chunk)
        chunk = chunk.each(lambda found: numbered(movie, found))
        report = replace(
            report,
            molecules=chunk.molecules,
            samples=chunk.samples,
            n_molecules=report.n_molecules + len(chunk.molecules),
            frames_done=chunk.frames_done,
        )
        message = f"{report.frames_done} of {len(movie)} frames, {report.n_molecules} molecules"
        yield Progress(report.frames_done / len(movie), message, detail=report)
    checks = checking.checks
    nothing = EmitterSet.empty(report.molecules.metadata)
    report = replace(report, molecules=nothing, samples=(), checks=checks)
    failed = tuple(str(check) for check in checks if check.failed)
    yield Progress(1.0, message, failed, report)
    return Localized(
        acquisition=acquisition,
        n_molecules=report.n_molecules,
        n_frames=len(movie),
        remarks=checking.remarks,
        checks=checks,
    )


@Stepwise
def localize_file(
    path: Path | str | Sequence[Path | str],
    model: Localizer | Path | str | None,
    out: Path | str,
    *,
    adapt: float | None = None,
    camera: CameraFile | Path | str | None = None,
    psf: PSFFile | Path | str | None = None,
    pixel_size_nm: float | None = None,
    em_gain: float | None = None,
    psf_sigma_nm: float | None = None,
    polish: bool | None = None,
    exact: bool = False,
    threshold: float = 0.5,
    false_discovery_rate: float = 0.05,
    frames: slice | None = None,
    roi: tuple[slice, slice] | None = None,
    formats: Sequence[str] = DEFAULT_FORMATS,
    samples: int = 0,
    seed: int = 0,
    device: str = "auto",
    allow_truncated: bool = False,
    selection: Selection = WHOLE,
    assumed: Sequence[str] = (),
    fresh: bool = False,
    workers: int = 1,
    scheduler: str | None = None,
    shard: tuple[int, int] | None = None,
) -> DetailedSteps[LocalizeReport | None, Localized]:
    """Localize a movie file, and write tables and a picture into a folder.

    They are `<stem>.csv`, `.hdf5` (with its `.yaml`) and `.png`, or those of `formats`.  Molecules
    wait on the disk, in the folder `<stem>.parts`, until all are found, so that memory does not
    grow with the movie.  Whatever stops the work, the same call again goes on after the last piece
    that is there (`decode.verbs.pieces`), and its files are the same; another model, camera or
    option begins anew.  If one file cannot be written, the others are kept, and the error names it
    at the end.

    `localize_file.steps` does the same step by step, as `localize.steps` does.

    Args:
        path: a file or folder of a format that `open_movie` reads, or the parts of a movie that was
            split, which is named after the first.
        model: a shipped model by its name, a model file, or a model; None where one is adapted.
        out: output folder, created if it does not exist; it keeps the adapted model where the
            folder of the PSF cannot be written.
        formats: names from `decode.outputs.output_formats`.
        samples: number of draws of the network's posterior, each written as
            `<stem>.sample-01.csv` and so on, in every format of tables.  A draw is one set of
            molecules that the frames may hold; what is computed from many draws has the spread of
            what is not known.  Draws, and the point estimates beside them, are not polished.
        seed: seed of the draws.
        assumed: sentences on what the model rests on, which the tables keep.
        fresh: begin anew, even if there is unfinished work.
        workers: processes of this machine that share the work and the threads of PyTorch; on a
            machine with several GPUs each takes one, in turn.
        scheduler: address of a Dask scheduler, whose workers share the work; they see movie and
            output folder by the same names.
        shard: (i, n): only the ith of n shares of the movie, counted from 1, and neither tables nor
            picture, which `decode.verbs.merge.merge` writes once all shares are done.
        adapt, camera, psf, pixel_size_nm, em_gain, psf_sigma_nm, polish, exact, threshold, frames,
        roi, device, allow_truncated, selection:
            as `localize` takes them.

    Raises:
        ValueError, OSError: in one sentence, if an input is wrong or a file cannot be written.
    """
    paths, out = in_natural_order([path] if isinstance(path, str | Path) else path), Path(out)
    together = workers > 1 or scheduler is not None or shard is not None
    if shard is not None and (workers > 1 or scheduler is not None or fresh):
        raise ValueError(
            "--shard is a share of its own: leave out --workers, --scheduler and --fresh"
        )
    if samples and polish is None:
        polish = False
    found_files = localize_files(paths[0], out, formats)
    draws = sample_files(paths[0], out, formats, samples)
    files = tuple(chain(found_files, *draws))
    check_outputs(files, inputs=[*paths, model, psf, *stated_files(camera)], folder=out)
    calibrated = _calibrated(psf)
    network, adapted = yield from _network(
        model,
        adapt,
        paths,
        camera=camera,
        psf=psf,
        pixel_size_nm=pixel_size_nm,
        em_gain=em_gain,
        device=device,
        allow_truncated=allow_truncated,
        selection=selection,
        folder=out,
    )
    with open_movie(
        paths, frames=frames, allow_truncated=allow_truncated, selection=selection
    ) as movie:
        out.mkdir(parents=True, exist_ok=True)
        yield Progress(0.0, "looking at the movie", detail=None)
        if camera is not None:
            camera = stated_camera(
                camera, movie=movie, pixel_size_nm=pixel_size_nm, em_gain=em_gain
            )
        options = {
            "pixel size": pixel_size_nm,
            "EM gain": em_gain,
            "PSF sigma": psf_sigma_nm,
            "polishing": (polish, exact),
            "threshold": (threshold, false_discovery_rate),
            "region": roi,
            "draws": (samples, seed),
            "device": choose_device(device).type,
            "assumptions": (*adapted, *assumed),
        }
        marked = marks_of(sorted(movie.files()) or paths)
        pieces = Pieces.begin(
            unfinished_folder(paths[0], out),
            {
                "movie": f"{marked} {movie.frames} {movie.shape} {selection}",
                "model": network.sha256(),
                "camera": digest(camera),
                "PSF": digest(calibrated),
                **{name: repr(value) for name, value in options.items()},
                "version": __version__,
            },
            n_frames=len(movie),
            size=piece_frames(movie.shape[1:], choose_device(device)),
            n_samples=samples,
            fresh=fresh,
            together=shard is not None,
        )

        def acquired() -> Acquisition:
            acquisition = acquire(
                movie,
                network,
                camera=camera,
                pixel_size_nm=pixel_size_nm,
                em_gain=em_gain,
                psf_sigma_nm=psf_sigma_nm,
                psf=calibrated,
                roi=roi,
                device=device,
                polish=polish,
            )
            estimates = (*adapted, *assumed, *acquisition.estimates)
            return replace(acquisition, estimates=estimates)

        order = Order(
            movie=tuple(map(str, paths)),
            frames=None if frames is None else ends(frames),
            roi=region_ends(roi),
            allow_truncated=allow_truncated,
            selection=asdict(selection),
            device=device,
            threshold=threshold,
            false_discovery_rate=false_discovery_rate,
            polish=polish,
            exact=exact,
            samples=samples,
            seed=seed,
            model=_called(model, network),
            files=tuple(map(str, found_files)),
            draws=tuple(tuple(map(str, draw)) for draw in draws),
        )
        with _tidied(pieces, alone=shard is None):
            work = Work(
                order=order,
                movie=movie,
                model=network,
                psf=calibrated,
                acquisition=pieces.acquisition(acquired),
            )
            if together:
                share(pieces.folder, work)
            crew = _crew(pieces.folder, workers, scheduler, device)
            report = yield from _completed(pieces, work, crew, shard=shard)
            if shard is None:
                return (yield from assembled(pieces, work, report))
    yield Progress(1.0, "done", detail=report)
    return Localized(
        acquisition=work.acquisition,
        n_molecules=report.n_molecules,
        n_frames=report.frames_total,
        remarks=(),
    )


@contextmanager
def _tidied(pieces: Pieces, *, alone: bool) -> Iterator[None]:
    """Within it, pieces are found; if it ends without any, their folder is deleted, unless others
    may work there."""
    try:
        yield
    finally:
        if alone and not pieces.done:
            pieces.remove()


def _crew(folder: Path, workers: int, scheduler: str | None, device: str) -> Crew | None:
    """Who finds the molecules; None: this process."""
    if scheduler is not None:
        return Cluster(folder, scheduler)
    if workers < 2:
        return None
    where = choose_device(device)
    each = where.type == "cuda" and where.index is None
    return Processes(folder, workers, n_gpus=torch.cuda.device_count() if each else 0)


def _completed(
    pieces: Pieces, work: Work, crew: Crew | None, *, shard: tuple[int, int] | None
) -> DetailedSteps[LocalizeReport, LocalizeReport]:
    """Find the molecules of all pieces that are missing, or of a share of them; returns the last
    report."""
    some = pieces.all
    if shard is not None:
        index, number = shard
        some = some[len(some) * (index - 1) // number : len(some) * index // number]
    done = sum(len(piece) for piece in some if not pieces.missing([piece]))
    nothing, acquisition = EmitterSet.empty(), work.acquisition
    report = LocalizeReport(
        acquisition=acquisition,
        molecules=nothing,
        n_molecules=pieces.count(some),
        frames_done=done,
        frames_total=sum(map(len, some)),
        begun=pieces.begun,
    )

    def told(message: str = "") -> Progress[LocalizeReport]:
        counts = f"{report.frames_done} of {report.frames_total} frames"
        return Progress(
            report.frames_done / max(1, report.frames_total),
            message or f"{counts}, {report.n_molecules} molecules",
            detail=report,
        )

    first = "; ".join(acquisition.estimates) or "looking for molecules"
    yield replace(told(first), warnings=acquisition.warnings)
    if crew is not None:
        with crew:
            for _ in find_together(pieces, crew):
                if pieces.frames_done > report.frames_done:
                    report = replace(
                        report, frames_done=pieces.frames_done, n_molecules=pieces.count()
                    )
                yield told()
    for run in pieces.missing(some):
        before = report.frames_done
        for chunk in work.find(pieces, run):
            chunk = chunk.each(work.numbered)
            report = replace(
                report,
                molecules=chunk.molecules,
                samples=chunk.samples,
                n_molecules=report.n_molecules + len(chunk.molecules),
                frames_done=before + chunk.frames_done - run.start,
            )
            yield told()
    return replace(report, molecules=nothing, samples=())


def assembled(
    pieces: Pieces, work: Work, report: LocalizeReport
) -> DetailedSteps[LocalizeReport, Localized]:
    """Write tables and picture of a movie whose pieces are all there.

    Raises:
        OSError: as `assemble` does.
    """
    checking, order = work.checking(), work.order
    files = tuple(Path(file) for file in order.files)
    draws = [tuple(Path(file) for file in draw) for draw in order.draws]
    steps = assemble(pieces, files, draws, work.facts, checking, work.numbered)
    checks = yield from relayed(steps, lambda own: Progress(1.0, own.message, detail=report))
    failed = tuple(str(check) for check in checks if check.failed)
    yield Progress(1.0, "done", failed, replace(report, checks=checks))
    return Localized(
        acquisition=work.acquisition,
        n_molecules=checking.n_molecules,
        n_frames=pieces.all[-1].stop,
        remarks=checking.remarks,
        checks=checks,
        files=(*files, *chain(*draws)),
        draws=tuple(chain(*draws)),
    )


def _network(
    model: Localizer | Path | str | None,
    minutes: float | None,
    movie: MovieSource,
    *,
    camera: CameraFile | Path | str | None,
    psf: PSFFile | Path | str | None,
    pixel_size_nm: float | None,
    em_gain: float | None,
    device: str,
    allow_truncated: bool,
    selection: Selection,
    folder: Path | None = None,
) -> DetailedSteps[None, tuple[Localizer, tuple[str, ...]]]:
    """The model, and what is to be said of it; one that is adapted sees the whole movie."""
    minutes = usual_minutes(minutes, model=model, psf=psf, camera=camera)
    if minutes is None:
        if model is None:
            raise ValueError(
                "state a model (--model), or PSF and camera (--psf, --camera) for which one is "
                "trained (--adapt)"
            )
        return (model if isinstance(model, Localizer) else load_model(model)), ()
    if model is not None:
        raise ValueError("--adapt chooses the model that it begins with; leave out --model")
    if camera is None or not isinstance(psf, Path | str):
        raise ValueError(
            "a model is adapted to a calibrated PSF and a camera; state the file of the PSF "
            "(--psf) and the camera (--camera)"
        )
    with _opened(
        movie, frames=None, allow_truncated=allow_truncated, selection=selection
    ) as opened:
        known = stated_camera(camera, movie=opened, pixel_size_nm=pixel_size_nm, em_gain=em_gain)
        adapted = yield from adapt_model.steps(
            opened, psf=psf, camera=known, minutes=minutes, folder=folder, device=device
        )
    return adapted.model, (adapted.remark,)


def _called(model: Localizer | Path | str | None, network: Localizer) -> str:
    """A model as `Facts` states it."""
    name = f"{Path(model).stem}, " if isinstance(model, Path | str) else ""
    return f"{name}SHA-256 {network.sha256()}"


def _calibrated(psf: PSFFile | Path | str | None) -> PSFFile | None:
    return read_psf(psf) if isinstance(psf, Path | str) else psf


def _opened(
    movie: MovieSource, *, frames: slice | None, allow_truncated: bool, selection: Selection
) -> AbstractContextManager[Movie]:
    if isinstance(movie, Movie):
        if frames is not None or selection != WHOLE:
            raise ValueError(
                "an open movie has frames of its own: choose them with open_movie(..., frames=...)"
            )
        return nullcontext(movie)
    if isinstance(movie, Tensor | np.ndarray):
        if selection != WHOLE:
            raise ValueError("an array has neither channels nor positions: give the frames alone")
        return open_array(np.asarray(movie), frames=frames)
    return open_movie(movie, frames=frames, allow_truncated=allow_truncated, selection=selection)
