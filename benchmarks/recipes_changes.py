"""What the variants in recipes.py change in the package while they are trained and scored."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from recipes_losses import Density, cross_entropy, loss_with, owned_pixels
from recipes_optimizers import SOAP, ScheduleFreeAdamW
from torch import Tensor, nn
from torch.nn.functional import pad

import decode.training.loop
from decode.config import TrainConfig
from decode.emitters import EmitterSet
from decode.forward import MeasuredPSF, Simulation
from decode.network.localizer import FIRST, N_IMAGES, Localizer
from decode.network.posterior import SetPosterior
from decode.network.unet import UNet
from decode.optics.blur import BlurredPSF
from decode.optics.camera import Camera
from decode.optics.psf import PSF, render
from decode.priors.scene import Scene
from decode.training.validation import posterior_of

MEAN_COUNT, SIGMA_COUNT = 20.0, 20.0
"""in an EMCCD movie of a few molecules per square micrometre: 22 and 22"""


@dataclass
class Clock:
    share: float = 1.0
    """of the training that is over"""


clock = Clock()


def put(owner: object, name: str, value: object) -> None:
    """Put something in the place of what the package has there."""
    setattr(owner, name, value)


def watch() -> None:
    """Keep the clock, and leave out the figures of a training's end, which take long and which no one reads here."""
    rate = decode.training.loop._Course.rate

    def watched(course: Any, at: float, step: int) -> float:
        clock.share = at
        return rate(course, at, step)

    put(decode.training.loop._Course, "rate", watched)
    put(decode.training.loop, "Validation", lambda *_: lambda _: {})
    put(decode.training.loop, "characterize", lambda *_: [])
    put(decode.training.loop, "diagnose", lambda *_: [])


def built(change: Callable[[Localizer], object]) -> None:
    """Change every network once it is built."""
    init = Localizer.__init__

    def with_change(self: Localizer, *given: Any, **named: Any) -> None:
        init(self, *given, **named)
        change(self)

    put(Localizer, "__init__", with_change)


# -- losses and movies that change with time -----------------------------------------------------------------------


def then_owned(first: Density) -> Callable[[], None]:
    """A loss that passes linearly over into that of owned pixels."""

    def mixed(posterior: SetPosterior, emitters: EmitterSet) -> Tensor:
        early, late = first(posterior, emitters), owned_pixels(posterior, emitters)
        return (1 - clock.share) * early + clock.share * late

    return lambda: put(decode.training.loop, "loss_of", loss_with(mixed))


def density_rising() -> None:
    """The highest density rises linearly from a quarter to its whole over the first half (curriculum learning: Bengio
    et al., ICML 2009)."""
    sample = Scene.sample_emitters

    def sample_emitters(scene: Scene, *given: Any) -> EmitterSet:
        low, high = scene.density_per_um2
        highest = max(low, high * min(1.0, 0.25 + 1.5 * clock.share))
        return sample(replace(scene, density_per_um2=(low, highest)), *given)

    put(Scene, "sample_emitters", sample_emitters)


# -- optimizers ----------------------------------------------------------------------------------------------------


def schedule_free() -> None:
    """Schedule-free AdamW for all weights; the model that is kept is its own average."""
    step = decode.training.loop._Learner.step

    def optimizers(model: Localizer, config: TrainConfig) -> list[torch.optim.Optimizer]:
        return [ScheduleFreeAdamW(model.parameters(), config.training.learning_rate)]

    def stepped(learner: Any, batch: Simulation, rate: float) -> Tensor | None:
        loss = step(learner, batch, rate)
        for kept, moved in zip(learner.average.parameters(), learner.model.parameters(), strict=True):
            kept.copy_(learner._optimizers[0].average_of(moved).detach())
        return loss

    put(decode.training.loop, "_optimizers", optimizers)
    put(decode.training.loop._Learner, "step", stepped)


def soap() -> None:
    """SOAP in the place of Muon."""
    with_muon = decode.training.loop._optimizers

    def optimizers(model: Localizer, config: TrainConfig) -> list[torch.optim.Optimizer]:
        adam, muon = with_muon(model, config)
        weights, plan = muon.param_groups[0]["params"], config.training
        return [adam, SOAP(weights, plan.learning_rate, weight_decay=plan.weight_decay)]

    put(decode.training.loop, "_optimizers", optimizers)


# -- networks ------------------------------------------------------------------------------------------------------


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
    """Features of two frames before and two after instead of one; zeros where a movie begins or ends."""

    def widen(model: Localizer) -> None:
        model.sequence_net = UNet(5 * model.network.frame_widths[0], model.network.sequence_widths)

    def forward(self: Localizer, adu: Tensor, camera: Camera, context: Tensor, pixel_size_nm: float) -> SetPosterior:
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
    """Four outputs in each pixel, by pixel shuffle (Shi et al., CVPR 2016): every quarter owns its area.

    Photons and z keep their scale, and the expected number of molecules at the start its value; the background is
    still that of a whole pixel.
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
        self: Localizer, *features: Tensor, alpha: Tensor, shape: tuple[int, int], pixel_size_nm: float, **given: Any
    ) -> SetPosterior:
        if alpha.ndim and alpha.shape[-1] > 1:
            alpha = alpha.repeat_interleave(2, -1).repeat_interleave(2, -2)
        shape = (2 * shape[0], 2 * shape[1])
        found = whole(self, *features, alpha=alpha, shape=shape, pixel_size_nm=pixel_size_nm / 2, **given)
        assert found.z_nm is not None
        assert found.z_sigma_nm is not None
        return replace(found, z_nm=2 * found.z_nm, z_sigma_nm=2 * found.z_sigma_nm)

    built(divide)
    put(Localizer, "decode", decode_quarters)
    put(decode.training.loop, "loss_of", loss_with(owned_pixels))


# -- networks that follow on another -------------------------------------------------------------------------------


def second_pass(config: TrainConfig, first: Localizer, *, same_start: bool = False) -> None:
    """A network that sees, beside the frames, what a first one leaves unexplained.

    That is the difference between stabilized values: of the counts, and of those expected by the molecules and the
    background that the first network finds.  It has unit noise where these are right.  With `same_start` its weights
    start as those of the first network, blind to what is unexplained.
    """
    psf: PSF = config.forward_model().psf
    if isinstance(config.psf, MeasuredPSF):
        psf = BlurredPSF(psf, sum(config.psf.blur_nm) / 2)  # of the movie's own blur nobody is told
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
        alpha = camera.excess_factor / torch.as_tensor(camera.qe, dtype=torch.float32, device=adu.device)
        floor = camera.noise_floor.to(adu.device) / alpha**2
        seen, expected = (
            2 * torch.sqrt((photons / alpha + floor + 0.375).clamp_min(0.1))
            for photons in (camera.to_photons(adu), (light + posterior.background).view_as(adu))
        )
        return (seen - expected).flatten(0, 1)[:, None] / 2

    def forward(self: Localizer, adu: Tensor, camera: Camera, context: Tensor, pixel_size_nm: float) -> SetPosterior:
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


def distilled(config: TrainConfig, teacher: Localizer) -> None:
    """Half the loss is the cross-entropy with a teacher's posterior (Hinton, Vinyals and Dean, arXiv:1503.02531)."""

    def loss_of(model: Localizer, batch: Simulation, config: TrainConfig) -> Tensor:
        with torch.no_grad():
            taught = posterior_of(teacher, batch)

        def both(posterior: SetPosterior, emitters: EmitterSet) -> Tensor:
            return (owned_pixels(posterior, emitters) - cross_entropy(taught, posterior)) / 2

        return loss_with(both)(model, batch, config)

    put(decode.training.loop, "loss_of", loss_of)
