"""Commands that take tables of molecules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from decode.cli.application import app, examples
from decode.cli.options import Json, TablePixelSize, of_movies
from decode.cli.shown import LAYOUT, follow, list_files, print_json

if TYPE_CHECKING:
    from decode.io.movies import Selection
    from decode.progress import Progress

__all__ = [
    "check_table",
    "convert",
    "drift",
    "evaluate",
    "filter_",
    "link",
    "quality",
    "render",
    "report",
]


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
    "filter",
    epilog=examples(
        "decode filter out/movie.csv -o bright.csv --keep photons=500: --keep sigma=:20",
    ),
)
def filter_(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="Table of molecules.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Table to write; see: decode formats."),
    ],
    keep: Annotated[
        list[str],
        typer.Option(
            metavar="COLUMN=LOW:HIGH",
            help="Range to keep, its ends included; either may be left out. Repeat it for more "
            "columns: photons, sigma, sigma_z, x, y, z (nm), probability, frame (from 0), "
            "background, goodness, ess.",
        ),
    ],
    pixel_size: TablePixelSize = None,
) -> None:
    """A table to one of the molecules whose columns lie within ranges."""
    from decode.postprocess.filter import filter_table, parse_ranges

    n_kept, n = filter_table(table, out, parse_ranges(keep), pixel_size_nm=pixel_size)
    typer.echo(f"{n_kept} of {n} molecules")
    list_files([out])


@app.command(
    epilog=examples(
        "decode drift out/movie.csv -o out/still.csv",
        "decode drift out/movie.csv -o out/still.csv --fiducials",
        "decode drift out/still.csv -o out/back.csv --apply out/still.drift.csv --undo",
    ),
)
def drift(
    tables: Annotated[
        list[Path],
        typer.Argument(
            metavar="TABLE...", help="Table of molecules; several: parts of one acquisition."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Corrected table to write; see: decode formats."),
    ],
    *,
    z: Annotated[
        bool | None, typer.Option("--z/--no-z", help="Correct z, too; without: where it is known.")
    ] = None,
    apply: Annotated[
        Path | None,
        typer.Option(
            metavar="TRACE",
            help="Subtract this drift (CSV: frame from 1, x_nm, y_nm, z_nm) in place of estimating "
            "one.",
        ),
    ] = None,
    undo: Annotated[
        bool, typer.Option("--undo", help="Add the drift of --apply in place of subtracting it.")
    ] = False,
    fiducials: Annotated[
        bool, typer.Option("--fiducials", help="Beads in the field tell the drift; they are found.")
    ] = False,
    at: Annotated[
        list[str] | None,
        typer.Option(metavar="X,Y", help="A bead's place in its first frame, nm; repeat it."),
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help="Frames of each part, where the tables do not say so.")
    ] = None,
    pixel_size: TablePixelSize = None,
) -> None:
    """A table to one in which the stage stands still, with the drift beside it.

    Writes OUT, OUT.drift.csv and OUT.drift.png.  Where the molecules do not tell the drift, nothing
    is written, and the exit code is 3.
    """
    from decode.outputs import drift_files
    from decode.progress import Bar
    from decode.verbs.drift import drift as work

    steps = work.steps(
        tables,
        out,
        z=z,
        apply=apply,
        undo=undo,
        fiducials=fiducials,
        places_nm=[_place(text) for text in at or ()],
        n_frames=frames,
        pixel_size_nm=pixel_size,
    )
    with Bar(total=1.0, bar_format=LAYOUT) as bar:

        def show(progress: Progress[None]) -> None:
            bar.set_description_str(progress.message, refresh=False)
            bar.update((progress.fraction or 0.0) - bar.n)

        _, stage = follow(steps, show)
    for sentence in stage.sentences:
        typer.echo(sentence)
    list_files([out, *drift_files(out)])


@app.command(
    epilog=examples(
        "decode link out/movie.csv -o out/molecules.csv",
        "decode link out/movie.csv -o molecules.csv --movie movie.tif --psf psf.h5 --camera c.yaml",
    ),
)
@of_movies
def link(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="Table of localizations.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Table of molecules to write; see: decode formats."),
    ],
    *,
    selection: Selection,
    gap: Annotated[
        int | None,
        typer.Option(help="Most dark frames to bridge; without: by the kinetics of the table."),
    ] = None,
    movie: Annotated[
        Path | None,
        typer.Option(help="The table's movie, to fit one position to all frames of a molecule."),
    ] = None,
    psf: Annotated[Path | None, typer.Option(help="PSF of the movie (HDF5).")] = None,
    camera: Annotated[
        Path | None, typer.Option(help="Camera of the movie: file (YAML) or name.")
    ] = None,
    rescale: Annotated[
        bool,
        typer.Option("--rescale", help="Multiply sigmas by their excess, which repeats show."),
    ] = False,
    pixel_size: TablePixelSize = None,
    as_json: Json = False,
) -> None:
    """A table of localizations to one of molecules: blinks of one molecule over frames, merged.

    Where hardly a molecule is seen twice, nothing is written, and the exit code is 3.
    """
    from decode.progress import Bar
    from decode.verbs.link import link as work

    steps = work.steps(
        table,
        out,
        gap=gap,
        movie=movie,
        psf=psf,
        camera=camera,
        selection=selection,
        rescale=rescale,
        pixel_size_nm=pixel_size,
    )
    layout = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed}"
    with Bar(total=1.0, bar_format=layout) as bar:

        def show(progress: Progress[None]) -> None:
            for warning in progress.warnings:
                typer.echo(f"{movie}: warning: {warning}", err=True)
            bar.set_description_str(progress.message, refresh=False)
            bar.update((progress.fraction or 0.0) - bar.n)

        molecules, linking = follow(steps, show)
    if as_json:
        print_json(molecules.metadata["link"])
        return
    for sentence in linking.sentences:
        typer.echo(sentence)
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
        "decode convert out/movie.csv out/movie.parquet",
        "decode convert out/movie.csv movie_sml.mat --to smap",
        "decode convert other.txt movie.csv --columns x=X[um],y=Y[um],frame=T --first-frame 0",
    ),
)
def convert(
    table: Annotated[Path, typer.Argument(metavar="IN", help="Table of molecules.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Table to write.")],
    to: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT", help="Name of a format (see: decode formats); without: by the suffix."
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="x=LABEL[UNIT],...",
            help="Columns of a text whose names are not known: x, y, z, frame, photons and so on; "
            "units nm, um, px, m; without a header LABEL is the column's number.",
        ),
    ] = None,
    first_frame: Annotated[
        int | None, typer.Option(help="Number of a text's first frame; without: 1.")
    ] = None,
    pixel_size: TablePixelSize = None,
) -> None:
    """A table to one in another format, with all columns that have room in it."""
    from decode.io.tables.chosen import parsed
    from decode.verbs.convert import convert as run

    molecules = run(
        table,
        out,
        to=to,
        pixel_size_nm=pixel_size,
        columns=parsed(columns) if columns else None,
        first_frame=first_frame,
    )
    typer.echo(f"{len(molecules)} molecules")
    for warning in molecules.facts.warnings:
        typer.echo(f"warning: {warning}", err=True)
    list_files([out])


@app.command(
    "check-table",
    epilog=examples(
        "decode check-table out/movie.csv",
        "decode check-table picasso_locs.hdf5 --json",
    ),
)
def check_table(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="Table of molecules.")],
    pixel_size: TablePixelSize = None,
    as_json: Json = False,
) -> None:
    """What a table holds: format, columns with units, frames, facts and steps.  Exit code 2 where
    it is not as docs/table.md describes it."""
    from decode.verbs.check_table import check_table as run

    found = run(table, pixel_size_nm=pixel_size)
    if as_json:
        print_json(asdict(found))
    else:
        typer.echo(f"format   {found.format}")
        frames = "" if found.rows == 0 else f", frames {found.first_frame} to {found.last_frame}"
        typer.echo(f"rows     {found.rows}{frames}")
        labelled = (f"{name} [{unit}]" if unit else name for name, unit in found.columns.items())
        typer.echo(f"columns  {', '.join(labelled)}")
        for kind, entries in (("facts", found.facts), ("steps", found.steps)):
            for name, value in entries.items():
                typer.echo(f"{kind:<8} {name}: {_shown(value)}")
    if found.problems:
        raise ValueError(f"{table}: {'; '.join(found.problems)}")


def _shown(value: object) -> str:
    """A fact on a line; what is long is in the JSON."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {v}" for name, v in value.items())
    if isinstance(value, list | tuple):
        whole = all(isinstance(v, str) for v in value)
        return "; ".join(map(str, value)) if whole else f"{len(value)} (see --json)"
    return "; ".join(str(value).splitlines())


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


def _place(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"--at {text}: write it as X,Y in nm") from None
    return x, y


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
