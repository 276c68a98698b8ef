"""How molecules become a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

from decode.ranges import NonNegative, Positive, Range, check_settings

__all__ = ["AUTO", "DENSITY", "Contrast", "KernelName", "Rendering", "View"]

KernelName = Literal["gaussian", "histogram", "scatter"]
View = Literal["xy", "xz", "yz"]
AUTO, DENSITY = "auto", "density"


@final
@dataclass(frozen=True, kw_only=True)
class Contrast:
    """The densities that are shown as black and at full brightness.

    Example:
        >>> Contrast.parse("1,99.5"), Contrast.parse("0,5000/um2")
        (Contrast(low=1.0, high=99.5, unit='%'), Contrast(low=0.0, high=5000.0, unit='/um2'))

    Raises:
        ValueError: if they are not in order, or no percentiles.
    """

    low: NonNegative = 0.0
    high: Positive = 99.0
    unit: Literal["%", "/um2"] = "%"
    """percentiles of the pixels with molecules, or molecules per square micrometre, which make
    pictures comparable"""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.low >= self.high or (self.unit == "%" and self.high > 100):
            raise ValueError(
                f"contrast {self.low:g},{self.high:g}: the lower end comes first, and percentiles "
                "end at 100"
            )

    @staticmethod
    def parse(text: str) -> Contrast:
        """Contrast from LOW,HIGH in percent, or LOW,HIGH/um2.

        Raises:
            ValueError: if the text has another form.
        """
        ends = text.removesuffix("/um2")
        try:
            low, high = map(float, ends.replace("%", "").split(","))
        except ValueError:
            raise ValueError(
                f"--contrast {text}: write it as LOW,HIGH in percent, or LOW,HIGH/um2"
            ) from None
        return Contrast(low=low, high=high, unit="%" if ends == text else "/um2")


@final
@dataclass(frozen=True, kw_only=True)
class Rendering:
    """How molecules become a picture.

    Example:
        >>> Rendering(color="z", view="xz", region_nm=(0.0, 0.0, 5000.0, 2000.0)).kernel
        'gaussian'

    Raises:
        ValueError: in one sentence, if a setting is out of its range.
    """

    kernel: KernelName = "gaussian"
    """each molecule a Gaussian as wide as its uncertainty, a count in its pixel, or a disc; all
    three sum to 1"""
    color: str = AUTO
    """what colours show: `density`, or a column: z, time, photons, any column of the table; `auto`
    is z in a picture without slices of molecules that span more than 200 nm of depth"""
    color_range: Range | None = None
    """values of the first and the last colour; None: those that hold 98 % of the molecules"""
    colormap: str | None = None
    """name of one of Matplotlib's colour maps; None: an even one"""
    view: View = "xy"
    """axes of the picture: the first to the right, the second downwards"""
    pixel_nm: float | None = None
    """side of a pixel; None: the smallest of 5, 10, 20, 50, ... nm that needs at most 4096 of
    them along either side"""
    region_nm: tuple[float, float, float, float] | None = None
    """x and y of two corners, (left, top, right, bottom); None: the field of view of the movie, or
    else the box around the molecules"""
    slices_nm: float | None = None
    """thickness of slices across the axis that is looked along; None: one picture of all depths"""
    contrast: Contrast = Contrast()
    """densities of black and of full brightness"""
    gamma: Positive = 0.5
    """brightness is density to this power: below 1 single molecules show beside dense structures"""
    min_sigma_nm: Positive = 5.0
    """standard deviation of the sharpest Gaussian"""
    max_sigma_nm: Positive = 100.0
    """of the widest; Gaussians are kept within these: sharper ones cannot be seen, wider ones hide
    others; molecules that state no sigma get the first"""
    disc_nm: Positive = 20.0
    """diameter of the discs of `scatter`"""
    scale_bar: bool = True
    """draw one, with its length"""
    bits: Literal[16, 32] = 32
    """of the numbers in a TIFF: 32 are molecules per pixel; 16 are counts where all are whole, else
    multiples of the density, of which full brightness is 65535"""

    def __post_init__(self) -> None:
        check_settings(self)
        for name, size in (("pixel", self.pixel_nm), ("slices", self.slices_nm)):
            if size is not None and not 0 < size < math.inf:
                raise ValueError(f"{name} of {size:g} nm: a positive length is needed")
        if self.min_sigma_nm > self.max_sigma_nm:
            raise ValueError("a picture needs positive sigmas, min_sigma_nm <= max_sigma_nm")
        if self.region_nm is not None:
            left, top, right, bottom = self.region_nm
            if not (right > left and bottom > top):
                raise ValueError(
                    f"region {left:g},{top:g},{right:g},{bottom:g}: the sides must be positive; "
                    "write it as X0,Y0,X1,Y1 in nm"
                )
