"""Distributions of a table: of its columns, over time, over the field and within pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.spatial import cKDTree
from scipy.special import j1

from decode.emitters import EmitterSet

__all__ = [
    "Course",
    "DensityMap",
    "Distribution",
    "Locking",
    "Neighbours",
    "course_of",
    "density_of",
    "distribution_of",
    "distributions_of",
    "locking_of",
    "neighbours_of",
    "on_times",
]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

BINS = 60
"""of a histogram"""
TIMES = 100
"""parts of a movie, over which localizations are counted"""
MAP_PX = 160
"""longest side of a map of the field"""
AROUND = 24
"""frequencies on either side of that of the pixels with which it is compared"""
SIGNIFICANT = 1e-4
"""probability by chance, below which molecules are said to be locked to pixels"""


@final
@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Distribution of one quantity over the localizations, or over the blinks."""

    name: str
    unit: str
    n: int
    mean: float
    mean_error: float
    """standard error"""
    median: float
    median_error: float
    """standard error, by order statistics"""
    low: float
    high: float
    """between which nine of ten lie"""
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    """histogram, up to the 99.5 % quantile"""


def distribution_of(name: str, unit: str, values: npt.ArrayLike) -> Distribution | None:
    """The distribution of values, of which those that are no numbers are left out; None where none
    is.

    The standard error of the median is half the distance of the order statistics that are one
    standard deviation of a fair count off the middle one.

    >>> distribution_of("photons", "", np.arange(1, 100.0)).median
    50.0
    """
    x = np.asarray(values, dtype=np.float64)
    x = np.sort(x[np.isfinite(x)])
    if not len(x):
        return None
    n = len(x)
    rank = math.sqrt(n) / 2
    around = np.quantile(x, np.clip([0.5 - rank / n, 0.5 + rank / n], 0, 1))
    low, middle, high, top = np.quantile(x, [0.05, 0.5, 0.95, 0.995]).tolist()
    counts, edges = np.histogram(x, _edges(x, top))
    return Distribution(
        name=name,
        unit=unit,
        n=n,
        mean=float(x.mean()),
        mean_error=float(x.std() / math.sqrt(n)),
        median=middle,
        median_error=float(np.ptp(around) / 2),
        low=low,
        high=high,
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
    )


def _edges(x: Floats, top: float) -> Floats:
    """Edges of the bins of sorted values; whole numbers lie in the middle of theirs."""
    first = float(x[0])
    if (x == np.rint(x)).all():
        step = math.ceil((top - first + 1) / BINS)
        return np.arange(first - 0.5, top + 0.5 + step, step)
    return np.linspace(first, top if top > first else first + 1, BINS + 1)


def distributions_of(molecules: EmitterSet, blink: Integers) -> tuple[Distribution, ...]:
    """Photons, background, standard deviations, goodness and probability, as far as the table
    states them, and frames of a blink.

    Args:
        molecules: n localizations.
        blink: (n,) number of the blink.
    """
    sigma = molecules.xyz_sigma
    columns = [
        ("photons", "photons", molecules.photons),
        ("background", "photons/pixel", molecules.background),
        *(
            (f"sigma {a}", "nm", None if sigma is None else sigma[:, i])
            for i, a in enumerate("xyz")
        ),
        ("goodness", "", molecules.goodness),
        ("probability", "", molecules.probability),
    ]
    stated = [
        distribution_of(name, unit, column.double().cpu().numpy())
        for name, unit, column in columns
        if column is not None
    ]
    stated.append(distribution_of("on-time", "frames", on_times(blink)))
    return tuple(each for each in stated if each is not None)


def on_times(blink: Integers) -> Integers:
    """(m,) localizations of each blink."""
    counts = np.bincount(blink)
    return counts[counts > 0]


@final
@dataclass(frozen=True, kw_only=True)
class Course:
    """Localizations a frame over the movie."""

    frame: tuple[float, ...]
    """middle of each part of the movie, from 0"""
    per_frame: tuple[float, ...]
    error: tuple[float, ...]
    """standard error, by the counts"""

    @property
    def remaining(self) -> float:
        """Localizations a frame in the last tenth over those in the first."""
        n = max(1, len(self.per_frame) // 10)
        first, last = np.mean(self.per_frame[:n]), np.mean(self.per_frame[-n:])
        return float(last / first) if first > 0 else math.nan


def course_of(frame: Integers, n_frames: int) -> Course:
    """Localizations a frame, in at most a hundred parts of the movie.

    >>> course_of(np.array([0, 0, 1, 3]), 4).per_frame
    (2.0, 1.0, 0.0, 1.0)
    """
    edges = np.unique(np.linspace(0, n_frames, min(TIMES, n_frames) + 1).astype(int))
    counts, _ = np.histogram(frame, edges)
    width = np.diff(edges)
    return Course(
        frame=tuple(((edges[1:] + edges[:-1] - 1) / 2).tolist()),
        per_frame=tuple((counts / width).tolist()),
        error=tuple((np.sqrt(np.maximum(counts, 1)) / width).tolist()),
    )


@final
@dataclass(frozen=True, kw_only=True)
class DensityMap:
    """Localizations per square micrometre over the field."""

    pixel_nm: float
    origin_nm: tuple[float, float]
    """x and y of the outer corner of the first pixel"""
    per_um2: tuple[tuple[float, ...], ...]
    """rows of y, columns of x"""

    @property
    def mean(self) -> float:
        """Over the box around the localizations."""
        return float(np.mean(self.per_um2))

    @property
    def filled(self) -> float:
        """Share of the field in which half of the localizations lie, at least."""
        dense = np.sort(np.ravel(self.per_um2))[::-1]
        half = np.searchsorted(np.cumsum(dense), dense.sum() / 2) + 1
        return float(half / len(dense))


def density_of(place: Floats) -> DensityMap:
    """The density of places (n, 2), nm."""
    low, extent = place.min(0), np.maximum(np.ptp(place, axis=0), 1.0)
    pixel = max(float(extent.max()) / MAP_PX, 1.0)
    number = np.maximum(np.ceil(extent / pixel).astype(int), 1)
    column = np.minimum(((place - low) / pixel).astype(int), number - 1)
    flat = np.ravel_multi_index((column[:, 1], column[:, 0]), (int(number[1]), int(number[0])))
    counts = np.bincount(flat, minlength=int(number.prod())).reshape(number[1], number[0])
    density = counts / (pixel / 1e3) ** 2
    x, y = low.tolist()
    return DensityMap(pixel_nm=pixel, origin_nm=(x, y), per_um2=tuple(map(tuple, density.tolist())))


@final
@dataclass(frozen=True, kw_only=True)
class Locking:
    """Whether places are drawn to the same part of the camera's pixels (pixel locking)."""

    axis: str
    chance: float
    """probability of as much by chance"""
    bias_nm: float
    """root mean square over a pixel; what the noise of the places gives is subtracted"""
    error_nm: float
    """standard error"""

    @property
    def locked(self) -> bool:
        return self.chance < SIGNIFICANT


def locking_of(
    place: Floats, axis: int, *, pixel_nm: float, sigma_nm: float, extent_nm: float
) -> Locking:
    """Test places for a bias that repeats with the pixels.

    Rayleigh's test of the phases 2 pi x / p, whose mean vector has the power of the places at the
    frequency 1 / p.  It is compared with the power at frequencies around it, as structure has power
    there, too: by chance it is so many times larger with the probability exp(-ratio).  For a bias
    b sin(2 pi x / p) of places that are spread evenly, and noise sigma, the length of the mean
    vector is J_1(2 pi b / p) exp(-2 (pi sigma / p)^2) (Jacobi-Anger), from which b follows.

    Args:
        place: (n,) nm, along one axis; of blinks, as the localizations of one are not independent.
        axis: 0 for x, 1 for y.
        pixel_nm: side p of a pixel of the camera.
        sigma_nm: standard deviation of the places.
        extent_nm: size of the field along the axis.

    Example:
        >>> x = np.random.default_rng(0).uniform(0, 10_000, 5000)
        >>> locked = x + 10 * np.sin(2 * np.pi * x / 100)
        >>> found = locking_of(locked, 0, pixel_nm=100.0, sigma_nm=0.0, extent_nm=10_000)
        >>> found.locked, round(found.bias_nm)
        (True, 7)
    """
    most = min(AROUND + 1, math.ceil(0.5 * extent_nm / pixel_nm) - 1)
    power = _powers(place, 1 / pixel_nm, 1 / max(extent_nm, pixel_nm), most)
    chance_power = float(power[1:].mean()) if len(power) > 1 else 1 / max(len(place), 1)
    fade = math.exp(-2 * (math.pi * sigma_nm / pixel_nm) ** 2)
    length = math.sqrt(max(float(power[0]) - chance_power, 0.0)) / fade
    amplitude = _bias(length) * pixel_nm
    # of a vector that is not there, the length of one by chance
    error = math.sqrt(chance_power / 2) / fade / math.pi * pixel_nm
    return Locking(
        axis="xy"[axis],
        chance=math.exp(-float(power[0]) / chance_power),
        bias_nm=amplitude / math.sqrt(2),
        error_nm=error / math.sqrt(2),
    )


def _powers(place: Floats, frequency: float, step: float, most: int) -> Floats:
    """Power of places at a frequency, and at 2 to `most` steps above and below it."""
    at, turn = np.exp(2j * np.pi * frequency * place), np.exp(2j * np.pi * step * place)
    sums, by = [at.sum()], turn
    for _ in range(2, most + 1):
        by = by * turn
        sums += [by @ at, np.vdot(by, at)]
    return np.asarray(np.abs(sums) ** 2) / len(place) ** 2


def _bias(length: float) -> float:
    """Amplitude of the bias in pixels whose mean vector has a length."""
    top = 1.8411837813406593
    if length >= float(j1(top)):
        return top / (2 * math.pi)
    return float(brentq(lambda b: float(j1(b)) - length, 0.0, top)) / (2 * math.pi)


@final
@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Distances of nearest neighbours among all blinks of the movie."""

    median_nm: float
    clark_evans: float
    """mean distance over that of as many places spread evenly: below 1 they cluster"""
    error: float
    """standard deviation of that ratio if they were spread evenly"""


def neighbours_of(place: Floats) -> Neighbours | None:
    """Nearest neighbours of places (n, 2) in the box around them; None for fewer than ten.

    Mean and standard deviation of evenly spread places are those of Clark and Evans (Ecology 35,
    445, 1954), with Donnelly's correction for the border.

    >>> even = np.random.default_rng(0).uniform(0, 1000, (2000, 2))
    >>> abs(neighbours_of(even).clark_evans - 1) < 0.05
    True
    """
    n = len(place)
    if n < 10:
        return None
    distance = cKDTree(place).query(place, k=2)[0][:, 1]
    width, height = np.maximum(np.ptp(place, axis=0), 1e-9).tolist()
    area, border = width * height, 2 * (width + height)
    expected = 0.5 * math.sqrt(area / n) + (0.0514 + 0.041 / math.sqrt(n)) * border / n
    spread = math.sqrt(0.0703 * area / n**2 + 0.037 * border * math.sqrt(area / n**5))
    return Neighbours(
        median_nm=float(np.median(distance)),
        clark_evans=float(distance.mean() / expected),
        error=spread / expected,
    )
