"""Checks of a localization, gathered from its chunks."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import final

from decode.acquisition import Acquisition
from decode.emitters import Check
from decode.io.movies import Movie
from decode.io.psfs import PSFFile
from decode.network.localizer import Localizer
from decode.optics.psf import PSF
from decode.postprocess.depth_ends import DepthEnds
from decode.quality.checks import checks_of
from decode.quality.evidence import Evidence
from decode.quality.limits import Limits
from decode.quality.lone import Pupil
from decode.quality.sample import Sample
from decode.training.diagnosis import trained_flicker
from decode.verbs.polish import psf_to_polish_with
from decode.verbs.region import region_of
from decode.verbs.sweep import Chunk

__all__ = ["Checking"]

FEW = 0.1
"""effective share of samples below which a posterior is known roughly"""


@final
class Checking:
    """Gathers evidence from the chunks of a localization for its `checks` and `remarks`.

    Args:
        movie: from `open_movie`; open until the last chunk is seen.
        model, acquisition, psf, roi: as for `localize_movie`.
    """

    def __init__(
        self,
        movie: Movie,
        model: Localizer,
        acquisition: Acquisition,
        *,
        psf: PSFFile | None = None,
        roi: tuple[slice, slice] | None = None,
    ) -> None:
        aperture = acquisition.aperture
        self._core = 1.0 if aperture is None else 1 / aperture.factor
        self._record = model.record
        self.n_molecules = 0
        """number of molecules that were seen"""
        self._ends, self._roughly = DepthEnds(), 0
        self._sample: Sample | None = None
        if model.psf is None and psf is None and acquisition.psf_sigma_nm is None:
            return
        rows, columns = region_of(roi, movie.shape[1:])
        stated = psf_to_polish_with(model, psf, acquisition)
        self._sample = Sample(
            movie,
            stated,
            acquisition.camera,
            region=(rows.as_slice, columns.as_slice),
            axial=model.network.axial,
            pupil=_pupil_of(stated, model.psf, psf) if model.network.axial else None,
            stated=acquisition.stated_camera,
            usual=acquisition.usual,
        )

    def see(self, chunk: Chunk) -> None:
        """Add the molecules of the next chunk.

        Raises:
            OSError: if the movie cannot be read.
        """
        found = chunk.molecules
        self.n_molecules += len(found)
        self._ends.see(found)
        self._roughly += 0 if found.ess is None else int((found.ess < FEW).sum())
        if self._sample is None:
            return
        # the PSF holds the light of the core alone
        core = replace(found, photons=found.photons * self._core)
        self._sample.see(core, chunk.frames_done)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences for the user on the molecules that were seen."""
        if not self._roughly:
            return self._ends.remarks
        return (
            *self._ends.remarks,
            f"the exact posterior of {self._roughly} of {self.n_molecules} molecules is known "
            f"roughly (ess below {FEW:g}): they are faint, or nearer to another than their images "
            "can tell apart",
        )

    @property
    def evidence(self) -> Evidence | None:
        """The evidence; None where the PSF is not known."""
        return None if self._sample is None else self._sample.evidence()

    @property
    def checks(self) -> tuple[Check, ...]:
        """The checks of the evidence, failed ones first."""
        evidence = self.evidence
        if evidence is None:
            return ()
        limits = Limits.of(self._record, evidence.kind)
        return checks_of(evidence, limits=limits, flicker=trained_flicker(self._record))


def _pupil_of(stated: PSF, of_model: PSF | None, file: PSFFile | None) -> Pupil | None:
    """The PSF that molecules were localized with, with more spherical aberration; None where it is
    no pupil, and none with the same images is known."""
    known = of_model
    if file is not None:
        known = file.psf if file.pupil is None else file.pupil.psf
    if known is None or known.with_spherical(0.0) is None:
        return None
    is_stated = file is None or file.pupil is None

    @cache
    def aberrated(waves: float) -> PSF:
        if waves == 0 and is_stated:
            return stated
        other = known.with_spherical(waves)
        assert other is not None
        return other if file is None else other.tabulated(file.z_range_nm)

    return aberrated
