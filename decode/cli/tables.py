"""Commands that make tables of tables: filter, drift, link, convert; and check them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from decode.cli.application import app, examples
from decode.cli.options import Json, TablePixelSize, of_movies
from decode.cli.shown import LAYOUT, follow, list_files, print_json

if TYPE_CHECKING:
    from decode.io.movies import Selection
    from decode.progress import Progress

__all__ = ["check_table", "convert", "drift", "filter_", "link"]


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


def _place(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"--at {text}: write it as X,Y in nm") from None
    return x, y
