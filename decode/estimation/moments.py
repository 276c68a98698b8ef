"""Moments of the light of a movie: what is measured, before any model of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self, final

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import stdtrit
from torch import Tensor
from torch.nn import functional as F

from decode.defects import Counts
from decode.estimation.frames import read_frames, shape_of
from decode.optics.camera import Camera
from decode.progress import Progress, Steps, Stepwise, part

__all__ = [
    "LAGS",
    "OFFSETS",
    "REACH_PX",
    "STEPS",
    "TOUCHING",
    "LightParts",
    "MomentVector",
    "Moments",
    "by_brightness",
    "measure",
    "saturation_rate",
]

Array = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]

TILE_PX = 64
"""side of the squares of a large field that are used, pixels"""
TILES_PER_AXIS = 3
"""largest number of squares along each axis, spread over the field"""
RUN = 250
"""consecutive frames over which a pixel without molecules counts as steady"""
RUNS = 8
"""largest number of such runs, spread over the movie"""
CHUNK = 25
"""frames whose means count as one independent draw: many on-times"""
FEWEST_FRAMES = 60
CELL_PX = 8
"""side of the cells whose background is compared over the field, pixels"""
LAGS = (0, 1, 2, 3, 4, 6, 8, 12, 16)
"""frames between the images whose covariance is computed"""
REACH_PX = 16
"""largest distance of pixels whose covariance is computed; beyond half of it, for one pair in
four"""
STEPS = (0.005, 0.02, 0.06, 0.18, 0.5, 1.0)
"""arguments of the Laplace transform of the light, in units of one over the standard deviation of
the background's noise"""
LEAST_DARK = 0.4
"""bias of the logarithm up to which a pixel counts as dark at times: at 0.1 and 0.3, estimated
densities on filaments were up to 3.6 and 1.1 times the truth, at 0.4 0.89 to 1.02 times, with all
pixels 0.67 to 0.95 times"""
FEWEST_DARK = 0.2
"""share of the pixels that must be dark at times, else all are used"""
BIAS_DOUBT = 10.0
"""error of the correction for the bias of the logarithm of a mean, over its square: where molecules
crowd, pixels are hardly ever dark, and the bias can exceed the correction, at most one half,
several times"""
SURE = 0.999
"""probability with which the covariance of neighbouring pixels must exceed zero"""
LIKELY, BEYOND_NOISE = 0.95, 8.0
"""the same where it exceeds so many standard deviations of what pixels share by chance: few bright
molecules make the covariance differ between chunks of frames"""


def _offsets() -> npt.NDArray[np.int64]:
    y, x = np.mgrid[: REACH_PX + 1, -REACH_PX : REACH_PX + 1]
    distance = np.hypot(y, x)
    dense = (distance <= REACH_PX / 2) | ((y % 2 == 0) & (x % 2 == 0))
    keep = (distance <= REACH_PX) & dense & ((y > 0) | (x >= 0))
    return np.stack([y[keep], x[keep]], 1)


OFFSETS = _offsets()
"""(offset, 2) y, x of pixels within reach, one of each pair of opposite ones; (0, 0) comes first"""
TOUCHING = np.abs(OFFSETS).max(1) == 1
"""(offset,) whether a pixel at this offset touches the one at (0, 0)"""
AT_TOUCHING = slice(0, len(LAGS))
"""places in the vector of covariances of those with touching pixels, at each of LAGS"""
AT_OFFSETS = {
    1: slice(len(LAGS), len(LAGS) + len(OFFSETS)),
    0: slice(len(LAGS) + len(OFFSETS), len(LAGS) + 2 * len(OFFSETS)),
}
"""places in the same vector of those at each of OFFSETS, by lag"""


class MomentVector(NamedTuple):
    """The moments that a model is fitted to."""

    brightness: Array
    """(1 + step,) photons: mean light of pixels that are dark at times, in the parts of
    `by_brightness`"""
    touching: Array
    """(lag,) photons^2: covariance with the pixels that touch, at each of LAGS"""
    offsets: Array
    """(offset,) photons^2: covariance at each of OFFSETS, at lag 1, or at lag 0 without the pixel
    itself, whose covariance holds noise"""

    def flat(self) -> Array:
        """(moment,) all moments in this order."""
        return np.concatenate(self)

    def like(self, flat: Array) -> MomentVector:
        """Another flat vector, split in the same way."""
        ends = np.cumsum([len(values) for values in self])
        return MomentVector(*np.split(flat, ends[:-1]))


class LightParts(NamedTuple):
    """Mean light, and minus its log Laplace transform at each step, in places or times."""

    values: Array
    """(n, 1 + step)"""
    covariance: Array
    """(n, 1 + step, 1 + step) covariance of the errors"""


@final
@dataclass(frozen=True, kw_only=True)
class Moments:
    """Means over pixels and time, and how they scatter."""

    light: float
    """mean of all pixels, photons"""
    values: MomentVector
    covariance: Array
    """(moment, moment) covariance of the errors of the flat values"""
    lag: int | None
    """lag of the covariances at each offset, frames: 1; 0 where light does not return in the next
    frame; None where pixels do not even share light within a frame"""
    steps: Array
    """(step,) s of the Laplace transform E[exp(-s light)], 1 / photons"""
    rate: Array
    """(step,) rates of `saturation_rate`"""
    cells: LightParts
    """light of each cell of the field"""
    runs: LightParts
    """light of each run of frames"""
    times: npt.NDArray[np.floating]
    """(run,) middle of each run, frames"""
    run: int
    """length of a run, frames"""
    chunks: int
    """number of chunks of frames whose scatter gives the covariance"""
    frames: int
    """number of frames that were used"""
    n: int
    """number of pixels that were used, summed over frames"""

    @property
    def errors(self) -> MomentVector:
        """Standard deviations of the values."""
        return self.values.like(np.sqrt(np.diag(self.covariance)).clip(1e-12))


class _Plan(NamedTuple):
    """The parts of a movie that are used."""

    tiles: list[tuple[slice, slice]]
    """rows and columns"""
    starts: npt.NDArray[np.int64]
    """(run,) first frame of each run"""
    run: int
    """length of a run, frames"""
    chunk: int
    """length of a chunk, frames; a run consists of whole chunks"""

    @classmethod
    def of(cls, shape: tuple[int, int, int]) -> Self:
        frames, height, width = shape
        if frames < FEWEST_FRAMES or min(height, width) < 2 * REACH_PX:
            raise ValueError(
                f"estimating the scene takes at least {FEWEST_FRAMES} frames of "
                f"{2 * REACH_PX} x {2 * REACH_PX} pixels, "
                f"this movie has {frames} of {height} x {width}"
            )
        # three runs at least show the background drift, two chunks at least how both scatter
        chunk = min(CHUNK, frames // 6)
        run = min(RUN, frames // 3 // chunk * chunk)
        n_runs = min(RUNS, frames // run)
        starts = np.unique(np.linspace(0, frames - run, n_runs).round().astype(int))
        tiles = [(rows, columns) for rows in _cuts(height) for columns in _cuts(width)]
        return cls(tiles, starts, run, chunk)


def _cuts(side: int) -> list[slice]:
    """Spans spread evenly over the side of a field, or all of it where it is small."""
    if side <= 2 * TILE_PX:
        return [slice(0, side)]
    n_tiles = min(TILES_PER_AXIS, side // TILE_PX)
    starts = np.linspace(0, side - TILE_PX, n_tiles).round().astype(int)
    return [slice(int(start), int(start) + TILE_PX) for start in starts]


@Stepwise
def measure(movie: Counts, camera: Camera, numbers: Whole | None = None) -> Steps[Moments]:
    """Measure the moments of a movie.

    Args:
        movie: (frame, y, x) ADU.
        camera: gives light and noise; its maps cover the movie's frames.
        numbers: (frame,) time of each frame, in frames; frames before and after a gap are not
            successive; None: there are no gaps.

    Raises:
        ValueError: if the movie is too short or too small, or too few frames are successive.
    """
    plan = _Plan.of(shape_of(movie))
    numbers = np.arange(len(movie)) if numbers is None else numbers
    times = numbers // _spacing(numbers)
    cameras = [camera.crop(*tile) for tile in plan.tiles]
    steps: Array | None = None
    measured: list[list[_TileRun]] = []
    for turn, start in enumerate(plan.starts):
        begin, middle, end = (share / len(plan.starts) for share in (turn, turn + 0.5, turn + 1))
        lights = yield from part(_read_run(movie, cameras, plan, start), begin, middle)
        if steps is None:
            steps = _steps(torch.cat([light.flatten() for light in lights]), camera)
        of_run = times[start : start + plan.run]
        tiles = _measure_run(lights, cameras, steps, of_run, plan.chunk)
        measured.append((yield from part(tiles, middle, end)))
    assert steps is not None
    return _moments(measured, plan, steps=steps, rate=saturation_rate(camera, steps))


MESSAGE = "estimating the moments of the movie's light"


def _read_run(
    movie: Counts,
    cameras: Sequence[Camera],
    plan: _Plan,
    start: int,
) -> Steps[list[Tensor]]:
    """(frame, y, x) photons of each tile, float32."""
    lights: list[list[Tensor]] = [[] for _ in plan.tiles]
    for i in range(start, start + plan.run):
        yield Progress((i - start) / plan.run, MESSAGE)
        for light, camera, (rows, columns) in zip(lights, cameras, plan.tiles, strict=True):
            adu = read_frames(movie, i, i + 1, rows, columns)
            light.append(camera.without_bad(camera.to_photons(adu)).float())
    return [torch.cat(light) for light in lights]


def _measure_run(
    lights: Sequence[Tensor], cameras: Sequence[Camera], steps: Array, times: Whole, chunk: int
) -> Steps[list[_TileRun]]:
    measured: list[_TileRun] = []
    for light, camera in zip(lights, cameras, strict=True):
        yield Progress(len(measured) / len(lights), MESSAGE)
        measured.append(_TileRun.of(light, camera, steps, times, chunk))
    return measured


class _TileRun(NamedTuple):
    """The measurements of a tile in a run of frames."""

    light: float
    """mean of all pixels, photons"""
    parts: Array
    """(chunk, 1 + step) mean light and log transform of the pixels that are dark at times"""
    doubt: Array
    """(1 + step,) possible error of the correction for the bias of their log transform"""
    n_dark: float
    """number of these pixels"""
    products: Array
    """(chunk, covariance) sums of the products of light, as from `_products`"""
    n_products: Array
    """(chunk, covariance) number of the products"""
    cells: Array
    """(chunk, 1 + step, cell)"""
    n: int
    """pixels, summed over frames"""

    @classmethod
    def of(cls, light: Tensor, camera: Camera, steps: Array, times: Whole, chunk: int) -> Self:
        transform, bias = _log_transform(light, camera, steps, chunk)
        dark = _dark(bias)
        # half of the correction, and all of it and more where one dark moment made the mean
        doubt = (bias / 2 + BIAS_DOUBT * bias**2)[:, dark].mean(1)
        products, n_products = _products(light, times, chunk)
        return cls(
            light=float(transform[:, 0].mean()),
            parts=transform[:, :, dark].mean(2).numpy(),
            doubt=doubt.numpy(),
            n_dark=float(dark.sum()),
            products=products,
            n_products=n_products,
            cells=_cells(transform),
            n=light.numel(),
        )


def _moments(
    measured: Sequence[Sequence[_TileRun]],
    plan: _Plan,
    *,
    steps: Array,
    rate: Array,
) -> Moments:
    """Moments of all runs' tiles, chunks in the order of time."""
    tiles = [tile for run in measured for tile in run]
    per_run = plan.run // plan.chunk

    # (chunk, tile, moment)
    parts = np.concatenate([np.stack([tile.parts for tile in run], 1) for run in measured])
    products = np.concatenate([np.stack([tile.products for tile in run], 1) for run in measured])
    counted = np.concatenate([np.stack([tile.n_products for tile in run], 1) for run in measured])
    n_dark = np.array([[tile.n_dark for tile in run] for run in measured])
    dark = np.repeat(n_dark, per_run, 0)[:, :, None]
    brightness = by_brightness(parts, rate)
    sums = np.concatenate([brightness * dark, products], 2)
    counts = np.concatenate([np.broadcast_to(dark, brightness.shape), counted], 2)
    if not counts.sum((0, 1)).all():
        raise ValueError(
            f"too few of the {plan.run * len(measured)} frames that hold an image are successive "
            "to see molecules go on and off; take a part of the movie (--frames) in which they are"
        )
    values, covariance = _pooled(sums, counts)
    doubt = np.zeros(len(values))
    doubt[: len(rate) + 1] = by_brightness(np.mean([tile.doubt for tile in tiles], 0), rate)
    covariance = covariance + np.outer(doubt, doubt)

    shared = slice(len(rate) + 1, None)
    n_chunks = len(parts)
    lag = _clear_lag(
        values[shared],
        covariance[shared, shared],
        counts.sum((0, 1))[shared],
        chunks=n_chunks,
    )
    kept = _kept(lag)
    keep = np.r_[: len(rate) + 1, kept + len(rate) + 1]

    # (chunk, 1 + step, cell)
    cells = np.concatenate([np.concatenate([tile.cells for tile in run], 2) for run in measured])
    return Moments(
        light=float(np.mean([tile.light for tile in tiles])),
        values=MomentVector(
            brightness=values[: len(rate) + 1],
            touching=values[shared][AT_TOUCHING],
            offsets=values[shared][kept[len(LAGS) :]],
        ),
        covariance=covariance[np.ix_(keep, keep)],
        lag=lag,
        steps=steps,
        rate=rate,
        cells=_light_of_cells(cells),
        runs=_light_of_runs(cells.mean(2), len(measured)),
        times=plan.starts + plan.run / 2,
        run=plan.run,
        chunks=n_chunks,
        frames=plan.run * len(measured),
        n=sum(tile.n for tile in tiles),
    )


def _pooled(sums: Array, counts: Array) -> tuple[Array, Array]:
    """Means over all chunks and tiles, and the covariance of their errors.

    Args:
        sums, counts: (chunk, tile, moment).

    Returns:
        (moment,) and (moment, moment).
    """
    values = sums.sum((0, 1)) / counts.sum((0, 1))
    influence = (sums - values * counts) / counts.sum((0, 1))
    # molecules lie unevenly: tiles differ, and this is no error of their mean
    influence = influence - influence.mean(0)
    length = len(influence)
    flat = influence.reshape(length, -1, len(values))
    covariance = np.einsum("cti,ctj->ij", flat, flat) * length / (length - 1)
    # a molecule may shine in two chunks (Newey and West, Econometrica 55, 703, 1987, with one lag)
    crossed = np.einsum("cti,ctj->ij", flat[:-1], flat[1:]) / 2
    return values, covariance + crossed + crossed.T


def _clear_lag(values: Array, covariance: Array, counts: Array, *, chunks: int) -> int | None:
    """Lag at which neighbouring pixels significantly share light: 1, else 0, else None.

    Args:
        values: (covariance,) with touching pixels at each of LAGS, then at each of OFFSETS at
            lag 1, and at lag 0.
        covariance: covariance of their errors.
        counts: number of products that each is the mean of.
        chunks: number of chunks of frames whose scatter gives the covariance.
    """
    after_one, within = np.zeros((2, len(values)))
    # light that flickers as a whole is no molecule's: it reaches as far as one looks
    far = np.where(np.hypot(*OFFSETS.T) > REACH_PX - 2, 1.0, 0.0)
    for lag, weight in ((1, after_one), (0, within)):
        weight[LAGS.index(lag)] = 1
        weight[AT_OFFSETS[lag]] = -far / far.sum()
    likely, sure = stdtrit(chunks - 1, (LIKELY, SURE))
    variance = values[AT_OFFSETS[0]][0]
    for lag, weight in ((1, after_one), (0, within)):
        shared = weight @ values
        error = math.sqrt(weight @ covariance @ weight)
        by_chance = variance * math.sqrt((weight**2 / counts).sum())
        if shared > sure * error or shared > max(likely * error, BEYOND_NOISE * by_chance):
            return lag
    return None


def _kept(lag: int | None) -> npt.NDArray[np.int64]:
    """Places of the covariances that are fitted: those of one lag, without any that holds noise."""
    if lag:
        return np.r_[AT_TOUCHING, AT_OFFSETS[1]]
    without_pixel = slice(AT_OFFSETS[0].start + 1, AT_OFFSETS[0].stop)
    return np.r_[AT_TOUCHING, without_pixel]


def _light_of_cells(cells: Array) -> LightParts:
    """Light of each cell from (chunk, 1 + step, cell)."""
    length = len(cells)
    off = cells - cells.mean(0)
    covariance = np.einsum("cin,cjn->nij", off, off) / (length - 1) / length
    return LightParts(cells.mean(0).T, covariance)


def _light_of_runs(field: Array, n_runs: int) -> LightParts:
    """Light of each run from (chunk, 1 + step), the mean over the field."""
    by_run = field.reshape(n_runs, -1, field.shape[1])
    chunks = by_run.shape[1]
    scatter = np.cov(by_run.transpose(1, 0, 2).reshape(-1, field.shape[1]).T)
    return LightParts(by_run.mean(1), np.stack([scatter / chunks] * n_runs))


def _steps(light: Tensor, camera: Camera) -> Array:
    """Arguments of the Laplace transform, from the noise of a pixel with the median light."""
    typical = light[:: max(1, len(light) // 100_000)].median()
    variance = camera.typical_noise.variance(typical, darkest=0.0)
    return np.array(STEPS) / float(variance.clamp_min(1e-2).sqrt())


def _mean(value: float | Tensor) -> float:
    return float(torch.as_tensor(value, dtype=torch.float64).mean())


def saturation_rate(camera: Camera, steps: Array) -> Array:
    """(step,) increase of -log E[exp(-s light)] per photon.

    Poisson electrons give qe (1 - exp(-s / qe)); where the register turns each into an exponential
    variate, it is s / (1 + s / qe), by the Laplace transform of a compound Poisson variate
    (Kingman, Poisson Processes, 1993, sec. 3.2).
    """
    qe = _mean(camera.qe)
    if camera.em_gain is None:
        return qe * (1 - np.exp(-steps / qe))
    return steps / (1 + steps / qe)


def by_brightness(transform: Array, rate: Array) -> Array:
    """The mean light as a sum of parts, by the brightness of its sources.

    The parts range from the light of molecules that a small step saturates to steady light.  Minus
    the log Laplace transform over its rate is the mean light less the light that the step
    saturates; its values at many steps are nearly equal, with strongly correlated errors, while
    their differences carry independent information.

    Args:
        transform: (..., 1 + step) mean light, then minus the log transform at each step.
        rate: (step,) of `saturation_rate`.
    """
    mean, log = transform[..., :1], transform[..., 1:]
    seen = np.concatenate([mean, log / rate, np.zeros_like(mean)], -1)
    return seen[..., :-1] - seen[..., 1:]


def _log_transform(
    light: Tensor,
    camera: Camera,
    steps: Array,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Mean light, and minus the logarithm of the mean of exp(-s light), chunk by chunk.

    Args:
        light: (frame, y, x) photons.
        steps: (step,) s, 1 / photons.
        chunk: number of frames in a chunk.

    Returns:
        (chunk, 1 + step, y, x) float64, whose mean over chunks is that of the run; the camera's own
        part is removed.
        (1 + step, y, x) bias of the logarithm of so small a mean, which was subtracted; pixels that
        are hardly ever dark do not determine it, however many there are.
    """
    gain = 1.0 if camera.em_gain is None else camera.em_gain
    qe, adu = _mean(camera.qe), torch.as_tensor(camera.e_per_adu)
    read = torch.as_tensor(camera.read_noise_e) ** 2 + adu**2 / 12
    read = read.double() / gain**2 / qe**2
    read = read.reshape(read.shape[-2:])
    spurious = torch.as_tensor(camera.spurious_e).double().reshape(-1)[0]
    chunks = light.reshape(-1, chunk, *light.shape[1:])
    columns = [chunks.mean(1).double()]
    biases = [torch.zeros_like(columns[0][0])]
    for step, rate in zip(steps, saturation_rate(camera, steps), strict=True):
        mean = torch.exp(-step * chunks).mean(1).double()  # (chunk, y, x)
        total = mean.mean(0).clamp_min(1e-30)
        n = len(mean)
        bias = mean.var(0, correction=1) / n / total**2 / 2  # of the logarithm of a mean
        own = -torch.log(total) - bias + step**2 * read / 2 + spurious * (step - rate) / qe
        columns.append(own - (mean - total) / total)
        biases.append(bias)
    return torch.stack(columns, 1), torch.stack(biases)


def _dark(bias: Tensor) -> Tensor:
    """Which pixels are dark often enough to determine the logarithm; all, where hardly any are.

    Args:
        bias: (1 + step, y, x) bias of the logarithm.

    Returns:
        (y, x) bool.
    """
    dark = bias.amax(0) <= LEAST_DARK
    return dark if float(dark.double().mean()) >= FEWEST_DARK else torch.ones_like(dark)


def _cells(transform: Tensor) -> Array:
    """(chunk, 1 + step, cell) means over squares."""
    return F.avg_pool2d(transform, CELL_PX).flatten(2).numpy()


def _spacing(numbers: Whole) -> int:
    """The most frequent step to the next frame: 2 where every second one was dark."""
    return int(np.bincount(np.diff(numbers)).argmax())


def _pairs(times: Whole, lag: int) -> tuple[Whole, Whole]:
    """(pair,) indices of the frames that have another one `lag` later, and the indices of those."""
    later = np.searchsorted(times, times + lag).clip(max=len(times) - 1)
    first = np.flatnonzero(times[later] == times + lag)
    return first, later[first]


def _products(light: Tensor, times: Whole, chunk: int) -> tuple[Array, Array]:
    """Sums of products of the light at two pixels and frames, its mean over the run subtracted.

    Args:
        light: (frame, y, x) photons.
        times: (frame,) time of each frame, in frames; there may be gaps.
        chunk: number of frames in a chunk.

    Returns:
        (chunk, covariance) sums, with touching pixels at each of LAGS, then at each of OFFSETS at
        lag 1, and at lag 0; and the number of products.
    """
    length, height, width = light.shape
    size = (height + REACH_PX, width + REACH_PX)
    spectrum = torch.fft.rfft2(light - light.mean(0), s=size)
    y, x = OFFSETS.T
    overlap = (height - y) * (width - np.abs(x))
    starts = range(0, length, chunk)
    sums, counts = np.zeros((2, len(starts), len(LAGS) + 2 * len(OFFSETS)))
    for j, lag in enumerate(LAGS):
        earlier, later = _pairs(times, lag)
        for i, start in enumerate(starts):
            own = (start <= earlier) & (earlier < start + chunk)
            if not own.any():
                continue
            # light is the same forwards and backwards in time: both directions are averaged
            frames = spectrum[earlier[own]].conj() * spectrum[later[own]]
            correlation = torch.fft.irfft2(frames.sum(0), s=size).double().numpy()
            both = (correlation[y, x] + correlation[-y, -x]) / 2
            counted = len(frames) * overlap
            sums[i, j], counts[i, j] = both[TOUCHING].sum(), counted[TOUCHING].sum()
            if lag in AT_OFFSETS:
                sums[i, AT_OFFSETS[lag]], counts[i, AT_OFFSETS[lag]] = both, counted
    return sums, counts
