"""sweep: a network over a movie, chunk after chunk and tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from decode.defects import UsualFrames, with_bad_pixels
from decode.devices import choose_device, keep_freed_memory, memory_of
from decode.emitters import EmitterSet
from decode.io.movies import Movie
from decode.network.localizer import Localizer
from decode.network.posterior import SetPosterior
from decode.optics.camera import Camera
from decode.verbs.region import Tile, region_of, tiles_of

__all__ = ["Chunk", "chunk_frames", "sweep"]

PIXELS_AT_ONCE = {"cpu": 2**18, "cuda": 2**23}
"""pixels the network works on at a time; more are no faster, and need more memory"""
PIXEL_BYTES = 2**11
"""memory of a GPU set aside for a pixel; both shipped models fill 1.1 kB, measured on a CPU"""
CHUNK_PIXELS = {"cpu": 2**21, "cuda": 2**26}
"""pixels read and reported at a time"""
CHUNK_FRAMES = {"cpu": (8, 64), "cuda": (8, 256)}
"""fewest and most frames read and reported at a time; polishing takes blocks of 256"""


@final
@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Molecules of the next frames of a movie, and how far the work is."""

    molecules: EmitterSet
    """molecules in the order of frames; may be none"""
    frames_done: int
    frames_total: int
    posterior: SetPosterior | None = None
    """posterior of the next frames, where requested; positions count from the corner of the
    region"""
    samples: tuple[EmitterSet, ...] = ()
    """draws from the posterior of these frames, where they were asked for (`Draws`)"""

    def each(self, change: Callable[[EmitterSet], EmitterSet]) -> Chunk:
        """The chunk with a change to its molecules, those of the draws included."""
        return replace(
            self,
            molecules=change(self.molecules),
            samples=tuple(change(sample) for sample in self.samples),
        )


def sweep(
    movie: Movie,
    model: Localizer,
    camera: Camera,
    *,
    pixel_size_nm: float,
    context: Mapping[str, float | Tensor],
    threshold: float = 0.5,
    device: str = "auto",
    roi: tuple[slice, slice] | None = None,
    tile_px: int = 512,
    usual: UsualFrames | None = None,
    posteriors: bool = False,
    recalibrated: bool = True,
    part: range | None = None,
) -> Iterator[Chunk]:
    """Find the molecules of a movie.

    Frames that hold no image of the sample (blank, dark or flashed) have no molecules; to their
    neighbours they are empty, as beyond the ends of the movie.

    Frames are read ahead in a thread while the network works.  Large frames are cut into tiles that
    overlap by as much as a pixel's posterior can see, so that molecules depend neither on the tiles
    nor on the chunks (but for the rounding of float32).

    Args:
        movie: from `open_movie`.
        model: from `Localizer.load`.
        camera: its maps, if any, are as large as the movie's frames.
        pixel_size_nm: side of a pixel.
        context: values that the model is conditioned on, numbers or (y, x) maps by name, from
            `model.domain.conditioning(...).values`.
        threshold: molecules with a larger probability are listed.
        device: `auto`, `cpu` or `cuda`.
        roi: rows and columns to localize in; coordinates stay those of the whole frame.
        tile_px: largest side of a tile, without the overlap.
        usual: statistics of frames that hold an image; None: computed from this movie, bad pixels
            too.
        posteriors: whether chunks carry the posterior of their frames, too.
        recalibrated: whether molecules are corrected as the model's recalibration says.
        part: the frames of the movie to work on, counted from its first; begins at a multiple of
            `chunk_frames`, and ends at one or with the movie, so that its molecules are to the last
            bit those of the whole movie.  None: all.

    Yields:
        Molecules of the next frames, in the order of frames.  Frames count as in `movie.whole`: as
        in the file, also where `open_movie` takes some of them, unless some were left out between
        others, which are then neighbours.  The first and the last frame are seen with their
        neighbours in the file.

    Raises:
        ValueError: if the camera's maps do not fit the movie, the context does not fit the model,
            the region is empty, a frame holds NaN, or a GPU is asked for and there is none.
        OSError: if a file cannot be read.
    """
    where = choose_device(device)
    n_frames, height, width = movie.shape
    shape = (height, width)
    _check_maps(camera, shape)
    if usual is None:
        usual, camera = UsualFrames.of(movie, camera), with_bad_pixels(movie, camera)
    region = region_of(roi, shape)
    maps = model.context_map(context).to(where)
    if maps.shape[-2:] != (1, 1) and tuple(maps.shape[-2:]) != shape:
        raise ValueError(
            f"context maps are {tuple(maps.shape[-2:])}, the movie's frames are {shape}"
        )
    model = model.to(where).eval()
    radius, stride = model.radius_px, model.stride
    tiles = tiles_of(region, shape, tile_px=tile_px, radius=radius, stride=stride)
    view = partial(_View.of, model, camera.to(where), maps, pixel_size_nm=pixel_size_nm)
    views = [[view(tile) for tile in row] for row in tiles]
    keep_freed_memory()
    localized = partial(
        _localize, threshold=threshold, posteriors=posteriors, recalibrated=recalibrated
    )
    for frames in _read_ahead(movie, usual, where, part or range(n_frames)):
        found = [[localized(view, frames) for view in row] for row in views]
        molecules = EmitterSet.cat(tile for row in found for tile, _ in row)
        yield Chunk(
            molecules=molecules.sorted_by_frame(),
            frames_done=frames.stop - movie.frames.start,
            frames_total=n_frames,
            posterior=_stitched([[part for _, part in row] for row in found]),
        )


@final
@dataclass(frozen=True, kw_only=True)
class _Frames:
    """Frames start .. stop - 1 of a file, with a frame more on either side where there is one."""

    start: int
    stop: int
    adu: Tensor
    """(frames, y, x) counts"""
    first: int
    """number in the file of the first of `adu`"""
    usable: Tensor
    """(frames,) bool; which of `adu` hold an image"""
    is_first: bool
    """whether no frame comes before"""
    is_last: bool


def chunk_frames(shape: tuple[int, int], device: torch.device) -> int:
    """Number of frames of that shape (y, x) that are read and reported at a time, an even one, so
    that no pair of successive frames is parted."""
    height, width = shape
    fewest, most = CHUNK_FRAMES[device.type]
    return max(fewest, min(most, CHUNK_PIXELS[device.type] // (height * width) // 2 * 2))


def _read_ahead(
    movie: Movie, usual: UsualFrames, device: torch.device, part: range
) -> Iterator[_Frames]:
    """The frames of a part of a movie, chunk after chunk; the next one is read while the caller
    works."""
    size = chunk_frames(movie.shape[1:], device)
    first, end = movie.frames.start + part.start, movie.frames.start + part.stop
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(_read, movie, usual, first, min(end, first + size))
        for start in range(first, end, size):
            frames = ahead.result()
            if start + size < end:
                stop = min(end, start + 2 * size)
                ahead = reader.submit(_read, movie, usual, start + size, stop)
            yield frames


def _read(movie: Movie, usual: UsualFrames, start: int, stop: int) -> _Frames:
    # the first and the last frame that were chosen have neighbours in the file that were not
    whole, (first, end) = movie.whole, (movie.frames.start, movie.frames.stop)
    seen = range(max(0, start - 1), min(len(whole), stop + 1))
    chosen = range(max(seen.start, first), min(seen.stop, end))
    before = [_neighbour(whole, i) for i in seen if i < first]
    after = [_neighbour(whole, i) for i in seen if i >= end]
    own = whole.read(chosen.start, chosen.stop).astype(np.float32)
    frames = np.concatenate([*before, own, *after])
    unusable = usual.unusable(frames, seen.start)
    return _Frames(
        start=start,
        stop=stop,
        adu=torch.from_numpy(usual.levelled(frames)),
        first=seen.start,
        usable=torch.tensor([i not in unusable for i in seen]),
        is_first=start == 0,
        is_last=stop == len(whole),
    )


def _neighbour(whole: Movie, number: int) -> npt.NDArray[np.float32]:
    """(1, y, x) a frame that was not chosen; blank where it cannot be read."""
    try:
        return whole.read(number, number + 1).astype(np.float32)
    except (ValueError, OSError):
        return np.zeros((1, *whole.shape[1:]), np.float32)


@final
@dataclass(frozen=True, kw_only=True)
class _View:
    """A tile with the inputs of the network."""

    tile: Tile
    model: Localizer
    camera: Camera
    """camera of the pixels seen"""
    context: Tensor
    """(1, n_context, 1 or y, 1 or x)"""
    pixel_size_nm: float

    @staticmethod
    def of(
        model: Localizer, camera: Camera, context: Tensor, tile: Tile, *, pixel_size_nm: float
    ) -> _View:
        """A tile, cut from the maps of whole frames."""
        rows, columns = tile.rows_seen.as_slice, tile.columns_seen.as_slice
        if context.shape[-2:] != (1, 1):
            context = context[..., rows, columns]
        camera = camera.crop(rows, columns)
        return _View(
            tile=tile, model=model, camera=camera, context=context, pixel_size_nm=pixel_size_nm
        )

    @torch.inference_mode()
    def posteriors(self, frames: _Frames) -> Iterator[SetPosterior]:
        """Posteriors of successive frames: some of start .. stop - 1, then those that follow
        them."""
        rows, columns = self.tile.rows_seen.as_slice, self.tile.columns_seen.as_slice
        height, width = self.tile.shape_seen
        at_once = max(1, _pixels_at_once(self.context.device) // (height * width))
        adu = frames.adu[:, rows, columns]
        features = torch.zeros(0)
        for first in range(0, len(adu), at_once):
            part = adu[None, first : first + at_once].to(self.context.device)
            new, alpha = self.model.encode(part, self.camera, self.context)
            usable = frames.usable[first : first + at_once, None, None, None]
            new = new[0] * usable.to(new)
            nothing = torch.zeros_like(new[:1])
            # features are computed once a frame: the last two wait for the frame that follows
            before = features[-2:] if first else nothing[: int(frames.is_first)]
            features = torch.cat([before, new])
            if first + at_once >= len(adu) and frames.is_last:
                features = torch.cat([features, nothing])
            if len(features) < 3:
                continue
            yield self.model.decode(
                *(features[:-2], features[1:-1], features[2:]),
                alpha=alpha,
                context=self.context,
                shape=(height, width),
                pixel_size_nm=self.pixel_size_nm,
            )

    def own(self, seen: EmitterSet) -> EmitterSet:
        """The molecules that the tile reports, in the coordinates of the whole frame."""
        tile, pixel = self.tile, self.pixel_size_nm
        corner = torch.tensor([tile.columns_seen.start, tile.rows_seen.start, 0.0])
        molecules = replace(seen, xyz=seen.xyz + corner * pixel)
        position = molecules.xyz[:, :2] / pixel
        low = torch.tensor([tile.columns.start, tile.rows.start])
        high = torch.tensor([tile.columns.stop, tile.rows.stop])
        return molecules[((position >= low) & (position < high)).all(1)]


def _pixels_at_once(device: torch.device) -> int:
    """Pixels that the network takes at a time on a device."""
    most = PIXELS_AT_ONCE[device.type]
    memory = memory_of(device)
    return most if memory is None else min(most, memory // PIXEL_BYTES)


def _localize(
    view: _View, frames: _Frames, *, threshold: float, posteriors: bool, recalibrated: bool
) -> tuple[EmitterSet, SetPosterior | None]:
    """Molecules of a tile and, if requested, the posterior of its pixels."""
    tile = view.tile
    own = tile.rows.within(tile.rows_seen), tile.columns.within(tile.columns_seen)
    found, kept = [], []
    number = frames.start
    for posterior in view.posteriors(frames):
        if not recalibrated:
            posterior = replace(posterior, recalibration=None)
        molecules = posterior.point_estimate(threshold, first_frame=number).to("cpu")
        number += len(posterior)
        found.append(view.own(molecules[frames.usable[molecules.frame - frames.first]]))
        if posteriors:
            kept.append(posterior.crop(*own).to("cpu"))
    if not kept:
        return EmitterSet.cat(found), None
    usable = frames.usable[frames.start - frames.first :][: frames.stop - frames.start]
    return EmitterSet.cat(found), SetPosterior.cat(kept).where(usable)


def _stitched(tiles: list[list[SetPosterior | None]]) -> SetPosterior | None:
    """One posterior of the tiles of a region, row by row; None where there is none."""
    rows = [[tile for tile in row if tile is not None] for row in tiles]
    if not all(rows):
        return None
    return SetPosterior.cat([SetPosterior.cat(row, dim=-1) for row in rows], dim=-2)


def _check_maps(camera: Camera, shape: tuple[int, int]) -> None:
    for name in ("baseline", "e_per_adu", "read_noise_e", "qe", "em_gain", "spurious_e"):
        value = getattr(camera, name)
        if not isinstance(value, Tensor) or value.ndim < 2:
            continue
        if tuple(value.shape[-2:]) != shape:
            raise ValueError(
                f"the camera's {name} map is {tuple(value.shape[-2:])} (y, x), the movie's frames "
                f"are {shape}; crop the maps to the region the movie was recorded in"
            )
