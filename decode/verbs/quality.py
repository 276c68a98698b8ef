"""quality: how good a table of molecules is, in figures, and what limits it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import pad

from decode.emitters import EmitterSet
from decode.errors import Undetermined
from decode.io.tables import read_table
from decode.outputs import check_outputs, quality_files, table_inputs
from decode.postprocess.blinks import blinks
from decode.progress import Progress, Steps, Stepwise
from decode.quality.audit import audit_of
from decode.quality.budget import ONCE, Budget, blur_of, budget_of
from decode.quality.decorrelation import decorrelation_analysis
from decode.quality.displacement import Displacement, displacement_of
from decode.quality.distributions import (
    Locking,
    course_of,
    density_of,
    distributions_of,
    locking_of,
    neighbours_of,
)
from decode.quality.plots import write_quality
from decode.quality.precision import Precision, precision_of
from decode.quality.profile import profile_of
from decode.quality.resolution import Resolution, Rings, fourier_shell_correlation, rings_of
from decode.quality.spectrum import Localizations, blocks_of
from decode.quality.summary import Quality

__all__ = ["Quality", "assess"]

R = TypeVar("R")
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

CLASSES = 4
"""of photons, whose pictures are compared"""
Line = tuple[float, float, float, float]


@Stepwise
def assess(
    table: EmitterSet | Path | str,
    out: Path | str | None = None,
    *,
    lines_nm: Sequence[Line] = (),
    n_frames: int | None = None,
    pixel_size_nm: float | None = None,
    correct_repeats: bool = False,
) -> Steps[Quality]:
    """Measure how good a table of molecules is: resolution, precision, distributions, and a budget
    of what limits the resolution.

    `assess.steps` does the same step by step.

    Args:
        table: molecules, or a file that `read_table` reads.
        out: folder for `quality.json` and plots; None writes nothing.
        lines_nm: x and y of both ends of lines, whose profiles are measured.
        n_frames: of the movie, where the table does not say so.
        pixel_size_nm: side of a pixel of the camera, where the table does not state it.
        correct_repeats: whether molecules that come back later in the movie are no structure.

    Returns:
        All figures; those that the table does not tell are None, and `Quality.unknown` says why.

    Raises:
        Undetermined: if the table has fewer than ten molecules.
        ValueError, OSError: in one sentence, as for `read_table`, or if a line has no length.

    Example:
        >>> import decode
        >>> found = decode.assess("sample_data/blinking_2d_truth.csv", pixel_size_nm=100)
        >>> found.n, found.resolution.threshold == 1 / 7
        (8919, True)
    """
    if out is not None:
        folder = Path(out)
        inputs = [] if isinstance(table, EmitterSet) else table_inputs(Path(table))
        check_outputs(quality_files(folder, len(lines_nm)), inputs=inputs, folder=folder)
    yield Progress(0.0, "reading the molecules")
    molecules = (
        table if isinstance(table, EmitterSet) else read_table(table, pixel_size_nm=pixel_size_nm)
    )
    name = "" if isinstance(table, EmitterSet) else str(table)
    if len(molecules) < 10:
        raise Undetermined(f"{name or 'the table'} has {len(molecules)} molecules: nothing to tell")
    found = yield from _measured(
        molecules,
        name=name,
        lines_nm=lines_nm,
        n_frames=n_frames,
        pixel_size_nm=pixel_size_nm or molecules.facts.pixel_size_nm,
        correct_repeats=correct_repeats,
    )
    if out is not None:
        yield Progress(0.9, "drawing")
        folder.mkdir(parents=True, exist_ok=True)
        write_quality(found, quality_files(folder, len(lines_nm)))
    yield Progress(1.0, "")
    return found


def _measured(
    molecules: EmitterSet,
    *,
    name: str,
    lines_nm: Sequence[Line],
    n_frames: int | None,
    pixel_size_nm: float | None,
    correct_repeats: bool,
) -> Steps[Quality]:
    unknown: dict[str, str] = {}

    def told(figure: str, measure: Callable[[], R]) -> R | None:
        try:
            return measure()
        except Undetermined as error:
            unknown[figure] = str(error)
            return None

    frame = molecules.frame.cpu().numpy().astype(np.int64)
    frames = max(n_frames or molecules.facts.n_frames or 0, int(frame.max()) + 1)
    place = molecules.xyz[:, :2].double().cpu().numpy()
    blink = blinks(frame, place, _reach(molecules))
    profiles = tuple(profile_of(molecules, line) for line in lines_nm)
    yield Progress(0.1, "precision")
    precision = precision_of(molecules)
    if precision is None:
        unknown["precision"] = "too few molecules are seen in successive frames"
    audit = told("audit", lambda: audit_of(molecules))
    yield Progress(0.3, "resolution")
    rings = told(
        "resolution",
        lambda: rings_of(molecules, n_frames=frames, correct_repeats=correct_repeats),
    )
    resolution = None if rings is None else rings.resolution
    yield Progress(0.5, "decorrelation")
    decorrelation = told(
        "decorrelation", lambda: decorrelation_analysis(molecules, n_frames=frames)
    )
    yield Progress(0.6, "resolution in 3D")
    lateral = None if resolution is None else resolution.value_nm
    shells = told(
        "shells",
        lambda: fourier_shell_correlation(molecules, n_frames=frames, lateral_nm=lateral),
    )
    yield Progress(0.8, "budget")
    centre = _centres(place, blink)
    locking = _locking(molecules, centre, pixel_size_nm)
    if not locking:
        unknown["locking"] = (
            "the size of a camera's pixel is not stated (--pixel-size)"
            if pixel_size_nm is None
            else "the field has fewer than ten pixels"
        )
    drift, budget = None, None
    if rings is not None:
        drift = _drift(rings)
        budget = _budget(molecules, rings, precision=precision, drift=drift, locking=locking)
    if budget is None:
        unknown["budget"] = unknown.get("resolution") or _no_budget(molecules, resolution)
    return Quality(
        table=name,
        n=len(molecules),
        n_blinks=len(centre),
        n_frames=frames,
        resolution=resolution,
        shells=shells or (),
        decorrelation=decorrelation,
        precision=precision,
        audit=audit,
        distributions=distributions_of(molecules, blink),
        course=course_of(frame, frames),
        density=density_of(place),
        locking=locking,
        neighbours=neighbours_of(centre),
        drift=drift,
        profiles=profiles,
        budget=budget,
        unknown=unknown,
    )


UNSTATED_NM = 15.0
"""standard deviation by which blinks are joined where the table states none"""


def _reach(molecules: EmitterSet) -> Floats:
    """(n, 2) standard deviations by which blinks are joined."""
    if molecules.xyz_sigma is None:
        return np.full((len(molecules), 2), UNSTATED_NM)
    return np.nan_to_num(molecules.xyz_sigma[:, :2].double().cpu().numpy(), nan=UNSTATED_NM)


def _centres(place: Floats, blink: Integers) -> Floats:
    """(m, 2) mean places of blinks."""
    counts = np.bincount(blink)
    sums = np.stack([np.bincount(blink, place[:, a]) for a in range(2)], 1)
    return sums[counts > 0] / counts[counts > 0, None]


def _locking(
    molecules: EmitterSet, centre: Floats, pixel_size_nm: float | None
) -> tuple[Locking, ...]:
    if pixel_size_nm is None:
        return ()
    if min(np.ptp(centre, axis=0)) < 10 * pixel_size_nm:
        return ()
    sigma = 0.0 if molecules.xyz_sigma is None else float(np.nanmedian(_reach(molecules)))
    return tuple(
        locking_of(
            centre[:, axis],
            axis,
            pixel_nm=pixel_size_nm,
            sigma_nm=sigma,
            extent_nm=float(np.ptp(centre[:, axis])),
        )
        for axis in range(2)
    )


def _drift(rings: Rings) -> Displacement | None:
    found = displacement_of(rings.seen, rings.sigma_nm)
    return found if found.told else None


def _budget(
    molecules: EmitterSet,
    rings: Rings,
    *,
    precision: Precision | None,
    drift: Displacement | None,
    locking: tuple[Locking, ...],
) -> Budget | None:
    stated = _stated(molecules)
    if stated is None:
        return None
    rank = blocks_of(np.argsort(np.argsort(molecules.photons.cpu().numpy())), CLASSES)
    brightness = displacement_of(
        Localizations(place=rings.seen.place, block=rank, n_blocks=CLASSES), rings.sigma_nm
    )
    if brightness.told and brightness.variance > 3 * brightness.error:
        # a molecule that changes its brightness scatters by it: that is no excess, then
        precision = precision_of(_shifted(molecules, brightness.path[rank]))
    return budget_of(
        rings.spectrum,
        rings.resolution,
        blur_of(
            sigma=np.sqrt((stated**2).mean(1)),
            ratio=_ratio(precision),
            drift=drift,
            brightness=brightness,
            locking=locking,
            goodness=_goodness(molecules),
            applied=tuple(command for command in ONCE if command in molecules.metadata),
        ),
    )


def _stated(molecules: EmitterSet) -> Floats | None:
    """(n, 2) standard deviations along x and y; None where none is stated."""
    if molecules.xyz_sigma is None:
        return None
    sigma = molecules.xyz_sigma[:, :2].double().cpu().numpy()
    return sigma if (np.isfinite(sigma) & (sigma > 0)).any() else None


def _goodness(molecules: EmitterSet) -> float | None:
    if molecules.goodness is None:
        return None
    known = molecules.goodness[torch.isfinite(molecules.goodness)]
    return float(known.median()) if len(known) else None


def _shifted(molecules: EmitterSet, by: Floats) -> EmitterSet:
    """Molecules less (n, 2) nm in x and y."""
    xyz = molecules.xyz.double().cpu()
    return replace(molecules.to("cpu"), xyz=xyz - pad(torch.from_numpy(by), (0, 1)))


def _ratio(precision: Precision | None) -> tuple[float, float] | None:
    if precision is None or not math.isfinite(precision.ratio):
        return None
    return precision.ratio, precision.ratio_error


def _no_budget(molecules: EmitterSet, resolution: Resolution | None) -> str:
    if _stated(molecules) is None:
        return "the table states no uncertainties"
    if resolution is not None and resolution.value_nm is None:
        return resolution.sentence
    return "the spectrum of the structure is too short to tell"
