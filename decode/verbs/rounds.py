"""Rounds: what a movie's own molecules say of its scene becomes the prior of the next training.

This is sequential neural estimation (Papamakarios and Murray, NeurIPS 2016), whose rounds narrow or
move the prior to where the posterior of the data lies.  Here each round trains on simulations of
the new prior alone, so that nothing has to be corrected for the old one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch

from decode.calibrate.as_pupil import calibrated_pupil
from decode.calibrate.in_situ import refine_in_situ
from decode.config import TrainConfig
from decode.emitters import Check, EmitterSet
from decode.io.cameras import CameraFile
from decode.io.movies import Selection
from decode.io.psfs import PSFFile
from decode.priors.scene import Scene
from decode.ranges import Range

__all__ = ["Round", "SceneOfMolecules", "refined_psf", "with_scene"]

AROUND = 1.5
"""factor by which the new ranges extend beyond what the molecules say"""
CROWDED, LEAST_CROWDED = 3.0, 1.0
"""upper end of the density over that of the molecules, which crowd on structures, and its least
value"""
FEWEST = 50
"""fewest molecules that say something of the scene"""
OF_PSF = frozenset({"PSF width", "PSF misfit", "spherical aberration"})
"""checks that fail where the PSF is not the movie's"""
OF_DEPTH = ("zernike_4_0_nm", "blur_nm")
"""parameters of a pupil that differ between beads on the coverslip and molecules in the sample"""
FAINTEST = 0.05
"""quantile of the photons found below which molecules count as missed"""
SIMULATED_FRAMES, SIDE_PX = 400, 64


@final
@dataclass(frozen=True, kw_only=True)
class SceneOfMolecules:
    """What the molecules of a movie say of its scene."""

    flux_photons: float
    """mean photons of a molecule in a frame during which it is on throughout"""
    background_photons: float
    density_per_um2: float

    @classmethod
    def of(cls, found: EmitterSet, recipe: TrainConfig) -> SceneOfMolecules | None:
        """From molecules whose photons the likelihood fitted; None of too few.

        Molecules that are fainter than nearly all that were found are missed.  The flux is the one
        at which those of the recipe's blinking that are brighter have the mean that was found, and
        the density is corrected for the others.

        Args:
            found: molecules with background, and the field and number of frames as facts.
            recipe: gives on-times and variation of the flux.
        """
        facts = found.facts
        if len(found) < FEWEST or found.background is None or facts.field_nm is None:
            return None
        photons = found.photons.double()
        faintest = float(photons.quantile(FAINTEST))
        mean = float(photons[photons >= faintest].mean())
        relative = _relative_photons(recipe.scene)
        low, high = math.log(mean / 10), math.log(mean * 10)
        for _ in range(50):  # the mean of the brighter ones grows with the flux
            middle = (low + high) / 2
            bright = math.exp(middle) * relative
            too_bright = float(bright[bright >= faintest].mean()) > mean
            low, high = (low, middle) if too_bright else (middle, high)
        flux = math.exp(low)
        share = float((flux * relative >= faintest).double().mean())
        area_um2 = facts.field_nm[0] * facts.field_nm[1] * 1e-6
        n_frames = max(facts.n_frames or 1, 1)
        # the first and the last frame of a molecule hold a part of its light
        rows = float((photons >= faintest).sum()) / max(share, 0.05)
        return cls(
            flux_photons=flux,
            background_photons=float(found.background.median()),
            density_per_um2=rows * float(relative.mean()) / n_frames / area_um2,
        )

    @property
    def ranges(self) -> Mapping[str, Range]:
        """Ranges of a scene around it, by the recipe's keys."""
        crowded = max(CROWDED * self.density_per_um2, LEAST_CROWDED)
        return {
            "density_per_um2": (0.0, crowded),
            "flux_photons": (self.flux_photons / AROUND, self.flux_photons * AROUND),
            "background_photons": (
                self.background_photons / AROUND,
                self.background_photons * AROUND,
            ),
        }

    def outside(self, scene: Scene) -> Mapping[str, float]:
        """Factor by which each lies outside the ranges of a scene, where it does."""
        factors = {}
        for name in self.ranges:
            low, high = getattr(scene, name)
            value = max(getattr(self, name), 1e-6)
            factors[name] = max(low / value, value / max(high, 1e-6))
        return {name: factor for name, factor in factors.items() if factor > 1}


@final
@dataclass(frozen=True, kw_only=True)
class Round:
    """A round and how well its molecules agree with movie and prior."""

    number: int
    checks: tuple[Check, ...]
    outside: Mapping[str, float]
    """quantities of the scene outside the prior, with the factor"""

    @classmethod
    def of(cls, number: int, found: EmitterSet, recipe: TrainConfig) -> Round:
        """Judge the molecules that a model of a recipe found."""
        scene = SceneOfMolecules.of(found, recipe)
        outside = {} if scene is None else scene.outside(recipe.scene)
        return cls(number=number, checks=found.facts.checks, outside=outside)

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of what does not agree."""
        return (
            *(check.name for check in self.checks if check.failed),
            *(f"prior of {name}" for name in self.outside),
        )

    @property
    def distance(self) -> float:
        """How far what fails lies from its limits: sum of the logarithms."""
        beyond = (
            abs(math.log(max(abs(check.value), 1e-3) / max(abs(check.limit), 1e-3)))
            for check in self.checks
            if check.failed and check.value is not None and check.limit is not None
        )
        return sum(beyond) + sum(math.log(factor) for factor in self.outside.values())

    @property
    def doubts_psf(self) -> bool:
        """Whether the checks call for another PSF."""
        return bool(OF_PSF & set(self.failed))

    def improves_on(self, other: Round) -> bool:
        """Whether fewer things fail than in another round, or they fail by less."""
        return (len(self.failed), self.distance) < (len(other.failed), other.distance)


def refined_psf(
    movie: Path, camera: CameraFile, start: PSFFile, selection: Selection
) -> tuple[PSFFile, str]:
    """A PSF whose spherical aberration and blur are refined by the movie itself, and sentences on
    what that leaves open.

    Beads know the other aberrations better than molecules that stand hardly alone; a coma that is
    wrong by 10 nm displaces molecules far from focus by as much.

    Raises:
        ValueError: if no pupil has images like the PSF's, or too few molecules stand alone.
    """
    pupil = calibrated_pupil(start).psf
    file = PSFFile(
        psf=pupil,
        z_range_nm=start.z_range_nm,
        sources=start.sources,
        z_direction=start.z_direction,
    )
    return refine_in_situ(movie, camera, file, free=OF_DEPTH, selection=selection)


def with_scene(recipe: str, ranges: Mapping[str, Range], *, psf_file: str, number: int) -> str:
    """The text of a recipe with other ranges of the scene, and another file of the PSF."""
    for name, (low, high) in ranges.items():
        line = f"  {name}: [{low:.6f}, {high:.6f}]  # by the molecules of round {number - 1}"
        recipe = re.sub(rf"^  {name}:.*$", line, recipe, flags=re.MULTILINE)
    return re.sub(r"^(psf:\n  file:) \S+", rf"\1 '{psf_file}'", recipe, flags=re.MULTILINE)


def _relative_photons(scene: Scene) -> torch.Tensor:
    """Photons of molecules of unit flux that blink as in a recipe."""
    middle = Scene(
        density_per_um2=(0.2, 0.2),
        flux_photons=(1.0, 1.0),
        flux_variation=scene.flux_variation,
        on_time_frames=scene.on_time_frames,
        filaments=0.0,
    )
    rng = torch.Generator().manual_seed(0)
    shape = (SIDE_PX, SIDE_PX)
    return middle.sample_emitters(8, SIMULATED_FRAMES // 8, shape, 100.0, rng).photons.double()
