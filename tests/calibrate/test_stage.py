"""The distance of planes is checked against the images: beside it no false alarm, far from it
one sentence."""

from __future__ import annotations

from collections.abc import Callable
from math import pi
from pathlib import Path

import pytest
import torch
from torch import Tensor

from decode.calibrate.beads import find_beads
from decode.calibrate.stage import check_stage, sharpness
from decode.io.movies import open_movie
from decode.optics.camera import Camera
from decode.optics.pupil import PupilPSF

EMCCD = Camera(
    baseline=100.0, e_per_adu=45.0, read_noise_e=74.4, qe=0.9, em_gain=300.0, spurious_e=0.002
)
SAMPLE = Path(__file__).parents[2] / "sample_data"
RECORDED = {
    "challenge2016_beads/beads_as.tif": 10.0,
    "challenge2016_beads/beads_dh.tif": 10.0,
    "challenge2016_beads/beads_2d.tif": 10.0,
    "sim_astigmatic/beads.tif": 20.0,
    "sim_double_helix/beads.tif": 20.0,
    "sim_2d/beads.tif": 20.0,
}


def crops_of(path: Path) -> Tensor:
    with open_movie(path) as movie:
        photons = EMCCD.to_photons(torch.from_numpy(movie.read(0, len(movie)).astype("float32")))
    return torch.stack([bead.photons for bead in find_beads([photons], 31)[0]])


def simulated(psf: PupilPSF, z: Tensor, photons: float, rng: torch.Generator) -> Tensor:
    centre = psf.patch_px * psf.pixel_size_nm / 2
    xyz = torch.stack([torch.full_like(z, centre + 20), torch.full_like(z, centre - 30), z], 1)
    light = (
        photons * torch.cat([psf.integrate_pixels(part).detach() for part in xyz.split(16)]) + 10
    )
    return EMCCD.to_photons(EMCCD.sample(light.expand(2, *light.shape), rng))


def astigmatic() -> tuple[PupilPSF, float]:
    psf = PupilPSF(
        numerical_aperture=1.45,
        wavelength_nm=670.0,
        pixel_size_nm=100.0,
        patch_px=31,
        zernike_nm={(2, 2): 80.0},
    )
    return psf, 750.0


def plain_in_water() -> tuple[PupilPSF, float]:
    psf = PupilPSF(
        numerical_aperture=1.2,
        wavelength_nm=580.0,
        pixel_size_nm=110.0,
        immersion_index=1.33,
        patch_px=29,
    )
    return psf, 750.0


def tetrapod() -> tuple[PupilPSF, float]:
    """Over 6 um of depth."""
    psf = PupilPSF(
        numerical_aperture=1.45,
        wavelength_nm=670.0,
        pixel_size_nm=110.0,
        zernike_nm={(2, 2): -270.0, (4, 2): 180.0},
        patch_px=51,
    )
    return psf, 3000.0


def vortex() -> tuple[PupilPSF, float]:
    at = (torch.arange(48) + 0.5) / 24 - 1
    turn = torch.atan2(at[:, None].expand(48, 48), at.expand(48, 48)) / (2 * pi)
    psf = PupilPSF(
        numerical_aperture=1.4,
        wavelength_nm=670.0,
        pixel_size_nm=100.0,
        patch_px=25,
        phase_mask_nm=670 * turn,
    )
    return psf, 750.0


def assert_only_the_true_step_passes(crops: Tensor, step: float, pixel: float) -> None:
    assert check_stage(crops, step, pixel) == ()
    assert check_stage(crops, 1.3 * step, pixel) == ()
    assert check_stage(crops, step / 1.3, pixel) == ()
    for factor, change in ((10, "smaller"), (0.1, "larger")):
        with pytest.raises(
            ValueError, match=f"wrong by a factor, it should be {change}$"
        ) as refused:
            check_stage(crops, factor * step, pixel)
        assert "\n" not in str(refused.value)
    for factor, change in ((3, "smaller"), (1 / 3, "larger")):
        try:
            (sentence,) = check_stage(crops, factor * step, pixel)
        except ValueError as refused:
            sentence = str(refused)
        assert f"wrong by a factor, it should be {change}" in sentence


@pytest.mark.parametrize("name", RECORDED)
def test_steps_of_recorded_stacks(name: str, shared_data: Path) -> None:
    assert_only_the_true_step_passes(crops_of(shared_data / name), RECORDED[name], 100.0)


def test_step_of_the_sample_stack() -> None:
    with open_movie(SAMPLE / "beads_3d.tif") as movie:
        assert movie.z_step_nm is not None
        step = movie.z_step_nm
    assert_only_the_true_step_passes(crops_of(SAMPLE / "beads_3d.tif"), step, 100.0)


@pytest.mark.parametrize("photons", [2000.0, 30000.0])
@pytest.mark.parametrize("make", [astigmatic, plain_in_water, tetrapod, vortex])
def test_steps_of_simulated_stacks(
    make: Callable[[], tuple[PupilPSF, float]], photons: float, rng: torch.Generator
) -> None:
    psf, reach = make()
    z = torch.linspace(-reach, reach, 51)
    assert_only_the_true_step_passes(simulated(psf, z, photons, rng), reach / 25, psf.pixel_size_nm)


def test_the_slope_is_inverse_to_the_step_and_frequencies_to_the_pixel(
    rng: torch.Generator,
) -> None:
    crops = simulated(astigmatic()[0], torch.linspace(-500, 500, 21), 5000.0, rng)
    once, twice = sharpness(crops, 50.0, 100.0), sharpness(crops, 100.0, 100.0)
    wide = sharpness(crops, 50.0, 200.0)
    assert once is not None
    assert twice is not None
    assert wide is not None
    assert twice == pytest.approx((once.slope / 2, once.per_um))
    assert wide == pytest.approx((once.slope * 2, once.per_um / 2))


@pytest.mark.parametrize(("factor", "change"), [(4.0, "smaller"), (0.25, "larger")])
def test_a_wrong_pixel_size_is_told_from_a_wrong_step(
    factor: float, change: str, rng: torch.Generator
) -> None:
    crops = simulated(astigmatic()[0], torch.linspace(-500, 500, 21), 5000.0, rng)
    try:
        (sentence,) = check_stage(crops, 50.0, 100.0 * factor)
    except ValueError as refused:
        sentence = str(refused)
    assert f"the pixel size ({100 * factor:g} nm) is" in sentence
    assert f"wrong by a factor, it should be {change}" in sentence


def test_noise_alone_gives_no_verdict(rng: torch.Generator) -> None:
    crops = EMCCD.to_photons(EMCCD.sample(torch.full((2, 21, 25, 25), 50.0), rng))
    for step in (1.0, 50.0, 1000.0):
        assert check_stage(crops, step, 100.0) == ()
