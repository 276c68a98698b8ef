"""A PSF as plain settings and arrays, and back: what every file that carries one writes."""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

from torch import Tensor

from decode.optics.field import FieldSplinePSF
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import PSF
from decode.optics.pupil import PupilPSF
from decode.optics.spline import SplinePSF

__all__ = ["PSFDescription", "describe", "digest_of", "rebuild"]

FAMILIES: tuple[type[PSF], ...] = (
    GaussianPSF,
    SplinePSF,
    FieldSplinePSF,
    PupilPSF,
)
"""families that files can hold; a new one is added here"""
BY_KIND = {family.kind: family for family in FAMILIES}


class PSFDescription(NamedTuple):
    """All that makes a PSF."""

    kind: str
    settings: dict[str, Any]
    """settings that JSON can hold"""
    arrays: dict[str, Tensor]
    """arrays by name, on the CPU"""


def describe(psf: PSF) -> PSFDescription:
    """The description from which `rebuild` makes the same PSF.

    >>> describe(GaussianPSF(130.0, pixel_size_nm=100.0)).kind
    'gaussian'

    Raises:
        TypeError: if no file can hold a PSF of this family.
    """
    if psf.kind not in BY_KIND:
        raise TypeError(f"a {type(psf).__name__} cannot be written")
    return PSFDescription(psf.kind, psf.settings(), psf.arrays())


def digest_of(psf: PSF) -> str:
    """SHA-256 of all that makes a PSF, hexadecimal: equal PSFs have the same.

    >>> digest_of(GaussianPSF(130.0, pixel_size_nm=100.0))[:8]
    '5884a81e'
    """
    kind, settings, arrays = describe(psf)
    digest = hashlib.sha256(json.dumps([kind, settings], sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(arrays[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def rebuild(description: PSFDescription) -> PSF:
    """The PSF that was described.

    Raises:
        ValueError: if its kind is unknown to this version of decode, or a setting is wrong.
        KeyError, TypeError: if an array or a setting is missing.
    """
    kind, settings, arrays = description
    if kind not in BY_KIND:
        raise ValueError(
            f"this version of decode knows no PSF of the kind {kind}; take a newer one"
        )
    for name, array in arrays.items():
        if not bool(array.isfinite().all()):
            raise ValueError(f"the PSF's {name} hold NaN or infinite values")
    return BY_KIND[kind].rebuilt(dict(settings), arrays)
