"""Movies: what is on disk is what is read, frame by frame, and a damaged file is refused in a
sentence."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from decode.io.movies import Selection, open_movie, write_movie
from decode.io.movies.tiff.pages import list_pages

Counts = npt.NDArray[np.uint16]


@pytest.fixture
def counts() -> Counts:
    """20 frames of 33 x 40 that differ everywhere."""
    return np.random.default_rng(2).integers(0, 60_000, (20, 33, 40), dtype=np.uint16)


def save_pages(path: Path, counts: Counts) -> None:
    """One page after the other, as microscopes write while they acquire."""
    with tifffile.TiffWriter(path) as tiff:
        for frame in counts:
            tiff.write(frame, contiguous=False, metadata=None)


def save_calls(path: Path, counts: Counts) -> None:
    """As scripts in Python do, frame by frame, or a few at a time."""
    with tifffile.TiffWriter(path) as tiff:
        for frame in counts[:10]:
            tiff.write(frame, contiguous=False)
        tiff.write(counts[10:], contiguous=False)


LAYOUTS: dict[str, dict[str, Any]] = {
    "imagej": {"imagej": True},
    "imagej slices": {"imagej": True, "metadata": {"axes": "ZYX"}},
    "imagej one page": {"imagej": True, "truncate": True},
    "big-endian": {"byteorder": ">"},
    "bigtiff": {"bigtiff": True},
    "plain": {"metadata": None},
    "ome": {"ome": True, "metadata": {"axes": "TYX"}},
    "deflate": {"compression": "zlib"},
    "ome deflate": {"ome": True, "metadata": {"axes": "TYX"}, "compression": "zlib"},
    "big-endian deflate": {"byteorder": ">", "compression": "zlib"},
    "strips": {"metadata": None, "rowsperstrip": 7},
    "pages": {},
    "calls": {},
}


def save(path: Path, counts: Counts, layout: str) -> Path:
    if layout == "pages":
        save_pages(path, counts)
    elif layout == "calls":
        save_calls(path, counts)
    else:
        tifffile.imwrite(path, counts, **LAYOUTS[layout])
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_back_the_same_frames(
    tmp_path: Path, counts: Counts, layout: str
) -> None:
    with open_movie(save(tmp_path / "movie.tif", counts, layout)) as movie:
        assert movie.shape == counts.shape
        assert len(movie) == 20
        assert movie.dtype == np.uint16
        assert movie.path == tmp_path / "movie.tif"
        np.testing.assert_array_equal(movie.read(0, 20), counts)
        np.testing.assert_array_equal(movie.read(7, 9), counts[7:9])
        assert movie.read(5, 5).shape == (0, 33, 40)
        chunk = movie.read(3, 4)
        chunk[:] = 0  # the caller's own
        np.testing.assert_array_equal(movie.read(3, 4), counts[3:4])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("share", [0.97, 0.6, 0.1])
def test_a_truncated_file_is_refused_and_never_read_wrong(
    tmp_path: Path, counts: Counts, layout: str, share: float
) -> None:
    path = save(tmp_path / "movie.tif", counts, layout)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    if share < 0.9:  # at 0.97 some layouts lose nothing but the list of pages
        with pytest.raises(ValueError, match="cut short"):
            open_movie(path)
    try:
        movie = open_movie(path, allow_truncated=True)
    except ValueError as error:
        # where the pixels are lost with the list of pages, even what is left cannot be had
        assert "without one whole frame; copy or export it again" in str(error)  # noqa: PT017
        return
    with movie:
        assert 1 <= len(movie) <= 20
        np.testing.assert_array_equal(movie.read(0, len(movie)), counts[: len(movie)])


@pytest.mark.parametrize(
    ("layout", "n_whole"), [("imagej", 12), ("imagej one page", 11), ("pages", 11)]
)
def test_allow_truncated_takes_all_whole_frames(
    tmp_path: Path, counts: Counts, layout: str, n_whole: int
) -> None:
    path = save(tmp_path / "movie.tif", counts, layout)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.6)])
    with pytest.raises(ValueError, match=f"only {n_whole}.* frames are whole.*--allow-truncated"):
        open_movie(path)
    with open_movie(path, allow_truncated=True) as movie:
        assert len(movie) == n_whole


@pytest.mark.parametrize("dialect", ["shaped", "imagej", "bigtiff"])
def test_a_file_that_was_not_closed_has_all_its_frames(
    tmp_path: Path, counts: Counts, dialect: str
) -> None:
    path = tmp_path / "movie.tif"
    writer = tifffile.TiffWriter(path, imagej=dialect == "imagej", bigtiff=dialect == "bigtiff")
    for frame in counts:
        writer.write(frame, contiguous=True)
    writer._fh.flush()
    with pytest.raises(ValueError, match=f"only {len(counts)} frames are whole"):
        open_movie(path)
    with open_movie(path, allow_truncated=True) as movie:
        np.testing.assert_array_equal(movie.read(0, len(movie)), counts)
    writer.close()
    with open_movie(path) as movie:
        np.testing.assert_array_equal(movie.read(0, len(movie)), counts)


def test_a_folder_takes_no_last_file_that_is_cut_short(tmp_path: Path, counts: Counts) -> None:
    for i, frame in enumerate(counts[:4]):
        tifffile.imwrite(tmp_path / f"{i}.tif", frame)
    last = tmp_path / "3.tif"
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"3\.tif"):
        open_movie(tmp_path)
    with open_movie(tmp_path, allow_truncated=True) as movie:
        np.testing.assert_array_equal(movie.read(0, len(movie)), counts[:3])


def test_one_page_of_more_than_4_gb(tmp_path: Path) -> None:
    path = tmp_path / "large.tif"
    with pytest.warns(UserWarning, match="truncating ImageJ file"):
        mapped = tifffile.memmap(
            path, shape=(34_000, 256, 256), dtype=np.uint16, imagej=True
        )  # sparse on disk
    mapped[33_999, 5, 6] = 77
    mapped.flush()
    del mapped
    with open_movie(path) as movie:
        assert movie.shape == (34_000, 256, 256)
        last = movie.read(33_999, 34_000)
    assert last.sum() == last[0, 5, 6] == 77


def test_parts_are_joined_in_natural_order(tmp_path: Path, counts: Counts) -> None:
    parts = [
        save(tmp_path / "movie_2.tif", counts[:8], "imagej"),
        save(tmp_path / "movie_10.tif", counts[8:], "deflate"),
    ]
    with open_movie(parts[::-1]) as movie:
        assert movie.path == parts[0]
        np.testing.assert_array_equal(movie.read(0, 20), counts)
        np.testing.assert_array_equal(movie.read(7, 10), counts[7:10])
    other = save(tmp_path / "movie_11.tif", counts[:, :20], "imagej")
    with pytest.raises(
        ValueError, match=r"movie_11.tif does not continue .*movie_2.tif: .* 20 x 40 .* 33 x 40"
    ):
        open_movie([*parts, other])


def save_folder(folder: Path, counts: Counts) -> Path:
    """A file a frame, numbered without leading zeros."""
    folder.mkdir()
    for number, frame in enumerate(counts):
        tifffile.imwrite(
            folder / f"frame_{number}.tif",
            frame,
            imagej=True,
            resolution=(10, 10),
            metadata={"unit": "um"},
        )
    (folder / "notes.txt").write_text("no frame")
    return folder


def test_a_folder_of_one_file_a_frame_is_a_movie(tmp_path: Path, counts: Counts) -> None:
    folder = save_folder(tmp_path / "movie", counts)
    with open_movie(folder) as movie:
        assert movie.path == folder
        assert movie.shape == counts.shape
        assert movie.pixel_size_nm == pytest.approx(100)
        np.testing.assert_array_equal(movie.read(0, 20), counts)
        np.testing.assert_array_equal(movie.read(9, 11), counts[9:11])
    with open_movie(folder, frames=slice(3, 5)) as movie:
        np.testing.assert_array_equal(movie.read(0, 2), counts[3:5])


def test_a_folder_that_is_no_movie_is_refused(tmp_path: Path, counts: Counts) -> None:
    folder = save_folder(tmp_path / "movie", counts)
    (folder / "frame_7.tif").write_bytes((folder / "frame_7.tif").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"frame_7.tif is cut short"):
        open_movie(folder)
    tifffile.imwrite(folder / "frame_7.tif", counts[7, :20])
    with pytest.raises(
        ValueError, match=r"frame_7.tif does not continue .*frame_0.tif: .* 20 x 40"
    ):
        open_movie(folder)
    tifffile.imwrite(folder / "frame_7.tif", counts[7:9])
    with pytest.raises(ValueError, match=r"frame_7.tif holds 2 frames, .* each file is one frame"):
        open_movie(folder)


def test_a_folder_that_changes_while_it_is_read_is_said_to(tmp_path: Path, counts: Counts) -> None:
    folder = save_folder(tmp_path / "movie", counts)
    with open_movie(folder) as movie:
        (folder / "frame_7.tif").unlink()
        with pytest.raises(FileNotFoundError, match=r"there is no file .*frame_7.tif"):
            movie.read(0, 20)


def test_a_last_axis_of_one_colour_is_none(tmp_path: Path, counts: Counts) -> None:
    tifffile.imwrite(tmp_path / "movie.tif", counts[..., None], photometric="minisblack")
    with open_movie(tmp_path / "movie.tif") as movie:
        np.testing.assert_array_equal(movie.read(0, 20), counts)


def test_frames_that_are_stored_as_rows_are_not_called_cut_short(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "movie.tif", np.ones((9, 1, 1), np.uint16), metadata={"axes": "TYX"}
    )
    with pytest.raises(
        ValueError, match="announces frames of 1 x 1 pixels and holds images of 9 x 1; export"
    ):
        open_movie(tmp_path / "movie.tif")


def test_a_codec_that_is_missing_is_named(tmp_path: Path, counts: Counts) -> None:
    for codec, number in (("lzw", 5), ("zstd", 50000)):
        # no more than said to be compressed: where the codec is missing nothing can write it either
        tifffile.imwrite(tmp_path / f"{codec}.tif", counts)
        with tifffile.TiffFile(tmp_path / f"{codec}.tif", mode="r+") as tiff:
            for page in tiff.pages:
                page.tags["Compression"].overwrite(number)
        script = (
            "import sys; sys.modules['imagecodecs'] = None\n"
            "from decode import open_movie\n"
            f"try: open_movie({str(tmp_path / f'{codec}.tif')!r})\n"
            "except ValueError as error: print(error)"
        )
        said = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout
        assert re.search(r"cannot be decoded .* pip install 'decode-smlm\[io\]'", said)


def test_images_of_different_size_are_no_movie(tmp_path: Path, counts: Counts) -> None:
    with tifffile.TiffWriter(tmp_path / "preview.tif") as tiff:
        tiff.write(counts[0, ::4, ::4])
        for frame in counts:
            tiff.write(frame, contiguous=False)
    with pytest.raises(ValueError, match=r"21 series of images \(33 x 40 uint16, 9 x 10 uint16\)"):
        open_movie(tmp_path / "preview.tif")


def save_ome_series(folder: Path, counts: Counts) -> list[Path]:
    """One OME series in two files of ten frames."""
    paths = [folder / f"series_{i}.ome.tif" for i in (0, 1)]
    names = [f"urn:uuid:00000000-0000-0000-0000-00000000000{i}" for i in (1, 2)]
    where = "".join(
        f'<TiffData FirstT="{10 * i}" IFD="0" PlaneCount="10">'
        f'<UUID FileName="{path.name}">{name}</UUID></TiffData>'
        for i, (path, name) in enumerate(zip(paths, names, strict=True))
    )
    for i, (path, name) in enumerate(zip(paths, names, strict=True)):
        description = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{name}">'
            '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" '
            'SizeX="40" SizeY="33" SizeC="1" SizeZ="1" SizeT="20" '
            'PhysicalSizeX="0.11" PhysicalSizeY="110" PhysicalSizeYUnit="nm">'
            f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{where}'
            '<Plane TheC="0" TheZ="0" TheT="0" ExposureTime="0.02"/></Pixels></Image></OME>'
        )
        tifffile.imwrite(
            path, counts[10 * i : 10 * i + 10], metadata=None, ome=False, description=description
        )
    return paths


def test_an_ome_series_of_files_is_one_movie(tmp_path: Path, counts: Counts) -> None:
    first, second = save_ome_series(tmp_path, counts)
    for chosen in (first, second, [second, first], tmp_path):
        with open_movie(chosen) as movie:
            assert len(movie) == 20
            assert movie.pixel_size_nm == pytest.approx(110)
            assert movie.exposure_ms == pytest.approx(20)
            np.testing.assert_array_equal(movie.read(8, 13), counts[8:13])


def test_an_ome_series_with_a_missing_part_is_refused(tmp_path: Path, counts: Counts) -> None:
    first, second = save_ome_series(tmp_path, counts)
    second.unlink()
    with pytest.raises(ValueError, match=r"series_1.ome.tif, which is missing"):
        open_movie(first)


def test_frames_choose_a_part(tmp_path: Path, counts: Counts) -> None:
    path = save(tmp_path / "movie.tif", counts, "pages")
    with open_movie(path, frames=slice(5, -2)) as movie:
        assert movie.frames == range(5, 18)
        np.testing.assert_array_equal(movie.read(0, 13), counts[5:18])
        for start, stop in ((0, 14), (-1, 3), (4, 3)):
            with pytest.raises(IndexError, match="not within the 13 frames"):
                movie.read(start, stop)
    with pytest.raises(ValueError, match=r"frames 30:40 select none of the 20"):
        open_movie(path, frames=slice(30, 40))
    with pytest.raises(ValueError, match="without a step"):
        open_movie(path, frames=slice(0, 10, 2))


def test_an_image_is_a_movie_of_one_frame(tmp_path: Path, counts: Counts) -> None:
    tifffile.imwrite(tmp_path / "image.tif", counts[0])
    with open_movie(tmp_path / "image.tif") as movie:
        assert movie.shape == (1, 33, 40)
        np.testing.assert_array_equal(movie.read(0, 1)[0], counts[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_frames_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    frames = np.random.default_rng(3).random((6, 8, 9), dtype=np.float32)
    frames[4, 3, 3] = value
    tifffile.imwrite(tmp_path / "movie.tif", frames)
    with open_movie(tmp_path / "movie.tif", frames=slice(2, None)) as movie:
        np.testing.assert_array_equal(movie.read(0, 2), frames[2:4])
        with pytest.raises(ValueError, match=r"frame 4 \(from 0\) holds NaN"):
            movie.read(1, 4)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint32, np.int32])
def test_counts_that_single_precision_does_not_tell_apart_are_refused(
    tmp_path: Path, dtype: type
) -> None:
    counts = np.full((5, 8, 9), 2**24, dtype)
    tifffile.imwrite(tmp_path / "bright.tif", counts, photometric="minisblack", metadata=None)
    with open_movie(tmp_path / "bright.tif") as movie:
        np.testing.assert_array_equal(movie.read(0, 5), counts)
    counts[1, 2, 2] = dtype(2**25)
    tifffile.imwrite(tmp_path / "huge.tif", counts, photometric="minisblack", metadata=None)
    with (
        open_movie(tmp_path / "huge.tif") as movie,
        pytest.raises(ValueError, match=r"frame 1 .*holds counts"),
    ):
        movie.read(0, 5)


def test_channels_are_no_frames(tmp_path: Path, counts: Counts) -> None:
    """But many images along an axis of channels are a movie whose axis was mislabelled."""
    for name, options in {"imagej.tif": {"imagej": True}, "data.ome.tif": {}}.items():
        tifffile.imwrite(tmp_path / name, counts[:3], metadata={"axes": "CYX"}, **options)
        with pytest.raises(ValueError, match=r"has 3 channels \(0 to 2\); choose by --channel"):
            open_movie(tmp_path / name)
        tifffile.imwrite(tmp_path / name, counts, metadata={"axes": "CYX"}, **options)
        with open_movie(tmp_path / name) as movie:
            assert movie.shape == counts.shape


@pytest.mark.parametrize("layout", ["plain", "pages", "deflate", "big-endian deflate", "bigtiff"])
def test_the_list_of_pages_is_that_of_tifffile(tmp_path: Path, counts: Counts, layout: str) -> None:
    with tifffile.TiffFile(save(tmp_path / "movie.tif", counts, layout)) as tiff:
        listed = list_pages(tiff)
        assert listed.ends
        assert listed.offsets is not None
        assert listed.sizes is not None
        assert listed.n_pages == len(tiff.pages) == len(counts)
        places = [(page.dataoffsets[0], page.databytecounts[0]) for page in tiff.pages]
        assert list(zip(listed.offsets, listed.sizes, strict=True)) == places


def test_pages_of_another_kind_among_those_of_a_movie_are_no_frames(
    tmp_path: Path, counts: Counts
) -> None:
    with tifffile.TiffWriter(tmp_path / "movie.tif") as tiff:
        for i, frame in enumerate(counts):
            packed = {"compression": "zlib"} if i == 7 else {}
            tiff.write(frame, contiguous=False, metadata=None, **packed)
    with tifffile.TiffFile(tmp_path / "movie.tif") as tiff:
        assert list_pages(tiff).offsets is None
    with pytest.raises(ValueError, match="holds 2 series of images"):
        open_movie(tmp_path / "movie.tif")


def test_positions_and_channels_of_a_tiff_are_chosen_by_name(
    tmp_path: Path, counts: Counts
) -> None:
    images = counts.reshape(2, 5, 2, 33, 40)
    with tifffile.TiffWriter(tmp_path / "positions.ome.tif") as tiff:
        for i, image in enumerate(images):
            named = {"axes": "TCYX", "Name": f"Pos{i}", "Channel": {"Name": ["561", "647"]}}
            tiff.write(image, photometric="minisblack", metadata=named)
    with pytest.raises(ValueError, match=r"2 positions \(0: Pos0, 1: Pos1\); choose by --position"):
        open_movie(tmp_path / "positions.ome.tif")
    with pytest.raises(ValueError, match=r"2 channels \(0: 561, 1: 647\); choose by --channel"):
        open_movie(tmp_path / "positions.ome.tif", selection=Selection(position="Pos1"))
    for packed in (None, "zlib"):
        hyperstack = tmp_path / f"{packed}.tif"
        options: dict[str, Any] = {"compression": packed} if packed else {}
        tifffile.imwrite(hyperstack, images[1], imagej=True, metadata={"axes": "TCYX"}, **options)
        with open_movie(hyperstack, selection=Selection(channel=1)) as movie:
            np.testing.assert_array_equal(movie.read(0, 5), images[1, :, 1])
            np.testing.assert_array_equal(movie.read(3, 4), images[1, 3:4, 1])
    chosen = Selection(position="Pos1", channel="647")
    with open_movie(tmp_path / "positions.ome.tif", selection=chosen) as movie:
        np.testing.assert_array_equal(movie.read(0, 5), images[1, :, 1])
    with pytest.raises(ValueError, match=r"has no position 2, but 2 positions"):
        open_movie(tmp_path / "positions.ome.tif", selection=Selection(position=2))
    with pytest.raises(ValueError, match=r"has no channel GFP, but 1 channel \(0\)"):
        open_movie(save(tmp_path / "a.tif", counts, "imagej"), selection=Selection(channel="GFP"))


def test_what_is_no_movie_is_refused(tmp_path: Path) -> None:
    def refuse(name: str, data: npt.NDArray[Any], match: str, **options: Any) -> None:
        tifffile.imwrite(tmp_path / name, data, **options)
        with pytest.raises(ValueError, match=match):
            open_movie(tmp_path / name)

    refuse("rgb.tif", np.zeros((5, 8, 9, 3), np.uint8), "colour image", photometric="rgb")
    refuse(
        "planes.tif",
        np.zeros((5, 3, 8, 9), np.uint8),
        "colour",
        photometric="rgb",
        planarconfig="separate",
    )
    refuse(
        "hyper.tif",
        np.zeros((5, 4, 8, 9), np.uint16),
        r"has 4 z planes \(0 to 3\); choose by --z",
        imagej=True,
        metadata={"axes": "TZYX"},
    )
    refuse("mask.tif", np.zeros((5, 8, 9), bool), "holds bool")
    with tifffile.TiffWriter(tmp_path / "mixed.tif") as tiff:
        tiff.write(np.zeros((8, 9), np.uint16))
        tiff.write(np.zeros((4, 9), np.uint16))
    with pytest.raises(ValueError, match=r"2 series of images \(4 x 9 uint16, 8 x 9 uint16\)"):
        open_movie(tmp_path / "mixed.tif")
    (tmp_path / "empty.tif").touch()
    with pytest.raises(ValueError, match="is empty"):
        open_movie(tmp_path / "empty.tif")
    (tmp_path / "notes.tif").write_text("no movie at all")
    with pytest.raises(ValueError, match="is not a TIFF file"):
        open_movie(tmp_path / "notes.tif")
    (tmp_path / "notes.doc").write_text("no movie at all")
    with pytest.raises(ValueError, match=r"movies are read from .*; export it as one of them"):
        open_movie(tmp_path / "notes.doc")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent.tif"):
        open_movie(tmp_path / "absent.tif")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="is a folder without TIFF files"):
        open_movie(tmp_path / "folder")
    with pytest.raises(ValueError, match="no movie was given"):
        open_movie([])


def test_a_broken_page_is_named(tmp_path: Path, counts: Counts) -> None:
    path = save(tmp_path / "movie.tif", counts, "deflate")
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[9].dataoffsets[0]
    content = bytearray(path.read_bytes())
    content[offset : offset + 50] = bytes(50)
    path.write_bytes(content)
    with open_movie(path) as movie:
        movie.read(0, 9)
        with pytest.raises(ValueError, match=r"frame 9 cannot be decoded"):
            movie.read(9, 10)


@pytest.mark.parametrize(
    ("unit", "pixels_per_unit", "expected"),
    [
        ("um", 10, 100.0),
        ("micron", 1 / 0.16, 160.0),
        ("nm", 0.01, 100.0),
        ("pixel", 1, None),
        (None, 10, None),
        ("inch", 72, None),
        ("um", 1e-3, None),
    ],
)
def test_only_a_credible_pixel_size_is_believed(
    tmp_path: Path, unit: str | None, pixels_per_unit: float, expected: float | None
) -> None:
    metadata = {"axes": "TYX"} | ({"unit": unit} if unit else {})
    resolution = (pixels_per_unit, pixels_per_unit)
    frames = np.zeros((2, 8, 9), np.uint16)
    tifffile.imwrite(
        tmp_path / "movie.tif", frames, imagej=True, resolution=resolution, metadata=metadata
    )
    with open_movie(tmp_path / "movie.tif") as movie:
        assert movie.pixel_size_nm == (
            None if expected is None else pytest.approx(expected, rel=1e-4)
        )
        assert movie.exposure_ms is None


def test_micro_manager_facts_are_read(tmp_path: Path) -> None:
    facts = '{"PixelSizeUm": 0.107, "Exposure-ms": 30}'
    tags = [(51123, "s", 0, facts, True)]
    tifffile.imwrite(
        tmp_path / "movie.tif", np.zeros((2, 8, 9), np.uint16), metadata=None, extratags=tags
    )
    with open_movie(tmp_path / "movie.tif") as movie:
        assert movie.pixel_size_nm == pytest.approx(107)
        assert movie.exposure_ms == 30


@pytest.mark.parametrize(
    ("frames", "dtype"),
    [
        (np.arange(24.0).reshape(2, 3, 4), np.uint16),
        (np.arange(24).reshape(2, 3, 4) - 1, np.float32),
        (np.arange(24).reshape(2, 3, 4) * 5000, np.float32),
        (np.arange(24).reshape(2, 3, 4) / 2, np.float32),
    ],
)
def test_written_movies_read_back(tmp_path: Path, frames: npt.NDArray[Any], dtype: type) -> None:
    write_movie(tmp_path / "movie.tif", frames, pixel_size_nm=123)
    with tifffile.TiffFile(tmp_path / "movie.tif") as tiff:
        assert tiff.is_imagej
    with open_movie(tmp_path / "movie.tif") as movie:
        assert movie.dtype == dtype
        assert movie.pixel_size_nm == pytest.approx(123, rel=1e-4)
        np.testing.assert_array_equal(movie.read(0, 2), frames)
    assert [file.name for file in tmp_path.iterdir()] == ["movie.tif"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tifffile, "imwrite", full)
    with pytest.raises(OSError, match="the disk is full"):
        write_movie(tmp_path / "movie.tif", np.zeros((2, 3, 4)))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist"):
        write_movie(tmp_path / "absent" / "movie.tif", np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match=r"\(frame, y, x\)"):
        write_movie(tmp_path / "movie.tif", np.zeros((3, 4)))


def test_movies_of_microscopes_open(shared_data: Path) -> None:
    shapes = {}
    for path in sorted(shared_data.glob("*/*.tif")):
        with open_movie(path) as movie, tifffile.TiffFile(path) as tiff:
            reference = tiff.asarray().reshape(movie.shape)
            np.testing.assert_array_equal(movie.read(0, len(movie)), reference)
            shapes[f"{path.parent.name}/{path.name}"] = movie.shape
    assert shapes["storm_scmos_real/frames.tif"] == (11, 256, 256)
    assert shapes["sim_2d/beads.tif"] == (81, 128, 128)


def test_a_movie_without_some_frames_reads_as_if_they_had_never_been(tmp_path: Path) -> None:
    frames = np.random.default_rng(5).integers(0, 1000, (12, 5, 7)).astype(np.uint16)
    write_movie(tmp_path / "movie.tif", frames)
    with open_movie(tmp_path / "movie.tif", frames=slice(1, 12)) as movie:
        rest = movie.without([0, 4, 5]).without({7})
        expected = np.delete(np.delete(frames[1:], [0, 4, 5], 0), 7, 0)
        assert rest.shape == expected.shape
        for start, stop in ((0, 7), (2, 5), (3, 3)):
            np.testing.assert_array_equal(rest.read(start, stop), expected[start:stop])
        with pytest.raises(IndexError):
            rest.read(0, 8)
        with pytest.raises(ValueError, match="no frame is left"):
            movie.without(range(11))


def test_a_list_of_pages_that_leads_back_into_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "movie.tif"
    tifffile.imwrite(path, np.ones((3, 5, 6), np.uint16), photometric="minisblack", metadata=None)
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        last = tiff.pages[-1].offset
    n_tags = int.from_bytes(content[last : last + 2], "little")
    end = last + 2 + 12 * n_tags
    content[end : end + 4] = content[4:8]
    path.write_bytes(content)
    with pytest.raises(ValueError, match="its list of pages leads back into itself"):
        open_movie(path)


def test_colours_are_refused_whether_in_pixels_or_in_a_palette(tmp_path: Path) -> None:
    palette = np.zeros((3, 256), np.uint16)
    image = np.ones((5, 6), np.uint8)
    tifffile.imwrite(tmp_path / "palette.tif", image, photometric="palette", colormap=palette)
    tifffile.imwrite(tmp_path / "rgb.tif", np.ones((5, 6, 3), np.uint8), photometric="rgb")
    for name in ("palette.tif", "rgb.tif"):
        with pytest.raises(ValueError, match="colour image"):
            open_movie(tmp_path / name)
