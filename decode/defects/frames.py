"""Frames of a movie that hold no image, recognized by their deviation from the usual ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self, final

import numpy as np
import numpy.typing as npt
import torch

from decode.defects.counts import Array, Counts, Frames, first_of, read_counts
from decode.defects.rows import RowNoise, row_noise_in
from decode.optics.camera import Camera

__all__ = ["UsualFrames", "unusable_frames"]

WINDOWS = 16
"""windows of consecutive frames from which the usual values are estimated"""
WINDOW = 16
"""length of a window, frames"""
PIXELS = 2**11
"""number of pixels of a frame, spread evenly, that are used"""
SCANNED_PIXELS = 2**30
"""pixels of a movie above which only windows of frames are checked beforehand"""
LOW, MIDDLE, HIGH = 0.16, 0.5, 0.99
"""quantiles of a frame; sparse molecules change the last one only"""
BLANK = 0.1
"""share of the pixels at the lowest count of a frame from which it is blank, if that is unusual"""
FAR = 10.0
"""standard deviations of a pixel's noise by which an unusable frame differs from those around it"""
FLICKERING = 4.0
"""factor on the usual flickering of the light up to which a change is no defect"""
NOISY = 3.0
"""factor on the usual noise above which a frame is too noisy"""
DARK = 0.1
"""share of the usual light below which a frame is dark"""
EMPTY = 0.6
"""share of the usual contrast below which a frame is dark"""
FEWEST_PIXELS = 9
"""fewest pixels of a frame that can be recognized as blank"""
HARMFUL = 0.8
"""standard deviations of a pixel's noise by which the background may change before molecules are
made up"""
UNCROWDED_PIXELS = 256
"""fewest pixels of which one molecule changes the median less than a lamp may"""
SPARSE_PIXELS = 64
"""fewest pixels of which one molecule does not change the median"""
ERROR_OF_MEDIAN = 1.25
"""standard deviation of a median over that of a mean"""


class _Look(NamedTuple):
    """Statistics of frames: (frame,), or (window, frame), each."""

    lowest_share: Array
    """share of the pixels at the lowest count of the frame"""
    level: Array
    """median, ADU"""
    noise: Array
    """standard deviation by the darker half of the pixels, ADU"""
    contrast: Array
    """difference of the brightest pixels from the median, ADU"""

    @classmethod
    def at(cls, frames: Frames) -> Self:
        """Statistics of (frame, y, x) ADU."""
        pixels = frames.reshape(len(frames), -1)
        # a prime number of pixels apart: not down a column
        pixels = pixels[:, :: max(1, pixels.shape[1] // PIXELS)].astype(np.float64)
        low, middle, high = np.quantile(pixels, [LOW, MIDDLE, HIGH], axis=1)
        lowest_share = (pixels == pixels.min(1, keepdims=True)).mean(1)
        return cls(lowest_share, middle, middle - low, high - middle)

    @property
    def blank_from(self) -> float:
        """Share of the pixels at the lowest count from which a frame is blank."""
        return max(BLANK, 3 * float(np.median(self.lowest_share)))


@final
@dataclass(frozen=True, kw_only=True)
class UsualFrames:
    """Usual statistics of the frames of a movie, window by window.

    A frame is unusable if it is blank (much of it at one count, as where a camera dropped it), dark
    (as with a closed shutter), or far from the frames around it in level or noise, as a flash.
    """

    middles: Array
    """(window,) number of the middle frame in the file"""
    level: Array
    """(window,) median count, ADU"""
    noise: Array
    """(window,) standard deviation within a frame, by the darker half of the pixels, ADU"""
    contrast: float
    """difference of the brightest pixels from the median, ADU"""
    lowest_share: float
    """share of the pixels at the lowest count of a frame"""
    flickering: float
    """change of the level between the frames of a window, ADU: four of five change less"""
    change: float
    """change of the level from a frame to the next beyond chance, ADU: nine of ten change less"""
    dark_level: float
    """count below which a frame is dark, ADU; -inf where it is unknown"""
    row_noise: RowNoise | None = None
    """noise that the camera adds to whole rows in each frame; None where there is none"""

    @classmethod
    def of(cls, movie: Counts, camera: Camera | None = None) -> Self:
        """Compute the statistics of frames spread over a movie: (frame, y, x) ADU."""
        n = movie.shape[0]
        length = min(WINDOW, n)
        n_windows = max(1, min(WINDOWS, n // length))
        starts = np.linspace(0, n - length, n_windows).round().astype(int)
        windows = [_Look.at(read_counts(movie, start, start + length)) for start in starts.tolist()]
        look = _Look(*(np.stack(values) for values in zip(*windows, strict=True)))
        lit = look.lowest_share <= look.blank_from
        dark_level = -math.inf if camera is None else _dark_level(look, lit, camera)
        if camera is not None and lit.any():
            usual_contrast = float(np.median(look.contrast[lit]))
            lit &= (look.level > dark_level) | (look.contrast > EMPTY * usual_contrast)
        if not lit.any():
            lit[:] = True
        some = lit.any(1)
        level, noise = (np.where(lit, values, np.nan)[some] for values in (look.level, look.noise))
        levels, noises = np.nanmedian(level, 1), np.nanmedian(noise, 1)
        return cls(
            middles=first_of(movie) + starts[some] + (length - 1) / 2,
            level=levels,
            noise=noises,
            contrast=float(np.median(look.contrast[lit])),
            lowest_share=float(np.median(look.lowest_share[lit])),
            flickering=float(np.nanquantile(np.abs(level - levels[:, None]), 0.8)),
            change=_change(level, noises, math.prod(movie.shape[1:])),
            dark_level=dark_level,
            row_noise=_row_noise(movie, starts[some].tolist(), length, float(np.median(noises))),
        )

    def levelled(self, frames: Frames) -> Frames:
        """(frame, y, x) ADU without the row noise; the same frames where the movie has none."""
        return frames if self.row_noise is None else self.row_noise.removed(frames)

    def flicker(self, camera: Camera) -> float:
        """Change of the background from a frame to the next, over the background.

        Nine of ten changes are smaller.  It is 0 where the change is below the noise of a pixel,
        and harmless, or where frames are so small that molecules cause it.
        """
        light = float(np.median(self.level)) - _baseline(camera)
        noise = float(np.median(self.noise))
        if light <= 0 or self.change <= HARMFUL * noise:
            return 0.0
        return self.change / light

    def unusable(self, frames: Frames, first: int) -> dict[int, str]:
        """Why some of the frames first, first + 1, ... of the movie hold no image, by their number.

        Args:
            frames: (frame, y, x) ADU.
            first: number of the first one in the file.
        """
        look = _Look.at(frames)
        number = first + np.arange(len(frames))
        after = np.searchsorted(self.middles, number).clip(0, len(self.middles) - 1)
        before = (after - 1).clip(0)
        around = np.stack([self.level[before], self.level[after]])
        quiet = np.stack([self.noise[before], self.noise[after]]).max(0).clip(1e-9)
        flickering = FLICKERING * self.flickering
        tolerance = np.maximum(FAR * quiet, flickering)
        empty = look.contrast < EMPTY * self.contrast
        kinds: dict[str, npt.NDArray[np.bool_]] = {}
        n_pixels = frames[0].size
        if n_pixels >= SPARSE_PIXELS:
            kinds |= {
                "far noisier than those around": look.noise > NOISY * quiet + flickering,
                "far brighter than those around": look.level > around.max(0) + tolerance,
                "far darker than those around": look.level < around.min(0) - tolerance,
                "dark": (look.level < self.dark_level) & empty,
            }
        if n_pixels >= FEWEST_PIXELS:
            blank_from = min(max(BLANK, 3 * self.lowest_share), 0.999)
            kinds["blank"] = look.lowest_share > blank_from
        # of several reasons the last one counts
        why = {int(i): kind for kind, found in kinds.items() for i in number[found]}
        return dict(sorted(why.items()))


def unusable_frames(movie: Counts, camera: Camera | None) -> dict[int, str]:
    """Why frames hold no image, by their number in the movie.

    Of a long movie only some windows of frames are checked.
    """
    usual, first = UsualFrames.of(movie, camera), first_of(movie)
    n, height, width = movie.shape
    length = max(1, 2**22 // (height * width))
    starts = np.arange(0, n, length)
    if n * height * width > SCANNED_PIXELS:
        length = min(n, WINDOW)
        n_windows = max(1, SCANNED_PIXELS // (length * height * width))
        starts = np.linspace(0, n - length, n_windows).astype(int)
    found: dict[int, str] = {}
    for start in starts.tolist():
        frames = read_counts(movie, start, min(n, start + length))
        found |= usual.unusable(frames, first + start)
    return {number - first: why for number, why in found.items()}


def _row_noise(movie: Counts, starts: Sequence[int], length: int, noise: float) -> RowNoise | None:
    """The row noise of a movie, estimated from some windows of frames."""

    def windows() -> Iterator[Frames]:
        return (read_counts(movie, start, start + length) for start in starts)

    spread = row_noise_in(windows(), noise)
    return RowNoise.of(windows(), spread) if spread else None


def _baseline(camera: Camera) -> float:
    return float(torch.as_tensor(camera.baseline).double().median())


def _dark_level(look: _Look, lit: npt.NDArray[np.bool_], camera: Camera) -> float:
    """Count below which a frame is dark; -inf where there is too little light, or the baseline is
    wrong.

    Args:
        look: (window, frame).
        lit: (window, frame) frames that are not blank.
    """
    if not lit.any():
        return -math.inf
    baseline = _baseline(camera)
    light = float(np.median(look.level[lit])) - baseline
    if light <= float(np.median(look.noise[lit])):
        return -math.inf
    return baseline + DARK * light


def _change(level: Array, noises: Array, n_pixels: int) -> float:
    """Change of the level from a frame to the next, beyond chance and the rounding to counts.

    Args:
        level: (window, frame) ADU, NaN where a frame holds no image.
        noises: (window,) noise of a pixel, ADU.
        n_pixels: number of pixels of a frame.
    """
    steps = np.abs(np.diff(level, axis=1))
    if n_pixels < UNCROWDED_PIXELS or not np.isfinite(steps).any():
        return 0.0
    step = float(np.nanquantile(steps, 0.9))
    error = ERROR_OF_MEDIAN * float(np.median(noises)) / math.sqrt(min(PIXELS, n_pixels))
    chance = 1.645 * math.sqrt(2) * error
    return max(0.0, math.sqrt(max(0.0, step**2 - chance**2)) - 1)
