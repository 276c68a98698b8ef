"""The spline's fit finds the PSF with its wobble, the beads to about their bound, and where the
stage strayed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from decode.calibrate.bead_fit import BeadFit
from decode.calibrate.bead_view import BeadView
from decode.calibrate.beads import BeadSet, border_background
from decode.calibrate.coefficients import Penalty, conjugate_gradients
from decode.calibrate.jitter import jitter_size, slow_part
from decode.calibrate.spline import (
    SMOOTHNESS,
    by_convention,
    fit_spline,
    held_out_deviance,
    place_beads,
)
from decode.optics.camera import Camera, Noise
from decode.optics.fisher import fisher_information
from decode.optics.gaussian import GaussianPSF
from decode.optics.spline import SplinePSF

PIXEL_NM, SIDE = 100.0, 15
PHOTONS, BACKGROUND = 8000.0, 8.0
PLANES_NM = torch.arange(-500.0, 501.0, 50.0)
CAMERA = Camera(baseline=0.0, e_per_adu=1.0, read_noise_e=0.0)
NOISE = Noise(1.0, 0.0)
XYZ = torch.tensor(
    [[745.0, 712.0, 40.0], [781.0, 760.0, -60.0], [702.0, 788.0, 10.0], [728.0, 731.0, 10.0]]
)
"""of four beads, from the corner of their crops"""


def gaussian() -> GaussianPSF:
    return GaussianPSF(130.0, pixel_size_nm=PIXEL_NM, depth_nm=450.0, gap_nm=150.0, patch_px=SIDE)


def wobble(z: Tensor) -> Tensor:
    """(..., 2) nm by which the image of an emitter walks with defocus; none in focus."""
    return torch.stack([30 * torch.sin(z / 300), -40 * (1 - torch.cos(z / 400))], -1)


def light(xyz: Tensor, planes_nm: Tensor, jitter: Tensor | None = None) -> Tensor:
    """(bead, z, y, x) fraction of light in each pixel."""
    strayed = torch.zeros(len(planes_nm), 3) if jitter is None else jitter
    at = xyz[:, None] + strayed + torch.nn.functional.pad(planes_nm[:, None], (2, 0))
    at = torch.cat([at[..., :2] + wobble(at[..., 2]), at[..., 2:]], -1)
    return gaussian().integrate_pixels(at.flatten(0, 1)).detach().view(len(xyz), -1, SIDE, SIDE)


def bead_set(
    crops: Tensor,
    xy: Tensor,
    *,
    planes_nm: Tensor = PLANES_NM,
    noise: Noise = NOISE,
    stack: Tensor | None = None,
) -> BeadSet:
    """Beads about at (n, 2) nm, of one stack unless said otherwise."""
    return BeadSet(
        crops=crops,
        z_nm=planes_nm,
        xy=xy,
        corners_nm=torch.zeros_like(xy),
        stack=torch.zeros(len(xy), dtype=torch.long) if stack is None else stack,
        noise=noise,
        camera=CAMERA,
        pixel_size_nm=PIXEL_NM,
        field_nm=((0.0, 1e4), (0.0, 1e4)),
    )


def fitted(
    crops: Tensor, rng: torch.Generator, planes_nm: Tensor = PLANES_NM
) -> BeadFit[SplinePSF]:
    """From about a fifth of a pixel beside the truth."""
    near = XYZ[:, :2] + 20 * torch.randn(len(XYZ), 2, generator=rng)
    return fit_spline(bead_set(crops, near, planes_nm=planes_nm), smoothness=0.2)


@pytest.fixture(scope="module")
def fit() -> BeadFit[SplinePSF]:
    rng = torch.Generator().manual_seed(7)
    return fitted(torch.poisson(PHOTONS * light(XYZ, PLANES_NM) + BACKGROUND, generator=rng), rng)


def test_pixels_with_much_read_noise_count_for_little() -> None:
    rng = torch.Generator().manual_seed(3)
    floor = torch.full((len(XYZ), 1, SIDE, SIDE), 2.0)
    hot = torch.rand(floor.shape, generator=rng) < 0.03
    floor[hot] = 150.0**2
    expected = PHOTONS * light(XYZ, PLANES_NM) + BACKGROUND
    crops = torch.poisson(expected, generator=rng)
    crops += floor.sqrt() * torch.randn(crops.shape, generator=rng)
    near = XYZ[:, :2] + 20
    weighted, blind = (
        fit_spline(bead_set(crops, near, noise=noise), smoothness=0.2)
        for noise in (Noise(1.0, floor), Noise(1.0, float(floor.median())))
    )

    def error(fit: BeadFit[SplinePSF]) -> float:
        apart = fit.xyz - XYZ
        return float((apart - apart.mean(0)).square().mean().sqrt())

    assert error(weighted) < 4
    assert error(weighted) < 0.5 * error(blind)
    assert weighted.deviance < 1.1 < blind.deviance


def random_spline(rng: torch.Generator) -> SplinePSF:
    return SplinePSF(
        torch.rand(6, 24, 30, generator=rng, dtype=torch.float64),
        z_start_nm=-110.0,
        z_step_nm=45.0,
        pixel_size_nm=PIXEL_NM,
        centre_px=(14.2, 12.7),
        oversampling=2,
        patch_px=11,
    )


def random_view(
    rng: torch.Generator, jitter_nm: float
) -> tuple[SplinePSF, BeadView, Tensor, Tensor, Tensor]:
    psf = random_spline(rng)
    z = torch.linspace(-120.0, 130.0, 8, dtype=torch.float64)
    xyz = torch.tensor([537.0, 561.0, 12.0], dtype=torch.float64)
    jitter = jitter_nm * torch.randn(8, 3, generator=rng, dtype=torch.float64)
    view = BeadView(psf, xyz=xyz, jitter=jitter, z_nm=z, side=11)
    return psf, view, xyz, z, jitter


def positions(xyz: Tensor, z: Tensor, jitter: Tensor) -> Tensor:
    return xyz + jitter + torch.nn.functional.pad(z[:, None], (2, 0))


@pytest.mark.parametrize(("jitter_nm", "limit"), [(0.0, 1e-10), (1.0, 2e-3)])
def test_a_view_is_the_image_of_the_psf(
    jitter_nm: float, limit: float, rng: torch.Generator
) -> None:
    """Exact without jitter; across the plane jitter enters to first order."""
    psf, view, xyz, z, jitter = random_view(rng, jitter_nm)
    expected = psf.integrate_pixels(positions(xyz, z, jitter)).detach()
    assert (view.image(psf.coefficients.detach()) - expected).abs().max() < limit


def test_the_adjoint_is_the_transpose(rng: torch.Generator) -> None:
    _, view, *_ = random_view(rng, 5.0)
    c = torch.randn(6, 24, 30, generator=rng, dtype=torch.float64)
    image = torch.randn(8, 11, 11, generator=rng, dtype=torch.float64)
    there, back = (view.image(c) * image).sum(), (c * view.adjoint(image)).sum()
    torch.testing.assert_close(there, back)


def test_slopes_are_the_derivatives_of_the_image(rng: torch.Generator) -> None:
    psf, view, xyz, z, jitter = random_view(rng, 0.0)
    slopes = view.slopes(psf.coefficients.detach())
    at = positions(xyz, z, jitter)
    for axis in range(3):
        way = torch.zeros_like(at)
        way[:, axis] = 1
        expected = torch.func.jvp(psf.integrate_pixels, (at,), (way,))[1]
        torch.testing.assert_close(slopes[axis], expected.detach())


def test_beads_are_placed_to_about_the_bound(rng: torch.Generator) -> None:
    """Relative to their mean, over six draws of the noise; the bound is that of a known PSF and a
    steady stage.

    Chi^2 of 18 degrees of freedom, over 18, leaves these limits once in a hundred.
    """
    frames = torch.cat([torch.full((len(PLANES_NM), 2), 750.0), PLANES_NM[:, None]], 1)
    every = torch.full((len(frames),), PHOTONS)
    information = fisher_information(
        gaussian(), CAMERA, frames, every, every * BACKGROUND / PHOTONS
    )
    place, cross, rest = information[:, :3, :3], information[:, :3, 3:], information[:, 3:, 3:]
    variance = torch.linalg.inv(
        (place - cross @ torch.linalg.inv(rest) @ cross.mT).sum(0)
    ).diagonal()
    square = torch.zeros(3, dtype=torch.float64)
    for _ in range(6):
        found = fitted(
            torch.poisson(PHOTONS * light(XYZ, PLANES_NM) + BACKGROUND, generator=rng), rng
        ).xyz
        error = (found - found.mean(0)) - (XYZ - XYZ.mean(0))
        square += error.double().square().sum(0) / variance / 18
    assert (square > 0.35).all(), square
    assert (square < 2.0).all(), square


def test_the_psf_is_found(fit: BeadFit[SplinePSF]) -> None:
    """To 0.4 % of the peak on average, 5 % at worst: the noise of four beads of 8000 photons,
    smoothed."""
    margin = (fit.psf.patch_px - SIDE) // 2
    middle = torch.full((len(PLANES_NM), 2), fit.psf.patch_px / 2 * PIXEL_NM)
    image = fit.psf.integrate_pixels(torch.cat([middle, PLANES_NM[:, None]], 1)).detach()
    image = image[:, margin : margin + SIDE, margin : margin + SIDE]
    truth = light(torch.tensor([[750.0, 750.0, 0.0]]), PLANES_NM)[0]
    peak = float(truth.max())
    assert float((image - truth).square().mean().sqrt()) < 0.004 * peak
    assert float((image - truth).abs().max()) < 0.05 * peak
    assert fit.deviance == pytest.approx(
        0.96, abs=0.03
    )  # below 1, as the fit takes up a part of the noise


def test_the_wobble_is_kept(fit: BeadFit[SplinePSF]) -> None:
    """The centre of the image walks over 60 nm; told to 4 nm within 400 nm of focus, and by
    nothing in focus."""
    z = PLANES_NM[2:-2]
    middle = fit.psf.patch_px / 2 * PIXEL_NM
    image = fit.psf.integrate_pixels(
        torch.cat([torch.full((len(z), 2), middle), z[:, None]], 1)
    ).detach()
    # near the middle only, where there is light
    grid = (torch.arange(fit.psf.patch_px) + 0.5) * PIXEL_NM - middle
    image = image * (grid.abs() < 7 * PIXEL_NM) * (grid.abs() < 7 * PIXEL_NM)[:, None]
    centre = torch.stack([image.sum(1) @ grid, image.sum(2) @ grid], 1) / image.sum((1, 2))[:, None]
    assert float(wobble(z)[:, 0].max() - wobble(z)[:, 0].min()) > 55
    torch.testing.assert_close(centre, wobble(z), atol=4.0, rtol=0)
    torch.testing.assert_close(centre[len(z) // 2], torch.zeros(2), atol=1.0, rtol=0)


def test_what_images_cannot_tell_is_agreed_on(fit: BeadFit[SplinePSF]) -> None:
    """Beads lie at 0 on average, the stage strays by nothing on average, and every plane holds
    all light."""
    assert float(fit.xyz[:, 2].mean()) == pytest.approx(0, abs=1e-3)
    torch.testing.assert_close(fit.jitter.mean(1), torch.zeros(4, 3), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        fit.psf.coefficients.detach().sum((1, 2)) / 4, torch.ones(len(fit.psf.coefficients))
    )


def test_agreement_changes_no_image(fit: BeadFit[SplinePSF]) -> None:
    """From beads 40 nm higher, a stage that strayed on average, and a PSF off its centre with
    1.3 of all light."""
    psf = SplinePSF(
        1.3 * fit.psf.coefficients.detach(),
        z_start_nm=fit.psf.z_start_nm,
        z_step_nm=fit.psf.z_step_nm,
        pixel_size_nm=PIXEL_NM,
        centre_px=(fit.psf.centre_px[0] + 0.7, fit.psf.centre_px[1] - 0.4),
        oversampling=2,
        patch_px=fit.psf.patch_px,
    )
    apart = replace(
        fit,
        psf=psf,
        xyz=fit.xyz + torch.tensor([0.0, 0.0, 40.0]),
        jitter=fit.jitter + torch.tensor([9.0, -5.0, 12.0]),
    )

    def images(of: BeadFit[SplinePSF]) -> Tensor:
        at = of.xyz[:, None] + of.jitter + torch.nn.functional.pad(PLANES_NM[:, None], (2, 0))
        drawn = (
            of.psf.integrate_pixels(at.flatten(0, 1))
            .detach()
            .view(4, len(PLANES_NM), psf.patch_px, psf.patch_px)
        )
        return of.photons[..., None, None] * drawn

    agreed = by_convention(apart, PLANES_NM)
    assert float(agreed.xyz[:, 2].mean()) == pytest.approx(0, abs=1e-3)
    torch.testing.assert_close(images(agreed), images(apart), atol=0.5, rtol=2e-3)


def test_a_lamp_that_flickers_is_told_from_the_psf(rng: torch.Generator) -> None:
    shine = PHOTONS * (0.6 + 0.8 * torch.rand(4, len(PLANES_NM), generator=rng))
    crops = torch.poisson(
        shine[..., None, None] * light(XYZ, PLANES_NM) + BACKGROUND, generator=rng
    )
    ratio = fitted(crops, rng).photons / shine
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(ratio[:, 2:-2].std()) < 0.03


def test_where_the_stage_strayed_is_found(rng: torch.Generator) -> None:
    """Planes nearer than the PSF's detail: then a jump is no change of the PSF, but for what is
    slow by chance."""
    planes = torch.arange(-450.0, 451.0, 25.0)
    jitter = torch.randn(len(planes), 3, generator=rng) * torch.tensor([8.0, 8.0, 15.0])
    jitter -= jitter.mean(0)
    crops = torch.poisson(PHOTONS * light(XYZ, planes, jitter) + BACKGROUND, generator=rng)
    series = fitted(crops, rng, planes).jitter
    found = series[0]
    assert (series == found).all()
    for axis in range(3):
        assert float(torch.corrcoef(torch.stack([found[:, axis], jitter[:, axis]]))[0, 1]) > 0.85
    # 7 of 37 cosines are slow: 0.43 of the jitter
    assert ((found - jitter).std(0) < 0.6 * jitter.std(0)).all()


def test_stacks_have_each_their_own_jitter(rng: torch.Generator) -> None:
    """Two stacks whose stage wandered slowly, each its own way: what differs between them is
    found, drift included."""
    planes = torch.arange(-450.0, 451.0, 25.0)
    places = torch.cat([XYZ, XYZ + torch.tensor([13.0, -22.0, 0.0])])
    stack = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])
    phase = torch.tensor([[0.0, 1.0, 2.0], [2.5, 4.0, 5.5]])
    jitter = torch.tensor([8.0, 8.0, 15.0]) * torch.sin(planes[:, None] / 40 + phase[:, None])
    jitter = jitter - jitter.mean(1, keepdim=True)
    crops = torch.cat([light(places[i : i + 1], planes, jitter[stack[i]]) for i in range(8)])
    crops = torch.poisson(PHOTONS * crops + BACKGROUND, generator=rng)
    two_stacks = bead_set(crops, places[:, :2], planes_nm=planes, stack=stack)
    found = fit_spline(two_stacks, smoothness=0.2)
    for i in (0, 2):
        assert (found.jitter[stack == stack[i]] == found.jitter[i]).all()
    between, truth = found.jitter[2] - found.jitter[0], jitter[1] - jitter[0]
    inner = slice(2, -2)
    assert ((between - truth)[inner].std(0) < 0.4 * truth[inner].std(0)).all()
    # taken for one stack, half of the beads contradict the other half
    one_stack = replace(two_stacks, stack=torch.zeros_like(stack))
    together = fit_spline(one_stack, smoothness=0.2)
    assert together.deviance > found.deviance + 0.02


def test_jitter_of_one_stack_is_what_is_independent_from_plane_to_plane(
    rng: torch.Generator,
) -> None:
    """Of 400 planes, whose shifts are told to 2 nm: noise is none, a slow swing of 6 nm is none,
    6 nm a plane are."""
    variance = torch.full((1, 400, 3), 4.0)
    noise = 2 * torch.randn(1, 400, 3, generator=rng)
    swing = 8.5 * torch.sin(torch.arange(400.0) / 4)[:, None]
    jumps = torch.tensor([6.0, 0.0, 6.0]) * torch.randn(1, 400, 3, generator=rng)
    torch.testing.assert_close(jitter_size(noise, variance), torch.zeros(3))
    torch.testing.assert_close(jitter_size(noise + swing, variance), torch.zeros(3))
    found = jitter_size(noise + swing + jumps, variance)
    torch.testing.assert_close(found, torch.tensor([6.0, 0.0, 6.0]), atol=0.8, rtol=0)


def test_slow_shifts_are_those_that_the_psf_follows_anyway() -> None:
    """A parabola and a wave of 500 nm are slow, a wave of 100 nm is not, of 1 um of depth."""
    z = torch.arange(-500.0, 501.0, 10.0)
    slow = torch.stack([0.00002 * z**2, torch.cos(z / 80)], 1)
    assert float((slow_part(slow, z) - slow).abs().mean()) < 0.1
    fast = torch.cos(z / 16)
    assert float(slow_part(fast, z).abs().max()) < 0.2


def test_jitter_of_several_stacks_is_what_differs_between_them(rng: torch.Generator) -> None:
    """What all share is the PSF's, be it slow or not."""
    variance = torch.full((3, 200, 3), 4.0)
    noise = 2 * torch.randn(3, 200, 3, generator=rng)
    shared = 6 * torch.randn(1, 200, 3, generator=rng)
    # of incommensurate periods, so that stacks wander independently
    period = torch.tensor([[[5.0]], [[7.0]], [[11.0]]])
    own = torch.tensor([0.0, 5.0, 0.0]) * 1.414 * torch.sin(torch.arange(200.0)[:, None] / period)
    found = jitter_size(noise + shared + own, variance)
    torch.testing.assert_close(found, torch.tensor([0.0, 5.0, 0.0]), atol=0.6, rtol=0)


@pytest.mark.parametrize("truth", ["psf", "stage"])
def test_detail_of_the_psf_is_told_from_jitter_by_how_long_it_lasts(
    truth: str, rng: torch.Generator
) -> None:
    """The image swings by 25 nm over 200 nm of depth, or jumps by 8 nm from plane to plane.

    Held-out beads ask for detail along z in the first case, where next to nothing is jitter; in the
    second much less, and the jitter is found to 3 nm.
    """
    planes = torch.arange(-300.0, 301.0, 10.0)
    swing = (
        25 * torch.sin(planes / 32)
        if truth == "psf"
        else 8 * torch.randn(len(planes), generator=rng)
    )
    swing = torch.nn.functional.pad((swing - swing.mean())[:, None], (0, 2))
    crops = torch.poisson(2 * PHOTONS * light(XYZ, planes, swing) + BACKGROUND, generator=rng)
    beads = bead_set(crops, XYZ[:, :2], planes_nm=planes)
    smooth, fine = held_out_deviance(beads, [(0.1, 0.02), (0.1, 0.06)])
    assert (fine < smooth - 0.05) == (truth == "psf")
    found = fit_spline(beads, smoothness=0.1, depth_smoothness=0.06)
    left = found.jitter[0, :, 0] - (0 if truth == "psf" else swing[:, 0])
    assert float(left.square().mean().sqrt()) < 3.0


def test_other_beads_are_placed_under_a_psf_that_stays(
    fit: BeadFit[SplinePSF], rng: torch.Generator
) -> None:
    """Two that were not fitted, at other places and heights, against the offset that all
    positions share."""
    others = torch.tensor([[768.0, 705.0, 35.0], [719.0, 779.0, -45.0]])
    crops = torch.poisson(PHOTONS * light(others, PLANES_NM) + BACKGROUND, generator=rng)
    beads = bead_set(crops, others[:, :2] + 15)
    placed = place_beads(fit.psf, beads, jitter=fit.jitter[:2])
    assert placed.psf is fit.psf
    offset = (fit.xyz - XYZ).mean(0)
    error = placed.xyz - others - offset
    assert float(error[:, :2].abs().max()) < 2.5
    assert float(error[:, 2].abs().max()) < 9.0
    assert placed.deviance == pytest.approx(1.0, abs=0.08)


def test_held_out_beads_are_predicted_with_each_smoothness(rng: torch.Generator) -> None:
    crops = torch.poisson(PHOTONS * light(XYZ, PLANES_NM) + BACKGROUND, generator=rng)
    tried = sorted(SMOOTHNESS, reverse=True)
    beads = bead_set(crops, XYZ[:, :2])
    deviance = held_out_deviance(beads, [(s, 0.06) for s in tried])
    assert len(deviance) == len(tried)
    assert 0.98 < min(deviance) < 1.12
    # too smooth is worse than the best
    assert deviance[-1] > min(deviance) + 0.005


def test_of_several_stacks_whole_ones_are_held_out(rng: torch.Generator) -> None:
    """A swing of the image that only one stack shows is not predicted, however well its own
    beads agree on it."""
    planes = torch.arange(-300.0, 301.0, 10.0)
    swing = torch.nn.functional.pad(8 * torch.sin(planes[:, None] / 32), (0, 2))
    places, stack = XYZ[[0, 1, 2, 3]], torch.tensor([0, 0, 1, 1])
    crops = torch.cat([light(places[:2], planes, swing), light(places[2:], planes)])
    crops = torch.poisson(5 * PHOTONS * crops + BACKGROUND, generator=rng)
    beads = bead_set(crops, places[:, :2], planes_nm=planes, stack=stack)
    smooth, fine = held_out_deviance(beads, [(0.2, 0.02), (0.2, 0.2)])
    assert fine > smooth


def test_a_start_is_taken_up(fit: BeadFit[SplinePSF], rng: torch.Generator) -> None:
    """Two turns from the fit of others come as far as six from nothing."""
    crops = torch.poisson(PHOTONS * light(XYZ, PLANES_NM) + BACKGROUND, generator=rng)
    beads = bead_set(crops, XYZ[:, :2] + 10)
    few, many, none = (
        fit_spline(beads, smoothness=0.2, start=start, n_rounds=n).deviance
        for start, n in ((fit, 2), (None, 6), (None, 1))
    )
    assert few < many + 0.01
    assert few < none


def test_the_penalty_leaves_parabolas_alone_and_is_the_gradient_of_its_square(
    rng: torch.Generator,
) -> None:
    penalty = Penalty(0.1 + torch.rand(7, 9, 8, generator=rng))
    z, y, x = torch.meshgrid(*(torch.arange(float(n)) for n in (7, 9, 8)), indexing="ij")
    parabola = 0.3 * z**2 - 0.2 * y**2 + 0.1 * x * y + z
    random = torch.randn(7, 9, 8, generator=rng)
    assert float(penalty.gradient(parabola).abs().max()) < 1e-3 * float(
        penalty.gradient(random).abs().max()
    )
    other = torch.randn(7, 9, 8, generator=rng)
    torch.testing.assert_close(
        (other * penalty.gradient(random)).sum(),
        (random * penalty.gradient(other)).sum(),
        rtol=1e-3,
        atol=1e-2,
    )
    looser = Penalty(torch.ones(7, 9, 8), depth=2.0)
    torch.testing.assert_close(looser.weights[0], torch.full_like(looser.weights[0], 0.25))
    torch.testing.assert_close(looser.weights[1], torch.ones_like(looser.weights[1]))
    unit = torch.zeros(7, 9, 8)
    unit[3, 4, 2] = 1
    torch.testing.assert_close(penalty.gradient(unit)[3, 4, 2], penalty.diagonal[3, 4, 2])


def test_conjugate_gradients_solve_a_system(rng: torch.Generator) -> None:
    root = torch.randn(12, 12, generator=rng, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(12)
    right = torch.randn(12, generator=rng, dtype=torch.float64)
    found = conjugate_gradients(
        lambda x: matrix @ x,
        right,
        start=torch.zeros_like(right),
        diagonal=matrix.diagonal(),
        n_steps=40,
    )
    torch.testing.assert_close(found, torch.linalg.solve(matrix, right), rtol=1e-3, atol=1e-4)


def test_the_background_is_that_of_the_border_where_the_bead_is_sharp(rng: torch.Generator) -> None:
    crop = torch.poisson(PHOTONS * light(XYZ, PLANES_NM)[0] + BACKGROUND, generator=rng)
    assert float(border_background(crop, NOISE)) == pytest.approx(BACKGROUND, abs=0.6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_origin_of_a_symmetric_psf_is_its_middle(seed: int) -> None:
    """Noise of the rim does not move it: by 3 to 14 nm where all light counts alike."""
    z = torch.arange(-400.0, 401.0, 50.0)
    psf = GaussianPSF(125.0, pixel_size_nm=100.0, depth_nm=400.0, patch_px=31)
    xy = 1550 + 100 * torch.rand(6, 2, generator=torch.Generator().manual_seed(seed)) - 50
    at = torch.cat([xy[:, None].expand(-1, len(z), -1), z[None, :, None].expand(6, -1, -1)], 2)
    camera = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.6, qe=0.8)
    light = 3000 * psf.integrate_pixels(at.flatten(0, 1)).detach().view(6, len(z), 31, 31) + 30
    crops = camera.to_photons(camera.sample(light, torch.Generator().manual_seed(seed)))
    beads = bead_set(crops, xy, planes_nm=z, noise=camera.typical_noise)
    fit = fit_spline(beads, smoothness=0.1, n_rounds=3)
    assert float((fit.xyz[:, :2] - xy).mean(0).norm()) < 3
