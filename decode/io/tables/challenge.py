"""CSV files of the SMLM Challenge."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from decode.emitters import EmitterSet
from decode.io.tables.columns import Columns, numbers_of
from decode.io.tables.format import Append, TableFormat
from decode.io.tables.text import header_of, read_text, rounded, text_table

__all__ = ["FORMAT"]


def challenge_table(path: Path, metadata: Mapping[str, object]) -> AbstractContextManager[Append]:
    """The truth of the SMLM Challenge: frames from 1, nm from the outer corner, photons."""

    def columns_of(chunk: EmitterSet, n_before: int) -> Columns:
        values = numbers_of(chunk)
        columns = {
            "Ground-truth": np.arange(n_before, n_before + len(chunk)) + 1,
            "frame": values["frame"] + 1,
        }
        columns |= {f"{axis}nano": rounded(values[axis], "nm") for axis in "xyz"}
        return columns | {"intensity": rounded(values["photons"], "photon")}

    return text_table(path, columns_of, quote="")


FORMAT = TableFormat(
    name="challenge",
    title="CSV of the SMLM Challenge",
    content="a header with `xnano` and `ynano`",
    suffixes=(),
    recognizes=lambda path: {"frame", "xnano", "ynano"} <= {*header_of(path)},
    read=read_text,
    write=challenge_table,
)
