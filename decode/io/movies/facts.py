"""What the metadata of a movie state of its acquisition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

__all__ = ["StatedFacts"]


@final
@dataclass(frozen=True, kw_only=True)
class StatedFacts:
    """Facts of a movie; None where the metadata state nothing plausible."""

    pixel_sides_nm: tuple[float, float] | None = None
    """x, y"""
    exposure_ms: float | None = None
    z_step_nm: float | None = None
    """distance of the planes of a z-stack"""
    camera_name: str | None = None
    """camera or detector, as the writing program calls it"""
