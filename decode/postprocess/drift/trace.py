"""Drift: where the stage was in each frame, and how well that is known."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
import numpy.typing as npt
import torch

from decode.atomic import atomic
from decode.emitters import EmitterSet
from decode.errors import reading

__all__ = ["Drift", "read_drift", "write_drift"]

Floats = npt.NDArray[np.float64]

COLUMNS = ("frame", "x_nm", "y_nm", "z_nm", "x_sigma_nm", "y_sigma_nm", "z_sigma_nm")
STEP = "drift"
"""entry of a table's metadata that says that a drift was subtracted"""

CHANCE = 3.0
"""standard deviations of its range up to which a drift may be none: the largest of many errors less
the smallest is two to three of these"""


@final
@dataclass(frozen=True, kw_only=True)
class Drift:
    """Position of the stage in each frame, relative to its mean.

    Example:
        >>> drift = Drift(xyz=np.array([[-5.0, 0, 0], [5.0, 0, 0]]), sigma=np.zeros((2, 3)))
        >>> seen = EmitterSet(
        ...     frame=torch.tensor([0, 1]),
        ...     xyz=torch.tensor([[95.0, 50.0, 0.0], [105.0, 50.0, 0.0]]),
        ...     photons=torch.tensor([900.0, 900.0]),
        ... )
        >>> drift.subtracted_from(seen).xyz[:, 0].tolist()
        [100.0, 100.0]
    """

    xyz: Floats
    """(frames, 3) nm"""
    sigma: Floats
    """(frames, 3) standard deviations, nm; 0 along an axis that was not estimated"""
    jumps: tuple[int, ...] = ()
    """first frame after each jump"""
    origin: str = "molecules"
    """what it was estimated from"""

    def __post_init__(self) -> None:
        if self.xyz.ndim != 2 or self.xyz.shape[1] != 3 or self.sigma.shape != self.xyz.shape:
            raise ValueError(
                f"a drift has a row for each frame and three axes, not {self.xyz.shape} and "
                f"{self.sigma.shape}"
            )
        if not (np.isfinite(self.xyz).all() and np.isfinite(self.sigma).all()):
            raise ValueError("a drift and its uncertainty are numbers in every frame")

    def __len__(self) -> int:
        return len(self.xyz)

    @property
    def amplitude(self) -> tuple[float, float, float]:
        """Range of the drift along x, y and z, nm."""
        x, y, z = np.ptp(self.xyz, axis=0).tolist()
        return x, y, z

    @property
    def amplitude_error(self) -> tuple[float, float, float]:
        """Standard deviation of the range along x, y and z, nm: that of its two ends."""
        ends = np.stack([self.xyz.argmin(0), self.xyz.argmax(0)])
        x, y, z = np.hypot(*np.take_along_axis(self.sigma, ends, 0)).tolist()
        return x, y, z

    @property
    def sentences(self) -> tuple[str, ...]:
        """The range along each axis that drifts, and jumps.

        >>> import numpy as np
        >>> still = np.zeros((2, 3))
        >>> Drift(xyz=still + [[0, 0, 0], [8, 0, 0]], sigma=still + 3).sentences
        ('x: 8.0 ± 4.2 nm from end to end, which may be chance',)
        """
        said = []
        for axis, size, error in zip("xyz", self.amplitude, self.amplitude_error, strict=True):
            if size:
                chance = ", which may be chance" if size < CHANCE * error else ""
                said.append(f"{axis}: {size:.1f} ± {error:.1f} nm from end to end{chance}")
        if self.jumps:
            said.append(f"jumps at frame {', '.join(str(at + 1) for at in self.jumps)}")
        return tuple(said)

    @property
    def error(self) -> tuple[float, float, float]:
        """Root mean square of its standard deviation along x, y and z, nm."""
        x, y, z = np.sqrt((self.sigma**2).mean(0)).tolist()
        return x, y, z

    def subtracted_from(self, molecules: EmitterSet) -> EmitterSet:
        """The molecules as if the stage had stood still; uncertainties include the drift's.

        Raises:
            ValueError: if a molecule is in a frame that the drift does not reach.
        """
        return self._moved(molecules, -1.0)

    def added_to(self, molecules: EmitterSet) -> EmitterSet:
        """The molecules as they were before the drift was subtracted.

        Raises:
            ValueError: if a molecule is in a frame that the drift does not reach.
        """
        return self._moved(molecules, 1.0)

    def _moved(self, molecules: EmitterSet, sign: float) -> EmitterSet:
        frame = molecules.frame.cpu()
        if len(frame) and not (int(frame.min()) >= 0 and int(frame.max()) < len(self)):
            raise ValueError(
                f"molecules are in frames up to {int(frame.max()) + 1}, the drift reaches "
                f"{len(self)}: it is another movie's"
            )
        shift = torch.from_numpy(self.xyz)[frame]
        xyz = (molecules.xyz.double() + sign * shift.to(molecules.xyz.device)).float()
        sigma = molecules.xyz_sigma
        if sigma is not None:
            own = torch.from_numpy(self.sigma)[frame].to(sigma.device)
            # what is subtracted adds its error; what is added back takes it away
            variance = sigma.double().square() - sign * own.square()
            sigma = variance.clamp_min(0).sqrt().float()
        metadata = {k: v for k, v in molecules.metadata.items() if k != STEP}
        if sign < 0:
            metadata[STEP] = f"subtracted, estimated from {self.origin}"
        return replace(molecules, xyz=xyz, xyz_sigma=sigma, metadata=metadata)


def write_drift(drift: Drift, path: Path | str) -> None:
    """A CSV with a row for each frame, counted from 1 as in ThunderSTORM's tables."""
    with atomic(Path(path)) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for i, row in enumerate(np.concatenate([drift.xyz, drift.sigma], 1), start=1):
            writer.writerow([i, *(f"{value:.3f}" for value in row)])


def read_drift(path: Path | str) -> Drift:
    """A drift from a CSV that `write_drift` or another program wrote.

    Needed are the columns `frame`, `x_nm` and `y_nm`; `z_nm` and the standard deviations are 0
    where they are missing.  Between the frames stated, the drift is interpolated; it starts in
    frame 1.

    Raises:
        ValueError: if a column is missing, or a value is no number.
        OSError: if the file cannot be read.
    """
    path = Path(path)
    with reading(path, "a drift (CSV with the columns frame, x_nm, y_nm)"):
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        if not rows or any(name not in rows[0] for name in COLUMNS[:3]):
            raise ValueError(f"{path} has no columns {', '.join(COLUMNS[:3])}")
        columns = [[float(row.get(name) or 0.0) for row in rows] for name in COLUMNS]
    values = np.array(columns).T
    values = values[np.argsort(values[:, 0], kind="stable")]
    frame = values[:, 0]
    if not np.isfinite(values).all() or frame[0] < 1 or (np.diff(frame) <= 0).any():
        raise ValueError(f"{path}: frames count from 1, each once, and all values are numbers")
    every = np.arange(1, math.floor(frame[-1]) + 1)
    full = np.stack([np.interp(every, frame, column) for column in values[:, 1:].T], 1)
    return Drift(xyz=full[:, :3], sigma=full[:, 3:], origin=path.name)
