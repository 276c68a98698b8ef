"""Pictures in files: the same pixels in each, with the facts that other programs read."""

from __future__ import annotations

import base64
import errno
import io
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from decode.emitters import EmitterSet
from decode.progress import Stepwise
from decode.rendering import (
    Contrast,
    Painted,
    Rendering,
    painted,
    picture_of,
    render_image,
    save_picture,
)

paint: Stepwise[Any, Any, Painted] = Stepwise(painted)
SVG = "{http://www.w3.org/2000/svg}"
OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"


DRAWS = """
import resource, sys
import numpy as np, torch
from decode import EmitterSet, Rendering
from decode.rendering import save_picture

n, side_nm, filaments = 1_000_000, 1e6, 2000
rng = np.random.default_rng(0)
middle, angle = rng.random((filaments, 2)) * side_nm, rng.random(filaments) * 2 * np.pi
of, along = rng.integers(0, filaments, n), rng.uniform(-25_000, 25_000, n)
xy = middle[of] + along[:, None] * np.stack([np.cos(angle[of]), np.sin(angle[of])], 1)
xyz = np.concatenate([xy + rng.normal(0, 15, (n, 2)), rng.uniform(-500, 500, (n, 1))], 1)
table = EmitterSet(
    frame=torch.arange(n) // 100,
    xyz=torch.from_numpy(xyz).float(),
    photons=torch.full((n,), 1000.0),
    xyz_sigma=torch.from_numpy(rng.uniform(8, 25, (n, 3))).float(),
    metadata={"pixel_size_nm": 100.0, "width_px": 10_000, "height_px": 10_000},
)
def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak_mb()
save_picture(table, sys.argv[1], Rendering(pixel_nm=10.0))
inside = ((xyz[:, :2] >= 0) & (xyz[:, :2] < side_nm)).all(1).sum()
print(peak_mb() - before, inside)
"""


@pytest.fixture
def table(rng: torch.Generator) -> EmitterSet:
    n = 500
    size = torch.tensor([6400.0, 3200.0, 1000.0])
    return EmitterSet(
        frame=torch.arange(n),
        xyz=torch.rand(n, 3, generator=rng) * size - torch.tensor([0.0, 0.0, 500.0]),
        photons=torch.ones(n),
        xyz_sigma=torch.full((n, 3), 15.0),
        metadata={"pixel_size_nm": 100, "width_px": 64, "height_px": 32},
    )


def read_png(path: Path) -> Any:
    return np.asarray(Image.open(path))


def test_a_png_is_the_painted_picture_with_its_scale_bar_and_legend(
    table: EmitterSet, tmp_path: Path
) -> None:
    save_picture(table, tmp_path / "flat.png", Rendering(color="density"))
    flat = read_png(tmp_path / "flat.png")
    assert flat.shape == (640, 1280, 3)
    bar = (flat[-60:, -400:] == 255).all(2)
    assert bar.sum(1).max() == pytest.approx(1000 / 5, abs=2)  # 1 um in pixels of 5 nm
    colours = paint(picture_of(table, Rendering(color="density"))).colours[0]
    np.testing.assert_array_equal(flat[:560], colours[:560])
    save_picture(table, tmp_path / "bare.png", Rendering(color="density", scale_bar=False))
    np.testing.assert_array_equal(read_png(tmp_path / "bare.png"), colours)

    save_picture(table, tmp_path / "deep.png")  # a legend, and its colours
    deep = read_png(tmp_path / "deep.png").astype(int)
    assert deep.shape[1] > 1280
    assert (np.ptp(deep[:, 1280:], axis=2).max(1) > 100).sum() > 100
    save_picture(EmitterSet.empty(), tmp_path / "empty.png")
    assert read_png(tmp_path / "empty.png").max() == 255  # the scale bar
    names = {"bare.png", "deep.png", "empty.png", "flat.png"}
    assert {file.name for file in tmp_path.iterdir()} == names


def test_slices_are_side_by_side_with_their_depths(table: EmitterSet, tmp_path: Path) -> None:
    settings = Rendering(slices_nm=250.0, pixel_nm=20.0, scale_bar=False)
    picture = picture_of(table, settings)
    colours = paint(picture).colours
    assert len(colours) == len(picture.canvas.planes) == 4
    save_picture(table, tmp_path / "slices.svg", settings)
    root = ET.parse(tmp_path / "slices.svg").getroot()
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert texts == ["-500 to -250 nm", "-250 to 0 nm", "0 to 250 nm", "250 to 500 nm"]
    sheet = embedded(root)
    for plane, (top, left) in zip(colours, ((0, 0), (0, 322), (162, 0), (162, 322)), strict=True):
        np.testing.assert_array_equal(sheet[top : top + 160, left : left + 320], plane)
    assert (sheet[160:162] == 80).all()  # a line between


def embedded(root: ET.Element) -> Any:
    (image,) = root.iter(f"{SVG}image")
    _, _, data = image.attrib["href"].partition("base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_an_svg_holds_the_pixels_as_they_are_and_its_marks_as_shapes(
    table: EmitterSet, tmp_path: Path
) -> None:
    settings = Rendering(color="z", color_range=(-400.0, 450.0), pixel_nm=10.0)
    save_picture(table, tmp_path / "picture.svg", settings)
    root = ET.parse(tmp_path / "picture.svg").getroot()
    np.testing.assert_array_equal(embedded(root), paint(picture_of(table, settings)).colours[0])
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert texts == ["1 µm", "z [nm]", "450", "25", "-400"]
    _, bar, ramp = root.iter(f"{SVG}rect")
    assert float(bar.attrib["width"]) == 100
    assert ramp.attrib["fill"] == "url(#ramp)"
    assert len(list(root.iter(f"{SVG}stop"))) == 7


def test_a_picture_of_a_few_pixels_has_no_bar_that_would_lie(
    table: EmitterSet, tmp_path: Path
) -> None:
    tiny = Rendering(region_nm=(0.0, 0.0, 20.0, 20.0), pixel_nm=5.0, color="density")
    save_picture(table, tmp_path / "tiny.png", tiny)
    assert read_png(tmp_path / "tiny.png").shape == (4, 4, 3)
    np.testing.assert_array_equal(
        read_png(tmp_path / "tiny.png"), paint(picture_of(table, tiny)).colours[0]
    )


def test_names_of_channels_may_hold_any_character(table: EmitterSet, tmp_path: Path) -> None:
    labels = np.array(["<actin> & co", "µ"] * 250)
    named = replace(table, others={"channel": labels})
    save_picture(named, tmp_path / "picture.svg", Rendering(color="channel", pixel_nm=20.0))
    texts = [text.text for text in ET.parse(tmp_path / "picture.svg").iter(f"{SVG}text")]
    assert texts[-2:] == ["<actin> & co", "µ"]


def test_a_tiff_holds_molecules_per_pixel_and_its_pixel_size(
    table: EmitterSet, tmp_path: Path
) -> None:
    settings = Rendering(pixel_nm=12.5)
    save_picture(table, tmp_path / "picture.tif", settings)
    with tifffile.TiffFile(tmp_path / "picture.tif") as file:
        image = file.asarray()
        tags = file.pages.first.tags
        assert file.ome_metadata is not None
        (pixels,) = ET.fromstring(file.ome_metadata).iter(f"{OME}Pixels")
    np.testing.assert_array_equal(image.squeeze(), render_image(table, settings))
    assert image.dtype == np.float32
    assert float(pixels.attrib["PhysicalSizeX"]) == float(pixels.attrib["PhysicalSizeY"]) == 0.0125
    assert pixels.attrib["PhysicalSizeXUnit"] == "µm"
    for name in ("XResolution", "YResolution"):  # ImageJ reads pixels per centimetre
        number, per = tags[name].value
        assert number / per == pytest.approx(1e7 / 12.5)
    assert tags["ResolutionUnit"].value == 3
    assert not file.pages.first.is_tiled


def test_slices_and_colours_are_slices_and_channels_of_a_tiff(
    table: EmitterSet, tmp_path: Path
) -> None:
    labels = np.array(["actin", "tubulin"] * 250)
    named = replace(table, others={"channel": labels})
    settings = Rendering(color="channel", slices_nm=250.0, pixel_nm=20.0, kernel="histogram")
    save_picture(named, tmp_path / "picture.ome.tif", settings)
    with tifffile.TiffFile(tmp_path / "picture.ome.tif") as file:
        assert file.series[0].axes == "ZCYX"
        image = file.asarray()
        assert file.ome_metadata is not None
        root = ET.fromstring(file.ome_metadata)
    np.testing.assert_array_equal(image, picture_of(named, settings).density())
    assert image.shape[:2] == (4, 2)
    assert image.sum((0, 2, 3)).tolist() == [250, 250]
    (pixels,) = root.iter(f"{OME}Pixels")
    assert float(pixels.attrib["PhysicalSizeZ"]) == 0.25
    channels = list(root.iter(f"{OME}Channel"))
    assert [channel.attrib["Name"] for channel in channels] == ["actin", "tubulin"]
    assert int(channels[0].attrib["Color"]) & 0xFFFFFFFF == 0x56B4E9FF


@pytest.mark.parametrize("kernel", ["histogram", "gaussian"])
def test_a_large_field_is_a_pyramid_of_tiles_that_holds_all_molecules(
    kernel: Any, table: EmitterSet, tmp_path: Path
) -> None:
    wide = replace(
        table,
        xyz=table.xyz * torch.tensor([1.4, 0.2, 1.0]),
        metadata={"pixel_size_nm": 100, "width_px": 90, "height_px": 7},
    )
    settings = Rendering(pixel_nm=1.0, kernel=kernel)
    save_picture(wide, tmp_path / "large.ome.tif", settings)
    with tifffile.TiffFile(tmp_path / "large.ome.tif") as file:
        assert file.is_bigtiff
        levels = file.series[0].levels
        assert [level.shape for level in levels] == [
            (-(-700 // 2**k), -(-9000 // 2**k)) for k in range(6)
        ]
        assert all(level.keyframe.is_tiled for level in levels)
        finest, *coarser = (level.asarray() for level in levels)
    np.testing.assert_array_equal(finest, render_image(wide, settings))
    n_seen = finest.sum(dtype=np.float64)
    assert n_seen == pytest.approx(len(table), rel=0.02)  # a few hang over an edge
    for k, level in enumerate(coarser, 1):
        # the density of the finest pixels, so that the contrast is the same at every zoom
        assert level.sum(dtype=np.float64) * 4**k == pytest.approx(n_seen, rel=2e-3)
    if kernel == "histogram":
        blocks = finest.reshape(350, 2, 4500, 2).mean((1, 3))
        np.testing.assert_allclose(coarser[0], blocks, rtol=1e-6)


def stated(path: Path) -> dict[str, list[float]]:
    """What the file says of its numbers, channel by channel."""
    with tifffile.TiffFile(path) as file:
        assert file.ome_metadata is not None
        pairs = ET.fromstring(file.ome_metadata).iter(f"{OME}M")
        return {pair.attrib["K"]: [float(n) for n in str(pair.text).split()] for pair in pairs}


@pytest.mark.parametrize("contrast", [Contrast(), Contrast(low=20.0, high=400.0, unit="/um2")])
def test_in_16_bits_full_brightness_is_the_largest_number(
    contrast: Contrast, table: EmitterSet, tmp_path: Path
) -> None:
    labels = np.array(["actin", "tubulin", "actin", "actin"] * 125)
    named = replace(table, others={"channel": labels})
    settings = Rendering(color="channel", slices_nm=500.0, pixel_nm=20.0, contrast=contrast)
    path = tmp_path / "picture.ome.tif"
    save_picture(named, path, replace(settings, bits=16))
    image = tifffile.imread(path)
    assert image.dtype == np.uint16
    picture = picture_of(named, settings)
    density, limits = picture.density(), picture.limits(picture.density())
    said = stated(path)
    assert said["white"] == [65535, 65535]
    for channel, (low, high) in enumerate(limits):
        assert said["one molecule"][channel] == pytest.approx(65535 / high, rel=1e-6)
        assert said["black"][channel] == pytest.approx(65535 * low / high, rel=1e-6)
        numbers = np.minimum(density[:, channel] / high, 1) * 65535
        np.testing.assert_allclose(image[:, channel], numbers, atol=0.51)
    assert (image == 65535).any((0, 2, 3)).all()

    save_picture(named, path, settings)  # floats say their contrast, too
    assert stated(path)["one molecule"] == [1, 1]
    lows, highs = zip(*limits, strict=True)
    assert stated(path)["black"] == pytest.approx(lows, rel=1e-6)
    assert stated(path)["white"] == pytest.approx(highs, rel=1e-6)
    with tifffile.TiffFile(path) as file:  # where ImageJ looks for that of a composite
        ranges = file.pages.first.tags["IJMetadata"].value["Ranges"]
    assert ranges == tuple(end for limit in limits for end in limit)


def test_counts_stay_counts_in_16_bits(table: EmitterSet, tmp_path: Path) -> None:
    settings = Rendering(kernel="histogram", pixel_nm=200.0, bits=16)
    save_picture(table, tmp_path / "picture.tif", settings)
    image = tifffile.imread(tmp_path / "picture.tif")
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, render_image(table, settings))
    assert image.sum() == len(table)
    assert image.max() > stated(tmp_path / "picture.tif")["white"][0] > 1


def test_levels_of_a_pyramid_in_16_bits_have_one_scale(table: EmitterSet, tmp_path: Path) -> None:
    path, settings = tmp_path / "large.tif", Rendering(pixel_nm=0.7, kernel="histogram")
    save_picture(table, path, replace(settings, bits=16, region_nm=(0.0, 0.0, 6400.0, 200.0)))
    (scale,) = stated(path)["one molecule"]
    assert scale == 65535
    with tifffile.TiffFile(path) as file:
        finest, *coarser = (level.asarray() for level in file.series[0].levels)
    assert finest.dtype == np.uint16
    n_seen = finest.sum() / scale
    assert n_seen == np.count_nonzero(table.xyz[:, 1].numpy() < 200)
    for k, level in enumerate(coarser, 1):  # rounded, where a molecule is one pixel of many
        assert level.sum() * 4**k / scale == pytest.approx(n_seen, rel=0.5 * 4**k / scale + 1e-9)


def test_what_cannot_be_written_leaves_nothing(
    table: EmitterSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Image.Image, path: Path, format: str) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="the disk is full"):
        save_picture(table, tmp_path / "picture.png")
    steps = save_picture.steps(table, tmp_path / "picture.tif")
    next(steps)
    assert list(tmp_path.iterdir())  # a file that is not yet there
    steps.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"written as \.png, \.tif or \.svg"):
        save_picture(table, tmp_path / "picture.jpg")


def test_a_picture_in_colours_of_too_many_pixels_is_refused(
    table: EmitterSet, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"too many for a picture in colours; write a \.tif"):
        save_picture(table, tmp_path / "picture.png", Rendering(pixel_nm=0.2))
    assert list(tmp_path.iterdir()) == []


def test_pictures_drawn_twice_are_those_that_are_kept(
    table: EmitterSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = picture_of(table, Rendering(pixel_nm=10.0, contrast=Contrast(low=1.0, high=99.9)))
    kept = paint(picture)
    monkeypatch.setattr("decode.rendering.picture.KEPT", 0)
    monkeypatch.setattr("decode.rendering.picture.TILE", 100)
    drawn = paint(picture)
    np.testing.assert_array_equal(kept.colours, drawn.colours)
    assert kept.limits == drawn.limits


def test_a_view_from_the_side_says_which_axes_it_shows(table: EmitterSet, tmp_path: Path) -> None:
    save_picture(table, tmp_path / "side.svg", Rendering(view="yz", pixel_nm=20.0))
    assert re.search(r"→ y\s+↓ z", (tmp_path / "side.svg").read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured in kB on Linux only")
def test_a_million_molecules_on_ten_thousand_million_pixels_take_little_memory(
    tmp_path: Path,
) -> None:
    out = tmp_path / "large.ome.tif"
    done = subprocess.run(
        [sys.executable, "-c", DRAWS, str(out)], capture_output=True, text=True, check=True
    )
    more_mb, n = map(float, done.stdout.split())
    assert more_mb < 400
    with tifffile.TiffFile(out) as file:
        levels = file.series[0].levels
        assert levels[0].shape == (100_000, 100_000)
        assert max(levels[-1].shape) <= 512
        # from the sixth, sides are odd, and what the last pixel lacks of an area counts as light
        for halved, more in ((5, 1e-6), (len(levels) - 1, 2e-3)):
            light = levels[halved].asarray().sum(dtype=np.float64) * 4**halved
            assert light == pytest.approx(n, rel=more)
