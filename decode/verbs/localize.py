"""batch: a movie on disk to tables and a picture on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

import numpy as np
import torch

from decode import __version__
from decode.calibrate.as_pupil import calibrated_pupil
from decode.calibrate.camera import check_maps
from decode.conditioning import ALIKE_PIXELS, KnownOptics, require_pixels_alike
from decode.defects import UsualFrames, defects_of, with_bad_pixels
from decode.devices import choose_device
from decode.emitters import EmitterSet, Facts
from decode.errors import in_plain_words, is_out_of_memory
from decode.estimate import estimate_camera, estimate_psf_sigma
from decode.io.cameras import CameraFile
from decode.io.movies.tiff import Movie, in_natural_order, open_movie, require_pixel_size
from decode.io.psfs import PSFFile
from decode.io.tables.together import TableWriters
from decode.network.localizer import Localizer
from decode.optics.camera import Camera
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import PSF
from decode.outputs import FORMATS, check_outputs, localize_files
from decode.postprocess.depth_ends import DepthEnds
from decode.render import save_picture
from decode.training.diagnosis import beyond_training, unsteady
from decode.verbs.polish import polish_movie
from decode.verbs.sweep import Chunk, sweep

__all__ = [
    "Acquisition",
    "BatchProgress",
    "acquisition_for",
    "check_camera",
    "check_pixels",
    "complete_acquisition",
    "localize_file",
    "localize_movie",
    "provenance",
    "psf_to_polish_with",
]


@final
@dataclass(frozen=True, kw_only=True)
class Acquisition:
    """What must be known about a movie to localize in it."""

    camera: Camera
    pixel_size_nm: float
    psf_sigma_nm: float | None
    """None where the model knows the PSF by itself"""
    estimates: tuple[str, ...] = ()
    """a sentence on each fact that was not stated, but taken from the model or estimated from the movie"""
    warnings: tuple[str, ...] = ()
    """a sentence on each thing that is wrong with the movie, or does not fit between it and the stated camera"""
    usual: UsualFrames | None = None
    """what tells frames that hold no image; None looks at the movie"""


@final
@dataclass(frozen=True, kw_only=True)
class BatchProgress:
    """Where `localize_file` stands."""

    frames_done: int
    frames_total: int
    n_molecules: int
    acquisition: Acquisition
    files: tuple[Path, ...] = ()
    """what was written; nothing before all is done"""
    remarks: tuple[str, ...] = ()
    """at the end, a sentence on each thing about the molecules that their user should know"""


def check_pixels(movie: Movie, pixel_size_nm: float) -> tuple[str, ...]:
    """What does not fit between the pixel size that is taken and the one that the movie's file states."""
    if movie.pixel_sides_nm is None:
        return ()
    x, y = movie.pixel_sides_nm
    if movie.pixel_size_nm is None:
        return (
            f"the file states pixels of {x:g} x {y:g} nm (x, y), but pixels are taken to be squares of "
            f"{pixel_size_nm:g} nm: lengths along one axis are wrong unless the file is",
        )
    if abs(x / pixel_size_nm - 1) < ALIKE_PIXELS:
        return ()
    return (
        f"the file states pixels of {x:g} nm, and {pixel_size_nm:g} nm were stated for this movie and are taken: all "
        "lengths go with it, so check binning and magnification",
    )


def check_camera(movie: Movie, camera: Camera, pixel_size_nm: float) -> tuple[str, ...]:
    """What is wrong with a movie or does not fit its camera, a sentence each; about a second.

    Pixels of another size (`check_pixels`), frames and pixels that hold no image (`defects_of`), and `check_maps` at a
    glance.

    Raises:
        ValueError: if the camera's maps are not as large as the frames.
    """
    misfits = check_maps(movie, camera, n_frames=100, side_px=256) if len(movie) >= 3 else ()
    return (*check_pixels(movie, pixel_size_nm), *defects_of(movie, camera).sentences, *misfits)


def complete_acquisition(
    movie: Movie,
    *,
    camera: Camera | None = None,
    pixel_size_nm: float | None = None,
    psf_sigma_nm: float | None = None,
    psf_known: bool = False,
) -> Acquisition:
    """Take what is stated, estimate the rest from the movie, and check a stated camera against it.

    Args:
        movie: from `open_movie`.
        camera: None estimates gain and offset, roughly.
        pixel_size_nm: None takes what the metadata of the movie state.
        psf_sigma_nm: width of the PSF; None estimates it.
        psf_known: nobody needs that width.

    Raises:
        ValueError: if a number is not positive, nothing states the pixel size, nothing can be estimated, or the
            camera's maps are not as large as the frames.
    """
    if pixel_size_nm is not None:
        require_pixel_size(pixel_size_nm)
    if psf_sigma_nm is not None and not psf_sigma_nm > 0:
        raise ValueError(f"the PSF's sigma is {psf_sigma_nm:g} nm, must be positive")
    pixel_size_nm = pixel_size_nm or movie.pixel_size_nm
    if pixel_size_nm is None:
        says = "does not say how large its pixels are"
        if movie.pixel_sides_nm is not None:
            says = "says that its pixels have {:g} x {:g} nm, which are no squares".format(*movie.pixel_sides_nm)
        raise ValueError(f"{movie.path} {says}; state it with --camera or --pixel-size")
    estimates: list[str] = []
    warnings: tuple[str, ...] = ()
    if camera is None:
        camera, remarks = estimate_camera(movie)
        estimates += remarks
        warnings = (*check_pixels(movie, pixel_size_nm), *defects_of(movie, camera).sentences)
    else:
        warnings = check_camera(movie, camera, pixel_size_nm)
    camera = with_bad_pixels(movie, camera)
    if psf_sigma_nm is None and not psf_known:
        sigma_nm = estimate_psf_sigma(movie, camera, pixel_size_nm)
        psf_sigma_nm = sigma_nm.value
        estimates.append(f"no PSF width was given: a sigma of {sigma_nm} nm was estimated from {sigma_nm.n} molecules")
    return Acquisition(
        camera=camera,
        pixel_size_nm=pixel_size_nm,
        psf_sigma_nm=psf_sigma_nm,
        estimates=tuple(estimates),
        warnings=warnings,
        usual=UsualFrames.of(movie, camera),
    )


def localize_file(
    path: Path | str | Sequence[Path | str],
    model: Localizer,
    out: Path | str,
    *,
    camera: CameraFile | None = None,
    pixel_size_nm: float | None = None,
    psf_sigma_nm: float | None = None,
    psf: PSFFile | None = None,
    threshold: float = 0.5,
    frames: slice | None = None,
    roi: tuple[slice, slice] | None = None,
    formats: Sequence[str] = FORMATS,
    device: str = "auto",
    allow_truncated: bool = False,
    polish: bool = False,
) -> Iterator[BatchProgress]:
    """Localize the molecules of a movie file, and write `<stem>.csv`, `.hdf5` (and `.yaml`) and `.png` into a folder.

    Tables are written while the movie is read, and appear when that is done, before the picture is drawn; after an
    error, or when the iteration is given up, there are none.  What cannot be written does not cost the others: they are
    kept, and the error says so at the end.

    Args:
        path: TIFF movie, a folder of one file a frame, or the parts of a movie that was split, of which the first
            gives its name.
        model: from `load_model`.
        out: folder, made where there is none.
        camera: None takes the model's, where it was trained for one, or else estimates it.
        pixel_size_nm: None takes the camera file's, else the movie's, else the model's.
        psf_sigma_nm: width of the PSF; None estimates it.
        psf: the calibrated PSF, for a model that is told its pupil, and to polish with.
        threshold, roi, device: as `localize` takes them.
        frames, allow_truncated: as `open_movie` takes them.
        formats: of `FORMATS`.
        polish: refine the molecules by the likelihood of the frames, with `psf`, else the model's PSF, else a Gaussian.

    Yields:
        Progress: once before the first frame, after every chunk, and with the files when they are written.

    Raises:
        ValueError, OSError: in one sentence, if an input is wrong or a file cannot be written.
    """
    paths, out = in_natural_order([path] if isinstance(path, str | Path) else path), Path(out)
    files = localize_files(paths[0], out, formats)
    check_outputs(files, inputs=paths, folder=out)
    picture = next((file for file in files if file.suffix == ".png"), None)
    with open_movie(paths, frames=frames, allow_truncated=allow_truncated) as movie:
        out.mkdir(parents=True, exist_ok=True)
        acquisition = acquisition_for(
            movie, model, camera=camera, pixel_size_nm=pixel_size_nm, psf_sigma_nm=psf_sigma_nm
        )
        chunks = localize_movie(
            movie, model, acquisition, psf=psf, threshold=threshold, roi=roi, device=device, polish=polish
        )
        progress = BatchProgress(frames_done=0, frames_total=len(movie), n_molecules=0, acquisition=acquisition)
        yield progress

        facts = provenance(movie, acquisition, threshold=threshold).metadata()
        drawn = []
        ends = DepthEnds()
        with TableWriters([file for file in files if file.suffix in (".csv", ".hdf5")], facts) as tables:
            for chunk in chunks:
                tables.write(chunk.molecules)
                ends.see(chunk.molecules)
                if picture is not None:
                    # positions and their sigmas are all that a picture shows
                    drawn.append(
                        replace(
                            chunk.molecules,
                            background=None,
                            probability=None,
                            photons_sigma=None,
                            metadata=facts,
                        )
                    )
                progress = replace(
                    progress,
                    frames_done=chunk.frames_done,
                    n_molecules=progress.n_molecules + len(chunk.molecules),
                )
                yield progress
    failures = [*tables.failures]
    if picture is not None:
        failures += _draw(drawn, picture)
    if failures:
        raise OSError("; ".join([*failures, f"written: {', '.join(map(str, tables.written)) or 'nothing'}"]))
    yield replace(progress, files=files, remarks=ends.remarks)


def _draw(chunks: Sequence[EmitterSet], picture: Path) -> list[str]:
    """Save the picture; why it could not be, if so."""
    try:
        save_picture(EmitterSet.cat(chunks), picture)
    except Exception as error:
        if is_out_of_memory(error):
            return [f"cannot draw {picture}: there is not enough memory"]
        if isinstance(error, OSError):
            return [in_plain_words(error)]
        raise
    return []


def _typical_photons(movie: Movie, camera: Camera) -> float:
    """Median light of a pixel in some frames spread over the movie: its background, unless molecules crowd."""
    at = np.unique(np.linspace(0, len(movie) - 1, 10).astype(int)).tolist()
    frames = np.concatenate([movie.read(i, i + 1) for i in at])
    return float(camera.to_photons(torch.from_numpy(frames.astype(np.float32))).nanmedian())


def acquisition_for(
    movie: Movie,
    model: Localizer,
    *,
    camera: CameraFile | None = None,
    pixel_size_nm: float | None = None,
    psf_sigma_nm: float | None = None,
) -> Acquisition:
    """All that a model must know of a movie: what is stated, what the model brings along, and estimates for the rest.

    Args:
        movie: from `open_movie`.
        model: from `load_model`.
        camera, pixel_size_nm, psf_sigma_nm: as `localize_file` takes them.

    Raises:
        ValueError: if something is missing, or does not fit the movie.
    """
    stated = model.camera if camera is None else camera.camera
    if camera is None and stated is not None and stated.shape not in (None, movie.shape[1:]):
        raise ValueError(
            f"no camera was given, and the maps of the one that the model was trained for are {stated.shape} "
            f"pixels (y, x), the movie's frames {movie.shape[1:]}; state the camera of this movie"
        )
    pixel_size_nm = pixel_size_nm or (None if camera is None else camera.pixel_size_nm) or movie.pixel_size_nm
    if pixel_size_nm is None and model.psf is not None:
        pixel_size_nm = model.psf.pixel_size_nm
    acquisition = complete_acquisition(
        movie,
        camera=stated,
        pixel_size_nm=pixel_size_nm,
        psf_sigma_nm=psf_sigma_nm,
        psf_known=not model.domain.kind.needs_width,
    )
    if camera is None and stated is not None:
        remark = "no camera was given: the one that the model was trained for was taken"
        acquisition = replace(acquisition, estimates=(remark, *acquisition.estimates))
    if remark := model.domain.remark(movie.shape[1:], acquisition.pixel_size_nm):
        acquisition = replace(acquisition, estimates=(*acquisition.estimates, remark))
    if remark := beyond_training(model.record, _typical_photons(movie, acquisition.camera)):
        acquisition = replace(acquisition, warnings=(*acquisition.warnings, remark))
    if acquisition.usual is not None:
        remark = unsteady(model.record, acquisition.usual.flicker(acquisition.camera))
        acquisition = replace(acquisition, warnings=(*acquisition.warnings, *([remark] if remark else [])))
    return acquisition


def localize_movie(
    movie: Movie,
    model: Localizer,
    acquisition: Acquisition,
    *,
    psf: PSFFile | None = None,
    threshold: float = 0.5,
    roi: tuple[slice, slice] | None = None,
    device: str = "auto",
    polish: bool = False,
) -> Iterator[Chunk]:
    """Localize the molecules of an open movie, chunk after chunk, with whatever kind of model.

    Args:
        movie: from `open_movie`.
        model: from `load_model`.
        acquisition: from `acquisition_for`.
        psf, threshold, roi, device, polish: as `localize_file` takes them.

    Returns:
        Molecules of the next frames, as `localize` yields them.  While they are polished, empty tables now and then.

    Raises:
        ValueError: if the PSF or the pixel size does not fit the model.
    """
    optics = KnownOptics(
        pixel_size_nm=acquisition.pixel_size_nm,
        shape=movie.shape[1:],
        psf_sigma_nm=acquisition.psf_sigma_nm,
        pupil=None if psf is None else partial(calibrated_pupil, psf.psf, psf.z_range_nm),
    )
    known = model.domain.conditioning(optics)
    chunks = sweep(
        movie,
        model,
        acquisition.camera,
        pixel_size_nm=acquisition.pixel_size_nm,
        context=known.values,
        threshold=threshold,
        device=device,
        roi=roi,
        usual=acquisition.usual,
    )
    chunks = (replace(chunk, molecules=known.placed(chunk.molecules)) for chunk in chunks)
    if polish:
        own = psf_to_polish_with(model, psf, acquisition)
        where = choose_device(device)
        chunks = polish_movie(chunks, movie, own, acquisition.camera, where, usual=acquisition.usual)
    return chunks


def provenance(movie: Movie, acquisition: Acquisition, *, threshold: float) -> Facts:
    """The facts that travel with a table of a movie's molecules."""
    _, height, width = movie.shape
    return Facts(
        pixel_size_nm=acquisition.pixel_size_nm,
        n_frames=movie.frames.stop,
        height_px=height,
        width_px=width,
        psf_sigma_nm=acquisition.psf_sigma_nm,
        movie=str(movie.path),
        threshold=threshold,
        version=__version__,
    )


def psf_to_polish_with(model: Localizer, file: PSFFile | None, acquisition: Acquisition) -> PSF:
    """The PSF of a movie, as well as it is known: the calibrated one, else the model's, else a Gaussian.

    Raises:
        ValueError: if nothing tells it, or its pixels have another size than the movie's.
    """
    psf = model.psf if file is None else file.psf.tabulated(file.z_range_nm)
    if psf is None and acquisition.psf_sigma_nm is not None:
        psf = GaussianPSF(acquisition.psf_sigma_nm, pixel_size_nm=acquisition.pixel_size_nm)
    if psf is None:
        raise ValueError("to polish, the PSF must be known, and the model carries none: give a calibrated one as --psf")
    require_pixels_alike(psf.pixel_size_nm, acquisition.pixel_size_nm)
    return deepcopy(psf)
