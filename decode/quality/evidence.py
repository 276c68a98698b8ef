"""Evidence: figures on how well a movie agrees with its molecules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

__all__ = ["Evidence", "Kind"]

Kind: TypeAlias = Literal["gaussian", "measured"]
"""kind of PSF: a Gaussian of stated width, or one that was measured or calculated"""


@final
@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Figures of a movie and its molecules; NaN where there are too few data."""

    kind: Kind
    n_lone: int = 0
    """number of lone molecules that were fitted"""
    misfit: float = math.nan
    """mean residual image of lone molecules, root mean square, as a share of their image"""
    spherical: float = math.nan
    """spherical aberration that the PSF lacks, waves rms; NaN where no pupil is known"""
    goodness: float = math.nan
    """first quartile of the deviance per degree of freedom over the lone molecules"""
    width: float = math.nan
    """median width of the images of lone molecules over that of the PSF"""
    width_spread: float = math.nan
    """standard deviation of that ratio between lone molecules, beyond the noise"""
    elongation: float = math.nan
    """share of isolated spots whose widths along and across an axis differ by a fifth, less that of
    the axis at 45 degrees to it; NaN in 3D"""
    drift: float = math.nan
    """change of the depth over the movie, nm; in 2D of the logarithm of the height of images"""
    turn: str = ""
    """orientation of the PSF, other than the stated one, that explains the lone molecules best"""
    turned: float = math.nan
    """share that it explains of the deviance that the stated one leaves beyond noise"""
    noise: float = math.nan
    """variance of the finest detail between successive frames, in pixels without molecules, over
    that of the camera"""
    pixel_offset: float = math.nan
    """rank correlation over such pixels of the finest detail in one half of the frames with that in
    the other"""
    flicker: float = math.nan
    """change of the usual light from frame to frame, over the light: nine of ten change less"""
    missed: float = math.nan
    """share of spots of light without a molecule in the table; they are at least a quarter as
    bright as a molecule"""
    empty: float = math.nan
    """share of molecules whose spot is darker than stated, by five standard deviations and by a
    quarter"""
    density: float = math.nan
    """molecules per square micrometre around a molecule"""
    at_ends: float = math.nan
    """share of molecules at the ends of the depths that network and PSF cover"""
