"""Polynomials through a few nodes of a cloud of points, such as the samples of a position."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

__all__ = ["nodes_of"]

CANDIDATES = 2000
"""points of the unit ball of which the nodes are chosen"""


def nodes_of(points: Tensor, degree: int) -> tuple[Tensor, Tensor]:
    """Nodes among clouds of points, and the weights by which values there make those of the points.

    A polynomial of a total degree goes through the nodes, which lie in the ellipsoid of a cloud
    (approximate Fekete points: Sommariva and Vianello, Comput. Math. Appl. 57, 1324, 2009).

    Args:
        points: (n, m, d) m points of each of n clouds.
        degree: of the polynomials.

    Returns:
        (n, b, d) nodes and (n, m, b) weights.

    Example:
        >>> points = torch.randn(1, 100, 2, generator=torch.Generator().manual_seed(0))
        >>> nodes, weights = nodes_of(points, 3)
        >>> cubic = lambda at: at[..., 0] ** 3 - at[..., 0] * at[..., 1]
        >>> torch.allclose((weights @ cubic(nodes)[..., None])[..., 0], cubic(points), atol=1e-4)
        True
    """
    n, m, d = points.shape
    unit, to_weights = (part.to(points) for part in _fekete(d, degree))
    mean = points.mean(1, keepdim=True)
    apart = points - mean
    scale = apart.square().mean(1, keepdim=True).sqrt().clamp_min(1e-3)
    correlation = ((apart / scale).mT @ (apart / scale)).double() / m
    correlation.diagonal(dim1=1, dim2=2).add_(1e-4)
    root = scale.mT * torch.linalg.cholesky(correlation).to(points)
    round_ = torch.linalg.solve_triangular(root, apart.mT, upper=False)
    radius = round_.square().sum(1).amax(1).sqrt().clamp_min(1e-3)[:, None, None]
    basis = _basis((round_ / radius).transpose(0, 1).reshape(d, n * m), degree)
    return mean + radius * unit @ root.mT, (to_weights @ basis).view(-1, n, m).movedim(0, 2)


def _basis(points: Tensor, degree: int) -> Tensor:
    """(b, m) products of Chebyshev polynomials of points (d, m), up to a total degree."""
    powers = [torch.ones_like(points), points]
    for _ in range(degree - 1):
        powers.append(2 * points * powers[-1] - powers[-2])
    along = torch.stack(powers)
    first, *others = _orders(len(points), degree)
    basis = along[first, 0]
    for axis, order in enumerate(others, 1):
        basis *= along[order, axis]
    return basis


@cache
def _orders(d: int, degree: int) -> Tensor:
    """(d, b) orders of the polynomials along each axis."""
    orders = product(range(degree + 1), repeat=d)
    return torch.tensor([order for order in orders if sum(order) <= degree]).T


@cache
def _fekete(d: int, degree: int) -> tuple[Tensor, Tensor]:
    """Nodes (b, d) in the unit ball, and the transposed inverse (b, b) of the basis there."""
    cube = 2 * torch.quasirandom.SobolEngine(d, scramble=True, seed=0).draw(CANDIDATES) - 1
    ball = cube[cube.square().sum(1) <= 1].double()
    basis = _basis(ball.T, degree)
    _, order = scipy.linalg.qr(basis.numpy(), mode="r", pivoting=True)[-2:]
    chosen = torch.from_numpy(order[: len(basis)].astype(np.int64))
    chosen = chosen[ball[chosen, 0].argsort()]
    return ball[chosen], torch.linalg.inv(basis[:, chosen])
