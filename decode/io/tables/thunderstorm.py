"""CSV files of ThunderSTORM, and texts of other programs whose columns are named alike."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from decode.emitters import EmitterSet
from decode.io.tables.columns import OWN, Columns, filled, numbers_of, unit_of
from decode.io.tables.format import Append, TableFormat
from decode.io.tables.text import header_of, read_text, rounded, text_table

__all__ = ["FORMAT"]

STANDING = ("id", "sigma [nm]")
"""columns of ThunderSTORM that are filled from the table's other columns where it has them"""


def thunderstorm_table(
    path: Path, metadata: Mapping[str, object]
) -> AbstractContextManager[Append]:
    """Frames from 1, nm from the outer corner, photons; uncertainty_xy is the root mean square
    of x and y."""

    def columns_of(chunk: EmitterSet, n_before: int) -> Columns:
        values = numbers_of(chunk)
        columns = {
            "id": np.arange(n_before, n_before + len(chunk)) + 1,
            "frame": values["frame"] + 1,
        }
        columns |= {f"{axis} [nm]": values[axis] for axis in "xyz"}
        if "psf_sigma_nm" in metadata:
            columns["sigma [nm]"] = np.full(len(chunk), float(str(metadata["psf_sigma_nm"])))
        columns["intensity [photon]"] = values["photons"]
        if "background" in values:
            columns["offset [photon]"] = values["background"]
        if "sigma_x" in values:
            columns["uncertainty_xy [nm]"] = np.sqrt(
                (values["sigma_x"] ** 2 + values["sigma_y"] ** 2) / 2
            )
            columns |= {f"uncertainty_{axis} [nm]": values[f"sigma_{axis}"] for axis in "xyz"}
        if "photons_sigma" in values:
            columns["uncertainty_intensity [photon]"] = values["photons_sigma"]
        if "half95_x" in values:
            columns |= {f"interval95_{axis} [nm]": values[f"half95_{axis}"] for axis in "xyz"}
        if "photons_95" in values:
            columns["interval95_intensity [photon]"] = values["photons_95"]
        if "probability" in values:
            columns["probability"] = values["probability"]
        columns |= {name: values[name] for name in OWN if name in values}
        written = {name: rounded(column, unit_of(name)[1]) for name, column in columns.items()}
        names = {unit_of(name)[0] for name in filled(written)}
        theirs = {
            name: column for name, column in chunk.others.items() if unit_of(name)[0] not in names
        }
        return (
            written
            | theirs
            | {name: chunk.others[name] for name in STANDING if name in chunk.others}
        )

    return text_table(path, columns_of, quote='"')


FORMAT = TableFormat(
    name="thunderstorm",
    title="ThunderSTORM CSV",
    content="a header with a column `frame`: texts of SMAP, Picasso and others are read, too",
    suffixes=(".csv", ".tsv", ".txt", ".xls"),  # ThunderSTORM calls tabulated text .xls
    recognizes=lambda path: any("frame" in label.lower() for label in header_of(path)),
    read=read_text,
    write=thunderstorm_table,
    general=True,
)
