"""Mean, variance and third cumulant of the camera noise of a movie, for pixels from dark to
bright."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from decode.defects import Counts
from decode.estimation.frames import (
    LARGEST_FIELD_PX,
    gaussian_kernel,
    middle,
    read_frames,
    shape_of,
)

__all__ = ["NoiseCumulants", "noise_cumulants", "photon_transfer"]

FRAMES_PER_WINDOW = 16
"""frames per window: enough for a third cumulant, few against bleaching"""
FEWEST_FRAMES = 5
"""fewest frames of a third cumulant"""
FEWEST_PIXELS = 400
"""least number of pixels in a class"""
STEADIEST = 0.25
"""share of the pairs of a class that is used: those whose surroundings changed least"""
LEAK = 0.045
"""variance that changing light adds under the mask [1 -2 1], over the difference of what it adds
under both masks: from the masks' power at the frequencies of a Gaussian of sigma 1 px; half as
large at 1.2 px and twice at 0.8 px"""
OUTLIER_PAIR = 5.0
"""standard deviations above which a difference of two frames is no noise, and above which a pixel's
median squared difference makes it hot"""
SIGNIFICANT = 2.0
"""standard deviations by which noise must grow with light"""
REPEATED = 3.78 * 1.5
"""number of pairs of frames and pixels with the information of one independent pair, as neighbours
share most of the mask and consecutive pairs a frame (sums of the squared autocorrelations of mask
and difference)"""
STEADY = 1.5
"""a pixel is steady in frames in which its surroundings lie within so many standard deviations of
their median"""
HOT = 3.0
"""a pixel is hot if its variance lies so many standard deviations above the usual one"""
OUTLIER = 10.0
"""standard deviations above the usual variance from which a value is no noise"""
N_RANKS = 20
"""number of classes of brightness in which the usual variance is computed"""


@final
@dataclass(frozen=True, kw_only=True)
class NoiseCumulants:
    """Classes of pixels from dark to bright, each field (n,); errors are standard deviations."""

    mean: Tensor
    """ADU"""
    variance: Tensor
    """variance of the noise alone, ADU^2"""
    variance_error: Tensor
    third: Tensor
    """third cumulant, ADU^3; empty, with its error, where it is unknown"""
    third_error: Tensor
    n_pixels: int
    """number of pixels that were used, summed over windows or pairs of frames"""
    raw: bool
    """whether counts are whole and not negative, as a camera writes them, before any subtraction of
    an offset or change of scale"""


def noise_cumulants(movie: Counts, *, n_frames: int | None = None) -> NoiseCumulants | None:
    """Cumulants of the noise of pixels, over the frames of a blinking movie in which they are
    steady.

    The noise of a camera is independent from pixel to pixel, light is not.  The surroundings of a
    pixel therefore show in which frames it is steady, without selecting on its own noise, and they
    predict the changes of light: each frame is convolved with a mask of 3 x 3 weights that add up
    to 0, and unbiased k-statistics over time (Fisher, Proc. London Math. Soc. 30, 199, 1930) are
    divided by the sums of the squared and cubed weights.  The mask [1 -2 1] along both axes cancels
    light best and gives the variance (Immerkaer, Comput. Vis. Image Underst. 64, 300, 1996); a
    pixel less the mean of its eight neighbours keeps more skewness and gives the third cumulant.
    Where their variances differ, light did change, and the errors grow by what may remain of it.

    Args:
        movie: (frame, y, x) ADU.
        n_frames: number of frames to look at, spread over the movie in windows; None takes 64, and
            more of a small field.

    Returns:
        Classes, or None if too few pixels are steady.

    Raises:
        ValueError: in one sentence, if the movie is too small or holds NaN.
    """
    windows = _windows(shape_of(movie), n_frames, n_windows=4, n_values=2**23)
    # a movie of one window is halved into even and odd frames, for hot pixels are looked for in the
    # other windows
    parts = [slice(None)] if len(windows) > 1 else [slice(0, None, 2), slice(1, None, 2)]
    statistics, raw = [], True
    for window in windows:
        frames = _read(movie, window)
        if len(frames) < FEWEST_FRAMES:
            return None
        raw = raw and _is_raw(frames)
        statistics.append(_statistics(frames, parts))
    pixels = _without_hot(torch.cat(statistics), (frames.shape[1] - 6, frames.shape[2] - 6))
    return _classes(pixels, raw) if pixels.shape[1] >= 2 * FEWEST_PIXELS else None


def photon_transfer(movie: Counts, *, n_frames: int | None = None) -> NoiseCumulants:
    """Mean and variance of pixels over pairs of consecutive frames, for movies without many steady
    pixels.

    Among equally bright pixels, those pairs count whose surroundings changed least, and the
    variance is half the mean squared difference of two frames (Janesick, Photon Transfer, SPIE,
    2007) under the mask [1 -2 1] of `noise_cumulants`.  A pixel need be steady for two frames only,
    so that light of molecules can be used too.  The other mask responds more to changes of light,
    and a share of the difference of both variances is subtracted; differences of frames have no
    third cumulant.

    Args:
        movie: (frame, y, x) ADU.
        n_frames: as for `noise_cumulants`; None takes at least 16.

    Raises:
        ValueError: in one sentence, if the movie is too small or holds NaN, or if noise does not
            grow with light.
    """
    pairs, raw = [], True
    for window in _windows(shape_of(movie), n_frames, n_windows=1, n_values=2**22):
        frames = _read(movie, window)
        raw = raw and _is_raw(frames)
        around, mean, flat, peaked = _views(frames)
        light, level = ((values[1:] + values[:-1]) / 2 for values in (around, mean))
        unrest = around.diff(dim=0).abs()
        square, other = (values.diff(dim=0) ** 2 / 2 for values in (flat, peaked))
        pairs.append(torch.stack([light, unrest, level, square, other / (1 + 1 / 8)]).float())
    pixels = torch.cat(pairs, 1)
    light, unrest, *values = pixels[..., ~_is_hot(pixels[0], pixels[3])].flatten(1)
    order = light.argsort()
    rows = []
    for part in order.tensor_split(_ends(len(order), FEWEST_PIXELS)[:-1]):
        steady = part[unrest[part].argsort()[: math.ceil(STEADIEST * len(part))]]
        levels, squares, others = (value[steady].double() for value in values)
        # the median of a chi-squared variate is 0.455 of its mean
        keep = squares <= OUTLIER_PAIR**2 * squares.median() / 0.455
        change = LEAK * (others[keep].mean() - squares[keep].mean()).clamp_min(0)
        chance = (2 * REPEATED / keep.sum()).sqrt()
        level, variance = levels[keep].mean(), squares[keep].mean() - change
        rows.append(torch.stack([level, variance, change, chance]))
    mean, variance, change, chance = torch.stack(rows, 1)
    # the error is that of the variance on a line: a class that came out low by chance is no surer
    # than others
    error = chance * variance.mean()
    for _ in range(5):
        weight = error**-2
        middle, height = ((weight * values).sum() / weight.sum() for values in (mean, variance))
        spread = (weight * (mean - middle) ** 2).sum()
        slope = (weight * (mean - middle) * variance).sum() / spread
        on_line = (height + slope * (mean - middle)).clamp_min(variance.mean() / 10)
        error = torch.hypot(chance * on_line, change)
    if not slope > SIGNIFICANT * spread.rsqrt():
        fault = "the movie's noise grows with its light by no more than chance, which gives no gain"
        raise ValueError(f"{fault}; give --camera")
    return NoiseCumulants(
        mean=mean,
        variance=variance,
        variance_error=error,
        third=mean[:0],
        third_error=mean[:0],
        n_pixels=len(order),
        raw=raw,
    )


def _is_hot(light: Tensor, square: Tensor) -> Tensor:
    """Which pixels have a median squared difference above the usual one of equally bright pixels.

    Args:
        light, square: (pair, pixels).

    Returns:
        (pixels,) bool.
    """
    rank = light.median(0).values.argsort().argsort() * N_RANKS // light.shape[1]
    # relative standard deviation of the median of a chi-squared variate, whose density there is
    # 0.47
    chance = (1.5 / len(square)) ** 0.5 / (2 * 0.47 * 0.455)
    return square.median(0).values > (1 + OUTLIER_PAIR * chance) * _median_by(rank, square)


def _windows(
    shape: tuple[int, int, int],
    n_frames: int | None,
    *,
    n_windows: int,
    n_values: int,
) -> list[slice]:
    """Windows of consecutive frames, spread over the movie; without `n_frames`, at least
    `n_windows` and enough for `n_values`."""
    if shape[0] < 2 or min(shape[1:]) < 16:
        raise ValueError(
            "estimating the camera takes at least 2 frames of 16 x 16 pixels, this movie has "
            f"{shape[0]} of {shape[1]} x {shape[2]}; give --camera"
        )
    pixels = min(shape[1], LARGEST_FIELD_PX) * min(shape[2], LARGEST_FIELD_PX)
    wanted = min(shape[0], n_frames or max(n_windows * FRAMES_PER_WINDOW, n_values // pixels))
    length = min(shape[0], FRAMES_PER_WINDOW)
    starts = np.linspace(0, shape[0] - length, max(1, wanted // length)).round().astype(int)
    return [slice(start, start + length) for start in starts.tolist()]


def _read(movie: Counts, window: slice) -> Tensor:
    """(frame, y, x) float64 ADU of the middle of the field."""
    rows, columns = (middle(side) for side in movie.shape[1:])
    frames = read_frames(movie, window.start, window.stop, rows, columns)
    if not bool(torch.isfinite(frames).all()):
        remedy = "repair it or leave those frames out"
        raise ValueError(f"the movie holds NaN or infinite counts; {remedy}")
    return frames


def _is_raw(frames: Tensor) -> bool:
    return bool((frames >= 0).all()) and bool((frames == frames.round()).all())


def _views(frames: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(frame, y, x) under different masks, without 3 pixels at the border.

    Returns:
        (frame, pixels) each: mean of the 7 x 7 pixels without the inner 3 x 3; mean of the inner
        ones, weighted by the squares of the next mask; [1 -2 1] along both axes; the pixel less the
        mean of its neighbours.
    """
    box, flat = torch.ones(3).double(), torch.tensor([1.0, -2.0, 1.0]).double()
    bell = gaussian_kernel(1.0).double()
    inner = frames[:, 2:-2, 2:-2]
    hole = bell[2:5]
    pixel = inner[:, 1:-1, 1:-1]
    views = (
        (_masked(frames, bell) - _masked(inner, hole)) / (1 - hole.sum() ** 2),
        _masked(inner, flat**2 / 6),
        _masked(inner, flat / 6**0.5),  # of squared weights that add up to 1
        pixel - (_masked(inner, box) - pixel) / 8,
    )
    around, mean, second_difference, peak = (view.flatten(1) for view in views)
    return around, mean, second_difference, peak


def _statistics(frames: Tensor, parts: Sequence[slice]) -> Tensor:
    """Statistics of the pixels of consecutive frames.

    Args:
        frames: (frame, y, x) float64 ADU.
        parts: the frames of each row of the result.

    Returns:
        (parts, 7, pixels): light of the surroundings, number of steady frames, mean of the pixels
        under the first mask, k2 by the first mask, k2 and k3 by the second one, and the usual k2 of
        equally bright pixels.
    """
    around, *masked = _views(frames)
    light = around.median(0).values
    unrest = (around - light).abs()
    # noise grows with light: it is judged among pixels as bright
    rank = light.argsort().argsort() * N_RANKS // len(light)
    typical = _median_by(rank, unrest) / 0.6745
    steady = (unrest <= STEADY * typical).double()
    statistics = []
    for part in parts:
        n = steady[part].sum(0)
        weight = steady[part]
        mean, flat, peaked = ((weight * values[part]).sum(0) / n.clamp_min(1) for values in masked)
        first, second = (masked[1][part] - flat) * weight, (masked[2][part] - peaked) * weight
        k2_flat = (first**2).sum(0) / (n - 1)
        k2_peaked = (second**2).sum(0) / (n - 1) / (1 + 1 / 8)
        k3 = n * (second**3).sum(0) / ((n - 1) * (n - 2)) / (1 - 1 / 64)
        usual = _median_by(rank, torch.where(n >= 3, k2_peaked, torch.nan)[None])
        statistics.append(torch.stack([light, n, mean, k2_flat, k2_peaked, k3, usual]))
    return torch.stack(statistics)


def _without_hot(windows: Tensor, shape: tuple[int, int]) -> Tensor:
    """Pixels whose variance is usual in the other windows, a choice that does not bias the
    measurement.

    Args:
        windows: (window, 7, pixels) of `_statistics`.
        shape: (y, x) of the pixels.

    Returns:
        (6, pixels of all windows).
    """
    n, k2, usual = windows[:, 1], windows[:, 4], windows[:, 6]
    counted = n >= 3
    freedom = torch.where(counted, n - 1, 0)
    excess = torch.where(counted, (n - 1) * (k2 - usual), 0)
    others, their_excess = (values.sum(0) - values for values in (freedom, excess))
    # the same bound for all pixels but the bright ones, or what read noise remains would depend on
    # the light
    bound = HOT * (2 / others).sqrt() * torch.maximum(usual.nanmedian(), usual / 2)
    hot = their_excess / others > bound
    # its own variance counts only where chance has no part in it: a molecule shone on the pixel
    # alone
    hot |= k2 > usual + OUTLIER * (2 / (n - 1)).sqrt() * torch.maximum(usual.nanmedian(), usual)
    touched = F.max_pool2d(hot.double().reshape(-1, 1, *shape), 3, 1, 1).reshape(hot.shape) > 0
    keep = counted & (others > 0) & ~touched
    return torch.stack([statistic[keep] for statistic in windows[:, :6].unbind(1)])


def _masked(frames: Tensor, weights: Tensor) -> Tensor:
    """(frame, y, x) weighted sums along both axes, without those that extend over the border."""
    for axis in (1, 2):
        length = frames.shape[axis] - len(weights) + 1
        summed = frames.narrow(axis, 0, length) * weights[0]
        for i in range(1, len(weights)):
            summed.add_(frames.narrow(axis, i, length), alpha=float(weights[i]))
        frames = summed
    return frames


def _median_by(rank: Tensor, values: Tensor) -> Tensor:
    """Median of (frame, pixels) values over all frames and the pixels of the same rank:
    (pixels,)."""
    medians = [values[:, rank == i].nanmedian() for i in range(N_RANKS)]
    return torch.stack(medians)[rank]


def _ends(total: int, fewest: float) -> list[int]:
    """Ends of the classes of brightness, which become smaller as fewer pixels are bright."""
    smaller = [total - total // 2**k for k in range(1, 64) if total // 2**k >= fewest]
    return [total // 8, total // 4, *smaller, total]


def _classes(pixels: Tensor, raw: bool) -> NoiseCumulants:
    """Means of the (6, pixels) of `_without_hot` over equally bright pixels."""
    total = pixels.shape[1]
    pixels = pixels[:, pixels[0].argsort()]
    rows = []
    for part in pixels.tensor_split(_ends(total, FEWEST_PIXELS)[:-1], dim=1):
        _, n, mean, k2_flat, k2_peaked, k3 = part
        w2, w3 = n - 1, (n - 1) * (n - 2) / n

        def average(values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
            middle = (weight * values).sum() / weight.sum()
            return middle, ((weight * (values - middle)) ** 2).sum().sqrt() / weight.sum()

        (variance, error), (other, _), (third, third_error) = (
            average(k2_flat, w2),
            average(k2_peaked, w2),
            average(k3, w3),
        )
        light = (other - variance).abs()  # what the second mask sees of changing light
        rows.append(
            torch.stack(
                [
                    average(mean, w2)[0],
                    variance,
                    torch.hypot(error, 0.1 * light),
                    third,
                    torch.hypot(third_error, 6 * third.abs() * light / variance.clamp_min(1e-9)),
                ]
            )
        )
    mean, variance, error, third, third_error = torch.stack(rows, 1)
    return NoiseCumulants(
        mean=mean,
        variance=variance,
        variance_error=error,
        third=third,
        third_error=third_error,
        n_pixels=total,
        raw=raw,
    )
