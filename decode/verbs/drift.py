"""drift: tables of molecules to one in which the stage stands still."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from decode.atomic import atomic
from decode.emitters import EmitterSet
from decode.io.tables import read_table, write_table
from decode.outputs import check_outputs, drift_files, table_files, table_inputs
from decode.postprocess.drift import (
    Drift,
    drift_of_fiducials,
    drift_of_molecules,
    read_drift,
    write_drift,
)
from decode.postprocess.drift.trace import STEP
from decode.progress import DetailedSteps, Progress, Stepwise
from decode.verbs.room import require_room

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["drift", "plotted"]

ROW_BYTES = 700
"""of memory for each row of a table; reading it takes 450, what is estimated from it 360"""
AXES = (("x", "#c43b3b"), ("y", "#2f7d4f"), ("z", "#3b5fc4"))


@Stepwise
def drift(
    tables: Sequence[Path | str] | Path | str,
    out: Path | str,
    *,
    z: bool | None = None,
    apply: Path | str | None = None,
    undo: bool = False,
    fiducials: bool = False,
    places_nm: Sequence[tuple[float, float]] = (),
    n_frames: int | None = None,
    pixel_size_nm: float | None = None,
    seed: int = 0,
) -> DetailedSteps[None, tuple[EmitterSet, Drift]]:
    """Estimate the drift of the stage, and subtract it from a table of molecules.

    Beside the corrected table are `OUT.drift.csv`, what was subtracted in each frame with its
    uncertainty, and `OUT.drift.png`, its plot.  The uncertainties of the molecules grow by that of
    the drift.  `drift.steps` does the same step by step.

    Args:
        tables: files of any format that `read_table` reads; several are parts of one acquisition,
            in the order of their frames, and become one table.
        out: table to write; its suffix determines the format.
        z: correct z, too; None: where the tables state it.
        apply: subtract the drift in this file (`read_drift`) in place of estimating one.
        undo: add it in place of subtracting it; needs `apply`.
        fiducials: beads tell the drift, which are seen in nearly all frames.
        places_nm: x and y of beads in their first frame; without, they are found.
        n_frames: frames of each part, where the tables do not say so.
        pixel_size_nm: side of a pixel, needed for a table in pixels that does not state it.
        seed: of the choice of pairs of molecules where there are too many.

    Returns:
        The corrected molecules, and the drift.

    Raises:
        Undetermined: if the data do not tell the drift.
        NoRoom: if the table is too large for the memory.
        ValueError, OSError: in one sentence, as for `read_table` and `write_table`.

    Example:
        >>> import tempfile
        >>> trace = "frame,x_nm,y_nm\\n1,0,0\\n200,30,0\\n"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "stage.csv").write_text(trace)
        ...     out = Path(folder, "still.csv")
        ...     table = "sample_data/blinking_2d_truth.csv"
        ...     still, stage = drift(table, out, apply=f"{folder}/stage.csv")
        >>> len(still), stage.amplitude
        (8919, (30.0, 0.0, 0.0))
    """
    out = Path(out)
    paths = [Path(tables)] if isinstance(tables, Path | str) else [Path(t) for t in tables]
    if undo and apply is None:
        raise ValueError("--undo adds back a drift that was subtracted: name its file by --apply")
    files = [*table_files(out), *drift_files(out)]
    inputs = [file for path in paths for file in table_inputs(path)]
    check_outputs(files, inputs=[*inputs, *([] if apply is None else [Path(apply)])])
    yield Progress(0.0, "reading the molecules")
    molecules, parts = _read(paths, n_frames=n_frames, pixel_size_nm=pixel_size_nm)
    if not undo:
        _refuse_corrected(paths, molecules)
    require_room("the drift of", len(molecules), ROW_BYTES, held=molecules)
    yield Progress(0.1, "estimating the drift")
    if apply is not None:
        stage = read_drift(apply)
    elif fiducials or places_nm:
        stage = drift_of_fiducials(molecules, places_nm=places_nm, axial=z, n_frames=sum(parts))
    else:
        stage = drift_of_molecules(
            molecules, axial=z, n_frames=sum(parts), jumps=np.cumsum(parts)[:-1].tolist(), seed=seed
        )
    still = stage.added_to(molecules) if undo else stage.subtracted_from(molecules)
    yield Progress(0.9, "writing")
    trace, picture = drift_files(out)
    write_drift(stage, trace)
    with atomic(picture) as temporary:
        temporary.write_bytes(plotted(stage))
    write_table(still, out)
    yield Progress(1.0, "")
    return still, stage


def _refuse_corrected(paths: Sequence[Path], molecules: EmitterSet) -> None:
    """Refuse to subtract a drift twice; a table that states nothing has the drift beside it."""
    beside = (path for path in paths if drift_files(path)[0].exists())
    corrected = paths[0] if STEP in molecules.metadata else next(beside, None)
    if corrected is not None:
        raise ValueError(
            f"{corrected}: a drift was subtracted already; add it back first (--apply "
            f"{drift_files(corrected)[0].name} --undo), or begin with the table before"
        )


def _read(
    paths: Sequence[Path], *, n_frames: int | None, pixel_size_nm: float | None
) -> tuple[EmitterSet, list[int]]:
    """One table with frames that run on over all parts, and the frames of each part."""
    if not paths:
        raise ValueError("name at least one table")
    tables, parts = [], []
    for path in paths:
        table = read_table(path, pixel_size_nm=pixel_size_nm)
        last = int(table.frame.max()) + 1 if len(table) else 0
        parts.append(max(last, n_frames or table.facts.n_frames or 0))
        tables.append(table)
    starts = np.concatenate([[0], np.cumsum(parts)[:-1]]).tolist()
    moved = [_later(table, start) for table, start in zip(tables, starts, strict=True)]
    whole = EmitterSet.cat(moved) if len(moved) > 1 else moved[0]
    return whole, parts


def _later(table: EmitterSet, frames: int) -> EmitterSet:
    metadata = {k: v for k, v in table.metadata.items() if k != "n_frames" or frames == 0}
    return replace(table, frame=table.frame + frames, metadata=metadata)


def plotted(stage: Drift) -> bytes:
    """The drift along each axis, with its uncertainty as a band: a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 3.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    ax: Axes = figure.subplots()
    frames = np.arange(1, len(stage) + 1)
    for axis, (name, colour) in enumerate(AXES):
        values, sigma = stage.xyz[:, axis], stage.sigma[:, axis]
        if not values.any():
            continue
        ax.fill_between(
            frames, values - 2 * sigma, values + 2 * sigma, color=colour, alpha=0.25, lw=0
        )
        ax.plot(frames, values, color=colour, lw=1.2, label=name)
    for at in stage.jumps:
        ax.axvline(at + 1, color="0.6", lw=0.8, ls=":")
    ax.set_xlabel("frame")
    ax.set_ylabel("drift (nm), band: 95 %")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, ncols=3, loc="best")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
