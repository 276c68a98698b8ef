"""Molecules and background of a movie, from the moments of its light: no molecule is localized."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch
from scipy.fft import next_fast_len
from scipy.optimize import least_squares
from scipy.stats import t as student_t
from scipy.stats import truncnorm
from torch import Tensor
from torch.nn import functional as F

from decode.defects import screened
from decode.estimate.frames import Estimate, read_frames, shape_of
from decode.io.movies.tiff import Movie
from decode.optics.camera import Camera
from decode.optics.field import FieldSplinePSF
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import PSF
from decode.optics.spline import SplinePSF
from decode.priors.scene import Scene
from decode.progress import Progress, Steps, Stepwise, part
from decode.ranges import Range

__all__ = ["SceneEstimate", "estimate_scene", "z_limits"]

Array = npt.NDArray[np.float64]

TILE_PX = 64
"""side of the squares a large field is looked at in"""
TILES_PER_AXIS = 3
"""largest number of them along each axis, spread over the field"""
RUN = 250
"""consecutive frames over which a pixel without molecules is taken as steady"""
RUNS = 8
"""largest number of such runs, spread over the movie"""
CHUNK = 25
"""frames whose means are taken as one draw: many on-times"""
FEWEST_FRAMES = 60
CELL_PX = 8
"""side of the cells whose background is compared over the field"""
LAGS = (0, 1, 2, 3, 4, 6, 8, 12, 16)
"""frames between the pictures whose covariance is taken"""
REACH_PX = 16
"""largest distance of pixels whose covariance is taken; of those beyond half of it one in four"""
STEPS = (0.005, 0.02, 0.06, 0.18, 0.5, 1.0)
"""where the Laplace transform of the light is taken, over the standard deviation of the background's noise"""
LEAST_DARK = 0.4
"""bias of the logarithm up to which a pixel counts as dark at times: with 0.1 and 0.3 densities on filaments came out
up to 3.6 and 1.1 times too high, with 0.4 they are 0.89 to 1.02 of the truth, with all pixels 0.67 to 0.95"""
FEWEST_DARK = 0.2
"""share of such pixels from which they suffice"""
BIAS_DOUBT = 10.0
"""what the correction for the bias of a logarithm of a mean may lack, over its square: in a crowd pixels are hardly
ever dark, and the correction, at most one half, can lack several times as much"""
ON_TIME_ERROR = 0.03
"""relative error of the on-time that its moments do not show, over simulated movies of 400 frames"""
WIDTH_ERROR = 0.01
"""as `ON_TIME_ERROR`, of the width of a PSF"""
SURE = 0.999
"""probability with which light that pixels share must exceed zero"""
SHORT = 0.2
"""shortest mean on-time, in frames, of light that does not return in the next one: of 100 frames of 96 x 96 pixels with
0.2 molecules a square micrometre and frame, those of an on-time of 0.2 frames show it"""
OFFSETS_WORTH = 10
"""independent moments that the covariances at all offsets, which are much alike, are counted for"""
DEPTH_ERROR = 0.07
"""as `ON_TIME_ERROR`, of the ends of the depth, over half of the PSF's range; over 88 movies of 300 frames"""
PASSED = 0.2
"""part of the unevenness of the molecules' light that may pass for background: measured over simulated movies"""
CONTRAST_ERROR = 0.25
"""relative error of the background's contrast over simulated movies: cells do not see what is smaller than they are"""
PLANES = 31
"""depths the PSF is drawn at"""
SUBPIXELS = 2
"""positions within a pixel along each axis it is drawn at"""
LEVELS = np.geomspace(1e-7, 1.0, 200)
"""fractions of a molecule's light in a pixel"""
NODES, WEIGHTS = (x / 2 for x in np.polynomial.legendre.leggauss(32) + np.array([[1.0], [0.0]]))
"""Gauss-Legendre quadrature between 0 and 1"""


@final
@dataclass(frozen=True, kw_only=True)
class SceneEstimate:
    """What a movie shows, each number with its 95 % interval."""

    background_photons: Estimate
    """mean background per pixel, photons"""
    background_contrast: Estimate
    """standard deviation of the logarithm of the background over the field"""
    background_drift: Estimate
    """relative change of the background from frame to frame"""
    density_per_um2: Estimate
    """molecules on at once, per square micrometre, mean over field and time"""
    flux_photons: Estimate
    """mean photons of a molecule in a frame it is fully on"""
    flux_variation: Estimate
    """standard deviation of the flux over its mean, between molecules"""
    on_time_frames: Estimate
    """mean time a molecule stays on"""
    psf_blur_nm: Estimate | None
    """standard deviation of the Gaussian that widens the given PSF to the movie's; None for a `GaussianPSF`"""
    psf_sigma_nm: Estimate | None
    """width in focus; None for any other PSF"""
    z_low_nm: Estimate | None
    """lower end of the depth molecules lie in; None for a PSF that is the same at every z"""
    z_high_nm: Estimate | None
    """upper end"""
    misfit: float
    """root mean square of what the model leaves of the movie's moments, over their standard errors; about 1 where the
    model is right"""

    def scene(self) -> Scene:
        """The scene of these numbers, without their intervals; molecules lie anywhere."""

        def fixed(estimate: Estimate) -> Range:
            return (estimate.value, estimate.value)

        depth = (0.0, 0.0)
        if self.z_low_nm is not None and self.z_high_nm is not None:
            depth = (self.z_low_nm.value, max(self.z_low_nm.value, self.z_high_nm.value))
        return Scene(
            density_per_um2=fixed(self.density_per_um2),
            flux_photons=fixed(self.flux_photons),
            flux_variation=fixed(self.flux_variation),
            on_time_frames=fixed(self.on_time_frames),
            z_nm=depth,
            filaments=0.0,
            background_photons=fixed(self.background_photons),
            background_contrast=fixed(self.background_contrast),
            background_drift=fixed(self.background_drift),
        )

    def __str__(self) -> str:
        stated = ((f.name, getattr(self, f.name)) for f in fields(self))
        return "\n".join(f"{name}: {value}" for name, value in stated if isinstance(value, Estimate))


@Stepwise
@torch.no_grad()
def estimate_scene(
    movie: Movie | Tensor | npt.NDArray[Any],
    camera: Camera,
    psf: PSF,
    *,
    z_range_nm: tuple[float, float] | None = None,
) -> Steps[SceneEstimate]:
    """Molecules and background of a raw movie, by the generalized method of moments (Hansen, Econometrica 50, 1982).

    Molecules that blink independently add up their cumulants, so that each of these means over pixels and time is
    linear in the density, however unevenly molecules lie (the reasoning of fluorescence fluctuation spectroscopy:
    Magde, Elson and Webb, Phys. Rev. Lett. 29, 705, 1972):

    - the mean light: background + density * flux;
    - the covariance of light at two pixels and frames, density * E[flux^2] * (on-time's part) * (PSF's
      autocorrelation): no noise is in it, and it falls with the frames between as exp(-frames / on-time), with the
      pixels between as the PSF's width and depth say;
    - the logarithm of the mean of exp(-s light), which a photon counting histogram (Chen, Mueller, So and Gratton,
      Biophys. J. 77, 553, 1999) holds too: at large s every molecule counts alike and the darkest moments count most,
      which tells background from many dim molecules from few bright ones.

    Molecules whose light does not return in the next frame are taken to be on for one frame: their density is that of
    a frame, their flux what they give in it.

    Where molecules crowd so much that pixels are hardly ever dark (some ten on at once per square micrometre), what
    always shines cannot be told from background, which then comes out too high and the density too low.

    Args:
        movie: (frame, y, x) ADU.
        camera: gives light and noise; its maps cover the movie's frames.
        psf: the calibrated PSF; its pixel size is the movie's.
        z_range_nm: depth in which to look for molecules; None takes what the PSF covers.

    Raises:
        ValueError: in one sentence, if the movie is too short or too small, or no molecules blink in it.
    """
    movie, camera = screened(movie, camera)
    moments = yield from part(_measure.steps(movie, camera), 0.0, 0.7)
    if moments.lag is None:
        raise ValueError(
            "no molecules are seen to blink in this movie: the light of neighbouring pixels does not rise and fall "
            "together; check the camera file, or take a part of the movie in which molecules blink"
        )
    limits = z_limits(psf)
    if limits is not None and z_range_nm is not None:
        limits = z_range_nm
    light = float(moments.values[: len(STEPS) + 1].sum())
    model = _Model(camera, psf, moments.steps, moments.run, limits, light, lag=moments.lag, light_of_all=moments.light)
    yield Progress(0.7, "estimating molecules and background from these moments")
    p, covariance, misfit = _fit(moments, model)
    yield Progress(1.0, "writing down what was found")

    def estimate(function: Callable[[Array], float], n: int) -> Estimate:
        """A function of the parameters; the interval is that of its argument's errors, to first order."""
        value = function(p)
        steps = 1e-4 * model.doubt
        slope = np.array([(function(p + step) - value) / step.sum() for step in np.diag(steps)])
        # the errors' covariance is itself known from a few chunks of frames only
        margin = float(student_t.ppf(0.975, moments.chunks - 1)) * math.sqrt(max(0.0, slope @ covariance @ slope))
        return Estimate(value, value - margin, value + margin, n)

    def positive(i: int, n: int, error: float = 0.0) -> Estimate:
        log = estimate(lambda q: float(q[i]), n)
        margin = math.hypot(log.high - log.value, 1.96 * error)
        return Estimate(math.exp(log.value), math.exp(log.value - margin), math.exp(log.value + margin), n)

    def end_of_depth(i: int, n: int) -> Estimate | None:
        if limits is None:
            return None
        end = estimate(lambda q: model.z(q)[i], n)
        error = math.hypot((end.high - end.value) / 1.96, DEPTH_ERROR * (limits[1] - limits[0]) / 2)
        return Estimate(*_within(end.value, error, *limits), n)

    on_time = model.on_time(p)
    area_um2 = moments.n / moments.frames * psf.pixel_size_nm**2 * 1e-6
    n = round(math.exp(p[1]) * area_um2 * (1 + moments.frames / on_time))
    blur, sigma = None, None
    if isinstance(psf, GaussianPSF):
        sigma = positive(6, n, WIDTH_ERROR)
    else:
        variance = estimate(lambda q: float(q[6]), n)
        # the Gaussian whose square has the same sum, 1 / (4 pi sigma^2)
        width2 = 1 / (4 * math.pi * float(model.share(p) @ model.images(float(p[6]))[2][:, 0]))
        error = math.hypot((variance.high - variance.value) / 1.96, 2 * WIDTH_ERROR * width2)
        value, low, high = (psf.pixel_size_nm * math.sqrt(v) for v in _within(variance.value, error, 0.0, math.inf))
        blur = Estimate(value, low, high, n)
    contrast, drift = _uneven(moments, model, p)
    return SceneEstimate(
        background_photons=positive(0, moments.n),
        background_contrast=contrast,
        background_drift=drift,
        density_per_um2=positive(1, n),
        flux_photons=positive(2, n),
        flux_variation=positive(3, n),
        on_time_frames=positive(4, n, ON_TIME_ERROR) if moments.lag else Estimate(1.0, SHORT, 1.0, n),
        psf_blur_nm=blur,
        psf_sigma_nm=sigma,
        z_low_nm=end_of_depth(0, n),
        z_high_nm=end_of_depth(1, n),
        misfit=misfit,
    )


def _within(value: float, error: float, least: float, most: float) -> tuple[float, float, float]:
    """Value and 95 % interval of what cannot lie outside, by a Gaussian of which only what lies inside counts.

    Without, an estimate well outside would have an interval of no width at the edge.
    """
    low, high = truncnorm.ppf([0.025, 0.975], (least - value) / error, (most - value) / error, value, error)
    ends = (value, min(low, value - 1.96 * error), max(high, value + 1.96 * error))
    middle, low, high = (min(max(float(end), least), most) for end in ends)
    return middle, low, high


def z_limits(psf: PSF) -> tuple[float, float] | None:
    """Lowest and highest z in nm that a PSF covers, or None if it is the same at every z."""
    psf = psf.middle if isinstance(psf, FieldSplinePSF) else psf
    if isinstance(psf, SplinePSF):
        planes = psf.coefficients.shape[0]
        return (psf.z_start_nm, psf.z_start_nm + (planes - 1) * psf.z_step_nm) if planes > 1 else None
    if isinstance(psf, GaussianPSF):
        depth = float(psf.depth_nm.detach()) + abs(float(psf.gap_nm.detach()))
        return (-depth, depth) if math.isfinite(depth) else None
    return (-750.0, 750.0)


class _Moments(NamedTuple):
    """Means over pixels and time, and how they scatter."""

    light: float
    """mean of all pixels, photons"""
    values: Array
    """(m,) light by brightness of pixels that are dark at times, see `_by_brightness`; covariance with the pixels
    beside, at each lag; covariance at `lag` and each offset, at lag 0 without the pixel itself, whose noise it holds"""
    covariance: Array
    """(m, m) of the errors of the values"""
    lag: int | None
    """1; 0 where light does not return in the next frame; None where pixels do not even share it within a frame"""
    steps: Array
    """(step,) s, 1 / photons"""
    cells: Array
    """(cell, 1 + step) mean light and log transform in each cell of the field"""
    cells_covariance: Array
    """(cell, 1 + step, 1 + step)"""
    runs: Array
    """(run, 1 + step) mean light and log transform in each run of frames"""
    runs_covariance: Array
    """(1 + step, 1 + step)"""
    times: Array
    """(run,) its middle, frames"""
    run: int
    """length of a run of frames"""
    chunks: int
    """number of chunks of frames whose scatter is the covariance"""
    frames: int
    """frames looked at"""
    n: int
    """pixels looked at, summed over frames"""


def _offsets() -> npt.NDArray[np.int64]:
    """(k, 2) y, x of pixels within reach, one of each pair of opposite ones; (0, 0) comes first."""
    y, x = np.mgrid[: REACH_PX + 1, -REACH_PX : REACH_PX + 1]
    distance = np.hypot(y, x)
    dense = (distance <= REACH_PX / 2) | ((y % 2 == 0) & (x % 2 == 0))
    keep = (distance <= REACH_PX) & dense & ((y > 0) | (x >= 0))
    return np.stack([y[keep], x[keep]], 1)


def _clear_lag(values: Array, covariance: Array, chunks: int) -> int | None:
    """Frames after which neighbouring pixels surely share light: 1, else 0, else None.

    Args:
        values, covariance: of the covariances beside a pixel at each of LAGS, then at each offset at lag 1, at lag 0.
        chunks: of frames, whose scatter is the covariance.
    """
    offsets = _offsets()
    after_one, within = np.zeros((2, len(values)))
    after_one[LAGS.index(1)] = 1
    # light that flickers as a whole is no molecule's: it reaches as far as one looks
    far = np.where(np.hypot(*offsets.T) > REACH_PX - 2, 1.0, 0.0)
    within[LAGS.index(0)] = 1
    within[len(LAGS) + len(offsets) :] = -far / far.sum()
    for lag, weight in ((1, after_one), (0, within)):
        if weight @ values > student_t.ppf(SURE, chunks - 1) * math.sqrt(weight @ covariance @ weight):
            return lag
    return None


def _beside(offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """(k,) whether a pixel at this offset touches the one at (0, 0)."""
    return (np.abs(offsets).max(1) == 1) & (np.abs(offsets).sum(1) > 0)


def _tiles(height: int, width: int) -> list[tuple[slice, slice]]:
    """Squares spread evenly over the field, or all of it where it is small."""

    def cuts(side: int) -> list[slice]:
        if side <= 2 * TILE_PX:
            return [slice(0, side)]
        starts = np.linspace(0, side - TILE_PX, min(TILES_PER_AXIS, side // TILE_PX)).round().astype(int)
        return [slice(int(start), int(start) + TILE_PX) for start in starts]

    return [(rows, columns) for rows in cuts(height) for columns in cuts(width)]


@Stepwise
def _measure(movie: Movie | Tensor | npt.NDArray[Any], camera: Camera) -> Steps[_Moments]:
    frames, height, width = shape_of(movie)
    if frames < FEWEST_FRAMES or min(height, width) < 2 * REACH_PX:
        raise ValueError(
            f"estimating the scene takes at least {FEWEST_FRAMES} frames of {2 * REACH_PX} x {2 * REACH_PX} pixels, "
            f"this movie has {frames} of {height} x {width}"
        )
    tiles = _tiles(height, width)
    # three runs at least, to see the background drift, of two chunks at least, to see both scatter
    chunk = min(CHUNK, frames // 6)
    run = min(RUN, frames // 3 // chunk * chunk)
    starts = np.unique(np.linspace(0, frames - run, min(RUNS, frames // run)).round().astype(int))
    cameras = [camera.crop(*tile) for tile in tiles]
    steps: Array | None = None
    means: list[list[Array]] = []
    sizes: list[list[float]] = []
    light: list[float] = []
    products: list[list[Array]] = []
    cells: list[Array] = []
    doubts: list[Array] = []
    n = 0
    message = "estimating the moments of the movie's light"
    for turn, start in enumerate(starts):
        lights: list[list[Tensor]] = [[] for _ in tiles]
        for i in range(start, start + run):
            yield Progress((turn + 0.5 * (i - start) / run) / len(starts), message)
            for of_tile, own, (rows, columns) in zip(lights, cameras, tiles, strict=True):
                adu = read_frames(movie, i, i + 1, rows, columns)
                of_tile.append(own.without_bad(own.to_photons(adu)).float())
        of_run = [torch.cat(of_tile) for of_tile in lights]
        if steps is None:
            steps = _steps(torch.cat([tile.flatten() for tile in of_run]), camera)
        means.append([])
        sizes.append([])
        products.append([])
        of_tiles: list[Array] = []
        for tile, own in zip(of_run, cameras, strict=True):
            yield Progress((turn + 0.5 + 0.5 * len(of_tiles) / len(tiles)) / len(starts), message)
            transform, bias = _log_transform(tile, own, steps, chunk)
            dark = _dark(bias)
            # half of the correction, and all of it and more where one dark moment made the mean
            doubts.append((bias / 2 + BIAS_DOUBT * bias**2)[:, dark].mean(1).numpy())
            means[-1].append(transform[:, :, dark].mean(2).numpy())
            sizes[-1].append(float(dark.sum()))
            light.append(float(transform[:, 0].mean()))
            products[-1].append(_products(tile, chunk))
            of_tiles.append(_cells(transform))
            n += tile.numel()
        cells.append(np.concatenate(of_tiles, 2))
    assert steps is not None

    # (chunk, tile, ...), chunks in the order of time
    mean = np.concatenate([np.stack(of_run, 1) for of_run in means])
    product = np.concatenate([np.stack(of_run, 1) for of_run in products])
    size = np.repeat(np.array(sizes), run // chunk, 0)[:, :, None]
    mean = _by_brightness(mean, _rate(camera, steps))
    sums = np.concatenate([mean * size, product[..., 0]], 2)
    counts = np.concatenate([np.broadcast_to(size, mean.shape), product[..., 1]], 2)
    values = sums.sum((0, 1)) / counts.sum((0, 1))
    influence = (sums - values * counts) / counts.sum((0, 1))
    # molecules lie unevenly: tiles differ, and this is no error of their mean
    influence = influence - influence.mean(0)
    length = len(influence)
    flat = influence.reshape(length, -1, len(values))
    covariance = np.einsum("cti,ctj->ij", flat, flat) * length / (length - 1)
    # a molecule may shine in two chunks (Newey and West, Econometrica 55, 703, 1987, with one lag)
    crossed = np.einsum("cti,ctj->ij", flat[:-1], flat[1:]) / 2
    covariance = covariance + crossed + crossed.T
    doubt = np.zeros(len(values))
    doubt[: len(steps) + 1] = _by_brightness(np.mean(doubts, 0), _rate(camera, steps))
    covariance = covariance + np.outer(doubt, doubt)

    shared = slice(len(steps) + 1, None)
    lag = _clear_lag(values[shared], covariance[shared, shared], length)
    first, offsets = len(steps) + 1 + len(LAGS), len(_offsets())
    # those at the other lag are left out, and noise with them
    keep = np.r_[:first, first : first + offsets] if lag else np.r_[:first, first + offsets + 1 : len(values)]

    cell = np.concatenate(cells)  # (chunk, 1 + step, cell)
    off = cell - cell.mean(0)
    chunks = run // chunk
    field = cell.mean(2)
    scatter = np.cov(field.reshape(len(starts), chunks, -1).transpose(1, 0, 2).reshape(-1, field.shape[1]).T)
    return _Moments(
        light=float(np.mean(light)),
        values=values[keep],
        covariance=covariance[np.ix_(keep, keep)],
        lag=lag,
        steps=steps,
        cells=cell.mean(0).T,
        cells_covariance=np.einsum("cin,cjn->nij", off, off) / (length - 1) / length,
        runs=field.reshape(len(starts), chunks, -1).mean(1),
        runs_covariance=scatter / chunks,
        times=starts + run / 2,
        run=run,
        chunks=length,
        frames=run * len(starts),
        n=n,
    )


def _steps(light: Tensor, camera: Camera) -> Array:
    """Where the Laplace transform is taken, by the noise of a pixel that holds the median light."""
    typical = light[:: max(1, len(light) // 100_000)].median().clamp_min(0)
    variance = camera.excess_factor * typical / _mean(camera.qe) + camera.noise_floor.median()
    return np.array(STEPS) / float(variance.clamp_min(1e-2).sqrt())


def _mean(value: float | Tensor) -> float:
    return float(torch.as_tensor(value, dtype=torch.float64).mean())


def _rate(camera: Camera, steps: Array) -> Array:
    """(step,) by how much a photon raises minus the logarithm of E[exp(-s light)].

    Poisson electrons give qe (1 - exp(-s / qe)); each of them turned into an exponential variate by the register
    gives s / (1 + s / qe).
    """
    qe = _mean(camera.qe)
    return qe * (1 - np.exp(-steps / qe)) if camera.em_gain is None else steps / (1 + steps / qe)


def _by_brightness(transform: Array, rate: Array) -> Array:
    """The mean light in parts that add up to it: from molecules that a small step saturates, to steady light.

    Minus the log Laplace transform over its rate is the mean light less what the step saturates; its values at many
    steps are nearly the same number, with the same error, and their differences are not.

    Args:
        transform: (..., 1 + step) mean light, and minus the log transform.
    """
    seen = np.concatenate([transform[..., :1], transform[..., 1:] / rate, np.zeros_like(transform[..., :1])], -1)
    return seen[..., :-1] - seen[..., 1:]


def _log_transform(light: Tensor, camera: Camera, steps: Array, chunk: int) -> tuple[Tensor, Tensor]:
    """Mean light, and minus the logarithm of the mean of exp(-s light) over the run, as each chunk of frames sees it.

    Args:
        light: (frame, y, x) photons.
        steps: (step,) s, 1 / photons.
        chunk: number of frames in a chunk.

    Returns:
        (chunk, 1 + step, y, x) float64, whose mean over chunks is that of the run; the camera's own part is removed.
        (1 + step, y, x) bias of the logarithm of so small a mean, which is taken off: a pixel that is hardly ever dark
        does not tell it, however many there are.
    """
    gain = 1.0 if camera.em_gain is None else camera.em_gain
    qe, adu = _mean(camera.qe), torch.as_tensor(camera.e_per_adu)
    read = (torch.as_tensor(camera.read_noise_e) ** 2 + adu**2 / 12).double() / gain**2 / qe**2
    read = read.reshape(read.shape[-2:])
    chunks = light.reshape(-1, chunk, *light.shape[1:])
    columns = [chunks.mean(1).double()]
    biases = [torch.zeros_like(columns[0][0])]
    for step, rate in zip(steps, _rate(camera, steps), strict=True):
        mean = torch.exp(-step * chunks).mean(1).double()  # (chunk, y, x)
        total = mean.mean(0).clamp_min(1e-30)
        n = len(mean)
        bias = mean.var(0, correction=1) / n / total**2 / 2  # of the logarithm of a mean
        dark = torch.as_tensor(camera.spurious_e).double().reshape(-1)[0] * (step - rate) / qe
        own = -torch.log(total) - bias + step**2 * read / 2 + dark
        columns.append(own - (mean - total) / total)
        biases.append(bias)
    return torch.stack(columns, 1), torch.stack(biases)


def _dark(bias: Tensor) -> Tensor:
    """(y, x) whether a pixel is dark often enough to tell the logarithm; everywhere, where hardly any is.

    Args:
        bias: (1 + step, y, x) of the logarithm.
    """
    dark = bias.amax(0) <= LEAST_DARK
    return dark if float(dark.double().mean()) >= FEWEST_DARK else torch.ones_like(dark)


def _cells(transform: Tensor) -> Array:
    """(chunk, 1 + step, cell) means over squares."""
    return F.avg_pool2d(transform, CELL_PX).flatten(2).numpy()


def _products(light: Tensor, chunk: int) -> Array:
    """Sums of products of light at two pixels and frames, without its mean over the run, and how many were summed.

    Args:
        light: (frame, y, x) photons.
        chunk: number of frames in a chunk.

    Returns:
        (chunk, lag + 2 offset, 2): of each chunk of frames, beside a pixel at each of LAGS, and at each offset at lag 1
        and at lag 0.
    """
    length, height, width = light.shape
    size = (height + REACH_PX, width + REACH_PX)
    spectrum = torch.fft.rfft2(light - light.mean(0), s=size)
    offsets = _offsets()
    y, x = offsets.T
    beside = _beside(offsets)
    overlap = (height - y) * (width - np.abs(x))
    first = np.arange(0, length, chunk)
    out = np.zeros((len(first), len(LAGS) + 2 * len(offsets), 2))
    at_offsets = {1: slice(len(LAGS), len(LAGS) + len(offsets)), 0: slice(len(LAGS) + len(offsets), None)}
    for j, lag in enumerate(LAGS):
        if lag >= length:
            continue
        # light is the same forwards and backwards in time: both directions are averaged
        product = spectrum[: length - lag].conj() * spectrum[lag:]
        for i, start in enumerate(first):
            part = product[start : start + chunk]
            if not len(part):
                continue
            sums = torch.fft.irfft2(part.sum(0), s=size).double().numpy()
            both = (sums[y, x] + sums[-y, -x]) / 2
            out[i, j] = both[beside].sum(), len(part) * overlap[beside].sum()
            if lag in at_offsets:
                out[i, at_offsets[lag]] = np.stack([both, len(part) * overlap], 1)
    return out


class _Model:
    """What the moments are, given parameters.

    Parameters, in this order: log background; log density; log flux; log flux variation; log on-time; share of
    covariance that lasts; blur (variance, px^2) or log width; middle and log half of the depth over half of the range,
    where there is one.
    """

    def __init__(
        self,
        camera: Camera,
        psf: PSF,
        steps: Array,
        run: int,
        z_range_nm: tuple[float, float] | None,
        light: float,
        lag: int = 1,
        light_of_all: float | None = None,
    ) -> None:
        self.lag, self.light_of_dark = lag, light
        self.light_of_all = light if light_of_all is None else light_of_all
        self.psf, self.rate, self.run, self.z_range_nm = psf, _rate(camera, steps), run, z_range_nm
        self.offsets = _offsets()
        self.beside = _beside(self.offsets)
        self.planes = np.linspace(*z_range_nm, PLANES) if z_range_nm else np.zeros(1)
        self.drawn: dict[float, tuple[Array, Array, Array]] = {}
        grid = psf.pixel_size_nm * ((torch.arange(SUBPIXELS) + 0.5) / SUBPIXELS + psf.patch_px // 2)
        z, y, x = torch.meshgrid(torch.as_tensor(self.planes, dtype=torch.float32), grid, grid, indexing="ij")
        self.xyz = torch.stack([x, y, z], -1).reshape(-1, 3)
        with torch.no_grad():
            self.sharp = psf.integrate_pixels(self.xyz)
        width = math.log(float(psf.sigma_nm.detach())) if isinstance(psf, GaussianPSF) else 0.0
        rows = [
            # where the fit starts, how much that may be off, least, most
            (math.log(max(light, 0.1) / 2), 2.0, -5.0, 12.0),
            (math.log(0.5), 3.0, -12.0, 5.0),
            (math.log(2000.0), 2.0, 2.0, 16.0),
            (math.log(0.35), 0.7, -3.5, 1.0),
            (math.log(2.0), 1.2, -2.0, 5.0),
            (0.0, 0.1, -0.3, 1.0),
            (width, 0.5, width - 1, width + 1) if isinstance(psf, GaussianPSF) else (0.0, 1.0, -0.3, 9.0),
            (0.0, 0.5, -1.0, 1.0),
            (math.log(0.5), 0.7, math.log(0.02), 0.0),
        ]
        self.start, self.doubt, self.low, self.high = np.array(rows[: 9 if z_range_nm else 7]).T

    def z(self, p: Array) -> tuple[float, float]:
        """Lowest and highest z of molecules, nm."""
        if self.z_range_nm is None:
            return (0.0, 0.0)
        low, high = self.z_range_nm
        centre, half = (low + high) / 2 + p[7] * (high - low) / 2, math.exp(p[8]) * (high - low) / 2
        return (float(centre - half), float(centre + half))

    def on_time(self, p: Array) -> float:
        """Mean time on, frames; one where light does not return, whatever the parameter says."""
        return math.exp(p[4]) if self.lag else 1.0

    def shared(self, p: Array) -> Array:
        """(lag,) mean product of the fractions of two frames of a run that a molecule is on, at each of LAGS."""
        if not self.lag:
            return _without_mean(np.eye(1, self.run)[0])[list(LAGS)]
        on_time = self.on_time(p)
        return _without_mean(np.array([_shared(on_time, lag) for lag in range(self.run)]))[list(LAGS)]

    def share(self, p: Array) -> Array:
        """(plane,) of the molecules, which lie evenly between two depths."""
        if self.z_range_nm is None:
            return np.ones(1)
        step = self.planes[1] - self.planes[0]
        low, high = self.z(p)
        bottom, top = self.planes - step / 2, self.planes + step / 2
        # what lies beyond the PSF's range looks as at its end
        bottom[0], top[-1] = -np.inf, np.inf
        return np.clip(np.minimum(top, high) - np.maximum(bottom, low), 0, None) / (high - low)

    @torch.no_grad()
    def images(self, width: float) -> tuple[Array, Array, Array]:
        """The PSF of that width, at each depth, as far as the moments depend on it.

        Returns:
            (plane, level) number of pixels that catch each of LEVELS of the light of a molecule,
            (plane,) sum of what lies below 0 where the PSF was measured and holds noise, and
            (plane, offset) the autocorrelation.
        """
        if width in self.drawn:
            return self.drawn[width]
        psf, k = self.psf, self.psf.patch_px
        if isinstance(psf, GaussianPSF):
            widths = torch.full((len(self.xyz), 1), math.exp(width))
            patches, variance = psf.integrate_pixels(self.xyz, widths), 0.0
        else:
            patches, variance = self.sharp, width
        margin = 4
        side = next_fast_len(k + 2 * margin + REACH_PX, real=True)
        spectrum = torch.fft.rfft2(F.pad(patches.double(), (margin,) * 4), s=(side, side))
        q2 = (2 * math.pi) ** 2 * (torch.fft.fftfreq(side)[:, None] ** 2 + torch.fft.rfftfreq(side) ** 2)
        spectrum = spectrum * torch.exp(-variance * q2.double() / 2)
        blurred = torch.fft.irfft2(spectrum, s=(side, side))[:, : k + 2 * margin, : k + 2 * margin]
        power = spectrum.abs().square().unflatten(0, (len(self.planes), -1)).mean(1)
        auto = torch.fft.irfft2(power, s=(side, side)).numpy()
        below, right = self.offsets.T
        both = (auto[:, below, right] + auto[:, -below, -right]) / 2
        signed = blurred.reshape(len(self.planes), -1).numpy()
        fraction = signed.clip(LEVELS[0])
        below_zero = (signed - fraction).sum(1) / SUBPIXELS**2
        # a pixel between two levels counts for both, so that the light is kept
        level = np.searchsorted(LEVELS, fraction, side="right").clip(1, len(LEVELS) - 1) - 1
        upper = (fraction - LEVELS[level]) / (LEVELS[level + 1] - LEVELS[level])
        cell = level + len(LEVELS) * np.arange(len(self.planes))[:, None]
        pixels = np.bincount(cell.ravel(), (1 - upper).ravel(), len(self.planes) * len(LEVELS))
        pixels[1:] += np.bincount(cell.ravel(), upper.ravel(), len(self.planes) * len(LEVELS))[:-1]
        # a slope goes back and forth between two widths
        self.drawn = dict([*self.drawn.items()][-1:])
        self.drawn[width] = (pixels.reshape(len(self.planes), -1) / SUBPIXELS**2, below_zero, both)
        return self.drawn[width]

    def predict(self, p: Array) -> Array:
        """(m,) in the order of `_Moments.values`."""
        light, shape = self.light(p), self.share(p) @ self.images(float(p[6]))[2]
        density = math.exp(p[1]) * self.psf.pixel_size_nm**2 * 1e-6
        square = density * math.exp(2 * p[2]) * (1 + math.exp(2 * p[3]))
        lags = self.shared(p) + p[5]
        # molecules crowd less where it is dark at times: as much less as there is less light above the background
        background = math.exp(p[0])
        crowds = self.light_of_all - self.light_of_dark
        part = 1 - min(1.0, crowds / max(self.light_of_all - background, 1e-6))
        offsets = slice(0 if self.lag else 1, None)
        return np.concatenate(
            [
                _by_brightness(background * np.array([1.0, *self.rate]) + part * density * light, self.rate),
                square * shape[self.beside].mean() * lags,
                square * shape[offsets] * lags[LAGS.index(self.lag)],
            ]
        )

    def light(self, p: Array) -> Array:
        """What one molecule on at once in each pixel adds to mean light and minus its log transform: (1 + step,).

        A frame holds molecules that are on when it starts and others that switch on in it: for each on at once,
        S(a) = exp(-a / on_time) (1 + (1 - a) / on_time) that shine for longer than the fraction a of it.  With gamma
        distributed fluxes of mean f and shape k, one that gives a pixel the fraction h of its light takes
        1 - (1 + u a / k)^-k, u = rate f h, from the mean of exp(-s light), and an integration by parts leaves
        the integral of S(a) u (1 + u a / k)^(-k - 1) over a from 0 to 1.  Of molecules on for one frame S is 1.
        """
        pixels, below_zero = (self.share(p) @ drawn for drawn in self.images(float(p[6]))[:2])
        flux, k, on_time = math.exp(p[2]), math.exp(-2 * p[3]), self.on_time(p)
        # nodes gather where little of the frame is lit: bright molecules saturate there
        a, weight = NODES**3, WEIGHTS * 3 * NODES**2
        survival = weight * (np.exp(-a / on_time) * (1 + (1 - a) / on_time) if self.lag else 1.0)
        dose = flux * np.outer(self.rate, LEVELS)[:, :, None]
        taken = dose[..., 0] * ((1 + dose * a / k) ** (-k - 1) @ survival)
        # so little light saturates nothing
        return np.array([flux * (pixels @ LEVELS), *(taken @ pixels)]) + flux * below_zero * np.array([1.0, *self.rate])


def _shared(on_time: float, lag: int) -> float:
    """Mean product of the fractions of two frames a molecule is on, for each on at once.

    The integral of exp(-|t - t'| / on_time) over both frames.
    """
    if lag == 0:
        return 2 * on_time * (1 + on_time * math.expm1(-1 / on_time))
    return on_time**2 * math.expm1(-1 / on_time) ** 2 * math.exp(-(lag - 1) / on_time)


def _without_mean(covariance: Array) -> Array:
    """What is left of a covariance at each lag, (run,), when the mean over the run is taken away.

    Of two frames' products, averaged over the run, that mean takes its covariance with either frame and gives back its
    own variance.
    """
    run = len(covariance)
    sums = covariance.cumsum()
    with_mean = (sums + sums[::-1] - covariance[0]) / run  # (frame,)
    either = with_mean.cumsum()[::-1] / np.arange(run, 0, -1)
    return covariance - 2 * either + with_mean.mean()


def _fit(moments: _Moments, model: _Model) -> tuple[Array, Array, float]:
    """Parameters, their covariance, and the misfit.

    Moments are weighted by their variances alone: some twenty chunks of frames do not tell the correlations of two
    hundred moments, and weights from them were measured to double the spread of the estimates and to hide it.
    """
    deviation = np.sqrt(np.diag(moments.covariance)).clip(1e-12)
    weight = 1 / deviation
    weight[len(STEPS) + 1 + len(LAGS) :] *= math.sqrt(OFFSETS_WORTH / len(model.offsets))

    def residuals(p: Array) -> Array:
        return np.concatenate([(model.predict(p) - moments.values) * weight, (p - model.start) / model.doubt])

    def slopes(p: Array) -> Array:
        here = residuals(p)
        steps = np.where(p + 1e-3 * model.doubt < model.high, 1e-3, -1e-3) * model.doubt
        return np.stack([(residuals(p + step) - here) / step.sum() for step in np.diag(steps)], 1)

    found = least_squares(
        residuals, model.start, slopes, bounds=(model.low, model.high), x_scale=model.doubt, ftol=1e-5, xtol=1e-5
    )
    p = found.x
    slope = slopes(p)
    gain = np.linalg.solve(slope.T @ slope, slope.T)
    # the errors' own covariance, correlations included, and not the one the fit was weighted by (Hansen, 1982)
    spread = np.eye(len(slope))
    spread[: len(weight), : len(weight)] = moments.covariance * np.outer(weight, weight)
    return p, gain @ spread @ gain.T, float(np.sqrt(np.mean(((model.predict(p) - moments.values) / deviation) ** 2)))


def _uneven(moments: _Moments, model: _Model, p: Array) -> tuple[Estimate, Estimate]:
    """How the background differs over the field and drifts in time.

    Given what one molecule adds to it, mean light and log transform of a cell or a run are a line in background and
    density, solved by weighted least squares.
    """
    density = model.psf.pixel_size_nm**2 * 1e-6
    design = np.stack([np.array([1.0, *model.rate]), density * model.light(p)], 1)

    def backgrounds(light: Array, covariance: Array) -> tuple[Array, Array]:
        """(n,) photons and their relative variance, from (n, 1 + step) and (n, 1 + step, 1 + step)."""
        # as a matrix that is applied from the left
        to_parts = _by_brightness(np.eye(len(model.rate) + 1), model.rate).T
        errors = to_parts @ covariance @ to_parts.T
        weight = 1 / np.einsum("nii->ni", errors).clip(1e-12)
        columns = to_parts @ design
        gain = np.linalg.inv((columns.T * weight[:, None, :]) @ columns) @ (columns.T * weight[:, None, :])
        value = np.einsum("ni,ni->n", gain[:, 0], light @ to_parts.T)
        variance = np.einsum("ni,nij,nj->n", gain[:, 0], errors, gain[:, 0])
        return value, variance / value.clip(1e-3) ** 2

    value, variance = backgrounds(moments.cells, moments.cells_covariance)
    lit = value > 0
    log, error = np.log(value[lit]), variance[lit]
    square = log.var(ddof=1) - error.mean()
    margin = 1.96 * math.sqrt(np.mean(2 * error**2 + 4 * error * max(square, 0.0)) / len(log))
    # where molecules lie unevenly, faint edges of their light pass for background
    excess = moments.cells[:, 0][lit] - value[lit]
    passed = (PASSED * float(excess.std()) / float(value[lit].mean())) ** 2
    low, middle, high = (math.sqrt(max(0.0, s)) for s in (square - margin - passed, square, square + margin))
    contrast = Estimate(middle, low * (1 - CONTRAST_ERROR), high * (1 + CONTRAST_ERROR), moments.n)

    value, variance = backgrounds(moments.runs, np.stack([moments.runs_covariance] * len(moments.runs)))
    off = moments.times - moments.times.mean()
    slope = float(off @ np.log(value.clip(1e-3)) / (off @ off))
    margin = 1.96 * math.sqrt(off**2 @ variance) / float(off @ off)
    return contrast, Estimate(slope, slope - margin, slope + margin, moments.n)
