"""Movies on disk as lazy (frame, y, x) arrays."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, final
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import tifffile

from decode.atomic import atomic
from decode.errors import brief, reading
from decode.io.movies.array import ArrayPart

__all__ = [
    "Movie",
    "in_natural_order",
    "open_array",
    "open_movie",
    "read_image",
    "require_pixel_size",
    "write_movie",
]

# tifffile tells of damage in its log, once a tag; what matters is said once, in an exception
logging.getLogger("tifffile").addHandler(logging.NullHandler())

IMAGEJ_LIMIT = 2**32 - 2**25
"""bytes; beyond it the offsets of a classic TIFF overflow (ImageJ cannot read its own dialect as
BigTIFF)"""

COLOURS = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.PALETTE)
"""what pixels may hold in place of a camera's counts"""

SMALL_FRAME = 2**26
"""bytes; as large as the frames of the largest cameras, and read whatever it is compressed to"""
MOST_COMPRESSION = 1100
"""times that a larger frame is compressed at most, a little more than zlib does to one without
any light"""

NM_PER = {
    "nm": 1.0,
    "um": 1e3,
    "µm": 1e3,
    "μm": 1e3,
    "micron": 1e3,
    "microns": 1e3,
    r"\u00b5m": 1e3,
    "mm": 1e6,
}
MS_PER = {"s": 1e3, "ms": 1.0, "us": 1e-3, "µs": 1e-3, "μs": 1e-3}
PIXEL_SIZES_NM = (10.0, 1000.0)
"""that a microscope may have; what lies beyond is in another unit, or says nothing"""
MICRO_MANAGER_TAG = 51123
MOST_CHANNELS = 7
"""that ImageJ merges: so few images along an axis of channels are colours, more are frames that
were mislabelled"""
LARGEST_COUNT = 2**24
"""beyond it, single precision does not tell successive counts apart"""

SUFFIXES = (".tif", ".tiff")
"""of the files in a folder that are frames"""

_Page = tifffile.TiffPage | tifffile.TiffFrame


@final
class Movie:
    """Frames of one or more files, read on demand; a context manager that closes them.

    Made by `open_movie`.  `movie.shape` is (frames, height, width).
    """

    def __init__(
        self,
        parts: Sequence[_Part | _Folder | ArrayPart],
        frames: range,
        kept: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self._parts = tuple(parts)
        self._kept = kept
        self._starts = np.cumsum([0, *(part.n_frames for part in parts)])
        self.frames = frames
        """which frames of the files these are, from 0"""
        self.path: Path = parts[0].path
        """the first file, or the folder of all"""
        n_frames = len(frames) if kept is None else len(kept)
        self.shape: tuple[int, int, int] = (n_frames, *parts[0].frame_shape)
        self.dtype: np.dtype[Any] = parts[0].dtype.newbyteorder("=")
        self.pixel_sides_nm: tuple[float, float] | None = parts[0].pixel_sides_nm
        """x, y of a pixel as its metadata state them; None where they do not, or not credibly"""
        self.pixel_size_nm: float | None = _side_of_square(self.pixel_sides_nm)
        """the side of its pixels, where its metadata state square ones"""
        self.exposure_ms: float | None = parts[0].exposure_ms
        """as OME or Micro-Manager metadata state it, else None"""
        self.z_step_nm: float | None = parts[0].z_step_nm
        """distance of the planes of a z-stack, as its metadata state it, else None"""

    def __len__(self) -> int:
        return self.shape[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for part in self._parts:
            part.close()

    def without(self, frames: Collection[int]) -> Movie:
        """The movie without some of its frames, as if those after them followed on those before; it
        shares the files.

        Raises:
            ValueError: if no frame is left.
        """
        kept = np.setdiff1d(np.arange(len(self)), np.array(sorted(frames), np.int64))
        if not len(kept):
            raise ValueError(f"{self.path}: no frame is left; choose others with --frames")
        return Movie(self._parts, self.frames, kept if self._kept is None else self._kept[kept])

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        """(frame,) of its frames in the files, from 0; those that were left out are missing."""
        kept = np.arange(len(self)) if self._kept is None else self._kept
        return self.frames.start + kept

    @property
    def whole(self) -> Movie:
        """All frames of the files, whichever of them this movie has; it shares the files."""
        return Movie(self._parts, range(int(self._starts[-1])))

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Frames start, ..., stop - 1; nothing else is read or kept.

        Returns:
            (stop - start, height, width) in the movie's dtype, native byte order, the caller's own.

        Raises:
            IndexError: if the movie has no such frames.
            ValueError: if a frame holds NaN or infinite counts, or larger ones than are told apart
                here.
            OSError: if the file cannot be read.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(
                f"frames {start}:{stop} are not within the {len(self)} frames of {self.path}"
            )
        if self._kept is not None and start < stop:
            kept = self._kept[start:stop]
            all_of_them = Movie(self._parts, self.frames)
            span: npt.NDArray[Any] = all_of_them.read(int(kept[0]), int(kept[-1]) + 1)
            return span[kept - kept[0]]
        first, last = self.frames.start + start, self.frames.start + stop
        chunk = np.empty((stop - start, *self.shape[1:]), self.dtype)
        for part, offset in zip(self._parts, self._starts[:-1], strict=True):
            a, b = max(first, offset), min(last, offset + part.n_frames)
            if a < b:
                chunk[a - first : b - first] = part.read(a - offset, b - offset)
        if chunk.dtype.itemsize > 2 or chunk.dtype.kind == "f":
            limit = np.float64(LARGEST_COUNT)
            usable = (chunk >= -limit) & (chunk <= limit)
            broken = np.flatnonzero(~usable.all(axis=(1, 2)))
            if len(broken):
                finite = bool(np.isfinite(chunk[broken[0]]).all())
                holds = (
                    f"counts beyond {LARGEST_COUNT}, as no camera writes"
                    if finite
                    else "NaN or infinite counts"
                )
                raise ValueError(
                    f"{self.path}: frame {first + broken[0]} (from 0) holds {holds}; "
                    "mend it or leave it out with --frames"
                )
        return chunk


@final
@dataclass(frozen=True, kw_only=True)
class _Part:
    """The frames of one file, or of one OME or Micro-Manager series of files."""

    path: Path
    tiff: tifffile.TiffFile
    series: tifffile.TiffPageSeries | None
    """whose pages are read one by one; None reads those of the file"""
    block_offset: int | None
    """where the pixels start, if they lie in one piece: then no pages are needed"""
    n_frames: int
    frame_shape: tuple[int, int]
    dtype: np.dtype[Any]
    pixel_sides_nm: tuple[float, float] | None
    exposure_ms: float | None
    z_step_nm: float | None

    @property
    def handles(self) -> dict[Path, tifffile.FileHandle]:
        """Every file that holds frames of this part."""
        pages = (
            [] if self.series is None else [page for page in self.series.pages if page is not None]
        )
        handles = [self.tiff.filehandle, *(page.parent.filehandle for page in pages)]
        return {Path(handle.path).resolve(): handle for handle in handles}

    def open(self) -> None:
        for handle in self.handles.values():
            handle.open()

    def close(self) -> None:
        for handle in self.handles.values():
            handle.close()

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        shape = (stop - start, *self.frame_shape)
        if self.block_offset is None:
            try:
                return self.tiff.asarray(series=self.series, key=slice(start, stop)).reshape(shape)
            except Exception as error:  # every codec has errors of its own
                packed = self.tiff.pages.first.compression != tifffile.COMPRESSION.NONE
                remedy = "export it again"
                if packed and find_spec("imagecodecs") is None:
                    remedy = "pip install 'decode-smlm[io]', which brings more codecs"
                which, reason = f"frames {start}:{stop}", brief(str(error))
                raise ValueError(
                    f"{self.path}: {which} cannot be decoded ({reason}); {remedy}"
                ) from error
        # read, not mapped: pages of a mapped file would count as memory in use, up to the whole
        # movie
        pixels = shape[1] * shape[2]
        offset = self.block_offset + start * pixels * self.dtype.itemsize
        chunk = np.fromfile(self.path, self.dtype, shape[0] * pixels, offset=offset)
        if chunk.size < shape[0] * pixels:
            raise OSError(f"{self.path} became shorter while it was read")
        return chunk.reshape(shape)


@final
@dataclass(frozen=True, kw_only=True)
class _Folder:
    """The frames of a folder, each in a file of its own, which is opened only while it is read."""

    path: Path
    files: tuple[Path, ...]
    frame_shape: tuple[int, int]
    dtype: np.dtype[Any]
    pixel_sides_nm: tuple[float, float] | None
    exposure_ms: float | None
    z_step_nm: float | None

    @property
    def n_frames(self) -> int:
        return len(self.files)

    @property
    def handles(self) -> dict[Path, tifffile.FileHandle]:
        """No file stays open."""
        return {}

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        frames = np.empty((stop - start, *self.frame_shape), self.dtype)
        for frame, file in zip(frames, self.files[start:stop], strict=True):
            part = _open_part(file, allow_truncated=False)
            with closing(part):
                _check_continues(part, self)
                frame[:] = part.read(0, 1)[0]
        return frames


def open_movie(
    path: str | Path | Sequence[str | Path],
    *,
    frames: slice | None = None,
    allow_truncated: bool = False,
) -> Movie:
    """Open a TIFF movie without reading its pixels.

    ImageJ, OME (one or many files), Micro-Manager, BigTIFF and plain multi-page files are read;
    axes may be called T, Z, Q or I as long as only one besides y and x is longer than 1.  A single
    image is a movie of one frame; images of one size and type that tifffile wrote one after the
    other are frames of one movie.

    Example:
        >>> with open_movie("sample_data/blinking_2d.tif", frames=slice(0, 10)) as movie:
        ...     len(movie), movie.read(0, 2).shape
        (10, (2, 64, 64))

    Args:
        path: a file; a folder, whose files are a frame each; or the parts of a movie that was
            split.  Files are taken in the natural order of their names.
        frames: the frames to keep, from 0, without a step; None keeps all.
        allow_truncated: take the whole frames of a file that was cut short, instead of refusing it.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if it is not a TIFF movie of grey values, is damaged, or its parts do not fit
            together.
    """
    paths = [Path(path)] if isinstance(path, str | Path) else in_natural_order(path)
    if not paths:
        raise ValueError("no movie was given")
    with ExitStack() as opened:
        parts: list[_Part | _Folder] = []
        for each in paths:
            # the files of an OME or Micro-Manager series name each other: the first one brings them
            # all
            if any(each.resolve() in part.handles for part in parts):
                continue
            opens = _open_folder if each.is_dir() else _open_part
            parts.append(opens(each, allow_truncated=allow_truncated))
            opened.callback(parts[-1].close)
            parts[-1].read(0, 1)  # a codec that is not installed shows here, not after minutes
        for part in parts[1:]:
            _check_continues(part, parts[0])
        chosen = _choose(frames, sum(part.n_frames for part in parts), parts[0].path)
        opened.pop_all()
        return Movie(parts, chosen)


def open_array(counts: npt.NDArray[Any], *, frames: slice | None = None) -> Movie:
    """A movie whose frames are in memory.

    >>> open_array(np.ones((20, 32, 48)), frames=slice(0, 5)).shape
    (5, 32, 48)

    Args:
        counts: (frames, y, x) ADU.
        frames: the frames to keep, from 0, without a step; None keeps all.

    Raises:
        ValueError: if the array is no movie.
    """
    part = ArrayPart(counts=counts)
    return Movie([part], _choose(frames, part.n_frames, part.path))


def require_pixel_size(nm: float) -> None:
    """Raise a ValueError unless a number may be the side of a microscope's pixel in nm."""
    if not nm > 0:
        raise ValueError(f"pixel_size_nm is {nm:g}, must be positive")
    low, high = PIXEL_SIZES_NM
    if not low <= nm <= high:
        meant = f": {1000 * nm:g}, if it was in um" if low <= 1000 * nm <= high else ""
        raise ValueError(
            f"a pixel size of {nm:g} nm is no microscope's ({low:g} to {high:g}); state it in "
            f"nm{meant}"
        )


def read_image(path: Path) -> npt.NDArray[Any]:
    """(y, x) the one image of grey values in a TIFF file, as `open_movie` reads frames.

    Raises:
        FileNotFoundError, ValueError: as `open_movie`, and if it holds more than one.
    """
    with closing(_open_part(path, allow_truncated=False)) as part:
        if part.n_frames != 1:
            raise ValueError(f"{path} must be one grey image, but holds {part.n_frames}")
        return part.read(0, 1)[0]


def write_movie(
    path: str | Path, frames: npt.ArrayLike, *, pixel_size_nm: float | None = None
) -> None:
    """Write a movie that ImageJ opens: uint16 where every count is whole and fits, else float32.

    Movies beyond 4 GB become BigTIFF.  The file appears under its name only when it is complete.

    Args:
        path: file to write.
        frames: (frame, y, x) counts.
        pixel_size_nm: stored as the file's resolution.

    Raises:
        ValueError: if `frames` is not (frame, y, x).
        OSError: if the file cannot be written.
    """
    counts = np.asarray(frames)
    if counts.ndim != 3 or counts.size == 0:
        raise ValueError(
            f"a movie to write is (frame, y, x) and not empty, this one has shape {counts.shape}"
        )
    whole = (
        counts.min() >= 0
        and counts.max() <= 65535
        and all(np.array_equal(f, np.rint(f)) for f in counts)
    )
    counts = counts.astype(np.uint16 if whole else np.float32, copy=False)
    options: dict[str, Any] = (
        {"imagej": True} if counts.nbytes < IMAGEJ_LIMIT else {"bigtiff": True}
    )
    metadata = {"axes": "TYX"}
    if pixel_size_nm is not None:
        metadata["unit"] = "um"
        options["resolution"] = (1000 / pixel_size_nm, 1000 / pixel_size_nm)
    with atomic(path) as temporary:
        tifffile.imwrite(temporary, counts, photometric="minisblack", metadata=metadata, **options)


def _open_folder(path: Path, *, allow_truncated: bool) -> _Part | _Folder:
    """A movie of one file a frame; or the file, or the OME series of files, that is alone in its
    folder."""
    found = (
        file
        for file in path.iterdir()
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )
    files = in_natural_order(found)
    if not files:
        raise ValueError(
            f"{path} is a folder without TIFF files; name the movie, or the folder of its frames"
        )
    first = _open_part(files[0], allow_truncated=allow_truncated)
    if {file.resolve() for file in files} <= set(first.handles):
        return first
    first.close()
    for file in files:
        part = _open_part(file, allow_truncated=False)
        with closing(part):
            _check_continues(part, first)
            if part.n_frames > 1:
                raise ValueError(
                    f"{file} holds {part.n_frames} frames, and a folder is one movie only where "
                    "each file is one "
                    "frame; name the files themselves, and join those that continue each other"
                )
    return _Folder(
        path=path,
        files=tuple(files),
        frame_shape=first.frame_shape,
        dtype=first.dtype,
        pixel_sides_nm=first.pixel_sides_nm,
        exposure_ms=first.exposure_ms,
        z_step_nm=first.z_step_nm,
    )


def _check_continues(part: _Part | _Folder, first: _Part | _Folder) -> None:
    if (part.frame_shape, part.dtype) != (first.frame_shape, first.dtype):
        raise ValueError(
            f"{part.path} does not continue {first.path}: its frames are {_describe(part)}, not "
            f"{_describe(first)}"
        )


def _open_part(path: Path, *, allow_truncated: bool) -> _Part:
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    with reading(path, "a TIFF file", "export the movie as TIFF"):
        tiff = tifffile.TiffFile(path)
    with ExitStack() as opened, reading(path, "a TIFF movie", "export it again"):
        opened.callback(tiff.close)
        try:
            first = tiff.pages.first
        except (tifffile.TiffFileError, IndexError) as error:
            raise ValueError(f"{path} holds no image") from error
        if first.samplesperpixel > 1 or first.photometric in COLOURS:
            raise ValueError(
                f"{path} is a colour image; save the camera's grey values as one channel"
            )
        if first.dtype is None or first.dtype.kind not in "uif":
            raise ValueError(f"{path} holds {first.dtype} pixels, not counts")

        part = _lay_out(path, tiff, np.dtype(first.dtype), allow_truncated=allow_truncated)
        part.open()  # tifffile leaves the other files of a series closed
        opened.pop_all()
        return part


def _lay_out(
    path: Path, tiff: tifffile.TiffFile, dtype: np.dtype[Any], *, allow_truncated: bool
) -> _Part:
    """Find the frames of a file, and how many of them are whole."""
    first = tiff.pages.first
    frame_shape = (first.imagelength, first.imagewidth)
    announced = _announced_shape(tiff)[-2:] or frame_shape
    if announced != frame_shape:
        listed, stored = (" x ".join(map(str, shape)) for shape in (announced, frame_shape))
        raise ValueError(
            f"{path} announces frames of {listed} pixels and holds images of {stored}; export it "
            "again"
        )
    if not all(isinstance(side, int) and side > 0 for side in frame_shape):
        raise ValueError("its frames have no size in whole pixels")
    declared = _declared_axes(tiff)
    n_bytes = math.prod(declared.values()) * first.nbytes
    if not (declared and first.is_final and first.dataoffsets[0] + n_bytes <= tiff.filehandle.size):
        _require_an_end(tiff)  # the list of pages is needed
    try:
        found = tiff.series
    except (tifffile.TiffFileError, IndexError):
        found = []
    series, block_offset, axes = None, None, {}
    if found:
        series, block_offset, axes = (
            found[0],
            found[0].dataoffset,
            _longer_axes(found[0].axes, found[0].shape),
        )
    if math.prod(declared.values()) > math.prod(axes.values()):
        series, block_offset, axes = None, None, declared
        if tiff.is_imagej and first.is_final:
            # the list of pages stands behind the pixels and is lost first, but ImageJ keeps the
            # pixels in one piece
            block_offset = first.dataoffsets[0]
    elif len(found) > 1:
        if not _is_one_after_another(tiff):
            kinds = sorted({f"{' x '.join(map(str, each.shape))} {each.dtype}" for each in found})
            raise ValueError(
                f"{path} holds {len(found)} series of images ({', '.join(kinds[:3])}); save the "
                "movie alone in a file"
            )
        # what the first call announced is a part
        series, block_offset, axes, declared = None, None, {"I": len(tiff.pages)}, {}
    if len(axes) > 1:
        listed = ", ".join(f"{name}: {length}" for name, length in axes.items())
        raise ValueError(
            f"{path} has more axes than frames, y and x ({listed}); save each movie in a file of "
            "its own"
        )

    if set(axes) == {"C"} and axes["C"] <= MOST_CHANNELS:
        raise ValueError(
            f"{path} holds {axes['C']} channels of one frame, which are no movie; save the channel "
            "to localize in as a "
            "file of its own, or declare channels to be frames (Image > Properties in ImageJ)"
        )

    n_frames = math.prod(axes.values())
    if block_offset is None:
        pages = _readable_pages(tiff if series is None else series)
        absent = [
            name for name in _ome_files(tiff) if None in pages and not (path.parent / name).exists()
        ]
        if absent:
            raise ValueError(
                f"{path} continues in {absent[0]}, which is missing; put all files of the series "
                "together"
            )
        n_whole = sum(1 for _ in takewhile(_is_whole, pages))
    else:
        frame_bytes = math.prod(frame_shape) * dtype.itemsize
        n_whole = min(n_frames, (tiff.filehandle.size - block_offset) // frame_bytes)
    if n_whole == 0:
        raise ValueError(
            f"{path} is cut short or damaged, without one whole frame; copy or export it again"
        )
    length_is_known = bool(declared) or _list_of_pages_ends(tiff)
    if not allow_truncated and (n_whole < n_frames or not length_is_known):
        raise ValueError(
            f"{path} is cut short: only {n_whole}{f' of {n_frames}' if length_is_known else ''} "
            "frames are whole; "
            "copy or export it again, or take those with --allow-truncated"
        )
    pixel_sides_nm, exposure_ms = _physical_facts(tiff)
    return _Part(
        path=path,
        tiff=tiff,
        series=series if block_offset is None else None,
        block_offset=block_offset,
        n_frames=n_whole,
        frame_shape=frame_shape,
        dtype=dtype.newbyteorder(tiff.byteorder),
        pixel_sides_nm=pixel_sides_nm,
        exposure_ms=exposure_ms,
        z_step_nm=_z_step_nm(tiff),
    )


def _is_one_after_another(tiff: tifffile.TiffFile) -> bool:
    """Whether a script wrote the file by `for frame in movie: writer.write(frame)`, which makes
    each a series."""
    kinds = {(series.kind, series.shape[-2:], series.dtype) for series in tiff.series}
    n_images = sum(math.prod(series.shape[:-2]) for series in tiff.series)
    has_all_pages = n_images == len(tiff.pages) or not _list_of_pages_ends(tiff)
    return tiff.is_shaped and len(kinds) == 1 and has_all_pages


def _longer_axes(axes: str, shape: Sequence[int]) -> dict[str, int]:
    """The axes besides y and x that are longer than 1."""
    return {
        name: length
        for name, length in zip(axes, shape, strict=True)
        if name not in "YX" and length > 1
    }


def _declared_axes(tiff: tifffile.TiffFile) -> dict[str, int]:
    """The axes as the program that wrote the file announced them in the first page; empty where
    it did not."""
    if tiff.is_micromanager:  # announces what was planned, not what was taken
        return {}
    if tiff.imagej_metadata is not None:
        names = {"T": "frames", "Z": "slices", "C": "channels"}
        lengths = [int(tiff.imagej_metadata.get(name, 1)) for name in names.values()]
        images = int(tiff.imagej_metadata.get("images", 1))
        return _longer_axes("TZC", lengths) or _longer_axes("I", [images])
    announced = _announced_shape(tiff)[:-2]
    return _longer_axes("Q" * len(announced), announced)


def _announced_shape(tiff: tifffile.TiffFile) -> tuple[int, ...]:
    """(..., y, x) of the array that tifffile was given, without a last axis of one colour; ()
    where it was not."""
    if not tiff.shaped_metadata:
        return ()
    shape = tuple(tiff.shaped_metadata[0]["shape"])
    return shape[:-1] if len(shape) > 3 and shape[-1] == 1 else shape


def _readable_pages(container: tifffile.TiffFile | tifffile.TiffPageSeries) -> list[_Page | None]:
    """The pages that are listed; none where the list itself is damaged."""
    try:
        return list(container.pages)
    except (tifffile.TiffFileError, IndexError):
        return []


def _is_whole(page: _Page | None) -> bool:
    """Whether all pixels of a page lie within its file, and could be what is stored there."""
    if page is None or page.keyframe is None or not page.dataoffsets:
        return False
    size = page.parent.filehandle.size
    segments = zip(page.dataoffsets, page.databytecounts, strict=True)
    stored, needed = (
        sum(page.databytecounts),
        math.prod(page.shape) * page.keyframe.bitspersample // 8,
    )
    if page.keyframe.compression != tifffile.COMPRESSION.NONE:
        needed = 0 if needed <= SMALL_FRAME else needed // MOST_COMPRESSION
    return needed <= stored and all(
        offset > 0 and count > 0 and offset + count <= size for offset, count in segments
    )


def _require_an_end(tiff: tifffile.TiffFile) -> None:
    """Fail where the list of pages leads back into itself: tifffile follows it until the memory is
    full.

    Raises:
        ValueError: if it does.
    """
    file, layout = tiff.filehandle, tiff.tiff
    offset, seen = int(tiff.pages.first.offset), set[int]()
    while offset:
        if offset in seen:
            raise ValueError("its list of pages leads back into itself")
        seen.add(offset)
        file.seek(offset)
        n_tags = int.from_bytes(file.read(layout.tagnosize), _order(tiff))
        file.seek(offset + layout.tagnosize + n_tags * layout.tagsize)
        offset = int.from_bytes(file.read(layout.offsetsize), _order(tiff))


def _order(tiff: tifffile.TiffFile) -> Literal["little", "big"]:
    return "little" if tiff.byteorder == "<" else "big"


def _list_of_pages_ends(tiff: tifffile.TiffFile) -> bool:
    """Whether the last page points to no other; in a file that was cut short it points beyond
    the end."""
    n_pages = len(tiff.pages)  # walks to the last one
    last = tiff.pages.next_page_offset
    if n_pages == 0 or last is None:
        return False
    tiff.filehandle.seek(last)
    pointer = tiff.filehandle.read(tiff.tiff.offsetsize)
    return len(pointer) == tiff.tiff.offsetsize and not any(pointer)


def _ome_files(tiff: tifffile.TiffFile) -> list[str]:
    """Names of the files that an OME series is spread over."""
    return sorted(set(re.findall(r'FileName="([^"]+)"', tiff.ome_metadata or "")))


def _side_of_square(sides_nm: tuple[float, float] | None) -> float | None:
    if sides_nm is None or max(sides_nm) > 1.01 * min(sides_nm):
        return None
    return sides_nm[0]


def _physical_facts(tiff: tifffile.TiffFile) -> tuple[tuple[float, float] | None, float | None]:
    """Sides (x, y) of a pixel in nm, and exposure in ms; None where the metadata say nothing
    that can be believed."""
    first = tiff.pages.first
    sides: list[float | None] = []
    exposure = None
    if MICRO_MANAGER_TAG in first.tags and isinstance(first.tags[MICRO_MANAGER_TAG].value, Mapping):
        facts = first.tags[MICRO_MANAGER_TAG].value
        sides = 2 * [_nm(facts.get("PixelSizeUm"), "um")]
        exposure = _positive(facts.get("Exposure-ms"))
    elif tiff.is_ome:
        image = _ome_element(tiff, "Pixels")
        sides = [
            _nm(image.get(f"PhysicalSize{axis}"), image.get(f"PhysicalSize{axis}Unit", "µm"))
            for axis in "XY"
        ]
        plane = _ome_element(tiff, "Plane")
        seconds = _positive(plane.get("ExposureTime"))
        scale = MS_PER.get(plane.get("ExposureTimeUnit", "s"))
        exposure = seconds * scale if seconds and scale else None
    elif tiff.imagej_metadata is not None and {"XResolution", "YResolution"} <= {
        tag.name for tag in first.tags
    }:
        # pixels per unit; without a unit the 1 pixel per pixel of an uncalibrated image
        unit = str(tiff.imagej_metadata.get("unit"))
        resolutions = (first.tags[f"{axis}Resolution"].value for axis in "XY")
        sides = [_nm(steps / max(pixels, 1), unit) for pixels, steps in resolutions]
    least, most = PIXEL_SIZES_NM
    credible = [side for side in sides if side is not None and least <= side <= most]
    return (credible[0], credible[1]) if len(credible) == 2 else None, exposure


def _z_step_nm(tiff: tifffile.TiffFile) -> float | None:
    """Distance of the planes in nm, None where the metadata say nothing that can be believed."""
    first = tiff.pages.first
    step = None
    if MICRO_MANAGER_TAG in first.tags and isinstance(first.tags[MICRO_MANAGER_TAG].value, Mapping):
        step = _nm(first.tags[MICRO_MANAGER_TAG].value.get("ZStepUm"), "um")
    elif tiff.is_ome:
        image = _ome_element(tiff, "Pixels")
        step = _nm(image.get("PhysicalSizeZ"), image.get("PhysicalSizeZUnit", "µm"))
    elif tiff.imagej_metadata is not None:
        facts = tiff.imagej_metadata
        step = _nm(facts.get("spacing"), str(facts.get("unit")))
    return step if step is not None and 1 <= step <= 1000 else None


def _ome_element(tiff: tifffile.TiffFile, name: str) -> Mapping[str, str]:
    """Attributes of the first element of that name; none where it is absent or the XML broken."""
    try:
        element = ElementTree.fromstring(tiff.ome_metadata or "").find(f".//{{*}}{name}")
    except ElementTree.ParseError:
        return {}
    return {} if element is None else element.attrib


def _nm(length: object, unit: str) -> float | None:
    number, scale = _positive(length), NM_PER.get(unit)
    return number * scale if number and scale else None


def _positive(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if 0 < number < math.inf else None


def _choose(frames: slice | None, n_frames: int, path: Path) -> range:
    """The frames a slice names."""
    if frames is None:
        return range(n_frames)
    if frames.step not in (None, 1):
        raise ValueError("frames must follow each other: give first and last without a step")
    chosen = range(*frames.indices(n_frames))
    if not chosen:
        asked = ":".join("" if end is None else str(end) for end in (frames.start, frames.stop))
        raise ValueError(f"frames {asked} choose nothing of the {n_frames} in {path}")
    return chosen


def _describe(part: _Part | _Folder) -> str:
    height, width = part.frame_shape
    return f"{height} x {width} {part.dtype.name}"


def in_natural_order(paths: Iterable[str | Path]) -> list[Path]:
    """The paths by their names, part 2 before part 10."""

    def key(path: Path) -> list[tuple[int, int | str]]:
        words = re.split(r"(\d+)", str(path))
        return [(0, int(word)) if word.isdigit() else (1, word) for word in words]

    return sorted(map(Path, paths), key=key)
