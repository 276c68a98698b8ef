"""FieldSplinePSF: a cubic spline whose coefficients change over the field of view."""

from __future__ import annotations

from typing import Any, Self, final

import torch
from torch import Tensor, nn

from decode.devices import constant
from decode.optics.psf import PSF
from decode.optics.spline import SplinePSF

__all__ = ["FieldSplinePSF", "polynomials"]


@final
class FieldSplinePSF(PSF):
    """A spline whose coefficients are polynomials of low order in the position in the field, over
    which aberrations change smoothly.

    With X and Y from -1 to 1 over the field, c(X, Y) = middle + X c_1 + Y c_2; five changes add X^2
    c_3 + XY c_4 + Y^2 c_5.  Beyond the field the PSF is that of the nearest place in it.  Changes
    whose planes sum to 0 keep the light of each plane the same all over the field.

    The parameters `field_x` and `field_y` are nm from the outer corner of pixel (0, 0) of the
    sensor's frame in which the beads were recorded; without them an emitter is in the middle of the
    field.

    Args:
        middle: the PSF in the middle of the field.
        changes: (0, 2 or 5, z, y, x) of its coefficients.
        shifts_nm: (0, 2 or 5, 2) coefficients of the same polynomials for the (x, y) shift of the
            emitter in its image from where it lies in the middle of the field.
        field_nm: (lowest, highest) x and (lowest, highest) y of the field.

    Raises:
        ValueError: if the shapes do not fit, or the field is empty.
    """

    parameter_names = ("field_x", "field_y")
    kind = "field-spline"
    free_form = True
    field_nm: tuple[tuple[float, float], tuple[float, float]]

    def __init__(
        self,
        middle: SplinePSF,
        changes: Tensor,
        *,
        shifts_nm: Tensor,
        field_nm: tuple[tuple[float, float], tuple[float, float]],
    ) -> None:
        super().__init__(middle.pixel_size_nm, middle.patch_px)
        if len(changes) not in (0, 2, 5) or changes.shape[1:] != middle.coefficients.shape:
            raise ValueError(
                f"the changes have shape {tuple(changes.shape)}, expected 0, 2 or 5 of "
                f"{tuple(middle.coefficients.shape)}"
            )
        if shifts_nm.shape != (len(changes), 2):
            raise ValueError(
                f"the shifts have shape {tuple(shifts_nm.shape)}, expected {(len(changes), 2)}"
            )
        if not all(low < high for low, high in field_nm):
            raise ValueError(f"field_nm is {field_nm}, the lowest x and y must come first")
        self.middle = middle
        self.changes = nn.Parameter(changes)
        self.shifts_nm = nn.Parameter(shifts_nm)
        self.field_nm = field_nm

    @property
    def z_range_nm(self) -> tuple[float, float] | None:
        return self.middle.z_range_nm

    def settings(self) -> dict[str, Any]:
        return self.middle.settings() | {"field_nm": self.field_nm}

    def arrays(self) -> dict[str, Tensor]:
        own = {"changes": self.changes, "shifts_nm": self.shifts_nm}
        return self.middle.arrays() | {name: a.detach().cpu() for name, a in own.items()}

    @classmethod
    def rebuilt(cls, settings: dict[str, Any], arrays: dict[str, Tensor]) -> Self:
        (x0, x1), (y0, y1) = settings.pop("field_nm")
        return cls(
            SplinePSF.rebuilt(settings, {"coefficients": arrays["coefficients"]}),
            arrays["changes"],
            shifts_nm=arrays["shifts_nm"],
            field_nm=((x0, x1), (y0, y1)),
        )

    def draw_parameters(self, n_movies: int, rng: torch.Generator) -> Tensor:
        low, high = torch.tensor(self.field_nm, device=rng.device).T
        share = torch.rand(n_movies, 2, generator=rng, device=rng.device)
        return low + (high - low) * share

    def parameters_at(self, xyz: Tensor) -> Tensor:
        return xyz[:, :2]

    def integrate_pixels(self, xyz: Tensor, parameters: Tensor | None = None) -> Tensor:
        if parameters is None:
            return self.middle.integrate_pixels(xyz)
        weight = self.basis(parameters)
        # place in the field and depth mix the planes in one product
        mixing = weight[:, :, None] * self.middle.along_z(xyz[:, 2])[:, None]
        planes = torch.cat([self.middle.coefficients, self.changes.flatten(0, 1)])
        xy = xyz[:, :2] - weight[:, 1:] @ self.shifts_nm.to(weight.dtype)
        return self.middle.mixed(planes, mixing.flatten(1), xy)

    def integrate_pixels_with_slopes(self, xyz: Tensor, parameters: Tensor | None = None) -> Tensor:
        if parameters is None:
            return self.middle.integrate_pixels_with_slopes(xyz)
        weight = self.basis(parameters)
        stacks = torch.cat([self.middle.coefficients[None], self.changes])
        moved = torch.cat(
            [xyz[:, :2] - weight[:, 1:] @ self.shifts_nm.to(weight.dtype), xyz[:, 2:]], 1
        )
        return self.middle.mixed_with_slopes(stacks, weight, moved)

    def basis(self, parameters: Tensor) -> Tensor:
        """(n, 1 + changes) weights of the middle's coefficients and their changes at places (n, 2)
        nm in the field."""
        return polynomials(parameters, self.field_nm, 1 + len(self.changes))

    def at(self, x: float, y: float) -> SplinePSF:
        """The PSF at a place in the field, nm."""
        weight = self.basis(self.middle.coefficients.new_tensor([[x, y]]))[0]
        change = torch.tensordot(weight[1:], self.changes.detach(), 1)
        scale = self.middle.oversampling / self.pixel_size_nm
        shift = (weight[1:] @ self.shifts_nm.detach() * scale).tolist()
        centre = self.middle.centre_px
        return self.middle.with_coefficients(
            self.middle.coefficients.detach() + change,
            centre_px=(centre[0] + shift[0], centre[1] + shift[1]),
        )


def polynomials(
    places: Tensor, field_nm: tuple[tuple[float, float], tuple[float, float]], terms: int
) -> Tensor:
    """1, X, Y, X^2, XY, Y^2 at places in a field: (n, 2) nm to (n, terms), `terms` 1, 3 or 6."""
    low, high = constant(field_nm, places).T
    x, y = ((2 * places - low - high) / (high - low)).clamp(-1, 1).T
    return torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y][:terms], 1)
