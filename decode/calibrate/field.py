"""A PSF that changes over the field, where beads cover it and those held out say that it does."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from decode.calibrate.spline import (
    DEPTH_SMOOTHNESS,
    KNOT_NM,
    BeadFit,
    _conjugate_gradients,
    _Penalty,
    _place,
    _View,
    _with_coefficients,
    centroids,
    fit_spline,
    jitter_of,
    place_beads,
)
from decode.likelihood import scaled_deviance
from decode.optics.camera import Noise
from decode.optics.field import FieldSplinePSF, polynomials
from decode.optics.spline import SplinePSF
from decode.progress import Progress, Steps, Stepwise, part

__all__ = ["FieldTrial", "fit_field", "try_field", "uncovered"]

Field = tuple[tuple[float, float], tuple[float, float]]

BEADS_PER_TERM = 3
"""fewer beads than so many times the terms of the polynomial do not tell them and leave some to
be held out"""
LEAST_SPREAD = 0.25
"""rms of the beads over half the field, in the direction where they spread least; evenly filled
it is 0.58"""
SIZES = (1.0, 0.3, 0.1)
"""expected change of the coefficients over their size, to choose from"""
FOLDS = 4
DECISIVE = 2.0
"""standard errors by which held-out beads must be predicted better: several sizes are tried, so
that one is luck"""
PLANES = 25
"""as many tell which size is right: the spline's own planes are 50 nm apart"""


class FieldTrial(NamedTuple):
    """Whether the PSF changes over the field."""

    fit: BeadFit
    """its PSF is a `FieldSplinePSF`, or the one that was there before"""
    note: str
    """what was found, in a sentence"""
    terms: int = 1
    """of the polynomial; 1: the PSF is the same all over"""
    size: float = 0.0
    """expected change of the coefficients over their size"""
    gain: Tensor | None = None
    """(n,) deviance of each bead, when held out, less with the changes; None: it was not tried"""


def uncovered(places: Tensor, field_nm: Field, terms: int) -> str:
    """Why beads at these places (n, 2) nm do not cover a field; empty if they do."""
    if len(places) < BEADS_PER_TERM * terms:
        return (
            f"{len(places)} beads are too few to tell, record {BEADS_PER_TERM * terms} or more "
            "all over the field"
        )
    # what is left to X and Y when their mean is taken off; of quadratic terms no less must be left
    # by the linear ones
    design = polynomials(places, field_nm, terms)
    constant, linear = design[:, :1], design[:, 1:3]
    spread = torch.linalg.svdvals(linear - linear.mean(0)) / math.sqrt(len(places))
    if float(spread.min()) < LEAST_SPREAD:
        return "the beads lie together, or along a line; record some all over the field"
    if terms > 3:
        curved = design[:, 3:]
        left = (
            curved
            - design[:, :3] @ torch.linalg.lstsq(torch.cat([constant, linear], 1), curved).solution
        )
        if float(torch.linalg.svdvals(left).min()) / math.sqrt(len(places)) < LEAST_SPREAD**2 / 2:
            return "the beads leave parts of the field empty"
    return ""


@Stepwise
def try_field(
    fit: BeadFit,
    crops: Tensor,
    z_nm: Tensor,
    noise: Noise,
    places: Tensor,
    field_nm: Field,
    *,
    smoothness: float,
    depth_smoothness: float = DEPTH_SMOOTHNESS[1],
    stack: Tensor | None = None,
) -> Steps[FieldTrial]:
    """Let the PSF change over the field if beads cover it, and those that are held out are
    predicted better so.

    Every fourth bead is held out in turn and put under the PSF of its place that the others give,
    with changes and without.  The changes are kept if they lower its deviance, on average over the
    beads, by more than twice the standard error of that mean; so the difference is taken bead by
    bead.

    Args:
        fit: of a `SplinePSF` to these beads, as if it were the same all over.
        crops, z_nm, noise, smoothness, depth_smoothness, stack: as for `fit_spline`.
        places: (n, 2) nm, of the beads in the frame of the sensor.
        field_nm: (lowest, highest) x and y of the field.
    """
    if reason := uncovered(places, field_nm, 3):
        return FieldTrial(fit, f"the PSF is taken to be the same all over the field: {reason}")
    some = slice(None, None, max(1, len(z_nm) // PLANES))
    number = torch.zeros(len(crops), dtype=torch.long) if stack is None else stack
    smooth = smoothness, depth_smoothness
    held_out = _HeldOut(fit, crops[:, some], z_nm[some], noise, places, field_nm, number, smooth)
    yield from part(held_out.fit(), 0.0, 0.3)
    same = yield from part(held_out.deviance(1, 0.0), 0.3, 0.4)
    gains: dict[tuple[int, float], Tensor] = {}
    best = (3, SIZES[0])
    for turn, size in enumerate(SIZES):
        gains[3, size] = same - (
            yield from part(held_out.deviance(3, size), 0.4 + 0.1 * turn, 0.5 + 0.1 * turn)
        )
        if float(gains[3, size].mean()) < float(gains[best].mean()):
            break  # held nearer to 0 they do still less
        best = (3, size)
    if _clear(gains[best]) and not uncovered(places, field_nm, 6):
        curved = (6, best[1])
        gains[curved] = same - (yield from part(held_out.deviance(*curved), 0.7, 0.8))
        # a parabola must be better than a line as a line is than nothing
        best = curved if _clear(gains[curved] - gains[best]) else best
    gain = gains[best]
    share, error = (
        100 * v / float(same.mean()) for v in (float(gain.mean()), _standard_error(gain))
    )
    if not _clear(gain):
        note = (
            "the PSF is taken to be the same all over the field: one that changes predicts "
            "held-out beads no better "
            f"(deviance lower by {share:.2g} +- {error:.1g} %)"
        )
        return FieldTrial(fit, note, gain=gain)
    whole = fit_field.steps(
        fit,
        crops,
        z_nm,
        noise,
        places,
        field_nm,
        terms=best[0],
        size=best[1],
        smoothness=smoothness,
        depth_smoothness=depth_smoothness,
        n_rounds=4,
    )
    found = yield from part(whole, 0.8, 1.0)
    order = "linearly" if best[0] == 3 else "quadratically"
    note = (
        f"the PSF changes {order} over the field, by which the deviance of held-out beads is "
        f"{share:.2g} +- {error:.1g}"
        " % lower"
    )
    return FieldTrial(found, note, *best, gain)


@Stepwise
def fit_field(
    start: BeadFit,
    crops: Tensor,
    z_nm: Tensor,
    noise: Noise,
    places: Tensor,
    field_nm: Field,
    *,
    terms: int,
    size: float,
    smoothness: float,
    depth_smoothness: float,
    n_rounds: int,
) -> Steps[BeadFit]:
    """Fit coefficients that are polynomials of the place, and where beads are, in turns.

    As `fit_spline` does, but every bead is drawn with the coefficients of its place.  Changes are
    held near 0 by their square over `size` times the size of the coefficients, and as smooth.  What
    the images cannot tell is agreed on: planes hold the same light all over the field, and
    everywhere the centroid of the light at z = 0 is the emitter. Depth is where the image is most
    like that of the same depth in the middle, so that a focal surface that is bent, or a coverslip
    that is tilted, shows in the beads' z.  The stage's jitter stays.

    Args:
        start: a fit of a `SplinePSF` to these beads.
        crops, z_nm, noise, smoothness, depth_smoothness: as for `fit_spline`.
        places: (n, 2) nm, of the beads in the frame of the sensor.
        field_nm: (lowest, highest) x and y of the field.
        terms: of the polynomial: 1, 3 (linear) or 6 (quadratic).
        size: expected change of the coefficients over their size.
        n_rounds: turns.

    Returns:
        The fit; its PSF is a `FieldSplinePSF`, of one term a `SplinePSF`.
    """
    psf = start.psf
    assert isinstance(psf, SplinePSF)
    side = crops.shape[-1]
    signal = crops - start.background[:, None, None, None]
    w = polynomials(places, field_nm, terms)
    # changes are counted from the mean of the beads, so that none of them can stand for what all
    # beads share
    mean = w[:, 1:].mean(0)
    w[:, 1:] -= mean
    c = torch.cat(
        [psf.coefficients.detach()[None], torch.zeros(terms - 1, *psf.coefficients.shape)]
    )
    dim = float(
        (noise.typical.variance(start.background.mean()) / start.photons.square().mean()).sqrt()
    )
    usual = torch.from_numpy(gaussian_filter(c[0].numpy(), (1, 3, 3))).clamp_min(0) + dim
    along_z = depth_smoothness / smoothness * (psf.z_step_nm / KNOT_NM) ** 2.5
    penalties = [_Penalty(smoothness * (size if k else 1) * usual, along_z) for k in range(terms)]
    ridge = torch.stack(
        [(size * usual) ** -2 if k else torch.zeros_like(usual) for k in range(terms)]
    )
    dense = (w**2).T @ start.photons.square().sum(1) / len(usual) / psf.oversampling**2
    variance = noise.typical.variance(start.photons.mean() * usual + start.background.mean())
    diagonal = (
        dense[:, None, None, None] / variance + torch.stack([p.diagonal for p in penalties]) + ridge
    )
    xyz, photons = start.xyz, start.photons

    for turn in range(n_rounds):
        views = [
            _View(psf, at, strayed, z_nm, side)
            for at, strayed in zip(xyz, start.jitter, strict=True)
        ]
        light = photons[..., None, None]
        weight = 1 / noise.variance(
            _images(views, w, c) * light + start.background[:, None, None, None]
        )

        def back(images: Tensor, views: list[_View] = views) -> Tensor:
            parts = torch.stack(
                [view.adjoint(image) for view, image in zip(views, images, strict=True)]
            )
            return torch.tensordot(w.T, parts, 1)

        def normal(
            c: Tensor, views: list[_View] = views, weight: Tensor = weight * light**2
        ) -> Tensor:
            held = torch.stack(
                [penalty.gradient(part) for penalty, part in zip(penalties, c, strict=True)]
            )
            return held + ridge * c + back(weight * _images(views, w, c), views)

        descent = _conjugate_gradients.steps(
            normal, back(weight * light * signal), c, diagonal, n_steps=15
        )
        c = yield from part(descent, turn / n_rounds, (turn + 0.9) / n_rounds)
        xyz, photons = _placed(c, w, psf, start, crops, z_nm, noise, xyz, photons)
        yield Progress((turn + 1) / n_rounds)

    c[0] -= torch.tensordot(mean, c[1:], 1)
    w[:, 1:] += mean
    # the light of a plane is the same everywhere, and all of it
    c = c / c[:1].sum((2, 3), keepdim=True) * psf.oversampling**2
    c[1:] -= c[1:].sum((2, 3), keepdim=True) / psf.oversampling**2 * c[:1]
    for _ in range(2):
        xyz, photons = _placed(c, w, psf, start, crops, z_nm, noise, xyz, photons)
    views = [
        _View(psf, at, strayed, z_nm, side) for at, strayed in zip(xyz, start.jitter, strict=True)
    ]
    expected = (
        _images(views, w, c) * photons[..., None, None] + start.background[:, None, None, None]
    )
    deviance = float(scaled_deviance(crops, expected, noise).mean())

    depth, offset = xyz[:, 2].mean(), _centroids(c, psf, field_nm, terms)
    xyz = xyz + torch.cat([w @ offset, -depth.expand(len(xyz), 1)], 1)
    scale = psf.oversampling / psf.pixel_size_nm
    x, y = (torch.tensor(psf.centre_px) + offset[0] * scale).tolist()
    middle = _with_coefficients(
        psf, c[0], z_start_nm=psf.z_start_nm - float(depth), centre_px=(x, y)
    )
    whole = (
        middle
        if terms == 1
        else FieldSplinePSF(middle, c[1:], shifts_nm=offset[1:], field_nm=field_nm)
    )
    return replace(start, psf=whole, xyz=xyz, photons=photons, deviance=deviance)


def _images(views: Sequence[_View], w: Tensor, c: Tensor) -> Tensor:
    """(n, z, y, x) fraction of light in each pixel of beads whose weights are w (n, terms)."""
    return torch.stack(
        [view.image(torch.tensordot(at, c, 1)) for view, at in zip(views, w, strict=True)]
    )


def _placed(
    c: Tensor,
    w: Tensor,
    psf: SplinePSF,
    start: BeadFit,
    crops: Tensor,
    z_nm: Tensor,
    noise: Noise,
    xyz: Tensor,
    photons: Tensor,
) -> tuple[Tensor, Tensor]:
    """A Gauss-Newton step of the positions and the photons, each bead under the coefficients of
    its place."""
    moved, light = [], []
    for i in range(len(crops)):
        one = slice(i, i + 1)
        own = torch.tensordot(w[i], c, 1)
        place, _, bright = _place(
            own,
            psf,
            crops[one],
            start.background[one],
            noise[one],
            xyz[one],
            start.jitter[one],
            z_nm,
            photons[one],
        )
        moved.append(place)
        light.append(bright)
    return torch.cat(moved), torch.cat(light)


def _centroids(c: Tensor, psf: SplinePSF, field_nm: Field, terms: int) -> Tensor:
    """(terms, 2) nm from where the emitter is drawn to the centroid of its light at z = 0, as a
    polynomial."""
    nodes = torch.tensor(
        list(itertools.product(*(torch.linspace(low, high, 5).tolist() for low, high in field_nm)))
    )
    w = polynomials(nodes, field_nm, terms)
    middle = psf.patch_px / 2 * psf.pixel_size_nm
    at = torch.tensor([[middle, middle, 0.0]])
    image = torch.cat(
        [
            psf.with_coefficients(torch.tensordot(row, c, 1)).integrate_pixels(at).detach()
            for row in w
        ]
    )
    if terms == 1:
        return centroids(image, psf.pixel_size_nm)[:1] - middle
    # of all light, noise included: only so is it a polynomial of the place, as the coefficients are
    image = image.clamp_min(0)
    grid = (torch.arange(psf.patch_px) + 0.5) * psf.pixel_size_nm - middle
    centre = torch.stack([image.sum(1) @ grid, image.sum(2) @ grid], 1) / image.sum((1, 2))[:, None]
    return torch.linalg.lstsq(w, centre).solution


class _HeldOut:
    """Beads under the PSF that others give: every fourth is held out in turn."""

    def __init__(
        self,
        fit: BeadFit,
        crops: Tensor,
        z_nm: Tensor,
        noise: Noise,
        places: Tensor,
        field_nm: Field,
        stack: Tensor,
        smooth: tuple[float, float],
    ) -> None:
        self.z_nm, self.noise = z_nm, noise
        self.crops, self.places, self.field_nm, self.xy, self.stack = (
            crops,
            places,
            field_nm,
            fit.xyz[:, :2],
            stack,
        )
        self.smooth = smooth
        self.folds = [torch.arange(len(crops)) % FOLDS == fold for fold in range(FOLDS)]
        self.pixel_size_nm = fit.psf.pixel_size_nm
        self.starts: list[BeadFit] = []

    def fit(self) -> Steps[None]:
        """The same PSF all over, from the beads of each turn: that of all beads would tell of
        those held out."""
        for turn, out in enumerate(self.folds):
            start = fit_spline.steps(
                self.crops[~out],
                self.z_nm,
                self.noise[~out],
                self.pixel_size_nm,
                self.xy[~out],
                smoothness=self.smooth[0],
                depth_smoothness=self.smooth[1],
                stack=self.stack[~out],
                n_rounds=4,
            )
            self.starts.append((yield from part(start, turn / FOLDS, (turn + 1) / FOLDS)))

    def deviance(self, terms: int, size: float) -> Steps[Tensor]:
        """(n,) of each bead when it is held out."""
        deviance = torch.zeros(len(self.crops))
        for turn, (out, start) in enumerate(zip(self.folds, self.starts, strict=True)):
            fit = fit_field.steps(
                start,
                self.crops[~out],
                self.z_nm,
                self.noise[~out],
                self.places[~out],
                self.field_nm,
                terms=terms,
                size=size,
                smoothness=self.smooth[0],
                depth_smoothness=self.smooth[1],
                n_rounds=2,
            )
            found = yield from part(fit, turn / FOLDS, (turn + 0.8) / FOLDS)
            jitter = jitter_of(found, self.stack[~out], self.stack)
            for i in out.nonzero()[:, 0].tolist():
                one = slice(i, i + 1)
                psf = (
                    found.psf.at(*self.places[i].tolist())
                    if isinstance(found.psf, FieldSplinePSF)
                    else found.psf
                )
                placed = replace(found, psf=psf)
                crop, noise = self.crops[one], self.noise[one]
                placed = place_beads(
                    placed, crop, self.z_nm, noise, self.xy[one], jitter=jitter[one]
                )
                deviance[i] = placed.deviance
            yield Progress((turn + 1) / FOLDS)
        return deviance


def _standard_error(gain: Tensor) -> float:
    return float(gain.std()) / math.sqrt(len(gain))


def _clear(gain: Tensor) -> bool:
    return float(gain.mean()) > DECISIVE * _standard_error(gain)
