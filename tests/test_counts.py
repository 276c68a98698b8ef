"""How many molecules a spot is: the law of the jumps, and sensible odds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from decode.emitters import EmitterSet
from decode.likelihood.counts import Numbers, _Chains, _Spots, count_posterior
from decode.likelihood.importance import Model, Prior
from decode.likelihood.pixels import pixels_of
from decode.likelihood.windows import Frames
from decode.optics.camera import Camera
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import render

SIDE = 33
EMCCD = Camera(
    baseline=100.0, e_per_adu=45.0, read_noise_e=74.4, qe=0.9, em_gain=300.0, spurious_e=0.002
)
PSF = GaussianPSF(130.0, pixel_size_nm=100.0)
EVEN = torch.ones(SIDE, SIDE)
PIXELS = pixels_of(EMCCD)


def spots(n: int, k: int, apart_nm: float, rng: torch.Generator) -> tuple[EmitterSet, Tensor]:
    """n frames of k molecules of 2000 photons in a row, and their counts."""
    first = torch.cat([1550 + 100 * torch.rand(n, 2, generator=rng), torch.zeros(n, 1)], 1)
    angle = 2 * torch.pi * torch.rand(n, generator=rng)
    step = apart_nm * torch.stack([angle.cos(), angle.sin(), 0 * angle], 1)
    truth = EmitterSet(
        frame=torch.arange(n).repeat_interleave(k),
        xyz=torch.stack([first + j * step for j in range(k)], 1).flatten(0, 1),
        photons=torch.full((n * k,), 2000.0),
        background=torch.full((n * k,), 20.0),
    )
    light = render(
        PSF,
        frame=truth.frame,
        xyz=truth.xyz,
        photons=truth.photons,
        n_frames=n,
        shape=(SIDE, SIDE),
    )
    return truth, EMCCD.sample(20 + light.detach(), rng)


class Blind:
    """A likelihood that says nothing."""

    def __call__(self, photons: Tensor) -> Tensor:
        return photons.new_zeros(photons.shape[:2]).double()


@torch.no_grad()
@pytest.mark.parametrize("axial", [False, True])
def test_where_nothing_is_seen_numbers_are_those_of_a_poisson_process(
    axial: bool, rng: torch.Generator
) -> None:
    """Of one, two and three, whatever the map is by which molecules are added."""
    truth, adu = spots(1, 2, 200.0, rng)
    frames = Frames(PSF, EMCCD, adu, truth, axes=[2, 0, 1][not axial :], background=EVEN)
    prior = Prior(photons=(100.0, 2000.0), depth_nm=(-300.0, 300.0))
    model = Model([2, 0, 1][not axial :], prior, PIXELS)
    windows = frames.windows(torch.tensor([[0, 1]]), None)
    found = _Spots.of(windows, model, 3e-6 / (600.0 if axial else 1.0))
    found.table = Blind()
    shares = _Chains(found, rng, m=300).run(400)[0]
    expected = 3e-6 * (100.0 * windows.psf.patch_px) ** 2
    law = torch.tensor([1.0, expected / 2, expected**2 / 6]).double()
    error = shares.std(0) / len(shares) ** 0.5
    assert (error < 0.02).all()
    assert ((shares.mean(0) - law / law.sum()).abs() < 4 * error).all()


def test_numbers_do_not_depend_on_where_chains_start(rng: torch.Generator) -> None:
    """Two molecules 100 nm apart may be one, or one with a faint one far away: runs from two that
    are as bright, and from a bright and a faint one in the same windows, agree within the errors
    that they state, but for what so few steps leave of the start."""
    truth, adu = spots(4, 2, 100.0, rng)
    rows = torch.arange(8).view(4, 2)
    uneven = replace(truth, photons=torch.tensor([3700.0, 300.0]).repeat(4))

    def counted(some: EmitterSet, seed: int) -> Numbers:
        return count_posterior(
            PSF,
            EMCCD,
            adu,
            some,
            together=rows,
            axial=False,
            background=EVEN,
            pixels=PIXELS,
            n_steps=1000,
            seed=seed,
        )

    first, second = counted(truth, 0), counted(uneven, 1)
    scatter = (first.error.square() + second.error.square()).sqrt()
    assert (scatter < 0.15).all()
    assert ((first.probability - second.probability).abs() < 3 * scatter + 0.03).all()


def test_spots_are_as_many_molecules_as_they_are(rng: torch.Generator) -> None:
    for k in (1, 2, 3):
        truth, adu = spots(4, k, 300.0, rng)
        found = count_posterior(
            PSF,
            EMCCD,
            adu,
            truth,
            together=torch.arange(4 * k).view(4, k),
            axial=False,
            background=EVEN,
            pixels=PIXELS,
            n_steps=400,
        )
        assert torch.allclose(found.probability.sum(1), torch.ones(4, dtype=torch.float64))
        assert (found.probability.argmax(1) == k - 1).sum() >= 3
        assert (found.error < 0.15).all()


def test_a_row_fainter_than_the_prior_is_counted(rng: torch.Generator) -> None:
    """Of 30 photons where the least is 100, and of no background."""
    truth, adu = spots(1, 1, 0.0, rng)
    faint = replace(truth, photons=torch.tensor([30.0]), background=torch.tensor([0.0]))
    found = count_posterior(
        PSF, EMCCD, adu, faint, axial=False, background=EVEN, pixels=PIXELS, n_steps=600
    )
    assert found.probability.isfinite().all()
    assert found.probability[0, 0] > 0.5


def test_what_cannot_be_counted_is_said_in_a_sentence(rng: torch.Generator) -> None:
    truth, adu = spots(1, 1, 0.0, rng)
    with pytest.raises(ValueError, match="state the depths"):
        count_posterior(PSF, EMCCD, adu, truth)
    four = EmitterSet.cat([truth] * 4)
    with pytest.raises(ValueError, match="at most 3"):
        count_posterior(PSF, EMCCD, adu, four, together=torch.arange(4)[None], axial=False)
