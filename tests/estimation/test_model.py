"""Moments that are predicted are those of light that is drawn from the scene."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from decode.estimation.model import Model, Parameters, shared_fraction, without_mean
from decode.estimation.moments import STEPS, saturation_rate
from decode.optics.camera import Camera
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import render
from decode.optics.spline import SplinePSF
from decode.priors.scene import Scene

EMCCD = Camera(
    baseline=100.0, e_per_adu=45.0, read_noise_e=74.4, qe=0.9, em_gain=300.0, spurious_e=0.002
)
ROUND = GaussianPSF(120.0, pixel_size_nm=100.0, patch_px=15)


def test_parameters_are_the_same_after_the_way_through_the_optimizer() -> None:
    parameters = Parameters(
        background=20.0,
        density=0.5,
        flux=2000.0,
        flux_variation=0.3,
        on_time=2.0,
        lasting=-0.1,
        width=0.4,
        z_centre=-0.2,
        z_extent=0.6,
    )
    back = Parameters.from_vector(parameters.to_vector())
    np.testing.assert_allclose(back.to_vector(), parameters.to_vector(), rtol=1e-12)
    assert back.flux == pytest.approx(2000)
    flat = Parameters.from_vector(parameters.to_vector()[:7])
    assert (flat.width, flat.z_centre, flat.z_extent) == (0.4, 0.0, 1.0)


@pytest.mark.parametrize("z_range_nm", [None, (-500.0, 700.0)])
def test_every_start_lies_within_its_bounds(z_range_nm: tuple[float, float] | None) -> None:
    """As many as the vector of parameters has, of a Gaussian and of what is blurred."""
    stack = np.ones((25, 15, 15)) / 225
    spline = SplinePSF.from_stack(stack, z_start_nm=-600.0, z_step_nm=60.0, pixel_size_nm=100.0)
    rate = saturation_rate(EMCCD, np.array(STEPS))
    for psf in (ROUND, spline):
        model = Model(
            psf, rate=rate, run=50, z_range_nm=z_range_nm, light_of_dark=8.0, light_of_all=9.0
        )
        assert len(model.start) == (7 if z_range_nm is None else 9)
        assert (model.low < model.start).all()
        assert (model.start < model.high).all()
        start = Parameters.from_vector(model.start)
        assert (start.background, start.density) == pytest.approx((4.0, 0.5))


@pytest.mark.parametrize("lag", [0, 1, 4])
@pytest.mark.parametrize("on_time", [0.7, 3.0])
def test_the_share_of_two_frames_is_the_integral_over_both(lag: int, on_time: float) -> None:
    t = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    numeric = torch.exp(-(t[:, None] - t - lag).abs() / on_time).mean()
    assert shared_fraction(on_time, lag) == pytest.approx(float(numeric), rel=1e-5)


def test_the_covariance_about_the_mean_of_a_run_is_that_of_centred_frames() -> None:
    """The same, by the matrix of a run's covariances between its frames, centred on both sides."""
    run = 20
    covariance = np.array([shared_fraction(4.0, lag) for lag in range(run)])
    frame = np.arange(run)
    matrix = covariance[abs(frame[:, None] - frame)]
    centre = np.eye(run) - 1 / run
    centred = centre @ matrix @ centre
    expected = [np.diagonal(centred, lag).mean() for lag in range(run)]
    np.testing.assert_allclose(without_mean(covariance), expected, atol=1e-12)


@pytest.mark.parametrize("on_time", [0.8, 2.5])
def test_the_laplace_transform_is_that_of_light_drawn_from_the_scene(
    rng: torch.Generator, on_time: float
) -> None:
    """A float64 mean over molecules, each in a frame of its own: logarithms of independent
    molecules add up."""
    scene = Scene(
        density_per_um2=(1.0, 1.0),
        flux_photons=(2000.0, 2000.0),
        flux_variation=(0.3, 0.3),
        on_time_frames=(on_time, on_time),
        filaments=0.5,
    )
    drawn = scene.sample_emitters(1, 4000, (32, 32), 100.0, rng)
    steps = np.array(STEPS) / 7
    rates = saturation_rate(EMCCD, steps)
    model = Model(
        ROUND,
        rate=rates,
        run=100,
        z_range_nm=None,
        light_of_dark=10.0,
        light_of_all=10.0,
    )
    predicted = model.light(
        Parameters(
            background=1.0,
            density=1.0,
            flux=2000.0,
            flux_variation=0.3,
            on_time=on_time,
            lasting=0.0,
            width=math.log(120.0),
        )
    )
    few = drawn[torch.randperm(len(drawn), generator=rng)[:4000]]
    xyz = torch.cat(
        [1600 + 100 * torch.rand(len(few), 2, generator=rng), torch.zeros(len(few), 1)], 1
    )
    light = torch.zeros(len(STEPS) + 1, dtype=torch.float64)
    with torch.no_grad():
        image = render(
            ROUND,
            frame=torch.arange(len(few)),
            xyz=xyz,
            photons=few.photons,
            n_frames=len(few),
            shape=(33, 33),
        ).double()
    light[0] = image.sum()
    for i, rate in enumerate(rates):
        light[i + 1] = -torch.expm1(-rate * image).sum()
    # molecules in a frame, for each that is on at once: those on when it starts, and those that
    # switch on
    counted = light / len(few) * (1 + 1 / on_time)
    np.testing.assert_allclose(predicted, counted.numpy(), rtol=0.05)
