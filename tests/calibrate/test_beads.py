"""Beads are found where they are, and what cannot be used is named with the reason."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from decode.calibrate.beads import find_beads
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import render

PIXEL_NM, PATCH_PX, SHAPE = 100.0, 15, (90, 110)
PLANES_NM = torch.arange(-500.0, 501.0, 50.0)
PLACES = torch.tensor([[15.3, 20.8], [47.9, 25.2], [88.5, 18.1], [30.2, 66.4], [75.6, 60.9]])
"""x, y in pixels"""


def recorded(
    places: Tensor,
    rng: torch.Generator,
    *,
    photons: float | Tensor = 5000.0,
    drift: Tensor | None = None,
    height_nm: Tensor | None = None,
) -> Tensor:
    """(z, y, x) photons with shot noise; `drift` (n, 2) is how many pixels each bead moves over
    the stack."""
    n, planes = len(places), len(PLANES_NM)
    psf = GaussianPSF(130.0, pixel_size_nm=PIXEL_NM, depth_nm=450.0, gap_nm=200.0, patch_px=21)
    at = places[None].repeat(planes, 1, 1)
    if drift is not None:
        at = at + torch.linspace(-0.5, 0.5, planes)[:, None, None] * drift
    depth = PLANES_NM[:, None] + (torch.zeros(n) if height_nm is None else height_nm)
    xyz = torch.cat([at * PIXEL_NM, depth[:, :, None]], 2)
    light = torch.as_tensor(photons).expand(n).repeat(planes)
    frame = torch.arange(planes).repeat_interleave(n)
    mean = render(
        psf, frame=frame, xyz=xyz.flatten(0, 1), photons=light, n_frames=planes, shape=SHAPE
    )
    return torch.poisson(mean.detach() + 10, generator=rng)


def centres(beads: list) -> Tensor:
    found = torch.tensor([bead.centre_px for bead in beads])
    return found[np.lexsort(found.T.numpy())]


def test_beads_are_found_to_half_a_pixel(rng: torch.Generator) -> None:
    beads, rejected = find_beads([recorded(PLACES, rng)], PATCH_PX)
    assert rejected == []
    expected = PLACES[np.lexsort(PLACES.T.numpy())]
    torch.testing.assert_close(centres(beads), expected, atol=0.5, rtol=0)


def test_a_crop_is_a_piece_of_its_stack_with_the_bead_in_its_middle(rng: torch.Generator) -> None:
    stacks = [recorded(PLACES[:3], rng), recorded(PLACES[3:], rng)]
    beads, _ = find_beads(stacks, PATCH_PX)
    assert [bead.stack for bead in beads].count(0) == 3
    assert [bead.stack for bead in beads].count(1) == 2
    for bead in beads:
        x, y = bead.corner_px
        piece = stacks[bead.stack][:, y : y + PATCH_PX, x : x + PATCH_PX]
        assert torch.equal(bead.photons, piece)
        assert all(
            abs(bead.centre_px[i] - bead.corner_px[i] - PATCH_PX / 2) <= 0.51 for i in (0, 1)
        )


def test_two_lobes_are_one_bead_at_their_centre(rng: torch.Generator) -> None:
    """As of a double helix: lobes five pixels apart that turn about the bead, the light shared
    between them."""
    planes = len(PLANES_NM)
    angle = torch.linspace(-1.0, 1.0, planes)
    arm = 2.5 * torch.stack([angle.cos(), angle.sin()], 1)
    psf = GaussianPSF(120.0, pixel_size_nm=PIXEL_NM, patch_px=15)
    spots = torch.cat([PLACES[None] + arm[:, None], PLACES[None] - arm[:, None]], 1)
    xyz = torch.cat([spots * PIXEL_NM, torch.zeros(planes, 10, 1)], 2).flatten(0, 1)
    frame = torch.arange(planes).repeat_interleave(10)
    mean = render(
        psf,
        frame=frame,
        xyz=xyz,
        photons=torch.full((len(xyz),), 2500.0),
        n_frames=planes,
        shape=SHAPE,
    )
    beads, rejected = find_beads([torch.poisson(mean.detach() + 10, generator=rng)], PATCH_PX)
    assert rejected == []
    torch.testing.assert_close(
        centres(beads), PLACES[np.lexsort(PLACES.T.numpy())], atol=0.5, rtol=0
    )


def test_a_close_pair_is_rejected_and_the_others_stay(rng: torch.Generator) -> None:
    places = torch.cat([PLACES, torch.tensor([[57.9, 25.2]])])
    beads, rejected = find_beads([recorded(places, rng)], PATCH_PX)
    assert len(beads) == 4
    assert sorted(round(bead.centre_px[0]) for bead in rejected) == [48, 58]
    assert all("another bead is 10 px away" in bead.reason for bead in rejected)


def test_a_bead_at_the_border_is_rejected(rng: torch.Generator) -> None:
    places = torch.cat([PLACES, torch.tensor([[4.0, 45.0], [60.0, 86.5]])])
    beads, rejected = find_beads([recorded(places, rng)], PATCH_PX)
    assert len(beads) == 5
    assert [bead.reason for bead in rejected] == ["too near to the border of the frame"] * 2


def test_a_saturated_bead_is_rejected(rng: torch.Generator) -> None:
    """One pixel of one plane suffices."""
    stack = recorded(PLACES, rng)
    saturated = torch.zeros(stack.shape, dtype=torch.bool)
    saturated[10, 60, 75] = True
    beads, rejected = find_beads([stack], PATCH_PX, [saturated])
    assert len(beads) == 4
    assert [round(rejected[0].centre_px[i]) for i in (0, 1)] == [76, 61]
    assert "saturated" in rejected[0].reason


def test_a_bead_that_moves_is_rejected_and_a_stage_that_drifts_is_not(rng: torch.Generator) -> None:
    """All move by a pixel with the stage; the third moves two more by itself."""
    drift = torch.tensor([[1.0, 0.5]]).repeat(5, 1)
    drift[2] += torch.tensor([-1.5, 1.5])
    beads, rejected = find_beads([recorded(PLACES, rng, drift=drift)], PATCH_PX)
    assert len(beads) == 4
    assert "it moved by" in rejected[0].reason
    assert round(rejected[0].centre_px[1]) == 18


def test_two_beads_in_one_are_unlike_the_others(rng: torch.Generator) -> None:
    """A second one 4 pixels beside it is within the patch, where it might be a second lobe."""
    places = torch.cat([PLACES, PLACES[3:4] + torch.tensor([3.2, 2.4])])
    beads, rejected = find_beads([recorded(places, rng)], PATCH_PX)
    assert len(beads) == 4
    assert "unlike the others" in rejected[0].reason


def test_beads_of_other_brightness_are_like_the_others(rng: torch.Generator) -> None:
    light = torch.tensor([2000.0, 4000.0, 6000.0, 8000.0, 12000.0])
    beads, rejected = find_beads([recorded(PLACES, rng, photons=light)], PATCH_PX)
    assert (len(beads), rejected) == (5, [])


def test_beads_of_other_height_are_like_the_others(rng: torch.Generator) -> None:
    height = torch.tensor([0.0, 150.0, -150.0, 60.0, -20.0])
    beads, rejected = find_beads([recorded(PLACES, rng, height_nm=height)], PATCH_PX)
    assert (len(beads), rejected) == (5, [])


def test_noise_alone_holds_no_bead(rng: torch.Generator) -> None:
    noise = torch.poisson(torch.full((21, 60, 60), 30.0), generator=rng)
    with pytest.raises(ValueError, match="no bead was found"):
        find_beads([noise], PATCH_PX)


def test_a_frame_smaller_than_the_patch_is_refused(rng: torch.Generator) -> None:
    with pytest.raises(ValueError, match="40 x 12 pixels, smaller than the patch of 15"):
        find_beads([torch.rand(9, 12, 40, generator=rng)], PATCH_PX)


def test_a_rejected_bead_says_where_it_is(rng: torch.Generator) -> None:
    _, rejected = find_beads([recorded(torch.tensor([[4.0, 45.0]]), rng)], PATCH_PX)
    assert str(rejected[0]).startswith("stack 0, x 4.")
    assert "border" in str(rejected[0])
