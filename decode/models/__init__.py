"""Models that come with the package."""

from __future__ import annotations

import difflib
from pathlib import Path

from decode.conditioning import IMMERSION_INDEX, REMEDY, AstigmaticPupil
from decode.network.localizer import Localizer

__all__ = ["NEAREST", "load_model", "shipped_models", "unserved"]

NEAREST = "nearest"
"""name by which a training starts from the first shipped model that fits its recipe"""


def shipped_models() -> dict[str, Path]:
    """Name and file of each model that comes with the package."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.safetensors"))}


def load_model(name_or_path: str | Path) -> Localizer:
    """A shipped model by its name, or any model by its file.

    Args:
        name_or_path: one of `shipped_models`, or a file, `.safetensors`.

    Returns:
        The network with all that is needed to use it, ready to localize on the CPU.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if the file is truncated, was changed after it was written, or is no model.

    Example:
        >>> load_model("astigmatic-3d").network.axial
        True
    """
    shipped = shipped_models()
    path = Path(name_or_path)
    if str(name_or_path) in shipped:
        return Localizer.load(shipped[str(name_or_path)])
    if not path.exists() and path.suffix == "" and path.name == str(name_or_path):
        near = difflib.get_close_matches(path.name, shipped, 1)
        hint = f"did you mean {near[0]}?" if near else f"shipped are {', '.join(shipped) or 'none'}"
        raise FileNotFoundError(
            f"there is no model {name_or_path}, neither shipped nor as a file here; {hint}"
        )
    return Localizer.load(path)


def unserved(
    wavelength_nm: float,
    pixel_size_nm: float,
    *,
    immersion_index: float = IMMERSION_INDEX,
    phase_mask: bool = False,
) -> str:
    """Why no shipped model will take a 3D PSF, as far as is known before it is calibrated.

    Args:
        wavelength_nm: wavelength of the emission in vacuum.
        pixel_size_nm: side of a pixel in the sample.
        immersion_index: refractive index of the immersion.
        phase_mask: whether a free phase is fitted.

    Returns:
        A sentence, or "" where a model may.
    """
    why = "none is conditioned on phase masks" if phase_mask else ""
    for name in () if phase_mask else shipped_models():
        domain = load_model(name).domain
        if domain.kind is not AstigmaticPupil:
            continue
        try:
            AstigmaticPupil.require_scale(wavelength_nm, immersion_index, pixel_size_nm, domain)
        except ValueError as error:
            why = f"{name}: {error}"
        else:
            return ""
    if not why:
        return ""
    return f"no shipped model will take this PSF in 3D ({why}); {REMEDY}"
