"""Inspect: which molecules to keep, and whether they explain the frames."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
import numpy.typing as npt

from decode.emitters import EmitterSet
from decode.progress import Progress, Steps
from decode_napari.molecules import Filter
from decode_napari.session import Found, OpenedMovie
from decode_napari.steps.localize import OUT
from decode_napari.steps.step import Step, keep_call, keep_command

if TYPE_CHECKING:
    from torch import Tensor

    from decode.optics.camera import Camera
    from decode.optics.psf import PSF

__all__ = ["Explained", "InspectStep", "check_field", "ellipses", "table_of"]

AFTER = {"drift": "_still", "link": "_molecules"}
"""ends of the names of tables to which these commands were applied"""
N_CHORDS = 24
"""number of chords of the polygon that approximates an ellipse"""
BACKGROUND_NM = 1000.0
"""standard deviation of the blur that turns the residual into background"""


@final
@dataclass(frozen=True, kw_only=True)
class Explained:
    """The model and the residual of a frame, (y, x) each."""

    frame: int
    model: npt.NDArray[np.float32]
    """photons: light of the molecules that pass, and background"""
    residual: npt.NDArray[np.float32]
    """measured less expected light, in standard deviations of each pixel's noise"""


@final
class InspectStep(Step):
    title = "Inspect"
    purpose = "Filter the molecules, and see what they leave unexplained"

    def missing(self) -> str:
        return self.session.why_not("found")

    def done(self) -> str:
        found = self.session.found
        if found is None or not found.filter.ranges:
            return ""
        return f"{found.filter.n_passing} of {len(found.filter.emitters)} molecules"

    def read(self, path: Path) -> Steps[Found]:
        """Read the molecules of a table on disk."""
        pixel_size = None if self.session.movie is None else self.session.movie.pixel_size_nm
        return _read(path, pixel_size)

    def accept(self, found: Found) -> None:
        self.session.put(found=found)

    def explain(self, frame: int) -> Steps[Explained]:
        """The model of a frame by its molecules that pass, and the residual.

        Background is the light that the molecules leave, blurred by a micrometre, so that the
        residual shows spots.

        Raises:
            ValueError: if there is no movie, the molecules are of a movie of another size, or
                its camera or its PSF is unknown.
        """
        movie, found = self.session.movie, self.session.found
        if movie is None or found is None:
            why = self.session.why_not("movie") or self.session.why_not("found")
            raise ValueError(
                f"to explain a frame, both its movie and its molecules must be there: {why}"
            )
        if "link" in found.applied:
            raise ValueError(
                "a linked molecule is one row for all its frames: undo the step Link to explain one"
            )
        if "drift" in found.applied:
            raise ValueError(
                "frames show molecules where the stage was: undo the step Drift to explain one"
            )
        check_field(movie, found.filter.emitters)
        psf, camera = self._psf(found), self._camera(found)
        rows = found.filter.rows_in_frame(frame)
        return _explain(movie, frame, found.filter.emitters, rows, psf, camera)

    def _camera(self, found: Found) -> Camera:
        movie = self.session.movie
        if movie is not None and movie.camera is not None:
            return movie.camera.camera
        if found.acquisition is None:
            raise ValueError("counts become photons by the camera: state it in the step Movie")
        return found.acquisition.camera

    def _psf(self, found: Found) -> PSF:
        from decode.optics.gaussian import GaussianPSF
        from decode.verbs.polish import psf_to_polish_with

        psf = self.session.psf
        if found.acquisition is not None and found.model is not None:
            file = None if found.psf is None else found.psf.file
            return psf_to_polish_with(found.model.localizer, file, found.acquisition)
        if psf is not None:
            return psf.file.psf
        sigma_nm = found.filter.emitters.facts.psf_sigma_nm
        if sigma_nm is not None and self.session.movie is not None:
            return GaussianPSF(sigma_nm, pixel_size_nm=self.session.movie.pixel_size_nm)
        raise ValueError(
            "this table does not say which PSF its molecules have: calibrate one in the step PSF"
        )

    def as_command(self) -> str:
        found = self.session.found
        return (
            ""
            if found is None or not found.filter.ranges
            else keep_command(table_of(found), found.filter.ranges)[0]
        )

    def as_python(self) -> str:
        found = self.session.found
        if found is None:
            return ""
        imports, lines = keep_call(table_of(found), found.filter.ranges)
        return "\n".join([*imports, "", *lines, "print(len(molecules))"])


def table_of(found: Found) -> Path:
    """The table on disk: the one that was opened, or that of the copied `decode localize`, or of
    the copied commands that were applied to it."""
    from decode.io.tables import written_formats

    source = Path(found.source)
    table = source if found.acquisition is None else Path(OUT) / f"{source.stem}.hdf5"
    if not found.applied:
        return table
    suffix = table.suffix if table.suffix.lower() in written_formats() else ".csv"
    return table.with_name(table.stem + "".join(AFTER[verb] for verb in found.applied) + suffix)


def check_field(movie: OpenedMovie, emitters: EmitterSet) -> None:
    """Refuse molecules whose table states a field of another size than the movie's.

    Raises:
        ValueError: if it does.
    """
    _, height, width = movie.shape
    here = {"height_px": height, "width_px": width, "pixel_size_nm": movie.pixel_size_nm}
    stated = {
        name: float(str(emitters.metadata[name])) for name in here if name in emitters.metadata
    }
    other = [
        f"{name} {fact:g} for {here[name]:g}"
        for name, fact in stated.items()
        if not np.isclose(fact, here[name])
    ]
    if other:
        raise ValueError(
            f"these molecules are of another movie than {movie.path.name} ({', '.join(other)}): "
            "open theirs, "
            "or localize this one"
        )


def ellipses(
    emitters: EmitterSet, rows: npt.NDArray[np.int64], *, widths: float = 1.0
) -> npt.NDArray[np.float64]:
    """Uncertainties as polygons.

    Args:
        emitters: the table, with its sigmas.
        rows: (n,) numbers of the molecules.
        widths: half axes in standard deviations.

    Returns:
        (n * chords, 2, 2) chords as napari's vectors: start and run of each, y and x in nm.
    """
    if emitters.xyz_sigma is None or not len(rows):
        return np.zeros((0, 2, 2))
    centre = emitters.xyz[rows].double().numpy()[:, (1, 0)]
    axes = emitters.xyz_sigma[rows].double().numpy()[:, (1, 0)] * widths
    angle = np.linspace(0, 2 * np.pi, N_CHORDS + 1)
    circle = np.stack([np.sin(angle), np.cos(angle)], 1)
    outline = centre[:, None] + axes[:, None] * circle
    known = np.isfinite(axes).all(1)
    start, run = outline[known, :-1], np.diff(outline[known], axis=1)
    return np.stack([start, run], 2).reshape(-1, 2, 2)


def _read(path: Path, pixel_size_nm: float | None) -> Steps[Found]:
    from decode.io.tables import read_table

    yield Progress(None, f"reading {path.name}")
    try:  # a table may be of another movie than the one that is open
        emitters = read_table(path)
    except (ValueError, FileNotFoundError):
        emitters = read_table(path, pixel_size_nm=pixel_size_nm)
    if pixel_size_nm is not None:
        emitters = replace(emitters, metadata={"pixel_size_nm": pixel_size_nm, **emitters.metadata})
    return Found(filter=Filter(emitters), source=str(path))


def _explain(
    opened: OpenedMovie,
    frame: int,
    emitters: EmitterSet,
    rows: npt.NDArray[np.int64],
    psf: PSF,
    camera: Camera,
) -> Steps[Explained]:
    import torch
    from scipy.ndimage import gaussian_filter

    from decode.io.movies import open_movie
    from decode.optics.psf import render

    yield Progress(None, f"explaining frame {frame}")
    with open_movie(opened.path, allow_truncated=opened.allow_truncated) as movie:
        if not 0 <= frame < len(movie):
            raise ValueError(f"the movie has no frame {frame}")
        adu = torch.from_numpy(movie.read(frame, frame + 1).astype(np.float32))
    measured = camera.without_bad(camera.to_photons(adu))[0].numpy()
    shown = emitters[torch.from_numpy(rows)]
    xyz = shown.xyz.float()
    with torch.no_grad():
        light = render(
            psf,
            frame=torch.zeros(len(shown), dtype=torch.int64),
            xyz=xyz,
            photons=shown.photons.float(),
            n_frames=1,
            shape=(measured.shape[0], measured.shape[1]),
            parameters=psf.parameters_at(xyz),
        )[0].numpy()
    background = gaussian_filter(
        measured - light, BACKGROUND_NM / psf.pixel_size_nm, mode="nearest"
    )
    model = light + background
    noise = _noise(camera, torch.from_numpy(model)).numpy()
    return Explained(
        frame=frame,
        model=model.astype(np.float32),
        residual=((measured - model) / noise).astype(np.float32),
    )


def _noise(camera: Camera, photons: Tensor) -> Tensor:
    """(y, x) standard deviation of the measurement of an image, photons, pixel by pixel for an
    sCMOS."""
    shot = camera.excess_factor * photons.clamp_min(0) / camera.qe
    return (shot + camera.noise_floor).clamp_min(1e-6).sqrt()
