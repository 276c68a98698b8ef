"""Frames and pixels of a movie that hold no image: found in one place, left out everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, final
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from decode.io.stacks import Movie
from decode.optics.camera import Camera

__all__ = ["UsualFrames", "frames_remark", "unusable_frames", "without_unusable"]

Array = npt.NDArray[np.float64]
Frames = npt.NDArray[Any]
Counts = Movie | Tensor | Frames
"""(frame, y, x) ADU"""

WINDOWS, WINDOW = 16, 16
"""consecutive frames that say what is usual, and how many of them"""
PIXELS = 2**11
"""of a frame, spread evenly, are looked at"""
SCANNED_PIXELS = 2**30
"""of a longer movie only the windows are looked at beforehand"""
LOW, MIDDLE, HIGH = 0.16, 0.5, 0.99
"""quantiles of a frame: molecules, where they are sparse, change the last one only"""
BLANK = 0.1
"""share of the pixels at the lowest count of a frame from which it is blank, if that is unusual"""
FAR = 10.0
"""standard deviations of a pixel's noise by which a frame is as far from those before as from those after"""
RESTLESS = 4.0
"""times the usual change from frame to frame, which is no defect but the way that the sample is lit"""
NOISY = 3.0
"""times the usual noise"""
DARK = 0.1
"""share of the usual light that a dark frame stays below"""
EMPTY = 0.6
"""share of the usual contrast that a dark frame stays below"""
FEWEST_PIXELS = 9
"""of fewer even a blank frame cannot be told"""
LISTED = 10
"""spans of frames in a sentence"""
SPARSE_PIXELS = 64
"""of fewer one molecule changes the median"""


@final
@dataclass(frozen=True, kw_only=True)
class UsualFrames:
    """What the frames of a movie are like, window by window, as far as tells those that hold no image.

    A frame is unusable that is blank (much of it at one and the same count, as where a camera dropped it), dark (no
    more light than at a closed shutter), or far from the frames before and after it in level or noise, as a flash.
    """

    middles: Array
    """(window,) number of the middle frame in the file"""
    level: Array
    """(window,) median count, ADU"""
    noise: Array
    """(window,) standard deviation within a frame, by the darker half of the pixels, ADU"""
    contrast: float
    """of the brightest pixels to the median, ADU"""
    lowest_share: float
    """of the pixels at the lowest count of a frame"""
    restlessness: float
    """change of the level between the frames of a window, ADU: four of five change less"""
    dark_level: float
    """count below which a frame is dark, ADU; -inf where no camera tells"""

    @classmethod
    def of(cls, movie: Counts, camera: Camera | None = None) -> UsualFrames:
        """Look at frames spread over a movie: (frame, y, x) ADU."""
        n = movie.shape[0]
        length = min(WINDOW, n)
        starts = np.linspace(0, n - length, max(1, min(WINDOWS, n // length))).round().astype(int)
        looks = np.stack([_look(_read(movie, int(start), int(start) + length)) for start in starts])
        shares, level, noise, contrast = looks.transpose(2, 0, 1)  # (window, frame) each
        lit = shares <= max(BLANK, 3 * float(np.median(shares)))
        dark_level = -np.inf
        if camera is not None and lit.any():
            baseline = float(torch.as_tensor(camera.baseline).double().median())
            light = float(np.median(level[lit])) - baseline
            # little light, or a baseline that is wrong, does not tell a dark frame
            if light > float(np.median(noise[lit])):
                dark_level = baseline + DARK * light
            lit &= (level > dark_level) | (contrast > EMPTY * float(np.median(contrast[lit])))
        if not lit.any():
            lit[:] = True
        some = lit.any(1)
        masked = [np.where(lit, values, np.nan)[some] for values in (level, noise)]
        levels, noises = (np.nanmedian(values, 1) for values in masked)
        return cls(
            middles=_first_of(movie) + starts[some] + (length - 1) / 2,
            level=levels,
            noise=noises,
            contrast=float(np.median(contrast[lit])),
            lowest_share=float(np.median(shares[lit])),
            restlessness=float(np.nanquantile(np.abs(masked[0] - levels[:, None]), 0.8)),
            dark_level=dark_level,
        )

    def unusable(self, frames: Frames, first: int) -> dict[int, str]:
        """Why some of the frames first, first + 1, ... of the movie hold no image, by their number.

        Args:
            frames: (frame, y, x) ADU.
            first: number of the first one in the file.
        """
        shares, level, noise, contrast = _look(frames).T
        number = first + np.arange(len(frames))
        after = np.searchsorted(self.middles, number).clip(0, len(self.middles) - 1)
        before = (after - 1).clip(0)
        around = np.stack([self.level[before], self.level[after]])
        quiet = np.stack([self.noise[before], self.noise[after]]).max(0).clip(1e-9)
        tolerance = np.maximum(FAR * quiet, RESTLESS * self.restlessness)
        blank = shares > min(max(BLANK, 3 * self.lowest_share), 0.999)
        kinds = {
            "far noisier than those around": noise > NOISY * quiet + RESTLESS * self.restlessness,
            "far brighter than those around": level > around.max(0) + tolerance,
            "far darker than those around": level < around.min(0) - tolerance,
            "dark": (level < self.dark_level) & (contrast < EMPTY * self.contrast),
            "blank": blank & (frames[0].size >= FEWEST_PIXELS),
        }
        why: dict[int, str] = {}
        for kind, found in kinds.items():
            if kind == "blank" or frames[0].size >= SPARSE_PIXELS:
                why |= {int(i): kind for i in number[found]}
        return dict(sorted(why.items()))


_found: WeakKeyDictionary[Movie, list[tuple[Camera | None, dict[int, str]]]] = WeakKeyDictionary()
"""what was found in a movie with a camera, as one estimate follows another"""


def unusable_frames(movie: Counts, camera: Camera | None = None) -> dict[int, str]:
    """Why frames of a movie hold no image, by their number; of a long movie, among those that are looked at.

    Args:
        movie: (frame, y, x) ADU.
        camera: tells dark frames from those of little light; None finds the others.
    """
    if not isinstance(movie, Movie):
        return _unusable_frames(movie, camera)
    known = _found.setdefault(movie, [])
    for asked, answer in known:
        if asked is camera:
            return answer
    known.append((camera, _unusable_frames(movie, camera)))
    return known[-1][1]


def without_unusable(movie: Counts, camera: Camera | None = None) -> Counts:
    """A movie without the frames of `unusable_frames`.

    Raises:
        ValueError: if no frame is left.
    """
    unusable = unusable_frames(movie, camera)
    if not unusable:
        return movie
    if len(unusable) == movie.shape[0]:
        raise ValueError("this movie holds no image: all of its frames are blank or dark")
    if isinstance(movie, Movie):
        return movie.without(unusable)
    return movie[[i for i in range(len(movie)) if i not in unusable]]


def frames_remark(unusable: Mapping[int, str], n_frames: int, first: int = 0) -> str:
    """A sentence on the frames that were left out, or "".

    Args:
        unusable: from `unusable_frames`.
        n_frames: of the movie.
        first: number in the file of the movie's first frame.
    """
    if not unusable:
        return ""
    kinds = {
        kind: _spans([first + i for i, why in unusable.items() if why == kind])
        for kind in dict.fromkeys(unusable.values())
    }
    listed = "; ".join(f"{kind}: {numbers}" for kind, numbers in kinds.items())
    hold = "frame holds" if len(unusable) == n_frames == 1 else "frames hold"
    return f"{len(unusable)} of {n_frames} {hold} no image of the sample and are left out ({listed})"


def _spans(numbers: Sequence[int]) -> str:
    """`3, 7 to 9, ...` of rising whole numbers: the first ten spans."""
    runs = [list(run) for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    ends = [(run[0][1], run[-1][1]) for run in runs]
    words = [f"{a}" if a == b else f"{a} to {b}" for a, b in ends[:LISTED]]
    return ", ".join([*words, "..."] if len(ends) > LISTED else words)


def _unusable_frames(movie: Counts, camera: Camera | None) -> dict[int, str]:
    usual, first = UsualFrames.of(movie, camera), _first_of(movie)
    n, height, width = movie.shape
    length = max(1, 2**22 // (height * width))
    starts = np.arange(0, n, length)
    if n * height * width > SCANNED_PIXELS:
        length = min(n, WINDOW)
        starts = np.linspace(0, n - length, max(1, SCANNED_PIXELS // (length * height * width))).astype(int)
    found: dict[int, str] = {}
    for start in starts.tolist():
        found |= usual.unusable(_read(movie, start, min(n, start + length)), first + start)
    return {number - first: why for number, why in found.items()}


def _first_of(movie: Counts) -> int:
    """Number of a movie's first frame in its file."""
    return movie.frames.start if isinstance(movie, Movie) else 0


def _read(movie: Counts, start: int, stop: int) -> Frames:
    return np.asarray(movie.read(start, stop) if isinstance(movie, Movie) else movie[start:stop])


def _look(frames: Frames) -> Array:
    """(frame, 4): share of the pixels at the lowest count, median, noise and contrast of (frame, y, x) ADU."""
    pixels = frames.reshape(len(frames), -1)
    # a prime number of pixels apart: not down a column
    pixels = pixels[:, :: max(1, pixels.shape[1] // PIXELS)].astype(np.float64)
    low, middle, high = np.quantile(pixels, [LOW, MIDDLE, HIGH], axis=1)
    share = (pixels == pixels.min(1, keepdims=True)).mean(1)
    return np.stack([share, middle, middle - low, high - middle], 1)
