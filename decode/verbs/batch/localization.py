"""One movie of a job: its tables, what follows them, and its row in the summary."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TextIO, final

import torch
from torch import Tensor

from decode.emitters import EmitterSet
from decode.io.psfs import read_psf
from decode.io.tables import read_table, written_formats
from decode.models import load_model
from decode.postprocess.drift import read_drift
from decode.progress import Progress, followed
from decode.verbs.batch.plan import Task
from decode.verbs.batch.receipt import Row
from decode.verbs.finish import finish
from decode.verbs.localize import Localized, LocalizeReport, localize_file

__all__ = ["Log", "Typical", "localized"]

LOCALIZING = 0.8
"""share of the work after which the table is written"""
MOST_SEEN = 2**17
"""molecules of which medians are taken: they are known to half a percent"""

Tell = Callable[[float, str], None]

_model, _psf = cache(load_model), cache(read_psf)


@final
class Log:
    """Sentences with the time, in a file."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def say(self, sentence: str) -> None:
        print(time.strftime("%Y-%m-%d %H:%M:%S"), sentence, file=self._file)


@final
class Typical:
    """Medians over the molecules of a movie, which are seen once: of every nth, so that memory is
    bounded."""

    def __init__(self) -> None:
        self._every = 1
        self.n = 0
        """molecules that were seen"""
        self._columns: dict[str, Tensor] = {}

    def see(self, molecules: EmitterSet) -> None:
        """Add the next molecules."""
        self.n += len(molecules)
        for name, values in _columns(molecules).items():
            seen = self._columns.get(name, values[:0])
            self._columns[name] = torch.cat([seen, values[:: self._every]])
        while any(len(seen) > MOST_SEEN for seen in self._columns.values()):
            self._every *= 2
            self._columns = {name: seen[::2] for name, seen in self._columns.items()}

    @property
    def figures(self) -> dict[str, Any]:
        """By their names in `Row`."""
        return {name: _finite(float(seen.nanmedian())) for name, seen in self._columns.items()}


def _columns(molecules: EmitterSet) -> dict[str, Tensor]:
    columns = {"photons": molecules.photons}
    if molecules.background is not None:
        columns["background"] = molecules.background
    if molecules.xyz_sigma is not None:
        lateral, axial = molecules.xyz_sigma[:, :2], molecules.xyz_sigma[:, 2]
        columns |= {"sigma_nm": lateral.square().mean(1).sqrt(), "sigma_z_nm": axial}
    return {name: values.detach().float().cpu() for name, values in columns.items()}


def _finite(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def localized(task: Task, log: Log, tell: Tell) -> Row:
    """Localize a movie and do what follows.

    Args:
        tell: takes the share of the work that is done, and what is being done.

    Raises:
        ValueError, OSError: in one sentence, as `localize_file` and `finish` do.
    """
    options = task.options
    arguments = options.arguments()
    if options.psf is not None and not options.trains:
        arguments["psf"] = _psf(options.psf)
    model = None if options.model is None else _model(options.model)
    typical = Typical()

    def see(progress: Progress[LocalizeReport | None]) -> None:
        for warning in progress.warnings:
            log.say(f"warning: {warning}")
        if progress.detail is not None:
            typical.see(progress.detail.molecules)
        tell(LOCALIZING * (progress.fraction or 0.0), progress.message)

    def follow(progress: Progress[object]) -> None:
        fraction = progress.fraction or 0.0
        tell(LOCALIZING + (1 - LOCALIZING) * fraction, progress.message)

    steps = localize_file.steps(task.source.path, model, task.folder, shard=task.shard, **arguments)
    done = followed(steps, see)
    if task.shard is not None:
        return replace(task.begun.row, molecules=done.n_molecules, frames=done.n_frames)
    for sentence in (*done.acquisition.estimates, *done.remarks):
        log.say(sentence)
    tables = [file for file in task.files if file.suffix in written_formats()]
    if typical.n < done.n_molecules and tables:  # it went on where it was stopped
        typical = Typical()
        typical.see(read_table(tables[-1]))
    log.say(f"{done.n_molecules} molecules in {done.n_frames} frames")
    finishing = finish.steps(
        task.files,
        n_frames=done.n_frames,
        n_molecules=done.n_molecules,
        steps=options.finish,
    )
    finished = followed(finishing, follow)
    for sentence in finished.remarks:
        log.say(sentence)
    failed = tuple(check for check in done.checks if check.failed)
    warnings = (*done.acquisition.warnings, *done.remarks, *map(str, failed))
    return replace(
        task.begun.row,
        **typical.figures,
        molecules=done.n_molecules,
        frames=done.n_frames,
        density_per_um2=_density(task, done),
        frc_nm=_frc_nm(finished.files),
        drift_nm=_drift_nm(finished.files),
        checks_passed=sum(check.passed is True for check in done.checks),
        checks_failed=tuple(check.name for check in failed),
        remarks=(*warnings, *finished.remarks),
        files=tuple(file.name for file in (*done.files, *finished.files)),
    )


def _density(task: Task, done: Localized) -> float | None:
    """Molecules a frame in a square micrometre."""
    area_um2 = task.area_px * (done.acquisition.pixel_size_nm / 1000) ** 2
    return _finite(done.n_molecules / (done.n_frames * area_um2))


def _frc_nm(files: Collection[Path]) -> float | None:
    """The resolution, from the report's twin."""
    twin = next((file for file in files if file.suffix == ".json"), None)
    if twin is None:
        return None
    (movie,) = json.loads(twin.read_text(encoding="utf-8"))["movies"]
    found = movie["figures"].get("frc_nm")
    return None if found is None else _finite(float(found))


def _drift_nm(files: Collection[Path]) -> float | None:
    """The lateral drift from end to end, where it was subtracted."""
    trace = next((file for file in files if file.name.endswith(".drift.csv")), None)
    if trace is None:
        return None
    x, y, _ = read_drift(trace).amplitude
    return _finite(math.hypot(x, y))
