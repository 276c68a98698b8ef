"""Movies as microscopes write them: the same frames as the TIFF, whatever the format."""

from __future__ import annotations

import io
import runpy
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from decode.io.movies import RawLayout, Selection, movie_formats, open_movie

WRITTEN = runpy.run_path(str(Path(__file__).with_name("microscopes.py")))
WRITERS, SEVERAL, LIBRARIES = (WRITTEN[name] for name in ("WRITERS", "SEVERAL", "LIBRARIES"))
STATE_PIXELS = {"ome-tiff", "ndtiff", "zarr", "zarr-2", "ims", "czi", "czi-zstd", "lif", "picasso"}
STATE_EXPOSURE = {
    "ome-tiff",
    "ndtiff",
    "czi",
    "czi-zstd",
    "spe",
    "spe-3",
    "sif",
    "picasso",
}

NAME_CAMERAS = {"ndtiff": "Andor", "picasso": "Andor", "sif": "DU897_BV"}
STEPS_NM = {"zarr": 50, "zarr-2": 50, "ims": 50, "lif": 110}

Counts = npt.NDArray[np.uint16]


def write(name: str, folder: Path, counts: Counts) -> Path:
    if name in LIBRARIES:
        pytest.importorskip(LIBRARIES[name])
    path: Path = WRITERS[name](folder, counts)
    return path


@pytest.fixture
def counts() -> Counts:
    """(time, channel, z, y, x) 9 x 2 x 3 of 33 x 40, which differ everywhere."""
    return np.random.default_rng(2).integers(0, 60_000, (9, 2, 3, 33, 40), dtype=np.uint16)


@pytest.mark.parametrize("name", WRITERS)
def test_frames_come_back_as_they_were_written_with_the_facts_stated(
    name: str, tmp_path: Path, counts: Counts
) -> None:
    frames, printed = counts[:, 0, 0], io.StringIO()
    path = write(name, tmp_path, counts[:, :1, :1])
    with redirect_stdout(printed), open_movie(path) as movie:
        assert movie.shape == frames.shape
        np.testing.assert_array_equal(movie.read(0, 9), frames)
        np.testing.assert_array_equal(movie.read(4, 6), frames[4:6])
        assert movie.read(3, 3).shape == (0, 33, 40)
        assert movie.pixel_size_nm == (pytest.approx(110) if name in STATE_PIXELS else None)
        assert movie.z_step_nm is None
        assert movie.exposure_ms == (pytest.approx(30) if name in STATE_EXPOSURE else None)
    with open_movie(path, frames=slice(5, 8)) as movie:
        np.testing.assert_array_equal(movie.read(0, 3), frames[5:8])
        assert movie.camera_name == NAME_CAMERAS.get(name)
    assert printed.getvalue() == ""


@pytest.mark.parametrize("name", SEVERAL)
def test_a_channel_and_a_plane_are_chosen_never_guessed(
    name: str, tmp_path: Path, counts: Counts
) -> None:
    path = write(name, tmp_path, counts)
    with pytest.raises(ValueError, match=r"2 channels.*choose by .*--channel") as refused:
        open_movie(path)
    assert "3 z planes (0 to 2)" in str(refused.value)
    named = "0: 561, 1: 647" in str(refused.value)
    assert named or name == "lif"  # which names no channels
    with pytest.raises(ValueError, match="has no channel GFP, but 2 channels"):
        open_movie(path, selection=Selection(channel="GFP", z=0))
    for channel in ("647", 1) if named else (1,):
        with open_movie(path, selection=Selection(channel=channel, z="2")) as movie:
            np.testing.assert_array_equal(movie.read(0, 9), counts[:, 1, 2])
            np.testing.assert_array_equal(movie.read(7, 8), counts[7:8, 1, 2])


@pytest.mark.parametrize("name", SEVERAL)
def test_a_stack_of_one_time_is_a_movie_along_z(name: str, tmp_path: Path, counts: Counts) -> None:
    path = write(name, tmp_path, counts[:1, :1])
    with open_movie(path) as movie:
        np.testing.assert_array_equal(movie.read(0, 3), counts[0, 0])
        assert movie.z_step_nm == (pytest.approx(STEPS_NM[name]) if name in STEPS_NM else None)


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_was_cut_short_is_refused_in_a_sentence(
    name: str, tmp_path: Path, counts: Counts
) -> None:
    path = write(name, tmp_path, counts[:, :1, :1])
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    files = [file for file in files if file.is_file() and file.suffix not in (".index", ".json")]
    for file in files[-1:]:
        file.write_bytes(file.read_bytes()[: file.stat().st_size * 6 // 10])
    with pytest.raises(ValueError, match=f"{path.stem}") as refused, open_movie(path) as movie:
        movie.read(0, len(movie))
    message = str(refused.value)
    assert "\n" not in message
    assert any(word in message for word in ("cut short", "copy", "export"))


@pytest.mark.parametrize("name", ["spe", "sif", "dax", "picasso", "ndtiff", "lif"])
def test_the_whole_frames_of_what_was_cut_short_may_be_taken(
    name: str, tmp_path: Path, counts: Counts
) -> None:
    path = write(name, tmp_path, counts[:, :1, :1])
    file = next(path.glob("*.tif")) if path.is_dir() else path
    file.write_bytes(file.read_bytes()[: -3 * 33 * 40 * 2])
    with open_movie(path, allow_truncated=True) as movie:
        assert 5 <= len(movie) < 9
        np.testing.assert_array_equal(movie.read(0, len(movie)), counts[: len(movie), 0, 0])


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("shards", [None, (3, 40, 40)])
def test_blocks_of_zarr_that_are_missing_are_no_counts(
    version: int, shards: tuple[int, ...] | None, tmp_path: Path, counts: Counts
) -> None:
    zarr = pytest.importorskip("zarr")
    if version == 2 and shards:
        pytest.skip("version 2 has no shards")
    frames, path = counts[:, 0, 0], tmp_path / "movie.zarr"
    blocks = {"chunks": (3, 20, 20) if shards else (3, 20, 40), "shards": shards}
    zarr.create_array(str(path), data=frames, zarr_format=version, fill_value=0, **blocks)
    files = sorted(f for f in path.rglob("*") if f.is_file() and not f.name.startswith((".", "z")))
    by_time = [files[i : i + len(files) // 3] for i in range(0, len(files), len(files) // 3)]
    with open_movie(path) as movie:
        np.testing.assert_array_equal(movie.read(0, 9), frames)
        if not shards:
            kept = by_time[1][0].read_bytes()
            by_time[1][0].unlink()
            np.testing.assert_array_equal(movie.read(0, 3), frames[:3])
            with pytest.raises(ValueError, match=r"a block of some frames, is missing; copy"):
                movie.read(0, 9)
            by_time[1][0].write_bytes(kept)
    for file in by_time[1]:  # what is nothing but the fill value is not written
        file.unlink()
    with open_movie(path) as movie:
        assert not movie.read(3, 6).any()
    for file in by_time[2]:  # a copy that ended early
        file.unlink()
    with pytest.raises(ValueError, match=r"movie\.zarr.*cut short"):
        open_movie(path)
    with open_movie(path, allow_truncated=True) as movie:
        np.testing.assert_array_equal(movie.read(0, len(movie)), frames[:3])


def test_a_binary_file_is_read_by_the_layout_that_is_stated(tmp_path: Path, counts: Counts) -> None:
    frames = counts[:, 0, 0]
    path = tmp_path / "movie.bin"
    path.write_bytes(b"x" * 12 + frames.astype(">u2").tobytes())
    with pytest.raises(ValueError, match="movies are read from"):
        open_movie(path)
    layout = RawLayout(frame_shape=(33, 40), dtype=">u2", first_byte=12)
    with open_movie(path, selection=Selection(raw=layout)) as movie:
        np.testing.assert_array_equal(movie.read(0, 9), frames)
    with pytest.raises(ValueError, match="12 bytes more: its frames have another size, or it is"):
        open_movie(path, selection=Selection(raw=replace(layout, first_byte=0)))
    with pytest.raises(ValueError, match="NumPy knows no such type"):
        RawLayout(frame_shape=(33, 40), dtype="u17")
    described = write("dax", tmp_path, counts)
    with pytest.raises(ValueError, match="states its layout itself; leave out --raw-shape"):
        open_movie(described, selection=Selection(raw=layout))


def test_parts_in_other_formats_are_one_movie(tmp_path: Path, counts: Counts) -> None:
    parts = []
    for i, name in enumerate(("spe", "dax", "czi")):
        (tmp_path / f"part{i}").mkdir()
        parts.append(write(name, tmp_path / f"part{i}", counts[3 * i : 3 * i + 3, :1, :1]))
    with open_movie(parts) as movie:
        np.testing.assert_array_equal(movie.read(0, 9), counts[:, 0, 0])


def test_frames_that_are_skipped_leave_gaps_in_the_numbers(tmp_path: Path, counts: Counts) -> None:
    frames = counts[:, 0, 0]
    path = write("spe", tmp_path, counts)
    with open_movie(path, selection=Selection(skip="0::4, 6")) as movie:
        assert movie.numbers.tolist() == [1, 2, 3, 5, 7]
        np.testing.assert_array_equal(movie.read(1, 5), frames[[2, 3, 5, 7]])
        assert len(movie.whole) == 5
    with open_movie(path, frames=slice(3, 8), selection=Selection(skip="0::4,6")) as movie:
        assert movie.numbers.tolist() == [3, 5, 7]
        np.testing.assert_array_equal(movie.read(0, 3), frames[[3, 5, 7]])
        np.testing.assert_array_equal(movie.whole.read(0, 5), frames[[1, 2, 3, 5, 7]])
    with pytest.raises(ValueError, match="all of the frames 4:5 are left out"):
        open_movie(path, frames=slice(4, 5), selection=Selection(skip="0::4"))
    with pytest.raises(ValueError, match="no frame is left"):
        open_movie(path, selection=Selection(skip=":"))
    for wrong in ("a", "0::0", "-3", "1:2:3:4"):
        with pytest.raises(ValueError, match="write FIRST:LAST:STEP"):
            open_movie(path, selection=Selection(skip=wrong))


@pytest.mark.parametrize(("name", "library"), LIBRARIES.items())
def test_a_library_that_is_missing_is_named_with_the_command_that_installs_it(
    name: str, library: str, tmp_path: Path, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(name, tmp_path, counts[:, :1, :1])
    for module in [name for name in sys.modules if name.startswith(f"{library}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    package = library.replace("_", "-")
    expected = rf"install the package {package}: pip install 'decode-smlm\[io\]'"
    with pytest.raises(ValueError, match=expected):
        open_movie(path)


def test_formats_have_names_of_their_own_and_are_known_by_their_content(
    tmp_path: Path, counts: Counts
) -> None:
    names = [each.name for each in movie_formats()]
    assert len({*names}) == len(names)
    for name in WRITERS:
        (tmp_path / name).mkdir()
        path = write(name, tmp_path / name, counts[:, :1, :1])
        able = [each.name for each in movie_formats() if each.recognizes(path) and not each.general]
        assert len(able) == (name != "ome-tiff"), name


def test_real_files_of_microscopes_open(shared_data: Path) -> None:
    formats = shared_data / "formats"
    if not formats.is_dir():
        pytest.skip("there are no real files of microscopes")
    shapes = {
        "cluster.nd2": (3, 31, 38),
        "ndtiff_12bit": (4, 64, 64),
        "ndtiff_3.0": (5, 32, 32),
        "t3_z5_c2.czi": (3, 170, 240),
        "t3_z6_zstd.czi": (3, 200, 300),
        "image.sif": (1, 512, 512),
        "spestack_test.spe": (5, 128, 128),
        "test_300x200_dh.dax": (5, 200, 300),
        "test_low_snr.dax": (2, 300, 400),
    }
    several = {"cluster.nd2": 3, "t3_z5_c2.czi": 4, "t3_z6_zstd.czi": 1}
    for name, shape in shapes.items():
        both = name in ("cluster.nd2", "t3_z5_c2.czi")
        channel = 1 if both or name.startswith("ndtiff") else None
        with open_movie(
            formats / name, selection=Selection(channel=channel, z=several.get(name))
        ) as movie:
            assert movie.shape == shape
            frames = movie.read(0, len(movie)).astype(float)
        # images, not noise: neighbours of the first frame are alike, but for a simulated detector
        steps = np.abs(np.diff(frames[0])).mean()
        shuffled = np.random.default_rng(0).permutation(frames[0])
        assert name == "cluster.nd2" or steps <= np.abs(np.diff(shuffled, axis=0)).mean()


def test_real_files_have_the_frames_that_their_own_library_reads(shared_data: Path) -> None:
    nd2, ndstorage = pytest.importorskip("nd2"), pytest.importorskip("ndstorage")
    formats = shared_data / "formats"
    if not formats.is_dir():
        pytest.skip("there are no real files of microscopes")
    path = formats / "cluster.nd2"
    with nd2.ND2File(path) as file:
        expected = file.asarray()[:, 3, 1]
    chosen = Selection(channel="FM 4-64/2% CHAPS", z=3)
    with open_movie(path, selection=chosen) as movie:
        np.testing.assert_array_equal(movie.read(0, 3), expected)
        assert movie.pixel_size_nm == pytest.approx(167.8, abs=0.1)
        assert movie.camera_name == "Nikon A1plus"
    with redirect_stdout(io.StringIO()):
        data = ndstorage.Dataset(str(formats / "ndtiff_12bit"))
    with open_movie(formats / "ndtiff_12bit", selection=Selection(channel="FITC")) as movie:
        for i in range(4):
            np.testing.assert_array_equal(
                movie.read(i, i + 1)[0], data.read_image(channel="FITC", time=i)
            )
    data.close()
    tiff = shared_data / "single_molecules_real" / "pMHC_AF647_10x128x128.tif"
    spe = shared_data / "single_molecules_real" / "pMHC_AF647_200k_000_.SPE"
    with open_movie(tiff) as expected_movie, open_movie(spe) as movie:
        np.testing.assert_array_equal(movie.read(0, 10), expected_movie.read(0, 10))
