"""calibrate psf: bead stacks to a PSF, with what it is worth."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from decode.calibrate.beads import Bead, RejectedBead, find_beads
from decode.calibrate.camera import largest_count
from decode.calibrate.field import BEADS_PER_TERM, PLANES, fit_field, try_field
from decode.calibrate.gaussian import fit_gaussian
from decode.calibrate.held_out import HeldOut, usable_range
from decode.calibrate.phase_mask import fit_phase_mask, refine_phase_mask
from decode.calibrate.pupil import brightness, fit_images, fit_pupil, spread
from decode.calibrate.scan import FEWEST_PLANES, Scan, check_scan
from decode.calibrate.spline import (
    DEPTH_SMOOTHNESS,
    SMOOTHNESS,
    BeadFit,
    centroids,
    fit_spline,
    held_out_deviance,
    jitter_of,
)
from decode.calibrate.stage import check_stage
from decode.io.cameras import CameraFile
from decode.io.movies.tiff import open_movie
from decode.io.psfs import PSFFile
from decode.io.tables import read_table
from decode.likelihood import fit_emitters
from decode.optics.camera import Noise
from decode.optics.field import FieldSplinePSF
from decode.optics.psf import PSF
from decode.optics.pupil import PupilPSF
from decode.optics.spline import SplinePSF
from decode.progress import Progress, Steps, Stepwise, part, shares

__all__ = ["MODELS", "Optics", "PSFCalibration", "calibrate_psf", "read_positions"]

PATCH_NM = 3100.0
"""side of the crops unless told otherwise: holds a 3D PSF over 1.5 um of depth"""
PLANES_AT_ONCE = 16
"""that are read between two steps"""
Model = Literal["spline", "pupil", "gaussian"]
MODELS: dict[str, Model] = {"spline": "spline", "pupil": "pupil", "gaussian": "gaussian"}


class Optics(NamedTuple):
    """What a pupil must be told; the fit may correct the aperture a little."""

    numerical_aperture: float = 1.45
    wavelength_nm: float = 670.0
    immersion_index: float = 1.518
    sample_index: float | None = None
    """refractive index around the beads; None: that of the immersion"""
    bead_diameter_nm: float = 0.0
    """of the beads, whose size is taken out: the PSF is that of a molecule"""
    phase_mask: bool = False
    """fit a free phase over the pupil besides the Zernike coefficients"""


@final
@dataclass(frozen=True, kw_only=True)
class PSFCalibration:
    """A PSF, the beads it rests on, and how well it predicts beads it has not seen."""

    file: PSFFile
    """the PSF, its range of depth and where it comes from; `write_psf` saves it"""
    z_nm: Tensor
    """(z,) depth of the planes"""
    beads: tuple[Bead, ...]
    rejected: tuple[RejectedBead, ...]
    xyz: Tensor
    """(n, 3) nm where each bead is, x and y from the outer corner of its crop"""
    photons: Tensor
    """(n, z) of each bead and plane"""
    background: Tensor
    """(n,) photons per pixel"""
    jitter_nm: Tensor
    """(n, z, 3) how far the stage strayed from its nominal place; the beads of a stack share it"""
    deviance: float
    """mean over pixels; 1 where noise explains what the PSF does not"""
    held_out: HeldOut | None
    """None with a single bead"""
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
def calibrate_psf(
    stacks: Sequence[Path | str],
    camera: CameraFile,
    *,
    z_step_nm: float | None = None,
    z_focus: int | None = None,
    scan: Scan | None = None,
    model: Model = "spline",
    patch_px: int | None = None,
    positions_nm: Tensor | None = None,
    optics: Optics | None = None,
) -> Steps[PSFCalibration]:
    """Calibrate a PSF from z-stacks of beads; `calibrate_psf.steps` does so step by step.

    Args:
        stacks: TIFF files, each a z-stack of beads on a coverslip, all recorded alike.
        camera: turns counts into photons, and states the pixel size.
        z_step_nm: distance of the planes; None: as the files state it.
        z_focus: number of the plane, from 0 and as the stage went, that is z = 0; None: the middle one.
        scan: which plane each frame shows; None: each frame shows one, and they rise.
        model: `spline` for any PSF, `pupil` for aberrations of a high-aperture objective, `gaussian` for quick work.
        patch_px: side of the crops and of the PSF, an odd number; None: 3.1 um.
        positions_nm: (m, 2) x, y where some beads truly are, if that is known: else an emitter is where the centroid
            of its light in focus is.
        optics: of the pupil.

    Returns:
        The calibration; its PSF is in focus where the stage was at z = 0.

    Raises:
        ValueError: in one sentence, if a file is no z-stack, the step is impossible, or no bead can be used.
    """
    if optics is not None and model != "pupil" and optics[3:] != Optics()[3:]:
        raise ValueError("sample index, bead diameter and phase mask are of a pupil; calibrate one with --model pupil")
    if positions_nm is not None:
        if model == "gaussian":
            raise ValueError("a Gaussian has no place for known positions; calibrate a spline or a pupil")
        if positions_nm.ndim != 2 or positions_nm.shape[1] != 2 or not len(positions_nm):
            raise ValueError(f"known positions have the shape {tuple(positions_nm.shape)}; give x and y of each, in nm")
    paths = [Path(p) for p in stacks]
    adu, stated = yield from part(_read(paths), 0.0, 0.03, "reading the beads")
    _check_maps(camera, paths, adu)
    scan = scan or Scan()
    z_nm, step, notes = _depths(scan, len(adu[0]), z_step_nm, z_focus, stated)
    n_planes = len(z_nm)
    frames = scan.frames(len(adu[0]))
    limits = [largest_count(counts, camera.camera.saturation_adu) for counts in adu]
    saturated = [(counts >= limit)[frames].any(1) for counts, limit in zip(adu, limits, strict=True)]
    planes = [counts[frames].sum(1) for counts in adu]
    camera = replace(camera, camera=camera.camera.of_sum(frames.shape[1]))
    pixel = camera.pixel_size_nm
    patch = patch_px or 2 * round(PATCH_NM / pixel / 2 - 0.5) + 1
    if patch < 7 or patch % 2 == 0:
        raise ValueError(f"the patch is {patch} pixels wide; choose an odd number of 7 or more")
    yield Progress(0.03, "finding the beads")
    beads, rejected = find_beads([camera.camera.to_photons(counts) for counts in planes], patch, saturated)
    if not beads:
        reasons = "; ".join(str(bead) for bead in rejected[:3])
        raise ValueError(f"none of the {len(rejected)} beads can be used: {reasons}")
    if positions_nm is not None:
        _check_positions(beads, positions_nm, pixel)
    crops = torch.stack([bead.photons for bead in beads])
    check_scan(crops)
    notes += check_stage(crops, step, pixel)
    noise = camera.camera.noise_of_crops([bead.corner_px for bead in beads], patch)
    xy = torch.tensor([[bead.centre_px[i] - bead.corner_px[i] for i in (0, 1)] for bead in beads]) * pixel
    stack = torch.tensor([bead.stack for bead in beads])
    smoothness, depth_smoothness = {}, {}
    best, best_depth = 0.2, DEPTH_SMOOTHNESS[1]
    # knots are as far apart as with all planes, so a third of the planes tells which smoothness is right
    some = slice(None, None, max(1, n_planes // 50))
    # along z neighbours matter
    middle = slice(max(0, n_planes // 2 - 30), n_planes // 2 + 31)
    choosing, fitting, varying, trying = _work(model, len(beads), len(z_nm[some]), len(z_nm[middle]), n_planes)
    if model == "spline" and len(beads) > 1:
        tried = sorted(SMOOTHNESS, reverse=True)
        depths = sorted(DEPTH_SMOOTHNESS)
        half = sum(choosing) / 2
        trials = held_out_deviance.steps(
            crops[:, some], z_nm[some], noise, pixel, xy, [(s, best_depth) for s in tried], stack
        )
        lost = yield from part(trials, choosing[0], half, "choosing how smooth the PSF is")
        smoothness = dict(zip(tried, lost, strict=True))
        best = min(smoothness, key=lambda s: smoothness[s])
        trials = held_out_deviance.steps(
            crops[:, middle], z_nm[middle], noise, pixel, xy, [(best, d) for d in depths], stack
        )
        lost = yield from part(trials, half, choosing[1], "choosing how smooth the PSF is along z")
        depth_smoothness = dict(zip(depths, lost, strict=True))
        best_depth = min(depth_smoothness, key=lambda d: depth_smoothness[d])

    def fit(which: list[int], start: BeadFit | None = None) -> Steps[BeadFit]:
        if model == "gaussian":
            return fit_gaussian.steps(crops[which], z_nm, noise[which], pixel, xy[which])
        if model == "pupil":
            return _fit_pupil(crops[which], z_nm, camera, optics or Optics(), start, which)
        # from nothing: a fit of all beads would hand on some of the noise of the one that is left out
        return fit_spline.steps(
            crops[which], z_nm, noise[which], pixel, xy[which], smoothness=best, depth_smoothness=best_depth,
            stack=stack[which], n_rounds=4,
        )  # fmt: skip

    same = whole = yield from part(fit(list(range(len(beads)))), *fitting, "fitting the PSF")
    held_out = None
    refit: Callable[[list[int], BeadFit], Steps[BeadFit]] = fit
    if model == "spline" and len(beads) > 1:
        places = torch.tensor([bead.centre_px for bead in beads]) * pixel
        height, width = (max(plane.shape[axis] for plane in planes) * pixel for axis in (1, 2))
        field_nm = (0.0, width), (0.0, height)
        changing = try_field.steps(
            same, crops, z_nm, noise, places, field_nm, smoothness=best, depth_smoothness=best_depth, stack=stack
        )
        trial = yield from part(changing, *varying, "trying whether the PSF changes over the field")
        whole, notes = trial.fit, (*notes, trial.note)

        def refit_field(others: list[int], start: BeadFit) -> Steps[BeadFit]:
            alike = yield from part(fit(others, start), 0.0, 0.5)
            over_field = fit_field.steps(
                alike, crops[others], z_nm, noise[others], places[others], field_nm, terms=trial.terms,
                size=trial.size, smoothness=best, depth_smoothness=best_depth, n_rounds=2,
            )  # fmt: skip
            found = yield from part(over_field, 0.5, 1.0)
            assert isinstance(found.psf, FieldSplinePSF)
            (left_out,) = set(range(len(beads))) - set(others)
            return replace(found, psf=found.psf.at(*places[left_out].tolist()))

        refit = refit_field if trial.terms > 1 else fit
    if len(beads) > 1:
        held_out = yield from part(_leave_one_out(crops, z_nm, camera, noise, stack, same, refit), *trying)
    else:
        notes += ("one bead only: nothing can be held out, so no figure tells how good the PSF is; record more",)
    yield Progress(1.0, "writing down what was found")
    if positions_nm is not None:
        whole = _at_positions(whole, beads, positions_nm, pixel)
    facts = PSFFile(
        psf=_of_molecules(whole.psf),
        z_range_nm=(float(z_nm[0]), float(z_nm[-1])),
        usable_nm=None if held_out is None else usable_range(held_out),
        sources=tuple(str(p) for p in paths),
        n_beads=len(beads),
        z_step_nm=step,
        figures={} if held_out is None else held_out.summary(),
        deviance=whole.deviance,
        origin="known positions of beads" if positions_nm is not None else "centroid of the light at z = 0",
    )
    return PSFCalibration(
        file=facts,
        z_nm=z_nm,
        beads=tuple(beads),
        rejected=tuple(rejected),
        xyz=whole.xyz,
        photons=whole.photons,
        background=whole.background,
        jitter_nm=whole.jitter,
        deviance=whole.deviance,
        held_out=held_out,
        smoothness=smoothness,
        depth_smoothness=depth_smoothness,
        notes=notes,
    )


def read_positions(table: Path | str) -> Tensor:
    """(m, 2) x, y nm of where beads truly are: the molecules of a table's first frame.

    Raises:
        ValueError, OSError: if it is no table of molecules.
    """
    emitters = read_table(table)
    return emitters.xyz[emitters.frame == emitters.frame.min(), :2].float()


def _work(model: Model, n_beads: int, n_some: int, n_middle: int, n_planes: int) -> list[tuple[float, float]]:
    """Shares of the work: choosing the smoothness, the fit, the field, beads that are left out.

    A unit is a turn of a fit for one image of a bead; all are rough.
    """
    every = n_beads * n_planes
    left_out = n_beads > 1
    if model != "spline":
        # a pupil is refined where a bead is left out, and fitted from nothing before
        return shares(0, 4 if model == "pupil" else 1, 0, n_beads * left_out, start=0.05)
    choosing = 4 * 4 * n_beads / 2 * (n_some + n_middle) * left_out
    varying = 60 * n_beads * min(PLANES, n_planes) * (n_beads >= 3 * BEADS_PER_TERM)
    return shares(choosing, 4 * every, varying, n_beads * 6 * every * left_out, start=0.05)


def _read(paths: Sequence[Path]) -> Steps[tuple[list[Tensor], list[float | None]]]:
    """The stacks, (z, y, x) ADU each, and the distance of planes that each file states."""
    if not paths:
        raise ValueError("give at least one stack of beads")
    stacks, stated = [], []
    for number, path in enumerate(paths):
        with open_movie(path) as movie:
            stack = torch.empty(movie.shape, dtype=torch.float32)
            for start in range(0, len(movie), PLANES_AT_ONCE):
                yield Progress((number + start / len(movie)) / len(paths))
                planes = movie.read(start, min(len(movie), start + PLANES_AT_ONCE))
                stack[start : start + len(planes)] = torch.from_numpy(planes.astype(np.float32))
            stacks.append(stack)
            stated.append(movie.z_step_nm)
    if len({len(stack) for stack in stacks}) > 1:
        listed = ", ".join(f"{path.name} {len(stack)}" for path, stack in zip(paths, stacks, strict=True))
        raise ValueError(f"the stacks differ in their number of planes ({listed}); calibrate them apart")
    return stacks, stated


def _check_maps(camera: CameraFile, paths: Sequence[Path], planes: Sequence[Tensor]) -> None:
    maps = [torch.as_tensor(value) for value in (camera.camera.baseline, camera.camera.noise_floor, camera.camera.qe)]
    for path, stack in zip(paths, planes, strict=True):
        for value in maps:
            if value.ndim >= 2 and value.shape[-2:] != stack.shape[1:]:
                raise ValueError(
                    f"{path}: its frames are {tuple(stack.shape[1:])} (y, x), the camera's maps "
                    f"{tuple(value.shape[-2:])}; crop the maps to the region the beads were recorded in"
                )


def _depths(
    scan: Scan, n_frames: int, z_step_nm: float | None, z_focus: int | None, stated: Sequence[float | None]
) -> tuple[Tensor, float, tuple[str, ...]]:
    """(plane,) z in nm from the lowest plane upwards, their distance, and what to say of it."""
    n_planes = len(scan.frames(n_frames))
    if n_planes < FEWEST_PLANES:
        raise ValueError(f"the stack has {n_planes} planes; a z-stack of beads needs at least {FEWEST_PLANES}")
    depths = scan.depths()
    if depths is not None:
        if z_step_nm is not None or z_focus is not None:
            raise ValueError("the z of each frame says all: leave --z-step and --z-focus out")
        return depths, float(depths.diff().median()), ()
    step, notes = _step(z_step_nm, stated)
    focus = n_planes // 2 if z_focus is None else z_focus
    if not 0 <= focus < n_planes:
        raise ValueError(f"--z-focus {focus} is none of the {n_planes} planes, which count from 0")
    from_lowest = n_planes - 1 - focus if scan.downwards else focus
    return (torch.arange(n_planes, dtype=torch.float32) - from_lowest) * step, step, notes


def _step(asked: float | None, stated: Sequence[float | None]) -> tuple[float, tuple[str, ...]]:
    known = [step for step in stated if step is not None]
    if asked is None:
        if not known:
            raise ValueError("the files do not say how far their planes are apart; state it with --z-step, in nm")
        if max(known) > 1.01 * min(known):
            raise ValueError(f"the files' planes are {min(known):g} to {max(known):g} nm apart; calibrate them apart")
        return known[0], ()
    if not asked > 0:
        raise ValueError(
            f"--z-step is {asked:g} nm, must be positive: planes rise by it; of a stack recorded downwards say so "
            "with --downwards"
        )
    if not 1 <= asked <= 1000:
        raise ValueError(f"--z-step is {asked:g} nm, which is no distance of planes; state it in nm")
    notes = [
        f"the file says its planes are {step:g} nm apart, --z-step says {asked:g}: the latter was taken, check it"
        for step in set(known)
        if not math.isclose(step, asked, rel_tol=0.02)
    ]
    return asked, tuple(notes)


def _check_positions(beads: Sequence[Bead], positions: Tensor, pixel: float) -> None:
    centre = torch.tensor([bead.centre_px for bead in beads]) * pixel
    farthest = float(torch.cdist(centre, positions.to(centre)).min(1).values.max())
    if not farthest < 5 * pixel:
        raise ValueError(
            f"a bead lies {farthest:.0f} nm from the nearest of the known positions; they belong to another stack, or "
            "are not in nm from the outer corner of the first pixel"
        )


def _leave_one_out(
    crops: Tensor,
    z_nm: Tensor,
    camera: CameraFile,
    noise: Noise,
    stack: Tensor,
    whole: BeadFit,
    fit: Callable[[list[int], BeadFit], Steps[BeadFit]],
) -> Steps[HeldOut]:
    errors, bounds, jitters = [], [], []
    inner = slice(1, -1)
    for i, crop in enumerate(crops):
        others = [k for k in range(len(crops)) if k != i]
        message = f"trying the PSF on bead {i + 1} of {len(crops)}, left out of the fit"
        found = yield from part(fit(others, whole), i / len(crops), (i + 0.8) / len(crops), message)
        images = crop[:, inner, inner]
        start = whole.xyz[i].expand(len(z_nm), 3) - torch.tensor([camera.pixel_size_nm] * 2 + [0.0])
        ends = float(z_nm[0]), float(z_nm[-1])
        floor = noise[i].floor
        own = floor[:, inner, inner].expand(len(images), -1, -1) if isinstance(floor, Tensor) else None
        located = fit_emitters(found.psf, camera.camera, images, start, z_range=ends, noise_floor=own)
        error = located.xyz - torch.cat([torch.zeros(len(z_nm), 2), z_nm[:, None]], 1)
        errors.append(error - error.median(0).values)
        # of the pixels that were looked at: the patch of the PSF is wider, and tells more
        sigma = located.xyz_sigma
        bounds.append(torch.where(sigma > 0, sigma, math.inf))
        jitters.append(jitter_of(found, stack[others], stack[i : i + 1])[0])
        yield Progress((i + 1) / len(crops), message)
    return HeldOut(
        z_nm=z_nm, error_nm=torch.stack(errors), bound_nm=torch.stack(bounds), jitter_nm=torch.stack(jitters)
    )


def _fit_pupil(
    crops: Tensor, z_nm: Tensor, camera: CameraFile, optics: Optics, start: BeadFit | None, which: list[int]
) -> Steps[BeadFit]:
    """From scratch, or from a fit that holds these beads (`which` of them) among others."""
    n, planes, side, _ = crops.shape
    psf = PupilPSF(
        numerical_aperture=optics.numerical_aperture,
        wavelength_nm=optics.wavelength_nm,
        immersion_index=optics.immersion_index,
        sample_index=optics.sample_index,
        bead_diameter_nm=optics.bead_diameter_nm,
        pixel_size_nm=camera.pixel_size_nm,
        scan="stage",
        patch_px=side,
    )
    free = [*psf.parameter_names, "numerical_aperture"]
    if start is None:
        from_scratch = fit_phase_mask.steps if optics.phase_mask else fit_pupil.steps
        fit = from_scratch(crops, z_nm=z_nm, psf=psf, camera=camera.camera, free=free)
    else:
        assert isinstance(start.psf, PupilPSF)
        some = spread(planes, max(5, 60 // n))
        again = partial(refine_phase_mask.steps, steps=40) if optics.phase_mask else partial(fit_images.steps, steps=5)
        fit = again(
            crops[:, some].flatten(0, 1),
            source=torch.arange(n).repeat_interleave(len(some)),
            z_nm=z_nm[some].repeat(n),
            psf=start.psf,
            xyz_nm=start.xyz[which],
            camera=camera.camera,
            free=free,
        )
    found = yield from fit
    # an emitter is where the centroid of its light in focus is, and in focus where the stage was at 0
    at_zero = torch.tensor([[side / 2 * camera.pixel_size_nm] * 2 + [0.0]])
    at_zero[:, 2] = found.xyz_nm[:, 2].mean()
    image = found.psf.integrate_pixels(at_zero).detach()
    seen = torch.cat([at_zero[0, :2] - centroids(image, camera.pixel_size_nm)[0], at_zero[0, 2:]])
    found.psf.offset_nm.add_(seen)
    xyz = found.xyz_nm - seen
    # light of every plane, also of those that the fit left out
    spline = found.psf.to_spline(z_range_nm=(float(z_nm[0]) - 100, float(z_nm[-1]) + 100))
    at = xyz[:, None] + torch.nn.functional.pad(z_nm[:, None], (2, 0))
    share = spline.integrate_pixels(at.flatten(0, 1)).detach()[:, :side, :side]
    noise = camera.camera.typical_noise
    slope, floor = float(noise.excess), float(noise.floor)
    light = brightness(crops.flatten(0, 1), share, slope, floor / slope).view(n, planes, 2)
    return BeadFit(
        psf=found.psf,
        xyz=xyz,
        photons=light[..., 0],
        background=light[..., 1].mean(1),
        jitter=torch.zeros(n, planes, 3),
        deviance=found.misfit,
    )


def _of_molecules(psf: PSF) -> PSF:
    if isinstance(psf, PupilPSF) and psf.bead_diameter_nm:
        psf = copy.deepcopy(psf)
        psf.bead_diameter_nm = 0.0
    return psf


def _at_positions(fit: BeadFit, beads: Sequence[Bead], positions: Tensor, pixel: float) -> BeadFit:
    """Move the origin of the PSF to where the beads are known to be."""
    corner = torch.tensor([bead.corner_px for bead in beads]) * pixel
    found = fit.xyz[:, :2] + corner
    which = torch.cdist(found, positions.to(found)).argmin(1)
    offset = (found - positions[which]).mean(0)
    if isinstance(fit.psf, FieldSplinePSF):
        # the same, by a polynomial of the place
        weight = fit.psf.basis(positions[which].to(found))
        offsets = torch.linalg.lstsq(weight, found - positions[which].to(found)).solution
        shift = offsets[0] * fit.psf.middle.oversampling / pixel
        x, y = (torch.tensor(fit.psf.middle.centre_px) - shift).tolist()
        varied = FieldSplinePSF(
            fit.psf.middle.moved((x, y)),
            fit.psf.changes.detach(),
            shifts_nm=fit.psf.shifts_nm.detach() - offsets[1:],
            field_nm=fit.psf.field_nm,
        )
        return replace(fit, psf=varied, xyz=fit.xyz - torch.nn.functional.pad(weight @ offsets, (0, 1)))
    if isinstance(fit.psf, SplinePSF):
        # the same image belongs to an emitter that lies `offset` less far
        x, y = (torch.tensor(fit.psf.centre_px) - offset * fit.psf.oversampling / pixel).tolist()
        psf: PSF = fit.psf.moved((x, y))
    else:
        assert isinstance(fit.psf, PupilPSF)
        psf = fit.psf
        psf.offset_nm[:2] += offset
    return replace(fit, psf=psf, xyz=fit.xyz - torch.nn.functional.pad(offset, (0, 1)))
