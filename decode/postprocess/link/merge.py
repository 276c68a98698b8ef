"""Merge: one row a molecule, of the rows that show it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from decode.emitters import EmitterSet, correlations
from decode.postprocess.link.scatter import LEAST_NM
from decode.postprocess.link.sightings import Floats, Integers, Sightings, inverse
from decode.postprocess.link.tracks import STEP, Linking

__all__ = ["Places", "merged"]


def merged(molecules: EmitterSet, linking: Linking, *, rescale: bool = False) -> EmitterSet:
    """The mean of each molecule's rows, weighted by the inverse of their covariances.

    The position is (sum Ci^-1)^-1 sum Ci^-1 xi, its covariance (sum Ci^-1)^-1 (Aitken, Proc. R.
    Soc. Edinburgh 55, 42, 1936); rows that share one position count once.  Photons are summed, the
    background is the mean, the probability the largest, the goodness the mean.  Rows of a single
    sighting stay as they are.

    Args:
        molecules: the rows that were linked.
        linking: from `linked`.
        rescale: multiply uncertainties of positions by the scatter within molecules over the stated
            one (`Linking.excess`).

    Returns:
        The molecules in the order of their first frames (`frame`), with the columns `n_frames`
        (rows), `first_frame` and `last_frame` (counted as `frame`), `off_gaps` (dark frames
        bridged) and `link_probability` (that all rows are one molecule), and the step in the
        metadata.

    Example:
        >>> from decode.postprocess.link import linked
        >>> rng = torch.Generator().manual_seed(1)
        >>> place = torch.cat([20_000 * torch.rand(200, 2, generator=rng), torch.zeros(200, 1)], 1)
        >>> noise = 12 * torch.randn(2, 200, 3, generator=rng) * torch.tensor([1, 1, 0.0])
        >>> rows = EmitterSet(
        ...     frame=torch.arange(400).view(200, 2).T.flatten(),
        ...     xyz=(place + noise).flatten(0, 1),
        ...     photons=torch.full((400,), 500.0),
        ...     xyz_sigma=torch.tensor([12.0, 12.0, torch.nan]).repeat(400, 1),
        ... )
        >>> whole = merged(rows, linked(rows))
        >>> len(whole), float(whole.photons[0]), round(float(whole.xyz_sigma[0, 0]), 2)
        (200, 1000.0, 8.49)
    """
    n, track = linking.n_molecules, linking.track
    order = np.lexsort((molecules.frame.cpu().numpy(), track))
    first = order[np.searchsorted(track[order], np.arange(n))]
    whole = molecules[torch.from_numpy(first)]
    photons = _photons(molecules, track, n)
    places = Places.of(molecules, linking)
    count = np.bincount(track, minlength=n)
    dark = linking.dark_frames
    start = whole.frame.cpu().numpy().astype(np.int64)
    columns = {
        "n_frames": count,
        "first_frame": start,
        "last_frame": start + count + dark - 1,
        "off_gaps": dark,
        "link_probability": linking.probability,
    }
    record = linking.record() | {"rescaled": rescale, "refitted": 0}
    result = replace(
        whole,
        **photons,
        **_means(molecules, track, n),
        others=dict(whole.others) | columns,
        metadata=dict(molecules.metadata) | {STEP: record},
    )
    result = places.put_into(result)
    return _rescaled(result, linking) if rescale else result


def _photons(molecules: EmitterSet, track: Integers, n: int) -> dict[str, Tensor]:
    """Sums, with their uncertainties in quadrature."""
    values: dict[str, Tensor] = {"photons": _summed(molecules.photons, track, n)}
    for name in ("photons_sigma", "photons_95"):
        column = molecules.columns().get(name)
        if column is not None:
            values[name] = _summed(column.double().square(), track, n).sqrt().to(column)
    return values


def _means(molecules: EmitterSet, track: Integers, n: int) -> dict[str, Tensor]:
    """What belongs to rows, of their molecule."""
    index = torch.from_numpy(track)
    values: dict[str, Tensor] = {}
    for name, column in molecules.columns().items():
        if name in ("background", "goodness"):
            values[name] = _summed(column, track, n) / torch.bincount(index, minlength=n).to(column)
        if name in ("probability", "ess"):
            how = "amax" if name == "probability" else "amin"
            whole = torch.zeros(n, dtype=column.dtype)
            values[name] = whole.scatter_reduce(0, index, column.cpu(), how, include_self=False)
        if name == "polished":
            values[name] = torch.from_numpy(
                np.bincount(track, ~column.cpu().numpy(), minlength=n) == 0
            )
    return values


def _summed(values: Tensor, track: Integers, n: int) -> Tensor:
    total = torch.zeros(n, dtype=torch.float64)
    return total.index_add_(0, torch.from_numpy(track), values.double().cpu()).to(values.dtype)


@final
@dataclass(frozen=True, kw_only=True)
class Places:
    """Positions of some molecules, with covariances."""

    which: Integers
    """(m,) numbers of the molecules"""
    xyz: Floats
    """(m, 3) nm"""
    covariance: Floats
    """(m, 4, 4) of x, y, z and photons; NaN along z where that is not known, and of photons where
    they have no standard deviation"""
    half95: Floats | None = None
    """(m, 3) half-widths of the central 95 % intervals, nm"""

    @classmethod
    def of(cls, molecules: EmitterSet, linking: Linking) -> Places:
        """The means of the molecules of more than one sighting."""
        seen, track, n = linking.sightings, linking.track_of_sighting, linking.n_molecules
        twice = np.bincount(track, minlength=n) > 1
        which = np.flatnonzero(twice)
        rows = np.flatnonzero(twice[track])
        rank = np.cumsum(twice) - 1
        of, part = rank[track[rows]], seen[rows]
        equal = not part.covariance.any()
        information = inverse(_spread(part, linking) if equal else part.covariance, part.axial)
        total = _sum_by(of, information, len(which))
        axial = total[:, 2, 2] > 0
        covariance = inverse(total, axial)
        weight = covariance[of] @ information
        # relative to one of the molecule's rows, so that no digits are lost
        origin = np.zeros((len(which), 3))
        origin[of] = part.place
        apart = (part.place - origin[of])[:, :, None]
        xyz = origin + _sum_by(of, (weight @ apart)[:, :, 0], len(which))
        stated = molecules.xyz_95
        half95 = None
        if stated is not None:
            first = np.unique(linking.sighting, return_index=True)[1][rows]
            half = np.nan_to_num(stated.double().cpu().numpy()[first])
            share = np.diagonal(weight, axis1=1, axis2=2)
            half95 = np.sqrt(_sum_by(of, (share * half) ** 2, len(which)))
        whole = np.full((len(which), 4, 4), np.nan)
        whole[:, :3, :3] = covariance
        whole[:, 3, :3] = whole[:, :3, 3] = _sum_by(
            of, (weight @ _with_photons(molecules, linking)[rows][:, :, None])[:, :, 0], len(which)
        )
        if molecules.photons_sigma is not None:
            square = molecules.photons_sigma.double().cpu().numpy() ** 2
            whole[:, 3, 3] = np.bincount(linking.track, square, minlength=n)[which]
        whole[~axial, 2, :] = whole[~axial, :, 2] = np.nan
        return cls(which=which, xyz=xyz, covariance=whole, half95=half95)

    def put_into(self, whole: EmitterSet) -> EmitterSet:
        """A table of molecules, with these positions in place of its own."""
        which, like = torch.from_numpy(self.which), whole.xyz
        xyz = like.clone()
        known = torch.from_numpy(~np.isnan(self.covariance[:, 2, 2]))
        place = torch.from_numpy(self.xyz).to(like)
        xyz[which, :2] = place[:, :2]
        xyz[which[known], 2] = place[known, 2]
        covariance = torch.from_numpy(self.covariance)
        deviation = covariance.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
        sigma = torch.full_like(like, torch.nan) if whole.xyz_sigma is None else whole.xyz_sigma
        columns: dict[str, Any] = {"xyz": xyz, "xyz_sigma": sigma.clone()}
        columns["xyz_sigma"][which] = deviation[:, :3].to(sigma)
        if whole.correlation is not None:
            scale = deviation[:, :, None] * deviation[:, None]
            columns["correlation"] = whole.correlation.clone()
            columns["correlation"][which] = correlations(covariance / scale).to(whole.correlation)
        if whole.xyz_95 is not None and self.half95 is not None:
            columns["xyz_95"] = whole.xyz_95.clone()
            half = torch.from_numpy(self.half95).to(whole.xyz_95)
            columns["xyz_95"][which] = torch.where(deviation[:, :3].isnan(), torch.nan, half)
        return replace(whole, **columns)


def _spread(part: Sightings, linking: Linking) -> Floats:
    """(m, 3, 3) of rows without a stated standard deviation: that of repeats."""
    lateral, axial = linking.jitter
    one = np.diag([lateral**2, lateral**2, max(axial, LEAST_NM) ** 2])
    return np.tile(one, (len(part), 1, 1))


def _with_photons(molecules: EmitterSet, linking: Linking) -> Floats:
    """(sightings, 3) covariance of x, y and z with the photons, summed over the rows of each."""
    n = len(linking.sightings)
    sigma, photons, stated = molecules.xyz_sigma, molecules.photons_sigma, molecules.correlation
    if sigma is None or photons is None or stated is None:
        return np.zeros((n, 3))
    each = stated[:, 3:] * sigma * photons[:, None]
    return _sum_by(linking.sighting, torch.nan_to_num(each.double()).cpu().numpy(), n)


def _sum_by(group: Integers, values: Floats, n: int) -> Floats:
    """(n, ...) sums of values (m, ...) by their group."""
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    summed = [np.bincount(group, column, minlength=n) for column in flat.T]
    whole: Floats = np.stack(summed, 1).astype(np.float64)
    return whole.reshape(n, *values.shape[1:])


def _rescaled(whole: EmitterSet, linking: Linking) -> EmitterSet:
    """Uncertainties of positions as large as the scatter within molecules says."""
    factor = np.nan_to_num(np.array(linking.excess), nan=1.0)
    columns: dict[str, Any] = {
        name: column * torch.from_numpy(factor).to(column)
        for name, column in whole.columns().items()
        if name in ("xyz_sigma", "xyz_95")
    }
    return replace(whole, **columns)
