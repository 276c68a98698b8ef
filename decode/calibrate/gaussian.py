"""A GaussianPSF fitted to beads: fast, but without the PSF's wobble."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decode.calibrate.bead_fit import BeadFit
from decode.calibrate.beads import BeadSet
from decode.likelihood import scaled_deviance
from decode.optics.gaussian import GaussianPSF
from decode.progress import Progress, Steps, Stepwise

__all__ = ["fit_gaussian"]


@Stepwise
def fit_gaussian(beads: BeadSet, *, n_steps: int = 100) -> Steps[BeadFit[GaussianPSF]]:
    """Fit defocus curve, positions and brightnesses by gradient descent (L-BFGS) through the PSF.

    Args:
        beads: to fit.
        n_steps: most steps of the descent.
    """
    n, planes, side, _ = beads.crops.shape
    pixel = beads.pixel_size_nm
    background = beads.backgrounds()
    photons = (beads.crops - background[:, None, None, None]).sum((2, 3)).clamp_min(1)
    psf = GaussianPSF(1.3 * pixel, pixel_size_nm=pixel, depth_nm=500.0, patch_px=side)

    def fit(gap: float) -> tuple[float, list[Tensor]]:
        # sigma0, depth, gap, third, fourth, in units in which changes matter about equally
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
            lost = _deviance(unknown, psf, beads, photons)
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
            abs(sigma) * pixel,
            pixel_size_nm=pixel,
            depth_nm=abs(depth) * 100,
            gap_nm=gap * 100,
            third=third,
            fourth=fourth,
            patch_px=side,
        ),
        xyz=F.pad(beads.xy + 10 * shift, (0, 1)),
        photons=photons * (0.1 * light).exp(),
        background=level.exp(),
        jitter=torch.zeros(n, planes, 3),
        deviance=deviance,
    )


def _deviance(unknown: list[Tensor], psf: GaussianPSF, beads: BeadSet, photons: Tensor) -> Tensor:
    """Mean deviance over the pixels.

    Args:
        unknown: curve, shifts, log photons and log background.
        psf: gives patch and pixels.
        beads: to fit.
        photons: (n, z) unit of the photons, which log photons of 0 stand for.
    """
    curve, shift, light, level = unknown
    n, planes, side, _ = beads.crops.shape
    names = {
        "psf.sigma_nm": curve[0].abs() * psf.pixel_size_nm,
        "psf.depth_nm": curve[1].abs() * 100,
        "psf.gap_nm": curve[2] * 100,
        "psf.orders": curve[3:],
    }
    xy_of_planes = (beads.xy + 10 * shift)[:, None].expand(n, planes, 2)
    at = torch.cat([xy_of_planes, beads.z_nm[None, :, None].expand(n, -1, 1)], 2).flatten(0, 1)
    share = torch.func.functional_call(_Image(psf), names, (at,)).view(n, planes, side, side)
    bright = photons * (0.1 * light).exp()
    expected = bright[..., None, None] * share + level.exp()[:, None, None, None]
    return scaled_deviance(beads.crops, expected, beads.noise).mean()


@final
class _Image(nn.Module):
    """`integrate_pixels` as a module's forward, which is what `functional_call` takes."""

    def __init__(self, psf: GaussianPSF) -> None:
        super().__init__()
        self.psf = psf

    def forward(self, xyz: Tensor) -> Tensor:
        return self.psf.integrate_pixels(xyz)
