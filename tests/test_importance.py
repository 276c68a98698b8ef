"""The exact posterior: its moments are those of a dense grid, for every camera."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from decode.emitters import EmitterSet
from decode.likelihood.importance import Prior, exact_posterior
from decode.likelihood.pixels import LogPolynomial, pixels_of
from decode.likelihood.polish import windows_for
from decode.likelihood.windows import Frames
from decode.optics.camera import Camera
from decode.optics.fisher import fisher_information
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import render
from decode.optics.spline import SplinePSF

SIDE = 33
BACKGROUND = 20.0
EMCCD = Camera(
    baseline=100.0, e_per_adu=45.0, read_noise_e=74.4, qe=0.9, em_gain=300.0, spurious_e=0.002
)
SCMOS = Camera(baseline=100.0, e_per_adu=0.46, read_noise_e=1.3, qe=0.8)
ROUND = GaussianPSF(130.0, pixel_size_nm=100.0)
ASTIGMATIC = GaussianPSF(130.0, pixel_size_nm=100.0, depth_nm=400.0, gap_nm=200.0)


@pytest.mark.parametrize("photons", [0.3, 5.0, 80.0, 1200.0])
@pytest.mark.parametrize("name", ["EMCCD", "sCMOS", "sCMOS with maps", "EMCCD with maps"])
def test_pixels_have_the_likelihood_of_the_camera(
    name: str, photons: float, rng: torch.Generator
) -> None:
    """Over twice 4 standard deviations of a count, at most a factor of 4, the polynomial of a pixel
    errs by less than 0.005."""
    cameras = {"EMCCD": EMCCD, "sCMOS": SCMOS, "sCMOS with maps": with_maps(rng)}
    gains = 300 * (0.9 + 0.2 * torch.rand(SIDE, SIDE, generator=rng))
    bad = torch.rand(SIDE, SIDE, generator=rng) < 0.02
    cameras["EMCCD with maps"] = replace(EMCCD, em_gain=gains, bad=bad)
    camera = cameras[name]
    adu = camera.sample(torch.full((SIDE, SIDE), photons), rng)
    n, factor = adu.numel(), 1 + min(1.0, 4 / photons**0.5)
    polynomials = LogPolynomial.of(
        pixels_of(camera),
        adu.view(n, 1, 1),
        low=torch.full((n, 1, 1), photons / factor),
        high=torch.full((n, 1, 1), photons * factor),
        pixel=torch.arange(n)[:, None],
        counts=torch.ones(n, 1),
    )
    light = photons * factor ** torch.tensor([-1.0, -0.7, -0.15, 0.4, 1.0])
    found = polynomials(light.view(1, 5, 1, 1).repeat(n, 1, 1, 1))
    found = found + polynomials.at_middle[:, None]
    exact = camera.log_prob(adu, light[:, None, None].double().expand(5, SIDE, SIDE))
    assert (found - exact.flatten(1).T).abs().max() < 0.005


@pytest.mark.parametrize("noise_e", [0.3, 1.3, 10.0])
def test_maps_have_the_sum_over_electrons(noise_e: float, rng: torch.Generator) -> None:
    """Of single pixels, added up in double precision: dark and bright, and far from what is
    expected, up to 15 standard deviations."""
    one = torch.ones(2, 2)
    camera = Camera(baseline=100 * one, e_per_adu=0.5, read_noise_e=noise_e, qe=0.8)
    electrons = torch.arange(8000, dtype=torch.float64)
    for photons, factor in ((0.05, 2.0), (3.0, 2.0), (60.0, 1.5), (2000.0, 1.2)):
        light = photons * factor ** torch.tensor([-1.0, -0.3, 0.0, 0.4, 1.0])
        for count in (100.0, 103.0, 100 + round(1.6 * photons)):
            if abs((count - 100) / 2 - 0.8 * photons) > 15 * (noise_e**2 + photons) ** 0.5:
                continue
            found = pixels_of(camera).log_prob(
                torch.full((1, 1, 1), count), light.view(1, 5, 1, 1), torch.zeros(1, 1).long()
            )
            low, high = ((count + half - 100) / 2 for half in (-0.5, 0.5))
            mass = torch.special.ndtr((high - electrons) / noise_e)
            mass = mass - torch.special.ndtr((low - electrons) / noise_e)
            rate = 0.8 * light.double()[:, None]
            poisson = (electrons * rate.log() - rate - torch.lgamma(electrons + 1)).exp()
            expected = (mass * poisson).sum(1).log()
            assert (found.flatten() - expected)[expected > -600].abs().max() < 1e-5


@torch.no_grad()
def test_images_of_samples_are_those_that_are_drawn(rng: torch.Generator) -> None:
    """As polynomials of the position, of one molecule and of two, near and far spread."""
    for k, spread_nm in ((1, 10.0), (2, 10.0), (1, 150.0)):
        truth = lone(4, rng, axial=True)[torch.arange(4).repeat_interleave(k)]
        adu = recorded(ASTIGMATIC, EMCCD, truth, rng)
        frames = Frames(
            ASTIGMATIC, EMCCD, adu, truth, axes=[2, 0, 1], background=torch.ones(SIDE, SIDE)
        )
        windows = frames.windows(torch.arange(4 * k).view(4, k), None)
        start = windows.start([2, 0, 1])
        unknown = start[:, None].repeat(1, 300, 1)
        unknown[..., : 3 * k] += spread_nm * torch.randn(4, 300, 3 * k, generator=rng)
        drawn = windows._drawn(unknown, [2, 0, 1])
        seen = torch.full_like(drawn, torch.nan)
        for rows, photons in windows.expected(unknown, [2, 0, 1]):
            seen[rows] = photons
        error = ((seen - drawn).square() / drawn).sum((2, 3)).mean(1).sqrt()
        assert (error < 0.2).all()


def with_maps(rng: torch.Generator) -> Camera:
    """Every fifth pixel is noisy, by 10 electrons, and a few are bad."""
    noise = torch.where(torch.rand(SIDE, SIDE, generator=rng) < 0.2, 10.0, 1.3)
    return Camera(
        baseline=100.0,
        e_per_adu=0.46 + 0.05 * torch.rand(SIDE, SIDE, generator=rng),
        read_noise_e=noise,
        qe=0.8,
        bad=torch.rand(SIDE, SIDE, generator=rng) < 0.02,
    )


def lone(n: int, rng: torch.Generator, *, axial: bool) -> EmitterSet:
    """One molecule in every second frame, of 500 to 4000 photons, somewhere in the middle pixel."""
    xyz = torch.tensor([1600.0, 1600.0, -300.0 if axial else 0.0])
    size = torch.tensor([100.0, 100.0, 600.0 if axial else 0.0])
    return EmitterSet(
        frame=2 * torch.arange(n),
        xyz=xyz + torch.rand(n, 3, generator=rng) * size,
        photons=500 * 8 ** torch.rand(n, generator=rng),
        background=torch.full((n,), BACKGROUND),
    )


@torch.no_grad()
def recorded(
    psf: GaussianPSF | SplinePSF, camera: Camera, truth: EmitterSet, rng: torch.Generator
) -> Tensor:
    light = render(
        psf,
        frame=truth.frame,
        xyz=truth.xyz,
        photons=truth.photons,
        n_frames=int(truth.frame.max()) + 1,
        shape=(SIDE, SIDE),
    )
    return camera.sample(light + BACKGROUND, rng)


@torch.no_grad()
def on_a_grid(
    psf: GaussianPSF | SplinePSF,
    camera: Camera,
    adu: Tensor,
    truth: EmitterSet,
    *,
    axial: bool,
    points: int,
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (q,) of a lone molecule by quadrature, in double precision.

    The grid is even in coordinates in which the posterior is nearly a standard normal, from -4.5 to
    4.5, where the trapezoidal rule converges exponentially.  The camera's likelihood is computed at
    300 values of the light of each pixel, through which goes a cubic spline.

    Args:
        adu: (y, x) of its frame.
        truth: the molecule.
    """
    psf = deepcopy(psf).double()
    axes = [2, 0, 1] if axial else [0, 1]
    (side,) = windows_for(psf, camera, axial=axial, most=[1.06])
    corner = (truth.xyz[0, :2] / 100).floor().long() - side // 2
    window = tuple(slice(int(corner[i]), int(corner[i]) + side) for i in (1, 0))
    counts, camera = adu[window].flatten().double(), camera.crop(*window)
    assert truth.background is not None
    at = torch.cat([truth.xyz[0], truth.photons, truth.background]).double()
    at[:2] -= 100 * corner
    cut = psf.with_patch(side)

    def light(unknown: Tensor) -> Tensor:
        """(..., pixels) expected photons at (..., q)."""
        xyz = at[:3].expand(len(unknown), 3).clone()
        xyz[:, axes] = unknown[:, : len(axes)]
        images = cut.integrate_pixels(xyz).flatten(1)
        return unknown[:, -2:-1] * images + unknown[:, -1:]

    order = torch.tensor([*axes, 3, 4])
    information = fisher_information(
        psf,
        camera if camera.shape is None else SCMOS,
        truth.xyz.double(),
        truth.photons.double(),
        at[4:],
    )[0][order[:, None], order]
    root = torch.linalg.cholesky(torch.linalg.inv(information))
    middle = at[order]
    # each grid is around the mean of the one before, and as wide as its posterior
    for reach, n in ((6.0, 7), (5.0, 7), (4.5, points)):
        line = torch.linspace(-reach, reach, n, dtype=torch.float64)
        grid = torch.cartesian_prod(*[line] * len(order))
        unknown = middle + grid @ root.mT
        unknown = unknown[(unknown[:, -2:] > 1).all(1)]
        log_prob = -unknown[:, -2:].log().sum(1)
        expected = torch.cat([light(part) for part in unknown.split(2**13)])
        for pixel in range(expected.shape[1]):
            low, high = expected[:, pixel].aminmax()
            nodes = torch.linspace(float(low), float(high), 300, dtype=torch.float64)
            values = of_pixel(camera, pixel).log_prob(counts[pixel].expand(300), nodes)
            log_prob += torch.from_numpy(CubicSpline(nodes, values)(expected[:, pixel]))
        weight = log_prob.softmax(0)
        middle = weight @ unknown
        apart = unknown - middle
        covariance = (apart * weight[:, None]).mT @ apart
        root = torch.linalg.cholesky(covariance)
    return middle + torch.cat([100 * corner, at.new_zeros(3)])[order], covariance.diagonal().sqrt()


def of_pixel(camera: Camera, pixel: int) -> Camera:
    if camera.shape is None:
        return camera
    row, column = divmod(pixel, camera.shape[1])
    one = camera.crop(slice(row, row + 1), slice(column, column + 1))
    maps = {
        name: getattr(one, name).flatten()[0]
        for name in ("e_per_adu", "read_noise_e", "bad")
        if isinstance(getattr(one, name), Tensor)
    }
    return Camera(
        **{name: getattr(one, name) for name in ("baseline", "qe", "em_gain", "spurious_e")} | maps
    )


@pytest.mark.parametrize("name", ["EMCCD", "sCMOS", "sCMOS with maps"])
@pytest.mark.parametrize("axial", [False, True])
def test_moments_are_those_of_a_grid(name: str, axial: bool, rng: torch.Generator) -> None:
    """Means within 0.05 sigma and sigmas within 5 %, of 500 samples."""
    camera = {"EMCCD": EMCCD, "sCMOS": SCMOS, "sCMOS with maps": with_maps(rng)}[name]
    psf = ASTIGMATIC if axial else ROUND
    truth = lone(1 if axial else 4, rng, axial=axial)
    adu = recorded(psf, camera, truth, rng)
    found = exact_posterior(psf, camera, adu, truth, axial=axial, background=torch.ones(SIDE, SIDE))
    assert found.ess is not None
    assert found.xyz_sigma is not None
    assert found.photons_sigma is not None
    assert (found.ess > 0.5).all()
    axes = [2, 0, 1] if axial else [0, 1]
    for i in range(len(truth)):
        one = truth[i : i + 1]
        mean, sigma = on_a_grid(
            psf, camera, adu[2 * i], one, axial=axial, points=9 if axial else 11
        )
        own = torch.cat([found.xyz[i, axes], found.photons[i : i + 1]]).double()
        spread = torch.cat([found.xyz_sigma[i, axes], found.photons_sigma[i : i + 1]])
        assert ((own - mean[:-1]) / sigma[:-1]).abs().max() < 0.05
        assert (spread / sigma[:-1] - 1).abs().max() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", ["EMCCD", "sCMOS with maps"])
def test_moments_of_a_spline_are_those_of_a_grid(name: str, rng: torch.Generator) -> None:
    """The same of a PSF that is measured: planes 40 nm apart."""
    depths = torch.arange(-600.0, 601.0, 40.0)
    centre = torch.tensor([1050.0, 1050.0, 0.0]).repeat(len(depths), 1)
    centre[:, 2] = depths
    planes = ASTIGMATIC.integrate_pixels(centre).detach().double()
    psf = SplinePSF.from_stack(planes, z_start_nm=-600.0, z_step_nm=40.0, pixel_size_nm=100.0)
    camera = {"EMCCD": EMCCD, "sCMOS with maps": with_maps(rng)}[name]
    truth = lone(1, rng, axial=True)
    adu = recorded(psf, camera, truth, rng)
    found = exact_posterior(psf, camera, adu, truth, background=torch.ones(SIDE, SIDE))
    assert found.xyz_sigma is not None
    assert found.photons_sigma is not None
    mean, sigma = on_a_grid(psf, camera, adu[0], truth, axial=True, points=9)
    own = torch.cat([found.xyz[0, [2, 0, 1]], found.photons]).double()
    spread = torch.cat([found.xyz_sigma[0, [2, 0, 1]], found.photons_sigma])
    assert ((own - mean[:-1]) / sigma[:-1]).abs().max() < 0.05
    assert (spread / sigma[:-1] - 1).abs().max() < 0.05


def test_faint_molecules_are_sampled_again(rng: torch.Generator) -> None:
    """120 photons on 20 a pixel are hardly seen: the posterior is far from a Gaussian."""
    truth = lone(40, rng, axial=True)
    truth = replace(truth, photons=torch.full((40,), 120.0))
    adu = recorded(ASTIGMATIC, EMCCD, truth, rng)
    prior = Prior(depth_nm=(-600.0, 600.0))
    found = exact_posterior(ASTIGMATIC, EMCCD, adu, truth, prior=prior)
    assert found.ess is not None
    assert found.xyz_sigma is not None
    assert found.xyz.isfinite().all()
    assert (found.xyz[:, 2].abs() < 600).all()
    # that of all depths is 346; where both ends are likelier than focus it is larger
    assert (found.xyz_sigma[:, 2] < 500).all()
    assert (found.ess > 0.1).double().mean() > 0.5


def test_usual_photons_are_those_of_lone_molecules(rng: torch.Generator) -> None:
    """Of two that nearly coincide only the sum is known: how bright others are tells the shares."""
    photons = 2000 * (0.3 * torch.randn(400, generator=rng)).exp()
    prior = Prior().learned(torch.cat([photons, torch.tensor([20.0, 1e7])]))
    assert prior.usual is not None
    assert 1850 < prior.usual[0] < 2150
    assert 0.25 < prior.usual[1] < 0.35
    assert Prior().learned(photons[:49]) == Prior()
    logs = torch.linspace(*(float(torch.tensor(end).log()) for end in prior.photons), 4001)
    assert abs(float(torch.trapezoid(prior.log_light(logs).exp(), logs)) - 1) < 1e-3

    single = replace(lone(60, rng, axial=False), photons=photons[:60])
    one = replace(lone(2, rng, axial=False), frame=torch.tensor([120, 122]))
    one = replace(one, photons=torch.full((2,), 2000.0))
    other = replace(one, xyz=one.xyz + torch.tensor([100.0, 0.0, 0.0]))
    truth = EmitterSet.cat([single, one, other])
    adu = recorded(ROUND, EMCCD, truth, rng)
    known = {"axial": False, "n_samples": 200, "pixels": pixels_of(EMCCD)}
    wide, learned = (
        exact_posterior(ROUND, EMCCD, adu, truth, learn=learn, **known) for learn in (False, True)
    )
    assert wide.photons_sigma is not None
    assert learned.photons_sigma is not None
    ratio = learned.photons_sigma / wide.photons_sigma
    assert ratio[60:].median() < 0.85
    assert 0.9 < ratio[:60].median() < 1.05


def test_what_the_prior_excludes_stays_at_the_mode(rng: torch.Generator) -> None:
    """With an uncertainty, and no effective sample."""
    truth = lone(3, rng, axial=False)
    adu = recorded(ROUND, EMCCD, truth, rng)
    prior = Prior(photons=(1e5, 1e6))
    found = exact_posterior(ROUND, EMCCD, adu, truth, axial=False, prior=prior)
    assert found.ess is not None
    assert found.xyz_sigma is not None
    assert (found.ess == 0).all()
    assert ((found.xyz - truth.xyz)[:, :2].abs() < 5 * found.xyz_sigma[:, :2]).all()
    assert (found.xyz_sigma[:, :2] < 30).all()


def test_molecules_beyond_the_border_and_in_bad_pixels(rng: torch.Generator) -> None:
    """What is not seen does not count: half a molecule has a larger sigma, and what a bad pixel
    says moves nothing."""
    camera = replace(EMCCD, bad=torch.zeros(SIDE, SIDE, dtype=torch.bool))
    assert camera.bad is not None
    camera.bad[16, 16] = True
    truth = EmitterSet(
        frame=torch.tensor([0, 1, 2]),
        xyz=torch.tensor([[1150.0, 1150.0, 0.0], [20.0, 1150.0, 0.0], [1650.0, 1650.0, 0.0]]),
        photons=torch.full((3,), 2000.0),
        background=torch.full((3,), BACKGROUND),
    )
    adu = recorded(ROUND, camera, truth, rng)
    adu[:, 16, 16] = 60000.0
    found = exact_posterior(ROUND, camera, adu, truth, axial=False)
    assert found.xyz_sigma is not None
    error = (found.xyz - truth.xyz)[:, :2] / found.xyz_sigma[:, :2]
    assert (error.abs() < 4).all()
    assert found.xyz_sigma[1, 0] > 1.5 * found.xyz_sigma[0, 0]


def test_what_cannot_be_sampled_is_said_in_a_sentence(rng: torch.Generator) -> None:
    truth = lone(2, rng, axial=False)
    adu = torch.zeros(1, SIDE, SIDE)
    with pytest.raises(ValueError, match="outside the 1 frames"):
        exact_posterior(ROUND, EMCCD, adu, truth)
    with pytest.raises(ValueError, match="need a background"):
        exact_posterior(ROUND, EMCCD, adu, replace(truth, background=None))
    empty = exact_posterior(ROUND, EMCCD, adu, replace(truth[:0], background=torch.zeros(0)))
    assert not len(empty)


def test_a_position_is_correlated_as_the_samples_say(rng: torch.Generator) -> None:
    """Photons and background share the light: x and y do not, by symmetry on average."""
    truth = lone(100, rng, axial=True)
    adu = recorded(ASTIGMATIC, EMCCD, truth, rng)
    found = exact_posterior(ASTIGMATIC, EMCCD, adu, truth)
    assert found.correlation is not None
    assert (found.correlation.abs() < 1).all()
    assert (found.correlation.mean(0).abs() < 0.2).all()
    flat = exact_posterior(ROUND, EMCCD, adu[:5], truth[:3], axial=False)
    assert flat.correlation is not None
    assert flat.correlation.isnan().any(0).tolist() == [False, True, True, False, False, True]


def test_a_molecule_that_stays_on_has_one_position(rng: torch.Generator) -> None:
    """Four frames halve the error of one."""
    once = lone(40, rng, axial=False)
    rows = torch.arange(40).repeat_interleave(4)
    truth = replace(once[rows], frame=6 * rows + torch.arange(4).repeat(40))
    adu = recorded(ROUND, EMCCD, truth, rng)
    found = exact_posterior(ROUND, EMCCD, adu, truth, axial=False)
    alone = exact_posterior(ROUND, EMCCD, adu, truth[::4], axial=False)
    assert found.xyz_sigma is not None
    assert alone.xyz_sigma is not None
    ratio = found.xyz_sigma[::4, :2] / alone.xyz_sigma[:, :2]
    assert 0.45 < ratio.median() < 0.55
    error = ((found.xyz - truth.xyz) / found.xyz_sigma)[::4, :2]
    assert 0.8 < error.square().mean().sqrt() < 1.2  # 80 numbers scatter by 8 %
