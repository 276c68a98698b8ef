"""The Gaussian's fit recovers the curve that made the beads, on either side of round."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from decode.calibrate.beads import BeadSet
from decode.calibrate.gaussian import fit_gaussian
from decode.optics.camera import Camera, Noise
from decode.optics.gaussian import GaussianPSF

PIXEL_NM, SIDE = 110.0, 15
PLANES_NM = torch.arange(-500.0, 501.0, 50.0)
XY = torch.tensor([[841.0, 790.0], [812.0, 855.0]])
BACKGROUND = 7.0
EXCESS = 2 / 0.9
"""variance per photon on an EMCCD of 90 % quantum efficiency"""


def truth(gap_nm: float) -> GaussianPSF:
    return GaussianPSF(
        138.0,
        pixel_size_nm=PIXEL_NM,
        depth_nm=410.0,
        gap_nm=gap_nm,
        third=0.08,
        fourth=0.03,
        patch_px=SIDE,
    )


def beads(psf: GaussianPSF, light: Tensor, rng: torch.Generator) -> Tensor:
    """(bead, z, y, x) photons of twice the variance of Poisson and more, as an EMCCD measures
    them."""
    planes = len(PLANES_NM)
    at = torch.cat(
        [XY[:, None].expand(2, planes, 2), PLANES_NM[None, :, None].expand(2, planes, 1)], 2
    )
    share = psf.integrate_pixels(at.flatten(0, 1)).detach().view(2, planes, SIDE, SIDE)
    return EXCESS * torch.poisson(
        (light[..., None, None] * share + BACKGROUND) / EXCESS, generator=rng
    )


def bead_set(crops: Tensor, xy: Tensor = XY) -> BeadSet:
    """Beads about at (n, 2) nm."""
    return BeadSet(
        crops=crops,
        z_nm=PLANES_NM,
        xy=xy,
        corners_nm=torch.zeros_like(xy),
        stack=torch.zeros(len(xy), dtype=torch.long),
        noise=Noise(EXCESS, 0.0),
        camera=Camera(baseline=0.0, e_per_adu=1.0, read_noise_e=0.0),
        pixel_size_nm=PIXEL_NM,
        field_nm=((0.0, 1e4), (0.0, 1e4)),
    )


@pytest.mark.parametrize("gap_nm", [190.0, -190.0, 300.0, -300.0])
def test_the_curve_comes_back_with_the_sign_of_its_gap(gap_nm: float, rng: torch.Generator) -> None:
    light = 2e4 * (0.7 + 0.6 * torch.rand(2, len(PLANES_NM), generator=rng))
    found = fit_gaussian(bead_set(beads(truth(gap_nm), light, rng), XY + 25))
    z = torch.linspace(-500, 500, 41)
    widths, expected = (psf.widths(z).detach() for psf in (found.psf, truth(gap_nm)))
    assert ((widths / expected - 1).abs() < 0.01).all()
    assert float(found.psf.gap_nm.detach()) == pytest.approx(gap_nm, abs=6.0)
    torch.testing.assert_close(found.xyz[:, :2], XY, atol=2.0, rtol=0)
    assert float((found.photons / light - 1).abs().max()) < 0.06
    torch.testing.assert_close(found.background, torch.full((2,), BACKGROUND), atol=0.3, rtol=0)
    # of Poisson counts of three, as in the pixels around a bead, it is 1.05
    assert found.deviance == pytest.approx(1.05, abs=0.05)


def test_a_round_psf_has_no_gap(rng: torch.Generator) -> None:
    """x and y are equally sharp, though the fit starts from either sign."""
    light = torch.full((2, len(PLANES_NM)), 2e4)
    psf = GaussianPSF(138.0, pixel_size_nm=PIXEL_NM, depth_nm=410.0, patch_px=SIDE)
    found = fit_gaussian(bead_set(beads(psf, light, rng)))
    widths = found.psf.widths(torch.linspace(-400, 400, 17)).detach()
    assert float((widths[:, 0] / widths[:, 1] - 1).abs().max()) < 0.01


def test_another_model_than_a_gaussian_shows_in_the_deviance(rng: torch.Generator) -> None:
    """A lobe that holds a tenth of the light: the deviance says that the fit is wrong."""
    light = torch.full((2, len(PLANES_NM)), 2e4)
    main = beads(truth(190.0), 0.9 * light, rng)
    lobe = EXCESS * torch.poisson(
        0.1 * (main.roll(4, 3) - BACKGROUND).clamp_min(0) / EXCESS, generator=rng
    )
    found, right = (fit_gaussian(bead_set(crops)) for crops in (main + lobe, main))
    assert right.deviance == pytest.approx(1.05, abs=0.05)
    assert found.deviance > right.deviance + 0.3
