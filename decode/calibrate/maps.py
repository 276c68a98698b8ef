"""Whether a camera's offset, gain and maps fit a movie."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from decode.calibrate.counts import (
    AT_LIMIT,
    Frames,
    Highest,
    Map,
    Region,
    is_limit,
    opened,
    read,
    shape_of,
    size_in_words,
)
from decode.defects import defects_of, screened
from decode.defects.counts import Counts
from decode.optics.camera import Camera

__all__ = ["MapsCheck", "check_maps", "compare_maps"]

FLAT = np.outer([1.0, -2.0, 1.0], [1.0, -2.0, 1.0]) / 6
"""mask that cancels light that is constant or linear over the pixels; it keeps the variance of
independent noise"""
CHUNK_FRAMES = 20
"""successive frames whose changes are used"""
FEWEST_FRAMES = 3
LEFT_BY_MASK = 0.02
"""largest share of the variance of changing light that `FLAT` leaves: 0.003 to 0.015 on simulated
movies of crowded molecules"""
FEWEST_QUIET = 30
"""fewest dark, quiet pixels from which an offset is judged; frames of 17 x 17 pixels have as
many"""
MOST_NEGATIVE = 0.01
"""largest share of the pixels that may lie 5 standard deviations below their offset"""
SIGNIFICANT = 7.0
"""standard deviations of a significant score; by chance the best of some million shifts reaches
5"""
AS_GOOD = 0.7
"""share of the best score from which maps count as well placed"""
POSSIBLE_E_PER_ADU = (1e-3, 1e3)
"""range of the electrons per ADU of unchanged counts"""
ROUNDING = 1 / 12
"""ADU^2, variance of whole counts"""

Mask = npt.NDArray[np.bool_]


@final
class MapsCheck(NamedTuple):
    """Disagreements between a camera and a movie, in sentences."""

    misplaced: str
    """how the camera's maps are misplaced on this movie's pixels; "" where they are not"""
    others: tuple[str, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        return (*self.others, self.misplaced) if self.misplaced else self.others


def check_maps(
    movie: Frames, camera: Camera, *, n_frames: int = 500, side_px: int | None = None
) -> tuple[str, ...]:
    """The sentences of `compare_maps`; none where camera and movie agree."""
    return compare_maps(movie, camera, n_frames=n_frames, side_px=side_px).sentences


def compare_maps(
    movie: Frames, camera: Camera, *, n_frames: int = 500, side_px: int | None = None
) -> MapsCheck:
    """What does not fit between a camera and a movie.

    Hot pixels and the pattern of the offset show how maps lie: the variance of each pixel from
    frame to frame, and its mean, are compared with the maps' in all eight orientations and, by
    their cross-correlation, at all shifts.  The offset is compared with that by photon transfer of
    quiet dark pixels: mean - (variance - read variance) / gain.  The mask [1 -2 1] along both axes
    removes light that switches on or off from that variance (Immerkaer, Comput. Vis. Image Underst.
    64, 300, 1996).

    Args:
        movie: (frame, y, x) ADU.
        camera: with numbers or maps.
        n_frames: largest number of frames to use, spread over the movie.
        side_px: side of the middle of the frames, to which the check is limited, and which stays
            there however maps are turned; None: whole frames.

    Raises:
        ValueError: if the maps are not as large as the frames, or the movie is too short or holds
            NaN.
    """
    with opened(movie) as frames:
        n, height, width = shape_of(frames, "the movie")
        if n < FEWEST_FRAMES:
            raise ValueError(
                f"checking a camera takes at least {FEWEST_FRAMES} frames, the movie has {n}"
            )
        _check_size(camera, (height, width))
        by_maps = defects_of(frames, camera).pixels.by_maps
        usable, camera, _ = screened(frames, camera)
        region = _middle(height, side_px), _middle(width, side_px)
        camera = camera.crop(*region)
        observed = _Observed.of(usable, camera, n_frames, region)
    stated = _Stated.of(camera, observed.mean.shape)
    others = [*_remarks_on_limit(observed.highest, camera)]
    misplaced = _orientation(observed, stated) or _remark_on_defects(by_maps)
    if not misplaced:  # with maps that lie wrong nothing else can be judged
        others += _remarks_on_offset(observed, stated, camera)
    return MapsCheck(misplaced, tuple(others))


def _check_size(camera: Camera, frame: tuple[int, int]) -> None:
    size = camera.shape
    if size is None or size == frame:
        return
    transposed = size == frame[::-1]
    remedy = "they are transposed" if transposed else "cut them to the movie's region"
    raise ValueError(
        f"the camera's maps are {size_in_words(size)} pixels, the movie's frames "
        f"{size_in_words(frame)}: {remedy}"
    )


def _middle(size: int, side: int | None) -> slice:
    # an even margin on both sides, or what is turned round would be one pixel off
    margin = 0 if side is None else max(0, (size - side) // 2)
    return slice(margin, size - margin)


@final
class _Observed(NamedTuple):
    """Pixels of a movie."""

    mean: Map
    """ADU"""
    variance: Map
    """ADU^2, from frame to frame"""
    noise: Map
    """variance from frame to frame after the mask `FLAT`, of noise alone, ADU^2"""
    highest: Highest
    """highest count of the good pixels"""
    n: int
    """number of frames used"""
    good: Mask

    @staticmethod
    def of(movie: Counts, camera: Camera, n_frames: int, region: Region) -> _Observed:
        """Some frames, spread over a movie.

        Args:
            movie: (frame, y, x).
            camera: camera of the region; its bad pixels do not count.
            n_frames: most frames.
            region: region of the frames.
        """
        total = movie.shape[0]
        length = min(total, CHUNK_FRAMES)
        n_chunks = max(1, min(total, n_frames) // length)
        starts = np.linspace(0, total - length, n_chunks).round().astype(int).tolist()
        sums, squares, masked = [], [], []
        good, highest = _good(camera, region), Highest()
        for start in starts:
            chunk = read(movie, start, start + length, "the movie", region)
            sums.append(chunk.sum(0))
            # half the squared step: slow changes of the light leave no trace
            steps = np.diff(chunk, axis=0)
            squares.append((steps**2).sum(0) / 2)
            behind = ndimage.convolve(steps, FLAT[None], mode="nearest")
            masked.append((behind**2).sum(0) / 2)
            highest = highest.among(chunk[:, good])
        n, n_pairs = n_chunks * length, n_chunks * (length - 1)
        return _Observed(
            mean=np.sum(sums, 0) / n,
            variance=np.sum(squares, 0) / n_pairs,
            noise=np.sum(masked, 0) / n_pairs,
            highest=highest,
            n=n,
            good=good,
        )


def _good(camera: Camera, region: Region) -> Mask:
    if camera.bad is None:
        return np.ones([part.stop - part.start for part in region], bool)
    good: Mask = ~camera.bad.cpu().numpy()
    return good


@final
class _Stated(NamedTuple):
    """A camera's statements on its pixels, as maps."""

    offset: Map
    """ADU"""
    gain: Map
    """ADU per electron before an EM register"""
    read_variance: Map
    """ADU^2, the rounding to whole counts included"""

    @staticmethod
    def of(camera: Camera, shape: tuple[int, ...]) -> _Stated:
        e_per_adu = torch.as_tensor(camera.e_per_adu)
        em_gain = 1.0 if camera.em_gain is None else camera.em_gain
        read_noise = torch.as_tensor(camera.read_noise_e) / e_per_adu

        def as_map(value: float | Tensor) -> Map:
            number = torch.as_tensor(value).double().cpu()
            return np.broadcast_to(number.numpy(), shape).astype(float)

        return _Stated(
            as_map(camera.baseline), as_map(em_gain / e_per_adu), as_map(read_noise**2 + ROUNDING)
        )


def _remarks_on_limit(highest: Highest, camera: Camera) -> Iterator[str]:
    clipped = is_limit(highest.value) and highest.times >= AT_LIMIT
    if clipped or highest.value >= camera.saturation_adu:
        yield (
            f"{highest.times} counts of the movie are at the limit of {highest.value:g} ADU: "
            "molecules there come out too dim; take less light or a shorter exposure"
        )


def _remark_on_defects(by_maps: int) -> str:
    if not by_maps:
        return ""
    return (
        f"the camera's maps do not fit the movie: by them {by_maps} pixels are unlike those beside "
        "them, and in the movie they are not; they are probably those of another camera, region or "
        "binning"
    )


def _remarks_on_offset(observed: _Observed, stated: _Stated, camera: Camera) -> Iterator[str]:
    """Remarks where noise and light of dark pixels do not agree."""
    light = observed.mean - stated.offset
    below = light < -5 * np.sqrt(observed.variance / observed.n)
    negative = float(below[observed.good].mean())
    if negative > MOST_NEGATIVE:
        yield (
            f"{negative:.0%} of the pixels are darker than their offset, which makes negative "
            "photons: the offset is too high, or was taken from other frames; measure it again"
        )
        return
    chosen = _dark_and_quiet(observed, stated) & ndimage.minimum_filter(observed.good, 3)
    if chosen.sum() < FEWEST_QUIET:
        return
    light, read_variance, variance = (
        ndimage.convolve(each, FLAT**2, mode="nearest")[chosen]
        for each in (light, stated.read_variance, observed.variance)
    )
    quiet = _Quiet(
        light=light,
        noise=observed.noise[chosen] - ROUNDING,
        of_light=variance - observed.noise[chosen],
        read_variance=read_variance - ROUNDING,
        read_is_measured=torch.as_tensor(camera.read_noise_e).ndim > 0,
        gain=camera.excess_factor * stated.gain[chosen],
        offset=float(stated.offset[chosen].mean()),
        e_per_adu=float(torch.as_tensor(camera.e_per_adu, dtype=torch.float64).mean()),
        lowest=min(0.0, float(observed.mean.min())),
    )
    yield from quiet.remarks()


@final
class _Quiet(NamedTuple):
    """Dark pixels that change least: (pixel,) maps in ADU, and what the camera states of them."""

    light: Map
    """mean above the stated offset"""
    noise: Map
    """variance from frame to frame"""
    of_light: Map
    """variance due to changes of light, except the part that `FLAT` leaves in the noise"""
    read_variance: Map
    """stated read variance"""
    read_is_measured: bool
    """whether the read variance is a map in ADU, and not stated in electrons"""
    gain: Map
    """stated variance over light"""
    offset: float
    """mean stated offset"""
    e_per_adu: float
    """mean stated value"""
    lowest: float
    """lowest possible offset"""

    def remarks(self) -> Iterator[str]:
        """What is wrong with offset or gain, by photon transfer."""
        above = self.light - (self.noise - self.read_variance) / self.gain
        shift, uncertain = float(above.mean()), float(above.std() / math.sqrt(len(above)))
        mean_light = float(self.light.mean())
        left = LEFT_BY_MASK * max(0.0, float((self.of_light / self.gain).mean()))
        # a tenth of the light is within what gains are off
        if abs(shift) <= max(2.0, 4 * uncertain) + 0.1 * abs(mean_light) + left:
            return
        fitting = self.fitting_e_per_adu()
        may_be_gain = POSSIBLE_E_PER_ADU[0] <= fitting <= POSSIBLE_E_PER_ADU[1]
        may_be_offset = self.lowest <= self.offset + shift <= self.offset + mean_light
        side = "above" if shift > 0 else "below"
        moved = f"the movie's noise puts the offset {abs(shift):.1f} ADU {side} the camera's"
        is_inverse = 0.75 < fitting * self.e_per_adu < 1.33
        inverse = " (the inverse: ADU per electron?)" if is_inverse else ""
        instead = f"e_per_adu is about {fitting:.2g}{inverse}, not {self.e_per_adu:.3g}"
        if may_be_offset and may_be_gain:
            yield f"{moved}: measure it again; or, if the offset is right, {instead}"
        elif may_be_offset:
            yield f"{moved}: measure it again"
        elif may_be_gain:
            yield (
                f"by the movie's noise {instead}: photons are wrong by that factor, and all sigmas "
                "with them; measure the gain, or take it from the data sheet of the camera"
            )
        else:
            yield (
                "the movie has less noise than a camera gives its light: it was averaged or "
                "smoothed, or its counts are no ADU; take the raw movie"
            )

    def fitting_e_per_adu(self) -> float:
        """The electrons per ADU at which light and read-out explain the noise; infinite where the
        noise is less."""
        read = float(self.read_variance.mean())
        of_gain = 0.0 if self.read_is_measured else read
        noise, shot = (
            float(self.noise.mean()) - read + of_gain,
            float((self.gain * self.light).mean()),
        )
        if noise <= 0:
            return math.inf
        # noise = u shot + u^2 of_gain, where u is the stated number over this one
        return self.e_per_adu * (shot + math.sqrt(shot**2 + 4 * of_gain * noise)) / (2 * noise)


def _dark_and_quiet(observed: _Observed, stated: _Stated) -> Mask:
    """The half of the darkest quarter of the pixels that changes least, both judged by the pixels
    around; without hot ones."""
    ring = np.ones((7, 7))
    ring[2:5, 2:5] = 0
    usual = stated.read_variance <= 3 * np.median(stated.read_variance)
    count = ndimage.convolve(usual.astype(float), ring, mode="nearest").clip(1)
    around, unrest = (
        ndimage.convolve(np.where(usual, image, 0), ring, mode="nearest") / count
        for image in (observed.mean, observed.variance)
    )
    # beyond the border there is no pixel, and the masks do not hold
    inner = ndimage.minimum_filter(usual, 3, mode="constant", cval=False)
    dark: Mask = inner & (around <= np.quantile(around, 0.25))
    return dark & (unrest <= np.median(unrest[dark])) if dark.any() else dark


@final
class _Turn(NamedTuple):
    """An orientation of maps."""

    name: str
    swap: bool
    """whether axes are swapped, before rows and columns are reversed"""
    rows: bool
    columns: bool

    def of(self, image: Map) -> Map:
        turned = image.T if self.swap else image
        return turned[:: -1 if self.rows else 1, :: -1 if self.columns else 1]


TURNS = (
    _Turn("", False, False, False),
    _Turn("transposed", True, False, False),
    _Turn("mirrored in y", False, True, False),
    _Turn("mirrored in x", False, False, True),
    _Turn("mirrored in x and y", False, True, True),
    _Turn("transposed and mirrored in y", True, True, False),
    _Turn("transposed and mirrored in x", True, False, True),
    _Turn("transposed and mirrored in x and y", True, True, True),
)
"""all orientations; the first leaves maps as they are"""


def _orientation(observed: _Observed, stated: _Stated) -> str:
    """A sentence on maps that fit better in another orientation or at a shift; else ""."""
    mean, variance, read_variance = observed.mean, observed.variance, stated.read_variance
    # the maps say how hot a pixel is against its neighbours; what light adds to all of them is
    # taken from the movie
    of_light = max(0.0, float(np.median(variance - read_variance)))
    seen = [_pattern(np.log(variance.clip(1e-9))), _pattern(mean)]
    maps = [_pattern(np.log(read_variance + of_light)), _pattern(stated.offset)]
    square = mean.shape[0] == mean.shape[1]
    turns = [turn for turn in TURNS if square or not turn.swap]
    scores = [_scores(seen, [turn.of(image) for image in maps]) for turn in turns]
    best = max(range(len(turns)), key=lambda i: scores[i].max())
    highest, as_is = float(scores[best].max()), float(scores[0][0, 0])
    y, x = np.unravel_index(scores[best].argmax(), mean.shape)
    dy, dx = (
        int((at + side // 2) % side) - side // 2
        for at, side in zip((y, x), mean.shape, strict=True)
    )
    shifted = (dy, dx) != (0, 0)
    as_they_are = not turns[best].name and not shifted
    if highest < SIGNIFICANT or as_is > AS_GOOD * highest or as_they_are:
        return ""
    shift = f"shifted by {dx} pixels in x and {dy} in y" if shifted else ""
    what = " and then ".join(filter(None, [turns[best].name, shift]))
    return f"the camera's maps fit the movie only when they are {what}: save them so"


def _scores(seen: list[Map], maps: list[Map]) -> Map:
    """Cross-correlation of images with maps at all shifts, in standard deviations of chance."""
    score = np.zeros(seen[0].shape)
    for image, pattern in zip(seen, maps, strict=True):
        spectrum = np.fft.rfft2(image) * np.conj(np.fft.rfft2(pattern))
        score += np.fft.irfft2(spectrum, score.shape)
    return score / math.sqrt(score.size * len(maps))


def _pattern(image: Map) -> Map:
    """Difference of each pixel from those around, at unit variance; 0 where a map is constant."""
    rest = image - ndimage.median_filter(image, 5, mode="nearest")
    spread = 1.4826 * float(np.median(np.abs(rest))) or float(rest.std())
    if spread < 1e-6 * max(1.0, float(np.abs(image).max())):
        return np.zeros_like(rest)
    rest = rest.clip(-6 * spread, 6 * spread)
    rest -= rest.mean()
    return rest / rest.std()
