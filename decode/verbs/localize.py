"""localize: a movie and a model to molecules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from decode.acquisition import Acquisition, acquisition_for, stated_camera, stated_files
from decode.calibrate.as_pupil import calibrated_pupil
from decode.conditioning import KnownOptics
from decode.devices import choose_device
from decode.emitters import Check, EmitterSet
from decode.io.cameras import CameraFile
from decode.io.movies import WHOLE, Movie, Selection, in_natural_order, open_array, open_movie
from decode.io.psfs import PSFFile, read_psf
from decode.likelihood.proposals import LEAST_PROBABILITY
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
from decode.verbs.aperture import counts_core, with_aperture
from decode.verbs.assemble import assemble
from decode.verbs.checking import Checking
from decode.verbs.draws import Draws
from decode.verbs.pieces import Pieces, digest, marks_of, piece_frames
from decode.verbs.polish import Decision, knows_psf, polish_movie, psf_to_polish_with
from decode.verbs.region import region_of
from decode.verbs.sweep import Chunk, chunk_frames, sweep
from decode.version import __version__

__all__ = [
    "LocalizeReport",
    "Localized",
    "acquire",
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


def acquire(
    movie: Movie,
    model: Localizer,
    *,
    camera: CameraFile | Path | str | None = None,
    pixel_size_nm: float | None = None,
    em_gain: float | None = None,
    psf_sigma_nm: float | None = None,
    psf: PSFFile | None = None,
    roi: tuple[slice, slice] | None = None,
    device: str = "auto",
    polish: bool | None = None,
) -> Acquisition:
    """The acquisition by `acquisition_for`, with the aperture correction where photons are those of
    a Gaussian core.

    Args:
        movie: from `open_movie`.
        model: from `load_model`.
        camera, pixel_size_nm, em_gain, psf_sigma_nm: as for `acquisition_for`.
        psf, roi, device, polish: as for `localize_movie`.

    Raises:
        ValueError, OSError: as `acquisition_for` and `localize_movie` do.
    """
    acquisition = acquisition_for(
        movie,
        model,
        camera=camera,
        pixel_size_nm=pixel_size_nm,
        em_gain=em_gain,
        psf_sigma_nm=psf_sigma_nm,
    )
    if model.network.axial and psf is not None and psf.z_remark:
        acquisition = replace(acquisition, estimates=(*acquisition.estimates, psf.z_remark))
    if not counts_core(model, psf, polish=_polishes(model, psf, polish=polish)):
        return acquisition

    def read_out(part: Movie, of_part: Acquisition) -> EmitterSet:
        chunks = localize_movie(part, model, of_part, psf=psf, device=device, polish=polish)
        return EmitterSet.cat(chunk.molecules for chunk in chunks)

    return with_aperture(movie, acquisition, read_out, roi=roi)


def localize_movie(
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
    posteriors: bool = False,
    samples: int = 0,
    seed: int = 0,
    part: range | None = None,
) -> Iterator[Chunk]:
    """Localize the molecules of an open movie, chunk after chunk: the generator below `localize`.

    Args:
        movie: from `open_movie`.
        model: from `load_model`.
        acquisition: from `acquire`.
        psf, threshold, false_discovery_rate, roi, device, polish, exact: as for `localize`.
        posteriors: whether chunks carry the network's posterior of their frames, too, in its own
            coordinates of z and photons, and not polished.
        samples, seed: as for `localize_file`; chunks carry the draws.
        part: the frames to localize in, counted from the movie's first, as whole pieces
            (`decode.verbs.pieces.piece_frames`); their molecules are to the last bit those of the
            whole movie.  None: all.

    Returns:
        Molecules of the next frames, as from `sweep`; during polishing, some chunks have no
        molecules.

    Raises:
        ValueError: if PSF, pixel size, camera or region do not fit the model or the movie.
        OSError: if the movie cannot be read.
    """
    if polish and samples:
        raise ValueError("draws are of the posterior of the network: choose samples or polish")
    if exact:
        _require_likelihood(model, psf, polish=polish, samples=samples)
    optics = KnownOptics(
        pixel_size_nm=acquisition.pixel_size_nm,
        shape=movie.shape[1:],
        psf_sigma_nm=acquisition.psf_sigma_nm,
        psf_pixel_size_nm=None if psf is None else psf.psf.pixel_size_nm,
        pupil=None if psf is None else partial(calibrated_pupil, psf),
    )
    known = model.domain.conditioning(optics)
    polish = _polishes(model, psf, polish=polish) and not (posteriors or samples)
    decision = Decision(
        threshold=threshold,
        false_discovery_rate=false_discovery_rate,
        axial=model.network.axial,
    )
    decides = polish and knows_psf(model, psf)
    swept = part
    if part is not None and polish:  # which takes molecules from beyond the ends
        more = chunk_frames(movie.shape[1:], choose_device(device))
        swept = range(max(0, part.start - more), min(len(movie), part.stop + more))
    chunks = sweep(
        movie,
        model,
        acquisition.camera,
        pixel_size_nm=acquisition.pixel_size_nm,
        context=known.values,
        threshold=LEAST_PROBABILITY if decides else threshold,
        device=device,
        roi=roi,
        usual=acquisition.usual,
        posteriors=posteriors or samples > 0,
        recalibrated=not polish,  # the likelihood was fitted to what the network itself states
        part=swept,
    )
    if samples:
        region = region_of(roi, movie.shape[1:])
        corner = region[0].start, region[1].start
        draws, first = Draws(samples, seed=seed, corner_px=corner), movie.frames.start
        chunks = (replace(chunk, samples=draws.of(chunk, first_frame=first)) for chunk in chunks)
    facts = acquisition.facts(movie, threshold=threshold).metadata()

    def placed(molecules: EmitterSet) -> EmitterSet:
        return replace(known.placed(molecules), metadata=facts)

    chunks = (chunk.each(placed) for chunk in chunks)
    if polish:
        chunks = polish_movie(
            chunks,
            movie,
            psf_to_polish_with(model, psf, acquisition),
            acquisition.camera,
            choose_device(device),
            usual=acquisition.usual,
            decision=decision if decides else None,
            region=region_of(roi, movie.shape[1:]),
            exact=exact,
            part=part,
        )
    aperture = acquisition.aperture
    if aperture is None:
        return chunks
    return (chunk.each(aperture.applied) for chunk in chunks)


def _numbered(movie: Movie, molecules: EmitterSet) -> EmitterSet:
    """Molecules whose frames have the numbers of the file, where some were left out, too."""
    numbers = torch.from_numpy(movie.numbers)
    return replace(molecules, frame=numbers[molecules.frame - movie.frames.start])


def _require_likelihood(
    model: Localizer, psf: PSFFile | None, *, polish: bool | None, samples: int
) -> None:
    """Raise unless the exact posterior can be stated."""
    if not knows_psf(model, psf):
        raise ValueError(
            "the exact posterior needs a known PSF, and the model carries none: give a calibrated "
            "one as --psf, or leave out --exact"
        )
    if polish is False or samples:
        raise ValueError(
            "the exact posterior is that of polished molecules: choose --exact, or --no-polish or "
            "--samples"
        )


def _polishes(model: Localizer, psf: PSFFile | None, *, polish: bool | None) -> bool:
    return knows_psf(model, psf) if polish is None else polish


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
    numbered = partial(_numbered, movie)
    for chunk in chunks:
        checking.see(chunk)
        chunk = chunk.each(numbered)
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
        adapt, camera, psf, pixel_size_nm, em_gain, psf_sigma_nm, polish, exact, threshold, frames,
        roi, device, allow_truncated, selection:
            as `localize` takes them.

    Raises:
        ValueError, OSError: in one sentence, if an input is wrong or a file cannot be written.
    """
    paths, out = in_natural_order([path] if isinstance(path, str | Path) else path), Path(out)
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
        pieces = Pieces.begin(
            unfinished_folder(paths[0], out),
            {
                "movie": f"{marks_of(paths)} {movie.frames} {movie.shape} {selection}",
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

        with _tidied(pieces):
            acquisition = pieces.acquisition(acquired)
            look = partial(
                localize_movie,
                movie,
                network,
                acquisition,
                psf=calibrated,
                threshold=threshold,
                false_discovery_rate=false_discovery_rate,
                roi=roi,
                device=device,
                polish=polish,
                exact=exact,
                samples=samples,
                seed=seed,
            )
            numbered = partial(_numbered, movie)
            report = yield from _completed(pieces, look, acquisition, numbered)
            facts = acquisition.facts(
                movie,
                threshold=threshold,
                model=_called(model, network),
                psf=network.psf if calibrated is None else calibrated.psf,
            )
            checking = Checking(movie, network, acquisition, psf=calibrated, roi=roi)
            work = assemble(pieces, found_files, draws, facts, checking, numbered)
            told = relayed(work, lambda own: Progress(1.0, own.message, detail=report))
            checks = yield from told
    failed = tuple(str(check) for check in checks if check.failed)
    yield Progress(1.0, "done", failed, replace(report, checks=checks))
    return Localized(
        acquisition=acquisition,
        n_molecules=checking.n_molecules,
        n_frames=report.frames_total,
        remarks=checking.remarks,
        checks=checks,
        files=files,
    )


@contextmanager
def _tidied(pieces: Pieces) -> Iterator[None]:
    """Within it, pieces are found; if it ends without any, their folder is deleted."""
    try:
        yield
    finally:
        if not pieces.done:
            pieces.remove()


def _completed(
    pieces: Pieces,
    look: Callable[..., Iterator[Chunk]],
    acquisition: Acquisition,
    numbered: Callable[[EmitterSet], EmitterSet],
) -> DetailedSteps[LocalizeReport, LocalizeReport]:
    """Find the molecules of all pieces that are missing; returns the last report."""
    n_frames = pieces.all[-1].stop
    nothing = EmitterSet.empty()
    report = LocalizeReport(
        acquisition=acquisition,
        molecules=nothing,
        n_molecules=pieces.count(),
        frames_done=pieces.frames_done,
        frames_total=n_frames,
        begun=pieces.begun,
    )
    message = "; ".join(acquisition.estimates) or "looking for molecules"
    yield Progress(report.frames_done / n_frames, message, acquisition.warnings, report)
    for run in pieces.missing():
        before = report.frames_done
        piece, found = pieces.at(run.start), list[Chunk]()
        for chunk in look(part=run):
            found.append(chunk)
            if chunk.frames_done == piece.stop:
                draws = zip(*(each.samples for each in found), strict=True)
                molecules = EmitterSet.cat(each.molecules for each in found)
                pieces.write(piece, molecules, [EmitterSet.cat(draw) for draw in draws])
                found.clear()
                if piece.stop < run.stop:
                    piece = pieces.at(piece.stop)
            chunk = chunk.each(numbered)
            report = replace(
                report,
                molecules=chunk.molecules,
                samples=chunk.samples,
                n_molecules=report.n_molecules + len(chunk.molecules),
                frames_done=before + chunk.frames_done - run.start,
            )
            message = f"{report.frames_done} of {n_frames} frames, {report.n_molecules} molecules"
            yield Progress(report.frames_done / n_frames, message, detail=report)
    return replace(report, molecules=nothing, samples=())


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
    if minutes is None:
        if model is None:
            raise ValueError(
                "state a model (--model), or have one trained for the PSF and this movie (--adapt)"
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
