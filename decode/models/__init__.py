"""Models that come with the package."""

from __future__ import annotations

import difflib
from pathlib import Path

from decode.network.localizer import Localizer

__all__ = ["NEAREST", "load_model", "shipped_models"]

NEAREST = "nearest"
"""what a training may start from in place of a name: the shipped model that knows most of what its recipe asks for"""


def shipped_models() -> dict[str, Path]:
    """Name and file of each model that comes with the package."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.safetensors"))}


def load_model(name_or_path: str | Path) -> Localizer:
    """A shipped model by its name, or any model by its file.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if the file is truncated, was changed after it was written, or is no model.
    """
    shipped = shipped_models()
    path = Path(name_or_path)
    if str(name_or_path) in shipped:
        return Localizer.load(shipped[str(name_or_path)])
    if not path.exists() and path.suffix == "" and path.name == str(name_or_path):
        near = difflib.get_close_matches(path.name, shipped, 1)
        hint = f"did you mean {near[0]}?" if near else f"shipped are {', '.join(shipped) or 'none'}"
        raise FileNotFoundError(f"there is no model {name_or_path}, neither shipped nor as a file here; {hint}")
    return Localizer.load(path)
