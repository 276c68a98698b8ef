"""Polished molecules: at the Cramer-Rao bound, honest about it, neighbours and frames jointly,
never made worse."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import decode.verbs.polish
import decode.verbs.sweep
from decode.acquisition import acquisition_for
from decode.emitters import EmitterSet
from decode.io.cameras import read_camera
from decode.io.movies import open_movie
from decode.io.tables import read_table
from decode.likelihood import fit_jointly, polish
from decode.likelihood.polish import _tracks, windows_for
from decode.models import load_model
from decode.optics.camera import Camera
from decode.optics.fisher import cramer_rao_bound
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import render
from decode.optics.spline import SplinePSF
from decode.verbs.localize import localize_file, localize_movie

PIXEL_NM = 100.0
SIDE = 27
SAMPLES = Path(__file__).resolve().parents[1] / "sample_data"
EMCCD = Camera(
    baseline=100.0, e_per_adu=45.0, read_noise_e=74.4, qe=0.9, em_gain=300.0, spurious_e=0.002
)
CAMERAS = {
    "EMCCD": EMCCD,
    "sCMOS": Camera(baseline=100.0, e_per_adu=0.46, read_noise_e=1.3, qe=0.8),
}


def astigmatic() -> GaussianPSF:
    return GaussianPSF(
        130.0, pixel_size_nm=PIXEL_NM, depth_nm=400.0, gap_nm=200.0, patch_px=21
    ).double()


def with_maps(rng: torch.Generator) -> Camera:
    """Every fifth pixel is noisy, by 10 electrons."""
    noise = torch.where(torch.rand(SIDE, SIDE, generator=rng) < 0.2, 10.0, 1.3)
    return Camera(
        baseline=100.0,
        e_per_adu=0.46 + 0.05 * torch.rand(SIDE, SIDE, generator=rng),
        read_noise_e=noise,
    )


def one_each(n: int, rng: torch.Generator, *, every: int = 2) -> EmitterSet:
    """One molecule in every second frame, somewhere in the middle, of 1000 to 4000 photons."""
    xyz = torch.tensor([1300.0, 1300.0, -400.0]) + torch.rand(n, 3, generator=rng) * torch.tensor(
        [100.0, 100.0, 800.0]
    )
    photons = 1000 * 4 ** torch.rand(n, generator=rng, dtype=torch.float64)
    return EmitterSet(
        frame=every * torch.arange(n),
        xyz=xyz.double(),
        photons=photons,
        background=torch.full((n,), 20.0).double(),
    )


def recorded(
    camera: Camera,
    truth: EmitterSet,
    rng: torch.Generator,
    background: Tensor | None = None,
    n_frames: int = 0,
) -> Tensor:
    frames = max(n_frames, int(truth.frame.max()) + 1 if len(truth) else 0)
    light = render(
        astigmatic(),
        frame=truth.frame,
        xyz=truth.xyz,
        photons=truth.photons,
        n_frames=frames,
        shape=(SIDE, SIDE),
    ).detach()
    return camera.sample(light + (20.0 if background is None else background), rng)


def bound_of(camera: Camera, truth: EmitterSet) -> Tensor:
    assert truth.background is not None
    return cramer_rao_bound(astigmatic(), camera, truth.xyz, truth.photons, truth.background)


def found(
    truth: EmitterSet, bound: Tensor, rng: torch.Generator, spread: float = 1.2
) -> EmitterSet:
    """What a network would say: off by a little more than the bound, and honest about it."""
    off = spread * bound * torch.randn(bound.shape, generator=rng, dtype=bound.dtype)
    return EmitterSet(
        frame=truth.frame,
        xyz=truth.xyz + off[:, :3],
        photons=truth.photons + off[:, 3],
        background=truth.background * 1.1 if truth.background is not None else None,
        xyz_sigma=spread * bound[:, :3],
        photons_sigma=spread * bound[:, 3],
    )


def root_mean_square(values: Tensor) -> Tensor:
    return values.square().mean(0).sqrt()


@pytest.mark.parametrize("name", ["EMCCD", "sCMOS", "sCMOS with maps"])
def test_isolated_molecules_come_to_the_bound(name: str, rng: torch.Generator) -> None:
    """Root mean squares of 600 errors scatter by 3 %."""
    camera = CAMERAS[name] if name in CAMERAS else with_maps(rng)
    truth = one_each(600, rng)
    bound = bound_of(camera, truth)
    start, adu = found(truth, bound, rng), recorded(camera, truth, rng)
    # with no uncertainties to hold it, the fit is the likelihood's alone
    fit = fit_jointly(astigmatic(), camera, adu, replace(start, xyz_sigma=None, photons_sigma=None))
    assert fit.converged.double().mean() > 0.99
    error = fit.xyz - truth.xyz
    assert (root_mean_square(error / bound[:, :3]) < 1.06 + 0.06).all()
    spread = root_mean_square(error / fit.xyz_sigma)
    assert ((spread > 0.9) & (spread < 1.1)).all(), spread
    assert abs(fit.deviance.mean() - 1) < 0.1

    # this network errs independently of the noise: differences are sqrt(1 + 1 / 1.44) of its
    # sigmas, of which 2.5 are allowed, and 5 where noise explains the rest
    better = polish(astigmatic(), camera, adu, start)
    assert better.polished is not None
    assert better.polished.double().mean() > 0.97
    assert better.xyz_sigma is not None
    error = better.xyz - truth.xyz
    assert (root_mean_square(error) < root_mean_square(start.xyz - truth.xyz)).all()
    assert (root_mean_square(error / better.xyz_sigma) < 1.1).all()
    assert better.correlation is not None
    assert (better.correlation.abs() < 1).all()
    # where the fit and the network are apart, one of them errs, which the sigma admits: about a
    # quarter of the distance for a network whose variance is 1.44 times the fit's, and whose weight
    # is 0.07
    fitted = fit_jointly(astigmatic(), camera, adu, start)
    assert start.xyz_sigma is not None
    share = (0.1 * fitted.xyz_sigma**2 / start.xyz_sigma**2).clamp_max(1)
    admitted = (share * (1 - share)).sqrt() * (fitted.xyz - start.xyz).abs()
    assert (better.xyz_sigma >= 0.9 * admitted)[better.polished].all()


def pair_bound(camera: Camera, truth: EmitterSet) -> Tensor:
    """(pairs, 2, 3) nm, where x, y, z, photons of both and one background are unknown; by
    automatic derivatives."""
    psf = astigmatic()
    pairs = len(truth) // 2

    def image(unknown: Tensor) -> Tensor:
        u = unknown[:, :8].reshape(-1, 4)
        frame = torch.arange(pairs).repeat_interleave(2)
        light = render(
            psf, frame=frame, xyz=u[:, :3], photons=u[:, 3], n_frames=pairs, shape=(SIDE, SIDE)
        )
        return light + unknown[:, 8, None, None]

    at = torch.cat([truth.xyz, truth.photons[:, None]], 1).reshape(pairs, 8)
    at = torch.cat([at, torch.full((pairs, 1), 20.0)], 1)
    axes = torch.eye(9, dtype=at.dtype)
    slopes = torch.stack(
        [torch.func.jvp(image, (at,), (axis.expand_as(at),))[1] for axis in axes], 1
    ).flatten(2)
    variance = camera.excess_factor * image(at) / camera.qe + camera.noise_floor
    information = torch.einsum("nik,njk,nk->nij", slopes, slopes, 1 / variance.flatten(1))
    return (
        torch.linalg.inv(information)
        .diagonal(dim1=1, dim2=2)[:, :8]
        .sqrt()
        .reshape(pairs, 2, 4)[:, :, :3]
        .detach()
    )


def pairs_of(n: int, rng: torch.Generator, apart_nm: float) -> EmitterSet:
    first = one_each(n, rng)
    angle = torch.rand(n, generator=rng, dtype=torch.float64) * 2 * torch.pi
    step = apart_nm * torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], 1)
    xyz = torch.stack([first.xyz, first.xyz + step], 1).flatten(0, 1)
    xyz[:, 2] *= 0.4
    two = {
        name: column.repeat_interleave(2)
        for name, column in first.columns().items()
        if name != "xyz"
    }
    return EmitterSet(xyz=xyz, **two)


def test_pairs_come_to_the_bound_of_pairs(rng: torch.Generator) -> None:
    """300 nm apart, both unknown; the stated covariance counts the neighbour."""
    truth = pairs_of(300, rng, 300.0)
    bound = pair_bound(EMCCD, truth).flatten(0, 1)
    off = torch.randn(len(truth), 3, generator=rng, dtype=torch.float64) * torch.tensor(
        [15.0, 15.0, 30.0]
    )
    start = EmitterSet(
        frame=truth.frame, xyz=truth.xyz + off, photons=truth.photons, background=truth.background
    )
    fit = fit_jointly(astigmatic(), EMCCD, recorded(EMCCD, truth, rng), start)
    assert fit.converged.double().mean() > 0.9
    error = (fit.xyz - truth.xyz)[fit.converged]
    over = root_mean_square(error / bound[fit.converged])
    assert (over < 1.06 + 0.07).all(), over
    spread = root_mean_square(error / fit.xyz_sigma[fit.converged])
    assert ((spread > 0.9) & (spread < 1.12)).all(), spread
    alone = bound_of(EMCCD, truth)[:, :2]
    assert (fit.xyz_sigma[:, :2] / alone).median() > 1.1


def test_a_molecule_that_stays_on_has_one_position(rng: torch.Generator) -> None:
    """Four frames halve the error of one."""
    once = one_each(200, rng, every=6)
    rows = torch.arange(200).repeat_interleave(4)
    truth = EmitterSet(**{name: column[rows] for name, column in once.columns().items()})
    truth = EmitterSet(**{**truth.columns(), "frame": truth.frame + torch.arange(4).repeat(200)})
    bound = bound_of(EMCCD, truth)
    start = found(truth, bound, rng)
    fit = fit_jointly(astigmatic(), EMCCD, recorded(EMCCD, truth, rng), start)
    linked = (fit.xyz.view(200, 4, 3) - fit.xyz.view(200, 4, 3)[:, :1]).abs().amax((1, 2)) < 1e-6
    assert linked.double().mean() > 0.85  # 3 sigmas in each of three gaps let 8 % go
    whole = linked.repeat_interleave(4)
    error = (fit.xyz - truth.xyz)[whole]
    assert (root_mean_square(error / bound[whole, :3]) < 0.58).all()
    spread = root_mean_square(error / fit.xyz_sigma[whole])
    assert ((spread > 0.8) & (spread < 1.1)).all(), spread  # those let go had the larger errors


def test_what_is_known_of_one_tells_the_light_of_the_other(rng: torch.Generator) -> None:
    """Two 120 nm apart share a frame, and each has one for itself: how much light of the common
    frame is whose is known as if both positions came from the three frames at once."""
    n, frames = 200, torch.tensor([0, 1, 1, 2])
    middle = one_each(n, rng).xyz
    angle = torch.rand(n, generator=rng, dtype=torch.float64) * 2 * torch.pi
    half = 60.0 * torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], 1)
    xyz = torch.stack([middle - half, middle - half, middle + half, middle + half], 1)
    truth = EmitterSet(
        frame=(4 * torch.arange(n)[:, None] + frames).flatten(),
        xyz=xyz.flatten(0, 1),
        photons=torch.full((4 * n,), 3000.0).double(),
        background=torch.full((4 * n,), 20.0).double(),
    )
    bound = _bound_of_common_light(EMCCD, xyz)
    off = 15.0 * torch.randn(len(truth), 3, generator=rng, dtype=torch.float64)
    start = replace(truth, xyz=truth.xyz + off)
    fit = fit_jointly(astigmatic(), EMCCD, recorded(EMCCD, truth, rng), start)
    common = (torch.arange(4 * n) % 4 == 1) | (torch.arange(4 * n) % 4 == 2)
    error = (fit.photons - 3000.0)[common].view(n, 2) / bound
    assert float(error.square().mean().sqrt()) < 1.15
    sigma = fit.photons_sigma[common].view(n, 2)
    assert 0.85 < float((error * bound / sigma).square().mean().sqrt()) < 1.2


def _bound_of_common_light(camera: Camera, xyz: Tensor) -> Tensor:
    """(n, 2) bounds of the photons of both in the common frame, by the information of all three."""
    psf, n = astigmatic(), len(xyz)
    middle = xyz[:, 1:3].mean(1, keepdim=True)
    corner = ((middle[..., :2] / PIXEL_NM).floor() - psf.patch_px // 2) * PIXEL_NM
    local = xyz.clone()
    local[..., :2] -= corner
    image = psf.integrate_pixels_with_slopes(local.flatten(0, 1)).detach().flatten(2)
    image = image.view(n, 4, *image.shape[1:])
    # unknowns: two positions, photons of four rows, backgrounds of three frames
    slope = image.new_zeros(n, 3, image.shape[-1], 13)
    for row, (frame, molecule) in enumerate([(0, 0), (1, 0), (1, 1), (2, 1)]):
        position = slice(3 * molecule, 3 * molecule + 3)
        slope[:, frame, :, position] += 3000.0 * image[:, row, 1:4].mT
        slope[:, frame, :, 6 + row] = image[:, row, 0]
    for frame in range(3):
        slope[:, frame, :, 10 + frame] = 1.0
    light = 3000.0 * torch.stack([image[:, 0, 0], image[:, 1:3, 0].sum(1), image[:, 3, 0]], 1)
    weight = 1 / camera.noise.variance(light + 20.0)
    slope = slope.flatten(1, 2) * weight.flatten(1)[..., None].sqrt()
    covariance = torch.linalg.inv(slope.mT @ slope)
    return covariance.diagonal(dim1=1, dim2=2)[:, 7:9].sqrt()


@pytest.mark.parametrize("wild", [1e12, torch.nan])
def test_a_molecule_without_a_position_leaves_the_others_linked(wild: float) -> None:
    """Three rows of each of 20 molecules; one row more knows nothing of where it is."""
    n = 20
    place = torch.tensor([[2000.0, 2000.0]]) * torch.arange(1, n + 1)[:, None]
    xy = torch.cat([place.repeat(3, 1), place[:1] + 100.0]).double()
    covariance = 100.0 * torch.eye(2).double().repeat(3 * n + 1, 1, 1)
    covariance[-1] *= wild
    emitters = EmitterSet(
        frame=torch.cat([torch.arange(3).repeat_interleave(n), torch.tensor([3])]),
        xyz=torch.nn.functional.pad(xy, (0, 1)),
        photons=torch.ones(3 * n + 1),
    )
    _, count = _tracks(emitters, xy, covariance, torch.full((3 * n + 1,), 1e-7).double())
    assert n <= count <= n + 1


@pytest.mark.parametrize("apart_nm", [150.0, 350.0])
def test_errors_of_crowded_frames_do_not_reach_the_frames_without_a_crowd(
    apart_nm: float, rng: torch.Generator
) -> None:
    """Molecules on for four frames; in the first two, half as bright, a neighbour nobody found."""
    n = 150
    once = one_each(n, rng, every=6)
    rows = torch.arange(n).repeat_interleave(4)
    truth = EmitterSet(**{name: column[rows] for name, column in once.columns().items()})
    truth = replace(truth, frame=truth.frame + torch.arange(4).repeat(n))
    alone = torch.arange(4 * n) % 4 >= 2
    angle = torch.rand(n, generator=rng, dtype=torch.float64).repeat_interleave(2) * 2 * torch.pi
    step = apart_nm * torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], 1)
    crowd = truth[~alone]
    other = replace(crowd, xyz=crowd.xyz + step, photons=crowd.photons / 2)
    adu = recorded(EMCCD, EmitterSet.cat([truth, other]), rng, n_frames=6 * n)
    bound = bound_of(EMCCD, truth)
    fit = fit_jointly(astigmatic(), EMCCD, adu, found(truth, bound, rng))
    off = ((fit.xyz - truth.xyz) / fit.xyz_sigma).abs()[alone]
    assert (off > 4).any(1).double().mean() < 0.02
    # the two frames still help each other
    error = (fit.xyz - truth.xyz)[alone] / bound[alone, :3]
    assert (root_mean_square(error) < 1.0).all(), root_mean_square(error)


def test_uneven_background_does_not_draw_molecules_along(rng: torch.Generator) -> None:
    """20 photons that rise to 50 within the window; without the shape of the background the mean
    error is 5 sigma."""
    truth = one_each(400, rng)
    slope = 20 + 30 * torch.sigmoid((torch.arange(SIDE) - 15.0) / 3).expand(SIDE, SIDE)
    bound = bound_of(EMCCD, truth)
    fit = fit_jointly(
        astigmatic(), EMCCD, recorded(EMCCD, truth, rng, slope), found(truth, bound, rng)
    )
    bias = (fit.xyz - truth.xyz)[:, :2].mean(0)
    assert (bias.abs() < 0.3 * bound[:, :2].mean(0)).all(), bias


def test_what_does_not_fit_stays_as_the_network_has_it(rng: torch.Generator) -> None:
    """Molecules placed 400 nm off, sure of themselves; and molecules where there are none."""
    truth = one_each(60, rng)
    adu = recorded(EMCCD, truth, rng, n_frames=140)
    bound = bound_of(EMCCD, truth)
    start = found(truth, bound, rng)
    xyz, frame = start.xyz.clone(), start.frame.clone()
    xyz[:20, 0] += 400
    frame[20:25] = torch.arange(121, 131, 2)
    start = EmitterSet(**{**start.columns(), "xyz": xyz, "frame": frame})
    polished = polish(astigmatic(), EMCCD, adu, start)
    assert polished.polished is not None
    assert not polished.polished[:20].any()
    assert torch.equal(polished.xyz[:20], start.xyz[:20])
    assert polished.xyz_sigma is not None
    assert start.xyz_sigma is not None
    assert torch.equal(polished.xyz_sigma[:20], start.xyz_sigma[:20])
    assert polished.polished[25:].double().mean() > 0.9
    for column in polished.columns().values():
        assert torch.isfinite(column).all()


def test_molecules_at_and_beyond_the_border(rng: torch.Generator) -> None:
    places = torch.tensor(
        [[30.0, 30.0, 0.0], [2690.0, 1350.0, 50.0], [1350.0, -20.0, 0.0], [-900.0, 500.0, 0.0]]
    ).double()
    n = len(places)
    truth = EmitterSet(
        frame=2 * torch.arange(n),
        xyz=places,
        photons=torch.full((n,), 4000.0).double(),
        background=torch.full((n,), 20.0).double(),
    )
    bound = bound_of(EMCCD, truth)
    start, adu = found(truth, bound, rng), recorded(EMCCD, truth, rng)
    for column in polish(astigmatic(), EMCCD, adu, start).columns().values():
        assert torch.isfinite(column).all()
    fit = fit_jointly(astigmatic(), EMCCD, adu, start)
    assert fit.converged[:3].all()
    assert ((fit.xyz - truth.xyz) / fit.xyz_sigma)[:3].abs().max() < 4
    # of the light of the first only a third is seen
    assert (fit.xyz_sigma[0, :2] > 3 * bound[0, :2]).all()


def test_no_molecules_and_no_depth(rng: torch.Generator) -> None:
    none = EmitterSet(
        frame=torch.zeros(0).long(),
        xyz=torch.zeros(0, 3),
        photons=torch.zeros(0),
        background=torch.zeros(0),
        xyz_sigma=torch.zeros(0, 3),
        photons_sigma=torch.zeros(0),
    )
    adu = torch.full((3, SIDE, SIDE), 110.0)
    assert len(polish(astigmatic(), EMCCD, adu, none)) == 0
    flat = GaussianPSF(130.0, pixel_size_nm=PIXEL_NM)
    one = EmitterSet(
        frame=torch.tensor([1]),
        xyz=torch.tensor([[1350.0, 1340.0, 0.0]]),
        photons=torch.tensor([2000.0]),
        background=torch.tensor([20.0]),
        xyz_sigma=torch.tensor([[9.0, 9.0, torch.nan]]),
        photons_sigma=torch.tensor([100.0]),
    )
    light = (
        render(
            flat, frame=one.frame, xyz=one.xyz, photons=one.photons, n_frames=3, shape=(SIDE, SIDE)
        )
        + 20
    )
    polished = polish(flat, EMCCD, EMCCD.sample(light.detach(), rng), one)
    assert polished.polished is not None
    assert polished.xyz_sigma is not None
    assert bool(polished.polished.all())
    assert polished.xyz[0, 2] == 0
    assert torch.isnan(polished.xyz_sigma[0, 2])
    assert polished.xyz_sigma[0, 0] < 9


def test_most_molecules_in_the_first_frame_where_denormal_numbers_are_flushed() -> None:
    """A program that uses ours may have set it; SciPy's balanced tree overflows the stack, so in
    its own process."""
    script = """
import torch
from decode.emitters import EmitterSet
from decode.likelihood.polish import _neighbours, _tracks
torch.set_flush_denormal(True)
rng = torch.Generator().manual_seed(0)
n = 800
frame = (torch.arange(n) >= 600).long()
xyz = torch.rand(n, 3, generator=rng, dtype=torch.float64) * 6400
emitters = EmitterSet(frame=frame, xyz=xyz, photons=torch.ones(n))
found = _neighbours(emitters, 650.0)
assert (frame[found.clamp_min(0)] == frame[:, None])[found >= 0].all()
_tracks(emitters, xyz, 100 * torch.eye(3).double().expand(n, 3, 3), torch.full((n,), 1e-6))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_bad_input_is_named(rng: torch.Generator) -> None:
    truth = one_each(3, rng)
    adu = recorded(EMCCD, truth, rng)
    with pytest.raises(ValueError, match="uncertainties"):
        polish(astigmatic(), EMCCD, adu, truth)
    with pytest.raises(ValueError, match="outside the 2 frames"):
        fit_jointly(astigmatic(), EMCCD, adu[:2], truth)


def test_a_polished_table(tmp_path: Path) -> None:
    """The same molecules in the same order, most of them polished, whatever the chunks."""
    camera = read_camera(SAMPLES / "camera.yaml")
    model = load_model("gaussian-2d")
    tables = []
    for polished in (False, True):
        out = tmp_path / str(polished)
        localize_file(
            SAMPLES / "blinking_2d.tif",
            model,
            out,
            camera=camera,
            psf_sigma_nm=95.0,
            frames=slice(5, 30),
            formats=["csv", "hdf5"],
            device="cpu",
            polish=polished,
        )
        tables.append([read_table(out / f"blinking_2d.{suffix}") for suffix in ("csv", "hdf5")])
    (plain, _), (better, in_picasso) = tables
    assert torch.equal(better.frame, plain.frame)
    assert better.polished is not None
    assert in_picasso.goodness is not None
    assert better.polished.double().mean() > 0.7
    assert plain.polished is None
    moved = (better.xyz - plain.xyz)[:, :2].norm(dim=1)
    assert 0 < moved.median() < 20
    assert (moved[~better.polished] == 0).all()
    assert (moved[better.polished] > 0).double().mean() > 0.98, (
        "where the fit says less than the network, it stays"
    )


def test_chunks_that_are_joined_and_reported_while_they_are_worked_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same table whatever the pieces; and signs of life, which say nothing new."""
    model = load_model("gaussian-2d")
    tables = []
    with open_movie(SAMPLES / "blinking_2d.tif", frames=slice(5, 45)) as movie:
        acquisition = acquisition_for(
            movie, model, camera=read_camera(SAMPLES / "camera.yaml"), psf_sigma_nm=95.0
        )
        for pixels, frames, seconds in ((2**21, 64, 10.0), (1, 16, 1e-4)):
            # frames come by 40, or by 8
            monkeypatch.setitem(decode.verbs.sweep.CHUNK_PIXELS, "cpu", pixels)
            monkeypatch.setattr(decode.verbs.polish, "BLOCK_FRAMES", frames)
            monkeypatch.setattr(decode.verbs.polish, "HEARTBEAT_S", seconds)
            chunks = list(localize_movie(movie, model, acquisition, device="cpu", polish=True))
            done = [chunk.frames_done for chunk in chunks]
            assert done == sorted(done)
            assert sorted(
                {d for d, chunk in zip(done, chunks, strict=True) if len(chunk.molecules)}
            ) == ([40] if frames == 64 else [16, 32, 40])
            assert any(not len(chunk.molecules) for chunk in chunks) == (seconds < 1)
            tables.append(EmitterSet.cat(chunk.molecules for chunk in chunks))
    whole, pieces = tables
    assert torch.equal(whole.frame, pieces.frame)
    assert whole.xyz_sigma is not None
    moved = ((whole.xyz - pieces.xyz)[:, :2] / whole.xyz_sigma[:, :2]).abs()
    assert moved.quantile(0.95) < 0.3  # the background is that of more or fewer frames


def test_a_fit_is_the_same_on_its_own_and_among_others(rng: torch.Generator) -> None:
    """Molecules of other frames change nothing but the background's shape."""
    truth = one_each(40, rng)
    adu = recorded(EMCCD, truth, rng)
    start = found(truth, bound_of(EMCCD, truth), rng)

    whole = fit_jointly(astigmatic(), EMCCD, adu, start)
    half = fit_jointly(astigmatic(), EMCCD, adu[:40], start[:20])
    assert ((whole.xyz[:20] - half.xyz) / half.xyz_sigma).abs().max() < 0.3


def test_what_a_bad_pixel_reads_changes_no_molecule(rng: torch.Generator) -> None:
    truth = one_each(20, rng)
    adu = recorded(CAMERAS["sCMOS"], truth, rng)
    bad = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    bad[14, 12] = bad[:, 16] = True
    camera = replace(CAMERAS["sCMOS"], bad=bad)
    start = found(truth, bound_of(CAMERAS["sCMOS"], truth), rng)
    clean, stuck = (
        polish(astigmatic(), camera, counts, start) for counts in (adu, adu.masked_fill(bad, 65535))
    )
    torch.testing.assert_close(stuck.xyz, clean.xyz)
    torch.testing.assert_close(stuck.photons, clean.photons)
    assert stuck.polished is not None
    assert stuck.polished.float().mean() > 0.8


def test_a_fit_much_more_certain_than_the_network_reaches_the_bound(rng: torch.Generator) -> None:
    """A network that is unsure, as at the ends of depth, does not draw bright molecules to
    itself."""
    truth = one_each(200, rng)
    truth = replace(truth, photons=torch.full_like(truth.photons, 15000.0))
    camera = CAMERAS["sCMOS"]
    bound, adu = bound_of(camera, truth), recorded(camera, truth, rng)
    better = polish(astigmatic(), camera, adu, found(truth, bound, rng, spread=10.0))
    assert better.polished is not None
    assert better.xyz_sigma is not None
    assert better.polished.double().mean() > 0.97, "the others start too far away"
    error = (better.xyz - truth.xyz)[better.polished]
    assert (root_mean_square(error / bound[better.polished, :3]) < 1.15).all()
    assert (root_mean_square(error / better.xyz_sigma[better.polished]) > 0.8).all(), (
        "and its sigma says so"
    )


def spline_of_600_nm() -> SplinePSF:
    depth = torch.linspace(-300.0, 300.0, 13, dtype=torch.float64)
    middle = torch.full_like(depth, SIDE * PIXEL_NM / 2)
    images = astigmatic().with_patch(SIDE).integrate_pixels(torch.stack([middle, middle, depth], 1))
    return SplinePSF.from_stack(
        images.detach().numpy(), z_start_nm=-300.0, z_step_nm=50.0, pixel_size_nm=PIXEL_NM
    ).double()


@torch.no_grad()
def test_depths_that_a_psf_does_not_distinguish_do_not_choose_the_windows(
    rng: torch.Generator,
) -> None:
    psf = spline_of_600_nm()
    sides = set()
    for _ in range(10):
        noise = 1 + 1e-6 * torch.randn(psf.coefficients.shape, generator=rng)
        rounded = psf.with_coefficients(psf.coefficients.detach() * noise)
        sides.add(tuple(windows_for(rounded, CAMERAS["sCMOS"], axial=True, most=[1.3, 1.15, 1.04])))
    assert len(sides) == 1


def test_a_molecule_deeper_than_the_bead_stack_keeps_the_networks_depth(
    rng: torch.Generator,
) -> None:
    truth = one_each(40, rng)
    psf = spline_of_600_nm()
    deep = truth.xyz.clone()
    deep[:, 2] = 520.0
    truth = replace(truth, xyz=deep)
    bound, camera = bound_of(CAMERAS["sCMOS"], truth), CAMERAS["sCMOS"]
    start = found(truth, bound, rng)
    better = polish(psf, camera, recorded(camera, truth, rng), start)
    assert better.xyz_sigma is not None
    assert start.xyz_sigma is not None
    assert (better.xyz_sigma[:, 2] <= 1.01 * start.xyz_sigma[:, 2]).all()
    torch.testing.assert_close(better.xyz[:, 2], start.xyz[:, 2], atol=5.0, rtol=0)
