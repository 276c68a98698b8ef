"""Localizing in an open movie, chunk after chunk: what all verbs that localize have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from decode.acquisition import Acquisition, acquisition_for
from decode.calibrate.as_pupil import calibrated_pupil
from decode.conditioning import KnownOptics
from decode.devices import choose_device
from decode.emitters import EmitterSet
from decode.io.cameras import CameraFile
from decode.io.movies import Movie
from decode.io.psfs import PSFFile
from decode.likelihood.proposals import LEAST_PROBABILITY
from decode.network.localizer import Localizer
from decode.verbs.aperture import counts_core, with_aperture
from decode.verbs.draws import Draws
from decode.verbs.polish import Decision, knows_psf, polish_movie, psf_to_polish_with
from decode.verbs.region import region_of
from decode.verbs.sweep import Chunk, chunk_frames, sweep

__all__ = ["acquire", "localize_movie", "numbered"]


def acquire(
    movie: Movie,
    model: Localizer,
    *,
    camera: CameraFile | Path | str | None = None,
    pixel_size_nm: float | None = None,
    em_gain: float | None = None,
    psf_sigma_nm: float | None = None,
    psf: PSFFile | None = None,
    roi: tuple[slice, slice] | None = None,
    device: str = "auto",
    polish: bool | None = None,
) -> Acquisition:
    """The acquisition by `acquisition_for`, with the aperture correction where photons are those of
    a Gaussian core.

    Args:
        movie: from `open_movie`.
        model: from `load_model`.
        camera, pixel_size_nm, em_gain, psf_sigma_nm: as for `acquisition_for`.
        psf, roi, device, polish: as for `localize_movie`.

    Raises:
        ValueError, OSError: as `acquisition_for` and `localize_movie` do.
    """
    acquisition = acquisition_for(
        movie,
        model,
        camera=camera,
        pixel_size_nm=pixel_size_nm,
        em_gain=em_gain,
        psf_sigma_nm=psf_sigma_nm,
    )
    if model.network.axial and psf is not None and psf.z_remark:
        acquisition = replace(acquisition, estimates=(*acquisition.estimates, psf.z_remark))
    if not counts_core(model, psf, polish=_polishes(model, psf, polish=polish)):
        return acquisition

    def read_out(part: Movie, of_part: Acquisition) -> EmitterSet:
        chunks = localize_movie(part, model, of_part, psf=psf, device=device, polish=polish)
        return EmitterSet.cat(chunk.molecules for chunk in chunks)

    return with_aperture(movie, acquisition, read_out, roi=roi)


def localize_movie(
    movie: Movie,
    model: Localizer,
    acquisition: Acquisition,
    *,
    psf: PSFFile | None = None,
    threshold: float = 0.5,
    false_discovery_rate: float = 0.05,
    roi: tuple[slice, slice] | None = None,
    device: str = "auto",
    polish: bool | None = None,
    exact: bool = False,
    posteriors: bool = False,
    samples: int = 0,
    seed: int = 0,
    part: range | None = None,
) -> Iterator[Chunk]:
    """Localize the molecules of an open movie, chunk after chunk: the generator below `localize`.

    Args:
        movie: from `open_movie`.
        model: from `load_model`.
        acquisition: from `acquire`.
        psf, threshold, false_discovery_rate, roi, device, polish, exact: as for `localize`.
        posteriors: whether chunks carry the network's posterior of their frames, too, in its own
            coordinates of z and photons, and not polished.
        samples, seed: as for `localize_file`; chunks carry the draws.
        part: the frames to localize in, counted from the movie's first, as whole pieces
            (`decode.verbs.pieces.piece_frames`); their molecules are to the last bit those of the
            whole movie.  None: all.

    Returns:
        Molecules of the next frames, as from `sweep`; during polishing, some chunks have no
        molecules.

    Raises:
        ValueError: if PSF, pixel size, camera or region do not fit the model or the movie.
        OSError: if the movie cannot be read.
    """
    if polish and samples:
        raise ValueError("draws are of the posterior of the network: choose samples or polish")
    if exact:
        _require_likelihood(model, psf, polish=polish, samples=samples)
    optics = KnownOptics(
        pixel_size_nm=acquisition.pixel_size_nm,
        shape=movie.shape[1:],
        psf_sigma_nm=acquisition.psf_sigma_nm,
        psf_pixel_size_nm=None if psf is None else psf.psf.pixel_size_nm,
        pupil=None if psf is None else partial(calibrated_pupil, psf),
    )
    known = model.domain.conditioning(optics)
    polish = _polishes(model, psf, polish=polish) and not (posteriors or samples)
    decision = Decision(
        threshold=threshold,
        false_discovery_rate=false_discovery_rate,
        axial=model.network.axial,
    )
    decides = polish and knows_psf(model, psf)
    swept = part
    if part is not None and polish:  # which takes molecules from beyond the ends
        more = chunk_frames(movie.shape[1:], choose_device(device))
        swept = range(max(0, part.start - more), min(len(movie), part.stop + more))
    chunks = sweep(
        movie,
        model,
        acquisition.camera,
        pixel_size_nm=acquisition.pixel_size_nm,
        context=known.values,
        threshold=LEAST_PROBABILITY if decides else threshold,
        device=device,
        roi=roi,
        usual=acquisition.usual,
        posteriors=posteriors or samples > 0,
        recalibrated=not polish,  # the likelihood was fitted to what the network itself states
        part=swept,
    )
    if samples:
        region = region_of(roi, movie.shape[1:])
        corner = region[0].start, region[1].start
        draws, first = Draws(samples, seed=seed, corner_px=corner), movie.frames.start
        chunks = (replace(chunk, samples=draws.of(chunk, first_frame=first)) for chunk in chunks)
    facts = acquisition.facts(movie, threshold=threshold).metadata()

    def placed(molecules: EmitterSet) -> EmitterSet:
        return replace(known.placed(molecules), metadata=facts)

    chunks = (chunk.each(placed) for chunk in chunks)
    if polish:
        chunks = polish_movie(
            chunks,
            movie,
            psf_to_polish_with(model, psf, acquisition),
            acquisition.camera,
            choose_device(device),
            usual=acquisition.usual,
            decision=decision if decides else None,
            region=region_of(roi, movie.shape[1:]),
            exact=exact,
            part=part,
        )
    aperture = acquisition.aperture
    if aperture is None:
        return chunks
    return (chunk.each(aperture.applied) for chunk in chunks)


def numbered(movie: Movie, molecules: EmitterSet) -> EmitterSet:
    """Molecules whose frames have the numbers of the file, where some were left out, too."""
    numbers = torch.from_numpy(movie.numbers)
    return replace(molecules, frame=numbers[molecules.frame - movie.frames.start])


def _require_likelihood(
    model: Localizer, psf: PSFFile | None, *, polish: bool | None, samples: int
) -> None:
    """Raise unless the exact posterior can be stated."""
    if not knows_psf(model, psf):
        raise ValueError(
            "the exact posterior needs a known PSF, and the model carries none: give a calibrated "
            "one as --psf, or leave out --exact"
        )
    if polish is False or samples:
        raise ValueError(
            "the exact posterior is that of polished molecules: choose --exact, or --no-polish or "
            "--samples"
        )


def _polishes(model: Localizer, psf: PSFFile | None, *, polish: bool | None) -> bool:
    return knows_psf(model, psf) if polish is None else polish
