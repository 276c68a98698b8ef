"""Bad pixels, recognized by their deviation from the pixels beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, Self, final

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from decode.defects.counts import LISTED, Array, Counts, read_counts, spans
from decode.defects.pattern import FixedPattern
from decode.optics.camera import Camera

__all__ = ["PixelDefects"]

Bools = npt.NDArray[np.bool_]

SAMPLED_FRAMES = 256
"""number of frames by which pixels are judged"""
SAMPLED_COUNTS = 2**25
"""most counts in memory at a time, which limits the number of large frames"""
FEWEST_SAMPLED = 8
"""fewest frames from which pixels are judged"""
AROUND_PX = 5
"""side of the squares whose median is the background, in pairs of pixels"""
RARE = 2
"""number of largest deviations that are left out of a pixel's variance, as spurious charge is no
defect"""
STEADY_NOISES, STEADY_SIGMAS = 2.0, 8.0
"""a pixel is bad if its median over time differs from its neighbours' by so many standard
deviations of the noise of a frame, and of the usual differences of pixels"""
VARIED, VARIED_SIGMAS = 1.0, 12.0
"""the same for its variance, over that of its neighbours"""
OPTICAL_LIGHT, OPTICAL_VARIANCE = 4.0, 8.0
"""ratio of a pixel to its neighbours above which light does not explain it: a spot of sigma 0.7
pixels adds at least a quarter of its middle to the pixels beside, and an eighth of the variance
where it blinks"""
WHOLE_LINE = 0.25
"""share of bad pixels from which a whole column or row is bad"""
LINE_NOISES, SHORTEST_LINE_PX = 1.0, 16
"""as `STEADY_NOISES`, for the median of a whole column or row, and its least length"""
MOST_BAD = 0.05
"""largest share of bad pixels; where more are unlike their neighbours, it is a property of sample
or camera"""
FEWEST_SPOILT, MOST_SPOILT = 5, 0.5
"""pixels that maps make bad, at least and over those that they explain, from which they do not fit:
on real frames of an sCMOS camera 0 and 483 by its own maps, 37 to 60 and 22 to 63 by maps that were
turned, shifted or shuffled; and the same of pixels that maps alone make noisy: 72 and 536, 539 to
553 and 27 to 41"""
NOISY = 9.0
"""factor on the usual variance from which maps make a pixel noisy"""
PATTERNED = 0.5
"""standard deviation of the pixels' offsets over the noise of a frame from which it is reported for
cameras with a map of them"""
SURE_PATTERN, NOTABLE_PATTERN = 8.0, 0.15
"""significance of a fixed pattern, and its standard deviation over the noise of a frame, from which
it is subtracted: simulated movies that match their camera, and real ones, stay below 6.6 and 0.2,
never above both; without maps sCMOS movies have 10 to 19, and molecules are made up from 0.2"""
BESIDE_MEDIAN, THIRD_BRIGHTEST, THIRD_DARKEST = slice(3, 5), slice(5, 6), slice(2, 3)
"""ranks among the eight neighbours; two of them may be bad, as in a column"""


class _Pixels(NamedTuple):
    """Statistics of pixels over time: (y, x) each."""

    steady: Array
    """median light, photons"""
    variance: Array
    """photons^2"""
    noise: Array
    """standard deviation of the camera at the median light of the neighbours, photons"""
    halves: tuple[Array, Array]
    """median light of every other frame, and of those between, over that of all pixels"""
    in_turn: tuple[Array, Array]
    """the same of the first half of the movie, and of the second"""
    floor: Array
    """variance of the camera without light, photons^2"""
    n_frames: int
    """number of frames used"""

    @classmethod
    def of(cls, movie: Counts, camera: Camera) -> Self:
        """Look at frames spread over a movie."""
        n, height, width = movie.shape
        most = min(n, SAMPLED_FRAMES, SAMPLED_COUNTS // (height * width))
        n_frames = max(FEWEST_SAMPLED, most)
        at = np.linspace(0, n - 1, n_frames).round().astype(int).tolist()
        light = np.concatenate([_photons(movie, i, camera) for i in at])
        # changes that all pixels share are no defect of a single one
        levels = np.median(light, (1, 2))
        light -= levels[:, None, None]
        steady = np.median(light, 0).astype(np.float64) + float(np.median(levels))
        gain = float(camera.typical_noise.excess)
        floor = np.broadcast_to(camera.noise_floor.double().cpu().numpy(), steady.shape)
        noise = np.sqrt(gain * _beside(steady, BESIDE_MEDIAN).clip(0) + floor + 1e-12)
        halves = np.median(light[::2], 0), np.median(light[1::2], 0)
        middle = n_frames // 2
        in_turn = np.median(light[:middle], 0), np.median(light[middle:], 0)
        return cls(steady, _common_variance(light), noise, halves, in_turn, floor, n_frames)

    @property
    def off(self) -> Array:
        """Difference of the light from that of the neighbours, over the noise."""
        return (self.steady - _beside(self.steady, BESIDE_MEDIAN)) / self.noise

    @property
    def pattern(self) -> float:
        """Standard deviation of the offsets of pixels, over the noise of a frame."""
        # chance makes pixels differ too: by the error of a median, and of that of eight neighbours
        chance = 1.37 / math.sqrt(self.n_frames)
        return math.sqrt(max(0.0, _spread(self.off) ** 2 - chance**2))

    def fixed_pattern(self, good: Bools) -> FixedPattern | None:
        """Offsets of single pixels; None where they are not significant, or harmless."""
        first, second = (half.astype(np.float64) for half in self.halves)
        found = FixedPattern.of(first, second, good)
        notable = found.spread > NOTABLE_PATTERN * float(np.median(self.noise))
        return found if notable and found.significance > SURE_PATTERN else None

    @property
    def expected(self) -> Array:
        """Expected variance by the camera, scaled down to that of the usual pixel."""
        square: Array = self.noise**2
        return square * min(1.0, float(np.median(self.variance / square)))

    def steadily_off(self) -> Bools:
        """Pixels that are brighter or darker than light of the sample explains, in both halves of
        the movie: a median of blinking molecules is not blurred as their light is."""
        limit = max(STEADY_NOISES, STEADY_SIGMAS * _spread(self.off)) * self.noise
        first, second = (_unlike_light(half, limit) for half in self.in_turn)
        found: Bools = _unlike_light(self.steady, limit) & first & second
        return found

    def varied(self) -> Bools:
        """Pixels whose light changes more than that of their neighbours."""
        # of a molecule beyond the border the pixels there see the steepest part
        beside, around = _beside(self.variance, THIRD_BRIGHTEST, "edge"), _around(self.variance)
        usual = np.maximum(beside, self.expected + 1e-12)
        more = (self.variance - beside) / usual
        shared = OPTICAL_VARIANCE * (beside - around).clip(0) / usual
        found: Bools = more - shared > max(VARIED, VARIED_SIGMAS * _spread(more))
        return found

    def wrongly_noisy(self) -> int:
        """Number of pixels that the maps alone make noisy, where these do not fit; else 0."""
        ordinary = self.expected * (1 - (self.floor - np.median(self.floor)) / self.noise**2)
        noisy = self.expected > NOISY * ordinary
        wrong = int((noisy & (self.variance < np.sqrt(self.expected * ordinary))).sum())
        return wrong if wrong >= max(FEWEST_SPOILT, MOST_SPOILT * (noisy.sum() - wrong)) else 0

    def with_lines(self, bad: Bools) -> Bools:
        """Bad pixels, and whole columns and rows that differ or hold many of them."""
        beside, around = _beside(self.steady, BESIDE_MEDIAN), _around(self.steady)
        brighter = self.off - OPTICAL_LIGHT * (beside - around).clip(0) / self.noise
        # light falls off to what is dim in the whole frame
        dim = np.minimum(beside, np.median(self.steady))
        darker = (dim - self.steady) / self.noise
        for axis in (0, 1):
            if self.off.shape[axis] < SHORTEST_LINE_PX:
                continue
            limit = max(LINE_NOISES, STEADY_SIGMAS * _spread(np.median(self.off, axis)))
            for more in (brighter, darker):
                bad = bad | (np.median(more, axis, keepdims=True) > limit)
            bad = bad | (bad.mean(axis, keepdims=True) > WHOLE_LINE)
        return bad


@final
@dataclass(frozen=True, kw_only=True)
class PixelDefects:
    """Bad pixels of a movie, judged by the pixels beside them."""

    bad: Tensor
    """(y, x) bool: dead, hot or flickering"""
    pattern: float
    """standard deviation of the offsets of the other pixels, over the noise of a frame"""
    by_maps: int = 0
    """number of pixels that deviate because of the camera's maps alone, where these do not fit;
    else 0"""
    offsets: Tensor | None = None
    """(y, x) photons that each pixel adds, where the movie shows them and the camera states none"""

    @classmethod
    def of(cls, movie: Counts, camera: Camera) -> Self:
        """Judge the pixels by frames spread over a movie, without those that hold no image.

        All light is blurred by the optics, so that neighbours share it.  A pixel whose median over
        time, or whose variance, no neighbour shares does not show the sample: it is dead, hot or
        stuck, or flickers (random telegraph noise).  Properties that the camera's maps state are no
        defects.

        Args:
            movie: (frame, y, x) ADU.
            camera: its maps, if any, are as large as the frames.
        """
        n, height, width = movie.shape
        if n < FEWEST_SAMPLED or min(height, width) < 3:
            return cls(bad=torch.zeros(height, width, dtype=torch.bool), pattern=0.0)
        pixels = _Pixels.of(movie, camera)
        bad = pixels.with_lines(pixels.steadily_off() | pixels.varied())
        found = cls(
            bad=torch.from_numpy(bad), pattern=pixels.pattern, by_maps=pixels.wrongly_noisy()
        )
        pattern = None
        if torch.as_tensor(camera.baseline).ndim < 2 and found.understood:
            pattern = pixels.fixed_pattern(~bad)
        if pattern is None:
            return found
        return replace(
            found,
            pattern=pattern.spread / float(np.median(pixels.noise)),
            offsets=torch.from_numpy(pattern.offsets).float(),
        )

    def blamed(self, movie: Counts, camera: Camera) -> Self:
        """The same, with the pixels that deviate because of maps that do not fit.

        Args:
            movie: (frame, y, x) ADU that was judged.
            camera: the camera by whose maps it was judged.
        """
        if camera.shape is None or not bool(self.bad.any()):
            return self
        without = PixelDefects.of(movie, _without_maps(camera)).bad
        spoilt, explained = int((self.bad & ~without).sum()), int((without & ~self.bad).sum())
        if spoilt < max(FEWEST_SPOILT, MOST_SPOILT * explained):
            return self
        return replace(self, by_maps=max(spoilt, self.by_maps))

    @property
    def understood(self) -> bool:
        """Whether so few pixels are bad that they are defects, and not a property of the sample."""
        return float(self.bad.float().mean()) <= MOST_BAD

    def marked(self, camera: Camera) -> Camera:
        """The camera with these bad pixels added to its own, and with these offsets."""
        if not self.understood:
            return camera
        if self.offsets is not None:
            counts = self.offsets.to(camera.photons_per_adu) / camera.photons_per_adu
            camera = replace(camera, baseline=camera.baseline + counts)
        if not bool(self.bad.any()):
            return camera
        bad = self.bad if camera.bad is None else self.bad.to(camera.bad.device) | camera.bad
        return replace(camera, bad=bad)

    @property
    def remark(self) -> str:
        """A sentence on bad pixels and on maps that do not fit, or ""."""
        n = int(self.bad.sum())
        if not self.understood:
            return (
                f"{n} pixels differ from those beside them by more than light can, too many to be "
                "defects of the camera: the movie was sharpened or combined, or its pixels have "
                "offsets of their own; take the raw movie, or measure the camera's maps "
                "(`decode calibrate camera`)"
            )
        said = []
        if n:
            pixels = "1 pixel is" if n == 1 else f"{n} pixels are"
            said.append(f"{pixels} dead, hot or flickering and left out ({self._places()})")
        if self.offsets is not None:
            said.append(
                f"pixels have offsets of their own, {self.pattern:.2g} times the noise of a frame, "
                "which were subtracted as well as the movie shows them: molecules may still be "
                "made up there, so measure the camera's maps (`decode calibrate camera`)"
            )
        elif self.pattern > PATTERNED:
            said.append(
                f"the offsets of the pixels differ by {self.pattern:.1f} times the noise of a "
                "frame: measure the camera's maps (`decode calibrate camera`), without them "
                "molecules may be made up"
            )
        return "; ".join(said)

    def _places(self) -> str:
        """The bad lines and the first of the other bad pixels."""
        bad = self.bad.clone()
        words = []
        for name, axis in (("column", 0), ("row", 1)):
            lines = torch.nonzero(bad.all(axis))[:, 0].tolist()
            if lines:
                words.append(f"{name} {spans(lines)}")
            bad.index_fill_(1 - axis, torch.tensor(lines, dtype=torch.int64), False)
        at = [f"x {x} y {y}" for y, x in torch.nonzero(bad).tolist()]
        words += at[:LISTED]
        if len(at) > LISTED:
            words.append("...")
        return ", ".join(words)


def _without_maps(camera: Camera) -> Camera:
    """The camera with a typical number in place of each map."""
    names = [f.name for f in fields(camera) if f.name != "bad"]
    maps = {name: value for name in names if isinstance(value := getattr(camera, name), Tensor)}
    numbers: dict[str, Any] = {name: float(m.double().median()) for name, m in maps.items()}
    return replace(camera, **numbers)


def _photons(movie: Counts, frame: int, camera: Camera) -> npt.NDArray[np.float32]:
    """(1, y, x)"""
    counts = read_counts(movie, frame, frame + 1).astype(np.float32)
    light: npt.NDArray[np.float32] = camera.to_photons(torch.from_numpy(counts)).float().numpy()
    return light


def _common_variance(light: npt.NDArray[np.float32]) -> Array:
    """(y, x) variance over time of (frame, y, x), without the largest deviations."""
    square = (light - light.mean(0)) ** 2
    square.partition(len(light) - RARE, 0)
    variance: Array = square[: len(light) - RARE].mean(0, dtype=np.float64)
    return variance


def _around(image: Array) -> Array:
    """Median of the surrounding pixels, on a grid of every other one."""
    # a mirror would show bright light beside a border twice
    coarse = ndimage.median_filter(image[::2, ::2], AROUND_PX, mode="nearest")
    fine: Array = coarse.repeat(2, 0).repeat(2, 1)[: image.shape[0], : image.shape[1]]
    return fine


def _unlike_light(steady: Array, limit: Array) -> Bools:
    """Pixels whose light differs by more than a limit from what those beside them allow."""
    beside, around = _beside(steady, BESIDE_MEDIAN), _around(steady)
    # where light falls off to the border, all that a mirror shows beyond it is brighter
    bright, dark = (_beside(steady, ranks, "edge") for ranks in (THIRD_BRIGHTEST, THIRD_DARKEST))
    too_bright = steady - bright - OPTICAL_LIGHT * (bright - around).clip(0) > limit
    # between spots pixels are darker than beside them by no more than these are brighter than
    # all around
    too_dark = dark - steady - (beside - around).clip(0) > limit
    found: Bools = too_bright | too_dark
    return found


def _spread(values: Array) -> float:
    """Standard deviation, robust against outliers: by the median absolute deviation."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def _beside(image: Array, ranks: slice, border: Literal["reflect", "edge"] = "reflect") -> Array:
    """Mean of those of the eight neighbours with the given ranks, from the lowest."""
    padded = np.pad(image, 1, mode=border)
    # a corner would otherwise be three of its own neighbours
    padded[[0, 0, -1, -1], [0, -1, 0, -1]] = image[[1, 1, -2, -2], [1, -2, 1, -2]]
    height, width = image.shape
    corners = [(y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)]
    ring = np.stack([padded[y : y + height, x : x + width] for y, x in corners])
    mean: Array = np.sort(ring, 0)[ranks].mean(0)
    return mean
