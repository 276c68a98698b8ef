"""Family: how a family of PSFs is fitted to beads, and refitted without one of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Generic, NamedTuple, TypeVar, final

import torch
from torch import Tensor

from decode.calibrate.bead_fit import BeadFit
from decode.calibrate.beads import BeadSet
from decode.optics.psf import PSF
from decode.progress import Steps

__all__ = ["Family", "FamilyFit", "Optics"]

P = TypeVar("P", bound=PSF)


class Optics(NamedTuple):
    """What is known of the objective; the fit of a pupil may correct the aperture a little."""

    numerical_aperture: float = 1.45
    wavelength_nm: float = 670.0
    immersion_index: float = 1.518
    sample_index: float | None = None
    """refractive index around the beads; None: that of the immersion"""
    bead_diameter_nm: float = 0.0
    """diameter of the beads, which is deconvolved: the PSF is that of a molecule"""
    phase_mask: bool = False
    """fit a free phase over the pupil besides the Zernike coefficients"""

    @property
    def of_a_pupil(self) -> bool:
        """Whether it states what only a pupil can take into account."""
        usual = Optics(self.numerical_aperture, self.wavelength_nm, self.immersion_index)
        return self != usual


@final
@dataclass(frozen=True, kw_only=True)
class FamilyFit(Generic[P]):
    """A PSF fitted to all beads, and the refit without one of them."""

    fit: BeadFit[P]
    uniform: BeadFit[P]
    """fit with the same PSF all over the field; `fit` itself if that does not vary"""
    without: Callable[[int], Steps[BeadFit[PSF]]]
    """fits all beads but the i-th, and returns the PSF at its position"""
    smoothness: dict[float, float] = field(default_factory=dict)
    """deviance of held-out beads by the smoothness tried"""
    depth_smoothness: dict[float, float] = field(default_factory=dict)
    """the same by the smoothness along z"""
    notes: tuple[str, ...] = ()
    """what the user should know, a sentence each"""


class Family(ABC, Generic[P]):
    """A kind of PSF.

    Args:
        optics: facts of the objective.

    Raises:
        ValueError: if they state what this family cannot take into account.
    """

    takes_positions: ClassVar[bool] = True
    """whether the origin of its PSF can be moved to known positions of beads"""

    def __init__(self, optics: Optics) -> None:
        if optics.of_a_pupil:
            stated = "sample index, bead diameter and phase mask are of a pupil"
            raise ValueError(f"{stated}; calibrate one with --model pupil")

    @abstractmethod
    def fit(self, beads: BeadSet) -> Steps[FamilyFit[P]]:
        """Fit a PSF to beads, step by step."""

    @abstractmethod
    def work(self, beads: BeadSet) -> tuple[float, float]:
        """Work of `fit`, and of one refit without a bead: approximate number of turns times
        images."""

    def moved(self, fit: BeadFit[P], *, places_nm: Tensor, offsets_nm: Tensor) -> BeadFit[P]:
        """The same images, attributed to emitters at other positions.

        Args:
            fit: fit of n beads.
            places_nm: (n, 2) true x, y of each bead in the field.
            offsets_nm: (n, 2) found minus true x, y.
        """
        raise TypeError(f"{type(self).__name__} takes no known positions")

    def at_positions(self, fit: BeadFit[P], corners_nm: Tensor, positions_nm: Tensor) -> BeadFit[P]:
        """Move the origin of the PSF to the known positions of the beads.

        Args:
            fit: fit of n beads.
            corners_nm: (n, 2) x, y of the outer corner of each crop in the field.
            positions_nm: (m, 2) x, y in the field; each bead takes the nearest one.
        """
        found = fit.xyz[:, :2] + corners_nm
        positions = positions_nm.to(found)
        places = positions[torch.cdist(found, positions).argmin(1)]
        return self.moved(fit, places_nm=places, offsets_nm=found - places)

    def of_molecules(self, psf: P) -> P:
        """The PSF of molecules, without the size of the beads."""
        return psf
