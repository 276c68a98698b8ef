"""Everything runs on a GPU, and rarely waits for it: shown by one that is pretended."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

import decode.network.unet
import decode.verbs.accelerator
import decode.verbs.doctor
from decode.config import TrainConfig, load_config
from decode.devices import on_host
from decode.emitters import EmitterSet
from decode.forward import ForwardModel, Simulation
from decode.io.movies import open_array
from decode.likelihood.polish import polish
from decode.network.localizer import Localizer, NetworkConfig
from decode.network.posterior import SetPosterior
from decode.optics.camera import Camera
from decode.optics.field import FieldSplinePSF
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import PSF, render
from decode.optics.pupil import PupilPSF
from decode.optics.spline import SplinePSF
from decode.priors.camera import CameraPrior, FixedCamera
from decode.priors.drawn import PSFs
from decode.priors.psf import FixedPSF, PSFPrior, SomeByPupils
from decode.priors.pupils import PupilBank, PupilPrior, RoundPupilPrior
from decode.priors.scene import Scene
from decode.training.learner import Learner
from decode.training.processes import Processes
from decode.training.validation import Validation, characterize
from decode.verbs.doctor import MOVIE, checks_of
from decode.verbs.sweep import sweep

if TYPE_CHECKING:
    from conftest import PretendGPU

CUDA = torch.device("cuda")
CONFIGS = Path(__file__).parents[2] / "configs"

MAX_WAITS, MAX_DISPATCHES = 5, 2000
"""of a step of training, simulation included"""
WAITS_OF_A_SIMULATION = 1
"""for the number of rows of its table"""
OF_A_NEW_PUPIL = 1
"""waits, for a spline is made on the host"""


def spline() -> SplinePSF:
    pupil = PupilPSF(
        numerical_aperture=1.4,
        wavelength_nm=670.0,
        pixel_size_nm=100.0,
        zernike_nm={(2, 2): 60.0},
        patch_px=15,
    )
    return pupil.to_spline(z_range_nm=(-400.0, 400.0), z_step_nm=100.0)


def field_spline() -> FieldSplinePSF:
    middle = spline()
    changes = 0.01 * middle.coefficients.detach().expand(2, -1, -1, -1)
    field = ((0.0, 4000.0), (0.0, 3000.0))
    return FieldSplinePSF(middle, changes, shifts_nm=torch.ones(2, 2), field_nm=field)


def pupil() -> PupilPSF:
    return PupilPSF(numerical_aperture=1.4, wavelength_nm=670.0, pixel_size_nm=100.0, patch_px=15)


PSF_OF = {
    "Gaussian": lambda: GaussianPSF(130.0, pixel_size_nm=100.0, depth_nm=400.0, gap_nm=200.0),
    "pupil": pupil,
    "spline": spline,
    "field": field_spline,
}
PSFS_OF = {
    "Gaussian": lambda: PSFPrior().at(100.0, (0.0, 0.0)),
    "pupils": lambda: PupilBank(PupilPrior(), 100.0, (-300.0, 300.0), size=2),
    "round pupils": lambda: PupilBank(RoundPupilPrior(), 100.0, (-300.0, 300.0), size=2),
    "blurred spline": lambda: FixedPSF(spline(), (10.0, 30.0)),
    "field": lambda: FixedPSF(field_spline()),
}
"""each with a network's z between -300 and 300 nm"""
MAPPED = Camera(
    baseline=100.0,
    e_per_adu=torch.full((40, 50), 0.5),
    read_noise_e=torch.full((40, 50), 1.5),
    bad=torch.zeros(40, 50, dtype=torch.bool),
)
CAMERAS_OF = {
    "EMCCD": CameraPrior(emccd_fraction=1.0, bad_pixels=(0.0, 0.01)),
    "sCMOS": CameraPrior(emccd_fraction=0.0, bad_pixels=(0.0, 0.01)),
    "sCMOS without maps": CameraPrior(emccd_fraction=0.0, unmapped=1.0),
    "one with maps": FixedCamera(MAPPED),
    "one of numbers": FixedCamera(Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.5)),
}
SCENE = Scene(z_nm=(-300.0, 300.0), density_per_um2=(1.0, 1.0), flicker=0.5)


def sampled(psfs: PSFs, cameras: CameraPrior | FixedCamera) -> Simulation:
    rng = torch.Generator(CUDA).manual_seed(1)
    return ForwardModel(SCENE, psfs, cameras).sample(2, 3, (24, 24), rng)


def waits(gpu: PretendGPU) -> int:
    return sum(gpu.waits.values())


def test_what_a_gpu_refuses_is_refused(gpu: PretendGPU) -> None:
    there, here = torch.ones(3, device=CUDA), torch.ones(3)
    with pytest.raises(RuntimeError, match="on the CPU and on the GPU"):
        there + here
    with pytest.raises(RuntimeError, match="on the CPU and on the GPU"):
        here[torch.zeros(2, dtype=torch.long, device=CUDA)]
    with pytest.raises(RuntimeError, match="on the CPU and on the GPU"):
        torch.stack([there.sum(), here.sum()])
    with pytest.raises(RuntimeError, match="another device"):
        torch.rand(3, device=CUDA, generator=torch.Generator())
    with pytest.raises(RuntimeError, match="another device"):
        torch.poisson(here, generator=torch.Generator(CUDA))
    with pytest.raises(TypeError, match="NumPy"):
        there.numpy()
    assert (there + here.sum()).device == torch.device("cuda", 0)


def test_waits_are_counted(gpu: PretendGPU) -> None:
    values = torch.ones(3, device=CUDA)
    there = torch.tensor([1.0, 2.0]).to(CUDA, non_blocking=True)
    values.add(1).where(values > 0, 0.0)
    assert waits(gpu) == 0
    for act in (
        lambda: float(there.sum()),
        lambda: there.tolist(),
        lambda: there.cpu(),
        lambda: there[there > 1],
        lambda: torch.nonzero(there),
        lambda: there.new_tensor([1.0]),
        lambda: torch.tensor([1.0], device=CUDA),
        lambda: torch.repeat_interleave(there.long()),
    ):
        gpu.clear()
        act()
        assert waits(gpu) == 1
        assert len(gpu.dispatches) <= 2


def test_a_source_on_the_host_follows_from_that_of_the_gpu(gpu: PretendGPU) -> None:
    def numbers(seed: int) -> list[float]:
        rng = torch.Generator(CUDA).manual_seed(seed)
        return [float(torch.rand(1, generator=on_host(rng))) for _ in range(3)]

    assert numbers(1) == numbers(1)
    assert len({*numbers(1), *numbers(2)}) == 6
    assert waits(gpu) == 0
    here = torch.Generator()
    assert on_host(here) is here


@pytest.mark.parametrize("psfs", PSFS_OF)
def test_movies_are_drawn_without_asking_the_gpu(gpu: PretendGPU, psfs: str) -> None:
    drawn = PSFS_OF[psfs]()
    sampled(drawn, CAMERAS_OF["EMCCD"])  # what is kept for later draws is made
    gpu.clear()
    batch = sampled(drawn, CAMERAS_OF["EMCCD"])
    assert waits(gpu) <= WAITS_OF_A_SIMULATION, gpu.waits
    assert batch.frames.device.type == batch.emitters.xyz.device.type == "cuda"
    assert float(batch.frames.mean()) > 100


@pytest.mark.parametrize("camera", CAMERAS_OF)
def test_cameras_are_drawn_without_asking_the_gpu(gpu: PretendGPU, camera: str) -> None:
    psfs = PSFS_OF["Gaussian"]()
    sampled(psfs, CAMERAS_OF[camera])
    gpu.clear()
    batch = sampled(psfs, CAMERAS_OF[camera])
    assert waits(gpu) <= WAITS_OF_A_SIMULATION, gpu.waits
    assert batch.camera.to_photons(batch.frames).device.type == "cuda"


@pytest.mark.parametrize(
    ("recipe", "optimizer"),
    [("gaussian-2d", "muon"), ("gaussian-2d", "adamw"), ("astigmatic-3d", "muon")],
)
def test_a_step_of_training_waits_seldom_and_is_short(
    gpu: PretendGPU, recipe: str, optimizer: str
) -> None:
    config = load_config(CONFIGS / f"{recipe}.yaml")
    # neither waits nor dispatches go with the number of pixels
    plan = replace(config.training, optimizer=optimizer, movies=2, frames=2, size_px=16)
    rng, shape = torch.Generator(CUDA).manual_seed(1), (plan.size_px, plan.size_px)
    psfs = config.forward_model().psfs
    # all that are kept are made in the first step
    few = partial(
        PupilBank, pixel_size_nm=config.pixel_size_nm, z_range_nm=config.scene.z_nm, size=2
    )
    if isinstance(config.psf, PupilPrior):
        psfs = few(config.psf)
    elif isinstance(psfs, SomeByPupils):
        psfs = replace(psfs, pupils=few(psfs.pupils.prior))
        psfs.pupils.draw(plan.movies, rng)
        psfs.gaussians.draw(plan.movies, rng)  # moves to the GPU once
    forward = replace(config.forward_model(), psfs=psfs)
    model = config.localizer().to(CUDA, memory_format=torch.channels_last)
    learner = Learner(model, plan, Processes())
    rounds = 4  # of which one renews a pupil
    for warm in (True, False):
        gpu.clear()
        most = 0
        for _ in range(1 if warm else rounds):
            before = waits(gpu)
            batch = forward.sample(plan.movies, plan.frames, shape, rng)
            loss = learner.step(batch, 1e-3)
            most = max(most, waits(gpu) - before)
    assert most <= MAX_WAITS, gpu.waits
    assert sum(gpu.dispatches.values()) / rounds <= MAX_DISPATCHES, gpu.dispatches
    assert loss is not None
    assert loss.device.type == "cuda"


@pytest.fixture
def network() -> Localizer:
    """Untrained, with outputs wild enough to list molecules everywhere."""
    torch.manual_seed(1)
    shape = NetworkConfig(frame_widths=(4, 6), sequence_widths=(4, 6), head_width=8, axial=True)
    model = Localizer(shape, {"psf_sigma_px": (0.8, 2.0)})
    torch.nn.init.normal_(model.out.weight, std=1.0)
    torch.nn.init.zeros_(model.out.bias)
    return model.eval()


@pytest.mark.parametrize("psf", [PSFPrior(), PupilPrior()], ids=["Gaussian", "pupils"])
def test_a_model_is_scored(gpu: PretendGPU, psf: PSFPrior | PupilPrior) -> None:
    tiny = NetworkConfig(frame_widths=(4, 6), sequence_widths=(4, 6), head_width=8, axial=True)
    scene = replace(SCENE, density_per_um2=(0.1, 0.1), flux_photons=(3000.0, 3000.0))
    config = TrainConfig(psf=psf, scene=scene, network=tiny)
    model = config.localizer().to(CUDA)

    def some(posterior: SetPosterior) -> EmitterSet:
        return replace(posterior, logit=posterior.logit + 6).point_estimate(0.05)[::10]

    figures = Validation(config, CUDA, n_movies=2, read_out=some)(model)
    assert figures.isolated_error_over_bound > 1
    if isinstance(psf, PSFPrior):
        assert len(characterize(model, config, CUDA, n_movies=1)) == 5


def test_a_movie_is_localized_as_on_the_cpu(gpu: PretendGPU, network: Localizer) -> None:
    rng = np.random.default_rng(2)
    counts = rng.poisson(140 + 900 * (rng.random((20, 40, 50)) > 0.98))
    tables = {
        device: EmitterSet.cat(
            chunk.molecules
            for chunk in sweep(
                open_array(counts.astype(np.uint16)),
                network,
                MAPPED,
                pixel_size_nm=100.0,
                context={"psf_sigma_px": 1.3},
                device=device,
            )
        )
        for device in ("cpu", "cuda")
    }
    assert len(tables["cpu"]) > 100
    torch.testing.assert_close(tables["cuda"].xyz, tables["cpu"].xyz)
    assert tables["cuda"].xyz.device.type == "cpu"


def blinking(psf: PSF) -> tuple[Tensor, EmitterSet]:
    """Counts of some molecules, and what a network would say of them."""
    rng = torch.Generator().manual_seed(3)
    n, n_frames = 40, 6
    xyz = torch.rand(n, 3, generator=rng) * torch.tensor([4000.0, 3000.0, 400.0])
    xyz[:, 2] -= 200
    truth = EmitterSet(frame=torch.arange(n) % n_frames, xyz=xyz, photons=torch.full((n,), 3000.0))
    light = render(
        psf,
        frame=truth.frame,
        xyz=xyz,
        photons=truth.photons,
        n_frames=n_frames,
        shape=(40, 50),
        parameters=psf.parameters_at(xyz),
    )
    found = replace(
        truth,
        xyz=xyz + 10 * torch.randn(xyz.shape, generator=rng),
        background=torch.full((n,), 20.0),
        xyz_sigma=torch.full((n, 3), 15.0),
        photons_sigma=torch.full((n,), 100.0),
    )
    return MAPPED.sample(light.detach() + 20, rng), found


@torch.no_grad()
@pytest.mark.parametrize("psf", ["spline", "field"])
def test_slopes_of_a_spline_are_those_of_the_cpu(gpu: PretendGPU, psf: str) -> None:
    own = PSF_OF[psf]().double()
    xyz = torch.rand(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    xyz = xyz * torch.tensor([900.0, 900.0, 1000.0]) + torch.tensor([300.0, 300.0, -500.0])
    place = own.parameters_at(xyz)
    here = own.integrate_pixels_with_slopes(xyz, place).detach()
    own, there = own.to(CUDA), xyz.to(CUDA)
    gpu.clear()
    drawn = own.integrate_pixels_with_slopes(there, own.parameters_at(there)).detach()
    assert waits(gpu) == 0
    torch.testing.assert_close(drawn.cpu(), here)


@pytest.mark.parametrize("psf", PSF_OF)
def test_molecules_are_polished_as_on_the_cpu(gpu: PretendGPU, psf: str) -> None:
    own = PSF_OF[psf]()
    adu, found = blinking(own)
    there = found.to(CUDA)
    here = polish(own, MAPPED, adu, found, parameters=own.parameters_at(found.xyz))
    own = own.to(CUDA)
    better = polish(own, MAPPED, adu, there, parameters=own.parameters_at(there.xyz))
    assert better.xyz.device.type == "cuda"
    torch.testing.assert_close(better.to("cpu").xyz, here.xyz, rtol=1e-4, atol=0.1)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """A doctor in a hurry."""
    monkeypatch.setattr(decode.verbs.accelerator, "N_STEPS", 1)
    monkeypatch.setattr(decode.verbs.accelerator, "N_FRAMES", 8)
    plan = replace(MOVIE.training, movies=1, frames=3)
    monkeypatch.setattr(decode.verbs.doctor, "MOVIE", replace(MOVIE, training=plan))


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_doctor_compares_a_gpu_with_the_cpu(gpu: PretendGPU, device: str) -> None:
    checks = {check.name: check for check in checks_of(torch.device(device))}
    for check in checks.values():
        assert check.ok, check.detail
        assert re.match(r"\d+ (frames|molecules)/s, \d+ on the CPU; ", check.detail)
    assert len(checks) == 3
    assert (device == "cuda") == bool(gpu.dispatches)


@pytest.mark.usefixtures("brief")
def test_doctor_says_what_a_gpu_computes_wrongly(
    gpu: PretendGPU, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = decode.network.unet.silu

    def wrong(value: Tensor) -> Tensor:
        return exact(value) * (1.5 if value.is_cuda else 1.0)

    monkeypatch.setattr(decode.network.unet, "silu", wrong)
    training, localizing, _ = checks_of(CUDA)
    for check in (training, localizing):
        assert not check.ok
        assert "the device computes something else" in check.detail
