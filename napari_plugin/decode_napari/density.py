"""The density of molecules as images, counted for the part of the field that is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from decode.emitters import EmitterSet

__all__ = ["Density", "Volume"]

FINEST_NM = 10.0
COARSEST_PX = 512
VOLUME_PX, VOLUME_PLANES = 256, 64
NM2_PER_UM2 = 1e6

Picture = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@final
class Density:
    """Molecules per um2, at several sizes of pixels.  No image is kept, as a million molecules are
    counted in milliseconds."""

    def __init__(self, *, size_nm: tuple[float, float]) -> None:
        """
        Args:
            size_nm: width and height of the field, from the outer corner of the first pixel.
        """
        width, height = self.size_nm = size_nm
        halvings = max(1, int(np.ceil(np.log2(max(size_nm) / FINEST_NM / COARSEST_PX))))
        coarsest = FINEST_NM * 2**halvings
        rows, columns = int(np.ceil(height / coarsest)), int(np.ceil(width / coarsest))
        self.pixel_nm = FINEST_NM
        """pixel size of the finest level"""
        finer = [
            _Level(self, halved, (rows << (halvings - halved), columns << (halvings - halved)))
            for halved in range(halvings)
        ]
        # napari keeps a copy of the coarsest one: unless it is an array, which is counted again in
        # place
        self.coarsest = np.zeros((rows, columns), np.float32)
        self.levels: list[_Level | Picture] = [*finer, self.coarsest]
        """(y, x), each half as fine as the one before: what napari takes for a picture in
        several scales"""
        self._put = self._shown = np.zeros((2, 0), np.int32)

    def put(self, emitters: EmitterSet) -> None:
        """Count all of these molecules from now on."""
        rows, columns = self.levels[0].shape
        place = np.floor(emitters.xyz[:, (1, 0)].numpy().T / FINEST_NM)
        inside = (place >= 0).all(0) & (place[0] < rows) & (place[1] < columns)
        # those outside lie in a row before the first one, which nobody looks at
        self._put = np.where(inside, place, -(2**30)).astype(np.int32)
        self._look_at(self._put)

    def show(self, mask: Mask) -> None:
        """Count only the molecules of a mask (n,)."""
        self._look_at(self._put.take(np.flatnonzero(mask), axis=1))

    def _look_at(self, places: npt.NDArray[np.int32]) -> None:
        self._shown = places
        rows, columns = self.coarsest.shape
        self.coarsest[...] = self.count(len(self.levels) - 1, range(rows), range(columns))

    def count(self, halved: int, rows: range, columns: range) -> Picture:
        """(y, x) molecules per um2 in a window of a level of the pyramid."""
        from decode.rendering import counted  # PyTorch, which a reader of movies needs not

        row, column = self._shown >> halved
        counts = counted(row, column, (rows, columns))
        area_nm2 = (FINEST_NM * 2**halved) ** 2
        return (counts * (NM2_PER_UM2 / area_nm2)).astype(np.float32)


@final
class _Level:
    """A density of one size of pixels, as an array that is counted as it is sliced."""

    def __init__(self, density: Density, halved: int, shape: tuple[int, int]) -> None:
        self._density, self._halved = density, halved
        self.shape = shape
        self.dtype = np.dtype(np.float32)
        self.ndim = 2
        self.size = shape[0] * shape[1]

    def __getitem__(self, key: Any) -> Picture:
        keys = key if isinstance(key, tuple) else (key,)
        if len(keys) == 2 and all(isinstance(k, slice) and k.step in (None, 1) for k in keys):
            rows, columns = (range(*k.indices(n)) for k, n in zip(keys, self.shape, strict=True))
            return self._density.count(self._halved, rows, columns)
        picture: Picture = self.__array__()[key]
        return picture

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        return self[:, :].astype(dtype or self.dtype, copy=False)


@final
class Volume:
    """The number of molecules in each voxel (z, y, x)."""

    def __init__(self, emitters: EmitterSet, *, size_nm: tuple[float, float]) -> None:
        """
        Args:
            emitters: the whole table.
            size_nm: width and height of the field, from the outer corner of the first pixel.
        """
        xyz = emitters.xyz.numpy()
        # a few molecules far away are no reason for thick planes
        low, high = np.quantile(xyz[:, 2], (0.001, 0.999)).tolist() if len(xyz) else (0.0, 0.0)
        side = max(FINEST_NM, max(size_nm) / VOLUME_PX)
        thickness = max(FINEST_NM, (high - low) / VOLUME_PLANES)
        self.voxel_nm = (thickness, side, side)
        self.origin_nm = (low, 0.0, 0.0)
        """z, y, x of the outer corner"""
        self.shape = (
            int((high - low) / thickness) + 1,
            int(np.ceil(size_nm[1] / side)),
            int(np.ceil(size_nm[0] / side)),
        )
        at = (xyz[:, ::-1] - self.origin_nm) // self.voxel_nm
        inside = ((at >= 0) & (at < self.shape)).all(1)
        n_voxels = int(np.prod(self.shape))
        strides = (self.shape[1] * self.shape[2], self.shape[2], 1)
        # those outside are counted in a voxel behind the last one
        self._index = np.where(inside, at @ strides, n_voxels).astype(np.int64)

    def image(self, mask: Mask) -> Picture:
        """(z, y, x) molecules per voxel, those of a mask (n,)."""
        n_voxels = int(np.prod(self.shape))
        counts = np.bincount(self._index[mask], minlength=n_voxels + 1)
        return counts[:n_voxels].reshape(self.shape).astype(np.float32)
