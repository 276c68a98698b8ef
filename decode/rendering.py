"""Pictures of molecules: each one a Gaussian of its own sigma."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from decode.atomic import atomic
from decode.emitters import EmitterSet

__all__ = [
    "GAMMA",
    "HOT",
    "depth_range",
    "exposed",
    "full_brightness",
    "picture_file",
    "render_image",
    "save_picture",
]

CUT = 3.5
"""sigmas after which a Gaussian is cut; the rest is scaled up by the light cut off (5e-4)"""

BATCH = 2**20
"""pixels of patches drawn at once, a few MB"""

GAMMA = 0.5
"""brightness is density to this power: below 1 single molecules show beside dense structures"""
SATURATED = 0.01
"""share of the pixels with molecules that are shown at full brightness"""
HOT = ((0.0, "#000000"), (0.3, "#8a0b08"), (0.55, "#f0430a"), (0.8, "#ffb52e"), (1.0, "#ffffff"))
DEPTH = ((0.0, "#5a5cff"), (0.25, "#00b7ff"), (0.5, "#35ff7a"), (0.75, "#ffd21f"), (1.0, "#ff4a3a"))
"""hues of about equal brightness: deep (small z) is blue, high is red"""


def render_image(
    emitters: EmitterSet,
    *,
    pixel_nm: float = 10.0,
    extent_nm: tuple[float, float, float, float] | None = None,
    min_sigma_nm: float = 5.0,
    max_sigma_nm: float = 100.0,
    z_range_nm: tuple[float, float] | None = None,
) -> npt.NDArray[np.float32]:
    """Molecules per pixel: the sum of normalized Gaussians with the sigmas that each molecule
    states in x and y.

    Gaussians are integrated over the pixels, so the image sums to the number of molecules within.

    Args:
        emitters: the table; molecules without a stated sigma are drawn with `min_sigma_nm`.
        pixel_nm: side of a pixel of the picture.
        extent_nm: (left, top, right, bottom); None takes the field of view if the table's metadata
            state it, else the box around the molecules.
        min_sigma_nm, max_sigma_nm: sigmas are kept within these: sharper ones cannot be seen, wider
            ones hide others.
        z_range_nm: None for density; else molecules are coloured by depth, from blue at the first
            to red at the last.

    Returns:
        (height, width) molecules per pixel; coloured by depth, (height, width, 3) of red, green and
        blue.

    Raises:
        ValueError: if the pixel, the extent or the sigmas' limits are not positive.

    Example:
        >>> molecules = EmitterSet(
        ...     frame=torch.tensor([0]),
        ...     xyz=torch.tensor([[250.0, 250.0, 0.0]]),
        ...     photons=torch.tensor([1000.0]),
        ...     xyz_sigma=torch.tensor([[10.0, 10.0, torch.nan]]),
        ... )
        >>> image = render_image(molecules, pixel_nm=10.0, extent_nm=(0.0, 0.0, 500.0, 400.0))
        >>> image.shape, round(float(image.sum()), 3)
        ((40, 50), 1.0)
    """
    left, top, right, bottom = extent_nm or _field(emitters)
    if not (pixel_nm > 0 and right > left and bottom > top and 0 < min_sigma_nm <= max_sigma_nm):
        raise ValueError(
            "a picture needs a positive pixel size, a positive extent and 0 < min_sigma <= "
            "max_sigma"
        )
    height, width = math.ceil((bottom - top) / pixel_nm), math.ceil((right - left) / pixel_nm)
    weights = (
        torch.ones(len(emitters), 1)
        if z_range_nm is None
        else _depth_colours(emitters.xyz[:, 2], z_range_nm)
    )

    centre = (
        emitters.xyz[:, :2].double().cpu() - torch.tensor([left, top], dtype=torch.float64)
    ) / pixel_nm
    stated = (
        torch.full_like(centre, torch.nan)
        if emitters.xyz_sigma is None
        else emitters.xyz_sigma[:, :2].cpu()
    )
    sigma = stated.double().nan_to_num(min_sigma_nm).clamp(min_sigma_nm, max_sigma_nm) / pixel_nm
    radius = torch.ceil(CUT * sigma.amax(1)).long()
    size = torch.tensor([width, height])
    seen = ((centre.floor() >= -radius[:, None]) & (centre.floor() < size + radius[:, None])).all(1)
    centre, sigma, radius, weights = centre[seen], sigma[seen], radius[seen], weights[seen]

    # Molecules of one patch size together, from top to bottom so that neighbours in memory are
    # written together; a margin of one patch around the picture takes those that hang over its
    # edge.
    order = torch.from_numpy(np.lexsort((centre[:, 1].numpy(), radius.numpy())))
    margin = 2 * int(radius.max()) + 1 if len(radius) else 0
    stride = width + 2 * margin
    canvas = torch.zeros(weights.shape[1], (height + 2 * margin) * stride)
    for r in np.unique(radius.numpy()).tolist():
        members = order[radius[order] == r]
        steps = torch.arange(2 * r + 1)
        batch = max(1, BATCH // len(steps) ** 2)
        for start in range(0, len(members), batch):
            rows = members[start : start + batch]
            corner = centre[rows].floor() - r
            patches = _patches(centre[rows] - corner, sigma[rows], len(steps))
            first = (corner[:, 1].long() + margin) * stride + corner[:, 0].long() + margin
            index = (first[:, None, None] + steps[:, None] * stride + steps).reshape(-1)
            for channel, weight in zip(canvas, weights[rows].T, strict=True):
                channel.index_add_(0, index, (patches * weight[:, None, None]).reshape(-1))
    image = canvas.view(-1, height + 2 * margin, stride)[
        :, margin : margin + height, margin : margin + width
    ]
    return np.ascontiguousarray(
        (image[0] if z_range_nm is None else image.permute(1, 2, 0)).numpy()
    )


def save_picture(
    emitters: EmitterSet,
    path: str | Path,
    *,
    pixel_nm: float | None = None,
    extent_nm: tuple[float, float, float, float] | None = None,
    z_range_nm: tuple[float, float] | None = None,
    by_depth: bool | None = None,
    min_sigma_nm: float = 5.0,
    max_sigma_nm: float = 100.0,
    gamma: float = GAMMA,
    saturated: float = SATURATED,
) -> None:
    """Write a PNG: density in black, red, yellow and white, or depth in colours with a legend, and
    a scale bar.

    Args:
        emitters: the table.
        path: file to write; it appears only when it is complete.
        pixel_nm: side of a pixel; None takes the smallest of 5, 10, 20, 50, ... nm that needs at
            most 4096 of them.
        extent_nm: (left, top, right, bottom); see `render_image`.
        z_range_nm: depths of the first and the last colour.  None takes the range of the molecules,
            rounded to 50 nm.
        by_depth: whether colours show depth, or else density; None: depth where that range is wider
            than 200 nm.
        min_sigma_nm, max_sigma_nm: see `render_image`.
        gamma, saturated: see `exposed`.

    Raises:
        OSError: if the file cannot be written.
    """
    extent = extent_nm or _field(emitters)
    pixel = pixel_nm or _pixel_for(max(extent[2] - extent[0], extent[3] - extent[1]))
    z_range = None
    if by_depth is not False:
        z_range = z_range_nm or depth_range(emitters, least_nm=0.0 if by_depth else 200.0)
    image = render_image(
        emitters,
        pixel_nm=pixel,
        extent_nm=extent,
        min_sigma_nm=min_sigma_nm,
        max_sigma_nm=max_sigma_nm,
        z_range_nm=z_range,
    )
    colours = exposed(image, gamma=gamma, saturated=saturated)
    picture = Image.fromarray(np.rint(colours * 255).astype(np.uint8))
    if z_range is not None:
        picture = _with_depth_legend(picture, z_range)
    _draw_scale_bar(picture, pixel, image.shape[1])
    with atomic(picture_file(Path(path))) as temporary:
        picture.save(temporary, format="PNG")


def picture_file(path: Path) -> Path:
    """The path itself, if it names a PNG file.

    Raises:
        ValueError: if it is not.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: pictures are written as .png; choose such a name")
    return path


def full_brightness(density: npt.NDArray[np.float32], *, saturated: float = SATURATED) -> float:
    """The density shown at full brightness: a share `saturated` of the pixels with molecules
    exceeds it."""
    # far tails of Gaussians are no molecules
    lit = density[density > 1e-3 * density.max(initial=0)]
    return float(np.quantile(lit, 1 - saturated)) if lit.size else 1.0


def exposed(
    image: npt.NDArray[np.float32], *, gamma: float = GAMMA, saturated: float = SATURATED
) -> npt.NDArray[np.float32]:
    """The colours (y, x, 3) between 0 and 1 of a picture that `render_image` drew, of density or in
    colours of depth.

    Args:
        image: (y, x) or (y, x, 3).
        gamma: brightness is density to this power.
        saturated: share of the pixels with molecules that are shown at full brightness.
    """
    density = image if image.ndim == 2 else image.max(axis=2)
    brightness = np.clip(density / full_brightness(density, saturated=saturated), 0, 1) ** gamma
    if image.ndim == 2:
        return _colour_map(HOT, brightness)
    return image / np.maximum(density, 1e-12)[:, :, None] * brightness[:, :, None]


def depth_range(emitters: EmitterSet, *, least_nm: float = 200.0) -> tuple[float, float] | None:
    """Depths that hold 98 % of the molecules, to 50 nm; None if these span no more than
    `least_nm`."""
    if len(emitters) == 0:
        return None
    low, high = np.quantile(emitters.xyz[:, 2].double().cpu().numpy(), (0.01, 0.99))
    return (math.floor(low / 50) * 50, math.ceil(high / 50) * 50) if high - low > least_nm else None


def _patches(centre: Tensor, sigma: Tensor, side: int) -> Tensor:
    """Gaussians integrated over pixels, each patch summing to 1: (n, side, side) from (n, 2)
    centres and sigmas."""
    edges = torch.arange(side + 1)
    profile: Tensor = torch.special.ndtr(
        ((edges - centre[:, :, None]) / sigma[:, :, None]).float()
    ).diff(dim=2)
    profile = profile / profile.sum(2, keepdim=True)
    return profile[:, 1, :, None] * profile[:, 0, None, :]


def _field(emitters: EmitterSet) -> tuple[float, float, float, float]:
    """The field of view of the movie, or the box around the molecules in steps of 100 nm."""
    field_nm = emitters.facts.field_nm
    if field_nm is not None:
        return 0.0, 0.0, *field_nm
    if len(emitters) == 0:
        return 0.0, 0.0, 1000.0, 1000.0
    low, high = emitters.xyz[:, :2].amin(0) / 100, emitters.xyz[:, :2].amax(0) / 100
    (left, top), (right, bottom) = low.floor().tolist(), (high.floor() + 1).tolist()
    return left * 100, top * 100, right * 100, bottom * 100


def _pixel_for(longest_nm: float) -> float:
    steps = (step * 10**power for power in range(9) for step in (5, 10, 20))
    return next(float(step) for step in steps if longest_nm / step <= 4096)


def _colour_map(
    stops: tuple[tuple[float, str], ...], values: npt.NDArray[Any]
) -> npt.NDArray[np.float32]:
    """Colours (..., 3) in [0, 1] of values in [0, 1], straight lines between the stops."""
    at = [position for position, _ in stops]
    colours = np.array(
        [[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for _, colour in stops]
    )
    table = np.stack(
        [np.interp(np.linspace(0, 1, 1024), at, channel) for channel in colours.T],
        -1,
        dtype=np.float32,
    )
    colour: npt.NDArray[np.float32] = table[np.rint(values * 1023).astype(np.int64)]
    return colour


def _depth_colours(z: Tensor, z_range_nm: tuple[float, float]) -> Tensor:
    low, high = z_range_nm
    values = ((z.double().cpu() - low) / (high - low)).clamp(0, 1).numpy()
    return torch.from_numpy(_colour_map(DEPTH, values))


def _text_size(picture: Image.Image) -> int:
    return max(13, min(picture.size) // 40)


def _draw_scale_bar(picture: Image.Image, pixel_nm: float, width: int) -> None:
    """A white bar of a round length, at most a fifth of the field, at the lower right of the
    data."""
    lengths = (step * 10**power for power in range(9, -1, -1) for step in (5, 2, 1))
    length_nm = next((length for length in lengths if length <= width * pixel_nm / 5), 1)
    number, unit = (
        (f"{length_nm / 1000:g} ", "um") if length_nm >= 1000 else (f"{length_nm} ", "nm")
    )
    text = _text_size(picture)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=text)
    right, bottom = width - text, picture.height - text
    left = right - length_nm / pixel_nm
    draw.rectangle((left, bottom - text // 5, right, bottom), fill="white")
    start = round((left + right - font.getlength(number + unit)) / 2)
    baseline = bottom - 0.6 * text
    draw.text((start, baseline), number + unit, fill="white", font=font, anchor="ls")
    if unit == "um":  # the font that comes with Pillow has no micro sign: give the u its tail
        stem = round(start + font.getlength(number) + text / 16)
        draw.rectangle(
            (stem, baseline - 0.3 * text, stem + text // 12, baseline + 0.2 * text), fill="white"
        )


def _with_depth_legend(picture: Image.Image, z_range_nm: tuple[float, float]) -> Image.Image:
    """The picture with the colours of depth on a black strip at its right."""
    text = _text_size(picture)
    font = ImageFont.load_default(size=text)
    wide = Image.new("RGB", (picture.width + 6 * text, picture.height))
    wide.paste(picture, (0, 0))
    bar = min(picture.height - 4 * text, 16 * text)
    colours = _colour_map(DEPTH, np.linspace(1, 0, max(bar, 2))[:, None].repeat(text, 1))
    left, top = picture.width + text, 2 * text
    wide.paste(Image.fromarray(np.rint(colours * 255).astype(np.uint8)), (left, top))
    draw = ImageDraw.Draw(wide)
    low, high = z_range_nm
    for share, z in ((0.0, high), (0.5, (low + high) / 2), (1.0, low)):
        at = (left + 1.5 * text, top + share * (bar - 1))
        draw.text(at, f"{z:g}", fill="white", font=font, anchor="lm")
    draw.text((left, top - 0.6 * text), "z [nm]", fill="white", font=font, anchor="lb")
    return wide
