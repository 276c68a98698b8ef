"""Drift of a table of molecules, or the reason why it cannot be known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from decode.emitters import EmitterSet
from decode.errors import Undetermined
from decode.postprocess.drift.estimate import Curve, merged, recovers, sharpest
from decode.postprocess.drift.fiducials import found_fiducials, of_fiducials, picked
from decode.postprocess.drift.pairs import Floats, Localizations
from decode.postprocess.drift.trace import Drift
from decode.repeats import repeats

__all__ = ["drift_of_fiducials", "drift_of_molecules"]

FEWEST, FEWEST_FRAMES = 200, 50
"""blinks and frames of which a drift is told"""
MOST = 300_000
"""blinks that are looked at: those of some squares of the field where there are more"""
SQUARES = 16
"""along the longer side of the field"""
TYPICAL_NM = 20.0
"""standard deviation of molecules without one, where it cannot be told from their scatter"""
LEAST_SIGMA_NM = 1.0


def drift_of_molecules(
    molecules: EmitterSet,
    *,
    axial: bool | None = None,
    n_frames: int | None = None,
    jumps: Sequence[int] = (),
    seed: int = 0,
) -> Drift:
    """The drift for which the structures that molecules form are sharpest.

    Blinks count once, however long they are (`decode.postprocess.blinks`); what is maximal is the
    sum over pairs of blinks of Gaussians of their distance, as wide as both are uncertain
    (`decode.postprocess.drift.estimate.sharpest`).  The drift is a spline with as many knots as the
    data bear, and jumps where they show some.  Its uncertainty is that of a U-statistic at its
    maximum (Huber, Proc. 5th Berkeley Symp. 1, 221, 1967; Hoeffding, Ann. Math. Stat. 19, 293,
    1948).

    Args:
        molecules: of one acquisition, with `xyz_sigma`; without, it is told from repeats.
        axial: estimate z, too; None: where the table states it.
        n_frames: of the movie; None: as the table says, else up to the last molecule.
        jumps: frames at which the stage is known to have jumped, as from file to file.
        seed: of the choice of pairs where there are too many.

    Raises:
        Undetermined: if there are too few molecules, no structure that would tell a drift, or the
            drift is less than its uncertainty and would blur the molecules.
        ValueError: if z is asked for, and the table has none.
    """
    seen, n_frames = _localizations(molecules, axial=axial, n_frames=n_frames)
    blinks = merged(_some(seen, seed=seed))
    if len(blinks) < FEWEST or n_frames < FEWEST_FRAMES:
        raise Undetermined(
            f"{len(blinks)} molecules in {n_frames} frames are too few to tell a drift; "
            f"{FEWEST} in {FEWEST_FRAMES} are the least, or use fiducials"
        )
    curve = sharpest(blinks, n_frames, jumps=tuple(jumps), seed=seed)
    if not recovers(blinks, curve, seed=seed):
        raise Undetermined(
            "the molecules form no structure that would tell a drift: one drift explains them as "
            "well as another; use fiducials, or a trace of the stage (--apply)"
        )
    _check_worth(curve, blinks)
    jumped = tuple(sorted(curve.jumps))
    return Drift(xyz=_with_z(curve.drift), sigma=_with_z(curve.sigma), jumps=jumped)


def drift_of_fiducials(
    molecules: EmitterSet,
    *,
    places_nm: Sequence[tuple[float, float]] = (),
    axial: bool | None = None,
    n_frames: int | None = None,
) -> Drift:
    """The drift of beads that are seen in nearly all frames.

    Args:
        molecules: the table, with the beads in it.
        places_nm: x and y of beads in their first frame; none: they are found.
        axial, n_frames: as for `drift_of_molecules`.

    Raises:
        Undetermined: if there is no bead, or none where one was picked.
    """
    seen, n_frames = _localizations(molecules, axial=axial, n_frames=n_frames)
    fiducials = picked(seen, places_nm) if places_nm else found_fiducials(seen, n_frames)
    drift, sigma = of_fiducials(seen, n_frames, fiducials)
    return Drift(xyz=_with_z(drift), sigma=_with_z(sigma), origin=f"{len(fiducials)} fiducials")


def _check_worth(curve: Curve, blinks: Localizations) -> None:
    """Refuse a drift that would blur the molecules by more than it moves them."""
    size = math.sqrt(float((curve.drift**2).mean()))
    blur = float(blinks.typical_sigma[0])
    if not math.isfinite(curve.error) or curve.error > max(size, blur):
        raise Undetermined(
            f"the drift is known to {curve.error:.0f} nm only, which is more than it is and than "
            "the molecules are uncertain: there are too few of them; use fiducials, or a trace of "
            "the stage (--apply)"
        )


def _localizations(
    molecules: EmitterSet, *, axial: bool | None, n_frames: int | None
) -> tuple[Localizations, int]:
    """Positions along the axes that are known, and the number of frames."""
    if not len(molecules):
        raise Undetermined("the table is empty: no molecule tells a drift")
    frame = molecules.frame.cpu().numpy().astype(np.int64)
    xyz = molecules.xyz.double().cpu().numpy()
    has_z = bool(np.isfinite(xyz[:, 2]).all() and np.ptp(xyz[:, 2]) > 0)
    if axial and not has_z:
        raise ValueError("the table has no z: leave out --z")
    axes = 3 if has_z and axial is not False else 2
    last = int(frame.max()) + 1
    n_frames = max(last, n_frames or molecules.facts.n_frames or 0)
    sigma = _sigma(molecules)[:, :axes]
    known = np.isfinite(xyz[:, :axes]).all(1) & np.isfinite(sigma).all(1)
    seen = Localizations(
        frame=frame[known],
        place=xyz[known, :axes],
        sigma=np.maximum(sigma[known], LEAST_SIGMA_NM),
    )
    return seen, n_frames


def _sigma(molecules: EmitterSet) -> Floats:
    """(n, 3) standard deviations; one for all along an axis for which the table has none."""
    sigma = molecules.xyz_sigma
    stated = torch.full_like(molecules.xyz, math.nan) if sigma is None else sigma
    values = stated.double().cpu().numpy().copy()
    lacking = ~np.isfinite(values).any(0)
    if lacking.any():
        guess = replace(molecules, xyz_sigma=torch.full_like(molecules.xyz, TYPICAL_NM))
        ratio = np.nan_to_num(np.array(repeats(guess).ratio), nan=1.0)
        values[:, lacking] = (TYPICAL_NM * ratio)[lacking]
    return values


def _some(seen: Localizations, *, seed: int) -> Localizations:
    """All, or those of random squares of the field: a share of the molecules there keeps all of
    their pairs, and not the square of that share."""
    if len(seen) <= MOST:
        return seen
    low, high = seen.place[:, :2].min(0), seen.place[:, :2].max(0)
    side = float((high - low).max()) / SQUARES + 1e-9
    column, row = ((seen.place[:, :2] - low) / side).astype(np.int64).T
    square = row * (SQUARES + 1) + column
    count = np.bincount(square)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(count))
    enough = int(np.searchsorted(np.cumsum(count[order]), MOST)) + 1
    return seen[np.isin(square, order[:enough])]


def _with_z(values: Floats) -> Floats:
    """(frames, 3); z is 0 where it was not estimated."""
    return np.pad(values, ((0, 0), (0, 3 - values.shape[1])))
