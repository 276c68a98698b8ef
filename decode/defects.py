"""Frames and pixels of a movie that hold no image: found in one place, left out everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal, final
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from decode.io.movies.tiff import Movie
from decode.optics.camera import Camera

__all__ = [
    "MovieDefects",
    "PixelDefects",
    "UsualFrames",
    "defects_of",
    "screened",
    "with_bad_pixels",
    "without_unusable",
]

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
"""spans of frames, or pixels, in a sentence"""
HARMFUL = 0.8
"""standard deviations of a pixel's noise by which the background may change and no molecule is made up"""
UNCROWDED_PIXELS = 256
"""of fewer one molecule changes the median by what a lamp may"""
SPARSE_PIXELS = 64
"""of fewer one molecule changes the median"""

SAMPLED_FRAMES, SAMPLED_COUNTS = 256, 2**25
"""in which pixels are judged: frames, but no more than so many counts in memory"""
FEWEST_SAMPLED = 8
"""of fewer frames no pixel is judged"""
AROUND_PX = 5
"""side of the squares whose median is the background, in pairs of pixels"""
RARE = 2
"""largest deviations of a pixel that are left out of its variance: a spurious charge is no defect"""
STEADY_NOISES, STEADY_SIGMAS = 2.0, 8.0
"""a pixel is bad whose median over time differs from its neighbours' by so many standard deviations of the noise of a
frame, and of what pixels usually differ by"""
VARIED, VARIED_SIGMAS = 1.0, 12.0
"""the same of its variance, over that of its neighbours"""
OPTICAL_LIGHT, OPTICAL_VARIANCE = 4.0, 8.0
"""a spot of light is no defect: it adds to the pixels beside, at a sigma of 0.7 pixels at least a quarter of what it
adds to its middle, and an eighth of the variance where it blinks"""
WHOLE_LINE = 0.25
"""share of the pixels of a column or row that are bad, from which all of it is"""
LINE_NOISES, SHORTEST_LINE_PX = 1.0, 16
"""the same as `STEADY_NOISES` of a whole column or row, where it is not too short to tell"""
MOST_BAD = 0.05
"""share of the pixels; where more are unlike their neighbours this is how the sample or the camera looks"""
PATTERNED = 0.5
"""standard deviation of the pixels' offsets over the noise of a frame, from which a pattern is said"""


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
    change: float
    """of the level from a frame to the next, ADU, beyond chance: nine of ten change less"""
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
        steps = np.abs(np.diff(masked[0], axis=1))
        step = float(np.nanquantile(steps, 0.9)) if np.isfinite(steps).any() else 0.0
        # of a median of many pixels by chance, and of whole counts
        n_pixels = math.prod(movie.shape[1:])
        chance = 1.645 * math.sqrt(2) * 1.25 * float(np.median(noises)) / math.sqrt(min(PIXELS, n_pixels))
        return cls(
            middles=_first_of(movie) + starts[some] + (length - 1) / 2,
            level=levels,
            noise=noises,
            contrast=float(np.median(contrast[lit])),
            lowest_share=float(np.median(shares[lit])),
            restlessness=float(np.nanquantile(np.abs(masked[0] - levels[:, None]), 0.8)),
            change=max(0.0, math.sqrt(max(0.0, step**2 - chance**2)) - 1) * (n_pixels >= UNCROWDED_PIXELS),
            dark_level=dark_level,
        )

    def flicker(self, camera: Camera) -> float:
        """Change of the background from a frame to the next over the background: nine of ten change by less.

        0 where it is less than the noise of a pixel, and does no harm, or where frames are so small that molecules do
        it.
        """
        light = float(np.median(self.level)) - float(torch.as_tensor(camera.baseline).double().median())
        noise = float(np.median(self.noise))
        return self.change / light if self.change > HARMFUL * noise and light > 0 else 0.0

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


@final
@dataclass(frozen=True, kw_only=True)
class PixelDefects:
    """Pixels that do not show what falls on them, judged by the pixels beside them."""

    bad: Tensor
    """(y, x) bool: dead, hot or flickering"""
    pattern: float
    """standard deviation of the offsets of the others, over the noise of a frame"""

    @classmethod
    def of(cls, movie: Counts, camera: Camera) -> PixelDefects:
        """Look at frames spread over a movie, without those that hold no image.

        All light is blurred by the optics, so that neighbours share it.  A pixel whose median over time, or whose
        variance, is its own alone is none of the sample's: dead, hot or stuck, or noisy and flickering.  What the
        camera's maps say of pixels is no defect.

        Args:
            movie: (frame, y, x) ADU.
            camera: its maps, if any, are as large as the frames.
        """
        n, height, width = movie.shape
        n_looked = max(FEWEST_SAMPLED, min(n, SAMPLED_FRAMES, SAMPLED_COUNTS // (height * width)))
        if n < FEWEST_SAMPLED or min(height, width) < 3:
            return cls(bad=torch.zeros(height, width, dtype=torch.bool), pattern=0.0)
        at = np.linspace(0, n - 1, n_looked).round().astype(int).tolist()
        light = np.concatenate([_photons(_read(movie, i, i + 1), camera) for i in at])
        # what all pixels do is no matter of one of them
        levels = np.median(light, (1, 2))
        light -= levels[:, None, None]
        steady = np.median(light, 0).astype(np.float64) + float(np.median(levels))
        variance = _common_variance(light)

        gain = float(camera.typical_noise.excess)
        floor = camera.noise_floor.double().cpu().numpy()
        beside, around = _beside(steady, BESIDE_MEDIAN), _around(steady)
        noise = np.sqrt(gain * beside.clip(0) + floor + 1e-12)
        off = (steady - beside) / noise
        limit = max(STEADY_NOISES, STEADY_SIGMAS * _spread(off))
        bright, dark = _beside(steady, THIRD_BRIGHTEST), _beside(steady, THIRD_DARKEST)
        bad = steady - bright - OPTICAL_LIGHT * (bright - around).clip(0) > limit * noise
        # between spots pixels are darker than beside them by no more than these are brighter than all around
        bad |= dark - steady - (beside - around).clip(0) > limit * noise

        # of a molecule beyond the border the pixels there see the steepest part
        beside, around = _beside(variance, THIRD_BRIGHTEST, "edge"), _around(variance)
        usual = np.maximum(beside, noise**2 * min(1.0, float(np.median(variance / noise**2))) + 1e-12)
        more = (variance - beside) / usual
        shared = OPTICAL_VARIANCE * (beside - around).clip(0) / usual
        bad |= more - shared > max(VARIED, VARIED_SIGMAS * _spread(more))
        for axis in (0, 1):
            if off.shape[axis] >= SHORTEST_LINE_PX:
                line = np.median(off, axis, keepdims=True)
                bad |= np.abs(line) > max(LINE_NOISES, STEADY_SIGMAS * _spread(line))
                bad |= bad.mean(axis, keepdims=True) > WHOLE_LINE
        # chance makes pixels differ too: by the error of a median, and of that of eight neighbours
        chance = 1.37 / math.sqrt(n_looked)
        pattern = math.sqrt(max(0.0, _spread(off) ** 2 - chance**2))
        return cls(bad=torch.from_numpy(bad), pattern=pattern)

    @property
    def understood(self) -> bool:
        """So few pixels are bad that they are the camera's defects, and not how the sample looks."""
        return float(self.bad.float().mean()) <= MOST_BAD

    def marked(self, camera: Camera) -> Camera:
        """The camera with these bad pixels besides those that it knows."""
        if not self.understood or not bool(self.bad.any()):
            return camera
        bad = self.bad if camera.bad is None else self.bad.to(camera.bad.device) | camera.bad
        return replace(camera, bad=bad)

    @property
    def remark(self) -> str:
        """A sentence on what is left out or looks odd, or ""."""
        n = int(self.bad.sum())
        if not self.understood:
            return (
                f"{n} pixels differ from those beside them by more than light can, too many to be defects of the "
                "camera: the movie was sharpened or combined, or its pixels have offsets of their own; take the raw "
                "movie, or measure the camera's maps (`decode calibrate camera`)"
            )
        pixels = "1 pixel is" if n == 1 else f"{n} pixels are"
        said = [f"{pixels} dead, hot or flickering and left out ({self._places()})"] if n else []
        if self.pattern > PATTERNED:
            said.append(
                f"the offsets of the pixels differ by {self.pattern:.1f} times the noise of a frame: measure the "
                "camera's maps (`decode calibrate camera`), without them molecules may be made up"
            )
        return "; ".join(said)

    def _places(self) -> str:
        """The bad lines and the first of the other bad pixels."""
        bad = self.bad.clone()
        words = []
        for name, axis in (("column", 0), ("row", 1)):
            lines = torch.nonzero(bad.all(axis))[:, 0].tolist()
            words += [f"{name} {_spans(lines)}"] if lines else []
            bad.index_fill_(1 - axis, torch.tensor(lines, dtype=torch.int64), False)
        at = [f"x {x} y {y}" for y, x in torch.nonzero(bad).tolist()]
        shown = at[:LISTED]
        return ", ".join([*words, *shown, *(["..."] if len(at) > LISTED else [])])


def _photons(frames: Frames, camera: Camera) -> npt.NDArray[np.float32]:
    light: npt.NDArray[np.float32] = camera.to_photons(torch.from_numpy(frames.astype(np.float32))).float().numpy()
    return light


def _common_variance(light: npt.NDArray[np.float32]) -> Array:
    """(y, x) variance over time of (frame, y, x), without the rarest."""
    square = (light - light.mean(0)) ** 2
    square.partition(len(light) - RARE, 0)
    variance: Array = square[: len(light) - RARE].mean(0, dtype=np.float64)
    return variance


def _around(image: Array) -> Array:
    """Median of the pixels around, on a grid of every other one."""
    coarse = ndimage.median_filter(image[::2, ::2], AROUND_PX, mode="mirror")
    fine: Array = coarse.repeat(2, 0).repeat(2, 1)[: image.shape[0], : image.shape[1]]
    return fine


def _spread(values: Array) -> float:
    """Standard deviation, whatever a few of them do."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


BESIDE_MEDIAN, THIRD_BRIGHTEST, THIRD_DARKEST = slice(3, 5), slice(5, 6), slice(2, 3)
"""ranks among the eight neighbours; two of them may be bad, as in a column"""


def _beside(image: Array, ranks: slice, border: Literal["reflect", "edge"] = "reflect") -> Array:
    """Mean of those of the eight neighbours that have some ranks, from the lowest."""
    padded = np.pad(image, 1, mode=border)
    height, width = image.shape
    ring = [padded[i : i + height, j : j + width] for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    mean: Array = np.sort(np.stack(ring), 0)[ranks].mean(0)
    return mean


@final
@dataclass(frozen=True, kw_only=True)
class MovieDefects:
    """What of a movie is no image of the sample."""

    n_frames: int
    first: int
    """number in the file of the movie's first frame"""
    frames: Mapping[int, str]
    """why frames hold no image, by their number in the movie"""
    pixels: PixelDefects

    @property
    def sentences(self) -> tuple[str, ...]:
        """What is left out, and what else to know."""
        return tuple(filter(None, (_frames_remark(self.frames, self.n_frames, self.first), self.pixels.remark)))


_found: WeakKeyDictionary[Movie, list[tuple[Camera, MovieDefects, Camera]]] = WeakKeyDictionary()
"""what was found in a movie with a camera, as one estimate follows another"""


def defects_of(movie: Counts, camera: Camera) -> MovieDefects:
    """The frames and pixels of a movie that hold no image; of a long movie, among the frames that are looked at.

    Args:
        movie: (frame, y, x) ADU.
        camera: its maps, if any, are as large as the frames.
    """
    return _screened(movie, camera)[0]


def screened(movie: Counts, camera: Camera) -> tuple[Counts, Camera]:
    """A movie without the frames that hold no image, and its camera, which knows the bad pixels.

    Raises:
        ValueError: if no frame is left.
    """
    defects, camera = _screened(movie, camera)
    return _without(movie, defects.frames), camera


def with_bad_pixels(movie: Counts, camera: Camera) -> Camera:
    """The camera, which knows the bad pixels that a movie shows."""
    return _screened(movie, camera)[1]


def without_unusable(movie: Counts) -> Counts:
    """A movie of an unknown camera without the frames that are blank or far from those around.

    Raises:
        ValueError: if no frame is left.
    """
    return _without(movie, _unusable_frames(movie, None))


def _screened(movie: Counts, camera: Camera) -> tuple[MovieDefects, Camera]:
    known = _found.setdefault(movie, []) if isinstance(movie, Movie) else []
    for asked, defects, answer in known:
        if asked is camera or answer is camera:
            return defects, answer
    unusable = _unusable_frames(movie, camera)
    # where all frames are unusable there is nothing to judge pixels by
    usable = movie if len(unusable) == movie.shape[0] else _without(movie, unusable)
    pixels = PixelDefects.of(usable, camera)
    first = _first_of(movie)
    defects = MovieDefects(n_frames=movie.shape[0], first=first, frames=unusable, pixels=pixels)
    known.append((camera, defects, pixels.marked(camera)))
    return defects, known[-1][2]


def _without(movie: Counts, unusable: Mapping[int, str]) -> Counts:
    if not unusable:
        return movie
    if len(unusable) == movie.shape[0]:
        raise ValueError("this movie holds no image: all of its frames are blank or dark")
    if isinstance(movie, Movie):
        return movie.without(unusable)
    return movie[[i for i in range(len(movie)) if i not in unusable]]


def _frames_remark(unusable: Mapping[int, str], n_frames: int, first: int) -> str:
    """A sentence on the frames that were left out, or ""."""
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
    frames: Frames = np.asarray(movie.read(start, stop) if isinstance(movie, Movie) else movie[start:stop])
    if frames.dtype.kind == "f" and not np.isfinite(frames).all():
        raise ValueError("the movie holds NaN or infinite counts; mend or leave out those frames")
    return frames


def _look(frames: Frames) -> Array:
    """(frame, 4): share of the pixels at the lowest count, median, noise and contrast of (frame, y, x) ADU."""
    pixels = frames.reshape(len(frames), -1)
    # a prime number of pixels apart: not down a column
    pixels = pixels[:, :: max(1, pixels.shape[1] // PIXELS)].astype(np.float64)
    low, middle, high = np.quantile(pixels, [LOW, MIDDLE, HIGH], axis=1)
    share = (pixels == pixels.min(1, keepdims=True)).mean(1)
    return np.stack([share, middle, middle - low, high - middle], 1)
