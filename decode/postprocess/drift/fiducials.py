"""Drift from fiducials: beads that are on in nearly all frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.ndimage import median_filter
from scipy.spatial import cKDTree

from decode.errors import Undetermined
from decode.postprocess.drift.estimate import spline
from decode.postprocess.drift.pairs import Floats, Integers, Localizations

__all__ = ["found_fiducials", "of_fiducials"]

PICK_NM = 500.0
"""a fiducial starts so near to where it was picked"""
STEP_NM = 150.0
"""it moves less from one frame in which it is seen to the next"""
SHARE = 0.7
"""of the frames in which a fiducial is seen"""
WINDOW, OUTLIER = 15, 5.0
"""localizations whose median is a bead's place, and standard deviations from there of another"""
ALIKE = 0.1
"""share of localizations that two beads may have in common"""
MOST_STARTS = 300
"""localizations from which beads are followed, the most crowded first"""
FUNCTIONS = (5, 8, 12, 20, 32, 50, 80, 130, 200)


@final
@dataclass(frozen=True, kw_only=True)
class Fiducial:
    """Localizations of one bead."""

    rows: Integers
    """(n,) in the order of frames, at most one a frame"""


def found_fiducials(seen: Localizations, n_frames: int) -> list[Fiducial]:
    """Beads: what is seen near its last place in nearly all frames.

    Raises:
        Undetermined: if there are none.
    """
    order = np.argsort(seen.frame, kind="stable")
    starts = order[seen.frame[order] <= (1 - SHARE) * n_frames]
    by_frame = _by_frame(seen)
    taken = np.zeros(len(seen), dtype=bool)
    found: list[Fiducial] = []
    # a bead is there at most times: its light lies around one place far more often than others'
    tree = cKDTree(seen.place[:, :2])
    crowd = tree.query_ball_point(seen.place[starts, :2], PICK_NM, return_length=True)
    for start in starts[np.argsort(-crowd, kind="stable")][:MOST_STARTS]:
        if taken[start]:
            continue
        fiducial = _followed(seen, by_frame, int(start))
        lasting = len(fiducial.rows) >= SHARE * n_frames
        if lasting and taken[fiducial.rows].mean() < ALIKE:
            found.append(fiducial)
            taken[tree.query_ball_point(seen.place[start, :2], PICK_NM)] = True
            taken[fiducial.rows] = True
    if not found:
        raise Undetermined(
            f"no fiducial is seen in {SHARE:.0%} of the frames; state their places, or let the "
            "molecules tell the drift"
        )
    return found


def of_fiducials(
    seen: Localizations, n_frames: int, fiducials: Sequence[Fiducial]
) -> tuple[Floats, Floats]:
    """(frames, d) drift and its standard deviation, by weighted least squares.

    Splines are fitted to the displacements of all beads from their means; their number is the one
    of the smallest Bayesian information criterion (Schwarz, Ann. Stat. 6, 461, 1978).  Standard
    deviations are as large as the beads scatter.
    """
    rows = np.concatenate([each.rows for each in fiducials])
    bead = np.repeat(np.arange(len(fiducials)), [len(each.rows) for each in fiducials])
    frame, sigma = seen.frame[rows], np.maximum(seen.sigma[rows], 0.5)
    drift, error = [], []
    for axis in range(seen.place.shape[1]):
        place, weight = seen.place[rows, axis], 1 / sigma[:, axis] ** 2
        drift_a, error_a = _smooth(frame, place, weight, bead, n_frames)
        drift.append(drift_a)
        error.append(error_a)
    return np.stack(drift, 1), np.stack(error, 1)


def _smooth(
    frame: Integers, place: Floats, weight: Floats, bead: Integers, n_frames: int
) -> tuple[Floats, Floats]:
    """(frames,) drift along one axis, and its standard deviation."""
    n_beads = int(bead.max()) + 1
    means = np.eye(n_beads)[bead]
    best = np.inf
    drift = error = np.zeros(n_frames)
    for functions in FUNCTIONS:
        if 2 * functions > n_frames:
            break
        # the places of the beads hold the mean of the drift
        basis = spline(n_frames, functions).toarray()
        basis = (basis - basis.mean(0))[:, 1:]
        design = np.concatenate([basis[frame], means], 1)
        normal = design.T @ (weight[:, None] * design)
        inverse = np.linalg.pinv(normal, hermitian=True)
        fitted = inverse @ (design.T @ (weight * place))
        chi2 = float((weight * (place - design @ fitted) ** 2).sum())
        n = len(place)
        criterion = n * np.log(chi2 / n) + design.shape[1] * np.log(n)
        if criterion < best:
            best = criterion
            k = basis.shape[1]
            scale = max(1.0, chi2 / max(1, n - design.shape[1]))
            drift = basis @ fitted[:k]
            variance = np.einsum("fk,fk->f", basis @ inverse[:k, :k], basis)
            error = np.sqrt(scale * variance.clip(0))
    return drift, error


def picked(seen: Localizations, places: Sequence[tuple[float, float]]) -> list[Fiducial]:
    """The beads nearest to where they were picked, x and y in nm.

    Raises:
        Undetermined: if nothing is seen there.
    """
    by_frame = _by_frame(seen)
    first = np.argsort(seen.frame, kind="stable")
    found = []
    for x, y in places:
        away = np.hypot(seen.place[first, 0] - x, seen.place[first, 1] - y)
        near = first[away < PICK_NM]
        if not len(near):
            raise Undetermined(f"there is no fiducial within {PICK_NM:g} nm of {x:g}, {y:g} nm")
        found.append(_followed(seen, by_frame, int(near[0])))
    return found


def _by_frame(seen: Localizations) -> dict[int, Integers]:
    order = np.argsort(seen.frame, kind="stable")
    frames, starts = np.unique(seen.frame[order], return_index=True)
    return dict(zip(frames.tolist(), np.split(order, starts[1:]), strict=True))


def _followed(seen: Localizations, by_frame: dict[int, Integers], start: int) -> Fiducial:
    """The nearest localization in each frame after one, and in each before it."""
    later = [frame for frame in sorted(by_frame) if frame > seen.frame[start]]
    earlier = [frame for frame in sorted(by_frame, reverse=True) if frame < seen.frame[start]]
    after, before = (_walk(seen, by_frame, start, frames) for frames in (later, earlier))
    return Fiducial(rows=_steady(seen, np.array([*before[::-1], start, *after])))


def _walk(
    seen: Localizations, by_frame: dict[int, Integers], start: int, frames: Sequence[int]
) -> list[int]:
    place, rows = seen.place[start, :2], []
    for frame in frames:
        near = by_frame[frame]
        away = np.hypot(*(seen.place[near, :2] - place).T)
        if away.min() < STEP_NM:
            rows.append(int(near[away.argmin()]))
            # the mean of some steps: a molecule that blinks beside it does not lead it away
            place = 0.7 * place + 0.3 * seen.place[rows[-1], :2]
    return rows


def _steady(seen: Localizations, rows: Integers) -> Integers:
    """Without the molecules that were taken for the bead where both are near."""
    place = seen.place[rows]
    away = np.abs(place - median_filter(place, size=(WINDOW, 1), mode="nearest"))
    scale = np.maximum(np.median(away, axis=0) / 0.674, seen.sigma[rows])
    return np.asarray(rows[(away < OUTLIER * scale).all(1)])
