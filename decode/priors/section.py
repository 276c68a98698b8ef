"""Section: a part of a recipe, which may name files."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Self

from decode.conditioning import Conditioning
from decode.io.psfs import PSFFile
from decode.ranges import Range

__all__ = ["PSFSection", "Section", "StatedPSF", "require_recipe_pixels"]

ALIKE_PIXELS = 0.01
"""relative difference up to which the pixel sizes of a file and of a recipe count as equal"""


class Section:
    """Part of a recipe."""

    def files(self) -> tuple[Path, ...]:
        """The files that it names; most sections name none."""
        return ()

    def beside(self, folder: Path) -> Self:
        """The same section, with its paths resolved relative to the folder of the recipe."""
        return self

    def typical(self) -> Self:
        """The section with its main ranges narrowed to their middle, for which scores are
        stated."""
        return self


class StatedPSF(NamedTuple):
    """The PSF of a movie as its user states it."""

    sigma_nm: float | None = None
    """width; None where it is not asked for"""
    file: PSFFile | None = None
    """calibrated PSF; None where the model knows it"""


class PSFSection(Section):
    """The section of a recipe on PSFs."""

    def stated(
        self, conditioning: Conditioning, pixel_size_nm: float, z_nm: Range
    ) -> StatedPSF | None:
        """The PSF of a simulated movie, as its user would state it.

        Args:
            conditioning: that of the movie.
            pixel_size_nm: side of a pixel.
            z_nm: depths over which a calibrated PSF is known.

        Returns:
            None where no user could: of a PSF that varies over the field, a movie shows one place.
        """
        return StatedPSF()

    def calibrated(self) -> PSFFile | None:
        """The PSF file that it names; None where it names none."""
        return None

    def figures(self) -> dict[str, float]:
        """Numbers of a typical section that are stated with its scores."""
        return {}


def require_recipe_pixels(file: str, found_nm: float, recipe_nm: float) -> None:
    """Fail unless a file that a recipe names has the pixels of the recipe.

    Raises:
        ValueError: if they differ.
    """
    if abs(found_nm / recipe_nm - 1) > ALIKE_PIXELS:
        raise ValueError(f"{file} has pixels of {found_nm:g} nm, the recipe of {recipe_nm:g} nm")
