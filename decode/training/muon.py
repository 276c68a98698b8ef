"""Muon: orthogonal gradient steps, by which every direction of a layer learns at one rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor

__all__ = ["Muon"]


@final
class Muon(torch.optim.Optimizer):
    """Momentum orthogonalized by Newton-Schulz iteration (Jordan et al., 2024).

    A convolution's weight counts as the matrix (out, in * height * width).  Updates are scaled to
    the size of Adam's (Liu et al., arXiv:2502.16982, eq. 4), so that both take the same learning
    rate and weight decay.

    Args:
        parameters: weights, each with at least two axes.
        lr: learning rate.
        momentum: decay of the (Nesterov) momentum.
        weight_decay: decoupled weight decay.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 2e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update the weights from their gradients."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                direction = p.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
                update = _orthogonalize(direction).view_as(p)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-0.2 * max(direction.shape) ** 0.5 * group["lr"])
        return loss


def _orthogonalize(matrix: Tensor) -> Tensor:
    """The nearest matrix with singular values about 1.

    By the quintic Newton-Schulz iteration of Jordan et al.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-12)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x
