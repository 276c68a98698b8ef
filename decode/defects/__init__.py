"""Frames and pixels of a movie that hold no image, which all estimates leave out."""

from decode.defects.counts import Counts
from decode.defects.frames import UsualFrames
from decode.defects.pixels import PixelDefects
from decode.defects.screening import (
    MovieDefects,
    Screened,
    defects_of,
    screened,
    with_bad_pixels,
    without_unusable,
)

__all__ = [
    "Counts",
    "MovieDefects",
    "PixelDefects",
    "Screened",
    "UsualFrames",
    "defects_of",
    "screened",
    "with_bad_pixels",
    "without_unusable",
]
