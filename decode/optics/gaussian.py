"""GaussianPSF: a Gaussian integrated over the pixel, round or astigmatic."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor, nn

from decode.devices import constant
from decode.optics.psf import PSF, Table

__all__ = ["GaussianPSF", "core_fraction", "gaussian_centre_nm", "gaussian_width_px"]

FITTED_PX = 9
"""side of the window in which a Gaussian is fitted, pixels"""
CENTRING_STEPS = 6
"""Gauss-Newton steps of the fit of the centre"""


@final
class GaussianPSF(PSF):
    """A Gaussian whose widths follow the defocus curve of Huang et al., Science 319, 810 (2008),
    eq. S1.

    With t = (z - gap) / depth for x and t = (z + gap) / depth for y,
    sigma(z) = sigma0 * sqrt(1 + t^2 + third * t^3 + fourth * t^4).
    A gap of 0 and no higher orders make it round; an infinite depth makes it the same at every z.

    Args:
        sigma_nm: width in focus (standard deviation), nm.
        depth_nm: focal depth; at this defocus the width has grown by sqrt(2); infinite: at none.
        gap_nm: half the distance between the focal planes of x and y; positive: x is sharp at z >
            0.
        third, fourth: higher orders of the curve, without unit.
        pixel_size_nm: side of a pixel, nm.
        patch_px: side of the patch drawn around an emitter; an odd number, 8 sigma keeps all but
            1e-4 of the light.

    Raises:
        ValueError: if a width, a depth or the pixel size is not positive.

    Example:
        >>> psf = GaussianPSF(130.0, pixel_size_nm=100.0, depth_nm=400.0, gap_nm=250.0)
        >>> psf.widths(torch.tensor([-250.0, 250.0])).round().tolist()
        [[208.0, 130.0], [130.0, 208.0]]
        >>> middle = torch.tensor([[1050.0, 1050.0, 0.0]])  # nm, in a patch of 21 x 21 pixels
        >>> psf.integrate_pixels(middle).shape
        torch.Size([1, 21, 21])
    """

    kind = "gaussian"
    free_width = True
    parameter_names = ("sigma_nm",)

    def __init__(
        self,
        sigma_nm: float,
        *,
        pixel_size_nm: float,
        depth_nm: float = torch.inf,
        gap_nm: float = 0.0,
        third: float = 0.0,
        fourth: float = 0.0,
        patch_px: int = 21,
    ) -> None:
        super().__init__(pixel_size_nm, patch_px)
        if not (sigma_nm > 0 and depth_nm > 0):
            raise ValueError(f"sigma_nm ({sigma_nm}) and depth_nm ({depth_nm}) must be positive")
        self.sigma_nm = nn.Parameter(torch.tensor(float(sigma_nm)))
        self.depth_nm = nn.Parameter(torch.tensor(float(depth_nm)))
        self.gap_nm = nn.Parameter(torch.tensor(float(gap_nm)))
        self.orders = nn.Parameter(torch.tensor([float(third), float(fourth)]))

    @property
    def z_range_nm(self) -> tuple[float, float] | None:
        depth = float(self.depth_nm.detach()) + abs(float(self.gap_nm.detach()))
        return (-depth, depth) if math.isfinite(depth) else None

    def settings(self) -> dict[str, Any]:
        third, fourth = self.orders.tolist()
        names = ("sigma_nm", "depth_nm", "gap_nm")
        numbers = {name: float(getattr(self, name).detach()) for name in names}
        return super().settings() | numbers | {"third": third, "fourth": fourth}

    def widths(self, z: Tensor, parameters: Tensor | None = None) -> Tensor:
        """Standard deviations in x and y at depth z.

        Args:
            z: (n,) nm.
            parameters: (n, 1) sigma_nm per emitter, or None.

        Returns:
            (n, 2) nm.
        """
        sigma = self.sigma_nm if parameters is None else parameters[:, :1]
        t = torch.stack([z - self.gap_nm, z + self.gap_nm], 1) / self.depth_nm
        curve = 1 + t**2 + self.orders[0] * t**3 + self.orders[1] * t**4
        # a cubic term may turn the curve down far from focus, where no light was ever measured
        return sigma * torch.sqrt(curve.clamp_min(0.05))

    def _widening(self, z: Tensor, parameters: Tensor | None) -> Tensor:
        """(n, 2) slope of `widths` by z."""
        sigma = self.sigma_nm if parameters is None else parameters[:, :1]
        t = torch.stack([z - self.gap_nm, z + self.gap_nm], 1) / self.depth_nm
        width = self.widths(z, parameters)
        slope = (
            sigma**2
            * (2 * t + 3 * self.orders[0] * t**2 + 4 * self.orders[1] * t**3)
            / (2 * self.depth_nm * width)
        )
        return torch.where(width**2 > 0.05 * sigma**2, slope, 0.0)

    def integrate_pixels(self, xyz: Tensor, parameters: Tensor | None = None) -> Tensor:
        edges = (
            torch.arange(self.patch_px + 1, device=xyz.device, dtype=xyz.dtype) * self.pixel_size_nm
        )
        width = self.widths(xyz[:, 2], parameters)[:, :, None]
        # erf differences, not the density at the centre: pixels are as wide as the PSF's sigma
        fractions: Tensor = torch.special.ndtr((edges - xyz[:, :2, None]) / width).diff(dim=-1)
        return fractions[:, 1, :, None] * fractions[:, 0, None, :]

    def integrate_pixels_with_slopes(self, xyz: Tensor, parameters: Tensor | None = None) -> Tensor:
        edges = (
            torch.arange(self.patch_px + 1, device=xyz.device, dtype=xyz.dtype) * self.pixel_size_nm
        )
        width, widening = self.widths(xyz[:, 2], parameters), self._widening(xyz[:, 2], parameters)
        t = (edges - xyz[:, :2, None]) / width[:, :, None]
        density = torch.exp(-0.5 * t**2) / (math.sqrt(2 * math.pi) * width[:, :, None])
        fraction = torch.special.ndtr(t).diff(dim=-1)
        moved = -density.diff(dim=-1)
        widened = -(t * density).diff(dim=-1) * widening[:, :, None]
        (x, y), (dx, dy), (zx, zy) = (part.unbind(1) for part in (fraction, moved, widened))
        rows = torch.stack([y, y, dy, zy, y], 1)[:, :, :, None]
        columns = torch.stack([x, dx, x, x, zx], 1)[:, :, None, :]
        image = rows * columns
        image[:, 3] += image[:, 4]
        return image[:, :4]

    def tables(self) -> tuple[Table, ...]:
        third, fourth = self.orders.tolist()
        rows = (
            ("standard deviation in focus", f"{self.sigma_nm.item():.1f} nm"),
            ("depth of focus", f"{self.depth_nm.item():.0f} nm"),
            ("half the distance of the foci of x and y", f"{self.gap_nm.item():.0f} nm"),
            ("third and fourth order of the defocus", f"{third:.3f}, {fourth:.3f}"),
        )
        return (Table("The Gaussian", (), rows),)


def core_fraction(image: Tensor, sigma_px: Tensor) -> Tensor:
    """Share of the light of PSFs in their Gaussian core, the least-squares amplitude <i, g> / <g,
    g>.

    Rings and scattered light lie outside it.  An aperture correction takes photons of the core to
    all photons (Howell, PASP 101, 616, 1989; Stetson, PASP 102, 932, 1990).

    Args:
        image: (n, y, x) fraction of the light in each pixel, of emitters in the middle.
        sigma_px: (n,) standard deviations of the cores, pixels.

    Returns:
        (n,)

    >>> spot = GaussianPSF(1.3, pixel_size_nm=1.0, patch_px=15)
    >>> middle = torch.tensor([[7.5, 7.5, 0.0]])
    >>> dimmed = 0.8 * spot.integrate_pixels(middle)
    >>> round(float(core_fraction(dimmed, torch.tensor([1.3]))), 4)
    0.8
    """
    side = image.shape[-1]
    core = GaussianPSF(1.0, pixel_size_nm=1.0, patch_px=side)
    core = core.to(image.device, image.dtype, non_blocking=True)
    middle = constant([side / 2, side / 2, 0.0], image).expand(len(image), 3)
    spot = core.integrate_pixels(middle, sigma_px[:, None].to(image, non_blocking=True))
    return (image * spot).sum((1, 2)) / spot.square().sum((1, 2))


@torch.no_grad()
def gaussian_width_px(psf: PSF) -> float:
    """Width in pixels of the Gaussian most like a PSF in focus, as it is fitted to molecules on a
    background.

    Weighted least squares in a window of 9 x 9 pixels, for 2000 photons on 20 a pixel.
    """
    side = FITTED_PX
    image, weight = _as_fitted(psf)
    widths = torch.logspace(math.log10(0.4), math.log10(3.0), 200, dtype=torch.float64)
    gaussian = GaussianPSF(1.0, pixel_size_nm=1.0, patch_px=side)
    middle = torch.tensor([[side / 2, side / 2, 0.0]], dtype=torch.float64).expand(len(widths), 3)
    spots = gaussian.integrate_pixels(middle, widths[:, None]).flatten(1)
    design = torch.stack([spots, torch.ones_like(spots)], 2) * weight.sqrt()[None, :, None]
    target = (image * weight.sqrt()).expand(len(widths), -1)[..., None]
    rest = target - design @ torch.linalg.lstsq(design, target).solution
    return float(widths[rest.square().sum((1, 2)).argmin()])


@torch.no_grad()
def gaussian_centre_nm(psf: PSF, sigma_px: float) -> Tensor:
    """(2,) x and y, nm, of the Gaussian most like a PSF in focus, relative to the emitter: coma
    shifts it.

    Fitted as by `gaussian_width_px`.

    >>> psf = GaussianPSF(130.0, pixel_size_nm=100.0)
    >>> gaussian_centre_nm(psf, 1.3).abs().max() < 0.1
    tensor(True)
    """
    image, weight = _as_fitted(psf)
    gaussian = GaussianPSF(sigma_px, pixel_size_nm=1.0, patch_px=FITTED_PX)
    middle = torch.tensor([[FITTED_PX / 2, FITTED_PX / 2, 0.0]], dtype=torch.float64)
    place = middle.clone()
    for _ in range(CENTRING_STEPS):
        spot, along_x, along_y, _ = gaussian.integrate_pixels_with_slopes(place)[0].flatten(1)
        design = torch.stack([spot, along_x, along_y, torch.ones_like(spot)], 1)
        roots = weight.sqrt()[:, None]
        light, *moved, _ = torch.linalg.lstsq(design * roots, image[:, None] * roots).solution[:, 0]
        place[0, :2] += torch.stack(moved) / light
    return ((place - middle)[0, :2] * psf.pixel_size_nm).to(torch.get_default_dtype())


def _as_fitted(psf: PSF) -> tuple[Tensor, Tensor]:
    """(pixels,) light of an emitter in focus in the middle of a small window, and the weights of
    pixels for 2000 photons on 20 a pixel."""
    centre = psf.pixel_size_nm * FITTED_PX / 2
    place = torch.tensor([[centre, centre, 0.0]])
    image = psf.with_patch(FITTED_PX).integrate_pixels(place).double().cpu().view(-1)
    return image, 1 / (2000 * image + 20)
