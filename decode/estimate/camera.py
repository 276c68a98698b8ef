"""A rough camera, from the movie alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from decode.estimate.frames import Estimate, gaussian_kernel, middle, read_frames, shape_of
from decode.io.stacks import Movie
from decode.optics.camera import Camera

__all__ = ["estimate_camera"]

TYPICAL_READ_NOISE_E = 1.5
"""of an sCMOS camera, electrons"""
GAIN_ERROR = 0.06
"""as `MODEL_ERROR`, of the gain"""
LARGEST_SCMOS_GAIN = 5.0
"""ADU per electron; a steeper growth of the noise comes from an electron-multiplying register"""


@torch.no_grad()
def estimate_camera(
    movie: Movie | Tensor | npt.NDArray[Any], *, n_frames: int | None = None
) -> tuple[Camera, tuple[str, ...]]:
    """A rough camera from a movie of blinking molecules: photon transfer (Janesick, Photon Transfer, SPIE, 2007).

    The variance of a steady pixel grows with its mean by the ADU that one electron gives.  It is taken from the
    difference of consecutive frames, in pixels whose neighbours say that no molecule went on or off.

    Offset and read noise cannot be told apart without dark frames: a read noise is assumed and the offset follows.
    An EMCCD cannot be told from a camera of twice the gain: it is described as one without a register, whose noise is
    right and whose photons are half of the true ones.

    Args:
        movie: (frame, y, x) ADU.
        n_frames: number of pairs of frames to look at, spread over the movie; None takes 50, and more of a small field.

    Returns:
        The camera, its photons being photoelectrons (`qe` 1), and a sentence on each thing the user should know.

    Raises:
        ValueError: in one sentence, if the movie's noise does not tell the gain.
    """
    shape = shape_of(movie)
    if shape[0] < 2 or min(shape[1:]) < 16:
        raise ValueError("estimating the camera takes at least 2 frames of 16 x 16 pixels; give --camera")
    rows, columns = (middle(side) for side in shape[1:])
    pixels = (rows.stop - rows.start) * (columns.stop - columns.start)
    n_pairs = min(shape[0] - 1, n_frames or max(50, 2**21 // pixels))
    starts = np.linspace(0, shape[0] - 2, n_pairs).round().astype(int)
    pairs = torch.stack([read_frames(movie, i, i + 2, rows, columns) for i in starts])
    gain, dark = _photon_transfer(pairs)
    if not gain.low > 0:
        raise ValueError("the movie's noise does not grow with its light and tells no gain; give --camera")

    register = gain.value > LARGEST_SCMOS_GAIN
    read_noise_e = 0.0 if register else TYPICAL_READ_NOISE_E
    # a baseline above the darkest pixels cannot be; below, read noise moves it by read_noise_e^2 * gain
    darkest = float(pairs.mean((0, 1)).quantile(0.01))
    low, value, high = (
        min(darkest, offset + noise**2 * gain.value)
        for offset, noise in ((dark.low, 0.0), (dark.value, read_noise_e), (dark.high, 2 * read_noise_e))
    )
    baseline = Estimate(value, low, high, gain.n)
    read_noise_e = math.sqrt(max(0.0, (value - dark.value) / gain.value))
    notes = [
        f"the camera was estimated from the movie, roughly: {gain} ADU per electron and {baseline} ADU at no light; "
        "photons and uncertainties are as rough",
        f"a read noise of {read_noise_e:.2g} electrons was assumed, and photons are photoelectrons: "
        "a movie does not tell read noise and quantum efficiency",
    ]
    if register:
        notes.append(
            f"{gain.value:.3g} ADU per electron suggest an EMCCD, whose excess noise the movie does not tell from "
            "gain: uncertainties hold, but photons come out at about half their number; give --camera"
        )
    return Camera(baseline=value, e_per_adu=1 / gain.value, read_noise_e=read_noise_e), tuple(notes)


def _photon_transfer(pairs: Tensor) -> tuple[Estimate, Estimate]:
    """Line of variance against mean of steady pixels.

    Light that goes on or off is smooth over a few pixels: the mask [1 -2 1] along both axes takes most of it from the
    difference of two frames and leaves the noise (Immerkaer, Comput. Vis. Image Underst. 64, 300, 1996), and pixels
    whose surroundings changed are left out.  Surroundings and pixel share no noise, so neither choice biases the other.

    Args:
        pairs: (n, 2, y, x) ADU, consecutive frames.

    Returns:
        Slope [ADU per electron] and where the line meets zero variance [ADU].
    """
    ring = torch.outer(gaussian_kernel(1.0), gaussian_kernel(1.0)).double()
    ring[2:5, 2:5] = 0
    second_difference = torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64)
    mask = torch.outer(second_difference, second_difference) / 6  # noise of variance 1 keeps variance 1

    def around(images: Tensor) -> Tensor:
        return F.conv2d(images, (ring / ring.sum())[None, None]).flatten()

    def within(images: Tensor, kernel: Tensor) -> Tensor:
        return F.conv2d(images[..., 2:-2, 2:-2], kernel[None, None]).flatten()

    light, change = pairs.mean(1, keepdim=True), pairs.diff(dim=1)
    unrest, square = around(change).abs(), within(change, mask) ** 2 / 2
    # the variance of the masked difference is that of this mean, for variance is linear in light
    mean = within(light, mask**2)
    order = around(light).argsort()
    # few pixels are bright: ever smaller classes, down to some hundred
    n = len(order)
    ends = [n // 8, n // 4] + [n - n // 2**k for k in range(1, 64) if n // 2**k >= 400]
    classes = []
    for start, end in zip([0, *ends], ends, strict=False):
        part = order[start:end]
        steady = part[unrest[part].argsort()[: math.ceil(len(part) / 4)]]
        classes.append(torch.stack([mean[steady], square[steady]]))
    # the median of a chi-squared variate is 0.455 of its mean
    line = _line(torch.stack([torch.stack([m.mean(), s.median() / 0.455, m.new_tensor(len(m))]) for m, s in classes]))
    for _ in range(5):
        # four standard deviations off are hot pixels and molecules that moved the mean after all
        gain, dark = line[0].value, line[1].value
        least = min(float(s.median()) for _, s in classes)
        points = []
        for m, s in classes:
            keep = s <= 16 * (gain * (m - dark)).clamp_min(least)
            points.append(torch.stack([m[keep].mean(), s[keep].mean(), keep.sum()]))
        line = _line(torch.stack(points))
    return line


def _line(points: Tensor) -> tuple[Estimate, Estimate]:
    """Slope and zero of the line variance = slope * (mean - zero).

    Args:
        points: (m, 3) mean, variance and number of pixels.
    """
    mean, variance, n = points.T
    weight = n / variance.clamp_min(1e-9) ** 2 / 2
    middle, height = ((weight * values).sum() / weight.sum() for values in (mean, variance))
    spread = (weight * (mean - middle) ** 2).sum()
    slope = (weight * (mean - middle) * (variance - height)).sum() / spread
    excess = (weight * (variance - height - slope * (mean - middle)) ** 2).sum() / (len(mean) - 2)
    excess = excess.clamp_min(1)
    relative = torch.hypot((excess / spread).sqrt() / slope, torch.tensor(GAIN_ERROR))
    zero = middle - height / slope
    zero_error = torch.hypot((excess / weight.sum()).sqrt() / slope, (middle - zero) * relative)
    total = int(n.sum())

    def estimate(value: Tensor, error: Tensor) -> Estimate:
        return Estimate(float(value), float(value - 1.96 * error), float(value + 1.96 * error), total)

    return estimate(slope, slope.abs() * relative), estimate(zero, zero_error)
