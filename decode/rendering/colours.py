"""What colours show, and how densities become them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from decode.emitters import EmitterSet
from decode.rendering.exposure import Limits, brightness
from decode.rendering.settings import AUTO, DENSITY, Rendering

__all__ = [
    "Channels",
    "Colouring",
    "Density",
    "Scale",
    "colouring_by_depth",
    "colouring_of",
    "depth_range",
    "named_colours",
]

DEEP_NM = 200.0
"""span of depths above which colours show them, where nobody chooses"""
MOST_CHANNELS = 7
"""kinds of molecules that have a colour of their own; ImageJ shows no more channels together"""
GLOW = "inferno"
"""even in lightness, also for the colour-blind (van der Walt and Smith 2015)"""
EVEN = ("#7aa5f9", "#b497ef", "#e884c9", "#fb8091", "#f78763", "#e59339", "#c4a316")
"""blue to yellow: equal steps of colour (CIEDE2000) at equal lightness (CIELAB L* 68), so that
brightness is left to density; b* grows all the way, which the red- and the green-blind see"""
OKABE_ITO = ("#56b4e9", "#e69f00", "#cc79a7", "#009e73", "#f0e442", "#d55e00", "#0072b2")
"""told apart by the colour-blind (Okabe and Ito 2008), from the brightest pairs on"""

Picture = npt.NDArray[np.float32]


class Colouring(ABC):
    """What colours show.  Densities have one channel or several, and all channels together sum to
    the molecules."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of the channels."""

    @property
    @abstractmethod
    def colours(self) -> Picture:
        """(channels, 3) colours of the channels, 0 to 1."""

    @abstractmethod
    def weights(self, emitters: EmitterSet) -> Picture:
        """(channels, n) how much of each molecule is in each channel."""

    @property
    def n_lights(self) -> int:
        """Number of densities that are exposed, each on its own."""
        return len(self.names)

    def lights(self, density: Picture) -> Picture:
        """(lights, y, x) what is exposed, from (channels, y, x)."""
        return density

    @abstractmethod
    def painted(self, density: Picture, limits: Limits, gamma: float) -> Picture:
        """(y, x, 3) colours, 0 to 1, from (channels, y, x) and the limits of each light."""


@final
@dataclass(frozen=True, kw_only=True)
class Density(Colouring):
    """Density alone, by a colour map."""

    table: Picture
    """(256, 3) from black to full brightness"""

    names = ("molecules",)
    colours = np.ones((1, 3), np.float32)

    def weights(self, emitters: EmitterSet) -> Picture:
        return np.ones((1, len(emitters)), np.float32)

    def painted(self, density: Picture, limits: Limits, gamma: float) -> Picture:
        shown = brightness(density[0], limits[0], gamma)
        return self.table[np.rint(shown * (len(self.table) - 1)).astype(np.intp)]


@final
@dataclass(frozen=True, kw_only=True)
class Scale(Colouring):
    """A quantity by hue, density by brightness.

    Channels are values evenly over the range; a molecule between two of them is in both, so that
    colours run straight from one to the next.
    """

    title: str
    range: tuple[float, float]
    """values of the first and the last colour; those beyond have the same"""
    values: Callable[[EmitterSet], npt.NDArray[Any]]
    stops: Picture
    """(channels, 3)"""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.title}: {at:g}" for at in np.linspace(*self.range, len(self.stops)))

    @property
    def colours(self) -> Picture:
        return self.stops

    def weights(self, emitters: EmitterSet) -> Picture:
        low, high = self.range
        last = len(self.stops) - 1
        at = ((self.values(emitters) - low) / (high - low)).clip(0, 1) * last
        away = np.abs(at - np.arange(last + 1)[:, None])
        # unknown values have no colour
        return np.nan_to_num(np.maximum(1 - away, 0)).astype(np.float32)

    n_lights = 1

    def lights(self, density: Picture) -> Picture:
        return density.sum(0, keepdims=True)

    def painted(self, density: Picture, limits: Limits, gamma: float) -> Picture:
        (light,) = self.lights(density)
        hue = np.tensordot(density, self.stops, (0, 0)) / np.maximum(light, 1e-30)[:, :, None]
        return hue * brightness(light, limits[0], gamma)[:, :, None]


@final
@dataclass(frozen=True, kw_only=True)
class Channels(Colouring):
    """Kinds of molecules, each a colour of its own; where they overlap, their light adds."""

    title: str
    labels: tuple[str, ...]
    kinds: Callable[[EmitterSet], npt.NDArray[Any]]
    """(n,) labels of molecules"""

    @property
    def names(self) -> tuple[str, ...]:
        return self.labels

    @property
    def colours(self) -> Picture:
        return _rgb(OKABE_ITO[: len(self.labels)])

    def weights(self, emitters: EmitterSet) -> Picture:
        return (self.kinds(emitters) == np.array(self.labels)[:, None]).astype(np.float32)

    def painted(self, density: Picture, limits: Limits, gamma: float) -> Picture:
        lights = [brightness(*each, gamma) for each in zip(density, limits, strict=True)]
        mixed: Picture = np.tensordot(np.stack(lights), self.colours, (0, 0)).clip(0, 1)
        return mixed


def colouring_of(emitters: EmitterSet, rendering: Rendering) -> Colouring:
    """What the colours of a picture show.

    Raises:
        ValueError: if the table has no such column, or there is no such colour map.
    """
    name = _chosen(emitters, rendering)
    if name == DENSITY:
        return Density(table=named_colours(rendering.colormap or GLOW, 256))
    kinds = _kinds(emitters, name)
    if kinds:
        return Channels(title=name, labels=kinds, kinds=lambda e: _labels(e.others[name]))
    title, values = _quantity(emitters, name)
    stops = (
        _rgb(EVEN)
        if rendering.colormap is None
        else named_colours(rendering.colormap, MOST_CHANNELS)
    )
    ends = rendering.color_range or _range_of(values(emitters), exact=name in EXACT)
    return Scale(title=title, range=ends, values=values, stops=stops)


def colouring_by_depth(depths_nm: tuple[float, float] | None) -> Colouring:
    """What the colours of a picture show unless somebody chooses: depth, where there is some.

    Args:
        depths_nm: first and last percentile of z; None: there are no molecules.
    """
    if depths_nm is None or not depths_nm[1] - depths_nm[0] > DEEP_NM:
        return Density(table=named_colours(GLOW, 256))
    title, values = QUANTITIES["z"]
    return Scale(title=title, range=_rounded(*depths_nm), values=values, stops=_rgb(EVEN))


def _chosen(emitters: EmitterSet, rendering: Rendering) -> str:
    if rendering.color != AUTO:
        return rendering.color
    flat = rendering.slices_nm is not None or depth_range(emitters) is None
    return DENSITY if flat else "z"


def named_colours(name: str, number: int) -> Picture:
    """(number, 3) colours evenly over one of Matplotlib's maps.

    Raises:
        ValueError: if there is no such map.
    """
    from matplotlib import colormaps

    if name not in colormaps:
        raise ValueError(
            f"there is no colour map {name}; choose one of Matplotlib's, as viridis, cividis or "
            "inferno"
        )
    return np.asarray(colormaps[name](np.linspace(0, 1, number))[:, :3], np.float32)


def depth_range(emitters: EmitterSet, *, least_nm: float = DEEP_NM) -> tuple[float, float] | None:
    """Depths that hold 98 % of the molecules, in round numbers; None if these span no more than
    `least_nm`."""
    if len(emitters) == 0:
        return None
    z = _z(emitters)
    low, high = np.quantile(z, (0.01, 0.99))
    return _range_of(z) if high - low > least_nm else None


def _array(column: Tensor) -> npt.NDArray[np.float64]:
    return column.detach().cpu().double().numpy()


def _z(emitters: EmitterSet) -> npt.NDArray[np.float64]:
    return _array(emitters.xyz[:, 2])


def _frames(emitters: EmitterSet) -> npt.NDArray[np.float64]:
    """Counted from 1, as in tables."""
    return _array(emitters.frame) + 1


QUANTITIES: dict[str, tuple[str, Callable[[EmitterSet], npt.NDArray[np.float64]]]] = {
    "x": ("x [nm]", lambda e: _array(e.xyz[:, 0])),
    "y": ("y [nm]", lambda e: _array(e.xyz[:, 1])),
    "z": ("z [nm]", _z),
    "time": ("frame", _frames),
    "frame": ("frame", _frames),
}
EXACT = ("time", "frame")
"""quantities whose range is that of all molecules"""
UNITS = {"background": " per pixel", "photons_sigma": " [photons]"}


def _quantity(
    emitters: EmitterSet, name: str
) -> tuple[str, Callable[[EmitterSet], npt.NDArray[np.float64]]]:
    """Title and values of a column of numbers."""
    columns = {key: column for key, column in emitters.columns().items() if column.ndim == 1}
    numbers = [key for key, values in emitters.others.items() if values.dtype.kind in "iufb"]
    if name in QUANTITIES:
        return QUANTITIES[name]
    if name in columns:
        return name + UNITS.get(name, ""), lambda e: _array(e.columns()[name])
    if name in numbers:
        return name, lambda e: e.others[name].astype(np.float64)
    known = [DENSITY, *QUANTITIES, *(key for key in columns if key != "frame"), *emitters.others]
    raise ValueError(f"colours cannot show {name}; they show {', '.join(known)}")


def _labels(values: npt.NDArray[Any]) -> npt.NDArray[np.str_]:
    if values.dtype.kind == "f":
        return np.array([f"{value:g}" for value in values], str)
    return values.astype(str)


def _kinds(emitters: EmitterSet, name: str) -> tuple[str, ...]:
    """The kinds of molecules that a column tells apart, if it holds a few texts or whole numbers,
    else none."""
    values = emitters.others.get(name, np.zeros(0))
    if values.dtype.kind == "f":
        values = values[:0] if (values % 1).any() else values
    kinds = np.unique(values)
    return tuple(_labels(kinds).tolist()) if len(kinds) <= MOST_CHANNELS else ()


def _range_of(values: npt.NDArray[np.float64], *, exact: bool = False) -> tuple[float, float]:
    """Round numbers that hold 98 % of the values; exact: all of them, as they are."""
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 1.0
    low, high = np.quantile(known, (0.0, 1.0) if exact else (0.01, 0.99)).tolist()
    return (low, high + (low == high)) if exact else _rounded(low, high)


def _rounded(low: float, high: float) -> tuple[float, float]:
    if low == high:
        return low, high + 1
    tenth = (high - low) / 10
    power = 10.0 ** math.floor(math.log10(tenth))
    step = power * max(digit for digit in (1, 2, 5) if digit * power <= tenth)
    return math.floor(low / step) * step, math.ceil(high / step) * step


def _rgb(colours: Sequence[str]) -> Picture:
    return np.array(
        [[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in colours], np.float32
    )
