"""Movies, pictures and molecules as napari layers, and back: half pixel, axis order and scale are
set here only.

World coordinates are those of the project in um: the origin is the outer corner of pixel (0, 0).
An image, whose pixel 0 napari centres at 0, is shifted by half of its own pixel; molecules are
never shifted.  Axes are (t, y, x); t counts frames from 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    from decode.emitters import EmitterSet
    from decode.io.movies import Movie

__all__ = [
    "LayerData",
    "LazyFrames",
    "cloud_layer",
    "emitters_of",
    "field_of",
    "image_layer",
    "movie_layer",
    "placement",
    "points_layer",
    "pyramid",
    "volume_layer",
    "white",
]

LayerData = tuple[Any, dict[str, Any], str]
"""data, keyword arguments and kind of a layer, as readers give them to napari"""

AXES = ("t", "y", "x")
UNITS = ("pixel", "um", "um")
UM_PER_NM = 0.001
POINT_SIZE_NM = 120.0
FACTS = "decode"
"""key in a layer's metadata that holds the facts of the table"""
WIDTHS = {"xyz_sigma": "_sigma", "xyz_95": "_95"}
"""columns of half-widths, and their names between axis and unit"""
FRAME = "frame"
N_FRAMES = 7
"""number of frames, spread over the movie, from which the contrast is computed"""

NM_PER_UNIT = {"nanometer": 1.0, "micrometer": 1e3, "millimeter": 1e6}


@final
class LazyFrames:
    """A movie as an array that napari slices: frames are read when they are shown."""

    def __init__(self, movie: Movie) -> None:
        self.movie = movie
        self.shape = movie.shape
        self.dtype = movie.dtype
        self.ndim = 3

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        first, *others = key if isinstance(key, tuple) else (key,)
        if first is Ellipsis:
            first = slice(None)
        if isinstance(first, slice):
            start, stop, step = first.indices(len(self))
            frames = self.movie.read(start, max(start, stop))[::step]
            return frames[(slice(None), *others)]
        number = int(first)
        number += len(self) if number < 0 else 0
        frame = self.movie.read(number, number + 1)[0]
        return frame[tuple(others)] if others else frame

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        return self.movie.read(0, len(self)).astype(dtype or self.dtype, copy=False)


def placement(
    pixel_size_nm: float, *, n_axes: int = 3, origin_nm: tuple[float, float] = (0.0, 0.0)
) -> dict[str, Any]:
    """Keyword arguments of a layer that place an image in the world.

    Args:
        pixel_size_nm: side of a pixel of the image.
        n_axes: 3 for (t, y, x), 2 for (y, x).
        origin_nm: x, y of the image's outer corner.
    """
    um = pixel_size_nm * UM_PER_NM
    x, y = (corner * UM_PER_NM + um / 2 for corner in origin_nm)
    before = n_axes - 2
    return {
        "scale": (1.0,) * before + (um, um),
        "translate": (0.0,) * before + (y, x),
        "axis_labels": AXES[-n_axes:],
        "units": UNITS[-n_axes:],
    }


def movie_layer(movie: Movie, pixel_size_nm: float | None, **metadata: object) -> LayerData:
    """A movie as a lazy image; without a pixel size it is shown with pixels of 100 nm until one is
    stated.

    Args:
        movie: from `open_movie`; it stays open as long as the layer.
        pixel_size_nm: None where nothing states it.
        metadata: facts that the Movie step reads, such as the path of a camera file.
    """
    low, high = _contrast(movie)
    options = {
        "name": movie.path.stem,
        "contrast_limits": (low, high),
        "gamma": 0.7,
        "colormap": "gray",
        "metadata": {"path": str(movie.path), **metadata},
        **placement(pixel_size_nm or 100.0),
    }
    return LazyFrames(movie), options, "image"


def _contrast(movie: Movie) -> tuple[float, float]:
    """Black and white of a movie: white is as bright as the brightest spot of some frames.

    Pixels that are bright in all of them are background or defects of the camera, and do not count.
    """
    some = np.unique(np.linspace(0, len(movie) - 1, N_FRAMES).astype(int)).tolist()
    frames = np.stack([movie.read(i, i + 1)[0] for i in some]).astype(np.float64)
    low, usual = np.percentile(frames, (1, 99.8)).tolist()
    steady = np.median(frames, 0)
    return low, max(usual, low + 1, float(np.median(frames) + (frames - steady).max()))


def image_layer(
    image: npt.NDArray[Any] | Sequence[Any],
    *,
    pixel_size_nm: float,
    name: str,
    origin_nm: tuple[float, float] = (0.0, 0.0),
    **options: object,
) -> LayerData:
    """A picture (y, x), or (y, x, 3) in colours, at its place in the world; it is shown at all
    times.

    Args:
        image: the picture, or the same in several scales, the finest first.
        pixel_size_nm: side of a pixel, of the finest scale.
        name: of the layer.
        origin_nm: x, y of the outer corner.
        options: keyword arguments of the layer.
    """
    scales = [image] if isinstance(image, np.ndarray) else list(image)
    rgb = scales[0].ndim == 3
    # napari puts the first pixel of every scale where it puts that of the finest: on their common
    # outer corner
    place = placement(pixel_size_nm, n_axes=2, origin_nm=origin_nm)
    several = len(scales) > 1
    return (
        scales if several else scales[0],
        {"name": name, "rgb": rgb, "multiscale": several, **place, **options},
        "image",
    )


def volume_layer(
    image: npt.NDArray[Any],
    *,
    voxel_nm: tuple[float, float, float],
    origin_nm: tuple[float, float, float],
    name: str,
    **options: object,
) -> LayerData:
    """A volume (z, y, x), for a view in 3D; z grows as the table's z.

    Args:
        image: the volume.
        voxel_nm: z, y, x: sides of a voxel.
        origin_nm: z, y, x of its outer corner.
        name: of the layer.
        options: keyword arguments of the layer.
    """
    um = np.asarray(voxel_nm) * UM_PER_NM
    place = {
        "scale": tuple(um.tolist()),
        "translate": tuple((np.asarray(origin_nm) * UM_PER_NM + um / 2).tolist()),
        "axis_labels": ("z", "y", "x"),
        "units": ("um",) * 3,
    }
    return image, {"name": name, **place, **options}, "image"


def pyramid(
    image: npt.NDArray[np.float32], *, longest_px: int = 2048
) -> list[npt.NDArray[np.float32]]:
    """A picture in several scales, each the mean of two by two pixels of the one before; small ones
    in one scale.

    Args:
        image: (y, x) or (y, x, 3); a large one is padded by a few pixels of zeros on the right and
            below.
        longest_px: largest side of the coarsest scale.
    """
    halvings = max(0, int(np.ceil(np.log2(max(image.shape[:2]) / longest_px))))
    margin = [(0, -side % 2**halvings) for side in image.shape[:2]] + [(0, 0)] * (image.ndim - 2)
    scales = [np.pad(image, margin) if any(after for _, after in margin) else image]
    for _ in range(halvings):
        rows = scales[-1][::2] + scales[-1][1::2]
        scales.append(((rows[:, ::2] + rows[:, 1::2]) / 4).astype(np.float32))
    return scales


def white(image: npt.NDArray[Any], share: float) -> float:
    """The quantile `share` of the brightness of pixels with light; 1 where all is dark."""
    lit = image[image > 0]
    return float(np.quantile(lit[:: max(1, lit.size // 100_000)], share)) if lit.size else 1.0


def points_layer(emitters: EmitterSet, *, name: str = "molecules", **options: object) -> LayerData:
    """Molecules as points (t, y, x), every column of the table a feature in nm and photons."""
    xyz = emitters.xyz.double().cpu().numpy()
    data = np.column_stack([emitters.frame.double().cpu().numpy(), xyz[:, 1], xyz[:, 0]])
    return data, _point_options(emitters, name, 3) | options, "points"


def cloud_layer(
    emitters: EmitterSet, *, name: str = "molecules in 3D", **options: object
) -> LayerData:
    """Molecules of all frames as points (z, y, x), for a view in 3D; z grows as the table's z."""
    data = emitters.xyz.double().cpu().numpy()[:, ::-1].copy()
    place = {"scale": (UM_PER_NM,) * 3, "axis_labels": ("z", "y", "x"), "units": ("um",) * 3}
    return data, _point_options(emitters, name, 3) | place | options, "points"


def _point_options(emitters: EmitterSet, name: str, n_axes: int) -> dict[str, Any]:
    return {
        "name": name,
        "features": features_of(emitters),
        "metadata": {FACTS: dict(emitters.metadata)},
        "size": POINT_SIZE_NM,
        "face_color": "transparent",
        "border_color": "#ffb52e",
        "border_width": 0.12,
        "symbol": "disc",
        "scale": (1.0,) * (n_axes - 2) + (UM_PER_NM, UM_PER_NM),
        "axis_labels": AXES[-n_axes:],
        "units": UNITS[-n_axes:],
    }


def field_of(emitters: EmitterSet) -> tuple[float, float]:
    """Width and height in nm: of the movie, or of a box from the origin around the molecules."""
    field_nm = emitters.facts.field_nm
    if field_nm is not None:
        return field_nm
    if not len(emitters):
        return 1000.0, 1000.0
    x, y = emitters.xyz[:, :2].amax(0).tolist()
    return max(x, 1.0) + 1, max(y, 1.0) + 1


def features_of(emitters: EmitterSet) -> dict[str, npt.NDArray[Any]]:
    """The columns of a table by names that state their units, and `others` by their own names."""
    columns = {name: column.detach().cpu().numpy() for name, column in emitters.columns().items()}
    xyz = columns.pop("xyz")
    features = {FRAME: columns.pop("frame")}
    features |= {f"{axis}_nm": xyz[:, i] for i, axis in enumerate("xyz")}
    for width, kind in WIDTHS.items():
        if width in columns:
            by_axis = columns.pop(width)
            features |= {f"{axis}{kind}_nm": by_axis[:, i] for i, axis in enumerate("xyz")}
    if "correlation" in columns:
        from decode.emitters import CORRELATIONS

        features |= dict(zip(CORRELATIONS, columns.pop("correlation").T, strict=True))
    return {**emitters.others, **features, **columns}


def emitters_of(data: npt.ArrayLike, options: Mapping[str, Any]) -> EmitterSet:
    """The table of a Points layer: the points shown, with those that were moved, added or deleted
    in the window.

    Args:
        data: (n, 2 or 3) points (y, x) or (t, y, x) in the layer's own coordinates.
        options: options of the layer, as napari gives them to writers: `features`, `scale`,
            `translate`, `units`, `metadata`.

    Raises:
        ValueError: if the layer does not state its axes or its unit of length.
    """
    import torch  # takes seconds to import, and a movie needs none of it

    from decode.emitters import CORRELATIONS, EmitterSet

    points = np.asarray(data, np.float64)
    features = {
        str(name): np.asarray(column) for name, column in dict(options.get("features", {})).items()
    }
    facts: dict[str, object] = dict(options.get("metadata", {}).get(FACTS, {}))
    if points.shape[1] == 2 and FRAME in features:
        frame = features[FRAME]
    elif points.shape[1] == 3:
        frame = np.rint(points[:, 0])
    else:
        raise ValueError(
            "molecules are points (t, y, x), or (y, x) with a feature called frame; this layer has "
            "neither"
        )
    y, x = _nm(points[:, -2:], options).T
    n = len(points)
    shown = torch.from_numpy(
        np.broadcast_to(np.asarray(options.get("shown", True), np.bool_), n).copy()
    )

    known = {FRAME, *(f"{axis}{kind}_nm" for axis in "xyz" for kind in ("", *WIDTHS.values()))}

    def column(name: str) -> torch.Tensor | None:
        known.add(name)
        return torch.from_numpy(np.array(features[name], np.float64)) if name in features else None

    z = column("z_nm")

    def by_axis(kind: str) -> torch.Tensor | None:
        widths = [column(f"{axis}{kind}_nm") for axis in "xyz"]
        unknown = torch.full((n,), torch.nan, dtype=torch.float64)
        stated = [unknown if width is None else width for width in widths]
        return None if widths[0] is None else torch.stack(stated, 1)

    photons, polished = column("photons"), column("polished")
    correlation = [column(name) for name in CORRELATIONS]
    unknown = torch.full((n,), torch.nan, dtype=torch.float64)
    emitters = EmitterSet(
        frame=torch.from_numpy(np.asarray(frame, np.float64)).long(),
        xyz=torch.stack(
            [torch.from_numpy(x), torch.from_numpy(y), torch.zeros(n).double() if z is None else z],
            1,
        ),
        photons=torch.full((n,), torch.nan, dtype=torch.float64) if photons is None else photons,
        xyz_sigma=by_axis("_sigma"),
        xyz_95=by_axis("_95"),
        background=column("background"),
        probability=column("probability"),
        photons_sigma=column("photons_sigma"),
        photons_95=column("photons_95"),
        correlation=None
        if correlation[0] is None
        else torch.stack([unknown if c is None else c for c in correlation], 1),
        ess=column("ess"),
        goodness=column("goodness"),
        polished=None if polished is None else polished > 0.5,
        others={name: values for name, values in features.items() if name not in known},
    )
    return replace(emitters[shown], metadata=facts)


def _nm(points: npt.NDArray[np.float64], options: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """(n, 2) y, x in nm from the outer corner of the first pixel."""
    scale = np.asarray(options.get("scale", np.ones(2)), np.float64)[-2:]
    shift = np.asarray(options.get("translate", np.zeros(2)), np.float64)[-2:]
    if np.array_equal(scale, [UM_PER_NM] * 2) and not shift.any():
        return points  # nm as they are: to um and back would cost the last digit
    units = [str(unit) for unit in options.get("units", ("pixel",))][-1:]
    if units[0] not in NM_PER_UNIT:
        raise ValueError(
            "this Points layer does not say how long its units are; set its scale and its units "
            "(um or nm) first"
        )
    return (points * scale + shift) * NM_PER_UNIT[units[0]]
