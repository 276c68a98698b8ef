"""Laws of pupils that movies are drawn with."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from decode.conditioning import AstigmaticPupil
from decode.optics.gaussian import GaussianPSF, gaussian_centre_nm, gaussian_width_px
from decode.optics.pupil import MODES, PupilPSF
from decode.priors.drawn import DrawnPSFs
from decode.priors.pupils import PATCH_PX, PupilBank, PupilPrior, RoundPupilPrior

BANK = PupilBank(PupilPrior(), 100.0, (-600.0, 600.0), size=6)
ROUND = PupilBank(
    RoundPupilPrior(sigma_px=(1.0, 1.5), told_error=0.0), 100.0, (-200.0, 200.0), size=4
)


def known_of(drawn: DrawnPSFs) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(value) for name, value in drawn.conditioning.values.items()}


def pupil(sign: float = 1.0, scale: float = 1.0, index: float = 1.518) -> PupilPSF:
    waves = {
        (2, 2): 0.1 * sign,
        (2, -2): 0.02,
        (3, 1): 0.03,
        (3, -3): -0.02,
        (4, 0): 0.04,
        (4, 2): -0.01,
    }
    wavelength = 600 * scale * index / 1.518
    return PupilPSF(
        numerical_aperture=1.4 * index / 1.518,
        wavelength_nm=wavelength,
        pixel_size_nm=100.0 * scale,
        immersion_index=index,
        zernike_nm={mode: wavelength * c for mode, c in waves.items()},
        blur_nm=30.0 * scale,
    )


def images(psf: PupilPSF, z: torch.Tensor) -> torch.Tensor:
    middle = torch.full_like(z, psf.patch_px * psf.pixel_size_nm / 2)
    return psf.integrate_pixels(torch.stack([middle, middle, z], 1)).detach()


def test_a_mirrored_pupil_has_the_same_images_at_the_other_depth() -> None:
    psf = pupil(sign=-1)
    told = AstigmaticPupil.of_pupil(psf)
    assert told.mirrored
    assert told.values["zernike_2_2_waves"] == pytest.approx(0.1)
    assert told.values["zernike_3_1_waves"] == pytest.approx(0.03)
    same = PupilPSF(
        numerical_aperture=1.4,
        wavelength_nm=600.0,
        pixel_size_nm=100.0,
        zernike_nm={(n, m): 600 * told.values[f"zernike_{n}_{m}_waves"] for n, m in MODES},
        blur_nm=30.0,
    )
    z = torch.tensor([-500.0, -120.0, 0.0, 300.0])
    torch.testing.assert_close(images(same, -z), images(psf, z), atol=2e-6, rtol=1e-4)
    assert (images(same, z) - images(psf, z)).abs().max() > 1e-3


@pytest.mark.parametrize(("scale", "index"), [(1.3, 1.518), (1.0, 1.33)])
def test_a_network_is_conditioned_alike_on_scaled_optics(scale: float, index: float) -> None:
    psf, other = pupil(), pupil(scale=scale, index=index)
    one, two = AstigmaticPupil.of_pupil(psf), AstigmaticPupil.of_pupil(other)
    assert not one.mirrored
    for name, value in one.values.items():
        assert two.values[name] == pytest.approx(value, abs=1e-5), name
    z = torch.tensor([-400.0, 0.0, 250.0])
    torch.testing.assert_close(images(other, z * scale), images(psf, z), atol=1e-5, rtol=1e-3)


def test_what_users_know_is_what_is_drawn_but_for_their_error() -> None:
    prior = PupilPrior(untold_waves=0.0, told_error_waves=0.0)
    bank = PupilBank(prior, 100.0, (-500.0, 500.0), size=3)
    drawn = bank.draw(3, torch.Generator().manual_seed(1))
    known = known_of(drawn)
    for i, psf in enumerate(drawn.psfs):
        values = {name: float(value[i]) for name, value in known.items()}
        wavelength = 100 * values["wavelength_px"]
        direct = PupilPSF(
            numerical_aperture=values["numerical_aperture"],
            wavelength_nm=wavelength,
            pixel_size_nm=100.0,
            zernike_nm={(n, m): wavelength * values[f"zernike_{n}_{m}_waves"] for n, m in MODES},
            blur_nm=100 * values["blur_px"],
            apodization=values["apodization"],
            patch_px=psf.patch_px,
        )
        at = torch.tensor([[psf.patch_px * 50.0 + 17.0, psf.patch_px * 50.0 - 33.0, 210.0]])
        with torch.no_grad():
            seen, expected = psf.integrate_pixels(at), direct.integrate_pixels(at)
            middle = PATCH_PX * 50.0
            in_focus = direct.with_patch(PATCH_PX).integrate_pixels(
                torch.tensor([[middle, middle, 0.0]])
            )
        expected = expected / in_focus.sum()
        inner = slice(2, -2)  # beyond, the light of the spline's last voxels ends
        assert (seen - expected)[:, inner, inner].abs().max() < 0.01 * expected.max()


def test_all_light_of_an_emitter_in_focus_is_within_the_patch() -> None:
    for bank in (BANK, ROUND):
        psf = bank.draw(1, torch.Generator().manual_seed(5)).psfs[0]
        middle = psf.patch_px * 50.0
        with torch.no_grad():
            light = psf.integrate_pixels(torch.tensor([[middle, middle, 0.0]])).sum()
        assert light == pytest.approx(1.0, abs=0.01)


def test_the_width_of_a_gaussian_is_its_own() -> None:
    for sigma_px in (0.8, 1.3, 2.0):
        psf = GaussianPSF(100 * sigma_px, pixel_size_nm=100.0, depth_nm=400.0)
        assert gaussian_width_px(psf) == pytest.approx(sigma_px, rel=0.01)


def test_round_pupils_have_the_widths_that_are_asked_for_and_halos_of_an_objective() -> None:
    drawn = ROUND.draw(4, torch.Generator().manual_seed(6))
    for psf, sigma_px in zip(drawn.psfs, known_of(drawn)["psf_sigma_px"].tolist(), strict=True):
        assert 1.0 <= sigma_px <= 1.5
        assert gaussian_width_px(psf) == pytest.approx(sigma_px, rel=0.02)
        middle = psf.patch_px * 50.0
        with torch.no_grad():
            image = psf.integrate_pixels(torch.tensor([[middle, middle, 0.0]]))[0]
        half = math.ceil(2.5 * sigma_px)
        core = slice(psf.patch_px // 2 - half, psf.patch_px // 2 + half + 1)
        assert image[core, core].sum() < 0.97, "a Gaussian would hold 0.98 or more"


def comatic(x_nm: float, y_nm: float) -> PupilPSF:
    return PupilPSF(
        numerical_aperture=1.2,
        wavelength_nm=900.0,
        pixel_size_nm=100.0,
        zernike_nm={(3, 1): 30.0},
        offset_nm=(x_nm, y_nm, 0.0),
    )


def test_a_gaussian_is_centred_where_the_light_is() -> None:
    centre, moved = (gaussian_centre_nm(comatic(*at), 1.5) for at in ((0.0, 0.0), (12.0, -7.0)))
    shift = torch.tensor([12.0, -7.0])
    torch.testing.assert_close(moved, centre + shift, atol=0.2, rtol=0.0)
    assert centre[0].abs() > 2, "coma moves it"
    assert centre[1].abs() < 0.2


def test_molecules_lie_in_the_middle_of_the_gaussian_of_round_pupils() -> None:
    drawn = ROUND.draw(4, torch.Generator().manual_seed(6))
    for psf, sigma_px in zip(drawn.psfs, known_of(drawn)["psf_sigma_px"].tolist(), strict=True):
        assert gaussian_centre_nm(psf, sigma_px).abs().max() < 0.3


def test_widths_that_no_pupil_has_are_refused_in_a_sentence() -> None:
    impossible = RoundPupilPrior(sigma_px=(5.0, 6.0), wavelength_px=(4.0, 4.5))
    with pytest.raises(ValueError, match="no pupil of these ranges"):
        impossible.sample(100.0, torch.Generator().manual_seed(0))


def test_known_values_lie_in_their_ranges_and_old_psfs_are_renewed() -> None:
    rng = torch.Generator().manual_seed(2)
    first = BANK.draw(60, rng).psfs
    ranges = BANK.prior.context
    for _ in range(30):
        known = known_of(BANK.draw(4, rng))
        for name, (low, high) in ranges.items():
            assert bool(((known[name] >= low) & (known[name] <= high)).all()), name
    assert not {id(psf) for psf in first} & {id(psf) for psf in BANK.draw(60, rng).psfs}


def test_a_pupil_on_which_no_network_is_conditioned_is_refused() -> None:
    mask = PupilPSF(
        numerical_aperture=1.4,
        wavelength_nm=600.0,
        pixel_size_nm=100.0,
        phase_mask_nm=torch.zeros(44, 44),
    )
    with pytest.raises(ValueError, match="phase mask"):
        AstigmaticPupil.of_pupil(mask)
    high = PupilPSF(
        numerical_aperture=1.4, wavelength_nm=600.0, pixel_size_nm=100.0, zernike_nm={(6, 0): 30.0}
    )
    with pytest.raises(ValueError, match="aberrations"):
        AstigmaticPupil.of_pupil(high)
    with pytest.raises(ValueError, match="lowest value must come first"):
        replace(PupilPrior(), astigmatism_waves=(0.2, 0.1))
