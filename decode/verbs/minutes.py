"""Minutes: how long a model is trained for the PSF of a movie, if it is."""

from __future__ import annotations

from pathlib import Path

__all__ = ["MINUTES", "usual_minutes"]

MINUTES = 7.0
"""of training: 6 to 8 points of 3D efficiency above `astigmatic-3d` (docs/training.md)"""


def usual_minutes(
    minutes: float | None, *, model: object, psf: object, camera: object
) -> float | None:
    """Minutes of training for a movie: as stated; `MINUTES` where no model is named, but the files
    of PSF and camera are."""
    if minutes is not None or model is not None:
        return minutes
    return MINUTES if isinstance(psf, Path | str) and camera is not None else None
