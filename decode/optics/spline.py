"""SplinePSF: a cubic spline through a measured or computed z-stack."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from math import ceil
from typing import Any, Self, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from scipy.ndimage import spline_filter
from torch import Tensor, nn

from decode.devices import constant
from decode.optics.psf import PSF

__all__ = ["SplineBank", "SplinePSF", "spline_weights"]

CUBIC = (
    (1 / 6, 2 / 3, 1 / 6, 0.0),
    (-0.5, 0.0, 0.5, 0.0),
    (0.5, -1.0, 0.5, 0.0),
    (-1 / 6, 0.5, -0.5, 1 / 6),
)
"""matrix of the weights of four coefficients: row k multiplies the k-th power of the position
between the middle two"""


@final
class SplinePSF(PSF):
    """A cubic B-spline in x, y and z, as in Babcock and Zhuang, Sci. Rep. 7, 552 (2017); twice
    differentiable.

    Beyond its sides the spline continues with coefficients of 0: light falls smoothly to nothing
        within two voxels, and a patch holds the same light wherever in its pixel the emitter lies.
        Beyond its first and last plane it is constant in z; mirror conditions there make it level
        off over the last two planes.

    Args:
        coefficients: (z, y, x) of the spline; `from_stack` computes them.
        z_start_nm: z of the first plane.
        z_step_nm: distance between planes.
        pixel_size_nm: side of a camera pixel, nm.
        centre_px: (x, y) of the emitter in voxels, from the outer corner of voxel (0, 0); None: the
            middle.
        oversampling: voxels along the side of a camera pixel.
        patch_px: side of the patch drawn around an emitter; None: large enough for all the light.

    Raises:
        ValueError: if the coefficients are no stack, or a size is not positive.

    Example:
        >>> stack = np.zeros((3, 9, 9))
        >>> stack[:, 4, 4] = 0.5  # half the photons in the middle pixel, at every depth
        >>> psf = SplinePSF.from_stack(
        ...     stack, z_start_nm=-100.0, z_step_nm=100.0, pixel_size_nm=100.0, patch_px=9
        ... )
        >>> image = psf.integrate_pixels(torch.tensor([[450.0, 450.0, 0.0]]))[0]
        >>> round(float(image[4, 4]), 3)
        0.5
    """

    kind = "spline"
    free_form = True

    def __init__(
        self,
        coefficients: Tensor,
        *,
        z_start_nm: float,
        z_step_nm: float,
        pixel_size_nm: float,
        centre_px: tuple[float, float] | None = None,
        oversampling: int = 1,
        patch_px: int | None = None,
    ) -> None:
        if coefficients.ndim != 3 or not coefficients.numel():
            raise ValueError(
                f"the PSF stack has shape {tuple(coefficients.shape)}, expected (z, y, x)"
            )
        if not (z_step_nm > 0 and oversampling >= 1):
            raise ValueError(
                f"z_step_nm ({z_step_nm}) and oversampling ({oversampling}) must be positive"
            )
        height, width = coefficients.shape[1:]
        x, y = centre_px or (width / 2, height / 2)
        reach = max(x, width - x, y, height - y) + 1.5
        super().__init__(pixel_size_nm, patch_px or 2 * ceil(reach / oversampling - 0.5) + 1)
        self.coefficients = nn.Parameter(coefficients)
        self.z_start_nm = z_start_nm
        self.z_step_nm = z_step_nm
        self.centre_px = (x, y)
        self.oversampling = oversampling

    @staticmethod
    def from_stack(
        stack: ArrayLike,
        *,
        z_start_nm: float,
        z_step_nm: float,
        pixel_size_nm: float,
        centre_px: tuple[float, float] | None = None,
        oversampling: int = 1,
        patch_px: int | None = None,
    ) -> SplinePSF:
        """The spline through a stack.

        Args:
            stack: (z, y, x) the fraction of the photons that a camera pixel centred on this voxel
                catches.
            z_start_nm, z_step_nm, pixel_size_nm, centre_px, oversampling, patch_px: as for
                `SplinePSF`.

        Raises:
            ValueError: if a plane holds more than all light, or anything is not finite.
        """
        values = np.asarray(stack, dtype=np.float64)
        if values.ndim != 3 or not values.size:
            raise ValueError(f"the PSF stack has shape {values.shape}, expected (z, y, x)")
        if not np.isfinite(values).all():
            raise ValueError("the PSF stack holds values that are not finite")
        light = values.sum((1, 2)).max() / oversampling**2
        if light > 1.001:
            raise ValueError(
                f"a plane of the PSF stack holds {light:.4g} of the light; divide the stack by this"
            )
        return SplinePSF(
            torch.as_tensor(
                spline_filter(values, order=3, mode="mirror"), dtype=torch.get_default_dtype()
            ),
            z_start_nm=z_start_nm,
            z_step_nm=z_step_nm,
            pixel_size_nm=pixel_size_nm,
            centre_px=centre_px,
            oversampling=oversampling,
            patch_px=patch_px,
        )

    @property
    def z_range_nm(self) -> tuple[float, float] | None:
        steps = len(self.coefficients) - 1
        return (self.z_start_nm, self.z_start_nm + steps * self.z_step_nm) if steps else None

    def settings(self) -> dict[str, Any]:
        names = ("z_start_nm", "z_step_nm", "centre_px", "oversampling")
        return super().settings() | {name: getattr(self, name) for name in names}

    def arrays(self) -> dict[str, Tensor]:
        return {"coefficients": self.coefficients.detach().cpu()}

    @classmethod
    def rebuilt(cls, settings: dict[str, Any], arrays: dict[str, Tensor]) -> Self:
        centre_px = tuple(settings.pop("centre_px"))
        return cls(arrays["coefficients"], centre_px=centre_px, **settings)

    def integrate_pixels(self, xyz: Tensor, parameters: Tensor | None = None) -> Tensor:
        return self.mixed(self.coefficients, self.along_z(xyz[:, 2]), xyz[:, :2])

    def mixed(self, planes: Tensor, mixing: Tensor, xy: Tensor) -> Tensor:
        """Patches of mixtures of planes on the voxels of this spline.

        Args:
            planes: (m, y, x) coefficients.
            mixing: (n, m) weight of each plane in each patch.
            xy: (n, 2) positions of the emitters from the outer corner of the patch, nm.

        Returns:
            (n, patch_px, patch_px).
        """
        # all pixels of an emitter lie alike between the voxels, so that one set of four weights an
        # axis does for them
        (column, row), weight = self._voxels(xy)
        # a product with all planes, most of whose weights are 0, is faster than picking four
        padded = F.pad(planes, (1, 1, 1, 1)).to(mixing.dtype)
        image = (mixing @ padded.flatten(1)).view(-1, *padded.shape[1:])
        image = image.gather(1, row[:, :, None].expand(-1, -1, image.shape[2]))
        image = image.gather(2, column[:, None, :].expand(-1, image.shape[1], -1))
        image = torch.einsum("nyxj,nj->nyx", image.unfold(1, 4, self.oversampling), weight[:, 1])
        return torch.einsum("nyxj,nj->nyx", image.unfold(2, 4, self.oversampling), weight[:, 0])

    def integrate_pixels_around(self, xyz: Tensor, parameters: Tensor | None = None) -> Tensor:
        # positions near to one another read the same few planes and voxels, which are cut out once
        n, m = xyz.shape[:2]
        side, over = self.patch_px, self.oversampling
        plane, along_z = spline_weights(*self._planes_from_first(xyz[..., 2].reshape(-1)))
        voxel, across = spline_weights(self._corner(xyz[..., :2].reshape(-1, 2)))
        taps = ((voxel[:, 0], across[:, 0]), (voxel[:, 1], across[:, 1]), (plane, along_z))
        (x, column), (y, row), (z, first) = (
            _shared_taps(index.view(n, m, 4), weight.view(n, m, 4)) for index, weight in taps
        )
        taps_y = y.shape[2]
        planes = first[:, None] + torch.arange(z.shape[2], device=xyz.device)
        span = torch.arange(over * (side - 1) + taps_y, device=xyz.device)
        # by where in a pixel they lie, so that a tap along x reads neighbours
        wide = torch.arange(side + (x.shape[2] - 1) // over, device=xyz.device) * over
        columns = column[:, None, None] + torch.arange(over, device=xyz.device)[:, None] + wide
        read = self._read(planes, row[:, None] + span, columns.flatten(1)).to(xyz.dtype)
        read = read.unfold(2, taps_y, over).permute(0, 1, 4, 2, 3)
        read = read.reshape(n, z.shape[2] * taps_y, -1)
        image = (z[..., None] * y[:, :, None]).flatten(2) @ read
        image = image.view(n * m, side, over, -1)
        seen = image.new_zeros(n * m, side, side)
        for j, weight in enumerate(x.view(n * m, -1).unbind(1)):
            start, phase = divmod(j, over)
            part = image[:, :, phase, start : start + side]
            seen.addcmul_(part, weight[:, None, None])
        return seen.view(n, m, side, side)

    def _read(self, plane: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """(n, z, y, x) coefficients of planes (n, z), rows (n, y) and columns (n, x); 0 outside."""
        height, width = self.coefficients.shape[1:]
        padded = F.pad(self.coefficients, (1, 1, 1, 1))
        row, column = row.clamp(-1, height) + 1, column.clamp(-1, width) + 1
        first = (self._mirrored(plane)[:, :, None] * (height + 2) + row[:, None]) * (width + 2)
        index = first[..., None] + column[:, None, None]
        # much faster on a CPU than indexing
        return padded.view(-1).index_select(0, index.view(-1)).view(index.shape)

    def integrate_pixels_with_slopes(self, xyz: Tensor, parameters: Tensor | None = None) -> Tensor:
        return self.mixed_with_slopes(self.coefficients[None], xyz.new_ones(len(xyz), 1), xyz)

    def mixed_with_slopes(self, stacks: Tensor, share: Tensor, xyz: Tensor) -> Tensor:
        """Patches of mixtures of stacks on the voxels of this spline, and their derivatives with
        respect to x, y and z.

        Args:
            stacks: (m, z, y, x) coefficients.
            share: (n, m) weight of each stack in each patch.
            xyz: (n, 3) positions of the emitters, nm, x and y from the outer corner of the patch.

        Returns:
            (n, 4, patch_px, patch_px): the fraction, then its slopes per nm.
        """
        n, k, over = len(xyz), self.patch_px, self.oversampling
        if not n:
            return xyz.new_zeros(0, 4, k, k)
        if xyz.device.type != "cpu":
            return self._gathered_with_slopes(stacks, share, xyz)
        position, limit = self._planes_from_first(xyz[:, 2])
        plane, along_z = spline_weights(position, limit)
        corner = self._corner(xyz[:, :2])
        voxel, across = spline_weights(corner)
        across_slopes = spline_slopes(corner) * (-over / self.pixel_size_nm)
        # voxels of emitters in the middle pixel begin at most so many apart: some taps more, and
        # all of them read alike
        apart = over + 1
        home = (
            torch.floor(self._corner(xyz.new_full((2,), (k // 2 + 1) * self.pixel_size_nm))).long()
            - 1
        )
        start = home + torch.div(voxel[..., 0] - home, apart, rounding_mode="floor") * apart
        taps = voxel - start[..., None]
        x, y = xyz.new_zeros(2, n, 2, 3 + apart)
        for axis, of in enumerate((x, y)):
            of[:, 0].scatter_(1, taps[:, axis], across[:, axis])
            of[:, 1].scatter_(1, taps[:, axis], across_slopes[:, axis])
        z = torch.stack([along_z, self._slopes_by_z(position, limit)], 1)
        # fraction, and slopes by x, y and z
        z, y, x = z[:, [0, 0, 0, 1]], y[:, [0, 0, 1, 0]], x[:, [0, 1, 0, 0]]
        weight = torch.einsum("nm,ncz,ncy,ncx->ncmzyx", share.to(xyz.dtype), z, y, x).flatten(2)

        # what is outside the voxels is 0: as much of it is laid around them as the patches reach
        span = over * (k - 1) + 3 + apart
        size = torch.tensor(stacks.shape[:1:-1], device=xyz.device)
        start = start.minimum(size).clamp_min(-span)
        low = (-start.amin(0)).clamp_min(0).tolist()
        high = (start.amax(0) + span - size).clamp_min(0).tolist()
        planes = self._mirrored(torch.arange(-1, limit + 3, device=xyz.device))
        padded = F.pad(stacks[:, planes].to(xyz.dtype), (low[0], high[0], low[1], high[1]))

        # emitters between the same planes that read the same voxels are drawn by one product
        place = torch.cat([start, plane[:, 1:2]], 1)
        key, order = ((place[:, 0] * 2**20 + place[:, 1]) * 2**20 + place[:, 2]).sort()
        sizes = key.unique_consecutive(return_counts=True)[1]
        alike = zip(
            place[order[sizes.cumsum(0) - 1]].tolist(),
            weight[order].split(sizes.tolist()),
            strict=True,
        )
        drawn = []
        for (left, top), group in groupby(alike, lambda part: part[0][:2]):
            row, column, parts = top + low[1], left + low[0], list(group)
            read = padded[:, :, row : row + span, column : column + span]
            read = read.unfold(2, 3 + apart, over).unfold(3, 3 + apart, over)
            read = read.permute(0, 1, 4, 5, 2, 3)
            # a copy of all planes is worth it where many are read
            if 4 * len(parts) > len(planes):
                read = read.contiguous()
            drawn += [
                of.flatten(0, 1) @ read[:, p : p + 4].reshape(-1, k * k) for (_, _, p), of in parts
            ]
        image = xyz.new_empty(n, 4, k * k)
        image[order] = torch.cat(drawn).view(n, 4, k * k)
        return image.view(n, 4, k, k)

    def _gathered_with_slopes(self, stacks: Tensor, share: Tensor, xyz: Tensor) -> Tensor:
        """The same as `mixed_with_slopes` in a few large steps, for a GPU, which has the memory."""
        scale = -self.oversampling / self.pixel_size_nm
        (column, row), weight = self._voxels(xyz[:, :2])
        slope = spline_slopes(self._corner(xyz[:, :2])) * scale
        x, y = torch.stack([weight, slope], 2).unbind(1)
        # each emitter's own plane, and its slope by z
        along = torch.stack([self.along_z(xyz[:, 2]), self.slopes_along_z(xyz[:, 2])], 1)
        mixing = torch.einsum("nm,ncz->ncmz", share.to(xyz.dtype), along).flatten(2)
        padded = F.pad(stacks.flatten(0, 1), (1, 1, 1, 1)).to(xyz.dtype)
        image = (mixing @ padded.flatten(1)).unflatten(2, padded.shape[1:])
        image = image.gather(2, row[:, None, :, None].expand(-1, 2, -1, image.shape[3]))
        image = image.gather(3, column[:, None, None].expand(-1, 2, image.shape[2], -1))
        seen = torch.einsum("nzyxj,nbj->nzbyx", image.unfold(2, 4, self.oversampling), y)
        seen = seen.unfold(4, 4, self.oversampling)
        whole, by_x = torch.einsum("nyxj,naj->anyx", seen[:, 0, 0], x)
        by_y, by_z = torch.einsum(
            "cnyxj,nj->cnyx", torch.stack([seen[:, 0, 1], seen[:, 1, 0]]), x[:, 0]
        )
        return torch.stack([whole, by_x, by_y, by_z], 1)

    def along_z(self, z: Tensor) -> Tensor:
        """(n, planes) weight of every plane at each depth."""
        plane, weight = self.planes(z)
        return weight.new_zeros(len(z), len(self.coefficients)).scatter_add(1, plane, weight)

    def slopes_along_z(self, z: Tensor) -> Tensor:
        """(n, planes) slope per nm of every plane's weight."""
        slope = self._slopes_by_z(*self._planes_from_first(z))
        plane, _ = self.planes(z)
        return slope.new_zeros(len(z), len(self.coefficients)).scatter_add(1, plane, slope)

    def across(self, xy: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Weights of columns and rows of coefficients in the pixels of a patch, and their slopes.

        Args:
            xy: (2,) position of the emitter from the outer corner of the patch, nm.
            side: side of the patch, pixels.

        Returns:
            (2, side, x) for the columns and (2, side, y) for the rows: weight, and slope per nm.
        """
        height, width = self.coefficients.shape[1:]
        size = max(height, width)
        at = self._corner(xy)[:, None] + torch.arange(side, device=xy.device) * self.oversampling
        voxel, weight = spline_weights(at)
        slope = spline_slopes(at) * (-self.oversampling / self.pixel_size_nm)
        wide = weight.new_zeros(2, 2, side, size + 2)
        index = (voxel + 1).clamp(0, size + 1)[:, None].expand(-1, 2, -1, -1)
        columns, rows = wide.scatter_add(3, index, torch.stack([weight, slope], 1))[..., 1:-1]
        return columns[..., :width], rows[..., :height]

    def moved(self, centre_px: tuple[float, float]) -> SplinePSF:
        """The same image, with the emitter at another place of it (as `centre_px` of the class)."""
        return self.with_coefficients(self.coefficients.detach(), centre_px=centre_px)

    def with_coefficients(self, coefficients: Tensor, **changed: Any) -> SplinePSF:
        """A spline with other coefficients, on the same voxels.

        Args:
            coefficients: (z, y, x).
            changed: settings that differ, such as `centre_px`.
        """
        return SplinePSF(coefficients, **(self.settings() | changed))

    def planes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The planes around each depth (n, 4), and their weights (n, 4)."""
        position, limit = self._planes_from_first(z)
        plane, weight = spline_weights(position, limit)
        return self._mirrored(plane), weight

    def _mirrored(self, plane: Tensor) -> Tensor:
        """Indices of planes, those beyond the first and the last mirrored, as when the coefficients
        were computed."""
        last = max(len(self.coefficients) - 1, 1)
        return (last - (last - plane.abs()).abs()).clamp(0, len(self.coefficients) - 1)

    def _slopes_by_z(self, position: Tensor, limit: int) -> Tensor:
        """(n, 4) slopes per nm of the weights of the planes around a position from the first
        plane."""
        inside = (position > 0) & (position < len(self.coefficients) - 1)
        return spline_slopes(position, limit) / self.z_step_nm * inside[:, None]

    def _planes_from_first(self, z: Tensor) -> tuple[Tensor, int]:
        planes = len(self.coefficients)
        z = (z - self.z_start_nm) / self.z_step_nm if planes > 1 else torch.zeros_like(z)
        return z.clamp(0, planes - 1), max(planes - 2, 0)

    def _voxels(self, xy: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Columns and rows of the padded coefficients that each patch reads (n, m), and weights (n,
        axis, 4)."""
        height, width = self.coefficients.shape[1:]
        first, weight = spline_weights(self._corner(xy))
        # as many voxels as fill pixels
        reach = torch.arange(
            self.oversampling * (self.patch_px - 1 + ceil(4 / self.oversampling)), device=xy.device
        )
        # a border of zeros stands for everything outside
        voxel = (first[..., :1] + reach).clamp_min(-1) + 1
        return (voxel[:, 0].clamp_max(width + 1), voxel[:, 1].clamp_max(height + 1)), weight

    def _corner(self, xy: Tensor) -> Tensor:
        """Where the centre of the patch's first pixel lies: (n, 2) x, y from the centre of voxel
        (0, 0)."""
        centre = constant(self.centre_px, xy) + self.oversampling / 2 - 0.5
        return centre - xy * (self.oversampling / self.pixel_size_nm)


@final
class SplineBank(PSF):
    """Splines on the same voxels, drawn together; each emitter's parameter is the index of its
    spline.

    Args:
        splines: splines that differ in their coefficients only.
    """

    parameter_names = ("spline",)

    def __init__(self, splines: Sequence[SplinePSF]) -> None:
        first = splines[0]
        super().__init__(first.pixel_size_nm, first.patch_px)
        self.first = first
        self.register_buffer("coefficients", torch.stack([s.coefficients for s in splines]))

    @property
    def z_range_nm(self) -> tuple[float, float] | None:
        return self.first.z_range_nm

    def integrate_pixels(self, xyz: Tensor, parameters: Tensor | None = None) -> Tensor:
        if parameters is None:
            return self.first.integrate_pixels(xyz)
        coefficients = self.get_buffer("coefficients")
        n_splines, n_planes = coefficients.shape[:2]
        plane, weight = self.first.planes(xyz[:, 2])
        plane = plane + n_planes * parameters[:, :1].long()
        nothing = weight.new_zeros(len(xyz), n_splines * n_planes)
        mixing = nothing.scatter_add(1, plane, weight)
        return self.first.mixed(coefficients.flatten(0, 1), mixing, xyz[:, :2])


def _shared_taps(index: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (n, m, taps) of the coefficients that the m positions of each of n emitters read, and
    the first (n,) of these, from indices and weights (n, m, 4)."""
    first = index[..., 0].amin(1)
    after = index - first[:, None, None]
    taps = int(after.max()) + 1 if after.numel() else 4
    return weight.new_zeros(*weight.shape[:2], taps).scatter_(2, after, weight), first


def spline_weights(position: Tensor, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """The four coefficients a cubic B-spline takes at a position: their indices (..., 4) and
    weights (..., 4)."""
    below = torch.floor(position.detach())
    below = below if limit is None else below.clamp_max(limit)
    t = position - below
    powers = torch.stack([torch.ones_like(t), t, t * t, t * t * t], -1)
    weights = powers @ constant(CUBIC, powers)
    return below.long()[..., None] + torch.arange(-1, 3, device=position.device), weights


def spline_slopes(position: Tensor, limit: int | None = None) -> Tensor:
    """The derivatives (..., 4) of the weights that `spline_weights` gives at a position."""
    below = torch.floor(position)
    t = position - (below if limit is None else below.clamp_max(limit))
    s = 1 - t
    return torch.stack([-(s**2), 3 * t**2 - 4 * t, 4 * s - 3 * s**2, t**2], -1) / 2
