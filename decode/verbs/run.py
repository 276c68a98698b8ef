"""run: beads and a movie to molecules.

Every stage's output is kept, and not made again from unchanged inputs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
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
from decode.io.movies.tiff import SUFFIXES, open_movie
from decode.io.psfs import write_psf
from decode.io.tables import read_table
from decode.models import NEAREST
from decode.network.localizer import Localizer
from decode.outputs import check_outputs, run_files
from decode.training.checkpoint import ResumeError
from decode.training.loop import Progress, check_budget
from decode.verbs.estimate import estimate
from decode.verbs.localize import localize_file
from decode.verbs.train import starting_model, train_steps

__all__ = ["RunProgress", "run", "run_steps"]


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
    done = _Done(out / "run.json")
    psf_file, recipe, model_file = out / "psf.h5", out / "train.yaml", out / "model.safetensors"
    camera_file = out / "camera.yaml"

    key = _key(
        _marks(stacks),
        repr(camera),
        z_step_nm,
        z_focus,
        scan,
        None if positions_nm is None else positions_nm.tolist(),
    )
    if not done.has("calibrate", key, psf_file):
        yield RunProgress(stage="calibrate", fraction=0.0)
        calibration = calibrate_psf(
            stacks,
            camera,
            z_step_nm=z_step_nm,
            z_focus=z_focus,
            scan=scan,
            positions_nm=positions_nm,
        )
        write_psf(psf_file, calibration.file)
        save_report(calibration, out / "psf.html")
        done.note("calibrate", key)
        message = "\n".join(verdict(calibration))
    else:
        message = "as it was"
    yield RunProgress(
        stage="calibrate", fraction=1.0, message=message, files=(psf_file, out / "psf.html")
    )

    key = _key(key, _marks([movie]))
    if not done.has("estimate", key, recipe, camera_file):
        yield RunProgress(stage="estimate", fraction=0.0)
        write_camera(camera_file, camera)
        estimated = estimate(movie, camera=camera, psf=psf_file)
        estimated.write(recipe, psf_file=psf_file.name, camera_file=camera_file)
        done.note("estimate", key)
        message = str(estimated)
    else:
        message = "as it was"
    yield RunProgress(
        stage="estimate",
        fraction=1.0,
        message=message,
        files=(recipe, recipe.with_suffix(".png"), camera_file),
    )

    # a recipe that the user has edited since is trained as it is
    config = load_config(recipe, settings)
    key = _key(key, recipe.read_text(encoding="utf-8"), list(settings), minutes)
    if not done.has("train", key, model_file):
        resume = done.has("training", key)
        if not resume:
            _set_aside(model_file)
        done.forget("train")  # from now on the model is another
        done.note("training", key)
        message = ""
        for step in _trained(config, model_file, minutes=minutes, device=device, resume=resume):
            if step.validation is not None:
                message = ", ".join(
                    f"{name} {value:.3g}" for name, value in step.validation.items()
                )
            yield RunProgress(stage="train", fraction=min(step.fraction, 0.999), message=message)
        done.note("train", key)
    else:
        message = "as it was"
    yield RunProgress(
        stage="train",
        fraction=1.0,
        message=message,
        files=(model_file, model_file.with_suffix(".json")),
    )

    model = Localizer.load(model_file)
    for progress in localize_file(movie, model, out, camera=camera, device=device, polish=polish):
        share = progress.frames_done / progress.frames_total
        if not progress.files:
            yield RunProgress(
                stage="localize",
                fraction=min(share, 0.999),
                message=f"{progress.n_molecules} molecules",
            )
    message = "\n".join([f"{progress.n_molecules} molecules", *progress.remarks])
    yield RunProgress(stage="localize", fraction=1.0, message=message, files=progress.files)


def _trained(
    config: TrainConfig, model_file: Path, *, minutes: float, device: str, resume: bool
) -> Iterator[Progress]:
    """A training that goes on from a sound checkpoint, if it is to, or else begins."""
    start = starting_model(NEAREST, config)
    steps = partial(train_steps, config, model_file, start=start, minutes=minutes, device=device)
    if resume:
        try:
            yield from steps(resume=True)
            return
        except ResumeError:  # stopped before its first checkpoint, or this was damaged
            _set_aside(model_file)
    yield from steps()


def _set_aside(model_file: Path) -> None:
    checkpoint = model_file.with_suffix(".checkpoint")
    if checkpoint.is_file():
        checkpoint.replace(checkpoint.with_stem(f"{model_file.stem}-before"))


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
    """What tells files, and those in folders, from changed ones without reading them."""
    folders = [path for path in paths if path.is_dir()]
    frames = (
        file
        for folder in folders
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in SUFFIXES
    )
    paths = [*(path for path in paths if path not in folders), *frames]
    return [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]


def _key(*inputs: object) -> str:
    return hashlib.sha256(repr((__version__, *inputs)).encode()).hexdigest()[:16]
