"""Estimates from the movie of what its user did not state, each number with an interval."""

from decode.estimation.aperture import ApertureCorrection, aperture_correction
from decode.estimation.camera import CameraEstimate, CameraKind, estimate_camera
from decode.estimation.comparison import Comparison, compare, save_comparison
from decode.estimation.frames import Estimate
from decode.estimation.psf_width import estimate_psf_sigma
from decode.estimation.recipe import is_covered, to_recipe
from decode.estimation.scene import SceneEstimate, estimate_scene

__all__ = [
    "ApertureCorrection",
    "CameraEstimate",
    "CameraKind",
    "Comparison",
    "Estimate",
    "SceneEstimate",
    "aperture_correction",
    "compare",
    "estimate_camera",
    "estimate_psf_sigma",
    "estimate_scene",
    "is_covered",
    "save_comparison",
    "to_recipe",
]
