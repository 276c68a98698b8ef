"""Limits of the checks: by the kind of PSF, or a model's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, final

import numpy as np

from decode.network.record import ModelRecord
from decode.quality.evidence import Evidence, Kind

__all__ = ["LIMITS", "Limits"]

IDEAL = {"noise": 1.0, "width": 1.0, "goodness": 1.0}
"""statistics of a movie that fits without noise; the others are 0"""
USUAL, MARGIN = 0.84, 3.0
"""share of the matched movies that are nearer to the ideal than one standard deviation, and
standard deviations of a limit from their median"""
FURTHEST = 1.25
"""factor by which a model's own limit may be further from the ideal than that of its kind; it is
never nearer: where it was, by a fifth, 2 of 50 further movies that fit failed"""
ENOUGH = 20
"""fewest matched movies from which a limit is fitted"""
AS_STATED = ("density", "elongation", "flicker")
"""limits that no movie of a recipe tells: these are as dense and as steady as limits allow, and a
recipe for round PSFs has objectives with a little astigmatism"""


@final
@dataclass(frozen=True, kw_only=True)
class Limits:
    """Largest values that pass; lowest and highest where there are two.

    Those by kind lie beyond the values of 98 of 100 movies that fit, drawn by the recipes of the
    shipped models (all of their ranges as in `decode calibrate checks`, and those of
    `benchmarks/checks.py --cases matched`), and below those of most movies with a PSF that is wrong
    by 20 % in width or by 0.06 waves, a focus that drifts, or a cylindrical lens.  Goodness has
    room for the light of neighbours, and of bright molecules' rings that a Gaussian lacks.  A
    model's own are `fitted` to movies of its own recipe.
    """

    noise: tuple[float, float]
    pixel_offset: float
    density: float
    """molecules per square micrometre: in 2D as far as the shipped model was trained, in 3D half of
    that, from where it misses every other one"""
    turned: float
    """share explained; 0 unless the turned PSF fits, as one of 15 draws of another PSF does, by
    chance; transposed movies have 0.07 to 0.96"""
    elongation: float
    drift: float
    """in 2D of the logarithm of the height of images, in 3D nm"""
    width: tuple[float, float]
    misfit: float
    spherical: float
    """waves rms"""
    goodness: tuple[float, float]
    missed: float
    empty: float
    flicker: float
    at_ends: float

    @staticmethod
    def fitted(evidence: Sequence[Evidence]) -> Limits:
        """Limits of a model, from movies that fit it.

        Each is three standard deviations from the median on the side of wrong values, where the
        standard deviation is that by which 84 % of the movies differ less: one odd movie moves
        nothing.  So that few movies can neither silence a check nor make it shrill, a limit is at
        least as far from the ideal as that of the kind of PSF, and at most 1.25 times as far.
        Where fewer than 20 movies have a value, it is that of the kind.

        Args:
            evidence: of movies of one kind of PSF, drawn by the model's own recipe.

        Raises:
            ValueError: if there are none.

        Example:
            >>> movies = [Evidence(kind="gaussian", misfit=0.0022 * i) for i in range(40)]
            >>> limits = Limits.fitted(movies)
            >>> limits.misfit, LIMITS["gaussian"].misfit, limits.elongation
            (0.13, 0.12, 0.15)
        """
        if not evidence:
            raise ValueError("limits are fitted to one movie or more, and there is none")
        usual = LIMITS[evidence[0].kind]
        return Limits(**{f.name: _of(f.name, usual, evidence) for f in fields(Limits)})

    @staticmethod
    def of(record: ModelRecord, kind: Kind) -> Limits:
        """The limits that a model's record holds for this kind of PSF; else those of the kind.

        Raises:
            ValueError: if the record holds other limits than these.
        """
        if record.limits is None or record.limits.get("kind") != kind:
            return LIMITS[kind]
        values = {f.name: _plain(record.limits.get(f.name)) for f in fields(Limits)}
        if None in values.values():
            raise ValueError(
                "the model's limits of the checks are incomplete; fit them again "
                "(decode calibrate checks)"
            )
        return Limits(**values)

    def to_json(self, kind: Kind, movies: int) -> dict[str, Any]:
        """Plain values, as a model's record holds them.

        Args:
            kind: of PSF.
            movies: number of movies that they were fitted to.
        """
        return {"kind": kind, "movies": movies, **{k: _listed(v) for k, v in asdict(self).items()}}


def _of(name: str, usual: Limits, evidence: Sequence[Evidence]) -> Any:
    """A limit, or two, of the evidence."""
    limit: float | tuple[float, float] = getattr(usual, name)
    values = np.array([abs(v) if name == "spherical" else v for v in _values(name, evidence)])
    values = values[np.isfinite(values)]
    if name in AS_STATED or len(values) < ENOUGH:
        return limit
    ideal = IDEAL.get(name, 0.0)
    if isinstance(limit, tuple):
        return tuple(_beyond(values, ideal, side) for side in limit)
    return _beyond(values, ideal, limit)


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _values(name: str, evidence: Sequence[Evidence]) -> list[float]:
    return [getattr(movie, name) for movie in evidence]


def _beyond(values: np.ndarray[Any, np.dtype[np.float64]], ideal: float, usual: float) -> float:
    """The limit on the side of the ideal on which the usual one lies."""
    side, far = math.copysign(1.0, usual - ideal), abs(usual - ideal)
    middle, high = np.quantile(side * (values - ideal), [0.5, USUAL])
    own = middle + MARGIN * (high - middle)
    return float(f"{ideal + side * min(max(own, far), far * FURTHEST):.3g}")


LIMITS: Mapping[Kind, Limits] = {
    "gaussian": Limits(
        noise=(0.88, 1.12),
        pixel_offset=0.15,
        density=3.0,
        turned=0.05,
        elongation=0.15,
        drift=0.2,
        width=(0.94, 1.16),
        misfit=0.12,
        spherical=0.025,
        goodness=(0.78, 3.0),
        missed=0.3,
        empty=0.25,
        flicker=0.3,
        at_ends=0.05,
    ),
    "measured": Limits(
        noise=(0.88, 1.12),
        pixel_offset=0.15,
        density=1.0,
        turned=0.05,
        elongation=1.0,
        drift=100.0,
        width=(0.95, 1.06),
        misfit=0.048,
        spherical=0.025,
        goodness=(0.82, 2.5),
        missed=0.4,
        empty=0.2,
        flicker=0.3,
        at_ends=0.05,
    ),
}
