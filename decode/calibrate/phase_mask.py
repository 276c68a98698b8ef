"""Fit a free phase over the pupil, for masks that no few Zernike polynomials describe."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import cos, pi

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from decode.calibrate.pupil import PupilFit, fit_images, fit_pupil, spread
from decode.calibrate.pupil_likelihood import brightness, noise_of
from decode.optics.camera import Camera
from decode.optics.pupil import PupilPSF
from decode.progress import Progress, Steps, Stepwise, part

__all__ = ["fit_phase_mask", "refine_phase_mask"]

ROUGHNESS_RAD = 0.5
"""standard deviation of the prior on the change of phase from cell to cell"""
START_BLUR_NM = 30.0
"""blur at the start, less than that of a fit by Zernike polynomials, which attributes details of
the phase to blur"""
RATES = {
    "phase_mask_nm": 0.1,
    "xyz": 3.0,
    "blur_nm": 2.0,
    "apodization": 0.01,
    "numerical_aperture": 0.004,
}
"""learning rates of Adam: radians, nm, nm, and without unit"""


@Stepwise
def fit_phase_mask(
    stacks: Tensor,
    *,
    z_nm: Tensor,
    psf: PupilPSF,
    camera: Camera | None = None,
    free: Sequence[str] | None = None,
    max_images: int = 60,
    steps: int = 200,
) -> Steps[PupilFit]:
    """A free phase mask besides Zernike coefficients, blur and (if asked) aperture, from beads.

    The fit starts from the result of Zernike coefficients alone, and from vortices of either sense,
    which descent does not reach from a smooth phase; the best start is continued to the end.

    Args:
        stacks, z_nm, psf, camera, free, max_images: as for `fit_pupil`.
        steps: number of steps of the descent from the best start.

    Returns:
        The fit; its covariance treats the mask as known.

    Raises:
        ValueError: if shapes do not fit, or an image is not finite.
    """
    plain = fit_pupil.steps(
        stacks,
        z_nm=z_nm,
        psf=psf,
        camera=camera,
        free=free,
        max_images=max_images,
        steps=2,
    )
    zernike = yield from part(plain, 0.0, 0.1)
    beads, planes = stacks.shape[:2]
    chosen = spread(planes, max(5, max_images // beads))
    images = stacks[:, chosen].flatten(0, 1)
    source = torch.arange(beads).repeat_interleave(len(chosen))
    z = z_nm[chosen].repeat(beads)
    best: tuple[float, PupilPSF, Tensor] | None = None
    for turn, start in enumerate(_starts(zernike.psf, psf)):
        trial = _descend(
            images,
            source=source,
            z_nm=z,
            psf=start,
            xyz_nm=zernike.xyz_nm,
            camera=camera,
            free=free,
            steps=steps // 4,
        )
        found, xyz, loss = yield from part(trial, 0.1 + 0.13 * turn, 0.23 + 0.13 * turn)
        if best is None or loss < best[0]:
            best = loss, found, xyz
    assert best is not None
    whole = refine_phase_mask.steps(
        images,
        source=source,
        z_nm=z,
        psf=best[1],
        xyz_nm=best[2],
        camera=camera,
        free=free,
        steps=steps,
    )
    return (yield from part(whole, 0.49, 1.0))


@Stepwise
def refine_phase_mask(
    images: Tensor,
    *,
    source: Tensor,
    z_nm: Tensor,
    psf: PupilPSF,
    xyz_nm: Tensor,
    camera: Camera | None = None,
    free: Sequence[str] | None = None,
    steps: int = 200,
) -> Steps[PupilFit]:
    """Fit the phase mask by gradient descent, then all else with `fit_images`.

    Phase retrieval as in Ferdman et al., Opt. Express 28, 10179 (2020): every cell of the pupil has
    a phase of its own, and Adam maximizes the likelihood of the images, here the quasi-likelihood
    of `fit_images` with photons and background at their maximum.  A prior on the difference d of
    the phases of neighbouring cells, of log density (cos d - 1) / `ROUGHNESS_RAD`^2, fixes what the
    images leave open and ignores whole turns.

    Args:
        images, source, z_nm, psf, xyz_nm, camera, free: as for `fit_images`; `psf` may have no mask
            yet.
        steps: number of steps of the descent.
    """
    descent = _descend(
        images,
        source=source,
        z_nm=z_nm,
        psf=psf,
        xyz_nm=xyz_nm,
        camera=camera,
        free=free,
        steps=steps,
    )
    found, xyz, _ = yield from part(descent, 0.0, 0.8)
    rest = fit_images.steps(
        images, source=source, z_nm=z_nm, psf=found, xyz_nm=xyz, camera=camera, free=free, steps=5
    )  # fmt: skip
    return (yield from part(rest, 0.8, 1.0))


def _starts(zernike: PupilPSF, plain: PupilPSF) -> list[PupilPSF]:
    starts = []
    for psf, turns in ((zernike, 0), (plain, 1), (plain, -1)):
        start = copy.deepcopy(psf)
        y, x = _pupil(start.grid)
        radian = start.wavelength_nm / (2 * pi)
        start.phase_mask_nm = nn.Parameter(turns * torch.atan2(y, x) * radian)
        with torch.no_grad():
            start.blur_nm.fill_(START_BLUR_NM)
            start.numerical_aperture.copy_(plain.numerical_aperture)
            start.apodization.copy_(plain.apodization)
        starts.append(start)
    return starts


def _pupil(grid: int) -> tuple[Tensor, Tensor]:
    """y and x of the cells of a pupil of radius 1: (grid, grid) each."""
    at = (torch.arange(grid) + 0.5) * 2 / grid - 1
    y, x = torch.meshgrid(at, at, indexing="ij")
    return y, x


def _descend(
    images: Tensor,
    *,
    source: Tensor,
    z_nm: Tensor,
    psf: PupilPSF,
    xyz_nm: Tensor,
    camera: Camera | None,
    free: Sequence[str] | None,
    steps: int,
) -> Steps[tuple[PupilPSF, Tensor, float]]:
    """Pupil, positions (m, 3) and loss after `steps` steps of Adam."""
    psf = copy.deepcopy(psf)
    if psf.phase_mask_nm is None:
        psf.phase_mask_nm = nn.Parameter(torch.zeros(psf.grid, psf.grid))
    radian = psf.wavelength_nm / (2 * pi)
    xyz = xyz_nm.detach().clone().requires_grad_()
    known = psf.parameter_names if free is None else free
    besides = ("blur_nm", "apodization", "numerical_aperture")
    names = ("phase_mask_nm", *(name for name in besides if name in known))
    leaves = {name: getattr(psf, name) for name in names} | {"xyz": xyz}
    for leaf in leaves.values():
        leaf.requires_grad_()
    rates = RATES | {"phase_mask_nm": RATES["phase_mask_nm"] * radian}
    groups = [{"params": [leaf], "lr": rates[name]} for name, leaf in leaves.items()]
    adam = torch.optim.Adam(groups, betas=(0.9, 0.99))
    nominal = float(psf.numerical_aperture.detach())
    slope, floor = noise_of(camera)
    counted = images + floor
    inside = torch.hypot(*_pupil(psf.grid)) <= 1
    light = torch.zeros(0)
    loss = torch.zeros(())
    for step in range(steps):
        yield Progress(step / steps)
        for group, name in zip(adam.param_groups, leaves, strict=True):
            group["lr"] = rates[name] * (1 + cos(pi * step / steps)) / 2
        share = psf.integrate_pixels(xyz[source] + pad(z_nm[:, None], (2, 0)))
        light = _at_maximum(images, share.detach(), light, slope, floor)
        mean = (light[:, 0, None, None] * share + light[:, 1, None, None] + floor).clamp_min(1e-3)
        loss = (mean - counted * mean.log()).sum() / slope
        phase = psf.phase_mask_nm / radian
        for axis in (0, 1):
            both = inside.narrow(axis, 0, psf.grid - 1) & inside.narrow(axis, 1, psf.grid - 1)
            loss = loss + ((1 - phase.diff(dim=axis).cos()) * both).sum() / ROUGHNESS_RAD**2
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            psf.blur_nm.clamp_(min=1.0)
            psf.numerical_aperture.clamp_(0.85 * nominal, min(1.15 * nominal, psf.immersion_index))
    psf.numerical_aperture.requires_grad_(False)
    return psf, xyz.detach(), float(loss.detach())


def _at_maximum(images: Tensor, share: Tensor, light: Tensor, slope: float, floor: float) -> Tensor:
    """(n, 2) photons and background of images at the maximum of the quasi-likelihood.

    Each round is weighted by the expected image of the last one; weights by measured counts would
    favour dim pixels, and the descent would not follow the gradient of its loss.
    """
    if not len(light):
        light = brightness(images, share, slope, floor)
    design = torch.stack([share, torch.ones_like(share)], -1).flatten(1, 2)
    for _ in range(2):
        mean = light[:, 0, None, None] * share + light[:, 1, None, None] + floor
        weighted = design / mean.clamp_min(1e-3).flatten(1)[..., None]
        data = images.flatten(1)[..., None]
        light = torch.linalg.solve(weighted.mT @ design, weighted.mT @ data)[..., 0]
        light = torch.stack([light[:, 0].clamp_min(1), light[:, 1].clamp_min(0)], 1)
    return light
