"""Sightings: localizations whose errors are independent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
import torch

from decode.emitters import EmitterSet

__all__ = ["Booleans", "Floats", "Integers", "Sightings", "inverse", "rows_of"]

Booleans = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@final
@dataclass(frozen=True, kw_only=True)
class Sightings:
    """Localizations whose errors are independent.

    Each is a row of a table, or the successive rows of a molecule that share one position, as
    polished molecules do: those are one measurement, and not many.
    """

    first: Integers
    """(n,) first frame"""
    last: Integers
    """(n,) last frame"""
    place: Floats
    """(n, 3) nm; z is 0 where it is unknown"""
    covariance: Floats
    """(n, 3, 3) nm^2; 0 along z where that is unknown"""
    axial: Booleans
    """(n,) whether z is known"""
    usable: Booleans
    """(n,) whether x and y have a standard deviation"""

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, rows: Integers) -> Sightings:
        return Sightings(
            first=self.first[rows],
            last=self.last[rows],
            place=self.place[rows],
            covariance=self.covariance[rows],
            axial=self.axial[rows],
            usable=self.usable[rows],
        )

    @property
    def lateral(self) -> Floats:
        """(n,) root mean square of the standard deviations of x and y, nm."""
        values: Floats = np.sqrt((self.covariance[:, 0, 0] + self.covariance[:, 1, 1]) / 2)
        return values

    def grouped(self) -> tuple[Sightings, Integers]:
        """Successive rows that share one position as one sighting.

        Returns:
            The sightings, and (rows,) the number of each row's.
        """
        n = len(self)
        order = np.lexsort((self.first, *self.place.T))
        here = self[order]
        same = (here.place[1:] == here.place[:-1]).all(1) & (np.diff(here.first) == 1)
        begins = np.flatnonzero(np.concatenate([[True], ~same])) if n else np.zeros(0, np.int64)
        ends = np.append(begins[1:], n) - 1
        number = np.empty(n, np.int64)
        number[order] = np.repeat(np.arange(len(begins)), ends - begins + 1)
        whole = here[begins]
        return Sightings(
            first=whole.first,
            last=here.last[ends] if n else whole.last,
            place=whole.place,
            covariance=whole.covariance,
            axial=whole.axial,
            usable=whole.usable,
        ), number


def rows_of(molecules: EmitterSet) -> Sightings:
    """Each row of a table as a sighting, with the covariance that it states.

    Without `xyz_sigma` covariances are 0: their scatter alone tells their precision.
    """
    frame = molecules.frame.cpu().numpy().astype(np.int64)
    place = molecules.xyz.double().cpu().numpy().copy()
    n = len(frame)
    stated = molecules.xyz_sigma
    sigma = np.zeros((n, 3)) if stated is None else stated.double().cpu().numpy().copy()
    depth_varies = n > 0 and bool(np.ptp(np.nan_to_num(place[:, 2])) > 0)
    axial = np.isfinite(place[:, 2]) & np.isfinite(sigma[:, 2]) & depth_varies
    if stated is not None:
        axial &= sigma[:, 2] > 0
    usable = np.isfinite(place[:, :2]).all(1) & np.isfinite(sigma[:, :2]).all(1)
    if stated is not None:
        usable &= (sigma[:, :2] > 0).all(1)
    place[:, 2] = np.where(axial, place[:, 2], 0.0)
    sigma = np.where(np.stack([usable, usable, axial], 1), sigma, 0.0)
    covariance = sigma[:, :, None] * sigma[:, None] * _correlation(molecules)
    return Sightings(
        first=frame,
        last=frame.copy(),
        place=np.nan_to_num(place),
        covariance=covariance,
        axial=axial,
        usable=usable,
    )


def _correlation(molecules: EmitterSet) -> Floats:
    """(n, 3, 3) correlations of x, y and z; 0 where none is stated."""
    matrix = np.tile(np.eye(3), (len(molecules), 1, 1))
    if molecules.correlation is not None:
        stated = torch.nan_to_num(molecules.correlation.double()).clamp(-0.99, 0.99).cpu().numpy()
        for column, (a, b) in enumerate(((0, 1), (0, 2), (1, 2))):
            matrix[:, a, b] = matrix[:, b, a] = stated[:, column]
        # rounded correlations of all three may be no correlations at all
        bad = np.linalg.eigvalsh(matrix)[:, 0] < 1e-3
        matrix[bad] = np.eye(3)
    return matrix


def inverse(matrix: Floats, axial: Booleans) -> Floats:
    """Inverses of symmetric (n, 3, 3), by cofactors, or of the part of x and y where z is not
    known; 0 of what is not known."""
    xx, yy, zz = (matrix[:, i, i] for i in range(3))
    zz = np.where(axial, zz, 1.0)
    xy = matrix[:, 0, 1]
    xz, yz = (np.where(axial, matrix[:, i, 2], 0.0) for i in range(2))
    known = xx > 0
    one, two, three = yy * zz - yz**2, xz * yz - xy * zz, xy * yz - xz * yy
    determinant = np.where(known, xx * one + xy * two + xz * three, 1.0)
    found = np.zeros_like(matrix)
    cofactors = {(0, 0): one, (0, 1): two, (0, 2): three}
    cofactors |= {(1, 1): xx * zz - xz**2, (1, 2): xy * xz - xx * yz, (2, 2): xx * yy - xy**2}
    for (i, j), cofactor in cofactors.items():
        found[:, i, j] = found[:, j, i] = np.where(known, cofactor / determinant, 0.0)
    found[~axial, 2, 2] = 0
    return found
