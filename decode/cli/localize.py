"""Commands that localize one movie after the other."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, final

import typer
from typer.core import TyperCommand

from decode.cli.application import app, examples, say
from decode.cli.jobs import run_batch, share_of
from decode.cli.options import (
    CameraOption,
    Device,
    DriftToo,
    EmGain,
    Json,
    LinkToo,
    PixelSize,
    ReportToo,
    Strict,
    of_movies,
)
from decode.cli.shown import LAYOUT, follow, list_files, print_json, strictly

if TYPE_CHECKING:
    from decode.io.movies import Selection
    from decode.network.localizer import Localizer
    from decode.progress import DetailedSteps, Progress
    from decode.verbs.localize import Localized, LocalizeReport

__all__ = [
    "localize",
    "merge",
]


@final
class _Localize(TyperCommand):
    """A command whose `--adapt` may stand without its minutes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _with_minutes(args))


def _with_minutes(words: list[str]) -> list[str]:
    if "--adapt" not in words:
        return words
    from decode.verbs.minutes import MINUTES

    completed: list[str] = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        completed.append(word)
        if word == "--adapt" and not following.lstrip("-").replace(".", "", 1).isdigit():
            completed.append(f"{MINUTES:g}")
    return completed


@app.command(
    cls=_Localize,
    epilog=examples(
        "decode localize movie.tif --model gaussian-2d -o out",
        "decode localize movie.tif --model gaussian-2d --camera camera.yaml --frames 0:100 -o out",
        "decode localize movie.tif --model astigmatic-3d --psf psf.h5 --camera camera.yaml -o out",
        "decode localize movie.tif --adapt --psf psf.h5 --camera camera.yaml -o out",
        "decode localize part1.tif part2.tif --join --model gaussian-2d -o out",
        "decode localize folder --recursive --model gaussian-2d -o out",
    ),
)
@of_movies
def localize(
    ctx: typer.Context,
    movies: Annotated[
        list[Path],
        typer.Argument(
            metavar="MOVIE...", help="Movies, or folders of movies (see `decode formats`)."
        ),
    ],
    *,
    selection: Selection,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for tables and pictures.")],
    model: Annotated[
        str | None, typer.Option(help="A shipped model (see `decode models`) or a model file.")
    ] = None,
    adapt: Annotated[
        float | None,
        typer.Option(
            metavar="[MINUTES]",
            help="Train the nearest model for --psf, --camera and the movie, 7 minutes unless "
            "stated; it is kept beside the PSF, and serves the next movie at once.  So it is done "
            "where --psf and --camera are given without --model.",
        ),
    ] = None,
    camera: CameraOption = None,
    psf_sigma: Annotated[
        float | None,
        typer.Option(
            metavar="NM", help="Width of the PSF (standard deviation); without: estimated."
        ),
    ] = None,
    psf: Annotated[
        Path | None,
        typer.Option(help="Calibrated PSF, for a model of many PSFs and for --polish."),
    ] = None,
    polish: Annotated[
        bool | None,
        typer.Option(
            help="Let the likelihood of the frames decide and refine; without: wherever the PSF is "
            "known."
        ),
    ] = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="State the moments of the exact posterior of each molecule; needs a known PSF.",
        ),
    ] = False,
    pixel_size: PixelSize = None,
    em_gain: EmGain = None,
    threshold: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Smallest probability of a molecule.",
        ),
    ] = 0.5,
    false_discovery_rate: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Largest share of false molecules, where the likelihood decides."
        ),
    ] = 0.05,
    frames: Annotated[
        str | None, typer.Option(metavar="A:B", help="Only frames A to B - 1, counted from 0.")
    ] = None,
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
    samples: Annotated[
        int,
        typer.Option(
            metavar="K",
            min=0,
            help="Also write K draws of the posterior: <movie>.sample-01.csv, ...",
        ),
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    device: Device = "auto",
    allow_truncated: Annotated[
        bool,
        typer.Option(
            "--allow-truncated", help="Accept a truncated movie: take its complete frames."
        ),
    ] = False,
    join: Annotated[
        bool,
        typer.Option(
            "--join", help="The files are parts of one movie, in the order of their names."
        ),
    ] = False,
    recursive: Annotated[
        bool,
        typer.Option(
            "--recursive", help="All movies in folders, and in the folders within; see: batch."
        ),
    ] = False,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Begin anew, even if the same was begun and not finished."),
    ] = False,
    workers: Annotated[
        int,
        typer.Option(min=1, help="Processes of this machine that share a movie, or its GPUs."),
    ] = 1,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Dask scheduler whose workers share each movie."),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Only share I of N of each movie, counted from 1; then: decode merge OUT.",
        ),
    ] = None,
    drift: DriftToo = None,
    link: LinkToo = None,
    report: ReportToo = None,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Movies to OUT/<movie>.csv, .hdf5 and .png: molecules with uncertainties, and a picture.

    Of a movie of 2000 frames or more, <movie>.undrifted.csv, <movie>.linked.csv and the report
    <movie>.html follow.
    Checks say whether the molecules are right for the movie: a line on stderr for each that fails.
    A movie that cannot be localized does not stop the others; the exit code is that of the first
    one.  What was stopped goes on where it was when the same command is given again.
    """
    from decode.errors import in_plain_words
    from decode.io.cameras import camera_inputs, read_camera
    from decode.io.movies import in_natural_order
    from decode.io.psfs import read_psf
    from decode.models import load_model
    from decode.outputs import (
        DEFAULT_FORMATS,
        check_outputs,
        finished_files,
        localize_files,
        sample_files,
    )
    from decode.verbs.minutes import usual_minutes
    from decode.verbs.region import parse_region, parse_span

    if recursive:
        if join:
            raise ValueError("--join makes one movie of several files: leave out --recursive")
        if selection.raw is not None:
            raise ValueError("--raw-shape is that of one file: leave out --recursive")
        if fresh or scheduler is not None or shard is not None:
            raise ValueError(
                "--fresh, --scheduler and --shard are of single movies: leave out --recursive"
            )
        from decode.verbs.batch import Job, Options

        job = Job(
            movies=tuple(map(str, movies)),
            recursive=True,
            out=str(out),
            workers=workers,
            localize=Options(
                model=model,
                adapt=adapt,
                camera=None if camera is None else str(camera),
                psf=None if psf is None else str(psf),
                pixel_size_nm=pixel_size,
                em_gain=em_gain,
                psf_sigma_nm=psf_sigma,
                polish=polish,
                exact=exact,
                threshold=threshold,
                false_discovery_rate=false_discovery_rate,
                frames=frames,
                roi=roi,
                formats=tuple(formats or DEFAULT_FORMATS),
                samples=samples,
                seed=seed,
                device=device,
                allow_truncated=allow_truncated,
                channel=selection.channel,
                position=selection.position,
                z=None if selection.z is None else int(selection.z),
                skip=selection.skip,
                drift=drift,
                link=link,
                report=report,
            ),
        )
        run_batch(job, strict=strict, as_json=as_json)
    adapt = usual_minutes(adapt, model=model, psf=psf, camera=camera)
    region = None if roi is None else parse_region(roi)
    chosen = None if frames is None else parse_span("--frames", frames)
    sources = [in_natural_order(movies)] if join else [[movie] for movie in movies]
    written = formats or DEFAULT_FORMATS
    if polish and samples:
        raise ValueError("draws are of the posterior of the network: choose --samples or --polish")
    tables = [localize_files(parts[0], out, written) for parts in sources]
    outputs = [file for files in tables for file in (*files, *finished_files(files))]
    draws = [sample_files(parts[0], out, written, samples) for parts in sources]
    outputs += [file for of_movie in draws for files in of_movie for file in files]
    inputs = [*movies, model, psf, *(() if camera is None else camera_inputs(camera))]
    check_outputs(outputs, inputs=inputs, folder=out)
    network = None if model is None else load_model(model)
    calibrated = None if psf is None else read_psf(psf)
    camera_file = (
        None if camera is None else read_camera(camera, pixel_size_nm=pixel_size, em_gain=em_gain)
    )

    options: dict[str, Any] = {
        "adapt": adapt,
        "camera": camera_file,
        "psf": calibrated if adapt is None else psf,
        "pixel_size_nm": pixel_size,
        "psf_sigma_nm": psf_sigma,
        "threshold": threshold,
        "false_discovery_rate": false_discovery_rate,
        "frames": chosen,
        "roi": region,
        "formats": written,
        "device": device,
        "allow_truncated": allow_truncated,
        "selection": selection,
        "polish": polish,
        "exact": exact,
        "samples": samples,
        "seed": seed,
        "fresh": fresh,
        "workers": workers,
        "scheduler": scheduler,
        "shard": None if shard is None else share_of(shard, "--shard"),
    }
    results: list[dict[str, Any]] = []
    codes = [0]
    try:
        for parts, files in zip(sources, tables, strict=True):
            try:
                done = _localize_one(parts, network, out, options)
                if shard is not None:
                    results.append(_summary(parts[0], done))
                    if not as_json:
                        typer.echo(f"share {shard} of {parts[0]}: {done.n_molecules} molecules")
                    continue
                done = _finish(parts[0].name, files, done, drift=drift, link=link, report=report)
                results.append(_summary(parts[0], done))
                codes.append(strictly(done.checks, strict=strict))
                if not as_json:
                    typer.echo(
                        f"{done.n_molecules} molecules in {done.n_frames} frames of {parts[0]}"
                    )
                    list_files(done.files)
            except (ValueError, OSError, MemoryError, RuntimeError) as error:
                codes.append(
                    say(error, ctx, about=f"{parts[0].name}: " if len(sources) > 1 else "")
                )
                results.append({"movie": str(parts[0]), "error": in_plain_words(error)})
    finally:  # also of those before a Ctrl-C
        if as_json:
            print_json(results)
    raise typer.Exit(next((code for code in codes if code), 0))


def _localize_one(
    parts: list[Path], model: Localizer | None, out: Path, options: dict[str, Any]
) -> Localized:
    from decode.verbs.localize import localize_file

    return _with_bar(parts[0].name, localize_file.steps(parts, model, out, **options))


def _with_bar(name: str, steps: DetailedSteps[LocalizeReport | None, Localized]) -> Localized:
    """A movie, with a bar and messages on stderr."""
    from decode.progress import Bar

    with Bar(desc=name, unit="frame") as bar:

        def show(progress: Progress[LocalizeReport | None]) -> None:
            report = progress.detail
            if report is None:
                bar.set_postfix_str(progress.message)
                return
            if bar.total is None:
                bar.reset(report.frames_total)
                if report.begun:
                    bar.write(f"{name}: {report.begun}", file=sys.stderr)
                for estimate in report.acquisition.estimates:
                    bar.write(f"{name}: {estimate}", file=sys.stderr)
            for warning in progress.warnings:
                bar.write(f"{name}: warning: {warning}", file=sys.stderr)
            bar.set_postfix(molecules=report.n_molecules, refresh=False)
            bar.update(report.frames_done - bar.n)

        found = follow(steps, show)

    for remark in found.remarks:
        typer.echo(f"{name}: warning: {remark}", err=True)
    return found


def _finish(
    name: str,
    tables: tuple[Path, ...],
    done: Localized,
    *,
    drift: bool | None,
    link: bool | None,
    report: bool | None,
) -> Localized:
    """Drift, links and report of a movie, with a bar and messages on stderr."""
    from decode.progress import Bar
    from decode.verbs.finish import Finish, finish

    chosen = Finish(drift=drift, link=link, report=report).of_movie(done.n_frames)
    if not chosen.possible:
        return done
    with Bar(desc=name, total=1.0, bar_format=LAYOUT) as bar:

        def show(progress: Progress[object]) -> None:
            bar.set_postfix_str(progress.message, refresh=False)
            bar.update((progress.fraction or 0.0) - bar.n)

        steps = finish.steps(
            tables, n_frames=done.n_frames, n_molecules=done.n_molecules, steps=chosen
        )
        finished = follow(steps, show)
    for remark in finished.remarks:
        typer.echo(f"{name}: {remark}", err=True)
    return replace(
        done,
        files=(*done.files, *finished.files),
        remarks=(*done.remarks, *finished.remarks),
    )


@app.command(
    epilog=examples(
        "decode localize movie.tif --model gaussian-2d -o out --shard 1/2",
        "decode localize movie.tif --model gaussian-2d -o out --shard 2/2",
        "decode merge out",
    )
)
def merge(
    ctx: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder that all shares were written to.")
    ],
    *,
    drift: DriftToo = None,
    link: LinkToo = None,
    report: ReportToo = None,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Movies that were localized in shares (decode localize --shard) to tables and pictures.

    They are to the last value those of the whole movie, and what follows them is the same, too.
    """
    from decode.errors import in_plain_words
    from decode.verbs.merge import merge as work
    from decode.verbs.merge import unfinished_in

    results: list[dict[str, Any]] = []
    codes = [0]
    for unfinished in unfinished_in(folder):
        try:
            done = _with_bar(unfinished.stem, work.steps(unfinished))
            tables = tuple(file for file in done.files if file not in done.draws)
            name = unfinished.stem
            done = _finish(name, tables, done, drift=drift, link=link, report=report)
            results.append(_summary(unfinished.with_suffix(""), done))
            codes.append(strictly(done.checks, strict=strict))
            if not as_json:
                frames = f"{done.n_frames} frames of {unfinished.stem}"
                typer.echo(f"{done.n_molecules} molecules in {frames}")
                list_files(done.files)
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            codes.append(say(error, ctx, about=f"{unfinished.stem}: "))
            results.append({"movie": unfinished.stem, "error": in_plain_words(error)})
    if as_json:
        print_json(results)
    raise typer.Exit(next((code for code in codes if code), 0))


def _summary(movie: Path, done: Localized) -> dict[str, Any]:
    """For `--json`."""
    return {
        "movie": str(movie),
        "frames": done.n_frames,
        "molecules": done.n_molecules,
        "psf_sigma_nm": done.acquisition.psf_sigma_nm,
        "pixel_size_nm": done.acquisition.pixel_size_nm,
        "estimates": done.acquisition.estimates,
        "warnings": (*done.acquisition.warnings, *done.remarks),
        "checks": [asdict(check) for check in done.checks],
        "files": [str(file) for file in done.files],
    }
