"""Decorrelation analysis: the resolution of one picture, without halves."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import fft

from decode.emitters import EmitterSet
from decode.errors import Undetermined
from decode.quality.resolution import Resolution, localizations
from decode.quality.spectrum import Tiling

__all__ = ["decorrelation_analysis"]

Floats = npt.NDArray[np.float64]

PIXELS = 512
PER_SIGMA = 2.0
"""pixels per standard deviation of a localization"""
FILTERS = 40
"""high-pass filters, from weak to strong"""
STRONGEST_PX = 0.15
"""width of the narrowest Gaussian that is subtracted"""
PROMINENCE = 1e-3
"""by which the correlation must fall beyond a maximum"""


def decorrelation_analysis(molecules: EmitterSet, *, n_frames: int | None = None) -> Resolution:
    """Resolution in x and y by decorrelation analysis (Descloux et al., Nature Methods 16, 918,
    2019).

    A picture is correlated with its own phases up to a frequency r,

        d(r) = sum_{k<r} |I| / sqrt(sum |I|^2 * sum_{k<r} 1),

    which is largest where noise begins; of many high-pass filtered pictures, the largest such r is
    the resolution 1 / r.  The picture is that of Gaussians as wide as the median standard
    deviation of the localizations, in pixels of half of it, in tiles with a Tukey window.  Only
    one picture is looked at: noise that is drawn as Gaussians counts as structure does, so that
    the figure is good for comparing pictures, and too small where localizations are few.

    Raises:
        Undetermined: as `fourier_ring_correlation`.
    """
    seen, sigma = localizations(molecules, axes=2, n_frames=n_frames)
    pixel = float(sigma[0]) / PER_SIGMA
    tiling = Tiling.over(
        seen.place, pixel=np.full(2, pixel), longest=np.full(2, PIXELS * pixel), fewest=2
    )
    lengths, powers, waves, frequency = _rings(seen.place, tiling)
    drawn = np.exp(-2 * (np.pi * sigma[0] * frequency) ** 2)
    lengths, powers = lengths * drawn, powers * drawn**2
    value, curve = _largest(lengths.sum(0), powers.sum(0), len(lengths) * waves, frequency, pixel)
    n = len(lengths)
    without = [
        _largest(
            lengths.sum(0) - lengths[i],
            powers.sum(0) - powers[i],
            (n - 1) * waves,
            frequency,
            pixel,
        )[0]
        for i in range(n if n > 2 else 0)
    ]
    known = np.array([v for v in without if v is not None])
    error = float(np.sqrt((n - 1) * known.var())) if len(known) == n and n > 2 else None
    spread = "" if error is None else f" +- {error:.1f}"
    return Resolution(
        name="decorrelation",
        value_nm=value,
        error_nm=error,
        sentence="decorrelation analysis finds no maximum: the picture is noise"
        if value is None
        else f"{value:.1f}{spread} nm (decorrelation analysis)",
        frequency=tuple(frequency.tolist()),
        correlation=tuple(curve.tolist()),
        threshold=np.nan,
        n_tiles=n,
        tile_nm=float(tiling.side.max()),
        pixel_nm=pixel,
    )


def _rings(place: Floats, tiling: Tiling) -> tuple[Floats, Floats, Floats, Floats]:
    """(tiles, r) sums of |I| and of |I|^2, (r,) waves and frequencies, without the mean."""
    shape = tiling.shape
    y, x = tiling.frequencies()
    size = np.hypot(y, x)
    step = 1 / min(n * p for n, p in zip(shape, tiling.pixel, strict=True))
    ring = np.rint(size / step).astype(np.int64).ravel()
    end = int(0.5 / tiling.pixel[0] / step)
    inside, weight = tiling.within(place)
    lengths, powers = [], []
    for rows in tiling.tiles(place):
        pixel = np.minimum((inside[rows] / tiling.pixel).astype(int), np.array(shape) - 1)
        flat = np.ravel_multi_index(tuple(pixel.T), shape)
        image = np.bincount(flat, weight[rows], int(np.prod(shape))).reshape(shape)
        length = np.abs(fft.rfft2(image)).ravel()
        lengths.append(np.bincount(ring, length)[1:end])
        powers.append(np.bincount(ring, length**2)[1:end])
    if not lengths:
        raise Undetermined("no tile of the field has localizations enough")
    waves = np.bincount(ring)[1:end].astype(np.float64)
    return np.array(lengths), np.array(powers), waves, np.arange(1, end) * step


def _largest(
    length: Floats, power: Floats, waves: Floats, frequency: Floats, pixel: float
) -> tuple[float | None, Floats]:
    """Resolution in nm, and the curve of the picture without a filter."""

    def curve(filtered: Floats) -> Floats:
        total = float((filtered**2 * power).sum())
        return np.cumsum(filtered * length) / np.sqrt(total * np.cumsum(waves))

    plain = curve(np.ones_like(frequency))
    first = _peak(plain)
    weakest = 2 / (2 * pixel * frequency[first]) if first else len(frequency) / 4
    widths = np.geomspace(max(weakest, 2 * STRONGEST_PX), STRONGEST_PX, FILTERS) * pixel
    peaks = [_peak(curve(1 - np.exp(-2 * (np.pi * w * frequency) ** 2))) for w in widths]
    best = max([first, *peaks])
    return (1 / float(frequency[best]) if best else None), plain


def _peak(curve: Floats) -> int:
    """Index of the maximum beyond which the curve falls; 0 if there is none."""
    end = len(curve)
    while end > 1:
        at = int(np.argmax(curve[:end]))
        if at == 0:
            return 0
        if at < end - 1 and curve[at] - curve[at:end].min() > PROMINENCE:
            return at
        end = at if at == end - 1 else end - 1
    return 0
