"""calibrate psf: bead stacks to a PSF and a report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
from torch import Tensor

from decode.acquisition import stated_camera, stated_files
from decode.calibrate.as_pupil import WAVELENGTH_NM, with_pupil
from decode.calibrate.psf import Optics, PSFCalibration, check_model, fit_psf, read_positions
from decode.calibrate.report import Drawn, draw_pictures, save_report, verdict
from decode.calibrate.scan import read_scan
from decode.calibrate.stacks import BeadStack
from decode.io.cameras import CameraFile
from decode.io.movies import WHOLE, Movie, Selection, open_movie
from decode.io.psfs import write_psf
from decode.models import unserved
from decode.outputs import check_outputs, psf_files
from decode.progress import Progress, Steps, Stepwise, part

__all__ = ["CalibratedPSF", "calibrate_psf", "state_direction"]


@final
@dataclass(frozen=True, kw_only=True)
class CalibratedPSF:
    """A PSF from beads, with its verdict and report."""

    calibration: PSFCalibration
    """the PSF (`calibration.file`), its beads, and how well it predicts held-out ones"""
    verdict: tuple[str, ...]
    """a sentence each"""
    pictures: tuple[Drawn, ...] = ()
    """pictures of the report; none where it is not written"""
    files: tuple[Path, ...] = ()
    """files that were written: the PSF and the report"""


@Stepwise
def calibrate_psf(
    beads: BeadStack | Sequence[BeadStack],
    camera: CameraFile | Path | str,
    *,
    out: Path | str | None = None,
    z_step_nm: float | None = None,
    z_focus: int | None = None,
    frames_per_plane: int = 1,
    downwards: bool | None = None,
    z_of_frames: Path | str | Sequence[float] | None = None,
    bead_positions: Path | str | Tensor | None = None,
    model: str = "spline",
    patch_px: int | None = None,
    optics: Optics | None = None,
    pixel_size_nm: float | None = None,
    em_gain: float | None = None,
    selection: Selection = WHOLE,
    pupil: bool = True,
) -> Steps[CalibratedPSF]:
    """Calibrate a PSF from z-stacks of beads.

    With `out`, it is written, and a report of one HTML page beside it.

    `calibrate_psf.steps` does the same step by step; its first step carries the warnings.

    Args:
        beads: z-stacks of beads on a coverslip, all recorded alike: files that `open_movie` reads,
            open movies, or (frame, y, x) ADU.
        camera: the camera of the stacks, its file, or the name of a common camera.
        out: PSF file, `.h5`; None writes nothing.
        z_step_nm: distance of the planes; None takes what the files state.
        z_focus: number of the plane with z = 0, counted from 0 in the order of the stage; None
            takes the middle one.
        frames_per_plane: consecutive frames of each plane.
        downwards: whether the stage moves down; None takes it to move up, and PSF and tables say
            that this was assumed.
        z_of_frames: z of each frame, nm, or a text file with a line for each; for any other order.
        bead_positions: (m, 2) true x, y of some beads, nm, or a table whose first frame holds them;
            None takes the centroid of the light in focus.
        model: `spline` for any PSF, `pupil` for aberrations of a high-aperture objective,
            `gaussian` for a fast and rough fit.
        patch_px: side of the crops and of the PSF, an odd number; None takes 3.1 um.
        optics: facts of the objective, for a pupil.
        pixel_size_nm: side of a pixel in object space; None takes the camera file's.
        em_gain: mean gain of the EM register, for a common camera whose gain is a setting.
        selection: channel and position of files that hold several.
        pupil: whether to keep the pupil with the same images, by which shipped models know the
            PSF; without it, they fit it each time.

    Returns:
        The calibration; its PSF is in focus at z = 0 of the stage.

    Raises:
        ValueError: in one sentence, if a file is no stack, the step is impossible, no bead can be
            used, or an input would be overwritten.
        OSError: if a file cannot be read or written.

    Example:
        >>> import decode
        >>> with decode.open_movie("sample_data/beads_3d.tif") as stack:
        ...     beads = stack.read(0, 81)[::8, 8:58, 4:90]  # two beads, every eighth plane
        >>> camera = "sample_data/camera.yaml"
        >>> options = {"z_step_nm": 160.0, "model": "gaussian", "pupil": False}
        >>> made = decode.calibrate_psf(beads, camera, **options)
        >>> len(made.calibration.beads)
        2
    """
    stacks = [beads] if isinstance(beads, Path | str | Movie | Tensor | np.ndarray) else [*beads]
    if out is not None:
        read = [*stacks, bead_positions, z_of_frames, *stated_files(camera)]
        check_outputs(psf_files(Path(out)), inputs=read)
    optics = optics or Optics()
    check_model(model)
    scan = read_scan(
        frames_per_plane=frames_per_plane, downwards=downwards, z_of_frames=z_of_frames
    )
    file = stated_camera(camera, pixel_size_nm=pixel_size_nm, em_gain=em_gain)
    positions = bead_positions
    if isinstance(positions, Path | str):
        positions = read_positions(positions)
    why = _unserved(model, optics, file.pixel_size_nm)
    yield Progress(0.0, "reading the beads", (why,) if why else ())
    with ExitStack() as opened:
        if selection != WHOLE:
            stacks = [
                opened.enter_context(open_movie(stack, selection=selection))
                if isinstance(stack, Path | str)
                else stack
                for stack in stacks
            ]
        fit = fit_psf.steps(
            stacks,
            file,
            z_step_nm=z_step_nm,
            z_focus=z_focus,
            scan=scan,
            model=model,
            patch_px=patch_px,
            positions_nm=positions,
            optics=optics,
        )
        calibration = yield from part(fit, 0.0, 0.75)
    if pupil:
        yield Progress(0.75, "fitting the pupil with the same images")
        calibration = replace(calibration, file=with_pupil(calibration.file))
    pictures: tuple[Drawn, ...] = ()
    if out is not None:
        pictures = yield from part(draw_pictures.steps(calibration), 0.85, 0.95)
    yield Progress(0.95, "judging the PSF")
    made = CalibratedPSF(calibration=calibration, verdict=verdict(calibration), pictures=pictures)
    if out is None:
        return made
    psf, report = psf_files(Path(out))
    yield Progress(1.0, f"writing {psf.name}")
    write_psf(psf, calibration.file)
    save_report(calibration, report, pictures=pictures)
    return replace(made, files=(psf, report))


def state_direction(made: CalibratedPSF) -> CalibratedPSF:
    """A calibration whose direction of z its user has confirmed; its files are written again.

    Raises:
        OSError: if they cannot be written.
    """
    file = replace(made.calibration.file, z_direction="stated")
    calibration = replace(made.calibration, file=file)
    if made.files:
        psf, report = made.files
        write_psf(psf, file)
        save_report(calibration, report, pictures=made.pictures)
    return replace(made, calibration=calibration, verdict=verdict(calibration))


def _unserved(model: str, optics: Optics, pixel_size_nm: float) -> str:
    """Why no shipped model will take the PSF, as known before it is calibrated; else ""."""
    if model != "pupil":
        return unserved(WAVELENGTH_NM, pixel_size_nm)
    return unserved(
        optics.wavelength_nm,
        pixel_size_nm,
        immersion_index=optics.immersion_index,
        phase_mask=optics.phase_mask,
    )
