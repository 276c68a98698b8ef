"""Acquisition: what must be known of a movie to localize in it, completed and checked."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from decode.calibrate.maps import compare_maps
from decode.conditioning import ALIKE_PIXELS
from decode.defects import UsualFrames, defects_of, with_bad_pixels
from decode.emitters import Facts
from decode.estimation import ApertureCorrection, estimate_camera, estimate_psf_sigma
from decode.io.cameras import CameraFile, camera_inputs, read_camera
from decode.io.movies import Movie, require_pixel_size
from decode.network.localizer import Localizer
from decode.optics.camera import Camera
from decode.optics.description import digest_of
from decode.optics.psf import PSF
from decode.training.diagnosis import beyond_training, unsteady
from decode.version import __version__

__all__ = [
    "Acquisition",
    "acquisition_for",
    "check_camera",
    "check_pixels",
    "complete_acquisition",
    "stated_camera",
    "stated_files",
]

FRAMES_CHECKED, SIDE_CHECKED_PX = 100, 256
"""number of frames, and side of the square in them, on which the maps of a camera are checked"""
BACKGROUND_FRAMES = 10
"""frames, spread over the movie, from which its background is estimated"""


@final
@dataclass(frozen=True, kw_only=True)
class Acquisition:
    """What must be known of a movie to localize in it."""

    camera: Camera
    pixel_size_nm: float
    psf_sigma_nm: float | None
    """width of the PSF; None where the model needs none"""
    aperture: ApertureCorrection | None = None
    """factor from the photons of the Gaussian core of the PSF to all photons; None: the model
    returns all photons"""
    estimates: tuple[str, ...] = ()
    """a sentence on each fact that was taken from the model or estimated from the movie"""
    warnings: tuple[str, ...] = ()
    """a sentence on each defect of the movie, and on each disagreement with camera or model"""
    usual: UsualFrames | None = None
    """statistics of frames that hold an image; None: computed from the movie"""

    stated_camera: Camera | None = None
    """before what the movie shows of its pixels was added; None: `camera`"""

    def facts(
        self,
        movie: Movie,
        *,
        threshold: float,
        model: str | None = None,
        psf: PSF | None = None,
    ) -> Facts:
        """The facts that travel with a table of the movie's molecules.

        Args:
            model, psf: what they were localized with, as `Facts` states it.
        """
        _, height, width = movie.shape
        return Facts(
            pixel_size_nm=self.pixel_size_nm,
            n_frames=int(movie.numbers[-1]) + 1,
            height_px=height,
            width_px=width,
            psf_sigma_nm=self.psf_sigma_nm,
            aperture_correction=None if self.aperture is None else self.aperture.factor,
            movie=str(movie.path),
            threshold=threshold,
            version=__version__,
            model=model,
            psf=_digest(psf),
            camera=_numbers_of(self.camera),
            estimates=self.estimates,
            warnings=self.warnings,
        )


def _digest(psf: PSF | None) -> str | None:
    """None for a PSF of a family that no file can hold, too."""
    with suppress(TypeError):
        return None if psf is None else digest_of(psf)
    return None


def _numbers_of(camera: Camera) -> dict[str, object]:
    """What is known of a camera, one number each; "map" for one a pixel."""

    def number(value: float | Tensor) -> float | str:
        one = not isinstance(value, Tensor) or value.numel() == 1
        return float(value) if one else "map"

    values = {f.name: getattr(camera, f.name) for f in fields(Camera) if f.name != "bad"}
    return {name: number(value) for name, value in values.items() if value is not None}


def acquisition_for(
    movie: Movie,
    model: Localizer,
    *,
    camera: CameraFile | Path | str | None = None,
    pixel_size_nm: float | None = None,
    em_gain: float | None = None,
    psf_sigma_nm: float | None = None,
) -> Acquisition:
    """All that a model must know of a movie: stated by the user, held by the model, or else
    estimated.

    Args:
        movie: from `open_movie`.
        model: from `load_model`.
        camera: as `stated_camera` takes it; None takes the model's, where it was trained for one,
            or else estimates it.
        pixel_size_nm: None takes the camera file's, else the movie's, else the model's.
        em_gain: mean gain of the EM register, for a common camera whose gain is a setting.
        psf_sigma_nm: width of the PSF; None estimates it.

    Raises:
        ValueError: if something is missing, or does not fit the movie.
    """
    if camera is None:
        stated = _camera_of_model(model, movie)
    else:
        file = stated_camera(camera, movie=movie, pixel_size_nm=pixel_size_nm, em_gain=em_gain)
        stated = file.camera
        if pixel_size_nm is None:
            pixel_size_nm = file.pixel_size_nm
    pixel_size_nm = pixel_size_nm or movie.pixel_size_nm
    if pixel_size_nm is None and model.psf is not None:
        pixel_size_nm = model.psf.pixel_size_nm
    acquisition = complete_acquisition(
        movie,
        camera=stated,
        pixel_size_nm=pixel_size_nm,
        psf_sigma_nm=psf_sigma_nm,
        psf_known=not model.domain.kind.needs_width,
    )
    taken = ""
    if camera is None and stated is not None:
        taken = "no camera was given: the one that the model was trained for was taken"
    elif camera is None and movie.camera_name is not None:
        taken = (
            f"no camera was given; the file calls it {movie.camera_name}: with its camera file, or "
            "its name in `decode cameras`, nothing of it has to be estimated"
        )
    field = model.domain.remark(movie.shape[1:], acquisition.pixel_size_nm)
    return replace(
        acquisition,
        estimates=tuple(filter(None, (taken, *acquisition.estimates, field))),
        warnings=(*acquisition.warnings, *_misfits(movie, model, acquisition)),
    )


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
        pixel_size_nm: side of a pixel; None takes that of the movie's metadata.
        psf_sigma_nm: width of the PSF; None estimates it.
        psf_known: whether the model needs no width.

    Raises:
        ValueError: if a number is not positive, nothing states the pixel size, nothing can be
            estimated, or the camera's maps are not as large as the frames.
    """
    if psf_sigma_nm is not None and not psf_sigma_nm > 0:
        raise ValueError(f"the PSF's sigma is {psf_sigma_nm:g} nm, must be positive")
    pixel_size_nm = _pixel_size_nm(movie, pixel_size_nm)
    estimates: tuple[str, ...] = ()
    if camera is None:
        estimated = estimate_camera(movie)
        camera, estimates = estimated.camera, estimated.notes
        warnings = (*check_pixels(movie, pixel_size_nm), *defects_of(movie, camera).sentences)
    else:
        warnings = check_camera(movie, camera, pixel_size_nm)
    stated, camera = camera, with_bad_pixels(movie, camera)
    if psf_sigma_nm is None and not psf_known:
        sigma = estimate_psf_sigma(movie, camera, pixel_size_nm)
        psf_sigma_nm = sigma.value
        said = (
            f"no PSF width was given: a sigma of {sigma} nm was estimated from {sigma.n} molecules"
        )
        estimates = (*estimates, said)
    usual = UsualFrames.of(movie, camera)
    if usual.row_noise is not None:
        warnings = (*warnings, usual.row_noise.remark)
    return Acquisition(
        camera=camera,
        pixel_size_nm=pixel_size_nm,
        psf_sigma_nm=psf_sigma_nm,
        estimates=tuple(estimates),
        warnings=warnings,
        usual=usual,
        stated_camera=stated,
    )


def stated_camera(
    camera: CameraFile | Path | str,
    *,
    movie: Movie | None = None,
    pixel_size_nm: float | None = None,
    em_gain: float | None = None,
) -> CameraFile:
    """A camera as users state it to verbs.

    Args:
        camera: the camera, its file, or the name of a common one.
        movie: says the side of a pixel where a common camera is named and nothing else does.
        pixel_size_nm, em_gain: replace the values of the file.

    Raises:
        ValueError, OSError: as `read_camera` does.
    """
    if isinstance(camera, CameraFile):
        return camera
    if movie is not None and not Path(camera).is_file():
        pixel_size_nm = pixel_size_nm or movie.pixel_size_nm
    return read_camera(camera, pixel_size_nm=pixel_size_nm, em_gain=em_gain)


def stated_files(camera: CameraFile | Path | str | None) -> tuple[Path, ...]:
    """What `stated_camera` reads of the user's: the file and its maps.

    Raises:
        ValueError, OSError: as `camera_inputs` does.
    """
    return camera_inputs(camera) if isinstance(camera, Path | str) else ()


def check_camera(movie: Movie, camera: Camera, pixel_size_nm: float) -> tuple[str, ...]:
    """Defects of a movie and disagreements with its camera, a sentence each; takes about a second.

    Compares pixel sizes (`check_pixels`), looks for frames and pixels that hold no image
    (`defects_of`), and compares the camera's maps with some frames (`compare_maps`).

    Raises:
        ValueError: if the camera's maps are not as large as the frames.
    """
    of_pixels = check_pixels(movie, pixel_size_nm)
    if len(movie) < 3:
        return (*of_pixels, *defects_of(movie, camera).sentences)
    maps = compare_maps(movie, camera, n_frames=FRAMES_CHECKED, side_px=SIDE_CHECKED_PX)
    defects = defects_of(movie, camera)
    # maps that are not of these pixels make them look bad
    of_defects = defects.sentences_on_frames if maps.misplaced else defects.sentences
    return (*of_pixels, *of_defects, *maps.sentences)


def check_pixels(movie: Movie, pixel_size_nm: float) -> tuple[str, ...]:
    """Whether the pixel size used differs from that in the movie's file, as sentences."""
    if movie.pixel_sides_nm is None:
        return ()
    x, y = movie.pixel_sides_nm
    if movie.pixel_size_nm is None:
        return (
            f"the file states pixels of {x:g} x {y:g} nm (x, y), but pixels are taken to be "
            "squares "
            f"of {pixel_size_nm:g} nm: lengths along one axis are wrong unless the file is",
        )
    if abs(x / pixel_size_nm - 1) < ALIKE_PIXELS:
        return ()
    return (
        f"the file states pixels of {x:g} nm, and {pixel_size_nm:g} nm were stated for this movie "
        "and are taken: all lengths scale with it, so check binning and magnification",
    )


def _pixel_size_nm(movie: Movie, stated: float | None) -> float:
    if stated is not None:
        require_pixel_size(stated)
    pixel_size_nm = stated or movie.pixel_size_nm
    if pixel_size_nm is not None:
        return pixel_size_nm
    says = "does not say how large its pixels are"
    if movie.pixel_sides_nm is not None:
        x, y = movie.pixel_sides_nm
        says = f"says that its pixels have {x:g} x {y:g} nm, which are no squares"
    raise ValueError(f"{movie.path} {says}; state it with --camera or --pixel-size")


def _camera_of_model(model: Localizer, movie: Movie) -> Camera | None:
    """The camera that a model was trained for, if any."""
    camera, shape = model.camera, movie.shape[1:]
    if camera is None or camera.shape in (None, shape):
        return camera
    raise ValueError(
        "no camera was given, and the maps of the one that the model was trained for are "
        f"{camera.shape} pixels (y, x), the movie's frames {shape}; state the camera of this movie"
    )


def _misfits(movie: Movie, model: Localizer, acquisition: Acquisition) -> tuple[str, ...]:
    """What a movie shows that the model was not trained on, a sentence each."""
    background = beyond_training(model.record, _typical_photons(movie, acquisition.camera))
    usual = acquisition.usual or UsualFrames.of(movie, acquisition.camera)
    light = unsteady(model.record, usual.flicker(acquisition.camera))
    return tuple(filter(None, (background, light)))


def _typical_photons(movie: Movie, camera: Camera) -> float:
    """Median light of a pixel in some frames: the background, unless molecules crowd."""
    at = np.unique(np.linspace(0, len(movie) - 1, BACKGROUND_FRAMES).astype(int)).tolist()
    frames = np.concatenate([movie.read(i, i + 1) for i in at]).astype(np.float32)
    return float(camera.to_photons(torch.from_numpy(frames)).nanmedian())
