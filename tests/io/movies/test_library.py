"""What libraries are given to read from."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

from decode.io.movies.library import Bounded


def test_a_damaged_length_asks_for_no_more_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "movie.lif"
    path.write_bytes(b"0123456789")
    tracemalloc.start()
    with Bounded(path) as file:
        file.seek(4)
        assert file.read(2**32) == b"456789"
        file.seek(99)
        assert file.read(3) == b""
        file.seek(0)
        assert (file.read(2), file.read()) == (b"01", b"23456789")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**20
