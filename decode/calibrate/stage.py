"""Whether the planes of a bead stack have the stated distance."""

from __future__ import annotations

from math import pi, sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Sharpness", "check_stage", "sharpness"]

USUAL_SLOPE, POSSIBLE_SLOPE = (0.18, 0.72), (0.06, 1.0)
"""ranges of the slope; 0.25 to 0.53 for apertures of 0.9 to 1.5 and no, astigmatic, helical,
tetrapod and vortex phases"""
USUAL_PER_UM = (0.3, 1.8)
"""range of the lateral frequency; 0.36 to 1.0 for the same PSFs, with pixels of 65 to 160 nm"""
CHANGED = 0.2
"""largest change of a bead's image between compared planes, as a fraction of its energy"""


class Sharpness(NamedTuple):
    """How fast beads' images change from pixel to pixel and from plane to plane."""

    slope: float
    """root mean square frequency along z over that along x and y"""
    per_um: float
    """root mean square frequency along x and y, after a blur of one pixel"""


def sharpness(crops: Tensor, step_nm: float, pixel_size_nm: float) -> Sharpness | None:
    """Frequencies of through-focus stacks along the axis and across it.

    Two plane waves through the pupil, of directions s and s', beat with the frequency n (s - s') /
    wavelength (McCutchen, J. Opt. Soc. Am. 54, 240, 1964): laterally by the difference of the sines
    of their angles, axially by that of the cosines. The ratio is the slope of the rays between
    them.  Phases in the pupil only decide where in the image each pair beats, so that the slope
    differs little between engineered PSFs, while it is inversely proportional to the step.

    The energy of differences between planes, D(lag) = noise + (axial frequency * lag)^2 / 2, gives
    the axial frequency without the noise; products of neighbouring planes, whose noise is
    independent, give the lateral one.

    Args:
        crops: (bead, z, y, x) photons.
        step_nm: distance of the planes.
        pixel_size_nm: side of a pixel.

    Returns:
        Means over all beads and planes; None where noise hides them.
    """
    n, planes, side, _ = crops.shape
    light = crops.double()
    sides = light[..., 0, :], light[..., -1, :], light[..., 0], light[..., -1]
    rim = torch.cat(sides, 2).median(2).values
    taper = torch.hann_window(side, periodic=False, dtype=torch.float64) ** 0.25
    f = torch.fft.fftfreq(side, dtype=torch.float64)
    f2 = f[:, None] ** 2 + f**2
    tapered = (light - rim[..., None, None]) * taper[:, None] * taper
    spectrum = torch.fft.fft2(tapered) * torch.exp(-2 * pi**2 * f2)

    neighbours = (spectrum[:, 1:] * spectrum[:, :-1].conj()).real.sum((0, 1)) / (planes - 1)
    energy, lateral = float(neighbours.sum()), float((neighbours * f2).sum())
    if not (energy > 0 and lateral > 0):
        return None
    # times the side, so that its energy is the spectrum's
    blurred = torch.fft.ifft2(spectrum).real * side
    changes: list[float] = []
    for lag in range(1, max(3, planes // 2)):
        change = (blurred[:, lag:] - blurred[:, :-lag]).square().sum() / (planes - lag)
        changes.append(float(change) / (2 * energy))
        # what a single plane changes grows with the square of the lag, which noise does not
        noise = max(0.0, (4 * changes[0] - changes[1]) / 3) if lag > 1 else 0.0
        if lag > 3 and changes[-1] - noise > CHANGED:
            changes.pop()
            break
    growth, noise = np.polyfit(np.arange(1, len(changes) + 1) ** 2, changes, 1)
    # independent are as many pixels as the blur leaves
    if not (growth > 0 and noise < 0.05 * sqrt(n * planes * side**2 / (4 * pi))):
        return None
    lateral = sqrt(lateral / energy) / pixel_size_nm
    axial = sqrt(2 * growth) / (2 * pi * step_nm)
    return Sharpness(axial / lateral, 1000 * lateral)


def check_stage(crops: Tensor, step_nm: float, pixel_size_nm: float) -> tuple[str, ...]:
    """A warning if step or pixel size may be wrong by a factor.

    Args:
        crops, step_nm, pixel_size_nm: as for `sharpness`.

    Raises:
        ValueError: if they are certainly wrong.
    """
    found = sharpness(crops, step_nm, pixel_size_nm)
    if found is None:
        return ()
    slope, per_um = found
    possible = POSSIBLE_SLOPE[0] <= slope <= POSSIBLE_SLOPE[1]
    doubt = "perhaps " if possible else ""
    if not USUAL_PER_UM[0] <= per_um <= USUAL_PER_UM[1]:
        change = "smaller" if per_um < USUAL_PER_UM[0] else "larger"
        sentence = (
            f"beads' images vary with {per_um:.2g} periods/um in x and y, where microscopes have "
            f"{USUAL_PER_UM[0]:g} to {USUAL_PER_UM[1]:g}: the pixel size ({pixel_size_nm:g} nm) is "
            f"{doubt}wrong by a factor, it should be {change}"
        )
    elif not USUAL_SLOPE[0] <= slope <= USUAL_SLOPE[1]:
        change = "smaller" if slope < USUAL_SLOPE[0] else "larger"
        sentence = (
            f"beads change with z {slope:.2g} times as fast as with x and y, where microscopes "
            f"have {USUAL_SLOPE[0]:g} to {USUAL_SLOPE[1]:g}: --z-step ({step_nm:g} nm) is {doubt}"
            f"wrong by a factor, it should be {change}"
        )
    else:
        return ()
    if not possible:
        raise ValueError(sentence)
    # Gaussians of 125 nm, wider by 1.4 at 400 nm, as simulators draw them, have a slope of 0.14
    unless = "unless this PSF is slow in z, as of a low aperture or drawn as a Gaussian; check it"
    return (f"{sentence}, {unless}",)
