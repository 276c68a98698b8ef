"""A SplinePSF fitted to beads, with position and brightness of each bead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.ndimage import shift, spline_filter1d
from torch import Tensor
from torch.nn import functional as F

from decode.calibrate.bead_fit import BeadFit, centroids
from decode.calibrate.bead_view import expected_photons, images_of, views_of
from decode.calibrate.beads import BeadSet
from decode.calibrate.coefficients import KNOT_NM, LeastSquares, Penalty, local_size
from decode.calibrate.jitter import jitter_of
from decode.calibrate.placement import placed, placed_with_stage
from decode.likelihood import scaled_deviance
from decode.optics.spline import SplinePSF
from decode.progress import Progress, Steps, Stepwise, part

__all__ = ["fit_spline", "held_out_deviance", "place_beads"]

OVERSAMPLING = 2
"""voxels along the side of a pixel: pixels alone sample a sharp PSF too coarsely to be
interpolated"""
MARGIN_PX = 2
"""margin of the spline around the crops, so that it covers a crop wherever its bead lies, pixels"""
SMOOTHNESS = (0.05, 0.1, 0.2, 0.4)
"""candidates for the expected third difference of the coefficients over their size; held-out beads
decide"""
DEPTH_SMOOTHNESS = (0.02, 0.06, 0.2, 0.6)
"""the same along z, for planes `KNOT_NM` apart"""
LEAST_LIGHT = 0.05
"""least light of a bead in a plane at the start of the fit, over its mean"""


@Stepwise
def fit_spline(
    beads: BeadSet,
    *,
    smoothness: float,
    depth_smoothness: float = DEPTH_SMOOTHNESS[1],
    start: BeadFit[SplinePSF] | None = None,
    n_rounds: int = 6,
) -> Steps[BeadFit[SplinePSF]]:
    """Fit coefficients, positions, brightnesses and the stage's jitter, in turns.

    With positions fixed, the images are linear in the coefficients, and conjugate gradients
    minimize the weighted squares; with coefficients fixed, positions take a Gauss-Newton step.
    Weights are the inverse variances of the last model, so that the turns converge to the maximum
    of the quasi-likelihood (Wedderburn, Biometrika 61, 439, 1974).  Beads are fitted at their
    subpixel positions, without resampling.  A penalty on third differences keeps noise out of the
    coefficients.  Conventions fix what images leave open: beads lie at z = 0 on average, the
    emitter lies at the centroid of its light at z = 0, and every plane holds the same light.

    A shift that all beads share in a plane may be due to the stage or to the PSF.  Stacks share the
    PSF, while each has its own movement of the stage: shifts that differ between stacks are jitter.
    In a single stack, only shifts that are independent from plane to plane are jitter; those that
    persist over neighbouring planes are part of the PSF.

    Args:
        beads: in evenly spaced planes.
        smoothness: standard deviation of the third differences over the local size of the
            coefficients; less is smoother.
        depth_smoothness: the same along z, for planes of the spline `KNOT_NM` apart.
        start: a fit of other beads of the same microscope, to start from its coefficients.
        n_rounds: turns.
    """
    background = beads.backgrounds()
    signal = beads.crops - background[:, None, None, None]
    photons = signal.sum((2, 3))
    photons = photons.clamp_min(LEAST_LIGHT * float(photons.mean()))
    psf = _voxels(beads)
    fit = BeadFit(
        psf=psf,
        xyz=F.pad(beads.xy, (0, 1)),
        photons=photons,
        background=background,
        jitter=torch.zeros(*photons.shape, 3),
        deviance=math.inf,
    )
    mean = _mean_bead(signal, photons, beads, psf)
    size = local_size(mean, fit, beads.noise)
    penalty = Penalty.of(
        size,
        smoothness=smoothness,
        depth_smoothness=depth_smoothness,
        z_step_nm=psf.z_step_nm,
    )
    c = (mean if start is None else start.psf.coefficients.detach())[None]
    same = torch.ones(len(beads), 1)
    for turn in range(n_rounds):
        views = views_of(fit, beads)
        expected = expected_photons(fit, images_of(views, same, c))
        problem = LeastSquares(
            views=views,
            basis=same,
            photons=fit.photons,
            weight=1 / beads.noise.variance(expected),
            penalties=[penalty],
        )
        usual = beads.noise.typical.variance(fit.photons.mean() * size + background.mean())
        diagonal = problem.diagonal(usual, OVERSAMPLING**2)
        descent = problem.solve(signal, start=c, diagonal=diagonal, n_steps=20)
        c = yield from part(descent, turn / n_rounds, (turn + 0.9) / n_rounds)
        fit = placed_with_stage(fit, beads, [c[0]] * len(beads))
        yield Progress((turn + 1) / n_rounds)
    fit = replace(fit, psf=psf.with_coefficients(c[0]))
    return by_convention(_with_deviance(fit, beads), beads.z_nm)


def place_beads(
    psf: SplinePSF, beads: BeadSet, *, jitter: Tensor | None = None, n_rounds: int = 8
) -> BeadFit[SplinePSF]:
    """Fit positions and brightnesses of beads under a fixed PSF.

    Args:
        psf: PSF of other beads.
        beads: beads to place.
        jitter: (n, z, 3) nm between actual and nominal position of the stage; None: 0.
        n_rounds: turns.
    """
    background = beads.backgrounds()
    signal = beads.crops - background[:, None, None, None]
    photons = signal.sum((2, 3)).clamp_min(1)
    fit = BeadFit(
        psf=psf,
        xyz=F.pad(beads.xy, (0, 1)),
        photons=photons,
        background=background,
        jitter=torch.zeros(*photons.shape, 3) if jitter is None else jitter,
        deviance=math.inf,
    )
    for _ in range(n_rounds):
        fit = placed(fit, beads, [psf.coefficients.detach()] * len(beads))
    return _with_deviance(fit, beads)


@Stepwise
def held_out_deviance(beads: BeadSet, tried: Sequence[tuple[float, float]]) -> Steps[list[float]]:
    """Deviance of held-out beads, for each pair of weights of the penalty.

    Every second bead is predicted from the others; of several stacks every second one, whose jitter
    is then unknown, so that only what stacks share counts.

    Args:
        beads: beads of one or several stacks.
        tried: smoothness and depth smoothness.

    Returns:
        The deviance for each pair.
    """
    stack = beads.stack.unique(return_inverse=True)[1]
    several = bool(stack.any())
    held = (stack if several else torch.arange(len(beads))) % 2 == 1
    others, predicted = beads[~held], beads[held]
    start, deviances = None, []
    for turn, (smoothness, depth_smoothness) in enumerate(tried):
        fit = fit_spline.steps(
            others,
            smoothness=smoothness,
            depth_smoothness=depth_smoothness,
            start=start,
            n_rounds=4,
        )
        start = yield from part(fit, turn / len(tried), (turn + 0.9) / len(tried))
        jitter = jitter_of(start, others.stack, predicted.stack)
        deviances.append(place_beads(start.psf, predicted, jitter=jitter).deviance)
        yield Progress((turn + 1) / len(tried))
    return deviances


def _voxels(beads: BeadSet) -> SplinePSF:
    """A spline with coefficients of 0 that covers beads and their planes."""
    first, last = float(beads.z_nm[0]), float(beads.z_nm[-1])
    spacing = float(beads.z_nm[1] - beads.z_nm[0])
    step = max(1, round(KNOT_NM / spacing)) * spacing
    # one plane more on either side, for beads that sit higher or lower than most
    planes = math.ceil(round((last - first) / step, 6)) + 3
    patch = beads.side_px + 2 * MARGIN_PX
    return SplinePSF(
        torch.zeros(planes, OVERSAMPLING * patch, OVERSAMPLING * patch),
        z_start_nm=first - step,
        z_step_nm=step,
        pixel_size_nm=beads.pixel_size_nm,
        oversampling=OVERSAMPLING,
        patch_px=patch,
    )


def _mean_bead(signal: Tensor, photons: Tensor, beads: BeadSet, psf: SplinePSF) -> Tensor:
    """Coefficients of the mean of all beads, each moved to the middle of its crop.

    Args:
        signal: (n, z, y, x) photons without background.
        photons: (n, z) of each bead.
        beads: gives the positions.
        psf: gives the voxels.
    """
    middle = beads.side_px / 2
    images = (signal / photons[..., None, None]).numpy()
    offsets = [(0, middle - y, middle - x) for x, y in (beads.xy / beads.pixel_size_nm).tolist()]
    moved = [shift(image, by, order=1) for image, by in zip(images, offsets, strict=True)]
    at = psf.z_start_nm + psf.z_step_nm * np.arange(len(psf.coefficients))
    nearest = np.abs(beads.z_nm.numpy() - at[:, None]).argmin(1)
    # pixels are repeated for the finer voxels: a start, no more
    fine = np.mean(moved, 0)[nearest].repeat(OVERSAMPLING, 1).repeat(OVERSAMPLING, 2)
    margin = (OVERSAMPLING * MARGIN_PX,) * 2
    fine = np.pad(fine, ((0, 0), margin, margin))
    return torch.as_tensor(
        spline_filter1d(fine, order=3, axis=0, mode="mirror"), dtype=torch.get_default_dtype()
    )


def _with_deviance(fit: BeadFit[SplinePSF], beads: BeadSet) -> BeadFit[SplinePSF]:
    c = fit.psf.coefficients.detach()
    images = torch.stack([view.image(c) for view in views_of(fit, beads)])
    deviance = scaled_deviance(beads.crops, expected_photons(fit, images), beads.noise).mean()
    return replace(fit, deviance=float(deviance))


def by_convention(fit: BeadFit[SplinePSF], z_nm: Tensor) -> BeadFit[SplinePSF]:
    """The same fit by the conventions on what images leave open.

    Every plane holds the same light, the mean depth of the beads and the mean of the jitter are 0,
    and the emitter lies at the centroid of its light at z = 0.

    Args:
        fit: fit of beads.
        z_nm: (z,) depth of their planes.
    """
    return _centred(_at_mean_depth(_with_even_planes(fit, z_nm)))


def _with_even_planes(fit: BeadFit[SplinePSF], z_nm: Tensor) -> BeadFit[SplinePSF]:
    """Attribute changes of light from plane to plane to the lamp, or to bleaching of the bead."""
    psf = fit.psf
    c = psf.coefficients.detach()
    light = c.sum((1, 2)) / psf.oversampling**2
    plane, weight = psf.planes(z_nm)
    photons = fit.photons * (light[plane] * weight).sum(1)
    return replace(fit, psf=psf.with_coefficients(c / light[:, None, None]), photons=photons)


def _at_mean_depth(fit: BeadFit[SplinePSF]) -> BeadFit[SplinePSF]:
    """Shift the beads to a mean depth of 0; a bead that is fitted with a larger z lies higher."""
    psf, drift = fit.psf, fit.jitter.mean(1)
    xyz = fit.xyz + drift
    depth = F.pad(xyz[:, 2:].mean(0), (2, 0))
    z_start_nm = psf.z_start_nm - float(depth[2])
    psf = psf.with_coefficients(psf.coefficients.detach(), z_start_nm=z_start_nm)
    return replace(fit, psf=psf, xyz=xyz - depth, jitter=fit.jitter - drift[:, None])


def _centred(fit: BeadFit[SplinePSF]) -> BeadFit[SplinePSF]:
    psf = fit.psf
    middle = psf.patch_px / 2 * psf.pixel_size_nm
    image = psf.integrate_pixels(torch.tensor([[middle, middle, 0.0]])).detach()
    offset = centroids(image, psf.pixel_size_nm)[0] - middle
    voxels = offset * psf.oversampling / psf.pixel_size_nm
    x, y = (torch.tensor(psf.centre_px) + voxels).tolist()
    return replace(fit, psf=psf.moved((x, y)), xyz=fit.xyz + F.pad(offset, (0, 1)))
