"""A model for many pupils: what it is told of a calibrated PSF, and where its molecules are put."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from decode.calibrate.as_pupil import calibrated_pupil
from decode.conditioning import CalibratedPupil, Conditioning, KnownOptics
from decode.config import TrainConfig
from decode.emitters import EmitterSet
from decode.io.cameras import CameraFile
from decode.io.movies import write_movie
from decode.io.psfs import PSFFile, write_psf
from decode.io.tables import read_table
from decode.models import NEAREST, load_model
from decode.network.localizer import Localizer, NetworkConfig
from decode.optics.camera import Camera
from decode.optics.psf import PSF
from decode.optics.pupil import PupilPSF
from decode.priors.psf import MeasuredPSF
from decode.priors.pupils import PupilPrior
from decode.verbs.localize import localize_file
from decode.verbs.train import conditioned_for, starting_model

NETWORK = NetworkConfig(
    frame_widths=(8, 12), sequence_widths=(8, 12), head_width=8, axial=True, context_width=8
)
CAMERA = CameraFile(
    camera=Camera(baseline=100.0, e_per_adu=1.0, read_noise_e=1.0, qe=0.9), pixel_size_nm=110.0
)


@pytest.fixture
def model() -> Localizer:
    """Not trained, but sure of a molecule in many a pixel, at a depth that goes with what it is
    told."""
    torch.manual_seed(0)
    model = Localizer(NETWORK, PupilPrior().context)
    for name, weight in model.named_parameters():
        if "modulation" in name:
            torch.nn.init.normal_(weight, std=0.3)
    with torch.no_grad():
        assert model.out.bias is not None
        model.out.weight.mul_(20)
        model.out.bias[0] = 1.0
    return model.eval()


@pytest.fixture
def movie(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    write_movie(tmp_path / "movie.tif", (100 + rng.poisson(30, (3, 16, 20))).astype(np.uint16))
    return tmp_path / "movie.tif"


def pupil(astigmatism_nm: float, *, pixel_size_nm: float = 110.0, z_nm: float = 0.0) -> PupilPSF:
    return PupilPSF(
        numerical_aperture=1.4,
        wavelength_nm=600.0,
        pixel_size_nm=pixel_size_nm,
        zernike_nm={(2, 2): astigmatism_nm, (3, 1): 10.0},
        blur_nm=30.0,
        offset_nm=(20.0, -10.0, z_nm),
    )


def vortex() -> PupilPSF:
    """Its phase winds twice around the axis, which no smooth wave front does."""
    at = torch.arange(40) - 19.5
    winding = 2 * torch.atan2(at[:, None], at)
    return PupilPSF(
        numerical_aperture=1.4,
        wavelength_nm=600.0,
        pixel_size_nm=110.0,
        phase_mask_nm=winding * 600 / (2 * torch.pi),
        patch_px=17,
    )


def file(psf: PSF) -> PSFFile:
    return PSFFile(psf=psf, z_range_nm=(-600.0, 600.0))


def conditioning(model: Localizer, psf: PSFFile) -> Conditioning:
    pupil = partial(calibrated_pupil, psf)
    return model.domain.conditioning(KnownOptics(pixel_size_nm=psf.psf.pixel_size_nm, pupil=pupil))


def found(movie: Path, model: Localizer, psf: PSFFile | None) -> EmitterSet:
    out = movie.parent / "out"
    # the likelihood would take nothing of what an untrained network lists
    done = localize_file(movie, model, out, camera=CAMERA, psf=psf, formats=["csv"], polish=False)
    assert done.n_molecules > 50
    return read_table(out / "movie.csv")


def test_pixels_of_another_size_are_refused_before_a_pupil_is_fitted(model: Localizer) -> None:
    def fit() -> CalibratedPupil:
        raise AssertionError("a fit of seconds")

    optics = KnownOptics(pixel_size_nm=100.0, psf_pixel_size_nm=110.0, pupil=fit)
    with pytest.raises(
        ValueError, match=r"the PSF was calibrated for pixels of 110 nm, the movie's are 100 nm"
    ):
        model.domain.conditioning(optics)


def test_a_pupil_upside_down_and_elsewhere_gives_the_same_molecules_there(
    model: Localizer, movie: Path
) -> None:
    upright = found(movie, model, file(pupil(70.0)))
    turned = found(movie, model, file(pupil(-70.0, z_nm=50.0)))
    assert upright.xyz[:, 2].std() > 20
    torch.testing.assert_close(turned.xyz[:, :2], upright.xyz[:, :2], atol=0.02, rtol=0)
    # an emitter at z is seen at z + 50, which the network takes for -(z + 50)
    torch.testing.assert_close(turned.xyz[:, 2], -upright.xyz[:, 2] - 50, atol=0.02, rtol=0)
    other = found(movie, model, file(pupil(100.0)))
    assert len(other) != len(upright) or (other.xyz - upright.xyz).abs().max() > 1, (
        "it hears what it is told"
    )


def test_a_model_conditioned_on_a_psf_beforehand_puts_molecules_where_one_that_is_given_it_does(
    model: Localizer, movie: Path
) -> None:
    psf = file(pupil(-70.0, z_nm=50.0))
    write_psf(movie.parent / "psf.h5", psf)
    recipe = TrainConfig(pixel_size_nm=110.0, psf=MeasuredPSF(file=str(movie.parent / "psf.h5")))
    settled = conditioned_for(model, recipe)
    assert conditioned_for(settled, recipe) is settled
    told, own = found(movie, model, psf), found(movie, settled, None)
    torch.testing.assert_close(own.xyz[:, 2], told.xyz[:, 2], atol=0.05, rtol=0)


def test_the_nearest_model_is_the_one_that_knows_the_psf(tmp_path: Path) -> None:
    def nearest(psf: PSFFile, network: NetworkConfig) -> Localizer | None:
        write_psf(tmp_path / "psf.h5", psf)
        recipe = TrainConfig(
            pixel_size_nm=psf.psf.pixel_size_nm,
            psf=MeasuredPSF(file=str(tmp_path / "psf.h5")),
            network=network,
        )
        return starting_model(NEAREST, recipe)

    shipped = load_model("astigmatic-3d").network
    network = replace(shipped, context_width=0)
    astigmatic, twisted = nearest(file(pupil(70.0)), network), nearest(file(vortex()), network)
    assert astigmatic is not None
    assert astigmatic.network.axial
    assert twisted is not None
    assert not twisted.network.axial
    assert nearest(file(pupil(70.0)), replace(network, head_width=8)) is None


def test_what_it_cannot_be_told_is_said(model: Localizer, movie: Path) -> None:
    with pytest.raises(ValueError, match="is conditioned on that of the movie"):
        found(movie, model, None)
    with pytest.raises(ValueError, match="pupils with a cylindrical lens, which the PSF is not"):
        conditioning(model, file(vortex().to_spline(z_range_nm=(-650.0, 650.0), z_step_nm=50.0)))
    with pytest.raises(ValueError, match="phase mask"):
        conditioning(model, file(vortex()))
    with pytest.raises(ValueError, match="zernike_2_2_waves = 0 lies outside the range"):
        conditioning(model, file(pupil(0.0)))
    with pytest.raises(ValueError, match="calibrated for pixels of 100 nm, the movie's are 110 nm"):
        found(movie, model, file(pupil(70.0, pixel_size_nm=100.0)))
    nearly = replace(file(pupil(28.0)), n_beads=1)
    assert (
        conditioning(model, nearly).values["zernike_2_2_waves"] == PupilPrior().astigmatism_waves[0]
    ), "the nearest does"
