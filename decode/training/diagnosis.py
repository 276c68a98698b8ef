"""diagnose: in plain words, what limits a trained model and what to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from decode.config import TrainConfig

__all__ = ["beyond_training", "diagnose", "unsteady"]

FEW = 0.5
"""Jaccard index below which more molecules are missed or made up than found"""

MARGIN = 1.5
"""by which a movie's background may lie outside the range of a model's training: the background of a movie is uneven"""


FLICKER = 0.15
"""change of the background from frame to frame, from which models that were trained on steady light make up molecules:
measured on alternating and on noisy light, 3 % of the molecules at 0.15 to 0.2, a quarter and more at 0.3"""


def beyond_training(record: Mapping[str, Any], background: float) -> str:
    """A sentence where the background of a movie, photons per pixel, is none that a model was trained on, or ""."""
    stated = record.get("config", {}).get("scene", {}).get("background_photons")
    if stated is None:
        return ""
    low, high = stated
    if low / MARGIN <= background <= high * MARGIN:
        return ""
    return (
        f"the movie's background is about {max(background, 0.0):.3g} photons per pixel, and the model was trained on "
        f"{low:g} to {high:g}: molecules may be missed or made up; check the camera's baseline and gain, or train a "
        "model for this movie (`decode estimate`, `decode train`)"
    )


def unsteady(record: Mapping[str, Any], flicker: float) -> str:
    """A sentence where the background of a movie changes between frames more than where a model was trained, or "".

    Args:
        record: of the model.
        flicker: of the movie, from `UsualFrames.flicker`.
    """
    scene = record.get("config", {}).get("scene", {})
    allowed = FLICKER
    if scene.get("flicker", 0.0) > 0:
        low, high = scene["flicker_factor"]
        ratio = max(high, 1 / low)
        # frames that take turns, over the middle of both
        allowed = 2 * (ratio - 1) / (ratio + 1)
    if flicker <= allowed:
        return ""
    return (
        f"the background changes by {flicker:.0%} from frame to frame, and the model was trained on steadier light "
        f"(up to {allowed:.0%}): molecules may be made up; localize the frames of each laser apart, record with steady "
        "light, or train a model for this movie (`decode train`)"
    )


def diagnose(
    config: TrainConfig,
    validation: Mapping[str, float],
    figures: Sequence[Mapping[str, float]],
    settled: bool,
) -> list[str]:
    """What limits a model, by its figures on simulations.

    Args:
        config: the recipe.
        validation: the last figures of `Validation`.
        figures: by density and flux, from `characterize`.
        settled: validation had stopped improving before the end.

    Returns:
        A sentence each, the most important one first; none if there is nothing to say.
    """
    remarks = []
    densities = sorted({row["density_per_um2"] for row in figures})
    fluxes = sorted({row["flux_photons"] for row in figures})

    def jaccard(density: float, flux: float) -> float:
        return next(r["jaccard"] for r in figures if r["density_per_um2"] == density and r["flux_photons"] == flux)

    background = config.scene.background_photons
    if densities:
        dim = [flux for flux in fluxes if jaccard(densities[0], flux) < FEW]
        if dim:
            remarks.append(
                f"too dim: with {dim[-1]:.0f} photons on {figures[0]['background_photons']:.0f} of background a pixel, "
                "fewer than half of the molecules are found even where they are sparse; gather more photons (longer "
                f"frames, more laser power), lower the background ({background[0]:g} to {background[1]:g} in the "
                "recipe), use a PSF that spreads less, or train on brighter molecules only"
            )
        bright = fluxes[-1]
        crowded = [density for density in densities if jaccard(density, bright) < FEW]
        if crowded and crowded[0] > densities[0]:
            remarks.append(
                f"too dense for this PSF: from {crowded[0]:.1f} molecules on at once per square micrometre, fewer than "
                "half are found even if bright; switch fewer on, record more frames, or use a smaller range of depth"
            )
    over_bound, over_sigma = validation["isolated_error_over_bound"], validation["isolated_error_over_sigma"]
    if over_bound > 1.25:
        remarks.append(
            f"isolated molecules are found {over_bound:.2f} times less precisely than their light allows: "
            + ("a larger network may do better" if settled else "train longer")
        )
    if not 0.8 < over_sigma < 1.25:
        remarks.append(
            f"errors are {over_sigma:.2f} times the stated uncertainties, which will come closer with a longer training"
        )
    return remarks
