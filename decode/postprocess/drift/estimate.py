"""The drift for which structures are sharpest: splines and jumps, from coarse to fine."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from scipy import sparse
from scipy.interpolate import BSpline
from scipy.optimize import minimize

from decode.postprocess.blinks import blinks
from decode.postprocess.drift.pairs import Floats, Integers, Localizations, Pairs, pairs_within

__all__ = ["Curve", "merged", "recovers", "sharpest", "spline"]

COARSE = ((250.0, 5), (120.0, 8), (60.0, 12), (30.0, 16))
"""kernels in nm, and functions of the spline, from coarse to fine"""
KERNELS_NM = (30.0, 15.0, 8.0)
"""of which the one with the smallest error of the drift is taken"""
FUNCTIONS = (5, 8, 12, 16, 20, 28, 40, 56, 80)
"""numbers of functions of which one is chosen"""
CHOOSING_NM = 15.0
"""kernel with which it is chosen"""
COARSE_PAIRS, FINE_PAIRS = 80_000, 250_000
"""most pairs of a fit"""
TWICE = 2
"""pairs are looked for again once the drift is better known"""
LONG_NM = 120.0
"""widest kernel that is longer along structures; before, the drift hides them"""
STEPS, PRECISION = 40, 1e-7
"""of a fit: most steps, and relative gain at which it ends"""
MOST_EXCESS = 3.0
"""largest factor by which halves of the localizations raise the uncertainty"""
GAUGE = 1e-6
"""curvature over the largest, below which pairs say nothing"""
APART_FRAMES = 10
"""fewest frames between the localizations of a pair: nearer ones may show one blink"""
WRONG_NM, STARTS, LEAST_RECOVERY = 60.0, 3, 0.5
"""root mean square of the wrong drifts from which fits start again, most of these, and the share
of one that is undone where there is a structure: .8 to 1 on simulated filaments, 0 to .15 on
molecules spread evenly"""
MOST_JUMPS = 4
"""that are looked for with each kernel"""
JUMP_KERNELS = 0.3
"""smallest jump that is looked for, in kernels"""
JUMP_SIGNIFICANCE = 8.0
"""standard deviations of a jump"""
WINDOWS, STRETCH = 100, 80
"""a jump is looked for between stretches of a hundredth of the movie, with at least so many
localizations"""


@final
@dataclass(frozen=True, kw_only=True)
class Curve:
    """A drift made of splines and jumps, and how well it is known."""

    basis: sparse.csr_array
    """(frames, k)"""
    coefficients: Floats
    """(k, d)"""
    covariance: Floats
    """(d, k, d, k)"""
    functions: int
    """number of functions of the spline"""
    jumps: tuple[int, ...]
    """first frame after each jump"""

    @property
    def drift(self) -> Floats:
        """(frames, d) nm, 0 on the average."""
        drift = self.basis @ self.coefficients
        return np.asarray(drift - drift.mean(0))

    @property
    def sigma(self) -> Floats:
        """(frames, d) standard deviations."""
        basis = self.basis.toarray()
        basis = basis - basis.mean(0)
        own = [self.covariance[a, :, a] for a in range(self.coefficients.shape[1])]
        variance = [np.einsum("fk,fk->f", basis @ c, basis) for c in own]
        return np.sqrt(np.clip(np.stack(variance, 1), 0, None))

    def scaled(self, by: Floats) -> Curve:
        """With (d,) standard deviations times a number."""
        return replace(self, covariance=self.covariance * by[:, None, None, None] * by[:, None])

    @property
    def error(self) -> float:
        """Root mean square of the standard deviations, nm."""
        return float(np.sqrt((self.sigma**2).mean()))


def spline(n_frames: int, n_functions: int) -> sparse.csr_array:
    """(frames, k) cubic B-splines with even knots."""
    return _b_splines(n_frames, _knots(n_frames, n_functions - 2))


def natural_spline(n_frames: int, n_functions: int) -> sparse.csr_array:
    """(frames, k) natural cubic splines with even knots.

    They go on straight at the ends, where few localizations hold them (de Boor, A Practical Guide
    to Splines, 1978, ch. IV).
    """
    knots = _knots(n_frames, n_functions)
    curvature = BSpline(knots, np.eye(n_functions + 2), 3).derivative(2)
    first, last = curvature(knots[[0, -1]])
    # the outermost coefficients are those for which nothing bends at the ends
    natural = np.eye(n_functions + 2)[:, 1:-1]
    natural[0, :2] = -first[1:3] / first[0]
    natural[-1, -2:] = -last[-3:-1] / last[-1]
    return sparse.csr_array(_b_splines(n_frames, knots) @ sparse.csr_array(natural))


def _knots(n_frames: int, n: int) -> Floats:
    """(n + 6,) even knots of cubic splines over all frames."""
    inner = np.linspace(0, n_frames - 1, n)
    return np.concatenate([[0.0] * 3, inner, [n_frames - 1.0] * 3])


def _b_splines(n_frames: int, knots: Floats) -> sparse.csr_array:
    frames = np.arange(n_frames, dtype=float)
    return sparse.csr_array(BSpline.design_matrix(frames, knots, 3))


def merged(seen: Localizations) -> Localizations:
    """One localization for each blink, so that long blinks do not pull."""
    number = blinks(seen.frame, seen.place, seen.sigma)
    n = int(number.max()) + 1
    weight = 1 / seen.sigma**2
    axes = range(seen.place.shape[1])
    total = np.stack([np.bincount(number, weight[:, a], n) for a in axes], 1)
    place = weight * seen.place
    sums = np.stack([np.bincount(number, place[:, a], n) for a in axes], 1)
    frame = np.bincount(number, seen.frame, n) / np.bincount(number, minlength=n)
    return Localizations(
        frame=np.rint(frame).astype(np.int64), place=sums / total, sigma=1 / np.sqrt(total)
    )


def sharpest(
    seen: Localizations,
    n_frames: int,
    *,
    jumps: tuple[int, ...] = (),
    seed: int = 0,
) -> Curve:
    """The drift for which pairs of localizations agree best.

    The sum over pairs of Gaussians of their distance, as wide as both are uncertain and as a
    kernel, is largest where structures lie on themselves; kernels from wide to narrow lead there,
    which are longer along the structures once these are seen.  The number of splines is one more
    than the one that other data would agree with best, so that what the splines cannot follow is
    less than what they do not know.

    Args:
        seen: one localization for each blink (`merged`).
        n_frames: number of frames.
        jumps: frames at which the stage is known to have jumped.
        seed: of the choice of pairs where there are too many.
    """
    fit = _Fit(seen, n_frames, apart=APART_FRAMES, seed=seed)
    drift = np.zeros((n_frames, seen.place.shape[1]))
    for kernel, functions in COARSE:
        drift = fit.drift(drift, kernel=kernel, functions=functions, jumps=jumps)
        for _ in range(MOST_JUMPS):
            found = fit.jump(drift, kernel=kernel, known=jumps)
            if found is None:
                break
            jumps = tuple(sorted((*jumps, found)))
            drift = fit.drift(drift, kernel=kernel, functions=functions, jumps=jumps)
    functions, drift = fit.functions(drift, jumps)
    curves = []
    for kernel in KERNELS_NM:
        curve = fit.curve(drift, kernel=kernel, functions=functions, jumps=jumps)
        drift = curve.drift
        curves.append((curve, kernel))
    best, kernel = min(curves, key=lambda each: each[0].error)
    return best.scaled(_excess(seen, best, kernel=kernel, seed=seed))


def _excess(seen: Localizations, curve: Curve, *, kernel: float, seed: int) -> Floats:
    """(d,) error of the drift over the stated one, 1 or more, by halves of the localizations.

    Drifts of both halves are as far from each other as twice the error of the whole: by more than
    is stated where localizations are few, as the sum of heights is no parabola over their error.
    """
    half = np.random.default_rng(seed).random(len(seen)) < 0.5
    drifts = [
        _Fit(seen[rows], len(curve.drift), apart=APART_FRAMES, seed=seed).drift(
            curve.drift, kernel=kernel, functions=curve.functions, jumps=curve.jumps
        )
        for rows in (half, ~half)
    ]
    apart = np.sqrt(((drifts[0] - drifts[1]) ** 2).mean(0)) / 2
    stated = np.sqrt((curve.sigma**2).mean(0))
    return np.asarray(np.clip(apart / stated, 1.0, MOST_EXCESS))


def recovers(seen: Localizations, curve: Curve, *, seed: int = 0) -> bool:
    """Whether the fit undoes most of a wrong drift from which it starts.

    Random drifts of `WRONG_NM` are added to the one that was found.  Where there is a structure,
    the fit returns; where there is none, each drift is as good as another, and it stays.  The
    majority of `STARTS` decides.
    """
    rng = np.random.default_rng(seed)
    n_frames, d = curve.drift.shape
    fit = _Fit(seen, n_frames, apart=APART_FRAMES, seed=seed)
    wide, functions = COARSE[-2]
    narrow, _ = COARSE[-1]
    slow = _basis(n_frames, COARSE[1][1], ())
    enough = STARTS // 2 + 1
    votes = {True: 0, False: 0}
    while max(votes.values()) < enough:
        wrong = np.asarray(slow @ rng.normal(size=(slow.shape[1], d)))
        wrong -= wrong.mean(0)
        wrong *= WRONG_NM / np.sqrt((wrong**2).mean(0))
        begun = curve.drift + wrong
        near = fit.drift(begun, kernel=wide, functions=functions, jumps=curve.jumps)
        near = fit.drift(near, kernel=narrow, functions=curve.functions, jumps=curve.jumps)
        left = np.sqrt(((near - curve.drift)[:, :2] ** 2).mean())
        votes[bool(1 - left / WRONG_NM >= LEAST_RECOVERY)] += 1
    return votes[True] > votes[False]


@final
class _Fit:
    """Fits of a drift to localizations, one after the other."""

    def __init__(self, seen: Localizations, n_frames: int, *, apart: int, seed: int) -> None:
        self._seen, self._n_frames, self._apart = seen, n_frames, apart
        self._rng = np.random.default_rng(seed)

    def drift(
        self, near: Floats, *, kernel: float, functions: int, jumps: tuple[int, ...]
    ) -> Floats:
        """The drift near an earlier one for which pairs agree best."""
        basis = _basis(self._n_frames, functions, jumps)
        found = self._coefficients(near, basis, kernel=kernel, most=COARSE_PAIRS)
        drift = np.asarray(basis @ found[0])
        return drift - drift.mean(0)

    def curve(
        self, near: Floats, *, kernel: float, functions: int, jumps: tuple[int, ...]
    ) -> Curve:
        """The same with more pairs, and how well it is known."""
        basis = _basis(self._n_frames, functions, jumps)
        coefficients, pairs = self._coefficients(near, basis, kernel=kernel, most=FINE_PAIRS)
        k, d = coefficients.shape
        covariance = np.full((d * k, d * k), np.inf)
        if len(pairs):
            now = np.asarray(basis @ coefficients)
            inverse = _inverse(pairs.curvature(now, basis))
            covariance = inverse @ pairs.scatter(now, basis) @ inverse
        return Curve(
            basis=basis,
            coefficients=coefficients,
            covariance=covariance.reshape(d, k, d, k),
            functions=functions,
            jumps=jumps,
        )

    def _coefficients(
        self, near: Floats, basis: sparse.csr_array, *, kernel: float, most: int
    ) -> tuple[Floats, Pairs]:
        """(k, d) at which pairs agree best, and these pairs."""
        coefficients = _coefficients(basis, near)
        for _ in range(TWICE):
            now = np.asarray(basis @ coefficients)
            pairs = self._pairs(now, kernel=kernel, most=most, along=kernel <= LONG_NM)
            if len(pairs):
                coefficients = _maximal(pairs, basis, coefficients)
        return coefficients, pairs

    def functions(self, drift: Floats, jumps: tuple[int, ...]) -> tuple[int, Floats]:
        """The number of functions after the one that other data would agree with best.

        By Takeuchi's criterion (Suri Kagaku 153, 12, 1976): the agreement found, less the trace of
        its scatter over its curvature, by which the fit follows its own data.
        """
        most = -np.inf
        pairs = self._pairs(drift, kernel=CHOOSING_NM, most=COARSE_PAIRS, along=True)
        if not len(pairs):
            return FUNCTIONS[0], drift
        for functions in FUNCTIONS:
            basis = _basis(self._n_frames, functions, jumps)
            drift = np.asarray(basis @ _maximal(pairs, basis, _coefficients(basis, drift)))
            inverse = _inverse(pairs.curvature(drift, basis))
            follows = float(np.trace(inverse @ pairs.scatter(drift, basis)))
            worth = (pairs.agreement(drift)[0] - follows) / len(pairs)
            if worth < most:
                break
            most = worth
        return functions, drift

    def jump(self, drift: Floats, *, kernel: float, known: tuple[int, ...]) -> int | None:
        """First frame after the most significant jump that a smooth drift leaves."""
        pairs = self._pairs(drift, kernel=kernel, most=FINE_PAIRS, along=False)
        n = self._n_frames
        width = max(n // WINDOWS, math.ceil(n * STRETCH / len(self._seen)), 2)
        if not len(pairs) or n < 4 * width:
            return None
        step, error = _steps(pairs, drift, len(self._seen), self._seen.frame, width)
        size = np.sqrt((step**2).sum(1))
        significance = np.sqrt((step**2 / error**2).sum(1))
        eligible = (size > JUMP_KERNELS * kernel) & (significance > JUMP_SIGNIFICANCE)
        eligible[: 2 * width] = eligible[-2 * width :] = False
        for at in known:
            eligible[max(0, at - 2 * width) : at + 2 * width] = False
        if not eligible.any():
            return None
        near = int(np.argmax(np.where(eligible, significance, 0)))
        return _placed(pairs, drift, step[near], near=near, width=width)

    def _pairs(self, drift: Floats, *, kernel: float, most: int, along: bool) -> Pairs:
        return pairs_within(
            self._seen,
            drift,
            kernel_nm=kernel,
            apart_frames=self._apart,
            most=most,
            along=along,
            rng=self._rng,
        )


def _basis(n_frames: int, functions: int, jumps: tuple[int, ...]) -> sparse.csr_array:
    """(frames, k) natural splines, and a step at each jump."""
    frames = np.arange(n_frames)
    steps = [sparse.csr_array((frames >= at)[:, None].astype(float)) for at in jumps]
    return sparse.csr_array(sparse.hstack([natural_spline(n_frames, functions), *steps]))


def _coefficients(basis: sparse.csr_array, drift: Floats) -> Floats:
    """(k, d) of the nearest drift that the basis can make."""
    square = (basis.T @ basis).toarray()
    return np.asarray(np.linalg.lstsq(square, np.asarray(basis.T @ drift), rcond=None)[0])


def _maximal(pairs: Pairs, basis: sparse.csr_array, start: Floats) -> Floats:
    """(k, d) coefficients at which pairs agree best, near a start."""

    def loss(flat: Floats) -> tuple[float, Floats]:
        value, gradient = pairs.agreement(np.asarray(basis @ flat.reshape(start.shape)))
        return -value / len(pairs), -np.asarray(basis.T @ gradient).ravel() / len(pairs)

    options = {"maxiter": STEPS, "ftol": PRECISION}
    found = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x.reshape(start.shape))


def _inverse(matrix: Floats) -> Floats:
    """Inverse along the directions that are known."""
    value, vector = np.linalg.eigh(matrix)
    known = value > GAUGE * value[-1]
    return np.asarray((vector[:, known] / value[known]) @ vector[:, known].T)


def _steps(
    pairs: Pairs, drift: Floats, n_seen: int, frame: Integers, width: int
) -> tuple[Floats, Floats]:
    """(frames, d) how far localizations after a frame lie from where those before it would, and
    standard errors.

    The displacement of a stretch of frames is the sum of the forces on its localizations over
    their curvature, one step of Newton's.
    """
    height, force = pairs.forces(drift)
    first, second = pairs.members
    n = len(drift)
    steps, errors = [], []
    for a, own in enumerate(force):
        on_each = np.bincount(first, own, n_seen) - np.bincount(second, own, n_seen)
        stiff = height * pairs.precision[a, a]
        stiffness = np.bincount(first, stiff, n_seen) + np.bincount(second, stiff, n_seen)
        sums = [np.bincount(frame, v, n) for v in (on_each, stiffness, on_each**2)]
        total, stiff_sum, square = (np.concatenate([[0.0], np.cumsum(v)]) for v in sums)
        at = np.arange(n)
        low, high = np.clip(at - width, 0, n), np.clip(at + width, 0, n)
        move, variance = [], []
        for start, stop in ((low, at), (at, high)):
            known = np.maximum(stiff_sum[stop] - stiff_sum[start], 1e-9)
            move.append((total[stop] - total[start]) / known)
            variance.append((square[stop] - square[start]) / known**2)
        steps.append(move[1] - move[0])
        errors.append(np.sqrt(variance[0] + variance[1]) + 1e-6)
    return np.stack(steps, 1), np.stack(errors, 1)


def _placed(pairs: Pairs, drift: Floats, step: Floats, *, near: int, width: int) -> int:
    """The frame at which a jump explains the pairs around it best."""
    first, last = near - width, near + width
    before, after = drift.copy(), drift.copy()
    middle = np.arange(len(drift))
    # a smooth drift goes half of the way before the jump, and half after it
    before[first:last] -= step * _ramp(middle[first:last], near, width)
    after[first:last] = before[first:last] + step
    inside = (pairs.frames >= first) & (pairs.frames < last)
    one = inside[0] ^ inside[1]
    heights = []
    for curve in (before, after):
        height, _ = pairs.forces(curve)
        own = np.where(inside[0], pairs.frames[0], pairs.frames[1])[one]
        heights.append(np.bincount(own - first, height[one], last - first))
    gain = np.log(heights[0] + 1e-3) - np.log(heights[1] + 1e-3)
    return int(first + np.argmax(np.concatenate([[0.0], np.cumsum(gain)])))


def _ramp(frames: Integers, near: int, width: int) -> Floats:
    """(n, 1) share of a jump that a smooth drift has gone too early."""
    share = 0.5 + (frames - near) / (2 * width)
    return np.asarray(np.clip(share, 0, 1)[:, None])
