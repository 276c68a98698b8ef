"""How many molecules a spot is: evidences that two samplers agree on, and sensible odds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from decode.emitters import EmitterSet
from decode.likelihood.counts import _log_evidence, count_posterior
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


@torch.no_grad()
@pytest.mark.parametrize("k", [1, 2])
def test_two_samplers_have_the_same_evidence(k: int, rng: torch.Generator) -> None:
    """Importance sampling and the sequential sampler."""
    truth, adu = spots(6, k, 300.0, rng)
    frames = Frames(PSF, EMCCD, adu, truth, axes=[0, 1], background=EVEN)
    windows = frames.windows(torch.arange(6 * k).view(6, k), None)
    model = Model([0, 1], Prior(), pixels_of(EMCCD), 11)
    modes = model.mode(windows)
    sampled = model.weighted(windows, modes, 4000, 0).moments()
    assert (sampled.ess > 0.4).all()
    expected = sampled.log_evidence + modes.mean.shape[1] / 2 * math.log(2 * math.pi)
    found = _log_evidence(model, windows, modes, 800, rng)
    assert (found - expected).abs().max() < 0.2


def test_spots_are_as_many_molecules_as_they_are(rng: torch.Generator) -> None:
    for k in (1, 2, 3):
        truth, adu = spots(6, k, 300.0, rng)
        rows = torch.arange(6 * k).view(6, k)
        p = count_posterior(
            PSF, EMCCD, adu, truth, together=rows, axial=False, background=EVEN, n_particles=300
        )
        assert torch.allclose(p.sum(1), torch.ones(6, dtype=torch.float64))
        assert (p.argmax(1) == k - 1).sum() >= 5
        # the same of one row: the others are found by splitting it
        if k == 2:
            alone = truth[rows[:, 0]]
            merged = replace(alone, xyz=(alone.xyz + truth.xyz[rows[:, 1]]) / 2)
            again = count_posterior(
                PSF, EMCCD, adu, merged, axial=False, background=EVEN, n_particles=300
            )
            assert (again[:, 1] > 0.5).all()


def test_what_cannot_be_counted_is_said_in_a_sentence(rng: torch.Generator) -> None:
    truth, adu = spots(1, 1, 0.0, rng)
    with pytest.raises(ValueError, match="state the depths"):
        count_posterior(PSF, EMCCD, adu, truth)
    four = EmitterSet.cat([truth] * 4)
    with pytest.raises(ValueError, match="at most 3"):
        count_posterior(PSF, EMCCD, adu, four, together=torch.arange(4)[None], axial=False)
