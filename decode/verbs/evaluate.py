"""evaluate: a table of molecules against the truth."""

from __future__ import annotations

from pathlib import Path

from decode.emitters import EmitterSet
from decode.io.tables import read_table
from decode.metrics import Score, score

__all__ = ["evaluate"]


def evaluate(
    table: Path | str,
    truth: Path | str,
    *,
    field_nm: tuple[float, float] | None = None,
    two_d: bool = False,
    min_photons: float = 0.0,
    remove_shift: bool = False,
    pixel_size_nm: float | None = None,
) -> Score:
    """Score a table by the rules of the SMLM Challenge 2016 (see `decode.metrics.score`).

    Args:
        table, truth: files that `read_table` reads.
        field_nm: (x, y) size of the field of view; None takes it from the table, from the Picasso table of the same
            name beside it, or from the truth, whichever states it first.
        two_d: leave z out.
        min_photons: true molecules below it need not be found.
        remove_shift: take off a constant offset first.
        pixel_size_nm: needed for tables in pixels that do not say how large these are.

    Raises:
        ValueError: if a file is no table, or nothing says how large the field of view is.
        FileNotFoundError: if there is no such file.
    """
    table, truth = Path(table), Path(truth)
    found, known = (read_table(path, pixel_size_nm=pixel_size_nm) for path in (table, truth))
    stated = (found.facts.field_nm, _beside(table).facts.field_nm, known.facts.field_nm)
    field_nm = field_nm or next((field for field in stated if field is not None), None)
    if field_nm is None:
        raise ValueError(f"{table} does not say how large the field of view is: state it in nm with --field X,Y")
    return score(known, found, field_nm=field_nm, two_d=two_d, min_photons=min_photons, remove_shift=remove_shift)


def _beside(table: Path) -> EmitterSet:
    picasso = table.with_suffix(".hdf5")
    return read_table(picasso) if picasso.is_file() else EmitterSet.empty()
