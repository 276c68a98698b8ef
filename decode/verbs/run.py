"""run: beads and a movie to molecules.

Every stage's output is kept, and not made again from unchanged inputs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

from torch import Tensor

from decode import __version__
from decode.acquisition import check_camera
from decode.atomic import atomic
from decode.calibrate.psf import calibrate_psf
from decode.calibrate.report import save_report, verdict
from decode.calibrate.scan import Scan
from decode.config import TrainConfig, load_config
from decode.emitters import EmitterSet
from decode.errors import reading
from decode.io.cameras import CameraFile, write_camera
from decode.io.movies import open_movie
from decode.io.movies.folder import is_frame
from decode.io.psfs import write_psf
from decode.io.tables import read_table
from decode.models import NEAREST
from decode.network.localizer import Localizer
from decode.outputs import check_outputs, model_files, psf_files, recipe_files, run_files
from decode.training.checkpoint import ResumeError
from decode.training.loop import Progress, check_budget
from decode.verbs.estimate import estimate
from decode.verbs.localize import localize_file
from decode.verbs.train import starting_model, train_steps

__all__ = ["RunProgress", "run", "run_steps"]

AS_IT_WAS = "as it was"
"""message of a stage that is not made again"""
UNFINISHED = 0.999
"""largest fraction of a stage whose files are not complete"""


@final
@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """Where `run` stands."""

    stage: str
    """calibrate, estimate, train or localize"""
    fraction: float
    """of the stage"""
    message: str = ""
    """what the stage found, for the user"""
    files: tuple[Path, ...] = ()
    """what the stage wrote, when it has ended"""
    warnings: tuple[str, ...] = ()
    """a sentence on each thing that does not fit between camera and movie; once, before all
    stages"""


def run(
    movie: Path | str,
    beads: Sequence[Path | str],
    camera: CameraFile,
    out: Path | str,
    *,
    z_step_nm: float | None = None,
    z_focus: int | None = None,
    scan: Scan | None = None,
    positions_nm: Tensor | None = None,
    minutes: float = 30.0,
    polish: bool = True,
    settings: Sequence[str] = (),
    device: str = "auto",
) -> EmitterSet:
    """Beads and a movie to molecules.

    `run_steps` does the same step by step, and says what it takes and writes.

    Returns:
        The molecules, as the Picasso table holds them.
    """
    for progress in run_steps(
        movie,
        beads,
        camera,
        out,
        z_step_nm=z_step_nm,
        z_focus=z_focus,
        scan=scan,
        positions_nm=positions_nm,
        minutes=minutes,
        polish=polish,
        settings=settings,
        device=device,
    ):
        written = progress.files
    (table,) = (file for file in written if file.suffix == ".hdf5")
    return read_table(table)


def run_steps(
    movie: Path | str,
    beads: Sequence[Path | str],
    camera: CameraFile,
    out: Path | str,
    *,
    z_step_nm: float | None = None,
    z_focus: int | None = None,
    scan: Scan | None = None,
    positions_nm: Tensor | None = None,
    minutes: float = 30.0,
    polish: bool = True,
    settings: Sequence[str] = (),
    device: str = "auto",
) -> Iterator[RunProgress]:
    """Calibrate the PSF, estimate the scene, train a model for both, localize and render.

    Writes into `out`: `psf.h5` and `psf.html` (the PSF and its report), `camera.yaml`, `train.yaml`
    and `train.png` (the recipe, and real beside simulated frames), `model.safetensors`, and
    `<movie's stem>.csv`, `.hdf5` and `.png`. A run that was stopped goes on where it was when it is
    started again with the same inputs; a training from its last checkpoint.  The checkpoint of
    another training is set aside as `model-before.checkpoint`.

    Args:
        movie: TIFF movie, or a folder of one file a frame.
        beads: z-stacks of beads.
        camera: of both.
        out: folder, made where there is none.
        z_step_nm, z_focus, scan, positions_nm: as `calibrate_psf` takes them.
        minutes: of training.
        polish: refine the molecules with the calibrated PSF, as `localize_file` does.
        settings: `section.key=value`, to replace what the estimated recipe says.
        device: `auto`, `cpu` or `cuda`.

    Yields:
        Progress of each stage, and its files at its end.

    Raises:
        ValueError, OSError: in one sentence, as the stages do.
    """
    check_budget(minutes)
    movie, out = Path(movie), Path(out)
    stacks = [Path(b) for b in beads]
    for path in (movie, *stacks):
        if not path.exists():
            raise FileNotFoundError(f"{path}: there is no such file or folder")
    check_outputs(run_files(movie, out), inputs=[movie, *stacks], folder=out)
    with open_movie(movie) as frames:
        yield RunProgress(
            stage="calibrate",
            fraction=0.0,
            warnings=check_camera(frames, camera.camera, camera.pixel_size_nm),
        )
    out.mkdir(parents=True, exist_ok=True)
    made = _Made(out)
    key = yield from _calibrated(
        made,
        stacks,
        camera,
        z_step_nm=z_step_nm,
        z_focus=z_focus,
        scan=scan,
        positions_nm=positions_nm,
    )
    key = yield from _estimated(made, movie, camera, key)
    yield from _trained(made, key, settings=settings, minutes=minutes, device=device)
    yield from _localized(made, movie, camera, device=device, polish=polish)


@final
class _Made:
    """What the stages make in a folder, and which of it is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.psf, self.report = psf_files(folder / "psf.h5")
        self.camera = folder / "camera.yaml"
        self.recipe, self.picture = recipe_files(folder / "train.yaml")
        self.model, self.record, self.checkpoint = model_files(folder / "model.safetensors")
        self.done = _Done(folder / "run.json")


def _calibrated(
    made: _Made,
    stacks: Sequence[Path],
    camera: CameraFile,
    *,
    z_step_nm: float | None,
    z_focus: int | None,
    scan: Scan | None,
    positions_nm: Tensor | None,
) -> Generator[RunProgress, None, str]:
    """The PSF; returns the key of its inputs."""
    positions = None if positions_nm is None else positions_nm.tolist()
    key = _key(_marks(stacks), repr(camera), z_step_nm, z_focus, scan, positions)
    message = AS_IT_WAS
    if not made.done.has("calibrate", key, made.psf):
        yield RunProgress(stage="calibrate", fraction=0.0)
        calibration = calibrate_psf(
            stacks,
            camera,
            z_step_nm=z_step_nm,
            z_focus=z_focus,
            scan=scan,
            positions_nm=positions_nm,
        )
        write_psf(made.psf, calibration.file)
        save_report(calibration, made.report)
        made.done.note("calibrate", key)
        message = "\n".join(verdict(calibration))
    files = (made.psf, made.report)
    yield RunProgress(stage="calibrate", fraction=1.0, message=message, files=files)
    return key


def _estimated(
    made: _Made, movie: Path, camera: CameraFile, key: str
) -> Generator[RunProgress, None, str]:
    """The recipe; returns the key of its inputs."""
    key = _key(key, _marks([movie]))
    message = AS_IT_WAS
    if not made.done.has("estimate", key, made.recipe, made.camera):
        yield RunProgress(stage="estimate", fraction=0.0)
        write_camera(made.camera, camera)
        estimated = estimate(movie, camera=camera, psf=made.psf)
        estimated.write(made.recipe, psf_file=made.psf.name, camera_file=made.camera)
        made.done.note("estimate", key)
        message = str(estimated)
    files = (made.recipe, made.picture, made.camera)
    yield RunProgress(stage="estimate", fraction=1.0, message=message, files=files)
    return key


def _trained(
    made: _Made, key: str, *, settings: Sequence[str], minutes: float, device: str
) -> Iterator[RunProgress]:
    """The model.  A recipe that the user has edited since is trained as it is."""
    config = load_config(made.recipe, settings)
    key = _key(key, made.recipe.read_text(encoding="utf-8"), list(settings), minutes)
    message = AS_IT_WAS
    if not made.done.has("train", key, made.model):
        resume = made.done.has("training", key)
        if not resume:
            _set_aside(made.checkpoint)
        made.done.forget("train")  # from now on the model is another
        made.done.note("training", key)
        message = ""
        for step in _training(config, made, minutes=minutes, device=device, resume=resume):
            if step.validation is not None:
                figures = (f"{name} {value:.3g}" for name, value in step.validation.items())
                message = ", ".join(figures)
            fraction = min(step.fraction, UNFINISHED)
            yield RunProgress(stage="train", fraction=fraction, message=message)
        made.done.note("train", key)
    files = (made.model, made.record)
    yield RunProgress(stage="train", fraction=1.0, message=message, files=files)


def _training(
    config: TrainConfig, made: _Made, *, minutes: float, device: str, resume: bool
) -> Iterator[Progress]:
    """A training that goes on from a sound checkpoint, if it is to, or else begins."""
    start = starting_model(NEAREST, config)
    steps = partial(train_steps, config, made.model, start=start, minutes=minutes, device=device)
    if resume:
        try:
            yield from steps(resume=True)
            return
        except ResumeError:  # stopped before its first checkpoint, or this was damaged
            _set_aside(made.checkpoint)
    yield from steps()


def _localized(
    made: _Made, movie: Path, camera: CameraFile, *, device: str, polish: bool
) -> Iterator[RunProgress]:
    """Tables and picture."""
    model = Localizer.load(made.model)
    for progress in localize_file(
        movie, model, made.folder, camera=camera, device=device, polish=polish
    ):
        fraction = min(progress.frames_done / progress.frames_total, UNFINISHED)
        message = f"{progress.n_molecules} molecules"
        if not progress.files:
            yield RunProgress(stage="localize", fraction=fraction, message=message)
    message = "\n".join([message, *progress.remarks])
    yield RunProgress(stage="localize", fraction=1.0, message=message, files=progress.files)


def _set_aside(checkpoint: Path) -> None:
    if checkpoint.is_file():
        model = checkpoint.stem
        checkpoint.replace(checkpoint.with_stem(f"{model}-before"))


@final
class _Done:
    """Which stages have ended, and with which inputs: a small JSON in the output folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: dict[str, str] = {}
        with suppress(ValueError, OSError), reading(path, "a note of stages"):
            self._keys = dict(
                json.loads(path.read_text(encoding="utf-8"))
            )  # a damaged note costs time, no more

    def has(self, stage: str, key: str, *files: Path) -> bool:
        return self._keys.get(stage) == key and all(file.is_file() for file in files)

    def forget(self, stage: str) -> None:
        self._keys.pop(stage, None)

    def note(self, stage: str, key: str) -> None:
        self._keys[stage] = key
        with atomic(self._path) as temporary:
            temporary.write_text(json.dumps(self._keys, indent=1), encoding="utf-8")


def _marks(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Names, sizes and times of files, and of those in folders, by which changes are seen."""
    folders = [path for path in paths if path.is_dir()]
    frames = (file for folder in folders for file in _frames(folder))
    paths = [*(path for path in paths if path not in folders), *frames]
    return [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]


def _frames(folder: Path) -> list[Path]:
    """The files of its frames; where frames are no files of their own, all that it holds."""
    frames = [file for file in folder.iterdir() if is_frame(file)]
    return sorted(frames or (file for file in folder.rglob("*") if file.is_file()))


def _key(*inputs: object) -> str:
    return hashlib.sha256(repr((__version__, *inputs)).encode()).hexdigest()[:16]
