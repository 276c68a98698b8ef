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
    "LogCubic",
    "LogPolynomial",
    "PixelLikelihood",
    "PoissonPixels",
    "RegisterPixels",
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
LEAST_NOISE_E, REACH, STEPS_PER_WIDTH = 1e-3, 6.0, 0.8
"""of sums over electrons: least read noise, half of the range and step in standard deviations"""
FAR, OUTPUT_REACH, OUTPUT_STEP, PIXELS_AT_ONCE = 8.0, 5.5, 1.1, 2**13
"""where there is a register: standard deviations of read noise by which a count is far from that of
no electron, those to both sides that are summed over, the step of the sum, which is then right to
1e-6 (at steps of 1.25, 2e-5), and pixels that are summed together"""
ROWS_AT_ONCE, COLUMNS_AT_ONCE = 256, 8
"""counts tabulated together; the density takes 64 numbers each time; and values of the light of a
pixel, which sums over electrons want near to one another"""


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
class PoissonPixels(PixelLikelihood):
    """The density of cameras without a register whose pixels differ, as a sum over electrons.

    The mass that read noise gives a count is computed once for each number of electrons, and the
    sum over them for every light.  Where the sum is over a product without an edge at 0 electrons,
    it takes steps as long as the narrower of read noise and Poisson distribution allows: of
    Gaussians the trapezoidal rule errs by less than 1e-7 (Trefethen and Weideman, SIAM Rev. 56,
    385, 2014).
    """

    def __init__(self, camera: Camera) -> None:
        self._exact = ExactPixels(camera)
        self._saturation_adu = camera.saturation_adu
        shape = camera.shape
        assert shape is not None

        def of(value: float | Tensor) -> Tensor:
            return torch.as_tensor(value, dtype=torch.float64).expand(*shape).reshape(-1)

        self._baseline, self._e_per_adu = of(camera.baseline), of(camera.e_per_adu)
        self._noise = of(camera.read_noise_e).clamp_min(LEAST_NOISE_E)
        self._qe, self._spurious = of(camera.qe), of(camera.spurious_e)
        bad = torch.zeros(shape, dtype=torch.bool) if camera.bad is None else camera.bad
        self._good = ~bad.reshape(-1)

    def log_prob(self, adu: Tensor, photons: Tensor, pixel: Tensor) -> Tensor:
        photons = photons.double()
        places = pixel[:, None].expand(adu.shape).flatten()
        counts = adu.double().flatten()
        qe, spurious = (of[places].view(adu.shape)[:, None] for of in (self._qe, self._spurious))
        rates = (photons * qe + spurious).movedim(1, 3).flatten(0, 2)
        found = self._log_prob(counts, rates, places)
        found = found.view(*adu.shape, -1).movedim(3, 1)
        clipped = ((adu <= 0) | (adu >= self._saturation_adu)).any(2).any(1)
        for rows in torch.nonzero(clipped)[:, 0].split(1) if bool(clipped.any()) else ():
            # the ends collect what was clipped
            found[rows] = self._exact.log_prob(adu[rows], photons[rows], pixel[rows])
        return found

    def _log_prob(self, counts: Tensor, rates: Tensor, places: Tensor) -> Tensor:
        """(c, m) of counts (c,) at electrons (c, m)."""
        noise, width = self._noise[places], self._e_per_adu[places]
        electrons = (counts - self._baseline[places]) * width
        low, high = rates.aminmax(dim=1)
        # ends of where the product of both distributions is, at any of the rates
        spread = noise**2 + width**2 / 12
        step = (1 / spread + 1 / low.clamp_min(1.0)).rsqrt()
        ends = []
        for rate, sign in ((low, -1), (high, 1)):
            middle = (electrons / spread + 1) / (1 / spread + 1 / rate.clamp_min(1e-3))
            reach = (1 / spread + 1 / rate.maximum(middle).clamp_min(1.0)).rsqrt()
            ends.append(middle + sign * REACH * reach)
        first, last = ends[0].floor().clamp_min(0), ends[1].ceil().clamp_min(1)
        step = torch.where(first > 0, (STEPS_PER_WIDTH * step).clamp_min(1), 1.0)
        number = int(((last - first) / step).max()) + 2
        n = first[:, None] + step[:, None] * torch.arange(number, dtype=torch.float64)
        half = width / 2
        left = (electrons - half)[:, None] - n
        z = torch.stack([left, left + 2 * half[:, None]]) / (noise * math.sqrt(2))[:, None]
        # both tails are those of the complement, which is exact there
        flip = z.sum(0) > 0
        near, far = torch.where(flip, z[0], -z[1]), torch.where(flip, z[1], -z[0])
        mass = (torch.erfc(near) - torch.erfc(far)) / 2
        density = (
            -((electrons[:, None] - n) ** 2) / (2 * spread[:, None])
            + (width / (2 * torch.pi * spread).sqrt()).log()[:, None]
        )
        blur = torch.where(mass > 1e-280, mass.clamp_min(1e-300).log(), density)
        blur = blur + step.log()[:, None] - torch.lgamma(n + 1)
        blur = blur.masked_fill(n > last[:, None] + step[:, None], -torch.inf)
        log_rates = rates.clamp_min(1e-12).log()
        middle = (log_rates[:, :1] + log_rates[:, -1:]) / 2
        at_middle = blur + n * middle
        largest = at_middle.amax(1, keepdim=True)
        share = (at_middle - largest).exp()
        # powers of the ratio of rates: e^(n log r), about the middle of the sum
        centre = (n * share).sum(1, keepdim=True) / share.sum(1, keepdim=True)
        relative = log_rates - middle
        powers = ((n - centre)[:, :, None] * relative[:, None]).exp_()
        total = (share[:, None] @ powers)[:, 0].log() + largest + centre * relative
        return (total - rates) * self._good[places][:, None]


@final
class RegisterPixels(PixelLikelihood):
    """The density of cameras with a register whose pixels differ, as a sum over its output.

    Where a count is far from that of no electron, the density of the output is smooth, and the
    trapezoidal rule converges as for `PoissonPixels`.  The mass that read noise gives a count is
    computed once for all light.  Counts near to no electron have the camera's own density, and so
    have pixels whose read noise is wider than the gain or narrower than a count.
    """

    def __init__(self, camera: Camera) -> None:
        self._exact = ExactPixels(camera)
        self._saturation_adu = camera.saturation_adu
        shape = camera.shape
        assert shape is not None
        assert camera.em_gain is not None

        def of(value: float | Tensor) -> Tensor:
            return torch.as_tensor(value, dtype=torch.float64).expand(*shape).reshape(-1)

        self._baseline, self._e_per_adu = of(camera.baseline), of(camera.e_per_adu)
        self._noise = of(camera.read_noise_e).clamp_min(LEAST_NOISE_E)
        self._qe, self._spurious, self._gain = map(
            of, (camera.qe, camera.spurious_e, camera.em_gain)
        )
        bad = torch.zeros(shape, dtype=torch.bool) if camera.bad is None else camera.bad
        self._good = ~bad.reshape(-1)

    def log_prob(self, adu: Tensor, photons: Tensor, pixel: Tensor) -> Tensor:
        n, t, p = adu.shape
        places = pixel[:, None].expand(n, t, p).flatten()
        counts = adu.double().flatten()
        light = photons.double().movedim(1, 3).flatten(0, 2)
        width, noise = self._e_per_adu[places], self._noise[places]
        middle = (counts - self._baseline[places]) * width
        spread = (noise**2 + width**2 / 12).sqrt()
        usual = (counts > 0) & (counts < self._saturation_adu)
        usual &= middle > FAR * spread
        # the output of an electron is to be smooth over a step, and read noise over a count
        usual &= (spread < self._gain[places]) & (noise > width / 2)
        found = torch.empty_like(light)
        near, rest = (torch.nonzero(which)[:, 0] for which in (usual, ~usual))
        for part in near.split(PIXELS_AT_ONCE):
            found[part] = self._smooth(middle[part], light[part], places[part])
        if len(rest):
            exact = self._exact.log_prob(
                counts[rest, None, None], light[rest, :, None, None], places[rest, None]
            )
            found[rest] = exact[:, :, 0, 0]
        return found.view(n, t, p, -1).movedim(3, 1)

    def _smooth(self, middle: Tensor, light: Tensor, places: Tensor) -> Tensor:
        """(c, m) of outputs (c,) at photons (c, m)."""
        width, noise, gain = self._e_per_adu[places], self._noise[places], self._gain[places]
        spread = (noise**2 + width**2 / 12).sqrt()
        steps = torch.arange(-OUTPUT_REACH, OUTPUT_REACH + 1e-9, OUTPUT_STEP, dtype=torch.float64)
        output = middle[:, None] + spread[:, None] * steps
        edges = ((middle + half * width)[:, None] - output for half in (-0.5, 0.5))
        low, high = (edge / noise[:, None] for edge in edges)
        # both tails are those of the complement, which is exact there
        near, far = torch.where(low > 0, -high, low), torch.where(low > 0, -low, high)
        mass = torch.special.ndtr(far) - torch.special.ndtr(near)
        rate = light * self._qe[places][:, None] + self._spurious[places][:, None]
        rate = rate.clamp_min(1e-12)
        root, at = rate.sqrt()[:, :, None], (output / gain[:, None]).sqrt()[:, None]
        # of an electron number that is Poisson, and outputs that are gamma variates of that shape
        # single precision, 17 times as fast, does for a factor that is smooth
        smooth = torch.special.i1e((2 * root * at).float()).double()
        density = (-((root - at) ** 2)).exp() * smooth * root / at
        total = (density * mass[:, None]).sum(2)
        log_prob = total.clamp_min(1e-300).log()
        log_prob = log_prob + (OUTPUT_STEP * spread / gain).log()[:, None]
        return log_prob * self._good[places][:, None]


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
    """The exact likelihood of a camera: a table where all pixels are alike, a sum over electrons or
    over the output of the register where they differ."""
    maps = (getattr(camera, f.name) for f in fields(camera) if f.name != "bad")
    alike = all(not isinstance(value, Tensor) or value.numel() == 1 for value in maps)
    if alike:
        return TabulatedPixels(camera)
    return PoissonPixels(camera) if camera.em_gain is None else RegisterPixels(camera)


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


@final
class LogCubic:
    """Log-likelihood of pixels over all photons that they may have: cubics between the columns of
    a table, for samples that spread too widely for a polynomial."""

    def __init__(self, cubics: Tensor, columns: int, constant: Tensor, n_pixels: int) -> None:
        """Of coefficients (n pixels columns, 4), and the log-likelihood (n,) that they lack."""
        self._cubics, self._columns = cubics, columns
        self._constant, self._n_pixels = constant, n_pixels

    @classmethod
    def of(
        cls,
        likelihood: PixelLikelihood,
        adu: Tensor,
        *,
        pixel: Tensor,
        counts: Tensor,
        most: float,
    ) -> LogCubic:
        """The table of some windows.

        Args:
            likelihood, adu, pixel, counts: as for `LogPolynomial.of`.
            most: photons beyond which the likelihood is taken for that of so many.
        """
        n, t, p = adu.shape
        columns = int(_column(torch.tensor(most, dtype=torch.float64))) + 1
        photons = _photons(torch.arange(columns + 3, dtype=torch.float64))
        values = torch.cat(
            [
                likelihood.log_prob(adu, part[:, None, None].expand(n, -1, t, p), pixel)
                for part in photons.split(COLUMNS_AT_ONCE)
            ],
            1,
        )
        values = values * counts[:, None, None]
        largest = values.amax(1)
        values = (values - largest[:, None]).movedim(1, 3)
        a, b, c, d = (values[..., j : columns + j] for j in range(4))
        cubics = torch.stack(
            [b, c - a / 3 - b / 2 - d / 6, (a + c) / 2 - b, (d - a) / 6 + (b - c) / 2], -1
        )
        return cls(cubics.float().view(-1, 4), columns, largest.sum((1, 2)), t * p)

    def __call__(self, photons: Tensor) -> Tensor:
        """(n, m) float64 log-likelihood at expected photons (n, m, t, p)."""
        n = len(photons)
        first = torch.arange(n * self._n_pixels).view(n, 1, -1) * self._columns
        return self._at(photons.flatten(2), first) + self._constant[:, None]

    def of_window(self, i: int, photons: Tensor) -> Tensor:
        """(m,) of one of the windows, at (m, t, p)."""
        first = (i * self._n_pixels + torch.arange(self._n_pixels)) * self._columns
        return self._at(photons.flatten(1), first) + self._constant[i]

    def _at(self, photons: Tensor, first: Tensor) -> Tensor:
        position = _column(photons.clamp_min(DARKEST)).clamp_(1, self._columns)
        cell = position.floor().clamp_(1, self._columns - 1)
        t = position - cell
        index = (first + (cell.long() - 1)).view(-1)
        # much faster on a CPU than indexing
        c0, c1, c2, c3 = self._cubics.index_select(0, index).view(*photons.shape, 4).unbind(-1)
        return (((c3 * t + c2) * t + c1) * t + c0).sum(-1).double()


def extremes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest of values (n, m, ...) over their second axis; on a CPU ten times as fast as
    `Tensor.aminmax`."""
    low = high = values
    while low.shape[1] > 8:
        half = (low.shape[1] + 1) // 2  # of an odd number, the one in the middle counts twice
        low = torch.minimum(low[:, :half], low[:, -half:])
        high = torch.maximum(high[:, :half], high[:, -half:])
    return low.amin(1), high.amax(1)
