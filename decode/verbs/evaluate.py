"""evaluate: a table of molecules against the truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from decode.emitters import EmitterSet
from decode.io.tables import read_table
from decode.metrics import Score, calibration, score

__all__ = ["evaluate"]


def evaluate(
    table: EmitterSet | Path | str,
    truth: EmitterSet | Path | str,
    *,
    field_nm: tuple[float, float] | None = None,
    two_d: bool = False,
    min_photons: float = 0.0,
    remove_shift: bool = False,
    pixel_size_nm: float | None = None,
) -> Score:
    """Score a table by the rules of the SMLM Challenge 2016 (see `decode.metrics.score`), and its
    stated uncertainties by its errors (`decode.metrics.calibration`).

    Args:
        table, truth: molecules, or files that `read_table` reads.
        field_nm: (x, y) size of the field of view; None takes it from the table, from the Picasso
            table of the same name beside it, or from the truth, whichever states it first.
        two_d: leave z out.
        min_photons: true molecules below it need not be found.
        remove_shift: subtract a constant offset first.
        pixel_size_nm: side of a pixel, needed for tables in pixels that do not state it.

    Returns:
        The score, with the calibration of what the table states.

    Raises:
        ValueError: if a file is no table, or nothing states the size of the field of view.
        FileNotFoundError: if there is no such file.

    Example:
        >>> import decode
        >>> truth = "sample_data/blinking_2d_truth.csv"
        >>> decode.evaluate(truth, truth, field_nm=(6400, 6400)).jaccard
        1.0
    """
    found, known = (_read(source, pixel_size_nm) for source in (table, truth))
    if field_nm is None:
        field_nm = found.facts.field_nm or _field_beside(table) or known.facts.field_nm
    if field_nm is None:
        what = "the table" if isinstance(table, EmitterSet) else table
        raise ValueError(
            f"{what} does not say how large the field of view is: state it in nm with --field X,Y"
        )
    result = score(
        known,
        found,
        field_nm=field_nm,
        two_d=two_d,
        min_photons=min_photons,
        remove_shift=remove_shift,
    )
    shift = torch.tensor(result.shift_nm, dtype=torch.float64)
    checked = calibration(
        known,
        replace(found, xyz=found.xyz.double() - shift),
        field_nm=field_nm,
        two_d=two_d,
        min_photons=min_photons,
    )
    return replace(result, calibration=checked)


def _read(source: EmitterSet | Path | str, pixel_size_nm: float | None) -> EmitterSet:
    if isinstance(source, EmitterSet):
        return source
    return read_table(source, pixel_size_nm=pixel_size_nm)


def _field_beside(table: EmitterSet | Path | str) -> tuple[float, float] | None:
    """The field of view by the Picasso table of the same name, if there is one."""
    if isinstance(table, EmitterSet):
        return None
    picasso = Path(table).with_suffix(".hdf5")
    return read_table(picasso).facts.field_nm if picasso.is_file() else None
