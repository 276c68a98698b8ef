"""Learner: a network in training, the running average of its weights, and its optimizers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from decode.config import Optimization
from decode.emitters import EmitterSet
from decode.forward import Simulation
from decode.network.localizer import Localizer
from decode.training.muon import Muon
from decode.training.processes import Processes
from decode.training.validation import posterior_of

__all__ = ["Learner", "Loss", "OptimizerChoice", "choose_optimizers", "counted", "loss_of"]

Loss: TypeAlias = Callable[[Localizer, Simulation, Optimization], Tensor]
"""loss of a model on simulated movies: a differentiable number"""
OptimizerChoice: TypeAlias = Callable[[Localizer, Optimization], list[Optimizer]]
"""optimizers that together move all weights of a model, at one learning rate"""

MAX_SKIPPED_IN_A_ROW = 20
"""successive steps without a finite loss after which the weights, not the movies, are the cause"""


def loss_of(model: Localizer, batch: Simulation, plan: Optimization) -> Tensor:
    """Negative log posterior of the emitters, and the squared error of the log background.

    The log posterior is in nats per 100 pixels; emitters dimmer than `plan.min_photons` do not
    count.
    """
    posterior = posterior_of(model, batch)
    bright = counted(batch, plan)
    log_prob = posterior.log_prob(posterior.thin(bright)).sum()
    background_error = posterior.background.log() - batch.background.flatten(0, 1).log()
    return -100 * log_prob / batch.background.numel() + background_error.square().mean()


def counted(batch: Simulation, plan: Optimization) -> EmitterSet:
    """The emitters that a network should find, with photons as the plan counts them."""
    bright = batch.emitters[batch.emitters.photons >= plan.min_photons]
    if plan.photons == "total":
        return bright
    movie = bright.frame // batch.frames.shape[1]
    return replace(bright, photons=bright.photons * batch.core[movie])


def choose_optimizers(model: Localizer, plan: Optimization) -> list[Optimizer]:
    """Optimizers of the recipe: Muon for the convolutions, AdamW for biases and the output layer.

    The rows of the output layer are separate quantities, which Muon would mix.
    """
    named = list(model.named_parameters())
    inner = [p for name, p in named if p.ndim > 1 and not name.startswith("out.")]
    chosen = {id(p) for p in inner}
    rest = [p for _, p in named if id(p) not in chosen]
    if plan.optimizer == "adamw":
        rest, inner = inner + rest, []
    adam = torch.optim.AdamW(
        rest, lr=plan.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    if not inner:
        return [adam]
    return [adam, Muon(inner, plan.learning_rate, weight_decay=plan.weight_decay)]


@final
class Learner:
    """A network, the running average of its weights, and the optimizers that move it.

    Args:
        model: on the device of the training.
        plan: learning rates, clipping and averaging.
        team: processes that share every step.
        loss: the loss to minimize.
        optimizers: chooses the optimizers.
    """

    def __init__(
        self,
        model: Localizer,
        plan: Optimization,
        team: Processes,
        *,
        loss: Loss = loss_of,
        optimizers: OptimizerChoice = choose_optimizers,
    ) -> None:
        self.model = model
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.skipped = 0
        """steps left out because the loss was not finite"""
        self._skipped_in_a_row = 0
        self._done = 0
        self._optimizers = optimizers(model, plan)
        self._plan = plan
        self._team = team
        module = _LossModule(model, plan, loss)
        # averages the gradients of all processes while they are computed
        self._loss: nn.Module = DistributedDataParallel(module) if team.size > 1 else module

    @property
    def stuck(self) -> bool:
        """Whether the loss has not been finite for many steps."""
        return self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW

    def step(self, batch: Simulation, rate: float) -> Tensor | None:
        """Learn from some movies.

        Args:
            batch: this process's movies.
            rate: learning rate.

        Returns:
            The loss, mean over the processes; None if it or its gradient was not finite, and
            nothing was learnt.
        """
        loss = self._loss(batch)
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self._plan.gradient_norm)
        loss = self._team.mean(loss.detach())
        self._done += 1
        if not bool(torch.isfinite(norm) & torch.isfinite(loss)):
            self.skipped += 1
            self._skipped_in_a_row += 1
            return None
        self._skipped_in_a_row = 0
        self._move(rate)
        return loss

    def _move(self, rate: float) -> None:
        """Update the weights by their gradients, and the average by the weights."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        # a short average at first, so that the initial weights are soon forgotten
        decay = min(self._plan.average_decay, self._done / (9 + self._done))
        averages: list[Tensor] = list(self.average.parameters())
        weights: list[Tensor] = list(self.model.parameters())
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that `step` changes."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "done": self._done,
            "skipped": self.skipped,
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; steps skipped since then stay counted."""
        state = copy.deepcopy(state)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._done = state["done"]
        self.skipped = max(self.skipped, state["skipped"])
        self._skipped_in_a_row = 0


@final
class _LossModule(nn.Module):
    """A loss as a module, for DistributedDataParallel to wrap."""

    def __init__(self, model: Localizer, plan: Optimization, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self._plan = plan
        self._loss = loss

    def forward(self, batch: Simulation) -> Tensor:
        return self._loss(self.model, batch, self._plan)
