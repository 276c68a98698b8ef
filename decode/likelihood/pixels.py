"""Exact log-likelihood of pixels, as polynomials that many samples of their light share."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from dataclasses import fields, replace
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from decode.optics.camera import DARKEST, Camera

__all__ = [
    "ExactPixels",
    "LogPolynomial",
    "PixelLikelihood",
    "TabulatedPixels",
    "extremes",
    "pixels_of",
]

NODES = 7
"""odd number of Chebyshev nodes over the expected photons that a pixel has in all samples: the
polynomial through them is off by less than 0.003 where they lie within a factor of 5"""
STEP, STEP_SIGMAS = 0.08, 1.0
"""distance between the columns of a table: of the logarithm of expected photons where these are
few, of their standard deviation as a Poisson count where they are many"""
ROWS_AT_ONCE = 256
"""counts tabulated together; the density takes 64 numbers each time"""


class PixelLikelihood(ABC):
    """Log probability of counts by expected photons."""

    @abstractmethod
    def log_prob(self, adu: Tensor, photons: Tensor, pixel: Tensor) -> Tensor:
        """As `Camera.log_prob`, of counts (n, t, p) at photons (n, m, t, p).

        Args:
            adu: counts in t frames of p pixels.
            photons: m values of the expected photons of each, at least `DARKEST`.
            pixel: (n, p) number of each pixel in a frame, row by row.

        Returns:
            (n, m, t, p) float64.
        """


@final
class ExactPixels(PixelLikelihood):
    """The camera's own density, for cameras whose pixels differ."""

    def __init__(self, camera: Camera) -> None:
        self._camera = camera
        shape = camera.shape
        maps = {f.name: getattr(camera, f.name) for f in fields(camera)}
        self._maps: dict[str, Tensor] = {
            name: value.expand(*shape).reshape(-1)
            for name, value in maps.items()
            if shape is not None and isinstance(value, Tensor) and value.ndim >= 2
        }

    def log_prob(self, adu: Tensor, photons: Tensor, pixel: Tensor) -> Tensor:
        own: dict[str, Any] = {
            name: values[pixel][:, None, None] for name, values in self._maps.items()
        }
        camera = replace(self._camera, **own)
        return camera.log_prob(adu[:, None], photons.double())


@final
class TabulatedPixels(PixelLikelihood):
    """A table over counts and expected photons, for cameras whose pixels are alike.

    A row is computed when its count first occurs.  Tabulated is the log-likelihood plus the
    expected electrons, which is linear in the logarithm of photons for a Poisson count; between
    four columns it is a cubic.
    """

    def __init__(self, camera: Camera) -> None:
        self._camera = replace(camera, bad=None)
        self._lock = threading.Lock()
        self._row = torch.full((int(camera.saturation_adu) + 1,), -1, dtype=torch.int64)
        self._table = torch.zeros(0, 0, dtype=torch.float64)
        self._bad = None if camera.bad is None else camera.bad.reshape(-1)

    def log_prob(self, adu: Tensor, photons: Tensor, pixel: Tensor) -> Tensor:
        count = adu.round().long().clamp(0, len(self._row) - 1)
        photons = photons.double()
        position = _column(photons)
        with self._lock:
            self._extend(count, int(position.max()) + 3)
            row, table = self._row, self._table
        below = position.floor().clamp_min(1)
        t = position - below
        first = row[count][:, None] * table.shape[1] + below.long() - 1
        near = (table.view(-1)[first + k] for k in range(4))
        weights = (
            -t * (t - 1) * (t - 2) / 6,
            (t + 1) * (t - 1) * (t - 2) / 2,
            -(t + 1) * t * (t - 2) / 2,
            (t + 1) * t * (t - 1) / 6,
        )
        smooth = torch.stack([w * value for w, value in zip(weights, near, strict=True)]).sum(0)
        log_prob = smooth - self._camera.qe * photons
        return log_prob if self._bad is None else log_prob * ~self._bad[pixel][:, None, None]

    def _extend(self, count: Tensor, columns: int) -> None:
        """Compute the rows and columns that are lacking."""
        if columns > self._table.shape[1]:
            # all rows again, a little longer than asked for
            columns = max(columns + 8, 64)
            known = torch.nonzero(self._row >= 0)[:, 0]
            known = known[self._row[known].argsort()]
            self._table = self._rows(known, columns)
        new = count.unique()
        new = new[self._row[new] < 0]
        if len(new):
            row = self._row.clone()
            row[new] = torch.arange(len(new)) + len(self._table)
            self._table = torch.cat([self._table, self._rows(new, self._table.shape[1])])
            self._row = row

    def _rows(self, counts: Tensor, columns: int) -> Tensor:
        """(n, columns) float64, from one step below `DARKEST`."""
        photons = _photons(torch.arange(columns, dtype=torch.float64))
        parts = [
            self._camera.log_prob(part[:, None].double(), photons)
            for part in counts.split(ROWS_AT_ONCE)
        ]
        whole = torch.cat(parts) if parts else photons.new_zeros(0, columns)
        return whole + self._camera.qe * photons


def _column(photons: Tensor) -> Tensor:
    """Where photons lie in the table; `DARKEST` is at 1."""
    few, many = (photons / DARKEST).log() / STEP, 2 * (photons.sqrt() - DARKEST**0.5) / STEP_SIGMAS
    return few + many + 1


def _photons(column: Tensor) -> Tensor:
    """The inverse of `_column`, by bisection."""
    low, high = torch.full_like(column, math.log(DARKEST) - 1), torch.full_like(column, 30.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = _column(middle.exp()) < column
        low, high = middle.where(below, low), high.where(below, middle)
    return low.exp()


def pixels_of(camera: Camera) -> PixelLikelihood:
    """The exact likelihood of a camera: a table where all pixels are alike."""
    maps = (getattr(camera, f.name) for f in fields(camera) if f.name != "bad")
    alike = all(not isinstance(value, Tensor) or value.numel() == 1 for value in maps)
    return TabulatedPixels(camera) if alike else ExactPixels(camera)


class LogPolynomial(NamedTuple):
    """Log-likelihood of pixels as polynomials of their expected photons.

    Each is exact at the Chebyshev nodes over the range of photons that its pixel has.
    """

    middle: Tensor
    """(n, 1, t, p) photons in the middle of the range"""
    half: Tensor
    """(n, 1, t, p) half its width"""
    coefficients: Tensor
    """(n, nodes, t, p) of the powers of (photons - middle) / half, the lowest first"""
    at_middle: Tensor
    """(n,) float64 log-likelihood in the middle of all pixels, which the coefficients lack"""

    @classmethod
    def of(
        cls,
        likelihood: PixelLikelihood,
        adu: Tensor,
        *,
        low: Tensor,
        high: Tensor,
        pixel: Tensor,
        counts: Tensor,
        nodes: int = NODES,
    ) -> LogPolynomial:
        """The polynomials over a range of photons.

        Args:
            likelihood: of the pixels.
            adu: (n, t, p).
            low, high: (n, t, p) least and most photons; less than `DARKEST` counts as that much.
            pixel: (n, p) number of each pixel in a frame.
            counts: (n, p) 1 where a pixel is seen, and 0 beyond the frame.
            nodes: number of nodes.
        """
        low = low.clamp_min(DARKEST)
        half = ((high - low) / 2).clamp_min(1e-3 * low)
        middle = (low + half)[:, None]
        order = torch.arange(nodes, dtype=torch.float64, device=low.device)
        at = torch.cos(torch.pi * (order + 0.5) / nodes)
        photons = middle + half[:, None] * at.to(low)[:, None, None]
        values = likelihood.log_prob(adu, photons, pixel) * counts[:, None, None]
        at_middle = values[:, nodes // 2]
        powers = at[:, None] ** order
        relative = values - at_middle[:, None]
        coefficients = torch.einsum("km,nmtp->nktp", torch.linalg.inv(powers), relative)
        return cls(middle, half[:, None], coefficients.to(low), at_middle.sum((1, 2)))

    def __call__(self, photons: Tensor) -> Tensor:
        """(n, m) log-likelihood, without that in the middle, at expected photons (n, m, t, p).

        The photons are overwritten.
        """
        scale = self.half.reciprocal()
        u = torch.addcmul(-self.middle * scale, photons, scale, out=photons).clamp_(-1, 1)
        first, *others = self.coefficients.flip(1)[:, :, None].unbind(1)
        total = first.expand_as(u).contiguous()
        for coefficient in others:
            torch.addcmul(coefficient, total, u, out=total)
        return total.sum((2, 3))


def extremes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest of values (n, m, ...) over their second axis; on a CPU ten times as fast as
    `Tensor.aminmax`."""
    low = high = values
    while low.shape[1] > 8:
        half = (low.shape[1] + 1) // 2  # of an odd number, the one in the middle counts twice
        low = torch.minimum(low[:, :half], low[:, -half:])
        high = torch.maximum(high[:, :half], high[:, -half:])
    return low.amin(1), high.amax(1)
