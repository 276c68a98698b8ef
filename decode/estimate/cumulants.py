"""What a movie's camera noise looks like: mean, variance and third cumulant of pixels, from dark to bright."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from decode.estimate.frames import gaussian_kernel, middle, read_frames, shape_of
from decode.io.stacks import Movie

__all__ = ["NoiseCumulants", "noise_cumulants"]

FRAMES_PER_WINDOW = 16
"""long enough for a third cumulant, short against bleaching"""
FEWEST_FRAMES = 5
FEWEST_PIXELS = 400
"""in a class"""
STEADY = 1.5
"""a pixel is steady in the frames in which its surroundings are as near to their median, in standard deviations"""
HOT = 3.0
"""a pixel is hot whose variance is so many standard deviations above what is usual"""
OUTLIER = 10.0
"""as many standard deviations above the usual variance is no noise"""
N_RANKS = 20
"""classes of brightness in which the usual is found"""


@final
@dataclass(frozen=True, kw_only=True)
class NoiseCumulants:
    """Classes of pixels from dark to bright, each field (n,); errors are standard deviations."""

    mean: Tensor
    """ADU"""
    variance: Tensor
    """ADU^2, of the noise alone"""
    variance_error: Tensor
    third: Tensor
    """third cumulant, ADU^3"""
    third_error: Tensor
    n_pixels: int
    """number of pixels, each in each window of frames, that were looked at"""


def noise_cumulants(movie: Movie | Tensor | npt.NDArray[Any], *, n_frames: int | None = None) -> NoiseCumulants:
    """Cumulants of the noise of pixels, over the frames of a blinking movie in which they are steady.

    The noise of a camera is independent from pixel to pixel, light is not.  So the surroundings of a pixel say in
    which frames it is steady, without a choice by its own noise, and they predict what light does change: of each frame
    a weighted sum over 3 x 3 pixels is taken whose weights add up to 0, and Fisher's unbiased k-statistics of it over
    time are divided by the sums of the squared and cubed weights.  The mask [1 -2 1] along both axes cancels light
    best and gives the variance (Immerkaer, Comput. Vis. Image Underst. 64, 300, 1996); a pixel less the mean of its
    eight neighbours keeps more skewness and gives the third cumulant.  Where both see another variance light did
    change, and the errors grow by what may be left of it.

    Args:
        movie: (frame, y, x) ADU.
        n_frames: number of frames to look at, spread over the movie in windows; None takes 64, and more of a small
            field.

    Raises:
        ValueError: in one sentence, if the movie is too small or holds NaN.
    """
    shape = shape_of(movie)
    if shape[0] < FEWEST_FRAMES or min(shape[1:]) < 16:
        raise ValueError(
            f"estimating the camera takes at least {FEWEST_FRAMES} frames of 16 x 16 pixels, this movie has "
            f"{shape[0]} of {shape[1]} x {shape[2]}; give --camera"
        )
    rows, columns = (middle(side) for side in shape[1:])
    pixels = (rows.stop - rows.start) * (columns.stop - columns.start)
    wanted = min(shape[0], n_frames or max(4 * FRAMES_PER_WINDOW, 2**23 // pixels))
    length = min(shape[0], FRAMES_PER_WINDOW)
    starts = np.linspace(0, shape[0] - length, max(1, wanted // length)).round().astype(int)
    # a movie of one window is halved into even and odd frames, for hot pixels are looked for in the other windows
    parts = [slice(None)] if len(starts) > 1 else [slice(0, None, 2), slice(1, None, 2)]
    windows = torch.cat([_window(read_frames(movie, start, start + length, rows, columns), parts) for start in starts])
    return _classes(_without_hot(windows, (rows.stop - rows.start - 6, columns.stop - columns.start - 6)))


def _window(frames: Tensor, parts: Sequence[slice]) -> Tensor:
    """Statistics of the pixels of consecutive frames.

    Args:
        frames: (frame, y, x) float64 ADU.
        parts: which of the frames each row of the result is about.

    Returns:
        (parts, 7, pixels): light around, number of steady frames, mean of the pixels under the first mask, k2 by the
        first mask, k2 and k3 by the second one, and the usual k2 of pixels as bright.
    """
    if not bool(torch.isfinite(frames).all()):
        raise ValueError("the movie holds NaN or infinite counts; mend it or leave those frames out")
    box, flat, bell = torch.ones(3).double(), torch.tensor([1.0, -2.0, 1.0]).double(), gaussian_kernel(1.0).double()
    # surroundings of 7 x 7 pixels without the inner 3 x 3, which the masks take
    inner = frames[:, 2:-2, 2:-2]
    hole = bell[2:5]
    around = ((_masked(frames, bell) - _masked(inner, hole)) / (1 - hole.sum() ** 2)).flatten(1)
    light = around.median(0).values
    unrest = (around - light).abs()
    # noise grows with light: it is judged among pixels as bright
    rank = light.argsort().argsort() * N_RANKS // len(light)
    typical = _median_by(rank, unrest) / 0.6745
    steady = (unrest <= STEADY * typical).double()
    pixel = inner[:, 1:-1, 1:-1]
    masked = (
        _masked(inner, flat**2 / 6).flatten(1),
        _masked(inner, flat / 6**0.5).flatten(1),  # of squared weights that add up to 1
        (pixel - (_masked(inner, box) - pixel) / 8).flatten(1),
    )
    statistics = []
    for part in parts:
        n = steady[part].sum(0)
        mean, *centres = ((steady[part] * values[part]).sum(0) / n.clamp_min(1) for values in masked)
        first, second = ((values[part] - c) * steady[part] for values, c in zip(masked[1:], centres, strict=True))
        k2_flat = (first**2).sum(0) / (n - 1)
        k2_peaked = (second**2).sum(0) / (n - 1) / (1 + 1 / 8)
        k3 = n * (second**3).sum(0) / ((n - 1) * (n - 2)) / (1 - 1 / 64)
        usual = _median_by(rank, torch.where(n >= 3, k2_peaked, torch.nan)[None])
        statistics.append(torch.stack([light, n, mean, k2_flat, k2_peaked, k3, usual]))
    return torch.stack(statistics)


def _without_hot(windows: Tensor, shape: tuple[int, int]) -> Tensor:
    """Pixels whose variance is usual, as the other windows see it: that choice does not bias what is measured.

    Args:
        windows: (window, 7, pixels) of `_window`.
        shape: (y, x) of the pixels.

    Returns:
        (6, pixels of all windows).
    """
    n, k2, usual = windows[:, 1], windows[:, 4], windows[:, 6]
    counted = n >= 3
    freedom = torch.where(counted, n - 1, 0)
    excess = torch.where(counted, (n - 1) * (k2 - usual), 0)
    others, their_excess = (values.sum(0) - values for values in (freedom, excess))
    # the same bound for all pixels but the bright ones, or what read noise remains would depend on the light
    bound = HOT * (2 / others).sqrt() * torch.maximum(usual.nanmedian(), usual / 2)
    hot = their_excess / others > bound
    # its own variance counts only where chance has no part in it: a molecule shone on the pixel alone
    hot |= k2 > usual + OUTLIER * (2 / (n - 1)).sqrt() * torch.maximum(usual.nanmedian(), usual)
    touched = F.max_pool2d(hot.double().reshape(-1, 1, *shape), 3, 1, 1).reshape(hot.shape) > 0
    keep = counted & (others > 0) & ~touched
    return torch.stack([statistic[keep] for statistic in windows[:, :6].unbind(1)])


def _masked(frames: Tensor, weights: Tensor) -> Tensor:
    """(frame, y, x) weighted sums along both axes, without those that reach over the border."""
    for axis in (1, 2):
        length = frames.shape[axis] - len(weights) + 1
        summed = frames.narrow(axis, 0, length) * weights[0]
        for i in range(1, len(weights)):
            summed.add_(frames.narrow(axis, i, length), alpha=float(weights[i]))
        frames = summed
    return frames


def _median_by(rank: Tensor, values: Tensor) -> Tensor:
    """Median of (frame, pixels) values over all frames and the pixels of the same rank: (pixels,)."""
    medians = [values[:, rank == i].nanmedian() for i in range(N_RANKS)]
    return torch.stack(medians)[rank]


def _classes(pixels: Tensor) -> NoiseCumulants:
    """Means over pixels that are as bright; few pixels are bright, so the classes become ever smaller."""
    total = pixels.shape[1]
    if total < 2 * FEWEST_PIXELS:
        raise ValueError("too few pixels of the movie are steady to tell the camera's noise; give --camera")
    pixels = pixels[:, pixels[0].argsort()]
    ends = [total // 8, total // 4]
    ends += [total - total // 2**k for k in range(1, 64) if total // 2**k >= FEWEST_PIXELS] + [total]
    rows = []
    for start, end in zip([0, *ends], ends, strict=False):
        _, n, mean, k2_flat, k2_peaked, k3 = pixels[:, start:end]
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
    )
