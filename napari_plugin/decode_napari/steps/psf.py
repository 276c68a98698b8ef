"""PSF: calibrated from bead stacks, with its verdict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from decode.progress import Progress, Steps
from decode_napari.session import ChosenPSF, OpenedMovie, Session
from decode_napari.steps.step import Step, call, command

if TYPE_CHECKING:
    from decode.calibrate.held_out import Precision
    from decode.calibrate.psf import Optics, PSFCalibration
    from decode.calibrate.report import Drawn

__all__ = ["Calibrated", "PSFSettings", "PSFStep"]


@final
@dataclass(frozen=True, kw_only=True)
class PSFSettings:
    """Settings as for `decode calibrate psf`."""

    beads: tuple[Path, ...] = ()
    out: Path | None = None
    z_step_nm: float | None = None
    """distance of the planes; None takes that of the file"""
    z_focus: int | None = None
    """number of the plane with z = 0, from 0; None takes the middle one"""
    frames_per_plane: int = 1
    """consecutive frames of a plane"""
    downwards: bool | None = None
    """whether the stage moves down; None: not known, and taken to be no"""
    z_of_frames: Path | None = None
    """text file with the z of each frame in nm, a line each: for any other order of planes"""
    positions: Path | None = None
    """table of the true positions of the beads, if known"""
    model: str = "spline"
    optics: Optics | None = None
    """facts of the objective, for a pupil; None takes typical ones"""

    @property
    def scan(self) -> dict[str, object]:
        """The order of the planes, as arguments of `read_scan`."""
        stated = {
            "frames_per_plane": self.frames_per_plane if self.frames_per_plane > 1 else None,
            "downwards": self.downwards,
            "z_of_frames": None if self.z_of_frames is None else str(self.z_of_frames),
        }
        return {name: value for name, value in stated.items() if value is not None}


@final
@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A calibration, its verdict and its figures."""

    calibration: PSFCalibration
    chosen: ChosenPSF
    verdict: tuple[str, ...]
    precision: Precision | None
    """None with a single bead"""
    pictures: tuple[Drawn, ...]
    report: Path
    """the report as a page"""


@final
class PSFStep(Step):
    title = "PSF"
    purpose = "Calibrate the point spread function from a z-stack of beads; a 2D model needs none"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.settings = PSFSettings()
        self.calibrated: Calibrated | None = None

    def missing(self) -> str:
        movie = self.session.movie
        if movie is None:
            return f"{self.session.why_not('movie')}; the camera is the movie's"
        return (
            ""
            if movie.camera is not None
            else "state the camera in the step Movie: beads do not show it"
        )

    def done(self) -> str:
        psf = self.session.psf
        if psf is None:
            return ""
        beads = f"{psf.file.n_beads} beads, " if psf.file.n_beads else ""
        return f"{psf.path.name}: {beads}{psf.file.depth}"

    def calibrate(self) -> Steps[Calibrated]:
        """Fit the PSF, write it and its report.

        Raises:
            ValueError, OSError: as `decode.calibrate_psf` does.
        """
        if self.missing():
            raise ValueError(self.missing())
        if not self.settings.beads:
            raise ValueError("no bead stack was chosen: choose a z-stack of beads (TIFF)")
        movie = self.session.movie
        assert movie is not None
        return _calibrate(self.settings, movie, self._out())

    def read(self, path: Path) -> Steps[ChosenPSF]:
        """Read a calibrated PSF."""
        return _read(path)

    def accept(self, result: Calibrated | ChosenPSF) -> None:
        self.calibrated = result if isinstance(result, Calibrated) else None
        self.session.put(psf=result.chosen if isinstance(result, Calibrated) else result)

    def as_command(self) -> str:
        movie, set_ = self.session.movie, self.settings
        if movie is None or movie.camera is None or not set_.beads:
            return ""
        optics = set_.optics
        of_pupil = {} if optics is None else {
            "numerical_aperture": optics.numerical_aperture,
            "wavelength": optics.wavelength_nm,
            "immersion_index": optics.immersion_index,
            "sample_index": optics.sample_index,
            "bead_diameter": optics.bead_diameter_nm or None,
            "phase_mask": optics.phase_mask,
        }  # fmt: skip
        return command(
            "decode",
            "calibrate",
            "psf",
            *set_.beads,
            camera=movie.camera_name,
            pixel_size=movie.stated_pixel_size_nm,
            em_gain=movie.em_gain,
            z_step=set_.z_step_nm,
            z_focus=set_.z_focus,
            **{**set_.scan, "downwards": set_.downwards, "upwards": set_.downwards is False},
            bead_positions=set_.positions,
            model=None if set_.model == "spline" else set_.model,
            **of_pupil,
            o=self._out(),
        )

    def as_python(self) -> str:
        movie, set_ = self.session.movie, self.settings
        if movie is None or movie.camera is None or not set_.beads:
            return ""
        verb = call(
            "calibrate_psf",
            repr([str(path) for path in set_.beads]),
            repr(movie.camera_name),
            out=str(self._out()),
            z_step_nm=set_.z_step_nm,
            z_focus=set_.z_focus,
            **set_.scan,
            bead_positions=None if set_.positions is None else str(set_.positions),
            model=None if set_.model == "spline" else set_.model,
            optics=set_.optics,
            pixel_size_nm=movie.stated_pixel_size_nm,
            em_gain=movie.em_gain,
        )
        lines = ["from decode import calibrate_psf", "", f"made = {verb}", "print(*made.verdict)"]
        if set_.optics is not None:
            lines.insert(1, "from decode.calibrate.psf import Optics")
        return "\n".join(lines)

    def _out(self) -> Path:
        return self.settings.out or self.settings.beads[0].with_name("psf.h5")


def _calibrate(settings: PSFSettings, movie: OpenedMovie, out: Path) -> Steps[Calibrated]:
    from decode.calibrate.as_pupil import unserved_psf
    from decode.calibrate.held_out import precision
    from decode.verbs.calibrate_psf import calibrate_psf

    assert movie.camera_name is not None
    made = yield from calibrate_psf.steps(
        settings.beads,
        movie.camera_name,
        out=out,
        z_step_nm=settings.z_step_nm,
        z_focus=settings.z_focus,
        frames_per_plane=settings.frames_per_plane,
        downwards=settings.downwards,
        z_of_frames=settings.z_of_frames,
        bead_positions=settings.positions,
        model=settings.model,
        optics=settings.optics,
        pixel_size_nm=movie.stated_pixel_size_nm,
        em_gain=movie.em_gain,
    )
    psf, report = made.files
    held_out = made.calibration.held_out
    # no stage of its own: who stops a calibration finds no files
    unserved = unserved_psf(made.calibration.file)
    return Calibrated(
        calibration=made.calibration,
        chosen=ChosenPSF(path=psf, file=made.calibration.file, unserved=unserved),
        verdict=made.verdict,
        precision=None if held_out is None else precision(held_out),
        pictures=made.pictures,
        report=report,
    )


def _read(path: Path) -> Steps[ChosenPSF]:
    from decode.calibrate.as_pupil import unserved_psf
    from decode.io.psfs import read_psf

    yield Progress(None, f"reading {path.name}")
    file = read_psf(path)
    yield Progress(None, "asking the shipped models whether they take the PSF")
    return ChosenPSF(path=path, file=file, unserved=unserved_psf(file))
