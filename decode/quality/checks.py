"""Checks of a localization against its movie: a statistic, its limits and a sentence each."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, final

from decode.emitters import Check
from decode.quality.evidence import Evidence, Kind
from decode.quality.limits import LIMITS, Limits

__all__ = ["CRITERIA", "Criterion", "checks_of"]


def checks_of(
    evidence: Evidence, *, limits: Limits | None = None, flicker: float = 0.0
) -> tuple[Check, ...]:
    """All checks of a movie.

    Failed ones come first, causes before their consequences: a wrong gain, for example, before the
        fits that it spoils.

    Args:
        evidence: from `Sample.evidence`.
        limits: from `Limits.of`; None: those of the kind of PSF.
        flicker: change of the light from frame to frame that the model was trained on.

    Example:
        >>> checks = checks_of(Evidence(kind="measured", noise=1.4, goodness=3.0))
        >>> [check.name for check in checks if check.failed]
        ['camera noise', 'goodness of fit']
    """
    limits = limits or LIMITS[evidence.kind]
    limits = replace(limits, flicker=max(flicker, limits.flicker))
    made = [criterion.check(evidence, limits) for criterion in CRITERIA[evidence.kind]]
    return tuple(sorted(made, key=lambda check: not check.failed))


class Criterion(ABC):
    """A criterion that judges evidence."""

    name: ClassVar[str]
    needs: ClassVar[str] = "lone molecules"
    """what the statistic is computed from, of which there may be too few"""

    @abstractmethod
    def value(self, evidence: Evidence) -> float:
        """The statistic; NaN where there are too few data."""

    @abstractmethod
    def limits(self, limits: Limits) -> tuple[float, float]:
        """Lowest and highest value that passes."""

    @abstractmethod
    def cause(self, evidence: Evidence) -> str:
        """The most likely cause of a failure, and the remedy."""

    def check(self, evidence: Evidence, limits: Limits) -> Check:
        """The check of a movie's evidence."""
        value = self.value(evidence)
        if math.isnan(value):
            sentence = f"too few {self.needs} to tell"
            return Check(name=self.name, value=None, limit=None, passed=None, sentence=sentence)
        low, high = self.limits(limits)
        passed = low <= value <= high
        return Check(
            name=self.name,
            value=float(f"{value:.4g}"),
            limit=low if value < low else high,
            passed=passed,
            sentence="as it should be" if passed else self.cause(evidence),
        )


@final
class CameraNoise(Criterion):
    """Noise of pixels without molecules."""

    name = "camera noise"
    needs = "dark pixels"

    def value(self, evidence: Evidence) -> float:
        return evidence.noise

    def limits(self, limits: Limits) -> tuple[float, float]:
        return limits.noise

    def cause(self, evidence: Evidence) -> str:
        return (
            f"where no molecule is, the variance of pixels is {evidence.noise:.2f} times what the "
            "camera's gain, offset, EM gain and read noise say: photons and uncertainties are "
            "wrong about as much; calibrate the camera (decode calibrate camera)"
        )


@final
class CameraMaps(Criterion):
    """Differences between pixels that the camera does not state."""

    name = "camera maps"
    needs = "frames and dark pixels"

    def value(self, evidence: Evidence) -> float:
        return evidence.pixel_offset

    def limits(self, limits: Limits) -> tuple[float, float]:
        return -1.0, limits.pixel_offset

    def cause(self, evidence: Evidence) -> str:
        return (
            "pixels differ in offset, the same ones throughout the movie, as the camera does not "
            "state: an sCMOS without its maps, or with those of another region; state "
            "offset, gain and read-variance maps (decode calibrate camera)"
        )


@final
class Density(Criterion):
    """Number of molecules around a molecule."""

    name = "density"
    needs = "molecules"

    def value(self, evidence: Evidence) -> float:
        return evidence.density

    def limits(self, limits: Limits) -> tuple[float, float]:
        return 0.0, limits.density

    def cause(self, evidence: Evidence) -> str:
        return (
            f"{evidence.density:.2g} molecules per square micrometre are on at once around a "
            "molecule, more than the model separates: many are missed or merged; record with "
            "fewer on at once (more laser power, less activation), or train for this density; if "
            "spots are long or have rings, several are made of one: localize with their PSF, in 3D"
        )


@final
class Orientation(Criterion):
    """Whether another orientation of the PSF explains lone molecules better."""

    name = "orientation"
    needs = "lone molecules, or the PSF is round: too little"

    def value(self, evidence: Evidence) -> float:
        return evidence.turned

    def limits(self, limits: Limits) -> tuple[float, float]:
        return 0.0, limits.turned

    def cause(self, evidence: Evidence) -> str:
        return (
            f"lone molecules look as if the movie were {evidence.turn} against the PSF: z and "
            "positions are wrong; save beads and movie in the same orientation"
        )


@final
class Astigmatism(Criterion):
    """Share of spots that are elongated along an axis or across it."""

    name = "elongation"
    needs = "bright spots"

    def value(self, evidence: Evidence) -> float:
        return evidence.elongation

    def limits(self, limits: Limits) -> tuple[float, float]:
        return 0.0, limits.elongation

    def cause(self, evidence: Evidence) -> str:
        return (
            f"{evidence.elongation:.0%} of the images are long along an axis or across it, beyond "
            "those at 45 degrees to it, as through a cylindrical lens: a 2D model invents several "
            "molecules for one; calibrate the PSF from beads and localize in 3D (decode run, or "
            "--model astigmatic-3d --psf)"
        )


class FocusDrift(Criterion):
    """Change of depths or images over the movie."""

    name = "focus drift"

    def value(self, evidence: Evidence) -> float:
        return evidence.drift

    def limits(self, limits: Limits) -> tuple[float, float]:
        return 0.0, limits.drift


@final
class DriftOfDepth(FocusDrift):
    """Change of depths over the movie."""

    def cause(self, evidence: Evidence) -> str:
        return (
            f"the depth of molecules changes by about {evidence.drift:.0f} nm over the movie: the "
            "focus drifted; correct the drift along z, localize parts of the movie by themselves "
            "(--frames), and record with a focus lock"
        )


@final
class DriftOfHeight(FocusDrift):
    """Change of the height of images over the movie."""

    def cause(self, evidence: Evidence) -> str:
        return (
            f"the images of molecules are {-math.expm1(-evidence.drift):.0%} lower in one part of "
            "the movie than in another, wider or dimmer: the focus drifted, or the laser's power "
            "changed; localize parts of the movie by themselves (--frames), and record with a "
            "focus lock"
        )


@final
class Width(Criterion):
    """Width of images over that of the PSF."""

    name = "PSF width"

    def value(self, evidence: Evidence) -> float:
        return evidence.width

    def limits(self, limits: Limits) -> tuple[float, float]:
        return limits.width

    def cause(self, evidence: Evidence) -> str:
        return (
            f"molecules are about {evidence.width:.2f} times as wide as the PSF: its width, the "
            "pixel size or the focus is another; leave --psf-sigma out, so that it is estimated, "
            "or calibrate the PSF in the sample"
        )


@final
class Misfit(Criterion):
    """Mean residual image of lone molecules."""

    name = "PSF misfit"

    def value(self, evidence: Evidence) -> float:
        return evidence.misfit

    def limits(self, limits: Limits) -> tuple[float, float]:
        return 0.0, limits.misfit

    def cause(self, evidence: Evidence) -> str:
        return (
            f"the mean image of lone molecules differs from the PSF by {evidence.misfit:.0%}: it "
            "is that of another microscope, day, depth or colour, and positions are biased; "
            "record beads as the movie was recorded, and calibrate them (decode calibrate psf)"
        )


@final
class Spherical(Criterion):
    """Spherical aberration of lone molecules."""

    name = "spherical aberration"
    needs = "lone molecules, or the PSF is no pupil: too little"

    def value(self, evidence: Evidence) -> float:
        return evidence.spherical

    def limits(self, limits: Limits) -> tuple[float, float]:
        return -limits.spherical, limits.spherical

    def cause(self, evidence: Evidence) -> str:
        return (
            f"molecules have {evidence.spherical:+.3f} waves of spherical aberration that the PSF "
            "lacks: they lie deeper in the sample than beads, or the immersion is another; refine "
            "the pupil by the movie (decode calibrate in-situ), or record beads in the sample"
        )


@final
class Goodness(Criterion):
    """Median deviance of lone molecules per degree of freedom."""

    name = "goodness of fit"

    def value(self, evidence: Evidence) -> float:
        return evidence.goodness

    def limits(self, limits: Limits) -> tuple[float, float]:
        return limits.goodness

    def cause(self, evidence: Evidence) -> str:
        return (
            f"lone molecules leave {evidence.goodness:.2f} times the noise unexplained: PSF or "
            "camera are not those of the movie, or molecules are not alone; see the other checks"
        )


@final
class Missed(Criterion):
    """Spots of light without a molecule in the table."""

    name = "light left over"
    needs = "molecules"

    def value(self, evidence: Evidence) -> float:
        return evidence.missed

    def limits(self, limits: Limits) -> tuple[float, float]:
        return 0.0, limits.missed

    def cause(self, evidence: Evidence) -> str:
        return (
            f"{evidence.missed:.0%} of the spots are no molecule of the table: these are missed; "
            "lower --threshold, or train for this brightness, density and depth"
        )


@final
class Empty(Criterion):
    """Molecules that state more light than the frames hold."""

    name = "molecules without light"
    needs = "molecules"

    def value(self, evidence: Evidence) -> float:
        return evidence.empty

    def limits(self, limits: Limits) -> tuple[float, float]:
        return 0.0, limits.empty

    def cause(self, evidence: Evidence) -> str:
        return (
            f"{evidence.empty:.0%} of the molecules have less light than they say: they are "
            "invented, merged, or too sharp; raise --threshold, polish, and see the other checks"
        )


@final
class Flicker(Criterion):
    """Change of the light from frame to frame."""

    name = "changing light"
    needs = "frames"

    def value(self, evidence: Evidence) -> float:
        return evidence.flicker

    def limits(self, limits: Limits) -> tuple[float, float]:
        return 0.0, limits.flicker

    def cause(self, evidence: Evidence) -> str:
        return (
            f"the background changes by {evidence.flicker:.0%} from frame to frame: lasers that "
            "take turns, or a lamp that flickers; localize the frames of one light (--frames), or "
            "record in steady light"
        )


@final
class Ends(Criterion):
    """Molecules at the ends of the depths."""

    name = "ends of depth"
    needs = "molecules, or the model knows no depth: too little"

    def value(self, evidence: Evidence) -> float:
        return evidence.at_ends

    def limits(self, limits: Limits) -> tuple[float, float]:
        return 0.0, limits.at_ends

    def cause(self, evidence: Evidence) -> str:
        return (
            f"{evidence.at_ends:.0%} of the molecules lie at an end of the depths that network and "
            "PSF know, and may lie beyond it; leave them out, move the focus, or calibrate beads "
            "over more depth"
        )


_CAMERA: tuple[Criterion, ...] = (CameraMaps(), CameraNoise())
_SCENE: tuple[Criterion, ...] = (Goodness(), Missed(), Empty(), Flicker(), Ends())
_GAUSSIAN: tuple[Criterion, ...] = (DriftOfHeight(), Astigmatism(), Density(), Width(), Misfit())
_MEASURED: tuple[Criterion, ...] = (
    Orientation(),
    DriftOfDepth(),
    Spherical(),
    Density(),
    Misfit(),
    Width(),
)

CRITERIA: Mapping[Kind, tuple[Criterion, ...]] = {
    "gaussian": (*_CAMERA, *_GAUSSIAN, *_SCENE),
    "measured": (*_CAMERA, *_MEASURED, *_SCENE),
}
"""criteria by the kind of PSF, causes before consequences"""
