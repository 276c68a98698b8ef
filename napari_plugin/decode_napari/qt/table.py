"""The molecules that pass as rows of a table, which are read when shown, so that a million rows are
cheap."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import numpy.typing as npt
from qtpy.QtCore import QAbstractTableModel, QModelIndex, QPersistentModelIndex, Qt

from decode_napari.layers import features_of
from decode_napari.molecules import Filter

__all__ = ["MoleculeRows"]

Index = QModelIndex | QPersistentModelIndex
NOWHERE = QModelIndex()
HEADINGS = {
    "frame": "frame",
    "x_nm": "x, nm",
    "y_nm": "y, nm",
    "z_nm": "z, nm",
    "photons": "photons",
    "x_sigma_nm": "sigma x",
    "y_sigma_nm": "sigma y",
    "z_sigma_nm": "sigma z",
    "probability": "p",
    "background": "background",
    "photons_sigma": "sigma photons",
    "goodness": "goodness",
}


@final
class MoleculeRows(QAbstractTableModel):
    def __init__(self) -> None:
        super().__init__()
        self._columns: dict[str, npt.NDArray[Any]] = {}
        self._source: Filter | None = None
        self.rows: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        """numbers of the molecules shown, in the whole table"""

    def show(self, source: Filter) -> None:
        """Show the molecules that pass."""
        self.beginResetModel()
        if source is not self._source:
            self._source = source
            features = features_of(source.emitters)
            known = {name: features[name] for name in HEADINGS if name in features}
            self._columns = {
                name: column for name, column in known.items() if np.nan_to_num(column).any()
            }
        self.rows = np.flatnonzero(source.mask)
        self.endResetModel()

    def position_of(self, molecule: int) -> int | None:
        """The row of a molecule; None if it does not pass."""
        at = int(np.searchsorted(self.rows, molecule))
        return at if at < len(self.rows) and self.rows[at] == molecule else None

    def rowCount(self, parent: Index = NOWHERE) -> int:
        return 0 if parent.isValid() else len(self.rows)

    def columnCount(self, parent: Index = NOWHERE) -> int:
        return 0 if parent.isValid() else len(self._columns)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> object:
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        if role != Qt.ItemDataRole.DisplayRole:
            return None
        name = list(self._columns)[index.column()]
        value = self._columns[name][self.rows[index.row()]]
        if name == "frame":
            return str(int(value))
        return f"{value:.2f}" if name == "probability" else f"{value:.1f}"

    def headerData(
        self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole
    ) -> object:
        if role != Qt.ItemDataRole.DisplayRole:
            return None
        if orientation == Qt.Orientation.Vertical:
            return str(int(self.rows[section]))
        return HEADINGS[list(self._columns)[section]]
