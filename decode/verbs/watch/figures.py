"""Figures of an acquisition while it runs."""

from __future__ import annotations

import io
import math
import threading
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import colormaps
from PIL import Image

from decode.emitters import Check, EmitterSet

__all__ = ["Figures", "Update"]

RECENT_FRAMES = 200
"""frames of which the figures are, the last ones"""
PICTURE_PX = 1000
"""most pixels of a side of the picture"""
FINEST_NM = 10.0
"""least side of a pixel of the picture"""
BRIGHT = 99.5
"""percentile of the pixels with molecules that is drawn white"""


@final
@dataclass(frozen=True, kw_only=True)
class Update:
    """How an acquisition is at the moment; None where a figure is not known."""

    movie: str
    frames: int
    """localized"""
    frames_written: int
    """seen in the file"""
    molecules: int
    density_per_um2: float | None = None
    """molecules a frame in a square micrometre, of the last frames, as all below"""
    photons: float | None = None
    """median"""
    background: float | None = None
    """median, photons a pixel"""
    sigma_nm: float | None = None
    """median of the stated lateral precision"""
    sigma_z_nm: float | None = None
    checks_failed: tuple[str, ...] = ()
    """a sentence each"""
    checks_frames: int = 0
    """frames that the checks have seen"""
    latency_s: float | None = None
    """between the sight of the newest localized frame and this line"""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@final
class Figures:
    """Gathers figures and the picture from the blocks of a movie.

    Args:
        movie: its name.
        field_nm: (x, y) sides of the field.
        area_um2: of the region that is localized in.
    """

    def __init__(self, movie: str, *, field_nm: tuple[float, float], area_um2: float) -> None:
        self._movie, self._area_um2 = movie, area_um2
        self.pixel_nm = max(FINEST_NM, max(field_nm) / PICTURE_PX)
        width, height = (max(1, math.ceil(side / self.pixel_nm)) for side in field_nm)
        self._counts = np.zeros((height, width), np.uint32)
        self._recent: deque[tuple[range, EmitterSet]] = deque()
        self._lock = threading.Lock()
        self.n_molecules, self.n_frames = 0, 0
        self.checks: tuple[Check, ...] = ()
        self.checks_frames = 0

    def see(self, span: range, molecules: EmitterSet) -> None:
        """Add the molecules of the next frames."""
        self.n_molecules += len(molecules)
        self.n_frames = span.stop
        self._recent.append((span, molecules))
        while self._recent[0][0].stop <= span.stop - RECENT_FRAMES:
            self._recent.popleft()
        place = (molecules.xyz[:, :2] / self.pixel_nm).long().cpu().numpy()
        height, width = self._counts.shape
        inside = ((place >= 0) & (place < (width, height))).all(1)
        with self._lock:
            np.add.at(self._counts, (place[inside, 1], place[inside, 0]), 1)

    def update(self, *, frames_written: int, latency_s: float | None = None) -> Update:
        """The figures now."""
        recent = EmitterSet.cat(molecules for _, molecules in self._recent)
        n_frames = sum(len(span) for span, _ in self._recent)
        sigma = recent.xyz_sigma
        return Update(
            movie=self._movie,
            frames=self.n_frames,
            frames_written=frames_written,
            molecules=self.n_molecules,
            density_per_um2=_short(len(recent) / (n_frames * self._area_um2)),
            photons=_median(recent.photons),
            background=_median(recent.background),
            sigma_nm=None if sigma is None else _median(sigma[:, :2].square().mean(1).sqrt()),
            sigma_z_nm=None if sigma is None else _median(sigma[:, 2]),
            checks_failed=tuple(str(check) for check in self.checks if check.failed),
            checks_frames=self.checks_frames,
            latency_s=None if latency_s is None else round(latency_s, 2),
        )

    def picture(self) -> bytes:
        """All molecules so far, as PNG."""
        with self._lock:
            counts = self._counts.astype(np.float32)
        lit = counts[counts > 0]
        white = float(np.percentile(lit, BRIGHT)) if lit.size else 1.0
        shade: npt.NDArray[np.float64] = np.sqrt((counts / white).clip(0, 1))
        colours = colormaps["inferno"](shade, bytes=True)[..., :3]
        png = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(colours)).save(png, "PNG")
        return png.getvalue()


def _median(values: torch.Tensor | None) -> float | None:
    return None if values is None or not len(values) else _short(float(values.nanmedian()))


def _short(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None
