"""A PSF as plain settings and arrays, and back: what every file that carries one writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from decode.optics.field import FieldSplinePSF
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import PSF
from decode.optics.pupil import PupilPSF
from decode.optics.spline import SplinePSF

__all__ = ["PSFDescription", "describe", "rebuild"]


class PSFDescription(NamedTuple):
    """All that makes a PSF."""

    kind: str
    settings: dict[str, Any]
    """what JSON can hold"""
    arrays: dict[str, Tensor]
    """by name, on the CPU"""


def describe(psf: PSF) -> PSFDescription:
    """What `rebuild` makes the same PSF of.

    Raises:
        TypeError: if this kind of PSF cannot be described.
    """
    settings: dict[str, Any] = {"pixel_size_nm": psf.pixel_size_nm, "patch_px": psf.patch_px}
    if isinstance(psf, SplinePSF):
        names = ("z_start_nm", "z_step_nm", "centre_px", "oversampling")
        settings |= {name: getattr(psf, name) for name in names}
        return PSFDescription("spline", settings, {"coefficients": psf.coefficients.detach().cpu()})
    if isinstance(psf, FieldSplinePSF):
        _, settings, arrays = describe(psf.middle)
        arrays |= {name: getattr(psf, name).detach().cpu() for name in ("changes", "shifts_nm")}
        return PSFDescription("field-spline", settings | {"field_nm": psf.field_nm}, arrays)
    if isinstance(psf, GaussianPSF):
        third, fourth = psf.orders.tolist()
        numbers = {name: float(getattr(psf, name).detach()) for name in ("sigma_nm", "depth_nm", "gap_nm")}
        return PSFDescription("gaussian", settings | numbers | {"third": third, "fourth": fourth}, {})
    if isinstance(psf, PupilPSF):
        free = ("numerical_aperture", "blur_nm", "apodization")
        numbers = {name: float(getattr(psf, name).detach()) for name in free}
        numbers |= {name: getattr(psf, name) for name in PUPIL_SETTINGS}
        modes = [[n, m, c] for (n, m), c in zip(psf.modes, psf.zernike_nm.tolist(), strict=True)]
        mask = {} if psf.phase_mask_nm is None else {"phase_mask_nm": psf.phase_mask_nm.detach().cpu()}
        whole = settings | numbers | {"zernike_nm": modes, "offset_nm": psf.offset_nm.tolist()}
        return PSFDescription("pupil", whole, mask)
    raise TypeError(f"a {type(psf).__name__} cannot be written")


def rebuild(description: PSFDescription) -> PSF:
    """The PSF that was described.

    Raises:
        ValueError: if its kind is unknown to this version of decode, or a setting is wrong.
        KeyError, TypeError: if an array or a setting is missing.
    """
    if description.kind not in _MAKERS:
        raise ValueError(f"this version of decode knows no PSF of the kind {description.kind}; take a newer one")
    for name, array in description.arrays.items():
        if not bool(array.isfinite().all()):
            raise ValueError(f"the PSF's {name} hold NaN or infinite values")
    return _MAKERS[description.kind](dict(description.settings), description.arrays)


PUPIL_SETTINGS = (
    "wavelength_nm",
    "sample_index",
    "immersion_index",
    "depth_nm",
    "scan",
    "bead_diameter_nm",
    "grid",
)


def _spline(settings: dict[str, Any], arrays: dict[str, Tensor]) -> PSF:
    settings["centre_px"] = tuple(settings["centre_px"])
    return SplinePSF(arrays["coefficients"], **settings)


def _field_spline(settings: dict[str, Any], arrays: dict[str, Tensor]) -> PSF:
    (x0, x1), (y0, y1) = settings.pop("field_nm")
    settings["centre_px"] = tuple(settings["centre_px"])
    return FieldSplinePSF(
        SplinePSF(arrays["coefficients"], **settings),
        arrays["changes"],
        shifts_nm=arrays["shifts_nm"],
        field_nm=((x0, x1), (y0, y1)),
    )


def _gaussian(settings: dict[str, Any], arrays: dict[str, Tensor]) -> PSF:
    return GaussianPSF(**settings)


def _pupil(settings: dict[str, Any], arrays: dict[str, Tensor]) -> PSF:
    settings["zernike_nm"] = {(int(n), int(m)): c for n, m, c in settings["zernike_nm"]}
    settings["offset_nm"] = tuple(settings["offset_nm"])
    return PupilPSF(phase_mask_nm=arrays.get("phase_mask_nm"), **settings)


_MAKERS: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], PSF]] = {
    "spline": _spline,
    "field-spline": _field_spline,
    "gaussian": _gaussian,
    "pupil": _pupil,
}
