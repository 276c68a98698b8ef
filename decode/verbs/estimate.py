"""estimate: what a movie shows, with intervals, and a recipe to train a model on such movies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

from decode.acquisition import check_camera
from decode.atomic import atomic
from decode.defects import Counts, defects_of
from decode.estimation import (
    Comparison,
    SceneEstimate,
    compare,
    estimate_camera,
    estimate_psf_sigma,
    estimate_scene,
    save_comparison,
    to_recipe,
)
from decode.io.cameras import CameraFile, read_camera, write_camera
from decode.io.movies import Movie, open_movie
from decode.io.psfs import PSFFile, read_psf
from decode.optics.gaussian import GaussianPSF
from decode.outputs import camera_beside, recipe_files
from decode.progress import Progress, Steps, Stepwise, part

__all__ = ["MovieEstimate", "estimate"]

ALIKE_PIXELS = 0.01
"""relative difference up to which two pixel sizes are taken for one"""


@final
@dataclass(frozen=True, kw_only=True)
class MovieEstimate:
    """What a movie shows, and what it was estimated with."""

    scene: SceneEstimate
    comparison: Comparison | None
    """real beside simulated frames; None where nobody asked for it"""
    camera: CameraFile
    psf: PSFFile
    source: str
    """name of the movie"""

    def __str__(self) -> str:
        return str(self.scene) if self.comparison is None else f"{self.scene}\n{self.comparison}"

    def recipe(self, *, psf_file: Path | str, camera_file: Path | str) -> str:
        """The text of a recipe for `decode train`, every range of which brackets the estimate.

        Args:
            psf_file, camera_file: where PSF and camera lie, as the recipe shall say it.
        """
        return to_recipe(
            self.scene,
            self.psf.psf,
            psf_file=psf_file,
            camera_file=camera_file,
            source=self.source,
            z_range_nm=self.psf.z_range_nm,
        )

    def write(
        self,
        recipe: Path | str,
        *,
        psf_file: Path | str,
        camera_file: Path | str | None = None,
    ) -> tuple[Path, ...]:
        """Write the recipe, and beside it the picture of the comparison, if there is one.

        Args:
            recipe: a YAML file.
            psf_file: where the PSF lies, as the recipe shall say it.
            camera_file: a file that holds all of the camera; None writes one beside the recipe.

        Returns:
            What was written.

        Raises:
            OSError: if a file cannot be written.
        """
        recipe, picture = recipe_files(Path(recipe))
        camera = camera_beside(recipe) if camera_file is None else Path(camera_file)
        relative = os.path.relpath(camera, recipe.parent)
        text = self.recipe(psf_file=psf_file, camera_file=relative)
        written = [recipe]
        if self.comparison is not None:
            save_comparison(self.comparison, picture)
            written.append(picture)
        if camera_file is None:
            write_camera(camera, self.camera)
            written.append(camera)
        with atomic(recipe) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return tuple(written)


@Stepwise
def estimate(
    movie: Counts | Path | str,
    *,
    camera: CameraFile | Path | str | None = None,
    psf: PSFFile | Path | str | None = None,
    pixel_size_nm: float | None = None,
    em_gain: float | None = None,
    allow_truncated: bool = False,
    compared: bool = True,
) -> Steps[MovieEstimate]:
    """Molecules and background of a raw movie, without localizing a molecule.

    `estimate.steps` does the same step by step; its first step carries the warnings.

    Args:
        movie: (frame, y, x) ADU, or the TIFF file, or folder of one file a frame, that holds it.
        camera: the movie's, its file, or the name of a common camera; None estimates it.
        psf: the calibrated PSF, or its file; None estimates the width of a Gaussian.
        pixel_size_nm: side of a pixel in object space; None takes the camera file's, or the
            movie's.
        em_gain: of a common camera that leaves it open.
        allow_truncated: take the whole frames of a file that was cut short.
        compared: simulate frames from the estimate and compare them with the movie's.

    Raises:
        ValueError: in one sentence, if no molecules blink in the movie, it is too short or too
            small, or movie, camera and PSF do not belong together.
        OSError: if a file cannot be read.

    Example:
        >>> import decode
        >>> movie, camera = "sample_data/blinking_2d.tif", "sample_data/camera.yaml"
        >>> density = decode.estimate(movie, camera=camera).scene.density_per_um2
        >>> density.low < density.value < density.high
        True
    """
    with _opened(movie, allow_truncated=allow_truncated) as frames:
        acquired = _camera_of(frames, camera, pixel_size_nm=pixel_size_nm, em_gain=em_gain)
        calibrated = _psf_of(frames, psf, acquired)
        _check_pixel_sizes(calibrated, acquired, psf=psf, camera=camera)
        yield Progress(0.0, "looking at the camera", _warnings(frames, acquired))
        steps = estimate_scene.steps(
            frames,
            acquired.camera,
            calibrated.psf,
            z_range_nm=calibrated.z_range_nm,
        )
        scene = yield from part(steps, 0.0, 0.9 if compared else 1.0)
        comparison = None
        if compared:
            yield Progress(0.9, "comparing the movie with a simulated one")
            comparison = compare(frames, acquired.camera, calibrated.psf, scene)
            yield Progress(1.0, "comparing the movie with a simulated one")
    return MovieEstimate(
        scene=scene,
        comparison=comparison,
        camera=acquired,
        psf=calibrated,
        source=frames.path.name if isinstance(frames, Movie) else "a movie",
    )


@contextmanager
def _opened(movie: Counts | Path | str, *, allow_truncated: bool) -> Iterator[Counts]:
    if not isinstance(movie, Path | str):
        yield movie
        return
    with open_movie(movie, allow_truncated=allow_truncated) as opened:
        yield opened


def _camera_of(
    movie: Counts,
    camera: CameraFile | Path | str | None,
    *,
    pixel_size_nm: float | None,
    em_gain: float | None,
) -> CameraFile:
    if isinstance(camera, CameraFile):
        return camera
    stated = camera is not None and Path(camera).is_file()
    if not stated and isinstance(movie, Movie):  # a common camera says nothing of the optics
        pixel_size_nm = pixel_size_nm or movie.pixel_size_nm
    if camera is not None:
        return read_camera(camera, pixel_size_nm=pixel_size_nm, em_gain=em_gain)
    if pixel_size_nm is None:
        raise ValueError("nothing says how large the movie's pixels are; state pixel_size_nm")
    estimated = estimate_camera(movie, em_gain=em_gain)
    return CameraFile(camera=estimated.camera, pixel_size_nm=pixel_size_nm)


def _psf_of(movie: Counts, psf: PSFFile | Path | str | None, camera: CameraFile) -> PSFFile:
    if isinstance(psf, PSFFile):
        return psf
    if psf is not None:
        return read_psf(psf)
    sigma = estimate_psf_sigma(movie, camera.camera, camera.pixel_size_nm)
    gaussian = GaussianPSF(sigma.value, pixel_size_nm=camera.pixel_size_nm)
    return PSFFile(psf=gaussian, z_range_nm=(0.0, 0.0))


def _check_pixel_sizes(
    calibrated: PSFFile,
    acquired: CameraFile,
    *,
    psf: object,
    camera: object,
) -> None:
    of_psf, of_camera = calibrated.psf.pixel_size_nm, acquired.pixel_size_nm
    if abs(of_psf / of_camera - 1) <= ALIKE_PIXELS:
        return
    named_psf = psf if isinstance(psf, Path | str) else "the PSF"
    named_camera = camera if isinstance(camera, Path | str) else "the camera"
    raise ValueError(
        f"{named_psf} has pixels of {of_psf:g} nm, {named_camera} of {of_camera:g} nm; "
        "calibrate the PSF with this camera"
    )


def _warnings(movie: Counts, camera: CameraFile) -> tuple[str, ...]:
    if isinstance(movie, Movie):
        return check_camera(movie, camera.camera, camera.pixel_size_nm)
    return defects_of(movie, camera.camera).sentences
