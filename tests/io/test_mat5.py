"""MATLAB files of level 5: what SciPy writes is read back, and damage is an error."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from decode.io.mat5 import names_of_mat5, read_mat5

CUBE = np.random.default_rng(0).random((2, 3, 4))


def written(path: Path, content: dict[str, Any], *, compressed: bool = False) -> Path:
    scipy.io.savemat(path, content, do_compression=compressed)
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        CUBE,
        CUBE.astype(np.float32),
        np.array([[1, -2], [3, 4]], np.int16),
        np.arange(5, dtype=np.uint64)[None],
        np.zeros((0, 3)),
        np.array([[7.0]]),
    ],
)
def test_an_array_of_numbers_is_read_back(tmp_path: Path, values: Any, compressed: bool) -> None:
    path = written(tmp_path / "a.mat", {"values": values}, compressed=compressed)
    found = read_mat5(path)["values"]
    assert isinstance(found, np.ndarray)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("compressed", [False, True])
def test_structures_and_cells_are_read_as_deep_as_they_are(
    tmp_path: Path, compressed: bool
) -> None:
    cells = np.empty((1, 2), object)
    cells[0] = [CUBE, {"inner": 5.0}]
    several = np.array([[(1.0, 2.0), (3.0, 4.0)]], [("p", object), ("q", object)])
    content = {"s": {"cells": cells, "a long name of it": 1.0}, "several": several}
    found: Any = read_mat5(written(tmp_path / "a.mat", content, compressed=compressed))
    np.testing.assert_array_equal(found["s"]["cells"][0], CUBE)
    assert found["s"]["cells"][1]["inner"].item() == 5
    assert found["s"]["a long name of it"].item() == 1
    assert [{k: v.item() for k, v in one.items()} for one in found["several"]] == [
        {"p": 1, "q": 2},
        {"p": 3, "q": 4},
    ]


def test_what_is_not_read_leaves_the_rest_as_it_is(tmp_path: Path) -> None:
    content = {"text": "some text", "sparse": scipy.sparse.eye(3, format="csc"), "cube": CUBE}
    found = read_mat5(written(tmp_path / "a.mat", content))
    assert found["text"] is None
    assert found["sparse"] is None
    np.testing.assert_array_equal(found["cube"], CUBE)  # type: ignore[arg-type]


def big_endian(values: dict[str, float]) -> bytes:
    """A file as a PowerPC wrote it: names of four letters at most, doubles stored as bytes."""
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI"
    for name, value in values.items():
        parts = struct.pack(">IIII", 6, 8, 6, 0) + struct.pack(">IIii", 5, 8, 1, 1)
        parts += struct.pack(">HH4s", len(name), 1, name.encode())
        parts += struct.pack(">HHB3x", 1, 2, int(value))
        header += struct.pack(">II", 14, len(parts)) + parts
    return header


def test_the_order_of_bytes_is_that_of_the_header(tmp_path: Path) -> None:
    (tmp_path / "a.mat").write_bytes(big_endian({"dz": 50.0, "z0": 7.0}))
    found: Any = read_mat5(tmp_path / "a.mat")
    assert {name: value.item() for name, value in found.items()} == {"dz": 50, "z0": 7}
    np.testing.assert_equal(scipy.io.loadmat(tmp_path / "a.mat")["dz"], [[50]])


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_that_is_cut_short_anywhere_is_refused(tmp_path: Path, compressed: bool) -> None:
    path = written(tmp_path / "a.mat", {"s": {"cube": CUBE, "dz": 50.0}}, compressed=compressed)
    content = path.read_bytes()
    for end in range(129, len(content), 3):
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"cut short|lacks a part|another length"):
            read_mat5(path)


def test_an_array_within_an_array_is_not_unpacked(tmp_path: Path) -> None:
    """A file of a few kilobytes could hold any amount otherwise."""
    path = written(tmp_path / "a.mat", {"s": {"cube": CUBE}})
    content = bytearray(path.read_bytes())
    inner = content.rindex(struct.pack("<I", 14))
    content[inner : inner + 4] = struct.pack("<I", 15)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="type 15 stands where an array should be"):
        read_mat5(path)


def test_numbers_of_an_unknown_type_are_refused(tmp_path: Path) -> None:
    """SciPy 1.17 ends the process by a segmentation fault."""
    path = written(tmp_path / "a.mat", {"s": {"cube": CUBE}})
    content = bytearray(path.read_bytes())
    doubles = content.rindex(struct.pack("<II", 9, CUBE.nbytes))
    content[doubles : doubles + 4] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="type 0 stands where numbers should be"):
        read_mat5(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_variables_are_named_without_being_read(tmp_path: Path, compressed: bool) -> None:
    content = {"cube": CUBE, "s": {"inner": 5.0}, "a_name_of_31_letters_is_the_most": 1.0}
    path = written(tmp_path / "a.mat", content, compressed=compressed)
    assert names_of_mat5(path) == list(read_mat5(path))
    path.write_bytes(path.read_bytes()[:-3])
    assert "cube" in names_of_mat5(path)
    path.write_bytes(b"MATLAB 5.0 but no more")
    with pytest.raises(ValueError, match="no header"):
        names_of_mat5(path)
