"""A camera's maps from dark and flat frames, and whether maps fit a movie."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from decode.defects import defects_of, screened, without_unusable
from decode.io.movies import Movie, open_movie
from decode.optics.camera import Camera

__all__ = [
    "CameraCalibration",
    "Frames",
    "calibrate_camera",
    "check_maps",
    "compare_maps",
    "largest_count",
]

Frames = str | Path | Movie | Tensor | npt.NDArray[Any]
"""(frame, y, x) ADU: a TIFF file, an open movie, or an array"""
Map = npt.NDArray[np.float64]

FEWEST_FRAMES = 10
"""of a series; fewer tell a variance to no better than a half"""
CHUNK_BYTES = 2**26
"""of float64 counts in memory at a time"""
FLAT = np.outer([1.0, -2.0, 1.0], [1.0, -2.0, 1.0]) / 6
"""blind to light that is even or changes evenly over the pixels; noise of variance 1 keeps
variance 1"""
AT_LIMIT = 10
"""counts at the largest of so many bits, from which the camera clips there"""
LEAST_VARIANCE = 0.1
"""ADU^2 of the usual pixel in the dark, from which one that never changes is stuck"""
MOST_DEAD = 0.01
"""share of the pixels at the limit in all frames from which these are saturated, not the pixels
stuck"""
NAMED = 10
"""pixels in a sentence"""
LARGEST_CURVATURE = 0.05
"""by how much the gain of one light level may differ from that of all"""


@final
@dataclass(frozen=True, kw_only=True)
class CameraCalibration:
    """Maps (y, x) of a camera, each with its standard error, float64."""

    offset: Tensor
    """ADU"""
    offset_error: Tensor
    read_variance: Tensor
    """ADU^2, the rounding to whole counts included"""
    read_variance_error: Tensor
    gain: Tensor | None
    """ADU per electron at the output of the camera, behind an EM register; None where there were
    no flat frames"""
    gain_error: Tensor | None
    dead: Tensor
    """bool: does not answer to light, and has the gain of the others"""
    notes: tuple[str, ...]
    """a sentence on each thing the user should know"""

    def camera(
        self,
        *,
        gain: float | None = None,
        qe: float = 1.0,
        em_gain: float | None = None,
        saturation_adu: float = 65535.0,
    ) -> Camera:
        """The camera of these maps.

        Args:
            gain: ADU per electron from the data sheet, where flat frames did not tell it.
            qe: quantum efficiency, which no such series tells.
            em_gain: as given to `calibrate_camera`.
            saturation_adu: largest count the camera writes.

        Raises:
            ValueError: if nothing tells the gain, or it is told twice.
        """
        if self.gain is not None and gain is not None:
            raise ValueError("the flat frames told the gain; leave the stated one out")
        if self.gain is None and gain is None:
            raise ValueError(
                "dark frames tell offset and read noise, but no gain: add flat frames at several "
                "light levels, or "
                "state the ADU per electron of the data sheet"
            )
        if gain is not None and not (math.isfinite(gain) and gain > 0):
            raise ValueError(f"the gain is {gain:g} ADU per electron, must be positive")
        e_per_adu = 1 / (
            torch.as_tensor(gain, dtype=torch.float64) if self.gain is None else self.gain
        )
        # `Camera` adds the rounding itself
        read_noise_e = (self.read_variance - 1 / 12).clamp_min(0).sqrt() * e_per_adu
        return Camera(
            baseline=self.offset.float(),
            e_per_adu=e_per_adu.float() if e_per_adu.ndim else float(e_per_adu),
            read_noise_e=read_noise_e.float(),
            qe=qe,
            em_gain=em_gain,
            saturation_adu=saturation_adu,
            bad=self.dead if bool(self.dead.any()) else None,
        )


def calibrate_camera(
    dark: Frames | Sequence[Frames], flats: Sequence[Frames] = (), *, em_gain: float | None = None
) -> CameraCalibration:
    """Offset and read variance of every pixel from dark frames, and its gain from evenly lit ones.

    Frames are read in chunks; means and variances add up in float64 (Chan, Golub and LeVeque, Am.
    Stat. 37, 242, 1983). With D the mean and V the variance of a pixel at light level k, o and v
    those in the dark, its gain is the weighted least-squares solution of V_k - v = g (D_k - o)
    (Huang et al., Nat. Methods 10, 653, 2013, Supplementary Note 1; Janesick, Photon Transfer,
    SPIE, 2007), the weight being the inverse variance of V_k - g D_k for Poisson counts, 2 V_k^2 /
    (n_k - 1) + g^2 v / n_k.  What a flickering lamp adds to V is taken off: the means of whole
    frames show it.

    Args:
        dark: one or several series without light; between series the offset may drift.
        flats: series of steady, even light, one a light level; best four or more, spread up to half
            of saturation.
        em_gain: of an EMCCD, whose register doubles the variance; None: there is none.

    Returns:
        The maps; without flat frames the gain is None, and a note says so.

    Raises:
        ValueError: in one sentence, if series are too short, of different shapes, saturated, not
            brighter than the dark, or hold NaN.
    """
    if em_gain is not None and not em_gain >= 1:
        raise ValueError(f"the EM gain is {em_gain:g}, but must be at least 1")
    darks = [dark] if isinstance(dark, str | Path | Movie | Tensor | np.ndarray) else dark
    series = [_Series.of(frames, "dark frames") for frames in darks]
    if not series:
        raise ValueError("no dark frames were given")
    levels = [_Series.of(frames, "flat frames") for frames in flats]
    for each in (*series, *levels):
        if each.mean.shape != series[0].mean.shape:
            raise ValueError(
                f"{each.name} are {_size(each.mean.shape)} pixels, the dark frames "
                f"{_size(series[0].mean.shape)}; "
                "take all series with the same region of the sensor"
            )
    n = np.array([each.n for each in series], float)
    offset = np.tensordot(n / n.sum(), np.stack([each.mean for each in series]), 1)
    # within series, for an offset that drifted between them is no read noise
    freedom = n - 1
    variance = np.tensordot(
        freedom / freedom.sum(), np.stack([each.variance for each in series]), 1
    )
    total, total_freedom = float(n.sum()), float(freedom.sum())
    notes = []
    drift = np.ptp([each.mean.mean() for each in series])
    if drift > 0.5:
        notes.append(
            f"the offset differs by {drift:.2g} ADU between the dark series; let the camera cool "
            "down first"
        )
    if not variance.any():
        raise ValueError("the dark frames do not vary; they must be single frames, not an average")
    gain = gain_error = None
    # of a camera whose noise is less than a count, good pixels are as constant
    dead = (variance == 0) & (np.median(variance) > LEAST_VARIANCE)
    if levels:
        fit, fit_error, dead, remarks = _photon_transfer(
            levels, offset, variance, total, total_freedom
        )
        scale = 1.0 if em_gain is None else 1 / (2 * em_gain)
        gain, gain_error = torch.from_numpy(fit * scale), torch.from_numpy(fit_error * scale)
        notes += remarks
    else:
        notes.append("there were no flat frames: the gain is missing and must be stated")
    if dead.any():
        notes.append(_dead_remark(dead))
    return CameraCalibration(
        offset=torch.from_numpy(offset),
        offset_error=torch.from_numpy(np.sqrt(variance / total)),
        read_variance=torch.from_numpy(variance),
        read_variance_error=torch.from_numpy(variance * math.sqrt(2 / total_freedom)),
        gain=gain,
        gain_error=gain_error,
        dead=torch.from_numpy(dead),
        notes=tuple(notes),
    )


def _photon_transfer(
    levels: Sequence[_Series], offset: Map, dark_variance: Map, n_dark: float, dark_freedom: float
) -> tuple[Map, Map, npt.NDArray[np.bool_], list[str]]:
    """Slope of variance against mean of pixels [ADU per electron], its standard error, where
    there is none; remarks."""
    light = np.stack([level.mean - offset for level in levels])
    frames = np.array([level.n for level in levels], float)[:, None, None]
    for level, mean in zip(levels, light, strict=True):
        if np.median(mean) < 3 * math.sqrt(np.median(dark_variance) / level.n):
            raise ValueError(
                f"{level.name} are no brighter than the dark frames; give them light, or leave "
                "them out"
            )
    flicker = np.array(
        [level.flicker(mean.mean()) for level, mean in zip(levels, light, strict=True)]
    )
    excess = (
        np.stack([level.variance for level in levels])
        - dark_variance
        - light**2 * flicker[:, None, None]
    )
    lit = light.sum(0)
    answers = lit > 0  # a stuck pixel does not, and 0 / 0 is no gain
    typical = float(np.median(excess.sum(0)[answers] / lit[answers]))
    if not typical > 0:
        raise ValueError(
            "the variance of the flat frames does not grow with their light and tells no gain"
        )
    # weights from what is expected, not from what was found: those would favour levels that varied
    # little by chance
    expected = dark_variance + typical * light.clip(0)
    weight = 1 / (2 * expected**2 / (frames - 1) + typical**2 * dark_variance / frames).clip(1e-12)
    spread = (weight * light**2).sum(0)
    gain = (weight * light * excess).sum(0) / spread.clip(1e-12)
    # the dark frames' error is common to all levels
    common = 2 * dark_variance**2 / dark_freedom + typical**2 * dark_variance / n_dark
    error = np.sqrt(
        1 / spread.clip(1e-12) + ((weight * light).sum(0) / spread.clip(1e-12)) ** 2 * common
    )

    notes = []
    dead = ~(gain > 0.2 * typical) | ~np.isfinite(gain)
    if dead.any():
        gain[dead], error[dead] = typical, np.inf
    if len(levels) < 2:
        notes.append("one light level does not show whether the camera is linear; take several")
    for level, mean, surplus in zip(levels, light, excess, strict=True):
        curvature = float(np.median(surplus / mean.clip(1e-9)) / np.median(gain)) - 1
        if len(levels) > 1 and abs(curvature) > LARGEST_CURVATURE:
            notes.append(
                f"{level.name} (mean {level.mean.mean():.4g} ADU) alone would give a gain "
                f"{curvature:+.0%} off: "
                "the camera is not linear there, or their light was not steady"
            )
    lamp = math.sqrt(flicker.max())
    if lamp > 0.01:
        notes.append(
            f"the light of the flat frames varied by {lamp:.1%} from frame to frame, which was "
            "taken off"
        )
    precision = float(np.median(error / gain))
    if precision > 0.05:
        notes.append(f"the gain of a pixel is known to {precision:.0%} only; take more flat frames")
    return gain, error, dead, notes


def _dead_remark(dead: npt.NDArray[np.bool_]) -> str:
    named = [f"x {x} y {y}" for y, x in np.argwhere(dead)]
    places = ", ".join(named[:NAMED]) + ", ..." * (len(named) > NAMED)
    pixels = "1 pixel does" if len(named) == 1 else f"{len(named)} pixels do"
    return f"{pixels} not answer to light ({places}) and will be left out as bad"


@final
@dataclass(frozen=True, kw_only=True)
class _Series:
    """Mean and variance of every pixel over a series of frames."""

    name: str
    n: int
    mean: Map
    variance: Map
    means: npt.NDArray[np.float64]
    """of whole frames"""

    @staticmethod
    def of(frames: Frames, what: str) -> _Series:
        source = open_movie(frames) if isinstance(frames, str | Path) else nullcontext(frames)
        with source as movie:
            name = f"the {what} {movie.path}" if isinstance(movie, Movie) else f"the {what}"
            shape = _shape_of(movie, name)
            if shape[0] < FEWEST_FRAMES:
                raise ValueError(
                    f"{name} are {shape[0]}; take at least {FEWEST_FRAMES}, better some hundred"
                )
            with suppress(
                ValueError
            ):  # of a series without any usable frame there is more to say below
                movie = without_unusable(movie)
            n, mean, squares = 0, np.zeros(shape[1:]), np.zeros(shape[1:])
            means, top, n_top = [], -math.inf, 0
            for chunk in _chunks(movie, name):
                m = len(chunk)
                middle = chunk.mean(0)
                squares += ((chunk - middle) ** 2).sum(0) + (middle - mean) ** 2 * (n * m / (n + m))
                mean += (middle - mean) * (m / (n + m))
                n += m
                means.append(chunk.mean((1, 2)))
                highest = float(chunk.max())
                n_top = (n_top if highest <= top else 0) + int((chunk == highest).sum()) * (
                    highest >= top
                )
                top = max(top, highest)
        stuck = (squares == 0) & (mean == top)
        if stuck.mean() < MOST_DEAD:
            n_top -= n * int(stuck.sum())
        if _is_limit(top) and n_top > 1e-4 * n * mean.size:
            raise ValueError(f"{name} are saturated at {top:g} ADU; take them with less light")
        return _Series(
            name=name, n=n, mean=mean, variance=squares / (n - 1), means=np.concatenate(means)
        )

    def flicker(self, light: float) -> float:
        """Squared relative change of the light from frame to frame, beyond what noise makes of
        the frames' means."""
        noise = self.variance.mean() / self.mean.size
        return max(0.0, float(self.means.var(ddof=1) - 4 * noise)) / light**2


@final
class MapsCheck(NamedTuple):
    """What does not fit between a camera and a movie, in sentences."""

    misplaced: str
    """how the camera's maps lie where they are no maps of this movie's pixels; "" where they are"""
    others: tuple[str, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        return (*self.others, self.misplaced) if self.misplaced else self.others


def check_maps(
    movie: Frames, camera: Camera, *, n_frames: int = 500, side_px: int | None = None
) -> tuple[str, ...]:
    """The sentences of `compare_maps`; nothing where all fits."""
    return compare_maps(movie, camera, n_frames=n_frames, side_px=side_px).sentences


def compare_maps(
    movie: Frames, camera: Camera, *, n_frames: int = 500, side_px: int | None = None
) -> MapsCheck:
    """What does not fit between a camera and a movie.

    Hot pixels and the pattern of the offset show how maps lie: the variance of each pixel from
    frame to frame, and its mean, are compared with the maps' in all eight orientations and, by
    their cross-correlation, at all shifts.  The offset is compared with what photon transfer makes
    of quiet dark pixels: mean - (variance - read variance) / gain. Light that goes on or off is
    taken from that variance by the mask [1 -2 1] along both axes (Immerkaer, Comput. Vis. Image
    Underst. 64, 300, 1996).

    Args:
        movie: (frame, y, x) ADU.
        camera: with numbers or maps.
        n_frames: largest number of frames to look at, spread over the movie.
        side_px: of the middle of the frames, which is all that is looked at, as it stays in the
            middle however maps are turned; None: whole frames.

    Raises:
        ValueError: if the maps are not as large as the frames, or the movie is too short or holds
            NaN.
    """
    source = open_movie(movie) if isinstance(movie, str | Path) else nullcontext(movie)
    with source as opened:
        shape = _shape_of(opened, "the movie")
        if shape[0] < 3:
            raise ValueError(f"checking a camera takes at least 3 frames, the movie has {shape[0]}")
        size = camera.shape
        if size not in (None, shape[1:]):
            remedy = (
                "they are transposed"
                if size == (shape[2], shape[1])
                else "cut them to the movie's region"
            )
            raise ValueError(
                f"the camera's maps are {_size(size)} pixels, the movie's frames "
                f"{_size(shape[1:])}: {remedy}"
            )
        rows, columns = (_middle(side, side_px) for side in shape[1:])
        by_maps = defects_of(opened, camera).pixels.by_maps
        usable, camera, _ = screened(opened, camera)
        camera = camera.crop(rows, columns)
        good = np.ones((rows.stop - rows.start, columns.stop - columns.start), bool)
        if camera.bad is not None:
            good = ~camera.bad.cpu().numpy()
        mean, variance, noise, top, n_top, n = _changes(usable, n_frames, rows, columns, good)
    sentences = []
    limit = camera.saturation_adu
    if top >= limit or (_is_limit(top) and n_top >= AT_LIMIT):
        sentences.append(
            f"{n_top} counts of the movie are at the limit of {top:g} ADU: molecules there come "
            "out too dim; "
            "take less light or a shorter exposure"
        )
    offset, gain, read = (
        np.broadcast_to(np.asarray(torch.as_tensor(value).double().cpu()), mean.shape).astype(float)
        for value in (
            camera.baseline,
            (1 if camera.em_gain is None else camera.em_gain) / torch.as_tensor(camera.e_per_adu),
            (torch.as_tensor(camera.read_noise_e) / torch.as_tensor(camera.e_per_adu)) ** 2
            + 1 / 12,
        )
    )
    misplaced = _orientation(mean, variance, offset, read)
    if not misplaced and by_maps:
        misplaced = (
            f"the camera's maps do not fit the movie: by them {by_maps} pixels look bad that are "
            "as those beside them; "
            "they are those of another camera, region or binning"
        )
    if misplaced:
        # with maps that lie wrong nothing else can be judged
        return MapsCheck(misplaced, tuple(sentences))
    light = mean - offset
    negative = float((light < -5 * np.sqrt(variance / n))[good].mean())
    if negative > 0.01:
        sentences.append(
            f"{negative:.0%} of the pixels are darker than their offset, which makes negative "
            "photons: the offset is "
            "too high, or was taken from other frames; measure it again"
        )
        return MapsCheck("", tuple(sentences))
    chosen = _dark_and_quiet(mean, variance, read) & ndimage.minimum_filter(good, 3)
    if chosen.sum() < FEWEST_QUIET:
        return MapsCheck("", tuple(sentences))
    masked_light, masked_read = (
        ndimage.convolve(image, FLAT**2, mode="nearest") for image in (light, read)
    )
    shift = (masked_light - (noise - masked_read) / (camera.excess_factor * gain))[chosen]
    found, uncertain = float(shift.mean()), float(shift.std() / math.sqrt(len(shift)))
    # a tenth of the light is within what gains are off
    tolerance = max(2.0, 4 * uncertain) + 0.1 * abs(float(light[chosen].mean()))
    if abs(found) > tolerance:
        # the same noise comes from another gain
        transfer = (
            float((noise - masked_read)[chosen].mean() / masked_light[chosen].mean())
            / camera.excess_factor
        )
        stated = float(torch.as_tensor(camera.e_per_adu, dtype=torch.float64).mean())
        fitting = stated * float(gain[chosen].mean()) / transfer
        inverse = " (the inverse: ADU per electron?)" if 0.75 < fitting * stated < 1.33 else ""
        sentences.append(
            f"the movie's noise puts the offset {abs(found):.1f} ADU "
            f"{'above' if found > 0 else 'below'} the camera's: "
            "measure it again; or, if the offset is right, e_per_adu is about "
            f"{fitting:.2g}{inverse}, not {stated:.3g}"
        )
    return MapsCheck("", tuple(sentences))


ORIENTATIONS = {
    (False, False, False): "",
    (True, False, False): "transposed",
    (False, True, False): "mirrored in y",
    (False, False, True): "mirrored in x",
    (False, True, True): "mirrored in x and y",
    (True, True, False): "transposed and mirrored in y",
    (True, False, True): "transposed and mirrored in x",
    (True, True, True): "transposed and mirrored in x and y",
}
"""whether the axes are swapped, and then rows and columns reversed"""

FEWEST_QUIET = 30
"""dark, quiet pixels from which an offset is judged; frames of 17 x 17 pixels have as many"""
SIGNIFICANT = 7.0
"""standard deviations; by chance the best of some million shifts reaches 5"""


def _orientation(mean: Map, variance: Map, offset: Map, read: Map) -> str:
    """A sentence on maps that fit better otherwise; "" where they lie well, or do not tell."""
    # the maps say how hot a pixel is against its neighbours; what light adds to all of them is
    # taken from the movie
    pairs = [
        (np.log(variance.clip(1e-9)), np.log(read + max(0.0, float(np.median(variance - read))))),
        (mean, offset),
    ]
    seen, maps = zip(*((_pattern(a), _pattern(b)) for a, b in pairs), strict=True)
    spectra = [np.fft.rfft2(a) for a in seen]
    shape = mean.shape
    best, as_is, name, shift = 0.0, 0.0, "", (0, 0)
    for (swap, rows, columns), each in ORIENTATIONS.items():
        if swap and shape[0] != shape[1]:
            continue
        score = np.zeros(shape)
        for spectrum, pattern in zip(spectra, maps, strict=True):
            turned = pattern.T if swap else pattern
            turned = turned[:: -1 if rows else 1, :: -1 if columns else 1]
            score += np.fft.irfft2(spectrum * np.conj(np.fft.rfft2(turned)), shape) / math.sqrt(
                mean.size
            )
        score /= math.sqrt(len(maps))
        place = np.unravel_index(score.argmax(), shape)
        if not each:
            as_is = float(score[0, 0])
        if score[place] > best:
            best, name = float(score[place]), each
            dy, dx = (
                int((s + side // 2) % side) - side // 2
                for s, side in zip(place, shape, strict=True)
            )
            shift = (dy, dx)
    if best < SIGNIFICANT or as_is > 0.7 * best or (not name and shift == (0, 0)):
        return ""
    what = [name] if name else []
    if shift != (0, 0):
        what.append(f"shifted by {shift[1]} pixels in x and {shift[0]} in y")
    return (
        f"the camera's maps fit the movie only when they are {' and then '.join(what)}: save "
        "them so"
    )


def _pattern(image: Map) -> Map:
    """How a pixel differs from those around, of unit variance; nothing where a map is even."""
    rest = image - ndimage.median_filter(image, 5, mode="nearest")
    spread = 1.4826 * float(np.median(np.abs(rest))) or float(rest.std())
    if spread < 1e-6 * max(1.0, float(np.abs(image).max())):
        return np.zeros_like(rest)
    rest = rest.clip(-6 * spread, 6 * spread)
    rest -= rest.mean()
    return rest / rest.std()


def _dark_and_quiet(mean: Map, variance: Map, read: Map) -> npt.NDArray[np.bool_]:
    """Among the darkest quarter of the pixels the half where least happens, both by those
    around; no hot ones."""
    ring = np.ones((7, 7))
    ring[2:5, 2:5] = 0
    usual = read <= 3 * np.median(read)
    count = ndimage.convolve(usual.astype(float), ring, mode="nearest").clip(1)
    around, unrest = (
        ndimage.convolve(np.where(usual, image, 0), ring, mode="nearest") / count
        for image in (mean, variance)
    )
    # beyond the border there is no pixel, and the masks do not hold
    dark = ndimage.minimum_filter(usual, 3, mode="constant", cval=False) & (
        around <= np.quantile(around, 0.25)
    )
    return dark & (unrest <= np.median(unrest[dark])) if dark.any() else dark


def _middle(size: int, side: int | None) -> slice:
    # an even margin on both sides, or what is turned round would be one pixel off
    margin = 0 if side is None else max(0, (size - side) // 2)
    return slice(margin, size - margin)


def _changes(
    movie: Movie | Tensor | npt.NDArray[Any],
    n_frames: int,
    rows: slice,
    columns: slice,
    good: npt.NDArray[np.bool_],
) -> tuple[Map, Map, Map, float, int, int]:
    """Mean, variance and masked variance from frame to frame of every pixel; frames.

    And the highest count of the good pixels, and its number.
    """
    total = movie.shape[0]
    length = min(total, 20)
    starts = (
        np.linspace(0, total - length, max(1, min(total, n_frames) // length)).round().astype(int)
    )
    size = rows.stop - rows.start, columns.stop - columns.start
    mean, squares, masked = (np.zeros(size) for _ in range(3))
    top, n_top, n, n_pairs = -math.inf, 0, 0, 0
    for start in starts:
        chunk = _read(movie, int(start), int(start) + length, "the movie", rows, columns)
        mean += chunk.sum(0)
        # half the squared step: slow changes of the light leave no trace
        steps = np.diff(chunk, axis=0)
        squares += (steps**2).sum(0) / 2
        masked += (ndimage.convolve(steps, FLAT[None], mode="nearest") ** 2).sum(0) / 2
        highest = float(chunk[:, good].max())
        n_top = (n_top if highest <= top else 0) + int((chunk[:, good] == highest).sum()) * (
            highest >= top
        )
        top, n, n_pairs = max(top, highest), n + length, n_pairs + length - 1
    return mean / n, squares / n_pairs, masked / n_pairs, top, n_top, n


def _chunks(movie: Movie | Tensor | npt.NDArray[Any], name: str) -> Iterator[Map]:
    total, height, width = movie.shape
    length = max(1, CHUNK_BYTES // (8 * height * width))
    for start in range(0, total, length):
        yield _read(movie, start, min(total, start + length), name)


def _read(
    movie: Movie | Tensor | npt.NDArray[Any],
    start: int,
    stop: int,
    name: str,
    rows: slice = slice(None),
    columns: slice = slice(None),
) -> Map:
    frames = movie.read(start, stop) if isinstance(movie, Movie) else movie[start:stop]
    chunk = np.asarray(frames)[:, rows, columns].astype(np.float64)
    if not np.isfinite(chunk).all():
        raise ValueError(f"{name} hold NaN or infinite counts; mend or leave out those frames")
    return chunk


def _shape_of(movie: Movie | Tensor | npt.NDArray[Any], name: str) -> tuple[int, int, int]:
    shape = tuple(movie.shape)
    if len(shape) != 3 or 0 in shape:
        raise ValueError(
            f"{name} must be (frame, y, x) of grey values and not empty, but have the shape {shape}"
        )
    return shape[0], shape[1], shape[2]


def largest_count(adu: Tensor, stated: float) -> float:
    """The count at which a camera clips, ADU: the stated one, or a lower one of its bits where
    counts pile up."""
    top = float(adu.max())
    piled = _is_limit(top) and int((adu == top).sum()) >= AT_LIMIT
    return min(top, stated) if piled else stated


def _is_limit(count: float) -> bool:
    """Whether a count is the largest of 8 to 16 bits."""
    return count in {2.0**bits - 1 for bits in (8, 10, 11, 12, 14, 16)}


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]} x {shape[1]}"
