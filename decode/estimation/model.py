"""The moments of a movie's light, for molecules of given density, brightness, on-time and depth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self, final

import numpy as np
import numpy.typing as npt

from decode.estimation.images import LEVELS, ImageMoments, Start, images_of
from decode.estimation.moments import LAGS, TOUCHING, Moments, MomentVector, by_brightness
from decode.optics.psf import PSF

__all__ = ["Model", "Parameters", "shared_fraction", "without_mean"]

Array = npt.NDArray[np.float64]

PLANES = 31
"""number of depths at which the PSF is drawn"""
NODES, WEIGHTS = (x / 2 for x in np.polynomial.legendre.leggauss(32) + np.array([[1.0], [0.0]]))
"""Gauss-Legendre quadrature between 0 and 1"""


@final
@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameters of the moments: the theta of the generalized method of moments."""

    background: float
    """photons per pixel"""
    density: float
    """molecules on at once, per square micrometre"""
    flux: float
    """mean photons of a molecule in a frame during which it is on throughout"""
    flux_variation: float
    """standard deviation of the flux over its mean"""
    on_time: float
    """mean time a molecule stays on, frames"""
    lasting: float
    """share of the covariance that does not decay with time"""
    width: float
    """width, in the unit of `Images`"""
    z_centre: float = 0.0
    """middle of the depth of molecules, -1 to 1 over the PSF's range"""
    z_extent: float = 1.0
    """depth of molecules over the PSF's range"""

    @classmethod
    def from_vector(cls, vector: Array) -> Self:
        """The parameters of the optimizer's vector, which has two numbers fewer without depth."""
        background, density, flux, flux_variation, on_time, lasting, width, *depth = vector.tolist()
        z_centre, log_extent = depth or (0.0, 0.0)
        return cls(
            background=math.exp(background),
            density=math.exp(density),
            flux=math.exp(flux),
            flux_variation=math.exp(flux_variation),
            on_time=math.exp(on_time),
            lasting=lasting,
            width=width,
            z_centre=z_centre,
            z_extent=math.exp(log_extent),
        )

    def to_vector(self) -> Array:
        """The vector of the optimizer, with depth."""
        positive = (self.background, self.density, self.flux, self.flux_variation, self.on_time)
        logs = [math.log(value) for value in positive]
        depth = [self.z_centre, math.log(self.z_extent)]
        return np.array([*logs, self.lasting, self.width, *depth])


@final
class Model:
    """The expected moments, given parameters.

    Args:
        psf: the calibrated PSF.
        rate: (step,) see `saturation_rate`.
        run: length of a run, frames, whose mean is subtracted from the covariances.
        z_range_nm: depths at which molecules may lie; None where the PSF is the same at every z.
        lag: as in `Moments`.
        light_of_dark: mean light of the pixels that are dark at times, photons.
        light_of_all: mean light of all pixels, photons.
    """

    def __init__(
        self,
        psf: PSF,
        *,
        rate: Array,
        run: int,
        z_range_nm: tuple[float, float] | None,
        lag: int = 1,
        light_of_dark: float,
        light_of_all: float,
    ) -> None:
        self.psf, self.z_range_nm = psf, z_range_nm
        self.rate, self.run, self.lag = rate, run, lag
        self.light_of_dark, self.light_of_all = light_of_dark, light_of_all
        self.planes = np.linspace(*z_range_nm, PLANES) if z_range_nm else np.zeros(1)
        self.images = images_of(psf, self.planes)
        self.pixel_um2 = psf.pixel_size_nm**2 * 1e-6
        starts = [
            Start(math.log(max(light_of_dark, 0.1) / 2), 2.0, -5.0, 12.0),  # background
            Start(math.log(0.5), 3.0, -12.0, 5.0),  # density
            Start(math.log(2000.0), 2.0, 2.0, 16.0),  # flux
            Start(math.log(0.35), 0.7, -3.5, 1.0),  # flux_variation
            Start(math.log(2.0), 1.2, -2.0, 5.0),  # on_time
            Start(0.0, 0.1, -0.3, 1.0),  # lasting
            self.images.start,  # width
        ]
        if z_range_nm is not None:
            starts += [
                Start(0.0, 0.5, -1.0, 1.0),  # z_centre
                Start(math.log(0.5), 0.7, math.log(0.02), 0.0),  # z_extent
            ]
        self.start, self.doubt, self.low, self.high = np.array(starts).T

    @classmethod
    def of(cls, moments: Moments, psf: PSF, z_range_nm: tuple[float, float] | None) -> Self:
        """The model of the moments of a movie in which molecules blink."""
        assert moments.lag is not None
        return cls(
            psf,
            rate=moments.rate,
            run=moments.run,
            z_range_nm=z_range_nm,
            lag=moments.lag,
            light_of_dark=float(moments.values.brightness.sum()),
            light_of_all=moments.light,
        )

    def z_nm(self, parameters: Parameters) -> tuple[float, float]:
        """Lowest and highest z of molecules, nm."""
        if self.z_range_nm is None:
            return (0.0, 0.0)
        low, high = self.z_range_nm
        centre = (low + high) / 2 + parameters.z_centre * (high - low) / 2
        half = parameters.z_extent * (high - low) / 2
        return (float(centre - half), float(centre + half))

    def on_time(self, parameters: Parameters) -> float:
        """Mean on-time, frames; 1 where light does not return in the next frame, whatever the
        parameter."""
        return parameters.on_time if self.lag else 1.0

    def image(self, parameters: Parameters) -> ImageMoments:
        """The mean image of molecules that are uniform between two depths."""
        return self.images.moments(parameters.width).averaged(self._share(parameters))

    def predict(self, parameters: Parameters) -> MomentVector:
        """The expected values of the moments that `measure` finds in a movie of these
        parameters."""
        image = self.image(parameters)
        density = parameters.density * self.pixel_um2
        square = density * parameters.flux**2 * (1 + parameters.flux_variation**2)
        lags = self._shared(parameters) + parameters.lasting
        # molecules crowd less where it is dark at times: as much less as there is less light above
        # the background
        crowds = self.light_of_all - self.light_of_dark
        above = max(self.light_of_all - parameters.background, 1e-6)
        crowding = 1 - min(1.0, crowds / above)
        steady = parameters.background * np.array([1.0, *self.rate])
        light = steady + crowding * density * self.light(parameters)
        # at lag 0 the pixel itself holds noise
        first = 1 - self.lag
        return MomentVector(
            brightness=by_brightness(light, self.rate),
            touching=square * image.autocorrelation[TOUCHING].mean() * lags,
            offsets=square * image.autocorrelation[first:] * lags[LAGS.index(self.lag)],
        )

    def light(self, parameters: Parameters) -> Array:
        """Contribution of one molecule on at once per pixel to mean light and its log transform.

        A frame holds molecules that are on when it starts and others that switch on in it: for each
            molecule on at once, S(a) = exp(-a / on_time) (1 + (1 - a) / on_time) are on for longer
            than the fraction a of the frame.  With gamma distributed fluxes of mean f and shape k,
            a molecule that gives a pixel the fraction h of its light lowers the mean of exp(-s
            light) by the share 1 - (1 + u a / k)^-k, u = rate f h.  By Campbell's theorem for
            Poisson processes (Kingman, Poisson Processes, 1993, sec. 3.2) these shares add up in
            the logarithm; integration by parts gives the integral of S(a) u (1 + u a / k)^(-k - 1)
            over a from 0 to 1.  For molecules that are on for one frame S is 1.

        Returns:
            (1 + step,) mean photons, then minus the log transform at each step.
        """
        image, on_time = self.image(parameters), self.on_time(parameters)
        flux, k = parameters.flux, parameters.flux_variation**-2
        # nodes gather where little of the frame is lit: bright molecules saturate there
        a, weight = NODES**3, WEIGHTS * 3 * NODES**2
        if self.lag:
            weight = weight * (np.exp(-a / on_time) * (1 + (1 - a) / on_time))
        dose = flux * np.outer(self.rate, LEVELS)[:, :, None]
        taken = dose[..., 0] * ((1 + dose * a / k) ** (-k - 1) @ weight)
        seen = np.array([flux * (image.pixels @ LEVELS), *(taken @ image.pixels)])
        # so little light as lies below zero saturates nothing
        return seen + flux * image.below_zero * np.array([1.0, *self.rate])

    def _share(self, parameters: Parameters) -> Array:
        """(plane,) share of the molecules."""
        if self.z_range_nm is None:
            return np.ones(1)
        step = self.planes[1] - self.planes[0]
        low, high = self.z_nm(parameters)
        bottom, top = self.planes - step / 2, self.planes + step / 2
        # what lies beyond the PSF's range looks as at its end
        bottom[0], top[-1] = -np.inf, np.inf
        inside = np.minimum(top, high) - np.maximum(bottom, low)
        return np.clip(inside, 0, None) / (high - low)

    def _shared(self, parameters: Parameters) -> Array:
        """(lag,) `shared_fraction` at each of LAGS, with the mean over the run subtracted."""
        if self.lag:
            on_time = self.on_time(parameters)
            shared = np.array([shared_fraction(on_time, lag) for lag in range(self.run)])
        else:
            shared = np.eye(1, self.run)[0]
        return without_mean(shared)[list(LAGS)]


def shared_fraction(on_time: float, lag: int) -> float:
    """Mean product of the fractions of two frames during which a molecule is on, per molecule on at
    once.

    The integral over both frames of exp(-|t - t'| / on_time), the probability to be on at both
    times.
    """
    if lag == 0:
        return 2 * on_time * (1 + on_time * math.expm1(-1 / on_time))
    return on_time**2 * math.expm1(-1 / on_time) ** 2 * math.exp(-(lag - 1) / on_time)


def without_mean(covariance: Array) -> Array:
    """The covariance that remains when the mean over the run is subtracted.

    From the products of two frames, averaged over the run, this subtracts the covariance of the
    mean with either frame, and adds its variance.

    Args:
        covariance: (lag,) at each lag from 0 to the length of the run, less one.
    """
    run = len(covariance)
    sums = covariance.cumsum()
    with_mean = (sums + sums[::-1] - covariance[0]) / run  # (frame,)
    either = with_mean.cumsum()[::-1] / np.arange(run, 0, -1)
    remaining: Array = covariance - 2 * either + with_mean.mean()
    return remaining
