"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def rng() -> torch.Generator:
    """A seeded source of randomness."""
    return torch.Generator().manual_seed(20161123)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of third-party movies, tables and truths; they are no part of the project."""
    if not SHARED.is_dir():
        pytest.skip("the third-party test data are not beside the project")
    return SHARED
