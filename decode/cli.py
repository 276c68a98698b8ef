"""decode: the command line.  A command parses, shows progress and prints; the work is the
function of its name."""

from __future__ import annotations

import inspect
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar, cast, final

import typer
from typer.core import TyperCommand, TyperGroup

from decode.commands import COMMANDS, running

if TYPE_CHECKING:
    from decode.emitters import Check
    from decode.estimation import CameraKind
    from decode.io.movies import Selection
    from decode.network.localizer import Localizer
    from decode.progress import DetailedSteps, Progress, Steps
    from decode.verbs.batch import Event, Job
    from decode.verbs.localize import Localized, LocalizeReport
    from decode.verbs.run import Stage
    from decode.verbs.watch import Update

D = TypeVar("D")
R = TypeVar("R")

LAYOUT = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed}"
"""of a bar of work of which a fraction is done"""

# What takes long to import (PyTorch, SciPy, HDF5) is imported inside the commands, so that `decode
# --help` is instant.

__all__ = ["app"]


@final
class _Commands(TyperGroup):
    """Commands whose errors are one line on stderr and an exit code.

    2 is bad input, 1 a run that failed, 3 data that do not allow an answer or a check that failed
    (`--strict`), 130 Ctrl-C and 143 SIGTERM.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[COMMANDS] = shlex.join(["decode", *args])
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            with running(ctx.meta[COMMANDS]):
                return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("decode: stopped", err=True)
            raise typer.Exit(130) from None
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            raise typer.Exit(_say(error, ctx)) from None


def _say(error: Exception, ctx: Any, *, about: str = "") -> int:
    """Print an error as one line on stderr; its exit code.  What no user can cause is raised
    again, for a traceback."""
    from decode.errors import in_plain_words

    code = _exit_code(error)
    if code is None or ctx.find_root().params["debug"]:
        raise error
    typer.echo(f"decode: {about}{in_plain_words(error)}", err=True)
    return code


def _exit_code(error: Exception) -> int | None:
    """None for an error that no user can cause."""
    from decode.errors import Undetermined, is_out_of_memory
    from decode.training.course import TrainingError

    if isinstance(error, Undetermined):
        return 3
    if isinstance(
        error,
        ValueError | FileNotFoundError | IsADirectoryError | NotADirectoryError | PermissionError,
    ):
        return 2
    return 1 if isinstance(error, OSError | TrainingError) or is_out_of_memory(error) else None


app = typer.Typer(
    cls=_Commands,
    help="Raw single-molecule blinking movies to tables of molecules with uncertainties.",
    epilog="Exit codes: 0 done, 1 failed while running, 2 bad input, 3 the data do not allow it "
    "or a check failed (--strict), "
    "130 stopped by Ctrl-C, 143 by SIGTERM.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _examples(*commands: str) -> str:
    """Commands that the help shows at its end, line by line."""
    return "\n".join(["\b", "Examples:", *(f"  {command}" for command in commands)])


Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="End with exit code 3 if a check of the movie fails.")
]
DriftToo = Annotated[
    bool | None,
    typer.Option(
        "--drift/--no-drift",
        help="Also write the tables without the drift; without: of 2000 frames or more.",
    ),
]
LinkToo = Annotated[
    bool | None,
    typer.Option(
        "--link/--no-link",
        help="Also write a row a molecule; without: of 2000 frames or more.",
    ),
]
ReportToo = Annotated[
    bool | None,
    typer.Option(
        "--report/--no-report",
        help="Also write a report (HTML); without: of 2000 frames or more.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key of the recipe."),
]
CameraOption = Annotated[
    Path | None,
    typer.Option(
        help="Camera file (YAML), or the name of a common camera (see `decode cameras`); "
        "without: the model's own, where it was trained for one, or estimated."
    ),
]
PixelSize = Annotated[
    float | None,
    typer.Option(metavar="NM", help="Side of a pixel; without: the camera file's, or the movie's."),
]
TablePixelSize = Annotated[
    float | None,
    typer.Option(metavar="NM", help="Side of a pixel, for a table in pixels that does not say it."),
]
EmGain = Annotated[
    float | None, typer.Option(help="EM gain of an EMCCD that is given by its name.")
]
Beads = Annotated[
    list[Path], typer.Argument(metavar="BEADS...", help="z-stacks of beads (see `decode formats`).")
]
ZStep = Annotated[
    float | None, typer.Option(metavar="NM", help="Distance of the planes; without: the file's.")
]
ZFocus = Annotated[
    int | None,
    typer.Option(metavar="PLANE", help="Plane, from 0, that is z = 0; without: the middle one."),
]
FramesPerPlane = Annotated[int, typer.Option(metavar="N", help="Consecutive frames of each plane.")]
Downwards = Annotated[
    bool | None,
    typer.Option(
        "--downwards/--upwards",
        help="The first plane is the highest, or the lowest; without: assumed to be the lowest.",
    ),
]
ZOfFrames = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="z of each frame in nm, one a line, for any other order."),
]
Positions = Annotated[
    Path | None,
    typer.Option(metavar="TABLE", help="Table of the beads' true positions, if known."),
]
Movie = Annotated[
    Path,
    typer.Argument(metavar="MOVIE", help="Movie, or folder of a movie (see `decode formats`)."),
]
CHOICES = {
    "channel": Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Channel, by name or number from 0, where a file has more."
        ),
    ],
    "position": Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Position, scene or image, by name or number from 0."),
    ],
    "z": Annotated[
        int | None, typer.Option("--z", metavar="N", help="Plane of z, from 0, of a time series.")
    ],
    "skip": Annotated[
        str,
        typer.Option(
            metavar="A:B:STEP,...",
            help="Frames to leave out, from 0: 0::4 is every fourth; neighbours close the gap.",
        ),
    ],
    "raw_shape": Annotated[
        str | None,
        typer.Option(metavar="Y,X", help="Rows and columns of a binary file that states nothing."),
    ],
    "raw_dtype": Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="Type of its counts: uint16, >u2 (big-endian), ..."),
    ],
    "raw_header": Annotated[
        int, typer.Option(metavar="BYTES", min=0, help="Length of its header.")
    ],
}
"""options of all commands that read movies"""
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="Recipe (YAML), see configs/.")]


def _of_movies(command: Callable[..., R]) -> Callable[..., R]:
    """A command with the options of movies, which it gets as `selection`."""
    defaults = {"skip": "", "raw_header": 0}

    @wraps(command)
    def with_selection(*args: Any, **options: Any) -> R:
        from decode.io.movies import RawLayout, Selection, raw_shape

        chosen = {name: options.pop(name) for name in CHOICES}
        shape, dtype, header = (chosen.pop(f"raw_{name}") for name in ("shape", "dtype", "header"))
        raw = None
        if shape is not None and dtype is not None:
            raw = RawLayout(frame_shape=raw_shape(shape), dtype=dtype, first_byte=header)
        elif shape is not None or dtype is not None or header:
            raise ValueError("a binary file needs both: --raw-shape and --raw-dtype")
        return command(*args, selection=Selection(**chosen, raw=raw), **options)

    del command.__annotations__["selection"]  # typer cannot evaluate it, and does not see it
    signature = inspect.signature(command, eval_str=True)
    own = {name: each for name, each in signature.parameters.items() if name != "selection"}
    added = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name), annotation=annotation
        )
        for name, annotation in CHOICES.items()
    ]
    with_selection.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*own.values(), *added]
    )
    with_selection.__annotations__ = {
        **{name: each.annotation for name, each in own.items()},
        **CHOICES,
    }
    return with_selection


calibrate = typer.Typer(
    no_args_is_help=True,
    help="The microscope: PSF from beads, camera from frames; a model's uncertainties.",
)
app.add_typer(calibrate, name="calibrate")


def _show_version(show: bool) -> None:
    if show:
        from decode import __version__

        typer.echo(f"decode {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the whole traceback of an error.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


@final
class _Localize(TyperCommand):
    """A command whose `--adapt` may stand without its minutes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _with_minutes(args))


def _with_minutes(words: list[str]) -> list[str]:
    if "--adapt" not in words:
        return words
    from decode.verbs.adapt import MINUTES

    completed: list[str] = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        completed.append(word)
        if word == "--adapt" and not following.lstrip("-").replace(".", "", 1).isdigit():
            completed.append(f"{MINUTES:g}")
    return completed


@app.command(
    cls=_Localize,
    epilog=_examples(
        "decode localize movie.tif --model gaussian-2d -o out",
        "decode localize movie.tif --model gaussian-2d --camera camera.yaml --frames 0:100 -o out",
        "decode localize movie.tif --model astigmatic-3d --psf psf.h5 --camera camera.yaml -o out",
        "decode localize movie.tif --adapt --psf psf.h5 --camera camera.yaml -o out",
        "decode localize part1.tif part2.tif --join --model gaussian-2d -o out",
        "decode localize folder --recursive --model gaussian-2d -o out",
    ),
)
@_of_movies
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
            help="In place of --model: train the nearest one for --psf, --camera and the movie, 7 "
            "minutes unless stated; it is kept beside the PSF, and serves the next movie at once.",
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
        _batch(job, strict=strict, as_json=as_json)
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
        "shard": None if shard is None else _share(shard, "--shard"),
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
                codes.append(_strictly(done.checks, strict=strict))
                if not as_json:
                    typer.echo(
                        f"{done.n_molecules} molecules in {done.n_frames} frames of {parts[0]}"
                    )
                    _list(done.files)
            except (ValueError, OSError, MemoryError, RuntimeError) as error:
                codes.append(
                    _say(error, ctx, about=f"{parts[0].name}: " if len(sources) > 1 else "")
                )
                results.append({"movie": str(parts[0]), "error": in_plain_words(error)})
    finally:  # also of those before a Ctrl-C
        if as_json:
            _print_json(results)
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

        found = _followed(steps, show)

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

        steps = finish.steps(tables, n_frames=done.n_frames, steps=chosen)
        finished = _followed(steps, show)
    for remark in finished.remarks:
        typer.echo(f"{name}: {remark}", err=True)
    return replace(
        done,
        files=(*done.files, *finished.files),
        remarks=(*done.remarks, *finished.remarks),
    )


@app.command(
    epilog=_examples(
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
            codes.append(_strictly(done.checks, strict=strict))
            if not as_json:
                frames = f"{done.n_frames} frames of {unfinished.stem}"
                typer.echo(f"{done.n_molecules} molecules in {frames}")
                _list(done.files)
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            codes.append(_say(error, ctx, about=f"{unfinished.stem}: "))
            results.append({"movie": unfinished.stem, "error": in_plain_words(error)})
    if as_json:
        _print_json(results)
    raise typer.Exit(next((code for code in codes if code), 0))


def _strictly(checks: Iterable[Check], *, strict: bool) -> int:
    """The exit code: 3 where a check failed, and that is not to pass."""
    return 3 if strict and any(check.failed for check in checks) else 0


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


@app.command(
    epilog=_examples(
        "decode batch job.yaml --dry-run",
        "decode batch job.yaml",
        "decode batch job.yaml --slurm > submit.sh",
    ),
)
def batch(
    job: Annotated[
        Path, typer.Argument(metavar="JOB", help="Job file (YAML), as docs/batch.md describes it.")
    ],
    *,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Movies that are localized at a time; without: as JOB says."),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="Only share I of N of the movies, counted from 1; no summary."
        ),
    ] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="Localize nothing: sum up what is done.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all, and list what would be done.")
    ] = False,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Print a script that sends each movie to SLURM.")
    ] = False,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """All movies of a job file to tables, and a summary over all (CSV and HTML).

    All is checked before the first movie begins.  What fails costs one movie; done movies are
    passed over, changed ones are done again.  Exit codes: 0 all are done, 1 some failed, 2 the job
    is invalid, 130 interrupted.
    """
    from decode.verbs.batch import load_job, plan, slurm_script

    read = load_job(job)
    if slurm:
        with _faults_listed():
            planned = plan(read)
        typer.echo(
            slurm_script(job, planned.out, len(planned.tasks), read.slurm, shards=read.shards),
            nl=False,
        )
        return
    if dry_run:
        with _faults_listed():
            tasks = plan(read).tasks
        if as_json:
            _print_json([task.as_dict() for task in tasks])
        else:
            for task in tasks:
                typer.echo(f"{task.name}: {task.intent}")
        raise typer.Exit(1 if any(task.fault for task in tasks) else 0)
    share = None if only is None else _share(only, "--only")
    _batch(read, only=share, workers=workers, summary=summary, strict=strict, as_json=as_json)


@contextmanager
def _faults_listed() -> Iterator[None]:
    """What is wrong with a job, a line each on stderr."""
    from decode.verbs.batch import JobError

    try:
        yield
    except JobError as error:
        for fault in error.faults:
            typer.echo(f"decode: {fault}", err=True)
        raise typer.Exit(2) from None


def _share(text: str, option: str) -> tuple[int, int]:
    index, _, number = text.partition("/")
    if not (index.isdigit() and number.isdigit() and 1 <= int(index) <= int(number)):
        raise ValueError(f"{option} {text}: write it as I/N, share I of N from 1")
    return int(index), int(number)


def _batch(
    job: Job,
    *,
    only: tuple[int, int] | None = None,
    workers: int | None = None,
    summary: bool = False,
    strict: bool,
    as_json: bool,
) -> NoReturn:
    """The movies of a job with a bar over all, and the exit code."""
    from decode.progress import Bar
    from decode.verbs.batch import batch as work

    ended = 0
    layout = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining} {postfix}"
    steps = work.steps(job, only=only, workers=workers, summary=summary)
    with _faults_listed(), Bar(total=1.0, bar_format=layout) as bar:

        def show(progress: Progress[Event | None]) -> None:
            nonlocal ended
            event = progress.detail
            if event is not None:
                ended += 1
                row = event.row
                told = row.error or f"{row.molecules} molecules in {row.frames} frames"
                earlier = "" if event.new or row.error else ", before"
                if row.error is not None:
                    bar.write(f"decode: {row.movie}: {told}", file=sys.stderr)
                elif not as_json:
                    bar.write(f"{row.movie}: {told}{earlier}", file=sys.stdout)
                bar.set_description_str(f"{ended} of {event.n_movies} movies", refresh=False)
            bar.set_postfix_str(progress.message, refresh=False)
            bar.update((progress.fraction or 0.0) - bar.n)

        done = _followed(steps, show)
    rows = done.rows
    if as_json:
        _print_json([asdict(row) for row in rows])
    else:
        typer.echo(f"{len(rows) - len(done.failed)} of {len(rows)} movies are localized")
        _list(done.files)
    failing = strict and any(row.checks_failed for row in rows)
    raise typer.Exit(1 if done.failed else 3 if failing else 0)


@app.command(
    epilog=_examples(
        "decode watch movie.tif --model gaussian-2d --camera camera.yaml --psf-sigma 130 -o out",
        "decode watch folder --model gaussian-2d -o out --idle 20 --json",
        "decode watch folder --model astigmatic-3d --psf psf.h5 -o out --until folder/done.txt",
    ),
)
@_of_movies
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

        watched = _followed(steps, show)
    if not as_json:
        _list(watched.files)
    raise typer.Exit(1 if watched.problems else 0)


@app.command(
    epilog=_examples(
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

        molecules = _followed(steps, show)
    typer.echo(f"{len(molecules)} molecules")
    _list([out])


@app.command(
    "filter",
    epilog=_examples(
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
    _list([out])


@app.command(
    epilog=_examples(
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

        _, stage = _followed(steps, show)
    for axis, size, error in zip("xyz", stage.amplitude, stage.error, strict=True):
        if size:
            typer.echo(f"{axis}: {size:.1f} nm from end to end, known to {error:.1f} nm")
    if stage.jumps:
        typer.echo(f"jumps at frame {', '.join(str(at + 1) for at in stage.jumps)}")
    _list([out, *drift_files(out)])


@app.command(
    epilog=_examples(
        "decode link out/movie.csv -o out/molecules.csv",
        "decode link out/movie.csv -o molecules.csv --movie movie.tif --psf psf.h5 --camera c.yaml",
    ),
)
@_of_movies
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

        molecules, linking = _followed(steps, show)
    if as_json:
        _print_json(molecules.metadata["link"])
        return
    for sentence in linking.sentences:
        typer.echo(sentence)
    _list([out])


@app.command(
    epilog=_examples(
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

        done = _followed(work.steps(sources, out, pixel_size_nm=pixel_size), show)
    if as_json:
        _print_json(done.as_dict())
        return
    for movie in done.movies:
        typer.echo(f"{movie.name}: {movie.chapter.verdict[0]}")
    _list(report_files(out))


@app.command(
    epilog=_examples(
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
    _list([out])


@app.command(
    "check-table",
    epilog=_examples(
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
        _print_json(asdict(found))
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
    epilog=_examples(
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
        _print_json(asdict(result))
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
    epilog=_examples(
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
    _list([out, truth, camera_beside(out)])


@app.command(
    epilog=_examples(
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
    _list([out, out.with_suffix(".json")])


@app.command(
    epilog=_examples(
        "decode run movie.tif --beads beads.tif --camera camera.yaml -o out",
        "decode run movie.tif --beads beads.tif --z-step 20 --camera c.yaml -o out --minutes 15",
    ),
)
@_of_movies
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

        molecules = _followed(steps, show)
    checks = molecules.facts.checks
    if as_json:
        plain = [asdict(check) for check in checks]
        _print_json({"movie": str(movie), "molecules": len(molecules), "checks": plain})
    raise typer.Exit(_strictly(checks, strict=strict))


@calibrate.command(
    "psf",
    epilog=_examples(
        "decode calibrate psf beads.tif --camera camera.yaml --z-step 20 --upwards -o psf.h5",
        "decode calibrate psf beads.tif --camera c.yaml --model pupil --wavelength 680 -o psf.h5",
    ),
)
@_of_movies
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
    made = _warned(steps(downwards=downwards), beads[0].name)
    if made.calibration.file.z_remark and not as_json and _is_asked():
        for line in made.verdict:
            typer.echo(line)
        question = "Did the stage go up from the first plane to the last (y, n, ?: leave it open)"
        answer = typer.prompt(question, default="?").lower()[:1]
        if answer == "n":
            made = _warned(steps(downwards=True), beads[0].name)
        elif answer == "y":
            made = state_direction(made)
    calibration = made.calibration
    if as_json:
        _print_json(
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
    _list(made.files)


@calibrate.command(
    "import",
    epilog=_examples(
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
    _list([out])


@calibrate.command(
    "in-situ",
    epilog=_examples(
        "decode calibrate in-situ movie.tif --camera camera.yaml --psf pupil.h5 -o refined.h5",
    ),
)
@_of_movies
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
    _list([out])


@calibrate.command(
    "model",
    epilog=_examples(
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
    of its own recipe."""
    from decode.progress import Bar
    from decode.quality.calibration import CalibrationRecord
    from decode.verbs.calibrate_model import MOVIES
    from decode.verbs.calibrate_model import calibrate_model as work

    steps = work.steps(model, out, movies=movies or MOVIES, device=device)
    layout = "{percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}"
    with Bar(total=1.0, bar_format=layout) as bar:

        def show(progress: Progress[object]) -> None:
            bar.update((progress.fraction or 0.0) - bar.n)

        made = _followed(steps, show)
    for line in CalibrationRecord.of_model(made.record).lines():
        typer.echo(line)
    _list([out, out.with_suffix(".json")])


@calibrate.command(
    "camera",
    epilog=_examples(
        "decode calibrate camera dark.tif --flat dim.tif --flat bright.tif -o camera.yaml",
        "decode calibrate camera --movie movie.tif --pixel-size 100 -o camera.yaml",
    ),
)
@_of_movies
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
    _list(made.files)


@app.command(
    epilog=_examples(
        "decode estimate movie.tif --psf psf.h5 --camera camera.yaml -o train.yaml",
    ),
)
@_of_movies
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
    estimated = _warned(steps, movie.name)
    if as_json:
        named = ("histogram_overlap", "spectrum_difference")
        agreement = {name: getattr(estimated.comparison, name) for name in named}
        written = [str(file) for file in estimated.files]
        _print_json({**asdict(estimated.scene), **agreement, "files": written})
        return
    typer.echo(str(estimated))
    _list(estimated.files)


@app.command(
    epilog=_examples(
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
        _print_json(presets)
        return
    for name, about in presets.items():
        typer.echo(f"{name}: {about}")


@app.command(
    "formats",
    epilog=_examples(
        "decode formats",
    ),
)
def formats_() -> None:
    """The formats of tables and movies that are read and written."""
    from decode.verbs.formats import formats

    typer.echo(formats())


@app.command(
    epilog=_examples(
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
        _print_json(
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
    epilog=_examples(
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
    epilog=_examples(
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
    epilog=_examples(
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


@app.command(
    epilog=_examples(
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
        _print_json(found.as_dict())
        return
    for name, figure in found.lines():
        typer.echo(f"{name:<18} {figure}")
    if out is not None:
        _list(quality_files(out, len(lines)))


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


def _is_asked() -> bool:
    """Whether somebody sits at a terminal who can answer."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _followed(steps: DetailedSteps[D, R], show: Callable[[Progress[D]], None]) -> R:
    """Work to its end, its progress shown."""
    from decode.progress import followed

    return followed(steps, show)


def _warned(steps: Steps[R], source: str) -> R:
    """Work to its end; its warnings go to stderr at once, for it may fail."""

    def show(progress: Progress[object]) -> None:
        for warning in progress.warnings:
            typer.echo(f"{source}: warning: {warning}", err=True)

    return _followed(steps, show)


def _list(files: Iterable[Path]) -> None:
    for file in files:
        typer.echo(f"  {file}")


def _print_json(values: Any) -> None:
    """JSON has no NaN: what is not known is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(v) for name, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    typer.echo(json.dumps(plain(values), indent=1))
