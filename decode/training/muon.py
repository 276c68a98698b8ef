"""Muon: orthogonal gradient steps, by which all directions of a layer learn at the same rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor

__all__ = ["Muon"]


@final
class Muon(torch.optim.Optimizer):
    """Momentum orthogonalized by Newton-Schulz iteration (Jordan et al., Muon,
    https://kellerjordan.github.io/posts/muon, 2024).

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
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._move(weights, group)
        return loss

    def _move(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """Update weights of one group."""
        for p in weights:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        gradients: list[Tensor] = [p.grad for p in weights if p.grad is not None]
        momenta: list[Tensor] = [self.state[p]["momentum"] for p in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        directions = torch._foreach_lerp(gradients, momenta, group["momentum"])
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        # matrices of one shape are a batch: many small products cost a GPU more than one
        alike: dict[tuple[int, ...], list[int]] = {}
        wide = [d.flatten(1).mT if len(d) ** 2 > d.numel() else d.flatten(1) for d in directions]
        for i, matrix in enumerate(wide):
            alike.setdefault(tuple(matrix.shape), []).append(i)
        moved: list[Tensor] = []
        updates: list[Tensor] = []
        for (_, longest), rows in alike.items():
            matrices = _orthogonalized(torch.stack([wide[i] for i in rows]))
            matrices.mul_(-0.2 * longest**0.5 * group["lr"])
            for i, matrix in zip(rows, matrices.unbind(), strict=True):
                tall = wide[i].shape[0] != len(weights[i])
                moved.append(weights[i])
                updates.append((matrix.mT if tall else matrix).reshape(weights[i].shape))
        torch._foreach_add_(moved, updates)


def _orthogonalized(x: Tensor) -> Tensor:
    """The nearest matrices (n, rows, columns), rows <= columns, with singular values of about 1.

    They come of the quintic Newton-Schulz iteration of Jordan et al.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-12)
    for _ in range(5):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
