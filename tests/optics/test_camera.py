"""Camera: the counts it draws, undoes and finds probable speak of one distribution."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor

from decode.optics.camera import Camera

SCMOS = Camera(
    baseline=100.3, e_per_adu=0.48, read_noise_e=1.6, qe=0.8, spurious_e=0.05, saturation_adu=4095
)
CCD = Camera(baseline=20.0, e_per_adu=4.0, read_noise_e=7.0, qe=0.9, saturation_adu=16383)
EMCCD = Camera(
    baseline=100.0,
    e_per_adu=45.0,
    read_noise_e=74.4,
    qe=0.9,
    em_gain=300.0,
    spurious_e=0.002,
    saturation_adu=16383,
)
LOW_GAIN = Camera(
    baseline=200.0,
    e_per_adu=5.0,
    read_noise_e=30.0,
    em_gain=20.0,
    spurious_e=0.4,
    saturation_adu=65535,
)
CAMERAS = pytest.mark.parametrize(
    "camera", [SCMOS, CCD, EMCCD, LOW_GAIN], ids=["scmos", "ccd", "emccd", "low_gain"]
)
PHOTONS = pytest.mark.parametrize("photons", [0.0, 0.3, 5.0, 120.0])


def double(value: float | list[float]) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def rate(camera: Camera, photons: float) -> float:
    return float(photons * camera.qe + camera.spurious_e)


def pmf(camera: Camera, photons: float) -> tuple[Tensor, Tensor]:
    """Every count that is at all likely, and its probability."""
    top = min(
        camera.saturation_adu,
        400 + 25 * (photons + 30) * (camera.em_gain or 1.0) / camera.e_per_adu,
    )
    counts = torch.arange(top + 1, dtype=torch.float64)
    return counts, camera.log_prob(counts, double(photons).expand_as(counts)).exp()


def edges(camera: Camera, adu: float) -> tuple[float, float]:
    """Electrons at the output between which a count is written."""
    low, high = ((adu + half - camera.baseline) * camera.e_per_adu for half in (-0.5, 0.5))
    return (-np.inf if adu <= 0 else float(low)), (
        np.inf if adu >= camera.saturation_adu else float(high)
    )


def poisson_gauss(camera: Camera, adu: float, photons: float) -> float:
    """Log probability by summing over every number of electrons."""
    mean = rate(camera, photons)
    n = np.arange(int(mean + 40 * np.sqrt(mean) + 200))
    low, high = ((edge - n) / camera.read_noise_e for edge in edges(camera, adu))
    upper = special.ndtr(-low) - special.ndtr(-high)
    mass = np.where(low > 0, upper, special.ndtr(high) - special.ndtr(low))
    return float(np.log((stats.poisson.pmf(n, mean) * mass).sum()))


def poisson_gamma_gauss(camera: Camera, adu: float, photons: float) -> float:
    """Log probability by summing over the electrons, and over the read noise on a fine grid."""
    assert camera.em_gain is not None
    mean, gain, noise = rate(camera, photons), camera.em_gain, camera.read_noise_e
    low, high = edges(camera, adu)
    z = np.linspace(-8, 8, 801)
    weight = stats.norm.pdf(z) * (z[1] - z[0])
    n = np.arange(1, int(mean + 12 * np.sqrt(mean) + 40))[:, None]
    upper, lower = (
        special.gammainc(n, np.maximum(edge - noise * z, 0) / gain) for edge in (high, low)
    )
    none = np.exp(-mean) * (special.ndtr(high / noise) - special.ndtr(low / noise))
    return float(np.log(none + (stats.poisson.pmf(n, mean) * (upper - lower) * weight).sum()))


@CAMERAS
@PHOTONS
def test_probabilities_of_all_counts_sum_to_one(camera: Camera, photons: float) -> None:
    assert pmf(camera, photons)[1].sum().item() == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("camera", [SCMOS, EMCCD], ids=["scmos", "emccd"])
@pytest.mark.parametrize("photons", [0.5, 60.0, 300.0])
def test_the_ends_collect_what_is_clipped(camera: Camera, photons: float) -> None:
    """A converter of few counts around an offset near 0: its ends hold the tails of the one that
    does not clip."""
    span = camera.em_gain or 1.0
    top = float(round(2 + 60 * span / camera.e_per_adu))
    clipping = replace(camera, baseline=2.0, saturation_adu=top)
    shift = 3000.0
    free = replace(camera, baseline=2.0 + shift, saturation_adu=1e6)
    counts = torch.arange(
        shift + 100 + 6 * (photons + 60) * span / camera.e_per_adu, dtype=torch.float64
    )
    p = free.log_prob(counts, double(photons).expand_as(counts)).exp()
    below, above = p[counts <= shift].sum().item(), p[counts >= shift + top].sum().item()
    found = clipping.log_prob(double([0.0, top]), double([photons, photons])).exp().tolist()
    assert found == pytest.approx([below, above], rel=1e-4, abs=1e-12)


@CAMERAS
@PHOTONS
def test_mean_and_variance_are_those_of_theory(camera: Camera, photons: float) -> None:
    counts, p = pmf(camera, photons)
    found = camera.to_photons(counts)
    mean = (p * found).sum()
    variance = (p * (found - mean) ** 2).sum()
    assert mean.item() == pytest.approx(photons, abs=1e-3)
    assert variance.item() == pytest.approx(
        camera.excess_factor * photons / float(camera.qe) + camera.noise_floor.item(), rel=2e-3
    )


@CAMERAS
@PHOTONS
def test_drawn_counts_have_the_mean_and_variance_of_theory(
    camera: Camera, photons: float, rng: torch.Generator
) -> None:
    n = 100_000
    drawn = camera.to_photons(camera.sample(torch.full((n,), photons), rng)).double()
    variance = camera.excess_factor * photons / float(camera.qe) + camera.noise_floor.item()
    assert drawn.mean().item() == pytest.approx(photons, abs=5 * (variance / n) ** 0.5)
    assert drawn.var().item() == pytest.approx(variance, rel=0.06)


@CAMERAS
@PHOTONS
def test_drawn_counts_are_as_frequent_as_they_are_probable(
    camera: Camera, photons: float, rng: torch.Generator
) -> None:
    n = 200_000
    drawn = camera.sample(torch.full((n,), photons), rng).long().numpy()
    p = pmf(camera, photons)[1].numpy()
    # neighbouring counts are pooled until each pool expects 50 or more
    pool = np.minimum((np.cumsum(p) * n // 50).astype(int), int((1 - 1e-9) * n // 50) - 1)
    _, pool = np.unique(pool, return_inverse=True)
    expected = np.bincount(pool, p) * n
    observed = np.bincount(pool[np.minimum(drawn, len(p) - 1)], minlength=len(expected))
    assert stats.chisquare(observed, expected * n / expected.sum()).pvalue > 1e-4


@pytest.mark.parametrize("noise", [0.3, 1.6, 30.0])
@pytest.mark.parametrize("e_per_adu", [0.25, 1.0, 5.0])
@pytest.mark.parametrize("photons", [0.0, 0.5, 10.0, 40.0, 5000.0, 60000.0])
def test_log_prob_equals_the_sum_over_electrons(
    noise: float, e_per_adu: float, photons: float
) -> None:
    camera = Camera(
        baseline=500.0, e_per_adu=e_per_adu, read_noise_e=noise, qe=0.8, saturation_adu=1e6
    )
    spread = (photons * 0.8 + noise**2) ** 0.5
    adu = [
        float(round(500 + (photons * 0.8 + k * spread) / e_per_adu))
        for k in (-4, -2, -0.5, 0, 1, 3, 5)
    ]
    expected = [poisson_gauss(camera, a, photons) for a in adu]
    found = camera.log_prob(double(adu), double(photons).expand(len(adu)))
    likely = np.array(expected) > -35  # a sum of 64-bit numbers cannot follow further
    np.testing.assert_allclose(found.numpy()[likely], np.array(expected)[likely], atol=1e-4)


@pytest.mark.parametrize("noise", [1.3, 30.0])
@pytest.mark.parametrize("photons", [1.0, 20.0, 1000.0, 20000.0])
def test_counts_that_nobody_expects_are_as_improbable_as_the_sum_says(
    noise: float, photons: float
) -> None:
    camera = Camera(baseline=5000.0, e_per_adu=0.5, read_noise_e=noise, qe=0.8, saturation_adu=1e6)
    spread = (photons * 0.8 + noise**2) ** 0.5
    sigmas = double([-12.0, -9.0, -7.0, 7.0, 9.0, 12.0, 20.0, 40.0])
    adu = (5000 + (photons * 0.8 + sigmas * spread) / 0.5).round()
    n = torch.arange(60000, dtype=torch.float64)
    log_mass = n * math.log(photons * 0.8) - photons * 0.8 - torch.lgamma(n + 1)
    away = (n - (adu[:, None] - 5000) * 0.5).abs() / noise
    near, far = (torch.special.log_ndtr(half / noise - away) for half in (0.25, -0.25))
    expected = torch.logsumexp(log_mass + near + torch.log(-torch.expm1(far - near)), 1)
    found = camera.log_prob(adu, double(photons).expand(len(adu)))
    assert float((found - expected).abs().max()) < 1e-3


@pytest.mark.parametrize("camera", [LOW_GAIN, replace(LOW_GAIN, em_gain=100.0, read_noise_e=150.0)])
@pytest.mark.parametrize(("photons", "sigmas"), [(1.0, 20.0), (20.0, 12.0), (1000.0, 9.0)])
def test_outputs_that_nobody_expects_are_as_improbable_as_the_sum_says(
    camera: Camera, photons: float, sigmas: float
) -> None:
    assert camera.em_gain is not None
    mean = rate(camera, photons)
    spread = math.sqrt(2 * mean) * camera.em_gain + camera.read_noise_e
    output = mean * camera.em_gain + sigmas * spread
    adu = float(round(camera.baseline + output / camera.e_per_adu))
    root, t = math.sqrt(mean), torch.linspace(1e-6, 100.0, 10**6, dtype=torch.float64)
    bessel = torch.special.i1e(2 * root * t).log()
    log_mass = math.log(2 * root * float(t[1] - t[0])) - (t - root) ** 2 + bessel
    middle = (adu - camera.baseline) * camera.e_per_adu
    away = (camera.em_gain * t**2 - middle).abs() / camera.read_noise_e
    half = camera.e_per_adu / 2 / camera.read_noise_e
    near, far = torch.special.log_ndtr(half - away), torch.special.log_ndtr(-half - away)
    expected = torch.logsumexp(log_mass + near + torch.log(-torch.expm1(far - near)), 0)
    found = camera.log_prob(double([adu]), double([photons]))
    assert float(found) == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.parametrize("full_well", [900.0, 60000.0])
@pytest.mark.parametrize("noise", [0.5, 12.0])
def test_saturation_equals_the_sum_over_electrons(full_well: float, noise: float) -> None:
    camera = Camera(
        baseline=100.0, e_per_adu=1.0, read_noise_e=noise, saturation_adu=100 + full_well
    )
    photons = [full_well + k * full_well**0.5 for k in (-6, -2, -0.3, 0, 1, 4)]
    expected = [poisson_gauss(camera, camera.saturation_adu, value) for value in photons]
    found = camera.log_prob(torch.full((len(photons),), camera.saturation_adu), double(photons))
    np.testing.assert_allclose(found.numpy(), expected, atol=3e-4)


@pytest.mark.parametrize("camera", [EMCCD, LOW_GAIN, replace(EMCCD, read_noise_e=10.0)])
@pytest.mark.parametrize("photons", [0.0, 0.05, 1.0, 20.0, 100.0])
def test_log_prob_equals_the_sum_over_register_outputs(camera: Camera, photons: float) -> None:
    assert camera.em_gain is not None
    mean = rate(camera, photons)
    spread = (2 * mean * camera.em_gain**2 + camera.read_noise_e**2) ** 0.5
    output = [
        -2 * camera.read_noise_e,
        *(mean * camera.em_gain + k * spread for k in (-0.5, 0, 1, 4)),
    ]
    adu = [float(round(camera.baseline + electrons / camera.e_per_adu)) for electrons in output]
    expected = [poisson_gamma_gauss(camera, a, photons) for a in adu]
    found = camera.log_prob(double(adu), double(photons).expand(len(adu)))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


@CAMERAS
def test_gradient_agrees_with_finite_differences(camera: Camera, rng: torch.Generator) -> None:
    photons = double([0.2, 3.0, 40.0, 900.0, 50.0, 2.0]).requires_grad_()
    adu = camera.sample(photons.detach(), rng)
    adu[-2], adu[-1] = 0, camera.saturation_adu
    assert torch.autograd.gradcheck(
        lambda p: camera.log_prob(adu, p), (photons,), eps=1e-5, atol=1e-5, rtol=1e-4
    )


@CAMERAS
def test_the_score_is_zero_on_average(camera: Camera) -> None:
    photons = double(7.0).requires_grad_()
    counts, _ = pmf(camera, 7.0)
    p = camera.log_prob(counts, photons.expand_as(counts)).exp()
    assert torch.autograd.grad(p.sum(), photons)[0].abs() < 1e-6


@CAMERAS
def test_counts_beyond_belief_have_a_finite_log_probability_and_gradient(camera: Camera) -> None:
    adu = double(
        [0.0, camera.saturation_adu, camera.saturation_adu - 1, 0.0, camera.saturation_adu]
    )
    photons = double([1e5, 0.0, 0.0, 0.0, 1e6]).requires_grad_()
    log_p = camera.log_prob(adu, photons)
    log_p.sum().backward()
    assert log_p.isfinite().all()
    assert photons.grad is not None
    assert photons.grad.isfinite().all()


@pytest.mark.parametrize("em_gain", [None, 200.0])
def test_maps_work_pixel_by_pixel(em_gain: float | None, rng: torch.Generator) -> None:
    def field(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(3, 4, generator=rng, dtype=torch.float64)

    maps = {
        "baseline": field(90, 110),
        "e_per_adu": field(0.4, 0.6),
        "read_noise_e": field(1, 9),
        "qe": field(0.6, 0.9),
        "spurious_e": field(0, 0.1),
    }
    camera = Camera(em_gain=em_gain, **maps)
    photons = 50 * torch.rand(2, 3, 4, generator=rng, dtype=torch.float64)
    adu = camera.sample(photons, rng)
    together, back = camera.log_prob(adu, photons), camera.to_photons(adu)
    for y in range(3):
        for x in range(4):
            pixel = Camera(em_gain=em_gain, **{name: m[y, x].item() for name, m in maps.items()})
            torch.testing.assert_close(
                together[:, y, x], pixel.log_prob(adu[:, y, x], photons[:, y, x])
            )
            torch.testing.assert_close(back[:, y, x], pixel.to_photons(adu[:, y, x]))
    part = camera.crop(slice(1, 3), slice(0, 2))
    torch.testing.assert_close(
        together[:, 1:3, :2], part.log_prob(adu[:, 1:3, :2], photons[:, 1:3, :2])
    )


@CAMERAS
def test_single_precision_in_single_precision_out(camera: Camera, rng: torch.Generator) -> None:
    photons = torch.rand(40, generator=rng) * 2000
    adu = camera.sample(photons, rng)
    single, exact = camera.log_prob(adu, photons), camera.log_prob(adu, photons.double())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, atol=1e-6, rtol=1e-6)


@CAMERAS
def test_counts_are_whole_and_within_range(camera: Camera, rng: torch.Generator) -> None:
    drawn = camera.sample(torch.tensor([0.0, 10.0, 1e6]).expand(1000, 3), rng)
    assert torch.equal(drawn, drawn.round())
    assert drawn.min() >= 0
    assert (drawn[:, 2] == camera.saturation_adu).all()


@CAMERAS
def test_a_seed_repeats_the_noise(camera: Camera, rng: torch.Generator) -> None:
    photons = torch.full((50,), 20.0)
    state = rng.get_state()
    first = camera.sample(photons, rng)
    assert torch.equal(first, camera.sample(photons, rng.set_state(state)))
    assert not torch.equal(first, camera.sample(photons, rng))


def wrong(**change: float) -> Callable[[], Camera]:
    return lambda: replace(EMCCD, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (wrong(e_per_adu=0.0), "e_per_adu must be positive"),
        (wrong(em_gain=-300.0), "em_gain must be positive"),
        (wrong(qe=1.2), "at most 1"),
        (wrong(qe=0.0), "qe must be positive"),
        (wrong(read_noise_e=-1.0), "must not be negative"),
    ],
)
def test_an_impossible_camera_is_refused(make: Callable[[], Camera], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("value", [0.0, 65535.0, float("nan")])
def test_what_a_bad_pixel_reads_changes_nothing(value: float) -> None:
    bad = torch.zeros(9, 12, dtype=torch.bool)
    bad[4, :] = bad[0, 0] = bad[2, 5] = True
    camera = replace(SCMOS, bad=bad)
    clean = 50 + 3 * torch.arange(12.0).expand(2, 9, 12)
    filled = camera.without_bad(torch.where(bad, value, clean))
    assert torch.equal(filled[:, ~bad], clean[:, ~bad])
    torch.testing.assert_close(filled[:, 4, 1:-1], clean[:, 4, 1:-1], msg="neighbours tell a row")
    torch.testing.assert_close(filled[:, 2, 5], clean[:, 2, 5])
    adu = torch.where(bad, 7.0, 160.0)
    log_prob = camera.log_prob(adu, clean[0])
    assert (log_prob[bad] == 0).all()
    assert (log_prob[~bad] < 0).all()


def test_a_cluster_too_large_for_its_neighbours_has_the_mean_of_the_frame() -> None:
    bad = torch.zeros(20, 20, dtype=torch.bool)
    bad[3:17, 3:17] = True
    filled = replace(SCMOS, bad=bad).without_bad(torch.full((20, 20), 12.0).masked_fill(bad, 1e4))
    torch.testing.assert_close(filled, torch.full((20, 20), 12.0))


def test_the_noise_of_a_bead_is_that_of_its_pixels() -> None:
    maps = torch.arange(600.0).view(20, 30)
    camera = Camera(baseline=0.0, e_per_adu=1.0, read_noise_e=maps, qe=0.5)
    noise = camera.noise_of_crops([(3, 5), (10, 2)], 4)
    assert isinstance(noise.floor, Tensor)
    torch.testing.assert_close(noise.floor[1, 0], camera.noise_floor[2:6, 10:14])
    torch.testing.assert_close(noise[[1]].floor, noise.floor[1:])
    assert noise[0].variance(torch.ones(2, 4, 4)).shape == (2, 4, 4)
    assert noise.typical.floor == float(noise.floor.median())
    assert camera.typical_noise.floor == float(camera.noise_floor.median())


def test_noise_is_that_of_the_camera() -> None:
    camera = Camera(
        baseline=100.0, e_per_adu=45.0, read_noise_e=74.4, qe=0.9, em_gain=300.0, spurious_e=0.002
    )
    noise = camera.typical_noise
    assert noise.excess == pytest.approx(2 / 0.9)
    assert noise.floor == pytest.approx(float(camera.noise_floor))
    torch.testing.assert_close(
        noise.variance(torch.tensor([10.0])), torch.tensor([10 * 2 / 0.9 + noise.floor])
    )
