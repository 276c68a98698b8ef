"""Which plane each frame of a bead stack shows, and whether the frames agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from decode.io.psfs import ZDirection

__all__ = ["FEWEST_PLANES", "Scan", "check_scan", "read_depths", "read_scan"]

FEWEST_PLANES = 5
EVEN = 2.0
"""largest over smallest distance of planes up to which they count as evenly spaced"""
ALIKE = 1.3
"""squared difference of frames across a supposed change of plane over that within, from which
frames repeat a plane: 1.7 in simulated stacks of 100 nm a plane and 8000 photons, 0 to 1.1 in
eighteen stacks without repeated planes"""


@final
@dataclass(frozen=True, kw_only=True)
class Scan:
    """The order of the planes in a bead stack; by default one frame a plane, from below."""

    frames_per_plane: int = 1
    """consecutive frames of a plane"""
    downwards: bool | None = None
    """whether the stage moves down; None: not stated, and taken to be no"""
    z_nm: tuple[float, ...] | None = None
    """depth of each frame, in any order, to the nanometre"""

    def __post_init__(self) -> None:
        if self.frames_per_plane < 1:
            raise ValueError(f"--frames-per-plane is {self.frames_per_plane}, must be 1 or more")
        if self.z_nm is not None and (self.frames_per_plane > 1 or self.downwards is not None):
            raise ValueError(
                "the z of each frame is given: leave --frames-per-plane, --upwards and "
                "--downwards out"
            )

    @property
    def z_direction(self) -> ZDirection:
        """Whether the user said which way the stage moves."""
        return "assumed" if self.downwards is None and self.z_nm is None else "stated"

    def frames(self, n_frames: int) -> Tensor:
        """(plane, m) numbers of the frames that show each plane, from the lowest one upwards.

        Where z is given and planes have different numbers of frames, the first ones of each are
        taken.

        Raises:
            ValueError: if the frames make no whole planes, too few, or unevenly spaced ones.
        """
        if self.z_nm is None:
            if n_frames % self.frames_per_plane:
                raise ValueError(
                    f"--frames-per-plane {self.frames_per_plane} does not divide the {n_frames} "
                    "frames"
                )
            planes = torch.arange(n_frames).view(-1, self.frames_per_plane)
            return planes.flip(0) if self.downwards else planes
        if len(self.z_nm) != n_frames:
            raise ValueError(f"z of {len(self.z_nm)} frames are given, the stack has {n_frames}")
        depth = torch.tensor(self.z_nm).round()
        each = [torch.nonzero(depth == z)[:, 0] for z in depth.unique()]
        fewest = min(map(len, each))
        return torch.stack([frames[:fewest] for frames in each])

    def depths(self) -> Tensor | None:
        """(plane,) z of the planes, nm; None where it is not given."""
        return None if self.z_nm is None else torch.tensor(self.z_nm).round().unique()


def read_scan(
    *,
    frames_per_plane: int = 1,
    downwards: bool | None = None,
    z_of_frames: Path | str | Sequence[float] | None = None,
) -> Scan:
    """A scan from the arguments of the verbs that calibrate.

    Args:
        frames_per_plane, downwards: as in `Scan`.
        z_of_frames: z of each frame, nm, or the text file that `read_depths` reads.

    Raises:
        ValueError, OSError: as `Scan` and `read_depths` do.
    """
    z_nm: tuple[float, ...] | None = None
    if isinstance(z_of_frames, Path | str):
        z_nm = read_depths(z_of_frames)
    elif z_of_frames is not None:
        z_nm = tuple(z_of_frames)
    return Scan(frames_per_plane=frames_per_plane, downwards=downwards, z_nm=z_nm)


def read_depths(path: Path | str) -> tuple[float, ...]:
    """z in nm of each frame, from a text file with one number a line.

    Raises:
        ValueError: if it holds anything else, or planes that are not evenly spaced.
        OSError: if it cannot be read.
    """
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    words = [line.strip() for line in lines if line.strip()]
    try:
        z = np.array([float(word) for word in words])
    except ValueError as error:
        raise ValueError(f"{path}: {error}; give the z of each frame in nm, one a line") from None
    gaps = np.diff(np.unique(z.round()))
    if len(gaps) < FEWEST_PLANES - 1 or not np.isfinite(gaps).all():
        raise ValueError(
            f"{path} has {len(gaps) + 1} planes; a z-stack of beads needs at least {FEWEST_PLANES}"
        )
    if gaps.max() > EVEN * gaps.min():
        raise ValueError(
            f"{path}: planes are {gaps.min():g} to {gaps.max():g} nm apart; leave frames out until "
            "they are evenly "
            "spaced, and round readings of one plane to one number"
        )
    return tuple(z.tolist())


def check_scan(crops: Tensor) -> None:
    """Refuse a stack whose images show that it does not pass its planes once.

    Frames of one plane differ by noise alone, frames of successive planes by more.

    Args:
        crops: (bead, z, y, x) photons.

    Raises:
        ValueError: if it does not, in a sentence that says how frames are arranged.
    """
    n = crops.shape[1]
    light = avg_pool2d(crops.double(), 2).flatten(2).transpose(0, 1).flatten(1)  # (z, pixel)
    light = light - light.median(1, keepdim=True).values
    difference = torch.cdist(light, light).square().numpy()
    steps = difference[np.arange(n - 1), np.arange(1, n)]

    passes = [k for k in range(2, n // FEWEST_PLANES + 1) if n % k == 0]
    for k in passes:
        again = difference[np.arange(n - n // k), np.arange(n // k, n)]
        if steps.mean() > ALIKE * again.mean():
            raise ValueError(
                f"the bead stack goes {k} times through the same {n // k} planes; save one pass "
                "alone, or state the z "
                "of each frame with --z-of-frames"
            )
    half = np.arange(max(1, n // 2 - 1))
    back = difference[half, n - 1 - half]
    # a PSF that is the same above and below focus is sharpest in the middle of a single pass
    sharpest = int(light.square().sum(1).argmax())
    if steps.mean() > ALIKE * back.mean() and not n / 3 < sharpest < 2 * n / 3:
        raise ValueError(
            "the bead stack goes up and down again: its second half shows the planes of its first; "
            "save one way alone, or state the z of each frame with --z-of-frames"
        )
    at_ends = {k: _step_at_ends(steps, k) for k in passes}
    most = max(at_ends, key=lambda k: at_ends[k], default=1)
    if at_ends.get(most, 0.0) > ALIKE:
        raise ValueError(
            f"every {most} frames of the bead stack show one plane; state it with "
            f"--frames-per-plane {most}"
        )


def _step_at_ends(steps: npt.NDArray[np.float64], k: int) -> float:
    """Change of the image between successive groups of k frames, over that within the groups."""
    ends = np.arange(k - 1, len(steps), k)
    inner = np.unique([ends - 1, ends + 1])
    inner = inner[(inner >= 0) & (inner < len(steps))]
    return float(steps[ends].mean() / max(steps[inner].mean(), 1e-12))
