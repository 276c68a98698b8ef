"""Fit a PupilPSF to images of beads: shared aberrations, and position and brightness of each
image."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from decode.calibrate.pupil_likelihood import FreeParameters, PupilLikelihood, parameters_of
from decode.optics.camera import Camera
from decode.optics.pupil import PupilPSF
from decode.progress import Progress, Steps, Stepwise, part

__all__ = ["PupilFit", "fit_images", "fit_pupil", "spread"]

START_NM = 70.0
"""astigmatism of the starts, nm rms: either sign, vertical and oblique, and none"""


@final
@dataclass(frozen=True, kw_only=True)
class PupilFit:
    """The result of `fit_images`.  The covariance is that of the quasi-likelihood's curvature,
    scaled by the misfit."""

    psf: PupilPSF
    """the fitted pupil"""
    names: tuple[str, ...]
    """fitted parameters of the pupil, in the order of `covariance`: names of `psf.parameter_names`,
    numerical_aperture"""
    covariance: Tensor
    """(p, p) covariance of the pupil's parameters, with everything else unknown"""
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
        return float(parameters_of(self.psf)[self.psf.parameter_names.index(name)]), deviation


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
    must be right: a stack in reverse order gives the mirrored pupil and fits as well.  The fit
    starts from the aberrations of `psf`, and from astigmatism of either sign and direction.

    Args:
        stacks: (bead, z, y, x) photons before quantum efficiency, in square crops around each bead.
        z_nm: (z,) depths of the planes.
        psf: the microscope as far as it is known: aperture, wavelength, indices; its `patch_px` is
            the side of the crops.
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
        start: PupilPSF, chosen: Tensor, planes: Tensor, *, xyz: Tensor, steps: int
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
        one = fit(start, middling, spread(planes, 15), xyz=xyz[middling], steps=5)
        done, after = 0.5 * turn / len(starts), 0.5 * (turn + 1) / len(starts)
        coarse.append((yield from part(one, done, after)))
    best = min(coarse, key=lambda found: found.loss)
    xyz = xyz + (best.xyz_nm - xyz[middling])
    some = spread(planes, max(5, max_images // beads))
    whole = fit(best.psf, every, some, xyz=xyz, steps=steps)
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
    of Levenberg and Marquardt.  The unknowns of each image, then of each source, are eliminated
    from the normal equations (Schur complement), so their cost scales with the number of images.

    Args:
        images: (n, y, x) photons before quantum efficiency.
        source: (n,) int64, which of the m sources an image shows.
        z_nm: (n,) of the image's plane, added to the source's z.
        psf: start of the pupil; it is not changed.
        xyz_nm: (m, 3) positions at which the sources start, from the outer corner of the crop.
        camera: gives the noise; None: only photons are noisy.
        free: names of what is fitted, of `psf.parameter_names` and "numerical_aperture" (stays
            within 15 %); None: all but the aperture.  With no names, only positions and light are
            fitted.
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
    free_parameters = FreeParameters(psf, free, prior_nm=prior_nm, dtype=images.dtype)
    likelihood = PupilLikelihood(
        images, source=source, z_nm=z_nm, psf=psf, camera=camera, free=free_parameters
    )
    state, damping = likelihood.start(xyz_nm), 1e-2
    for turn in range(steps):
        yield Progress(turn / steps)
        better, damping = likelihood.step(state, damping)
        gained, state = state.loss - better.loss, better
        # a fraction of a standard deviation, or float32's last digit
        if gained < 0.2 + 1e-7 * abs(state.loss):
            break
    misfit = likelihood.misfit(state)
    covariance = likelihood.covariance(state) * max(1.0, misfit)
    free_parameters.put_into(psf, state.row)
    return PupilFit(
        psf=psf,
        names=free_parameters.names,
        covariance=covariance,
        xyz_nm=state.xyz,
        photons=state.light[:, 0].to(images.dtype),
        background=state.light[:, 1].to(images.dtype),
        misfit=misfit,
        loss=state.loss,
    )


def spread(n: int, most: int) -> Tensor:
    """At most `most` indices below n, evenly spread."""
    return torch.linspace(0, n - 1, min(n, most)).round().long()


def _starts(psf: PupilPSF) -> list[PupilPSF]:
    """The pupil itself, and with astigmatism of either sign along axes and diagonals, if it has
    these modes."""
    starts = [psf]
    for angle in (0, pi / 2, pi, 3 * pi / 2):
        added = {(2, 2): START_NM * cos(angle), (2, -2): START_NM * sin(angle)}
        within = {mode: nm for mode, nm in added.items() if abs(nm) > 1e-6}
        if not within.keys() <= set(psf.modes):
            continue
        start = copy.deepcopy(psf)
        with torch.no_grad():
            for mode, nm in within.items():
                start.zernike_nm[psf.modes.index(mode)] += nm
        starts.append(start)
    return starts


def _start(stacks: Tensor, z_nm: Tensor, psf: PupilPSF) -> Tensor:
    """(bead, 3) approximate position of each bead, nm: the centroid of its sharpest plane, at that
    depth."""
    border = torch.ones(stacks.shape[-2:], dtype=torch.bool)
    border[1:-1, 1:-1] = False
    dark = stacks[..., border].median(-1).values
    light = (stacks - dark[..., None, None]).clamp_min(0)
    # the sum of squares over the square of the sum peaks in focus, whatever the brightness
    sharp = light.square().sum((2, 3)) / light.sum((2, 3)).clamp_min(1e-6) ** 2
    width = max(1, stacks.shape[1] // 20)
    smooth = avg_pool1d(sharp[:, None], 2 * width + 1, 1, width, count_include_pad=False)
    plane = smooth[:, 0].argmax(1)
    focus = light[torch.arange(len(stacks)), plane]
    at = (torch.arange(stacks.shape[-1], dtype=stacks.dtype) + 0.5) * psf.pixel_size_nm
    total = focus.sum((1, 2)).clamp_min(1e-6)
    x, y = (focus.sum(1) * at).sum(1) / total, (focus.sum(2) * at).sum(1) / total
    return torch.stack([x, y, -z_nm.to(stacks.dtype)[plane]], 1) - psf.offset_nm.to(stacks.dtype)
