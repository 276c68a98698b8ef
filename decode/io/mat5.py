"""MATLAB files of level 5.

The layout is that of MathWorks, "MAT-File Format", chapter 1.  Each length is checked against what
the file holds before it is used, so that a damaged file raises an error.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Value", "names_of_mat5", "read_mat5"]

Value = npt.NDArray[Any] | Mapping[str, Any] | list[Any] | None
"""numbers, a structure, a list (cells, or the structures of an array), or None for types that are
not read"""

HEADER = 128
"""bytes"""

LONGEST_HEAD = 512
"""bytes that hold flags, shape and name of an array"""

NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}
NUMBERS |= {12: "i8", 13: "u8"}
"""types of elements that hold numbers; doubles are stored as the smallest that holds them"""

MATRIX, COMPRESSED = 14, 15
"""types of elements that hold other elements"""

CELLS, STRUCTURES, NUMERIC = 1, 2, range(6, 16)
"""classes of arrays; objects, text, sparse arrays and functions are not read"""


def read_mat5(path: Path) -> dict[str, Value]:
    """The variables of a file, by name.

    Arrays have the shape that they have in MATLAB; of complex numbers the real part is read.  One
    structure is a mapping, an array of any other number of structures a list of mappings, and a
    cell array a list, in which the first axis runs fastest.  Objects, text, sparse arrays and
    functions are None.

    Raises:
        ValueError: if it is no such file, or is damaged.
        zlib.error: if its compressed data are damaged.
    """
    content = memoryview(path.read_bytes())
    order = _order(content)
    return dict(
        (element.decompressed() if element.kind == COMPRESSED else element).array()
        for element in _elements(content[HEADER:], order)
    )


def names_of_mat5(path: Path) -> list[str]:
    """The names of the variables of a file, which are not read.

    Raises:
        ValueError, zlib.error, OSError: as for `read_mat5`.
    """
    names = []
    with path.open("rb") as file:
        order = _order(file.read(HEADER))
        while tag := file.read(8):
            if len(tag) < 8:
                raise ValueError("an element is cut short")
            kind, n_bytes = struct.unpack(f"{order}II", tag)
            end = file.tell() + n_bytes
            head = memoryview(file.read(min(n_bytes, LONGEST_HEAD)))
            names.append(_Element(kind, head, order).name())
            file.seek(end if kind == COMPRESSED else math.ceil(end / 8) * 8)
    return names


def _order(header: bytes | memoryview) -> str:
    """The order of the bytes in a number."""
    orders = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}
    order = orders.get(bytes(header[HEADER - 4 : HEADER]))
    if order is None:
        raise ValueError("it has no header of MATLAB's level 5")
    return order


class _Element(NamedTuple):
    """The data behind a tag."""

    kind: int
    data: memoryview
    order: str
    """order of the bytes in a number"""

    def numbers(self) -> npt.NDArray[Any]:
        if self.kind not in NUMBERS:
            raise ValueError(f"an element of type {self.kind} stands where numbers should be")
        return np.frombuffer(self.data, f"{self.order}{NUMBERS[self.kind]}")

    def array(self) -> tuple[str, Value]:
        """Its name and value."""
        if self.kind != MATRIX:
            raise ValueError(f"an element of type {self.kind} stands where an array should be")
        if not self.data:
            return "", np.zeros((0, 0))
        parts = _elements(self.data, self.order)
        flags, shape, name = (_next(parts) for _ in range(3))
        dimensions = tuple(int(n) for n in shape.numbers())
        if min(dimensions, default=-1) < 0:
            raise ValueError(f"an array has the dimensions {dimensions[:8]}")
        kind = int(flags.numbers()[0]) & 0xFF
        return _text(name.data), _value(kind, dimensions, parts)

    def name(self) -> str:
        """The name of the array, of which only the beginning is looked at."""
        data = self.data
        if self.kind == COMPRESSED:
            data = memoryview(zlib.decompressobj().decompress(data, LONGEST_HEAD))[8:]
        parts = _elements(data, self.order)
        _, _, name = (_next(parts) for _ in range(3))
        return _text(name.data)

    def decompressed(self) -> _Element:
        """The one array that it holds."""
        stream = zlib.decompressobj()
        tag = stream.decompress(self.data, 8)
        if len(tag) < 8:
            raise ValueError("a compressed array is cut short")
        kind, n_bytes = struct.unpack(f"{self.order}II", tag)
        content = stream.decompress(stream.unconsumed_tail, n_bytes + 1)
        if len(content) != n_bytes or not stream.eof:
            raise ValueError("a compressed array has another length than it states")
        return _Element(kind, memoryview(content), self.order)


def _elements(data: memoryview, order: str) -> Iterator[_Element]:
    """The elements in order; each begins at a multiple of 8 bytes, except after a compressed
    one."""
    while data:
        if len(data) < 8:
            raise ValueError("an element is cut short")
        kind, n_bytes = struct.unpack_from(f"{order}II", data)
        start, room = 8, len(data) - 8
        if kind >> 16:  # a small element: tag and content share 8 bytes
            kind, n_bytes, start, room = kind & 0xFFFF, kind >> 16, 4, 4
        if n_bytes > room:
            raise ValueError(f"an element of {n_bytes} bytes is cut short")
        end = start + n_bytes
        yield _Element(kind, data[start:end], order)
        data = data[end if kind == COMPRESSED else math.ceil(end / 8) * 8 :]


def _value(kind: int, shape: tuple[int, ...], parts: Iterator[_Element]) -> Value:
    n = math.prod(shape)
    if kind in NUMERIC:
        numbers = _next(parts).numbers()
        _require_length(numbers, n)
        return numbers.reshape(shape, order="F")
    if kind == CELLS:
        return _values(parts, n)
    return _structures(parts, n) if kind == STRUCTURES else None


def _structures(parts: Iterator[_Element], n: int) -> Value:
    """All fields of the first structure, then those of the next one."""
    width, text = max(1, int(_next(parts).numbers()[0])), _next(parts).data
    names = [_text(text[i : i + width]) for i in range(0, len(text), width)]
    values = _values(parts, n * len(names))
    if n == 1:
        return dict(zip(names, values, strict=True))
    firsts = range(0, len(values), max(1, len(names)))
    return [dict(zip(names, values[i : i + len(names)], strict=True)) for i in firsts]


def _values(parts: Iterator[_Element], n: int) -> list[Value]:
    values = [part.array()[1] for part in parts]
    _require_length(values, n)
    return values


def _require_length(values: Sized, n: int) -> None:
    if len(values) != n:
        raise ValueError(f"an array of {n} elements holds {len(values)}")


def _text(data: memoryview) -> str:
    return bytes(data).partition(b"\0")[0].decode("latin-1")


def _next(parts: Iterator[_Element]) -> _Element:
    part = next(parts, None)
    if part is None:
        raise ValueError("an array lacks a part")
    return part
