"""A camera's maps of offset, read noise and gain, from dark and flat frames."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from decode.calibrate.counts import (
    Frames,
    Highest,
    Map,
    chunks,
    is_limit,
    opened,
    shape_of,
    size_in_words,
)
from decode.defects import without_unusable
from decode.io.movies import Movie
from decode.optics.camera import Camera

__all__ = ["CameraCalibration", "measure_maps"]

FEWEST_FRAMES = 10
"""fewest frames of a series; fewer give a variance with an error of a half and more"""
LEAST_VARIANCE = 0.1
"""median variance in the dark from which a pixel that never changes is stuck, ADU^2"""
MOST_DEAD = 0.01
"""share of the pixels at the limit in all frames above which the frames are saturated, instead of
the pixels stuck"""
MOST_SATURATED = 1e-4
"""largest share of counts at the limit"""
LARGEST_DRIFT = 0.5
"""largest difference of the offset between dark series, ADU"""
LEAST_GAIN = 0.2
"""share of the median gain below which a pixel does not respond to light"""
LARGEST_CURVATURE = 0.05
"""largest relative difference of the gain of one light level from that of all"""
LARGEST_FLICKER = 0.01
"""relative change of the lamp from frame to frame above which a note is written"""
LARGEST_GAIN_ERROR = 0.05
"""relative error of the gain above which a note is written"""
NAMED = 10
"""most pixels that a sentence names"""

Mask = npt.NDArray[np.bool_]


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
    """bool; the pixel does not respond to light, and is given the gain of the others"""
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
            gain: ADU per electron from the data sheet, where there are no flat frames.
            qe: quantum efficiency, which no such series can measure.
            em_gain: the one that `measure_maps` was given.
            saturation_adu: largest count the camera writes.

        Raises:
            ValueError: if the gain is neither measured nor stated, or both.
        """
        if self.gain is not None and gain is not None:
            raise ValueError("the gain was measured by flat frames; leave the stated one out")
        if self.gain is None and gain is None:
            raise ValueError(
                "dark frames give offset and read noise, but no gain: add flat frames at several "
                "light levels, or state the ADU per electron of the data sheet"
            )
        if gain is not None and not (math.isfinite(gain) and gain > 0):
            raise ValueError(f"the gain is {gain:g} ADU per electron, must be positive")
        e_per_adu = 1 / torch.as_tensor(
            gain if self.gain is None else self.gain, dtype=torch.float64
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


def measure_maps(
    dark: Frames | Sequence[Frames], flats: Sequence[Frames] = (), *, em_gain: float | None = None
) -> CameraCalibration:
    """Offset and read variance of every pixel from dark frames, and its gain from evenly lit ones.

    Frames are read in chunks; means and variances add up in float64 (Chan, Golub and LeVeque, Am.
    Stat. 37, 242, 1983). With D the mean and V the variance of a pixel at light level k, o and v
    those in the dark, its gain is the weighted least-squares solution of V_k - v = g (D_k - o)
    (Huang et al., Nat. Methods 10, 653, 2013, Supplementary Note 1; Janesick, Photon Transfer,
    SPIE, 2007), the weight being the inverse variance of V_k - g D_k for Poisson counts, 2 V_k^2 /
    (n_k - 1) + g^2 v / n_k.  The part of V from a flickering lamp is estimated from the means of
    whole frames, and subtracted.

    Args:
        dark: one or several series without light; between series the offset may drift.
        flats: series of steady, even light, one a light level; best four or more, spread up to half
            of saturation.
        em_gain: mean gain of an EMCCD's register, which doubles the variance; None: no register.

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
    _check_sizes([*series, *levels])
    darkness = _Darkness.of(series)
    dead, notes = darkness.stuck(), [*_remarks_on_drift(series)]
    gain = gain_error = None
    if levels:
        transfer = _photon_transfer(levels, darkness)
        scale = 1.0 if em_gain is None else 1 / (2 * em_gain)
        gain = torch.from_numpy(transfer.gain * scale)
        gain_error = torch.from_numpy(transfer.error * scale)
        dead = transfer.dead
        notes += transfer.notes
    else:
        notes.append("there were no flat frames: the gain is missing and must be stated")
    if dead.any():
        notes.append(_remark_on_dead(dead))
    offset, variance = darkness.offset, darkness.variance
    return CameraCalibration(
        offset=torch.from_numpy(offset),
        offset_error=torch.from_numpy(np.sqrt(variance / darkness.n)),
        read_variance=torch.from_numpy(variance),
        read_variance_error=torch.from_numpy(variance * math.sqrt(2 / darkness.freedom)),
        gain=gain,
        gain_error=gain_error,
        dead=torch.from_numpy(dead),
        notes=tuple(notes),
    )


@final
@dataclass(frozen=True, kw_only=True)
class _Series:
    """Mean and variance of every pixel over a series of frames."""

    name: str
    n: int
    mean: Map
    variance: Map
    means: npt.NDArray[np.float64]
    """(frame,) means of whole frames"""

    @staticmethod
    def of(frames: Frames, what: str) -> _Series:
        with opened(frames) as movie:
            name = f"the {what} {movie.path}" if isinstance(movie, Movie) else f"the {what}"
            shape = shape_of(movie, name)
            if shape[0] < FEWEST_FRAMES:
                raise ValueError(
                    f"{name} are {shape[0]}; take at least {FEWEST_FRAMES}, better some hundred"
                )
            # a series without any usable frame is refused below, for a better reason
            with suppress(ValueError):
                movie = without_unusable(movie)
            n, mean, squares = 0, np.zeros(shape[1:]), np.zeros(shape[1:])
            means, highest = [], Highest()
            for chunk in chunks(movie, name):
                m = len(chunk)
                middle = chunk.mean(0)
                squares += ((chunk - middle) ** 2).sum(0) + (middle - mean) ** 2 * (n * m / (n + m))
                mean += (middle - mean) * (m / (n + m))
                n += m
                means.append(chunk.mean((1, 2)))
                highest = highest.among(chunk)
        saturated = highest.times
        stuck = (squares == 0) & (mean == highest.value)
        if stuck.mean() < MOST_DEAD:
            saturated -= n * int(stuck.sum())
        if is_limit(highest.value) and saturated > MOST_SATURATED * n * mean.size:
            limit = f"{highest.value:g} ADU"
            raise ValueError(f"{name} are saturated at {limit}; take them with less light")
        return _Series(
            name=name, n=n, mean=mean, variance=squares / (n - 1), means=np.concatenate(means)
        )

    def flicker(self, light: float) -> float:
        """Squared relative change of the light from frame to frame, less the part of the noise."""
        noise = self.variance.mean() / self.mean.size
        return max(0.0, float(self.means.var(ddof=1) - 4 * noise)) / light**2


def _check_sizes(series: Sequence[_Series]) -> None:
    expected = series[0].mean.shape
    for each in series:
        if each.mean.shape != expected:
            raise ValueError(
                f"{each.name} are {size_in_words(each.mean.shape)} pixels, the dark frames "
                f"{size_in_words(expected)}; take all series with the same region of the sensor"
            )


@final
class _Darkness(NamedTuple):
    """Offset and variance of every pixel without light."""

    offset: Map
    """ADU"""
    variance: Map
    """ADU^2"""
    n: float
    """frames"""
    freedom: float
    """degrees of freedom of the variance"""

    @staticmethod
    def of(series: Sequence[_Series]) -> _Darkness:
        """All series together.

        Raises:
            ValueError: if no pixel ever changes.
        """
        n = np.array([each.n for each in series], float)
        freedom = n - 1
        offset = np.tensordot(n / n.sum(), np.stack([each.mean for each in series]), 1)
        # within series: an offset that drifted between them is no read noise
        within = np.stack([each.variance for each in series])
        variance = np.tensordot(freedom / freedom.sum(), within, 1)
        if not variance.any():
            raise ValueError(
                "the dark frames do not vary; they must be single frames, not an average"
            )
        return _Darkness(offset, variance, float(n.sum()), float(freedom.sum()))

    def stuck(self) -> Mask:
        """Pixels that never change; none for a camera with noise below a count, whose good pixels
        do not change either."""
        usual = float(np.median(self.variance))
        return (self.variance == 0) & (usual > LEAST_VARIANCE)

    def error_of_light(self, gain: float) -> Map:
        """Variance of V - g D due to the errors of offset and read variance."""
        return 2 * self.variance**2 / self.freedom + gain**2 * self.variance / self.n


@final
class _PhotonTransfer(NamedTuple):
    """Slope of variance against mean of every pixel."""

    gain: Map
    """ADU per electron; a dead pixel has that of the others"""
    error: Map
    """standard error; infinite where a pixel is dead"""
    dead: Mask
    notes: tuple[str, ...]


def _photon_transfer(levels: Sequence[_Series], dark: _Darkness) -> _PhotonTransfer:
    """The gain of every pixel by the weighted least squares of `measure_maps`."""
    light = np.stack([level.mean - dark.offset for level in levels])
    for level, mean in zip(levels, light, strict=True):
        if np.median(mean) < 3 * math.sqrt(np.median(dark.variance) / level.n):
            raise ValueError(
                f"{level.name} are no brighter than the dark frames; give them light, or leave "
                "them out"
            )
    pairs = zip(levels, light, strict=True)
    flicker = np.array([level.flicker(mean.mean()) for level, mean in pairs])
    of_lamp = light**2 * flicker[:, None, None]
    shot = np.stack([level.variance for level in levels]) - dark.variance - of_lamp
    usual = _usual_gain(light, shot)
    # weights from what is expected, not from what was found: those would favour levels that varied
    # little by chance
    frames = np.array([level.n for level in levels], float)[:, None, None]
    expected = dark.variance + usual * light.clip(0)
    scatter = 2 * expected**2 / (frames - 1) + usual**2 * dark.variance / frames
    weight = 1 / scatter.clip(1e-12)
    spread = (weight * light**2).sum(0).clip(1e-12)
    gain = (weight * light * shot).sum(0) / spread
    # the dark frames' error is common to all levels
    common = ((weight * light).sum(0) / spread) ** 2 * dark.error_of_light(usual)
    error = np.sqrt(1 / spread + common)
    dead = ~(gain > LEAST_GAIN * usual) | ~np.isfinite(gain)
    gain[dead], error[dead] = usual, np.inf
    notes = (
        *_remarks_on_linearity(levels, light, shot, float(np.median(gain))),
        *_remarks_on_precision(math.sqrt(flicker.max()), float(np.median(error / gain))),
    )
    return _PhotonTransfer(gain, error, dead, notes)


def _usual_gain(light: Map, shot: Map) -> float:
    """Median gain over the pixels, from light and its variance (level, y, x)."""
    lit = light.sum(0)
    answers = lit > 0  # a stuck pixel does not, and 0 / 0 is no gain
    usual = float(np.median(shot.sum(0)[answers] / lit[answers]))
    if not usual > 0:
        raise ValueError(
            "the variance of the flat frames does not grow with their light, which gives no gain"
        )
    return usual


def _remarks_on_drift(series: Sequence[_Series]) -> Iterator[str]:
    drift = float(np.ptp([each.mean.mean() for each in series]))
    if drift > LARGEST_DRIFT:
        yield (
            f"the offset differs by {drift:.2g} ADU between the dark series; let the camera cool "
            "down first"
        )


def _remarks_on_linearity(
    levels: Sequence[_Series], light: Map, shot: Map, gain: float
) -> Iterator[str]:
    if len(levels) < 2:
        yield "one light level does not show whether the camera is linear; take several"
        return
    for level, mean, variance in zip(levels, light, shot, strict=True):
        curvature = float(np.median(variance / mean.clip(1e-9))) / gain - 1
        if abs(curvature) > LARGEST_CURVATURE:
            yield (
                f"{level.name} (mean {level.mean.mean():.4g} ADU) alone would give a gain "
                f"{curvature:+.0%} off: the camera is not linear there, or their light was not "
                "steady"
            )


def _remarks_on_precision(flicker: float, gain_error: float) -> Iterator[str]:
    if flicker > LARGEST_FLICKER:
        yield (
            f"the light of the flat frames varied by {flicker:.1%} from frame to frame, which was "
            "subtracted"
        )
    if gain_error > LARGEST_GAIN_ERROR:
        yield f"the gain of a pixel is known to {gain_error:.0%} only; take more flat frames"


def _remark_on_dead(dead: Mask) -> str:
    named = [f"x {x} y {y}" for y, x in np.argwhere(dead)]
    places = ", ".join(named[:NAMED]) + ", ..." * (len(named) > NAMED)
    pixels = "1 pixel does" if len(named) == 1 else f"{len(named)} pixels do"
    return f"{pixels} not answer to light ({places}) and will be left out as bad"
