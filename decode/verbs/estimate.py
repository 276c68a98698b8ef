"""estimate: molecules and background of a movie, with intervals, and a recipe for such movies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from decode.acquisition import check_camera, stated_camera, stated_files
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
from decode.io.cameras import CameraFile, write_camera
from decode.io.movies import WHOLE, Movie, Selection, open_movie
from decode.io.psfs import PSFFile, read_psf
from decode.optics.gaussian import GaussianPSF
from decode.outputs import camera_beside, camera_files, check_outputs, recipe_files
from decode.progress import Progress, Steps, Stepwise, part

__all__ = ["MovieEstimate", "estimate"]

ALIKE_PIXELS = 0.01
"""relative difference up to which two pixel sizes count as equal"""


@final
@dataclass(frozen=True, kw_only=True)
class MovieEstimate:
    """The estimates of a movie, with the PSF and the camera that they rest on."""

    scene: SceneEstimate
    comparison: Comparison | None
    """real beside simulated frames; None where it was not requested"""
    camera: CameraFile
    psf: PSFFile
    source: str
    """name of the movie"""
    files: tuple[Path, ...] = ()
    """files that were written"""

    def __str__(self) -> str:
        return str(self.scene) if self.comparison is None else f"{self.scene}\n{self.comparison}"

    def recipe(self, *, psf_file: Path | str, camera_file: Path | str) -> str:
        """The text of a recipe for `decode train`, whose ranges bracket the estimates.

        Args:
            psf_file, camera_file: paths of PSF and camera, as written into the recipe.
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
            psf_file: path of the PSF, as written into the recipe.
            camera_file: a complete camera file; None writes one beside the recipe.

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
    out: Path | str | None = None,
    pixel_size_nm: float | None = None,
    em_gain: float | None = None,
    allow_truncated: bool = False,
    selection: Selection = WHOLE,
    compared: bool = True,
) -> Steps[MovieEstimate]:
    """Estimate molecules and background of a raw movie, without localizing a molecule.

    With `out`, a recipe for training on such movies is written, with the picture of the comparison
    beside it, and the camera unless `camera` is a complete file.

    `estimate.steps` does the same step by step; its first step carries the warnings.

    Args:
        movie: (frame, y, x) ADU, or a file or folder of a format that `open_movie` reads.
        camera: the movie's camera, its file, or the name of a common camera; None estimates it.
        psf: the calibrated PSF, or its file; None estimates the width of a Gaussian.
        out: recipe file, `.yaml`, which names the file of the PSF; None writes nothing.
        pixel_size_nm: side of a pixel in object space; None takes the camera file's, or the
            movie's.
        em_gain: mean gain of the EM register, for a common camera whose gain is a setting.
        allow_truncated: take the whole frames of a file that was cut short.
        selection: channel, position and plane of a file that holds several, and frames to leave
            out, as `open_movie` takes it.
        compared: simulate frames from the estimate and compare them with the movie's.

    Returns:
        Molecules and background with intervals, the comparison, and the files that were written.

    Raises:
        ValueError: in one sentence, if no molecules blink in the movie, it is too short or too
            small, or movie, camera and PSF do not belong together; with `out`, if the PSF is no
            file, or an input would be overwritten.
        OSError: if a file cannot be read or written.

    Example:
        >>> import decode
        >>> movie, camera = "sample_data/blinking_2d.tif", "sample_data/camera.yaml"
        >>> density = decode.estimate(movie, camera=camera).scene.density_per_um2
        >>> density.low < density.value < density.high
        True
    """
    own_camera = pixel_size_nm is not None or em_gain is not None or not _is_file(camera)
    if out is not None:
        check_outputs(
            _files(Path(out), own_camera=own_camera, compared=compared),
            inputs=[movie, psf, *stated_files(camera)],
        )
        if not isinstance(psf, Path | str):
            raise ValueError("a recipe names the file of its PSF; give that file as psf")
    with _opened(movie, allow_truncated=allow_truncated, selection=selection) as frames:
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
    estimated = MovieEstimate(
        scene=scene,
        comparison=comparison,
        camera=acquired,
        psf=calibrated,
        source=frames.path.name if isinstance(frames, Movie) else "a movie",
    )
    if out is None:
        return estimated
    files = estimated.write(
        out,
        psf_file=os.path.relpath(str(psf), Path(out).parent),
        # a recipe names a file that holds all of its camera
        camera_file=None if own_camera else str(camera),
    )
    return replace(estimated, files=files)


def _is_file(camera: CameraFile | Path | str | None) -> bool:
    return isinstance(camera, Path | str) and Path(camera).is_file()


def _files(recipe: Path, *, own_camera: bool, compared: bool) -> list[Path]:
    """What is written."""
    recipe, picture = recipe_files(recipe)
    camera = camera_files(camera_beside(recipe)) if own_camera else ()
    return [recipe, *([picture] if compared else []), *camera]


@contextmanager
def _opened(
    movie: Counts | Path | str, *, allow_truncated: bool, selection: Selection
) -> Iterator[Counts]:
    if not isinstance(movie, Path | str):
        yield movie
        return
    with open_movie(movie, allow_truncated=allow_truncated, selection=selection) as opened:
        yield opened


def _camera_of(
    movie: Counts,
    camera: CameraFile | Path | str | None,
    *,
    pixel_size_nm: float | None,
    em_gain: float | None,
) -> CameraFile:
    recorded = movie if isinstance(movie, Movie) else None
    if camera is not None:
        return stated_camera(camera, movie=recorded, pixel_size_nm=pixel_size_nm, em_gain=em_gain)
    if recorded is not None:
        pixel_size_nm = pixel_size_nm or recorded.pixel_size_nm
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
