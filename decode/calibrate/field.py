"""A spline fitted to beads all over the field, whose coefficients vary with the position."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from decode.calibrate.bead_fit import BeadFit
from decode.calibrate.bead_view import expected_photons, images_of, views_of
from decode.calibrate.beads import BeadSet
from decode.calibrate.coefficients import LeastSquares, Penalty, local_size
from decode.calibrate.placement import placed
from decode.likelihood import scaled_deviance
from decode.optics.field import FieldSplinePSF, polynomials
from decode.optics.spline import SplinePSF
from decode.progress import Progress, Steps, Stepwise, part

__all__ = ["fit_field"]

NODES = 5
"""number of nodes along each side of the field at which centroids are computed"""


@Stepwise
def fit_field(
    start: BeadFit[SplinePSF],
    beads: BeadSet,
    *,
    terms: int,
    size: float,
    smoothness: float,
    depth_smoothness: float,
    n_rounds: int,
) -> Steps[BeadFit[FieldSplinePSF]]:
    """Fit coefficients, as polynomials of the position in the field, and positions of beads, in
    turns.

    The fit is that of `fit_spline`, but every bead is drawn with the coefficients at its position.
    A penalty on the squares of the changes, over `size` times the size of the coefficients, keeps
    them small; they are as smooth as the coefficients.  Conventions fix what images leave open:
    planes hold the same light all over the field, and everywhere the centroid of the light at z = 0
    is the position of the emitter.  Depth is defined by the greatest likeness to the image of the
    same depth in the middle, so that a curved focal surface or a tilted coverslip shows in the z of
    the beads.  The jitter of the stage is kept.

    Args:
        start: a fit to these beads with one PSF for the whole field.
        beads: all over the field.
        terms: number of terms of the polynomial: 1, 3 (linear) or 6 (quadratic).
        size: expected change of the coefficients over their size.
        smoothness, depth_smoothness: as for `fit_spline`.
        n_rounds: number of turns.
    """
    psf, fit = start.psf, start
    signal = beads.crops - start.background[:, None, None, None]
    basis = polynomials(beads.places_nm, beads.field_nm, terms)
    # changes count from the mean of the beads, so that none of them can stand for what all beads
    # share
    mean = basis[:, 1:].mean(0)
    basis[:, 1:] -= mean
    middle = psf.coefficients.detach()
    c = torch.cat([middle[None], torch.zeros(terms - 1, *middle.shape)])
    usual = local_size(middle, start, beads.noise)
    expected_sizes = [usual, *[size * usual] * (terms - 1)]
    penalties = [
        Penalty.of(
            expected,
            smoothness=smoothness,
            depth_smoothness=depth_smoothness,
            z_step_nm=psf.z_step_nm,
            largest=expected if k else None,
        )
        for k, expected in enumerate(expected_sizes)
    ]
    variance = beads.noise.typical.variance(start.photons.mean() * usual + start.background.mean())
    for turn in range(n_rounds):
        views = views_of(fit, beads)
        expected = expected_photons(fit, images_of(views, basis, c))
        problem = LeastSquares(
            views=views,
            basis=basis,
            photons=fit.photons,
            weight=1 / beads.noise.variance(expected),
            penalties=penalties,
        )
        diagonal = problem.diagonal(variance, psf.oversampling**2)
        descent = problem.solve(signal, start=c, diagonal=diagonal, n_steps=15)
        c = yield from part(descent, turn / n_rounds, (turn + 0.9) / n_rounds)
        fit = placed(fit, beads, _at_places(basis, c))
        yield Progress((turn + 1) / n_rounds)

    c[0] -= torch.tensordot(mean, c[1:], 1)
    basis[:, 1:] += mean
    c = _with_even_planes(c, psf.oversampling**2)
    for _ in range(2):
        fit = placed(fit, beads, _at_places(basis, c))
    expected = expected_photons(fit, images_of(views_of(fit, beads), basis, c))
    deviance = float(scaled_deviance(beads.crops, expected, beads.noise).mean())
    return _by_convention(replace(fit, deviance=deviance), c, beads, basis=basis)


def _at_places(basis: Tensor, c: Tensor) -> Sequence[Tensor]:
    """(z, y, x) coefficients of each bead."""
    return [torch.tensordot(weights, c, 1) for weights in basis]


def _with_even_planes(c: Tensor, voxels_per_pixel: int) -> Tensor:
    """Coefficients (terms, z, y, x) whose planes hold all the light, everywhere in the field."""
    c = c / c[:1].sum((2, 3), keepdim=True) * voxels_per_pixel
    c[1:] -= c[1:].sum((2, 3), keepdim=True) / voxels_per_pixel * c[:1]
    return c


def _by_convention(
    fit: BeadFit[SplinePSF], c: Tensor, beads: BeadSet, *, basis: Tensor
) -> BeadFit[FieldSplinePSF]:
    """The PSF of the field, whose emitters lie at the centroids of their light in focus.

    Args:
        fit: gives positions and voxels.
        c: (terms, z, y, x) coefficients.
        beads: beads of the fit.
        basis: (n, terms) weights of the coefficients in each bead.
    """
    psf, depth = fit.psf, fit.xyz[:, 2].mean()
    offset = _centroids(c, psf, beads)
    moved = torch.cat([basis @ offset, -depth.expand(len(beads), 1)], 1)
    voxels = offset[0] * psf.oversampling / psf.pixel_size_nm
    x, y = (torch.tensor(psf.centre_px) + voxels).tolist()
    z_start_nm = psf.z_start_nm - float(depth)
    middle = psf.with_coefficients(c[0], centre_px=(x, y), z_start_nm=z_start_nm)
    whole = FieldSplinePSF(middle, c[1:], shifts_nm=offset[1:], field_nm=beads.field_nm)
    return replace(fit, xyz=fit.xyz + moved).with_psf(whole)


def _centroids(c: Tensor, psf: SplinePSF, beads: BeadSet) -> Tensor:
    """Offset of the centroid of the light at z = 0 from the drawn position, over the field.

    Args:
        c: (terms, z, y, x) coefficients.
        psf: gives the voxels.
        beads: give the field.

    Returns:
        (terms, 2) nm, coefficients of a polynomial of the position.
    """
    sides = [torch.linspace(low, high, NODES).tolist() for low, high in beads.field_nm]
    nodes = torch.tensor(list(itertools.product(*sides)))
    basis = polynomials(nodes, beads.field_nm, len(c))
    middle = psf.patch_px / 2 * psf.pixel_size_nm
    emitter = pad(torch.full((1, 2), middle), (0, 1))
    splines = [psf.with_coefficients(own) for own in _at_places(basis, c)]
    image = torch.cat([spline.integrate_pixels(emitter).detach() for spline in splines])
    # of all light, noise included: only so is it a polynomial of the place, as the coefficients are
    image = image.clamp_min(0)
    grid = (torch.arange(psf.patch_px) + 0.5) * psf.pixel_size_nm - middle
    centre = torch.stack([image.sum(1) @ grid, image.sum(2) @ grid], 1) / image.sum((1, 2))[:, None]
    return torch.linalg.lstsq(basis, centre).solution
