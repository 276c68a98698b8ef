"""Pictures: every molecule is a normalized Gaussian of its own sigma, where it is."""

from __future__ import annotations

import errno
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import norm

from decode.emitters import EmitterSet
from decode.rendering import render_image, save_picture

EXTENT = (0.0, 0.0, 1200.0, 900.0)


def molecules(
    xyz: list[list[float]], sigma: list[list[float]] | None = None, **metadata: object
) -> EmitterSet:
    return EmitterSet(
        frame=torch.zeros(len(xyz), dtype=torch.int64),
        xyz=torch.tensor(xyz, dtype=torch.float64).reshape(-1, 3),
        photons=torch.ones(len(xyz)),
        xyz_sigma=None if sigma is None else torch.tensor(sigma),
        metadata=metadata,
    )


def test_a_molecule_is_its_gaussian_integrated_over_pixels() -> None:
    image = render_image(molecules([[603.0, 251.0, 0.0]], [[20.0, 45.0, 1.0]]), extent_nm=EXTENT)
    assert image.shape == (90, 120)
    assert image.dtype == np.float32
    x = np.diff(norm.cdf((np.arange(121) * 10 - 603) / 20))
    y = np.diff(norm.cdf((np.arange(91) * 10 - 251) / 45))
    # beyond 3.5 sigma a Gaussian is 0.002 of its peak
    np.testing.assert_allclose(image, y[:, None] * x, atol=2.5e-3 * y.max() * x.max())


@pytest.mark.parametrize("pixel_nm", [3.0, 10.0, 40.0])
def test_moments_of_a_molecule_are_those_it_states(pixel_nm: float) -> None:
    image = render_image(
        molecules([[611.0, 402.0, 0.0]], [[25.0, 60.0, 1.0]]), extent_nm=EXTENT, pixel_nm=pixel_nm
    ).astype(np.float64)
    x, y = ((np.arange(n) + 0.5) * pixel_nm for n in image.shape[::-1])
    mean_x, mean_y = image.sum(0) @ x, image.sum(1) @ y
    assert image.sum() == pytest.approx(1, abs=1e-5)
    assert (mean_x, mean_y) == pytest.approx((611, 402), abs=0.05)
    # a pixel adds its own variance; cutting at 3.5 sigma takes 0.6 % of the Gaussian's
    deviation_x = math.sqrt(image.sum(0) @ (x - mean_x) ** 2 - pixel_nm**2 / 12)
    deviation_y = math.sqrt(image.sum(1) @ (y - mean_y) ** 2 - pixel_nm**2 / 12)
    assert (deviation_x, deviation_y) == pytest.approx((25, 60), rel=0.01)


def test_images_add_and_count_the_molecules(rng: torch.Generator) -> None:
    n = 3000
    xyz = torch.rand(n, 3, generator=rng, dtype=torch.float64) * 600 + 150
    table = EmitterSet(
        frame=torch.zeros(n, dtype=torch.int64),
        xyz=xyz,
        photons=torch.ones(n),
        xyz_sigma=torch.rand(n, 3, generator=rng) * 40,
    )
    image = render_image(table, extent_nm=EXTENT)
    assert image.sum() == pytest.approx(n, rel=1e-4)
    halves = [
        render_image(table[rows], extent_nm=EXTENT) for rows in (slice(0, n // 3), slice(n // 3, n))
    ]
    np.testing.assert_allclose(image, halves[0] + halves[1], atol=1e-4)
    coloured = render_image(table, extent_nm=EXTENT, z_range_nm=(1e5, 2e5))  # all below: one colour
    np.testing.assert_allclose(coloured[..., 2], image, atol=1e-4)


def test_the_extent_cuts_the_image_and_nothing_else() -> None:
    table = molecules(
        [[100.0, 50.0, 0], [500.0, 400.0, 0], [1300.0, 905.0, 0]],
        [[30.0] * 3, [20.0] * 3, [60.0] * 3],
    )
    whole = render_image(table, extent_nm=(-500, -500, 2000, 2000))
    part = render_image(table, extent_nm=(0, 0, 1200, 900))
    np.testing.assert_allclose(part, whole[50:140, 50:170], atol=1e-7)
    assert part.sum() < whole.sum() - 0.5
    nothing = render_image(table, extent_nm=(5000, 5000, 5100, 5200))
    assert nothing.shape == (20, 10)
    assert nothing.sum() == 0


def test_sigmas_are_kept_within_their_limits() -> None:
    at = [500.0, 400.0, 0.0]
    limits = {"extent_nm": EXTENT, "min_sigma_nm": 8.0, "max_sigma_nm": 50.0}
    for stated, drawn in ((1.0, 8.0), (500.0, 50.0), (math.nan, 8.0)):
        image, expected = (
            render_image(molecules([at], [[s] * 3]), **limits) for s in (stated, drawn)
        )
        np.testing.assert_array_equal(image, expected)
    unstated = render_image(molecules([at]), **limits)
    np.testing.assert_array_equal(unstated, render_image(molecules([at], [[8.0] * 3]), **limits))
    for wrong in ({"pixel_nm": 0}, {"extent_nm": (5, 0, 5, 10)}, {"min_sigma_nm": 200}):
        with pytest.raises(ValueError, match="positive"):
            render_image(molecules([at]), **wrong)


def test_the_field_comes_from_the_movie_or_the_molecules() -> None:
    at = [[130.0, 450.0, 0.0], [1310.0, 620.0, 0.0]]
    assert render_image(molecules(at, pixel_size_nm=100, width_px=32, height_px=20)).shape == (
        200,
        320,
    )
    assert render_image(molecules(at)).shape == (30, 130)  # 400..700 by 100..1400 nm
    assert render_image(EmitterSet.empty()).shape == (100, 100)


def test_depth_is_colour() -> None:
    table = molecules(
        [[200.0, 200.0, -300.0], [600.0, 200.0, 0.0], [1000.0, 200.0, 300.0]], [[20.0] * 3] * 3
    )
    image = render_image(table, extent_nm=EXTENT, z_range_nm=(-300, 300))
    low, middle, high = (image[20, column] / image[20, column].max() for column in (20, 60, 100))
    assert (low.argmax(), middle.argmax(), high.argmax()) == (2, 1, 0)


def test_a_picture_is_written(tmp_path: Path, rng: torch.Generator) -> None:
    n = 500
    xyz = torch.rand(n, 3, generator=rng) * torch.tensor([6400.0, 3200.0, 0.0])
    table = EmitterSet(
        frame=torch.zeros(n, dtype=torch.int64),
        xyz=xyz,
        photons=torch.ones(n),
        xyz_sigma=torch.full((n, 3), 15.0),
        metadata={"pixel_size_nm": 100, "width_px": 64, "height_px": 32},
    )
    save_picture(table, tmp_path / "flat.png")
    flat = np.asarray(Image.open(tmp_path / "flat.png"))
    assert flat.shape == (640, 1280, 3)
    bar = (flat[-60:, -400:] == 255).all(2)
    assert bar.sum(1).max() == pytest.approx(1000 / 5, abs=2)  # 1 um in pixels of 5 nm
    assert flat.max() == 255
    assert np.median(flat) == 0

    deep = replace(
        table, xyz=xyz + torch.tensor([0, 0, 1.0]) * torch.linspace(-500, 500, n)[:, None]
    )
    save_picture(deep, tmp_path / "deep.png")
    picture = np.asarray(Image.open(tmp_path / "deep.png"))
    assert picture.shape[1] > 1280  # the legend
    assert (
        np.ptp(picture[:, 1280:].astype(int), axis=2).max(1) > 100
    ).sum() > 100  # and its colours
    save_picture(EmitterSet.empty(), tmp_path / "empty.png")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["deep.png", "empty.png", "flat.png"]


def test_a_picture_of_a_large_field_stays_small(tmp_path: Path) -> None:
    table = molecules(
        [[1000.0, 1000.0, 0.0]], [[10.0] * 3], pixel_size_nm=110, width_px=2048, height_px=200
    )
    save_picture(table, tmp_path / "large.png")
    with Image.open(tmp_path / "large.png") as picture:
        assert max(picture.size) <= 4096


def test_a_picture_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Image.Image, path: Path, format: str) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="the disk is full"):
        save_picture(molecules([[1.0, 2.0, 3.0]]), tmp_path / "picture.png")
    assert list(tmp_path.iterdir()) == []


def test_many_molecules_take_little_time(rng: torch.Generator) -> None:
    n = 100_000
    table = EmitterSet(
        frame=torch.zeros(n, dtype=torch.int64),
        xyz=torch.rand(n, 3, generator=rng) * 20_000,
        photons=torch.ones(n),
        xyz_sigma=torch.rand(n, 3, generator=rng) * 25 + 5,
    )
    start = time.process_time()
    render_image(table)
    assert time.process_time() - start < 4
