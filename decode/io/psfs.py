"""PSF files: one HDF5 with the PSF, its units, its sources and its figures."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import h5py
import numpy as np
import torch

from decode.atomic import atomic
from decode.conditioning import CalibratedPupil
from decode.io.hdf5 import array_of, attribute_of, open_hdf5, set_text, text_of
from decode.optics.description import PSFDescription, describe, rebuild
from decode.optics.psf import PSF
from decode.optics.pupil import PupilPSF

__all__ = ["PSFFile", "ZDirection", "read_psf", "write_psf"]

FORMAT = "decode-psf-1"
LAYOUT = "v108"
"""version of HDF5's layout: it has checksums, and attributes of any size; all readers since 2008
know it"""

PUPIL = "pupil"
"""the group that holds the pupil with the same images"""

ZDirection: TypeAlias = Literal["stated", "assumed"]
"""whether the user said which way the stage moved, or it was taken to have moved up"""


@final
@dataclass(frozen=True, kw_only=True)
class PSFFile:
    """A calibrated PSF.  z is 0 in focus and grows as the stage's z did in the bead stack."""

    psf: PSF
    z_range_nm: tuple[float, float]
    """depths over which it was measured"""
    usable_nm: tuple[float, float] | None = None
    """depths over which held-out beads were localized well; None where there are none, or they are
    unknown"""
    sources: tuple[str, ...] = ()
    """files that it was made from"""
    n_beads: int = 0
    z_step_nm: float = 0.0
    """distance of the planes of the bead stack"""
    figures: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    """figures of held-out beads for x, y, z, as of `HeldOut.summary`"""
    deviance: float = math.nan
    """mean deviance per pixel of the beads' images; about 1 where they differ from the PSF by noise
    alone"""
    origin: str = ""
    """convention for x = y = 0, the position of an emitter in its image"""
    z_direction: ZDirection = "assumed"
    pupil: CalibratedPupil | None = None
    """the pupil with the same images, where it was fitted; it belongs to `psf`"""

    def __post_init__(self) -> None:
        if not -math.inf < self.z_range_nm[0] <= self.z_range_nm[1] < math.inf:
            raise ValueError(f"z_range_nm is {self.z_range_nm}, the lowest depth must come first")

    @property
    def z_remark(self) -> str:
        """What users of z must know of its direction; "" where it was stated."""
        if self.z_direction == "stated" or self.z_range_nm[0] == self.z_range_nm[1]:
            return ""
        return (
            "the direction of z was assumed: if the stage went down in the bead stack, z is upside "
            "down (state it: decode calibrate psf --upwards or --downwards)"
        )

    @property
    def depth(self) -> str:
        """The depths in words."""
        measured = f"{self.z_range_nm[0]:.0f} to {self.z_range_nm[1]:.0f} nm"
        if self.usable_nm is None:
            return f"measured over z = {measured}"
        usable = f"usable over z = {self.usable_nm[0]:.0f} to {self.usable_nm[1]:.0f} nm"
        return (
            usable
            if self.usable_nm == self.z_range_nm
            else f"{usable} of the {measured} that were measured"
        )


def write_psf(path: Path | str, file: PSFFile) -> None:
    """Write a PSF file.

    Raises:
        OSError: if it cannot be written; then there is none.
    """
    image = io.BytesIO()  # where HDF5 cannot write to a disk, it crashes
    with h5py.File(image, "w", libver=(LAYOUT, LAYOUT)) as h5:
        texts = {
            "format": FORMAT,
            "length_unit": "nm",
            "z": "0 in focus, positive as the stage's z in the bead stack",
            "sources": json.dumps(file.sources),
            "figures": json.dumps(dict(file.figures)),
            "origin": file.origin,
            "z_direction": file.z_direction,
        }
        h5.attrs["z_range_nm"] = file.z_range_nm
        if file.usable_nm is not None:
            h5.attrs["usable_nm"] = file.usable_nm
        h5.attrs["n_beads"] = file.n_beads
        h5.attrs["z_step_nm"] = file.z_step_nm
        h5.attrs["deviance"] = file.deviance
        if file.psf.field_nm is not None:
            texts["field"] = (
                "lowest and highest x, then y, from the outer corner of the bead stack's first "
                "pixel"
            )
            h5.attrs["field_px"] = np.array(file.psf.field_nm) / file.psf.pixel_size_nm
        for name, text in texts.items():
            set_text(h5, name, text)
        _set_psf(h5, file.psf)
        if file.pupil is not None:
            group = h5.create_group(PUPIL)
            _set_psf(group, file.pupil.psf)
            group.attrs["z_nm"] = file.pupil.z_nm
            group.attrs["light"] = file.pupil.light
    with atomic(path) as temporary:
        temporary.write_bytes(image.getvalue())


def read_psf(path: Path | str) -> PSFFile:
    """Read a PSF file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not a PSF file, is damaged, or of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: there is no such PSF file; make one with `decode calibrate psf`"
        )
    with open_hdf5(path, "a PSF file", "make it again with `decode calibrate psf`") as h5:
        if text_of(h5, "format") != FORMAT:
            raise ValueError(
                f"{path}: an HDF5 file, but no PSF of this version of decode ({FORMAT})"
            )
        return _file(h5)


def _set_psf(holder: h5py.Group, psf: PSF) -> None:
    kind, settings, arrays = describe(psf)
    set_text(holder, "kind", kind)
    set_text(holder, "settings", json.dumps(settings))
    for name, value in arrays.items():
        holder.create_dataset(name, data=value.numpy(), compression="gzip", shuffle=True)


def _psf(holder: h5py.Group) -> PSF:
    arrays = {
        name: torch.from_numpy(array_of(holder, name).astype(np.float32))
        for name in holder
        if name != PUPIL
    }
    settings = json.loads(text_of(holder, "settings"))
    return rebuild(PSFDescription(text_of(holder, "kind"), settings, arrays))


def _pupil(h5: h5py.File) -> CalibratedPupil | None:
    """Earlier files hold none."""
    if PUPIL not in h5:
        return None
    psf = _psf(h5[PUPIL])
    if not isinstance(psf, PupilPSF):
        raise ValueError(f"its pupil is a PSF of the kind {psf.kind}")
    z_nm, light = (_numbers(h5[PUPIL], name) for name in ("z_nm", "light"))
    return CalibratedPupil(psf=psf, z_nm=z_nm, light=light)


def _numbers(holder: h5py.Group, name: str) -> tuple[float, ...]:
    return tuple(np.atleast_1d(attribute_of(holder, name)).astype(float).tolist())


def _file(h5: h5py.File) -> PSFFile:
    attributes: dict[str, Any] = dict(h5.attrs)
    sources, figures = (json.loads(text_of(h5, name)) for name in ("sources", "figures"))
    low, high = (float(z) for z in attributes["z_range_nm"])
    usable = attributes.get("usable_nm")
    return PSFFile(
        psf=_psf(h5),
        pupil=_pupil(h5),
        z_range_nm=(low, high),
        usable_nm=None if usable is None else (float(usable[0]), float(usable[1])),
        sources=tuple(sources),
        n_beads=int(attributes["n_beads"]),
        z_step_nm=float(attributes["z_step_nm"]),
        figures={k: (v[0], v[1], v[2]) for k, v in figures.items()},
        deviance=float(attributes["deviance"]),
        origin=text_of(h5, "origin"),
        z_direction=_direction(h5),
    )


def _direction(h5: h5py.File) -> ZDirection:
    """Earlier files do not say."""
    known = "z_direction" in h5.attrs and text_of(h5, "z_direction") == "stated"
    return "stated" if known else "assumed"
