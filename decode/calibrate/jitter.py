"""The jitter of the stage: shifts that the beads of a stack share in a plane, and that the PSF does
not explain."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from decode.calibrate.bead_fit import BeadFit
from decode.optics.psf import PSF

__all__ = ["jitter_of", "jitter_size", "slow_part", "split_steps"]

SLOW_NM = 300.0
"""period above which shifts over depth count as part of the PSF, unless other stacks disagree"""
SIGNIFICANT = 3.0
"""standard errors by which jitter must exceed the noise of the beads"""
ALTERNATIONS = 10
"""number of alternations between the beads, given the stage, and the stage, given the beads"""


def jitter_of(fit: BeadFit[PSF], fitted: Tensor, stack: Tensor) -> Tensor:
    """The stage's jitter in some stacks, from the fitted beads.

    Args:
        fit: fit of the beads.
        fitted: (n,) number of the stack in which each bead lies.
        stack: (m,) numbers of the requested stacks.

    Returns:
        (m, z, 3) nm; 0 where no bead of the stack was fitted.
    """
    none = torch.zeros_like(fit.jitter[:1])
    return torch.stack([torch.cat([fit.jitter[fitted == number], none])[0] for number in stack])


def split_steps(
    step: Tensor, information: Tensor, *, jitter: Tensor, stack: Tensor, z_nm: Tensor
) -> tuple[Tensor, Tensor]:
    """Split the steps of beads in planes into those of the beads and those of the stage.

    Beads and stage are solved for in turns.  A Gaussian prior limits the jitter to its size in the
    data; shifts that are slow along z and common to all stacks are left to the PSF.

    Args:
        step: (n, z, 3) nm by which each bead in each plane would move by itself.
        information: (n, z, 3, 3) Fisher information of its position.
        jitter: (n, z, 3) present jitter, nm.
        stack: (n,) number of the stack in which each bead lies, from 0 and without gaps.
        z_nm: (z,) depth of the planes.

    Returns:
        (n, 3) steps of the beads, and (n, z, 3) new jitter, nm.
    """
    n_stacks, little = int(stack.max()) + 1, 1e-9 * torch.eye(3)
    of_bead = information.sum(1) + little
    of_stage = _by_stack(information, stack, n_stacks) + little
    old = torch.stack([jitter[stack == s][0] for s in range(n_stacks)])

    def beads(stage: Tensor) -> Tensor:
        right = torch.einsum("nzij,nzj->ni", information, step - stage[stack])
        return torch.linalg.solve(of_bead, right)

    def pull(moved: Tensor) -> Tensor:
        """(stack, z, 3) information times step that is left to the stage."""
        left = torch.einsum("nzij,nzj->nzi", information, step - moved[:, None])
        return _by_stack(left, stack, n_stacks)

    moved = beads(torch.zeros_like(old))
    free = old + torch.linalg.solve(of_stage, pull(moved)[..., None])[..., 0]
    size = jitter_size(free, torch.linalg.inv(of_stage).diagonal(dim1=2, dim2=3))
    prior = torch.diag(size.clamp_min(1e-3) ** -2)
    for _ in range(ALTERNATIONS):
        right = pull(moved) - old @ prior
        stage = torch.linalg.solve(of_stage + prior, right[..., None])[..., 0]
        moved = beads(stage)
    new = torch.where(size > 0, old + stage, 0.0)
    return moved, (new - slow_part(new.mean(0), z_nm))[stack]


def _by_stack(values: Tensor, stack: Tensor, n_stacks: int) -> Tensor:
    """Sums of values (n, ...) over the beads of each stack."""
    return values.new_zeros(n_stacks, *values.shape[1:]).index_add(0, stack, values)


def slow_part(series: Tensor, z_nm: Tensor) -> Tensor:
    """The part of a (z, ...) series in cosines of periods above `SLOW_NM`."""
    n = len(series)
    modes = torch.arange(min(n, 1 + int(2 * float(z_nm[-1] - z_nm[0]) / SLOW_NM)))
    basis = torch.cos(math.pi / n * (torch.arange(n)[:, None] + 0.5) * modes)
    basis = basis / basis.norm(dim=0)
    return basis @ (basis.T @ series)


def jitter_size(free: Tensor, variance: Tensor) -> Tensor:
    """Standard deviations of the jitter along x, y and z, where significant.

    Args:
        free: (stack, z, 3) nm by which the beads of each stack are shifted against the PSF.
        variance: (stack, z, 3) variance of these shifts due to the noise of the beads, nm^2.

    Returns:
        (3,) nm, from the differences between stacks; for a single stack, whose PSF may be shifted
        as well, from third differences over the planes, which keep independent shifts and suppress
        slow changes.  0 where it exceeds the noise by less than three standard errors.
    """
    stacks, planes = free.shape[:2]
    if stacks > 1:
        gain = 1 - 1 / stacks
        change, noise, memory = free - free.mean(0), variance * gain, 1 / gain
    elif planes > 3:
        kernel = torch.tensor([1.0, -3.0, 3.0, -1.0])
        change = free.unfold(1, 4, 1) @ kernel
        noise = variance.unfold(1, 4, 1) @ kernel**2
        # sums of squares of the kernel, and of the correlation between neighbouring differences
        gain, memory = 20.0, 2.3
    else:
        return torch.zeros(3)
    weight = noise**-2
    total = weight.sum((0, 1))
    square = (weight * (change**2 - noise)).sum((0, 1)) / total / gain
    error = (2 * memory * (weight * noise).square().sum((0, 1))).sqrt() / total / gain
    return torch.where(square > SIGNIFICANT * error, square.clamp_min(0).sqrt(), 0.0)
