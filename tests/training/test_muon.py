"""Laws of the optimizer Muon."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from decode.training.muon import Muon

SHAPES = ((6, 3, 2, 2), (6, 12), (8, 5), (6, 3, 2, 2), (5, 8))


def moved(start: list[Tensor], gradients: list[Tensor], **settings: float) -> list[Tensor]:
    """Weights after two steps by the same gradients."""
    weights = [nn.Parameter(w.clone()) for w in start]
    optimizer = Muon(weights, **settings)
    for _ in range(2):
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
    return [w.detach() for w in weights]


def random(rng: torch.Generator) -> list[Tensor]:
    return [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in SHAPES]


def test_every_direction_of_a_layer_learns_at_about_one_rate(rng: torch.Generator) -> None:
    start, gradients = random(rng), random(rng)
    rate = 0.1
    for before, after, gradient in zip(
        start, moved(start, gradients, lr=rate), gradients, strict=True
    ):
        matrix, step = gradient.flatten(1), (before - after).flatten(1)
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        along = (u.mT @ step @ v.mT).diagonal() / (2 * rate * 0.2 * max(matrix.shape) ** 0.5)
        assert bool(((along > 0.6) & (along < 1.3)).all())
        aside = u.mT @ step @ v.mT - torch.diag((u.mT @ step @ v.mT).diagonal())
        assert float(aside.abs().max()) < 1e-6 * float(step.abs().max())


def test_a_layer_learns_the_same_alone_and_among_others(rng: torch.Generator) -> None:
    start, gradients = random(rng), random(rng)
    together = moved(start, gradients, lr=0.1, weight_decay=0.1)
    alone = [
        moved([w], [g], lr=0.1, weight_decay=0.1)[0] for w, g in zip(start, gradients, strict=True)
    ]
    torch.testing.assert_close(together, alone)


def test_a_layer_without_gradient_stays(rng: torch.Generator) -> None:
    weights = [nn.Parameter(w) for w in random(rng)]
    before = [w.detach().clone() for w in weights]
    weights[1].grad = torch.ones_like(weights[1])
    Muon(weights).step()
    same = [torch.equal(a, b) for a, b in zip(weights, before, strict=True)]
    assert same == [True, False, True, True, True]
