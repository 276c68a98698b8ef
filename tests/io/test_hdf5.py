"""Attributes of HDF5 files of any origin: text is read where it can be, and takes no more memory
than the file can fill."""

from __future__ import annotations

import struct
from pathlib import Path

import h5py
import numpy as np
import pytest

from decode.io.hdf5 import attribute_of, text_of


@pytest.mark.parametrize("layout", ["earliest", "v108", "latest"])
@pytest.mark.parametrize("userblock", [0, 512])
@pytest.mark.parametrize("n", [1, 30])
def test_text_is_read_wherever_a_header_holds_it(
    tmp_path: Path, layout: str, userblock: int, n: int
) -> None:
    """Many attributes continue in further blocks; a letter beyond ASCII changes their layout."""
    path = tmp_path / "a.h5"
    texts = {f"{name}{i}": "text" * i for i in range(n) for name in ("a", "é")}
    with h5py.File(path, "w", libver=layout, userblock_size=userblock) as file:
        group = file.create_group("group")
        group.attrs.update(texts | {"size": np.array([100.0, 120.0]), "two": ["a", "bc"]})
        group.attrs["nothing"] = h5py.Empty(h5py.string_dtype())
    with h5py.File(path) as file:
        group = file["group"]
        assert {name: text_of(group, name) for name in texts} == texts
        assert list(attribute_of(group, "two")) == ["a", "bc"]
        assert list(attribute_of(group, "size")) == [100, 120]
        assert isinstance(attribute_of(group, "nothing"), h5py.Empty)
        assert attribute_of(group, "none") is None


def test_a_text_that_is_said_to_be_longer_than_its_file_is_refused(tmp_path: Path) -> None:
    """HDF5 2.0 takes 4 GiB for this one."""
    path, text = tmp_path / "a.h5", "some text of this length"
    with h5py.File(path, "w") as file:
        file.attrs["params"] = text
    content = bytearray(path.read_bytes())
    value = content.index(b"params") + len("params\0\0") + 24 + 8
    assert content[value : value + 4] == struct.pack("<I", len(text))
    content[value : value + 4] = b"\xff" * 4
    path.write_bytes(content)
    with h5py.File(path) as file, pytest.raises(ValueError, match="'params' is longer than the"):
        text_of(file, "params")


def test_a_reference_is_no_value(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["size"] = file.ref
        with pytest.raises(ValueError, match="neither numbers nor text"):
            attribute_of(file, "size")
