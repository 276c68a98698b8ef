"""The aperture correction of a movie, measured on a sample of its frames."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch

from decode.acquisition import Acquisition
from decode.defects import UsualFrames
from decode.emitters import EmitterSet
from decode.estimation.aperture import ApertureCorrection, aperture_correction
from decode.io.movies import Movie, open_array
from decode.io.psfs import PSFFile
from decode.network.localizer import Localizer
from decode.verbs.region import Span, region_of

__all__ = ["counts_core", "with_aperture"]

SAMPLED_FRAMES, SAMPLED_PIXELS = 128, 2**20
"""largest sample: frames, and pixels of all of them"""
BLOCK = 16
"""number of consecutive frames in a block of the sample"""

ReadOut = Callable[[Movie, Acquisition], EmitterSet]
"""reads the molecules of a movie, with photons as counted"""


def counts_core(model: Localizer, psf: PSFFile | None, *, polish: bool) -> bool:
    """Whether photons are those of a Gaussian core, by the training of the network or by the fit.

    Args:
        model, psf, polish: as for `localize`.
    """
    if not model.domain.kind.needs_width:
        return False
    measured = psf is not None or model.psf is not None
    return not measured if polish else model.record.counts_core


def with_aperture(
    movie: Movie,
    acquisition: Acquisition,
    read_out: ReadOut,
    *,
    roi: tuple[slice, slice] | None = None,
) -> Acquisition:
    """The acquisition with the movie's aperture correction, and a sentence on it.

    Args:
        movie: the movie, of which some frames are used.
        acquisition: its acquisition, with the width of the PSF.
        read_out: gives the molecules of these frames, with photons as counted.
        roi: rows and columns, of which the middle is used.

    Raises:
        ValueError: if the region is not within the frames.
        OSError: if the movie cannot be read.
    """
    correction = _measured(_Sample.of(movie, acquisition, roi), read_out)
    certain = correction if correction is not None and correction.certain else None
    return replace(
        acquisition,
        aperture=certain,
        estimates=(*acquisition.estimates, _sentence(correction)),
    )


def _sentence(correction: ApertureCorrection | None) -> str:
    if correction is None:
        return (
            "photons are those of the Gaussian core of the PSF: too few bright lone molecules "
            "tell the light outside it"
        )
    measured = (
        f"{correction.factor:.3f} +- {correction.sigma:.3f} of the core, from {correction.n} lone "
        f"molecules within {correction.radius_px:.0f} pixels"
    )
    if not correction.certain:
        return f"photons are those of the Gaussian core of the PSF: all light is {measured}"
    return (
        f"photons include {100 * correction.outside:.0f} % of light outside the Gaussian core of "
        f"the PSF (aperture correction: {measured})"
    )


@final
@dataclass(frozen=True, kw_only=True)
class _Sample:
    """Some frames of a movie, cut to the middle of a region."""

    movie: Movie
    acquisition: Acquisition

    @classmethod
    def of(
        cls, movie: Movie, acquisition: Acquisition, roi: tuple[slice, slice] | None
    ) -> _Sample | None:
        """A sample that holds images; None where no frame does."""
        n_frames = min(len(movie), SAMPLED_FRAMES)
        side = math.isqrt(SAMPLED_PIXELS // n_frames)
        rows, columns = (_middle(span, side) for span in region_of(roi, movie.shape[1:]))
        blocks = [_images(movie, acquisition, start) for start in _starts(len(movie), n_frames)]
        adu = np.concatenate([block[:, rows, columns] for block in blocks])
        if not len(adu):
            return None
        part = open_array(adu)
        camera = acquisition.camera.crop(rows, columns)
        known = replace(acquisition, camera=camera, usual=UsualFrames.of(part, camera))
        return cls(movie=part, acquisition=known)


def _middle(span: Span, side: int) -> slice:
    start = span.start + max(0, (span.size - side) // 2)
    return slice(start, min(span.stop, start + side))


def _starts(total: int, n_frames: int) -> list[range]:
    """Blocks of frames, spread over a movie."""
    if total == n_frames:
        return [range(total)]
    starts = np.linspace(0, total - BLOCK, n_frames // BLOCK).round().astype(int)
    return [range(start, start + BLOCK) for start in starts.tolist()]


def _images(movie: Movie, acquisition: Acquisition, frames: range) -> npt.NDArray[Any]:
    """(frame, y, x) ADU of the frames that hold an image."""
    adu = movie.read(frames.start, frames.stop).astype(np.float32)
    usual = acquisition.usual or UsualFrames.of(movie, acquisition.camera)
    first = movie.frames.start + frames.start
    unusable = usual.unusable(adu, first)
    return adu[[first + i not in unusable for i in range(len(adu))]]


def _measured(sample: _Sample | None, read_out: ReadOut) -> ApertureCorrection | None:
    if sample is None:
        return None
    acquisition = sample.acquisition
    assert acquisition.psf_sigma_nm is not None
    adu = torch.from_numpy(sample.movie.read(0, len(sample.movie)))
    bad = acquisition.camera.bad
    return aperture_correction(
        acquisition.camera.to_photons(adu),
        read_out(sample.movie, acquisition),
        usable=torch.ones(adu.shape[1:], dtype=torch.bool) if bad is None else ~bad,
        sigma_px=acquisition.psf_sigma_nm / acquisition.pixel_size_nm,
        pixel_size_nm=acquisition.pixel_size_nm,
    )
