"""A GaussianPSF fitted to beads: quick work, without the PSF's wobble."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decode.calibrate.spline import BeadFit, border_background
from decode.likelihood import scaled_deviance
from decode.optics.camera import Noise
from decode.optics.gaussian import GaussianPSF
from decode.progress import Progress, Steps, Stepwise

__all__ = ["fit_gaussian"]


@Stepwise
def fit_gaussian(
    crops: Tensor, z_nm: Tensor, noise: Noise, pixel_size_nm: float, xy: Tensor, n_steps: int = 100
) -> Steps[BeadFit]:
    """Fit defocus curve, positions and brightnesses by gradient descent (L-BFGS) through the PSF.

    Args:
        crops: (n, z, y, x) measured photons, background included.
        z_nm: (z,) depth of the planes.
        noise: of the camera.
        pixel_size_nm: side of a pixel.
        xy: (n, 2) nm, about where each bead is, from the outer corner of its crop.
        n_steps: most steps of the descent.
    """
    n, planes, side, _ = crops.shape
    background = torch.stack([border_background(crop, noise[i]) for i, crop in enumerate(crops)])
    photons = (crops - background[:, None, None, None]).sum((2, 3)).clamp_min(1)
    psf = GaussianPSF(
        1.3 * pixel_size_nm,
        pixel_size_nm=pixel_size_nm,
        depth_nm=500.0,
        patch_px=side,
    )

    def fit(gap: float) -> tuple[float, list[Tensor]]:
        # sigma0, depth, gap, third, fourth, in units of which a change matters about alike
        curve = torch.tensor([1.3, 5.0, gap, 0.0, 0.0])
        unknown = [curve, torch.zeros(n, 2), torch.zeros(n, planes), background.log()]
        for u in unknown:
            u.requires_grad_()
        optimizer = torch.optim.LBFGS(
            unknown,
            max_iter=n_steps,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            lost = _deviance(
                unknown,
                psf,
                crops=crops,
                z_nm=z_nm,
                noise=noise,
                xy=xy,
                photons=photons,
            )
            lost.backward()
            return lost

        optimizer.step(closure)
        return float(closure().detach()), [u.detach() for u in unknown]

    # a descent does not always cross the round PSF between the two signs of the gap
    fits: list[tuple[float, list[Tensor]]] = []
    for gap in (2.0, -2.0):
        yield Progress(len(fits) / 2)
        fits.append(fit(gap))
    deviance, (curve, shift, light, level) = min(fits, key=lambda found: found[0])
    sigma, depth, gap, third, fourth = curve.tolist()
    return BeadFit(
        psf=GaussianPSF(
            abs(sigma) * pixel_size_nm,
            pixel_size_nm=pixel_size_nm,
            depth_nm=abs(depth) * 100,
            gap_nm=gap * 100,
            third=third,
            fourth=fourth,
            patch_px=side,
        ),
        xyz=F.pad(xy + 10 * shift, (0, 1)),
        photons=photons * (0.1 * light).exp(),
        background=level.exp(),
        jitter=torch.zeros(n, planes, 3),
        deviance=deviance,
    )


def _deviance(
    unknown: list[Tensor],
    psf: GaussianPSF,
    *,
    crops: Tensor,
    z_nm: Tensor,
    noise: Noise,
    xy: Tensor,
    photons: Tensor,
) -> Tensor:
    """Mean over the pixels, for the curve, shifts, log photons and log background in `unknown`."""
    curve, shift, light, level = unknown
    n, planes, side, _ = crops.shape
    names = {
        "psf.sigma_nm": curve[0].abs() * psf.pixel_size_nm,
        "psf.depth_nm": curve[1].abs() * 100,
        "psf.gap_nm": curve[2] * 100,
        "psf.orders": curve[3:],
    }
    xy_of_planes = (xy + 10 * shift)[:, None].expand(n, planes, 2)
    at = torch.cat([xy_of_planes, z_nm[None, :, None].expand(n, -1, 1)], 2).flatten(0, 1)
    share = torch.func.functional_call(_Image(psf), names, (at,)).view(n, planes, side, side)
    bright = photons * (0.1 * light).exp()
    expected = bright[..., None, None] * share + level.exp()[:, None, None, None]
    return scaled_deviance(crops, expected, noise).mean()


@final
class _Image(nn.Module):
    """`integrate_pixels` as a module's forward, which is what `functional_call` takes."""

    def __init__(self, psf: GaussianPSF) -> None:
        super().__init__()
        self.psf = psf

    def forward(self, xyz: Tensor) -> Tensor:
        return self.psf.integrate_pixels(xyz)
