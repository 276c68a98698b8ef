"""decode watch: a movie while it is recorded."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from decode.cli.application import app, examples
from decode.cli.options import (
    CameraOption,
    Device,
    DriftToo,
    EmGain,
    LinkToo,
    PixelSize,
    ReportToo,
    of_movies,
)
from decode.cli.shown import LAYOUT, follow, list_files

if TYPE_CHECKING:
    from decode.io.movies import Selection
    from decode.progress import Progress
    from decode.verbs.watch import Update

__all__ = [
    "watch",
]


@app.command(
    epilog=examples(
        "decode watch movie.tif --model gaussian-2d --camera camera.yaml --psf-sigma 130 -o out",
        "decode watch folder --model gaussian-2d -o out --idle 20 --json",
        "decode watch folder --model astigmatic-3d --psf psf.h5 -o out --until folder/done.txt",
    ),
)
@of_movies
def watch(
    movie: Annotated[
        Path,
        typer.Argument(
            metavar="MOVIE|FOLDER", help="Movie that is written, or a folder where files appear."
        ),
    ],
    *,
    selection: Selection,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for tables and pictures.")],
    model: Annotated[
        str, typer.Option(help="A shipped model (see `decode models`) or a model file.")
    ],
    camera: CameraOption = None,
    psf_sigma: Annotated[
        float | None,
        typer.Option(
            metavar="NM", help="Width of the PSF (standard deviation); without: estimated."
        ),
    ] = None,
    psf: Annotated[
        Path | None, typer.Option(help="Calibrated PSF, for a model of many PSFs.")
    ] = None,
    pixel_size: PixelSize = None,
    em_gain: EmGain = None,
    threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Smallest probability of a molecule.")
    ] = 0.5,
    roi: Annotated[
        str | None,
        typer.Option(metavar="Y0:Y1,X0:X1", help="Only these rows and columns, counted from 0."),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="Suffix of a file to write (see: decode formats); without: csv, hdf5 and png.",
        ),
    ] = None,
    idle: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="No new frame for so long: the acquisition is over."),
    ] = 60.0,
    until: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Its appearance says that the acquisition is over."),
    ] = None,
    again: Annotated[
        bool,
        typer.Option(
            "--again/--no-again",
            help="Localize the finished movie as a whole; or keep what was found while it grew.",
        ),
    ] = True,
    page: Annotated[
        bool, typer.Option("--page/--no-page", help="Picture and figures for a browser here.")
    ] = True,
    port: Annotated[int, typer.Option(help="Of the page; 0: a free one.")] = 0,
    drift: DriftToo = None,
    link: LinkToo = None,
    report: ReportToo = None,
    device: Device = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures, one JSON object a line.")
    ] = False,
) -> None:
    """A movie to molecules while the microscope writes it; then to tables as `decode localize`.

    Called again, it goes on where it was.  Ctrl-C ends it; what was found is kept, as tables.
    """
    from decode.outputs import DEFAULT_FORMATS
    from decode.progress import Bar
    from decode.verbs.batch import Options
    from decode.verbs.watch import watch as work

    if selection.raw is not None:
        raise ValueError("a binary file that states nothing is not watched: leave out --raw-shape")
    options = Options(
        model=model,
        camera=None if camera is None else str(camera),
        psf=None if psf is None else str(psf),
        pixel_size_nm=pixel_size,
        em_gain=em_gain,
        psf_sigma_nm=psf_sigma,
        threshold=threshold,
        roi=roi,
        formats=tuple(formats or DEFAULT_FORMATS),
        device=device,
        channel=selection.channel,
        position=selection.position,
        z=None if selection.z is None else int(selection.z),
        skip=selection.skip,
        drift=drift,
        link=link,
        report=report,
    )
    steps = work.steps(
        movie,
        out,
        options,
        idle_s=idle,
        until=until,
        again=again,
        port=port if page else None,
    )
    with Bar(total=1.0, bar_format=LAYOUT) as bar:

        def show(progress: Progress[Update | None]) -> None:
            for warning in progress.warnings:
                bar.write(f"decode: {warning}", file=sys.stderr)
            if progress.fraction is None:
                if progress.message:
                    bar.write(f"figures: {progress.message}", file=sys.stderr)
                return
            if progress.detail is not None and as_json:
                bar.write(json.dumps(progress.detail.as_dict()), file=sys.stdout)
                sys.stdout.flush()
            bar.set_description_str(progress.message, refresh=False)
            bar.update(progress.fraction - bar.n)

        watched = follow(steps, show)
    if not as_json:
        list_files(watched.files)
    raise typer.Exit(1 if watched.problems else 0)
