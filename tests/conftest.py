"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def rng() -> torch.Generator:
    """A seeded source of randomness."""
    return torch.Generator().manual_seed(20161123)


@pytest.fixture
def limited_files() -> Callable[[int], AbstractContextManager[None]]:
    """Blocks in which no file can grow beyond so many bytes, as after `ulimit -f`."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limited(n_bytes: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of third-party movies, tables and truths; they are no part of the project."""
    if not SHARED.is_dir():
        pytest.skip("the third-party test data are not beside the project")
    return SHARED
