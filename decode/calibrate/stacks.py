"""Bead stacks: their frames, and the distance of their planes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from decode.calibrate.scan import FEWEST_PLANES, Scan
from decode.io.movies import Movie, open_array, open_movie
from decode.optics.camera import Camera
from decode.progress import Progress, Steps

__all__ = ["BeadStack", "Depths", "Stacks", "check_maps", "depths_of", "read_stacks"]

BeadStack: TypeAlias = Path | str | Movie | Tensor | npt.NDArray[Any]
"""(frame, y, x) ADU: a TIFF file, an open movie, or an array"""

FRAMES_AT_ONCE = 16
"""frames that are read between two steps"""
LARGEST_STEP_NM = 1000.0


@final
@dataclass(frozen=True, kw_only=True)
class Stacks:
    """Frames of stacks with an equal number of frames."""

    paths: tuple[Path, ...]
    adu: tuple[Tensor, ...]
    """(frame, y, x) each"""
    stated_steps_nm: tuple[float | None, ...]
    """distance of planes that each file states; None where it states none"""

    @property
    def n_frames(self) -> int:
        return len(self.adu[0])


class Depths(NamedTuple):
    """Depths of the planes of all stacks."""

    z_nm: Tensor
    """(plane,) from the lowest upwards"""
    step_nm: float
    notes: tuple[str, ...] = ()
    """remarks on the step, a sentence each"""


def read_stacks(sources: Sequence[BeadStack]) -> Steps[Stacks]:
    """Read stacks, step by step.

    Raises:
        ValueError: if there is none, or they differ in their number of frames.
    """
    if not sources:
        raise ValueError("give at least one stack of beads")
    paths, stacks, stated = [], [], []
    for number, source in enumerate(sources):
        with _opened(source) as movie:
            stack = torch.empty(movie.shape, dtype=torch.float32)
            for start in range(0, len(movie), FRAMES_AT_ONCE):
                yield Progress((number + start / len(movie)) / len(sources))
                frames = movie.read(start, min(len(movie), start + FRAMES_AT_ONCE))
                stack[start : start + len(frames)] = torch.from_numpy(frames.astype(np.float32))
            paths.append(Path(source) if isinstance(source, Path | str) else movie.path)
            stacks.append(stack)
            stated.append(movie.z_step_nm)
    if len({len(stack) for stack in stacks}) > 1:
        counts = zip(paths, stacks, strict=True)
        listed = ", ".join(f"{path.name} {len(stack)}" for path, stack in counts)
        differ = "the stacks differ in their number of planes"
        raise ValueError(f"{differ} ({listed}); calibrate them separately")
    return Stacks(paths=tuple(paths), adu=tuple(stacks), stated_steps_nm=tuple(stated))


def _opened(source: BeadStack) -> AbstractContextManager[Movie]:
    if isinstance(source, Movie):
        return nullcontext(source)
    if isinstance(source, Tensor | np.ndarray):
        return open_array(np.asarray(source))
    return open_movie(source)


def check_maps(camera: Camera, stacks: Stacks) -> None:
    """Check that camera maps are as large as the frames.

    Raises:
        ValueError: if they are not.
    """
    maps = [torch.as_tensor(value) for value in (camera.baseline, camera.noise_floor, camera.qe)]
    for path, stack in zip(stacks.paths, stacks.adu, strict=True):
        for value in maps:
            if value.ndim >= 2 and value.shape[-2:] != stack.shape[1:]:
                raise ValueError(
                    f"{path}: its frames are {tuple(stack.shape[1:])} (y, x), the camera's maps "
                    f"{tuple(value.shape[-2:])}; crop the maps to the region the beads were "
                    "recorded in"
                )


def depths_of(
    stacks: Stacks,
    scan: Scan,
    *,
    z_step_nm: float | None,
    z_focus: int | None,
) -> Depths:
    """Depths of the planes that the frames show.

    Args:
        stacks: stacks of the beads.
        scan: which plane each frame shows.
        z_step_nm: distance of planes; None: as the files state it.
        z_focus: number of the plane in focus, counted from 0 in the order of the stage; None: the
            middle one.

    Raises:
        ValueError: if there are too few planes, or the step or the plane in focus is impossible.
    """
    n_planes = len(scan.frames(stacks.n_frames))
    if n_planes < FEWEST_PLANES:
        needed = f"a z-stack of beads needs at least {FEWEST_PLANES}"
        raise ValueError(f"the stack has {n_planes} planes; {needed}")
    depths = scan.depths()
    if depths is not None:
        if z_step_nm is not None or z_focus is not None:
            raise ValueError("the z of each frame is given: leave --z-step and --z-focus out")
        return Depths(depths, float(depths.diff().median()))
    stated = [step for step in stacks.stated_steps_nm if step is not None]
    step = _stated_step(stated) if z_step_nm is None else _possible_step(z_step_nm)
    focus = n_planes // 2 if z_focus is None else z_focus
    if not 0 <= focus < n_planes:
        raise ValueError(f"--z-focus {focus} is none of the {n_planes} planes, which count from 0")
    from_lowest = n_planes - 1 - focus if scan.downwards else focus
    z_nm = (torch.arange(n_planes, dtype=torch.float32) - from_lowest) * step
    return Depths(z_nm, step, _contradictions(step, stated))


def _stated_step(stated: Sequence[float]) -> float:
    if not stated:
        unknown = "the files do not say how far their planes are apart"
        raise ValueError(f"{unknown}; state it with --z-step, in nm")
    if max(stated) > 1.01 * min(stated):
        apart = f"{min(stated):g} to {max(stated):g} nm apart"
        raise ValueError(f"the files' planes are {apart}; calibrate them separately")
    return stated[0]


def _possible_step(asked: float) -> float:
    if not asked > 0:
        raise ValueError(
            f"--z-step is {asked:g} nm, must be positive: planes rise by it; of a stack recorded "
            "downwards say so with --downwards"
        )
    if not 1 <= asked <= LARGEST_STEP_NM:
        advice = "which is no distance of planes; state it in nm"
        raise ValueError(f"--z-step is {asked:g} nm, {advice}")
    return asked


def _contradictions(step: float, stated: Sequence[float]) -> tuple[str, ...]:
    taken = f"--z-step says {step:g}: the latter was taken, check it"
    return tuple(
        f"the file says its planes are {other:g} nm apart, {taken}"
        for other in set(stated)
        if not math.isclose(other, step, rel_tol=0.02)
    )
