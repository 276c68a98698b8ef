"""Options that several commands have."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

__all__ = [
    "CHOICES",
    "Beads",
    "CameraOption",
    "Config",
    "Device",
    "Downwards",
    "DriftToo",
    "EmGain",
    "FramesPerPlane",
    "Json",
    "LinkToo",
    "Movie",
    "PixelSize",
    "Positions",
    "ReportToo",
    "Settings",
    "Strict",
    "TablePixelSize",
    "ZFocus",
    "ZOfFrames",
    "ZStep",
    "of_movies",
]

R = TypeVar("R")


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


def of_movies(command: Callable[..., R]) -> Callable[..., R]:
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
