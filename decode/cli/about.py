"""Commands that say what there is, and how this machine does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from decode.cli.application import app, examples
from decode.cli.options import Json
from decode.cli.shown import print_json

__all__ = [
    "bug_report",
    "cameras",
    "doctor",
    "formats_",
    "models",
    "schema",
]


@app.command(
    epilog=examples(
        "decode cameras",
        "decode cameras --json",
    ),
)
def cameras(as_json: Json = False) -> None:
    """Common cameras, whose names serve in place of a camera file: typical values, to be
    checked."""
    from decode.io.cameras import camera_presets

    presets = camera_presets()
    if as_json:
        print_json(presets)
        return
    for name, about in presets.items():
        typer.echo(f"{name}: {about}")


@app.command(
    "formats",
    epilog=examples(
        "decode formats",
    ),
)
def formats_() -> None:
    """The formats of tables and movies that are read and written."""
    from decode.verbs.formats import formats

    typer.echo(formats())


@app.command(
    epilog=examples(
        "decode models",
        "decode models gaussian-2d --picture calibration.png",
    ),
)
def models(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="A shipped model or a model file; without: all."),
    ] = None,
    *,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Draw the calibration of MODEL."),
    ] = None,
    as_json: Json = False,
) -> None:
    """The models that come with decode, or one of yours: how good, and how well calibrated, they
    are."""
    from decode.models import load_model, shipped_models
    from decode.quality.calibration import CalibrationRecord

    chosen = shipped_models() if name is None else {name: name}
    known = {each: load_model(path) for each, path in chosen.items()}
    if picture is not None:
        if name is None:
            raise ValueError("name the model whose calibration is to be drawn (--picture)")
        if picture.suffix.lower() != ".png":
            raise ValueError(f"{picture}: the picture is a PNG; choose a name that ends in .png")
        CalibrationRecord.of_model(known[name].record).picture(picture)
    if as_json:
        print_json(
            {
                each: {"context": model.context, **model.record.to_json()}
                for each, model in known.items()
            }
        )
        return
    for each, model in known.items():
        record = model.record
        typer.echo(f"{each}: {record.description}")
        for quantity, (low, high) in model.context.items():
            typer.echo(f"  for {quantity} from {low:g} to {high:g}")
        if record.minutes is not None:
            typer.echo(
                f"  trained for {record.steps} steps in {record.minutes:.0f} minutes on "
                f"{record.hardware}"
            )
        if record.calibration is not None:
            for line in CalibrationRecord.of_model(record).lines():
                typer.echo(line)
        if record.figures is None:
            typer.echo("  an unfinished training: its figures were not measured")
            continue
        typer.echo("  molecules/um^2  photons  Jaccard  RMSE lateral")
        for row in record.figures:
            density, photons = f"{row['density_per_um2']:.2f}", f"{row['flux_photons']:.0f}"
            typer.echo(
                f"  {density:>14}  {photons:>7}  {row['jaccard']:7.2f}  "
                f"{row['rmse_lateral_nm']:9.1f} nm"
            )


@app.command(
    epilog=examples(
        "decode doctor",
    ),
)
def doctor() -> None:
    """Test the installation: versions, device, models, and a small movie from simulation to
    score."""
    from decode.verbs.doctor import doctor as run

    healthy = True
    for check in run():
        healthy &= check.ok
        typer.echo(f"{'ok    ' if check.ok else 'FAILED'} {check.name}: {check.detail}")
    raise typer.Exit(0 if healthy else 1)


@app.command(
    "bug-report",
    epilog=examples(
        "decode bug-report > report.md",
        "decode bug-report train.yaml out/movie.hdf5 training.log > report.md",
    ),
)
def bug_report(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", help="Recipes, logs, and tables (their facts only)."),
    ] = None,
) -> None:
    """Versions, machine and settings as text for a bug report; never pixels or molecules."""
    from decode.verbs.bug_report import bug_report as run

    typer.echo(run(files or ()))


@app.command(
    epilog=examples(
        "decode schema > schema.json",
        "decode schema job > job.schema.json",
    ),
)
def schema(
    kind: Annotated[str, typer.Argument(metavar="[KIND]", help="recipe or job.")] = "recipe",
) -> None:
    """JSON schema of recipes or jobs, for editors: decode schema job > job.schema.json."""
    from decode.verbs.schema import schema as run

    typer.echo(json.dumps(run(kind), indent=1))
