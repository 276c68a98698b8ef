"""calibrate psf: bead stacks to a PSF, and its test on held-out beads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from decode.calibrate.beads import Bead, BeadSet, RejectedBead, find_beads
from decode.calibrate.counts import largest_count
from decode.calibrate.families import FAMILIES, Family, FamilyFit, Optics
from decode.calibrate.held_out import HeldOut, leave_one_out, usable_range
from decode.calibrate.scan import Scan, check_scan
from decode.calibrate.stacks import BeadStack, Stacks, check_maps, depths_of, read_stacks
from decode.calibrate.stage import check_stage
from decode.io.cameras import CameraFile
from decode.io.psfs import PSFFile
from decode.io.tables import read_table
from decode.optics.camera import Camera
from decode.optics.psf import PSF
from decode.progress import Progress, Steps, Stepwise, part, shares

__all__ = ["MODELS", "Optics", "PSFCalibration", "check_model", "fit_psf", "read_positions"]

PATCH_NM = 3100.0
"""default side of the crops, which holds a 3D PSF over 1.5 um of depth"""
SMALLEST_PATCH_PX = 7
FARTHEST_PX = 5
"""largest distance from a bead to its known position"""
ALONE = (
    "one bead only: nothing can be held out, so no figure shows how good the PSF is; record more"
)
MODELS = tuple(FAMILIES)
"""names of the families that can be fitted"""


@final
@dataclass(frozen=True, kw_only=True)
class PSFCalibration:
    """A PSF, the beads it was fitted to, and how well it predicts held-out beads."""

    file: PSFFile
    """the PSF, its range of depth and its sources; `write_psf` saves it"""
    z_nm: Tensor
    """(z,) depth of the planes"""
    beads: tuple[Bead, ...]
    rejected: tuple[RejectedBead, ...]
    xyz: Tensor
    """(n, 3) position of each bead, nm, x and y from the outer corner of its crop"""
    photons: Tensor
    """(n, z) photons of each bead and plane"""
    background: Tensor
    """(n,) photons per pixel"""
    jitter_nm: Tensor
    """(n, z, 3) actual minus nominal position of the stage, nm; the beads of a stack share it"""
    deviance: float
    """mean deviance per pixel; 1 where noise explains the residuals"""
    held_out: HeldOut | None
    """held-out beads; None with a single bead"""
    smoothness: dict[float, float] = field(default_factory=dict)
    """deviance of held-out beads by the smoothness tried"""
    depth_smoothness: dict[float, float] = field(default_factory=dict)
    """the same by the smoothness along z"""
    notes: tuple[str, ...] = ()
    """what the user should know, a sentence each"""

    @property
    def psf(self) -> PSF:
        return self.file.psf


@Stepwise
def fit_psf(
    stacks: Sequence[BeadStack],
    camera: CameraFile,
    *,
    z_step_nm: float | None = None,
    z_focus: int | None = None,
    scan: Scan | None = None,
    model: str = "spline",
    patch_px: int | None = None,
    positions_nm: Tensor | None = None,
    optics: Optics | None = None,
) -> Steps[PSFCalibration]:
    """Fit a PSF to z-stacks of beads, and test it on held-out beads.

    Args:
        stacks: z-stacks of beads on a coverslip, all recorded in the same way.
        camera: turns counts into photons, and states the pixel size.
        z_step_nm: distance of the planes; None: as the files state it.
        z_focus: number of the plane with z = 0, counted from 0 in the order of the stage; None: the
            middle one.
        scan: which plane each frame shows; None: one plane a frame, from below.
        model: one of `MODELS`: `spline` for any PSF, `pupil` for aberrations of a high-aperture
            objective, `gaussian` for a fast and rough fit.
        patch_px: side of the crops and of the PSF, an odd number; None: 3.1 um.
        positions_nm: (m, 2) true x, y of some beads, nm, if known; None places emitters at the
            centroid of their light in focus.
        optics: facts of the objective.

    Returns:
        The calibration; its PSF is in focus at z = 0 of the stage.

    Raises:
        ValueError: in one sentence, if a file is no z-stack, the step is impossible, or no bead can
            be used.
    """
    family = _family(model, optics or Optics(), positions_nm)
    scan = scan or Scan()
    recorded = yield from part(read_stacks(stacks), 0.0, 0.03, "reading the beads")
    check_maps(camera.camera, recorded)
    depths = depths_of(recorded, scan, z_step_nm=z_step_nm, z_focus=z_focus)
    frames = scan.frames(recorded.n_frames)
    pixel, of_plane = camera.pixel_size_nm, camera.camera.of_sum(frames.shape[1])
    patch = _patch(patch_px, pixel)
    yield Progress(0.03, "finding the beads")
    found, rejected = _found(recorded, frames, camera.camera, patch)
    if positions_nm is not None:
        _check_positions(found, positions_nm, pixel)
    beads = BeadSet.of(
        found,
        z_nm=depths.z_nm,
        camera=of_plane,
        pixel_size_nm=pixel,
        field_nm=_field(recorded, pixel),
    )
    check_scan(beads.crops)
    notes = (*depths.notes, *check_stage(beads.crops, depths.step_nm, pixel))

    of_fit, of_refit = family.work(beads)
    fitting, trying = shares(of_fit, of_refit * _refits(beads), start=0.05)
    made = yield from part(family.fit(beads), *fitting, "fitting the PSF")
    held_out = yield from part(_tried(beads, made), *trying)
    yield Progress(1.0, "writing down what was found")
    if held_out is None:
        notes += (ALONE,)
    fit, origin = made.fit, "centroid of the light at z = 0"
    if positions_nm is not None:
        fit = family.at_positions(fit, beads.corners_nm, positions_nm)
        origin = "known positions of beads"
    low, high = float(depths.z_nm[0]), float(depths.z_nm[-1])
    return PSFCalibration(
        file=PSFFile(
            psf=family.of_molecules(fit.psf),
            z_range_nm=(low, high),
            usable_nm=None if held_out is None else usable_range(held_out),
            sources=tuple(str(path) for path in recorded.paths),
            n_beads=len(beads),
            z_step_nm=depths.step_nm,
            figures={} if held_out is None else held_out.summary(),
            deviance=fit.deviance,
            origin=origin,
            z_direction=scan.z_direction,
        ),
        z_nm=depths.z_nm,
        beads=tuple(found),
        rejected=tuple(rejected),
        xyz=fit.xyz,
        photons=fit.photons,
        background=fit.background,
        jitter_nm=fit.jitter,
        deviance=fit.deviance,
        held_out=held_out,
        smoothness=made.smoothness,
        depth_smoothness=made.depth_smoothness,
        notes=(*notes, *made.notes),
    )


def read_positions(table: Path | str) -> Tensor:
    """(m, 2) true x, y of beads, nm: the molecules of a table's first frame.

    Raises:
        ValueError, OSError: if it is no table of molecules.
    """
    emitters = read_table(table)
    return emitters.xyz[emitters.frame == emitters.frame.min(), :2].float()


def check_model(model: str) -> None:
    """Check that a name is one of a family of PSFs.

    Raises:
        ValueError: if it is none of `MODELS`.
    """
    if model not in FAMILIES:
        raise ValueError(f"model {model!r} is unknown; choose from {', '.join(FAMILIES)}")


def _family(model: str, optics: Optics, positions_nm: Tensor | None) -> Family[Any]:
    check_model(model)
    family = FAMILIES[model](optics)
    if positions_nm is None:
        return family
    if not family.takes_positions:
        advice = "calibrate a spline or a pupil"
        raise ValueError(f"a {model} has no place for known positions; {advice}")
    if positions_nm.ndim != 2 or positions_nm.shape[1] != 2 or not len(positions_nm):
        shape = tuple(positions_nm.shape)
        raise ValueError(f"known positions have the shape {shape}; give x and y of each, in nm")
    return family


def _patch(asked: int | None, pixel_size_nm: float) -> int:
    patch = asked or 2 * round(PATCH_NM / pixel_size_nm / 2 - 0.5) + 1
    if patch < SMALLEST_PATCH_PX or patch % 2 == 0:
        possible = f"an odd number of {SMALLEST_PATCH_PX} or more"
        raise ValueError(f"the patch is {patch} pixels wide; choose {possible}")
    return patch


def _found(
    stacks: Stacks,
    frames: Tensor,
    camera: Camera,
    patch_px: int,
) -> tuple[list[Bead], list[RejectedBead]]:
    """Usable beads in the planes, each the sum of some frames (plane, m), and the others."""
    saturated = []
    for counts in stacks.adu:
        limit = largest_count(counts, camera.saturation_adu)
        saturated.append((counts >= limit)[frames].any(1))
    of_plane = camera.of_sum(frames.shape[1])
    planes = [of_plane.to_photons(counts[frames].sum(1)) for counts in stacks.adu]
    beads, rejected = find_beads(planes, patch_px, saturated)
    if not beads:
        reasons = "; ".join(str(bead) for bead in rejected[:3])
        raise ValueError(f"none of the {len(rejected)} beads can be used: {reasons}")
    return beads, rejected


def _field(stacks: Stacks, pixel_size_nm: float) -> tuple[tuple[float, float], tuple[float, float]]:
    height, width = (max(adu.shape[axis] for adu in stacks.adu) for axis in (1, 2))
    return (0.0, width * pixel_size_nm), (0.0, height * pixel_size_nm)


def _check_positions(beads: Sequence[Bead], positions_nm: Tensor, pixel_size_nm: float) -> None:
    centre = torch.tensor([bead.centre_px for bead in beads]) * pixel_size_nm
    farthest = float(torch.cdist(centre, positions_nm.to(centre)).min(1).values.max())
    if not farthest < FARTHEST_PX * pixel_size_nm:
        raise ValueError(
            f"a bead lies {farthest:.0f} nm from the nearest of the known positions; they belong "
            "to another stack, or are not in nm from the outer corner of the first pixel"
        )


def _refits(beads: BeadSet) -> int:
    return len(beads) if len(beads) > 1 else 0


def _tried(beads: BeadSet, made: FamilyFit[Any]) -> Steps[HeldOut | None]:
    """Each bead under the PSF of the others; None of a single one."""
    if len(beads) == 1:
        return None
    tried = leave_one_out(beads, start_xyz=made.uniform.xyz, without=made.without)
    return (yield from tried)
