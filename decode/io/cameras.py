"""Camera files: YAML that states how counts become photons."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, final

import numpy as np
import tifffile
import torch
import yaml
from torch import Tensor

from decode.atomic import atomic
from decode.errors import brief, reading
from decode.io.movies import read_image, require_pixel_size
from decode.io.yaml import read_yaml
from decode.optics.camera import Camera

__all__ = [
    "CameraFile",
    "camera_inputs",
    "camera_map",
    "camera_presets",
    "read_camera",
    "write_camera",
]

PRESETS = Path(__file__).parents[1] / "cameras"
"""camera files of common models, without pixel size and EM gain"""

MAPS = {"baseline": "offset_map", "e_per_adu": "gain_map", "read_noise_e": "read_variance_map"}
"""numbers, and the map (ADU, ADU per electron, ADU^2) that may replace each"""

BAD_VARIANCE = 1e9
"""read variance by which a map marks a bad pixel, ADU^2: programs without a list of bad pixels give
it no weight"""

NUMBERS = ("pixel_size_nm", *MAPS, "qe", "em_gain", "spurious_e", "saturation_adu")


@final
@dataclass(frozen=True, kw_only=True)
class CameraFile:
    """A camera and its pixel size, as a camera file states them.

    Example:
        >>> CameraFile(
        ...     camera=Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.5), pixel_size_nm=110.0
        ... ).camera.qe
        1.0
    """

    camera: Camera
    """what turns photons into counts"""
    pixel_size_nm: float
    """side of a pixel in object space"""

    def __post_init__(self) -> None:
        require_pixel_size(self.pixel_size_nm)


def camera_map(path: Path, name: str) -> Path:
    """A map beside the camera file that names it."""
    return path.with_name(f"{path.stem}_{name}.tif")


@cache
def camera_presets() -> dict[str, str]:
    """Common cameras: the name that `read_camera` takes, and a description.

    Their values are typical of the model.  Check them: cameras of one model differ by some percent.
    """
    files = sorted(PRESETS.glob("*.yaml"))
    return {
        file.stem: file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        for file in files
    }


def read_camera(
    path: str | Path, *, pixel_size_nm: float | None = None, em_gain: float | None = None
) -> CameraFile:
    """Read a camera file, or one of `camera_presets`.

    Keys: `pixel_size_nm`, `baseline` (ADU) or `offset_map` (ADU), `e_per_adu` or `gain_map` (ADU
    per electron), `read_noise_e` (electrons) or `read_variance_map` (ADU^2), and optionally `qe`,
    `em_gain`, `spurious_e` and `saturation_adu` as in `Camera`.  Maps are (y, x) TIFF images, their
    paths relative to the file; a read variance of `BAD_VARIANCE` or more marks a bad pixel.

    Args:
        path: the file, or the name of a preset.
        pixel_size_nm, em_gain: replace those of the file; presets state neither.

    Returns:
        The camera and its pixel size.

    Raises:
        FileNotFoundError: if the file or one of its maps is missing.
        ValueError: if a key is unknown, missing or out of range, or a map is not an image of
            positive, finite numbers.

    Example:
        >>> file = read_camera("sample_data/camera.yaml")
        >>> file.pixel_size_nm, file.camera.em_gain
        (100.0, 300.0)
    """
    path, preset = _find(Path(path))
    # the text of a preset is right: what may be wrong is what its user states, or leaves out
    described = nullcontext() if preset else reading(path, "a camera file", "check its text")
    with described:
        return _read(path, preset=preset, pixel_size_nm=pixel_size_nm, em_gain=em_gain)


def _read(
    path: Path, *, preset: bool, pixel_size_nm: float | None, em_gain: float | None
) -> CameraFile:
    content = dict(_mapping(path))
    _check_em_gain(path, preset=preset, content=content, em_gain=em_gain)
    stated = {"pixel_size_nm": pixel_size_nm, "em_gain": em_gain}
    content |= {name: value for name, value in stated.items() if value is not None}
    numbers = {
        name: _number(path, name, content[name])
        for name in NUMBERS
        if content.get(name) is not None
    }
    maps = {name: _map(path, name, content[name]) for name in MAPS.values() if name in content}
    _check_complete(path, preset=preset, numbers=numbers, maps=maps)
    pixel_size_nm = numbers.pop("pixel_size_nm")
    try:
        fields: dict[str, Any] = {**numbers, **_fields_of(maps, numbers)}
        return CameraFile(camera=Camera(**fields), pixel_size_nm=pixel_size_nm)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _check_em_gain(
    path: Path, *, preset: bool, content: Mapping[str, object], em_gain: float | None
) -> None:
    if preset and em_gain is None and "em_gain" in content:
        raise ValueError(
            f"the camera {path.stem} has an EM gain that its user sets; state it with --em-gain"
        )
    if em_gain is not None and "em_gain" not in content:
        named = f"the camera {path.stem} has" if preset else f"{path} is of a camera with"
        raise ValueError(f"{named} no EM gain; leave --em-gain out")


def _check_complete(
    path: Path, *, preset: bool, numbers: Mapping[str, float], maps: Mapping[str, Tensor]
) -> None:
    """Each quantity is stated once, and all maps have one size."""
    if preset and "pixel_size_nm" not in numbers:
        raise ValueError(
            f"the camera {path.stem} states no pixel size, which depends on the optics; state "
            "it with --pixel-size"
        )
    if "pixel_size_nm" not in numbers:
        raise ValueError(f"{path}: pixel_size_nm is missing")
    for name, instead in MAPS.items():
        if name in numbers and instead in maps:
            raise ValueError(
                f"{path}: {name} and {instead} state the same quantity; keep one of them"
            )
        if name not in numbers and instead not in maps:
            raise ValueError(f"{path}: {name} is missing; state it, or {instead} in its place")
    if len({m.shape for m in maps.values()}) > 1:
        listed = ", ".join(f"{name} {m.shape[0]} x {m.shape[1]}" for name, m in maps.items())
        raise ValueError(
            f"{path}: the maps differ in height x width ({listed}); all must be as large as the "
            "movie"
        )


def _fields_of(maps: Mapping[str, Tensor], numbers: Mapping[str, float]) -> dict[str, Tensor]:
    """The fields of `Camera` that maps state."""
    fields: dict[str, Tensor] = {}
    if "offset_map" in maps:
        fields["baseline"] = maps["offset_map"]
    if "gain_map" in maps:
        fields["e_per_adu"] = 1 / maps["gain_map"]
    if "read_variance_map" in maps:
        variance = maps["read_variance_map"]
        bad = variance >= BAD_VARIANCE
        if bool(bad.all()):
            raise ValueError("read_variance_map marks all pixels as bad; measure it again")
        if bool(bad.any()):
            fields["bad"] = bad
            variance = torch.where(bad, variance[~bad].median(), variance)
        e_per_adu = fields["e_per_adu"] if "gain_map" in maps else numbers["e_per_adu"]
        fields["read_noise_e"] = variance.sqrt() * e_per_adu
    return fields


def camera_inputs(path: str | Path) -> tuple[Path, ...]:
    """The user's files that `read_camera` reads: the camera file and its maps, or none of a preset.

    Raises:
        FileNotFoundError, ValueError: as `read_camera` does.
    """
    path, preset = _find(Path(path))
    if preset:
        return ()
    content = _mapping(path)
    return (path, *(path.parent / str(content[name]) for name in MAPS.values() if name in content))


def write_camera(path: str | Path, file: CameraFile) -> None:
    """Write a camera file; maps go into float32 TIFF images beside it.

    Args:
        path: the file, `.yaml`; a map is `<name>_offset_map.tif` and so on beside it.
        file: the camera and its pixel size.

    Raises:
        ValueError: if qe, em_gain or spurious_e is a map, for which the file has no place.
        OSError: if it cannot be written.

    Example:
        >>> import tempfile
        >>> offset = torch.full((32, 32), 100.0)
        >>> camera = Camera(baseline=offset, e_per_adu=0.5, read_noise_e=1.5)
        >>> file = CameraFile(camera=camera, pixel_size_nm=110.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_camera(f"{folder}/camera.yaml", file)
        ...     again = read_camera(f"{folder}/camera.yaml")
        >>> again.camera.shape
        (32, 32)
    """
    path = Path(path)
    camera = file.camera
    e_per_adu = torch.as_tensor(camera.e_per_adu)
    as_map = {
        "baseline": torch.as_tensor(camera.baseline),
        "e_per_adu": 1 / e_per_adu,
        "read_noise_e": (torch.as_tensor(camera.read_noise_e) / e_per_adu) ** 2,
    }
    if camera.bad is not None and bool(camera.bad.any()):
        as_map["read_noise_e"] = torch.where(camera.bad, BAD_VARIANCE, as_map["read_noise_e"])
    content: dict[str, float | str] = {"pixel_size_nm": float(file.pixel_size_nm)}
    images: dict[Path, Tensor] = {}
    for name in NUMBERS[1:]:
        value = getattr(camera, name)
        if value is None:
            continue
        if torch.as_tensor(value).numel() == 1 and as_map.get(name, torch.ones(1)).numel() == 1:
            content[name] = float(value)
        elif name in MAPS:
            image = camera_map(path, MAPS[name])
            images[image], content[MAPS[name]] = as_map[name], image.name
        else:
            raise ValueError(f"{path}: a camera file holds one number for {name}, not a map")
    for image, pixels in images.items():
        with atomic(image) as temporary:
            tifffile.imwrite(
                temporary, np.asarray(pixels.cpu(), np.float32), photometric="minisblack"
            )
    with atomic(path) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _find(path: Path) -> tuple[Path, bool]:
    """The file, and whether it is a preset."""
    preset = PRESETS / f"{path}.yaml"
    if path.exists() or path.name != str(path):
        return path, False
    if preset.is_file():
        return preset, True
    near = difflib.get_close_matches(str(path), camera_presets(), 1)
    if near and not path.suffix:
        raise FileNotFoundError(
            f"there is no camera file {path}, and no camera of that name; is it {near[0]}?"
        )
    return path, False


def _mapping(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no camera file {path}")
    content = read_yaml(path)
    known = (*NUMBERS, *MAPS.values())
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"is it {near[0]}?" if near else f"the keys are {', '.join(known)}"
            raise ValueError(f"{path}: unknown key {brief(key)}; {hint}")
    return content


def _number(path: Path, name: str, value: object) -> float:
    number = math.nan
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)  # also of text: YAML 1.1 takes 1e-3 for a word
    if not math.isfinite(number):
        raise ValueError(f"{path}: {name} is {brief(value)}, not a number")
    if number < 0 and name != "baseline":
        raise ValueError(f"{path}: {name} is {value}, must not be negative")
    return number


def _map(path: Path, name: str, value: object) -> Tensor:
    image = path.parent / str(value)
    if not image.is_file():
        raise FileNotFoundError(
            f"{path}: {name} is {brief(value)}, and there is no such file beside it"
        )
    try:
        pixels = read_image(image)
    except ValueError as error:
        raise ValueError(f"{path}: {name}: {error}") from error
    if not np.isfinite(pixels).all():
        raise ValueError(
            f"{path}: {name} ({image}) holds NaN or infinite values; measure those pixels again"
        )
    lowest = pixels.min()
    if name != "offset_map" and (lowest < 0 or (lowest == 0 and name == "gain_map")):
        bound = "positive" if name == "gain_map" else "0 or more"
        raise ValueError(
            f"{path}: {name} ({image}) holds {lowest:g}, but must be {bound} everywhere"
        )
    return torch.from_numpy(pixels.astype(np.float32))
