"""Job: what a job file says of many movies."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, final

from annotated_types import Ge
from pydantic import BeforeValidator

from decode.config import from_mapping, read_yaml
from decode.errors import reading
from decode.io.movies import Selection as MovieSelection
from decode.models import shipped_models
from decode.outputs import DEFAULT_FORMATS, localize_files
from decode.ranges import Count, Fraction, Positive, check_settings
from decode.verbs.finish import Finish
from decode.verbs.minutes import usual_minutes
from decode.verbs.region import parse_region, parse_span

__all__ = ["Job", "Options", "load_job"]

FILES = ("model", "camera", "psf")
"""options that may name a file"""


def _listed(value: Any) -> Any:
    """A text that stands alone as a list of one."""
    return (value,) if isinstance(value, str) else value


Texts = Annotated[
    tuple[str, ...],
    BeforeValidator(_listed, json_schema_input_type=str | tuple[str, ...]),
]


@final
@dataclass(frozen=True, kw_only=True)
class Options:
    """How movies are localized: options of `decode localize`.  Those left out are as there."""

    model: str | None = None
    """a shipped model, or a model file"""
    adapt: Positive | None = None
    """in place of a model: minutes for which one is trained for PSF, camera and movie; none: 7,
    where PSF and camera are given, but no model"""
    camera: str | None = None
    """camera file, or the name of a common camera; none: the model's, or estimated"""
    psf: str | None = None
    """calibrated PSF"""
    pixel_size_nm: Positive | None = None
    """side of a pixel; none: the camera file's, or the movie's"""
    em_gain: Positive | None = None
    """EM gain of an EMCCD that is given by its name"""
    psf_sigma_nm: Positive | None = None
    """width of the PSF (standard deviation); none: estimated"""
    polish: bool | None = None
    """let the likelihood of the frames decide and refine; none: wherever the PSF is known"""
    exact: bool = False
    """state the moments of the exact posterior of each molecule"""
    threshold: Fraction = 0.5
    """smallest probability of a molecule"""
    false_discovery_rate: Fraction = 0.05
    """largest share of false molecules, where the likelihood decides"""
    frames: str | None = None
    """only frames A to B - 1, counted from 0: "A:B" in quotes"""
    roi: str | None = None
    """only these rows and columns, counted from 0: Y0:Y1,X0:X1"""
    formats: Texts = DEFAULT_FORMATS
    """suffixes of the files to write"""
    samples: Annotated[int, Ge(0)] = 0
    """draws of the posterior that are written as well"""
    seed: Annotated[int, Ge(0)] = 0
    """of the draws"""
    device: str = "auto"
    """auto, cpu or cuda"""
    allow_truncated: bool = False
    """take the complete frames of a movie that was cut short"""
    channel: str | int | None = None
    """channel of files that hold several, by name or number from 0"""
    position: str | int | None = None
    """position, scene or image, by name or number from 0"""
    z: int | None = None
    """plane of z of time series at several, from 0"""
    skip: str = ""
    """frames to leave out, from 0: "0::4" is every fourth"""
    drift: bool | None = None
    """also write the tables without the drift; none: of 2000 frames or more"""
    link: bool | None = None
    """also write a row a molecule; none: of 2000 frames or more"""
    report: bool | None = None
    """also write a report; none: of 2000 frames or more"""

    def __post_init__(self) -> None:
        check_settings(self)
        localize_files(Path("movie.tif"), Path(), self.formats)
        self.selection()
        self.of_file.skipped(0)

    @property
    def of_file(self) -> MovieSelection:
        """What of a file is the movie."""
        return MovieSelection(
            channel=self.channel, position=self.position, z=self.z, skip=self.skip
        )

    def selection(self) -> dict[str, Any]:
        """Frames and region, as slices."""
        return {
            "frames": None if self.frames is None else parse_span("frames", self.frames),
            "roi": None if self.roi is None else parse_region(self.roi),
        }

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `localize_file`."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("model", "drift", "link", "report", "channel", "position", "z", "skip"):
            own.pop(name)
        return own | self.selection() | {"selection": self.of_file}

    @property
    def trains(self) -> bool:
        """Whether a model is trained for the PSF: its file is named, and the camera, but no
        model."""
        files = {"model": self.model, "psf": self.psf, "camera": self.camera}
        return usual_minutes(self.adapt, **files) is not None

    @property
    def finish(self) -> Finish:
        """The steps that follow."""
        return Finish(drift=self.drift, link=self.link, report=self.report)

    def beside(self, folder: Path) -> Options:
        """The same, with the files that lie in a folder by their whole paths."""
        named = {name: getattr(self, name) for name in FILES}
        whole: dict[str, Any] = {
            name: _beside(folder, given) for name, given in named.items() if given is not None
        }
        return dataclasses.replace(self, **whole)


@final
@dataclass(frozen=True, kw_only=True)
class Job:
    """Which movies are localized, how, and where to; paths count from the folder of the job file.

    >>> job = Job(movies=("raw",), out="tables", overrides={"day2/*": Options(threshold=0.7)})
    >>> job.options("day1/a.tif").threshold, job.options("day2/a.tif").threshold
    (0.5, 0.7)
    """

    version: int = 1
    """version of this file's layout"""
    description: str = ""
    """what the movies are, in a sentence"""
    movies: Texts
    """movies, folders of movies, and patterns of either (`raw/*/cell?.tif`, `raw/**/*.tif`)"""
    recursive: bool = False
    """also search the folders within folders; the folder of the output is never searched"""
    exclude: Texts = ()
    """patterns of movies to leave out, as `*beads*`"""
    out: str
    """folder of tables and summary; movies in folders keep these folders in it"""
    localize: Options = field(default_factory=Options)
    """how they are localized"""
    overrides: Mapping[str, Options] = field(default_factory=dict)
    """options, in the file those that differ, of movies that a pattern fits; of several patterns
    the last one counts"""
    workers: Count = 1
    """movies that are localized at a time, each in a process of its own"""
    shards: Count = 1
    """tasks that share each movie, with `--slurm` or `--only`: of few long movies, as many as there
    are nodes"""
    slurm: Mapping[str, str | int] = field(default_factory=dict)
    """options of `sbatch` for `--slurm`, by their long names: `time`, `mem`, `partition`"""

    def __post_init__(self) -> None:
        if self.version != 1:
            raise ValueError(
                f"version {self.version} of the file's layout is unknown; this decode reads "
                "version 1"
            )
        if not self.movies:
            raise ValueError("movies: name at least one movie, folder or pattern")

    def options(self, name: str) -> Options:
        """The options of a movie.

        Args:
            name: its path within the folder that was searched, with `/`.
        """
        own = [other for pattern, other in self.overrides.items() if fits(name, pattern)]
        return own[-1] if own else self.localize

    def beside(self, folder: Path) -> Job:
        """The same, with all files by their whole paths."""
        overrides = {pattern: own.beside(folder) for pattern, own in self.overrides.items()}
        return dataclasses.replace(
            self,
            movies=tuple(str(folder / entry) for entry in self.movies),
            out=str(folder / self.out),
            localize=self.localize.beside(folder),
            overrides=overrides,
        )


def fits(name: str, pattern: str) -> bool:
    """Whether a pattern fits a movie's path, or the end of it.

    >>> fits("day2/cell.tif", "day2/*"), fits("day2/cell.tif", "cell*"), fits("a.tif", "day2/*")
    (True, True, False)
    """
    return fnmatch(name, pattern) or fnmatch(name, f"*/{pattern}")


def load_job(path: Path | str) -> Job:
    """Read a job file.

    Raises:
        ValueError: in one sentence, if a key is unknown or a value is not as it must be.
        OSError: if the file cannot be read.
    """
    content = read_yaml(path)
    overrides, usual = content.pop("overrides", {}), content.get("localize", {})
    if isinstance(overrides, Mapping) and isinstance(usual, Mapping):
        overrides = {
            pattern: {**usual, **own} if isinstance(own, Mapping) else own
            for pattern, own in overrides.items()
        }
    with reading(path, "a job file", "check its text"):
        job = from_mapping(Job, content | {"overrides": overrides}, str(path))
    return job.beside(Path(path).absolute().parent)


def _beside(folder: Path, given: str) -> str:
    """A file in a folder by its whole path; a name of a shipped model or camera as it is."""
    path = folder / given
    named = Path(given).name == given and (given in shipped_models() or not Path(given).suffix)
    return given if named and not path.exists() else str(path)
