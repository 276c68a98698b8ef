"""Commands of recipes and models: estimate, simulate, train, run."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from decode.cli.application import app, examples
from decode.cli.options import (
    Config,
    Device,
    Downwards,
    DriftToo,
    EmGain,
    FramesPerPlane,
    Json,
    LinkToo,
    Movie,
    PixelSize,
    Positions,
    ReportToo,
    Settings,
    Strict,
    ZFocus,
    ZOfFrames,
    ZStep,
    of_movies,
)
from decode.cli.shown import follow, list_files, print_json, strictly, warned

if TYPE_CHECKING:
    from decode.io.movies import Selection
    from decode.progress import Progress
    from decode.verbs.run import Stage

__all__ = [
    "estimate",
    "run",
    "simulate",
    "train",
]


@app.command(
    epilog=examples(
        "decode simulate configs/gaussian-2d.yaml --frames 100 -o movie.tif --truth truth.csv",
    ),
)
def simulate(
    config: Config,
    *,
    frames: Annotated[int, typer.Option(min=1, help="Length of the movie.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="MOVIE", help="TIFF file.")],
    truth: Annotated[Path, typer.Option(metavar="CSV", help="Table of the true molecules.")],
    size: Annotated[int, typer.Option(min=1, metavar="PX", help="Side of the frames.")] = 64,
    seed: Annotated[int | None, typer.Option(help="Without: the recipe's.")] = None,
    settings: Settings = None,
) -> None:
    """A movie of the kind a recipe trains on, its molecules (TRUTH) and its camera (MOVIE's name
    + _camera.yaml)."""
    from decode.outputs import camera_beside
    from decode.verbs.simulate import simulate_files

    made = simulate_files(
        config, out, truth, frames, size_px=size, seed=seed, settings=settings or ()
    )
    width = ""
    if made.conditioning.needs_width:
        sigma_px = float(made.conditioning.values["psf_sigma_px"])
        width = f", PSF sigma {sigma_px * made.psfs[0].pixel_size_nm:.1f} nm"
    typer.echo(f"{frames} frames with {len(made.emitters)} molecules{width}")
    list_files([out, truth, camera_beside(out)])


@app.command(
    epilog=examples(
        "decode train train.yaml -o mine.safetensors --start nearest --minutes 30",
        "decode train train.yaml -o mine.safetensors --resume --minutes 60",
        "decode train train.yaml -o mine.safetensors --set training.learning_rate=1.0e-3",
    ),
)
def train(
    config: Config,
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="MODEL", help="Model file, .safetensors.")
    ],
    minutes: Annotated[
        float | None, typer.Option(help="Stop after so many minutes; without: the recipe's steps.")
    ] = None,
    device: Device = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the checkpoint beside MODEL.")
    ] = False,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="nearest|NAME|PATH",
            help="Start from the weights of this model, or of the shipped one that is nearest; "
            "without: from random weights.",
        ),
    ] = None,
    settings: Settings = None,
    log: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for TensorBoard.")] = None,
) -> None:
    """Train a model on simulations of a recipe."""
    from decode.progress import Bar
    from decode.verbs.train import train as work

    steps = work.steps(
        config,
        out,
        start=start,
        settings=settings or (),
        minutes=minutes,
        device=device,
        resume=resume,
        log_dir=log,
    )
    figures: dict[str, str] = {}
    layout = "{percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}"
    # of several processes (torchrun) the first one reports
    first = os.environ.get("RANK", "0") == "0"
    with Bar(total=1.0, bar_format=layout, disable=not first) as bar:
        for progress in steps:
            report, validation = progress.detail, progress.detail.validation
            if validation is not None:
                figures = {
                    "jaccard": f"{validation.jaccard:.3f}",
                    "efficiency": f"{validation.efficiency:.1f}",
                    "rmse/bound": f"{validation.isolated_error_over_bound:.2f}",
                }
            bar.set_postfix(
                {"step": report.step, "loss": f"{report.loss:.3f}"} | figures, refresh=False
            )
            bar.update((progress.fraction or 0.0) - bar.n)
    if not first:
        return
    typer.echo(f"{report.step} steps in {report.minutes:.1f} minutes, {report.skipped} left out")
    typer.echo(", ".join(f"{name} {figure}" for name, figure in figures.items()))
    for remark in report.remarks:
        typer.echo(remark)
    list_files([out, out.with_suffix(".json")])


@app.command(
    epilog=examples(
        "decode run movie.tif --beads beads.tif --camera camera.yaml -o out",
        "decode run movie.tif --beads beads.tif --z-step 20 --camera c.yaml -o out --minutes 15",
    ),
)
@of_movies
def run(
    movie: Movie,
    *,
    selection: Selection,
    beads: Annotated[
        list[Path], typer.Option(metavar="BEADS", help="z-stack of beads; repeat it for several.")
    ],
    camera: Annotated[
        Path, typer.Option(help="Camera file (YAML), or the name of a common camera.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for all results.")],
    z_step: ZStep = None,
    z_focus: ZFocus = None,
    frames_per_plane: FramesPerPlane = 1,
    downwards: Downwards = None,
    z_of_frames: ZOfFrames = None,
    bead_positions: Positions = None,
    minutes: Annotated[float, typer.Option(help="Minutes of training.")] = 30.0,
    polish: Annotated[
        bool,
        typer.Option(
            help="Let the likelihood of the frames decide and refine, with the calibrated PSF."
        ),
    ] = True,
    pixel_size: PixelSize = None,
    em_gain: EmGain = None,
    device: Device = "auto",
    rounds: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Most rounds: while a check fails that another prior or a refined pupil mends, "
            "train on for what the movie's molecules say, and localize again.",
        ),
    ] = 1,
    settings: Settings = None,
    drift: DriftToo = None,
    link: LinkToo = None,
    report: ReportToo = None,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Beads and a movie to molecules: calibrate, estimate, train, localize and render."""
    from decode.progress import Bar
    from decode.verbs.finish import Finish
    from decode.verbs.run import run as work

    steps = work.steps(
        movie,
        beads,
        camera,
        out,
        z_step_nm=z_step,
        z_focus=z_focus,
        frames_per_plane=frames_per_plane,
        downwards=downwards,
        z_of_frames=z_of_frames,
        bead_positions=bead_positions,
        minutes=minutes,
        polish=polish,
        pixel_size_nm=pixel_size,
        em_gain=em_gain,
        settings=settings or (),
        device=device,
        selection=selection,
        rounds=rounds,
        finishing=Finish(drift=drift, link=link, report=report),
    )
    layout = "{desc:9}{percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}"
    with Bar(total=1.0, bar_format=layout) as bar:

        def show(progress: Progress[Stage]) -> None:
            stage, fraction = progress.detail, progress.fraction or 0.0
            if fraction == 0:
                bar.reset(1.0)
            bar.set_description_str(stage.name, refresh=False)
            for warning in progress.warnings:
                bar.write(f"{movie.name}: warning: {warning}", file=sys.stderr)
            if stage.files or stage.name == "rounds":
                report = sys.stderr if as_json else sys.stdout
                bar.write(f"{stage.name}:", file=report)
                for line in (*progress.message.splitlines(), *map(str, stage.files)):
                    bar.write(f"  {line}", file=report)
            else:
                bar.set_postfix_str(progress.message, refresh=False)
            bar.update(fraction - bar.n)

        molecules = follow(steps, show)
    checks = molecules.facts.checks
    if as_json:
        plain = [asdict(check) for check in checks]
        print_json({"movie": str(movie), "molecules": len(molecules), "checks": plain})
    raise typer.Exit(strictly(checks, strict=strict))


@app.command(
    epilog=examples(
        "decode estimate movie.tif --psf psf.h5 --camera camera.yaml -o train.yaml",
    ),
)
@of_movies
def estimate(
    movie: Movie,
    *,
    selection: Selection,
    psf: Annotated[Path, typer.Option(help="PSF file of `decode calibrate psf`.")],
    camera: Annotated[
        Path, typer.Option(help="Camera file (YAML), or the name of a common camera.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Recipe (YAML); a picture is written beside it.")
    ],
    pixel_size: PixelSize = None,
    em_gain: EmGain = None,
    allow_truncated: Annotated[
        bool,
        typer.Option(
            "--allow-truncated", help="Accept a truncated movie: take its complete frames."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """A movie to a recipe for training: background, flux, on-time, density, blur and depth, with
    intervals."""
    from decode.verbs.estimate import estimate as work

    steps = work.steps(
        movie,
        camera=camera,
        psf=psf,
        out=out,
        pixel_size_nm=pixel_size,
        em_gain=em_gain,
        allow_truncated=allow_truncated,
        selection=selection,
    )
    estimated = warned(steps, movie.name)
    if as_json:
        named = ("histogram_overlap", "spectrum_difference")
        agreement = {name: getattr(estimated.comparison, name) for name in named}
        written = [str(file) for file in estimated.files]
        print_json({**asdict(estimated.scene), **agreement, "files": written})
        return
    typer.echo(str(estimated))
    list_files(estimated.files)
