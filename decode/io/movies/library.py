"""Libraries that only some formats need."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["needed"]


def needed(module: str, path: Path) -> Any:
    """The module that reads a file.

    Raises:
        ValueError: if it is not installed, with the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("_", "-")
        raise ValueError(
            f"{path}: to read it, install the package {package}: pip install 'decode-smlm[io]'"
        ) from error
