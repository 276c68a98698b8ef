"""Laws of the set posterior: it is a distribution, and log_prob, sample and count_pmf speak of
the same one."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from decode.emitters import EmitterSet
from decode.network.posterior import SetPosterior

PIXEL = 100.0


def make(seed: int, *shape: int, axial: bool = False) -> SetPosterior:
    """A posterior of random float64 maps, (frames, y, x)."""
    rng = torch.Generator().manual_seed(seed)
    n, *yx = shape

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng, dtype=torch.float64)

    return SetPosterior(
        logit=randn(n, *yx),
        offset_px=0.4 * randn(n, 2, *yx),
        offset_sigma_px=torch.exp(randn(n, 2, *yx) - 1),
        photons=1000 + 100 * randn(n, *yx),
        photons_sigma=torch.exp(randn(n, *yx)) * 50,
        background=torch.ones(n, *yx, dtype=torch.float64),
        z_nm=100 * randn(n, *yx) if axial else None,
        z_sigma_nm=30 * torch.exp(randn(n, *yx)) if axial else None,
        pixel_size_nm=PIXEL,
    )


def repeat(posterior: SetPosterior, n: int) -> SetPosterior:
    """The same frame n times, so that n sets are evaluated at once."""
    maps = {f.name: getattr(posterior, f.name) for f in fields(posterior)}
    return replace(
        posterior,
        **{k: m.expand(n, *m.shape[1:]) for k, m in maps.items() if isinstance(m, Tensor)},
    )


def sets(xy: Tensor, photons: Tensor) -> EmitterSet:
    """(n, k, 2) positions in nm and (n, k) photons: one set of k emitters in each of n frames."""
    n, k, _ = xy.shape
    xyz = torch.cat([xy, torch.zeros(n, k, 1, dtype=xy.dtype)], 2).reshape(n * k, 3)
    return EmitterSet(
        frame=torch.arange(n).repeat_interleave(k), xyz=xyz, photons=photons.reshape(-1)
    )


def spot(x: float, y: float, photons: float = 1000.0) -> EmitterSet:
    return sets(
        torch.tensor([[[x, y]]], dtype=torch.float64),
        torch.tensor([[photons]], dtype=torch.float64),
    )


def test_the_density_of_no_one_and_two_emitters_integrates_to_the_probability_of_that_count() -> (
    None
):
    posterior = make(0, 1, 1, 2)
    # photons: Gauss-Hermite would need the mean; a common wide grid serves both pixels
    grid = (torch.arange(40, dtype=torch.float64) + 0.5) / 40 * PIXEL
    y, left, right = torch.meshgrid(grid, grid, grid + PIXEL, indexing="ij")
    photons = torch.linspace(0, 2000, 801, dtype=torch.float64)
    cell, bin_photons = PIXEL / 40, 2000 / 800

    # x, y and photons are independent given the pixel: integrate photons at one place, place at one
    # brightness
    def one(x: Tensor, y: Tensor, brightness: Tensor) -> Tensor:
        n = len(x)
        return (
            repeat(posterior, n)
            .log_prob(sets(torch.stack([x, y], 1)[:, None], brightness[:, None]))
            .exp()
        )

    total_of_one = 0.0
    shares = []
    for x0 in (0.0, PIXEL):
        xx, yy = (g.reshape(-1) for g in torch.meshgrid(grid + x0, grid, indexing="ij"))
        bright = torch.full_like(xx, 1000.0)
        place = one(xx, yy, bright).sum() * cell**2
        profile = one(xx[:1].expand(801), yy[:1].expand(801), photons)
        share = place * profile.sum() * bin_photons / profile[photons == 1000.0].squeeze()
        shares.append(share)
        total_of_one += float(share)
    pmf = posterior.count_pmf()[0]
    none = posterior.log_prob(EmitterSet.empty()).exp()
    assert float(none) == pytest.approx(float(pmf[0]), rel=1e-9)
    assert total_of_one == pytest.approx(float(pmf[1]), rel=1e-3)
    # two: one in each pixel is all there is; the density factorizes into those of one over that of
    # none
    pair = torch.stack(
        [torch.stack([left, y], -1), torch.stack([right, y.flip(0)], -1)], -2
    ).reshape(-1, 2, 2)[::97]
    both = repeat(posterior, len(pair)).log_prob(
        sets(pair, torch.full((len(pair), 2), 1000.0, dtype=torch.float64))
    )
    alone = [
        one(*pair[:, i].unbind(1), torch.full((len(pair),), 1000.0, dtype=torch.float64)).log()
        for i in (0, 1)
    ]
    torch.testing.assert_close(both, alone[0] + alone[1] - none.log())
    assert float(shares[0] * shares[1] / none) == pytest.approx(float(pmf[2]), rel=2e-3)
    assert float(pmf.sum()) == pytest.approx(1)


def test_sets_that_cannot_be_drawn_have_no_density() -> None:
    posterior = make(1, 1, 2, 2)
    together = EmitterSet.cat([spot(20, 30), spot(70, 80)])
    assert posterior.log_prob(together).item() == -torch.inf
    assert posterior.log_prob(spot(-1, 50)).item() == -torch.inf
    kept = posterior.thin(
        EmitterSet.cat([spot(20, 30, 500), spot(70, 80, 900), spot(250, 50), spot(150, 50)])
    )
    assert sorted(kept.photons.tolist()) == [900, 1000]
    assert torch.isfinite(posterior.log_prob(kept)).all()


def test_drawn_counts_follow_the_poisson_binomial(rng: torch.Generator) -> None:
    posterior = repeat(make(2, 1, 3, 3), 40000)
    drawn = posterior.sample(rng)
    counts = torch.bincount(drawn.frame, minlength=40000)
    pmf = posterior[:1].count_pmf(9)[0]
    observed = torch.bincount(counts, minlength=10).double()
    expected = pmf * 40000
    enough = expected > 5
    chi2 = ((observed - expected) ** 2 / expected)[enough].sum()
    assert float(chi2) < 30, "chi-square of about 8 degrees of freedom"


def test_single_precision_posteriors_state_the_density_of_their_own_draws(
    rng: torch.Generator,
) -> None:
    exact = make(4, 50, 8, 8, axial=True)
    single = replace(
        exact, **{name: m.float() for name, m in vars(exact).items() if isinstance(m, Tensor)}
    )
    drawn = single.sample(rng)
    assert len(drawn) > 100
    density = single.log_prob(drawn)
    assert torch.isfinite(density).all()
    torch.testing.assert_close(density, exact.log_prob(drawn), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("largest", [5, 30, None, 100])
def test_the_likelihood_of_a_count_is_exact_but_for_rounding(largest: int | None) -> None:
    posterior = make(6, 2, 9, 9)
    posterior = replace(posterior, logit=posterior.logit - 1)
    pmf = posterior.count_pmf(largest)
    exact = torch.zeros(2, 101, dtype=torch.float64)
    exact[:, 0] = 1
    for p in posterior.probability.flatten(1).T[..., None]:  # one pixel after the other
        exact = exact * (1 - p) + p * exact.roll(1, 1)
    assert largest is None or pmf.shape[1] == largest + 1
    torch.testing.assert_close(pmf, exact[:, : pmf.shape[1]], rtol=0, atol=2e-15)
    assert torch.isfinite(pmf.log()).all(), "what cannot be told from 0 has a logarithm"


def test_draws_have_the_density_that_log_prob_states(rng: torch.Generator) -> None:
    """The mean of log q over draws of q is minus the entropy; here against the sum of the
    pixels' entropies."""
    posterior = repeat(
        replace(make(3, 1, 1, 1), logit=torch.full((1, 1, 1), 30.0, dtype=torch.float64)), 200000
    )
    drawn = posterior.sample(rng)
    assert len(drawn) == 200000
    # importance identity: E_q[u / q] = integral of u, here u = 1 on the pixel and a narrow band of
    # photons
    density = posterior.log_prob(drawn).exp()
    mean, sigma = posterior.photons[0, 0, 0], posterior.photons_sigma[0, 0, 0]
    band = ((drawn.photons - mean).abs() < sigma).double()
    volume = float((band / density).mean())
    assert volume == pytest.approx(float(PIXEL**2 * 2 * sigma), rel=0.05)


def test_depth_adds_its_gaussian() -> None:
    flat, deep = make(4, 1, 2, 2), make(4, 1, 2, 2, axial=True)
    deep = replace(flat, z_nm=deep.z_nm, z_sigma_nm=deep.z_sigma_nm)
    emitter = spot(120, 40)
    emitter = replace(emitter, xyz=emitter.xyz + torch.tensor([0.0, 0.0, 33.0]))
    assert deep.z_nm is not None
    assert deep.z_sigma_nm is not None
    term = torch.distributions.Normal(deep.z_nm[0, 0, 1], deep.z_sigma_nm[0, 0, 1]).log_prob(
        torch.tensor(33.0)
    )
    difference = deep.log_prob(emitter) - flat.log_prob(emitter)
    torch.testing.assert_close(difference[0], term.to(difference.dtype))


def test_gradients_agree_with_finite_differences_also_far_outside_the_pixel() -> None:
    base = make(5, 1, 2, 2)
    emitter = spot(105, 95)

    def density(logit: Tensor, offset: Tensor, width: Tensor) -> Tensor:
        return replace(base, logit=logit, offset_px=offset, offset_sigma_px=width).log_prob(emitter)

    for centre, width in ((0.1, 0.3), (-1.4, 0.05), (1.2, 0.1), (0.45, 2.0)):
        parts = (
            base.logit,
            torch.full_like(base.offset_px, centre),
            torch.full_like(base.offset_sigma_px, width),
        )
        assert torch.autograd.gradcheck(
            density, [p.clone().requires_grad_() for p in parts], eps=1e-6, atol=1e-4
        )
    hopeless = density(
        base.logit, torch.full_like(base.offset_px, 1.5), torch.full_like(base.offset_px, 0.0025)
    )
    assert torch.isfinite(hopeless).all()


def test_an_empty_frame_teaches_the_probabilities() -> None:
    logit = torch.zeros(1, 4, 4, dtype=torch.float64, requires_grad=True)
    replace(make(6, 1, 4, 4), logit=logit).log_prob(EmitterSet.empty()).sum().backward()
    assert logit.grad is not None
    torch.testing.assert_close(logit.grad, torch.full_like(logit, -0.5))


def two_pixel_posterior(p: tuple[float, float], border_offset: float, sigma: float) -> SetPosterior:
    """Two neighbours that each describe a Gaussian `border_offset` px right of the border
    between them."""
    logit = torch.full((1, 5, 6), -9.0, dtype=torch.float64)
    logit[0, 2, 2], logit[0, 2, 3] = torch.logit(torch.tensor(p, dtype=torch.float64))
    offset = torch.zeros(1, 2, 5, 6, dtype=torch.float64)
    offset[0, 0, 2, 2], offset[0, 0, 2, 3] = 0.5 + border_offset, -0.5 + border_offset
    base = make(7, 1, 5, 6)
    return replace(
        base, logit=logit, offset_px=offset, offset_sigma_px=torch.full_like(offset, sigma)
    )


@pytest.mark.parametrize("border_offset", [0.0, 0.03, -0.1])
def test_an_emitter_on_the_border_of_two_pixels_is_one_molecule(border_offset: float) -> None:
    sigma = 0.15
    right = float(torch.special.ndtr(torch.tensor(border_offset / sigma)))
    found = two_pixel_posterior(
        (0.98 * (1 - right), 0.98 * right), border_offset, sigma
    ).point_estimate()
    assert len(found) == 1
    assert found.probability is not None
    assert found.xyz_sigma is not None
    assert float(found.probability) == pytest.approx(0.98, abs=1e-3)
    # the halves of the Gaussian join to the whole: its mean and its width
    assert float(found.xyz[0, 0]) == pytest.approx((3 + border_offset) * PIXEL, abs=0.2)
    assert float(found.xyz_sigma[0, 0]) == pytest.approx(sigma * PIXEL, rel=0.01)
    assert torch.isnan(found.xyz_sigma[0, 2])


def test_two_sure_neighbours_are_two_molecules() -> None:
    found = two_pixel_posterior((0.97, 0.95), 0.0, 0.1).point_estimate()
    assert len(found) == 2


def test_the_corner_of_four_pixels_is_one_molecule_and_below_the_threshold_is_none() -> None:
    base = make(8, 1, 6, 6)
    logit = torch.full((1, 6, 6), -9.0, dtype=torch.float64)
    logit[0, 2:4, 2:4] = float(torch.logit(torch.tensor(0.24)))
    offset = torch.zeros(1, 2, 6, 6, dtype=torch.float64)
    offset[0, 0, :, 2], offset[0, 0, :, 3], offset[0, 1, 2], offset[0, 1, 3] = 0.5, -0.5, 0.5, -0.5
    posterior = replace(
        base, logit=logit, offset_px=offset, offset_sigma_px=torch.full_like(offset, 0.2)
    )
    found = posterior.point_estimate()
    assert len(found) == 1
    torch.testing.assert_close(found.xyz[0, :2], torch.tensor([300.0, 300.0]), atol=0.1, rtol=0)
    assert len(posterior.point_estimate(0.97)) == 0
    assert len(replace(posterior, logit=logit - 3).point_estimate()) == 0


def test_frames_are_numbered_from_the_first_given() -> None:
    posterior = repeat(two_pixel_posterior((0.9, 0.01), -0.4, 0.05), 3)
    assert posterior.point_estimate(first_frame=10).frame.tolist() == [10, 11, 12]
