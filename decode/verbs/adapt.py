"""adapt: a model for the PSF and the scene of a movie, trained once and kept for the next movie."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import final

from filelock import FileLock, Timeout

from decode.atomic import atomic, check_writable
from decode.config import load_config
from decode.defects import Counts
from decode.estimation import SceneEstimate, is_covered
from decode.io.cameras import CameraFile, write_camera
from decode.io.psfs import read_psf
from decode.models import load_model
from decode.network.localizer import Localizer
from decode.progress import DetailedSteps, Progress, Stepwise, part, relayed
from decode.training.loop import check_budget
from decode.verbs.estimate import MovieEstimate, estimate
from decode.verbs.minutes import MINUTES
from decode.verbs.stages import Made, Stage, key_of, marks_of, trained

__all__ = ["Adapted", "adapt"]

ESTIMATED = 0.05
"""share of the work after which the scene is known"""
TURN_S = 0.5
"""time between two looks whether another process is done"""


@final
@dataclass(frozen=True, kw_only=True)
class Adapted:
    """A model for the PSF and the scene of a movie."""

    model: Localizer
    file: Path
    remark: str
    """a sentence on where it is from"""


@Stepwise
def adapt(
    movie: Counts,
    *,
    psf: Path | str,
    camera: CameraFile,
    minutes: float = MINUTES,
    folder: Path | str | None = None,
    device: str = "auto",
) -> DetailedSteps[None, Adapted]:
    """Fine-tune the nearest shipped model on simulations of a movie's microscope and scene.

    The scene is estimated from the movie, its recipe names the measured PSF, and the weights of the
    shipped model that knows most of that PSF are the start.  Recipe, model, record and checkpoint
    are kept in a folder of their own within `<psf's stem>-models`, beside the PSF.  The next movie
    is served by them at once, where PSF (by its content), camera, minutes and version of decode are
    the same, and the scene lies within the recipe's ranges.  A training that was stopped goes on;
    of several processes one trains while the others wait for its model.

    `adapt.steps` does the same step by step.

    Args:
        movie: an open movie, or (frame, y, x) ADU.
        psf: file of the calibrated PSF, of any kind.
        camera: the movie's.
        minutes: of training, as `train` counts them: of the clock on the wall, spent on steps.
        folder: where models are kept if the folder of the PSF cannot be written.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        ValueError, OSError, TrainingError: in one sentence, as `estimate` and `train` do, and if
            the model can be kept nowhere.
    """
    check_budget(minutes)
    calibrated, content = read_psf(psf), Path(psf).read_bytes()
    key = key_of(sha256(content).hexdigest(), marks_of(camera), minutes)
    name = f"{Path(psf).stem}-models"
    folders = [Path(psf).with_name(name), *([] if folder is None else [Path(folder) / name])]
    steps = estimate.steps(movie, camera=camera, psf=calibrated, compared=False)
    estimated = yield from part(relayed(steps, _of_estimate), 0.0, ESTIMATED)
    with ExitStack() as turn:
        yield from _awaited(folders, turn)
        made = _serving(folders, key, estimated.scene)
        if made is None:
            made = _begun(_writable(folders), key, estimated, content)
        training = trained(made, key, minutes=minutes, device=device)
        is_new = yield from part(relayed(training, _of_training), ESTIMATED, 1.0)
    model = load_model(made.model)
    return Adapted(model=model, file=made.model, remark=_remark(model, made.model, is_new=is_new))


def _awaited(folders: Iterable[Path], turn: ExitStack) -> DetailedSteps[None, None]:
    """Wait until no other process trains a model beside the PSF, which may serve this movie, too.

    Who is killed waits and holds no longer.  Where nothing can be written, nothing is trained.
    """
    try:
        lock = FileLock(_writable(folders).with_suffix(".lock"))
    except OSError:
        return
    while True:
        try:
            turn.enter_context(lock.acquire(timeout=TURN_S))
            return
        except Timeout:
            yield Progress(ESTIMATED, "another process trains a model for this PSF; waiting for it")


def _serving(folders: Iterable[Path], key: str, scene: SceneEstimate) -> Made | None:
    """The first folder with a recipe for this PSF and camera that covers the scene."""
    for folder in folders:
        for path in sorted(folder.glob(f"{key}-*")):
            made = Made(path)
            with suppress(ValueError, OSError):  # what is damaged serves nobody
                if is_covered(scene, load_config(made.recipe)):
                    return made
    return None


def _begun(folder: Path, key: str, estimated: MovieEstimate, psf: bytes) -> Made:
    """A new folder with PSF, camera and, last of all, the recipe that names both."""
    names = {"psf_file": "psf.h5", "camera_file": "camera.yaml"}
    made = Made(folder / f"{key}-{key_of(estimated.recipe(**names))}")
    made.folder.mkdir(parents=True, exist_ok=True)
    with atomic(made.psf) as temporary:
        temporary.write_bytes(psf)
    write_camera(made.camera, estimated.camera)
    estimated.write(made.recipe, psf_file=made.psf.name, camera_file=made.camera)
    return made


def _writable(folders: Iterable[Path]) -> Path:
    """The first folder that is there, or can be made.

    Raises:
        OSError: if there is none.
    """
    problems = []
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            check_writable(folder / "a model")
        except OSError as error:
            problems.append(error)
        else:
            return folder
    raise OSError(
        f"the model can be kept nowhere ({problems[0]}); copy the PSF into a folder that can be "
        "written"
    )


def _of_estimate(own: Progress[object]) -> Progress[None]:
    """Warnings on the movie come again when it is localized."""
    return Progress(own.fraction, f"estimating the scene: {own.message}")


def _of_training(own: Progress[Stage]) -> Progress[None]:
    return Progress(own.fraction, f"training for this PSF: {own.message}")


def _remark(model: Localizer, file: Path, *, is_new: bool) -> str:
    record = model.record
    how = f"{record.steps} steps, {record.minutes:g} minutes"
    if is_new:
        return f"the model was trained for this PSF and movies like this ({how}); it is {file}"
    return f"a model that had been trained for this PSF and such movies ({how}) was taken: {file}"
