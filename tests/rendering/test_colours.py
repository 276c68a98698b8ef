"""Colours: even, told apart by the colour-blind, and what the legend says."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from skimage.color import deltaE_ciede2000, rgb2lab

from decode.emitters import EmitterSet
from decode.progress import Stepwise
from decode.rendering import Channels, Contrast, Painted, Rendering, Scale, painted, picture_of
from decode.rendering.annotation import Ramp, Text, laid_out
from decode.rendering.colours import EVEN, OKABE_ITO, Colouring, _rgb, colouring_of
from decode.rendering.exposure import Levels, brightness

paint: Stepwise[Any, Any, Painted] = Stepwise(painted)


def row_of_molecules(**others: list[Any]) -> EmitterSet:
    """Three, far apart, deep in x and bright in x."""
    return EmitterSet(
        frame=torch.tensor([0, 49, 99]),
        xyz=torch.tensor([[200.0, 200.0, -300.0], [600.0, 200.0, 0.0], [1000.0, 200.0, 300.0]]),
        photons=torch.tensor([100.0, 200.0, 300.0]),
        xyz_sigma=torch.full((3, 3), 20.0),
        others={name: np.array(values) for name, values in others.items()},
        metadata={"pixel_size_nm": 100, "width_px": 12, "height_px": 4},
    )


SETTINGS = Rendering(pixel_nm=10.0, contrast=Contrast(high=100.0))


def colours_of(table: EmitterSet, rendering: Rendering) -> list[Any]:
    """At the three molecules."""
    colours = paint(picture_of(table, rendering)).colours[0]
    return [colours[20, column] for column in (20, 60, 100)]


def test_the_colours_of_a_quantity_are_even_and_leave_brightness_to_density() -> None:
    lab = rgb2lab(_rgb(EVEN)[None])[0]
    assert np.ptp(lab[:, 0]) < 1.5
    steps = deltaE_ciede2000(lab[:-1], lab[1:])
    assert steps.max() / steps.min() < 1.1
    assert (np.diff(lab[:, 2]) > 0).all()  # the red- and the green-blind see b*


def test_the_colours_of_channels_differ() -> None:
    lab = rgb2lab(_rgb(OKABE_ITO)[None])[0]
    for i, one in enumerate(lab):
        for other in lab[i + 1 :]:
            assert deltaE_ciede2000(one, other) > 18


@pytest.mark.parametrize("color", ["z", "time", "photons", "score"])
def test_the_ends_of_the_legend_are_the_ends_of_the_range(color: str) -> None:
    table = row_of_molecules(score=[0.5, 1.25, 2.0])
    ends = {"z": (-300, 300), "time": (1, 100), "photons": (100, 300), "score": (0.5, 2.0)}[color]
    picture = picture_of(table, replace(SETTINGS, color=color, color_range=ends))
    sheet = laid_out(paint(picture))
    (ramp,) = (mark for mark in sheet.marks if isinstance(mark, Ramp))
    texts = [mark for mark in sheet.marks if isinstance(mark, Text) and mark.x > ramp.x]
    high, _, low = sorted(texts, key=lambda text: text.y)
    assert (float(low.text), float(high.text)) == ends
    assert low.y == pytest.approx(ramp.y + ramp.height, abs=high.size)
    assert high.y == pytest.approx(ramp.y, abs=high.size)
    # and molecules at the ends have the colours of the ends
    first, middle, last = colours_of(table, replace(SETTINGS, color=color, color_range=ends))
    np.testing.assert_allclose(first, ramp.colours[-1], atol=2)
    np.testing.assert_allclose(last, ramp.colours[0], atol=2)
    np.testing.assert_allclose(middle, ramp.colours[3], atol=3)


def test_ranges_hold_the_molecules_in_round_numbers() -> None:
    table = row_of_molecules()
    ends = {"z": (-300.0, 300.0), "time": (1.0, 100.0), "photons": (100.0, 300.0)}
    for color, expected in ends.items():
        colouring = colouring_of(table, Rendering(color=color))
        assert isinstance(colouring, Scale)
        assert colouring.range == expected


def test_depth_is_shown_where_there_is_some() -> None:
    deep = row_of_molecules()
    flat = replace(deep, xyz=deep.xyz * torch.tensor([1.0, 1.0, 0.2]))
    for table, rendering, shown in (
        (deep, Rendering(), Scale),
        (flat, Rendering(), None),
        (deep, Rendering(slices_nm=100.0), None),
        (EmitterSet.empty(), Rendering(), None),
    ):
        assert isinstance(colouring_of(table, rendering), shown or Colouring)
        assert (len(colouring_of(table, rendering).names) > 1) == (shown is Scale)


@pytest.mark.parametrize("values", [["actin", "tubulin", "actin"], [0, 2, 0], [0.0, 2.0, 0.0]])
def test_channels_have_a_colour_each_and_their_names(values: list[Any]) -> None:
    table = row_of_molecules(channel=values)
    picture = picture_of(table, replace(SETTINGS, color="channel"))
    assert isinstance(picture.colouring, Channels)
    assert picture.colouring.labels == (
        ("actin", "tubulin") if values[0] == "actin" else ("0", "2")
    )
    density = picture.density()[0]
    assert density.sum((1, 2)) == pytest.approx([2, 1], abs=1e-4)
    first, second, third = colours_of(table, replace(SETTINGS, color="channel"))
    expected = np.rint(_rgb(OKABE_ITO[:2]) * 255)
    np.testing.assert_allclose([first, second, third], expected[[0, 1, 0]], atol=1)
    texts = [mark.text for mark in laid_out(paint(picture)).marks if isinstance(mark, Text)]
    assert texts[-2:] == list(picture.colouring.labels)


def test_many_numbers_are_no_channels() -> None:
    n = 20
    table = EmitterSet(
        frame=torch.zeros(n, dtype=torch.int64),
        xyz=torch.rand(n, 3),
        photons=torch.ones(n),
        others={"cluster": np.arange(n), "name": np.array([f"m{i}" for i in range(n)])},
    )
    assert isinstance(colouring_of(table, Rendering(color="cluster")), Scale)
    for wrong in ("name", "colour"):
        with pytest.raises(ValueError, match=f"cannot show {wrong}; they show density, x, y, z"):
            colouring_of(table, Rendering(color=wrong))
    with pytest.raises(ValueError, match="no colour map parula"):
        colouring_of(table, Rendering(color="z", colormap="parula"))


def test_molecules_of_unknown_value_have_no_colour() -> None:
    table = replace(row_of_molecules(), photons=torch.tensor([100.0, torch.nan, 300.0]))
    density = picture_of(table, replace(SETTINGS, color="photons")).density()
    assert density.sum() == pytest.approx(2, abs=1e-4)


def test_percentiles_are_those_of_all_pixels_with_molecules(rng: torch.Generator) -> None:
    density = torch.rand(100, 100, generator=rng).square().numpy()
    density[density < 0.01] = 0
    levels = Levels(1)
    for part in np.split(density, 10):
        levels.add(part[None])
    lit = np.sort(density[density > 0])
    for share in (1, 50, 99, 100):
        expected = lit[max(0, int(np.ceil(share / 100 * len(lit))) - 1)]
        assert levels.percentile(share) == pytest.approx(expected, rel=0.002)
    low, high = levels.limits(Contrast(low=5, high=90), pixel_um2=1e-4)[0]
    assert (density[density > 0] < low).mean() == pytest.approx(0.05, abs=0.003)
    assert (density[density > 0] > high).mean() == pytest.approx(0.10, abs=0.003)
    assert levels.limits(Contrast(), pixel_um2=1e-4)[0][0] == 0
    per_um2 = Contrast(low=100, high=5000, unit="/um2")
    assert levels.limits(per_um2, pixel_um2=1e-4)[0] == pytest.approx((0.01, 0.5))


def test_far_tails_are_no_pixels_with_molecules() -> None:
    levels = Levels(1)
    levels.add(np.array([[[1.0, 1e-6, 1e-5, 2.0]]], np.float32))
    assert levels.percentile(50) == 1
    assert Levels(1).percentile(99) == 1


def test_brightness_is_density_within_its_limits_to_the_power_gamma() -> None:
    density = np.array([0.0, 0.5, 1.0, 3.0, 9.0], np.float32)
    np.testing.assert_allclose(
        brightness(density, (1.0, 5.0), 0.5), [0, 0, 0, np.sqrt(0.5), 1], rtol=1e-6
    )
    assert brightness(density[:3], (0.0, 1.0), 1.0).tolist() == [0, 0.5, 1]
    # a histogram of single molecules has one brightness only
    levels = Levels(1)
    levels.add(np.ones((1, 2, 2), np.float32))
    assert levels.limits(Contrast(low=10), pixel_um2=1.0) == ((0, 1),)


def test_colours_run_straight_between_those_of_the_channels() -> None:
    table = row_of_molecules()
    scale = colouring_of(table, Rendering(color="z", color_range=(0.0, 600.0)))
    at = replace(table, xyz=torch.tensor([[0.0, 0, 0], [0, 0, 250.0], [0, 0, 9e9]]))
    weights = scale.weights(at)
    np.testing.assert_allclose(weights.sum(0), 1)
    np.testing.assert_allclose(weights[:, 1], [0, 0, 0.5, 0.5, 0, 0, 0], atol=1e-6)
    assert (weights[0, 0], weights[-1, 2]) == (1, 1)
    assert all(a != b for a, b in pairwise(scale.names))


def test_contrast_in_other_words_is_a_sentence() -> None:
    for wrong in ("99", "a,b", "1,2,3"):
        with pytest.raises(ValueError, match="write it as LOW,HIGH"):
            Contrast.parse(wrong)
    for order in ("5,5", "0,101", "-1,50"):
        with pytest.raises(ValueError, match=r"contrast|low is"):
            Contrast.parse(order)
    assert Contrast.parse("0%,99%") == Contrast.parse("0,99")
