"""A recalibration mends what is stated wrongly, and leaves alone what is right."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from decode.network.counts import Counts
from decode.network.localizer import Localizer, NetworkConfig
from decode.network.posterior import SetPosterior
from decode.network.recalibration import NORMAL_95, Numbers, Recalibration, Stated

N, N_FRAMES = 20_000, 400
FRAME = torch.arange(N) % N_FRAMES


def stated(n: int = N, seed: int = 0) -> Stated:
    """Molecules of all kinds: half of them sure, half of them doubtful."""
    rng = torch.Generator().manual_seed(seed)
    uniform = torch.rand(10, n, generator=rng, dtype=torch.float64)
    photons = 300 * 30 ** uniform[0]
    sigma = torch.stack(
        [
            5 * 8 ** uniform[1],
            5 * 8 ** uniform[2],
            photons * 0.03 * 5 ** uniform[3],
            20 + uniform[4],
        ],
        1,
    )
    sure = torch.sigmoid(2 + 3 * uniform[5])
    return Stated(
        probability=torch.where(uniform[6] < 0.5, sure, uniform[7] ** 3),
        beside=uniform[8],
        around=3 * uniform[9],
        density=0.05 * uniform[9],
        light_beside=photons * uniform[8],
        mean=torch.stack([uniform[1], uniform[2], photons, 1400 * uniform[4] - 700], 1),
        sigma=sigma,
        background=1 + 100 * uniform[9],
        pixel_size_nm=100.0,
    )


def fitted(known: Stated, probability: Tensor, error: Tensor) -> Recalibration:
    """Fit to molecules that are true with `probability`, and have these errors."""
    rng = torch.Generator().manual_seed(1)
    true = torch.rand(len(known), generator=rng, dtype=torch.float64) < probability
    region = torch.arange(len(known)) % N_FRAMES
    numbers = Numbers(region, torch.bincount(region[true], minlength=N_FRAMES), 1)
    return Recalibration.fit(known, lambda _: (true, error), numbers=numbers)


def normal(n: int = N, seed: int = 2) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=rng, dtype=torch.float64)


def coverage(error: Tensor, half: Tensor) -> list[float]:
    """Shares of the errors within the half-widths, by quantity."""
    return [float(share) for share in (error.abs() < half).double().mean(0)]


def listed_of(known: Stated) -> Stated:
    """Those that a table lists."""
    return known[known.probability > 0.5]


def test_sigmas_stated_1_5_times_too_small_are_mended() -> None:
    known = stated()
    recalibration = fitted(known, known.probability, 1.5 * known.sigma * normal())
    fresh = listed_of(stated(seed=5))
    corrected, error = recalibration.of(fresh), 1.5 * fresh.sigma * normal(len(fresh), 6)
    error[:, 2] += fresh.mean[:, 2] * (corrected.light - 1)
    assert coverage(error, fresh.sigma * corrected.half_68) == pytest.approx([0.6827] * 4, abs=0.02)
    assert coverage(error, fresh.sigma * corrected.half_95) == pytest.approx([0.95] * 4, abs=0.01)
    listed = corrected.probability > 0.9
    assert float(corrected.half_68[listed].mean()) == pytest.approx(1.5, rel=0.03)


def test_heavy_tails_have_a_95_percent_level_of_their_own() -> None:
    known = stated()

    def heavy(sigma: Tensor, seed: int) -> Tensor:
        # Student's t with three degrees of freedom, which a Gaussian of any one width misses
        scale = normal(len(sigma) * 3, seed).view(3, len(sigma), 4).square().mean(0).sqrt()
        return sigma * normal(len(sigma), seed + 1) / scale

    recalibration = fitted(known, known.probability, heavy(known.sigma, 20))
    fresh = listed_of(stated(seed=5))
    corrected, error = recalibration.of(fresh), heavy(fresh.sigma, 30)
    assert coverage(error, fresh.sigma * corrected.half_68) == pytest.approx([0.6827] * 4, abs=0.02)
    assert coverage(error, fresh.sigma * corrected.half_95) == pytest.approx([0.95] * 4, abs=0.01)
    ratio = float((corrected.half_95 / corrected.half_68).mean())
    # quantiles of this distribution: 3.182 and 1.197
    assert ratio == pytest.approx(3.182 / 1.197, rel=0.05)
    drawn = corrected.drawn(
        fresh.mean + fresh.sigma * normal(len(fresh), 9), fresh.mean, fresh.sigma
    )
    apart = drawn - corrected.placed(fresh.mean)
    assert coverage(apart, fresh.sigma * corrected.half_68) == pytest.approx([0.6827] * 4, abs=0.02)
    assert coverage(apart, fresh.sigma * corrected.half_95) == pytest.approx([0.95] * 4, abs=0.01)


def test_errors_that_grow_with_crowding_are_told_apart() -> None:
    known = stated()
    factor = 0.7 + 0.5 * torch.log1p(known.around)[:, None]
    recalibration = fitted(known, known.probability, factor * known.sigma * normal())
    fresh = listed_of(stated(seed=5))
    corrected = recalibration.of(fresh)
    error = (0.7 + 0.5 * torch.log1p(fresh.around)[:, None]) * fresh.sigma * normal(len(fresh), 6)
    for low, high in ((0.0, 1.0), (1.0, 2.0), (2.0, 3.0)):
        part = (fresh.around >= low) & (fresh.around < high)
        held = coverage(error[part], (fresh.sigma * corrected.half_68)[part])
        assert held == pytest.approx([0.6827] * 4, abs=0.03)


def test_probabilities_stated_as_their_square_are_mended() -> None:
    honest = stated()
    squared = replace(honest, probability=honest.probability.square())
    recalibration = fitted(squared, honest.probability, honest.sigma * normal())
    fresh = stated(seed=5)
    mended = recalibration.of(replace(fresh, probability=fresh.probability.square())).probability
    tenth = (mended * 10).long().clamp(max=9)
    for i in range(10):
        rows = tenth == i
        assert float(mended[rows].mean()) == pytest.approx(
            float(fresh.probability[rows].mean()), abs=0.05
        )


def test_what_is_right_stays_as_it_is() -> None:
    known = stated()
    recalibration = fitted(known, known.probability, known.sigma * normal())
    every, corrected = recalibration.of(known), recalibration.of(listed_of(known))
    assert float((every.probability - known.probability).abs().mean()) < 0.013
    assert float((corrected.half_68 - 1).abs().mean()) < 0.05
    assert float((corrected.half_95 / NORMAL_95 - 1).abs().mean()) < 0.06
    assert float((corrected.light - 1).abs().mean()) < 0.01


def test_photons_stated_a_fifth_too_many_are_mended() -> None:
    known = stated()
    error = known.sigma * normal()
    error[:, 2] += known.mean[:, 2] / 6
    corrected = fitted(known, known.probability, error).of(listed_of(known))
    assert float(corrected.light.mean()) == pytest.approx(5 / 6, abs=0.01)


def test_too_few_molecules_change_nothing() -> None:
    known = stated(500)
    recalibration = fitted(known, known.probability, 3 * known.sigma * normal(500))
    for mine, identity in zip(
        recalibration.tensors().values(), Recalibration.identity().tensors().values(), strict=True
    ):
        assert torch.equal(mine, identity)


def test_counts_that_vary_together_have_wider_intervals() -> None:
    known, rng = stated(), torch.Generator().manual_seed(3)
    effect = torch.randn(N_FRAMES, generator=rng, dtype=torch.float64)[FRAME]
    probability = torch.sigmoid(torch.logit(known.probability) + 0.8 * effect)
    together = fitted(known, probability, known.sigma * normal())
    apart = fitted(known, known.probability, known.sigma * normal())
    for recalibration, frames in ((together, probability), (apart, known.probability)):
        true = torch.rand(N, generator=rng, dtype=torch.float64) < frames
        number = torch.bincount(FRAME[true], minlength=N_FRAMES)
        corrected = recalibration.of(known)
        counts = Counts(
            frame=FRAME,
            probability=corrected.probability,
            n_frames=N_FRAMES,
            spread=corrected.spread,
        )
        held = ((counts.rank(number) - 0.5).abs() < 0.475).double().mean()
        assert float(held) == pytest.approx(0.95, abs=0.025)
    assert apart.spread + apart.crowded < 0.15


def test_numbers_in_regions_vary_as_stated_where_molecules_crowd() -> None:
    rng = torch.Generator().manual_seed(4)
    known = replace(stated(), probability=torch.full((N,), 0.97, dtype=torch.float64))
    known = replace(known, beside=torch.zeros(N), around=30.0 * (torch.arange(N) < N // 2))
    # five in each region; where they crowd, as many more or fewer are not told apart
    region = torch.arange(N) // 5
    number = 5 * torch.exp(0.4 * torch.randn(N // 5, generator=rng) - 0.08)
    number = torch.where(torch.arange(N // 5) < N // 10, number.round(), 5).long()
    true = torch.rand(N, generator=rng) < 0.97
    recalibration = Recalibration.fit(
        known, lambda _: (true, known.sigma), numbers=Numbers(region, number, 20)
    )
    corrected = recalibration.of(known)
    counts = Counts(
        frame=region,
        probability=corrected.probability,
        n_frames=N // 5,
        spread=corrected.spread,
    )
    for crowded, rows in ((True, slice(0, N // 10)), (False, slice(N // 10, N // 5))):
        variance = float((number - counts.mean)[rows].square().mean())
        stated_one = float(counts.sd[rows].square().mean())
        if crowded:
            assert variance > 3
            assert stated_one == pytest.approx(variance, rel=0.2)
        else:
            assert stated_one < 0.4


@pytest.mark.parametrize("spread", [0.3, 0.7])
def test_counts_with_an_effect_in_common_are_those_of_draws(
    spread: float, rng: torch.Generator
) -> None:
    molecules = lone(4.0).molecules()
    spreads = torch.full_like(molecules.probability, spread)
    molecules = replace(molecules, spread=spreads)
    counts = molecules.counts()
    pmf = counts.pmf()[0]
    drawn = torch.cat(
        [torch.bincount(molecules.sample(rng).frame, minlength=20) for _ in range(4000)]
    )
    share = torch.bincount(drawn, minlength=9)[:9] / len(drawn)
    assert float(pmf.sum()) == pytest.approx(1, abs=1e-4)
    assert share.tolist() == pytest.approx(pmf[:9].tolist(), abs=0.03)
    assert float(drawn.double().mean()) == pytest.approx(float(counts.mean[0]), rel=0.03)
    assert float(drawn.double().std()) == pytest.approx(float(counts.sd[0]), rel=0.05)
    _, sd = molecules.expected_map()
    assert float(sd[4, 4]) > 20 * 0.9 * spread, "the frames of a draw have the effect in common"


def lone(logit: float, recalibration: Recalibration | None = None) -> SetPosterior:
    """A molecule in the middle of a frame, 20 frames."""
    light = torch.full((20, 9, 9), 1000.0)
    logits = torch.full((20, 9, 9), -9.0)
    logits[:, 4, 4] = logit
    return SetPosterior(
        logit=logits,
        offset_px=torch.zeros(20, 2, 9, 9),
        offset_sigma_px=torch.full((20, 2, 9, 9), 0.1),
        photons=light,
        photons_sigma=light / 10,
        background=light / 100,
        pixel_size_nm=100.0,
        recalibration=recalibration,
    )


def test_tables_draws_and_counts_are_corrected_alike(rng: torch.Generator) -> None:
    identity = Recalibration.identity()
    wider = identity.half_68.clone()
    wider[:, 0] = math.log(2.0)
    brighter = identity.light.clone()
    brighter[0] = math.log(1.5)
    surer = identity.probability.clone()
    surer[:, 0] = 1.0
    changed = replace(identity, half_68=wider, half_95=wider, light=brighter, probability=surer)
    before, after = lone(1.0).point_estimate(), lone(1.0, changed).point_estimate()
    assert before.probability is not None
    assert after.probability is not None
    assert before.xyz_sigma is not None
    assert after.xyz_sigma is not None
    assert after.xyz_95 is not None
    assert float(after.probability[0]) == pytest.approx(1 / (1 + math.exp(-2)), rel=1e-3)
    assert float(after.photons[0]) == pytest.approx(1500, rel=1e-5)
    assert float(after.xyz_sigma[0, 0] / before.xyz_sigma[0, 0]) == pytest.approx(2, rel=1e-5)
    assert float(after.xyz_95[0, 0] / after.xyz_sigma[0, 0]) == pytest.approx(1.96, rel=1e-3)
    assert bool(after.xyz_95[:, 2].isnan().all())
    assert before.xyz_95 is None
    molecules = lone(1.0, changed).molecules()
    draws = [molecules.sample(rng) for _ in range(200)]
    number = sum(len(draw) for draw in draws) / 4000
    assert number == pytest.approx(float(molecules.probability.sum() / 20), abs=0.03)
    x = torch.cat([draw.xyz[:, 0] for draw in draws])
    assert float((x - 450).std()) == pytest.approx(float(after.xyz_sigma[0, 0]), rel=0.05)


def test_a_table_lists_what_the_network_does() -> None:
    identity = Recalibration.identity()
    surer = identity.probability.clone()
    surer[:, 0] = 5.0
    raised = replace(identity, probability=surer)
    assert float(lone(-1.0, raised).molecules().probability.min()) > 0.5
    assert len(lone(-1.0, raised).point_estimate()) == 0
    assert len(lone(1.0, raised).point_estimate()) == len(lone(1.0).point_estimate()) > 0


def test_crowding_is_the_expected_number_in_the_pixels_around(rng: torch.Generator) -> None:
    logit = 3 * torch.randn(20, 9, 9, generator=rng) - 2
    posterior = replace(lone(0.0), logit=logit)
    molecules, known = posterior.stated()
    p = torch.nn.functional.pad(posterior.probability.double(), (4, 4, 4, 4))
    wide, near = (p.unfold(1, k, 1).unfold(2, k, 1).sum((3, 4)) for k in (9, 3))
    near = near[:, 3:-3, 3:-3]
    # a sure molecule in its own pixel: the expectation around is that of the squares
    frame = molecules.frame
    squares = {
        (round(float(near[f, y, x]), 9), round(float(wide[f, y, x] - near[f, y, x]), 9))
        for f in range(20)
        for y in range(9)
        for x in range(9)
    }
    beside = known.beside + known.probability
    stated_squares = [
        (round(float(a), 9), round(float(b), 9))
        for a, b, kept in zip(beside, known.around, known.beside > 0, strict=True)
        if kept
    ]
    assert len(frame) > 500
    assert len(stated_squares) > 300
    assert set(stated_squares) <= squares


def test_a_file_keeps_the_recalibration_and_does_without_one(tmp_path: Path) -> None:
    model = Localizer(
        NetworkConfig(frame_widths=(4,), sequence_widths=(4,), head_width=4), {}
    ).eval()
    old = tmp_path / "old.safetensors"
    model.save(old)
    assert Localizer.load(old).recalibration is None
    known = stated()
    model.recalibration = fitted(known, known.probability, 2 * known.sigma * normal())
    new = tmp_path / "new.safetensors"
    model.save(new)
    again = Localizer.load(new).recalibration
    assert again is not None
    for mine, theirs in zip(
        model.recalibration.tensors().values(), again.tensors().values(), strict=True
    ):
        assert torch.equal(mine, theirs)
    # models from before numbers in crowds had a spread of their own
    older = {"listed": torch.zeros(35), **model.recalibration.tensors()}
    del older["crowded"]
    assert Recalibration.of_tensors(older).crowded == 0
    with pytest.raises(ValueError, match="another version of decode"):
        Recalibration.of_tensors({"light": torch.zeros(3)})
