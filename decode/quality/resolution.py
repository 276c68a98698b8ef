"""Resolution: the finest structure that both halves of a movie show alike."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression, nnls

from decode.emitters import EmitterSet
from decode.errors import Undetermined
from decode.quality.spectrum import (
    Localizations,
    Spectrum,
    Tiling,
    blocks_of,
    spectra_of,
    spectrum_of,
)

__all__ = [
    "Resolution",
    "Rings",
    "crossing",
    "fourier_ring_correlation",
    "fourier_shell_correlation",
    "rings_of",
]

Floats = npt.NDArray[np.float64]

THRESHOLD = 1 / 7
"""of Nieuwenhuizen et al. (2013) and Banterle et al. (2013)"""
BLOCKS, SHORTEST = 10, 10
"""blocks of frames of a movie, and fewest frames of one; fewer, longer blocks where they are
needed"""
FEWEST_BLOCKS = 5
FEWEST = 200
"""localizations"""
SMOOTH = 0.06
"""rings are averaged over this share of their frequency on both sides"""
PIXELS = 512
"""longest side of a tile in pixels"""
PER_SIGMA = 2.0
"""pixels per standard deviation of a localization"""
FINE, COARSE = 8.0, 25.0
"""pixels of a resolution: pictures are drawn again with larger ones where it has more than these
latter"""
SIDE_3D = 64
"""longest side of a tile in 3D, pixels"""
PLATEAU = 0.02
"""power that blur leaves, down to which repeated molecules are looked for"""
NARROWEST = 24.0
"""standard deviations of a localization: sides of a field that holds some frequencies"""
UNSTATED_NM = 10.0
"""precision by which pixels are chosen where a table states none"""


@final
@dataclass(frozen=True, kw_only=True)
class Resolution:
    """A resolution with its uncertainty, and the curve that it is read from."""

    name: str
    value_nm: float | None
    """None where the curve does not cross the threshold"""
    error_nm: float | None
    """standard error, by leaving out one tile of the field after the other; None with fewer than
    three"""
    sentence: str
    """what was found, in words"""
    frequency: tuple[float, ...]
    """1/nm"""
    correlation: tuple[float, ...]
    """smoothed, at each frequency"""
    threshold: float = THRESHOLD
    n_blocks: int = 0
    """blocks of frames"""
    n_tiles: int = 0
    """tiles of the field"""
    repeats: float = math.nan
    """localizations of the same molecule in other parts of the movie, for each; NaN: unknown"""
    tile_nm: float = math.nan
    pixel_nm: float = math.nan

    def __str__(self) -> str:
        return self.sentence


def fourier_ring_correlation(
    molecules: EmitterSet, *, n_frames: int | None = None, correct_repeats: bool = False
) -> Resolution:
    """Resolution in x and y by Fourier ring correlation at 1/7.

    The movie is cut into blocks of successive frames, of which one half makes a picture and the
    other half another.  Both pictures are correlated in rings of equal frequency q; the resolution
    is 1/q where the correlation falls below 1/7 (Nieuwenhuizen et al., Nature Methods 10, 557,
    2013; Banterle et al., J. Struct. Biol. 183, 363, 2013).  A split by single localizations
    would put the same blink into both halves.

    What is computed is the mean over all assignments of blocks to halves.  With the transforms
    F_b of the blocks it needs two sums, of F_b F_c* over different blocks and of |F_b|^2:

        FRC = P / (P + 2 W),

    P the power of the structure, by pairs of different blocks, W that of the noise, by pairs of one
    block less P's part of them.  Pairs of blocks that follow each other are left out of P, so that
    no blink is in both.  Molecules that come back much later still count as structure, as in every
    FRC; `correct_repeats` takes them out of P, by `repeats_of`.

    Sums are over tiles of the field with a Tukey window, in float64, and averaged over rings
    within 6 % of their frequency; then the correlation is made to fall (isotonic regression), so
    that noise does not cross early.  The standard error is the jackknife's over tiles.

    Args:
        molecules: localizations; `xyz_sigma` sets the pixels of the pictures.
        n_frames: of the movie; None: as the table says.
        correct_repeats: whether molecules that come back are no structure.

    Raises:
        Undetermined: with too few localizations or frames.

    Example:
        >>> import torch
        >>> rng = np.random.default_rng(0)
        >>> n, side, lines = 20_000, 6000.0, 30
        >>> at, angle = rng.uniform(0, side, (lines, 2)), rng.uniform(0, np.pi, lines)
        >>> which, along = rng.integers(0, lines, n), rng.uniform(-1500, 1500, n)
        >>> x, y = at[which].T + along * np.array([np.cos(angle), np.sin(angle)])[:, which]
        >>> xyz = np.stack([x, y, 0 * x], 1) + rng.normal(size=(n, 3)) * [10.0, 10.0, 0.0]
        >>> seen = EmitterSet(
        ...     frame=torch.arange(n) // 20,
        ...     xyz=torch.from_numpy(xyz),
        ...     photons=torch.full((n,), 1000.0),
        ...     xyz_sigma=torch.full((n, 3), 10.0),
        ... )
        >>> found = fourier_ring_correlation(seen)
        >>> 40 < found.value_nm < 70
        True
    """
    return rings_of(molecules, n_frames=n_frames, correct_repeats=correct_repeats).resolution


@final
@dataclass(frozen=True, kw_only=True)
class Rings:
    """A resolution in x and y, and the spectrum that tells it."""

    resolution: Resolution
    spectrum: Spectrum
    seen: Localizations
    sigma_nm: float
    """median standard deviation of a localization"""


def rings_of(
    molecules: EmitterSet, *, n_frames: int | None = None, correct_repeats: bool = False
) -> Rings:
    """As `fourier_ring_correlation`, for those who need the spectrum, too."""
    seen, sigma = localizations(molecules, axes=2, n_frames=n_frames)
    sigma_nm = float(sigma[0])
    spectrum, tiling = lateral_spectrum(seen, sigma_nm)
    again = repeats_of(spectrum, sigma_nm)
    if correct_repeats:
        spectrum = spectrum.without_repeats(again, sigma_nm)
    name = "FRC without repeats" if correct_repeats else "FRC"
    found = _resolution(name, spectrum, tiling, seen.n_blocks)
    return Rings(
        resolution=replace(found, repeats=again), spectrum=spectrum, seen=seen, sigma_nm=sigma_nm
    )


def fourier_shell_correlation(
    molecules: EmitterSet, *, n_frames: int | None = None, lateral_nm: float | None = None
) -> tuple[Resolution, Resolution]:
    """Resolution in x and y, and in z, by Fourier shell correlation at 1/7.

    As `fourier_ring_correlation`, in volumes: the first is of waves within 30 degrees of the xy
    plane, the second of those within 30 degrees of z, as both differ in 3D microscopy (conical
    FSC).

    Args:
        molecules: localizations with z.
        n_frames: of the movie; None: as the table says.
        lateral_nm: resolution in x and y, which sets the voxels; None: it is measured.

    Raises:
        Undetermined: as there, or without z.
    """
    seen, sigma = localizations(molecules, axes=3, n_frames=n_frames)
    if lateral_nm is None:
        flat, _ = lateral_spectrum(_projected(seen), float(sigma[0]))
        lateral_nm = crossing(flat)
    pixel = np.full(3, 1.5 * float(sigma[0]))
    if lateral_nm is not None:
        pixel[:] = max(float(sigma[0]), lateral_nm / 5)
    pixel[2] *= float(np.clip(sigma[2] / sigma[0], 1.0, 4.0))
    tiling = Tiling.over(seen.place, pixel=pixel, longest=SIDE_3D * pixel, fewest=2)
    lateral, axial = spectra_of(seen, tiling, ["lateral", "axial"])
    return (
        _resolution("FSC lateral", lateral, tiling, seen.n_blocks),
        _resolution("FSC axial", axial, tiling, seen.n_blocks),
    )


def localizations(
    molecules: EmitterSet, *, axes: int, n_frames: int | None
) -> tuple[Localizations, Floats]:
    """Places along the first axes with their blocks, and the median standard deviation of each.

    Raises:
        Undetermined: with too few localizations or frames.
    """
    if len(molecules) < FEWEST:
        raise Undetermined(f"{len(molecules)} localizations are too few, {FEWEST} are needed")
    frame = molecules.frame.cpu().numpy().astype(np.int64)
    frames = n_frames or molecules.facts.n_frames or 0
    frames = max(int(frames), int(np.ptp(frame)) + 1)
    n_blocks = min(BLOCKS, frames // SHORTEST)
    if n_blocks < FEWEST_BLOCKS:
        raise Undetermined(
            f"{frames} frames are too few to compare parts of the movie, "
            f"{FEWEST_BLOCKS * SHORTEST} are needed"
        )
    place = molecules.xyz.double().cpu().numpy()[:, :axes]
    if axes == 3 and np.ptp(place[:, 2]) == 0:
        raise Undetermined("the table states no z")
    sigma = np.full(axes, UNSTATED_NM)
    if molecules.xyz_sigma is not None:
        stated = molecules.xyz_sigma.double().cpu().numpy()[:, :axes]
        known = [s[np.isfinite(s) & (s > 0)] for s in stated.T]
        sigma = np.array([np.median(s) if len(s) else UNSTATED_NM for s in known])
        sigma[:2] = sigma[:2].mean()
    if (np.ptp(place[:, :2], axis=0) < NARROWEST * sigma[:2]).any():
        raise Undetermined(
            f"molecules lie within {NARROWEST:g} uncertainties along x or y: there is no structure "
            "to compare"
        )
    seen = Localizations(place=place, block=blocks_of(frame, n_blocks), n_blocks=n_blocks)
    return seen, sigma


def lateral_spectrum(seen: Localizations, sigma_nm: float) -> tuple[Spectrum, Tiling]:
    """The spectrum in x and y, in pixels that suit the resolution."""
    pixel = sigma_nm / PER_SIGMA
    for _ in range(4):
        spectrum, tiling = _filled(seen, pixel)
        pixel = float(tiling.pixel[0])
        found = crossing(spectrum)
        if found is None or found <= COARSE * pixel:
            break
        pixel = found / FINE
    return spectrum, tiling


def _filled(seen: Localizations, pixel: float) -> tuple[Spectrum, Tiling]:
    """The spectrum in pixels of a size, or in larger ones if tiles would be empty."""
    extent = float(np.ptp(seen.place, axis=0).max())
    while True:
        tiling = Tiling.over(
            seen.place, pixel=np.full(2, pixel), longest=np.full(2, PIXELS * pixel), fewest=3
        )
        try:
            return spectrum_of(seen, tiling), tiling
        except Undetermined:
            if PIXELS * pixel > extent:
                raise
        pixel *= 3


def correlation(spectrum: Spectrum, weight: Floats | None = None) -> Floats:
    """(r,) correlation of both halves, smoothed over rings.

    Args:
        spectrum: of r rings.
        weight: (tiles,) of each tile; None: 1.
    """
    structure = smoothed(spectrum.structure(weight), spectrum)
    noise = smoothed(spectrum.noise(weight), spectrum)
    return structure / np.maximum(structure + 2 * noise, 1e-12)


def smoothed(values: Floats, spectrum: Spectrum) -> Floats:
    """(r,) means over rings within `SMOOTH` of their frequency, weighted by their waves."""
    n = len(values)
    ring = np.arange(1, n + 1)
    reach = np.floor(SMOOTH * ring).astype(int)
    # symmetric windows only: others would shift a falling curve
    reach = np.minimum(reach, np.minimum(ring - 1, n - ring))
    sums = np.concatenate([[0.0], np.cumsum(values * spectrum.waves)])
    waves = np.concatenate([[0.0], np.cumsum(spectrum.waves)])
    low, high = ring - 1 - reach, ring + reach
    return (sums[high] - sums[low]) / (waves[high] - waves[low])


def crossing(spectrum: Spectrum, weight: Floats | None = None) -> float | None:
    """Resolution in nm at which the correlation falls below the threshold, or None."""
    curve = correlation(spectrum, weight)
    falling = np.asarray(
        isotonic_regression(curve, weights=spectrum.waves, increasing=False).x, dtype=np.float64
    )
    below = np.flatnonzero(falling < THRESHOLD)
    if not len(below) or below[0] == 0:
        return None
    at = int(below[0])
    q = spectrum.frequency
    slope = (falling[at - 1] - THRESHOLD) / (falling[at - 1] - falling[at])
    return 1 / float(q[at - 1] + slope * (q[at] - q[at - 1]))


def repeats_of(spectrum: Spectrum, sigma_nm: float) -> float:
    """How many localizations of the same molecule are in other blocks, for each localization.

    The power of structure falls with the frequency, as 1/q for lines and 1/q^3 for areas; that of
    repeated molecules does not, but for their error: P / (N H) = Q + a/q + b/q^2 + c/q^3.  Q, the
    plateau, is fitted with coefficients that are not negative (Nieuwenhuizen et al., Nature
    Methods 10, 557, 2013, Supplementary Note).  H is that of the stated standard deviations.
    """
    left = np.exp(-4 * (np.pi * sigma_nm * spectrum.frequency) ** 2)
    used = left > PLATEAU
    if used.sum() < 8:
        return math.nan
    n = spectrum.own.sum()
    power = smoothed(spectrum.structure(), spectrum)[used] / n / left[used]
    spread = np.abs(power) + 2 / left[used]
    weight = np.sqrt(spectrum.waves[used]) / spread
    q = spectrum.frequency[used] / spectrum.frequency[used].max()
    basis = np.stack([np.ones_like(q), 1 / q, 1 / q**2, 1 / q**3], 1)
    coefficients, _ = nnls(weight[:, None] * basis, weight * power)
    return float(coefficients[0])


def _resolution(name: str, spectrum: Spectrum, tiling: Tiling, n_blocks: int) -> Resolution:
    value = crossing(spectrum)
    error = _jackknife(spectrum)
    curve = correlation(spectrum)
    return Resolution(
        name=name,
        value_nm=value,
        error_nm=error,
        sentence=_sentence(name, value, error, float(curve[0])),
        frequency=tuple(spectrum.frequency.tolist()),
        correlation=tuple(curve.tolist()),
        n_blocks=n_blocks,
        n_tiles=spectrum.n_tiles,
        tile_nm=float(tiling.side.max()),
        pixel_nm=float(tiling.pixel[0]),
    )


def _jackknife(spectrum: Spectrum) -> float | None:
    """Standard error of the resolution, by leaving out one tile after the other."""
    n = spectrum.n_tiles
    if n < 3:
        return None
    without = [crossing(spectrum, 1.0 - np.eye(n)[i]) for i in range(n)]
    known = np.array([value for value in without if value is not None])
    if len(known) < n:
        return None
    return float(np.sqrt((n - 1) * known.var()))


def _sentence(name: str, value: float | None, error: float | None, first: float) -> str:
    if value is None and first < THRESHOLD:
        return f"{name} does not cross 1/7: both halves of the movie share no structure"
    if value is None:
        return (
            f"{name} does not cross 1/7: it stays above up to the finest frequency, as where the "
            "same molecules come back in all parts of the movie"
        )
    spread = "" if error is None else f" +- {error:.1f}"
    return f"{value:.1f}{spread} nm ({name} at 1/7)"


def _projected(seen: Localizations) -> Localizations:
    return Localizations(place=seen.place[:, :2], block=seen.block, n_blocks=seen.n_blocks)
