"""A SplinePSF fitted to beads, together with where each bead sits and how bright it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, shift, spline_filter1d
from torch import Tensor
from torch.nn import functional as F

from decode.likelihood import scaled_deviance
from decode.optics.camera import Noise
from decode.optics.psf import PSF
from decode.optics.spline import SplinePSF, spline_slopes, spline_weights
from decode.progress import Progress, Steps, Stepwise, part

__all__ = [
    "BeadFit",
    "border_background",
    "centroids",
    "fit_spline",
    "held_out_deviance",
    "jitter_of",
    "place_beads",
]

KNOT_NM = 30.0
"""distance of the spline's planes: details of measured PSFs come and go over some 100 nm of
depth"""
OVERSAMPLING = 2
"""voxels along the side of a pixel: pixels alone sample a sharp PSF too coarsely to be
interpolated"""
MARGIN_PX = 2
"""by which the spline reaches further than the crops, so that a crop is covered wherever its
bead sits"""
SMOOTHNESS = (0.05, 0.1, 0.2, 0.4)
"""expected third difference of the coefficients over their size, to choose from: beads that are
held out decide"""
DEPTH_SMOOTHNESS = (0.02, 0.06, 0.2, 0.6)
"""the same along z, for planes `KNOT_NM` apart"""
FAINT = 0.05
"""of the brightest pixel, up to which light is left out of a centroid"""
SLOW_NM = 300.0
"""slower shifts over depth count as PSF, not as stage, unless other stacks disagree"""
CLEAR = 3.0
"""standard errors by which jitter must exceed the noise of the beads to be believed"""


@final
@dataclass(frozen=True, kw_only=True)
class BeadFit:
    """A PSF and the beads it was fitted to."""

    psf: PSF
    xyz: Tensor
    """(n, 3) nm, x and y from the outer corner of each crop; z is how far the bead sits above
    the mean of all"""
    photons: Tensor
    """(n, z) photons of each bead in each plane, within the patch"""
    background: Tensor
    """(n,) photons per pixel"""
    jitter: Tensor
    """(n, z, 3) nm by which the stage strayed from its nominal place; the beads of a stack share
    it"""
    deviance: float
    """mean over the pixels; about 1 where noise explains what is left"""


@Stepwise
def fit_spline(
    crops: Tensor,
    z_nm: Tensor,
    noise: Noise,
    pixel_size_nm: float,
    xy: Tensor,
    *,
    smoothness: float,
    depth_smoothness: float = DEPTH_SMOOTHNESS[1],
    stack: Tensor | None = None,
    start: BeadFit | None = None,
    n_rounds: int = 6,
) -> Steps[BeadFit]:
    """Fit coefficients, positions, brightnesses and the stage's jitter, in turns.

    With positions fixed the images are linear in the coefficients, which descend by conjugate
    gradients on the weighted squares; with coefficients fixed, positions take a Gauss-Newton step.
    Weights are the variances of the last model, so that the turns end at the maximum of the
    quasi-likelihood (Wedderburn, Biometrika 61, 439, 1974). Beads that sit differently in their
    pixels are fitted where they are and need not be resampled.  A penalty on third differences
    keeps noise out of the coefficients.  What the images cannot tell is agreed on: beads lie at z =
    0 on average, the centroid of the light at z = 0 is the emitter, and every plane holds the same
    light.

    A shift that all beads share in a plane may be the stage's or the PSF's.  Stacks have a PSF in
    common and each its
    own movement of the stage: where there are several, what differs between them is jitter.  In a
    single stack only what is independent from plane to plane is; what persists over neighbouring
    planes goes into the PSF.

    Args:
        crops: (n, z, y, x) measured photons, background included.
        z_nm: (z,) depth of the planes, evenly spaced.
        noise: of the camera.
        pixel_size_nm: side of a pixel.
        xy: (n, 2) nm, about where each bead is, from the outer corner of its crop.
        smoothness: standard deviation of the third differences over the local size of the
            coefficients; less is smoother.
        depth_smoothness: the same along z, for planes of the spline `KNOT_NM` apart.
        stack: (n,) number of the stack each bead lies in; None: all lie in one.
        start: a fit of other beads of the same microscope, to start from its coefficients.
        n_rounds: turns.
    """
    n, planes, side, _ = crops.shape
    background = torch.stack([border_background(crop, noise[i]) for i, crop in enumerate(crops)])
    signal = (crops - background[:, None, None, None]).sum((2, 3))
    photons = signal.clamp_min(0.05 * float(signal.mean()))
    spacing = float(z_nm[1] - z_nm[0])
    step = max(1, round(KNOT_NM / spacing)) * spacing
    # one plane more on either side, for beads that sit higher or lower than most
    knots = math.ceil(round(float(z_nm[-1] - z_nm[0]) / step, 6)) + 3
    patch = side + 2 * MARGIN_PX
    psf = SplinePSF(
        torch.zeros(knots, OVERSAMPLING * patch, OVERSAMPLING * patch),
        z_start_nm=float(z_nm[0]) - step,
        z_step_nm=step,
        pixel_size_nm=pixel_size_nm,
        oversampling=OVERSAMPLING,
        patch_px=patch,
    )
    c = _average(crops - background[:, None, None, None], photons, xy / pixel_size_nm, z_nm, psf)
    dim = float((noise.typical.variance(background.mean()) / photons.square().mean()).sqrt())
    size = torch.from_numpy(gaussian_filter(c.numpy(), (1, 3, 3))).clamp_min(0) + dim
    # a function whose third derivative is white noise has third differences that grow so with their
    # distance
    penalty = _Penalty(smoothness * size, depth_smoothness / smoothness * (step / KNOT_NM) ** 2.5)
    stack = (
        torch.zeros(n, dtype=torch.long) if stack is None else stack.unique(return_inverse=True)[1]
    )
    if start is not None:
        c = _spline_of(start).coefficients.detach()
    xyz, jitter = F.pad(xy, (0, 1)), torch.zeros(n, planes, 3)

    for turn in range(n_rounds):
        views = [_View(psf, xyz[i], jitter[i], z_nm, side) for i in range(n)]
        images = [view.image(c) for view in views]
        expected = torch.stack(images) * photons[..., None, None] + background[:, None, None, None]
        weight = 1 / noise.variance(expected)

        def normal(
            c: Tensor, views: list[_View] = views, w: Tensor = weight, light: Tensor = photons
        ) -> Tensor:
            total = penalty.gradient(c)
            for i, view in enumerate(views):
                total = total + view.adjoint(w[i] * light[i, :, None, None] ** 2 * view.image(c))
            return total

        right = sum(
            view.adjoint(weight[i] * photons[i, :, None, None] * (crops[i] - background[i]))
            for i, view in enumerate(views)
        )
        assert isinstance(right, Tensor)
        dense = photons.square().sum() / knots / OVERSAMPLING**2
        diagonal = (
            dense / noise.typical.variance(photons.mean() * size + background.mean())
            + penalty.diagonal
        )
        descent = _conjugate_gradients.steps(normal, right, c, diagonal, n_steps=20)
        c = yield from part(descent, turn / n_rounds, (turn + 0.9) / n_rounds)
        xyz, jitter, photons = _place(
            c, psf, crops, background, noise, xyz, jitter, z_nm, photons, stack
        )
        yield Progress((turn + 1) / n_rounds)
    expected = torch.stack(
        [
            _View(psf, xyz[i], jitter[i], z_nm, side).image(c) * photons[i, :, None, None]
            + background[i]
            for i in range(n)
        ]
    )
    deviance = float(scaled_deviance(crops, expected, noise).mean())
    return _agree(
        BeadFit(
            psf=_with_coefficients(psf, c),
            xyz=xyz,
            photons=photons,
            background=background,
            jitter=jitter,
            deviance=deviance,
        ),
        z_nm,
    )


def place_beads(
    fit: BeadFit,
    crops: Tensor,
    z_nm: Tensor,
    noise: Noise,
    xy: Tensor,
    *,
    jitter: Tensor | None = None,
    n_rounds: int = 8,
) -> BeadFit:
    """Other beads under a PSF that is not changed: where they are, how bright, and how well they
    fit.

    Args:
        fit: of the PSF.
        crops, z_nm, noise, xy: as for `fit_spline`.
        jitter: (n, z, 3) nm by which the stage strayed in their stacks; None: it did not.
        n_rounds: turns.
    """
    side = crops.shape[-1]
    psf = _spline_of(fit)
    c = psf.coefficients.detach()
    background = torch.stack([border_background(crop, noise[i]) for i, crop in enumerate(crops)])
    photons = (crops - background[:, None, None, None]).sum((2, 3)).clamp_min(1)
    xyz, strayed = (
        F.pad(xy, (0, 1)),
        crops.new_zeros(*crops.shape[:2], 3) if jitter is None else jitter,
    )
    for _ in range(n_rounds):
        xyz, _, photons = _place(c, psf, crops, background, noise, xyz, strayed, z_nm, photons)
    expected = torch.stack(
        [
            _View(psf, xyz[i], strayed[i], z_nm, side).image(c) * photons[i, :, None, None]
            + background[i]
            for i in range(len(crops))
        ]
    )
    deviance = float(scaled_deviance(crops, expected, noise).mean())
    return replace(
        fit, xyz=xyz, photons=photons, background=background, jitter=strayed, deviance=deviance
    )


def jitter_of(fit: BeadFit, fitted: Tensor, stack: Tensor) -> Tensor:
    """(m, z, 3) nm by which the stage strayed in some stacks, as the beads tell that were fitted; 0
    where none was.

    Args:
        fit: of the beads.
        fitted: (n,) number of the stack each of them lies in.
        stack: (m,) numbers of the stacks asked for.
    """
    none = torch.zeros_like(fit.jitter[0])
    return torch.stack(
        [fit.jitter[fitted == s][0] if bool((fitted == s).any()) else none for s in stack]
    )


@Stepwise
def held_out_deviance(
    crops: Tensor,
    z_nm: Tensor,
    noise: Noise,
    pixel_size_nm: float,
    xy: Tensor,
    tried: Sequence[tuple[float, float]],
    stack: Tensor | None = None,
) -> Steps[list[float]]:
    """How well beads that were not fitted are predicted, by the weights of the penalty.

    Every second bead is predicted by the others; where there are several stacks every second stack,
    of whose stage nothing is known then, so that only what stacks have in common is called good.

    Args:
        crops, z_nm, noise, pixel_size_nm, xy, stack: as for `fit_spline`.
        tried: smoothness and depth smoothness.

    Returns:
        The deviance for each of those tried.
    """
    number = (
        torch.zeros(len(crops), dtype=torch.long)
        if stack is None
        else stack.unique(return_inverse=True)[1]
    )
    held = (number if bool(number.any()) else torch.arange(len(crops))) % 2 == 1
    fitted, start = ~held, None
    result = []
    for turn, (smoothness, depth_smoothness) in enumerate(tried):
        fit = fit_spline.steps(
            crops[fitted], z_nm, noise[fitted], pixel_size_nm, xy[fitted], smoothness=smoothness,
            depth_smoothness=depth_smoothness, stack=number[fitted], start=start, n_rounds=4,
        )  # fmt: skip
        start = yield from part(fit, turn / len(tried), (turn + 0.9) / len(tried))
        jitter = jitter_of(start, number[fitted], number[held])
        result.append(
            place_beads(start, crops[held], z_nm, noise[held], xy[held], jitter=jitter).deviance
        )
        yield Progress((turn + 1) / len(tried))
    return result


class _View:
    """How the coefficients of a spline become the z-stack of one bead: weights along z, y and x.

    The stage's jitter across the plane is small and enters by the slopes.
    """

    def __init__(
        self, psf: SplinePSF, xyz: Tensor, jitter: Tensor, z_nm: Tensor, side: int
    ) -> None:
        _, height, width = psf.coefficients.shape
        step = psf.oversampling / psf.pixel_size_nm
        first = torch.arange(side, dtype=xyz.dtype) * psf.oversampling + psf.oversampling / 2 - 0.5
        self.jitter = jitter
        self.strays = bool(jitter[:, :2].any())

        def across(size: int, middle: float, position: Tensor) -> tuple[Tensor, Tensor]:
            at = first + middle - position * step
            voxel, weight = spline_weights(at)
            wide = weight.new_zeros(2, side, size + 2)
            index = (voxel + 1).clamp(0, size + 1).expand(2, -1, -1)
            value, slope = wide.scatter_add(
                2, index, torch.stack([weight, -step * spline_slopes(at)])
            )[..., 1:-1]
            return value, slope

        z = z_nm + xyz[2] + jitter[:, 2]
        self.z, self.dz = psf.along_z(z), psf.slopes_along_z(z)
        self.x, self.dx = across(width, psf.centre_px[0], xyz[0])
        self.y, self.dy = across(height, psf.centre_px[1], xyz[1])

    def image(self, c: Tensor) -> Tensor:
        """(z, y, x) fraction of light in each pixel."""
        rows = self.y @ c
        image = _mix(self.z, rows @ self.x.T)
        if not self.strays:
            return image
        shifted = self.jitter[:, 0, None, None] * _mix(self.z, rows @ self.dx.T)
        return (
            image + shifted + self.jitter[:, 1, None, None] * _mix(self.z, self.dy @ c @ self.x.T)
        )

    def adjoint(self, image: Tensor) -> Tensor:
        """The transpose of `image`."""
        if not self.strays:
            return self.y.T @ (_mix(self.z.T, image) @ self.x)
        plain, by_x, by_y = (
            _mix(self.z.T, w[:, None, None] * image)
            for w in (torch.ones(len(image)), self.jitter[:, 0], self.jitter[:, 1])
        )
        inner = self.y.T @ (plain @ self.x + by_x @ self.dx)
        return inner + self.dy.T @ (by_y @ self.x)

    def slopes(self, c: Tensor) -> Tensor:
        """(3, z, y, x) derivatives of `image` along x, y and z, per nm."""
        rows = self.y @ c
        return torch.stack(
            [
                _mix(self.z, rows @ self.dx.T),
                _mix(self.z, self.dy @ c @ self.x.T),
                _mix(self.dz, rows @ self.x.T),
            ]
        )


def _mix(weights: Tensor, planes: Tensor) -> Tensor:
    """Weighted sums of planes: (m, n) and (n, y, x) to (m, y, x)."""
    return (weights @ planes.flatten(1)).view(len(weights), *planes.shape[1:])


def _place(
    c: Tensor,
    psf: SplinePSF,
    crops: Tensor,
    background: Tensor,
    noise: Noise,
    xyz: Tensor,
    jitter: Tensor,
    z_nm: Tensor,
    photons: Tensor,
    stack: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A Gauss-Newton step of positions, photons and, given stacks, the jitter that their beads
    share."""
    n, planes, side, _ = crops.shape
    step, information = torch.zeros(n, planes, 3), torch.zeros(n, planes, 3, 3)
    light = photons.clone()
    for i in range(n):
        view = _View(psf, xyz[i], jitter[i], z_nm, side)
        image = view.image(c)
        model = photons[i, :, None, None] * image + background[i]
        weight = 1 / noise[i].variance(model)
        slope = torch.cat([photons[i, None, :, None, None] * view.slopes(c), image[None]])
        fisher = torch.einsum("izyx,jzyx,zyx->zij", slope, slope, weight)
        score = torch.einsum("izyx,zyx->zi", slope, weight * (crops[i] - model))
        scale = fisher.diagonal(dim1=1, dim2=2).clamp_min(1e-12).sqrt()
        whole = fisher / (scale[:, :, None] * scale[:, None, :]) + 1e-6 * torch.eye(4)
        change = torch.linalg.solve(whole, score / scale) / scale
        limit = torch.tensor([0.3 * psf.pixel_size_nm] * 2 + [60.0])
        step[i] = change[:, :3].clamp(-limit, limit)
        light[i] = (photons[i] + change[:, 3]).clamp_min(0.2 * photons[i])
        # what is known of the position when the photons are not
        information[i] = (
            fisher[:, :3, :3] - fisher[:, :3, 3:] * fisher[:, 3:, :3] / fisher[:, 3:, 3:]
        )
    if stack is None:
        total = information.sum(1) + 1e-9 * torch.eye(3)
        return (
            xyz + torch.linalg.solve(total, torch.einsum("nzij,nzj->ni", information, step)),
            jitter,
            light,
        )
    n_stacks = int(stack.max()) + 1

    def by_stack(values: Tensor) -> Tensor:
        return values.new_zeros(n_stacks, *values.shape[1:]).index_add(0, stack, values)

    told = by_stack(information) + 1e-9 * torch.eye(3)
    old = torch.stack([jitter[stack == s][0] for s in range(n_stacks)])
    strayed, size = torch.zeros(n_stacks, planes, 3), torch.zeros(3)
    for turn in range(10):  # by turns: beads, given the stage; the stage, given the beads
        right = torch.einsum("nzij,nzj->ni", information, step - strayed[stack])
        moved = torch.linalg.solve(information.sum(1) + 1e-9 * torch.eye(3), right)
        right = by_stack(torch.einsum("nzij,nzj->nzi", information, step - moved[:, None]))
        if not turn:
            free = old + torch.linalg.solve(told, right[..., None])[..., 0]
            size = _jitter_size(free, torch.linalg.inv(told).diagonal(dim1=2, dim2=3))
        prior = torch.diag(size.clamp_min(1e-3) ** -2)
        strayed = torch.linalg.solve(told + prior, (right - old @ prior)[..., None])[..., 0]
    jitter = torch.where(size > 0, old + strayed, 0.0)
    return xyz + moved, (jitter - _slow(jitter.mean(0), z_nm))[stack], light


def _slow(series: Tensor, z_nm: Tensor) -> Tensor:
    """The part of a (z, ...) series in cosines of periods above `SLOW_NM`."""
    n = len(series)
    modes = torch.arange(min(n, 1 + int(2 * float(z_nm[-1] - z_nm[0]) / SLOW_NM)))
    basis = torch.cos(math.pi / n * (torch.arange(n)[:, None] + 0.5) * modes)
    basis = basis / basis.norm(dim=0)
    return basis @ (basis.T @ series)


def _jitter_size(free: Tensor, variance: Tensor) -> Tensor:
    """Standard deviations of the jitter along x, y and z, as far as it surely is the stage's.

    Args:
        free: (stack, z, 3) nm by which the beads of each stack are shifted against the PSF.
        variance: (stack, z, 3) of them, nm^2, as far as it is the noise of the beads.

    Returns:
        (3,) nm: of what differs between stacks; of a single stack, whose PSF may be shifted as
        well, of what differs from plane to plane, of which third differences leave everything and
        of slow changes next to nothing.  0 where it exceeds the noise by less than three standard
        errors.
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
    return torch.where(square > CLEAR * error, square.clamp_min(0).sqrt(), 0.0)


def _agree(fit: BeadFit, z_nm: Tensor) -> BeadFit:
    """Settle what images cannot tell: the mean depth of the beads, the centre of the PSF, and
    the light of a plane."""
    psf, xyz, jitter = _spline_of(fit), fit.xyz.clone(), fit.jitter.clone()
    c = psf.coefficients.detach()
    # every plane holds the same light: what changes from plane to plane is the lamp, or a bead that
    # bleaches
    light = c.sum((1, 2)) / psf.oversampling**2
    plane, mix = psf.planes(z_nm)
    photons = fit.photons * (light[plane] * mix).sum(1)
    drift = jitter.mean(1)
    jitter -= drift[:, None]
    xyz += drift
    depth = float(xyz[:, 2].mean())
    # an emitter at depth z is seen as the stage at z - depth; a bead that needed a larger z sits
    # higher
    psf = _with_coefficients(psf, c / light[:, None, None], z_start_nm=psf.z_start_nm - depth)
    xyz[:, 2] -= depth
    middle = psf.patch_px / 2 * psf.pixel_size_nm
    image = psf.integrate_pixels(torch.tensor([[middle, middle, 0.0]])).detach()
    offset = centroids(image, psf.pixel_size_nm)[0] - middle
    xyz[:, :2] += offset
    centre = torch.tensor(psf.centre_px) + offset * psf.oversampling / psf.pixel_size_nm
    psf = _with_coefficients(
        psf, psf.coefficients.detach(), centre_px=(float(centre[0]), float(centre[1]))
    )
    return replace(fit, psf=psf, xyz=xyz, photons=photons, jitter=jitter)


def centroids(images: Tensor, pixel_size_nm: float) -> Tensor:
    """Centroids of the light of (n, y, x) images, (n, 2) x, y in nm from the outer corner.

    Only what is brighter than `FAINT` of the maximum counts, and by what it exceeds that: a PSF
    fitted to 9 beads of 3000 to 8000 photons holds noise out to its rim, which moves the centroid
    of all its light by 2 to 13 nm, and this one by 0.3 to 2 nm.
    """
    bright = (images - FAINT * images.amax((1, 2), keepdim=True)).clamp_min(0)
    y, x = ((torch.arange(side) + 0.5) * pixel_size_nm for side in images.shape[1:])
    return torch.stack([bright.sum(1) @ x, bright.sum(2) @ y], 1) / bright.sum((1, 2))[:, None]


def _spline_of(fit: BeadFit) -> SplinePSF:
    assert isinstance(fit.psf, SplinePSF)
    return fit.psf


def _with_coefficients(
    psf: SplinePSF,
    coefficients: Tensor,
    *,
    z_start_nm: float | None = None,
    centre_px: tuple[float, float] | None = None,
) -> SplinePSF:
    return SplinePSF(
        coefficients,
        z_start_nm=psf.z_start_nm if z_start_nm is None else z_start_nm,
        z_step_nm=psf.z_step_nm,
        pixel_size_nm=psf.pixel_size_nm,
        centre_px=centre_px or psf.centre_px,
        oversampling=psf.oversampling,
        patch_px=psf.patch_px,
    )


@Stepwise
def _conjugate_gradients(
    normal: Callable[[Tensor], Tensor], right: Tensor, start: Tensor, diagonal: Tensor, n_steps: int
) -> Steps[Tensor]:
    """Solve normal(x) = right from a start (Hestenes and Stiefel, J. Res. Natl. Bur. Stand. 49,
    409, 1952).

    Args:
        diagonal: about that of `normal`; directions are scaled by it.
    """
    x = start
    residual = right - normal(x)
    scaled = residual / diagonal
    direction, square = scaled, (residual * scaled).sum()
    first = square
    for step in range(n_steps):
        yield Progress(step / n_steps)
        if square <= 1e-8 * first:
            break
        image = normal(direction)
        length = square / (direction * image).sum()
        x = x + length * direction
        residual = residual - length * image
        scaled = residual / diagonal
        square, last = (residual * scaled).sum(), square
        direction = scaled + square / last * direction
    return x


@final
class _Penalty:
    """Half the sum of squared third differences along z, y and x, each over its expected size.

    Args:
        expected: (z, y, x) size of the differences along x and y.
        depth: size of those along z over that.
    """

    def __init__(self, expected: Tensor, depth: float = 1.0) -> None:
        self.differences = [
            torch.eye(size).diff(n=min(3, size - 1), dim=0) for size in expected.shape
        ]
        self.weights = []
        for axis, difference in enumerate(self.differences):
            mean = difference.abs() / difference.abs().sum(1, keepdim=True)
            self.weights.append(_along(axis, mean, expected if axis else depth * expected) ** -2)
        parts = [
            _along(a, d.T**2, w)
            for a, (d, w) in enumerate(zip(self.differences, self.weights, strict=True))
        ]
        self.diagonal = torch.stack(parts).sum(0)

    def gradient(self, c: Tensor) -> Tensor:
        total = torch.zeros_like(c)
        for axis, (difference, weight) in enumerate(
            zip(self.differences, self.weights, strict=True)
        ):
            total = total + _along(axis, difference.T, weight * _along(axis, difference, c))
        return total


def _along(axis: int, matrix: Tensor, stack: Tensor) -> Tensor:
    """A matrix applied along an axis of a (z, y, x) stack."""
    if axis == 0:
        return _mix(matrix, stack)
    return matrix @ stack if axis == 1 else stack @ matrix.T


def border_background(crop: Tensor, noise: Noise | None = None) -> Tensor:
    """Photons per pixel at the border of a (z, y, x) crop, at the depths where the bead shines
    least there."""
    border = torch.ones(crop.shape[1:], dtype=torch.bool)
    border[2:-2, 2:-2] = False
    dark = crop[:, border].clamp_min(0).median()
    weight = (
        torch.ones_like(crop[0])
        if noise is None
        else 1 / noise.variance(dark.expand_as(crop[:1]))[0]
    )
    level = (crop * weight)[:, border].sum(1) / weight[border].sum()
    # the least of a few is less than their mean: averaged over planes, it is by a third of its
    # standard deviation
    width = max(1, len(level) // 7)
    return level.unfold(0, width, 1).mean(1).min()


def _average(
    signal: Tensor, photons: Tensor, centre_px: Tensor, z_nm: Tensor, psf: SplinePSF
) -> Tensor:
    """Spline coefficients of the mean of all beads, each moved to the middle of its crop."""
    side = signal.shape[-1]
    mean = np.zeros(signal.shape[1:])
    for crop, light, (x, y) in zip(
        signal.numpy(), photons.numpy(), centre_px.tolist(), strict=True
    ):
        mean += shift(crop / light[:, None, None], (0, side / 2 - y, side / 2 - x), order=1) / len(
            signal
        )
    at = psf.z_start_nm + psf.z_step_nm * np.arange(len(psf.coefficients))
    nearest = np.abs(z_nm.numpy()[None] - at[:, None]).argmin(1)
    # pixels are repeated for the finer voxels: a start, no more
    fine = mean[nearest].repeat(psf.oversampling, 1).repeat(psf.oversampling, 2)
    margin = (np.array(psf.coefficients.shape[1:]) - fine.shape[1:]) // 2
    fine = np.pad(fine, ((0, 0), (margin[0],) * 2, (margin[1],) * 2))
    return torch.as_tensor(
        spline_filter1d(fine, order=3, axis=0, mode="mirror"), dtype=torch.get_default_dtype()
    )
