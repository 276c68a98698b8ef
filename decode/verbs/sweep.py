"""localize: a movie and a model to molecules, chunk after chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from decode.defects import UsualFrames, with_bad_pixels
from decode.devices import choose_device, keep_freed_memory
from decode.emitters import EmitterSet, Facts
from decode.io.movies.tiff import Movie
from decode.network.localizer import Localizer
from decode.optics.camera import Camera

__all__ = ["Chunk", "localize", "parse_region", "parse_span"]

PIXELS_AT_ONCE = {"cpu": 2**18, "cuda": 2**23}
"""pixels the network works on at a time: more brings no speed, and needs more memory"""
CHUNK_PIXELS = 2**21
"""pixels read and reported at a time"""


@final
@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Molecules of the next frames of a movie, and how far the work is."""

    molecules: EmitterSet
    """in the order of frames; perhaps none"""
    frames_done: int
    frames_total: int


def localize(
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
) -> Iterator[Chunk]:
    """Find the molecules of a movie.

    Frames that hold no image of the sample (blank, dark or flashed) have no molecules, and those beside them see
    nothing there, as beyond the ends of the movie.

    Frames are read ahead in a thread while the network works.  Large frames are cut into tiles that overlap by as
    much as a pixel's posterior can see, so that molecules depend neither on the tiles nor on the chunks (but for
    the rounding of float32).

    Args:
        movie: from `open_movie`.
        model: from `Localizer.load`.
        camera: its maps, if any, are as large as the movie's frames.
        pixel_size_nm: side of a pixel.
        context: what the model is conditioned on, as `model.domain.conditioning(...).values`: numbers or (y, x)
            maps by name.
        threshold: molecules whose probability exceeds it are listed.
        device: `auto`, `cpu` or `cuda`.
        roi: rows and columns to localize in; coordinates stay those of the whole frame.
        tile_px: largest side of a tile, without the overlap.
        usual: what tells frames that hold no image; None looks at this movie, for bad pixels too.

    Yields:
        Molecules of the next frames, in the order of frames.  Frame numbers are those of the file, also
        where `open_movie` was told to leave frames out; the first and the last that are left are seen
        with the neighbours they have in the file.

    Raises:
        ValueError: if the camera's maps do not fit the movie, the context does not fit the model, the region is
            empty, a frame holds NaN, or a GPU is asked for and there is none.
        OSError: if a file cannot be read.
    """
    where = choose_device(device)
    n_frames, height, width = movie.shape
    _check_maps(camera, (height, width))
    if usual is None:
        usual, camera = UsualFrames.of(movie, camera), with_bad_pixels(movie, camera)
    rows, columns = _region(roi, (height, width))
    maps = model.context_map(context).to(where)
    if maps.shape[-2:] != (1, 1) and tuple(maps.shape[-2:]) != (height, width):
        raise ValueError(f"context maps are {tuple(maps.shape[-2:])}, the movie's frames are {(height, width)}")
    model = model.to(where).eval()
    camera = camera.to(where)
    tiles = _tiles(rows, columns, (height, width), tile_px, model.radius_px, model.stride)
    at_once = max(1, PIXELS_AT_ONCE[where.type] // max(t.rows_seen.size * t.columns_seen.size for t in tiles))
    chunk = max(8, min(64, CHUNK_PIXELS // (height * width)))
    facts = Facts(pixel_size_nm=pixel_size_nm, n_frames=n_frames, height_px=height, width_px=width)
    keep_freed_memory()

    # the first and the last frame that were chosen have neighbours in the file that were not
    whole, (first, end) = movie.whole, (movie.frames.start, movie.frames.stop)

    def read(start: int) -> npt.NDArray[np.float32]:
        seen = range(max(0, start - 1), min(len(whole), min(end, start + chunk) + 1))
        chosen = range(max(seen.start, first), min(seen.stop, end))
        before = [_neighbour(whole, i) for i in seen if i < first]
        after = [_neighbour(whole, i) for i in seen if i >= end]
        return np.concatenate([*before, whole.read(chosen.start, chosen.stop).astype(np.float32), *after])

    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, first)
        for start in range(first, end, chunk):
            frames = ahead.result()
            before = max(0, start - 1)
            unusable = usual.unusable(frames, before)
            adu = torch.from_numpy(frames)
            usable = torch.tensor([before + i not in unusable for i in range(len(adu))])
            stop = min(end, start + chunk)
            if stop < end:
                ahead = reader.submit(read, stop)
            found = [
                part
                for tile in tiles
                for part in _localize_tile(
                    adu, usable, model, camera, maps, tile, at_once, (start, stop, len(whole)), pixel_size_nm, threshold
                )
            ]
            molecules = replace(EmitterSet.cat(found).sorted_by_frame(), metadata=facts.metadata())
            yield Chunk(molecules=molecules, frames_done=stop - first, frames_total=n_frames)


def _neighbour(whole: Movie, number: int) -> npt.NDArray[np.float32]:
    """(1, y, x) a frame that was not chosen, perhaps since it cannot be read: then it is blank, and tells nothing."""
    try:
        return whole.read(number, number + 1).astype(np.float32)
    except (ValueError, OSError):
        return np.zeros((1, *whole.shape[1:]), np.float32)


def parse_span(option: str, text: str) -> slice:
    """`A:B` as in Python; either end may be left out.

    Args:
        option: what the error names.
        text: as the user wrote it.

    Raises:
        ValueError: if it is written otherwise.
    """
    try:
        start, stop = (int(end) if end.strip() else None for end in text.split(":"))
    except ValueError:
        raise ValueError(f"{option} {text}: write it as FIRST:LAST, two whole numbers") from None
    return slice(start, stop)


def parse_region(text: str) -> tuple[slice, slice]:
    """`Y0:Y1,X0:X1` as the rows and columns of a region.

    Raises:
        ValueError: if it is written otherwise.
    """
    rows, comma, columns = text.partition(",")
    if not comma:
        raise ValueError(f"--roi {text}: write it as Y0:Y1,X0:X1")
    return parse_span("--roi", rows), parse_span("--roi", columns)


class _Span(NamedTuple):
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)


class _Tile(NamedTuple):
    rows: _Span
    """whose molecules the tile reports"""
    columns: _Span
    rows_seen: _Span
    """with the overlap"""
    columns_seen: _Span


def _tiles(rows: _Span, columns: _Span, shape: tuple[int, int], tile_px: int, radius: int, stride: int) -> list[_Tile]:
    """Cut a region into tiles of about equal size that see `radius` pixels further, on the grid of the stride."""

    def cut(span: _Span, limit: int) -> list[tuple[_Span, _Span]]:
        n = -(-span.size // tile_px)
        edges = [span.start + span.size * i // n for i in range(n + 1)]
        inner = [_Span(a, b) for a, b in pairwise(edges)]
        return [(s, _Span(max(0, (s.start - radius) // stride * stride), min(limit, s.stop + radius))) for s in inner]

    return [_Tile(r, c, rs, cs) for r, rs in cut(rows, shape[0]) for c, cs in cut(columns, shape[1])]


@torch.inference_mode()
def _localize_tile(
    adu: Tensor,
    usable: Tensor,
    model: Localizer,
    camera: Camera,
    context: Tensor,
    tile: _Tile,
    at_once: int,
    frames: tuple[int, int, int],
    pixel_size_nm: float,
    threshold: float,
) -> Iterator[EmitterSet]:
    """Molecules in one tile of frames start .. stop - 1; `adu` holds a frame more on either side where there is one."""
    start, stop, n_frames = frames
    seen = tile.rows_seen.slice, tile.columns_seen.slice
    adu = adu[:, seen[0], seen[1]]
    camera = camera.crop(*seen)
    if context.shape[-2:] != (1, 1):
        context = context[..., seen[0], seen[1]]
    shape = (tile.rows_seen.size, tile.columns_seen.size)
    features = torch.zeros(0)
    for first in range(0, len(adu), at_once):
        part = adu[None, first : first + at_once].to(context.device)
        new, alpha = model.encode(part, camera, context)
        new = new[0] * usable[first : first + at_once, None, None, None].to(new)
        # features are computed once per frame: the last two wait for the frame that follows them
        nothing = torch.zeros_like(new[:1])
        before = features[-2:] if first else nothing[: start == 0]
        features = torch.cat([before, new])
        if first + at_once >= len(adu) and stop == n_frames:
            features = torch.cat([features, nothing])
        if len(features) < 3:
            continue
        posterior = model.decode(
            *(features[:-2], features[1:-1], features[2:]),
            alpha=alpha,
            context=context,
            shape=shape,
            pixel_size_nm=pixel_size_nm,
        )
        # features[0] is frame start - 1 in the first part, whether or not there is such a frame
        number = start if first == 0 else max(0, start - 1) + first - 1
        molecules = posterior.point_estimate(threshold, first_frame=number).to("cpu")
        origin = torch.tensor([tile.columns_seen.start, tile.rows_seen.start, 0.0]) * pixel_size_nm
        molecules = replace(molecules, xyz=molecules.xyz + origin)
        molecules = molecules[usable[molecules.frame - max(0, start - 1)]]
        position = molecules.xyz[:, :2] / pixel_size_nm
        low = torch.tensor([tile.columns.start, tile.rows.start])
        high = torch.tensor([tile.columns.stop, tile.rows.stop])
        yield molecules[((position >= low) & (position < high)).all(1)]


def _check_maps(camera: Camera, shape: tuple[int, int]) -> None:
    for name in ("baseline", "e_per_adu", "read_noise_e", "qe", "em_gain", "spurious_e"):
        value = getattr(camera, name)
        if isinstance(value, Tensor) and value.ndim >= 2 and tuple(value.shape[-2:]) != shape:
            raise ValueError(
                f"the camera's {name} map is {tuple(value.shape[-2:])} (y, x), the movie's frames are {shape}; "
                "crop the maps to the region the movie was recorded in"
            )


def _region(roi: tuple[slice, slice] | None, shape: tuple[int, int]) -> tuple[_Span, _Span]:
    spans = []
    for part, size, name in zip(roi or (slice(None), slice(None)), shape, ("rows", "columns"), strict=True):
        start, stop, step = part.indices(size)
        if step != 1 or stop <= start or (part.stop is not None and part.stop > size):
            raise ValueError(f"the {name} {part.start}:{part.stop} of --roi are not within the frame's {size} pixels")
        spans.append(_Span(start, stop))
    return spans[0], spans[1]
