"""Section: a part of a recipe that may name files, and what every section answers."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from decode.io.psfs import PSFFile

__all__ = ["PSFSection", "Section", "require_recipe_pixels"]

ALIKE_PIXELS = 0.01
"""relative difference up to which the pixels of a file and of a recipe are taken for the same"""


class Section:
    """Part of a recipe; most name no file."""

    def files(self) -> tuple[Path, ...]:
        """The files that it is read from."""
        return ()

    def beside(self, folder: Path) -> Self:
        """The same section of a recipe in a folder, with paths relative to it resolved."""
        return self

    def typical(self) -> Self:
        """The section with its main ranges narrowed to their middle, as scores are stated for."""
        return self


class PSFSection(Section):
    """What a recipe says of PSFs."""

    def calibrated(self) -> PSFFile | None:
        """The PSF file that it names; None where it names none."""
        return None

    def figures(self) -> dict[str, float]:
        """What scores state of a typical section."""
        return {}


def require_recipe_pixels(file: str, found_nm: float, recipe_nm: float) -> None:
    """Fail unless a file that a recipe names has the pixels of the recipe.

    Raises:
        ValueError: if they differ.
    """
    if abs(found_nm / recipe_nm - 1) > ALIKE_PIXELS:
        raise ValueError(f"{file} has pixels of {found_nm:g} nm, the recipe of {recipe_nm:g} nm")
