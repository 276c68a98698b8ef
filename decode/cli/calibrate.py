"""decode calibrate: PSF, camera, and what a model states and is checked by."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from decode.cli.application import app, examples
from decode.cli.options import (
    Beads,
    Device,
    Downwards,
    EmGain,
    FramesPerPlane,
    Json,
    Movie,
    PixelSize,
    Positions,
    ZFocus,
    ZOfFrames,
    ZStep,
    of_movies,
)
from decode.cli.shown import follow, is_asked, list_files, print_json, warned

if TYPE_CHECKING:
    from decode.estimation import CameraKind
    from decode.io.movies import Selection
    from decode.network.localizer import Localizer
    from decode.progress import Progress, Steps

__all__ = [
    "calibrate",
    "calibrate_camera",
    "calibrate_checks_",
    "calibrate_import",
    "calibrate_in_situ",
    "calibrate_model_",
    "calibrate_psf",
]


calibrate = typer.Typer(
    no_args_is_help=True,
    help="The microscope: PSF from beads, camera from frames; a model's uncertainties.",
)


app.add_typer(calibrate, name="calibrate")


@calibrate.command(
    "psf",
    epilog=examples(
        "decode calibrate psf beads.tif --camera camera.yaml --z-step 20 --upwards -o psf.h5",
        "decode calibrate psf beads.tif --camera c.yaml --model pupil --wavelength 680 -o psf.h5",
    ),
)
@of_movies
def calibrate_psf(
    beads: Beads,
    *,
    selection: Selection,
    camera: Annotated[
        Path, typer.Option(help="Camera file (YAML), or the name of a common camera.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="PSF", help="PSF file, .h5; a report is written beside it."
        ),
    ],
    z_step: ZStep = None,
    z_focus: ZFocus = None,
    frames_per_plane: FramesPerPlane = 1,
    downwards: Downwards = None,
    z_of_frames: ZOfFrames = None,
    model: Annotated[
        str, typer.Option(help="spline (any PSF), pupil (names the aberrations) or gaussian.")
    ] = "spline",
    patch: Annotated[
        int | None, typer.Option(metavar="PX", help="Side of the PSF, odd; without: 3.1 um.")
    ] = None,
    bead_positions: Positions = None,
    numerical_aperture: Annotated[
        float, typer.Option(help="NA of the objective, for a pupil.")
    ] = 1.45,
    wavelength: Annotated[
        float, typer.Option(metavar="NM", help="Wavelength of the emission, for a pupil.")
    ] = 670.0,
    immersion_index: Annotated[
        float, typer.Option(help="Refractive index of the immersion, for a pupil.")
    ] = 1.518,
    sample_index: Annotated[
        float | None,
        typer.Option(
            help="Refractive index around the beads, for a pupil; without: the immersion's."
        ),
    ] = None,
    bead_diameter: Annotated[
        float,
        typer.Option(
            metavar="NM", min=0.0, help="Diameter of the beads, for a pupil; it is taken out."
        ),
    ] = 0.0,
    phase_mask: Annotated[
        bool,
        typer.Option(
            "--phase-mask", help="Fit a free phase over the pupil besides Zernike polynomials."
        ),
    ] = False,
    pixel_size: PixelSize = None,
    em_gain: EmGain = None,
    as_json: Json = False,
) -> None:
    """Bead stacks to a PSF, and a report on how good it is."""
    from decode.calibrate.psf import Optics
    from decode.verbs.calibrate_psf import calibrate_psf as work
    from decode.verbs.calibrate_psf import state_direction

    steps = partial(
        work.steps,
        beads,
        camera,
        out=out,
        z_step_nm=z_step,
        z_focus=z_focus,
        frames_per_plane=frames_per_plane,
        z_of_frames=z_of_frames,
        bead_positions=bead_positions,
        model=model,
        patch_px=patch,
        optics=Optics(
            numerical_aperture=numerical_aperture,
            wavelength_nm=wavelength,
            immersion_index=immersion_index,
            sample_index=sample_index,
            bead_diameter_nm=bead_diameter,
            phase_mask=phase_mask,
        ),
        pixel_size_nm=pixel_size,
        em_gain=em_gain,
        selection=selection,
    )
    made = warned(steps(downwards=downwards), beads[0].name)
    if made.calibration.file.z_remark and not as_json and is_asked():
        for line in made.verdict:
            typer.echo(line)
        question = "Did the stage go up from the first plane to the last (y, n, ?: leave it open)"
        answer = typer.prompt(question, default="?").lower()[:1]
        if answer == "n":
            made = warned(steps(downwards=True), beads[0].name)
        elif answer == "y":
            made = state_direction(made)
    calibration = made.calibration
    if as_json:
        print_json(
            {
                "beads": len(calibration.beads),
                "rejected": [str(bead) for bead in calibration.rejected],
                "deviance": calibration.deviance,
                "figures": calibration.file.figures,
                "z_direction": calibration.file.z_direction,
                "verdict": made.verdict,
                "files": [str(file) for file in made.files],
            }
        )
        return
    typer.echo(f"{len(calibration.beads)} beads, {len(calibration.rejected)} rejected")
    for line in (*(f"  {bead}" for bead in calibration.rejected), *made.verdict):
        typer.echo(line)
    list_files(made.files)


@calibrate.command(
    "import",
    epilog=examples(
        "decode calibrate import beads_3dcal.mat --pixel-size 110 -o psf.h5",
    ),
)
def calibrate_import(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="_3dcal.mat of SMAP, or HDF5 of uiPSF.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PSF", help="PSF file, .h5.")],
    pixel_size: PixelSize = None,
    channel: Annotated[
        int | None, typer.Option(help="Number of the PSF, from 0, in a file of several.")
    ] = None,
) -> None:
    """A PSF that SMAP or uiPSF calibrated."""
    from decode.io.psf_imports import import_psf
    from decode.io.psfs import write_psf
    from decode.outputs import check_outputs, psf_file

    check_outputs([psf_file(out)], inputs=[file])
    write_psf(out, import_psf(file, pixel_size, channel))
    list_files([out])


@calibrate.command(
    "in-situ",
    epilog=examples(
        "decode calibrate in-situ movie.tif --camera camera.yaml --psf pupil.h5 -o refined.h5",
    ),
)
@of_movies
def calibrate_in_situ(
    movie: Movie,
    *,
    selection: Selection,
    camera: Annotated[
        Path, typer.Option(help="Camera file (YAML), or the name of a common camera.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PSF", help="PSF file, .h5.")],
    psf: Annotated[
        Path | None,
        typer.Option(
            help="Pupil to start from (`calibrate psf --model pupil`); without: no aberrations."
        ),
    ] = None,
    numerical_aperture: Annotated[
        float, typer.Option(help="NA of the objective, without --psf.")
    ] = 1.45,
    wavelength: Annotated[
        float, typer.Option(metavar="NM", help="Wavelength of the emission, without --psf.")
    ] = 670.0,
    immersion_index: Annotated[
        float, typer.Option(help="Refractive index of the immersion, without --psf.")
    ] = 1.518,
    n_frames: Annotated[
        int, typer.Option("--n-frames", min=1, help="Frames to look at, spread over the movie.")
    ] = 500,
    pixel_size: PixelSize = None,
    em_gain: EmGain = None,
) -> None:
    """Refine a pupil by the blinking movie itself, and say what a movie leaves open."""
    from decode.calibrate.in_situ import refine_in_situ
    from decode.io.cameras import camera_inputs, read_camera
    from decode.io.psfs import PSFFile, read_psf, write_psf
    from decode.optics.pupil import PupilPSF
    from decode.outputs import check_outputs, psf_file

    check_outputs([psf_file(out)], inputs=[movie, psf, *camera_inputs(camera)])
    camera_file = read_camera(camera, pixel_size_nm=pixel_size, em_gain=em_gain)
    if psf is None:
        pupil = PupilPSF(
            numerical_aperture=numerical_aperture,
            wavelength_nm=wavelength,
            immersion_index=immersion_index,
            pixel_size_nm=camera_file.pixel_size_nm,
        )
        start = PSFFile(psf=pupil, z_range_nm=(-700.0, 700.0))
    else:
        start = read_psf(psf)
    refined, verdict = refine_in_situ(
        movie, camera_file, start, n_frames=n_frames, selection=selection
    )
    write_psf(out, refined)
    typer.echo(verdict)
    list_files([out])


@calibrate.command(
    "model",
    epilog=examples(
        "decode calibrate model mine.safetensors -o calibrated.safetensors",
    ),
)
def calibrate_model_(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A shipped model or a model file.")],
    *,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="MODEL", help="Model file to write; may be the same."),
    ],
    movies: Annotated[
        int | None, typer.Option(min=8, help="Simulated movies of the fit; without: 240.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Probabilities, uncertainties, photons and counts of a model, corrected by fresh simulations
    of its own recipe, and the limits of the checks after a localization."""
    from decode.quality.calibration import CalibrationRecord
    from decode.verbs.calibrate_model import MOVIES
    from decode.verbs.calibrate_model import calibrate_model as work

    made = _shown(work.steps(model, out, movies=movies or MOVIES, device=device))
    for line in CalibrationRecord.of_model(made.record).lines():
        typer.echo(line)
    list_files([out, out.with_suffix(".json")])


@calibrate.command(
    "checks",
    epilog=examples(
        "decode calibrate checks mine.safetensors -o mine.safetensors",
    ),
)
def calibrate_checks_(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A shipped model or a model file.")],
    *,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="MODEL", help="Model file to write; may be the same."),
    ],
    movies: Annotated[
        int | None, typer.Option(min=1, help="Simulated movies of the fit; without: 40.")
    ] = None,
) -> None:
    """Limits of the checks after a localization, fitted to simulated movies that fit the model;
    `calibrate model` does it, too."""
    from decode.verbs.calibrate_checks import MOVIES
    from decode.verbs.calibrate_checks import calibrate_checks as work

    made = _shown(work.steps(model, out, movies=movies or MOVIES))
    limits = made.record.limits
    if limits is None:
        typer.echo("none of the movies fits: the checks go by the limits of the kind of PSF")
    else:
        typer.echo(f"limits of the checks by {limits['movies']} movies that fit")
    list_files([out, out.with_suffix(".json")])


def _shown(steps: Steps[Localizer]) -> Localizer:
    """Work to its end under a progress bar."""
    from decode.progress import Bar

    layout = "{percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}"
    with Bar(total=1.0, bar_format=layout) as bar:

        def show(progress: Progress[object]) -> None:
            bar.update((progress.fraction or 0.0) - bar.n)

        return follow(steps, show)


@calibrate.command(
    "camera",
    epilog=examples(
        "decode calibrate camera dark.tif --flat dim.tif --flat bright.tif -o camera.yaml",
        "decode calibrate camera --movie movie.tif --pixel-size 100 -o camera.yaml",
    ),
)
@of_movies
def calibrate_camera(
    *,
    selection: Selection,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="CAMERA", help="Camera file, .yaml.")],
    dark: Annotated[
        list[Path] | None, typer.Argument(metavar="[DARK]...", help="Series without light.")
    ] = None,
    flat: Annotated[
        list[Path] | None,
        typer.Option(metavar="FLAT", help="Series of even light; repeat it, one a light level."),
    ] = None,
    movie: Annotated[
        Path | None,
        typer.Option(
            help="Without DARK: estimate the camera from it; with: check the maps against it."
        ),
    ] = None,
    pixel_size: Annotated[
        float | None, typer.Option(metavar="NM", help="Side of a pixel; without: the first file's.")
    ] = None,
    gain: Annotated[
        float | None,
        typer.Option(metavar="ADU", help="ADU per electron, where there are no flat series."),
    ] = None,
    qe: Annotated[
        float | None,
        typer.Option(help="Quantum efficiency; without: a typical one, or 1 with DARK."),
    ] = None,
    em_gain: Annotated[float | None, typer.Option(help="EM gain of an EMCCD.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="emccd or scmos, for --movie; without: judged by its noise.")
    ] = None,
) -> None:
    """Dark and flat series, or a movie, to a camera file."""
    from decode.verbs.calibrate_camera import calibrate_camera as work

    made = work(
        dark or (),
        flat or (),
        movie=movie,
        out=out,
        pixel_size_nm=pixel_size,
        gain=gain,
        qe=qe,
        em_gain=em_gain,
        kind=cast("CameraKind | None", kind),
        selection=selection,
    )
    for note in made.notes:
        typer.echo(note)
    list_files(made.files)
