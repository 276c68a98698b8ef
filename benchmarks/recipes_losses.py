"""Losses and read-outs of the variants in recipes.py that are not the package's own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import (
    adaptive_avg_pool2d,
    logsigmoid,
    max_pool2d,
    pad,
    softplus,
)

from decode.config import Optimization, TrainConfig
from decode.emitters import EmitterSet
from decode.forward import Simulation
from decode.network.gaussians import log_mass, log_normal, truncated_moments
from decode.network.localizer import Localizer
from decode.network.posterior import SetPosterior
from decode.training.learner import Loss
from decode.training.validation import posterior_of

Density = Callable[[SetPosterior, EmitterSet], Tensor]


@final
class Clock:
    """Seconds of processor time, which other work on the machine does not change."""

    def __init__(self) -> None:
        self._began, self._budget = 0.0, math.inf

    def start(self, minutes: float) -> None:
        """Begin a training of so many minutes."""
        self._began, self._budget = self(), 60 * minutes

    def __call__(self) -> float:
        return time.process_time()

    @property
    def share(self) -> float:
        """Share of the training that is done."""
        return min(1.0, (self() - self._began) / self._budget)


def owned_pixels(posterior: SetPosterior, emitters: EmitterSet) -> Tensor:
    """The density of the package's own loss."""
    return posterior.log_prob(posterior.thin(emitters)).sum()


def cross_entropy(teacher: SetPosterior, student: SetPosterior) -> Tensor:
    """Mean of -log_prob by the student over the sets that the teacher draws.

    Every area belongs to the same pixel in both, so it is a sum over pixels, in closed form.
    """
    terms = student.logit - 2 * math.log(student.pixel_size_nm)
    for axis in (0, 1):
        centre, sigma = student.offset_px[:, axis], student.offset_sigma_px[:, axis]
        drawn = teacher.offset_px[:, axis].double(), teacher.offset_sigma_px[:, axis].double()
        mean, variance = (moment.float() for moment in truncated_moments(*drawn))
        terms = (
            terms
            + log_normal(mean, centre, sigma)
            - 0.5 * variance / sigma**2
            - log_mass(centre, sigma)
        )
    for mean_of, sigma_of in (("photons", "photons_sigma"), ("z_nm", "z_sigma_nm")):
        sigma = getattr(student, sigma_of)
        terms = terms + log_normal(getattr(teacher, mean_of), getattr(student, mean_of), sigma)
        terms = terms - 0.5 * (getattr(teacher, sigma_of) / sigma) ** 2
    return -(logsigmoid(-student.logit) + teacher.probability * terms).sum()


# -- losses that let a pixel's emitter lie outside the pixel
# -------------------------------------------------------


def around(
    posterior: SetPosterior, emitters: EmitterSet, reach: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels around every emitter, their log odds, and its log density under each of them, (n,
    pixels) each.

    Pixels outside the frame have odds of 0.
    """
    height, width = posterior.logit.shape[1:]
    position = emitters.xyz[:, :2] / posterior.pixel_size_nm
    pixel = torch.floor(position).long()
    steps = torch.arange(-reach, reach + 1, device=pixel.device)
    column = (pixel[:, 0, None, None] + steps).expand(-1, len(steps), -1).flatten(1)
    row = (pixel[:, 1, None, None] + steps[:, None]).expand(-1, -1, len(steps)).flatten(1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = (emitters.frame[:, None] * height + row.clamp(0, height - 1)) * width + column.clamp(
        0, width - 1
    )

    def at(values: Tensor) -> Tensor:
        return values.reshape(-1)[index]

    density = log_normal(
        emitters.photons[:, None], at(posterior.photons), at(posterior.photons_sigma)
    )
    for axis, middle in ((0, column), (1, row)):
        offset = position[:, axis, None] - middle - 0.5
        density = density + log_normal(
            offset, at(posterior.offset_px[:, axis]), at(posterior.offset_sigma_px[:, axis])
        )
    if posterior.z_nm is not None and posterior.z_sigma_nm is not None:
        density = density + log_normal(
            emitters.xyz[:, 2:], at(posterior.z_nm), at(posterior.z_sigma_nm)
        )
    return index, at(posterior.logit).masked_fill(~inside, -1e4), density


def soft_association(posterior: SetPosterior, emitters: EmitterSet) -> Tensor:
    """Multi-Bernoulli density, summed over the pixels that each emitter may belong to; not
    exclusive."""
    _, odds, density = around(posterior, emitters, 1)
    return logsigmoid(-posterior.logit).sum() + torch.logsumexp(odds + density, 1).sum()


def best_association(posterior: SetPosterior, emitters: EmitterSet) -> Tensor:
    """Multi-Bernoulli density of the most likely pixel for each emitter."""
    _, odds, density = around(posterior, emitters, 1)
    return logsigmoid(-posterior.logit).sum() + (odds + density).amax(1).sum()


def belief_propagation(posterior: SetPosterior, emitters: EmitterSet) -> Tensor:
    """Multi-Bernoulli density, summed over the exclusive associations, of at most one emitter a
    pixel."""
    pixel, odds, density = around(posterior, emitters, 1)
    return logsigmoid(-posterior.logit).sum() + log_associations(
        odds + density, pixel, posterior.logit.numel()
    )


def log_associations(weight: Tensor, pixel: Tensor, n_pixels: int, iterations: int = 10) -> Tensor:
    """Logarithm of the sum, over all exclusive assignments of emitters to pixels, of the product of
    their weights.

    Minus the Bethe free energy at the fixed point of loopy belief propagation between emitters and
    pixels (Williams and Lau, IEEE Trans. Aerosp. Electron. Syst. 50, 2942, 2014): exact where their
    graph is a tree.  It is stationary in the messages, so that its gradient, the marginal
    probabilities of the associations, treats them as constants.

    Args:
        weight: (n, k) log weights of each emitter with each of its pixels.
        pixel: (n, k) numbers of these pixels.
        n_pixels: number of pixels.
        iterations: number of updates of all messages.
    """
    n, k = weight.shape
    known, index = weight.detach().double(), pixel.flatten()
    order = torch.argsort(index)
    pairs = [order.new_zeros(2, 0)]  # of associations with the same pixel
    for step in range(1, int(torch.bincount(index, minlength=n_pixels).max())):
        same = index[order[step:]] == index[order[:-step]]
        pairs += [torch.stack([order[step:][same], order[:-step][same]])]
    one, other = torch.cat([*pairs, *(pair.flip(0) for pair in pairs)], 1)
    itself = torch.eye(k, dtype=torch.bool, device=weight.device)
    from_pixel = known
    for _ in range(iterations):
        # for and against each association: by its weight and the emitter's other pixels, then by
        # the pixel's other emitters; the bound keeps what is all but certain within the range of
        # numbers
        elsewhere = torch.logsumexp(
            from_pixel[:, None].expand(-1, k, -1).masked_fill(itself, -torch.inf), 2
        )
        offer = (known - elsewhere).clamp(max=300)
        rivals = torch.log1p(
            known.new_zeros(n * k).index_add(0, one, offer.exp().flatten()[other])
        ).view(n, k)
        from_pixel = known - rivals
    offer = (weight + (offer - known)).flatten()
    most = known.new_zeros(n_pixels).scatter_reduce(0, index, offer.detach(), "amax")
    of_pixels = most + torch.exp(-most).index_add(0, index, torch.exp(offer - most[index])).log()
    of_associations = softplus(offer.detach() - rivals.flatten())
    return of_pixels.sum() + torch.logsumexp(from_pixel, 1).sum() - of_associations.sum()


def count_and_mixture(posterior: SetPosterior, emitters: EmitterSet) -> Tensor:
    """DECODE's loss (Speiser et al., Nature Methods 18, 1082, 2021, eqs 3 to 6), mixture over 5
    x 5 pixels."""
    p = posterior.probability
    n = len(p)
    count = torch.bincount(emitters.frame, minlength=n).to(p)
    mean, variance = p.sum((1, 2)), (p * (1 - p)).sum((1, 2)) + 1e-3
    counted = -0.5 * (count - mean) ** 2 / variance - 0.5 * variance.log()
    _, logit, density = around(posterior, emitters, 2)
    share = torch.logsumexp(logsigmoid(logit) + density, 1) - mean.log()[emitters.frame]
    return (counted * count).sum() + share.sum()


def loss_with(density: Density) -> Loss:
    """A loss like the package's own, with another density of the emitters."""

    def loss(model: Localizer, batch: Simulation, plan: Optimization) -> Tensor:
        posterior = posterior_of(model, batch)
        position = batch.emitters.xyz[:, :2] / batch.pixel_size_nm
        height, width = batch.frames.shape[-2:]
        size = torch.tensor([width, height], device=position.device)
        inside = ((position >= 0) & (position < size)).all(1)
        kept = inside & (batch.emitters.photons >= plan.min_photons)
        found = adaptive_avg_pool2d(posterior.background.log(), (height, width))
        background = (found - batch.background.flatten(0, 1).log()).square().mean()
        log_density = density(posterior, batch.emitters[kept])
        return -100 * log_density / batch.background.numel() + background

    return loss


def then_owned(first: Density, clock: Clock) -> Loss:
    """A loss that changes linearly into that of owned pixels over the training."""

    def mixed(posterior: SetPosterior, emitters: EmitterSet) -> Tensor:
        share = clock.share
        early, late = first(posterior, emitters), owned_pixels(posterior, emitters)
        return (1 - share) * early + share * late

    return loss_with(mixed)


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


@final
@dataclass(frozen=True)
class Unowned:
    """A posterior whose emitters may lie outside their pixels, and its read-out: DECODE's local
    peaks of p."""

    posterior: SetPosterior

    def point_estimate(self) -> EmitterSet:
        post = self.posterior
        p = post.probability
        total = sum(
            (
                pad(p, (1, 1, 1, 1))[:, y : y + p.shape[1], x : x + p.shape[2]]
                for y, x in ((0, 1), (1, 0), (1, 2), (2, 1))
            ),
            p,
        )
        peak = (p == max_pool2d(p, 3, stride=1, padding=1)) & (p > 0.2) & (total > 0.5)
        frame, row, column = torch.nonzero(peak | (p > 0.7), as_tuple=True)

        def at(values: Tensor) -> Tensor:
            return values[frame, row, column]

        x, y = (
            (pixel + 0.5 + at(post.offset_px[:, axis])) * post.pixel_size_nm
            for axis, pixel in ((0, column), (1, row))
        )
        sigma_x, sigma_y = (
            at(post.offset_sigma_px[:, axis]) * post.pixel_size_nm for axis in (0, 1)
        )
        assert post.z_nm is not None
        assert post.z_sigma_nm is not None
        return EmitterSet(
            frame=frame,
            xyz=torch.stack([x, y, at(post.z_nm)], 1),
            photons=at(post.photons),
            probability=at(total).clamp(max=1),
            xyz_sigma=torch.stack([sigma_x, sigma_y, at(post.z_sigma_nm)], 1),
        )
