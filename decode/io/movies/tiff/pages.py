"""The list of pages of a TIFF file, read without an object a page: there may be a million."""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from typing import IO, final

import numpy as np
import numpy.typing as npt
import tifffile

__all__ = ["Pages", "list_pages"]

IMAGE_TAGS = frozenset({254, 256, 257, 258, 259, 262, 266, 277, 278, 284, 317, 322, 324, 339})
"""what says how pixels are stored: kind, size, bits, compression, strips, predictor, format"""
STRIP_OFFSETS, STRIP_BYTES = 273, 279
WHOLE_NUMBERS = {3: ("H", 2), 4: ("I", 4), 16: ("Q", 8)}
MOST_TAGS = 4096


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Pages:
    """The pages of a file, up to the end of their list or to what was cut off."""

    n_pages: int
    ends: bool
    """whether the last page points to no other; in a file that was cut short it points beyond the
    end"""
    offsets: npt.NDArray[np.int64] | None
    """(page,) first byte of the pixels; None where pages are of several kinds, or in pieces"""
    sizes: npt.NDArray[np.int64] | None
    """(page,) bytes of the pixels"""


@final
@dataclass(frozen=True)
class _Template:
    """What all pages of one kind have in common, by which the next is compared at once."""

    size: int
    mask: int
    expected: int
    numbers: struct.Struct
    """place and size of the pixels, and the next page"""
    facts: tuple[bytes, ...]

    def fits(self, page: bytes) -> bool:
        same = len(page) == self.size
        return same and int.from_bytes(page, "little") & self.mask == self.expected


def list_pages(tiff: tifffile.TiffFile) -> Pages:
    """Walk the list of pages.

    Raises:
        ValueError: if it leads back into itself.
        OSError: if the file cannot be read.
    """
    with open(tiff.filehandle.path, "rb", buffering=0) as file:
        return _walk(file, tiff)


def _walk(file: IO[bytes], tiff: tifffile.TiffFile) -> Pages:
    page, template, alike = int(tiff.pages.first.offset), None, True
    facts: tuple[bytes, ...] | None = None
    visited, offsets, sizes = array("q"), array("q"), array("q")
    highest, seen = -1, set[int]()
    tag_size, next_size = tiff.tiff.tagsize, tiff.tiff.offsetsize
    counted = struct.Struct(tiff.byteorder + {2: "H", 8: "Q"}[tiff.tiff.tagnosize])
    pointer = struct.Struct(tiff.byteorder + {4: "I", 8: "Q"}[next_size])
    while page:
        if page <= highest:
            seen = seen or set(visited)
            if page in seen:
                raise ValueError("its list of pages leads back into itself")
        if seen:
            seen.add(page)
        highest = max(highest, page)
        file.seek(page)
        content = file.read(counted.size if template is None else template.size)
        if template is None or not template.fits(content):
            if len(content) < counted.size:
                return _pages(visited, offsets, sizes, ends=False, alike=alike)
            (n_tags,) = counted.unpack_from(content)
            size = counted.size + n_tags * tag_size + next_size
            file.seek(page)
            content = file.read(size if n_tags <= MOST_TAGS else 0)
            if len(content) < size:
                return _pages(visited, offsets, sizes, ends=False, alike=alike)
            template = _template(content, n_tags, tiff) if alike else None
            facts = facts or (template.facts if template else None)
            alike = alike and template is not None and template.facts == facts
        visited.append(page)
        if alike and template is not None:
            offset, n_bytes, page = template.numbers.unpack(content)
            offsets.append(offset)
            sizes.append(n_bytes)
        else:
            template = None
            (page,) = pointer.unpack_from(content, len(content) - next_size)
        if page >= 2**63:
            return _pages(visited, offsets, sizes, ends=False, alike=alike)
    return _pages(visited, offsets, sizes, ends=True, alike=alike)


def _pages(
    visited: array[int], offsets: array[int], sizes: array[int], *, ends: bool, alike: bool
) -> Pages:
    return Pages(
        n_pages=len(visited),
        ends=ends and len(visited) > 0,
        offsets=np.array(offsets, np.int64) if alike else None,
        sizes=np.array(sizes, np.int64) if alike else None,
    )


def _template(content: bytes, n_tags: int, tiff: tifffile.TiffFile) -> _Template | None:
    """None for a page whose pixels are in several pieces."""
    order, n_count, n_value = tiff.byteorder, tiff.tiff.tagnosize, tiff.tiff.offsetsize
    letter = {4: "I", 8: "Q"}[n_value]
    head = struct.Struct(order + "HH" + letter)
    mask = bytearray(len(content))
    mask[:n_count] = b"\xff" * n_count
    numbers, facts, fields = order + f"{n_count}x", [], 0
    for i in range(n_tags):
        at = n_count + i * tiff.tiff.tagsize
        code, kind, count = head.unpack_from(content, at)
        if code in IMAGE_TAGS:
            facts.append(content[at : at + tiff.tiff.tagsize])
            mask[at : at + tiff.tiff.tagsize] = b"\xff" * tiff.tiff.tagsize
        if code not in (STRIP_OFFSETS, STRIP_BYTES):
            numbers += f"{tiff.tiff.tagsize}x"
            continue
        if count != 1 or kind not in WHOLE_NUMBERS or WHOLE_NUMBERS[kind][1] > n_value:
            return None
        mask[at : at + head.size] = b"\xff" * head.size
        number, size = WHOLE_NUMBERS[kind]
        numbers += f"{head.size}x{number}{n_value - size}x"
        fields += 1
    if fields != 2:
        return None
    masked = int.from_bytes(mask, "little")
    return _Template(
        size=len(content),
        mask=masked,
        expected=int.from_bytes(content, "little") & masked,
        numbers=struct.Struct(numbers + letter),
        facts=tuple(facts),
    )
