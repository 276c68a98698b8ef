"""Fit a PupilPSF to images of beads: aberrations that all share, and where and how bright each
image is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, pi, sin
from typing import final

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

from decode.optics.camera import DARKEST, Camera, Noise
from decode.optics.pupil import PupilPSF
from decode.progress import Progress, Steps, Stepwise, part

__all__ = ["PupilFit", "brightness", "fit_images", "fit_pupil", "noise_of", "spread"]

START_NM = 70.0
"""astigmatism tried at the start, nm rms: of either sign, upright and oblique, and none"""


@final
@dataclass(frozen=True, kw_only=True)
class PupilFit:
    """What `fit_images` found.  The quasi-likelihood's curvature gives the covariance, widened
    by the misfit."""

    psf: PupilPSF
    """the fitted pupil"""
    names: tuple[str, ...]
    """what was fitted of the pupil, in the order of `covariance`: names of
    `psf.parameter_names`, numerical_aperture"""
    covariance: Tensor
    """(p, p) of the pupil's parameters, everything else being unknown too"""
    xyz_nm: Tensor
    """(sources, 3) from the outer corner of the crop; z is added to that of the plane"""
    photons: Tensor
    """(images,) photons of the whole spot, before quantum efficiency"""
    background: Tensor
    """(images,) photons per pixel"""
    misfit: float
    """mean squared residual over its expected variance; 1 if noise explains all"""
    loss: float
    """negative quasi-log-likelihood, up to a constant of the images"""

    def __getitem__(self, name: str) -> tuple[float, float]:
        """Value and standard deviation of one of the pupil's parameters."""
        deviation = float(self.covariance.diagonal()[self.names.index(name)].clamp_min(0).sqrt())
        if name == "numerical_aperture":
            return float(self.psf.numerical_aperture), deviation
        return float(_parameters(self.psf)[self.psf.parameter_names.index(name)]), deviation


@Stepwise
def fit_pupil(
    stacks: Tensor,
    *,
    z_nm: Tensor,
    psf: PupilPSF,
    camera: Camera | None = None,
    free: Sequence[str] | None = None,
    max_images: int = 60,
    steps: int = 12,
) -> Steps[PupilFit]:
    """Aberrations, blur and (if asked) aperture from bead stacks, by maximum quasi-likelihood.

    A through-focus stack gives the sign of an aberration only relative to the direction of z, which
    must be right: a stack counted backwards gives the mirrored pupil and fits as well.  The
    aberrations of `psf` are where the fit starts, with astigmatism of either sign and direction
    tried besides.

    Args:
        stacks: (bead, z, y, x) photons before quantum efficiency, in square crops around each bead.
        z_nm: (z,) of the planes.
        psf: the microscope as far as known: aperture, wavelength, indices, `patch_px` = side of the
            crops.
        camera: gives the noise (of maps, the median); None: only photons are noisy.
        free: names of what is fitted, of `psf.parameter_names` and "numerical_aperture" (stays
            within 15 %); None: all but the aperture.
        max_images: planes are thinned out evenly until there are no more images than this.
        steps: largest number of steps of the final fit.

    Returns:
        The fit; `photons` and `background` belong to the planes used, source by source.

    Raises:
        ValueError: if shapes do not fit, or an image is not finite.
    """
    if stacks.ndim != 4 or stacks.shape[1] != len(z_nm):
        raise ValueError(
            f"the stacks have shape {tuple(stacks.shape)}, expected (bead, {len(z_nm)} planes, y, "
            "x)"
        )
    beads, planes = stacks.shape[:2]
    if planes < 5:
        raise ValueError(f"{planes} planes do not determine aberrations, at least 5 are needed")
    if stacks.shape[2:] != (psf.patch_px, psf.patch_px):
        raise ValueError(
            f"the crops are {tuple(stacks.shape[2:])} pixels, the PSF's patch is {psf.patch_px} "
            "wide"
        )
    if not bool(torch.isfinite(stacks).all()):
        raise ValueError("the stacks hold values that are not finite")
    xyz = _start(stacks, z_nm, psf)

    def fit(
        start: PupilPSF, chosen: Tensor, planes: Tensor, xyz: Tensor, steps: int
    ) -> Steps[PupilFit]:
        return fit_images.steps(
            stacks[chosen][:, planes].flatten(0, 1),
            source=torch.arange(len(chosen)).repeat_interleave(len(planes)),
            z_nm=z_nm[planes].repeat(len(chosen)),
            psf=start,
            xyz_nm=xyz,
            camera=camera,
            free=free,
            steps=steps,
        )

    every = torch.arange(beads)
    middling = stacks.sum((1, 2, 3)).sort().indices[beads // 2, None]
    starts, coarse = _starts(psf), []
    for turn, start in enumerate(starts):
        one = fit(start, middling, spread(planes, 15), xyz[middling], 5)
        coarse.append(
            (yield from part(one, 0.5 * turn / len(starts), 0.5 * (turn + 1) / len(starts)))
        )
    best = min(coarse, key=lambda found: found.loss)
    xyz = xyz + (best.xyz_nm - xyz[middling])
    whole = fit(best.psf, every, spread(planes, max(5, max_images // beads)), xyz, steps)
    return (yield from part(whole, 0.5, 1.0))


@Stepwise
def fit_images(
    images: Tensor,
    *,
    source: Tensor,
    z_nm: Tensor,
    psf: PupilPSF,
    xyz_nm: Tensor,
    camera: Camera | None = None,
    free: Sequence[str] | None = None,
    prior_nm: float = 100.0,
    steps: int = 20,
) -> Steps[PupilFit]:
    """Fit the pupil that all images share, x, y, z of each source, photons and background of each
    image.

    Fisher scoring of the quasi-likelihood (Wedderburn, Biometrika 61, 439, 1974) with the damping
    of Levenberg and Marquardt.  Whatever belongs to one image, then to one source, is eliminated
    from the normal equations (Schur's complement), so their cost goes with the number of images.

    Args:
        images: (n, y, x) photons before quantum efficiency.
        source: (n,) int64, which of the m sources an image shows.
        z_nm: (n,) of the image's plane, added to the source's z.
        psf: where the pupil starts; stays as it is.
        xyz_nm: (m, 3) where the sources start, from the outer corner of the crop.
        camera: gives the noise; None: only photons are noisy.
        free: names of what is fitted, of `psf.parameter_names` and "numerical_aperture" (stays
            within 15 %); None: all but the aperture.  Of none, only positions and light are fitted.
        prior_nm: standard deviation of a Gaussian prior on every Zernike coefficient, about 0.
        steps: largest number of steps.

    Returns:
        The fit.

    Raises:
        ValueError: if shapes do not fit, or an image is not finite.
    """
    side = psf.patch_px
    if images.ndim != 3 or images.shape[1:] != (side, side):
        raise ValueError(
            f"the images have shape {tuple(images.shape)}, expected (n, {side}, {side}) as the "
            "PSF's patch"
        )
    if not bool(torch.isfinite(images).all()):
        raise ValueError("the images hold values that are not finite")
    psf = copy.deepcopy(psf)
    dtype = images.dtype
    slope, floor = noise_of(camera)

    modes = len(psf.modes)
    known = (*psf.parameter_names, "numerical_aperture")
    names = psf.parameter_names if free is None else tuple(free)
    if unknown := set(names) - set(known):
        raise ValueError(
            f"{sorted(unknown)} are no parameters of this pupil, choose from {', '.join(known)}"
        )
    p = len(names)
    # of a row of all that is known, what is fitted
    choose = torch.eye(len(known), dtype=dtype)[[known.index(name) for name in names]]
    theta = torch.cat([_parameters(psf), psf.numerical_aperture[None]]).detach().to(dtype)
    nominal = float(psf.numerical_aperture)
    lowest, highest = torch.full_like(theta, -torch.inf), torch.full_like(theta, torch.inf)
    lowest[modes] = 0
    lowest[-1], highest[-1] = 0.85 * nominal, min(1.15 * nominal, psf.immersion_index)
    if "blur_nm" in names:
        theta[modes] = theta[modes].clamp_min(20.0)  # at 0 the slope is 0
    # a weak prior holds what the images leave open
    precision = torch.zeros(len(known), dtype=torch.float64)
    precision[:modes] = prior_nm**-2
    fitted = choose.double()
    xyz = xyz_nm.detach().to(dtype).clone()
    sources = len(xyz)
    counted = images.double() + floor
    with_aperture = _FreeAperture(psf)

    def model(theta: Tensor, position: Tensor) -> Tensor:
        rows = theta[:-1].expand(len(position), len(theta) - 1)
        if "numerical_aperture" in names:
            return functional_call(
                with_aperture, {"psf.numerical_aperture": theta[-1]}, (position, rows)
            )
        return psf.integrate_pixels(position, rows)

    def at(xyz: Tensor) -> Tensor:
        position = xyz[source].clone()
        position[:, 2] += z_nm.to(dtype)
        return position

    def loss_of(theta: Tensor, light: Tensor, share: Tensor) -> float:
        mean = (light[:, 0, None, None] * share + light[:, 1, None, None] + floor).clamp_min(1e-3)
        likelihood = float((mean - counted * mean.log()).sum()) / slope
        return likelihood + float((precision * theta.double() ** 2).sum()) / 2

    def shares(theta: Tensor, xyz: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([model(theta, part) for part in at(xyz).split(32)]).double()

    share = shares(theta, xyz)
    light = brightness(images.double(), share, slope, floor)
    loss = loss_of(theta, light, share)
    damping = 1e-2
    for turn in range(steps):
        yield Progress(turn / steps)
        reduced, score, back = _normal_equations(
            model, theta, choose, at(xyz), images, light, slope, floor
        )
        whole, gradient, inner = _eliminate_sources(reduced, score, source, sources, p, damping)
        whole = whole + fitted @ precision.diag() @ fitted.mT
        gradient = gradient - fitted @ (precision * theta.double())
        gained = 0.0
        for _ in range(6):
            change = _inverse(whole + damping * whole.diagonal().diag()) @ gradient
            shift = inner(change)
            trial = torch.minimum(
                torch.maximum(theta + (change @ fitted).to(dtype), lowest), highest
            )
            moved = xyz + shift.clamp(-200, 200).to(dtype)
            step = torch.cat([change.expand(len(source), p), shift[source]], 1)
            lit = light + back(step)
            lit[:, 0] = lit[:, 0].clamp_min(1)
            share = shares(trial, moved)
            trial_loss = loss_of(trial, lit, share)
            if trial_loss < loss:
                gained, loss = loss - trial_loss, trial_loss
                theta, xyz, light = trial, moved, lit
                damping = max(damping / 10, 1e-6)
                break
            damping *= 10
        if gained < 0.2 + 1e-7 * abs(
            loss
        ):  # a fraction of a standard deviation, or float32's last digit
            break

    reduced, _, _ = _normal_equations(model, theta, choose, at(xyz), images, light, slope, floor)
    whole, _, _ = _eliminate_sources(
        reduced, torch.zeros_like(reduced[..., 0]), source, sources, p, 0.0
    )
    share = shares(theta, xyz)
    mean = light[:, 0, None, None] * share + light[:, 1, None, None]
    misfit = float(((images - mean) ** 2 / (slope * (mean + floor).clamp_min(1e-3))).mean())
    covariance = _inverse(whole + fitted @ precision.diag() @ fitted.mT) * max(1.0, misfit)
    with torch.no_grad():
        psf.zernike_nm.copy_(theta[:modes])
        psf.blur_nm.copy_(theta[modes])
        psf.apodization.copy_(theta[modes + 1])
        if "numerical_aperture" in names:
            psf.numerical_aperture.copy_(theta[-1])
    return PupilFit(
        psf=psf,
        names=names,
        covariance=covariance,
        xyz_nm=xyz,
        photons=light[:, 0].to(dtype),
        background=light[:, 1].to(dtype),
        misfit=misfit,
        loss=loss,
    )


def noise_of(camera: Camera | None) -> tuple[float, float]:
    """(slope, floor) of the variance slope * (mean + floor) of a median pixel; None: only
    photons are noisy."""
    noise = Noise(1.0, 0.0) if camera is None else camera.typical_noise
    slope = float(noise.excess)
    # an image of few photons has variance even where none is expected
    return slope, float(noise.floor) / slope + DARKEST


class _FreeAperture(nn.Module):
    """`integrate_pixels` as a module's forward, which is what `functional_call` takes."""

    def __init__(self, psf: PupilPSF) -> None:
        super().__init__()
        self.psf = psf

    def forward(self, xyz: Tensor, parameters: Tensor) -> Tensor:
        return self.psf.integrate_pixels(xyz, parameters)


def _parameters(psf: PupilPSF) -> Tensor:
    """The pupil's own row of `parameter_names`: (p,)."""
    return torch.cat([psf.zernike_nm, psf.blur_nm[None], psf.apodization[None]]).detach()


def spread(n: int, most: int) -> Tensor:
    """At most `most` indices below n, evenly spread."""
    return torch.linspace(0, n - 1, min(n, most)).round().long()


def _starts(psf: PupilPSF) -> list[PupilPSF]:
    """The pupil itself, and with astigmatism of either sign along the axes and the diagonals, as
    far as it has it."""
    starts = [psf]
    angles = [pi / 2 * i for i in range(4)]
    for angle in angles:
        start = copy.deepcopy(psf)
        added = {(2, 2): START_NM * cos(angle), (2, -2): START_NM * sin(angle)}
        if all(mode in psf.modes or abs(value) < 1e-6 for mode, value in added.items()):
            with torch.no_grad():
                for mode, value in added.items():
                    if mode in psf.modes:
                        start.zernike_nm[psf.modes.index(mode)] += value
            starts.append(start)
    return starts


def _start(stacks: Tensor, z_nm: Tensor, psf: PupilPSF) -> Tensor:
    """Where each bead is, roughly: the centroid of its sharpest plane, in focus there; (bead, 3)
    nm."""
    border = torch.ones(stacks.shape[-2:], dtype=torch.bool)
    border[1:-1, 1:-1] = False
    dark = stacks[..., border].median(-1).values
    light = (stacks - dark[..., None, None]).clamp_min(0)
    # the sum of squares over the square of the sum peaks in focus, whatever the brightness
    sharp = light.square().sum((2, 3)) / light.sum((2, 3)).clamp_min(1e-6) ** 2
    width = max(1, stacks.shape[1] // 20)
    smooth = torch.nn.functional.avg_pool1d(
        sharp[:, None], 2 * width + 1, 1, width, count_include_pad=False
    )[:, 0]
    plane = smooth.argmax(1)
    focus = light[torch.arange(len(stacks)), plane]
    at = (torch.arange(stacks.shape[-1], dtype=stacks.dtype) + 0.5) * psf.pixel_size_nm
    total = focus.sum((1, 2)).clamp_min(1e-6)
    x, y = (focus.sum(1) * at).sum(1) / total, (focus.sum(2) * at).sum(1) / total
    return torch.stack([x, y, -z_nm.to(stacks.dtype)[plane]], 1) - psf.offset_nm.to(stacks.dtype)


def brightness(images: Tensor, share: Tensor, slope: float, floor: float) -> Tensor:
    """Photons and background of each image (n, y, x) by weighted least squares, given the share
    (n, y, x): (n, 2)."""
    weight = 1 / (
        slope * (images.clamp_min(0) + floor + images.clamp_min(0).mean((1, 2), keepdim=True))
    )
    design = torch.stack([share, torch.ones_like(share)], -1).flatten(1, 2)
    weighted = design * weight.flatten(1)[..., None]
    light = torch.linalg.solve(weighted.mT @ design, (weighted.mT @ images.flatten(1)[..., None]))[
        ..., 0
    ]
    return torch.stack([light[:, 0].clamp_min(1), light[:, 1].clamp_min(0)], 1)


def _normal_equations(
    model: Callable[[Tensor, Tensor], Tensor],
    theta: Tensor,
    choose: Tensor,
    position: Tensor,
    images: Tensor,
    light: Tensor,
    slope: float,
    floor: float,
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Information and score of pupil and position of each image, its photons and background
    eliminated.

    Returns:
        (n, p + 3, p + 3), (n, p + 3), and what gives the step of (photons, background) for a step
        of the others.
    """
    p = len(choose)
    information, score, coupling, own = [], [], [], []
    for chosen in torch.arange(len(images)).split(32):
        here = position[chosen]

        def moved(step: Tensor, here: Tensor = here) -> Tensor:
            return model(theta + step[:p] @ choose, here + step[p:])

        def slope_along(axis: Tensor, moved: Callable[[Tensor], Tensor] = moved) -> Tensor:
            return jvp(moved, (torch.zeros_like(axis),), (axis,))[1]

        axes = torch.eye(p + 3, dtype=theta.dtype, device=theta.device)
        with torch.no_grad():
            slopes = vmap(slope_along, out_dims=-1, chunk_size=5)(axes).double()
            share = model(theta, here).double()
        photons, background = light[chosen, 0, None, None], light[chosen, 1, None, None]
        mean = photons * share + background
        weight = 1 / (slope * (mean + floor).clamp_min(1e-3)).flatten(1)
        outer = (slopes * photons[..., None]).flatten(1, 2)
        inner = torch.stack([share, torch.ones_like(share)], -1).flatten(1, 2)
        residual = (weight * (images[chosen].double() - mean).flatten(1))[..., None]
        weighted = outer * weight[..., None]
        cross = weighted.mT @ inner
        solve = torch.linalg.inv(inner.mT @ (inner * weight[..., None]))
        light_score = inner.mT @ residual
        information.append(weighted.mT @ outer - cross @ solve @ cross.mT)
        score.append((outer.mT @ residual - cross @ solve @ light_score)[..., 0])
        coupling.append(solve @ cross.mT)
        own.append((solve @ light_score)[..., 0])
    couplings, owns = torch.cat(coupling), torch.cat(own)

    def back(step: Tensor) -> Tensor:
        return owns - (couplings @ step[..., None])[..., 0]

    return torch.cat(information), torch.cat(score), back


def _eliminate_sources(
    information: Tensor, score: Tensor, source: Tensor, sources: int, p: int, damping: float
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Information and score of the pupil alone, and what gives the positions' step (m, 3) for
    the pupil's (p,)."""
    size = p + 3
    total = information.new_zeros(sources, size, size).index_add(0, source, information)
    slope = score.new_zeros(sources, size).index_add(0, source, score)
    own = total[:, p:, p:]
    own = own + (damping + 1e-9) * torch.diag_embed(own.diagonal(dim1=1, dim2=2) + 1e-12)
    solve = torch.linalg.inv(own)
    coupling = solve @ total[:, p:, :p]
    alone = (solve @ slope[:, p:, None])[..., 0]
    whole = (total[:, :p, :p] - total[:, :p, p:] @ coupling).sum(0)
    gradient = (slope[:, :p] - (total[:, :p, p:] @ alone[..., None])[..., 0]).sum(0)

    def inner(change: Tensor) -> Tensor:
        return alone - coupling @ change

    return whole, gradient, inner


def _inverse(matrix: Tensor) -> Tensor:
    """Inverse after scaling to a unit diagonal: units of nm and apertures differ by orders of
    magnitude."""
    scale = matrix.diagonal().clamp_min(1e-12).sqrt()
    outer = scale[:, None] * scale
    return torch.linalg.pinv(matrix / outer, hermitian=True) / outer if len(matrix) else matrix
