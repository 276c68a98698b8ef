"""Every kernel puts each molecule where it is, sums to 1, and knows no tiles."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any, cast, get_args

import numpy as np
import pytest
import torch
from scipy.stats import norm

from decode.emitters import EmitterSet
from decode.rendering import Rendering, picture_of, render_image
from decode.rendering.settings import KernelName

REGION = (0.0, 0.0, 1200.0, 900.0)
IN_REGION = Rendering(pixel_nm=10.0, region_nm=REGION)
KERNELS = get_args(KernelName)


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


def crowd(n: int, size_nm: float, rng: torch.Generator) -> EmitterSet:
    return EmitterSet(
        frame=torch.zeros(n, dtype=torch.int64),
        xyz=torch.rand(n, 3, generator=rng, dtype=torch.float64) * size_nm + 150,
        photons=torch.ones(n),
        xyz_sigma=torch.rand(n, 3, generator=rng) * 40,
    )


def test_a_molecule_is_its_gaussian_integrated_over_pixels() -> None:
    image = render_image(molecules([[603.0, 251.0, 0.0]], [[20.0, 45.0, 1.0]]), IN_REGION)
    assert image.shape == (90, 120)
    assert image.dtype == np.float32
    x = np.diff(norm.cdf((np.arange(121) * 10 - 603) / 20))
    y = np.diff(norm.cdf((np.arange(91) * 10 - 251) / 45))
    # beyond 3.5 sigma a Gaussian is 0.002 of its peak
    np.testing.assert_allclose(image, y[:, None] * x, atol=2.5e-3 * y.max() * x.max())


@pytest.mark.parametrize("pixel_nm", [3.0, 10.0, 40.0])
def test_moments_of_a_molecule_are_those_it_states(pixel_nm: float) -> None:
    table = molecules([[611.0, 402.0, 0.0]], [[25.0, 60.0, 1.0]])
    image = render_image(table, replace(IN_REGION, pixel_nm=pixel_nm)).astype(np.float64)
    x, y = ((np.arange(n) + 0.5) * pixel_nm for n in image.shape[::-1])
    mean_x, mean_y = image.sum(0) @ x, image.sum(1) @ y
    assert image.sum() == pytest.approx(1, abs=1e-5)
    assert (mean_x, mean_y) == pytest.approx((611, 402), abs=0.05)
    # a pixel adds its own variance; cutting at 3.5 sigma takes 0.6 % of the Gaussian's
    deviation_x = math.sqrt(image.sum(0) @ (x - mean_x) ** 2 - pixel_nm**2 / 12)
    deviation_y = math.sqrt(image.sum(1) @ (y - mean_y) ** 2 - pixel_nm**2 / 12)
    assert (deviation_x, deviation_y) == pytest.approx((25, 60), rel=0.01)


def test_a_disc_covers_what_is_no_farther_than_its_radius() -> None:
    settings = replace(IN_REGION, kernel="scatter", disc_nm=200.0)
    image = render_image(molecules([[605.0, 255.0, 0.0]]), settings)
    y, x = np.nonzero(image)
    assert np.hypot(x - 60, y - 25).max() == 10
    assert np.ptp(image[y, x]) == 0
    assert len(x) * 100 == pytest.approx(math.pi * 100**2, rel=0.02)


@pytest.mark.parametrize("kernel", KERNELS)
def test_images_add_and_count_the_molecules(kernel: str, rng: torch.Generator) -> None:
    n = 3000
    settings = replace(IN_REGION, kernel=cast(Any, kernel))
    table = crowd(n, 600, rng)
    image = render_image(table, settings)
    assert image.sum(dtype=np.float64) == pytest.approx(n, rel=1e-5)
    halves = [render_image(table[rows], settings) for rows in (slice(0, 999), slice(999, n))]
    np.testing.assert_allclose(image, halves[0] + halves[1], atol=1e-4)
    coloured = picture_of(table, replace(settings, color="z", slices_nm=70.0)).density()
    assert coloured.shape[:2] == (10, 7)
    np.testing.assert_allclose(coloured.sum((0, 1)), image, atol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("view", ["xy", "xz", "yz"])
def test_a_molecule_lies_in_its_pixel_in_every_view(view: str, kernel: str) -> None:
    """From the outer corner of the first pixel: the third one holds what lies from 20 to 30 nm."""
    at = [25.0, 155.0, 385.0]
    ends = molecules([at, [0.0, 0.0, 300.0], [999.0, 799.0, 699.0]], [[1.0] * 3] * 3)
    settings = Rendering(
        kernel=cast(Any, kernel),
        view=cast(Any, view),
        pixel_nm=10.0,
        region_nm=(0.0, 100.0, 1000.0, 800.0),
        min_sigma_nm=1.0,
        disc_nm=1.0,
    )
    image = render_image(ends[:1], settings)
    row, column = np.unravel_index(image.argmax(), image.shape)
    pixels = {"x": 2, "y": 5, "z": 18}  # y begins at 100, z below the lowest, at 200
    assert (column, row) == (pixels[view[0]], pixels[view[1]])
    assert image[row, column] == pytest.approx(1, abs=1e-5)
    extents = {"x": 100, "y": 70, "z": 60}
    assert render_image(ends, settings).shape == (extents[view[1]], extents[view[0]])


def test_molecules_outside_the_region_are_not_seen_from_the_side() -> None:
    table = molecules([[50.0, 50.0, 20.0], [50.0, 250.0, 20.0]])
    region = replace(IN_REGION, region_nm=(0.0, 0.0, 100.0, 100.0), view="xz")
    assert render_image(table, region).sum() == pytest.approx(1, abs=1e-5)
    assert render_image(table, Rendering(view="xz")).sum() == pytest.approx(2, abs=1e-5)


def test_every_molecule_is_in_the_slice_of_its_depth() -> None:
    table = molecules([[50.0, 50.0, z] for z in (-250.0, -200.0, -1e-9, 0.0, 150.0, 249.0)])
    picture = picture_of(table, Rendering(slices_nm=200.0, kernel="histogram", color="density"))
    assert picture.canvas.planes == ((-300, -100), (-100, 100), (100, 300))
    assert picture.density().sum((1, 2, 3)).tolist() == [2, 2, 2]


@pytest.mark.parametrize("kernel", KERNELS)
def test_tiles_are_the_whole_picture_to_the_last_bit(kernel: str, rng: torch.Generator) -> None:
    table = crowd(5000, 900, rng)
    settings = Rendering(
        kernel=cast(Any, kernel), pixel_nm=7.0, region_nm=(0.0, 0.0, 1150.0, 1100.0), color="z"
    )
    picture = picture_of(table, settings)
    for channel in (0, 3):
        spots = picture.spots(picture.canvas.planes[0], channel)
        height, width = picture.canvas.shape
        whole = spots.drawn((range(height), range(width)))
        for side in (17, 64, 100):
            tiled = np.zeros_like(whole)
            for rows, columns in picture.canvas.windows(side, side + 5):
                part = spots.drawn((rows, columns))
                tiled[rows.start : rows.stop, columns.start : columns.stop] = part
            np.testing.assert_array_equal(tiled, whole)


def test_the_region_cuts_the_image_and_nothing_else() -> None:
    table = molecules(
        [[100.0, 50.0, 0], [500.0, 400.0, 0], [1300.0, 905.0, 0]],
        [[30.0] * 3, [20.0] * 3, [60.0] * 3],
    )
    whole = render_image(table, replace(IN_REGION, region_nm=(-500, -500, 2000, 2000)))
    part = render_image(table, IN_REGION)
    np.testing.assert_allclose(part, whole[50:140, 50:170], atol=1e-7)
    assert part.sum() < whole.sum() - 0.5
    nothing = render_image(table, replace(IN_REGION, region_nm=(5000, 5000, 5100, 5200)))
    assert nothing.shape == (20, 10)
    assert nothing.sum() == 0


def test_sigmas_are_kept_within_their_limits() -> None:
    at = [500.0, 400.0, 0.0]
    limits = replace(IN_REGION, min_sigma_nm=8.0, max_sigma_nm=50.0)
    for stated, drawn in ((1.0, 8.0), (500.0, 50.0), (math.nan, 8.0)):
        image, expected = (
            render_image(molecules([at], [[s] * 3]), limits) for s in (stated, drawn)
        )
        np.testing.assert_array_equal(image, expected)
    unstated = render_image(molecules([at]), limits)
    np.testing.assert_array_equal(unstated, render_image(molecules([at], [[8.0] * 3]), limits))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"pixel_nm": 0.0}, "pixel of 0 nm: a positive length"),
        ({"slices_nm": -5.0}, "slices of -5 nm: a positive length"),
        ({"region_nm": (5.0, 0.0, 5.0, 10.0)}, "the sides must be positive"),
        ({"min_sigma_nm": 200.0}, "positive sigmas"),
        ({"kernel": "blob"}, "gaussian or histogram or scatter"),
        ({"view": "zx"}, "xy or xz or yz"),
        ({"gamma": 0.0}, "gamma is 0.0, must be above 0"),
    ],
)
def test_what_is_wrong_is_a_sentence(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Rendering(**wrong)


def test_too_many_pixels_or_slices_are_refused() -> None:
    far = molecules([[0.0, 0.0, -1e6], [1e6, 1e6, 1e6]])
    with pytest.raises(ValueError, match="choose larger ones"):
        picture_of(far, Rendering(pixel_nm=0.5))
    with pytest.raises(ValueError, match="choose thicker ones"):
        picture_of(far, Rendering(slices_nm=50.0))


def test_the_field_comes_from_the_movie_or_the_molecules() -> None:
    at = [[130.0, 450.0, 0.0], [1310.0, 620.0, 0.0]]
    settings = Rendering(pixel_nm=10.0)
    of_movie = molecules(at, pixel_size_nm=100, width_px=32, height_px=20)
    assert render_image(of_movie, settings).shape == (200, 320)
    assert render_image(molecules(at), settings).shape == (30, 130)  # 400..700 by 100..1400 nm
    assert render_image(EmitterSet.empty(), settings).shape == (100, 100)
    wide = molecules(at, pixel_size_nm=100, width_px=2048, height_px=20)
    assert render_image(wide).shape == (40, 4096)  # 50 nm: 20 nm would need 10240


def test_many_molecules_take_little_time(rng: torch.Generator) -> None:
    n = 100_000
    table = EmitterSet(
        frame=torch.zeros(n, dtype=torch.int64),
        xyz=torch.rand(n, 3, generator=rng) * 20_000,
        photons=torch.ones(n),
        xyz_sigma=torch.rand(n, 3, generator=rng) * 25 + 5,
    )
    start = time.process_time()
    render_image(table, Rendering(pixel_nm=10.0))
    assert time.process_time() - start < 4
