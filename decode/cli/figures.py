"""Commands that show what tables hold: a picture, a page, figures."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from decode.cli.application import app, examples
from decode.cli.options import Json, TablePixelSize
from decode.cli.shown import LAYOUT, follow, list_files, print_json

if TYPE_CHECKING:
    from decode.progress import Progress

__all__ = ["evaluate", "quality", "render", "report"]


@app.command(
    epilog=examples(
        "decode render out/movie.csv -o picture.png",
        "decode render out/movie.hdf5 -o side.svg --view xz --color z --range -400,400",
        "decode render out/movie.hdf5 -o density.tif --kernel histogram --pixel 10 --bits 16",
    ),
)
def render(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="Table of molecules.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Picture in colours (.png, .svg), or densities (.tif, OME-TIFF)."
        ),
    ],
    *,
    kernel: Annotated[
        str, typer.Option(help="gaussian (as wide as the uncertainty), histogram or scatter.")
    ] = "gaussian",
    color: Annotated[
        str,
        typer.Option(
            metavar="COLUMN",
            help="What colours show: z, time, photons, any column, or density; without: z where "
            "there is depth (.png, .svg).",
        ),
    ] = "auto",
    color_range: Annotated[
        str | None,
        typer.Option("--range", metavar="LOW,HIGH", help="Values of the first and last colour."),
    ] = None,
    colormap: Annotated[
        str | None, typer.Option(metavar="NAME", help="One of Matplotlib's, as viridis.")
    ] = None,
    view: Annotated[str, typer.Option(help="xy, xz or yz: to the right, and downwards.")] = "xy",
    pixel: Annotated[
        float | None, typer.Option(metavar="NM", help="Side of a pixel of the picture.")
    ] = None,
    region: Annotated[
        str | None, typer.Option(metavar="X0,Y0,X1,Y1", help="Part of the field, nm.")
    ] = None,
    slices: Annotated[
        float | None,
        typer.Option(metavar="NM", help="Thickness of slices, across the axis looked along."),
    ] = None,
    contrast: Annotated[
        str,
        typer.Option(
            metavar="LOW,HIGH",
            help="Black and full brightness, in percent of the pixels with molecules, or in "
            "molecules a um2: 0,5000/um2.",
        ),
    ] = "0,99",
    gamma: Annotated[float, typer.Option(help="Brightness is density to this power.")] = 0.5,
    scale_bar: Annotated[bool, typer.Option("--scale-bar/--no-scale-bar")] = True,
    bits: Annotated[
        int,
        typer.Option(
            metavar="16|32",
            help="Of the numbers in a .tif: 32 are molecules a pixel; 16 are counts, or scaled so "
            "that full brightness is 65535.",
        ),
    ] = 32,
    pixel_size: TablePixelSize = None,
) -> None:
    """A table to a picture, or to densities for ImageJ and other programs."""
    from decode.progress import Bar
    from decode.rendering import Contrast, Rendering
    from decode.verbs.render import render as draw

    ends = None if color_range is None else _numbers(color_range, "--range", "LOW,HIGH")
    box = None if region is None else _numbers(region, "--region", "X0,Y0,X1,Y1")
    rendering = Rendering(
        kernel=cast(Any, kernel),
        color=color,
        color_range=cast(Any, ends),
        colormap=colormap,
        view=cast(Any, view),
        pixel_nm=pixel,
        region_nm=cast(Any, box),
        slices_nm=slices,
        contrast=Contrast.parse(contrast),
        gamma=gamma,
        scale_bar=scale_bar,
        bits=cast(Any, bits),
    )
    steps = draw.steps(table, out, rendering, pixel_size_nm=pixel_size)
    with Bar(total=1.0, bar_format=LAYOUT) as bar:

        def show(progress: Progress[object]) -> None:
            bar.set_description_str(progress.message, refresh=False)
            bar.update((progress.fraction or 0.0) - bar.n)

        molecules = follow(steps, show)
    typer.echo(f"{len(molecules)} molecules")
    list_files([out])


@app.command(
    epilog=examples(
        "decode report out -o out/report.html",
        "decode report day1/movie.csv day2/movie.csv -o both.html",
    ),
)
def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER|TABLE...",
            help="Tables of molecules, and folders that hold some; several: one row for each.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Report to write (.html); its twin is a .json.")
    ],
    pixel_size: TablePixelSize = None,
    as_json: Json = False,
) -> None:
    """Tables to one HTML page: verdict, figure, checks, precision, resolution and provenance.

    It needs no network.  Beside it, a JSON of the same name holds all figures.
    """
    from decode.outputs import report_files
    from decode.progress import Bar
    from decode.verbs.report import report as work

    layout = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed}"
    with Bar(total=1.0, bar_format=layout) as bar:

        def show(step: Progress[object]) -> None:
            bar.set_description(step.message, refresh=False)
            bar.update((step.fraction or 0.0) - bar.n)

        done = follow(work.steps(sources, out, pixel_size_nm=pixel_size), show)
    if as_json:
        print_json(done.as_dict())
        return
    for movie in done.movies:
        typer.echo(f"{movie.name}: {movie.chapter.verdict[0]}")
    list_files(report_files(out))


@app.command(
    epilog=examples(
        "decode evaluate out/movie.csv truth.csv",
        "decode evaluate out/movie.csv truth.csv --two-d --min-photons 250 --json",
    ),
)
def evaluate(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="Table of molecules.")],
    truth: Annotated[Path, typer.Argument(metavar="TRUTH", help="Table of the true molecules.")],
    *,
    two_d: Annotated[bool, typer.Option("--two-d", help="Ignore z.")] = False,
    min_photons: Annotated[
        float, typer.Option(help="Dimmer true molecules need not be found.")
    ] = 0.0,
    shift: Annotated[
        bool, typer.Option("--shift", help="Subtract a constant offset first, and print it.")
    ] = False,
    field: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y", help="Size of the field of view, nm; without: as the tables say."
        ),
    ] = None,
    pixel_size: TablePixelSize = None,
    as_json: Json = False,
) -> None:
    """Score a table against the truth by the rules of the SMLM Challenge 2016, and the stated
    uncertainties and probabilities by the errors."""
    from decode.verbs.evaluate import evaluate as run

    result = run(
        table,
        truth,
        field_nm=None if field is None else _size(field),
        two_d=two_d,
        min_photons=min_photons,
        remove_shift=shift,
        pixel_size_nm=pixel_size,
    )
    if as_json:
        print_json(asdict(result))
        return
    typer.echo(f"found {result.tp}, missed {result.fn}, false {result.fp}")
    typer.echo(
        f"Jaccard {result.jaccard:.3f}  precision {result.precision:.3f}  recall "
        f"{result.recall:.3f}"
    )
    axial = "" if two_d else f", axial {result.rmse_axial_nm:.1f} nm"
    typer.echo(f"RMSE lateral {result.rmse_lateral_nm:.1f} nm{axial}")
    efficiency = f"lateral {result.efficiency_lateral:.1f}" + (
        "" if two_d else f", 3D {result.efficiency_3d:.1f}"
    )
    typer.echo(f"efficiency {efficiency} of 100")
    if shift:
        typer.echo("shift subtracted: " + ", ".join(f"{s:.1f}" for s in result.shift_nm) + " nm")
    if result.calibration is not None:
        typer.echo("\n".join(result.calibration.lines()))


@app.command(
    epilog=examples(
        "decode quality out/movie.csv",
        "decode quality out/movie.csv -o out/quality --line 1900,3450,2600,3850",
    ),
)
def quality(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="Table of molecules.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Write quality.json and plots."),
    ] = None,
    *,
    line: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X0,Y0,X1,Y1", help="Measure the profile along a line, nm; repeat it."
        ),
    ] = None,
    correct_repeats: Annotated[
        bool,
        typer.Option("--correct-repeats", help="Molecules that come back are no structure."),
    ] = False,
    frames: Annotated[
        int | None, typer.Option(help="Frames of the movie, where the table does not say so.")
    ] = None,
    pixel_size: TablePixelSize = None,
    as_json: Json = False,
) -> None:
    """How good a table is: resolution, precision, distributions, and what limits the resolution.

    Figures that the table does not tell are said to be unknown, and why.
    """
    from decode.outputs import quality_files
    from decode.verbs.quality import assess

    lines = [_line(text) for text in line or ()]
    found = assess(
        table,
        out,
        lines_nm=lines,
        n_frames=frames,
        pixel_size_nm=pixel_size,
        correct_repeats=correct_repeats,
    )
    if as_json:
        print_json(found.as_dict())
        return
    for name, figure in found.lines():
        typer.echo(f"{name:<18} {figure}")
    if out is not None:
        list_files(quality_files(out, len(lines)))


def _line(text: str) -> tuple[float, float, float, float]:
    try:
        x0, y0, x1, y1 = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"--line {text}: write it as X0,Y0,X1,Y1 in nm") from None
    return x0, y0, x1, y1


def _numbers(text: str, option: str, form: str) -> tuple[float, ...]:
    try:
        numbers = tuple(map(float, text.split(",")))
    except ValueError:
        numbers = ()
    if len(numbers) != len(form.split(",")):
        raise ValueError(f"{option} {text}: write it as {form}")
    return numbers


def _size(text: str) -> tuple[float, float]:
    try:
        x, y = (float(side) for side in text.split(","))
    except ValueError:
        raise ValueError(f"--field {text}: write it as X,Y in nm") from None
    if not (0 < x < math.inf and 0 < y < math.inf):
        raise ValueError(f"--field {text}: both sides must be positive numbers")
    return x, y
