"""The fit finds the pupil that made the beads, and says how well."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor

from decode.calibrate.pupil import fit_images, fit_pupil
from decode.optics.camera import Camera
from decode.optics.pupil import PupilPSF

PATCH_PX = 15
PLANES_NM = torch.arange(-600.0, 601.0, 75.0)
CHALLENGE = Camera(
    baseline=100.0, e_per_adu=45.0, read_noise_e=74.4, qe=0.9, em_gain=300.0, spurious_e=0.002
)


def pupil(aperture: float = 1.4, blur_nm: float = 40.0, **zernike: float) -> PupilPSF:
    modes = {(2, -2): "oblique", (2, 2): "astigmatism", (3, 1): "coma", (4, 0): "spherical"}
    return PupilPSF(
        numerical_aperture=aperture,
        wavelength_nm=660.0,
        pixel_size_nm=110.0,
        patch_px=PATCH_PX,
        grid=20,
        zernike_nm={mode: zernike.get(name, 0.0) for mode, name in modes.items()},
        blur_nm=blur_nm,
    )


def beads(psf: PupilPSF, xyz: Tensor, rng: torch.Generator, photons: float = 2e4) -> Tensor:
    """(bead, z, y, x) photons with Poisson noise; xyz is of each bead, nm."""
    position = xyz[:, None].repeat(1, len(PLANES_NM), 1)
    position[:, :, 2] += PLANES_NM
    mean = photons * psf.integrate_pixels(position.flatten(0, 1)).detach() + 12.0
    return torch.poisson(mean, generator=rng).view(len(xyz), len(PLANES_NM), PATCH_PX, PATCH_PX)


TWO = torch.tensor([[800.0, 860.0, 60.0], [850.0, 790.0, -90.0]])


@pytest.mark.parametrize(
    "zernike",
    [
        {"astigmatism": 55.0, "oblique": 12.0, "coma": -15.0, "spherical": -20.0},
        {"astigmatism": -60.0, "coma": 10.0},
        {"oblique": -50.0, "spherical": 15.0},
    ],
)
def test_the_pupil_comes_back_from_a_start_without_aberrations(
    zernike: dict[str, float], rng: torch.Generator
) -> None:
    truth = pupil(**zernike)
    found = fit_pupil(beads(truth, TWO, rng), z_nm=PLANES_NM, psf=pupil(blur_nm=20.0))
    deviation = found.covariance.diagonal().sqrt()
    error = found.psf.zernike_nm.detach() - truth.zernike_nm.detach()
    assert error.abs().max() < 2.0
    assert (error.abs() < 5 * deviation[:4]).all()
    assert found.misfit == pytest.approx(1.0, abs=0.05)
    torch.testing.assert_close(found.xyz_nm, TWO, atol=8.0, rtol=0)
    assert found.photons.numpy() == pytest.approx(2e4, rel=0.05)
    assert float(found.background.median()) == pytest.approx(12.0, rel=0.05)


def test_the_aperture_can_be_freed(rng: torch.Generator) -> None:
    truth = pupil(1.35, astigmatism=50.0)
    start = pupil(1.45, astigmatism=50.0)
    stack = beads(truth, TWO, rng)
    found = fit_pupil(
        stack, z_nm=PLANES_NM, psf=start, free=(*start.parameter_names, "numerical_aperture")
    )
    value, deviation = found["numerical_aperture"]
    assert value == pytest.approx(1.35, abs=max(5 * deviation, 0.004))
    assert 0 < deviation < 0.01


def test_the_stated_deviation_is_the_spread_found(rng: torch.Generator) -> None:
    """Over twelve draws of the noise; chi^2 of 12 * 4 normal numbers lies within these limits
    but once in 10^4."""
    truth = pupil(astigmatism=50.0, coma=10.0)
    total = 0.0
    for _ in range(12):
        images = beads(truth, TWO[:1], rng, photons=3000.0)[0]
        found = fit_images(
            images,
            source=torch.zeros(len(images), dtype=torch.long),
            z_nm=PLANES_NM,
            psf=truth,
            xyz_nm=TWO[:1],
        )
        error = (found.psf.zernike_nm - truth.zernike_nm).detach().double()
        total += float((error**2 / found.covariance.diagonal()[:4]).sum())
    assert 0.4 < total / 48 < 1.9


def test_a_fixed_pupil_gives_unbiased_positions(rng: torch.Generator) -> None:
    """With nothing of the pupil free, `fit_images` is the maximum-likelihood localization of
    every image."""
    truth = pupil(astigmatism=60.0)
    n = 60
    xyz = torch.tensor([825.0, 825.0, 0.0]) + (
        torch.rand(n, 3, generator=rng) - 0.5
    ) * torch.tensor([100.0, 100, 800])
    images = torch.poisson(5000 * truth.integrate_pixels(xyz).detach() + 10, generator=rng)
    start = xyz + torch.tensor([30.0, -30.0, 50.0])
    found = fit_images(
        images,
        source=torch.arange(n),
        z_nm=torch.zeros(n),
        psf=truth,
        xyz_nm=start,
        free=(),
        steps=30,
    )
    error = found.xyz_nm - xyz
    spread = error.std(0)
    assert (error.mean(0).abs() < 4 * spread / n**0.5).all()
    assert spread[2] < 25
    torch.testing.assert_close(found.psf.zernike_nm, truth.zernike_nm)


def test_a_stack_counted_backwards_gives_the_mirrored_pupil(rng: torch.Generator) -> None:
    """No fit can tell the two, so this one must not pretend: the sign of even aberrations
    follows that of z."""
    stack = beads(pupil(astigmatism=55.0, coma=12.0), TWO[:1], rng)
    up = fit_pupil(stack, z_nm=PLANES_NM, psf=pupil())
    down = fit_pupil(stack, z_nm=-PLANES_NM, psf=pupil())
    mirror = torch.tensor([-1.0, -1.0, 1.0, -1.0])
    torch.testing.assert_close(down.psf.zernike_nm, up.psf.zernike_nm * mirror, atol=0.5, rtol=0)
    assert down.misfit == pytest.approx(up.misfit, abs=0.01)


def test_wrong_stacks_are_refused(rng: torch.Generator) -> None:
    stack = beads(pupil(), TWO, rng)
    with pytest.raises(ValueError, match="planes"):
        fit_pupil(stack, z_nm=PLANES_NM[:-1], psf=pupil())
    with pytest.raises(ValueError, match="at least 5"):
        fit_pupil(stack[:, :4], z_nm=PLANES_NM[:4], psf=pupil())
    with pytest.raises(ValueError, match="patch"):
        fit_pupil(stack[..., 1:], z_nm=PLANES_NM, psf=pupil())
    with pytest.raises(ValueError, match="not finite"):
        fit_pupil(stack.masked_fill(stack == stack.max(), torch.nan), z_nm=PLANES_NM, psf=pupil())
    with pytest.raises(ValueError, match="no parameters of this pupil"):
        fit_pupil(stack, z_nm=PLANES_NM, psf=pupil(), free=("zernike_9_9_nm",))


@pytest.mark.slow
def test_the_challenges_astigmatic_beads(shared_data: Path) -> None:
    """One bead's pupil places another: z bias below 15 nm RMS; astigmatism of single beads
    agrees to 5 %."""
    folder = shared_data / "challenge2016_beads"
    movie = torch.from_numpy(tifffile.imread(folder / "beads_as.tif").astype(np.float32))
    truth = np.genfromtxt(folder / "beads_AS_ground_truth.csv", delimiter=",", names=True)
    first = truth[truth["frame"] == 1]
    z = torch.arange(-750.0, 751.0, 10.0)
    crops = []
    for x, y in zip(first["x_nm"][:2], first["y_nm"][:2], strict=True):
        column, row = int(x // 100) - 12, int(y // 100) - 12
        crops.append(CHALLENGE.to_photons(movie[:, row : row + 25, column : column + 25]))
    psf = PupilPSF(
        numerical_aperture=1.45, wavelength_nm=660.0, pixel_size_nm=100.0, blur_nm=30.0, grid=32
    )
    free = (*psf.parameter_names, "numerical_aperture")
    fits = [
        fit_pupil(crop[None], z_nm=z, psf=psf, camera=CHALLENGE, free=free, max_images=31)
        for crop in crops
    ]
    one, other = (fit["zernike_2_2_nm"][0] for fit in fits)
    assert abs(one - other) < 0.05 * abs(one)

    chosen = (z.abs() <= 700).nonzero()[:, 0][::4]
    start = fits[1].xyz_nm.repeat(len(chosen), 1)
    start[:, 2] += z[chosen]
    placed = fit_images(
        crops[1][chosen],
        source=torch.arange(len(chosen)),
        z_nm=torch.zeros(len(chosen)),
        psf=fits[0].psf,
        xyz_nm=start,
        camera=CHALLENGE,
        free=(),
    )
    error = placed.xyz_nm[:, 2] - z[chosen]
    # noise (4.4 nm) included
    assert float((error - error.mean()).square().mean().sqrt()) < 16
