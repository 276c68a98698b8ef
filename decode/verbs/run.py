"""run: beads and a movie to molecules.

The output of every stage is kept, and reused while its inputs do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from decode.acquisition import check_camera, stated_camera, stated_files
from decode.atomic import atomic
from decode.calibrate.psf import read_positions
from decode.calibrate.scan import Scan, read_scan
from decode.config import load_config
from decode.emitters import EmitterSet
from decode.io.cameras import CameraFile, write_camera
from decode.io.movies import WHOLE, Selection, open_movie
from decode.io.movies.folder import is_frame
from decode.io.psfs import read_psf, write_psf
from decode.io.tables import read_table
from decode.outputs import check_outputs, finished_files, localize_files, run_files
from decode.progress import DetailedSteps, Progress, Stepwise
from decode.training.loop import check_budget
from decode.verbs.calibrate_psf import calibrate_psf
from decode.verbs.estimate import estimate
from decode.verbs.finish import Finish, finish
from decode.verbs.localize import localize_file
from decode.verbs.rounds import Round, SceneOfMolecules, refined_psf, with_scene
from decode.verbs.stages import (
    AS_IT_WAS,
    Made,
    Stage,
    ended,
    key_of,
    marks_of,
    of_stage,
    trained,
)

__all__ = ["Stage", "run"]


@Stepwise
def run(
    movie: Path | str,
    beads: Sequence[Path | str],
    camera: CameraFile | Path | str,
    out: Path | str,
    *,
    z_step_nm: float | None = None,
    z_focus: int | None = None,
    frames_per_plane: int = 1,
    downwards: bool | None = None,
    z_of_frames: Path | str | Sequence[float] | None = None,
    bead_positions: Path | str | Tensor | None = None,
    minutes: float = 30.0,
    polish: bool = True,
    pixel_size_nm: float | None = None,
    em_gain: float | None = None,
    settings: Sequence[str] = (),
    device: str = "auto",
    selection: Selection = WHOLE,
    rounds: int = 1,
    finishing: Finish | None = None,
) -> DetailedSteps[Stage, EmitterSet]:
    """Beads and a movie to molecules: calibrate the PSF, estimate the scene, train a model for
    both, localize and render.

    Writes into `out`: `psf.h5` and `psf.html` (the PSF and its report), `camera.yaml`, `train.yaml`
    and `train.png` (the recipe, and real beside simulated frames), `model.safetensors`, and
    `<movie's stem>.csv`, `.hdf5` and `.png`. A run that was stopped continues when it is started
    again with the same inputs, a training from its last checkpoint.  The checkpoint of another
    training is set aside as `model-before.checkpoint`.

    `run.steps` does the same step by step: details are the stage and, at its end, its files.

    Args:
        movie: a file or folder of a format that `open_movie` reads.
        beads: z-stacks of beads.
        camera: the camera of beads and movie, its file, or the name of a common camera.
        out: output folder, created if it does not exist.
        z_step_nm, z_focus, frames_per_plane, downwards, z_of_frames, bead_positions: as for
            `calibrate_psf`.
        minutes: duration of the training.
        polish: whether the likelihood decides and refines, with the calibrated PSF, as in
            `localize_file`.
        pixel_size_nm: side of a pixel in object space; None takes the camera file's.
        em_gain: mean gain of the EM register, for a common camera whose gain is a setting.
        settings: `section.key=value`, which replace values of the estimated recipe.
        device: `auto`, `cpu` or `cuda`.
        selection: channel, position and plane of a movie whose file holds several, and frames to
            leave out, as `open_movie` takes it.
        rounds: most rounds.  After the first, while a check fails or the movie's molecules lie
            outside the recipe's ranges, a pupil is refined by the movie where its images differ,
            the ranges are put around the molecules, and the model is trained on for `minutes` and
            localizes again (`psf-2.h5`, `train-2.yaml`, `model-2.safetensors`).  Tables are those
            of the best round.
        finishing: which of drift, links and report follow, as for `finish`; None: drift and report,
            where the movie is long enough.

    Returns:
        The molecules, as the Picasso table holds them; `facts.checks` say whether they are right
        for the movie.

    Raises:
        ValueError, OSError: in one sentence, as the stages do.

    Example:
        `decode.run(...)` runs to its end; `decode.run.steps(...)` reports stage by stage.

        >>> import decode
        >>> steps = decode.run.steps(
        ...     "sample_data/blinking_3d.tif",
        ...     beads=["sample_data/beads_3d.tif"],
        ...     camera="sample_data/camera.yaml",
        ...     out="results",
        ...     z_step_nm=50.0,
        ...     minutes=30.0,
        ... )
        >>> next(steps).detail.name
        'calibrate'
        >>> steps.close()  # stops the work
    """
    check_budget(minutes)
    if rounds < 1:
        raise ValueError(f"the number of rounds is {rounds}, must be 1 or more")
    movie, out = Path(movie), Path(out)
    stacks = [Path(b) for b in beads]
    for path in (movie, *stacks):
        if not path.exists():
            raise FileNotFoundError(f"{path}: there is no such file or folder")
    read = [movie, *stacks, *stated_files(camera), bead_positions, z_of_frames]
    outputs = [*run_files(movie, out), *finished_files(localize_files(movie, out))]
    check_outputs(outputs, inputs=read, folder=out)
    known = stated_camera(camera, pixel_size_nm=pixel_size_nm, em_gain=em_gain)
    scan = read_scan(
        frames_per_plane=frames_per_plane, downwards=downwards, z_of_frames=z_of_frames
    )
    positions = bead_positions
    if isinstance(positions, Path | str):
        positions = read_positions(positions)
    with open_movie(movie, selection=selection) as frames:
        warnings = check_camera(frames, known.camera, known.pixel_size_nm)
    yield Progress(0.0, "", warnings, Stage(name="calibrate"))
    out.mkdir(parents=True, exist_ok=True)
    made = Made(out)
    key = yield from _calibrated(
        made,
        stacks,
        known,
        z_step_nm=z_step_nm,
        z_focus=z_focus,
        scan=scan,
        positions_nm=positions,
    )
    key = yield from _estimated(made, movie, known, key, selection)
    yield from trained(made, key, settings=settings, minutes=minutes, device=device)
    again = partial(
        _localized, movie=movie, camera=known, selection=selection, device=device, polish=polish
    )
    found = yield from again(made)
    more = partial(trained, settings=settings, minutes=minutes, device=device)
    if rounds > 1:
        found = yield from _in_rounds(
            made,
            found,
            rounds=rounds,
            key=key,
            movie=movie,
            camera=known,
            selection=selection,
            settings=settings,
            train=more,
            localize=again,
        )
    yield from _finished(made, movie, n_frames=found.facts.n_frames or 0, finishing=finishing)
    return found


def _in_rounds(
    made: Made,
    found: EmitterSet,
    *,
    rounds: int,
    key: str,
    movie: Path,
    camera: CameraFile,
    selection: Selection,
    settings: Sequence[str],
    train: Callable[..., DetailedSteps[Stage, bool]],
    localize: Callable[..., DetailedSteps[Stage, EmitterSet]],
) -> DetailedSteps[Stage, EmitterSet]:
    """Rounds after the first; returns the molecules of the best one."""
    best = Round.of(1, found, load_config(made.recipe, settings))
    said, psf = [f"round 1: {_of(best)}"], made.psf
    while best.failed and best.number < rounds:
        scene = SceneOfMolecules.of(found, load_config(made.recipe, settings))
        if scene is None:
            said.append("too few molecules, or none with a background, to learn from")
            break
        number = best.number + 1
        following = Made(made.folder, number)
        former = psf
        if best.doubts_psf:
            key, psf = yield from _refined(psf, following, movie, camera, key, selection)
        if psf == former and not best.outside:
            said.append("another round mends none of this: see the checks")
            break
        text = made.recipe.read_text(encoding="utf-8")
        text = with_scene(text, scene.ranges, psf_file=psf.name, number=number)
        with atomic(following.recipe) as temporary:
            temporary.write_text(text, encoding="utf-8")
        yield from train(following, key, start=made.model)
        folder = following.folder / f"round-{number}"
        tried = yield from localize(following, psf=psf, folder=folder)
        judged = Round.of(number, tried, load_config(following.recipe, settings))
        said.append(f"round {number}: {_of(judged)}")
        if not judged.improves_on(best):
            said.append(f"it did not improve: the tables are those of round {best.number}")
            break
        for file in folder.iterdir():
            file.replace(made.folder / file.name)
        folder.rmdir()
        best, found, made = judged, tried, following
    yield ended("rounds", "\n".join(said))
    return found


def _of(judged: Round) -> str:
    """What of a round fails, in words."""
    return f"failed: {', '.join(judged.failed)}" if judged.failed else "all checks pass"


def _refined(
    psf: Path, following: Made, movie: Path, camera: CameraFile, key: str, selection: Selection
) -> DetailedSteps[Stage, tuple[str, Path]]:
    """Refine the PSF by the movie; returns the key of its inputs, and the file: the former one
    where that is not possible."""
    key = key_of(key, "refined", psf.name)
    message = AS_IT_WAS
    if not following.done.has("refine", key, following.psf):
        yield Progress(0.0, "refining the PSF by the movie", detail=Stage(name="refine"))
        try:
            refined, message = refined_psf(movie, camera, read_psf(psf), selection)
        except ValueError as error:
            yield ended("refine", f"the PSF stays as it is: {error}")
            return key, psf
        write_psf(following.psf, refined)
        following.done.note("refine", key)
    yield ended("refine", message, following.psf)
    return key, following.psf


def _calibrated(
    made: Made,
    stacks: Sequence[Path],
    camera: CameraFile,
    *,
    z_step_nm: float | None,
    z_focus: int | None,
    scan: Scan,
    positions_nm: Tensor | None,
) -> DetailedSteps[Stage, str]:
    """Make the PSF; returns the key of its inputs."""
    positions = None if positions_nm is None else positions_nm.tolist()
    key = key_of(_marks(stacks), marks_of(camera), z_step_nm, z_focus, scan, positions)
    message = AS_IT_WAS
    if not made.done.has("calibrate", key, made.psf):
        steps = calibrate_psf.steps(
            stacks,
            camera,
            out=made.psf,
            z_step_nm=z_step_nm,
            z_focus=z_focus,
            frames_per_plane=scan.frames_per_plane,
            downwards=scan.downwards,
            z_of_frames=scan.z_nm,
            bead_positions=positions_nm,
            pupil=False,
        )
        calibrated = yield from of_stage("calibrate", steps)
        made.done.note("calibrate", key)
        message = "\n".join(calibrated.verdict)
    yield ended("calibrate", message, made.psf, made.report)
    return key


def _estimated(
    made: Made, movie: Path, camera: CameraFile, key: str, selection: Selection
) -> DetailedSteps[Stage, str]:
    """Make the recipe; returns the key of its inputs."""
    chosen = () if selection == WHOLE else (asdict(selection),)
    key = key_of(key, _marks([movie]), *chosen)
    message = AS_IT_WAS
    if not made.done.has("estimate", key, made.recipe, made.camera):
        write_camera(made.camera, camera)
        steps = estimate.steps(
            movie, camera=made.camera, psf=made.psf, out=made.recipe, selection=selection
        )
        estimated = yield from of_stage("estimate", steps)
        made.done.note("estimate", key)
        message = str(estimated)
    yield ended("estimate", message, made.recipe, made.picture, made.camera)
    return key


def _localized(
    made: Made,
    movie: Path,
    camera: CameraFile,
    *,
    selection: Selection,
    device: str,
    polish: bool,
    psf: Path | None = None,
    folder: Path | None = None,
) -> DetailedSteps[Stage, EmitterSet]:
    """Write tables and picture; returns the molecules."""
    remark = read_psf(psf or made.psf).z_remark
    steps = localize_file.steps(
        movie,
        made.model,
        folder or made.folder,
        camera=camera,
        selection=selection,
        device=device,
        polish=polish,
        assumed=[remark] if remark else [],
    )
    found = yield from of_stage("localize", steps)
    message = "\n".join([f"{found.n_molecules} molecules", *found.remarks])
    failed = tuple(str(check) for check in found.checks if check.failed)
    yield replace(ended("localize", message, *found.files), warnings=failed)
    (table,) = (file for file in found.files if file.suffix == ".hdf5")
    return read_table(table)


def _finished(
    made: Made, movie: Path, *, n_frames: int, finishing: Finish | None
) -> DetailedSteps[Stage, None]:
    """Drift, links and report of the molecules."""
    files = localize_files(movie, made.folder)
    steps = finish.steps(files, n_frames=n_frames, steps=finishing)
    done = yield from of_stage("finish", steps)
    if done.files or done.remarks:
        yield ended("finish", "\n".join(done.remarks), *done.files)


def _marks(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Names, sizes and times of files, and of those in folders, which detect changes."""
    folders = [path for path in paths if path.is_dir()]
    frames = (file for folder in folders for file in _frames(folder))
    paths = [*(path for path in paths if path not in folders), *frames]
    return [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]


def _frames(folder: Path) -> list[Path]:
    """The files of a folder's frames, or all its files where frames have no files of their own."""
    frames = [file for file in folder.iterdir() if is_frame(file)]
    return sorted(frames or (file for file in folder.rglob("*") if file.is_file()))
