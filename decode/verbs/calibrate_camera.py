"""calibrate camera: dark and flat series, or a movie, to a camera."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
from torch import Tensor

from decode.calibrate.camera import CameraCalibration, measure_maps
from decode.calibrate.counts import Frames, opened
from decode.calibrate.maps import check_maps
from decode.estimation import CameraKind, estimate_camera
from decode.io.cameras import CameraFile, write_camera
from decode.io.movies import WHOLE, Movie, Selection, open_movie
from decode.outputs import camera_files, check_outputs

__all__ = ["CalibratedCamera", "calibrate_camera"]


@final
@dataclass(frozen=True, kw_only=True)
class CalibratedCamera:
    """A calibrated camera, with notes for its user."""

    file: CameraFile
    """camera and pixel size, as `write_camera` writes them"""
    notes: tuple[str, ...]
    """a sentence on each thing the user should know"""
    maps: CameraCalibration | None = None
    """maps with standard errors; None for a camera that was estimated from a movie"""
    files: tuple[Path, ...] = ()
    """files that were written"""


def calibrate_camera(
    dark: Frames | Sequence[Frames] = (),
    flats: Sequence[Frames] = (),
    *,
    movie: Frames | None = None,
    out: Path | str | None = None,
    pixel_size_nm: float | None = None,
    gain: float | None = None,
    qe: float | None = None,
    em_gain: float | None = None,
    kind: CameraKind | None = None,
    selection: Selection = WHOLE,
) -> CalibratedCamera:
    """Maps of a camera from series of dark and evenly lit frames, or its numbers from a movie.

    Args:
        dark: one or several series without light, (frame, y, x) ADU each: files that `open_movie`
            reads, open movies or arrays.
        flats: series of even light, one a light level.
        movie: without `dark`, the camera is estimated from it; with, the maps are checked against
            it.
        out: camera file, `.yaml`, with its maps beside it; None writes nothing.
        pixel_size_nm: side of a pixel in object space; None takes the first file's.
        gain: ADU per electron from the data sheet, where there are no flat series.
        qe: quantum efficiency; None takes a typical one for a movie's camera, else 1.
        em_gain: mean gain of an EMCCD's register.
        kind: `emccd` or `scmos`, for a movie's camera; None judges by its noise.
        selection: channel, position and plane of files that hold several.

    Returns:
        The camera, what is to be said of it, and the files that were written.

    Raises:
        ValueError: in one sentence, if there is nothing to calibrate with, nothing states gain or
            pixel size, series or movie are unsuitable, or an input would be overwritten.
        OSError: if a file cannot be read or written.

    Example:
        >>> import decode
        >>> movie = "sample_data/blinking_2d.tif"
        >>> decode.calibrate_camera(movie=movie, qe=0.9).file.pixel_size_nm
        100.0
    """
    darks = [dark] if isinstance(dark, Path | str | Movie | Tensor | np.ndarray) else [*dark]
    sources = darks if movie is None else [*darks, movie]
    if not sources:
        raise ValueError("give series of dark frames, or --movie")
    if out is not None:
        check_outputs(camera_files(Path(out)), inputs=[*sources, *flats])
    if selection != WHOLE:
        with ExitStack() as opened_files:

            def chosen(frames: Frames) -> Frames:
                if not isinstance(frames, Path | str):
                    return frames
                return opened_files.enter_context(open_movie(frames, selection=selection))

            return calibrate_camera(
                [chosen(each) for each in darks],
                [chosen(each) for each in flats],
                movie=None if movie is None else chosen(movie),
                out=out,
                pixel_size_nm=pixel_size_nm,
                gain=gain,
                qe=qe,
                em_gain=em_gain,
                kind=kind,
            )
    pixel_size_nm = _pixel_size_nm(sources[0], pixel_size_nm)
    if darks:
        maps = measure_maps(darks, flats, em_gain=em_gain)
        camera = maps.camera(gain=gain, qe=1.0 if qe is None else qe, em_gain=em_gain)
        notes = maps.notes
        if qe is None:
            notes += (
                "a quantum efficiency of 1 was taken: photons are photoelectrons; state --qe",
            )
        if movie is not None:
            notes += check_maps(movie, camera)
    else:
        if flats or gain is not None:
            raise ValueError(
                "--flat and --gain belong to dark series; give those too, or --movie alone"
            )
        assert movie is not None
        maps = None
        with opened(movie) as frames:
            estimated = estimate_camera(frames, kind=kind, qe=qe, em_gain=em_gain)
        camera, notes = estimated.camera, estimated.notes
    file = CameraFile(camera=camera, pixel_size_nm=pixel_size_nm)
    made = CalibratedCamera(file=file, notes=notes, maps=maps)
    if out is None:
        return made
    write_camera(out, file)
    return replace(made, files=(Path(out),))


def _pixel_size_nm(frames: Frames, stated: float | None) -> float:
    with opened(frames) as movie:
        recorded = movie.pixel_size_nm if isinstance(movie, Movie) else None
        name = movie.path if isinstance(movie, Movie) else "an array"
    pixel_size_nm = stated or recorded
    if pixel_size_nm is None:
        raise ValueError(
            f"{name} does not say how large its pixels are; state it with --pixel-size"
        )
    return pixel_size_nm
