"""Optimizers of the variants in recipes.py that are not the package's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from decode.config import Optimization
from decode.network.localizer import Localizer
from decode.training.learner import choose_optimizers


@final
class ScheduleFreeAdamW(Optimizer):
    """Schedule-free AdamW (Defazio et al., NeurIPS 2024, algorithm 1).

    Gradients are taken between the sequence that Adam moves and its average, weighted by squared
    learning rates; the average, see `average_of`, is the result.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(
            parameters, {"lr": lr, "betas": betas, "eps": eps, "done": 0, "total": 0.0}
        )

    def average_of(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        return state["average"] if state else parameter

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        loss = None if closure is None else closure()
        for group in self.param_groups:
            rate, (between, decay) = group["lr"], group["betas"]
            group["done"] += 1
            group["total"] += rate**2
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {
                        "moved": p.clone(),
                        "average": p.clone(),
                        "square": torch.zeros_like(p),
                    }
                square = state["square"].lerp_(p.grad.square(), 1 - decay)
                direction = p.grad / (square / (1 - decay ** group["done"])).sqrt_().add_(
                    group["eps"]
                )
                moved = state["moved"].sub_(rate * direction)
                average = state["average"].lerp_(moved, rate**2 / group["total"])
                p.copy_(torch.lerp(moved, average, between))
        return loss


@final
class SOAP(Optimizer):
    """Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al., arXiv:2409.11321, algorithms
    3 and 4).

    A convolution's weight counts as the matrix (out, in * height * width), as for Muon.  Every
    `every` steps the bases of both sides are updated by a power iteration and a QR decomposition.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.95, 0.95),
        weight_decay: float = 0.0,
        every: int = 10,
        eps: float = 1e-8,
    ) -> None:
        fixed = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "every": every, "eps": eps}
        super().__init__(parameters, fixed)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        loss = None if closure is None else closure()
        for group in self.param_groups:
            rate, (slow, slower) = group["lr"], group["betas"]
            for p in group["params"]:
                gradient, state = p.grad.flatten(1), self.state[p]
                products = gradient @ gradient.T, gradient.T @ gradient
                if not state:  # the first gradient gives the bases alone
                    state["grams"] = list(products)
                    state["bases"] = [
                        torch.linalg.eigh(gram).eigenvectors.flip(1) for gram in products
                    ]
                    state |= {
                        "momentum": torch.zeros_like(gradient),
                        "square": torch.zeros_like(gradient),
                        "done": 0,
                    }
                    continue
                state["done"] += 1
                left, right = state["bases"]
                momentum = state["momentum"].lerp_(gradient, 1 - slow)
                square = state["square"].lerp_((left.T @ gradient @ right).square(), 1 - slower)
                root = (square / (1 - slower ** state["done"])).sqrt_().add_(group["eps"])
                direction = (
                    left
                    @ (left.T @ momentum @ right / root)
                    @ right.T
                    / (1 - slow ** state["done"])
                )
                p.mul_(1 - rate * group["weight_decay"])
                p.sub_(rate * direction.view_as(p))
                for gram, product in zip(state["grams"], products, strict=True):
                    gram.lerp_(product, 1 - slower)
                if state["done"] % group["every"] == 0:
                    for side, (gram, basis) in enumerate(
                        zip(state["grams"], state["bases"], strict=True)
                    ):
                        # squares belong to directions: they follow where the order changes
                        order = (basis * (gram @ basis)).sum(0).argsort(descending=True)
                        state["square"] = state["square"].index_select(side, order)
                        state["bases"][side] = torch.linalg.qr(gram @ basis[:, order]).Q
        return loss


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
    """SOAP in place of Muon."""
    adam, muon = choose_optimizers(model, plan)
    weights = muon.param_groups[0]["params"]
    return [adam, SOAP(weights, plan.learning_rate, weight_decay=plan.weight_decay)]
