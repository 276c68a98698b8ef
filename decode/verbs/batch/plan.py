"""Plan: the movies of a job, each with its options and outputs, checked before the first one
begins."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, final

from decode.acquisition import Acquisition, stated_camera, stated_files
from decode.errors import in_plain_words
from decode.io.movies import Movie, open_movie
from decode.io.psfs import PSFFile, read_psf
from decode.models import load_model, shipped_models
from decode.network.localizer import Localizer
from decode.optics.camera import Camera
from decode.outputs import check_outputs, finished_files, localize_files, sample_files
from decode.verbs.batch.job import FILES, Job, Options, fits
from decode.verbs.batch.receipt import Receipt, Row, read_receipt
from decode.verbs.batch.search import Search, Source
from decode.verbs.localize import localize_movie
from decode.verbs.region import region_of
from decode.verbs.stages import key_of

__all__ = ["JobError", "Known", "Plan", "Task", "plan"]

ANY_CAMERA = Camera(baseline=100.0, e_per_adu=1.0, read_noise_e=1.0)
"""stands for a camera that is estimated later, where only its size matters"""


@final
class JobError(ValueError):
    """A job that cannot begin.

    Attributes:
        faults: all that is wrong, a sentence each.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


@final
@dataclass(frozen=True, kw_only=True)
class Task:
    """A movie to localize."""

    source: Source
    options: Options
    folder: Path
    """of its outputs"""
    fingerprint: str
    n_frames: int = 1
    area_px: int = 1
    """pixels of a frame that are localized in"""
    fault: str = ""
    """why it cannot be localized, as far as is known beforehand"""
    shard: tuple[int, int] | None = None
    """(i, n): only the ith of n shares of the movie, whose tables are not written"""

    @property
    def name(self) -> str:
        """Of the movie and the share."""
        if self.shard is None:
            return self.source.name
        return f"{self.source.name}, share {self.shard[0]} of {self.shard[1]}"

    @property
    def work(self) -> int:
        """Pixels of all frames."""
        return self.n_frames * self.area_px

    @property
    def files(self) -> tuple[Path, ...]:
        """Tables and picture."""
        return localize_files(self.source.path, self.folder, self.options.formats)

    @property
    def log(self) -> Path:
        if self.shard is None:
            return self._beside("log")
        return self._beside(f"share-{self.shard[0]}-of-{self.shard[1]}.log")

    @property
    def receipt(self) -> Path:
        return self._beside("receipt.json")

    def _beside(self, suffix: str) -> Path:
        (table,) = localize_files(self.source.path, self.folder, ("csv",))
        return table.with_name(f"{table.stem}.{suffix}")

    @property
    def outputs(self) -> tuple[Path, ...]:
        """All that may be written."""
        draws = sample_files(
            self.source.path, self.folder, self.options.formats, self.options.samples
        )
        drawn = [file for files in draws for file in files]
        return (*self.files, *finished_files(self.files), *drawn, self.log, self.receipt)

    @property
    def made(self) -> Receipt | None:
        """The receipt of an earlier time that still stands, whether it was localized or not."""
        found = self._kept
        return found if found is not None and found.fingerprint == self.fingerprint else None

    @property
    def done(self) -> Receipt | None:
        """The receipt of an earlier time, where all it speaks of is there."""
        found = self._kept
        return found if found and found.stands(self.fingerprint, self.folder) else None

    @property
    def _kept(self) -> Receipt | None:
        """The receipt of an earlier time, which may have searched another folder."""
        found = read_receipt(self.receipt)
        return found and replace(
            found, row=replace(found.row, movie=self.name, folder=self.source.within.as_posix())
        )

    @property
    def intent(self) -> str:
        """What will be done, for the user."""
        if self.fault:
            return self.fault
        return "it is done" if self.done else f"to {self.folder}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "movie": str(self.source.path),
            "fault": self.fault or None,
            "done": self.done is not None,
            "files": [str(path) for path in self.files],
        }

    @property
    def begun(self) -> Receipt:
        """A receipt without results."""
        row = Row(movie=self.name, folder=self.source.within.as_posix(), log=self.log.name)
        return Receipt(fingerprint=self.fingerprint, row=row)


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """All movies of a job."""

    tasks: tuple[Task, ...]
    out: Path

    def share(self, index: int, number: int, *, shards: int = 1) -> Plan:
        """Every `number`th task, from the `index`th on, counted from 1.

        Args:
            shards: tasks that share a movie.
        """
        parts: list[tuple[int, int] | None] = [(i, shards) for i in range(1, shards + 1)]
        tasks = [
            replace(task, shard=part)
            for task in self.tasks
            for part in (parts if shards > 1 else [None])
        ]
        return replace(self, tasks=tuple(tasks[index - 1 :: number]))


def plan(job: Job) -> Plan:
    """Find the movies of a job, and check all that is known before the first one begins.

    What is wrong with a movie (it is damaged, or does not fit the model) is kept as the `fault` of
    its task, for the others can be localized.

    Raises:
        JobError: with all that is wrong with the job itself: inputs that are missing or damaged,
            patterns that fit nothing, outputs that would overwrite each other or cannot be written,
            or no movie that can be localized.

    Example:
        >>> options = Options(model="gaussian-2d", camera="sample_data/camera.yaml")
        >>> job = Job(movies=("sample_data/blinking*.tif",), out="tables", localize=options)
        >>> [(task.name, task.n_frames, task.intent) for task in plan(job).tasks]
        [('blinking_2d.tif', 200, 'to tables'), ('blinking_3d.tif', 200, 'to tables')]
    """
    faults: list[str] = []
    out = Path(job.out)
    known = Known()
    every = [job.localize, *job.overrides.values()]
    for options in dict.fromkeys(every):
        faults += known.faults(options)
    inputs = [path.resolve() for options in every for path in known.files(options)]
    search = Search(recursive=job.recursive, leave={out.resolve(), *inputs})
    sources: dict[Path, Source] = {}
    for entry in job.movies:
        try:
            sources |= {source.path.resolve(): source for source in search.sources(entry)}
        except (ValueError, OSError) as error:
            faults.append(in_plain_words(error))
    found = [s for s in sources.values() if not any(fits(s.name, p) for p in job.exclude)]
    faults += [
        f"overrides: {pattern!r} fits none of the movies; correct the pattern"
        for pattern in job.overrides
        if found and not any(fits(source.name, pattern) for source in found)
    ]
    if not found and not faults:
        faults.append("exclude leaves no movie; take out a pattern")
    if faults:
        raise JobError(list(dict.fromkeys(faults)))
    tasks = _tasks(found, job, known)
    faults = [*_collisions(tasks, inputs), *_unwritable(tasks)]
    if all(task.fault for task in tasks):
        faults += [f"{task.name}: {task.fault}" for task in tasks]
    if faults:
        raise JobError(faults)
    return Plan(tasks=tuple(tasks), out=out)


def _tasks(sources: Iterable[Source], job: Job, known: Known) -> list[Task]:
    tasks: list[Task] = []
    belonging: set[Path] = set()
    for source in sources:
        if source.path.resolve() in belonging:  # to a series of files that the first one names
            continue
        options = job.options(source.name)
        folder = Path(job.out) / source.within
        n_frames, area_px, fault, parts = 1, 1, "", frozenset({source.path})
        try:
            with open_movie(
                source.path,
                frames=options.selection()["frames"],
                allow_truncated=options.allow_truncated,
                selection=options.of_file,
            ) as movie:
                parts = movie.files() or parts
                belonging |= {part.resolve() for part in parts}
                known.check(movie, options)
                rows, columns = region_of(options.selection()["roi"], movie.shape[1:])
                n_frames, area_px = len(movie), rows.size * columns.size
        except (ValueError, OSError, MemoryError) as error:
            fault = in_plain_words(error)
        tasks.append(
            Task(
                source=source,
                options=options,
                folder=folder,
                fingerprint=key_of(_marks(source.path, parts), known.marks(options)),
                n_frames=n_frames,
                area_px=area_px,
                fault=fault,
            )
        )
    return tasks


def _marks(path: Path, parts: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Name, size and time of change of the files of a movie."""
    inside = path.iterdir() if path.is_dir() else ()
    marks = []
    for file in sorted({path, *parts, *inside}):
        with suppress(OSError):
            stat = file.stat()
            marks.append((file.name, stat.st_size, stat.st_mtime_ns))
    return marks


@final
class Known:
    """Models, PSFs and cameras, each read once."""

    def __init__(self) -> None:
        self._model: Callable[[str], Localizer] = cache(load_model)
        self._psf: Callable[[str], PSFFile] = cache(read_psf)
        self._mark = cache(_digest)
        self._fitting: dict[object, str] = {}

    def files(self, options: Options) -> list[Path]:
        """The files that options name, as far as they are there."""
        named = [Path(name) for key in FILES if (name := getattr(options, key)) is not None]
        with suppress(ValueError, OSError):
            named += stated_files(options.camera)
        return [path for path in named if path.is_file()]

    def faults(self, options: Options) -> list[str]:
        """What is wrong with model, PSF and camera, whatever the movie."""
        found: list[str] = []

        def tried(read: Callable[[], object]) -> None:
            try:
                read()
            except (ValueError, OSError) as error:
                found.append(in_plain_words(error))

        if (options.model is None) != options.trains:
            found.append(
                "state a model, or PSF and camera (psf, camera) for which one is trained (adapt); "
                "not both"
            )
        if options.adapt is not None and (options.camera is None or options.psf is None):
            found.append("adapt needs a calibrated PSF (psf) and a camera (camera)")
        model, psf, camera = options.model, options.psf, options.camera
        if model is not None:
            tried(lambda: self._model(model))
        if psf is not None:
            tried(lambda: self._psf(psf))
        if camera is not None:
            # the pixel size of a common camera may be that of each movie
            pixel = options.pixel_size_nm or (None if Path(camera).is_file() else 100.0)
            tried(lambda: stated_camera(camera, pixel_size_nm=pixel, em_gain=options.em_gain))
        return found

    def marks(self, options: Options) -> list[object]:
        """All of the options that decides about the molecules, files by their content."""
        stated = asdict(options)
        del stated["device"]
        for key in ("model", "psf"):
            path = shipped_models().get(stated[key], stated[key])
            stated[key] = path and self._mark(Path(path))
        if options.camera is not None:
            files = stated_files(options.camera)  # none of a common camera
            stated["camera"] = [self._mark(path) for path in files] or options.camera
        return [*sorted(stated.items())]

    def check(self, movie: Movie, options: Options) -> None:
        """Raise a ValueError or OSError where a movie does not fit its options."""
        height, width = movie.shape[1:]
        key = options, height, width, movie.pixel_size_nm
        if key not in self._fitting:
            self._fitting[key] = ""
            try:
                self._check(movie, options)
            except (ValueError, OSError) as error:
                self._fitting[key] = str(error)
        if self._fitting[key]:
            raise ValueError(self._fitting[key])

    def _check(self, movie: Movie, options: Options) -> None:
        shape, roi = movie.shape[1:], options.selection()["roi"]
        region_of(roi, shape)
        camera, pixel_size_nm = None, options.pixel_size_nm
        if options.camera is not None:
            file = stated_camera(
                options.camera,
                movie=movie,
                pixel_size_nm=pixel_size_nm,
                em_gain=options.em_gain,
            )
            camera, pixel_size_nm = file.camera, file.pixel_size_nm
        model = None if options.model is None else self._model(options.model)
        pixel_size_nm = pixel_size_nm or movie.pixel_size_nm
        if model is not None:
            camera = camera or model.camera
            if pixel_size_nm is None and model.psf is not None:
                pixel_size_nm = model.psf.pixel_size_nm
        if camera is not None and camera.shape not in (None, shape):
            raise ValueError(
                f"the camera's maps are {camera.shape} pixels (y, x), the movie's frames {shape}; "
                "crop the maps to the region the movie was recorded in"
            )
        if pixel_size_nm is None:
            raise ValueError(
                "the movie does not say how large its pixels are; state pixel_size_nm or a camera"
            )
        if model is None:
            return
        sigma_nm = options.psf_sigma_nm
        if sigma_nm is None and model.domain.kind.needs_width:  # it is estimated, within the range
            sigma_nm = sum(model.context["psf_sigma_px"]) / 2 * pixel_size_nm
        steps = localize_movie(  # fails at once, before its first step
            movie,
            model,
            Acquisition(
                camera=camera or ANY_CAMERA, pixel_size_nm=pixel_size_nm, psf_sigma_nm=sigma_nm
            ),
            psf=None if options.psf is None else self._psf(options.psf),
            threshold=options.threshold,
            false_discovery_rate=options.false_discovery_rate,
            roi=roi,
            device=options.device,
            polish=options.polish,
            exact=options.exact,
            samples=options.samples,
        )
        del steps


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _collisions(tasks: Sequence[Task], inputs: Iterable[Path]) -> list[str]:
    """Movies whose tables would have one name, and outputs that are read."""
    faults = []
    by_name: dict[str, Task] = {}
    for task in tasks:
        name = str(task.log.resolve()).casefold()
        other = by_name.setdefault(name, task)
        if other is not task:
            faults.append(
                f"{other.source.path} and {task.source.path} would both be written as "
                f"{task.log.with_suffix('.*')}; rename one, or leave it out (exclude)"
            )
    read = {*inputs, *(task.source.path.resolve() for task in tasks)}
    for task in tasks:
        lost = [path for path in task.outputs if path.resolve() in read]
        faults += [
            f"{path} would be written over, and is read; choose another out" for path in lost
        ]
    return faults


def _unwritable(tasks: Iterable[Task]) -> list[str]:
    faults = []
    for task in tasks:
        if task.fault or task.done is not None:
            continue
        try:
            check_outputs(task.outputs, inputs=[task.source.path], folder=task.folder)
        except (ValueError, OSError) as error:
            faults.append(in_plain_words(error))
    return faults
