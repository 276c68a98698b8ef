"""PSF: the fraction of a molecule's photons in each pixel, and frames rendered from it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from copy import copy
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

__all__ = ["PSF", "Table", "render"]

LARGEST = 1024
"""most pixels along a patch, or points across a pupil"""

AT_ONCE = {"cpu": 2**13, "cuda": 2**17}
"""emitters drawn at a time, by device; patches of all would fill the memory"""


class Table(NamedTuple):
    """A table of a report."""

    caption: str
    columns: tuple[str, ...]
    """their names; none: a row is a name and its value"""
    rows: tuple[tuple[str, ...], ...]
    """words and numbers as they are printed"""


class PSF(nn.Module, ABC):
    """A point spread function integrated over pixels, differentiable in positions and in its own
    parameters.

    A subclass names its parameters in `parameter_names`; `integrate_pixels` takes one row of them
    per emitter, so that one batch may hold many microscopes or a PSF that varies over the field.
    """

    parameter_names: tuple[str, ...] = ()
    kind: ClassVar[str] = ""
    """name of the family in files; "": no file holds one"""
    free_form: ClassVar[bool] = False
    """whether it takes whatever shape beads have, not only those of an optical model"""
    free_width: ClassVar[bool] = False
    """whether its one parameter is the width in focus, `sigma_nm`, which is estimated from a movie;
    for any other PSF, a blur on top of it is estimated"""
    field_nm: tuple[tuple[float, float], tuple[float, float]] | None = None
    """(lowest, highest) x and (lowest, highest) y of the field over which it changes; None: it is
    the same everywhere"""

    def __init__(self, pixel_size_nm: float, patch_px: int) -> None:
        super().__init__()
        if not 0 < pixel_size_nm < math.inf:
            raise ValueError(f"pixel_size_nm is {pixel_size_nm}, must be positive")
        if patch_px not in range(1, LARGEST + 1):
            raise ValueError(f"patch_px is {patch_px}, must be a whole number from 1 to {LARGEST}")
        self.pixel_size_nm = pixel_size_nm
        self.patch_px = patch_px

    @property
    @abstractmethod
    def z_range_nm(self) -> tuple[float, float] | None:
        """Depths over which its images determine z, nm; None where it is the same at every z."""

    @abstractmethod
    def integrate_pixels(self, xyz: Tensor, parameters: Tensor | None = None) -> Tensor:
        """The fraction of an emitter's photons in each pixel of a patch.

        Args:
            xyz: (n, 3) nm; x and y from the outer corner of the patch, z from focus.
            parameters: (n, len(parameter_names)); None takes the PSF's own.

        Returns:
            (n, patch_px, patch_px) indexed (emitter, y, x); each patch sums to at most 1.
        """

    def integrate_pixels_with_slopes(self, xyz: Tensor, parameters: Tensor | None = None) -> Tensor:
        """The fraction of light in each pixel, and its derivatives with respect to x, y and z.

        Args:
            xyz, parameters: as for `integrate_pixels`.

        Returns:
            (n, 4, patch_px, patch_px): the fraction, then its slopes per nm.
        """

        def fraction(position: Tensor) -> Tensor:
            return self.integrate_pixels(position, parameters)

        # emitters are independent, so one forward-mode pass per axis differentiates the whole batch
        axes = torch.eye(3, dtype=xyz.dtype, device=xyz.device)
        slopes = [
            torch.func.jvp(fraction, (xyz,), (axis.expand_as(xyz).contiguous(),))[1]
            for axis in axes
        ]
        return torch.stack([fraction(xyz), *slopes], 1)

    def integrate_pixels_around(self, xyz: Tensor, parameters: Tensor | None = None) -> Tensor:
        """The fraction of light in each pixel at several positions of each emitter, near to one
        another, such as samples of its posterior.

        Args:
            xyz: (n, m, 3) nm, as for `integrate_pixels`.
            parameters: (n, p) of each emitter, or None.

        Returns:
            (n, m, patch_px, patch_px).
        """
        each = None if parameters is None else parameters.repeat_interleave(xyz.shape[1], 0)
        return self.integrate_pixels(xyz.flatten(0, 1), each).unflatten(0, xyz.shape[:2])

    def parameters_at(self, xyz: Tensor) -> Tensor | None:
        """Parameters of emitters at their positions in the field.

        Args:
            xyz: (n, 3) nm, from the outer corner of the field's first pixel.

        Returns:
            (n, len(parameter_names)), or None where the PSF is the same all over the field.
        """
        return None

    def tables(self) -> tuple[Table, ...]:
        """Numbers that describe the PSF, for a report; none for a free form."""
        return ()

    def draw_parameters(self, n_movies: int, rng: torch.Generator) -> Tensor:
        """Parameters of movies, each of which shows so small a part of the field that the PSF
        hardly changes over it.

        Returns:
            (n_movies, len(parameter_names)), or (n_movies, 0) where the PSF is the same all over
            the field, on the device of `rng`.
        """
        return torch.zeros(n_movies, 0, device=rng.device)

    def tabulated(self, z_range_nm: tuple[float, float]) -> PSF:
        """A PSF of the same images that is cheap enough to draw many emitters: itself, or a spline.

        Args:
            z_range_nm: depths at which it will be drawn.
        """
        return self

    def with_spherical(self, waves: float) -> PSF | None:
        """The PSF of an objective with more spherical aberration (Zernike 4, 0), rms; None where
        that does not follow from this PSF."""
        return None

    def settings(self) -> dict[str, Any]:
        """Its settings, of types that JSON can hold, as `rebuilt` takes them."""
        return {"pixel_size_nm": self.pixel_size_nm, "patch_px": self.patch_px}

    def arrays(self) -> dict[str, Tensor]:
        """Its arrays by name, on the CPU, as `rebuilt` takes them."""
        return {}

    @classmethod
    def rebuilt(cls, settings: dict[str, Any], arrays: dict[str, Tensor]) -> Self:
        """The PSF of `settings` and `arrays`.

        Raises:
            ValueError: if a setting is wrong.
            KeyError, TypeError: if an array or a setting is missing.
        """
        whole: dict[str, Any] = settings | arrays
        return cls(**whole)

    def with_patch(self, patch_px: int) -> Self:
        """The same PSF, its parameters shared, drawn in another patch around the emitter."""
        cut = copy(self)
        cut.patch_px = patch_px
        parts = self._modules.items()
        cut._modules = {
            name: part.with_patch(patch_px) if isinstance(part, PSF) else part
            for name, part in parts
        }
        return cut


def render(
    psf: PSF,
    *,
    frame: Tensor,
    xyz: Tensor,
    photons: Tensor,
    n_frames: int,
    shape: tuple[int, int],
    parameters: Tensor | None = None,
) -> Tensor:
    """Expected photons of emitters in frames, without background.

    Patches are drawn and scatter-added, so the cost scales with the number of emitters, not of
    pixels. Light that falls outside the frame is lost, and emitters outside may shine into it.

    Args:
        psf: the point spread function.
        frame: (n,) int64, in [0, n_frames).
        xyz: (n, 3) nm, from the outer corner of pixel (0, 0).
        photons: (n,) photons of each emitter in its frame.
        n_frames: number of frames.
        shape: (height, width) in pixels.
        parameters: (n, p) PSF parameters per emitter, or None.

    Returns:
        (n_frames, height, width) photons, differentiable in xyz, photons and the PSF's parameters.

    Example:
        >>> from decode import GaussianPSF
        >>> frames = render(
        ...     GaussianPSF(130.0, pixel_size_nm=100.0),
        ...     frame=torch.tensor([0, 2]),
        ...     xyz=torch.tensor([[1600.0, 1600.0, 0.0], [1600.0, 0.0, 0.0]]),
        ...     photons=torch.tensor([1000.0, 1000.0]),
        ...     n_frames=3,
        ...     shape=(32, 32),
        ... )
        >>> frames.sum((1, 2)).round().tolist()  # half of the second molecule lies outside
        [1000.0, 0.0, 500.0]
    """
    height, width = shape
    k = psf.patch_px
    corner = torch.floor(xyz[:, :2].detach() / psf.pixel_size_nm).long() - k // 2
    inside = (corner > -k).all(1) & (corner[:, 0] < width) & (corner[:, 1] < height)
    # emitters out of sight are drawn without light, for to leave them out is to wait for a GPU
    corner, photons = corner.where(inside[:, None], 0), photons.where(inside, 0.0)
    origin = torch.cat([corner * psf.pixel_size_nm, torch.zeros_like(corner[:, :1])], 1)
    inner = (xyz - origin.to(xyz.dtype)).where(inside[:, None], 0.0)

    # A frame with a margin of one patch on every side takes patches that hang over the border
    # without a mask.
    stride_y = width + 2 * k
    steps = torch.arange(k, device=xyz.device)
    first = (frame * (height + 2 * k) + corner[:, 1] + k) * stride_y + corner[:, 0] + k
    canvas = xyz.new_zeros(n_frames * (height + 2 * k) * stride_y)
    at_once = AT_ONCE[xyz.device.type]
    for start in range(0, len(xyz), at_once):
        part = slice(start, start + at_once)
        own = None if parameters is None else parameters[part]
        patches = photons[part, None, None] * psf.integrate_pixels(inner[part], own)
        index = first[part, None, None] + steps[:, None] * stride_y + steps
        canvas = canvas.index_add(0, index.reshape(-1), patches.reshape(-1))
    return canvas.view(n_frames, height + 2 * k, stride_y)[:, k : k + height, k : k + width]
