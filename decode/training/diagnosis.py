"""Diagnosis: sentences on what limits a model, and on movies that are unlike its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from decode.config import TrainConfig
from decode.network.record import ModelRecord

__all__ = ["beyond_training", "diagnose", "trained_flicker", "unsteady"]

MIN_JACCARD = 0.5
"""Jaccard index below which more molecules are missed or made up than found"""
BACKGROUND_TOLERANCE = 1.5
"""factor by which a movie's background may exceed the range of the training, as it is uneven"""
MAX_FLICKER = 0.15
"""relative change of the background between frames that models trained on steady light tolerate.

Beyond it they make up molecules: on alternating and on noisy light, 3 % of the molecules at 0.15 to
0.2, a quarter and more at 0.3.
"""
MAX_ERROR_OVER_BOUND = 1.25
CALIBRATED = (0.8, 1.25)
"""range of errors over stated sigmas without a remark"""


def beyond_training(record: ModelRecord, background: float) -> str:
    """Compare the background of a movie with that of a training.

    Args:
        record: record of the model.
        background: background of the movie, photons per pixel.

    Returns:
        A sentence if the model was not trained on such a background, or "".
    """
    if record.background_photons is None:
        return ""
    low, high = record.background_photons
    if low / BACKGROUND_TOLERANCE <= background <= high * BACKGROUND_TOLERANCE:
        return ""
    return (
        f"the movie's background is about {max(background, 0.0):.3g} photons per pixel, and the "
        f"model was trained on {low:g} to {high:g}: molecules may be missed or made up; check the "
        "camera's baseline and gain, or train a model for this movie (`decode estimate`, "
        "`decode train`)"
    )


def unsteady(record: ModelRecord, flicker: float) -> str:
    """Compare the flicker of a movie with that of a training.

    Args:
        record: record of the model.
        flicker: flicker of the movie, from `UsualFrames.flicker`.

    Returns:
        A sentence if the background changes between frames more than in training, or "".
    """
    allowed = trained_flicker(record)
    if flicker <= allowed:
        return ""
    return (
        f"the background changes by {flicker:.0%} from frame to frame, and the model was trained "
        f"on steadier light (up to {allowed:.0%}): molecules may be made up; localize the frames "
        "of each laser apart, record with steady light, or train a model for this movie "
        "(`decode train`)"
    )


def trained_flicker(record: ModelRecord) -> float:
    """Relative change of the background between frames that a model was trained on."""
    if record.flicker_factor is None:
        return MAX_FLICKER
    low, high = record.flicker_factor
    ratio = max(high, 1 / low)
    # frames that take turns, over the middle of both
    return 2 * (ratio - 1) / (ratio + 1)


def diagnose(
    config: TrainConfig,
    validation: Mapping[str, float],
    figures: Sequence[Mapping[str, float]],
    converged: bool,
) -> list[str]:
    """What limits a model, by its scores on simulated movies.

    Args:
        config: the recipe.
        validation: the last figures of `Validation`.
        figures: scores by density and flux, from `characterize`.
        converged: validation had stopped improving before the end.

    Returns:
        A sentence on each limit, the most important one first.
    """
    remarks = [_too_dim(config, figures), _too_dense(figures)]
    over_bound = validation["isolated_error_over_bound"]
    if over_bound > MAX_ERROR_OVER_BOUND:
        remedy = "a larger network may do better" if converged else "train longer"
        remarks.append(
            f"isolated molecules are found {over_bound:.2f} times less precisely than their light "
            f"allows: {remedy}"
        )
    over_sigma = validation["isolated_error_over_sigma"]
    if not CALIBRATED[0] < over_sigma < CALIBRATED[1]:
        remarks.append(
            f"errors are {over_sigma:.2f} times the stated uncertainties, which will come closer "
            "with a longer training"
        )
    return [remark for remark in remarks if remark]


def _too_dim(config: TrainConfig, figures: Sequence[Mapping[str, float]]) -> str:
    """A sentence if dim molecules are not found even where they are sparse, or ""."""
    sparsest = min((row["density_per_um2"] for row in figures), default=None)
    sparse = [row for row in figures if row["density_per_um2"] == sparsest]
    missed = [row["flux_photons"] for row in sparse if row["jaccard"] < MIN_JACCARD]
    if not missed:
        return ""
    low, high = config.scene.background_photons
    return (
        f"too dim: with {max(missed):.0f} photons on {figures[0]['background_photons']:.0f} of "
        "background a pixel, fewer than half of the molecules are found even where they are "
        "sparse; gather more photons (longer frames, more laser power), lower the background "
        f"({low:g} to {high:g} in the recipe), use a PSF that spreads less, or train on brighter "
        "molecules only"
    )


def _too_dense(figures: Sequence[Mapping[str, float]]) -> str:
    """A sentence if bright molecules are found where sparse, but not where dense, or ""."""
    brightest = max((row["flux_photons"] for row in figures), default=None)
    bright = [row for row in figures if row["flux_photons"] == brightest]
    missed = [row["density_per_um2"] for row in bright if row["jaccard"] < MIN_JACCARD]
    if not missed or min(missed) == min(row["density_per_um2"] for row in figures):
        return ""
    return (
        f"too dense for this PSF: from {min(missed):.1f} molecules on at once per square "
        "micrometre, fewer than half are found even if bright; switch fewer on, record more "
        "frames, or use a smaller range of depth"
    )
