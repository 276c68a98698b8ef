"""Positions and brightnesses of beads under a spline, and the jitter of the stage, by Gauss-Newton
steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from decode.calibrate.bead_fit import BeadFit
from decode.calibrate.bead_view import BeadView, views_of
from decode.calibrate.beads import BeadSet
from decode.calibrate.jitter import split_steps
from decode.optics.camera import Noise
from decode.optics.spline import SplinePSF

__all__ = ["placed", "placed_with_stage"]

MAX_STEP_PX, MAX_STEP_Z_NM = 0.3, 60.0
"""longest lateral and axial step"""
LEAST_LIGHT = 0.2
"""least share of its photons that a step leaves to a bead"""


class _PlaneSteps(NamedTuple):
    """Steps of each bead in each plane, treated as independent."""

    xyz: Tensor
    """(..., z, 3) nm"""
    information: Tensor
    """(..., z, 3, 3) Fisher information of the position, with unknown photons"""
    photons: Tensor
    """(..., z) photons after the step"""


def placed(
    fit: BeadFit[SplinePSF], beads: BeadSet, coefficients: Sequence[Tensor]
) -> BeadFit[SplinePSF]:
    """Beads after a Gauss-Newton step of positions and photons; PSF and stage stay.

    Args:
        fit: their present positions.
        beads: beads of the fit.
        coefficients: (z, y, x) of each bead.
    """
    steps = _steps_of_planes(fit, beads, coefficients)
    total = steps.information.sum(1) + 1e-9 * torch.eye(3)
    right = torch.einsum("nzij,nzj->ni", steps.information, steps.xyz)
    return replace(fit, xyz=fit.xyz + torch.linalg.solve(total, right), photons=steps.photons)


def placed_with_stage(
    fit: BeadFit[SplinePSF], beads: BeadSet, coefficients: Sequence[Tensor]
) -> BeadFit[SplinePSF]:
    """As `placed`, with a step of the jitter that the beads of a stack share."""
    steps = _steps_of_planes(fit, beads, coefficients)
    moved, jitter = split_steps(
        steps.xyz,
        steps.information,
        jitter=fit.jitter,
        stack=beads.stack.unique(return_inverse=True)[1],
        z_nm=beads.z_nm,
    )
    return replace(fit, xyz=fit.xyz + moved, jitter=jitter, photons=steps.photons)


def _steps_of_planes(
    fit: BeadFit[SplinePSF], beads: BeadSet, coefficients: Sequence[Tensor]
) -> _PlaneSteps:
    """(n, z, ...) steps of each bead in each plane."""
    steps = [
        _steps_of_bead(
            view,
            c,
            measured=beads.crops[i],
            photons=fit.photons[i],
            background=fit.background[i],
            noise=beads.noise[i],
            pixel_size_nm=beads.pixel_size_nm,
        )
        for i, (view, c) in enumerate(zip(views_of(fit, beads), coefficients, strict=True))
    ]
    return _PlaneSteps(*(torch.stack(values) for values in zip(*steps, strict=True)))


def _steps_of_bead(
    view: BeadView,
    c: Tensor,
    *,
    measured: Tensor,
    photons: Tensor,
    background: Tensor,
    noise: Noise,
    pixel_size_nm: float,
) -> _PlaneSteps:
    """(z, ...) steps of one bead in each plane.

    Args:
        view: view of the bead.
        c: (z, y, x) coefficients.
        measured: (z, y, x) photons.
        photons: (z,) so far.
        background: () photons per pixel.
        noise: noise of the crop.
        pixel_size_nm: side of a pixel.
    """
    image, light = view.image(c), photons[:, None, None]
    expected = light * image + background
    weight = 1 / noise.variance(expected)
    slope = torch.cat([light * view.slopes(c), image[None]])
    fisher = torch.einsum("izyx,jzyx,zyx->zij", slope, slope, weight)
    score = torch.einsum("izyx,zyx->zi", slope, weight * (measured - expected))
    # correlations are inverted: units of nm and photons differ by orders of magnitude
    scale = fisher.diagonal(dim1=1, dim2=2).clamp_min(1e-12).sqrt()
    correlation = fisher / (scale[:, :, None] * scale[:, None, :]) + 1e-6 * torch.eye(4)
    step = torch.linalg.solve(correlation, score / scale) / scale
    limit = torch.tensor([MAX_STEP_PX * pixel_size_nm] * 2 + [MAX_STEP_Z_NM])
    position, cross, own = fisher[:, :3, :3], fisher[:, :3, 3:], fisher[:, 3:, 3:]
    return _PlaneSteps(
        xyz=step[:, :3].clamp(-limit, limit),
        information=position - cross * cross.mT / own,
        photons=(photons + step[:, 3]).clamp_min(LEAST_LIGHT * photons),
    )
