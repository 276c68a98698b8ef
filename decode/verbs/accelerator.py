"""Does a GPU train, localize and polish as the CPU does, and how much faster?"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from decode.config import TrainConfig
from decode.emitters import EmitterSet
from decode.forward import Simulation
from decode.io.movies import open_array
from decode.likelihood import polish
from decode.metrics import match
from decode.models import load_model
from decode.network.localizer import Localizer
from decode.optics.camera import Camera
from decode.priors.camera import FixedCamera
from decode.training.learner import Learner, loss_of
from decode.training.processes import Processes
from decode.verbs.sweep import sweep

__all__ = ["localize_on", "polish_on", "train_on"]

CPU = torch.device("cpu")
CAMERA = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.5, qe=0.8)
MODEL = "gaussian-2d"
N_STEPS, N_FRAMES, SIDE_PX = 3, 40, 48
MAX_LOSS_DIFFERENCE = 0.05
"""relative; GPUs train in bfloat16, which has three digits"""
MIN_ALIKE, MAX_APART_NM = 0.97, 5.0
"""share of the molecules that both devices find, and the root mean square of their distances: GPUs
round the products of convolutions to three digits"""

T = TypeVar("T")


def train_on(device: torch.device, config: TrainConfig) -> str:
    """Take some steps of training.

    Args:
        device: the device to test.
        config: the recipe.

    Returns:
        Rates and losses of both devices.

    Raises:
        RuntimeError: if the device does not compute the loss of the CPU, or learns nothing.
    """
    plan = config.training
    shape = (plan.size_px, plan.size_px)
    forward = config.forward_model()
    batch = forward.sample(plan.movies, plan.frames, shape, torch.Generator().manual_seed(1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = config.localizer()
    there = deepcopy(model).to(device)
    with torch.enable_grad():
        here = float(loss_of(model, batch, plan).detach())
        loss = float(loss_of(there, _moved(batch, device), plan).detach())
    losses = f"loss {loss:.4g}, {here:.4g} on the CPU"
    if not abs(loss - here) <= MAX_LOSS_DIFFERENCE * abs(here):
        raise RuntimeError(f"{losses}: the device computes something else; update its driver")

    def steps(model: Localizer, where: torch.device) -> Callable[[], Tensor | None]:
        learner, rng = Learner(model, plan, Processes()), torch.Generator(where).manual_seed(1)

        def some() -> Tensor | None:
            for _ in range(N_STEPS):
                movies = forward.sample(plan.movies, plan.frames, shape, rng)
                learnt = learner.step(movies, plan.learning_rate)
            return learnt

        return some

    slow = _timed(steps(model, CPU))
    fast = _timed(steps(there, device))
    if fast.result is None:
        raise RuntimeError(f"{losses}, and no finite loss in training; update the driver")
    n_frames = N_STEPS * plan.movies * plan.frames
    return f"{_rates(n_frames, fast, slow, 'frames')}; {losses}"


def localize_on(device: torch.device, config: TrainConfig) -> str:
    """Localize the molecules of a simulated movie.

    Args:
        device: the device to test.
        config: recipe of the movie, with a Gaussian PSF.

    Returns:
        Rates of both devices, and how well they agree.

    Raises:
        RuntimeError: if they find different molecules.
    """
    batch = _simulated(config)
    fast = _timed(lambda: _found(batch, device))
    slow = _timed(lambda: _found(batch, CPU))
    return f"{_rates(N_FRAMES, fast, slow, 'frames')}; {_agreement(fast.result, slow.result)}"


def polish_on(device: torch.device, config: TrainConfig) -> str:
    """Polish the molecules of a simulated movie.

    Args, Returns, Raises: as for `localize_on`.
    """
    batch = _simulated(config)
    found = _found(batch, CPU)

    def polished(where: torch.device) -> EmitterSet:
        psf = deepcopy(batch.psfs[0]).to(where)
        width = batch.psf_parameters.to(where).expand(len(found), -1)
        frames, molecules = batch.frames[0].to(where), found.to(where)
        return polish(psf, batch.camera, frames, molecules, parameters=width).to("cpu")

    fast = _timed(lambda: polished(device))
    slow = _timed(lambda: polished(CPU))
    agreement = _agreement(fast.result, slow.result)
    return f"{_rates(len(found), fast, slow, 'molecules')}; {agreement}"


def _simulated(config: TrainConfig) -> Simulation:
    """One movie of the recipe's molecules, by one camera."""
    forward = replace(config.forward_model(), cameras=FixedCamera(CAMERA))
    rng = torch.Generator().manual_seed(2)
    return forward.sample(1, N_FRAMES, (SIDE_PX, SIDE_PX), rng)


def _found(batch: Simulation, device: torch.device) -> EmitterSet:
    chunks = sweep(
        open_array(batch.frames[0].numpy()),
        load_model(MODEL),
        batch.camera,
        pixel_size_nm=batch.pixel_size_nm,
        context=batch.conditioning.values,
        device=str(device),
    )
    return EmitterSet.cat(chunk.molecules for chunk in chunks)


def _moved(batch: Simulation, device: torch.device) -> Simulation:
    """What the loss looks at, on another device."""
    return batch._replace(
        emitters=batch.emitters.to(device),
        frames=batch.frames.to(device),
        camera=batch.camera.to(device),
        background=batch.background.to(device),
        core=batch.core.to(device),
    )


class _Timed(NamedTuple, Generic[T]):
    """What a function returned, and the seconds that it took the second time."""

    result: T
    seconds: float


def _timed(work: Callable[[], T]) -> _Timed[T]:
    work()  # the first call of a GPU loads its programs
    began = time.perf_counter()
    result = work()
    return _Timed(result, time.perf_counter() - began)


def _rates(n: int, fast: _Timed[T], slow: _Timed[T], unit: str) -> str:
    return f"{n / fast.seconds:.0f} {unit}/s, {n / slow.seconds:.0f} on the CPU"


def _agreement(one: EmitterSet, other: EmitterSet) -> str:
    """How many molecules of two tables are the same, and how far apart.

    Raises:
        RuntimeError: if these are few or far.
    """
    pairs = match(other, one, lateral_nm=50.0, two_d=True)
    alike = 2 * len(pairs) / max(1, len(one) + len(other))
    apart = (other.xyz[pairs[:, 0], :2] - one.xyz[pairs[:, 1], :2]).square().sum(1).mean().sqrt()
    said = f"{alike:.1%} of the molecules are the same, {float(apart):.2f} nm apart"
    if not (alike >= MIN_ALIKE and float(apart) <= MAX_APART_NM):
        raise RuntimeError(f"{said}: the device computes something else; update its driver")
    return said
