"""Proposals that the likelihood decides on: what is there is found, what is not is not listed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import decode.likelihood.proposals
from decode.emitters import EmitterSet
from decode.likelihood import decide
from decode.likelihood.proposals import _Hypotheses
from decode.metrics import match, normalized_errors
from decode.optics.camera import Camera
from decode.optics.fisher import cramer_rao_bound
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import render
from decode.optics.pupil import PupilPSF

PIXEL_NM = 100.0
SIDE = 40
CAMERAS = {
    "EMCCD": Camera(
        baseline=100.0, e_per_adu=45.0, read_noise_e=74.4, qe=0.9, em_gain=300.0, spurious_e=0.002
    ),
    "sCMOS": Camera(baseline=100.0, e_per_adu=0.46, read_noise_e=1.3, qe=0.8),
}


def astigmatic() -> GaussianPSF:
    return GaussianPSF(130.0, pixel_size_nm=PIXEL_NM, depth_nm=400.0, gap_nm=200.0, patch_px=21)


def table(frame: Tensor, xyz: Tensor, photons: Tensor) -> EmitterSet:
    return EmitterSet(frame=frame, xyz=xyz, photons=photons, background=photons * 0 + 20.0)


def proposed(truth: EmitterSet, rng: torch.Generator, probability: float = 0.9) -> EmitterSet:
    """As a network that is off by 20 nm, and along z by 40 nm, and says so."""
    sigma = torch.tensor([20.0, 20.0, 40.0]).expand(len(truth), 3)
    return replace(
        truth,
        xyz=truth.xyz + sigma * torch.randn(len(truth), 3, generator=rng),
        probability=torch.full((len(truth),), probability),
        xyz_sigma=sigma,
        photons_sigma=truth.photons / 5,
    )


def recorded(camera: Camera, truth: EmitterSet, rng: torch.Generator, n_frames: int) -> Tensor:
    light = render(
        astigmatic(),
        frame=truth.frame,
        xyz=truth.xyz,
        photons=truth.photons,
        n_frames=n_frames,
        shape=(SIDE, SIDE),
    ).detach()
    return camera.sample(light + 20.0, rng)


def scattered(
    n: int, n_frames: int, rng: torch.Generator, photons: tuple[float, float] = (1000.0, 4000.0)
) -> EmitterSet:
    """Molecules anywhere in the field, each in one frame."""
    low, size = torch.tensor([600.0, 600.0, -400.0]), torch.tensor([2800.0, 2800.0, 800.0])
    bright = photons[0] + (photons[1] - photons[0]) * torch.rand(n, generator=rng)
    frame = torch.randint(n_frames, (n,), generator=rng).sort().values
    return table(frame, low + size * torch.rand(n, 3, generator=rng), bright)


@pytest.mark.parametrize("name", list(CAMERAS))
def test_empty_frames_have_no_molecules(name: str, rng: torch.Generator) -> None:
    """On a background that is uneven and fades, too."""
    slope = 20 + 30 * torch.sigmoid((torch.arange(SIDE) - 20.0) / 4).expand(30, SIDE, SIDE)
    fading = slope * torch.linspace(1.3, 0.7, 30)[:, None, None]
    for background in (torch.full((30, SIDE, SIDE), 20.0), fading):
        adu = CAMERAS[name].sample(background, rng)
        assert len(decide(astigmatic(), CAMERAS[name], adu, EmitterSet.empty())) == 0


@pytest.mark.parametrize("rate", [0.1, 0.02])
def test_the_share_of_false_molecules_is_as_stated(rate: float, rng: torch.Generator) -> None:
    """Two molecules a square micrometre; of the network's proposals a third is false, and a third
    of the molecules is not proposed.  Who is further than 160 nm from any is false."""
    truth = scattered(600, 40, rng, (400.0, 4000.0))
    adu = recorded(CAMERAS["EMCCD"], truth, rng, 40)
    known = proposed(truth[torch.rand(600, generator=rng) < 0.67], rng, 0.9)
    false = proposed(scattered(200, 40, rng), rng, 0.4)
    both = EmitterSet.cat([known, false])
    found = decide(astigmatic(), CAMERAS["EMCCD"], adu, both, false_discovery_rate=rate)
    pairs = match(truth, found)
    apart = found.xyz[pairs[:, 1]] - truth.xyz[pairs[:, 0]]
    wrong = 1 - int((apart[:, :2].norm(dim=1) < 160).sum()) / len(found)
    assert wrong < rate + 0.02, wrong
    assert found.probability is not None
    assert float(1 - found.probability.mean()) <= rate
    assert len(found) > (360 if rate == 0.1 else 80)


@pytest.mark.parametrize("name", list(CAMERAS))
def test_isolated_molecules_at_any_depth_are_listed(name: str, rng: torch.Generator) -> None:
    """Also at the ends of the depths, where images are long and a network proposes several
    molecules for one, nearer to focus, and believes in none."""
    camera, side, depths = CAMERAS[name], 112, torch.linspace(-700.0, 700.0, 9)
    pupil = PupilPSF(
        numerical_aperture=1.4,
        wavelength_nm=660.0,
        pixel_size_nm=PIXEL_NM,
        zernike_nm={(2, 2): 60.0},
        patch_px=35,
    )
    psf = pupil.to_spline(z_range_nm=(-800.0, 800.0), z_step_nm=50.0)
    frame = 2 * torch.arange(4).repeat_interleave(9)
    place = (torch.stack([torch.arange(9) % 3, torch.arange(9) // 3], 1) + 0.5) * side / 3
    xy = place.repeat(4, 1) * PIXEL_NM + 600 * (torch.rand(36, 2, generator=rng) - 0.5)
    xyz = torch.cat([xy, depths.repeat(4)[:, None]], 1)
    truth = table(frame, xyz, torch.full((36,), 2000.0))
    light = render(
        psf, frame=frame, xyz=xyz, photons=truth.photons, n_frames=7, shape=(side, side)
    ).detach()
    adu = camera.sample(light + 20.0, rng)
    # along the image, which is long in x at negative depths
    x, y = torch.eye(3)[:2]
    along = torch.where(xyz[:, 2:] < 0, x, y)
    long = (xyz[:, 2:].abs() / 700) ** 2
    nearer = torch.tensor([1.0, 1.0, 0.6])
    doubtful = [
        replace(
            proposed(truth, rng, 0.5),
            xyz=truth.xyz * nearer + shift * long * along,
            photons=truth.photons / 2,
        )
        for shift in (-300.0, 0.0, 300.0)
    ]
    found = decide(psf, camera, adu, EmitterSet.cat(doubtful))
    assert len(match(truth, found)) >= 35, len(match(truth, found))
    assert len(found) <= 36, len(found)


@pytest.mark.parametrize("name", list(CAMERAS))
def test_molecules_that_nobody_proposed_come_to_the_bound(name: str, rng: torch.Generator) -> None:
    n, camera = 150, CAMERAS[name]
    low, size = torch.tensor([1900.0, 1900.0, -400.0]), torch.tensor([100.0, 100.0, 800.0])
    xyz = low + size * torch.rand(n, 3, generator=rng)
    truth = table(2 * torch.arange(n), xyz, 2000 + 2000 * torch.rand(n, generator=rng))
    adu = recorded(camera, truth, rng, 2 * n)
    found = decide(astigmatic(), camera, adu, EmitterSet.empty(), false_discovery_rate=0.2)
    pairs = match(truth, found)
    assert len(pairs) >= 0.97 * n
    assert len(found) <= len(pairs) + 2
    assert truth.background is not None
    bound = cramer_rao_bound(astigmatic(), camera, truth.xyz, truth.photons, truth.background)
    error = (found.xyz[pairs[:, 1]] - truth.xyz[pairs[:, 0]]) / bound[pairs[:, 0], :3]
    assert (error.square().mean(0).sqrt() < 1.2).all(), error.square().mean(0).sqrt()
    assert found.correlation is not None
    assert bool((found.correlation.abs() < 1).all())
    # others may shine in unseen: sigmas are rather too large than too small
    spread = normalized_errors(truth, found, pairs).square().mean(0).sqrt()
    assert ((spread > 0.3) & (spread < 1.1)).all(), spread


def test_the_frames_of_a_molecule_share_one_position(rng: torch.Generator) -> None:
    """To the last digit, whatever the network said of each, as they are one measurement."""
    once = scattered(12, 1, rng)
    truth = EmitterSet.cat([replace(once, frame=once.frame + t) for t in range(3)])
    start = proposed(truth, rng)
    unsure = start.xyz_sigma * (0.5 + torch.rand(len(truth), 1, generator=rng))
    start = replace(start, xyz_sigma=unsure)
    camera = CAMERAS["sCMOS"]
    found = decide(astigmatic(), camera, recorded(camera, truth, rng, n_frames=3), start)
    of_truth, of_found = match(truth, found, lateral_nm=100.0, axial_nm=200.0).T
    shown = [found[of_found[of_truth % len(once) == i]] for i in range(len(once))]
    whole = [rows for rows in shown if len(rows) == 3]
    assert len(whole) > 8
    same = [len(rows.xyz.unique(dim=0)) == 1 for rows in whole]
    assert sum(same) > 0.8 * len(whole)
    assert all(
        len(rows.xyz_sigma.unique(dim=0)) == 1
        for rows, one in zip(whole, same, strict=True)
        if one and rows.xyz_sigma is not None
    )


def test_two_proposals_for_one_molecule_become_one(rng: torch.Generator) -> None:
    truth = scattered(60, 60, rng)
    truth = replace(truth, frame=torch.arange(60))
    adu = recorded(CAMERAS["sCMOS"], truth, rng, 60)
    shifted = replace(truth, xyz=truth.xyz + torch.tensor([60.0, 0.0, 0.0]))
    twice = EmitterSet.cat([proposed(truth, rng, 0.6), proposed(shifted, rng, 0.5)])
    found = decide(astigmatic(), CAMERAS["sCMOS"], adu, twice)
    assert len(match(truth, found)) >= 58
    assert len(found) <= 62


def test_of_two_at_one_place_the_one_of_more_evidence_stays() -> None:
    """Nearer than 30 nm, in one frame and at about one depth."""
    xyz = torch.tensor([[1000.0, 1000, 0], [1012, 1000, 30], [3000, 1000, 0], [3020, 1000, 0]])
    frame = torch.tensor([0, 0, 0, 0, 1, 0])
    beside, deeper = torch.tensor([[3020.0, 1000, 0]]), torch.tensor([[1000.0, 1010, 200]])
    both = table(frame, torch.cat([xyz, beside, deeper]), torch.full((6,), 1000.0))
    found = _Hypotheses.of(proposed(both, torch.Generator().manual_seed(0)), added=False, side=5)
    sigma = torch.tensor([200.0, 100.0, 100.0, 110.0, 100.0, 100.0])
    covariance = torch.eye(5).repeat(6, 1, 1)
    covariance[:, 3, 3] = sigma**2
    found = replace(found, fit=replace(found.fit, xyz=both.xyz, covariance=covariance))
    assert found.single().tolist() == [False, True, True, False, True, True]


def test_a_neighbour_that_was_missed_does_not_draw_a_molecule_along(
    rng: torch.Generator,
) -> None:
    """Pairs 350 nm apart along a diagonal, of which one is proposed: both are found.

    Along x or y, two near focus look like one out of focus.
    """
    first = scattered(80, 80, rng, (3000.0, 4000.0))
    near_focus = first.xyz * torch.tensor([1.0, 1.0, 0.3])
    first = replace(first, frame=torch.arange(80), xyz=near_focus)
    second = replace(first, xyz=first.xyz + torch.tensor([250.0, 250.0, 0.0]))
    truth = EmitterSet.cat([first, second])
    adu = recorded(CAMERAS["EMCCD"], truth, rng, 80)
    start = proposed(first, rng)
    found = decide(astigmatic(), CAMERAS["EMCCD"], adu, start, false_discovery_rate=0.2)
    pairs = match(truth, found)
    assert len(pairs) > 0.9 * len(truth)
    error = (found.xyz[pairs[:, 1]] - truth.xyz[pairs[:, 0]])[:, :2]
    assert error.square().mean().sqrt() < 25


def test_what_a_bad_pixel_reads_proposes_nothing(rng: torch.Generator) -> None:
    bad = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    bad[14, 12] = bad[30:32, 20] = bad[:, 25] = True
    camera = replace(CAMERAS["sCMOS"], bad=bad)
    adu = camera.sample(torch.full((20, SIDE, SIDE), 20.0), rng).masked_fill(bad, 65535.0)
    assert len(decide(astigmatic(), camera, adu, EmitterSet.empty())) == 0


def test_molecules_are_looked_for_in_the_region_only(rng: torch.Generator) -> None:
    truth = scattered(60, 20, rng)
    adu = recorded(CAMERAS["sCMOS"], truth, rng, 20)
    region = slice(0, 20), slice(0, 40)
    nothing, lenient = EmitterSet.empty(), 0.2
    found = decide(
        astigmatic(),
        CAMERAS["sCMOS"],
        adu,
        nothing,
        region=region,
        false_discovery_rate=lenient,
    )
    assert 20 < len(found) < 45
    assert float(found.xyz[:, 1].max()) < 2100


def test_filters_see_few_frames_at_a_time(
    monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    """Their images are many times as large as the frames."""
    seen = []
    matched = decode.likelihood.proposals._matched

    def counted(filters: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        seen.append(len(residual))
        return matched(filters, residual, weight)

    monkeypatch.setattr(decode.likelihood.proposals, "_matched", counted)
    adu = recorded(CAMERAS["sCMOS"], scattered(10, 70, rng), rng, 70)
    decide(astigmatic(), CAMERAS["sCMOS"], adu, EmitterSet.empty())
    assert sum(seen) >= 70
    assert max(seen) <= 16


def test_bad_input_is_named(rng: torch.Generator) -> None:
    truth = scattered(5, 5, rng)
    adu = recorded(CAMERAS["sCMOS"], truth, rng, 5)
    with pytest.raises(ValueError, match="proposals need probability"):
        decide(astigmatic(), CAMERAS["sCMOS"], adu, truth)
