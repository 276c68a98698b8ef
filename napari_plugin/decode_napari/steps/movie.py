"""Movie: the recording, its camera, and a check of its photons."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import numpy.typing as npt

from decode.progress import Progress, Steps
from decode_napari.session import OpenedMovie, Session
from decode_napari.steps.step import Step, call, command

if TYPE_CHECKING:
    from decode.io.cameras import CameraFile
    from decode.optics.camera import Camera

__all__ = ["MovieCheck", "MovieSettings", "MovieStep", "asks_em_gain", "camera_call"]

N_FRAMES = 60
"""frames whose photons are counted, spread over the movie"""


@final
@dataclass(frozen=True, kw_only=True)
class MovieSettings:
    """Statements of the user."""

    path: Path | None = None
    camera: str | None = None
    """preset or file; None estimates it"""
    pixel_size_nm: float | None = None
    """None takes that of the camera file or of the movie"""
    em_gain: float | None = None
    """mean gain of the EM register, for a preset whose gain is a setting"""
    allow_truncated: bool = False
    """whether to take the whole frames of a truncated file"""


@final
@dataclass(frozen=True, kw_only=True)
class MovieCheck:
    """The result of the check of a movie."""

    movie: OpenedMovie
    counts: npt.NDArray[np.int64]
    """number of pixels in bins of photons"""
    edges: npt.NDArray[np.float64]
    """edges of the bins, photons per pixel"""
    remarks: tuple[str, ...]
    """estimates, a sentence each"""
    warnings: tuple[str, ...]
    """disagreements of camera and movie, a sentence each"""


@final
class MovieStep(Step):
    title = "Movie"
    purpose = "Open a blinking movie, and state its camera and pixel size"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.settings = MovieSettings()
        self.checked: MovieCheck | None = None

    def missing(self) -> str:
        return ""

    def done(self) -> str:
        movie = self.session.movie
        if movie is None:
            return ""
        n, height, width = movie.shape
        return f"{movie.path.name}: {n} frames, {width} x {height} px of {movie.pixel_size_nm:g} nm"

    def check(self) -> Steps[MovieCheck]:
        """Open the movie, read or estimate its camera, and count photons.

        Raises:
            ValueError, OSError: if the movie or the camera cannot be read, or they do not fit
                together.
        """
        return _check(self.settings)

    def forget(self) -> None:
        self.checked = None

    def accept(self, checked: MovieCheck) -> None:
        self.checked = checked
        self.session.put(movie=checked.movie)

    def as_command(self) -> str:
        movie = self.session.movie
        if movie is None or movie.camera_name is not None:
            return ""  # a camera that is stated needs no command
        return command(
            "decode",
            "calibrate",
            "camera",
            movie=movie.path,
            pixel_size=movie.pixel_size_nm,
            o=_camera_of(movie),
        )

    def as_python(self) -> str:
        movie = self.session.movie
        if movie is None:
            return ""
        opened = call(
            "decode.open_movie",
            repr(str(movie.path)),
            allow_truncated=movie.allow_truncated or None,
        )
        camera = f"decode.{camera_call(movie)}"
        if movie.camera_name is None:
            camera = call(
                "decode.calibrate_camera",
                "movie=movie",
                pixel_size_nm=movie.pixel_size_nm,
                out=str(_camera_of(movie)),
            )
            camera = f"{camera}.file"
        return "\n".join(["import decode", "", f"movie = {opened}", f"camera = {camera}"])


def _camera_of(movie: OpenedMovie) -> Path:
    """The file of the estimated camera in the copied command."""
    return movie.path.with_name(f"{movie.path.stem}_camera.yaml")


def asks_em_gain(camera: str | None) -> bool:
    """Whether a camera is a preset whose EM gain its user sets."""
    from decode.io.cameras import camera_presets, read_camera

    if camera not in camera_presets():
        return False
    try:
        read_camera(str(camera), pixel_size_nm=100.0, em_gain=100.0)
    except ValueError:
        return False
    return True


def camera_call(movie: OpenedMovie) -> str:
    """The Python code that reads a movie's camera."""
    return call(
        "read_camera",
        repr(movie.camera_name),
        pixel_size_nm=movie.stated_pixel_size_nm,
        em_gain=movie.em_gain,
    )


def _check(settings: MovieSettings) -> Steps[MovieCheck]:
    from decode.acquisition import check_camera, check_pixels
    from decode.estimation import estimate_camera
    from decode.io.cameras import read_camera
    from decode.io.movies import open_movie

    if settings.path is None:
        raise ValueError("no movie is open: choose a TIFF file first")
    with open_movie(settings.path, allow_truncated=settings.allow_truncated) as movie:
        yield Progress(None, "looking at the camera")
        stated: CameraFile | None = None
        remarks: tuple[str, ...] = ()
        warnings: tuple[str, ...] = ()
        pixel_size = settings.pixel_size_nm
        if settings.camera is not None:
            if pixel_size is None and not Path(settings.camera).is_file():
                pixel_size = movie.pixel_size_nm  # a preset says nothing of the optics
            stated = read_camera(
                settings.camera, pixel_size_nm=pixel_size, em_gain=settings.em_gain
            )
            warnings = check_camera(movie, stated.camera, stated.pixel_size_nm)
            camera = stated.camera
        elif len(movie) < 3:
            raise ValueError(
                f"{movie.path.name} has too few frames to estimate its camera from; state it with "
                "--camera"
            )
        else:
            estimated = estimate_camera(movie)
            camera, remarks = estimated.camera, estimated.notes
        pixels_nm = pixel_size or (stated.pixel_size_nm if stated else movie.pixel_size_nm)
        if pixels_nm is None:
            raise ValueError(
                f"{movie.path.name} does not say how large its pixels are; state it with "
                "--pixel-size"
            )
        if stated is None:
            warnings = check_pixels(movie, pixels_nm)
        yield Progress(None, "counting photons")
        counts, edges = _histogram(movie, camera)
        opened = OpenedMovie(
            path=settings.path,
            shape=movie.shape,
            pixel_size_nm=pixels_nm,
            camera=stated,
            camera_name=settings.camera,
            stated_pixel_size_nm=pixel_size,
            em_gain=settings.em_gain,
            allow_truncated=settings.allow_truncated,
        )
    return MovieCheck(
        movie=opened, counts=counts, edges=edges, remarks=tuple(remarks), warnings=warnings
    )


def _histogram(movie: Any, camera: Camera) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    import torch

    some = np.unique(np.linspace(0, len(movie) - 1, N_FRAMES).round().astype(int)).tolist()
    adu = np.concatenate([movie.read(i, i + 1) for i in some]).astype(np.float32)
    photons = camera.to_photons(torch.from_numpy(adu)).numpy().ravel()
    low, high = np.quantile(photons, (0.0005, 0.9995)).tolist()
    counts, edges = np.histogram(photons, bins=80, range=(low, max(high, low + 1)))
    return counts, edges
