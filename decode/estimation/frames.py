"""Frames of a movie for an estimate, and a number with its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from decode.defects import Counts
from decode.io.movies import Movie

__all__ = ["Estimate", "blur", "gaussian_kernel", "middle", "read_frames", "shape_of"]

LARGEST_FIELD_PX = 512
"""side of the middle part that is used of larger movies, pixels"""


@final
@dataclass(frozen=True)
class Estimate:
    """A number that was estimated from a movie."""

    value: float
    low: float
    """lower end of the interval that holds the truth with 95 % probability"""
    high: float
    """upper end"""
    n: int
    """number of molecules, or of pixels, that it rests on"""

    def __str__(self) -> str:
        value, low, high = (f"{float(f'{v:.3g}'):g}" for v in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})"


def shape_of(movie: Counts) -> tuple[int, int, int]:
    """(frames, y, x) of a movie.

    Raises:
        ValueError: if it has other axes, or is empty.
    """
    shape = tuple(movie.shape)
    if len(shape) != 3 or 0 in shape:
        raise ValueError(f"a movie is (frame, y, x) and not empty, this one has shape {shape}")
    return shape[0], shape[1], shape[2]


def middle(side: int) -> slice:
    """The rows or columns in the middle of a side of so many pixels, at most
    `LARGEST_FIELD_PX`."""
    start = max(0, (side - LARGEST_FIELD_PX) // 2)
    return slice(start, min(side, start + LARGEST_FIELD_PX))


def read_frames(movie: Counts, start: int, stop: int, rows: slice, columns: slice) -> Tensor:
    """(stop - start, y, x) float64 ADU."""
    frames = movie.read(start, stop) if isinstance(movie, Movie) else movie[start:stop]
    return torch.as_tensor(np.asarray(frames)[:, rows, columns].astype(np.float64))


def gaussian_kernel(sigma_px: float) -> Tensor:
    """(2 ceil(3 sigma) + 1,) weights of a Gaussian, which sum to 1."""
    x = torch.arange(-math.ceil(3 * sigma_px), math.ceil(3 * sigma_px) + 1)
    return torch.softmax(-(x**2) / (2 * sigma_px**2), 0)


def blur(image: Tensor, kernel: Tensor) -> Tensor:
    """(1, y, x) convolved with the same kernel along both axes; border pixels are repeated beyond
    it."""
    half = len(kernel) // 2
    padded = F.pad(image[None], (half, half, half, half), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])[0]
