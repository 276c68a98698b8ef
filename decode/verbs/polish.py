"""polish: a movie's molecules, refined by the likelihood of its frames."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, pairwise
from typing import final

import numpy as np
import torch
from torch import Tensor

from decode.acquisition import Acquisition
from decode.conditioning import require_pixels_alike
from decode.defects import UsualFrames
from decode.emitters import EmitterSet
from decode.io.movies import Movie
from decode.io.psfs import PSFFile
from decode.likelihood import PixelLikelihood, Prior, decide, exact_posterior, pixels_of
from decode.likelihood import polish as polish_molecules
from decode.network.localizer import Localizer
from decode.optics.camera import Camera
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import PSF
from decode.verbs.region import Span, region_of
from decode.verbs.sweep import Chunk

__all__ = ["Decision", "block_frames", "knows_psf", "polish_movie", "psf_to_polish_with"]

OVERLAP = 4
"""number of frames before and after a block in which its molecules may still be on"""
BLOCK_FRAMES, BLOCK_PIXELS = 256, 2**22
"""most frames, and most pixels of these, that are polished at a time"""
HEARTBEAT_S = 0.2
"""time between two reports while blocks are polished"""


@final
@dataclass(frozen=True, kw_only=True)
class Decision:
    """Which molecules the likelihood lists."""

    threshold: float
    """smallest probability"""
    false_discovery_rate: float = 0.05
    """largest expected share of false ones"""
    axial: bool = True
    """fit z"""

    def __post_init__(self) -> None:
        if not 0 < self.false_discovery_rate <= 1:
            raise ValueError(
                f"the false discovery rate is {self.false_discovery_rate}, must be above 0 and at "
                "most 1"
            )


def polish_movie(
    chunks: Iterator[Chunk],
    movie: Movie,
    psf: PSF,
    camera: Camera,
    device: torch.device,
    *,
    usual: UsualFrames | None = None,
    decision: Decision | None = None,
    region: tuple[Span, Span] | None = None,
    exact: bool = False,
    part: range | None = None,
) -> Iterator[Chunk]:
    """Polish the molecules of a movie, block by block, with the frames just before and after each.

    On a CPU, each thread polishes a block of frames of its own, as the many small steps of a block
    are shared badly between threads.

    Args:
        chunks: molecules of successive frames, as from `localize_movie`.
        movie: from `open_movie`; its frames are read again.
        psf: from `psf_to_polish_with`.
        camera: its maps, if any, are as large as the movie's frames.
        device: device of the computation.
        usual: statistics of frames that hold an image; others are left out.  None: computed from
            the movie.
        decision: what `decode.likelihood.decide` lists of the molecules and besides; None: all
            molecules are kept.
        region: rows and columns of the molecules; None: all.
        exact: state the moments of the exact posterior (`exact_posterior`), which the CPU samples.
        part: the frames of the movie to polish, counted from its first, as whole blocks
            (`block_frames`); `chunks` hold those within `OVERLAP` of it, too.  None: all.

    Yields:
        The molecules, refined by `decode.likelihood.polish` or listed by `decide`; meanwhile some
        chunks have no molecules.

    Raises:
        ValueError: if the molecules come without uncertainties or background.
        OSError: if the movie cannot be read.
    """
    usual = usual or UsualFrames.of(movie, camera)
    posterior = _ExactPosterior.of(psf, camera) if exact else None
    work = partial(
        _polished,
        psf=psf.to(device),
        camera=camera.to(device),
        device=device,
        depths_nm=_depths_nm(psf),
        decision=decision,
        region=region or region_of(None, movie.shape[1:]),
        exact=posterior,
    )
    workers = torch.get_num_threads() if device.type == "cpu" else 1
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[tuple[Chunk, Future[EmitterSet]]] = deque()
    part = part or range(len(movie))
    last = Chunk(molecules=EmitterSet.empty(), frames_done=part.start, frames_total=len(movie))
    try:
        for block in _blocks(_joined(chunks, movie, part), movie, usual, part):
            waiting.append((block.chunk, pool.submit(work, block)))
            last = yield from _finished(waiting, last, at_most=workers)
        yield from _finished(waiting, last, at_most=0)
    finally:
        # who gives up does not wait for what nobody will read
        pool.shutdown(wait=False, cancel_futures=True)


def block_frames(shape: tuple[int, int], n_chunk: int) -> int:
    """Number of frames of that shape (y, x) that are polished at a time.

    Args:
        n_chunk: number of frames of the chunks that they come in; a block has whole ones.
    """
    return n_chunk * math.ceil(_enough(shape) / n_chunk)


def _enough(shape: tuple[int, int]) -> int:
    height, width = shape
    return max(1, min(BLOCK_FRAMES, BLOCK_PIXELS // (height * width)))


def knows_psf(model: Localizer, psf: PSFFile | None) -> bool:
    """Whether the PSF of a movie is known: calibrated, or that of the model's training."""
    return psf is not None or model.psf is not None


def psf_to_polish_with(model: Localizer, file: PSFFile | None, acquisition: Acquisition) -> PSF:
    """The best known PSF of a movie: the calibrated one, else the model's, else a Gaussian.

    Raises:
        ValueError: if it is not known, or its pixels have another size than the movie's.
    """
    psf = model.psf if file is None else file.psf.tabulated(file.z_range_nm)
    if psf is None and acquisition.psf_sigma_nm is not None:
        psf = GaussianPSF(acquisition.psf_sigma_nm, pixel_size_nm=acquisition.pixel_size_nm)
    if psf is None:
        raise ValueError(
            "to polish, the PSF must be known, and the model carries none: "
            "give a calibrated one as --psf"
        )
    require_pixels_alike(psf.pixel_size_nm, acquisition.pixel_size_nm)
    return deepcopy(psf)


@final
@dataclass(frozen=True, kw_only=True)
class _Block:
    """Molecules of successive frames, and the data that polish them."""

    chunk: Chunk
    """the molecules"""
    frames: range
    """numbers in the file of the frames that the molecules are in"""
    first: int
    """number in the file of the first of `adu`"""
    seen: EmitterSet
    """molecules of all these frames, which count from `first`"""
    adu: Tensor
    """(frames, y, x) counts of the block and the frames around it"""
    usable: Tensor
    """(frames,) bool; which of `adu` hold an image"""


@final
@dataclass(frozen=True, kw_only=True)
class _ExactPosterior:
    """The exact posterior of a movie's molecules, block after block."""

    psf: PSF
    camera: Camera
    pixels: PixelLikelihood
    """with a table that all blocks share"""

    @classmethod
    def of(cls, psf: PSF, camera: Camera) -> _ExactPosterior:
        return cls(psf=deepcopy(psf).cpu(), camera=camera.to("cpu"), pixels=pixels_of(camera))

    def __call__(
        self, adu: Tensor, molecules: EmitterSet, depths_nm: tuple[float, float]
    ) -> EmitterSet:
        """Molecules of frames (t, y, x), with the moments of their posterior."""
        stated = molecules.xyz_sigma
        return exact_posterior(
            self.psf,
            self.camera,
            adu,
            molecules,
            axial=stated is not None and not bool(stated[:, 2].isnan().all()),
            parameters=self.psf.parameters_at(molecules.xyz),
            prior=Prior(depth_nm=depths_nm),
            pixels=self.pixels,
            learn=True,
        )


def _depths_nm(psf: PSF) -> tuple[float, float]:
    """Range of depths of polished molecules; a measured PSF ends with the bead stack."""
    measured = psf.z_range_nm if psf.free_form else None
    return measured or (-math.inf, math.inf)


def _joined(chunks: Iterator[Chunk], movie: Movie, part: range) -> Iterator[Chunk]:
    """Chunks of few frames joined, as polishing needs some frames beyond each; none lies across an
    end of the part."""
    enough = _enough(movie.shape[1:])
    ends = {part.start, part.stop, len(movie)}
    parts: list[EmitterSet] = []
    start = part.start
    for chunk in chunks:
        parts.append(chunk.molecules)
        stop = chunk.frames_done
        if stop - start >= enough or stop in ends or stop > part.stop:
            yield replace(chunk, molecules=EmitterSet.cat(parts))
            parts, start = [], stop


def _blocks(
    chunks: Iterator[Chunk], movie: Movie, usual: UsualFrames, part: range
) -> Iterator[_Block]:
    """Blocks of the part: each chunk with the molecules and the frames just before and after."""
    origin = movie.frames.start
    start, before = part.start, EmitterSet.empty()
    for now, after in pairwise(chain(chunks, [None])):
        assert now is not None
        stop = now.frames_done
        if not part.start < stop <= part.stop:
            before = now.molecules
            continue
        low, high = max(0, start - OVERLAP), min(len(movie), stop + OVERLAP)
        following = EmitterSet.empty() if after is None else after.molecules
        seen = EmitterSet.cat([before, now.molecules, following])
        seen = replace(seen, frame=seen.frame - origin - low)
        frames = movie.read(low, high).astype(np.float32)
        unusable = usual.unusable(frames, origin + low)
        yield _Block(
            chunk=now,
            frames=range(origin + start, origin + stop),
            first=origin + low,
            seen=seen[(seen.frame >= 0) & (seen.frame < high - low)],
            adu=torch.from_numpy(usual.levelled(frames)),
            usable=torch.tensor([origin + i not in unusable for i in range(low, high)]),
        )
        start, before = stop, now.molecules


def _polished(
    block: _Block,
    *,
    psf: PSF,
    camera: Camera,
    device: torch.device,
    depths_nm: tuple[float, float],
    decision: Decision | None,
    region: tuple[Span, Span],
    exact: _ExactPosterior | None,
) -> EmitterSet:
    """The polished molecules of a block's own frames."""
    before = block.chunk.molecules
    if not bool(block.usable.any()) or (decision is None and not len(before)):
        return before
    # frames without an image would be taken for background: those after them follow on those before
    numbers = block.first + torch.nonzero(block.usable)[:, 0]
    position = block.usable.cumsum(0) - 1
    seen = block.seen[block.usable[block.seen.frame]]
    seen = replace(seen, frame=position[seen.frame]).to(device)
    adu = block.adu[block.usable].to(device)
    if decision is None:
        parameters = psf.parameters_at(seen.xyz)
        better = polish_molecules(psf, camera, adu, seen, parameters=parameters)
    else:
        rows, columns = region
        better = decide(
            psf,
            camera,
            adu,
            seen,
            threshold=decision.threshold,
            false_discovery_rate=decision.false_discovery_rate,
            region=(rows.as_slice, columns.as_slice),
            axial=decision.axial and psf.z_range_nm is not None,
        )
    better = better.to("cpu")
    frame = numbers[better.frame]
    own = (frame >= block.frames.start) & (frame < block.frames.stop)
    if decision is not None:
        x, y = (better.xyz[:, :2] / psf.pixel_size_nm).unbind(1)
        own &= (x >= columns.start) & (x < columns.stop) & (y >= rows.start) & (y < rows.stop)
    if exact is not None:
        better = exact(adu.cpu(), better, depths_nm)
    xyz = better.xyz.clone()
    xyz[:, 2].clamp_(*depths_nm)
    return replace(better, xyz=xyz, frame=frame, metadata=before.metadata)[own]


def _finished(
    waiting: deque[tuple[Chunk, Future[EmitterSet]]], last: Chunk, *, at_most: int
) -> Generator[Chunk, None, Chunk]:
    """Yield finished chunks until `at_most` are left, and empty ones meanwhile; returns the last
    finished one."""
    while len(waiting) > at_most:
        chunk, work = waiting[0]
        if wait([work], timeout=HEARTBEAT_S).done:
            waiting.popleft()
            last = replace(chunk, molecules=work.result())
            yield last
        else:
            yield replace(last, molecules=EmitterSet.empty(chunk.molecules.metadata))
    return last
