"""Laws of priors that draw PSFs, whatever kind they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from decode.conditioning import Domain, GaussianWidth
from decode.io.psfs import PSFFile, write_psf
from decode.optics.field import FieldSplinePSF
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import PSF
from decode.optics.spline import SplinePSF
from decode.priors.drawn import PSFs
from decode.priors.psf import FixedPSF, MeasuredPSF, PSFPrior
from decode.priors.pupils import PupilPrior

Z_NM = (-100.0, 100.0)
N_MOVIES = 3


def spline() -> SplinePSF:
    sharp = GaussianPSF(130.0, pixel_size_nm=100.0, patch_px=11)
    middle = torch.tensor([[550.0, 550.0, 0.0]]).expand(7, 3)
    stack = sharp.integrate_pixels(middle).detach()
    return SplinePSF.from_stack(stack, z_start_nm=-150.0, z_step_nm=50.0, pixel_size_nm=100.0)


def field_spline() -> FieldSplinePSF:
    middle = spline()
    changes = torch.zeros(2, *middle.coefficients.shape)
    field_nm = ((0.0, 4000.0), (0.0, 3000.0))
    return FieldSplinePSF(middle, changes, shifts_nm=torch.zeros(2, 2), field_nm=field_nm)


PRIORS: dict[str, PSFs] = {
    "Gaussian": PSFPrior().at(100.0, Z_NM),
    "round pupil": PSFPrior(pupil_fraction=1.0).at(100.0, Z_NM),
    "astigmatic pupil": PupilPrior().at(100.0, Z_NM),
    "one": FixedPSF(spline()),
    "one, blurred": FixedPSF(spline(), (10.0, 30.0)),
    "one over a field": FixedPSF(field_spline()),
}


@pytest.mark.parametrize("prior", PRIORS.values(), ids=list(PRIORS))
def test_shares_of_the_light_sum_to_one_and_each_movie_has_its_psf(prior: PSFs) -> None:
    drawn = prior.draw(N_MOVIES, torch.Generator().manual_seed(0))
    shares = torch.stack([light.share for light in drawn.lights])
    torch.testing.assert_close(shares.sum(0), torch.ones(N_MOVIES))
    assert len(drawn.psfs) == len(drawn.parameters) == N_MOVIES
    assert all(psf.pixel_size_nm == prior.psf.pixel_size_nm for psf in drawn.psfs)


@pytest.mark.parametrize("prior", PRIORS.values(), ids=list(PRIORS))
def test_a_network_takes_what_the_prior_conditions_it_on(prior: PSFs) -> None:
    domain = Domain(prior.domain)
    drawn = prior.draw(N_MOVIES, torch.Generator().manual_seed(0))
    assert isinstance(drawn.conditioning, domain.kind)
    context = domain.context_map(drawn.conditioning.values)
    assert context.shape[1] == len(prior.domain)
    assert bool((context.abs() <= 1.00001).all())


@pytest.mark.parametrize("name", ["Gaussian", "round pupil"])
def test_the_core_is_the_part_of_the_light_that_a_gaussian_of_the_known_width_fits(
    name: str,
) -> None:
    section = PSFPrior(told_error=0.0, pupil_fraction=float(name == "round pupil"))
    drawn = section.at(100.0, Z_NM).draw(N_MOVIES, torch.Generator().manual_seed(3))
    assert isinstance(drawn.conditioning, GaussianWidth)
    widths = torch.as_tensor(drawn.conditioning.sigma_px)
    for movie, sigma_px in enumerate(widths.tolist()):
        side = drawn.psfs[movie].patch_px
        middle = torch.tensor([[50.0 * side, 50.0 * side, 0.0]])
        image = torch.zeros(side, side)
        for light in drawn.lights:
            own = light.parameters[movie : movie + 1] if light.parameters.shape[1] else None
            image += light.share[movie] * light.psf.integrate_pixels(middle, own)[0]
        core = GaussianPSF(100 * sigma_px, pixel_size_nm=100.0, patch_px=side)
        design = core.integrate_pixels(middle).view(-1, 1)
        fitted = torch.linalg.lstsq(design, image.view(-1, 1)).solution
        assert float(drawn.core[movie]) == pytest.approx(float(fitted), rel=1e-3)
        assert 0.5 < float(drawn.core[movie]) < 0.99, "rings and halo are outside"


@pytest.mark.parametrize("name", ["astigmatic pupil", "one", "one, blurred", "one over a field"])
def test_all_light_of_a_psf_that_is_known_counts(name: str) -> None:
    drawn = PRIORS[name].draw(N_MOVIES, torch.Generator().manual_seed(0))
    assert drawn.core.tolist() == [1.0] * N_MOVIES


@pytest.mark.parametrize("psf", [spline(), field_spline()], ids=["spline", "field"])
def test_a_measured_psf_is_a_prior_of_one(tmp_path: Path, psf: PSF) -> None:
    write_psf(tmp_path / "psf.h5", PSFFile(psf=psf, z_range_nm=(-150.0, 150.0)))
    section = MeasuredPSF(file="psf.h5").beside(tmp_path)
    prior = section.at(100.0, Z_NM)
    assert section.files() == (tmp_path / "psf.h5",)
    drawn = prior.draw(2, torch.Generator().manual_seed(0))
    assert list(drawn.psfs) == [prior.known, prior.known]
    with pytest.raises(ValueError, match="has pixels of 100 nm, the recipe of 120 nm"):
        section.at(120.0, Z_NM)
    with pytest.raises(ValueError, match="measured from -150 to 150 nm"):
        section.at(100.0, (-200.0, 200.0))
