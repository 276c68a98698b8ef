"""simulate: a movie whose molecules are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from decode.atomic import atomic
from decode.config import TrainConfig, load_config
from decode.emitters import Facts
from decode.forward import Simulation
from decode.io.cameras import CameraFile, write_camera
from decode.io.movies import write_movie
from decode.io.tables import write_table
from decode.optics.camera import Camera
from decode.outputs import camera_beside, check_outputs
from decode.outputs import simulate_files as files_of

__all__ = ["simulate", "simulate_files"]


def simulate(
    recipe: TrainConfig | Path | str,
    n_frames: int,
    *,
    size_px: int = 64,
    seed: int | None = None,
) -> Simulation:
    """Draw one movie of the kind a model is trained on.

    Args:
        recipe: a recipe, or its file; each of its ranges is drawn from once.
        n_frames: length of the movie, which is held in memory as a whole.
        size_px: side of its frames.
        seed: seed of all draws; None takes the recipe's.

    Returns:
        One movie, its molecules inside the field only, and a camera of numbers and (y, x) maps.

    Raises:
        ValueError: if the movie would have no frame or no pixel, or the file is no recipe.

    Example:
        >>> import decode
        >>> movie = decode.simulate("configs/gaussian-2d.yaml", 3, size_px=32)
        >>> tuple(movie.frames.shape)
        (1, 3, 32, 32)
    """
    config = recipe if isinstance(recipe, TrainConfig) else load_config(recipe)
    if n_frames < 1 or size_px < 1:
        raise ValueError(
            f"a movie of {n_frames} frames of {size_px} px cannot be simulated; "
            "ask for 1 or more of both"
        )
    rng = torch.Generator().manual_seed(config.seed if seed is None else seed)
    simulation = config.forward_model().sample(1, n_frames, (size_px, size_px), rng)
    position = simulation.emitters.xyz[:, :2] / config.pixel_size_nm
    inside = ((position >= 0) & (position < size_px)).all(1)
    facts = Facts(
        pixel_size_nm=config.pixel_size_nm, n_frames=n_frames, height_px=size_px, width_px=size_px
    )
    emitters = simulation.emitters[inside].sorted_by_frame()
    emitters = replace(emitters, metadata=facts.metadata())
    return simulation._replace(emitters=emitters, camera=_of_one_movie(simulation.camera))


def simulate_files(
    recipe: TrainConfig | Path | str,
    movie: Path | str,
    truth: Path | str,
    n_frames: int,
    *,
    size_px: int = 64,
    seed: int | None = None,
    settings: Sequence[str] = (),
) -> Simulation:
    """Simulate a movie, and write it, its molecules and its camera.

    The files are `movie` (TIFF), `truth` (CSV of the SMLM Challenge) and
    `<movie's stem>_camera.yaml`.

    Args:
        recipe, n_frames, size_px, seed: as `simulate` takes them.
        movie, truth: files to write.
        settings: `section.key=value`, to replace what the recipe's file says.

    Raises:
        ValueError: if a file has another suffix, or would overwrite the recipe or a file that it
            names.
        OSError: if a file cannot be written; then neither movie nor truth is.
    """
    movie, truth = Path(movie), Path(truth)
    check_outputs(files_of(movie, truth), inputs=[recipe])
    config = recipe if isinstance(recipe, TrainConfig) else load_config(recipe, settings)
    check_outputs(files_of(movie, truth), inputs=config.inputs())
    with atomic(movie) as movie_now, atomic(truth) as truth_now:
        simulation = simulate(config, n_frames, size_px=size_px, seed=seed)
        write_movie(movie_now, simulation.frames[0].numpy(), pixel_size_nm=config.pixel_size_nm)
        write_table(simulation.emitters, truth_now, dialect="challenge")
        camera = CameraFile(camera=simulation.camera, pixel_size_nm=config.pixel_size_nm)
        write_camera(camera_beside(movie), camera)
    return simulation


def _of_one_movie(camera: Camera) -> Camera:
    """Numbers and (y, x) maps in place of fields that broadcast against (1, frames, y, x)."""
    values = {f.name: getattr(camera, f.name) for f in fields(camera)}
    plain: dict[str, Any] = {
        name: float(value) if value.numel() == 1 else value[0, 0]
        for name, value in values.items()
        if isinstance(value, Tensor)
    }
    return replace(camera, **plain)
