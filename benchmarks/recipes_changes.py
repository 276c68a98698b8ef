"""Losses, optimizers and networks of the variants in recipes.py."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, final

import torch
from recipes_losses import Density, cross_entropy, loss_with, owned_pixels
from recipes_optimizers import SOAP, ScheduleFreeAdamW
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.optim import Optimizer

from decode.config import Optimization, TrainConfig
from decode.emitters import EmitterSet
from decode.forward import Simulation
from decode.network.localizer import FIRST, N_IMAGES, Localizer
from decode.network.posterior import SetPosterior
from decode.network.unet import UNet
from decode.optics.blur import BlurredPSF
from decode.optics.camera import Camera
from decode.optics.psf import PSF, render
from decode.priors.psf import MeasuredPSF
from decode.priors.scene import Scene
from decode.training.learner import Loss, choose_optimizers, loss_of
from decode.training.validation import posterior_of

MEAN_COUNT, SIGMA_COUNT = 20.0, 20.0
"""in an EMCCD movie of a few molecules per square micrometre: 22 and 22"""


@final
class Clock:
    """Seconds of the processor, so that other work on the machine does not decide."""

    def __init__(self) -> None:
        self._began, self._budget = 0.0, math.inf

    def start(self, minutes: float) -> None:
        """Begin a training of so many minutes."""
        self._began, self._budget = self(), 60 * minutes

    def __call__(self) -> float:
        return time.process_time()

    @property
    def share(self) -> float:
        """Share of the training that is over."""
        return min(1.0, (self() - self._began) / self._budget)


clock = Clock()


def put(owner: object, name: str, value: object) -> None:
    """Put something in the place of what the package has there."""
    setattr(owner, name, value)


def built(change: Callable[[Localizer], object]) -> None:
    """Change every network once it is built."""
    init = Localizer.__init__

    def with_change(self: Localizer, *given: Any, **named: Any) -> None:
        init(self, *given, **named)
        change(self)

    put(Localizer, "__init__", with_change)


# -- losses and movies that change with time
# -----------------------------------------------------------------------


def then_owned(first: Density) -> Loss:
    """A loss that passes linearly over into that of owned pixels."""

    def mixed(posterior: SetPosterior, emitters: EmitterSet) -> Tensor:
        share = clock.share
        early, late = first(posterior, emitters), owned_pixels(posterior, emitters)
        return (1 - share) * early + share * late

    return loss_with(mixed)


def density_rising() -> None:
    """The highest density rises linearly from a quarter to its whole over the first half
    (curriculum learning: Bengio et al., ICML 2009)."""
    sample = Scene.sample_emitters

    def sample_emitters(scene: Scene, *given: Any) -> EmitterSet:
        low, high = scene.density_per_um2
        highest = max(low, high * min(1.0, 0.25 + 1.5 * clock.share))
        return sample(replace(scene, density_per_um2=(low, highest)), *given)

    put(Scene, "sample_emitters", sample_emitters)


# -- optimizers
# --------------------------------------------------------------------------------------------------


@final
class ScheduleFree:
    """Schedule-free AdamW for all weights; the model that is kept is its own average."""

    def __call__(self, model: Localizer, plan: Optimization) -> list[Optimizer]:
        self._weights = list(model.parameters())
        self._optimizer = ScheduleFreeAdamW(self._weights, plan.learning_rate)
        return [self._optimizer]

    @torch.no_grad()
    def finish(self, model: Localizer) -> None:
        """Give the trained model the average of the optimizer."""
        for kept, weight in zip(model.parameters(), self._weights, strict=True):
            kept.copy_(self._optimizer.average_of(weight))


def soap(model: Localizer, plan: Optimization) -> list[Optimizer]:
    """SOAP in the place of Muon."""
    adam, muon = choose_optimizers(model, plan)
    weights = muon.param_groups[0]["params"]
    return [adam, SOAP(weights, plan.learning_rate, weight_decay=plan.weight_decay)]


# -- networks
# --------------------------------------------------------------------------------------------------


def seen_as(change: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """The images that a network sees of a frame, changed."""

    def hook(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return change(given[0]), *given[1:]

    return lambda: built(lambda model: model.frame_net.register_forward_pre_hook(hook))


def no_logarithm(images: Tensor) -> Tensor:
    images = images.clone()
    images[:, 1] = 0
    return images


def counts_standardized(images: Tensor) -> Tensor:
    """Counts on a plain linear scale."""
    images = no_logarithm(images)
    floor = torch.expm1(images[:, 2] + 0.5)
    count = (4 * (images[:, 0] + 1)).square() - 0.375 - floor  # undoes what `Localizer.encode` does
    images[:, 0] = (count - MEAN_COUNT) / SIGMA_COUNT
    return images


def five_frames() -> None:
    """Features of two frames before and two after instead of one; zeros where a movie begins or
    ends."""

    def widen(model: Localizer) -> None:
        model.sequence_net = UNet(5 * model.network.frame_widths[0], model.network.sequence_widths)

    def forward(
        self: Localizer, adu: Tensor, camera: Camera, context: Tensor, pixel_size_nm: float
    ) -> SetPosterior:
        b, t, height, width = adu.shape
        features, alpha = self.encode(adu, camera, context)
        longer = pad(features, (0,) * 6 + (2, 2))
        together = torch.cat([longer[:, i : i + t] for i in range(5)], 2).flatten(0, 1)
        return self.decode(
            together[:, :0],
            together,
            together[:, :0],
            alpha=alpha.expand(b, t, -1, -1).flatten(0, 1) if alpha.ndim == 4 else alpha,
            context=context.expand(b, -1, -1, -1).repeat_interleave(t, 0),
            shape=(height, width),
            pixel_size_nm=pixel_size_nm,
        )

    built(widen)
    put(Localizer, "forward", forward)


def quarters_of_pixels() -> None:
    """Four outputs in each pixel, by pixel shuffle (Shi et al., CVPR 2016): every quarter owns its
    area.

    Photons and z keep their scale, and the expected number of molecules at the start its value; the
    background is still that of a whole pixel.
    """
    whole = Localizer.decode

    @torch.no_grad()
    def divide(model: Localizer) -> None:
        out = nn.Conv2d(model.network.head_width, 4 * model.n_out, 1)
        nn.init.normal_(out.weight, std=0.02)
        assert model.out.bias is not None
        assert out.bias is not None
        start = model.out.bias.clone()
        start[0] -= math.log(4)
        out.bias.copy_(start.repeat_interleave(4))
        put(model, "out", nn.Sequential(out, nn.PixelShuffle(2)))

    def decode_quarters(
        self: Localizer,
        *features: Tensor,
        alpha: Tensor,
        shape: tuple[int, int],
        pixel_size_nm: float,
        **given: Any,
    ) -> SetPosterior:
        if alpha.ndim and alpha.shape[-1] > 1:
            alpha = alpha.repeat_interleave(2, -1).repeat_interleave(2, -2)
        shape = (2 * shape[0], 2 * shape[1])
        found = whole(
            self, *features, alpha=alpha, shape=shape, pixel_size_nm=pixel_size_nm / 2, **given
        )
        assert found.z_nm is not None
        assert found.z_sigma_nm is not None
        return replace(found, z_nm=2 * found.z_nm, z_sigma_nm=2 * found.z_sigma_nm)

    built(divide)
    put(Localizer, "decode", decode_quarters)


# -- networks that follow on another
# -------------------------------------------------------------------------------


def second_pass(config: TrainConfig, first: Localizer, *, same_start: bool = False) -> Loss:
    """A network that sees, beside the frames, what a first one leaves unexplained.

    That is the difference between stabilized values: of the counts, and of those expected by the
    molecules and the background that the first network finds.  It has unit noise where these are
    right.  With `same_start` its weights start as those of the first network, blind to what is
    unexplained.
    """
    psf: PSF = config.forward_model().psf
    if isinstance(config.psf, MeasuredPSF):
        psf = BlurredPSF(psf, sum(config.psf.blur_nm) / 2)  # the movie's own blur is not known
    plain = Localizer.forward
    rest: list[Tensor] = []

    @torch.no_grad()
    def unexplained(adu: Tensor, camera: Camera, context: Tensor, pixel_size_nm: float) -> Tensor:
        posterior = plain(first, adu, camera, context, pixel_size_nm)
        found = posterior.point_estimate()
        light = render(
            psf,
            frame=found.frame,
            xyz=found.xyz,
            photons=found.photons,
            n_frames=len(posterior),
            shape=(adu.shape[-2], adu.shape[-1]),
        )
        alpha = camera.excess_factor / torch.as_tensor(
            camera.qe, dtype=torch.float32, device=adu.device
        )
        floor = camera.noise_floor.to(adu.device) / alpha**2
        seen, expected = (
            2 * torch.sqrt((photons / alpha + floor + 0.375).clamp_min(0.1))
            for photons in (camera.to_photons(adu), (light + posterior.background).view_as(adu))
        )
        return (seen - expected).flatten(0, 1)[:, None] / 2

    def forward(
        self: Localizer, adu: Tensor, camera: Camera, context: Tensor, pixel_size_nm: float
    ) -> SetPosterior:
        rest[:] = [self._padded(unexplained(adu, camera, context, pixel_size_nm))]
        return plain(self, adu, camera, context, pixel_size_nm)

    def beside(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return torch.cat([given[0], *rest], 1), *given[1:]

    def widen(model: Localizer) -> None:
        model.frame_net = UNet(N_IMAGES + 1 + len(model.context), model.network.frame_widths)
        model.frame_net.register_forward_pre_hook(beside)
        if same_start:
            weights = first.state_dict()
            model.load_state_dict({**weights, FIRST: pad(weights[FIRST], (0, 0, 0, 0, 0, 1))})

    built(widen)
    put(Localizer, "forward", forward)
    return loss_of


def distilled(config: TrainConfig, teacher: Localizer) -> Loss:
    """Half the loss is the cross-entropy with a teacher's posterior.

    (Hinton, Vinyals and Dean, arXiv:1503.02531)
    """

    def loss(model: Localizer, batch: Simulation, plan: Optimization) -> Tensor:
        with torch.no_grad():
            taught = posterior_of(teacher, batch)

        def both(posterior: SetPosterior, emitters: EmitterSet) -> Tensor:
            own = owned_pixels(posterior, emitters)
            return (own - cross_entropy(taught, posterior)) / 2

        return loss_with(both)(model, batch, plan)

    return loss
